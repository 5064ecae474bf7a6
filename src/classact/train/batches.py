"""Which steps make a batch: slices of shuffled epochs, or anchors from them together with their positives.

Every draw is a function of (seed, epoch) or (seed, step), so a run that is resumed continues with the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from classact.data.types import FloatArray, IntArray
from classact.errors import ConfigError

_POSITIVES = 1
"""Third word of the seeds of drawn positives: (seed, step) alone seeds what else is drawn at a step."""


class Neighbors(Protocol):
    """A graph of positives: :class:`classact.similarity.graph.SimilarityGraph`."""

    def __len__(self) -> int:
        """N steps."""
        ...

    def neighbors(self, i: int) -> tuple[NDArray[Any], FloatArray]:
        """Steps (E_i,) and distances (E_i,) of step ``i``."""
        ...


class _Epochs:
    """The steps of all epochs one behind the other, each epoch a permutation drawn from (seed, epoch)."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed
        self.drawn: tuple[int, IntArray] = (-1, np.empty(0, np.int64))

    def take(self, position: int, count: int) -> IntArray:
        """(count,) steps from ``position`` on."""
        rows = np.empty(count, np.int64)
        filled = 0
        while filled < count:
            epoch, offset = divmod(position + filled, self.n)
            if self.drawn[0] != epoch:
                self.drawn = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.n)
            part = self.drawn[1][offset : offset + count - filled]
            rows[filled : filled + len(part)] = part
            filled += len(part)
        return rows


def epoch_batches(n: int, batch_size: int, seed: int, first_step: int) -> Iterator[IntArray]:
    """Batches of step indices from ``first_step`` on, without end.

    Each epoch is a permutation drawn from (seed, epoch); batches run across its end, so that every step occurs equally
    often and no batch is short.

    Args:
        n: steps of the data set.
        batch_size: B; min(B, n) are drawn.
        seed: of the permutations.
        first_step: number of the first batch.
    """
    batch = min(batch_size, n)
    epochs = _Epochs(n, seed)
    position = first_step * batch
    while True:
        yield epochs.take(position, batch)
        position += batch


def anchors_per_batch(n: int, batch_size: int, positives_per_anchor: int) -> int:
    """How many of min(B, n) steps are anchors: a share of 1 / (1 + p), rounded up.

    Raises:
        ConfigError: no data, a batch below 2, or a batch in which no anchor can have its positives.
    """
    if n < 2 or batch_size < 2:
        raise ConfigError(f"expected at least 2 steps and batches of at least 2, got {n} steps and {batch_size}.")
    if not 1 <= positives_per_anchor < batch_size:
        raise ConfigError(
            f"expected 1 to {batch_size - 1} positives per anchor in batches of {batch_size}, got "
            f"{positives_per_anchor}. Draw fewer positives, or raise the batch size."
        )
    return -(-min(batch_size, n) // (1 + positives_per_anchor))


def positive_batches(
    n: int,
    batch_size: int,
    seed: int,
    first_step: int,
    graph: Neighbors,
    positives_per_anchor: int,
    *,
    weigh: Callable[[FloatArray], FloatArray] | None = None,
) -> Iterator[IntArray]:
    """Batches of anchors and of positives drawn for each, from ``first_step`` on, without end.

    The anchors come from the permutations of :func:`epoch_batches`, so each step is an anchor equally often. Each gets
    p positives from its row of the graph, or all where it has fewer; the remaining places are taken by other steps.
    Where B is no multiple of 1 + p, the last anchors get one positive less.

    Args:
        n: steps of the data set.
        batch_size: B; batches have min(B, n) steps, no step twice.
        seed: of the permutations and draws.
        first_step: number of the first batch; batch s is a function of (seed, s).
        graph: positives of each step.
        positives_per_anchor: p.
        weigh: weight of a positive at a distance, as :meth:`classact.similarity.DistanceDistribution.weights`: how
            likely it is drawn, never where it is 0. None draws all alike.

    Yields:
        (B,) steps: anchors, then the others.

    Raises:
        ConfigError: a graph of another number of steps, or p that does not fit into a batch.
    """
    count = anchors_per_batch(n, batch_size, positives_per_anchor)
    if len(graph) != n:
        raise ConfigError(f"the similarity graph has {len(graph):,} steps, the data {n:,}: build it for these data.")
    return _positive_batches(n, min(batch_size, n), seed, first_step, graph, count, weigh)


def _positive_batches(
    n: int,
    batch: int,
    seed: int,
    step: int,
    graph: Neighbors,
    count: int,
    weigh: Callable[[FloatArray], FloatArray] | None,
) -> Iterator[IntArray]:
    epochs = _Epochs(n, seed)
    taken = np.zeros(n, np.bool_)
    while True:
        rng = np.random.default_rng([seed, step, _POSITIVES])
        # Where an epoch ends within a batch, the next may begin with steps that are in it.
        anchors = epochs.take(step * count, count)
        anchors = anchors[np.sort(np.unique(anchors, return_index=True)[1])]
        taken[anchors] = True
        drawn = [anchors]
        places = batch - count
        for k, anchor in enumerate(anchors.tolist()):
            positives = _draw(rng, graph, anchor, places // count + (k < places % count), taken, weigh)
            taken[positives] = True
            drawn.append(positives)
        drawn.append(_others(rng, taken, batch - sum(map(len, drawn)), sparse=2 * batch < n))
        rows = np.concatenate(drawn)
        taken[rows] = False
        step += 1
        yield rows


def _draw(
    rng: np.random.Generator,
    graph: Neighbors,
    anchor: int,
    count: int,
    taken: NDArray[np.bool_],
    weigh: Callable[[FloatArray], FloatArray] | None,
) -> IntArray:
    """At most ``count`` positives of ``anchor`` that are not in the batch yet."""
    indices, distances = graph.neighbors(anchor)
    free = ~taken[indices]
    weights = np.ones(len(indices)) if weigh is None else np.asarray(weigh(np.asarray(distances)), np.float64)
    free &= weights > 0
    # The smallest of exponential times of rates w: draws without replacement by weight.
    times = rng.exponential(size=int(free.sum())) / weights[free]
    return np.asarray(indices[free][np.argsort(times, kind="stable")[:count]], np.int64)


def _others(rng: np.random.Generator, taken: NDArray[np.bool_], count: int, *, sparse: bool) -> IntArray:
    """``count`` steps that are not taken; ``sparse`` says that most are free."""
    if not sparse:
        return rng.choice(np.flatnonzero(~taken), count, replace=False)
    rows: list[int] = []
    while len(rows) < count:
        for row in rng.integers(0, len(taken), count - len(rows)).tolist():
            if not taken[row]:
                taken[row] = True
                rows.append(row)
    return np.array(rows, np.int64)


def mean_positives(graph: Neighbors, batches: Iterable[IntArray]) -> float:
    """Positives of a step within its batch, averaged over the steps of ``batches``: what a loss sees.

    Args:
        graph: positives of each step.
        batches: (B,) steps each; a few hundred of them give a stable mean.
    """
    positives, steps = 0, 0
    inside = np.zeros(len(graph), np.bool_)
    for rows in batches:
        inside[rows] = True
        positives += sum(int(np.count_nonzero(inside[graph.neighbors(row)[0]])) for row in rows.tolist())
        steps += len(rows)
        inside[rows] = False
    return positives / max(steps, 1)
