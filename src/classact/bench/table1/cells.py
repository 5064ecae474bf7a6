"""One cell of the table: train, choose what retrieval needs, evaluate, record.

Everything is in the cell's run folder, so a killed cell goes on where it was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from classact import analysis
from classact.bench.table1.grid import HEAD_NAMES, Cell, Protocol, head_config, images_per_step, run_config
from classact.encoders import ImageEncoder
from classact.engine import EngineConfig
from classact.errors import CheckpointError, ConfigError, MissingDependencyError
from classact.frames import needs_rendering
from classact.head_pipeline import HeadPipeline, HeadRunConfig
from classact.pipeline import Pipeline, RunConfig, retrieval_labels
from classact.policies import Policy, RetrievalPolicy
from classact.presets import get_preset
from classact.probe import flat_metrics, probe_run
from classact.progress import progress_bar
from classact.recording import evaluation_name, roll_out
from classact.rollout import EvaluationConfig, evaluate
from classact.runs import Run
from classact.sims import make_simulator
from classact.statistics import wilson_interval
from classact.storage import read_json, read_jsonl, write_json
from classact.types import RolloutResult

CHOSEN = "retrieval.json"
"""In a cell's folder: which temperature was chosen, and on what."""

EVALUATION = "table1"
"""Name of the evaluation of a representation."""

LATENCY_CALLS = 30

POINTS = 60
"""Of a loss curve in the results file."""

SPEED_IMAGES = 20_000
"""Seen to measure a method's speed."""

NEIGHBORS = 8
"""Shown of a moment, whatever number a cell acts with: the pages of methods shall be alike."""


@dataclass(frozen=True)
class Bench:
    """Where and how cells are computed.

    Attributes:
        folder: of the table; cells lie in ``cells/``, tries of learning rates in ``tuning/``, measured speeds in
            ``speeds/``.
        protocol: shared.
        steps: demonstrations that are learned from -> N of their steps; None: all.
        beside: folder of the results file, which names run folders from there.
        device, engine: see :class:`classact.pipeline.Pipeline`.
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
        tries: of a try of a learning rate: no roll-outs during training.
    """
    config = run_config(cell, bench.protocol, bench.steps[cell.demonstrations], rate, images)
    config = replace(config, evaluation=replace(config.evaluation, workers=bench.workers))
    if tries:
        config = replace(config, pretrain=replace(config.pretrain, evaluations=0))
    pipeline = Pipeline(run, config, quiet=bench.quiet, device=bench.device, engine=bench.engine)
    pipeline.check_rollouts()
    pipeline.policy()
    return pipeline


def spent(run: Run) -> float:
    """Seconds of training that a folder holds, over all interruptions; evaluations on the way are not among them."""
    log = run.read_train_log()
    return float(log[-1]["seconds"]) if log else 0.0


# -- choosing a temperature ------------------------------------------------------------------------


def retrieval_settings(tau: float, k: int) -> dict[str, Any]:
    """What a temperature of the protocol means: 0 is the nearest neighbour alone."""
    return {"k": 1} if tau == 0 else {"k": k, "temperature": tau}


def score(results: Sequence[RolloutResult]) -> tuple[int, float]:
    """Successes by the first criterion, and the mean of the largest value of the simulator's first metric."""
    criterion = next(iter(results[0].success))
    metric = next(iter(results[0].maxima))
    return sum(r.success[criterion] for r in results), float(np.mean([r.maxima[metric] for r in results]))


def choose_temperature(bench: Bench, run: Run, config: RunConfig) -> dict[str, Any]:
    """The temperature with most successes on the held-out starts, ties by the mean of the metric; kept in the folder.

    Returns:
        "tau", "k", "successes", "starts", "score" of the chosen one, and "tries".
    """
    path = run.root / CHOSEN
    protocol = bench.protocol
    asked = {"taus": list(protocol.taus), "starts": protocol.tuning_starts, "first_seed": protocol.tuning_seed}
    if path.exists():
        found = dict(read_json(path))
        if found["asked"] == asked:
            return found
    evaluation = replace(
        config.evaluation,
        episodes=protocol.tuning_starts,
        first_seed=protocol.tuning_seed,
        workers=bench.workers,
    )
    tries = []
    for tau in protocol.taus:
        settings = retrieval_settings(tau, config.retrieval.k)
        policy = RetrievalPolicy.load(run.policy, **settings).to(bench.device)
        with progress_bar(f"choose tau: {tau:g}", quiet=bench.quiet) as bar:
            successes, mean = score(evaluate(policy, config.frames.simulator, evaluation, bar))
        tries.append({"tau": tau, "k": settings["k"], "successes": successes, "score": mean})
    best = max(tries, key=lambda row: (row["successes"], row["score"]))
    chosen = best | {"starts": protocol.tuning_starts, "tries": tries, "asked": asked}
    write_json(path, chosen)
    return chosen


