"""Training, similarity and latents to plotly figures: pure functions, no files, no theme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from classact.evaluation.rows import IntermediateRow
from classact.pages.style import BLUE, GREY, PALETTE, TEAL, figure_base, label, mark, percent, thin, veil
from classact.pages.table import Row

MAX_POINTS = 1200  # per training curve; more cannot be told apart on a screen
MAX_EPISODES = 40  # in the latent map


def _logged(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    has = [row for row in rows if row.get(key) is not None]
    return np.array([row["step"] for row in has], np.int64), np.array([row[key] for row in has], np.float64)


def _steps_figure(title: str, **layout: Any) -> go.Figure:
    return figure_base(
        height=230,
        xaxis={"title": "training step", "zeroline": False, "rangemode": "tozero"},
        yaxis={"title": title, "zeroline": False, "exponentformat": "power", "automargin": True},
        **layout,
    )


def _curve(figure: go.Figure, steps: NDArray[np.int64], values: NDArray[Any], line: Row, **how: Any) -> None:
    keep = thin(len(steps), MAX_POINTS)
    mode = "lines" if len(keep) > 1 else "markers"
    figure.add_scatter(x=steps[keep], y=values[keep], mode=mode, line=line, **how)


def training_figure(rows: Sequence[Mapping[str, Any]], key: str, title: str, colour: str = BLUE) -> go.Figure:
    """One logged quantity over training steps; for many rows, thin raw values under a smooth line."""
    steps, values = _logged(rows, key)
    figure = _steps_figure(title)
    hover = f"step %{{x}}: %{{y:.4g}}<extra>{label(title)}</extra>"
    if len(steps) < 60 or key == "lr":
        _curve(figure, steps, values, {"color": colour, "width": 2}, opacity=1, hovertemplate=hover)
        return figure
    from scipy.ndimage import gaussian_filter1d

    mean = gaussian_filter1d(values, sigma=len(values) / 80, mode="nearest")
    _curve(figure, steps, values, {"color": colour, "width": 1}, opacity=0.4, hoverinfo="skip")
    _curve(figure, steps, mean, {"color": colour, "width": 2.5}, hovertemplate=hover)
    return figure


def rates_figure(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Learning rates of a head and of the encoder under it; the latter only where it is trained."""
    legend = {"y": 1.0, "yanchor": "bottom", "x": 0, "orientation": "h"}
    margin = {"l": 56, "r": 16, "t": 34, "b": 44}
    figure = _steps_figure("learning rate", showlegend=True, legend=legend, margin=margin)
    for key, name, colour, dash in (("lr", "head", TEAL, "solid"), ("encoder_lr", "encoder", BLUE, "dash")):
        steps, values = _logged(rows, key)
        if (values > 0).any():
            hover = f"step %{{x}}: %{{y:.4g}}<extra>{name}</extra>"
            line = {"color": colour, "width": 2, "dash": dash}
            _curve(figure, steps, values, line, name=name, hovertemplate=hover)
    return figure


def intermediate_figure(
    rows: Sequence[IntermediateRow], names: Mapping[str, str], looks: Mapping[str, tuple[str, str]]
) -> go.Figure:
    """Success over training steps, one line per stage with its 95% interval as a band (paper, Figure 10).

    Of several criteria the first is shown, and the others by buttons. ``rows`` are in the order of steps; ``names`` are
    names of stages, ``looks`` their colours and markers.
    """
    stages = list(dict.fromkeys(row.stage for row in rows))
    criteria = list(dict.fromkeys(row.criterion for row in rows))
    many = len(stages) > 1
    legend = 19 * len(stages) + 24 if many else 0  # its height
    figure = figure_base(
        height=310 + legend,
        xaxis={"title": "training step", "zeroline": False, "rangemode": "tozero"},
        yaxis={"title": "success rate", "tickformat": ".0%", "range": [-0.02, 1.03], "zeroline": False},
        showlegend=many,
        legend={"y": -0.25, "yanchor": "top", "x": 0},
        margin={"l": 56, "r": 16, "t": 12, "b": 44 + legend},
    )
    drawn: list[str] = []
    for criterion in criteria:
        for stage in stages:
            part = [r for r in rows if r.stage == stage and r.criterion == criterion]
            if not part:
                continue
            colour, symbol = looks[stage]
            steps = [row.step for row in part]
            success, low, high = ([getattr(row, key) for row in part] for key in ("success", "low", "high"))
            # A band around one point has no area: its interval is a whisker.
            single = len(part) == 1
            figure.add_scatter(
                x=steps * 2 if single else steps + steps[::-1],
                y=low + high if single else high + low[::-1],
                mode="lines",
                line={"color": colour, "width": 2.5 if single else 0},
                fill=None if single else "toself",
                fillcolor=None if single else veil(colour, 0.16),
                hoverinfo="skip",
                showlegend=False,
                legendgroup=label(stage),
                visible=criterion == criteria[0],
            )
            figure.add_scatter(
                x=steps,
                y=[round(value, 5) for value in success],
                mode="lines+markers",
                line={"color": colour, "width": 2.5},
                marker={"color": colour, "symbol": symbol, "size": 8},
                name=label(names[stage]),
                legendgroup=label(stage),
                customdata=[
                    f"{row.successes} of {row.episodes}, 95% interval {percent(row.low)} to {percent(row.high)}"
                    for row in part
                ],
                hovertemplate="step %{x}: <b>%{y:.1%}</b> (%{customdata})<extra>" + label(names[stage]) + "</extra>",
                visible=criterion == criteria[0],
            )
            drawn += [criterion] * 2
    if len(criteria) > 1:
        figure.update_layout(meta={"views": {name: [shown == name for shown in drawn] for name in criteria}})
    return figure


