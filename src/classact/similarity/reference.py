"""The readable float64 definition of DTW that every fast path is tested against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.errors import ConfigError, DataError, choose

COSTS = ("sqeuclidean", "euclidean")
"""Step costs: ``sqeuclidean`` is what the paper's released code computes (aeon's DTW), ``euclidean`` is what section
4.1 writes. They rank pairs differently."""


def check_cost(cost: str) -> None:
    """Refuse an unknown step cost, listing the known ones."""
    if cost not in COSTS:
        raise ConfigError(choose("step cost", cost, COSTS))


def check_finite(name: str, values: NDArray[Any]) -> None:
    """Refuse NaN and infinities: in a minimum over alignments they could vanish, or turn into a mere large distance."""
    finite = np.isfinite(values)
    if not finite.all():
        at = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise DataError(
            f"{name}{list(at)} is {values[at]}; {int((~finite).sum()):,} of {values.size:,} values are NaN or "
            f"infinite. Drop or repair these steps before comparing actions."
        )


def dtw(a: NDArray[Any], b: NDArray[Any], cost: str = "sqeuclidean") -> float:
    """Dynamic time warping distance of two action sequences (paper section 4.1).

    min over monotonic alignments Gamma of sum over (p, q) in Gamma of c(a_p, b_q), where c is the Euclidean distance
    or its square; steps (1, 0), (0, 1), (1, 1); no band; no root at the end.

    Args:
        a: (T, D).
        b: (T', D).
        cost: one of :data:`COSTS`.

    Raises:
        ConfigError: unknown cost, or shapes that do not fit.
        DataError: NaN or infinite values.
    """
    check_cost(cost)
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
            G[p + 1, q + 1] = C[p, q] + min(G[p, q], G[p, q + 1], G[p + 1, q])
    return float(G[-1, -1])
