"""Other packages' all-pairs DTW, each called in the fastest way that it documents.

All compute the squared Euclidean step cost without a band. What a package returns is turned into that sum, so that its
result can be checked before its time is believed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Contender:
    """One way to compute all pairs.

    Attributes:
        name: as printed.
        package: distribution name, for its version.
        windows: how many windows it is given: about a second of work.
        distances: (N, T, D) float32 -> (N, N) sums of squared step costs.
    """

    name: str
    package: str
    windows: int
    distances: Callable[[NDArray[Any]], NDArray[Any]]


def aeon(cores: int) -> Contender:
    """aeon's own parallel pairwise distance (Numba)."""
    from aeon.distances import dtw_pairwise_distance

    def distances(x: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(dtw_pairwise_distance(x.astype(np.float64).transpose(0, 2, 1), n_jobs=cores))

    return Contender("aeon dtw_pairwise_distance", "aeon", 1500, distances)


def aeon_loop(_: int) -> Contender:
    """aeon's DTW called for one pair after the other, as the paper's released code does."""
    from aeon.distances import dtw_distance

    def distances(x: NDArray[Any]) -> NDArray[Any]:
        series = x.astype(np.float64).transpose(0, 2, 1).copy()
        out = np.zeros((len(x), len(x)))
        for i in range(len(x)):
            for j in range(i + 1, len(x)):
                out[i, j] = out[j, i] = dtw_distance(series[i], series[j])
        return out

    return Contender("aeon dtw_distance, pair by pair", "aeon", 150, distances)


def dtaidistance(_: int) -> Contender:
    """dtaidistance's C library, on all cores where it was built with OpenMP."""
    from dtaidistance import dtw_ndim
    from dtaidistance.dtw import try_import_c

    try_import_c(verbose=False)

    def distances(x: NDArray[Any]) -> NDArray[Any]:
        out = dtw_ndim.distance_matrix_fast(x.astype(np.float64), x.shape[2], only_triu=True)
        return np.where(np.isfinite(out), out, 0) ** 2

    return Contender("dtaidistance distance_matrix_fast", "dtaidistance", 800, distances)


def tslearn(cores: int) -> Contender:
    """tslearn's pairwise DTW over joblib."""
    from tslearn.metrics import cdist_dtw

    def distances(x: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(cdist_dtw(x.astype(np.float64), n_jobs=cores)) ** 2

    return Contender("tslearn cdist_dtw", "tslearn", 400, distances)


CONTENDERS: dict[str, Callable[[int], Contender]] = {
    "aeon": aeon,
    "aeon, pair by pair": aeon_loop,
    "dtaidistance": dtaidistance,
    "tslearn": tslearn,
}


def available(cores: int) -> tuple[list[Contender], list[str]]:
    """The contenders that are installed, and a sentence about each that is not."""
    found, missing = [], []
    for name, make in CONTENDERS.items():
        try:
            found.append(make(cores))
        except ImportError as error:
            missing.append(f"{name} is left out ({error}); 'uv sync' brings it.")
    return found, missing
