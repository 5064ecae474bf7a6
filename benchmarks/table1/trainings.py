"""Where the trainings of a table lie and how they are run: representations, heads, and what a budget in time is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from classact.errors import CheckpointError, ConfigError, MissingDependencyError
from classact.models.encoders import ImageEncoder
from classact.run.config import HeadRunConfig
from classact.run.finetune import HeadPipeline, usual_evaluation
from classact.run.folder import Run
from classact.run.pretrain import Pipeline
from classact.train.config import EngineConfig, FinetuneConfig
from classact.utils.locks import lock_of, locked
from classact.utils.storage import read_json, write_json
from table1.grid import HEAD_NAMES, Cell, Protocol, head_config, images_per_step, run_config

SPEED_IMAGES = 20_000
"""Seen to measure a method's speed."""


@dataclass(frozen=True)
class Bench:
    """Where and how cells are computed.

    Attributes:
        folder: of the table; cells lie in ``cells/``, tries of learning rates in ``tuning/``, measured speeds in
            ``speeds/``.
        protocol: shared.
        steps: demonstrations that are learned from -> N of their steps; None: all.
        beside: folder of the results file, which names run folders from there.
        device, engine: see :class:`classact.run.pretrain.Pipeline`.
        workers: simulator processes; 0: one per core.
        quiet: no progress bars.
    """

    folder: Path
    protocol: Protocol
    steps: Mapping[int | None, int]
    beside: Path
    device: str = "auto"
    engine: EngineConfig | None = None
    workers: int = 0
    quiet: bool = False

    def run(self, cell: Cell) -> Run:
        """The folder of a cell's representation."""
        return Run(self.folder / "cells" / cell.run_name)

    def speed(self, cell: Cell) -> Run:
        """The folder of a short training that measures a method's speed."""
        return Run(self.folder / "speeds" / cell.name)

    def tried(self, cell: Cell, rate: float) -> Run:
        """The folder of a try of a learning rate."""
        return Run(self.folder / "tuning" / f"{cell.name}-rate{rate:g}")

    def address(self, run: Run) -> str:
        """A run's folder as the results file names it."""
        return os.path.relpath(run.root.resolve(), self.beside.resolve())


def why_missing(cell: Cell, protocol: Protocol) -> str:
    """Why a cell's initial weights cannot be had here; empty where they can."""
    if cell.method.pretrained:
        return ""
    try:
        ImageEncoder(run_config(cell, protocol, 1, None).pretrain.encoder)
    except (ConfigError, CheckpointError, MissingDependencyError) as error:
        return str(error)
    return ""


def trained(
    bench: Bench, run: Run, cell: Cell, rate: float | None, images: int | None = None, *, tries: bool = False
) -> Pipeline:
    """A cell's representation, learned now or read from its folder, with its retrieval policy.

    Args:
        bench: where and how.
        run: the folder.
        cell: which.
        rate: learning rate; None: the preset's.
        images: views that the encoder sees; None: the protocol's budget.
        tries: of a try of a learning rate: no rollouts during training.
    """
    config = run_config(cell, bench.protocol, bench.steps[cell.demonstrations], rate, images)
    config = replace(config, evaluation=replace(config.evaluation, workers=bench.workers))
    if tries:
        config = replace(config, pretrain=replace(config.pretrain, evaluations=0))
    pipeline = Pipeline(run, config, quiet=bench.quiet, device=bench.device, engine=bench.engine)
    pipeline.check_rollouts()
    pipeline.pretrain()
    return pipeline


def head_pipeline(
    bench: Bench,
    run: Run,
    cell: Cell,
    made: FinetuneConfig,
    start: str,
    *,
    tuning: bool = False,
    name: str | None = None,
) -> HeadPipeline:
    """The stages of a cell's head in the folder of its representation.

    Args:
        bench: where and how.
        run: the folder.
        cell: with a head.
        made, start: of :func:`table1.grid.head_config`.
        tuning: roll out on the held-out starts that settings are chosen on.
        name: of the head's folder; None: that of the table's own head.
    """
    protocol = bench.protocol
    starts = (protocol.tuning_starts, protocol.tuning_seed) if tuning else (protocol.starts, protocol.first_seed)
    name = name or HEAD_NAMES[cell.trained_head]
    usual = usual_evaluation(run, name)
    evaluation = replace(usual, episodes=starts[0], first_seed=starts[1], workers=bench.workers)
    return HeadPipeline(
        run,
        HeadRunConfig(made, start, evaluation, protocol.evaluation_starts),
        name=name,
        quiet=bench.quiet,
        device=bench.device,
        engine=bench.engine,
    )


def budget(bench: Bench, cell: Cell) -> int | None:
    """Images that a budget in time is for a cell; None: the protocol says them, or nothing is trained.

    They are those of pre-training, or of the head of a method without. A method's speed is measured once, without
    shift, with seed 0 and all demonstrations, and kept in the folder: so all its cells see the same number of images,
    also those that are continued on a busier machine. Its first steps are timed: run it alone.

    Raises:
        BusyError: another process measures it.
    """
    seconds = bench.protocol.seconds
    if seconds is None or not (cell.method.pretrained or cell.head != "rep"):
        return None
    head = "rep" if cell.method.pretrained else cell.trained_head
    plain = Cell(cell.method, head, augmentation=cell.augmentation)
    path = bench.folder / "speeds" / f"{plain.name}.json"
    if not path.exists():
        with locked(lock_of(bench.speed(plain).root), wait=False):
            if not path.exists():
                write_json(path, {"images_per_second": _speed(bench, plain)})
    return max(1, round(read_json(path)["images_per_second"] * seconds * cell.factor))


def _speed(bench: Bench, cell: Cell) -> float:
    """Images per second in the second half of a short training, when everything is compiled."""
    run, steps = bench.speed(cell), bench.steps[cell.demonstrations]
    if cell.head == "rep":
        config = run_config(cell, bench.protocol, steps, None, SPEED_IMAGES)
        config = replace(config, pretrain=replace(config.pretrain, evaluations=0, log_every=5))
        Pipeline(run, config, quiet=bench.quiet, device=bench.device, engine=bench.engine).pretrain()
        per_step = images_per_step(config, steps)
    else:
        trained(bench, run, cell, None, tries=True)
        made, start = head_config(cell, bench.protocol, steps, images=SPEED_IMAGES)
        made = replace(made, evaluations=0, log_every=5)
        head = head_pipeline(bench, run, cell, made, start)
        head.train()
        run, per_step = head.folder, min(made.batch_size, steps)
    rows = run.read_train_log()
    half = rows[(len(rows) - 1) // 2] if len(rows) > 1 else {"step": 0, "seconds": 0.0}
    seen = (rows[-1]["step"] - half["step"]) * per_step
    return float(seen / max(rows[-1]["seconds"] - half["seconds"], 1e-9))
