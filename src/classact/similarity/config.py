"""Settings of the action similarity, without torch or numba."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from classact.data.rate import STEPS
from classact.errors import ConfigError, UnknownNameError, choose
from classact.similarity.reference import check_alignment
from classact.utils.codec import ADDED

Metric = Literal["dtw", "l2"]
Cost = Literal["sqeuclidean", "euclidean"]
Estimate = Literal["auto", "exact", "sampled"]

AUTO_EXACT_PAIRS = 5_000_000_000  # limit of "auto" (100,000 steps), about a minute on two CPU cores


@dataclass(frozen=True)
class SimilarityConfig:
    """Settings of the action similarity (paper sections 4.1, 4.2, B, tables 4 and 5).

    Attributes:
        horizon: T_p, steps of a window.
        stride: steps of the data per compared one, which is the mean of their actions: that makes alignments
            stride**2 times as fast, and 50 steps say little more than their 10 means.
        metric: "dtw", or "l2": no warping (figure 4c).
        cost: step cost of DTW: "sqeuclidean" (the released code, which produced the paper's numbers; the default) or
            "euclidean" (the paper's text).
        band: Sakoe-Chiba band of DTW in steps of the data; None for none (the paper).
        quantile: K as a fraction: pairs below this quantile of all distances are positives.
        rotation_scale: factor on the 6-D rotations of the action space (B: 0.5).
        estimate: threshold and CDF from all pairs ("exact"), from ``pairs`` random ones with a stated error bound
            ("sampled", appendix B), or "auto": exact up to :data:`AUTO_EXACT_PAIRS` pairs.
        pairs: size of the sample. An exact threshold is bracketed by it, too.
        seed: of the sample.
    """

    horizon: int = field(default=16, metadata=STEPS)
    stride: int = field(default=1, metadata=ADDED)
    metric: Metric = "dtw"
    cost: Cost = "sqeuclidean"
    band: int | None = field(default=None, metadata=STEPS)
    quantile: float = 0.015
    rotation_scale: float = 0.5
    estimate: Estimate = "auto"
    pairs: int = 4_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_alignment(self.cost, self.band)
        for name, known in (("metric", Metric), ("estimate", Estimate)):
            if getattr(self, name) not in get_args(known):
                raise UnknownNameError(choose(name, getattr(self, name), get_args(known)))
        if self.metric == "l2" and (self.band is not None or self.cost != "sqeuclidean"):
            raise ConfigError(
                f"metric 'l2' compares equal steps by their squared distance; it has no band and no other step cost, "
                f"got band {self.band} and cost {self.cost!r}. Leave both at their defaults."
            )
        if self.horizon < 1:
            raise ConfigError(f"expected a horizon of at least 1 step, got {self.horizon}.")
        if not 1 <= self.stride <= self.horizon:
            raise ConfigError(
                f"expected a stride, steps of a window that are averaged before they are compared, of 1 to "
                f"{self.horizon}, the horizon, got {self.stride}."
            )
        if not 0 < self.quantile < 1:
            raise ConfigError(f"expected a quantile K between 0 and 1 (1.5 % is 0.015), got {self.quantile}.")
        if self.pairs < 1:
            raise ConfigError(f"expected at least 1 pair to measure, got {self.pairs}.")
        if self.seed < 0:
            raise ConfigError(f"expected a seed of at least 0, got {self.seed}.")

    @property
    def alignment_band(self) -> int | None:
        """Band of the alignments, in compared steps: 0, only equal ones, for l2."""
        return 0 if self.metric == "l2" else None if self.band is None else -(-self.band // self.stride)

    def exact(self, pairs: int) -> bool:
        """Whether threshold and CDF are measured over all of ``pairs`` pairs."""
        return self.estimate == "exact" or (self.estimate == "auto" and pairs <= AUTO_EXACT_PAIRS)


@dataclass(frozen=True)
class SimilarityAnalysisConfig:
    """What ``classact similarity`` measures.

    Attributes:
        similarity: the similarity.
        batch_size: of the training that positives per batch are computed for.
        device: "auto", "cpu" or "cuda".
        columns: what is compared between positives at early timesteps: objects of the simulator (as "cube"), keys of
            proprioception, or columns of states, as "states[2:4]". None are all objects of the simulator.
        early: first share of each demonstration whose timesteps are early.
    """

    similarity: SimilarityConfig = field(default_factory=SimilarityConfig)
    batch_size: int = 160
    device: str = "auto"
    columns: tuple[str, ...] = ()
    early: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.early <= 1:
            raise ConfigError(f"expected early, a share of each demonstration, above 0, at most 1, got {self.early:g}.")
        if self.batch_size < 2:
            raise ConfigError(f"expected a batch size of at least 2, got {self.batch_size}.")
