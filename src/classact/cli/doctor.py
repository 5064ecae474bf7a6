"""What is installed and what works here, tried rather than looked up."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement

from classact.cli.console import console
from classact.data.images import cache_folder
from classact.data.types import FloatArray
from classact.errors import ClassactError, ConfigError, SimulatorError
from classact.sims import SIMULATORS, Simulator, make_simulator
from classact.sims.base import OPEN, install_advice
from classact.sims.processes import FaultError, Process
from classact.utils.lazy import resolve
from classact.utils.registry import plugins
from classact.utils.storage import check_writable


@dataclass(frozen=True)
class Check:
    """One line of the table: what was tested, its version, speed or problem, and the remedy.

    ``required``: whether the main task needs it.
    """

    name: str
    works: bool
    detail: str
    remedy: str = ""
    required: bool = True


def _try(name: str, test: Callable[[], str], remedy: str, *, required: bool = True) -> Check:
    try:
        return Check(name, True, test(), required=required)
    except Exception as error:
        return Check(name, False, f"{type(error).__name__}: {error}".splitlines()[0][:160], remedy, required)


def _torch() -> str:
    import torch

    from classact.train.engine import use_bfloat16

    native = "bfloat16 native" if use_bfloat16("auto", torch.device("cpu")) else "float32"
    return f"{torch.__version__}, {torch.get_num_threads()} threads, {native}"


def _kernel() -> str:
    from classact.similarity import dtw, dtw_pairwise

    x = np.random.default_rng(0).normal(size=(4, 16, 2)).astype(np.float32)
    error = abs(float(dtw_pairwise(x)[0, 1]) - dtw(x[0], x[1]))
    if error > 1e-3:
        raise ArithmeticError(f"differs from the reference by {error:.3g}")
    return f"numba {metadata.version('numba')}, equal to the reference"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("no CUDA device is visible to torch")
    from classact.similarity import dtw_pairwise

    x = torch.rand(32, 16, 2)
    error = float((dtw_pairwise(x.cuda()).cpu() - dtw_pairwise(x)).abs().max())
    if error > 1e-3:
        raise ArithmeticError(f"its DTW differs from the CPU's by {error:.3g}")
    return f"{torch.cuda.get_device_name()}, DTW equal to the CPU's"


STEPS, FRAMES = 20, 5
PATIENCE = 300.0  # seconds that a simulator gets to start, step and render


def hold_action(sim: Simulator) -> FloatArray:
    """(D_a,) the action that keeps an arm, or Push-T's agent, where it is."""
    spec = sim.spec
    if spec.name in SIMULATORS and (hold := SIMULATORS[spec.name].hold) is not None:
        return np.asarray(resolve(hold)(sim), np.float32)
    now = sim.observe(render=False).proprioception
    if spec.proprioception_dim == spec.action_dim:  # positions of joints or of a point
        return now
    keys = () if spec.schema is None else spec.schema.keys
    if spec.schema is None or not {"eef_pos", "eef_rot6d"} <= set(keys) or spec.action_dim != 10:
        raise ConfigError(
            f"{spec.name}: which of its {spec.action_dim}-D actions holds still is not known; expected proprioception "
            f"of as many values, or 'eef_pos' and 'eef_rot6d' and 10-D actions, got {sorted(keys)}. Name a function "
            f"that says it as 'hold' of the simulator's entry."
        )
    pose = now[spec.schema.columns(("eef_pos", "eef_rot6d"))]
    return np.concatenate([pose, [OPEN]]).astype(np.float32)


def try_simulator(name: str) -> str:
    """Start a simulator, step it and render it; returns its speed in words."""
    sim = make_simulator(name)
    try:
        sim.reset(0)
        action = hold_action(sim)
        begin = time.perf_counter()
        for _ in range(STEPS):
            sim.step(action)
        stepping = (time.perf_counter() - begin) / STEPS
        sim.observe()  # the first picture starts GL
        begin = time.perf_counter()
        for _ in range(FRAMES):
            image = next(iter(sim.observe().images.values()))
        rendering = (time.perf_counter() - begin) / FRAMES
        if image.std() == 0:
            raise SimulatorError("the rendered image is blank. Update the GL driver, or try another MUJOCO_GL.")
        size = sim.spec.image_size
        return f"{1000 * stepping:.3g} ms a step, {1000 * rendering:.3g} ms a frame of {size} x {size}"
    finally:
        sim.close()


def try_simulators(names: Iterable[str], attempt: Callable[[str], str] = try_simulator) -> list[Check]:
    """One check per simulator, in a process that is replaced when it is lost: broken GL may crash it."""
    checks, process = [], Process(attempt, PATIENCE)
    for name in names:
        title, extra = f"simulator {name}", SIMULATORS[name].extra
        process.timeout = PATIENCE
        process.ask(name)
        try:
            checks.append(Check(title, True, process.receive(), required=extra is None))
        except FaultError as fault:
            if fault.error is None:
                process = Process(attempt, PATIENCE)
                said = f"its process {fault}", "update the GL driver, or try another MUJOCO_GL (egl, osmesa, glfw)"
            else:
                said = _said(fault.error, extra)
            checks.append(Check(title, False, *said, extra is None))
    process.end(patience=5)
    return checks


