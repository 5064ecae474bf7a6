"""Metrics of a representation: pure functions of arrays.

Steps of one episode are not independent, episodes are. So the 95 % intervals come from a bootstrap over episodes:
``resamples`` times, ``rng`` draws whole episodes with replacement, and their measurements are averaged again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.data.actions import ActionSpace
from classact.data.types import FloatArray, IntArray, StateArray
from classact.similarity import dtw_pairs
from classact.utils.statistics import BOUNDS

RESAMPLES = 1000
JACKKNIFE_GROUPS = 20
_PAIRS = 1 << 22  # differences of latents in memory at once, in numbers


@dataclass(frozen=True)
class Metric:
    """A number, NaN where undefined (a mean of nothing), with its 95 % interval, None for fewer than 2 episodes."""

    value: float
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """Plain JSON; undefined values are null."""
        parts = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if part is None or not math.isfinite(part) else float(part) for name, part in parts.items()}


def _interval(values: StateArray) -> tuple[float | None, float | None]:
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return None, None
    low, high = np.quantile(known, BOUNDS)
    return float(low), float(high)


def episode_mean(
    values: NDArray[Any], episodes: IntArray, rng: np.random.Generator, *, resamples: int = RESAMPLES
) -> Metric:
    """Mean over steps of (Q,) values, without those that are NaN; ``episodes`` (Q,) are the steps'."""
    known = np.isfinite(values)
    if not known.any():
        return Metric(math.nan)
    labels, inverse = np.unique(episodes[known], return_inverse=True)
    sums = np.bincount(inverse, values[known].astype(np.float64))
    counts = np.bincount(inverse)
    mean = float(sums.sum() / counts.sum())
    if len(labels) < 2:
        return Metric(mean)
    drawn = draw_episodes((len(labels),), rng, resamples)
    return Metric(mean, *_interval((drawn @ sums) / (drawn @ counts)))


def draw_episodes(sizes: Sequence[int], rng: np.random.Generator, resamples: int = RESAMPLES) -> IntArray:
    """(resamples, sum of sizes): how often each episode was drawn, with replacement within each of the sets."""
    return np.concatenate([rng.multinomial(n, np.full(n, 1 / n), size=resamples) for n in sizes], axis=1)


def pair_mean(
    values: NDArray[Any],
    left: IntArray,
    right: IntArray,
    rng: np.random.Generator,
    *,
    transform: Callable[[Any], Any] = lambda mean: mean,
    resamples: int = RESAMPLES,
) -> Metric:
    """``transform`` of the mean over pairs of steps, of (P,) ``values`` and (P,) episodes ``left``, ``right``.

    A pair of episodes drawn m and n times counts m n times, one within an episode drawn m times, m times: copies of an
    episode are not compared with each other.
    """
    if len(values) == 0:
        return Metric(math.nan)
    labels, inverse = np.unique(np.concatenate([left, right]), return_inverse=True)
    E = len(labels)
    cell = inverse[: len(left)] * E + inverse[len(left) :]
    sums, counts = (
        np.asarray(np.bincount(cell, part, minlength=E * E), np.float64).reshape(E, E)
        for part in (values.astype(np.float64), np.ones(len(cell)))
    )
    value = float(transform(sums.sum() / counts.sum()))
    if E < 2:
        return Metric(value)
    m = draw_episodes((E,), rng, resamples).astype(np.float64)

    def total(table: StateArray) -> StateArray:
        within = np.diagonal(table)
        return np.asarray(((m @ table) * m).sum(axis=1) - (m * m - m) @ within)

    counted = total(counts)
    some = counted > 0
    return Metric(value, *_interval(np.asarray(transform(total(sums)[some] / counted[some]))))


def average_chunks(
    chunks: FloatArray, cosine: FloatArray, temperature: float, space: ActionSpace | None = None
) -> FloatArray:
    """The action that retrieval takes: neighbours' chunks averaged with softmax(cosine / tau_nn) (paper section 4.4).

    ``chunks`` (Q, k, T, D) are unnormalised, ``cosine`` (Q, k); rotations of ``space`` are averaged as rotations.
    """
    c = cosine.astype(np.float64) / temperature
    weights = np.exp(c - c.max(axis=1, keepdims=True))
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    if space is not None and space.has_rotations:
        return space.average(chunks, weights)
    return np.einsum("qk,qktd->qtd", weights, chunks).astype(np.float32)


