"""Trainings for test_engine.py, alone or as one of several ranks; processes come from a fork server, loaded once."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import fakes
from classact.data.types import Demonstrations
from classact.errors import ClassactError
from classact.models.encoders import EncoderConfig
from classact.models.heads import DiffusionConfig, MLPConfig, UNetConfig
from classact.objectives import ObjectiveConfig, SoftInfoNCEConfig
from classact.similarity import SimilarityConfig
from classact.train import checkpoints
from classact.train.config import AdamWConfig, AugmentConfig, EngineConfig, FinetuneConfig, OptimizerConfig
from classact.train.engine import Training
from classact.train.head import FineTuner
from classact.train.representation import Trainer
from classact.utils.ranks import Ranks
from small_objectives import small

KINDS = ("class", "mlp", "diffusion")
OBJECTIVES: Mapping[str, ObjectiveConfig] = {
    "class": SoftInfoNCEConfig(pairs="cross-episode"),
    "byol": small("byol"),
    "dynamo": small("dynamo"),
    "sum": small(
        "class+0.5*inverse-dynamics+0.5*byol",
        *("class.queue=40", "class.learned_temperature=true", "class.temperature=0.2"),
    ),
}
"""Of the representations that are trained by ranks: in one of them everything that an objective may have of its own."""

LENGTHS = (45, 40, 7, 48, 40)
N = sum(LENGTHS)
ENCODER = EncoderConfig(width=0.25, image_size=32, crop_size=28, cameras=("top", "wrist"))
VIEWS = AugmentConfig(feature_noise=0.001, color="hsv")
UNET = UNetConfig(widths=(8, 16), kernel_size=3, groups=4, step_dim=8)
HEADS = {"mlp": MLPConfig(UNET), "diffusion": DiffusionConfig(UNET)}


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        kind: of :data:`KINDS` or :data:`OBJECTIVES`.
        folder: of the run.
        steps: updates.
        changes: of the settings.
        others: what rank 1 changes beyond that.
        engine: how it is computed.
        events: (rank, step, what) that happens in the middle of that step, see :func:`happen`.
        fault: a mistake to train with, see :func:`spoil`.
        lag: steps that the host is behind the device; 1 as on a GPU.
    """

    kind: str
    folder: str
    steps: int = 4
    changes: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    engine: EngineConfig = field(default_factory=EngineConfig)
    events: Sequence[tuple[int, int, str]] = ()
    fault: str = ""
    lag: int = 0


@dataclass
class Outcome:
    """What a rank saw of a training: where it ended, with which weights and error, and when callbacks were called."""

    step: int
    digest: str
    error: str = ""
    intermediates: list[int] = field(default_factory=list)
    told: list[int] = field(default_factory=list)


def demonstrations() -> Demonstrations:
    """Two cameras."""
    data, other = fakes.demonstrations(lengths=LENGTHS), fakes.demonstrations(seed=1, lengths=LENGTHS)
    return data.with_images({"top": data.images["top"], "wrist": other.images["top"]})


def make(
    kind: str,
    folder: Path | None = None,
    steps: int = 4,
    engine: EngineConfig | None = None,
    ranks: Ranks | None = None,
    data: Demonstrations | None = None,
    **changes: Any,
) -> Any:
    """A training with all that is random and every interaction of its rows switched on."""
    size = changes.get("batch_size", 32)
    shared: dict[str, Any] = {
        "augment": VIEWS,
        "batch_size": size,
        "epochs": (steps - 0.5) * size / N,  # rounded up to whole steps
        "checkpoint_every": 2,
        "log_every": 1,
        "precision": "float32",
    }
    options: dict[str, Any] = {"folder": folder, "engine": engine or EngineConfig(), "ranks": ranks or Ranks()}
    made: Training
    if kind in OBJECTIVES:
        lars = OptimizerConfig(name="lars", learning_rate=0.5, warmup_steps=2)
        standard = {
            "encoder": ENCODER,
            "objective": OBJECTIVES[kind],
            "similarity": SimilarityConfig(quantile=0.3, pairs=4000),
            "optimizer": lars if kind == "class" else OptimizerConfig(name="adamw", learning_rate=1e-3, warmup_steps=2),
        }
        config = fakes.pretrain_config(**(standard | shared | changes))
        made = Trainer(data or demonstrations(), config, **options)
    else:
        standard = {
            "head": HEADS[kind],
            "encoder": ENCODER,
            "optimizer": AdamWConfig(head_lr=2e-3, encoder_lr=2e-4, warmup_steps=2),
            "history": 2,
            "evaluations": 0,
            "augment": replace(VIEWS, feature_noise=0.0),
            "noise": 0.001,
            "samples": 2,
            "standardize": True,
        }
        del shared["augment"]
        made = FineTuner(data or demonstrations(), FinetuneConfig(**(standard | shared | changes)), **options)
    assert made.steps == steps
    return made


def smooth() -> Any:
    """What networks use for ReLU in tests of rounding: no kink, at which the last bit of a sum decides on a slope."""
    return torch.nn.functional.silu


def hook(made: Training, events: Sequence[tuple[int, int, str]]) -> None:
    """Let things happen to this rank between its own gradients and their exchange."""
    gradients = made.gradients
    due = {step: what for rank, step, what in events if rank == made.ranks.rank}

    def hooked(*args: Any) -> Any:
        stats = gradients(*args)
        what = due.get(made.step + 1, "")
        if what == "nan":
            return stats | {"loss": stats["loss"] * torch.nan}
        if what == "nan-weights":  # as a loss of NaN leaves them
            for parameter in made.trained:
                parameter.grad = torch.full_like(parameter, torch.nan)
        if what == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if what == "CPU memory":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 TB.")
        if what == "cublas memory":
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        if what == "driver memory":
            raise RuntimeError("CUDA error: out of memory")
        if what == "array memory":
            raise MemoryError("Unable to allocate 9. TiB for an array")
        if what.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, what))
        return stats

    made.gradients = hooked  # type: ignore[method-assign]


