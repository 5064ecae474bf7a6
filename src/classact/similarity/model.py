"""Which steps of a data set behave alike: measured per batch, so that no N x N matrix ever exists."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from classact.errors import ConfigError
from classact.normalize import MinMax
from classact.similarity.cpu import dtw_pairs, dtw_pairwise
from classact.similarity.distribution import DistanceDistribution
from classact.similarity.reference import check_cost
from classact.types import Demonstrations, FloatArray, IntArray
from classact.windows import window_indices


@dataclass(frozen=True)
class SimilarityConfig:
    """Settings of the action similarity (paper sections 4.1, 4.2, B, tables 4 and 5).

    Attributes:
        horizon: T_p, steps of a window.
        cost: step cost of DTW: "sqeuclidean" (the released code, our default, for it is what the paper's numbers were
            made with) or "euclidean" (the paper's text).
        quantile: K as a fraction: pairs below this quantile of all distances are positives.
        rotation_scale: factor on the six rotation dimensions of 10-D pose actions (B: 0.5).
        pairs: random pairs that the threshold and the CDF are estimated from (B: "estimate the CDF from a data
            sample"); the error bound is reported.
        seed: seed of that sample.
    """

    horizon: int = 16
    cost: str = "sqeuclidean"
    quantile: float = 0.015
    rotation_scale: float = 0.5
    pairs: int = 4_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_cost(self.cost)
        if self.horizon < 1:
            raise ConfigError(f"expected a horizon of at least 1 step, got {self.horizon}.")
        if not 0 < self.quantile < 1:
            raise ConfigError(f"expected a quantile K between 0 and 1 (1.5 % is 0.015), got {self.quantile}.")
        if self.pairs < 1:
            raise ConfigError(f"expected at least 1 pair to measure, got {self.pairs}.")


def scale_rotation(actions: FloatArray, scale: float) -> FloatArray:
    """Scale the 6-D rotation of 10-D pose actions [position 3, rotation 6, gripper 1]; others pass unchanged.

    Args:
        actions: (N, D) normalised.
        scale: factor on dimensions 3..8 (appendix B: 0.5).
    """
    if actions.shape[-1] != 10:
        return actions
    scaled = actions.copy()
    scaled[..., 3:9] *= np.float32(scale)
    return scaled


class ActionSimilarity:
    """DTW similarity of the future action windows of one data set.

    Attributes:
        actions: (N, D) float32, normalised to [-1, 1], rotation scaled.
        windows: (N, T) step indices.
        distribution: threshold and CDF.
    """

    def __init__(self, demonstrations: Demonstrations, config: SimilarityConfig) -> None:
        self.config = config
        normalized = MinMax.fit(demonstrations.actions).apply(demonstrations.actions)
        self.actions = np.ascontiguousarray(scale_rotation(normalized, config.rotation_scale))
        self.windows = window_indices(demonstrations.episode_ends, config.horizon)
        n = len(self.windows)
        if n < 2:
            raise ConfigError(f"{demonstrations.name}: expected at least 2 steps to compare, got {n}.")
        rng = np.random.default_rng(config.seed)
        left = rng.integers(0, n, config.pairs)
        # The second index skips the first, so every unordered pair i != j is equally likely.
        right = (left + rng.integers(1, n, config.pairs)) % n
        distances = dtw_pairs(self.actions, self.windows, left, right, cost=config.cost)
        self.distribution = DistanceDistribution.fit(distances, config.quantile)

    def distances(self, rows: IntArray) -> FloatArray:
        """(B, B) DTW distances between the windows that start at steps ``rows`` (B,)."""
        return dtw_pairwise(self.actions[self.windows[rows]], cost=self.config.cost)

    def weights(self, rows: IntArray) -> FloatArray:
        """(B, B) soft positive weights w_ij of a batch of steps; the diagonal is zero (paper section 4.2).

        A step that occurs twice in the batch is the best positive of itself (weight 1), never its negative.
        """
        w = self.distribution.weights(self.distances(rows))
        w[rows[:, None] == rows[None, :]] = 1.0
        np.fill_diagonal(w, 0.0)
        return w
