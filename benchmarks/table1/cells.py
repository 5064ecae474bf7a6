"""One cell of the table: train, choose what retrieval needs, evaluate, record.

Everything is in the cell's run folder, so a killed cell goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from classact.errors import ClassactError
from classact.evaluation.rollout import evaluate
from classact.models.encoders import ImageEncoder
from classact.policies import RetrievalPolicy
from classact.run import analysis
from classact.run.config import RunConfig
from classact.run.finetune import HeadPipeline
from classact.run.folder import Run
from classact.run.presets import PRESETS
from classact.run.pretrain import Pipeline
from classact.run.probe import flat_metrics, probe_run
from classact.run.recording import evaluation_name, roll_out
from classact.train.engine import DIVERGED
from classact.utils.progress import progress_bar
from classact.utils.storage import read_json, write_json
from table1.grid import HEAD_NAMES, Cell, head_config, images_per_step
from table1.records import (
    best_of,
    blank,
    episodes_of,
    latency,
    loss_curve,
    score,
    spent,
    success_curve,
)
from table1.trainings import Bench, budget, head_pipeline, trained

CHOSEN = "retrieval.json"
"""In a cell's folder: which temperature was chosen, and on what."""

EVALUATION = "table1"
"""Name of the evaluation of a representation."""

RETRIEVAL = "retrieval"
"""Folder, in that of a head, of retrieval with the encoder that was trained beneath it."""

OTHER_HELD_OUT = "learned from fewer demonstrations, behind which others are held out: its probes would ask other steps"
"""Why a cell is not probed."""

NEIGHBORS = 8
"""Shown of a timestep, whatever number a cell acts with: the pages of methods shall be alike."""


def try_rate(bench: Bench, cell: Cell, rate: float) -> dict[str, Any]:
    """Train shortly with a learning rate, and roll out on held-out starts; returns the row.

    A rate with which the training diverges has a row, too, and no success.

    Args:
        bench: where and how.
        cell: of :func:`table1.grid.searched`.
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


def retrieval_settings(tau: float, k: int) -> dict[str, Any]:
    """What a temperature of a record means: 0 is the nearest neighbour alone."""
    return {"k": 1} if tau == 0 else {"k": k, "temperature": tau}


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
        pipeline.label,
        (config.frames.simulator, config.evaluation),
        pipeline.labels,
        title=cell.name,
        quiet=bench.quiet,
    )
    if cell.head == "rep" and cell.seed == 0:
        # The latent map, and neighbours of some timesteps (appendix J).
        shown = RetrievalPolicy.load(run.policy, k=NEIGHBORS).to(bench.device)
        analysis.write_latent_map(run, shown, config.pretrain.seed)
        pipeline.draw_neighbors(shown, results)
    return policy, chosen


def probed(bench: Bench, run: Run, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of a representation as the results file keeps them: "REPRESENTATION: METRIC" -> value, low, high.

    It retrieves as it acts. All are under the preset's similarity of actions: those trained with another one would be
    asked other questions.
    """
    similarity = PRESETS[bench.protocol.preset].pretrain.similarity
    settings = retrieval_settings(chosen["tau"], chosen["k"])
    found = probe_run(run, similarity=similarity, device=bench.device, quiet=bench.quiet, **settings)
    return {
        f"{name}: {metric}": value
        for name in found["representations"]
        for metric, value in flat_metrics(found, name).items()
    }


def on_more_starts(bench: Bench, cell: Cell, rate: float | None, record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a cell that is done, tried on all starts of a protocol that has more of them than it had then."""
    if cell.head == "rep":
        run = bench.run(cell)
        _rolled_out(bench, cell, trained(bench, run, cell, rate, budget(bench, cell)), run)
        return dict(record) | episodes_of(run.evaluation(EVALUATION))
    head, pipeline = _head(bench, cell, rate)
    if cell.head == cell.trained_head:
        return dict(record) | head_rolled_out(head)
    run = _retrieval_with(head, pipeline)
    _rolled_out(bench, cell, pipeline, run)
    return dict(record) | episodes_of(run.evaluation(EVALUATION))


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
            "latency_ms": latency(head.policy, config.frames.simulator, config.evaluation),
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
        "learning_rate": head.finetune.optimizer.head_lr,
        "encoder_lr": head.finetune.optimizer.encoder_lr,
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