def chunk_errors(
    predicted: FloatArray, true: FloatArray, *, cost: str = "sqeuclidean", band: int | None = None
) -> tuple[FloatArray, FloatArray]:
    """Errors of predicted (Q, T, D) chunks of actions, scaled to [-1, 1] like the true ones.

    Returns:
        (Q,) DTW distances (:func:`classact.similarity.dtw` by ``cost`` and ``band``, summed along the alignment), and
        (Q,) L2 distances (Euclidean, mean over the T steps).
    """
    Q, T, D = true.shape
    steps = np.concatenate([predicted.reshape(-1, D), true.reshape(-1, D)])
    windows = np.arange(2 * Q * T).reshape(2 * Q, T)
    at = np.arange(Q)
    dtw = dtw_pairs(steps, windows, at, at + Q, cost=cost, band=band)
    l2 = np.linalg.norm(predicted - true, axis=2).mean(axis=1)
    return dtw, np.asarray(l2, np.float32)


def ndcg(gains: NDArray[Any], ideal: NDArray[Any]) -> StateArray:
    """(Q,) normalised discounted cumulative gain at k, in [0, 1], with linear gains; NaN where nothing has any gain.

    DCG = sum over ranks r = 1..k of gain_r / log2(r + 1), divided by the DCG of the best ranking (Jarvelin and
    Kekalainen, 2002). ``gains`` (Q, k) are in ranked order, ``ideal`` (Q, k) the largest there are, largest first.
    """
    discount = 1 / np.log2(np.arange(2, gains.shape[1] + 2))
    best = ideal.astype(np.float64) @ discount
    found = gains.astype(np.float64) @ discount
    return np.divide(found, best, out=np.full(len(best), np.nan), where=best > 0)


def spearman(
    x: NDArray[Any],
    y: NDArray[Any],
    left: IntArray,
    right: IntArray,
    sizes: Sequence[int],
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
) -> Metric:
    """Spearman's rank correlation of two numbers x, y (P,) of each pair of steps; ties have their mean rank.

    A pair counts as often as its two episodes ``left``, ``right`` (P,), never the same, were drawn, multiplied.
    ``sizes`` are the numbers of episodes in the sets that are resampled by themselves: (held-out, training).
    """
    if len(x) < 2:
        return Metric(math.nan)
    a, b = (np.unique(part, return_inverse=True)[1] for part in (x, y))
    value = _rank_correlation(a, b, np.ones(len(x)))
    if min(sizes) < 2:
        return Metric(value)
    drawn = draw_episodes(sizes, rng, resamples)
    values = [_rank_correlation(a, b, (m[left] * m[right]).astype(np.float64)) for m in drawn]
    return Metric(value, *_interval(np.array(values)))


def _rank_correlation(x: IntArray, y: IntArray, weights: StateArray) -> float:
    """Correlation of the ranks of pairs that occur ``weights`` times; x, y (P,) number the distinct values in order."""
    total = weights.sum()
    if total == 0:
        return math.nan
    ranks = []
    for group in (x, y):
        count = np.bincount(group, weights)
        rank = (np.cumsum(count) - count / 2)[group]
        ranks.append(rank - (weights @ rank) / total)
    a, b = ranks
    scale = math.sqrt(float(weights @ (a * a)) * float(weights @ (b * b)))
    return float(weights @ (a * b)) / scale if scale > 0 else math.nan


def view_matches(
    first: FloatArray, second: FloatArray, episodes: IntArray, steps: IntArray, tolerance: int = 2
) -> dict[str, StateArray]:
    """Whether states are recognised under another appearance.

    Args:
        first, second: (M, d) unit latents of the same states, drawn in two ways.
        episodes, steps: (M,) where the states are from.
        tolerance: steps between states of one episode that are nearly the same.

    Returns:
        Name -> (M,) per state: the cosine of its two drawings, the mean cosine of the first with second drawings of
        other episodes' states (NaN where there are none), their difference, and whether the nearest second drawing
        is of the same state, and of nearly the same one.
    """
    cosine = first.astype(np.float64) @ second.T.astype(np.float64)
    other = episodes[:, None] != episodes[None, :]
    count = other.sum(axis=1)
    different = np.divide((cosine * other).sum(axis=1), count, out=np.full(len(cosine), np.nan), where=count > 0)
    found = cosine.argmax(axis=1)
    near = (episodes[found] == episodes) & (np.abs(steps[found] - steps) <= tolerance)
    same = np.diagonal(cosine).copy()
    return {
        "cosine_same": same,
        "cosine_different": different,
        "margin": same - different,
        "same_state": (found == np.arange(len(found))).astype(np.float64),
        "nearly_same_state": near.astype(np.float64),
    }


