"""Compiled DTW on the CPU: float32, many windows side by side in SIMD lanes, all cores.

No ``fastmath``: the recurrences start from infinity. Squares beyond the range of float32 (differences above 1e19) give
an infinite distance, never NaN.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from classact.errors import ConfigError
from classact.similarity.reference import check_cost, check_finite
from classact.types import FloatArray, IntArray

LANES = 64
"""Windows that one pass of the recurrence handles at once: four AVX-512 registers, 16 kB of rows at T = 64."""


@nb.njit(parallel=True, cache=True)  # type: ignore[untyped-decorator]
def _cross(x: Any, y: Any, squared: bool, out: Any) -> None:
    # x (N, T, D); y (T', D, M), so that the lanes (windows of y) are contiguous; out (N, M).
    n, T, D = x.shape
    Ty, _, m = y.shape
    blocks = (m + LANES - 1) // LANES
    for task in nb.prange(n * blocks):
        i, block = task // blocks, task % blocks
        first = block * LANES
        width = min(LANES, m - first)
        row = np.empty((Ty + 1, LANES), np.float32)
        diagonal = np.empty(LANES, np.float32)
        cost = np.empty(LANES, np.float32)
        row[:] = np.inf
        row[0] = np.float32(0)
        for p in range(T):
            for v in range(width):
                diagonal[v] = row[0, v]
                row[0, v] = np.inf
            for q in range(Ty):
                for v in range(width):
                    cost[v] = np.float32(0)
                for d in range(D):
                    a = x[i, p, d]
                    for v in range(width):
                        e = a - y[q, d, first + v]
                        cost[v] += e * e
                if not squared:
                    for v in range(width):
                        cost[v] = np.sqrt(cost[v])
                for v in range(width):
                    above = row[q + 1, v]
                    best = min(diagonal[v], min(row[q, v], above))
                    diagonal[v] = above
                    row[q + 1, v] = cost[v] + best
        for v in range(width):
            out[i, first + v] = row[Ty, v]


@nb.njit(parallel=True, cache=True)  # type: ignore[untyped-decorator]
def _pairs(actions: Any, windows: Any, left: Any, right: Any, squared: bool, out: Any) -> None:
    T = windows.shape[1]
    D = actions.shape[1]
    for k in nb.prange(len(left)):
        i, j = left[k], right[k]
        row = np.full(T + 1, np.float32(np.inf))
        row[0] = np.float32(0)
        for p in range(T):
            diagonal = row[0]
            row[0] = np.inf
            for q in range(T):
                cost = np.float32(0)
                for d in range(D):
                    e = actions[windows[i, p], d] - actions[windows[j, q], d]
                    cost += e * e
                if not squared:
                    cost = np.sqrt(cost)
                best = min(diagonal, min(row[q], row[q + 1]))
                diagonal = row[q + 1]
                row[q + 1] = cost + best
        out[k] = row[T]


def dtw_pairwise(x: FloatArray, y: FloatArray | None = None, *, cost: str = "sqeuclidean") -> FloatArray:
    """DTW distances between all windows of two sets.

    Args:
        x: (N, T, D) float32.
        y: (M, T', D) float32; None compares x with itself.
        cost: step cost, one of :data:`classact.similarity.COSTS`.

    Returns:
        (N, M) float32, where [i, j] is the distance of x[i] and y[j].

    Raises:
        ConfigError: unknown cost, or shapes that do not fit.
        DataError: NaN or infinite values.
    """
    check_cost(cost)
    x = np.ascontiguousarray(x, np.float32)
    y = x if y is None else np.ascontiguousarray(y, np.float32)
    if x.ndim != 3 or y.ndim != 3 or x.shape[2] != y.shape[2] or 0 in x.shape or 0 in y.shape:
        raise ConfigError(
            f"expected windows of shapes (N, T, D) and (M, T', D) with equal D, got {x.shape} and {y.shape}."
        )
    check_finite("x", x)
    if y is not x:
        check_finite("y", y)
    out = np.empty((len(x), len(y)), np.float32)
    _cross(x, np.ascontiguousarray(y.transpose(1, 2, 0)), cost == "sqeuclidean", out)
    return out


def dtw_pairs(
    actions: FloatArray, windows: IntArray, left: IntArray, right: IntArray, *, cost: str = "sqeuclidean"
) -> FloatArray:
    """DTW distances of the given pairs of windows of one data set.

    Args:
        actions: (N, D) float32, normalised.
        windows: (N, T) step indices, from :func:`classact.windows.window_indices`.
        left, right: (P,) window numbers; pair k is (left[k], right[k]).
        cost: step cost.

    Returns:
        (P,) float32.

    Raises:
        ConfigError: unknown cost, or indices out of range.
        DataError: NaN or infinite values.
    """
    check_cost(cost)
    actions = np.ascontiguousarray(actions, np.float32)
    check_finite("actions", actions)
    if len(left) != len(right):
        raise ConfigError(f"expected as many left as right windows, got {len(left)} and {len(right)}.")
    # The compiled loops check no bounds: a wrong index would read foreign memory.
    for name, index, size in (
        ("windows", windows, len(actions)),
        ("left", left, len(windows)),
        ("right", right, len(windows)),
    ):
        if index.size and not 0 <= index.min() <= index.max() < size:
            raise ConfigError(f"expected {name} within 0..{size - 1}, got {index.min()}..{index.max()}.")
    out = np.empty(len(left), np.float32)
    _pairs(actions, windows, left, right, cost == "sqeuclidean", out)
    return out
