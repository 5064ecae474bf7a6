"""Pairs of timesteps to look at: an anchor with a near, a borderline and a far one, and how their actions align."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classact.data.types import FloatArray, IntArray
from classact.errors import ConfigError
from classact.similarity.pairwise import dtw_pairwise
from classact.similarity.reference import alignment
from classact.similarity.stream import WindowStream

KINDS = ("near", "threshold", "far")
FAR = 0.9  # quantile of the anchor's own distances that the far timestep stands at
CANDIDATES = 32  # anchors considered, with all their distances
MOST_OTHERS = 1 << 19
_CELLS = 1 << 22  # distances that are computed at once


@dataclass(frozen=True)
class ExamplePair:
    """A timestep paired with the anchor: window number, distance, and aligned steps (p of the anchor, q of it)."""

    kind: str
    row: int
    distance: float
    path: list[tuple[int, int]]


@dataclass(frozen=True)
class Example:
    """An anchor's window number, and its three pairs."""

    row: int
    pairs: list[ExamplePair]


def choose_examples(
    stream: WindowStream,
    episode: IntArray,
    threshold: float,
    *,
    count: int = 4,
    cost: str = "sqeuclidean",
    band: int | None = None,
    seed: int = 0,
) -> list[Example]:
    """Anchors spread over the course of the episodes, each with its nearest, a borderline and a far timestep.

    The other timesteps lie in other episodes (a borderline one in the anchor's own, if it has no positive elsewhere);
    with a single episode, at least a window's length away where possible. Of the candidates those that move most are
    taken: a still timestep shows little. Of more than :data:`MOST_OTHERS` windows a sample is searched.

    Args:
        stream: N windows.
        episode: (N,) episode of each window, ascending.
        threshold: largest distance of a positive pair.
        count: anchors wanted, at most one per window.
    """
    n = len(stream)
    if n < 2:
        raise ConfigError(f"expected at least 2 windows to compare, got {n}.")
    rng = np.random.default_rng(seed)
    candidates = np.sort(rng.permutation(n)[: max(CANDIDATES, count)])
    others = np.arange(n) if n <= MOST_OTHERS else np.sort(rng.permutation(n)[:MOST_OTHERS])
    start = np.searchsorted(episode, episode[candidates])
    length = np.searchsorted(episode, episode[candidates], side="right") - start
    progress = (candidates - start) / length
    motion = np.abs(np.diff(stream.windows(candidates), axis=1)).sum(axis=(1, 2))
    distances = _distances(stream, candidates, others, cost, band)
    distances[candidates[:, None] == others] = np.nan
    elsewhere = np.stack([_elsewhere(row, others, stream.horizon * stream.stride, episode) for row in candidates])
    positive = np.nanmin(np.where(elsewhere, distances, np.nan), axis=1) <= threshold
    chosen: list[int] = []
    for part in range(count):
        inside = (progress >= part / count) & (progress < (part + 1) / count)
        fresh = ~np.isin(episode[candidates], episode[candidates[chosen]])
        taken = np.isin(np.arange(len(candidates)), chosen)
        # By falling priority: not taken already; a positive; its part of the episode; another episode; motion.
        order = np.lexsort((motion, fresh, inside, positive, ~taken))
        if not taken[order[-1]]:
            chosen.append(int(order[-1]))
    return [
        _example(stream, int(candidates[k]), others, distances[k], elsewhere[k], threshold, cost, band) for k in chosen
    ]


def _distances(
    stream: WindowStream, anchors: IntArray, others: IntArray, cost: str, band: int | None
) -> NDArray[np.float32]:
    out = np.empty((len(anchors), len(others)), np.float32)
    x = stream.windows(anchors)
    step = _CELLS // len(anchors)
    for first in range(0, len(others), step):
        y = stream.windows(others[first : first + step])
        out[:, first : first + step] = dtw_pairwise(x, y, cost=cost, band=band)
    return out


def _elsewhere(row: int, others: IntArray, horizon: int, episode: IntArray) -> NDArray[np.bool_]:
    found = episode[others] != episode[row]
    if not found.any():
        found = np.abs(others - row) >= horizon
    if not found.any():
        found = others != row
    return np.asarray(found)


def _example(
    stream: WindowStream,
    row: int,
    others: IntArray,
    distances: FloatArray,
    elsewhere: NDArray[np.bool_],
    threshold: float,
    cost: str,
    band: int | None,
) -> Example:
    away = np.where(elsewhere, distances, np.float32(np.nan))
    near = float(np.nanmin(away))
    # Without a positive elsewhere, only the anchor's own episode comes near the threshold.
    borderline = away if near <= threshold else distances
    wanted = ((away, near), (borderline, threshold), (away, float(np.nanquantile(away, FAR))))
    pairs = []
    for kind, (measured, target) in zip(KINDS, wanted, strict=True):
        at = int(np.nanargmin(np.abs(measured - np.float32(target))))
        a, b = stream.windows(np.array([row, others[at]]))
        pairs.append(ExamplePair(kind, int(others[at]), float(measured[at]), alignment(a, b, cost, band)))
    return Example(row, pairs)
