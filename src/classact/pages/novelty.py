"""How new each situation was to the policy, and whether alarms told failures from successes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from classact.errors import DataError
from classact.pages.checks import Arrays, inner, mapping, need, shapes
from classact.pages.table import Row
from classact.run.folder import Run


@dataclass(frozen=True)
class Calibration:
    """What the policy's card says about its novelty score; None where it does not."""

    alarm: float | None = None
    alpha: float | None = None
    episodes: int | None = None
    heldout: bool | None = None


@dataclass(frozen=True)
class Novelty:
    """Novelty in the episodes of one evaluation.

    Attributes:
        steps: per episode the (n,) control steps of its decisions.
        scores: per episode the (n,) scores in [0, 1].
        success: (E,) whether the episode succeeded, by ``criterion``.
        until: (E,) decisions before this control step count: that of success, or one beyond the last decision. What
            comes after success was never demonstrated.
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


def read_calibration(run: Run) -> Calibration:
    """``novelty`` of the retrieval policy's card; all None where there is none.

    Raises:
        DataError: the card is damaged, or its alarm level is no number in [0, 1].
    """
    path = run.policy / "policy.json"
    card = inner(path, mapping(path), "novelty") if path.exists() else {}
    for key in ("alarm", "alpha"):
        value = card.get(key)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 <= value <= 1):
            raise DataError(
                f"{path}, novelty, {key}: expected a number in [0, 1], got {value!r}. Build the policy again."
            )
    count, heldout = card.get("episodes"), card.get("heldout")
    return Calibration(
        card.get("alarm"),
        card.get("alpha"),
        count if isinstance(count, int) else None,
        heldout if isinstance(heldout, bool) else None,
    )


def read_novelty(
    episodes_path: Path,
    rollouts_path: Path,
    episodes: Sequence[Row],
    arrays: Arrays,
    criterion: str | None,
    alarm: float | None,
) -> Novelty | None:
    """Novelty of one evaluation's decisions, None where its policy gave none.

    Args:
        episodes_path, rollouts_path: files, for messages.
        episodes: rows of the first.
        arrays: of the second.
        criterion: what success is judged by, where episodes know it; else by their first one.
        alarm: level above which a decision counts as an alarm, where episodes do not say themselves.

    Raises:
        DataError: arrays and episodes do not fit each other, or scores lie outside [0, 1].
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
        need(episodes_path, row, ("success",), f"row {number}")
        if not isinstance(row["success"], dict) or not row["success"]:
            raise DataError(
                f"{episodes_path}, row {number}: expected success by criterion, got {row['success']!r}. Evaluate again."
            )
    name = str(criterion if criterion in episodes[0]["success"] else next(iter(episodes[0]["success"])))
    parts, steps = np.split(scores, ends[:-1]), np.split(arrays["decisions"].astype(np.int64), ends[:-1])
    reached = [inner(episodes_path, row, "first_success").get(name) for row in episodes]
    until = np.array(
        [
            int(step) if step is not None else int(own.max(initial=-1)) + 1
            for step, own in zip(reached, steps, strict=True)
        ],
        np.int64,
    )
    alarmed: NDArray[np.bool_] | None = None
    if any("first_alarm" in row for row in episodes):
        rang = [row.get("first_alarm") for row in episodes]
        alarmed = np.array([step is not None and step < end for step, end in zip(rang, until, strict=True)])
    elif alarm is not None:
        drawn = zip(parts, steps, until, strict=True)
        alarmed = np.array([bool((part[own < end] > alarm).any()) for part, own, end in drawn])
    return Novelty(
        steps=steps,
        scores=parts,
        success=np.array([bool(row["success"].get(name)) for row in episodes]),
        until=until,
        alarmed=alarmed,
        criterion=name,
    )


def meaning(calibration: Calibration) -> str:
    """What the score is, and what an alarm promises."""
    count = f"the {calibration.episodes} " if calibration.episodes else ""
    held = "" if calibration.heldout is False else "held-out "
    words = (
        f"The novelty of a decision is the share of {count}{held}demonstrations that, even in their strangest moment, "
        f"stayed closer to the policy's memory than this observation: 0 is familiar, 1 is farther away than all of "
        f"them ever were."
    )
    if calibration.alarm is not None:
        words += f" Above {calibration.alarm:.2f} the policy raises an alarm"
        if calibration.alpha is not None and calibration.heldout is not False:
            words += (
                f"; by conformal calibration a new episode that is like the demonstrations raises one with a "
                f"probability of at most {100 * calibration.alpha:.3g}%"
            )
        words += "."
    elif calibration.episodes and calibration.alpha is not None:
        from classact.policies.novelty import episodes_needed

        needed, there = episodes_needed(calibration.alpha), calibration.episodes
        words += (
            f" There is no alarm: for a probability of a false one of at most {100 * calibration.alpha:.3g}% it must "
            f"be calibrated on at least {needed} demonstrations, and there were {there}"
            f"{f', {needed - there} too few' if needed > there else ''}."
        )
    if calibration.heldout is False:
        words += " These demonstrations are in its memory too, so that the score comes without a conformal guarantee."
    return words
