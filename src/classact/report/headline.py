"""The number that a run is about, in words."""

from __future__ import annotations

from collections.abc import Sequence

from classact.report.sources import Row, plain
from classact.report.style import percent


def main_row(rows: Sequence[Row]) -> Row | None:
    """The row the headline is about: the learned encoder, without shift, by the criterion listed first.

    Where there is none, the first row that is neither a baseline nor the true state; else the first row.
    """
    learned = [row for row in rows if row["encoder"] == "class"]
    unshifted = [row for row in learned if not plain(row.get("shift"))]
    others = [row for row in rows if row["encoder"] not in ("untrained", "state")]
    return next((candidates[0] for candidates in (unshifted, learned, others, list(rows)) if candidates), None)


def beside(row: Row, rows: Sequence[Row], encoder: str) -> Row | None:
    """The row that differs from ``row`` by its encoder alone."""
    keys = ("policy", "simulator", "shift", "criterion")
    same = [other for other in rows if all(plain(other.get(k)) == plain(row.get(k)) for k in keys)]
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
