"""The comparison to plotly figures: pure functions, no files, no theme."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from classact.pages.learning import MAX_POINTS
from classact.pages.style import BLUE, GREEN, GREY, OLIVE, ORANGE, PURPLE, TEAL, figure_base, label, percent, thin
from classact.utils.statistics import Estimate
from table1.report.costs import Budget
from table1.report.paper import INFERENCE_MS
from table1.report.results import Cell, Metric, Results
from table1.report.table import (
    HEAD_NAMES,
    Who,
    head_name,
    head_order,
    method_name,
    method_order,
    seeds_text,
    who_name,
)
from table1.report.trends import Curve, Scaling

_LOOKS = {
    "class": (BLUE, "circle"),
    "imagenet": (ORANGE, "diamond"),
    "random": (GREY, "x"),
    "tcn": (GREEN, "square"),
    "byol": (PURPLE, "triangle-up"),
    "dynamo": (OLIVE, "cross"),
    "r3m": (TEAL, "star"),
    "equivar": ("#C2504A", "hexagon"),
}
_OTHERS = (("#7A6BC8", "triangle-down"), ("#B07A4F", "pentagon"), ("#5B8A3C", "bowtie"), ("#C0557F", "hourglass"))
_DASHES = {"rep": "solid", "mlp": "dash", "mlp-rep": "longdash", "dp": "dot", "dp-rep": "longdashdot"}
_HEAD_SYMBOLS = {"rep": "circle", "mlp": "square", "dp": "diamond"}


def looks(results: Results) -> dict[str, tuple[str, str]]:
    """Colour and marker of each method, the same in every figure."""
    others = [method for method in dict.fromkeys(cell.method for cell in results.cells) if method not in _LOOKS]
    return _LOOKS | {method: _OTHERS[i % len(_OTHERS)] for i, method in enumerate(others)}


@dataclass(frozen=True)
class KeyEntry:
    """A method in the key beside figures, which have no legends of their own: those would be larger than they are."""

    name: str
    colour: str


def key(methods: Iterable[str], look: Mapping[str, tuple[str, str]]) -> list[KeyEntry]:
    """The key of some methods, in the table's order."""
    return [KeyEntry(method_name(method), look[method][0]) for method in method_order(methods)]


def _success_axis() -> dict[str, Any]:
    return {"title": "success rate", "tickformat": ".0%", "range": [-0.02, 1.03], "zeroline": False}


def curves_figure(drawn: Sequence[Curve], axis: str, look: Mapping[str, tuple[str, str]]) -> go.Figure:
    """Success during training (paper, figure 10): colours by method, dashes by head.

    Several heads become views.

    Args:
        drawn: of one column.
        axis: "images" or "seconds".
        look: of methods.
    """
    title = {"images": "images seen in training", "seconds": "seconds of training"}[axis]
    figure = figure_base(
        height=300,
        xaxis={"title": title, "zeroline": False, "rangemode": "tozero", "nticks": 6},
        yaxis=_success_axis(),
    )
    for curve in drawn:
        who, (colour, symbol) = curve.who, look[curve.who.method]
        figure.add_scatter(
            x=[row[0 if axis == "images" else 1] for row in curve.rows],
            y=[round(k / n, 5) for _, _, k, n in curve.rows],
            mode="lines+markers",
            line={"color": colour, "width": 1.2 if who.variant else 2, "dash": _DASHES.get(who.head, "dashdot")},
            marker={"color": colour, "symbol": symbol, "size": 5 if who.variant else 7},
            name=label(who_name(who)),
            customdata=[f"{k} of {n}" for _, _, k, n in curve.rows],
            hovertemplate=f"%{{x:,}} {axis}: <b>%{{y:.1%}}</b> (%{{customdata}})<extra>{label(who_name(who))}, "
            f"{curve.words}</extra>",
        )
    heads = [curve.who.head for curve in drawn]
    order = head_order(heads)
    if len(order) > 1:
        views = {"All": [True] * len(heads)}
        views |= {head_name(head): [other == head for other in heads] for head in order}
        figure.update_layout(meta={"views": views})
    return figure


