"""Evaluation rows to plotly figures: pure functions, no files, no theme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from classact.evaluation.rows import REFERENCES, ActionError, Consistency, EvaluationRow
from classact.pages.novelty import EpisodeNovelty
from classact.pages.sources import Evaluation
from classact.pages.style import BLUE, GREY, ORANGE, figure_base, label, percent, styles, thin, wrapped
from classact.pages.table import by_criterion, policy_name, row_label, series

DASHES = ("solid", "dash", "dot", "dashdot")


def actions_figure(errors: Sequence[ActionError]) -> go.Figure:
    """L2 errors of held-out actions as dots with their 95% interval as whiskers, the smallest on top."""
    ordered = sorted(errors, key=lambda one: one.l2.value)
    positions = [float(y) for y in range(1, len(ordered) + 1)]
    names = [label(policy_name(one.policy)) for one in ordered]
    figure = figure_base(
        height=round(26 * len(ordered) + 80),
        xaxis={"title": "distance from what was done (L2, actions scaled to [-1, 1])", "rangemode": "tozero"},
        yaxis=_names_axis(positions, names, [len(ordered) + 0.6, 0.4]),
        margin={"l": 8, "r": 16, "t": 6, "b": 44},
    )
    for y, name, one in zip(positions, names, ordered, strict=True):
        colour, l2 = GREY if one.policy in REFERENCES else BLUE, one.l2
        if l2.low is not None:
            line = {"color": colour, "width": 2.5}
            figure.add_scatter(x=[l2.low, l2.high], y=[y] * 2, mode="lines", line=line, hoverinfo="skip")
        figure.add_scatter(
            x=[l2.value],
            y=[y],
            mode="markers",
            marker={"color": colour, "size": 11},
            hovertext=f"{name}<br><b>{l2.value:.3g}</b>",
            hoverinfo="text",
        )
    return figure


def consistency_figure(found: Consistency, known: Sequence[int]) -> go.Figure:
    """Errors of demonstrations by rank, those that stand out in another colour; ``known`` are their numbers."""
    ranked, out = found.ranked, {one.episode for one in found.outliers}
    figure = figure_base(
        height=300,
        xaxis={"title": "demonstrations, the largest first", "zeroline": False, "tickformat": ",d", "nticks": 12},
        yaxis={"title": "distance from the others (L2)", "rangemode": "tozero"},
    )
    figure.add_scatter(
        x=list(range(1, len(ranked) + 1)),
        y=[round(one.error, 5) for one in ranked],
        mode="markers",
        marker={
            "color": [ORANGE if one.episode in out else BLUE for one in ranked],
            "size": 9 if len(ranked) <= 100 else 6,
        },
        customdata=[[known[one.episode], one.steps] for one in ranked],
        hovertemplate="demonstration %{customdata[0]}, %{customdata[1]} steps: <b>%{y:.3g}</b><extra></extra>",
    )
    if found.level is not None:
        figure.add_hline(y=found.level, line={"color": GREY, "width": 1, "dash": "dot"})
    return figure


def success_figure(rows: Sequence[EvaluationRow]) -> go.Figure:
    """Success rates as dots with their 95% interval as whiskers, grouped by criterion; maxima as hollow marks."""
    look = styles([series(row) for row in rows])
    positions: list[float] = []
    labels: list[str] = []
    headings: list[tuple[float, str]] = []
    y = 0.0
    lines: list[tuple[float, str, EvaluationRow]] = []
    for criterion, results in by_criterion(rows):
        headings.append((y, criterion))
        for result in results:
            y += 1
            positions.append(y)
            labels.append(label(row_label(result.row, rows)))
            lines += [(y, labels[-1], row) for row in (result.maximum, result.last) if row]
        y += 1.3
    figure = figure_base(
        height=round(24 * y + 60),
        xaxis={"range": [-0.01, 1.01], "tickformat": ".0%", "title": "success rate", "zeroline": False},
        yaxis=_names_axis(positions, labels, [y - 0.5, -0.7]),
        margin={"l": 8, "r": 16, "t": 6, "b": 44},
    )
    for position, name, row in lines:
        colour, symbol = look[series(row)]
        if row.maximum_of is None:
            line = {"color": colour, "width": 2.5}
            figure.add_scatter(x=[row.low, row.high], y=[position] * 2, mode="lines", line=line, hoverinfo="skip")
            marker, words = {"color": colour, "symbol": symbol, "size": 11}, ""
        else:
            marker = {"color": colour, "symbol": f"{symbol}-open", "size": 14, "line": {"width": 1.5}}
            words = f"<br>maximum of {row.maximum_of} evaluations, biased upwards"
        figure.add_scatter(
            x=[row.success],
            y=[position],
            mode="markers",
            marker=marker,
            hovertext=f"{name}<br>{label(row.criterion)}{words}<br><b>{percent(row.success)}</b> "
            f"({row.successes} of {row.episodes}), 95% interval {percent(row.low)} to {percent(row.high)}",
            hoverinfo="text",
        )
    for position, criterion in headings:
        figure.add_annotation(
            x=0, y=position, text=f"<b>{label(criterion)}</b>", showarrow=False, xanchor="left", yanchor="middle"
        )
    return figure


def _names_axis(positions: Sequence[float], names: Sequence[str], limits: list[float]) -> dict[str, Any]:
    plain = {"showgrid": False, "zeroline": False, "showline": False, "automargin": True, "fixedrange": True}
    return {"range": limits, "tickvals": list(positions), "ticktext": list(names), "ticklabelstandoff": 8, **plain}


def reached_figure(evaluations: Sequence[Evaluation]) -> go.Figure:
    """Share of episodes that reach at least x: the success rate at every possible threshold."""
    metric = evaluations[0].metric
    look = styles([e.series for e in evaluations])
    figure = figure_base(
        height=330 + 19 * len(evaluations),
        xaxis={"range": [0, 1.005], "title": f"largest {label(metric)} of the episode, at least", "zeroline": False},
        yaxis={"range": [0, 1.02], "tickformat": ".0%", "title": "share of episodes", "zeroline": False},
        showlegend=True,
        legend={"y": 1.02, "yanchor": "bottom", "x": 0},
        margin={"l": 56, "r": 16, "t": 20 + 19 * len(evaluations), "b": 44},
    )
    seen: dict[str, int] = {}
    for evaluation in evaluations:
        # Evaluations of one series (shifts) share its colour and differ by dash.
        count = seen[evaluation.series] = seen.get(evaluation.series, -1) + 1
        values = np.sort(evaluation.maxima[np.isfinite(evaluation.maxima)])
        n = len(values)
        x = np.concatenate([[0.0], values, [max(1.0, float(values[-1]) if n else 1.0)]])
        share = np.concatenate([[1.0], (n - np.arange(n)) / max(n, 1), [0.0]])
        figure.add_scatter(
            x=x.round(4),
            y=share.round(5),
            mode="lines",
            line={"shape": "vh", "color": look[evaluation.series][0], "width": 2, "dash": DASHES[count % len(DASHES)]},
            name=label(evaluation.label),
            hovertemplate="%{y:.1%} reach %{x:.3f}<extra>" + label(evaluation.label) + "</extra>",
        )
    return figure


def strip_figure(evaluations: Sequence[Evaluation]) -> go.Figure:
    """Largest coverage of every single episode as a point, median as a tick."""
    metric = evaluations[0].metric
    look = styles([e.series for e in evaluations])
    texts = [wrapped(label(e.label)) for e in evaluations]
    figure = figure_base(
        height=70 + max(62, 17 * max(text.count("<br>") + 1 for text in texts)) * len(evaluations),
        xaxis={"range": [-0.01, 1.02], "title": f"largest {label(metric)} of the episode", "zeroline": False},
        yaxis=_names_axis(range(len(evaluations)), texts, [len(evaluations) - 0.5, -0.5]),
        margin={"l": 8, "r": 16, "t": 12, "b": 44},
    )
    for i, evaluation in enumerate(evaluations):
        colour, symbol = look[evaluation.series]
        values = evaluation.maxima
        # A fixed golden-ratio offset spreads points evenly, the same in every figure.
        offset = ((np.arange(len(values)) * 0.618034) % 1 - 0.5) * 0.5
        figure.add_scatter(
            x=values.round(4),
            y=(i + offset).round(3),
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 7, "opacity": 0.5},
            hovertemplate=f"%{{x:.3f}}<extra>{label(evaluation.label)}</extra>",
        )
        median = float(np.nanmedian(values))
        hover, line = f"median {median:.3f}<extra></extra>", {"color": colour, "width": 3}
        figure.add_scatter(x=[median, median], y=[i - 0.38, i + 0.38], mode="lines", line=line, hovertemplate=hover)
    return figure


def held_mean(curves: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    """(T,) mean over episodes of traces of unequal length; an episode that has ended keeps its last value."""
    longest = max(len(curve) for curve in curves)
    padded = [np.pad(curve.astype(np.float64), (0, longest - len(curve)), mode="edge") for curve in curves]
    return np.asarray(np.mean(padded, axis=0))


def curves_figure(evaluation: Evaluation, colour: str = BLUE) -> go.Figure:
    """Coverage over steps: every episode as a thin line, the mean as a thick one."""
    curves = evaluation.curves or []
    figure = figure_base(
        height=260,
        xaxis={"title": "step", "rangemode": "tozero", "zeroline": False},
        yaxis={"title": label(evaluation.metric), "range": [0, 1.02], "zeroline": False},
    )
    xs: list[float | None] = []
    ys: list[float | None] = []
    for curve in curves:
        keep = thin(len(curve), 120)
        xs += [*(keep + 1).tolist(), None]
        ys += [*curve[keep].astype(float).round(3).tolist(), None]
    if curves:
        mean = held_mean(curves)
        keep = thin(len(mean), 300)
        line = {"color": colour, "width": 0.8}
        figure.add_scatter(x=xs, y=ys, mode="lines", line=line, opacity=0.3, hoverinfo="skip")
        hover = "step %{x}: mean %{y:.3f}<extra></extra>"
        line = {"color": colour, "width": 3}
        figure.add_scatter(x=keep + 1, y=mean[keep].round(4), mode="lines", line=line, hovertemplate=hover)
    return figure


def novelty_figure(novelty: EpisodeNovelty, success: bool, colour: str, alarm: float | None, longest: int) -> go.Figure:
    """Novelty of every decision: one thin line per episode, first alarms as dots, the alarm level dashed.

    After success lines are lighter and have no dots. ``success`` selects the successful or the failed episodes;
    ``longest`` is the last step of the axis; without an ``alarm`` level there are no dots.
    """
    figure = figure_base(
        height=260,
        xaxis={"title": "step", "zeroline": False, "range": [0, longest * 1.02]},
        yaxis={"title": "novelty", "range": [-0.03, 1.06], "zeroline": False},
        margin={"l": 56, "r": 48, "t": 12, "b": 44},
    )
    before: tuple[list[float | None], list[float | None]] = [], []
    after: tuple[list[float | None], list[float | None]] = [], []
    dots: list[tuple[int, float]] = []
    for i in novelty.episodes(success):
        steps, scores = novelty.steps[i], novelty.scores[i]
        count = int((steps < novelty.until[i]).sum())
        # The lighter line starts where the other one ends.
        rest = len(steps) if count < len(steps) else 0
        for (xs, ys), start, stop in ((before, 0, count), (after, max(count - 1, 0), rest)):
            if stop > start:
                xs += [*steps[start:stop].tolist(), None]
                ys += [*scores[start:stop].round(4).tolist(), None]
        if alarm is not None and (over := np.flatnonzero(scores[:count] > alarm)).size:
            dots.append((int(steps[over[0]]), float(scores[over[0]])))
    for (xs, ys), opacity in ((before, 0.5), (after, 0.15)):
        if xs:
            line = {"color": colour, "width": 1.1}
            figure.add_scatter(x=xs, y=ys, mode="lines", line=line, opacity=opacity, hoverinfo="skip")
    if dots:
        figure.add_scatter(
            x=[step for step, _ in dots],
            y=[score for _, score in dots],
            mode="markers",
            marker={"color": colour, "size": 7},
            hovertemplate="first alarm at step %{x}: novelty %{y:.2f}<extra></extra>",
        )
    if alarm is not None:
        figure.add_hline(y=alarm, line={"color": GREY, "width": 1.5, "dash": "dash"})
        figure.add_annotation(
            x=1, xref="paper", xanchor="left", y=alarm, yanchor="middle", text=f"alarm<br>{alarm:.2f}", showarrow=False
        )
    return figure
