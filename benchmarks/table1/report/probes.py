"""Do probes predict success? Metrics of representations, beside the success of their cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from classact.errors import ConfigError
from classact.pages.plots import Plot, make_plot
from classact.pages.style import percent
from classact.utils.statistics import RESAMPLES, Estimate, holm
from table1.report import figures
from table1.report.pairs import ALPHA, p_text
from table1.report.results import Metric, Results
from table1.report.sheets import Sheet
from table1.report.table import (
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

FEWEST = 8
"""Cells that a correlation needs: fewer say nothing."""


@dataclass(frozen=True)
class _Point:
    name: str
    who: Who
    column: Column
    probe: Mapping[str, Metric]
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
        probe: dict[str, Metric] = {}
        for metric in dict.fromkeys(metric for cell in done for metric in cell.probe):
            rows = [cell.probe[metric] for cell in done if metric in cell.probe]
            probe[metric] = rows[0] if len(rows) == 1 else Metric(sum(row.value for row in rows) / len(rows))
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
        words = "; ".join(f"{name}: {probe.value:.3g}, success {percent(s.value)}" for name, _, _, probe, s in some)
        figure = figures.probe_figure(some, metric, look)
        plots.append(make_plot(f"probe-{i}", figure, f"{metric} against success. {words}.", title=metric))
    return plots


def correlations(results: Results) -> Sheet:
    """Spearman's correlation of each metric with success within each head and condition, the strongest first.

    Not over all cells: the condition moves metric and success alike, so that any metric would seem to predict.
    """
    points = _points(results)
    groups, few = [], []
    for head in dict.fromkeys(p.who.head for p in points):
        for column in column_order(p.column for p in points if p.who.head == head):
            some = [p for p in points if p.who.head == head and p.column == column]
            name = f"{head_name(head)}, {column_name(results.task, column)}"
            if rows := _condition(some):
                groups.append((name, rows))
            else:
                few.append(f"{name} ({len(some)})")
    headings = ["", "does it predict success?", "Spearman's ρ", "p", "p (Holm)", "cells"]
    notes = []
    if groups:
        notes.append(
            "Spearman's rank correlation within one condition; p of a permutation test of the cells, corrected by "
            "Holm's procedure for the number of metrics in the condition. Cells with the same method and other "
            "settings are alike, and count as if they were not."
        )
    if few:
        notes.append(f"Fewer than {FEWEST} cells, which say nothing, are not correlated: {'; '.join(few)}.")
    return Sheet("Rank correlation with success", headings, groups, names=2, notes=notes)


def _condition(points: Sequence[_Point]) -> list[list[str]]:
    """Metric, verdict, correlation, p, Holm's p and cells, of each metric that enough cells of one condition have."""
    constant, tested = [], []
    for metric in _metrics(points):
        known = [(p.probe[metric].value, p.success.value) for p in points if metric in p.probe]
        if len(known) < FEWEST:
            continue
        xs, ys = zip(*known, strict=True)
        found = spearman(xs, ys, np.random.default_rng(SEED))
        if found is None:
            constant.append([metric, "does not vary", "–", "–", "–", str(len(known))])
        else:
            tested.append((metric, *found, len(known)))
    tested.sort(key=lambda row: -abs(row[1]))
    rows = []
    for (metric, value, p, cells), adjusted in zip(tested, holm([p for _, _, p, _ in tested]), strict=True):
        words = "not shown"
        if adjusted < ALPHA:
            words = "yes, higher is better" if value > 0 else "yes, lower is better"
        rows.append([metric, words, f"{value:+.2f}", p_text(p), p_text(adjusted), str(cells)])
    return rows + constant


def spearman(
    x: Sequence[float], y: Sequence[float], rng: np.random.Generator, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """Spearman's rank correlation, and p of a two-sided permutation test that x and y are independent.

    Pairs are put together anew at random; p is the share of correlations that are as far from 0, the found one among
    them. (A bootstrap interval would have no width where the ranks agree completely.)

    Args:
        x, y: (N,) values.
        rng: draws permutations.
        resamples: how many.

    Returns:
        Correlation and p; None where x or y is constant, or there are fewer than three pairs.

    Raises:
        ConfigError: different numbers of values, or values that are not finite.
    """
    from scipy.stats import rankdata

    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if a.shape != b.shape or a.ndim != 1 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ConfigError(f"expected as many finite values x as y, got shapes {a.shape} and {b.shape}.")
    if len(a) < 3:
        return None
    u, v = (rankdata(values) - (len(values) + 1) / 2 for values in (a, b))
    scale = float(np.sqrt((u @ u) * (v @ v)))
    if scale == 0:
        return None
    value = float(u @ v)
    others = rng.permuted(np.tile(v, (resamples, 1)), axis=1) @ u
    as_far = int((np.abs(others) >= abs(value) - 1e-9 * scale).sum())
    return float(np.clip(value / scale, -1.0, 1.0)), (1 + as_far) / (1 + resamples)
