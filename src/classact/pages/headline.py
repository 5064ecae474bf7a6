"""The number that a run is about, in words."""

from __future__ import annotations

from collections.abc import Sequence

from classact.pages.style import percent
from classact.pages.table import (
    BASELINES,
    Row,
    maximum_of,
    plain,
    policy_name,
    row_augmentation,
    training_name,
    varies,
)


def main_row(rows: Sequence[Row]) -> Row | None:
    """The row the headline is about: retrieval with the learned encoder, without shift, by the criterion listed first.

    Where there is none, another policy with that encoder, else the first row that is neither a baseline nor the true
    state, else the first row. Never a maximum over training: that is biased upwards.
    """
    rows = [row for row in rows if maximum_of(row) is None]
    learned = [row for row in rows if row.get("own", row["encoder"] == "class")]
    retrieval = [row for row in learned if plain(row.get("policy")) in ("", "retrieval")]
    choices = [[r for r in rs if not plain(r.get("shift"))] or rs for rs in (retrieval, learned)]
    others = [row for row in rows if row["encoder"] not in BASELINES]
    return next((candidates[0] for candidates in (*choices, others, rows) if candidates), None)


def beside(row: Row, rows: Sequence[Row], encoder: str) -> Row | None:
    """The row that differs from ``row`` by its encoder alone."""
    keys = ("policy", "simulator", "shift", "criterion")
    last = [other for other in rows if maximum_of(other) is None]
    same = [other for other in last if all(plain(other.get(k)) == plain(row.get(k)) for k in keys)]
    return next((other for other in same if other["encoder"] == encoder and other is not row), None)


def comparisons(rows: Sequence[Row]) -> list[str]:
    """The main row's baseline and true-state reference, one phrase each."""
    row = main_row(rows)
    result = []
    for encoder, name in (("untrained", "an untrained encoder"), ("state", "the true state as latent")):
        other = beside(row, rows, encoder) if row else None
        if other:
            result.append(f"{name} reaches {percent(other['success'])} ({other['successes']} of {other['episodes']})")
    return result


def heads(rows: Sequence[Row]) -> list[str]:
    """What trained heads reach where the main row was measured, at their last checkpoints, one phrase each."""
    row = main_row(rows)
    if row is None:
        return []
    keys = ("simulator", "shift", "criterion")
    same = [other for other in rows if all(plain(other.get(k)) == plain(row.get(k)) for k in keys)]
    found = [r for r in same if plain(r.get("policy")) not in ("", "retrieval") and maximum_of(r) is None]
    return [_reaches(head, found) for head in found if head is not row]


def _reaches(head: Row, heads: Sequence[Row]) -> str:
    augmentation = row_augmentation(head) if varies(heads, "augmentation") else ""
    training = training_name(head) or plain(head.get("training"))
    how = ", ".join(filter(None, (training, augmentation)))
    reached = f"{percent(head['success'])} ({head['successes']} of {head['episodes']})"
    return f"{policy_name(plain(head['policy']))}{f', {how},' if how else ''} {reached}"
