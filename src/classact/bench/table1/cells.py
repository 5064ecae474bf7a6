"""One cell of the table: train, choose what retrieval needs, evaluate, record.

Everything is in the cell's run folder, so a killed cell goes on where it was.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from classact import analysis
from classact.bench.table1.claims import lock_of, locked
from classact.bench.table1.grid import HEAD_NAMES, Cell, Protocol, head_config, images_per_step, run_config
from classact.encoders import ImageEncoder
from classact.engine import DIVERGED, EngineConfig
from classact.errors import CheckpointError, ClassactError, ConfigError, MissingDependencyError
from classact.finetuning import FinetuneConfig
from classact.head_pipeline import HeadPipeline, HeadRunConfig
from classact.pipeline import Pipeline, RunConfig
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

RETRIEVAL = "retrieval"
"""Folder, in that of a head, of retrieval with the encoder that was trained beneath it."""

LATENCY_CALLS = 100
"""As in appendix I."""

POINTS = 60
"""Of a loss curve in the results file."""

OTHER_HELD_OUT = "learned from fewer demonstrations, behind which others are held out: its probes would ask other steps"
"""Why a cell is not probed."""

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
    """What a temperature of a record means: 0 is the nearest neighbour alone."""
    return {"k": 1} if tau == 0 else {"k": k, "temperature": tau}


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


def choose_temperature(bench: Bench, run: Run, cell: Cell, config: RunConfig) -> dict[str, Any]:
    """The temperature with most successes on the held-out starts, ties by the mean of the metric; kept in the folder.

    Returns:
        "tau", "k", "successes", "starts", "score" of the chosen one, and "tries".
    """
    path = run.root / CHOSEN
    protocol = bench.protocol
    choices = protocol.retrievals(cell.method)
    asked = {"choices": choices, "starts": protocol.tuning_starts, "first_seed": protocol.tuning_seed}
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
    for settings in choices:
        tau = settings.get("temperature", 0.0)
        policy = RetrievalPolicy.load(run.policy, **settings).to(bench.device)
        with progress_bar(f"choose tau: {tau:g}", quiet=bench.quiet) as bar:
            results = evaluate(policy, config.frames.simulator, evaluation, bar)
        tries.append({"tau": tau, "k": settings["k"]} | score(results))
    chosen = tries[best_of(tries)] | {"starts": protocol.tuning_starts, "tries": tries, "asked": asked}
    write_json(path, chosen)
    return chosen


# -- records ---------------------------------------------------------------------------------------


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
    """[images, seconds, successes, episodes] of the roll-outs during a training by the first criterion.

    Args:
        run: whose milestones they are.
        stage: of these.
        images_per_step: of the training.
        of: folder of the training's log.
        before: images and seconds of the training that it goes on from.
    """
    rows = [row for row in run.read_milestones() if row["stage"] == stage]
    rows = [row for row in rows if row["criterion"] == rows[0]["criterion"]]
    logged = {row["step"]: row["seconds"] for row in of.read_train_log()}
    steps = sorted(logged)
    out = []
    for row in rows:
        near = min(steps, key=lambda step: abs(step - row["step"])) if steps else None
        seconds = before[1] + (0.0 if near is None else logged[near])
        images = before[0] + row["step"] * images_per_step
        out.append([images, round(seconds, 1), row["successes"], row["episodes"]])
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


def try_rate(bench: Bench, cell: Cell, rate: float) -> dict[str, Any]:
    """Train shortly with a learning rate, and roll out on held-out starts; returns the row.

    A rate with which the training diverges has a row, too, and no success.

    Args:
        bench: where and how.
        cell: of :func:`classact.bench.table1.grid.searched`.
        rate: of the representation, or of the encoder beneath a head.
    """
    protocol, run = bench.protocol, bench.tried(cell, rate)
    row = {
        **{key: value for key, value in blank(cell, "").items() if key in ("method", "written", "head", "shift")},
        "variant": cell.method.variant,
        "augmentation": cell.augmentation,
        "learning_rate": rate,
        "images": protocol.tuning_images,
        "starts": protocol.tuning_starts,
    }
    trains = run
    try:
        if cell.head == "rep":
            pipeline = trained(bench, run, cell, rate, protocol.tuning_images, tries=True)
            chosen = choose_temperature(bench, run, cell, pipeline.config)
            found = {key: chosen[key] for key in ("tau", "successes", "score")}
        else:
            trained(bench, run, cell, None, tries=True)
            steps = bench.steps[cell.demonstrations]
            made, start = head_config(cell, protocol, steps, rate, protocol.tuning_images)
            head = head_pipeline(bench, run, cell, replace(made, evaluations=0), start, tuning=True)
            trains = head.folder
            found = score(head.evaluate())
    except ClassactError as error:
        # The errors of other causes have classes of their own.
        if type(error) is not ClassactError or not (trains.root / DIVERGED).exists():
            raise
        return row | {"successes": 0, "score": None, "diverged": True}
    return row | found | {"diverged": False}


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


def representation(bench: Bench, cell: Cell, rate: float | None) -> dict[str, Any]:
    """Train, choose a temperature, evaluate, probe, draw; returns the record."""
    begin, run, protocol = time.perf_counter(), bench.run(cell), bench.protocol
    before = spent(run)
    pipeline = trained(bench, run, cell, rate, budget(bench, cell))
    config = pipeline.config
    policy, chosen = _rolled_out(bench, cell, pipeline, run)
    per_step = images_per_step(config, bench.steps[cell.demonstrations])
    log, data = run.read_train_log(), run.read_config()["data"]
    steps = log[-1]["steps"] if log else 0
    return (
        blank(cell, "done")
        | episodes_of(run.evaluation(EVALUATION))
        | {
            "learning_rate": config.pretrain.optimizer.learning_rate if cell.method.pretrained else None,
            "tau": chosen["tau"],
            "k": chosen["k"],
            "images": steps * per_step,
            "steps": steps,
            "demonstrations": data["episodes"] - data["heldout"],
            "training_seconds": round(spent(run), 1),
            "loss": loss_curve(run, per_step),
            "curve": success_curve(run, "pretrain", per_step, run),
            "latency_ms": latency(policy, config.frames.simulator, config.evaluation),
            "probe": probed(bench, run, chosen) if protocol.probe and cell.demonstrations is None else None,
            "not_probed": "" if cell.demonstrations is None else OTHER_HELD_OUT,
            "choice": {key: chosen[key] for key in ("tries", "starts")},
            "folder": bench.address(run),
        }
        | _seconds(begin, before, before)
    )


def _rolled_out(bench: Bench, cell: Cell, pipeline: Pipeline, run: Run) -> tuple[RetrievalPolicy, dict[str, Any]]:
    """Choose a temperature, evaluate retrieval and, of a representation's first seed, draw what the page shows.

    Args:
        bench, cell: where and which.
        pipeline: of the representation.
        run: folder with the policy: the representation's, or that of retrieval with a head's encoder.

    Returns:
        What acted, and what :func:`choose_temperature` chose.
    """
    config = pipeline.config
    chosen = choose_temperature(bench, run, cell, config)
    policy = RetrievalPolicy.load(run.policy, **retrieval_settings(chosen["tau"], chosen["k"])).to(bench.device)
    results, _ = roll_out(
        run,
        EVALUATION,
        policy,
        pipeline.learned,
        (config.frames.simulator, config.evaluation),
        pipeline.labels,
        stage=None,
        title=cell.name,
        quiet=bench.quiet,
    )
    if cell.head == "rep" and cell.seed == 0:
        # The latent map, and neighbours of some moments (appendix J).
        shown = RetrievalPolicy.load(run.policy, k=NEIGHBORS).to(bench.device)
        analysis.write_latent_map(run, shown, config.pretrain.seed)
        pipeline.draw_neighbors(shown, results)
    return policy, chosen


def lacks_pictures(bench: Bench, cell: Cell) -> bool:
    """Whether a representation is here whose map or neighbours an older version has not drawn."""
    run = bench.run(cell)
    drawn = all((run.analysis / f"{name}.safetensors").exists() for name in ("latent_map", "neighbors"))
    return cell.head == "rep" and cell.seed == 0 and run.policy.is_dir() and not drawn


def draw_again(bench: Bench, cell: Cell, rate: float | None) -> None:
    """What the page shows of a representation that is done: rolled out again, with the same result."""
    run = bench.run(cell)
    pipeline = trained(bench, run, cell, rate, budget(bench, cell))
    _rolled_out(bench, cell, pipeline, run)


def on_more_starts(bench: Bench, cell: Cell, rate: float | None, record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a cell that is done, tried on all starts of a protocol that has more of them than it had then."""
    if cell.head == "rep":
        draw_again(bench, cell, rate)
        return dict(record) | episodes_of(bench.run(cell).evaluation(EVALUATION))
    head, pipeline = _head(bench, cell, rate)
    if cell.head == cell.trained_head:
        return dict(record) | head_rolled_out(head)
    run = _retrieval_with(head, pipeline)
    _rolled_out(bench, cell, pipeline, run)
    return dict(record) | episodes_of(run.evaluation(EVALUATION))


