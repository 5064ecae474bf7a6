"""The only evaluator: which episodes are run, for how long, and what counts as success.

Episodes run in lockstep, in groups of a fixed size that does not depend on the number of worker processes: each round,
the policy sees one batch with the observations of all episodes of the group, so the numbers it computes, and hence the
result, are the same for any number of workers. Every episode that is started is run to its time limit; the limit is
checked at every step, not only between chunks.
"""

from __future__ import annotations

import multiprocessing as mp
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from classact.errors import ConfigError, SimulatorError
from classact.policies import Policy
from classact.sims import SimulatorSpec, make_simulator
from classact.sims.worker import serve
from classact.statistics import wilson_interval
from classact.storage import write_arrays, write_jsonl
from classact.types import Criterion, RolloutResult

FIRST_SEED = 100_000
"""Evaluation episodes are seeded from here on (as Diffusion Policy and the released code do), training data below."""

GROUP = 50
"""Episodes that share one batch of the policy. Fixed, so that results do not depend on the machine."""

TIMEOUT = 300.0
"""Seconds without an answer after which a worker counts as hung."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Which episodes are run.

    Attributes:
        episodes: how many, with seeds first_seed, first_seed + 1, ...
        first_seed: see :data:`FIRST_SEED`.
        shift: the simulator's visual shift.
        image_size: side of rendered images in pixels; the policy resizes to what it was trained on.
        max_steps: time limit in control steps; None takes the simulator's own.
        workers: simulator processes; 0 takes one per core. Changes the speed, not the result.
    """

    episodes: int = 50
    first_seed: int = FIRST_SEED
    shift: str = "fixed-color"
    image_size: int = 96
    max_steps: int | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.workers < 0 or (self.max_steps is not None and self.max_steps < 1):
            raise ConfigError(
                f"expected episodes >= 1, workers >= 0 and max_steps >= 1, got episodes {self.episodes}, workers "
                f"{self.workers}, max_steps {self.max_steps}."
            )


# -- worker processes ------------------------------------------------------------------------------


class _Worker:
    def __init__(self, context: Any, arguments: tuple[str, int, str]) -> None:
        self.pipe, child = context.Pipe()
        self.process = context.Process(target=serve, args=(child, *arguments), daemon=True)
        self.process.start()
        child.close()

    def ask(self, command: str, payload: Any) -> None:
        try:
            self.pipe.send((command, payload))
        except (BrokenPipeError, OSError):
            raise self._dead() from None

    def answer(self) -> Any:
        try:
            if not self.pipe.poll(TIMEOUT):
                raise SimulatorError(
                    f"a simulator process gave no answer for {TIMEOUT:.0f} s and counts as hung. Run again; the "
                    f"episodes are seeded, so the result will be that of an undisturbed run."
                )
            status, value = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._dead() from None
        if status == "error":
            raise SimulatorError(f"a simulator process failed:\n{value}")
        return value

    def _dead(self) -> SimulatorError:
        self.process.join(1)
        return SimulatorError(
            f"a simulator process died (exit code {self.process.exitcode}); was it killed for memory? Run again, with "
            f"fewer workers if so; the episodes are seeded, so the result will be that of an undisturbed run."
        )

    def close(self) -> None:
        with suppress(OSError):
            self.pipe.send(("close", None))
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


# -- evaluation ------------------------------------------------------------------------------------


