"""Evaluation rows to plotly figures: pure functions, no files, no theme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from classact.report.sources import Evaluation, row_label
from classact.report.style import BLUE, figure_base, label, percent, styles, thin


def success_figure(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Success rates as dots with their 95% interval as whiskers, grouped by criterion.

    Args:
        rows: of summary.json: encoder, criterion, episodes, successes, success, low, high.
    """
    look = styles([str(row["encoder"]) for row in rows])
    positions: list[float] = []
    labels: list[str] = []
    headings: list[tuple[float, str]] = []
    y = 0.0
    ordered: list[Mapping[str, Any]] = []
    for criterion in dict.fromkeys(str(row["criterion"]) for row in rows):
        headings.append((y, criterion))
        for row in (r for r in rows if str(r["criterion"]) == criterion):
            y += 1
            positions.append(y)
            labels.append(label(row_label(row, rows)))
            ordered.append(row)
        y += 1.3
    figure = figure_base(
        height=round(24 * y + 60),
        xaxis={"range": [-0.01, 1.01], "tickformat": ".0%", "title": "success rate", "zeroline": False},
        yaxis={
            "range": [y - 0.5, -0.7],
            "tickvals": positions,
            "ticktext": labels,
            "showgrid": False,
            "zeroline": False,
            "automargin": True,
            "fixedrange": True,
            "showline": False,
            "ticklabelstandoff": 8,
        },
        margin={"l": 8, "r": 16, "t": 6, "b": 44},
    )
    for position, row in zip(positions, ordered, strict=True):
        colour, symbol = look[str(row["encoder"])]
        rate, low, high = float(row["success"]), float(row["low"]), float(row["high"])
        figure.add_scatter(
            x=[low, high], y=[position] * 2, mode="lines", line={"color": colour, "width": 2.5}, hoverinfo="skip"
        )
        figure.add_scatter(
            x=[rate],
            y=[position],
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 11},
            hovertext=f"{label(row_label(row, rows))}<br>{label(row['criterion'])}<br><b>{percent(rate)}</b> "
            f"({row['successes']} of {row['episodes']}), 95% interval {percent(low)} to {percent(high)}",
            hoverinfo="text",
        )
    for position, criterion in headings:
        figure.add_annotation(
            x=0, y=position, text=f"<b>{label(criterion)}</b>", showarrow=False, xanchor="left", yanchor="middle"
        )
    return figure


def reached_figure(evaluations: Sequence[Evaluation]) -> go.Figure:
    """Share of episodes that reach at least x: the success rate at every possible threshold."""
    metric = evaluations[0].metric
    look = styles([e.encoder for e in evaluations])
    figure = figure_base(
        height=330 + 19 * len(evaluations),
        xaxis={"range": [0, 1.005], "title": f"largest {label(metric)} of the episode, at least", "zeroline": False},
        yaxis={"range": [0, 1.02], "tickformat": ".0%", "title": "share of episodes", "zeroline": False},
        showlegend=True,
        legend={"y": 1.02, "yanchor": "bottom", "x": 0},
        margin={"l": 56, "r": 16, "t": 20 + 19 * len(evaluations), "b": 44},
    )
    dashes = _dashes(evaluations)
    for evaluation in evaluations:
        values = np.sort(evaluation.maxima[np.isfinite(evaluation.maxima)])
        n = len(values)
        x = np.concatenate([[0.0], values, [max(1.0, float(values[-1]) if n else 1.0)]])
        share = np.concatenate([[1.0], (n - np.arange(n)) / max(n, 1), [0.0]])
        figure.add_scatter(
            x=x.round(4),
            y=share.round(5),
            mode="lines",
            line={"shape": "vh", "color": look[evaluation.encoder][0], "width": 2, "dash": dashes[evaluation.name]},
            name=label(evaluation.label),
            hovertemplate="%{y:.1%} reach %{x:.3f}<extra>" + label(evaluation.label) + "</extra>",
        )
    return figure


def _dashes(evaluations: Sequence[Evaluation]) -> dict[str, str]:
    # Evaluations of one encoder (shifts, policies) share its colour and differ by dash.
    seen: dict[str, int] = {}
    result = {}
    for evaluation in evaluations:
        count = seen[evaluation.encoder] = seen.get(evaluation.encoder, -1) + 1
        result[evaluation.name] = ("solid", "dash", "dot", "dashdot")[count % 4]
    return result


def strip_figure(evaluations: Sequence[Evaluation]) -> go.Figure:
    """Largest coverage of every single episode as a point, median as a tick."""
    metric = evaluations[0].metric
    look = styles([e.encoder for e in evaluations])
    figure = figure_base(
        height=70 + 62 * len(evaluations),
        xaxis={"range": [-0.01, 1.02], "title": f"largest {label(metric)} of the episode", "zeroline": False},
        yaxis={
            "range": [len(evaluations) - 0.5, -0.5],
            "tickvals": list(range(len(evaluations))),
            "ticktext": [label(e.label).replace(", ", ",<br>") for e in evaluations],
            "showgrid": False,
            "zeroline": False,
            "automargin": True,
            "fixedrange": True,
            "showline": False,
            "ticklabelstandoff": 8,
        },
        margin={"l": 8, "r": 16, "t": 12, "b": 44},
    )
    for i, evaluation in enumerate(evaluations):
        colour, symbol = look[evaluation.encoder]
        values = evaluation.maxima
        # A fixed golden-ratio offset spreads points evenly: no randomness, the same picture every time.
        offset = ((np.arange(len(values)) * 0.618034) % 1 - 0.5) * 0.5
        figure.add_scatter(
            x=values.round(4),
            y=(i + offset).round(3),
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 7, "opacity": 0.5},
            hovertemplate=f"%{{x:.3f}}<extra>{label(evaluation.label)}</extra>",
        )
        median = float(np.nanmedian(values))
        figure.add_scatter(
            x=[median, median],
            y=[i - 0.38, i + 0.38],
            mode="lines",
            line={"color": colour, "width": 3},
            hovertemplate=f"median {median:.3f}<extra></extra>",
        )
    return figure


def held_mean(curves: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    """(T,) mean over episodes of traces of unequal length; an episode that has ended keeps its last value."""
    longest = max(len(curve) for curve in curves)
    padded = [np.pad(curve.astype(np.float64), (0, longest - len(curve)), mode="edge") for curve in curves]
    return np.asarray(np.mean(padded, axis=0))


def curves_figure(evaluation: Evaluation, colour: str = BLUE) -> go.Figure:
    """Coverage over steps: every episode as a thin line, the mean as a thick one.

    Args:
        evaluation: with ``curves``.
        colour: of the encoder, see :func:`styles`.
    """
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
        figure.add_scatter(
            x=xs, y=ys, mode="lines", line={"color": colour, "width": 0.8}, opacity=0.3, hoverinfo="skip"
        )
        figure.add_scatter(
            x=keep + 1,
            y=mean[keep].round(4),
            mode="lines",
            line={"color": colour, "width": 3},
            hovertemplate="step %{x}: mean %{y:.3f}<extra></extra>",
        )
    return figure