def _said(error: Exception, extra: str | None) -> tuple[str, str]:
    """(problem, remedy) of an error; classact's messages say both, in this order."""
    text = " ".join(str(error).split())
    install = "uv sync" if extra is None else f"pip install --force-reinstall 'classact[{extra}]'"
    detail, remedy = f"{type(error).__name__}: {text}"[:160], install
    if isinstance(error, ClassactError):
        detail, _, rest = text.partition(". ")
        remedy = rest or install
    return detail, remedy


def _zarr() -> str:
    import numcodecs
    import zarr

    numcodecs.Blosc(cname="zstd")
    return f"zarr {zarr.__version__}, blosc"


def _video() -> str:
    import av

    av.Codec("h264", "w")
    return f"PyAV {av.__version__}, h264"


def _weights(name: str) -> str:
    import torch

    file = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not file.exists():
        raise FileNotFoundError(f"not at {file}")
    return str(file)


def _cache() -> str:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder, folder=True)
    return f"{folder}, {shutil.disk_usage(folder).free / 1e9:.0f} GB free"


EXTRAS = {
    "aloha": "the simulator 'aloha-transfer'",
    "equivar": "the encoder --backbone equivariant",
    "faiss": "retrieval from more than a million timesteps",
    "libero": "the simulator 'libero-object'",
    "locomotion": "the simulators 'half-cheetah' and 'hopper'",
    "metaworld": "the simulators 'metaworld-...'",
    "onnx": "classact export onnx, and running its files",
    "pusht": "the simulator 'pusht', and so the demo without --data",
    "robosuite": "the simulators 'square', 'three-stack-d0' and 'three-stack-d1'",
    "tensorboard": "--trackers tensorboard",
    "wandb": "--trackers wandb",
}
"""Extra -> what needs it. Its packages are those that classact's own metadata name."""


def _extra(extra: str) -> str:
    found, wrong = [], []
    for requirement in map(Requirement, metadata.requires("classact") or ()):
        if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
            continue
        name, wanted = requirement.name, requirement.specifier
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} is not installed")
            continue
        found.append(f"{name} {version}")
        if not wanted.contains(version, prereleases=True):
            wrong.append(f"{name} is {version}, expected {wanted}")
    if wrong or not found:
        raise ImportError("; ".join(wrong) or "the installed classact does not know it: install it again")
    return ", ".join(found)


NEEDED: tuple[tuple[str, Callable[[], str], str], ...] = (
    ("torch", _torch, "reinstall the project's environment: uv sync"),
    ("DTW kernel", _kernel, "reinstall numba: uv sync --reinstall-package numba"),
    ("image cache", _cache, "set CLASSACT_CACHE to a folder that can be written"),
    ("Zarr reader", _zarr, "uv sync"),
    ("video encoder", _video, "uv sync --reinstall-package av"),
)
IMAGENET = "download.pytorch.org/models/resnet18-f37072fd.pth"
OPTIONAL: tuple[tuple[str, Callable[[], str], str], ...] = (
    ("GPU", _gpu, "none is needed for Push-T; others: install a CUDA build of torch"),
    (
        "ImageNet weights",
        partial(_weights, "resnet18-f37072fd.pth"),
        f"needed for init 'imagenet' only: downloaded at first use, or fetch {IMAGENET} by hand",
    ),
    (
        "R3M weights",
        partial(_weights, "r3m_resnet18.pt"),
        "needed for init 'r3m' only: downloaded at first use, or give init_path",
    ),
    *(
        (f"extra {extra}", partial(_extra, extra), f"needed for {use} only. {install_advice(extra)}")
        for extra, use in EXTRAS.items()
    ),
)


def examine() -> list[Check]:
    """Test everything; nothing is downloaded."""
    found = {name: ", ".join(registered) for name, registered in plugins().items()}
    return [
        *(_try(*one) for one in NEEDED),
        *(Check(f"plugin {name}", True, registered or "registers nothing") for name, registered in found.items()),
        *try_simulators(SIMULATORS),
        *(_try(*one, required=False) for one in OPTIONAL),
    ]


@dataclass(frozen=True)
class Doctor:
    """Try what is installed: kernel, simulators, decoder, GPU; say what to do about what fails."""

    def main(self) -> int:
        """Return 1 where something that the main task needs fails."""
        from rich.table import Table
        from rich.text import Text

        checks = examine()
        table = Table("", "what")
        for title in ("found", "remedy"):
            table.add_column(title, overflow="fold")  # a path or address is of use only whole
        for check in checks:
            mark = ("ok", "green") if check.works else ("FAIL", "red") if check.required else ("no", "yellow")
            table.add_row(Text(*mark), check.name, check.detail, check.remedy)
        console().print(table)
        return int(any(check.required and not check.works for check in checks))
