"""The global distribution of action distances: the threshold at quantile K and the weights of the pairs below it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from classact.data.types import FloatArray, IntArray
from classact.errors import CheckpointError, ConfigError
from classact.similarity.counts import DistanceCounts
from classact.similarity.threads import parallel
from classact.utils.codec import first_difference, to_json
from classact.utils.statistics import dkw_epsilon
from classact.utils.storage import read_arrays, read_json, verify_folder, write_arrays, write_folder, write_json

HISTOGRAM_BINS = 120
_METADATA, _ARRAYS = "distribution.json", "distribution.safetensors"
_ARRAY_FIELDS = ("values", "weight", "edges", "counts")
_NUMBER_FIELDS = ("quantile", "threshold", "kept", "pairs", "exact", "epsilon")
_BRACKET_DELTA = 1e-9  # chance that the bracket of an exact threshold fails and is widened for another count
_log = logging.getLogger("classact")


@parallel
@nb.njit(parallel=True, cache=True)  # type: ignore[untyped-decorator]
def _weigh(distances: Any, values: Any, weight: Any, threshold: Any, out: Any) -> None:
    for i in nb.prange(len(distances)):
        for j in range(distances.shape[1]):
            d = distances[i, j]
            w = np.float32(0)
            if d <= threshold:
                at = np.searchsorted(values, d, side="right")
                w = weight[at - 1] if at else np.float32(1)
            out[i, j] = w


@dataclass(frozen=True)
class DistanceDistribution:
    """Distances of pairs i < j over the whole data set (paper sections 4.1, 4.2, appendix B).

    Attributes:
        quantile: K as a fraction (0.015 is the paper's 1.5 %).
        threshold: largest distance of a positive pair: the K-quantile of all distances.
        values: (U,) float32, ascending: distances at which the weight changes.
        weight: (U,) float32: w = 1 - CDF(distance) from each of ``values`` on, with the empirical CDF of the distances
            up to the threshold, ties included.
        kept: measured pairs at or below the threshold.
        pairs: measured pairs; all of them where ``exact``.
        exact: whether every pair was measured, or a random sample.
        epsilon: bound on the error of the empirical CDF at confidence 99.9 % (Dvoretzky-Kiefer-Wolfowitz): the
            threshold is the exact quantile of some K' with abs(K' - K) <= epsilon. 0 where ``exact``.
        edges, counts: histogram of a random sample of pairs, for display.
    """

    quantile: float
    threshold: float
    values: FloatArray
    weight: FloatArray
    kept: int
    pairs: int
    exact: bool
    epsilon: float
    edges: NDArray[np.float64]
    counts: NDArray[np.int64]

    @staticmethod
    def fit(distances: FloatArray, quantile: float) -> DistanceDistribution:
        """Estimate from the (P,) distances of random pairs.

        Raises:
            ConfigError: K outside (0, 1), K that selects no pair or all, or kept distances that are all equal: every
                positive would weigh zero.
        """
        ordered = _ordered(distances, quantile)
        counts = DistanceCounts(ordered[-1])
        counts.add(ordered)
        return _from_counts(counts, quantile, len(ordered), False, *_histogram(ordered))

    @staticmethod
    def fit_exact(
        sample: FloatArray, quantile: float, pairs: int, count: Callable[[float], DistanceCounts]
    ) -> DistanceDistribution:
        """The exact threshold and CDF of all ``pairs`` pairs, in one pass.

        A sample (P,) of distances bounds the threshold from above; ``count`` counts all pairs up to that bound, and the
        threshold is found among them by rank. Errors are those of :meth:`fit`.
        """
        ordered = _ordered(sample, quantile)
        rank = quantile_rank(quantile, pairs)
        slack = dkw_epsilon(len(ordered), _BRACKET_DELTA)
        while True:
            at = math.ceil((quantile + slack) * len(ordered))
            limit = float(ordered[at - 1]) if at <= len(ordered) and pairs > len(ordered) else math.inf
            found = count(limit)
            if found.total >= max(rank, 1) or limit == math.inf:
                break
            _log.warning("the sampled bracket of the threshold was too low; counting again with a wider one")
            slack *= 4
        return _from_counts(found, quantile, pairs, True, *_histogram(ordered))

    def weights(self, distances: FloatArray, *, out: FloatArray | None = None) -> FloatArray:
        """Soft positive weights w = 1 - CDF(distance) of float32 distances, 0 above the threshold (section 4.2).

        ``out``, contiguous, receives the result; it may be ``distances`` itself.
        """
        flat = np.ascontiguousarray(distances, np.float32)
        result = np.empty_like(flat) if out is None else out
        rows = len(flat) if flat.ndim > 1 else 1
        _weigh(flat.reshape(rows, -1), self.values, self.weight, np.float32(self.threshold), result.reshape(rows, -1))
        return result.reshape(np.shape(distances))

    def to_json(self) -> dict[str, Any]:
        """Numbers for the report, without the weight function."""
        histogram = {"edges": self.edges.tolist(), "counts": self.counts.tolist()}
        return {**{name: getattr(self, name) for name in _NUMBER_FIELDS}, "histogram": histogram}


def mark_duplicates(weights: FloatArray, rows: IntArray) -> FloatArray:
    """Set, in place, the weights (B, C) of repeated steps to 1 and the diagonal to 0; returns them.

    A step that occurs twice in the batch ``rows`` (C,) is its own best positive, never its negative.
    """
    if len(np.unique(rows)) < len(rows):
        weights[rows[: len(weights), None] == rows[None, :]] = 1.0
    np.fill_diagonal(weights, 0.0)
    return weights


def write_distribution(folder: Path, distribution: DistanceDistribution, identity: Mapping[str, Any]) -> None:
    """Write a distribution to a checksummed folder, with its similarity_identity."""

    def fill(temporary: Path) -> None:
        write_arrays(temporary / _ARRAYS, {name: getattr(distribution, name) for name in _ARRAY_FIELDS})
        numbers = {name: getattr(distribution, name) for name in _NUMBER_FIELDS}
        write_json(temporary / _METADATA, {"identity": identity} | numbers)

    write_folder(folder, fill)


def read_distribution(folder: Path, identity: Mapping[str, Any]) -> DistanceDistribution:
    """Read what :func:`write_distribution` wrote.

    Raises:
        CheckpointError: missing or damaged.
        ConfigError: of other data or settings; names the first difference.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} does not exist; 'classact similarity' writes it.")
    verify_folder(folder, "Run 'classact similarity' again: it measures what is damaged.")
    metadata = read_json(folder / _METADATA, CheckpointError)
    if difference := first_difference(metadata["identity"], to_json(identity), ""):
        raise ConfigError(
            f"{folder} was made with {difference}. Use the data and settings that it was made with, or run "
            f"'classact similarity' for the new ones with another --out."
        )
    arrays = read_arrays(folder / _ARRAYS, CheckpointError)
    fields: dict[str, Any] = {name: metadata[name] for name in _NUMBER_FIELDS}
    return DistanceDistribution(**fields | {name: arrays[name] for name in _ARRAY_FIELDS})