def evaluate(
    policy: Policy,
    simulator: str,
    config: EvaluationConfig,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[RolloutResult]:
    """Run ``config.episodes`` episodes to the time limit.

    Args:
        policy: acts on batches of observations.
        simulator: registry name.
        config: episodes, seeds, shift.
        progress: called with (control steps done, in all, status).

    Returns:
        One result per episode, in the order of seeds.

    Raises:
        SimulatorError: a worker process died, failed or hung.
    """
    probe = make_simulator(simulator, image_size=config.image_size, shift=config.shift)
    spec = probe.spec
    probe.close()
    limit = config.max_steps or spec.max_steps
    seeds = [config.first_seed + i for i in range(config.episodes)]
    workers = min(config.workers or mp.cpu_count(), config.episodes)
    # Not fork: the parent runs threads (OpenMP), and forked threads deadlock.
    context = mp.get_context("spawn")
    results: list[RolloutResult] = []
    with ExitStack() as stack:
        pool = []
        for _ in range(workers):
            pool.append(_Worker(context, (simulator, config.image_size, config.shift)))
            stack.callback(pool[-1].close)
        for first in range(0, len(seeds), GROUP):
            group = seeds[first : first + GROUP]
            done = len(results) * limit

            def report(step: int, done: int = done, group: list[int] = group) -> None:
                if progress is not None:
                    progress(done + step * len(group), len(seeds) * limit, f"step {step} of {limit}")

            results += _run_group(policy, pool, group, spec, limit, report)
    return results


def _run_group(
    policy: Policy,
    pool: Sequence[_Worker],
    seeds: Sequence[int],
    spec: SimulatorSpec,
    limit: int,
    report: Callable[[int], None],
) -> list[RolloutResult]:
    shares = [np.arange(len(seeds))[i :: len(pool)] for i in range(len(pool))]
    render = policy.needs_images

    def gather(command: str, payloads: Sequence[Any]) -> list[Any]:
        busy = [(w, share, p) for w, share, p in zip(pool, shares, payloads, strict=True) if len(share)]
        for worker, _, payload in busy:
            worker.ask(command, payload)
        out: list[Any] = [None] * len(seeds)
        for worker, share, _ in busy:
            for index, value in zip(share, worker.answer(), strict=True):
                out[index] = value
        return out

    observations = gather("reset", [([seeds[i] for i in share], render) for share in shares])
    states = [[observation.state] for observation in observations]
    actions: list[list[Any]] = [[] for _ in seeds]
    traces: list[list[Mapping[str, float]]] = [[] for _ in seeds]
    step = 0
    while step < limit:
        chunks = np.asarray(policy.act(observations), np.float32)
        _check_actions(chunks, policy.name, len(seeds), spec)
        chunks = chunks[:, : limit - step]
        answers = gather("step", [(chunks[share], render) for share in shares])
        for i, (observation, metrics, visited) in enumerate(answers):
            observations[i] = observation
            actions[i].extend(chunks[i])
            traces[i].extend(metrics)
            states[i].extend(visited)
        step += chunks.shape[1]
        report(step)
    return [
        _result(seed, spec.criteria, np.asarray(states[i]), np.asarray(actions[i], np.float32), traces[i])
        for i, seed in enumerate(seeds)
    ]


def _check_actions(chunks: np.ndarray[Any, Any], name: str, count: int, spec: SimulatorSpec) -> None:
    expected = f"({count}, T_a, {spec.action_dim})"
    if chunks.ndim != 3 or (chunks.shape[0], chunks.shape[2]) != (count, spec.action_dim) or chunks.shape[1] < 1:
        raise ConfigError(
            f"policy {name!r} gave actions of shape {chunks.shape}, but simulator {spec.name!r} takes {expected} with "
            f"T_a >= 1. Was the policy trained on another task?"
        )
    if not (finite := np.isfinite(chunks)).all():
        bad = int((~finite).sum())
        raise ConfigError(
            f"policy {name!r} gave {bad} NaN or infinite of {finite.size} action values to simulator {spec.name!r}, "
            f"expected finite {expected}. Its weights or normalisation are damaged: train or build it again."
        )


def _result(
    seed: int,
    criteria: Sequence[Criterion],
    states: np.ndarray[Any, Any],
    actions: np.ndarray[Any, Any],
    trace: Sequence[Mapping[str, float]],
) -> RolloutResult:
    metrics = {name: np.asarray([row[name] for row in trace], np.float32) for name in trace[0]}
    first: dict[str, int | None] = {}
    for criterion in criteria:
        # Judged in float64 as the simulator gave it; float32 is for keeping.
        reached = np.asarray([row[criterion.metric] for row in trace]) > criterion.threshold
        first[criterion.name] = int(np.argmax(reached)) + 1 if reached.any() else None
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


def summarize(results: Sequence[RolloutResult], seconds: float, **labels: str) -> list[dict[str, Any]]:
    """One row per criterion with a 95 % Wilson interval.

    Args:
        results: episodes.
        seconds: wall-clock time of the evaluation.
        labels: policy, encoder, simulator, shift, evaluation.
    """
    rows = []
    for criterion in results[0].success:
        successes = sum(result.success[criterion] for result in results)
        low, high = wilson_interval(successes, len(results))
        row: dict[str, Any] = dict(labels)
        row |= {
            "criterion": criterion,
            "episodes": len(results),
            "successes": successes,
            "success": successes / len(results),
            "low": low,
            "high": high,
            "seconds": seconds,
        }
        row |= {f"mean_max_{m}": float(np.mean([r.maxima[m] for r in results])) for m in results[0].maxima}
        rows.append(row)
    return rows


def write_episodes(folder: Path, results: Sequence[RolloutResult]) -> None:
    """episodes.jsonl (one row per episode) and rollouts.safetensors (states, actions, metrics of all steps)."""
    rows = [
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
    write_arrays(folder / "rollouts.safetensors", arrays)
    write_jsonl(folder / "episodes.jsonl", rows)


def run_evaluation(
    policy: Policy,
    simulator: str,
    config: EvaluationConfig,
    folder: Path,
    *,
    encoder: str,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[list[RolloutResult], list[dict[str, Any]]]:
    """Evaluate, write the episodes into ``folder`` and return (results, summary rows).

    Args:
        policy, simulator, config, progress: as for :func:`evaluate`.
        folder: its name names the evaluation.
        encoder: label for tables.
    """
    begin = time.perf_counter()
    results = evaluate(policy, simulator, config, progress)
    seconds = time.perf_counter() - begin
    write_episodes(folder, results)
    rows = summarize(
        results,
        seconds,
        policy=policy.name,
        encoder=encoder,
        simulator=simulator,
        shift=config.shift,
        evaluation=folder.name,
    )
    return results, rows