def loss_figure(cells: Sequence[Cell], names: Sequence[str]) -> go.Figure:
    """Loss over images of trainings whose losses can be compared: those of one method and head.

    Args:
        cells: with losses.
        names: of their conditions; equal ones share a colour.
    """
    figure = figure_base(
        height=220,
        xaxis={"title": "images seen in training", "zeroline": False, "rangemode": "tozero", "nticks": 5},
        yaxis={"title": "loss", "zeroline": False, "exponentformat": "power", "automargin": True},
    )
    colours = (BLUE, ORANGE, GREEN, PURPLE, OLIVE, TEAL, GREY)
    distinct = list(dict.fromkeys(names))
    for i, (cell, name) in enumerate(zip(cells, names, strict=True)):
        rows = [cell.loss[k] for k in thin(len(cell.loss), MAX_POINTS)]
        figure.add_scatter(
            x=[row[0] for row in rows],
            y=[float(f"{row[2]:.5g}") for row in rows],
            mode="lines" if len(rows) > 1 else "markers",
            line={"color": colours[distinct.index(name) % len(colours)], "width": 1.6},
            name=label(name),
            showlegend=name not in names[:i],
            hovertemplate=f"%{{x:,}} images: %{{y:.4g}}<extra>{label(name)}, seed {cell.seed}</extra>",
        )
    figure.update_layout(
        showlegend=True,
        legend={"y": 1.0, "yanchor": "bottom", "x": 0, "orientation": "h"},
        margin={"t": 12 + 20 * len(distinct)},
        height=figure.layout.height + 20 * len(distinct),
    )
    return figure


def scaling_figure(series: Sequence[Scaling], look: Mapping[str, tuple[str, str]]) -> go.Figure:
    """Success over the number of demonstrations (paper, figure 11), with 95% intervals.

    Args:
        series: of one column.
        look: of methods.
    """
    ticks = sorted({count for row in series for count, *_ in row.points})
    figure = figure_base(
        height=310,
        xaxis={
            "title": "demonstrations",
            "type": "log",
            "tickvals": ticks,
            "ticktext": [f"{tick:,}" for tick in ticks],
            "zeroline": False,
        },
        yaxis=_success_axis(),
    )
    for i, row in enumerate(series):
        who, points, (colour, symbol) = row.who, row.points, look[row.who.method]
        # Whiskers of equal counts would cover each other.
        shift = 1 + 0.015 * (i - (len(series) - 1) / 2)
        figure.add_scatter(
            x=[round(count * shift, 3) for count, *_ in points],
            y=[round(e.value, 5) for _, e, *_ in points],
            error_y={
                "array": [round(e.high - e.value, 5) for _, e, *_ in points],
                "arrayminus": [round(e.value - e.low, 5) for _, e, *_ in points],
                "color": colour,
                "thickness": 1.2,
                "width": 3,
            },
            mode="lines+markers",
            line={"color": colour, "width": 2, "dash": _DASHES.get(who.head, "dashdot")},
            marker={"color": colour, "symbol": symbol, "size": 8},
            name=label(who_name(who)),
            customdata=[
                f"{count:,} demonstrations: <b>{percent(e.value)}</b> (95% interval {percent(e.low)} to "
                f"{percent(e.high)}, {starts} initial states, {seeds_text(seeds)})"
                for count, e, starts, seeds in points
            ],
            hovertemplate=f"%{{customdata}}<extra>{label(who_name(who))}</extra>",
        )
    return figure


