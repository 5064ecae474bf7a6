from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from classact.data.windows import window_indices
from classact.errors import ConfigError

lengths = st.lists(st.integers(1, 12), min_size=1, max_size=8)
horizons = st.integers(1, 20)


def test_example() -> None:
    assert_array_equal(
        window_indices(np.array([3, 4], np.int64), 3),
        [[0, 1, 2], [1, 2, 2], [2, 2, 2], [3, 3, 3]],
    )


@given(lengths, horizons)
def test_equals_the_definition(lengths: list[int], horizon: int) -> None:
    expected = []
    start = 0
    for length in lengths:
        expected += [[start + min(t + k, length - 1) for k in range(horizon)] for t in range(length)]
        start += length
    found = window_indices(np.cumsum(lengths), horizon)
    assert found.dtype == np.int64
    assert_array_equal(found, expected)


@given(lengths, horizons)
def test_one_window_per_step_within_one_episode(lengths: list[int], horizon: int) -> None:
    episode = np.repeat(np.arange(len(lengths)), lengths)
    found = window_indices(np.cumsum(lengths), horizon)
    assert found.shape == (sum(lengths), horizon)
    assert_array_equal(found[:, 0], np.arange(sum(lengths)))
    assert (episode[found] == episode[:, None]).all()
    assert np.isin(np.diff(found, axis=1), (0, 1)).all()


@given(lengths, horizons, horizons)
def test_a_shorter_horizon_is_a_prefix(lengths: list[int], one: int, other: int) -> None:
    short, long = sorted((one, other))
    ends = np.cumsum(lengths)
    assert_array_equal(window_indices(ends, long)[:, :short], window_indices(ends, short))


@pytest.mark.parametrize("horizon", [0, -3])
def test_no_horizon(horizon: int) -> None:
    with pytest.raises(ConfigError, match=f"horizon of at least 1 step, got {horizon}"):
        window_indices(np.array([3], np.int64), horizon)
