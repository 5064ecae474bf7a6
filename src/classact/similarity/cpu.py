"""DTW on the CPU: all cores, sixteen pairs per vector, float32.

The sweep walks over the padded stream of stream.py in tiles of anchors by neighbouring windows. Each anchor adds one
row of step distances; the other T - 1 rows of its cost matrices come from the anchors before it, in a ring that stays
in the L1 cache. Squares beyond float32 (differences above 1e19) give an infinite distance, never NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numba as nb
import numpy as np

from classact.data.types import IntArray
from classact.errors import ConfigError
from classact.similarity.lanes import LANES, align, bounded, kernel, lowest, step_distances, unrolled
from classact.similarity.pairwise import dtw_pairwise
from classact.similarity.reference import check_alignment, float32_limit, rounding_margin
from classact.similarity.stream import Pairs, Sweep, WindowStream

ANCHORS = 256
COLUMNS = 256  # of a tile: its ring of rows, T x (COLUMNS + T) float32, stays in the L1 cache, its pairs in the L2
_TILES, _MOST_TILES = 64, 256  # in flight; half a megabyte each at most
_LEAST_LANES = 5  # mean number of windows per vector above which tiles are faster
_PACKED = 2048


@nb.njit(inline="always")  # type: ignore[untyped-decorator]
def _sliding_minima(row: Any, T: int, out: Any) -> None:
    # out[v] = min(row[v : v + T]) where that is inside: minima of 2, 4, 8, ... neighbours, then of two that overlap.
    n = len(row)
    for v in range(n):
        out[v] = row[v]
    span = 1
    while 2 * span <= T:
        for v in range(n - 2 * span + 1):
            out[v] = min(out[v], out[v + span])
        span *= 2
    if span < T:
        for v in range(n - T + 1):
            out[v] = min(out[v], out[v + T - span])


@kernel
def _sweep(
    values: Any,
    points: Any,
    window_at: Any,
    starts: Any,
    group_at: Any,
    group_lanes: Any,
    group_last: Any,
    tiles: Any,
    width: Any,
    skew: Any,
    T: int,
    band: int,
    squared: bool,
    limit: Any,
    bound: Any,
    left: Any,
    right: Any,
    distances: Any,
    found: Any,
) -> None:
    # tiles (K, 4): first and last anchor, first and last group. left, right (K, ANCHORS * COLUMNS): within the tile.
    for tile in nb.prange(len(tiles)):
        i0, i1, g0, g1 = tiles[tile]
        at = group_at[g0]
        margin = 0 if skew is None else band  # columns that a row along the diagonal reads beyond the windows
        size = group_at[g1 - 1] + LANES + T - 1 + margin - (at - margin)
        size = (size + LANES - 1) // LANES * LANES
        ring = np.empty((T, size), np.float32)
        minima = np.empty((T if bound >= 0 else 1, size), np.float32)
        scratch = np.empty((T, LANES), np.float32)
        d = np.empty(LANES, np.float32)
        j0 = window_at[at]
        n = 0
        for row in range(starts[i0], starts[i1 - 1] + T):
            step_distances(points[row], values, at - margin, size, squared, ring, row % T, 0)
            if bound >= 0:
                _sliding_minima(ring[row % T], T, minima[row % T])
            position = row - T + 1
            if position < starts[i0]:
                continue
            i = window_at[position]
            if i < 0:
                continue
            for g in range(g0, g1):
                if group_last[g] <= i:
                    continue
                column = group_at[g] - at + margin
                mask = group_lanes[g]
                if bound >= 0:
                    mask &= bounded(minima, position % T, column, T, bound)
                    if mask == 0:
                        continue
                mask &= align(width, skew, ring, position % T, column, 1, T, T, band, scratch, limit, d)
                while mask:
                    lane = lowest(mask)
                    mask &= mask - 1
                    j = window_at[group_at[g] + lane]
                    if j > i:
                        left[tile, n] = i - i0
                        right[tile, n] = j - j0
                        distances[tile, n] = d[lane]
                        n += 1
        found[tile] = n


@nb.njit(cache=True)  # type: ignore[untyped-decorator]
def _gather(
    left: Any, right: Any, distances: Any, found: Any, tiles: Any, first_column: Any, a: Any, b: Any, d: Any
) -> None:
    at = 0
    for tile in range(len(tiles)):
        for k in range(found[tile]):
            a[at] = np.uint32(tiles[tile, 0] + left[tile, k])
            b[at] = np.uint32(first_column[tile] + right[tile, k])
            d[at] = distances[tile, k]
            at += 1


class CpuSweep(Sweep):
    """All window pairs of a stream under a step cost of :data:`classact.similarity.COSTS` and a Sakoe-Chiba band."""

    device = "cpu"

    def __init__(self, stream: WindowStream, *, cost: str = "sqeuclidean", band: int | None = None) -> None:
        check_alignment(cost, band)
        self.stream = stream
        self._squared = cost == "sqeuclidean"
        self._given_band = band
        T = stream.horizon
        self._width, self._skew = unrolled(T, band)
        self._band = 2 * T if band is None else min(band, 2 * T)
        # Bounds on a row along the diagonal cost as much as the alignment.
        self._prunes = self._skew is None and T > 2
        starts = stream.starts
        self._window_at = np.full(stream.values.shape[1], -1, np.int64)
        self._window_at[starts] = np.arange(len(starts))
        self._groups()
        # Episodes much shorter than the horizon share few step distances and leave most lanes empty.
        self._sparse = len(stream) < _LEAST_LANES * len(self._group_at)

    def _groups(self) -> None:
        # Sixteen neighbouring positions of the stream each, skipping the gaps behind episodes where no window starts.
        at, lanes, last = [], [], []
        starts, window_at = self.stream.starts, self._window_at
        w = 0
        while w < len(starts):
            position = int(starts[w])
            inside = window_at[position : position + LANES] >= 0
            at.append(position)
            lanes.append(int((inside << np.arange(LANES)).sum()))
            w += int(inside.sum())
            last.append(w - 1)
        self._group_at, self._group_lanes, self._group_last = (np.array(v, np.int64) for v in (at, lanes, last))
        blocks = [0]
        for g in range(1, len(at) + 1):
            if g == len(at) or at[g] + LANES - at[blocks[-1]] > COLUMNS:
                blocks.append(g)
        self._blocks = np.array(blocks, np.int64)

    def pairs(self, first: int, last: int, *, limit: float = np.inf, prune: bool = True) -> Iterator[Pairs]:
        """See :meth:`classact.similarity.stream.Sweep.pairs`."""
        if not 0 <= first <= last <= len(self.stream):
            raise ConfigError(f"expected anchors within 0..{len(self.stream)}, got {first} to {last}.")
        limit32 = float32_limit(limit)
        prune = prune and self._prunes and bool(np.isfinite(limit32))
        bound = np.float32(limit32 * (1 + rounding_margin(self.stream.horizon))) if prune else np.float32(-1)
        if self._sparse:
            yield from self._packed(first, last, limit32)
            return
        at_once = min(max(_TILES, 2 * nb.get_num_threads()), _MOST_TILES)
        slots = tuple(np.empty((at_once, ANCHORS * COLUMNS), kind) for kind in (np.uint16, np.uint16, np.float32))
        for tiles in self._tiles(first, last, at_once):
            found = np.zeros(len(tiles), np.int64)
            with nb.parallel_chunksize(1):
                _sweep(
                    self.stream.values,
                    self.stream.points,
                    self._window_at,
                    self.stream.starts,
                    self._group_at,
                    self._group_lanes,
                    self._group_last,
                    tiles,
                    self._width,
                    self._skew,
                    self.stream.horizon,
                    self._band,
                    self._squared,
                    limit32,
                    bound,
                    *slots,
                    found,
                )
            total = int(found.sum())
            block = Pairs(np.empty(total, np.uint32), np.empty(total, np.uint32), np.empty(total, np.float32))
            columns = self._window_at[self._group_at[tiles[:, 2]]]
            _gather(*slots, found, tiles, columns, block.left, block.right, block.distances)
            if total:
                yield block

    def _packed(self, first: int, last: int, limit: np.float32) -> Iterator[Pairs]:
        """:meth:`pairs` with windows of any episodes side by side in a vector, sharing no step distances."""
        n = len(self.stream)
        cost = "sqeuclidean" if self._squared else "euclidean"
        for i in range(first, last, ANCHORS):
            anchors = np.arange(i, min(i + ANCHORS, last))
            for j in range(i, n, _PACKED):
                others = np.arange(j, min(j + _PACKED, n))
                windows = self.stream.windows(anchors), self.stream.windows(others)
                d = dtw_pairwise(*windows, cost=cost, band=self._given_band, limit=float(limit))
                kept = (d <= limit) & (others > anchors[:, None])
                row, column = np.nonzero(kept)
                if len(row):
                    yield Pairs(anchors[row].astype(np.uint32), others[column].astype(np.uint32), d[row, column])

    def _tiles(self, first: int, last: int, at_once: int) -> Iterator[IntArray]:
        waiting: list[tuple[int, int, int, int]] = []
        ends = self._group_last[self._blocks[1:] - 1]  # last window of each block of groups
        for i in range(first, last, ANCHORS):
            skip = int(np.searchsorted(ends, i, side="right"))
            for k in range(skip, len(ends)):
                waiting.append((i, min(i + ANCHORS, last), int(self._blocks[k]), int(self._blocks[k + 1])))
                if len(waiting) == at_once:
                    yield np.array(waiting, np.int64)
                    waiting = []
        if waiting:
            yield np.array(waiting, np.int64)
