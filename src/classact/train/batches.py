"""Which steps make a batch: slices of shuffled epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from classact.data.joined import shares
from classact.data.types import IntArray

_WEIGHTED = 1  # fourth word of the seeds of passes over the steps of one weight


def epoch_batches(
    n: int, batch_size: int, seed: int, first_step: int, weights: NDArray[np.float64] | None = None
) -> Iterator[IntArray]:
    """Batches of B = min(``batch_size``, ``n``) step indices from batch ``first_step`` on, without end.

    Each epoch is a permutation drawn from (seed, epoch); batches run across its end, so that every step occurs equally
    often and no batch is short. A resumed run continues with the same batches.

    Args:
        n: number of steps.
        batch_size, seed, first_step: see above.
        weights: (n,) how often each step is drawn relative to the others. An epoch has n draws still: so many of the
            steps of each weight as is its share, taken from endless shuffled passes over these steps, so that all of
            one weight occur equally often.
    """
    batch = min(batch_size, n)
    epoch_of = _equally(n, seed) if weights is None else _weighted(weights, seed)
    drawn, order = -1, np.empty(0, np.int64)
    position = first_step * batch
    while True:
        rows = np.empty(batch, np.int64)
        filled = 0
        while filled < batch:
            epoch, offset = divmod(position + filled, n)
            if epoch != drawn:
                drawn, order = epoch, epoch_of(epoch)
            part = order[offset : offset + batch - filled]
            rows[filled : filled + len(part)] = part
            filled += len(part)
        yield rows
        position += batch


def _equally(n: int, seed: int) -> Callable[[int], IntArray]:
    return lambda epoch: np.random.default_rng([seed, epoch]).permutation(n)


def _weighted(weights: NDArray[np.float64], seed: int) -> Callable[[int], IntArray]:
    """(n,) draws of an epoch."""
    groups = [np.flatnonzero(weights == weight) for weight in np.unique(weights)]
    counts = shares(np.array([weights[group].sum() for group in groups]), len(weights))

    def epoch_of(epoch: int) -> IntArray:
        drawn = []
        for number, (group, count) in enumerate(zip(groups, counts.tolist(), strict=True), 1):
            first, last = epoch * count, (epoch + 1) * count
            passes = range(first // len(group), -(-last // len(group)))
            shuffled = [np.random.default_rng([seed, one, number, _WEIGHTED]).permutation(group) for one in passes]
            start = first - passes.start * len(group)
            drawn.append(np.concatenate([*shuffled, group[:0]])[start : start + count])
        return np.random.default_rng([seed, epoch]).permutation(np.concatenate(drawn))

    return epoch_of
