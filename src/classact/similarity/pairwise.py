"""DTW of arbitrary sets of windows: a batch against itself or another, or a list of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numba as nb
import numpy as np

from classact.data.types import FloatArray, IntArray
from classact.errors import ConfigError
from classact.similarity.lanes import LANES, advance, align, kernel, step_distances, unrolled
from classact.similarity.reference import check_alignment, check_finite, float32_limit, rounding_margin
from classact.similarity.stream import WindowStream
from classact.similarity.threads import parallel

if TYPE_CHECKING:
    import torch

Windows = TypeVar("Windows", FloatArray, "torch.Tensor")  # (N, T, D), NumPy or torch


@kernel
def _cross(
    x: Any, blocks: Any, width: Any, skew: Any, band: int, squared: bool, limit: Any, stop: Any, same: bool, out: Any
) -> None:
    # x (N, T, D); blocks (M / LANES, D, T' * LANES), so that lanes are contiguous; out (N, LANES * len(blocks)).
    n, T, _ = x.shape
    columns = blocks.shape[2] // LANES
    margin = 0 if skew is None else band  # columns that a row along the diagonal reads beyond the windows
    givesup = len(width) > 0 and skew is None and np.isfinite(limit)
    for task in nb.prange(n):
        # With itself only the upper triangle is computed: alternating long and short rows balances the threads.
        i = task // 2 if task % 2 == 0 else n - 1 - task // 2
        ring = np.zeros((T, (columns + 2 * margin + 1) * LANES), np.float32)
        begin = margin * LANES + -(ring.ctypes.data // 4) % LANES  # a vector within one cache line
        scratch = np.empty((columns, LANES), np.float32)
        ends = np.empty((2, LANES), np.float32)
        d = np.empty(LANES, np.float32)
        for block in range(i // LANES if same else 0, len(blocks)):
            values = blocks[block]
            # Every alignment begins at the first two steps and ends at the last two.
            step_distances(x[i, 0], values, 0, LANES, squared, ends, 0, 0)
            step_distances(x[i, T - 1], values, (columns - 1) * LANES, LANES, squared, ends, 1, 0)
            nearest = np.float32(np.inf)
            for v in range(LANES):
                nearest = min(nearest, ends[0, v] + ends[1, v] if T + columns > 2 else ends[0, v])
            done = 0
            if givesup:
                # Any alignment passes through every row to the last cell: a few rows show which pairs are too far.
                while done < T and nearest <= stop:
                    end = min(T, done + (T + 7) // 8 if done else (T + 3) // 4)
                    for p in range(done, end):
                        step_distances(x[i, p], values, 0, columns * LANES, squared, ring, p, begin)
                    advance(width, ring, begin, LANES, done, end, scratch, d)
                    done = end
                    nearest = np.float32(np.inf)
                    for v in range(LANES):
                        nearest = min(nearest, d[v] + ends[1, v] if done < T else np.float32(0))
            if nearest > stop:
                for v in range(LANES):
                    out[i, block * LANES + v] = np.inf
                continue
            if not givesup:
                for p in range(T):
                    step_distances(x[i, p], values, 0, columns * LANES, squared, ring, p, begin)
                align(width, skew, ring, 0, begin, LANES, T, columns, band, scratch, limit, d)
            for v in range(LANES):
                out[i, block * LANES + v] = d[v]


@parallel
@nb.njit(parallel=True, cache=True)  # type: ignore[untyped-decorator]
def _mirror(out: Any) -> None:
    # In square blocks: whole columns would miss the cache at each step.
    n = len(out)
    for task in nb.prange((n + 63) // 64):
        for i0 in range(0, 64 * task + 64, 64):
            for j in range(64 * task, min(64 * task + 64, n)):
                for i in range(i0, min(i0 + 64, j)):
                    out[j, i] = out[i, j]


@kernel
def _pairs(
    points: Any, windows: Any, T: int, left: Any, right: Any, width: Any, skew: Any, band: int, squared: bool, out: Any
) -> None:
    # Sixteen pairs at a time; the first windows differ between lanes, too. windows (N, T), or (N, 1) where a window's
    # steps are contiguous.
    D, listed = points.shape[1], windows.shape[1] == T
    margin = 0 if skew is None else band
    count = (len(left) + LANES - 1) // LANES
    for task in nb.prange(count):
        first = task * LANES
        lanes = min(LANES, len(left) - first)
        x, y = np.zeros((T, D, LANES), np.float32), np.zeros((T, D, LANES), np.float32)
        ring = np.zeros((T, (T + 2 * margin) * LANES), np.float32)
        scratch = np.empty((T, LANES), np.float32)
        d = np.empty(LANES, np.float32)
        for v in range(lanes):
            i, j = left[first + v], right[first + v]
            for p in range(T):
                a = windows[i, p] if listed else windows[i, 0] + p
                b = windows[j, p] if listed else windows[j, 0] + p
                for k in range(D):
                    x[p, k, v] = points[a, k]
                    y[p, k, v] = points[b, k]
        for p in range(T):
            for q in range(T):
                if abs(p - q) > band:
                    continue
                cell = ring[p, (margin + q) * LANES : (margin + q + 1) * LANES]
                for v in range(LANES):
                    cell[v] = np.float32(0)
                for k in range(D):
                    for v in range(LANES):
                        e = x[p, k, v] - y[q, k, v]
                        cell[v] += e * e
                if not squared:
                    for v in range(LANES):
                        cell[v] = np.sqrt(cell[v])
        align(width, skew, ring, 0, margin * LANES, LANES, T, T, band, scratch, np.float32(np.inf), d)
        for v in range(lanes):
            out[first + v] = d[v]


def dtw_pairwise(
    x: Windows, y: Windows | None = None, *, cost: str = "sqeuclidean", band: int | None = None, limit: float = np.inf
) -> Windows:
    """DTW distances between all windows of two sets.

    Squares of differences below 1e-23 vanish in float32 and those above 1e19 become infinite; normalise first.

    Args:
        x: (N, T, D), NumPy or torch, computed in float32; on the GPU where torch has it there.
        y: (M, T', D) of the same kind; None compares x with itself.
        cost: step cost, one of :data:`classact.similarity.COSTS`.
        band: Sakoe-Chiba band in steps; None for none.
        limit: pairs farther apart may come back as infinity, which saves time.

    Returns:
        (N, M) float32 of the same kind; infinity where the band leaves no alignment.

    Raises:
        ConfigError: unknown cost, or shapes that do not match.
        DataError: NaN or infinite values.
    """
    check_alignment(cost, band)
    if y is not None and isinstance(x, np.ndarray) != isinstance(y, np.ndarray):
        raise ConfigError(f"expected both sets as NumPy arrays or both as tensors, got {type(x)} and {type(y)}.")
    if not hasattr(x, "ndim"):
        raise ConfigError(f"expected windows as a NumPy array or a tensor, got {type(x).__name__}.")
    if isinstance(x, np.ndarray):
        return _pairwise(x, y, cost, band, limit)
    if y is not None and x.device != y.device:
        raise ConfigError(f"expected both sets on one device, got {x.device} and {y.device}.")
    if x.device.type != "cpu":
        from classact.similarity.gpu import dtw_pairwise_torch

        return dtw_pairwise_torch(x, y, cost=cost, band=band, limit=limit)
    import torch

    other = None if y is None else y.detach().float().numpy()
    return torch.from_numpy(_pairwise(x.detach().float().numpy(), other, cost, band, limit))


def _aligned(values: FloatArray) -> FloatArray:
    # A vector that crosses two cache lines takes two loads.
    store = np.empty(values.size + LANES, np.float32)
    first = -(store.ctypes.data // 4) % LANES
    out = store[first : first + values.size].reshape(values.shape)
    out[...] = values
    return out


def _pairwise(x: Any, y: Any, cost: str, band: int | None, limit: float) -> FloatArray:
    x = np.ascontiguousarray(x, np.float32)
    same = y is None
    y = x if same else np.ascontiguousarray(y, np.float32)
    if x.ndim != 3 or y.ndim != 3 or x.shape[2] != y.shape[2] or 0 in x.shape or 0 in y.shape:
        raise ConfigError(
            f"expected windows of shapes (N, T, D) and (M, T', D) with equal D, got {x.shape} and {y.shape}."
        )
    check_finite("x", x)
    if not same:
        check_finite("y", y)
    (n, T, D), (m, columns, _) = x.shape, y.shape
    if band is not None and abs(T - columns) > band:
        return np.full((n, m), np.inf, np.float32)
    padded = np.zeros((-(-m // LANES) * LANES, columns, D), np.float32)
    padded[:m] = y
    padded[m:] = y[0]
    blocks = padded.reshape(-1, LANES, columns, D).transpose(0, 3, 2, 1).reshape(-1, D, columns * LANES)
    width, skew = unrolled(columns, band if columns == T or band is None else None)
    if columns != T and band is not None:
        width, skew = (), None  # the diagonal of a band ends in the last cell only for equal lengths
    out = np.empty((n, len(padded)), np.float32)
    reach = T + columns if band is None else min(band, T + columns)
    limit32 = float32_limit(limit)
    stop = np.float32(limit32 * (1 + rounding_margin(max(T, columns))))
    _cross(x, _aligned(blocks), width, skew, reach, cost == "sqeuclidean", limit32, stop, same, out)
    out = np.ascontiguousarray(out[:, :m])
    if same:
        _mirror(out)
    return out


def dtw_pairs(
    actions: FloatArray,
    windows: IntArray,
    left: IntArray,
    right: IntArray,
    *,
    cost: str = "sqeuclidean",
    band: int | None = None,
) -> FloatArray:
    """(P,) float32 DTW distances of pairs of windows of one data set; pair k is (left[k], right[k]).

    ``actions`` (N, D) are normalised float32, ``windows`` (N, T) from :func:`classact.data.windows.window_indices`;
    errors are those of :func:`dtw_pairwise`.
    """
    actions = np.ascontiguousarray(actions, np.float32)
    check_finite("actions", actions)
    return _some(actions, windows, windows.shape[1], left, right, cost, band)


def stream_pairs(
    stream: WindowStream, left: IntArray, right: IntArray, *, cost: str = "sqeuclidean", band: int | None = None
) -> FloatArray:
    """:func:`dtw_pairs` for windows of a stream, without a table of all windows."""
    return _some(stream.points, stream.starts[:, None], stream.horizon, left, right, cost, band)


def sample_pairs(n: int, pairs: int, seed: int) -> tuple[IntArray, IntArray]:
    """(P,), (P,) random pairs of distinct windows out of ``n`` >= 2; every unordered pair is equally likely."""
    if n < 2:
        raise ConfigError(f"expected at least 2 windows to compare, got {n}.")
    rng = np.random.default_rng(seed)
    left = rng.integers(0, n, pairs)
    # The second index skips the first.
    return left, (left + rng.integers(1, n, pairs)) % n


def _some(
    points: FloatArray, windows: IntArray, T: int, left: IntArray, right: IntArray, cost: str, band: int | None
) -> FloatArray:
    check_alignment(cost, band)
    if len(left) != len(right):
        raise ConfigError(f"expected as many left as right windows, got {len(left)} and {len(right)}.")
    # The compiled loops check no bounds: a wrong index would read foreign memory.
    for name, index, size in (
        ("windows", windows, len(points)),
        ("left", left, len(windows)),
        ("right", right, len(windows)),
    ):
        if index.size and not 0 <= index.min() <= index.max() < size:
            raise ConfigError(f"expected {name} within 0..{size - 1}, got {index.min()}..{index.max()}.")
    width, skew = unrolled(T, band)
    out = np.empty(len(left), np.float32)
    reach = 2 * T if band is None else min(band, 2 * T)
    _pairs(points, windows, T, left, right, width, skew, reach, cost == "sqeuclidean", out)
    return out
