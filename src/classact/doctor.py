"""What is installed and what works here, tried rather than looked up."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np

from classact.images import cache_folder
from classact.sims import SIMULATORS, make_simulator


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        name: what was tried.
        works: whether it does.
        detail: version, speed or what is wrong.
        remedy: what to do where it does not work; empty where it does.
        required: whether the main job needs it.
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

    from classact.engine import use_bfloat16

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


def _simulator(name: str) -> str:
    sim = make_simulator(name)
    try:
        sim.reset(0)
        action = np.full(sim.spec.action_dim, sum(sim.spec.world) / 2, np.float32)
        begin = time.perf_counter()
        for _ in range(100):
            sim.step(action)
        rate = 100 / (time.perf_counter() - begin)
        image = next(iter(sim.observe().images.values()))
        if image.std() == 0:
            raise RuntimeError("the rendered image is blank")
        return f"steps ({rate:,.0f} a second) and renders"
    finally:
        sim.close()


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
    probe = folder / ".doctor.tmp"
    probe.write_bytes(b"x")
    probe.unlink()
    return f"{folder}, {shutil.disk_usage(folder).free / 1e9:.0f} GB free"


EXTRAS = {
    "diffusion": ("diffusers", "the head 'diffusion'"),
    "faiss": ("faiss-cpu", "retrieval from more than a million moments"),
    "tensorboard": ("tensorboard", "--trackers tensorboard"),
    "wandb": ("wandb", "--trackers wandb"),
    "trackio": ("trackio", "--trackers trackio"),
}
"""Extra -> its package, and what needs it."""


def _extra(package: str) -> str:
    return f"{package} {metadata.version(package)}"


def examine() -> list[Check]:
    """Try everything; nothing is downloaded."""
    checks = [
        _try("torch", _torch, "reinstall the project's environment: uv sync"),
        _try("DTW kernel", _kernel, "reinstall numba: uv sync --reinstall-package numba"),
        _try("image cache", _cache, "set CLASSACT_CACHE to a folder that can be written"),
        _try("Zarr reader", _zarr, "uv sync"),
        _try(
            "video encoder", _video, "uv sync --reinstall-package av; reports then hold animated WebP", required=False
        ),
    ]
    checks += [_try(f"simulator {name}", partial(_simulator, name), "uv sync") for name in SIMULATORS]
    imagenet = "download.pytorch.org/models/resnet18-f37072fd.pth"
    checks += [
        _try("GPU", _gpu, "none is needed for Push-T; others: install a CUDA build of torch", required=False),
        _try(
            "ImageNet weights",
            lambda: _weights("resnet18-f37072fd.pth"),
            f"needed for init 'imagenet' only: downloaded at first use, or fetch {imagenet} by hand",
            required=False,
        ),
        _try(
            "R3M weights",
            lambda: _weights("r3m_resnet18.pt"),
            "needed for init 'r3m' only: downloaded at first use, or give init_path",
            required=False,
        ),
    ]
    checks += [
        _try(
            f"extra {extra}",
            partial(_extra, package),
            f"needed for {use} only: pip install 'classact[{extra}]'",
            required=False,
        )
        for extra, (package, use) in EXTRAS.items()
    ]
    return checks
