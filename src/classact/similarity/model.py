"""Which steps of a data set behave alike, measured per batch: no N x N matrix ever exists."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from classact.data.actions import ActionSpace
from classact.data.types import Demonstrations, FloatArray, IntArray
from classact.errors import ConfigError
from classact.similarity.config import SimilarityConfig
from classact.similarity.counts import DistanceCounts
from classact.similarity.distribution import DistanceDistribution, mark_duplicates
from classact.similarity.job import Progress, count_pairs
from classact.similarity.pairwise import Windows, dtw_pairwise, sample_pairs, stream_pairs
from classact.similarity.stream import Sweep, WindowStream
from classact.similarity.sweep import make_sweep

if TYPE_CHECKING:
    import torch


def scale_rotation(actions: FloatArray, space: ActionSpace | None, scale: float) -> FloatArray:
    """(N, D) normalised actions with their 6-D rotations scaled (appendix B: by 0.5); unchanged where ``space`` is None
    or has none.
    """
    if space is None or not space.has_rotations:
        return actions
    scaled = actions.copy()
    scaled[..., space.dimensions("rotation_6d")] *= np.float32(scale)
    return scaled


def window_stream(demonstrations: Demonstrations, config: SimilarityConfig) -> WindowStream:
    """The windows that are compared: actions normalised to [-1, 1] per dimension, rotations scaled.

    Constant dimensions add nothing to any distance. Fewer than 2 steps, or a horizon longer than every episode, are a
    ConfigError.
    """
    n, longest = demonstrations.num_steps, int(demonstrations.lengths.max())
    if n < 2:
        raise ConfigError(f"expected at least 2 steps to compare, got {n}.")
    if config.horizon > longest:
        raise ConfigError(
            f"a horizon of {config.horizon} steps is longer than every episode (the longest has "
            f"{longest}), so every window would end in repeated actions. Choose a horizon of at most {longest}."
        )
    normalized = demonstrations.action_range().apply(demonstrations.actions)
    actions = scale_rotation(normalized, demonstrations.schema.actions, config.rotation_scale)
    return WindowStream.build(actions, demonstrations.episode_ends, config.horizon, config.stride)


@contextmanager
def naming(demonstrations: Demonstrations) -> Iterator[None]:
    """Name the data in errors about the settings."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{demonstrations.name} ({demonstrations.source}): {error}") from None


def similarity_identity(stream: WindowStream, config: SimilarityConfig) -> dict[str, Any]:
    """Everything that distances, thresholds and weights depend on: files of another identity are refused."""
    digest = hashlib.sha256(stream.values.data)
    digest.update(stream.starts.data)
    return {"windows": digest.hexdigest(), "settings": asdict(config)}


def sample_distances(stream: WindowStream, config: SimilarityConfig) -> FloatArray:
    """(``config.pairs``,) float32: distances of random pairs i != j, every unordered pair equally likely."""
    left, right = sample_pairs(len(stream), config.pairs, config.seed)
    return stream_pairs(stream, left, right, cost=config.cost, band=config.alignment_band)


def fit_distribution(
    stream: WindowStream,
    sweep: Sweep,
    config: SimilarityConfig,
    count: Callable[[float], DistanceCounts] | None = None,
    progress: Progress | None = None,
) -> DistanceDistribution:
    """Threshold and CDF of a stream's windows; ``sweep`` is over all its pairs.

    ``count`` counts them up to a limit where that is resumable or shared among machines
    (:mod:`classact.similarity.job`); by default it is done here.
    """
    n = len(stream)
    pairs = n * (n - 1) // 2
    sample = sample_distances(stream, config)
    if not config.exact(pairs):
        return DistanceDistribution.fit(sample, config.quantile)

    def count_here(limit: float) -> DistanceCounts:
        return count_pairs(None, sweep, n, limit, {}, progress=progress)

    return DistanceDistribution.fit_exact(sample, config.quantile, pairs, count or count_here)


def _compared(windows: Windows, anchors: int | None) -> tuple[Windows, Windows | None]:
    """Both sides of a batch: all windows with themselves (half the work), or the first of them with all."""
    return (windows, None) if anchors is None or anchors == len(windows) else (windows[:anchors], windows)


