"""Which steps make a batch: slices of shuffled epochs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from classact.data.types import IntArray


def epoch_batches(n: int, batch_size: int, seed: int, first_step: int) -> Iterator[IntArray]:
    """Batches of B = min(``batch_size``, ``n``) step indices from batch ``first_step`` on, without end.

    Each epoch is a permutation drawn from (seed, epoch); batches run across its end, so that every step occurs equally
    often and no batch is short. A resumed run continues with the same batches.
    """
    batch = min(batch_size, n)
    drawn, order = -1, np.empty(0, np.int64)
    position = first_step * batch
    while True:
        rows = np.empty(batch, np.int64)
        filled = 0
        while filled < batch:
            epoch, offset = divmod(position + filled, n)
            if epoch != drawn:
                drawn, order = epoch, np.random.default_rng([seed, epoch]).permutation(n)
            part = order[offset : offset + batch - filled]
            rows[filled : filled + len(part)] = part
            filled += len(part)
        yield rows
        position += batch
