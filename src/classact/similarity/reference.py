"""The readable float64 definition of DTW that every fast path is tested against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.errors import ConfigError, DataError, UnknownNameError, choose

COSTS = ("sqeuclidean", "euclidean")
"""Step costs, ranking pairs differently: ``sqeuclidean`` (released code, aeon's DTW), ``euclidean`` (section 4.1)."""


def check_alignment(cost: str, band: int | None) -> None:
    """Refuse an unknown step cost or a negative Sakoe-Chiba band."""
    if cost not in COSTS:
        raise UnknownNameError(choose("step cost", cost, COSTS))
    if band is not None and (band < 0 or band != int(band)):
        raise ConfigError(f"expected a Sakoe-Chiba band of at least 0 whole steps, or none, got {band}.")


def float32_limit(limit: float) -> np.float32:
    """The largest float32 of at most ``limit``: a float32 distance is within one exactly if it is within the other."""
    if not limit >= 0:
        raise ConfigError(f"expected a limit of distances of at least 0, got {limit}.")
    with np.errstate(over="ignore"):
        rounded = np.float32(limit)
    return np.nextafter(rounded, np.float32(0)) if float(rounded) > limit else rounded


def rounding_margin(T: int) -> float:
    """Relative slack of float32 lower bounds of windows of T steps: 12 times the error of 3 T rounded additions."""
    return 36 * max(T, 46) * 2.0**-24


def check_finite(name: str, values: NDArray[Any]) -> None:
    """Refuse NaN and infinities: a minimum over alignments could hide them."""
    finite = np.isfinite(values)
    if not finite.all():
        at = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise DataError(
            f"{name}{list(at)} is {values[at]}; {int((~finite).sum()):,} of {values.size:,} values are NaN or "
            f"infinite. Drop or repair these steps before comparing actions."
        )


def dtw(a: NDArray[Any], b: NDArray[Any], cost: str = "sqeuclidean", band: int | None = None) -> float:
    """Dynamic time warping distance of two action sequences (paper section 4.1).

    min over monotonic alignments Gamma of sum over (p, q) in Gamma of c(a_p, b_q), where c is the Euclidean distance or
    its square; steps (1, 0), (0, 1), (1, 1); no root at the end. Infinity where the band leaves no alignment.

    Args:
        a, b: (T, D) and (T', D).
        cost: one of :data:`COSTS`.
        band: Sakoe-Chiba band: only steps with abs(p - q) <= band may be aligned; None for no band, 0 for equal steps
            only (with the squared cost: the squared L2 distance, figure 4c).
    """
    return float(accumulated(a, b, cost, band)[-1, -1])


def accumulated(
    a: NDArray[Any], b: NDArray[Any], cost: str = "sqeuclidean", band: int | None = None
) -> NDArray[np.float64]:
    """(T + 1, T' + 1) accumulated costs of :func:`dtw`: [p + 1, q + 1] is the cheapest alignment up to a_p, b_q.

    Raises:
        ConfigError: unknown cost, a negative band, or shapes that do not match.
        DataError: NaN or infinite values.
    """
    check_alignment(cost, band)
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or 0 in a.shape or 0 in b.shape:
        raise ConfigError(f"expected sequences of shapes (T, D) and (T', D) with equal D, got {a.shape} and {b.shape}.")
    check_finite("a", a)
    check_finite("b", b)
    C = ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=-1)  # (T, T')
    if cost == "euclidean":
        C = np.sqrt(C)
    G = np.full((len(a) + 1, len(b) + 1), np.inf)
    G[0, 0] = 0.0
    for p in range(len(a)):
        for q in range(len(b)):
            if band is not None and abs(p - q) > band:
                continue
            G[p + 1, q + 1] = C[p, q] + min(G[p, q], G[p, q + 1], G[p + 1, q])
    return G


def alignment(
    a: NDArray[Any], b: NDArray[Any], cost: str = "sqeuclidean", band: int | None = None
) -> list[tuple[int, int]]:
    """The warping path of :func:`dtw`: aligned steps (p, q) from (0, 0) to (T - 1, T' - 1).

    Of equally cheap steps it prefers the diagonal. A band that leaves no alignment is a ConfigError.
    """
    G = accumulated(a, b, cost, band)
    if not np.isfinite(G[-1, -1]):
        raise ConfigError(f"a band of {band} aligns no sequences of {len(a)} and {len(b)} steps; widen it.")
    p, q = len(a), len(b)
    path = []
    while p and q:
        path.append((p - 1, q - 1))
        step = int(np.argmin([G[p - 1, q - 1], G[p - 1, q], G[p, q - 1]]))
        p, q = (p - 1, q - 1) if step == 0 else (p - 1, q) if step == 1 else (p, q - 1)
    return path[::-1]
