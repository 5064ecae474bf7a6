"""What the results file keeps of a cell, read from its run folder."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from classact.data.types import RolloutResult
from classact.evaluation.config import EvaluationConfig
from classact.policies import Policy
from classact.run.folder import Run
from classact.sims import make_simulator
from classact.utils.statistics import wilson_interval
from classact.utils.storage import read_jsonl
from table1.grid import Cell

POINTS = 60
"""Of a loss curve in the results file."""

LATENCY_CALLS = 100
"""As in appendix I."""


def blank(cell: Cell, status: str, reason: str = "") -> dict[str, Any]:
    """A record of what was not measured, and why."""
    return {
        "method": cell.method.name,
        "written": cell.method.written,
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


def finite(value: Any) -> Any:
    """``value`` as JSON holds it: lists, not tuples, and null for what is not a number."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def score(results: Sequence[RolloutResult]) -> dict[str, Any]:
    """ "successes" by the first criterion, and "score": the mean of the largest value of the simulator's first metric;
    None where that is not a number."""
    criterion = next(iter(results[0].success))
    metric = next(iter(results[0].maxima))
    mean = float(np.mean([r.maxima[metric] for r in results]))
    return {"successes": sum(r.success[criterion] for r in results), "score": mean if math.isfinite(mean) else None}


def best_of(rows: Sequence[Mapping[str, Any]]) -> int:
    """Which row has most successes, ties by the score; of equal ones the first."""
    # A score that is not known is worse than any.
    ranks = [(row["successes"], row["score"] is not None, row["score"] or 0.0) for row in rows]
    return max(range(len(rows)), key=ranks.__getitem__)


def episodes_of(folder: Path) -> dict[str, Any]:
    """Starts, successes by criterion, the first metric's name and its largest value, from an evaluation's folder."""
    rows = list(read_jsonl(folder / "episodes.jsonl"))
    metric = next(iter(rows[0]["maxima"]))
    return {
        "starts": [row["seed"] for row in rows],
        "success": {name: [int(row["success"][name]) for row in rows] for name in rows[0]["success"]},
        "metric": metric,
        "score": [round(float(row["maxima"][metric]), 4) for row in rows],
    }


def spent(run: Run) -> float:
    """Seconds of training that a folder holds, over all interruptions; evaluations on the way are not among them."""
    log = run.read_train_log()
    return float(log[-1]["seconds"]) if log else 0.0


def loss_curve(run: Run, images_per_step: int, before: tuple[int, float] = (0, 0.0)) -> list[list[float]]:
    """[images, seconds, loss] of at most :data:`POINTS` logged steps, the first and the last one among them.

    Args:
        run: of the training.
        images_per_step: of it.
        before: images and seconds of the training that it goes on from.
    """
    rows, (images, seconds) = run.read_train_log(), before
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), POINTS)).round().astype(int))
    return [
        [images + row["step"] * images_per_step, round(seconds + row["seconds"], 1), round(row["loss"], 5)]
        for row in (rows[i] for i in chosen)
    ]


def success_curve(
    run: Run, stage: str, images_per_step: int, of: Run, before: tuple[int, float] = (0, 0.0)
) -> list[list[float]]:
    """[images, seconds, successes, episodes] of the rollouts during a training by the first criterion.

    Args:
        run: whose intermediate evaluations they are.
        stage: of these.
        images_per_step: of the training.
        of: folder of the training's log.
        before: images and seconds of the training that it goes on from.
    """
    rows = [row for row in run.read_intermediate() if row.stage == stage]
    rows = [row for row in rows if row.criterion == rows[0].criterion]
    logged = {row["step"]: row["seconds"] for row in of.read_train_log()}
    steps = sorted(logged)
    out = []
    for row in rows:
        near = min(steps, key=lambda step: abs(step - row.step)) if steps else None
        seconds = before[1] + (0.0 if near is None else logged[near])
        images = before[0] + row.step * images_per_step
        out.append([images, round(seconds, 1), row.successes, row.episodes])
    return out


def latency(policy: Policy, simulator: str, evaluation: EvaluationConfig) -> dict[str, Any]:
    """Milliseconds of a decision on one observation (appendix I): median and 95th percentile."""
    sim = make_simulator(simulator, image_size=evaluation.image_size, shift=evaluation.shift)
    sim.reset(evaluation.first_seed)
    observation = sim.observe()
    sim.close()
    times = []
    for _ in range(LATENCY_CALLS + 3):
        begin = time.perf_counter()
        policy.decide([observation])
        times.append(1000 * (time.perf_counter() - begin))
    measured = np.asarray(times[3:])
    return {"median": round(float(np.median(measured)), 3), "p95": round(float(np.percentile(measured, 95)), 3)}


def headline(record: Mapping[str, Any]) -> str:
    """Such as ``41/100 (32 to 51 %)`` by the first criterion."""
    reached = next(iter(record["success"].values()))
    low, high = wilson_interval(sum(reached), len(reached))
    return f"{sum(reached)}/{len(reached)} ({100 * low:.0f} to {100 * high:.0f} %)"
