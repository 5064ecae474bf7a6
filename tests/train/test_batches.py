from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from classact.train.batches import epoch_batches


@pytest.mark.parametrize(("n", "batch"), [(20, 5), (23, 5), (7, 7), (6, 100)])
def test_every_epoch_is_a_permutation(n: int, batch: int) -> None:
    drawn = np.concatenate(list(islice(epoch_batches(n, batch, 0, 0), 3 * n)))[: 3 * n].reshape(3, n)
    for epoch, rows in enumerate(drawn):
        assert_array_equal(rows, np.random.default_rng([0, epoch]).permutation(n))


def test_batches_are_a_function_of_seed_and_step() -> None:
    straight = list(islice(epoch_batches(23, 5, 3, 0), 12))
    for first in range(12):
        assert_array_equal(next(epoch_batches(23, 5, 3, first)), straight[first])
    assert not np.array_equal(next(epoch_batches(23, 5, 4, 0)), straight[0])
