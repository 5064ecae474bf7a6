"""Attempts in parallel processes. One that dies or hangs is replaced and its seed tried again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from classact.errors import ActionError, ClassactError, SimulatorError
from classact.sims.experts.attempts import Plan, store_attempt, store_failure
from classact.sims.experts.base import Recorder
from classact.sims.processes import FaultError, run_tasks

TRIES = 3  # processes that may be lost with one seed

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
    with closing(run_tasks(_Attempts(recorder, work), plan.next_seed, workers=workers, timeout=seconds)) as ended:
        while (chosen := plan.chosen()) is None:
            seed, outcome = next(ended)
            if not isinstance(outcome, FaultError):
                plan.outcomes[seed] = outcome
                if report is not None:
                    report()
            elif isinstance(outcome.error, ClassactError):
                raise type(outcome.error)(f"the attempt failed from start seed {seed}: {outcome.error}")
            elif outcome.error is not None:
                raise SimulatorError(f"the attempt failed from start seed {seed}: \n{outcome}")
            elif outcome.losses == TRIES:
                raise SimulatorError(
                    f"{TRIES} expert processes were lost with start seed {seed}, the last one: it {outcome}. "
                    f"{len(plan.outcomes)} attempts are kept in {work}; run it again to continue, with fewer workers "
                    f"if memory was short."
                )
        return chosen


@dataclass
class _Attempts:
    """Stores the attempt from a seed; the answer is why it was not kept, empty where it was."""

    recorder: Recorder
    work: Path

    def __call__(self, seed: int) -> str:
        try:
            attempt = self.recorder(seed)
        except ActionError as problem:  # the expert's fault; whatever else goes wrong may go well another time
            reason = str(problem).splitlines()[0].replace(f" from seed {seed}", "")
        else:
            if attempt.success:
                store_attempt(self.work, attempt)
                return ""
            reason = attempt.reason or "no reason given"
        store_failure(self.work, seed, reason)
        return reason

    def close(self) -> None:
        self.recorder.close()