def probed(bench: Bench, run: Run, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of a representation as the results file keeps them: "REPRESENTATION: METRIC" -> value, low, high.

    It retrieves as it acts. All are under the preset's similarity of actions: those trained with another one would be
    asked other questions.
    """
    similarity = get_preset(bench.protocol.preset).pretrain.similarity
    settings = retrieval_settings(chosen["tau"], chosen["k"])
    found = probe_run(run, similarity=similarity, device=bench.device, quiet=bench.quiet, **settings)
    return {
        f"{name}: {metric}": value
        for name in found["representations"]
        for metric, value in flat_metrics(found, name).items()
    }


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
        made, start: of :func:`classact.bench.table1.grid.head_config`.
        tuning: roll out on the held-out starts that settings are chosen on.
        name: of the head's folder; None: that of the table's own head.
    """
    protocol = bench.protocol
    starts = (protocol.tuning_starts, protocol.tuning_seed) if tuning else (protocol.starts, protocol.first_seed)
    evaluation = {"episodes": starts[0], "first_seed": starts[1], "workers": bench.workers}
    return HeadPipeline(
        run,
        HeadRunConfig(made, start, evaluation, protocol.evaluation_starts),
        name=name or HEAD_NAMES[cell.trained_head],
        quiet=bench.quiet,
        device=bench.device,
        engine=bench.engine,
    )


def _head(bench: Bench, cell: Cell, rate: float | None) -> tuple[HeadPipeline, Pipeline]:
    """A cell's head, on a representation that is trained where it is not, and the latter."""
    run, protocol, pretrained = bench.run(cell), bench.protocol, cell.method.pretrained
    images = budget(bench, cell)
    pipeline = trained(bench, run, cell, rate if pretrained else None, images if pretrained else None)
    whole = None if images is None else protocol.head_images + (0 if pretrained else images)
    steps = bench.steps[cell.demonstrations]
    made, start = head_config(cell, protocol, steps, None if pretrained else rate, whole)
    return head_pipeline(bench, run, cell, made, start), pipeline


def head_rolled_out(pipeline: HeadPipeline) -> dict[str, Any]:
    """Train, where that is not done, and evaluate; starts and successes as records have them."""
    pipeline.evaluate()
    name = evaluation_name(pipeline.name, pipeline.label, pipeline.evaluation.shift)
    return episodes_of(pipeline.run.evaluation(name))


def head_cell(bench: Bench, cell: Cell, rate: float | None) -> dict[str, Any]:
    """Train and evaluate a head on a cell's representation, or with it from initial weights; returns the record."""
    begin, before, own = _begin(bench, cell)
    head, pipeline = _head(bench, cell, rate)
    episodes, config, seen = head_rolled_out(head), pipeline.config, _seen(bench, cell, pipeline)
    per_step = _per_step(bench, cell, head)
    return (
        blank(cell, "done")
        | episodes
        | _head_facts(head, pipeline, per_step, seen)
        | {
            "tau": None,
            "k": None,
            "loss": loss_curve(head.folder, per_step, seen),
            "curve": success_curve(pipeline.run, f"heads/{head.name}", per_step, head.folder, seen),
            "latency_ms": latency(head.train(), config.frames.simulator, config.evaluation),
            "folder": bench.address(head.folder),
        }
        | _seconds(begin, before + own, own)
    )


def head_retrieval(bench: Bench, cell: Cell, rate: float | None) -> dict[str, Any]:
    """Evaluate retrieval with the encoder that was trained beneath a cell's head; returns the record."""
    begin, before, own = _begin(bench, cell)
    head, pipeline = _head(bench, cell, rate)
    run, config = _retrieval_with(head, pipeline), pipeline.config
    policy, chosen = _rolled_out(bench, cell, pipeline, run)
    return (
        blank(cell, "done")
        | episodes_of(run.evaluation(EVALUATION))
        | _head_facts(head, pipeline, _per_step(bench, cell, head), _seen(bench, cell, pipeline))
        | {
            "tau": chosen["tau"],
            "k": chosen["k"],
            # Those of its head.
            "loss": [],
            "curve": [],
            "latency_ms": latency(policy, config.frames.simulator, config.evaluation),
            "choice": {key: chosen[key] for key in ("tries", "starts")},
            "folder": bench.address(run),
        }
        | _seconds(begin, before + own, 0.0)
    )


def _retrieval_with(head: HeadPipeline, pipeline: Pipeline) -> Run:
    """The folder, in a head's, of retrieval with the encoder that is trained beneath it."""
    head.train()
    run = Run(head.folder.root / RETRIEVAL)
    if not run.policy.is_dir():
        encoder = ImageEncoder.from_pretrained(head.folder.policy / "encoder")
        pipeline.retrieval_with(encoder).save(run.policy)
    return run


def _per_step(bench: Bench, cell: Cell, head: HeadPipeline) -> int:
    """Views that the encoder sees in an update of a head's training."""
    return min(head.finetune.batch_size, bench.steps[cell.demonstrations])


def _seen(bench: Bench, cell: Cell, pipeline: Pipeline) -> tuple[int, float]:
    """Images and seconds of the training that a head goes on from."""
    log = pipeline.run.read_train_log()
    images = log[-1]["steps"] * images_per_step(pipeline.config, bench.steps[cell.demonstrations]) if log else 0
    return images, spent(pipeline.run)


def _head_facts(head: HeadPipeline, pipeline: Pipeline, per_step: int, seen: tuple[int, float]) -> dict[str, Any]:
    """What the records of a head, and of retrieval with its encoder, say of the training."""
    steps, data = head.folder.read_train_log()[-1]["steps"], pipeline.run.read_config()["data"]
    images, seconds = seen
    return {
        "learning_rate": head.finetune.optimizer.head_rate,
        "encoder_rate": head.finetune.optimizer.encoder_rate,
        "images": images + steps * per_step,
        "steps": steps,
        "demonstrations": data["episodes"] - data["heldout"],
        "training_seconds": round(seconds + spent(head.folder), 1),
        "probe": None,
    }


def _begin(bench: Bench, cell: Cell) -> tuple[float, float, float]:
    """Now, and the seconds that earlier calls trained a cell's representation and its head."""
    run = bench.run(cell)
    return time.perf_counter(), spent(run), spent(Run(run.head(HEAD_NAMES[cell.trained_head])))


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