def similarity_figure(similarity: Mapping[str, Any], zoom: bool) -> go.Figure:
    """Distribution of DTW distances of analysis/similarity.json; those under the threshold, positives, are coloured.

    ``zoom``: only the range around the positives, on a linear axis; else everything, on a logarithmic one.
    """
    edges = np.asarray(similarity["histogram"]["edges"], dtype=np.float64)
    counts = np.asarray(similarity["histogram"]["counts"], dtype=np.float64)
    share = counts / max(counts.sum(), 1)
    threshold = float(similarity["threshold"])
    positive = edges[1:][edges[1:] > 0]
    # An edge of 0 has no place on a logarithmic axis: the first bin then starts half a bin below its upper edge.
    low = np.where(edges[:-1] > 0, edges[:-1], float(positive[0]) / 2 if len(positive) else 1e-6)
    left, right = (edges[:-1] if zoom else low), edges[1:]
    shown = left < 1.6 * threshold if zoom else counts > 0
    if not shown.any():
        shown = counts > 0
    left, right, share = left[shown], right[shown], share[shown]
    log = not zoom and bool((left > 0).all())
    span = [0, 1.6 * threshold] if zoom and threshold > 0 else [left.min(), max(right.max(), threshold * 1.05)]
    figure = figure_base(
        height=270,
        xaxis={
            "title": "DTW distance",
            "type": "log" if log else "linear",
            "range": [float(np.log10(v)) for v in span] if log else [float(v) for v in span],
            "zeroline": False,
        },
        yaxis={"title": "share of pairs", "tickformat": ".2~%", "rangemode": "tozero", "zeroline": False},
        margin={"l": 60, "r": 16, "t": 34, "b": 44},
    )
    for kept, colour, name in ((True, BLUE, "positive pairs"), (False, GREY, "other pairs")):
        lo, hi = (left, np.minimum(right, threshold)) if kept else (np.maximum(left, threshold), right)
        part = hi > lo
        xs, ys = _steps(lo[part], hi[part], share[part])
        figure.add_scatter(
            x=xs, y=ys, mode="lines", line={"color": colour, "width": 1}, fill="tozeroy", name=name, hoverinfo="x+y"
        )
    if span[0] <= threshold <= span[1]:
        mark(figure, threshold, f"threshold {threshold:.4g}", log=log)
    return figure


def _steps(
    left: NDArray[np.float64], right: NDArray[np.float64], height: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.stack([left, right], axis=1).ravel().round(6), np.repeat(height, 2).round(8)


def latent_figure(xy: NDArray[np.float32], episode: NDArray[Any], progress: NDArray[Any]) -> go.Figure:
    """t-SNE of latents: one spline per episode (paper, appendix J.1), or every step coloured by progress.

    Positions are (n, 2), with episode and progress in 0..1 of each. At most 40 episodes are drawn, evenly spaced over
    the episode numbers. Splines pass through positions averaged by a Gaussian of 1.5 steps; points in the progress view
    are unchanged.
    """
    from scipy.ndimage import gaussian_filter1d

    episodes = np.unique(episode)
    episodes = episodes[thin(len(episodes), MAX_EPISODES)]
    axis = {"visible": False, "showgrid": False, "zeroline": False}
    figure = figure_base(
        height=600,
        xaxis=axis | {"constrain": "domain"},
        yaxis=axis | {"scaleanchor": "x", "constrain": "domain"},
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        dragmode="zoom",
    )
    ends: list[tuple[float, float, str]] = []
    for i, number in enumerate(episodes):
        rows = np.flatnonzero(episode == number)
        rows = rows[np.argsort(progress[rows], kind="stable")]
        line = xy[rows].astype(np.float64)
        if len(line) > 3:
            line = gaussian_filter1d(line, sigma=1.5, axis=0, mode="nearest")
        colour = PALETTE[i % len(PALETTE)]
        ends.append((float(line[-1, 0]), float(line[-1, 1]), colour))
        figure.add_scatter(
            x=line[:, 0].round(3),
            y=line[:, 1].round(3),
            mode="lines",
            line={"color": colour, "width": 1.6, "shape": "spline", "smoothing": 1.0},
            opacity=0.75,
            customdata=(100 * progress[rows]).round(),
            hovertemplate=f"episode {int(number)}, %{{customdata}}% done<extra></extra>",
        )
    figure.add_scatter(
        x=[x for x, _, _ in ends],
        y=[y for _, y, _ in ends],
        mode="markers",
        marker={"size": 8, "color": [colour for _, _, colour in ends]},
        hoverinfo="skip",
    )
    rows = np.flatnonzero(np.isin(episode, episodes))
    figure.add_scatter(
        x=xy[rows, 0].round(3),
        y=xy[rows, 1].round(3),
        mode="markers",
        visible=False,
        marker={
            "size": 4.5,
            "opacity": 0.85,
            "color": np.asarray(progress[rows], dtype=np.float64).round(3),
            "colorscale": [[0, "#3B4CC0"], [0.5, "#C2559D"], [1, "#F2A32C"]],
            "cmin": 0,
            "cmax": 1,
            "colorbar": {"title": "progress", "tickformat": ".0%", "thickness": 10, "len": 0.5, "outlinewidth": 0},
        },
        customdata=episode[rows],
        hovertemplate="episode %{customdata}, %{marker.color:.0%} done<extra></extra>",
    )
    paths = [True] * (len(episodes) + 1)
    figure.update_layout(meta={"views": {"By episode": [*paths, False], "By progress": [*[False] * len(paths), True]}})
    return figure
