"""What the run folders of cells hold for the page: latent maps and neighbours, or why not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from classact.errors import DataError
from classact.pages import learning
from classact.pages.checks import Arrays
from classact.pages.reasons import reasons
from classact.pages.sources import read_latent_map, read_neighbors
from classact.pages.style import thin
from classact.pages.table import Row
from classact.run.folder import Run
from table1.report.results import Cell, Results

MOST_EPISODES = 20
"""Of a map: as in the paper's J.1."""

MOST_QUERIES = 2
"""Of a cell: more of them only make the page longer."""


@dataclass(frozen=True)
class Seen:
    """A cell's latent map and the neighbours of some timesteps; None and empty where absent, with the reason."""

    map: go.Figure | None
    no_map: str
    neighbors: list[Row]
    no_neighbors: str


def read_seen(results: Results, cell: Cell) -> Seen:
    """What a cell's run folder holds; whatever is wrong with it is a reason, for the page is about many cells."""
    folder = results.path.parent / cell.folder
    if not cell.folder or not folder.is_dir():
        reason = "the run folder is not here" if cell.folder else "the results name no run folder"
        return Seen(None, reason, [], reason)
    analysis = Run(folder).analysis
    figure, no_map = None, ""
    found: list[Row] = []
    no_neighbors = ""
    try:
        figure = map_figure(read_latent_map(_there(analysis / "latent_map.safetensors")))
    except DataError as error:
        no_map = _short(error, folder)
    try:
        arrays = read_neighbors(_there(analysis / "neighbors.safetensors"))
        found = reasons({key: value[_some(arrays)] if key != "world" else value for key, value in arrays.items()})
    except DataError as error:
        no_neighbors = _short(error, folder)
    return Seen(figure, no_map, found, no_neighbors)


def _there(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"{path} is not there")
    return path


def _short(error: DataError, folder: Path) -> str:
    # Without the folder, the same reason of several cells is one reason.
    return str(error).replace(f"{folder}/", "")


def _some(arrays: Arrays) -> list[int]:
    """The first and the middle query: those are of the best and of a median episode."""
    count = len(arrays["query_images"])
    return sorted({round(i * count / MOST_QUERIES) for i in range(min(MOST_QUERIES, count))})


def map_figure(arrays: Arrays) -> go.Figure:
    """Latent trajectories of at most 20 episodes as coloured lines (paper, figure 13), small enough for rows."""
    episodes = np.unique(arrays["episode"])
    kept = np.isin(arrays["episode"], episodes[thin(len(episodes), MOST_EPISODES)])
    figure = learning.latent_figure(arrays["xy"][kept], arrays["episode"][kept], arrays["progress"][kept])
    figure.data = figure.data[:-1]  # without the view of single points
    figure.update_layout(height=290, meta=None)
    figure.update_traces(selector={"mode": "lines"}, line_width=1.3)
    figure.update_traces(selector={"mode": "markers"}, marker_size=5)
    return figure
