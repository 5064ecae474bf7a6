"""What a choice of K, horizon and metric means for training, measured on seeded samples.

Exact positives per anchor: :mod:`classact.similarity.positives`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from classact.data.types import FloatArray, IntArray
from classact.errors import ConfigError
from classact.similarity.distribution import quantile_rank
from classact.similarity.pairwise import dtw_pairs, dtw_pairwise
from classact.similarity.positives import Positives
from classact.similarity.stream import WindowStream

QUANTILES = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1)
HORIZONS = (1, 2, 4, 8, 16, 32)
HISTOGRAM_BINS = 50

_CELLS = 1 << 22  # distances in memory at once
_PAIRS = 1 << 16

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PositivesPerAnchor:
    """Distribution of the number of positives over anchors.

    Attributes:
        least, median, mean, most: positives per anchor.
        none: share of anchors without any.
        same_episode: share of positive pairs within one episode; 0 where there are no pairs.
        edges, counts: histogram over anchors; integers fall into the bin that begins at or below them.
    """

    least: int
    median: float
    mean: float
    most: int
    none: float
    same_episode: float
    edges: list[float]
    counts: list[int]


def positives_per_anchor(positives: Positives, bins: int = HISTOGRAM_BINS) -> PositivesPerAnchor:
    """Minimum, median, maximum, share with none, and histogram of the positives per anchor."""
    d = positives.total
    most, total = int(d.max()), int(d.sum())
    # Whole numbers per bin, or the histogram would show teeth.
    width = -(-(most + 1) // bins)
    edges = np.arange(0, most + 1 + width, width)
    counts = np.histogram(d, edges)[0]
    return PositivesPerAnchor(
        least=int(d.min()),
        median=float(np.median(d)),
        mean=total / len(d),
        most=most,
        none=float((d == 0).mean()),
        same_episode=int(positives.same_episode.sum()) / total if total else 0.0,
        edges=[float(edge) for edge in edges],
        counts=[int(count) for count in counts],
    )


@dataclass(frozen=True)
class BatchPositives:
    """Positives of an anchor in a batch of ``batch_size`` distinct steps, drawn uniformly: their expected number, mean
    over anchors, and the expected share of anchors without any, which add nothing to the loss.
    """

    batch_size: int
    positives: float
    none: float


def positives_per_batch(positives: IntArray, batch_size: int, n: int | None = None) -> BatchPositives:
    """Expected positives per anchor in a batch, exactly: the other B - 1 are drawn from N - 1 without replacement.

    An anchor with d positives expects (B - 1) d / (N - 1) of them, and none with the hypergeometric probability
    C(N - 1 - d, B - 1) / C(N - 1, B - 1). ``positives`` (M,) are those in the whole data set, of all N anchors if ``n``
    is None.
    """
    from scipy.special import gammaln

    n = len(positives) if n is None else n
    if n < 2 or batch_size < 1:
        raise ConfigError(f"expected at least 2 windows and a batch size of at least 1, got {n} and {batch_size}.")
    size = min(batch_size, n)
    draws = size - 1
    d, anchors = np.unique(np.asarray(positives, np.int64), return_counts=True)
    rest = (n - 1 - d).astype(np.float64)  # windows that are no positives of the anchor
    possible = rest >= draws
    log = np.full(len(d), -np.inf)
    rest = rest[possible]
    log[possible] = (
        gammaln(rest + 1) - gammaln(rest - draws + 1) - gammaln(np.float64(n)) + gammaln(np.float64(n - draws))
    )
    log[d == 0] = 0.0  # otherwise off by rounding
    none = float((np.minimum(np.exp(log), 1.0) * anchors).sum() / len(positives))
    return BatchPositives(size, draws / (n - 1) * float(np.mean(positives)), none)


def same_episode_share(episode_ends: IntArray) -> float:
    """Share of all pairs i < j within one episode: what positives chosen at random would have."""
    lengths = np.diff(np.asarray(episode_ends, np.int64), prepend=0).astype(np.float64)
    n = float(lengths.sum())
    return float((lengths * (lengths - 1)).sum() / (n * (n - 1))) if n > 1 else 0.0


def quantile_threshold(distances: FloatArray, quantile: float) -> float:
    """Largest distance of a positive: the K-quantile of (P,) measured distances, at least the smallest of them."""
    rank = max(quantile_rank(quantile, len(distances)), 1)
    return float(np.partition(distances, rank - 1)[rank - 1])


def jaccard(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Intersection over union of two sets of pairs; 1 where both are empty."""
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else 1.0


@dataclass(frozen=True)
class QuantileRow:
    """The positives that one K gives: threshold over the sampled pairs, positives per sampled anchor among all windows,
    share of anchors without any, share of positives in the anchor's own episode.
    """

    quantile: float
    threshold: float
    least: int
    median: float
    none: float
    same_episode: float


@dataclass(frozen=True)
class AgreementRow:
    """The positives of one setting compared with the current ones, both at their own K-quantile.

    Attributes:
        threshold: its K-quantile of the sampled pairs; comparable only for equal horizon and metric.
        jaccard: intersection over union of both settings' positives.
        same_episode: share of its positives within one episode.
    """

    name: str
    threshold: float
    jaccard: float
    same_episode: float
    current: bool