class ActionSimilarity:
    """Similarity of the future action windows of one data set.

    ``distribution`` is threshold and CDF where already known; otherwise all pairs are measured, on "cpu" or "cuda", and
    ``progress`` is called with (pairs done, pairs in all, status).
    """

    def __init__(
        self,
        demonstrations: Demonstrations,
        config: SimilarityConfig,
        *,
        device: str = "cpu",
        distribution: DistanceDistribution | None = None,
        progress: Progress | None = None,
    ) -> None:
        demonstrations.require_actions()
        self.config = config
        self.device = device
        self.stream = window_stream(demonstrations, config)
        self.distribution = distribution or fit_distribution(self.stream, self.sweep, config, progress=progress)
        self._on_device: tuple[Any, ...] | None = None
        self._batches_on_device = device != "cpu"

    @cached_property
    def sweep(self) -> Sweep:
        """Over all window pairs: on the GPU where that is the device and usable."""
        device = "cpu" if self.device == "cpu" else "auto"
        return make_sweep(self.stream, cost=self.config.cost, band=self.config.alignment_band, device=device)

    def distances(self, rows: IntArray, anchors: int | None = None, *, limit: float = np.inf) -> FloatArray:
        """(B, C) distances of the windows at the first B of the steps ``rows`` (C,) to all of these.

        B is ``anchors``, by default C. Distances above ``limit`` may be infinite. A step out of range is a ConfigError.
        """
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self.stream):
            raise ConfigError(f"expected steps within 0..{len(self.stream) - 1}, got {rows.min()}..{rows.max()}.")
        windows = self.stream.windows(rows)
        x, y = _compared(windows, anchors)
        return dtw_pairwise(x, y, cost=self.config.cost, band=self.config.alignment_band, limit=limit)

    def weights(self, rows: IntArray, anchors: int | None = None) -> FloatArray:
        """(B, C) soft positive weights w_ij of the first B of a batch's C steps; the diagonal is zero (section 4.2).

        A step that occurs twice in ``rows`` (C,) is its own best positive (weight 1), never its negative. B is
        ``anchors``, by default C.
        """
        d = self.distances(rows, anchors, limit=self.distribution.threshold)
        return mark_duplicates(self.distribution.weights(d, out=d), rows)

    def weights_tensor(self, rows: IntArray, anchors: int | None = None) -> torch.Tensor:
        """:meth:`weights` as a tensor on ``device``, computed on the GPU where the kernels can use it."""
        import torch

        if self._batches_on_device:
            try:
                return self._weights_on_device(rows, anchors)
            except ConfigError as error:
                self._batches_on_device = False
                logging.getLogger("classact").warning("weights of batches are computed on the CPU: %s", error)
        return torch.from_numpy(self.weights(rows, anchors)).to(self.device)

    def _weights_on_device(self, rows: IntArray, anchors: int | None) -> torch.Tensor:
        import torch

        from classact.similarity.gpu import dtw_pairwise_torch

        if self._on_device is None:
            parts = (self.stream.points, self.stream.starts, self.distribution.values, self.distribution.weight)
            self._on_device = tuple(torch.from_numpy(part).to(self.device) for part in parts)
        points, starts, values, weight = self._on_device
        index = torch.from_numpy(rows).to(self.device, non_blocking=True)
        steps = torch.arange(self.stream.horizon, device=self.device)
        windows = points[starts[index][:, None] + steps]
        threshold = self.distribution.threshold
        # The stream is known to be finite; a check would synchronise with the device at every step.
        band = self.config.alignment_band
        x, y = _compared(windows, anchors)
        d = dtw_pairwise_torch(x, y, cost=self.config.cost, band=band, limit=threshold, check=False)
        at = torch.searchsorted(values, d, right=True)
        w = torch.where(at > 0, weight[(at - 1).clamp(min=0)], 1.0)
        w = torch.where(d <= threshold, w, 0.0)
        w = torch.where(index[: len(d), None] == index[None, :], 1.0, w)
        return w.fill_diagonal_(0.0)
