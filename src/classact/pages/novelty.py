"""How new each situation was to the policy, and whether alarms told failures from successes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from classact.errors import DataError
from classact.pages.checks import Arrays, mapping, need, shapes
from classact.pages.table import Row
from classact.policies.folder import METADATA
from classact.policies.novelty import Novelty, episodes_needed
from classact.run.folder import Run


@dataclass(frozen=True)
class EpisodeNovelty:
    """Novelty in the episodes of one evaluation.

    Attributes:
        steps: per episode the (n,) control steps of its decisions.
        scores: per episode the (n,) scores in [0, 1].
        success: (E,) whether the episode succeeded, by ``criterion``.
        until: (E,) decisions before this control step count: that of success, after which nothing was demonstrated, or
            one beyond the last decision.
        alarmed: (E,) whether it raised an alarm that counts; None where there is no alarm level.
        criterion: name.
    """

    steps: list[NDArray[np.int64]]
    scores: list[NDArray[np.float64]]
    success: NDArray[np.bool_]
    until: NDArray[np.int64]
    alarmed: NDArray[np.bool_] | None
    criterion: str

    def episodes(self, success: bool) -> NDArray[np.int64]:
        """Indices of the successful or failed episodes."""
        return np.flatnonzero(self.success == success)

    def alarms(self, success: bool) -> int | None:
        """How many of these raised an alarm, before success where they succeeded."""
        return None if self.alarmed is None else int(self.alarmed[self.success == success].sum())


def read_calibration(run: Run) -> Novelty | None:
    """The calibrated score of a run's retrieval policy; None where either is missing."""
    path = run.policy / METADATA
    metadata = mapping(path).get("novelty") if path.exists() else None
    return None if metadata is None else Novelty.from_json(metadata, f"{path}: novelty")


def alarm_level(calibration: Novelty | None) -> float | None:
    """The score above which an alarm is raised, None where none can."""
    return None if calibration is None or math.isinf(calibration.alarm) else calibration.alarm


def read_novelty(
    episodes_path: Path, rollouts_path: Path, episodes: Sequence[Row], arrays: Arrays, criterion: str | None
) -> EpisodeNovelty | None:
    """Novelty of one evaluation's decisions, from its two files; None where its policy gave none.

    Success is by ``criterion``, where episodes have it; else by their first one. Arrays and episodes that do not match,
    and scores outside [0, 1], are DataErrors.
    """
    if "novelty" not in arrays:
        return None
    count = len(arrays["novelty"])
    shapes(rollouts_path, arrays, {"novelty": (count,), "decisions": (count,), "decision_ends": (len(episodes),)})
    ends, scores = arrays["decision_ends"].astype(np.int64), arrays["novelty"].astype(np.float64)
    if (np.diff(ends, prepend=0) < 0).any() or int(ends[-1]) != count:
        raise DataError(
            f"{rollouts_path}: decision_ends must not fall and must end at the number of novelty scores, {count}; it "
            f"ends at {int(ends[-1])}. Evaluate again."
        )
    if count and not (scores.min() >= 0 and scores.max() <= 1):
        raise DataError(
            f"{rollouts_path}: expected novelty in [0, 1], got {scores.min():.4g} to {scores.max():.4g}. "
            f"Evaluate again."
        )
    for number, row in enumerate(episodes, 1):
        need(episodes_path, row, ("success", "first_success"), f"row {number}")
        if not isinstance(row["success"], dict) or not row["success"]:
            raise DataError(
                f"{episodes_path}, row {number}: expected success by criterion, got {row['success']!r}. Evaluate again."
            )
    name = str(criterion if criterion in episodes[0]["success"] else next(iter(episodes[0]["success"])))
    parts, steps = np.split(scores, ends[:-1]), np.split(arrays["decisions"].astype(np.int64), ends[:-1])
    reached = [row["first_success"][name] for row in episodes]
    until = [own.max(initial=-1) + 1 if step is None else step for step, own in zip(reached, steps, strict=True)]
    rang = [row["alarm_before_success"][name] for row in episodes if "alarm_before_success" in row]
    return EpisodeNovelty(
        steps=steps,
        scores=parts,
        success=np.array([row["success"][name] for row in episodes], np.bool_),
        until=np.array(until, np.int64),
        alarmed=np.array(rang, np.bool_) if rang else None,
        criterion=name,
    )


def meaning(calibration: Novelty | None) -> str:
    """What the score is, and what an alarm promises."""
    of = "" if calibration is None else f"the {calibration.episodes} "
    held = "held-out " if calibration is None or calibration.exact else ""
    words = (
        f"The novelty of a decision is the share of {of}{held}demonstrations that, even in their strangest timestep, "
        f"stayed closer to the policy's memory than this observation: 0 is familiar, 1 is farther away than all of "
        f"them ever were."
    )
    if calibration is None:
        return words
    alpha, alarm = f"{100 * calibration.config.alpha:.3g}%", alarm_level(calibration)
    if alarm is None:
        needed, there = episodes_needed(calibration.config.alpha), calibration.episodes
        words += (
            f" There is no alarm: for a probability of a false one of at most {alpha} it must be calibrated on at "
            f"least {needed} demonstrations, and there were {there}, {needed - there} too few."
        )
    elif calibration.exact:
        words += (
            f" Above {alarm:.2f} the policy raises an alarm; by conformal calibration a new episode that is like the "
            f"demonstrations raises one with a probability of at most {alpha}."
        )
    else:
        words += f" Above {alarm:.2f} the policy raises an alarm."
    if not calibration.exact:
        words += " These demonstrations are in its memory too, so that the score comes without a conformal guarantee."
    return words
