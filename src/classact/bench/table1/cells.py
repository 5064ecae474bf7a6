"""One cell of the table: train, choose what retrieval needs, evaluate, record.

Everything is in the cell's run folder, so a killed cell goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from classact import analysis
from classact.bench.table1.grid import Cell, Protocol, run_config
from classact.engine import EngineConfig
from classact.errors import ConfigError
from classact.head_pipeline import HeadPipeline, HeadRunConfig
from classact.objectives import images_per_anchor
from classact.pipeline import Pipeline, RunConfig, evaluate_run
from classact.policies import Policy, RetrievalPolicy
from classact.presets import default_head_preset, get_head_preset
from classact.probe import flat_metrics, probe_run
from classact.progress import progress_bar
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

HEAD_NAMES = {"mlp": "mlp", "dp": "diffusion"}


@dataclass(frozen=True)
class Bench:
    """Where and how cells are computed.

    Attributes:
        folder: of the table; cells lie in ``cells/``, tries of learning rates in ``tuning/``.
        protocol: shared.
        steps: demonstrations that are learned from -> N of their steps; None: all.
        device, engine: see :class:`classact.pipeline.Pipeline`.
        workers: simulator processes; 0: one per core.
        quiet: no progress bars.
    """

    folder: Path
    protocol: Protocol
    steps: Mapping[int | None, int]
    device: str = "auto"
    engine: EngineConfig | None = None
    workers: int = 0
    quiet: bool = False

    def run(self, cell: Cell) -> Run:
        """The folder of a cell's representation."""
        return Run(self.folder / "cells" / cell.run_name)


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
    pipeline.policy()
    return pipeline


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


def tune(bench: Bench, cell: Cell, say: Any) -> list[dict[str, Any]]:
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


