"""The global distribution of action distances: the threshold at quantile K and the CDF of the distances below it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.errors import ConfigError
from classact.statistics import dkw_epsilon
from classact.types import FloatArray

HISTOGRAM_BINS = 120


@dataclass(frozen=True)
class DistanceDistribution:
    """Distances of pairs i < j, drawn uniformly over the whole data set (paper sections 4.1, 4.2, appendix B).

    Attributes:
        quantile: K as a fraction (0.015 is the paper's 1.5 %).
        threshold: largest distance of a positive pair: the K-quantile of all pairs' distances.
        kept: (P,) float32, ascending: the sampled distances <= threshold; their empirical CDF is the paper's CDF.
        pairs: how many pairs were measured.
        epsilon: bound on the error of the empirical CDF at confidence 99.9 % (Dvoretzky-Kiefer-Wolfowitz): the
            threshold is the exact quantile of some K' with abs(K' - K) <= epsilon.
        edges, counts: histogram of all measured distances.
    """

    quantile: float
    threshold: float
    kept: FloatArray
    pairs: int
    epsilon: float
    edges: NDArray[np.float64]
    counts: NDArray[np.int64]

    @staticmethod
    def fit(distances: FloatArray, quantile: float) -> DistanceDistribution:
        """Fit on (P,) measured distances.

        Raises:
            ConfigError: K outside (0, 1), K that selects no pair, or kept distances that are all equal, which would
                give every positive the weight zero.
        """
        if not 0 < quantile < 1:
            raise ConfigError(f"expected a quantile K between 0 and 1 (the paper's 1.5 % is 0.015), got {quantile}.")
        if not np.isfinite(distances).all():
            raise ConfigError("action distances hold NaN or infinite values; the actions must be finite.")
        ordered = np.sort(distances)
        rank = int(np.floor(quantile * len(ordered)))
        if rank < 1:
            raise ConfigError(
                f"K = {quantile} of {len(ordered):,} pairs selects no pair at all; expected K of at least "
                f"{1 / max(len(ordered), 1):.2g}. Raise K (the paper uses 0.01 to 0.025), or measure more pairs."
            )
        threshold = ordered[rank - 1]
        kept = ordered[: np.searchsorted(ordered, threshold, side="right")]
        if kept[0] == kept[-1]:
            raise ConfigError(
                f"K = {quantile} keeps {len(kept):,} of {len(ordered):,} pairs whose distances all equal "
                f"{float(threshold):.6g}: no graded weights can be made. The actions hardly vary, or K is too small."
            )
        # Logarithmic bins: distances span several decades and the threshold sits in the lowest ones.
        largest = float(ordered[-1])
        edges = np.concatenate([[0.0], np.geomspace(largest * 1e-5, largest * (1 + 1e-6), HISTOGRAM_BINS)])
        counts = np.histogram(distances, edges)[0].astype(np.int64)
        return DistanceDistribution(
            quantile, float(threshold), kept, len(ordered), dkw_epsilon(len(ordered)), edges, counts
        )

    def weights(self, distances: FloatArray) -> FloatArray:
        """Soft positive weights w = 1 - CDF(distance) for positives, 0 above the threshold (section 4.2)."""
        rank = np.searchsorted(self.kept, distances, side="right")
        w = 1.0 - rank.astype(np.float32) / np.float32(len(self.kept))
        return np.where(distances <= np.float32(self.threshold), w, 0.0).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Numbers for the report; the kept distances are saved as an array elsewhere."""
        return {
            "quantile": self.quantile,
            "threshold": self.threshold,
            "kept": len(self.kept),
            "pairs": self.pairs,
            "epsilon": self.epsilon,
            "histogram": {"edges": self.edges.tolist(), "counts": self.counts.tolist()},
        }
