"""Success by how far a training is (paper, figure 10), and by how many demonstrations there are (figure 11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from classact.utils.statistics import Estimate
from table1.report.results import Cell, Results
from table1.report.table import (
    Column,
    Who,
    by_column,
    column_of,
    column_order,
    grid,
    mean_success,
    measured,
    ordered,
    seeds_text,
    shared_starts,
    who_of,
)


@dataclass(frozen=True)
class Curve:
    """Success during training: rows of images, seconds, successes, episodes; several seeds added up."""

    who: Who
    rows: Sequence[tuple[float, float, int, int]]
    words: str


@dataclass(frozen=True)
class Scaling:
    """Success of a row of the table over the number of demonstrations.

    Attributes:
        who: row of the table.
        points: demonstrations, success, starts, number of seeds; the fewest demonstrations first.
    """

    who: Who
    points: Sequence[tuple[int, Estimate, int, int]]


def done_cells(results: Results) -> list[Cell]:
    """Cells that are done, in the table's order."""
    cells = grid(results)
    return [cell for key in ordered(cells) for cell in cells[key] if cell.done]


def curves_by_column(results: Results) -> list[tuple[Column, list[Curve]]]:
    """Curves of each condition that has some."""
    found = by_column([cell for cell in done_cells(results) if cell.curve])
    return [(column, curves(cells)) for column, cells in found]


def curves(cells: Sequence[Cell]) -> list[Curve]:
    """One curve per row of the table where its trainings were tried at the same points, else one per training."""
    found: dict[Who, list[Cell]] = {}
    for cell in cells:
        found.setdefault(who_of(cell), []).append(cell)
    drawn = []
    for who, seeds in found.items():
        if len({tuple(row[0] for row in cell.curve) for cell in seeds}) > 1:
            drawn += [Curve(who, cell.curve, f"seed {cell.seed}") for cell in seeds]
            continue
        points = zip(*(cell.curve for cell in seeds), strict=True)
        rows = [
            (rows[0][0], sum(r[1] for r in rows) / len(rows), sum(r[2] for r in rows), sum(r[3] for r in rows))
            for rows in points
        ]
        drawn.append(Curve(who, rows, seeds_text(len(seeds))))
    return drawn


def scaling_by_column(results: Results) -> list[tuple[Column, list[Scaling]]]:
    """By condition: rows of the table that learned from several numbers of demonstrations."""
    found: dict[tuple[Who, Column], dict[int, list[Cell]]] = {}
    for cell in measured(results.cells, results.criterion):
        if cell.demonstrations:
            found.setdefault((who_of(cell), column_of(cell)), {}).setdefault(cell.demonstrations, []).append(cell)
    found = {key: counts for key, counts in found.items() if len(counts) > 1}
    series = []
    for column in column_order(column for _, column in found):
        rows = []
        for who, _ in ordered(key for key in found if key[1] == column):
            points = []
            for count, cells in sorted(found[who, column].items()):
                if starts := shared_starts(cells):
                    points.append((count, mean_success(cells, results.criterion, starts), len(starts), len(cells)))
            rows.append(Scaling(who, points))
        series.append((column, rows))
    return series
