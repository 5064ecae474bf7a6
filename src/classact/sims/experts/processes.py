"""Attempts in parallel processes. One that dies or hangs is replaced and its seed tried again."""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from classact.errors import ActionError, ClassactError, SimulatorError
from classact.sims.experts.attempts import Plan, store_attempt, store_failure
from classact.sims.experts.recorders import Recorder

TRIES = 3
"""Processes that may be lost with one seed."""

START_SECONDS, STEP_SECONDS = 120.0, 0.5
"""An attempt counts as hung after START_SECONDS (imports and compilation included) and STEP_SECONDS for each step of
the task's time limit: ten times what the slowest simulator needs."""


def run_attempts(
    recorder: Recorder,
    plan: Plan,
    work: Path,
    *,
    workers: int,
    seconds: float,
    report: Callable[[], None] | None = None,
) -> list[int]:
    """Try seeds until the plan has what it wants. Every attempt is stored in ``work`` by the process that made it.

    Args:
        recorder: makes attempts; unused so far, as it is sent to the processes.
        plan: its ``outcomes`` are filled.
        work: the work folder.
        workers: processes.
        seconds: after which an attempt counts as hung.
        report: called after each attempt.

    Returns:
        The chosen seeds.

    Raises:
        SimulatorError: a script failed otherwise than by giving up or by its actions, or one seed cost :data:`TRIES`
            processes.
        ClassactError: what a worker raised, of the same class: a simulator that does not start, a full disk.
    """
    context = multiprocessing.get_context("spawn")
    lost: Counter[int] = Counter()
    pool: list[_Worker] = []
    try:
        while (chosen := plan.chosen()) is None:
            _employ(pool, plan, workers, seconds, lambda: _Worker(context, recorder, work))
            busy = [worker for worker in pool if worker.seed is not None]
            first = min(worker.deadline for worker in busy)
            ready = wait([worker.pipe for worker in busy], max(0.0, first - time.monotonic()))
            for worker in busy:
                if worker.pipe in ready:
                    seed, outcome = worker.result()
                elif time.monotonic() > worker.deadline:
                    seed, outcome = worker.give_up(f"no end after {seconds:.0f} s")
                else:
                    continue
                if outcome is not None:
                    plan.outcomes[seed] = outcome
                    if report is not None:
                        report()
                    continue
                pool.remove(worker)
                lost[seed] += 1
                if lost[seed] == TRIES:
                    raise SimulatorError(
                        f"{TRIES} expert processes were lost with start seed {seed}, the last one: {worker.problem}. "
                        f"{len(plan.outcomes)} attempts are kept in {work}; run it again to continue, with fewer "
                        f"workers if memory was short."
                    )
        return chosen
    finally:
        for worker in pool:
            worker.end()


def _employ(pool: list[_Worker], plan: Plan, workers: int, seconds: float, hire: Callable[[], _Worker]) -> None:
    """Give every idle process, and new ones up to ``workers``, a seed to try."""
    while True:
        idle = next((worker for worker in pool if worker.seed is None), None)
        if idle is None and len(pool) >= workers:
            return
        seed = plan.next_seed([worker.seed for worker in pool if worker.seed is not None])
        if seed is None:
            return
        if idle is None:
            idle = hire()
            pool.append(idle)
        idle.begin(seed, seconds)


class _Worker:
    def __init__(self, context: Any, recorder: Recorder, work: Path) -> None:
        self.pipe, child = context.Pipe()
        self.process = context.Process(target=serve, args=(child, recorder, work), daemon=True)
        self.process.start()
        child.close()
        self.seed: int | None = None
        self.deadline = 0.0
        self.problem = ""

    def begin(self, seed: int, seconds: float) -> None:
        self.seed, self.deadline = seed, time.monotonic() + seconds
        with suppress(OSError):  # it died while idle: its result says so
            self.pipe.send(seed)

    def result(self) -> tuple[int, str | None]:
        """(seed, why it was not kept); None for the latter where the process is gone."""
        try:
            kind, text = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(1)
            return self.give_up(f"it died (exit code {self.process.exitcode})")
        if kind is not None:
            raise kind(f"the attempt failed from start seed {self.seed}: {text}")
        assert self.seed is not None
        seed, self.seed = self.seed, None
        return seed, text

    def give_up(self, problem: str) -> tuple[int, None]:
        self.problem = problem
        self.end()
        assert self.seed is not None
        return self.seed, None

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def serve(pipe: Connection, recorder: Recorder, work: Path) -> None:
    """Answer each seed with (None, why it was not kept) after storing the attempt, or with (class of error, text)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the first one decides
    try:
        while True:
            pipe.send((None, _record(recorder, pipe.recv(), work)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    except ClassactError as problem:
        pipe.send((type(problem), str(problem)))
    except Exception:
        pipe.send((SimulatorError, "\n" + traceback.format_exc()))
    finally:
        recorder.close()


def _record(recorder: Recorder, seed: int, work: Path) -> str:
    try:
        attempt = recorder(seed)
    except ActionError as problem:  # the expert's fault; whatever else goes wrong may go well another time
        reason = str(problem).splitlines()[0].replace(f" from seed {seed}", "")
    else:
        if attempt.success:
            store_attempt(work, attempt)
            return ""
        reason = attempt.reason or "no reason given"
    store_failure(work, seed, reason)
    return reason
