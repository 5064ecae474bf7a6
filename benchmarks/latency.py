"""How long a decision takes, stage by stage; p50 and p95 over many calls.

    uv run python benchmarks/latency.py --json benchmarks/results/latency.json
    uv run python benchmarks/latency.py --run RUN                               policies of a run

Weights do not change how long a network takes, so the policies are untrained ones of the right sizes over random
banks, unless those of a run are asked for. Each section is written as soon as it is measured, so the command can be
stopped and continued.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.table import Table

from classact.cli.console import console
from classact.data.lowdim import LowDim
from classact.data.normalize import MinMax
from classact.data.schema import Schema
from classact.data.types import FloatArray, IntArray, Observation
from classact.errors import ConfigError
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.models.heads import HEADS, Head, HeadConfig, make_head
from classact.policies.base import Neighbors, Timestep
from classact.policies.config import ParametricConfig, RetrievalConfig
from classact.policies.latents import ImageLatents, StateLatents
from classact.policies.load import load_policy
from classact.policies.parametric import ParametricPolicy
from classact.policies.retrieval import RetrievalPolicy
from classact.policies.search import make_search
from classact.run.folder import Run
from classact.train.engine import use_bfloat16
from classact.utils.codec import first_difference
from classact.utils.machine import choose_device
from classact.utils.storage import CHECKSUMS
from common import Again, ResultsFile, command
from sections import Row, run_sections

PAPER = {"retrieval": 5.5, "mlp": 7.3, "diffusion": 84.4}
"""Milliseconds per decision that the paper reports (appendix I): means over tasks, 100 runs each, on an NVIDIA A40."""

WARM_UP = 5
"""Calls before those that count, in which kernels are chosen and graphs recorded."""

FEWEST = 5
"""Calls that count, at least, however long they take."""


BANKS = (27_000, 75_000, 254_000)
"""Timesteps of the paper's data sets Push-T, LIBERO-Object and Three-Stack (appendix I)."""


@dataclass(frozen=True)
class Case:
    """Sizes of a policy.

    Attributes:
        name: as printed.
        encoder: image encoder.
        proprioception: D_p.
        size: of the heads, see :meth:`classact.models.heads.HeadConfig.preset`.
        banks: demonstrated timesteps of the retrieval policies.
    """

    name: str
    encoder: EncoderConfig
    proprioception: int
    size: str
    banks: tuple[int, ...]


CASES = (
    Case("small", EncoderConfig(image_size=96, crop_size=84), 8, "small", BANKS[:1]),
    Case("paper", EncoderConfig(backbone="resnet18", image_size=256, crop_size=224), 10, "paper", BANKS),
)
DIMENSIONS = (264, 1034)
"""Of a latent: features of the small encoder or of ResNet-18, and proprioception."""
BATCHES = (1, 50)
HORIZON, ACTIONS, NEIGHBORS = 16, 10, 64


@dataclass(frozen=True)
class LatencyConfig:
    """How to measure.

    Attributes:
        device: "auto", "cpu" or "cuda".
        calls: that are timed per row; None: 1,000 on a GPU, 100 on a CPU.
        seconds: of a row, about: where calls take longer than that together, fewer are made, and the row says how many.
        compiled: also measure U-Nets compiled by torch, which takes up to a minute for each.
        run: folder of a run whose policies the section "run" measures.
    """

    device: str = "auto"
    calls: int | None = None
    seconds: float = 60.0
    compiled: bool = True
    run: Path | None = None

    def __post_init__(self) -> None:
        if (self.calls is not None and self.calls < 1) or not self.seconds > 0:
            raise ConfigError(f"expected calls >= 1 and seconds > 0, got {self.calls} and {self.seconds}.")

    @property
    def setting(self) -> Row:
        """What a results file is compared by before it is continued: everything that changes the numbers."""
        device = choose_device(self.device)
        return {
            "device": device,
            "calls": self.calls or (1000 if device == "cuda" else 100),
            "seconds": self.seconds,
            "compiled": self.compiled,
        }


