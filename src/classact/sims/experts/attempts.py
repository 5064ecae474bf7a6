"""Attempts in parallel processes and on disk, and which seeds are tried and taken.

Every attempt is one file ``SEED.npz`` in the work folder, written atomically as soon as it is over. What is taken
depends on the attempts alone, not on the order in which they ended.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from classact.errors import ActionError, ClassactError, ConfigError, SimulatorError
from classact.sims.experts.base import Attempt, Recorder
from classact.sims.processes import FaultError, run_tasks
from classact.utils.codec import to_json
from classact.utils.storage import atomic_path, read_json, write_json

END_SEED = 100_000  # evaluation episodes are seeded from here on (FIRST_SEED)
TRIES = 3  # processes that may be lost with one seed

START_SECONDS, STEP_SECONDS = 120.0, 0.5
"""An attempt counts as hung after START_SECONDS (imports, compilation) and STEP_SECONDS per step of the task's time
limit: ten times what the slowest simulator needs."""

LATE = 10.0  # seconds that processes of a killed call may go on writing
HOPELESS = 100  # failed attempts in a row that show that something is wrong with the expert


def open_work(work: Path, settings: dict[str, Any]) -> dict[int, str]:
    """Make the work folder, or resume in one of equal settings: seed -> why it was not kept, empty where it was.

    A folder with attempts of other settings is a ConfigError.
    """
    settings = to_json(settings)
    file = work / "settings.json"
    if not file.exists():
        work.mkdir(parents=True, exist_ok=True)
        write_json(file, settings)
        return {}
    found = read_json(file, ConfigError)
    different = sorted(key for key in settings.keys() | found.keys() if settings.get(key) != found.get(key))
    if different:
        raise ConfigError(
            f"{work} holds attempts made with other settings ({', '.join(different)}). Delete the folder, or write to "
            f"another file."
        )
    outcomes = {}
    for attempt in work.glob("[0-9]*.npz"):
        try:
            with np.load(attempt, allow_pickle=False) as data:
                outcomes[int(attempt.stem)] = str(data["reason"])
        except Exception:  # damaged: that attempt is made again
            attempt.unlink()
    return outcomes


def store_attempt(work: Path, attempt: Attempt) -> None:
    """Write an attempt that is kept."""
    arrays: dict[str, Any] = {name: getattr(attempt, name) for name in ("states", "actions", "proprioception")}
    arrays |= {"reason": np.array(""), "instruction": np.array(attempt.instruction)}
    if attempt.language is not None:
        arrays["language"] = attempt.language
    _write(work, attempt.seed, arrays)


def store_failure(work: Path, seed: int, reason: str) -> None:
    """Note why the attempt from ``seed`` is not kept."""
    _write(work, seed, {"reason": np.array(reason)})


def _write(work: Path, seed: int, arrays: dict[str, Any]) -> None:
    with atomic_path(work / f"{seed}.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def load_attempt(work: Path, seed: int) -> Attempt:
    """Read an attempt that was kept."""
    with np.load(work / f"{seed}.npz", allow_pickle=False) as data:
        return Attempt(
            seed=seed,
            states=data["states"],
            actions=data["actions"],
            proprioception=data["proprioception"],
            success=True,
            language=data.get("language"),
            instruction=str(data["instruction"]),
        )


def delete_work(work: Path) -> None:
    """Remove the work folder and what is in it."""
    deadline = time.monotonic() + LATE
    while True:
        for file in work.iterdir():
            file.unlink(missing_ok=True)
        try:
            return work.rmdir()
        except OSError:
            # Processes of a killed call may finish their last attempts after it.
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)


@dataclass
class Plan:
    """Which seeds are tried next and which are taken: of each task, the first ``episodes`` that are kept."""

    first: int  # seed of the first attempt
    episodes: int  # demonstrations of each task
    tasks: int = 1  # seeds belong to task ``seed % tasks``
    outcomes: dict[int, str] = field(default_factory=dict)  # seed -> why it was not kept, empty where it was

    @property
    def wanted(self) -> int:
        """Demonstrations of all tasks."""
        return self.episodes * self.tasks

    @property
    def kept(self) -> int:
        """Demonstrations so far, at most as many as wanted of each task."""
        return sum(min(self.episodes, len(self._kept(start))) for start in self._starts())

    @property
    def failed(self) -> int:
        """Attempts that were not kept."""
        return sum(bool(reason) for reason in self.outcomes.values())

    def chosen(self) -> list[int] | None:
        """The seeds of the demonstrations in ascending order; None until every seed before the last was tried.

        :data:`HOPELESS` failures of a task in a row are a SimulatorError.
        """
        seeds: list[int] = []
        whole = True
        for start in self._starts():
            found, bad, seed = 0, 0, start
            while found < self.episodes and (reason := self.outcomes.get(seed)) is not None:
                if not reason:
                    seeds.append(seed)
                    found += 1
                bad = bad + 1 if reason else 0
                if bad == HOPELESS:
                    often, count = Counter(filter(None, self.outcomes.values())).most_common(1)[0]
                    raise SimulatorError(
                        f"{HOPELESS} attempts in a row up to seed {seed} gave no demonstration; the most frequent "
                        f"reason, {count} times: {often}. Something is wrong with the simulator or its expert."
                    )
                seed += self.tasks
            whole &= found == self.episodes
        return sorted(seeds) if whole else None

    def counts(self, chosen: Collection[int]) -> tuple[int, dict[str, int]]:
        """Attempts up to the last chosen one of each task, and reason -> how many of them were not kept."""
        tried = []
        for start in self._starts():
            last = max(seed for seed in chosen if seed % self.tasks == start % self.tasks)
            tried += [self.outcomes[seed] for seed in range(start, last + 1, self.tasks)]
        return len(tried), dict(sorted(Counter(filter(None, tried)).items()))

    def next_seed(self, pending: Collection[int]) -> int | None:
        """What to try next while ``pending`` are being tried; None where nothing could help.

        Running out of seeds is a ConfigError.
        """
        options = []
        for start in self._starts():
            seed = start
            while seed in self.outcomes or seed in pending:
                seed += self.tasks
            kept = self._kept(start)
            if len(kept) >= self.episodes and seed > kept[self.episodes - 1]:
                continue
            if seed >= END_SEED:
                raise ConfigError(
                    f"start seeds have reached {END_SEED}, where those of evaluation episodes begin, with {self.kept} "
                    f"of {self.wanted} demonstrations. Begin at a smaller seed than {self.first}."
                )
            waiting = sum((other - start) % self.tasks == 0 for other in pending)
            options.append((len(kept) + waiting >= self.episodes, seed))  # spare ones last
        return min(options)[1] if options else None

    def _starts(self) -> range:
        return range(self.first, self.first + self.tasks)

    def _kept(self, start: int) -> list[int]:
        found = (seed for seed, reason in self.outcomes.items() if not reason and seed >= start)
        return sorted(seed for seed in found if (seed - start) % self.tasks == 0)


def run_attempts(
    recorder: Recorder,
    plan: Plan,
    work: Path,
    *,
    workers: int,
    seconds: float,
    report: Callable[[], None] | None = None,
) -> list[int]:
    """Try seeds until the plan, whose ``outcomes`` are filled, has what it wants; returns the chosen ones.

    The process that makes an attempt stores it in ``work``. One that dies, or hangs for ``seconds``, is replaced, and
    its seed tried again. The recorder is sent there unused.

    Raises:
        SimulatorError: a script failed other than by giving up or by its actions, or one seed cost :data:`TRIES`
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
        except ActionError as problem:  # the expert's fault; other failures may not recur
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