# -- records ---------------------------------------------------------------------------------------


def blank(cell: Cell, status: str, reason: str = "") -> dict[str, Any]:
    """A record of what was not measured, and why."""
    return {
        "method": cell.method.name,
        "head": cell.head,
        "shift": cell.column,
        "augmentation": cell.augmentation,
        "seed": cell.seed,
        "variant": cell.variant,
        "factor": cell.factor,
        "demonstrations": cell.demonstrations,
        "status": status,
        "reason": reason,
    }


def episodes_of(folder: Path) -> dict[str, Any]:
    """Starts, successes by criterion and the best value of the first metric, from an evaluation's folder."""
    rows = list(read_jsonl(folder / "episodes.jsonl"))
    metric = next(iter(rows[0]["maxima"]))
    return {
        "starts": [row["seed"] for row in rows],
        "success": {name: [int(row["success"][name]) for row in rows] for name in rows[0]["success"]},
        "score": [round(float(row["maxima"][metric]), 4) for row in rows],
    }


def loss_curve(run: Run, images_per_step: int) -> list[list[float]]:
    """[images, seconds, loss] of at most :data:`POINTS` logged steps."""
    rows = run.read_train_log()
    chosen = rows[:: max(1, len(rows) // POINTS)] + rows[-1:] if rows else []
    return [[row["step"] * images_per_step, round(row["seconds"], 1), round(row["loss"], 5)] for row in chosen]


def success_curve(run: Run, stage: str, images_per_step: int, of: Run) -> list[list[float]]:
    """[images, seconds, successes, episodes] of the roll-outs during a training by the first criterion."""
    rows = [row for row in run.read_milestones() if row["stage"] == stage]
    rows = [row for row in rows if row["criterion"] == rows[0]["criterion"]]
    logged = {row["step"]: row["seconds"] for row in of.read_train_log()}
    steps = sorted(logged)
    out = []
    for row in rows:
        near = min(steps, key=lambda step: abs(step - row["step"])) if steps else None
        seconds = 0.0 if near is None else logged[near]
        out.append([row["step"] * images_per_step, round(seconds, 1), row["successes"], row["episodes"]])
    return out


def latency(policy: Policy, simulator: str, evaluation: EvaluationConfig, calls: int = LATENCY_CALLS) -> dict[str, Any]:
    """Milliseconds of a decision on one observation (appendix I): median and 95th percentile."""
    sim = make_simulator(simulator, image_size=evaluation.image_size, shift=evaluation.shift)
    sim.reset(evaluation.first_seed)
    observation = sim.observe()
    sim.close()
    times = []
    for _ in range(calls + 3):
        begin = time.perf_counter()
        policy.act([observation])
        times.append(1000 * (time.perf_counter() - begin))
    measured = np.asarray(times[3:])
    return {"median": round(float(np.median(measured)), 3), "p95": round(float(np.percentile(measured, 95)), 3)}


def tune(bench: Bench, cell: Cell, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Try each learning rate of the protocol; one row each, the best one chosen by its roll-outs on held-out starts.

    Args:
        bench: where and how.
        cell: a pre-trained representation; tuned without shift and colour augmentation, with seed 0 and all
            demonstrations, whichever cell is asked for.
        say: told what is tried.
    """
    protocol, rows = bench.protocol, []
    plain = Cell(cell.method)
    for rate in protocol.rates:
        name = f"{plain.run_name}-rate{rate:g}"
        say(f"  {cell.method.written}: learning rate {rate:g}")
        run = Run(bench.folder / "tuning" / name)
        pipeline = trained(bench, run, plain, rate, protocol.tuning_images, tries=True)
        found = choose_temperature(bench, run, pipeline.config)
        rows.append(
            {
                "method": cell.method.written,
                "shift": plain.column,
                "augmentation": plain.augmentation,
                "learning_rate": rate,
                "images": protocol.tuning_images,
                "tau": found["tau"],
                "successes": found["successes"],
                "starts": found["starts"],
                "score": round(found["score"], 4),
            }
        )
    best = max(range(len(rows)), key=lambda i: (rows[i]["successes"], rows[i]["score"]))
    return [row | {"chosen": i == best} for i, row in enumerate(rows)]


def budget(bench: Bench, cell: Cell) -> int | None:
    """Images of a cell's pre-training where the budget is in time; None: as the protocol says.

    A method's speed is measured once, without shift, with seed 0 and all demonstrations, and kept in the folder: so all
    cells of a method see the same number of images, also those that are continued on a busier machine. Its first steps
    are timed: run it alone.
    """
    seconds = bench.protocol.seconds
    if seconds is None or not cell.method.pretrained:
        return None
    plain = Cell(cell.method, augmentation=cell.augmentation)
    path = bench.folder / "speeds" / f"{plain.run_name}.json"
    if not path.exists():
        write_json(path, {"images_per_second": _speed(bench, plain)})
    return max(1, round(read_json(path)["images_per_second"] * seconds * cell.factor))


def _speed(bench: Bench, cell: Cell) -> float:
    """Images per second in the second half of a short training, when everything is compiled."""
    run, steps = Run(bench.folder / "speeds" / cell.run_name), bench.steps[cell.demonstrations]
    config = run_config(cell, bench.protocol, steps, None, SPEED_IMAGES)
    config = replace(config, pretrain=replace(config.pretrain, evaluations=0, log_every=5))
    Pipeline(run, config, quiet=bench.quiet, device=bench.device, engine=bench.engine).pretrain()
    rows = run.read_train_log()
    half = rows[(len(rows) - 1) // 2] if len(rows) > 1 else {"step": 0, "seconds": 0.0}
    seen = (rows[-1]["step"] - half["step"]) * images_per_step(config, steps)
    return float(seen / max(rows[-1]["seconds"] - half["seconds"], 1e-9))


def representation(bench: Bench, cell: Cell, rate: float | None) -> dict[str, Any]:
    """Train, choose a temperature, evaluate, probe, draw; returns the record."""
    begin, run, protocol = time.perf_counter(), bench.run(cell), bench.protocol
    before = spent(run)
    pipeline = trained(bench, run, cell, rate, budget(bench, cell))
    config = pipeline.config
    chosen = choose_temperature(bench, run, config)
    settings = retrieval_settings(chosen["tau"], config.retrieval.k)
    policy = RetrievalPolicy.load(run.policy, **settings).to(bench.device)
    results, _ = roll_out(
        run,
        EVALUATION,
        policy,
        pipeline.learned,
        (config.frames.simulator, config.evaluation),
        retrieval_labels(config.pretrain.augment),
        stage=None,
        title=cell.name,
        quiet=bench.quiet,
    )
    if cell.seed == 0:
        draw(bench, run, pipeline, results)
    per_step = images_per_step(config, bench.steps[cell.demonstrations])
    log, data = run.read_train_log(), run.read_config()["data"]
    steps = log[-1]["steps"] if log else 0
    return (
        blank(cell, "done")
        | episodes_of(run.evaluation(EVALUATION))
        | {
            "learning_rate": config.pretrain.optimizer.learning_rate if cell.method.pretrained else None,
            "tau": chosen["tau"],
            "k": settings["k"],
            "images": steps * per_step,
            "steps": steps,
            "demonstrations": data["episodes"] - data["heldout"],
            "training_seconds": round(spent(run), 1),
            "loss": loss_curve(run, per_step),
            "curve": success_curve(run, "pretrain", per_step, run),
            "latency_ms": latency(policy, config.frames.simulator, config.evaluation),
            "probe": probed(bench, run) if protocol.probe else None,
            "choice": {key: chosen[key] for key in ("tries", "starts")},
            "folder": bench.address(run),
        }
        | _seconds(begin, before, before)
    )


def probed(bench: Bench, run: Run) -> dict[str, Any]:
    """Metrics of a representation as the results file keeps them: "REPRESENTATION: METRIC" -> value, low, high.

    All are under the preset's similarity of actions: those trained with another one would be asked other questions.
    """
    similarity = get_preset(bench.protocol.preset).pretrain.similarity
    found = probe_run(run, similarity=similarity, device=bench.device, quiet=bench.quiet)
    return {
        f"{name}: {metric}": value
        for name in found["representations"]
        for metric, value in flat_metrics(found, name).items()
    }


def draw(bench: Bench, run: Run, pipeline: Pipeline, results: Sequence[RolloutResult]) -> None:
    """The latent map, and neighbours of some moments of roll-outs (appendix J), into the run's folder."""
    config = pipeline.config
    policy = RetrievalPolicy.load(run.policy, k=min(NEIGHBORS, config.retrieval.k)).to(bench.device)
    analysis.write_latent_map(run, policy, config.pretrain.seed)
    rendered = needs_rendering(pipeline.data(), config.pretrain.encoder.cameras[0], config.frames)
    analysis.write_neighbors(
        run,
        policy,
        pipeline.frames(),
        config.frames,
        results,
        config.frames.simulator,
        config.evaluation,
        rendered=rendered,
    )


def head_cell(bench: Bench, cell: Cell, rate: float | None) -> dict[str, Any]:
    """Train and evaluate a head on a cell's representation, or with it from initial weights; returns the record."""
    begin, run, protocol = time.perf_counter(), bench.run(cell), bench.protocol
    name, steps = HEAD_NAMES[cell.head], bench.steps[cell.demonstrations]
    before, own = spent(run), spent(Run(run.head(name)))
    config = trained(bench, run, cell, rate, budget(bench, cell)).config
    made, start = head_config(cell, protocol, steps)
    evaluation = {"episodes": protocol.starts, "first_seed": protocol.first_seed, "workers": bench.workers}
    pipeline = HeadPipeline(
        run,
        HeadRunConfig(made, start, evaluation, protocol.evaluation_starts),
        name=name,
        quiet=bench.quiet,
        device=bench.device,
        engine=bench.engine,
    )
    pipeline.evaluate()
    log, data = pipeline.folder.read_train_log(), run.read_config()["data"]
    pretraining = run.read_train_log()
    per_step = min(made.batch_size, steps)
    seen = log[-1]["steps"] * per_step
    if pretraining:
        seen += pretraining[-1]["steps"] * images_per_step(config, steps)
    return (
        blank(cell, "done")
        | episodes_of(run.evaluation(evaluation_name(name, pipeline.label, pipeline.evaluation.shift)))
        | {
            "learning_rate": made.optimizer.head_rate,
            "tau": None,
            "k": None,
            "images": seen,
            "steps": log[-1]["steps"],
            "demonstrations": data["episodes"] - data["heldout"],
            "training_seconds": round(spent(pipeline.folder) + spent(run), 1),
            "loss": loss_curve(pipeline.folder, per_step),
            "curve": success_curve(run, f"heads/{name}", per_step, pipeline.folder),
            "latency_ms": latency(pipeline.train(), config.frames.simulator, config.evaluation),
            "probe": None,
            "folder": bench.address(pipeline.folder),
        }
        | _seconds(begin, before + own, own)
    )


def _seconds(begin: float, before: float, own: float) -> dict[str, float]:
    """What a cell took in all, and by itself: without what another cell had trained; trainings of earlier calls count.

    Args:
        begin: of this call.
        before: of trainings of earlier calls that the cell stands on.
        own: of these, for this cell.
    """
    now = time.perf_counter() - begin
    return {"total_seconds": round(now + before, 1), "own_seconds": round(now + own, 1)}


def headline(record: Mapping[str, Any]) -> str:
    """Such as ``41/100 (32 to 51 %)`` by the first criterion."""
    reached = next(iter(record["success"].values()))
    low, high = wilson_interval(sum(reached), len(reached))
    return f"{sum(reached)}/{len(reached)} ({100 * low:.0f} to {100 * high:.0f} %)"