def other_episode_share(rows: IntArray, episodes: IntArray, own: IntArray) -> StateArray:
    """(Q,) share of the neighbours ``rows`` (Q, k) whose episode, of ``episodes`` (N,), is not ``own`` (Q,)."""
    return np.asarray((episodes[rows] != own[:, None]).mean(axis=1))


def squared_distances(z: FloatArray, left: IntArray, right: IntArray, other: FloatArray | None = None) -> StateArray:
    """(P,) squared Euclidean distances of rows ``left`` of (N, d) ``z`` from rows ``right`` of ``other``, or ``z``."""
    to = z if other is None else other
    out = np.empty(len(left), np.float64)
    at_once = max(1, _PAIRS // z.shape[1])
    for start in range(0, len(left), at_once):
        part = slice(start, start + at_once)
        out[part] = ((z[left[part]] - to[right[part]]).astype(np.float64) ** 2).sum(axis=1)
    return out


def alignment(z: FloatArray, left: IntArray, right: IntArray, episodes: IntArray, rng: np.random.Generator) -> Metric:
    """Mean squared distance of positive pairs (P,) of unit latents (N, d) (Wang and Isola, arXiv 2005.10242, alpha =
    2).
    """
    return pair_mean(squared_distances(z, left, right), episodes[left], episodes[right], rng)


def all_squared_distances(z: FloatArray) -> StateArray:
    """(N (N - 1) / 2,) squared Euclidean distances of all pairs i < j of rows, in the order of ``np.triu_indices``."""
    wide = z.astype(np.float64)
    squares = (wide * wide).sum(axis=1)
    d = squares[:, None] + squares[None, :] - 2 * wide @ wide.T
    return np.asarray(np.maximum(d, 0)[np.triu_indices(len(z), k=1)])


def uniformity(z: FloatArray, episodes: IntArray, rng: np.random.Generator) -> Metric:
    """log of the mean of exp(-2 |z_i - z_j|^2) over all pairs i < j of unit latents (N, d) (arXiv 2005.10242).

    The lower, the more evenly the latents fill the sphere; 0 where all are equal, at least -8. Holds N^2 numbers.
    """
    left, right = np.triu_indices(len(z), k=1)
    kernel = np.exp(-2.0 * all_squared_distances(z))
    return pair_mean(kernel, episodes[left], episodes[right], rng, transform=np.log)


def effective_rank_estimate(z: FloatArray, episodes: IntArray, groups: int = JACKKNIFE_GROUPS) -> Metric:
    """exp of the entropy of the normalised singular values of centred latents (Roy and Vetterli, EUSIPCO 2007).

    Between 1, where one direction holds everything (by convention also where all rows are equal), and d. The interval
    is a jackknife's over at most ``groups`` groups of episodes: a bootstrap would repeat rows, which lowers a rank.
    """
    labels, inverse = np.unique(episodes, return_inverse=True)
    G = min(groups, len(labels))
    parts = [z[inverse % G == g] for g in range(G)]
    sizes = np.array([len(part) for part in parts])
    sums = np.stack([part.sum(axis=0, dtype=np.float64) for part in parts])
    grams = np.stack([wide.T @ wide for wide in (part.astype(np.float64) for part in parts)])
    total, all_sums, all_grams = int(sizes.sum()), sums.sum(axis=0), grams.sum(axis=0)
    value = _rank_of(total, all_sums, all_grams)
    if G < 2:
        return Metric(value)
    from scipy.stats import t as student

    left_out = np.array([_rank_of(total - sizes[g], all_sums - sums[g], all_grams - grams[g]) for g in range(G)])
    deviation = math.sqrt((G - 1) / G * float(((left_out - left_out.mean()) ** 2).sum()))
    reach = float(student.ppf(BOUNDS[1], G - 1)) * deviation
    return Metric(value, max(value - reach, 1.0), min(value + reach, float(z.shape[1])))


def _rank_of(n: int, total: StateArray, gram: StateArray) -> float:
    """Effective rank of n rows with the given sum (d,) and sum of outer products (d, d)."""
    squared = np.linalg.eigvalsh(gram - np.outer(total, total) / max(n, 1))
    # The rounding error of zero, relative to the size of the rows before centring.
    squared = squared[squared > 1e-13 * max(float(np.trace(gram)), 1e-300)]
    if len(squared) == 0:
        return 1.0
    sigma = np.sqrt(squared)
    p = sigma / sigma.sum()
    return float(np.exp(-(p * np.log(p)).sum()))