def latency_figure(rows: Sequence[tuple[str, Budget]], look: Mapping[str, tuple[str, str]]) -> go.Figure:
    """Time of a decision (paper, figure 12): median and 95th percentile, beside the paper's mean of each head.

    Args:
        rows: name and cost, from above.
        look: of methods.
    """
    names = [name for name, _ in rows]
    known = [(i, INFERENCE_MS[row.who.head]) for i, (_, row) in enumerate(rows) if row.who.head in INFERENCE_MS]
    shown = [value for _, row in rows for value in (row.latency, row.p95) if value] + [value for _, value in known]
    figure = figure_base(
        height=70 + 25 * len(rows),
        xaxis={"title": "milliseconds per decision", "type": "log", "zeroline": False, "automargin": True}
        | _ticks(shown),
        yaxis={
            "tickvals": list(range(len(rows))),
            "ticktext": [label(name) for name in names],
            "range": [len(rows) - 0.4, -0.6],
            "zeroline": False,
            "automargin": True,
        },
        margin={"l": 12, "r": 16, "t": 34, "b": 44},
        showlegend=True,
        legend={"y": 1.0, "yanchor": "bottom", "x": 0, "orientation": "h"},
    )
    for i, (name, row) in enumerate(rows):
        assert row.latency is not None
        colour, symbol = look[row.who.method]
        if row.p95 is not None:
            figure.add_scatter(
                x=[row.latency, row.p95],
                y=[i, i],
                mode="lines",
                line={"color": colour, "width": 2},
                hoverinfo="skip",
                showlegend=False,
            )
        tail = "" if row.p95 is None else f", 95th percentile {row.p95:.3g} ms"
        figure.add_scatter(
            x=[row.latency],
            y=[i],
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 10},
            hovertemplate=f"median %{{x:.3g}} ms{tail}<extra>{label(name)}</extra>",
            showlegend=False,
        )
    figure.add_scatter(
        x=[value for _, value in known],
        y=[i for i, _ in known],
        mode="markers",
        marker={"color": GREY, "symbol": "line-ns", "size": 13, "line": {"color": GREY, "width": 2}},
        name="paper: mean of its tasks for this head, ResNet-18, NVIDIA A40",
        hovertemplate="paper %{x:.3g} ms<extra></extra>",
    )
    return figure


def _ticks(values: Sequence[float]) -> dict[str, Any]:
    """Range of a logarithmic axis about values, with 1, 2 and 5 of each decade within it as numbers."""
    low, high = min(values) / 1.25, max(values) * 1.25
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [tick for e in decades for tick in (10.0**e, 2 * 10.0**e, 5 * 10.0**e) if low <= tick <= high]
    return {
        "range": [math.log10(low), math.log10(high)],
        "tickvals": ticks,
        "ticktext": [f"{tick:g}" for tick in ticks],
    }


def probe_figure(
    points: Sequence[tuple[str, Who, bool, Metric, Estimate]],
    metric: str,
    look: Mapping[str, tuple[str, str]],
) -> go.Figure:
    """A probe metric of representations against success: one point per cell of the table.

    Args:
        points: name, row, whether it is of a shifted column (hollow), metric with its interval, success.
        metric: its name.
        look: of methods.
    """
    figure = figure_base(
        height=300,
        xaxis={"title": label(metric), "zeroline": False, "automargin": True, "nticks": 6},
        yaxis=_success_axis(),
    )
    for name, who, hollow, probe, success in points:
        colour, value = look[who.method][0], probe.value
        symbol = _HEAD_SYMBOLS.get(who.head, "star") + ("-open" if hollow else "")
        figure.add_scatter(
            x=[value],
            y=[round(success.value, 5)],
            error_x=_whisker(value, probe.low, probe.high, colour),
            error_y=_whisker(success.value, success.low, success.high, colour),
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 10, "line": {"color": colour, "width": 2 * hollow}},
            name=label(name),
            hovertemplate=f"{label(metric)} %{{x:.4g}}, success <b>%{{y:.1%}}</b><extra>{label(name)}</extra>",
        )
    return figure


def _whisker(value: float, low: float | None, high: float | None, colour: str) -> dict[str, Any] | None:
    if low is None or high is None:
        return None
    return {
        "array": [max(high - value, 0.0)],
        "arrayminus": [max(value - low, 0.0)],
        "color": colour,
        "thickness": 0.8,
        "width": 0,
    }


def symbols_text() -> str:
    """What markers of :func:`probe_figure` mean."""
    names = {"circle": "circles", "square": "squares", "diamond": "diamonds"}
    return ", ".join(f"{names[symbol]} {HEAD_NAMES[head]}" for head, symbol in _HEAD_SYMBOLS.items())
