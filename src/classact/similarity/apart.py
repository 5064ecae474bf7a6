"""How far apart things are in the timesteps that CLASS calls alike: would it learn not to see what is manipulated?

Early in a demonstration a thing lies where it lies, and the hand is on its way. If the positives of such timesteps have
their things no closer together than any two demonstrations, similarity of actions says nothing of the thing, and an
encoder that learns from it becomes *invariant* to where the thing is. Windows that are too short do this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from classact.data.types import FloatArray, IntArray, StateArray
from classact.errors import ConfigError

if TYPE_CHECKING:
    from classact.similarity.distribution import DistanceDistribution
    from classact.similarity.stream import WindowStream

EARLY = 0.1
"""First share of each episode whose timesteps are looked at."""

MOST = 1536
"""Timesteps that are compared, all with all; of more, as many of each episode are drawn."""

NO_CLOSER = 0.9
"""From this ratio on positives count as no closer than random pairs."""


@dataclass(frozen=True)
class Apart:
    """How far apart some columns are at early timesteps of different episodes, in the columns' own unit.

    Attributes:
        name: of the columns.
        positives: mean Euclidean distance over positives, weighted as training weighs them; None without any.
        random: over all pairs of early timesteps of different episodes.
        ratio: of the two; 1: positives are as far apart as any, 0: they coincide.
        low, high: its 95 % interval over episodes (jackknife).
    """

    name: str
    positives: float | None
    random: float
    ratio: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def unseen(self) -> bool:
        """Positives are no closer than random pairs."""
        return self.ratio is not None and self.ratio >= NO_CLOSER


def early_rows(episode_ends: IntArray, share: float = EARLY, *, most: int = MOST, seed: int = 0) -> IntArray:
    """(M,) ascending: steps in the first ``share`` of each episode, at least one of each; of more than ``most`` equally
    many of each episode, drawn at random.

    Raises:
        ConfigError: a share that is none.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"expected a share of each episode above 0, at most 1, got {share:g}.")
    ends = np.asarray(episode_ends, np.int64)
    lengths = np.diff(ends, prepend=0)
    rows = [np.arange(end - n, end - n + max(1, round(share * n))) for end, n in zip(ends, lengths, strict=True)]
    if sum(map(len, rows)) > most:
        rng, each = np.random.default_rng(seed), max(1, most // len(rows))
        rows = [np.sort(rng.permutation(own)[:each]) for own in rows]
    return np.concatenate(rows)


def objects_apart(
    stream: WindowStream,
    episode: IntArray,
    columns: Mapping[str, StateArray],
    distribution: DistanceDistribution,
    rows: IntArray,
    *,
    cost: str = "sqeuclidean",
    band: int | None = None,
) -> list[Apart]:
    """How far apart columns are in positives among some timesteps, compared with any two of them.

    Only pairs of different episodes count: within one, everything is close to what it was a moment ago.

    Args:
        stream: N windows.
        episode: (N,) of each.
        columns: name -> (N, d) values of each timestep, such as the position of a cube in metres.
        distribution: tells which pairs are positives, and their weights.
        rows: (M,) the timesteps, as of :func:`early_rows`.
        cost, band: of the alignment.
    """
    from classact.similarity.pairwise import dtw_pairwise  # compiled: only where something is compared

    windows = stream.windows(rows)
    weights = distribution.weights(dtw_pairwise(windows, cost=cost, band=band, limit=distribution.threshold))
    names, number = np.unique(episode[rows], return_inverse=True)
    member = np.zeros((len(names), len(rows)), np.float32)
    member[number, np.arange(len(rows))] = 1

    def by_episodes(values: FloatArray) -> StateArray:
        """(E, E) sums over the pairs of two episodes, none with itself."""
        sums = (member @ values @ member.T).astype(np.float64)
        np.fill_diagonal(sums, 0)
        return sums

    count, weight = by_episodes(np.ones_like(weights)), by_episodes(weights)
    found = []
    for name, values in columns.items():
        apart = _distances(values[rows])
        random, near = by_episodes(apart), by_episodes(weights * apart)
        found.append(_compared(name, near, weight, random, count))
    return found


def _distances(values: StateArray) -> FloatArray:
    """(M, M) Euclidean distances of (M, d) values."""
    total = np.zeros((len(values), len(values)))
    for column in np.asarray(values, np.float64).T:
        total += np.subtract.outer(column, column) ** 2
    return np.sqrt(total).astype(np.float32)


def _compared(name: str, near: StateArray, weight: StateArray, random: StateArray, count: StateArray) -> Apart:
    if not count.sum():
        raise ConfigError("expected timesteps of at least two episodes to compare, got one episode.")
    usual = float(random.sum() / count.sum())
    if not weight.sum() > 0:
        return Apart(name, None, usual)
    closer = float(near.sum() / weight.sum())
    if usual == 0:  # the same in all episodes: there is nothing to be seen
        return Apart(name, closer, usual)
    ratio = closer / usual

    def without(sums: StateArray) -> StateArray:
        """(E,) sums without the pairs of each episode; each pair is there twice."""
        return np.asarray(sums.sum() - sums.sum(0) - sums.sum(1))

    with np.errstate(invalid="ignore", divide="ignore"):
        others = (without(near) / without(weight)) / (without(random) / without(count))
    others = others[np.isfinite(others)]
    if len(others) < 3:
        return Apart(name, closer, usual, ratio)
    spread = 1.96 * float(np.sqrt((len(others) - 1) / len(others) * ((others - others.mean()) ** 2).sum()))
    return Apart(name, closer, usual, ratio, max(0.0, ratio - spread), ratio + spread)


def unseen_warnings(found: Sequence[Apart], early: float, window: str) -> list[str]:
    """What is to be said where positives tell of no thing at all; ``window`` says how long windows are.

    Of several things those that are dealt with later need not be told: that is what CLASS is to learn.
    """
    measured = [one for one in found if one.ratio is not None]
    if not measured or not all(one.unseen for one in measured):
        return []
    names = " or ".join(one.name for one in measured)
    apart = ", ".join(f"{one.positives:.3g}" for one in measured), ", ".join(f"{one.random:.3g}" for one in measured)
    return [
        f"Positives do not tell where {names} is: in the first {100 * early:g} % of each demonstration they have it "
        f"{apart[0]} apart, any two demonstrations {apart[1]}. An encoder that learns from windows of {window} becomes "
        f"invariant to it. A longer window (--horizon 1.6s) spans what is done with it; a smaller K alone rarely helps."
    ]


def share_apart(early: float, found: Apart) -> str:
    """A row in words."""
    if found.positives is None:
        return f"no positives there; any two are {found.random:.3g} apart"
    if found.ratio is None:
        return f"the same in all episodes ({found.random:.3g} apart)"
    interval = "" if found.low is None else f", {found.low:.2f} to {found.high:.2f}"
    where = f"in the first {100 * early:g} %"
    return (
        f"{found.positives:.3g} apart in positives {where}, {found.random:.3g} in any two: {found.ratio:.2f}{interval}"
    )
