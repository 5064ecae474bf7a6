from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_array_equal

from classact.errors import ConfigError
from classact.similarity import DistanceCounts, counts

distances = arrays(np.float32, st.integers(0, 50), elements=st.floats(0, 2.0**99, width=32))


@given(st.lists(distances, max_size=4), st.booleans())
def test_items_are_the_sorted_multiset(blocks: list[Any], flush: bool) -> None:
    found = DistanceCounts(2.0**99)
    for block in blocks:
        found.add(block)
        if flush:
            found._flush()
    every = np.concatenate([np.empty(0, np.float32), *blocks])
    values, times = np.unique(every, return_counts=True)
    assert_array_equal(found.items()[0], values)
    assert_array_equal(found.items()[1], times)
    assert found.total == len(every)


def test_more_than_fit_the_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "_WAITING", 1000)
    every = np.random.default_rng(0).integers(0, 3000, 25_000).astype(np.float32)
    found = DistanceCounts(3000)
    for block in np.split(every, [10, 900, 1100, 9000]):
        found.add(block)
    values, times = np.unique(every, return_counts=True)
    assert_array_equal(found.items(), (values, times))


def test_counted_values_are_added_to_what_is_there() -> None:
    found = DistanceCounts(10)
    found.add(np.array([1, 1, 2.5], np.float32))
    found.add_counted(np.array([0, 1, 10], np.float32), np.array([7, 5, 1]))
    assert_array_equal(found.items(), ([0, 1, 2.5, 10], [7, 7, 1, 1]))
    assert found.total == 16


def test_a_counter_goes_on_beyond_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    found = DistanceCounts(4)
    monkeypatch.setattr(counts, "_SPARSE", 0)
    full = 2**32 - 1
    value = np.array([2], np.float32)
    found.add_counted(value, np.array([full]))
    assert_array_equal(found.items()[1], [full])
    found.add(value)
    assert_array_equal(found.items()[1], [full + 1])
    found.add_counted(value, np.array([3 * full + 5]))
    found.add(np.array([1, 3, 2], np.float32))
    assert_array_equal(found.items(), ([1, 2, 3], [1, 4 * full + 7, 1]))
    assert found.total == 4 * full + 9


def test_negative_zero_is_zero() -> None:
    found = DistanceCounts(1)
    found.add(np.array([-0.0, 0.0], np.float32))
    assert_array_equal(found.items(), ([0], [2]))


@pytest.mark.parametrize("bad", [-1.0, 2.5, float("nan")])
def test_distances_beyond_the_limit(bad: float) -> None:
    with pytest.raises(ConfigError, match=r"expected distances within 0\.\.2\.0, got"):
        DistanceCounts(2).add(np.array([1, bad], np.float32))
    with pytest.raises(ConfigError, match="limit of distances of at least 0, got -1"):
        DistanceCounts(-1)