def spoil(made: Training, fault: str) -> None:
    """Train with a mistake that implementations for several ranks are known for."""
    gradients = made.gradients

    def halves(rows: Any, _: slice, images: Any, generator: torch.Generator) -> Any:
        # What DistributedDataParallel does to a contrastive loss: each half knows its own negatives only.
        middle = len(rows) // 2
        stats: list[Any] = []
        for rows_of in (slice(0, middle), slice(middle, len(rows))):
            own = {camera: pixels[rows_of] for camera, pixels in images.items()}
            stats.append(gradients(rows[rows_of], slice(0, len(rows[rows_of])), own, generator))
        for parameter in made.trained:
            if parameter.grad is not None:
                parameter.grad /= 2
        return {name: (stats[0][name] + stats[1][name]) / 2 for name in stats[0]}

    def averaged(*args: Any) -> Any:
        stats = gradients(*args)
        for parameter in made.trained:
            if parameter.grad is not None:
                parameter.grad /= made.ranks.world
        return stats

    def mean_of_means(rows: Any, part: slice, *args: Any) -> Any:
        # As if 17 and 16 rows were of one weight.
        stats = gradients(rows, part, *args)
        for parameter in made.trained:
            if parameter.grad is not None:
                parameter.grad *= len(rows) / made.ranks.world / len(rows[part])
        return stats

    def own_rows_only(*args: Any) -> Any:
        stats = gradients(*args)
        for parameter in made.trained:
            if parameter.grad is not None and made.ranks.rank:
                parameter.grad.zero_()
        return stats

    def own_networks_twice(*args: Any) -> Any:
        # Each rank has the whole gradient of what is computed on the features of all.
        stats = gradients(*args)
        for parameter in made.objective.parameters():  # type: ignore[attr-defined]
            if parameter.grad is not None:
                parameter.grad *= made.ranks.world
        return stats

    if fault:
        faults = {
            "local": halves,
            "mean": averaged,
            "parts": mean_of_means,
            "one": own_rows_only,
            "twice": own_networks_twice,
        }
        made.gradients = faults[fault]  # type: ignore[method-assign]


def die_while_saving(step: int) -> None:
    """Kill this process in the middle of writing the checkpoint of a step."""
    save = checkpoints.save_file

    def half(tensors: Any, path: Path) -> None:
        save(tensors, path)
        if f"step-{step:08d}" in str(path):
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.save_file = half


def digest(made: Training) -> str:
    """Of all weights, averages and what the optimiser keeps."""
    tensors = checkpoints.optimizer_tensors(made.optimizer)
    for kind, networks in (("model", made.networks), ("ema", made.averages)):
        for name, network in networks.items():
            tensors |= {f"{kind}.{name}.{key}": value for key, value in network.state_dict().items()}
    whole = hashlib.sha256()
    for name in sorted(tensors):
        whole.update(name.encode() + tensors[name].numpy().tobytes())
    return whole.hexdigest()


def perform(job: Job, ranks: Ranks) -> Outcome:
    """Train, and tell what this rank saw of it."""
    changes = {**job.changes, **(job.others if ranks.rank else {})}
    made = make(job.kind, Path(job.folder), job.steps, job.engine, ranks, **changes)
    spoil(made, job.fault)
    made.lag = job.lag
    hook(made, job.events)
    for rank, step, what in job.events:
        if what == "write" and rank == ranks.rank:
            die_while_saving(step)
    outcome = Outcome(0, "")

    def intermediate(_: Any) -> None:
        if any(what == "broken intermediate evaluation" and made.step == step for _, step, what in job.events):
            raise ClassactError("the simulator is gone.")
        outcome.intermediates.append(made.step)

    try:
        made.fit(lambda step, *_: outcome.told.append(step), intermediate)
    except (ClassactError, RuntimeError) as error:
        outcome.error = f"{type(error).__name__}: {error}"
    outcome.step, outcome.digest = made.step, digest(made)
    return outcome


def run(pipe: Connection, rank: int, world: int, port: int, jobs: Sequence[Job]) -> None:
    """Be one rank, started as torchrun starts it, and send the outcome of each job, or how it failed."""
    try:
        _run(pipe, rank, world, port, jobs)
    except BaseException:
        pipe.send(traceback.format_exc())
        raise


def _run(pipe: Connection, rank: int, world: int, port: int, jobs: Sequence[Job]) -> None:
    torch.set_num_threads(1)
    # What a killed process wrote stays; syncing is for power cuts, and takes long on a busy disk.
    os.fsync = lambda _: None  # type: ignore[assignment]
    torch.relu = smooth()
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    os.environ.update(where, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    ranks = Ranks.from_environment()
    assert (ranks.rank, ranks.world) == (rank, world)
    for job in jobs:
        outcome = perform(job, ranks)
        pipe.send(outcome)
        if "lost another" in outcome.error:
            return
    ranks.barrier()
    ranks.close()


if __name__ == "__main__":  # by torchrun: rank 1 is killed in the middle of step 5
    torch.set_num_threads(1)
    result = perform(Job("class", sys.argv[1], 12, events=[(1, 5, "SIGKILL")]), Ranks.from_environment())
    print(result.error, file=sys.stderr)
    sys.exit(1)
