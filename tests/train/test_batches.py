from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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


@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0.05, 8)), min_size=2, max_size=4),
    st.integers(1, 30),
    st.integers(0, 5),
)
@settings(max_examples=30)
def test_weighted_steps_occur_in_proportion_and_equally_often(
    sets: list[tuple[int, float]], batch: int, seed: int
) -> None:
    weights = np.repeat([weight for _, weight in sets], [n for n, _ in sets])
    n, epochs = len(weights), 6
    batch = min(batch, n)
    batches = epoch_batches(n, batch, seed, 0, weights)
    drawn = np.concatenate(list(islice(batches, -(-epochs * n // batch))))[: epochs * n]
    counts = np.bincount(drawn, minlength=n)
    for weight in np.unique(weights):
        own = counts[weights == weight]
        assert own.max() - own.min() <= 1  # shuffled passes over them, none twice before all are drawn
        expected = weights[weights == weight].sum() / weights.sum() * n
        assert abs(own.sum() / epochs - expected) < 1
    again = epoch_batches(n, batch, seed, 7, weights)
    assert_array_equal(next(again), next(islice(epoch_batches(n, batch, seed, 0, weights), 7, None)))
