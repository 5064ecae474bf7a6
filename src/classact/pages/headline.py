"""The number that a run is about, in words."""

from __future__ import annotations

from collections.abc import Sequence

from classact.evaluation.rows import REFERENCES, ActionError, EvaluationRow
from classact.pages.style import percent
from classact.pages.table import BASELINES, plain, policy_name, row_augmentation, training_name, varies


def main_row(rows: Sequence[EvaluationRow], own: str) -> EvaluationRow | None:
    """The row of the headline: the best policy with the learned encoder, without shift, by the criterion listed first.

    Of equally good ones the first. Where there is none, the first row that is neither a baseline nor the true state,
    else the first row. Never a maximum over training, which is biased upwards. ``own`` is the name of the run's encoder
    in rows, evaluated with its own settings.
    """
    rows = [row for row in rows if row.maximum_of is None]
    learned = [row for row in rows if row.encoder == own]
    learned = [row for row in learned if not plain(row.shift)] or learned
    if learned:
        return max((row for row in learned if _where(row, learned[0])), key=lambda row: row.success)
    others = [row for row in rows if row.encoder not in BASELINES]
    return next(iter(others or rows), None)


def best_actions(errors: Sequence[ActionError]) -> ActionError | None:
    """The learned policy whose held-out actions are nearest to what was done; None where none were compared."""
    learned = [one for one in errors if one.policy not in REFERENCES]
    return min(learned, key=lambda one: one.l2.value, default=None)


def references(errors: Sequence[ActionError]) -> list[str]:
    """What ways reach that learn nothing, one phrase each."""
    found = {one.policy: one for one in errors}
    return [f"{words} has {found[name].l2.value:.3g}" for name, words in REFERENCES.items() if name in found]


def _where(row: EvaluationRow, other: EvaluationRow) -> bool:
    same = ("simulator", "shift", "criterion", "episodes")
    return all(getattr(row, key) == getattr(other, key) for key in same)


def comparisons(row: EvaluationRow | None, rows: Sequence[EvaluationRow]) -> list[str]:
    """Retrieval with an untrained encoder and by the true state under the main row's conditions, one phrase each."""
    if row is None:
        return []
    beside = [r for r in rows if r is not row and r.maximum_of is None and r.policy == "retrieval" and _where(r, row)]
    names = (("untrained", "an untrained encoder"), ("state", "the true state as latent"))
    found = [(name, next((r for r in beside if r.encoder == encoder), None)) for encoder, name in names]
    return [
        f"retrieval with {name} reaches {percent(r.success)} ({r.successes} of {r.episodes})" for name, r in found if r
    ]


def heads(row: EvaluationRow | None, rows: Sequence[EvaluationRow]) -> list[str]:
    """What else was learned under the main row's conditions, at the last checkpoints, one phrase each."""
    if row is None:
        return []
    found = [r for r in rows if _where(r, row) and r.maximum_of is None]
    # Of retrieval only that with the main row's encoder: others are baselines, or the same with other settings.
    found = [r for r in found if r.policy != "retrieval" or r.encoder == row.encoder]
    return [_reaches(other, found) for other in found if other is not row]


def _reaches(head: EvaluationRow, heads: Sequence[EvaluationRow]) -> str:
    augmentation = row_augmentation(head) if varies(heads, "augmentation") else ""
    training = training_name(head) or plain(head.training)
    how = "" if head.policy == "retrieval" else ", ".join(filter(None, (training, augmentation)))
    reached = f"{percent(head.success)} ({head.successes} of {head.episodes})"
    return f"{policy_name(head.policy)}{f', {how},' if how else ''} {reached}"
