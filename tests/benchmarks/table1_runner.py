"""Tables in processes of their own, killed in the middle of a training as SIGKILL would, or computing one together."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fakes
from classact.evaluation import rollout
from classact.run.probe import probe_run
from classact.train import engine
from classact.utils.locks import lock_of, locked
from classact.utils.storage import append_jsonl
from table1 import Cell, Protocol, cells, grid, parse_method, plan, records, run_table, runner

METHODS = ("random", "class", "byol")


def protocol(data: Path) -> Protocol:
    """Two starts for each cell."""
    return Protocol(
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


def table(
    folder: Path, data: Path, say: Any = print, wanted: Sequence[Cell] | None = None, **changes: Any
) -> dict[str, Any]:
    """A grid of two trained methods, one of them tuned, or other cells; checkpoints at every other step.

    Args:
        folder, data, say: as of :func:`table1.run_table`.
        wanted: cells; None: of all kinds.
        changes: of the protocol.
    """
    if wanted is None:
        wanted = plan(METHODS, columns=("fixed",)) + plan(
            ("class", "random"), heads=("mlp", "mlp-rep"), columns=("fixed",)
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "make_simulator", fakes.Short)
        patch.setattr(rollout, "Worker", fakes.Here)
        patch.setattr(grid, "CHECKPOINT_EVERY", 2)
        patch.setattr(records, "LATENCY_CALLS", 2)
        patch.setattr(cells, "probe_run", lambda run, **options: probe_run(run, **options, queries=20, pairs=200))
        # Sums depend on how they are split, and tables that are compared are made in several processes.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return run_table(folder, wanted, replace(protocol(data), **changes), workers=1, quiet=True, say=say)
        finally:
            torch.set_num_threads(threads)


def die_in_training(folder: str, data: str, cell: str, saves: int) -> None:
    """Compute the table, but kill this process once a cell's training has written so many checkpoints."""
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


def done(cell: Cell, rate: float | None) -> dict[str, Any]:
    """A record of a cell that is done."""
    found = {"starts": [1], "success": {"c": [1]}, "metric": "m", "score": [1.0], "learning_rate": rate, "images": 1}
    return records.blank(cell, "done") | found | {"total_seconds": 1.0, "own_seconds": 1.0}


def keep_many(path: str, part: int, count: int) -> None:
    """Add cells and tries to a results file, as fast as possible."""
    table = runner.Table(Path(path), {"cells": {}, "tuning": [], "protocol": {}})
    for seed in range(part * count, (part + 1) * count):
        cell = Cell(parse_method("class"), seed=seed)
        table.plan([cell])
        table.keep(cell, done(cell, None))
        table.keep_tried(cell, {"written": str(seed), "head": "rep", "diverged": False}, 2)


def share(folder: str, protocol: Protocol, data: Any, seed: int) -> None:
    """Compute a table of data that are read, whose cells and tries take a moment each; write down what was computed."""
    moments = random.Random(seed)

    def compute(what: str) -> None:
        time.sleep(moments.uniform(0.02, 0.1))
        append_jsonl(Path(folder) / "calls.jsonl", {"what": what, "process": os.getpid()})

    def cell_of(_: Any, cell: Cell, rate: float | None) -> dict[str, Any]:
        compute(cell.name)
        return done(cell, rate)

    def try_rate(_: Any, cell: Cell, rate: float) -> dict[str, Any]:
        compute(f"try {cell.name} at {rate:g}")
        row = {"method": cell.method.name, "written": cell.method.written, "head": cell.head, "learning_rate": rate}
        return row | {"successes": 1, "starts": 2, "score": rate, "diverged": False}

    runner.representation = runner.head_cell = runner.head_retrieval = cell_of  # type: ignore[assignment]
    runner.try_rate = try_rate
    runner._data = lambda *_, **__: data
    wanted = plan(("byol", "tcn", "class"), heads=("rep", "mlp", "mlp-rep"), seeds=2)
    run_table(Path(folder), wanted, protocol, device="cpu", quiet=True)


def die_with_a_claim(folder: str) -> None:
    """Kill this process while it holds a claim."""
    with locked(lock_of(Path(folder)), wait=False):
        os.kill(os.getpid(), signal.SIGKILL)