class Watch:
    """Times calls on one device.

    Args:
        setting: of :attr:`LatencyConfig.setting`.
    """

    def __init__(self, setting: Mapping[str, Any]) -> None:
        self.device = torch.device(setting["device"])
        self.calls, self.seconds, self.compiled = setting["calls"], setting["seconds"], setting["compiled"]
        self.rows: list[Row] = []
        self.notes: list[str] = []

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def once(self, function: Callable[[], Any]) -> float:
        """Seconds of one call, with all that the device does for it."""
        self.wait()
        begin = time.perf_counter()
        function()
        self.wait()
        return time.perf_counter() - begin

    def measure(self, function: Callable[[], Any], **labels: Any) -> Row:
        """Add a row: the labels, the number of calls, p50 and p95 in milliseconds. Warm-up does not count.

        Calls stop before ``calls`` where they have taken ``seconds``, but not before :data:`FEWEST`.
        """
        spent = 0.0
        for _ in range(WARM_UP):
            spent += self.once(function)
            if spent > self.seconds / 4:
                break
        times: list[float] = []
        while len(times) < self.calls and (len(times) < FEWEST or sum(times) < self.seconds):
            times.append(self.once(function))
        p50, p95 = (1e3 * float(np.percentile(times, q)) for q in (50, 95))
        row = {**labels, "calls": len(times), "p50_ms": p50, "p95_ms": p95}
        self.rows.append(row)
        return row


# -- what is measured --------------------------------------------------------------------------------------------------


