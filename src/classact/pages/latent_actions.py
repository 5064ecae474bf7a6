"""One self-contained HTML page about a latent action model, from the files of ``classact latent-actions``."""

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
from classact.pages.similarity import amount, share
from classact.pages.style import BLUE, GREEN, GREY, ORANGE, figure_base, label
from classact.train.config import COLLAPSED
from classact.utils.storage import read_arrays, read_json, read_jsonl

NUMBERS, MAP, LOG, PAGE = "latent_actions.json", "map.safetensors", "train.jsonl", "latent_actions.html"
SCALE = [[0.0, BLUE], [0.5, "#C9CDD3"], [1.0, ORANGE]]
MOST_MAPS = 4  # dimensions of actions that the maps are coloured by, those that vary most

Row = dict[str, Any]


def build_latent_actions_page(folder: Path) -> Path:
    """Write ``latent_actions.html`` into a folder of ``classact latent-actions``, from its files, and return its path.

    Raises:
        DataError: the folder holds no latent_actions.json, or a file is damaged (named).
        StorageError: the page cannot be written; an older page is left as it was.
    """
    folder = Path(folder)
    numbers: Any = read_json(folder / NUMBERS)
    if not isinstance(numbers, dict) or not {"data", "measures", "settings"} <= set(numbers):
        raise DataError(
            f"{folder / NUMBERS} lacks data, settings or measures: it was not written by 'classact latent-actions'. "
            f"Run that command again."
        )
    log = read_jsonl(folder / LOG) if (folder / LOG).exists() else []
    arrays = read_arrays(folder / MAP) if (folder / MAP).exists() else {}
    content = context(numbers, log, arrays)
    return write_page(folder / PAGE, HERE / "latent_actions.html", content, share=share, amount=amount)


def context(numbers: Row, log: Sequence[Mapping[str, Any]], arrays: Mapping[str, NDArray[Any]]) -> Row:
    """Everything the template shows."""
    found = numbers["measures"]
    others = found["action_error_others"] is not None
    error = found["action_error_others"] if others else found["action_error"]
    variance = found["action_variance_others"] if others else found["action_variance"]
    model = numbers["settings"]["model"]
    settings = {key: value for key, value in numbers["settings"].items() if key != "model"} | {
        f"model.{key}": value for key, value in model.items()
    }
    return {
        "n": numbers,
        "m": found,
        "others": others,
        "error": error,
        "variance": variance,
        "explained": 1 - error / variance if variance else None,
        "predicted": 1 - found["reconstruction"] / found["copy"] if found["copy"] else None,
        "warnings": warnings(numbers, log, error, variance),
        "losses": loss_plots(log),
        "maps": map_plots(numbers, arrays) if arrays else [],
        "dimensions": numbers.get("dimensions") or [],
        "settings": [(key, "none" if value is None else value) for key, value in settings.items()],
    }


def warnings(numbers: Row, log: Sequence[Mapping[str, Any]], error: float, variance: float) -> list[str]:
    """What makes latent actions useless, in words."""
    said = []
    last = next((row for row in reversed(log) if row.get("reconstruction_by_others")), None)
    if last is not None and last["reconstruction"] > 0:
        ratio = last["reconstruction_by_others"] / last["reconstruction"]
        if ratio < COLLAPSED:
            said.append(
                f"Latent actions have collapsed: predictions are as good with those of other transitions (error "
                f"{ratio:.3f} times as large). Raise beta or latent_dim, lower learning_rate, standardize what is "
                f"observed, or show changes (model.changes)."
            )
    if error >= variance:
        said.append(
            f"Decoded actions are no better than the mean action (squared error {error:.3g}, {variance:.3g} of the "
            f"mean). Label more demonstrations, of such as do what the others do; learn longer; show changes "
            f"(model.changes)."
        )
    found = numbers["measures"]
    if found["reconstruction"] >= found["copy"] and numbers["settings"]["supervision"] != "alone":
        said.append(
            f"The next observation is predicted no better than by the last one (squared error "
            f"{found['reconstruction']:.3g}, {found['copy']:.3g} of the last one). Learn longer."
        )
    return said


LOSSES = (
    ("reconstruction", "squared error", "Next observation", BLUE, "copy", "of the last observation in its place"),
    ("action", "squared error", "Actions of labelled transitions", GREEN, "", ""),
    ("reconstruction_by_others", "squared error", "Next observation by other transitions' z", ORANGE, "", ""),
    ("codes", "perplexity", "Codes in use", BLUE, "", ""),
)


def loss_plots(log: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Losses over updates, each with what it is compared with."""
    plots = []
    for key, axis, title, colour, beside, words in LOSSES:
        rows = [row for row in log if row.get(key)]
        if not rows:
            continue
        figure = learning.training_figure(rows, key, axis, colour)
        caption = ""
        if beside and (values := [row[beside] for row in rows if row.get(beside)]):
            level = float(np.mean(values))
            figure.add_hline(y=level, line={"color": GREY, "width": 1, "dash": "dot"})
            caption = f"Dotted: {level:.3g}, {words}."
        figure.update_yaxes(type="log")
        alt = f"{title}, {axis} over {len(rows)} logged updates, {rows[0][key]:.3g} to {rows[-1][key]:.3g}."
        plots.append(make_plot(f"loss-{key}", figure, alt, caption, title))
    return plots


def map_plots(numbers: Row, arrays: Mapping[str, NDArray[Any]]) -> list[Plot]:
    """Latent actions in the plane, coloured by what they decode to and by what was done, dimension by dimension."""
    decoded, done, known = arrays["decoded"], arrays["done"], arrays["known"].astype(bool)
    names = [one["name"] for one in numbers.get("dimensions") or []]
    names = names if len(names) == decoded.shape[1] else [f"action {d}" for d in range(decoded.shape[1])]
    shown = sorted(np.argsort(-decoded.var(axis=0), kind="stable")[:MOST_MAPS].tolist())
    plots = []
    for kind, values, where in (("decoded", decoded, np.ones(len(known), bool)), ("done", done, known)):
        if not where.any():
            continue
        for d in shown:
            title = f"{names[d]}, {'as decoded' if kind == 'decoded' else 'as it was'}"
            figure = map_figure(arrays["xy"][where], values[where, d], names[d])
            alt = f"{int(where.sum())} latent actions in the plane, coloured by {title}."
            plots.append(make_plot(f"map-{kind}-{d}", figure, alt, title=title))
    return plots


def map_figure(xy: NDArray[Any], values: NDArray[Any], name: str) -> go.Figure:
    """Points coloured by a number over [-1, 1]."""
    bar = {"thickness": 10, "len": 0.9, "tickvals": [-1, 0, 1]}
    axis = {"zeroline": False, "showticklabels": False, "title": ""}
    figure = figure_base(height=280, xaxis=axis, yaxis=axis, margin={"l": 12, "r": 12, "t": 8, "b": 12})
    figure.add_scatter(
        x=xy[:, 0].round(3),
        y=xy[:, 1].round(3),
        mode="markers",
        marker={
            "size": 4,
            "color": values.round(3),
            "cmin": -1,
            "cmax": 1,
            "colorscale": SCALE,
            "colorbar": bar,
        },
        hovertemplate=f"{label(name)}: %{{marker.color:.2f}}<extra></extra>",
    )
    return figure
