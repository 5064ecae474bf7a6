"""One self-contained HTML page about the action similarity of a data set, from the files of ``classact similarity``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from classact.errors import DataError
from classact.pages import learning
from classact.pages.plots import HERE, Plot, make_plot, write_page
from classact.pages.reasons import png_uri
from classact.pages.style import BLUE, ORANGE, figure_base, mark, percent
from classact.utils.storage import read_arrays, read_json

NUMBERS = "similarity.json"
EXAMPLES = "examples.safetensors"
PAGE = "similarity.html"

MOST_DIMENSIONS = 3  # of the actions, drawn per pair: those that vary most
WIDTH, HEIGHT, PAD = 260.0, 88.0, 6.0  # of one curve's drawing, in its own units

Row = dict[str, Any]

KINDS = {"near": "Nearest elsewhere", "threshold": "At the threshold", "far": "Far"}


def build_similarity_page(folder: Path) -> Path:
    """Write ``similarity.html`` into a folder of ``classact similarity``, from its files alone, and return its path.

    Raises:
        DataError: the folder holds no similarity.json, or a file is damaged (named).
        StorageError: the page cannot be written; an older page is left as it was.
    """
    folder = Path(folder)
    numbers = read_numbers(folder)
    arrays = read_arrays(folder / EXAMPLES) if (folder / EXAMPLES).exists() else {}
    return write_page(folder / PAGE, HERE / "similarity.html", context(numbers, arrays), share=share, amount=amount)


def read_numbers(folder: Path) -> Row:
    """The content of similarity.json; a DataError where it is missing, damaged, or incomplete."""
    path = folder / NUMBERS
    numbers = read_json(path)
    wanted = ("data", "settings", "threshold", "kept", "pairs", "anchors", "histogram", "positives", "batch", "batches")
    if not isinstance(numbers, dict) or (missing := [key for key in wanted if key not in numbers]):
        lacks = ", ".join(missing) if isinstance(numbers, dict) else "everything"
        raise DataError(f"{path} lacks {lacks}: it was not written by 'classact similarity'. Run that command again.")
    return numbers


def share(value: float) -> str:
    """A fraction as percent, small ones with two digits: ``0.00253`` is ``0.25%``, ``0.5`` is ``50.0%``."""
    return f"{100 * value:.2g}%" if abs(value) < 0.0095 else percent(value)


def amount(value: float) -> str:
    """A count or a mean: ``1234567`` is ``1,234,567``, ``3.75`` is ``3.8``."""
    if value == round(value):
        return f"{round(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1 else f"{value:.2g}"


def context(numbers: Row, arrays: Mapping[str, NDArray[Any]]) -> Row:
    """Everything the template shows."""
    sensitivity = numbers.get("sensitivity") or {}
    return {
        "n": numbers,
        "s": numbers["settings"],
        "p": numbers["positives"],
        "metric": metric_name(numbers["settings"]),
        "width": WIDTH,
        "height": HEIGHT,
        "distances": distance_plots("distances", numbers, "the distances between action windows", "distance"),
        "anchors": _anchors_plot(numbers),
        "examples": examples(numbers, arrays) if arrays else [],
        "quantiles": sensitivity.get("quantile"),
        "agreements": [
            (title, sensitivity[key])
            for key, title in (("horizon", "Horizon"), ("metric", "Metric"))
            if sensitivity.get(key)
        ],
        "apart": apart(numbers.get("apart") or {}),
        "settings": [(key, "none" if value is None else value) for key, value in numbers["settings"].items()],
    }


def apart(section: Mapping[str, Any]) -> Row | None:
    """Table of how far apart things are in positives among early timesteps; None where nothing was compared."""
    if not section.get("rows"):
        return None
    lines = [
        one | {"ratios": [at["rows"][number]["ratio"] for at in section["horizons"]]}
        for number, one in enumerate(section["rows"])
    ]
    fps = section["fps"]
    heads = [(one["horizon"], "" if fps is None else f"{one['horizon'] / fps:.2g} s") for one in section["horizons"]]
    return {"early": section["early"], "timesteps": section["timesteps"], "lines": lines, "horizons": heads}


def metric_name(settings: Mapping[str, Any]) -> str:
    """The distance in words."""
    stride = int(settings.get("stride", 1))
    means = f", of the means of {stride} steps each" if stride > 1 else ""
    if settings.get("metric") == "l2":
        return f"L2 without warping{means}"
    steps = {"sqeuclidean": "squared Euclidean", "euclidean": "Euclidean"}[str(settings["cost"])]
    band = settings.get("band")
    return f"dynamic time warping, {steps} steps{'' if band is None else f', band of {band}'}{means}"


def distance_plots(key: str, similarity: Row, distances: str, axis: str = "DTW distance") -> list[Plot]:
    """The distribution of some distances: all of it, and around the threshold."""
    alt = f"Distribution of {distances}; threshold at {float(similarity['threshold']):.4g}."
    plots = []
    for name, title in (("all", "All pairs, logarithmic axis"), ("kept", "Around the threshold")):
        figure = learning.similarity_figure(similarity, zoom=name == "kept")
        figure.update_xaxes(title=axis)
        plots.append(make_plot(f"{key}-{name}", figure, alt, title=title))
    return plots


def anchors_figure(positives: Mapping[str, Any]) -> go.Figure:
    """Histogram of positives per anchor, anchors without any apart, the median marked."""
    edges = np.asarray(positives["edges"], np.float64)
    counts = np.asarray(positives["counts"], np.float64)
    total = counts.sum()
    none = float(positives["none"])
    parts = counts / max(total, 1)
    parts[0] = max(parts[0] - none, 0.0)
    width = float(edges[1] - edges[0])
    # Bins hold whole numbers: the bin from a to b holds a .. b - 1, and is centred on these.
    middle = edges[:-1] + (width - 1) / 2
    figure = figure_base(
        height=270,
        xaxis={"title": "positives of an anchor, in the whole data set", "zeroline": False, "rangemode": "tozero"},
        yaxis={"title": "share of anchors", "tickformat": ".2~%", "rangemode": "tozero", "zeroline": False},
        margin={"l": 60, "r": 16, "t": 34, "b": 44},
        bargap=0,
        barmode="stack",
    )
    spans = [f"{int(a):,}" if width == 1 else f"{int(a):,} to {int(a + width) - 1:,}" for a in edges[:-1]]
    figure.add_bar(
        x=middle,
        y=parts.round(6),
        width=width,
        marker={"color": BLUE, "line": {"width": 0}},
        opacity=0.8,
        customdata=spans,
        hovertemplate="%{customdata} positives: %{y:.2%} of anchors<extra></extra>",
    )
    if none:
        figure.add_bar(
            x=[middle[0]],
            y=[none],
            width=width,
            marker={"color": ORANGE, "line": {"width": 0}},
            hovertemplate="no positive: %{y:.2%} of anchors<extra></extra>",
        )
    median = float(positives["median"])
    mark(figure, median, f"median {amount(median)}")
    return figure


def _anchors_plot(numbers: Row) -> Plot:
    p = numbers["positives"]
    words = (
        f"Positives per anchor: from {amount(p['least'])} to {amount(p['most'])}, median {amount(p['median'])}; "
        f"{share(p['none'])} of anchors have none."
    )
    if numbers["anchors"] < numbers["data"]["steps"]:
        words += f" Measured on {amount(numbers['anchors'])} sampled anchors against all windows."
    return make_plot("anchors", anchors_figure(p), f"Histogram. {words}", words, "Positives per anchor")


def examples(numbers: Row, arrays: Mapping[str, NDArray[Any]]) -> list[Row]:
    """Anchors with their pairs, ready to draw; the ratio of a pair is its distance over the threshold."""
    windows = arrays["windows"]  # (A, 1 + pairs, T, D)
    frames = arrays.get("frames")
    threshold = float(numbers["threshold"])
    drawn = []
    for a, row in enumerate(numbers["examples"]):
        images = [None if frames is None else png_uri(frames[a, k]) for k in range(len(row["pairs"]) + 1)]
        dimensions = widest(windows[a])
        pairs = [
            pair
            | {
                "title": KINDS.get(pair["kind"], pair["kind"]),
                "image": images[k],
                "ratio": pair["distance"] / threshold if threshold > 0 else None,
                "positive": pair["distance"] <= threshold,
                "curves": curves(windows[a], k, pair["path"], dimensions),
            }
            for k, pair in enumerate(row["pairs"], 1)
        ]
        drawn.append(row | {"image": images[0], "pairs": pairs})
    return drawn


def widest(windows: NDArray[Any], most: int = MOST_DIMENSIONS) -> list[int]:
    """The at most ``most`` dimensions of (K, T, D) windows with the largest range, in order."""
    span = windows.max(axis=(0, 1)) - windows.min(axis=(0, 1))
    return sorted(int(d) for d in np.argsort(-span, kind="stable")[:most])


def curves(windows: NDArray[Any], other: int, path: Sequence[Sequence[int]], dimensions: Sequence[int]) -> list[Row]:
    """The anchor ``windows[0]`` and ``windows[other]`` as SVG, at one scale for all of (K, T, D) ``windows``.

    Per dimension: both polylines, and a line from each step to those it is aligned with.
    """
    T = windows.shape[1]
    x = PAD + (WIDTH - 2 * PAD) * (np.arange(T) / max(T - 1, 1) if T > 1 else np.array([0.5]))
    drawn = []
    for d in dimensions:
        low, high = float(windows[:, :, d].min()), float(windows[:, :, d].max())
        scale = (HEIGHT - 2 * PAD) / (high - low) if high > low else 0.0
        y = HEIGHT - PAD - (windows[[0, other], :, d] - low) * scale if scale else np.full((2, T), HEIGHT / 2)
        points = [" ".join(f"{u:.1f},{v:.1f}" for u, v in zip(x, line, strict=True)) for line in y]
        links = [tuple(round(float(v), 1) for v in (x[p], y[0, p], x[q], y[1, q])) for p, q in path]
        drawn.append({"dimension": d, "anchor": points[0], "other": points[1], "links": links})
    return drawn
