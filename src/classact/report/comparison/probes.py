"""Do probes predict success? Metrics of representations, beside the success of their cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from classact.report.comparison import figures
from classact.report.comparison.results import Results
from classact.report.comparison.sheets import Sheet
from classact.report.comparison.table import (
    SEED,
    Column,
    Who,
    column_name,
    column_order,
    grid,
    head_name,
    mean_success,
    measured,
    ordered,
    shared_starts,
    who_name,
)
from classact.report.plots import Plot, make_plot
from classact.report.style import percent
from classact.statistics import Estimate, spearman

FEWEST = 5
"""Cells that a correlation needs: fewer say nothing."""


@dataclass(frozen=True)
class _Point:
    name: str
    who: Who
    column: Column
    probe: Mapping[str, Mapping[str, float | None]]
    success: Estimate


def _points(results: Results) -> list[_Point]:
    """Cells of the table that have probes: means over seeds, with the metric's own interval where there is one seed."""
    points = []
    cells = grid(results)
    for who, column in ordered(cells):
        done = [cell for cell in measured(cells[who, column], results.criterion) if cell.probe]
        starts = shared_starts(done) if done else []
        if not starts:
            continue
        probe: dict[str, dict[str, float | None]] = {}
        for metric in dict.fromkeys(metric for cell in done for metric in cell.probe):
            rows = [cell.probe[metric] for cell in done if metric in cell.probe]
            values = [row["value"] for row in rows if row["value"] is not None]
            probe[metric] = dict(rows[0]) if len(rows) == 1 else {"value": sum(values) / len(values)}
        name = f"{who_name(who)}, {column_name(results.task, column)}"
        points.append(_Point(name, who, column, probe, mean_success(done, results.criterion, starts)))
    return points


def _metrics(points: Sequence[_Point]) -> list[str]:
    return list(dict.fromkeys(metric for point in points for metric in point.probe))


def probe_plots(results: Results) -> list[Plot]:
    """Each metric against success."""
    points, look = _points(results), figures.looks(results)
    plots = []
    for i, metric in enumerate(_metrics(points)):
        some = [
            (p.name, p.who, p.column.shift != "fixed", p.probe[metric], p.success) for p in points if metric in p.probe
        ]
        words = "; ".join(f"{name}: {probe['value']:.3g}, success {percent(s.value)}" for name, _, _, probe, s in some)
        figure = figures.probe_figure(some, metric, look)
        plots.append(make_plot(f"probe-{i}", figure, f"{metric} against success. {words}.", title=metric))
    return plots


def correlations(results: Results) -> Sheet:
    """Spearman's correlation of each metric with success, over all cells and within each head and condition."""
    points = _points(results)
    kinds = [("all cells", points)]
    columns = column_order(p.column for p in points)
    for head in dict.fromkeys(p.who.head for p in points):
        for column in columns:
            name = f"{head_name(head)}, {column_name(results.task, column)}"
            kinds.append((name, [p for p in points if p.who.head == head and p.column == column]))
    groups = []
    for metric in _metrics(points):
        rows = []
        for name, some in kinds:
            pairs = [(p.probe[metric]["value"], p.success.value) for p in some if metric in p.probe]
            known = [(float(x), y) for x, y in pairs if x is not None]
            if name == kinds[0][0] or FEWEST <= len(known) < len(points):
                rows.append([name, *_correlation(known), str(len(known))])
        groups.append((metric, rows))
    note = (
        f"Spearman's rank correlation with a 95% bootstrap interval over cells; fewer than {FEWEST} cells are not "
        f"correlated. Over all cells, the condition moves metric and success alike: rows within one condition say "
        f"more. Cells of one method are alike, so intervals are rather too narrow, and nothing is corrected for the "
        f"number of metrics, {len(groups)}."
    )
    headings = ["", "does it predict success?", "Spearman's ρ", "cells"]
    return Sheet("Rank correlation with success", headings, groups, names=2, notes=[note] if groups else [])


def _correlation(pairs: Sequence[tuple[float, float]]) -> tuple[str, str]:
    """In words, and in numbers."""
    if len(pairs) < FEWEST:
        return "too few cells", "–"
    xs, ys = ([pair[i] for pair in pairs] for i in (0, 1))
    found = spearman(xs, ys, np.random.default_rng(SEED))
    if found is None:
        return "does not vary", "–"
    words = "not shown"
    if found.low > 0 or found.high < 0:
        words = "yes, higher is better" if found.value > 0 else "yes, lower is better"
    return words, f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
