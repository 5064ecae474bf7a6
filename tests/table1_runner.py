"""A table in a process of its own that kills itself in the middle of a training, as SIGKILL from outside would."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import fakes
from classact import engine, rollout
from classact.bench.table1 import Protocol, cells, grid, plan, run_table
from classact.probe import probe_run
from classact.sims import make_simulator
from classact.sims.worker import run_chunk
from classact.types import FloatArray


class Here:
    """A simulator worker without a process of its own: starting one takes longer than these episodes."""

    def __init__(self, _: Any, arguments: tuple[Any, ...], __: list[str]) -> None:
        name, size, shift, cameras = arguments
        self.make = partial(make_simulator, name, image_size=size, shift=shift, cameras=cameras)
        self.sims: list[Any] = []
        self.answers: list[Any] = []

    def reset(self, seeds: Sequence[int], render: bool) -> None:
        self.close()
        self.sims = [self.make() for _ in seeds]
        for sim, seed in zip(self.sims, seeds, strict=True):
            sim.reset(int(seed))
        self.answers = [sim.observe(render=render) for sim in self.sims]

    def step(self, chunks: FloatArray, *how: Any) -> None:
        self.answers = [run_chunk(sim, chunk, *how) for sim, chunk in zip(self.sims, chunks, strict=True)]

    def answer(self) -> list[Any]:
        return self.answers

    def close(self) -> None:
        for sim in self.sims:
            sim.close()
        self.sims = []


METHODS = ("random", "class", "byol")


def table(folder: Path, data: Path, say: Any = print) -> dict[str, Any]:
    """A grid of two trained methods, one of them tuned, with two starts each and checkpoints at every other step."""
    protocol = Protocol(
        *("pusht", str(data), "debug"),
        images=400,
        head_images=130,
        heldout=2,
        starts=2,
        rates=(1e-3, 2e-3),
        tuning_images=70,
        taus=(0.0, 0.01),
        tuning_starts=2,
        evaluations=1,
        evaluation_starts=2,
    )
    wanted = plan(METHODS, columns=("fixed",)) + plan(("class", "random"), heads=("mlp",), columns=("fixed",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "make_simulator", fakes.Short)
        patch.setattr(rollout, "Worker", Here)
        patch.setattr(grid, "CHECKPOINT_EVERY", 2)
        patch.setattr(cells, "LATENCY_CALLS", 2)
        patch.setattr(cells, "probe_run", lambda run, **options: probe_run(run, **options, queries=20, pairs=200))
        return run_table(folder, wanted, protocol, workers=1, quiet=True, say=say)


def die_in_training(folder: str, data: str, cell: str, saves: int) -> None:
    """Compute the table, but kill this process once a cell's training has written so many checkpoints."""
    torch.set_num_threads(1)
    os.environ["SDL_VIDEODRIVER"] = "dummy"
    save, count = engine.save_checkpoint, 0

    def once(path: Path, state: Any) -> None:
        nonlocal count
        save(path, state)
        count += f"cells{os.sep}{cell}" in str(path)
        if count == saves:
            os.kill(os.getpid(), signal.SIGKILL)

    engine.save_checkpoint = once  # type: ignore[assignment]
    table(Path(folder), Path(data))