def images_for_seconds(bench: Bench, cell: Cell, rate: float | None, seconds: float) -> int:
    """How many images a method's training sees in ``seconds`` on this machine; measured once, kept in the folder.

    The first steps are timed, so the result depends on what else the machine does: run it alone.
    """
    path = bench.folder / "speeds" / f"{cell.run_name}.json"
    if path.exists():
        return round(read_json(path)["images_per_second"] * seconds)
    run = Run(bench.folder / "speeds" / cell.run_name)
    config = run_config(cell, bench.protocol, bench.steps[cell.demonstrations], rate, SPEED_IMAGES)
    config = replace(config, pretrain=replace(config.pretrain, evaluations=0, log_every=5))
    Pipeline(run, config, quiet=bench.quiet, device=bench.device, engine=bench.engine).pretrain()
    rows = run.read_train_log()
    views = images_per_anchor(config.pretrain.objective) * config.pretrain.batch_size
    half = rows[len(rows) // 2]
    speed = (rows[-1]["step"] - half["step"]) * views / max(rows[-1]["seconds"] - half["seconds"], 1e-9)
    write_json(path, {"images_per_second": speed})
    return round(speed * seconds)


SPEED_IMAGES = 20_000
"""Seen to measure a method's speed."""


def representation(bench: Bench, cell: Cell, rate: float | None) -> dict[str, Any]:
    """Train, choose a temperature, evaluate, probe, draw; returns the record."""
    begin, run, protocol = time.perf_counter(), bench.run(cell), bench.protocol
    images = None
    if cell.method.pretrained and protocol.seconds is not None:
        images = images_for_seconds(bench, cell, rate, protocol.seconds * cell.factor)
    pipeline = trained(bench, run, cell, rate, images)
    config = pipeline.config
    chosen = choose_temperature(bench, run, config)
    settings = retrieval_settings(chosen["tau"], config.retrieval.k)
    folder = run.evaluation(EVALUATION)
    evaluate_run(
        run, workers=bench.workers, device=bench.device, name=EVALUATION, overrides=settings, quiet=bench.quiet
    )
    policy = RetrievalPolicy.load(run.policy, **settings).to(bench.device)
    per_step = images_per_anchor(config.pretrain.objective) * config.pretrain.batch_size
    log = run.read_train_log()
    probe = None
    if protocol.probe:
        found = probe_run(run, device=bench.device, quiet=bench.quiet)
        probe = {
            f"{name}: {metric}": value
            for name in found["representations"]
            for metric, value in flat_metrics(found, name).items()
        }
    if cell.seed == 0:
        analysis.write_latent_map(run, policy, config.pretrain.seed)
    card = run.read_config()
    steps = log[-1]["steps"] if log else 0
    return (
        blank(cell, "done")
        | episodes_of(folder)
        | {
            "learning_rate": config.pretrain.optimizer.learning_rate if cell.method.pretrained else None,
            "tau": chosen["tau"],
            "k": settings["k"],
            "images": steps * per_step,
            "steps": steps,
            "demonstrations": card["data"]["episodes"] - card["data"]["heldout"],
            "training_seconds": card["timings"].get("pre-training", 0.0),
            "total_seconds": round(time.perf_counter() - begin, 1),
            "loss": loss_curve(run, per_step),
            "curve": success_curve(run, "pretrain", per_step, run),
            "latency_ms": latency(policy, config.frames.simulator, config.evaluation),
            "probe": probe,
            "choice": {key: chosen[key] for key in ("tries", "starts")},
            "folder": str(run.root.relative_to(bench.folder)),
        }
    )


def head_cell(bench: Bench, cell: Cell, rate: float | None) -> dict[str, Any]:
    """Train and evaluate a head on a cell's representation, or with it from initial weights; returns the record."""
    begin, run, protocol = time.perf_counter(), bench.run(cell), bench.protocol
    images = None
    if cell.method.pretrained and protocol.seconds is not None:
        images = images_for_seconds(bench, cell, rate, protocol.seconds * cell.factor)
    representation_of = trained(bench, run, cell, rate, images)
    config = representation_of.config
    extra = 0 if cell.method.pretrained else round((protocol.images or 0) * cell.factor)
    if not cell.method.pretrained and protocol.images is None:
        raise ConfigError(
            f"{cell.method.written!r} is not pre-trained, so its head sees the budget of pre-training as well, which "
            f"must be in images (--budget 500k) for that."
        )
    seen = protocol.head_images + extra
    scratch = cell.method.name in ("random", "equivar")
    preset = get_head_preset(default_head_preset(config.pretrain.encoder.trunk, config.frames.simulator))
    made = preset.config(HEAD_NAMES[cell.head], scratch=scratch)
    assert made.augment is not None
    made = replace(
        made,
        seed=cell.seed,
        epochs=seen / bench.steps[cell.demonstrations],
        augment=replace(made.augment, color=cell.augmentation),
        evaluations=protocol.evaluations,
        checkpoint_every=1000,
    )
    name = HEAD_NAMES[cell.head]
    pipeline = HeadPipeline(
        run,
        HeadRunConfig(
            made,
            "scratch" if scratch else "run",
            {"episodes": protocol.starts, "first_seed": protocol.first_seed, "workers": bench.workers},
            protocol.evaluation_starts,
        ),
        name=name,
        quiet=bench.quiet,
        device=bench.device,
        engine=bench.engine,
    )
    pipeline.evaluate()
    folder = next(
        run.evaluation(row["evaluation"])
        for row in run.read_summary()
        if row["evaluation"].startswith(f"{name}-") and row.get("checkpoint") == "last"
    )
    card, log = pipeline.folder.read_config(), pipeline.folder.read_train_log()
    return (
        blank(cell, "done")
        | episodes_of(folder)
        | {
            "learning_rate": made.optimizer.head_rate,
            "tau": None,
            "k": None,
            "images": log[-1]["steps"] * made.batch_size + (0 if extra else _pretrained_images(run, config)),
            "steps": log[-1]["steps"],
            "demonstrations": run.read_config()["data"]["episodes"] - run.read_config()["data"]["heldout"],
            "training_seconds": card["timings"].get("training", 0.0)
            + run.read_config()["timings"].get("pre-training", 0.0),
            "total_seconds": round(time.perf_counter() - begin, 1),
            "loss": loss_curve(pipeline.folder, made.batch_size),
            "curve": success_curve(run, f"heads/{name}", made.batch_size, pipeline.folder),
            "latency_ms": latency(pipeline.train(), config.frames.simulator, config.evaluation),
            "probe": None,
            "folder": str(pipeline.folder.root.relative_to(bench.folder)),
        }
    )


def _pretrained_images(run: Run, config: RunConfig) -> int:
    log = run.read_train_log()
    per_step = images_per_anchor(config.pretrain.objective) * config.pretrain.batch_size
    return int(log[-1]["steps"]) * per_step if log else 0


def headline(record: Mapping[str, Any]) -> str:
    """Such as ``41/100 (32 to 51 %)`` by the first criterion."""
    reached = next(iter(record["success"].values()))
    low, high = wilson_interval(sum(reached), len(reached))
    return f"{sum(reached)}/{len(reached)} ({100 * low:.0f} to {100 * high:.0f} %)"
