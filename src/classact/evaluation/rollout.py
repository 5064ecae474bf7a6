"""The only evaluator: which episodes are run, for how long, and what counts as success.

Episodes run in lockstep, in groups of a size that is a fact of the task (``SimulatorSpec.group``) and not of the number
of worker processes: each round, the policy sees one batch with the observations of all episodes of the group, so the
numbers it computes, and hence the result, are the same for any number of workers. They are also the same where workers
die or hang on the way (:mod:`classact.sims.pool`). Every episode that is started is run to its time limit; the limit is
checked at every step, not only between chunks.

A policy that is lost, often long after success, may ask for what no simulator executes. That costs its episode, not all
of them: beyond a first decision, actions are held within what is executed (``SimulatorSpec.held``), and the metric
``excess`` says so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from classact.data.types import Criterion, FloatArray, RolloutResult, StateArray
from classact.errors import ConfigError, choose
from classact.evaluation.config import EvaluationConfig
from classact.evaluation.rows import Alarms, EvaluationRow
from classact.policies.base import Policy, PolicySpec
from classact.policies.control import Controller
from classact.sims import SimulatorSpec, make_simulator
from classact.sims.pool import Worker
from classact.sims.versions import check_language
from classact.utils.codec import to_json, without
from classact.utils.locks import own
from classact.utils.machine import cores
from classact.utils.statistics import wilson_interval
from classact.utils.storage import check_writable, write_arrays, write_json, write_jsonl

# -- evaluation ------------------------------------------------------------------------------------


def evaluate(
    policy: Policy,
    simulator: str,
    config: EvaluationConfig,
    progress: Callable[[int, int, str], None] | None = None,
    faults: list[str] | None = None,
) -> list[RolloutResult]:
    """Run ``config.episodes`` episodes to the time limit.

    Args:
        policy: acts on batches of observations.
        simulator: registry name.
        config: episodes, seeds, shift, control.
        progress: called with (control steps done, in all, status).
        faults: what went wrong with worker processes and was put right is appended, a line each.

    Returns:
        One result per episode, in the order of seeds.

    Raises:
        SimulatorError: a worker process died or hung again and again, or the simulator failed twice.
        ConfigError: control that does not fit the policy's chunks, actions that do not fit the simulator, or a camera
            that it does not have.
    """
    controller = Controller(policy, config.control)
    probe = make_simulator(simulator, image_size=config.image_size, shift=config.shift)
    spec = probe.spec
    probe.close()
    _check_spec(policy.spec, spec)
    cameras = policy.spec.cameras or None
    faults = [] if faults is None else faults
    limit = config.max_steps or spec.max_steps
    seeds = [config.first_seed + i for i in range(config.episodes)]
    workers = min(config.workers or cores(), config.episodes, spec.group)
    results: list[RolloutResult] = []
    with ExitStack() as stack:
        pool = []
        for _ in range(workers):
            pool.append(Worker((simulator, config.image_size, config.shift, cameras), faults))
            stack.callback(pool[-1].close)
        for first in range(0, len(seeds), spec.group):
            group = seeds[first : first + spec.group]
            done = len(results) * limit

            def report(step: int, done: int = done, group: list[int] = group) -> None:
                if progress is not None:
                    restarts = f", worker restarts: {len(faults)}" if faults else ""
                    progress(done + step * len(group), len(seeds) * limit, f"step {step} of {limit}{restarts}")

            results += _run_group(controller, pool, group, spec, limit, report)
    return results


def _run_group(
    controller: Controller,
    pool: Sequence[Worker],
    seeds: Sequence[int],
    spec: SimulatorSpec,
    limit: int,
    report: Callable[[int], None],
) -> list[RolloutResult]:
    shares = [np.arange(len(seeds))[i :: len(pool)] for i in range(len(pool))]
    policy = controller.policy.spec
    render = bool(policy.cameras)

    busy = [(worker, share) for worker, share in zip(pool, shares, strict=True) if len(share)]

    def answers() -> list[Any]:
        out: list[Any] = [None] * len(seeds)
        for worker, share in busy:
            for index, value in zip(share, worker.answer(), strict=True):
                out[index] = value
        return out

    for worker, share in busy:
        worker.reset([seeds[i] for i in share], render)
    started = answers()
    observations = [[observation] for observation in started]
    states = [[observation.state] for observation in started]
    actions: list[list[Any]] = [[] for _ in seeds]
    traces: list[list[Mapping[str, float]]] = [[] for _ in seeds]
    decisions: list[int] = []
    scores: list[FloatArray | None] = []
    doubts: list[StateArray | None] = []
    controller.reset(len(seeds))
    step = 0
    while step < limit:
        decision = controller.act(observations)
        _check_actions(decision.chunk, policy.name, spec)
        decisions.append(step)
        scores.append(decision.novelty)
        doubts.append(decision.doubt)
        chunks = decision.chunk[:, : limit - step]
        if step:  # a first decision that is far off is of another space; a later one, of a policy that is lost
            chunks = spec.held(chunks)
        for worker, share in busy:
            worker.step(chunks[share], render, controller.history)
        for i, (seen, metrics, visited) in enumerate(answers()):
            observations[i] = seen
            actions[i].extend(chunks[i])
            traces[i].extend(metrics)
            states[i].extend(visited)
        step += chunks.shape[1]
        report(step)
    given = [score for score in scores if score is not None]
    if given and len(given) < len(scores):
        raise ConfigError(
            f"policy {policy.name!r} gave novelty scores at {len(given)} of {len(scores)} decisions, "
            f"expected all or none."
        )
    novelty = np.stack(given, axis=1) if given else None  # (B, n)
    added = [doubt for doubt in doubts if doubt is not None]
    doubt = np.stack(added, axis=1) if added and len(added) == len(doubts) else None
    return [
        replace(
            _result(seed, spec.criteria, np.asarray(states[i]), np.asarray(actions[i], np.float32), traces[i]),
            decisions=np.asarray(decisions, np.int64),
            novelty=None if novelty is None else novelty[i],
            doubt=None if doubt is None else doubt[i],
        )
        for i, seed in enumerate(seeds)
    ]


def _check_spec(policy: PolicySpec, spec: SimulatorSpec) -> None:
    """Refuse a policy that reads or does other things than the simulator has."""
    if policy.schema is not None and spec.schema is not None and (difference := policy.schema.difference(spec.schema)):
        raise ConfigError(
            f"policy {policy.name!r} was trained on other observations or actions than simulator {spec.name!r} has: "
            f"{difference}. Evaluate it on its own task, or train with these."
        )
    check_language(policy.language_source, spec, f"policy {policy.name!r}")
    for camera in policy.cameras:
        if camera not in spec.cameras:
            raise ConfigError(
                f"policy {policy.name!r}, simulator {spec.name!r}: {choose('camera', camera, spec.cameras)}."
            )


def _check_actions(chunks: FloatArray, name: str, spec: SimulatorSpec) -> None:
    if chunks.shape[2] != spec.action_dim:
        raise ConfigError(
            f"policy {name!r} gave actions of shape {chunks.shape}, but simulator {spec.name!r} takes "
            f"({len(chunks)}, T_a, {spec.action_dim}). Was the policy trained on another task?"
        )


def _result(
    seed: int,
    criteria: Sequence[Criterion],
    states: np.ndarray[Any, Any],
    actions: np.ndarray[Any, Any],
    trace: Sequence[Mapping[str, float]],
) -> RolloutResult:
    metrics = {name: np.asarray([row[name] for row in trace], np.float32) for name in trace[0]}
    # Judged in float64 as the simulator gave it; float32 is for keeping.
    first = {criterion.name: criterion.first([row[criterion.metric] for row in trace]) for criterion in criteria}
    return RolloutResult(
        seed=seed,
        steps=len(actions),
        maxima={name: max(float(row[name]) for row in trace) for name in trace[0]},
        success={name: value is not None for name, value in first.items()},
        first_success=first,
        states=states,
        actions=actions,
        metrics=metrics,
    )


# -- tables ----------------------------------------------------------------------------------------


def first_alarm(result: RolloutResult, alarm: float) -> int | None:
    """The control step, counted from 0, before which an episode's novelty first exceeded ``alarm``; None if never.

    All steps count, those after success too.
    """
    if result.novelty is None or result.decisions is None:
        return None
    above = result.novelty.astype(np.float64) > alarm
    return int(result.decisions[np.argmax(above)]) if above.any() else None


def alarm_before_success(result: RolloutResult, alarm: float) -> dict[str, bool]:
    """Criterion -> whether an alarm was raised at a decision before success, or at any where the episode failed.

    Episodes run on to their time limit, and what comes after success was never demonstrated: that it is new to the
    policy says nothing about how it got there.
    """
    rang = first_alarm(result, alarm)
    return {
        criterion: rang is not None and (reached is None or rang < reached)
        for criterion, reached in result.first_success.items()
    }


def summarize(
    results: Sequence[RolloutResult], seconds: float, /, *, alarm: float | None = None, faults: int = 0, **labels: str
) -> list[EvaluationRow]:
    """One row per criterion; with an alarm level and novelty scores it counts alarms (:func:`alarm_before_success`).

    Args:
        results: episodes.
        seconds, faults, labels: fields of :class:`EvaluationRow`, which ``results`` do not tell.
        alarm: the policy's alarm level.
    """
    alarms = None
    if alarm is not None and all(result.novelty is not None for result in results):
        alarms = [alarm_before_success(result, alarm) for result in results]
    rows = []
    for criterion in results[0].success:
        reached = [result.success[criterion] for result in results]
        successes, counted = sum(reached), None
        low, high = wilson_interval(successes, len(results))
        if alarms is not None:
            raised = [success for success, rang in zip(reached, alarms, strict=True) if rang[criterion]]
            counted = Alarms(failures=len(raised) - sum(raised), successes=sum(raised))
        rows.append(
            EvaluationRow(
                **labels,  # type: ignore[arg-type]
                criterion=criterion,
                episodes=len(results),
                successes=successes,
                success=successes / len(results),
                low=low,
                high=high,
                seconds=seconds,
                metrics={name: float(np.mean([r.maxima[name] for r in results])) for name in results[0].maxima},
                alarms=counted,
                faults=faults,
            )
        )
    return rows


def write_episodes(folder: Path, results: Sequence[RolloutResult], *, alarm: float | None = None) -> None:
    """episodes.jsonl (one row per episode) and rollouts.safetensors (states, actions, metrics of all steps).

    With novelty scores rows also hold "max_novelty", and the arrays "decisions", "novelty", "doubt" and "decision_ends"
    all decisions of all episodes one after another and their cumulative number per episode; with an alarm level as
    well, rows hold "first_alarm" and "alarm_before_success" (functions of these names).
    """
    rows: list[dict[str, Any]] = [
        {
            "seed": result.seed,
            "steps": result.steps,
            "maxima": dict(result.maxima),
            **{f"max_{name}": value for name, value in result.maxima.items()},
            "success": dict(result.success),
            "first_success": dict(result.first_success),
        }
        for result in results
    ]
    arrays = {
        "seeds": np.asarray([result.seed for result in results], np.int64),
        "ends": np.cumsum([result.steps for result in results], dtype=np.int64),
        "actions": np.concatenate([result.actions for result in results]),
        # One state more than actions per episode: episode i is rows ends[i-1] + i : ends[i] + i + 1.
        "states": np.concatenate([result.states for result in results]),
    }
    arrays |= {name: np.concatenate([result.metrics[name] for result in results]) for name in results[0].metrics}
    scored = [(r.decisions, r.novelty) for r in results if r.decisions is not None and r.novelty is not None]
    if len(scored) == len(results):
        arrays["decision_ends"] = np.cumsum([len(steps) for steps, _ in scored], dtype=np.int64)
        arrays["decisions"] = np.concatenate([steps for steps, _ in scored])
        arrays["novelty"] = np.concatenate([novelty for _, novelty in scored])
        if all(result.doubt is not None for result in results):
            arrays["doubt"] = np.concatenate([result.doubt for result in results if result.doubt is not None])
        for row, result, (_, novelty) in zip(rows, results, scored, strict=True):
            row["max_novelty"] = float(novelty.max())
            if alarm is not None:
                row["first_alarm"] = first_alarm(result, alarm)
                row["alarm_before_success"] = alarm_before_success(result, alarm)
    write_arrays(folder / "rollouts.safetensors", arrays)
    write_jsonl(folder / "episodes.jsonl", rows)


SETTINGS, ALARM = "settings.json", "alarm.json"
"""Files of an evaluation's folder: what decided its episodes, and what an alarm said of them."""