def unit_rows(count: int, width: int, seed: int = 0) -> FloatArray:
    """(count, width) float32 random unit rows."""
    rows = np.random.default_rng(seed).standard_normal((count, width), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def observations(schema: Schema, cameras: Sequence[str], size: int, count: int, seed: int = 0) -> list[Observation]:
    """Random observations of a schema, images (size, size, 3)."""
    rng = np.random.default_rng(seed)
    return [
        Observation(
            {camera: rng.integers(0, 256, (size, size, 3), np.uint8) for camera in cameras},
            rng.uniform(-1, 1, schema.proprioception_dim).astype(np.float32),
            language=rng.uniform(-1, 1, schema.language).astype(np.float32) if schema.language else None,
        )
        for _ in range(count)
    ]


def _range(width: int) -> MinMax:
    return MinMax(-np.ones(width, np.float32), np.ones(width, np.float32))


def _episodes(steps: int, length: int = 150) -> IntArray:
    return np.append(np.arange(length, steps, length), steps).astype(np.int64)


def _lowdim(case: Case) -> LowDim:
    schema = Schema(case.encoder.cameras, (("proprioception", case.proprioception),))
    return LowDim(schema, schema.keys, _range(case.proprioception))


def retrieval_policy(case: Case, timesteps: int, *, bf16: bool = False) -> RetrievalPolicy:
    """An untrained encoder over a random bank."""
    latents = ImageLatents(ImageEncoder(case.encoder, load_init=False), _lowdim(case), bf16=bf16)
    bank = unit_rows(timesteps, latents.encoder.feature_dim + latents.lowdim.dim)
    actions = np.random.default_rng(1).uniform(-1, 1, (timesteps, ACTIONS)).astype(np.float32)
    config = RetrievalConfig(k=min(NEIGHBORS, timesteps), horizon=HORIZON)
    return RetrievalPolicy(latents, bank, actions, _episodes(timesteps), config)


def parametric_policy(case: Case, head: HeadConfig, *, bf16: bool = False) -> ParametricPolicy:
    """An untrained encoder and head."""
    encoder, lowdim = ImageEncoder(case.encoder, load_init=False), _lowdim(case)
    made = make_head(head, encoder.feature_dim + lowdim.dim, ACTIONS, HORIZON)
    return ParametricPolicy(encoder.eval(), made.eval(), _range(ACTIONS), lowdim, ParametricConfig(bf16=bf16))


def ways(watch: Watch, head: Head, batch: int) -> Iterator[tuple[str, Callable[..., Any]]]:
    """(how, sample) of the ways to sample from a head, and a note where it could not be compiled."""
    yield "eager", head.sample
    if not watch.compiled:
        return
    faster = copy.deepcopy(head)
    faster.accelerate()
    try:
        faster.sample(torch.zeros(batch, head.feature_dim, device=watch.device), torch.Generator())
    except Exception as error:  # compilers fail in ways of their own
        first = (str(error).strip() or "no message").splitlines()[0]
        watch.notes.append(f"{head.config.name}, batch {batch}: not compiled: {type(error).__name__}: {first}")
        return
    yield "compiled", faster.sample


def measure_head(watch: Watch, config: HeadConfig, case: Case) -> None:
    """Sampling from a head: noise, all passes, nothing before or after."""
    width = ImageEncoder(case.encoder, load_init=False).feature_dim + case.proprioception
    head = make_head(config, width, ACTIONS, HORIZON).eval().to(watch.device)
    name = f"{config.name}, {config.describe()}, {sum(p.numel() for p in head.parameters()) / 1e6:.1f} M parameters"
    for batch in BATCHES:
        features = torch.randn(batch, width, generator=torch.Generator().manual_seed(0)).to(watch.device)
        generator = torch.Generator().manual_seed(1)
        for how, sample in ways(watch, head, batch):
            watch.measure(partial(sample, features, generator), name=name, stage=how, batch=batch)


def measure_policy(
    watch: Watch,
    policy: RetrievalPolicy | ParametricPolicy,
    name: str,
    batches: Sequence[int],
    paper: Mapping[str, float] | None = None,
) -> None:
    """The stages of a policy's decision one by one, and the whole of it as the policy itself does it.

    Stages: "encode" (resize, encode, normalise), then "search" and "average", or "sample" from the head; "whole".

    Args:
        watch: measures.
        policy: what is measured.
        name: of the rows.
        batches: environments that decide together.
        paper: milliseconds by kind of policy that stand beside the whole decision of one environment.
    """
    kind = policy.spec.name
    for batch in batches:
        timesteps = _timesteps(policy, batch)
        flat = [o for timestep in timesteps for o in ([timestep] if isinstance(timestep, Observation) else timestep)]
        stages: dict[str, Callable[[], Any]] = {}
        if isinstance(policy, RetrievalPolicy):
            z = policy.latents.observations(flat)
            stages["encode"] = partial(policy.latents.observations, flat)
            stages["search"] = partial(policy.search, z)
            stages["average"] = partial(_average, policy, policy.search(z))
        elif isinstance(policy, ParametricPolicy):
            features = torch.from_numpy(policy.features(flat).reshape(batch, -1)).to(watch.device)
            policy.prepare(batch)
            generators = [torch.Generator().manual_seed(seed) for seed in range(batch)]
            stages["encode"] = partial(policy.features, flat)
            stages["sample"] = partial(policy.head.sample, features, generators)
        stages["whole"] = partial(policy.decide, timesteps)
        for stage, function in stages.items():
            with _unwarned():
                row = watch.measure(function, name=name, stage=stage, batch=batch)
            if stage == "whole" and batch == 1 and paper is not None and kind in paper:
                row["paper_ms"] = paper[kind]


@contextmanager
def _unwarned() -> Iterator[None]:
    # What a policy does on random images is no news.
    logger = logging.getLogger("classact.policies")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _average(policy: RetrievalPolicy, near: Neighbors) -> FloatArray:
    return policy._average(policy.chunks(near.rows), near.weights)


def _timesteps(policy: RetrievalPolicy | ParametricPolicy, batch: int) -> list[Timestep]:
    source: Any = policy.latents if isinstance(policy, RetrievalPolicy) else policy
    if isinstance(source, StateLatents):
        # Each angle is embedded as two numbers, and a constant is appended.
        width = policy.bank.shape[1] - len(source.angles) - 1
        return [Observation({}, np.zeros(0, np.float32), np.zeros(width)) for _ in range(batch)]
    spec = policy.spec
    seen = observations(source.lowdim.schema, spec.cameras, source.encoder.config.image_size, batch)
    return list(seen) if spec.history == 1 else [[o] * spec.history for o in seen]


def run_policies(run: Path, device: str) -> dict[str, RetrievalPolicy | ParametricPolicy]:
    """The policies in a run's folder by name: "retrieval", then its heads'.

    Raises:
        ConfigError: the folder holds none.
        CheckpointError: one of them is damaged.
    """
    found: dict[str, RetrievalPolicy | ParametricPolicy] = {}
    for name, folder in _policy_folders(run).items():
        policy = load_policy(folder, device=device)
        found["retrieval" if name == "policy" and isinstance(policy, RetrievalPolicy) else name] = policy
    if not found:
        raise ConfigError(
            f"{run}: expected a run's folder with policy/ or heads/NAME/policy/, found neither. Train a policy first, "
            f"or leave --run out to measure untrained ones."
        )
    return found


def _policy_folders(run: Path) -> dict[str, Path]:
    heads = {path.parent.name: path for path in sorted(Run(run).heads.glob("*/policy"))}
    return {name: path for name, path in {"policy": Run(run).policy, **heads}.items() if path.is_dir()}


def policies_digest(run: Path) -> str:
    """What tells the policies of a run's folder from others: of their names and checksums."""
    digest = hashlib.sha256()
    for name, folder in _policy_folders(run).items():
        sums = folder / CHECKSUMS
        digest.update(name.encode() + b"\0" + (sums.read_bytes() if sums.is_file() else b"") + b"\0")
    return digest.hexdigest()[:16]


# -- sections ----------------------------------------------------------------------------------------------------------


def encode(watch: Watch, _: LatencyConfig) -> None:
    """Camera images to features: resize, crop, normalise, network; from and to the CPU's memory."""
    for case in CASES:
        encoder = ImageEncoder(case.encoder, load_init=False).eval().to(watch.device)
        name = f"{case.encoder.backbone} at {case.encoder.crop_size}"
        for bf16 in (False, True) if use_bfloat16("auto", watch.device) else (False,):
            for batch in BATCHES:
                size = case.encoder.image_size
                images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
                views = dict.fromkeys(case.encoder.cameras, images)

                call = partial(encoder.encode, views, bf16=bf16)
                watch.measure(call, name=name, stage="bfloat16" if bf16 else "float32", batch=batch)


def search(watch: Watch, _: LatencyConfig) -> None:
    """The nearest neighbours in banks of the paper's sizes, exact; from and to the CPU's memory."""
    for width in DIMENSIONS:
        for rows in BANKS:
            index = make_search(unit_rows(rows, width), "torch", device=watch.device)
            for batch in BATCHES:
                z, k = unit_rows(batch, width, seed=1), min(NEIGHBORS, rows)
                name = f"{rows:,} x {width}"
                watch.measure(partial(index.search, z, k), name=name, stage=f"k = {k}", batch=batch)


def denoise(watch: Watch, _: LatencyConfig) -> None:
    """Diffusion Policy, 16 steps of DDIM, in all ways that this device has."""
    for case in CASES:
        measure_head(watch, HEADS["diffusion"].config.preset(case.size), case)


def mlp(watch: Watch, _: LatencyConfig) -> None:
    """The MLP head, and the flow of two steps, in all ways that this device has."""
    for case in CASES:
        for head in ("mlp", "flow"):
            measure_head(watch, HEADS[head].config.preset(case.size), case)


def act(watch: Watch, _: LatencyConfig) -> None:
    """Whole decisions of untrained policies, from observations to actions, with their stages.

    Backbones run in bfloat16 where it is native, as those of trained policies do.
    """
    device, bf16 = str(watch.device), use_bfloat16("auto", watch.device)
    for case in CASES:
        paper = PAPER if case.name == "paper" else None  # of another size, the paper's figures are no comparison
        for timesteps in case.banks:
            name = f"retrieval, {case.name}, {timesteps:,} timesteps"
            measure_policy(watch, retrieval_policy(case, timesteps, bf16=bf16).to(device), name, BATCHES, paper)
        for head in ("mlp", "flow", "diffusion"):
            policy = parametric_policy(case, HEADS[head].config.preset(case.size), bf16=bf16).to(device)
            measure_policy(watch, policy, f"{policy.spec.name}, {case.name}", BATCHES, paper)


def run_section(watch: Watch, config: LatencyConfig) -> None:
    """Whole decisions of the policies of a run, with their stages."""
    assert config.run is not None
    for name, policy in run_policies(config.run, str(watch.device)).items():
        bank = f", {len(policy.bank):,} timesteps" if isinstance(policy, RetrievalPolicy) else ""
        measure_policy(watch, policy, f"{name}{bank}", BATCHES)


MEASURE: dict[str, Callable[[Watch, LatencyConfig], None]] = {
    "encode": encode,
    "search": search,
    "denoise": denoise,
    "mlp": mlp,
    "act": act,
    "run": run_section,
}
SECTIONS = tuple(name for name in MEASURE if name != "run")
"""Measured where none are named; with a run's folder, "run" alone is."""


def run(
    sections: Sequence[str] = (),
    config: LatencyConfig | None = None,
    *,
    path: Path | None = None,
    again: bool = False,
    say: Callable[[str], None] = print,
) -> Row:
    """Measure sections, write each to ``path`` when it is done, return those asked for.

    Args:
        sections: of :data:`MEASURE`; none: all but "run", or "run" alone where ``config.run`` names one.
        config: how to measure.
        path: results file (JSON); sections that it holds already are kept.
        again: measure those again, too.
        say: told what is going on.

    Raises:
        ConfigError: an unknown section, or a file that holds one that was measured with other settings.
        MissingDependencyError: the sections need a package that is not installed.
    """
    config = config or LatencyConfig()
    asked = tuple(sections) or (SECTIONS if config.run is None else ("run",))
    if "run" in asked and config.run is None:
        raise ConfigError("the section 'run' measures the policies of a run: name its folder with --run.")

    def setting(name: str) -> Row:
        if name != "run" or config.run is None:
            return config.setting
        return config.setting | {"run": config.run.resolve().name, "policies": policies_digest(config.run)}

    def check(name: str, found: Row) -> None:
        if difference := first_difference(found.get("setting"), setting(name), "setting"):
            raise ConfigError(
                f"{path} holds the section {name!r}, measured with {difference}. Measure it again (--again), or "
                f"choose another file."
            )

    def measure(name: str) -> Row:
        how = setting(name)
        watch = Watch(how)
        MEASURE[name](watch, config)
        return {"setting": how, "rows": watch.rows, "notes": watch.notes, "about": _about(name)}

    results = run_sections(asked, MEASURE, measure, path=path, again=again, say=say, check=check, error=ConfigError)
    return {name: results[name] for name in asked}


def _about(name: str) -> str:
    return (MEASURE[name].__doc__ or "").strip().splitlines()[0]


# -- the command -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flags:
    """What a decision costs, p50 and p95 by stage: encode, search, denoise, and whole policies beside the paper's."""

    json: ResultsFile = None
    sections: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help="Which: encode, search, denoise, mlp, act, run. Default: all but run; with --run, run."),
    ] = ()
    run: Annotated[
        Path | None, tyro.conf.arg(help="Folder of a run: measure its policies instead of untrained ones.")
    ] = None
    device: Annotated[str, tyro.conf.arg(help="auto (a GPU if there is one), cpu or cuda.")] = "auto"
    calls: Annotated[int | None, tyro.conf.arg(help="Timed calls of a row. Default: 1000 on a GPU, 100 on a CPU.")] = (
        None
    )
    seconds: Annotated[float, tyro.conf.arg(help="Of a row, at most: slower ones get fewer calls, at least 5.")] = 60.0
    compiled: Annotated[bool, tyro.conf.arg(help="Also measure what torch.compile makes, a minute for each.")] = True
    again: Again = False


