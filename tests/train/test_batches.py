from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from classact.data.types import FloatArray, IntArray
from classact.errors import ConfigError
from classact.train.batches import anchors_per_batch, epoch_batches, mean_positives, positive_batches


class Ring:
    """Steps on a ring; those at most ``reach`` apart are positives, except that some steps have none."""

    def __init__(self, n: int, reach: int, lonely: int = 0) -> None:
        self.n, self.reach, self.lonely = n, reach, lonely

    def __len__(self) -> int:
        return self.n

    def neighbors(self, i: int) -> tuple[IntArray, FloatArray]:
        if i < self.lonely:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        offsets = np.array([k for k in range(-self.reach, self.reach + 1) if k], np.int64)
        others = (i + offsets) % self.n
        order = np.argsort(others)
        near = order[others[order] >= self.lonely]
        return others[near], np.abs(offsets[near]).astype(np.float32)


def batches(
    n: int = 40,
    size: int = 12,
    seed: int = 0,
    first: int = 0,
    p: int = 2,
    graph: Ring | None = None,
    weigh: Callable[[FloatArray], FloatArray] | None = None,
) -> Iterator[IntArray]:
    return positive_batches(n, size, seed, first, graph or Ring(n, 4), p, weigh=weigh)


# Without a graph


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


# With one


@pytest.mark.parametrize(("size", "p", "count"), [(12, 2, 4), (12, 1, 6), (13, 2, 5), (12, 11, 1), (1000, 3, 10)])
def test_anchors_and_their_positives(size: int, p: int, count: int) -> None:
    n = 40
    graph = Ring(n, 15)
    assert anchors_per_batch(n, size, p) == count
    stream = np.concatenate(list(islice(epoch_batches(n, count, 0, 0), 6)))
    for step, rows in enumerate(islice(batches(n, size, p=p, graph=graph), 6)):
        assert len(rows) == len(set(rows.tolist())) == min(size, n)
        anchors, others = rows[:count], rows[count:]
        assert_array_equal(anchors, stream[step * count : (step + 1) * count])
        at = 0
        for k, anchor in enumerate(anchors.tolist()):
            # A share of p, or one less for the last ones where they do not come out even.
            places = len(others) // count + (k < len(others) % count)
            assert p - 1 <= places <= p
            positives = graph.neighbors(anchor)[0]
            if size < n:
                assert np.isin(others[at : at + places], positives).all()
            at += places


def test_each_step_is_an_anchor_once_an_epoch() -> None:
    n, size, p = 40, 12, 2
    count = anchors_per_batch(n, size, p)
    anchors = np.concatenate([rows[:count] for rows in islice(batches(n, size, p=p), n // count)])
    assert_array_equal(np.sort(anchors), np.arange(n))


@pytest.mark.parametrize("weigh", [None, lambda distances: 1 / distances])
def test_a_resumed_run_continues_with_the_same_batches(weigh: Any) -> None:
    straight = list(islice(batches(seed=3, weigh=weigh), 15))
    for first in range(15):
        assert_array_equal(next(batches(seed=3, first=first, weigh=weigh)), straight[first])
    assert not np.array_equal(next(batches(seed=4, weigh=weigh)), straight[0])


def test_anchors_without_positives_get_other_steps() -> None:
    n = 40
    graph = Ring(n, 3, lonely=n)
    seen = np.zeros(n, int)
    for rows in islice(batches(n, 10, p=4, graph=graph), 400):
        assert len(set(rows.tolist())) == 10
        seen[rows] += 1
    assert seen.min() > 0.8 * seen.mean()  # all alike


@given(
    n=st.integers(2, 30),
    size=st.integers(2, 40),
    p=st.integers(1, 39),
    reach=st.integers(0, 12),
    lonely=st.integers(0, 30),
    seed=st.integers(0, 99),
)
def test_no_step_twice_and_none_missing(n: int, size: int, p: int, reach: int, lonely: int, seed: int) -> None:
    if p >= size:
        return
    graph = Ring(n, min(reach, (n - 1) // 2), min(lonely, n))
    for rows in islice(batches(n, size, seed, p=p, graph=graph), 2 * n):
        assert rows.dtype == np.int64
        assert len(rows) == min(size, n)
        assert len(set(rows.tolist())) == len(rows)
        assert 0 <= rows.min() <= rows.max() < n


def test_positives_are_drawn_by_weight() -> None:
    n = 1000

    def draws(weigh: Any) -> np.ndarray:
        rows = np.stack(list(islice(batches(n, 2, p=1, graph=Ring(n, 3), weigh=weigh), 6000)))
        apart = np.abs(rows[:, 0] - rows[:, 1])
        return np.bincount(np.minimum(apart, n - apart), minlength=4)[:4] / len(rows)

    # Six thousand draws: a share is off by 0.02 once in a thousand.
    np.testing.assert_allclose(draws(None), [0, 1 / 3, 1 / 3, 1 / 3], atol=0.025)
    np.testing.assert_allclose(draws(lambda d: 1 / d), np.array([0, 6, 3, 2]) / 11, atol=0.025)
    assert draws(lambda d: np.where(d == 2, 1, 0))[2] == 1  # a weight of 0 is never drawn


def test_mean_positives() -> None:
    graph = Ring(10, 1)
    assert mean_positives(graph, [np.array([0, 1, 2, 5])]) == 1  # 1, 2, 1, 0
    assert mean_positives(graph, [np.arange(10), np.array([0, 5])]) == pytest.approx(20 / 12)
    assert mean_positives(graph, []) == 0
    n, wide = 2000, Ring(2000, 10)
    aware = mean_positives(wide, islice(batches(n, 60, p=2, graph=wide), 50))
    random = mean_positives(wide, islice(epoch_batches(n, 60, 0, 0), 50))
    assert random == pytest.approx(20 * 59 / 1999, rel=0.15)
    assert aware > 2 * random


@pytest.mark.parametrize(
    ("n", "size", "p", "message"),
    [
        (1, 8, 2, "expected at least 2 steps and batches of at least 2, got 1 steps and 8"),
        (40, 1, 1, "expected at least 2 steps and batches of at least 2, got 40 steps and 1"),
        (40, 8, 0, "expected 1 to 7 positives per anchor in batches of 8, got 0. Draw fewer positives"),
        (40, 8, 8, "expected 1 to 7 positives per anchor in batches of 8, got 8"),
        (41, 8, 2, "the similarity graph has 40 steps, the data 41: build it for these data"),
    ],
)
def test_bad_settings(n: int, size: int, p: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        batches(n, size, p=p, graph=Ring(40, 2))