def evaluation_settings(simulator: str, config: EvaluationConfig, spec: PolicySpec) -> dict[str, Any]:
    """What decides the episodes of an evaluation, besides the policy's weights and bank."""
    chosen = without(to_json(config), "workers")
    acting = {"chunk_length": spec.chunk_length, "speed": spec.speed, "acting": to_json(spec.acting)}
    return {"simulator": simulator, **chosen, **acting}


def run_evaluation(
    policy: Policy,
    simulator: str,
    config: EvaluationConfig,
    folder: Path,
    *,
    encoder: str,
    progress: Callable[[int, int, str], None] | None = None,
    labels: Mapping[str, str] | None = None,
    about: Mapping[str, Any] | None = None,
) -> tuple[list[RolloutResult], list[EvaluationRow]]:
    """Evaluate, write the episodes into ``folder``, whose name is the evaluation's, and return (results, rows).

    Args:
        policy, simulator, config, progress: as for :func:`evaluate`.
        folder: is made.
        encoder, labels: of the rows; ``labels`` are training and augmentation.
        about: JSON values that the evaluation's settings shall say as well.

    Raises:
        StorageError: nothing can be written there, or another process evaluates under that name; before the first step.
    """
    alarm = policy.spec.alarm
    if alarm is not None and math.isinf(alarm):
        alarm = None  # calibrated on too few episodes: that nothing rang would say nothing
    check_writable(folder, folder=True)
    _hold = own(folder)  # of two evaluations of one name, files would be mixed
    begin = time.perf_counter()
    faults: list[str] = []
    results = evaluate(policy, simulator, config, progress, faults)
    seconds = time.perf_counter() - begin
    for earlier in (SETTINGS, "faults.jsonl", ALARM):  # of an evaluation into this folder before
        (folder / earlier).unlink(missing_ok=True)
    write_episodes(folder, results, alarm=alarm)
    write_json(folder / SETTINGS, {**evaluation_settings(simulator, config, policy.spec), **(about or {})})
    if faults:
        write_jsonl(folder / "faults.jsonl", [{"fault": text} for text in faults])
    rows = summarize(
        results,
        seconds,
        alarm=alarm,
        faults=len(faults),
        policy=policy.spec.name,
        encoder=encoder,
        simulator=simulator,
        shift=config.shift,
        evaluation=folder.name,
        **labels or {},
    )
    return results, rows