def main(arguments: Flags) -> None:
    """Measure and print."""
    out = console()
    config = LatencyConfig(
        arguments.device, arguments.calls, arguments.seconds, compiled=arguments.compiled, run=arguments.run
    )
    results = run(
        arguments.sections, config, path=arguments.json, again=arguments.again, say=lambda text: out.print(text)
    )
    for name, found in results.items():
        print_latency(name, found)


def print_latency(name: str, found: Mapping[str, Any]) -> None:
    """One section as a table, with the machine it was measured on and, where it has one, the paper's figure."""
    machine = found["hardware"]
    on = machine["gpu"] if found["setting"]["device"] == "cuda" else f"{machine['cpu']}, {machine['cores']} cores"
    table = Table(title=f"{name} ({on}): {found['about']}", title_justify="left")
    paper = any("paper_ms" in row for row in found["rows"])
    for k, title in enumerate(
        ("", "", "batch", "p50 ms", "p95 ms", "calls", *(["paper, mean of tasks, A40"] if paper else []))
    ):
        # Names and the last heading may be broken, numbers may not.
        wide: dict[str, Any] = {"min_width": 18} if k == 0 else {"max_width": 10} if k == 6 else {}
        table.add_column(title, justify="right" if k > 1 else "left", no_wrap=0 < k < 6, **wide)
    for row in found["rows"]:
        cells = [row["name"], row["stage"], str(row["batch"]), *(_ms(row[key]) for key in ("p50_ms", "p95_ms"))]
        beside = [f"{row['paper_ms']:g}" if "paper_ms" in row else ""] if paper else []
        table.add_row(*cells, f"{row['calls']:,}", *beside)
    console().print(table)
    for line in found["notes"]:
        console().print(line)


def _ms(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


if __name__ == "__main__":
    sys.exit(command(Flags, main))