@dataclass(frozen=True)
class Setting:
    """Horizon T, step cost, Sakoe-Chiba band (None: none; 0: no warping), and steps that are averaged to one."""

    name: str
    horizon: int
    cost: str
    band: int | None
    stride: int = 1


def anchor_positives(
    stream: WindowStream,
    episode: IntArray,
    thresholds: Sequence[float],
    anchors: IntArray,
    *,
    cost: str = "sqeuclidean",
    band: int | None = None,
    progress: Progress | None = None,
) -> list[Positives]:
    """Positives of the anchors ``anchors`` (M,) among all windows, exactly, for each of several thresholds.

    ``episode`` (N,) is each window's episode; ``cost`` and ``band`` are as for
    :func:`classact.similarity.dtw_pairwise`; ``progress`` is called with (anchors done, in all).
    """
    n, limits = len(stream), np.array(thresholds, np.float32)
    total = np.zeros((len(limits), len(anchors)), np.int64)
    inside = np.zeros_like(total)
    step = min(64, len(anchors))
    width = _CELLS // step
    for a in range(0, len(anchors), step):
        rows = anchors[a : a + step]
        x = stream.windows(rows)
        for b in range(0, n, width):
            columns = np.arange(b, min(b + width, n))
            d = dtw_pairwise(x, stream.windows(columns), cost=cost, band=band, limit=float(limits.max()))
            d[rows[:, None] == columns] = np.inf  # an anchor is no positive of its own
            at, column = np.nonzero(d <= limits.max())
            own = episode[rows[at]] == episode[columns[column]]
            near = d[at, column]
            for k, limit in enumerate(limits):
                below = near <= limit
                total[k, a : a + step] += np.bincount(at[below], minlength=len(rows))
                inside[k, a : a + step] += np.bincount(at[below & own], minlength=len(rows))
        if progress is not None:
            progress(min(a + step, len(anchors)), len(anchors))
    return [Positives(p, e) for p, e in zip(total, inside, strict=True)]


def quantile_row(quantile: float, threshold: float, positives: Positives) -> QuantileRow:
    """The row of one K, from the positives of sampled anchors at its threshold."""
    d = positives.total
    own = int(positives.same_episode.sum()) / max(int(d.sum()), 1)
    return QuantileRow(quantile, threshold, int(d.min()), float(np.median(d)), float((d == 0).mean()), own)


def setting_distances(
    actions: FloatArray, episode_ends: IntArray, setting: Setting, left: IntArray, right: IntArray
) -> FloatArray:
    """(P,) distances of the window pairs (left[k], right[k]) of normalised ``actions`` (N, D).

    With a stride these are their :func:`classact.similarity.stream.means`.
    """
    last = np.asarray(episode_ends, np.int64) - 1
    steps = np.arange(0, setting.horizon, setting.stride)
    out = np.empty(len(left), np.float32)
    for at in range(0, len(left), _PAIRS):
        rows = np.concatenate([left[at : at + _PAIRS], right[at : at + _PAIRS]])
        # As window_indices, for these windows alone: all would take 2.6 GB at N = 10 million, T = 32.
        end = last[np.searchsorted(last, rows)]
        windows = np.minimum(rows[:, None] + steps, end[:, None])
        k = np.arange(len(rows) // 2)
        out[at : at + _PAIRS] = dtw_pairs(actions, windows, k, k + len(k), cost=setting.cost, band=setting.band)
    return out


def agreement(
    settings: Sequence[Setting],
    current: Setting,
    distances: Callable[[Setting], FloatArray],
    quantile: float,
    same_episode: NDArray[np.bool_],
) -> list[AgreementRow]:
    """How far the positives under each setting agree with those under the current one.

    ``distances`` (P,) and ``same_episode`` (P,) are of one sample of pairs, in which each setting's threshold is at K.
    """

    def positives(setting: Setting) -> tuple[float, NDArray[np.bool_]]:
        d = distances(setting)
        threshold = quantile_threshold(d, quantile)
        return threshold, np.asarray(d <= np.float32(threshold))

    reference = positives(current)
    rows = []
    for setting in settings:
        same = (setting.horizon, setting.cost, setting.band) == (current.horizon, current.cost, current.band)
        threshold, found = reference if same else positives(setting)
        share = float(same_episode[found].mean()) if found.any() else 0.0
        rows.append(AgreementRow(setting.name, threshold, jaccard(found, reference[1]), share, same))
    return rows


def horizon_settings(current: Setting, horizons: Sequence[int] = HORIZONS) -> list[Setting]:
    """The current setting at several horizons, including its own."""
    return [replace(current, name=f"{t} step{'s' * (t > 1)}", horizon=t) for t in sorted({*horizons, current.horizon})]


def metric_settings(current: Setting) -> list[Setting]:
    """The current horizon under DTW with both step costs, without warping, and unchanged."""
    known = [
        replace(current, name="DTW, squared Euclidean steps", cost="sqeuclidean", band=None),
        replace(current, name="DTW, Euclidean steps", cost="euclidean", band=None),
        replace(current, name="L2, no warping", cost="sqeuclidean", band=0),
    ]
    mine = (current.cost, current.band)
    return known if any((s.cost, s.band) == mine for s in known) else [current, *known]