def _ordered(distances: FloatArray, quantile: float) -> FloatArray:
    if not 0 < quantile < 1:
        raise ConfigError(f"expected a quantile K between 0 and 1 (the paper's 1.5 % is 0.015), got {quantile}.")
    if not np.isfinite(distances).all():
        raise ConfigError("action distances hold NaN or infinite values; the actions must be finite.")
    return np.sort(distances)


def quantile_rank(quantile: float, pairs: int) -> int:
    """How many of ``pairs`` pairs K selects."""
    # 0.29 of 100 pairs are 29, though the nearest float is a little less.
    return math.floor(Fraction(quantile).limit_denominator(1_000_000_000) * pairs)


def _from_counts(
    counted: DistanceCounts,
    quantile: float,
    pairs: int,
    exact: bool,
    edges: NDArray[np.float64],
    histogram: NDArray[np.int64],
) -> DistanceDistribution:
    rank = quantile_rank(quantile, pairs)
    if rank < 1:
        raise ConfigError(
            f"K = {quantile} of {pairs:,} pairs selects no pair at all; expected K of at least "
            f"{1 / max(pairs, 1):.2g}. Raise K (the paper uses 0.01 to 0.025), or measure more pairs."
        )
    # Twice through the counts, a block at a time: there may be more distinct distances than fit in memory.
    kept, threshold, smallest = 0, np.float32(0), None
    for values, counts in counted.blocks():
        smallest = values[0] if smallest is None else smallest
        total = kept + np.cumsum(counts)
        last = int(np.searchsorted(total, rank))
        kept = int(total[min(last, len(total) - 1)])
        threshold = values[min(last, len(total) - 1)]
        if last < len(total):
            break
    if threshold == smallest:
        raise ConfigError(
            f"K = {quantile} keeps {kept:,} of {pairs:,} pairs whose distances all equal "
            f"{float(threshold):.6g}: no graded weights can be made. The actions hardly vary, or K is too small."
        )
    if kept == pairs:
        raise ConfigError(
            f"K = {quantile} keeps all {pairs:,} pairs (distances up to {float(threshold):.6g}): nothing is left to "
            f"contrast with. Lower K; the paper uses 0.01 to 0.025."
        )
    before, previous = 0, np.float32(np.nan)
    steps: list[tuple[FloatArray, FloatArray]] = []
    for values, counts in counted.blocks():
        total = before + np.cumsum(counts)
        before = int(total[-1])
        # float32 throughout, so that equal ranks give equal weights in every mode.
        weight = np.float32(1) - total.astype(np.float32) / np.float32(kept)
        new = np.concatenate([[weight[0] != previous], weight[1:] != weight[:-1]]) & (values <= threshold)
        previous = weight[-1]
        steps.append((values[new], weight[new]))
        if values[-1] >= threshold:
            break
    return DistanceDistribution(
        quantile,
        float(threshold),
        np.concatenate([part[0] for part in steps]),
        np.concatenate([part[1] for part in steps]),
        kept,
        pairs,
        exact,
        0.0 if exact else dkw_epsilon(pairs),
        edges,
        histogram,
    )


def _histogram(ordered: FloatArray) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    # Logarithmic bins: distances span several decades, and the threshold lies in the lowest ones.
    largest = max(float(ordered[-1]), float(np.finfo(np.float32).tiny))
    edges = np.concatenate([[0.0], np.geomspace(largest * 1e-5, largest * (1 + 1e-6), HISTOGRAM_BINS)])
    return edges, np.histogram(ordered, edges)[0].astype(np.int64)
