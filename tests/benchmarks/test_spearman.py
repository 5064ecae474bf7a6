from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from classact.errors import ConfigError
from table1.report.probes import spearman

numbers = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=3, max_size=12)


@given(numbers)
@settings(max_examples=40, deadline=None)
def test_spearman_equals_scipy_and_mirrors(values: list[tuple[int, int]]) -> None:
    from scipy.stats import spearmanr

    x, y = ([float(v[i]) for v in values] for i in (0, 1))
    found = spearman(x, y, np.random.default_rng(0), resamples=100)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert found is None
        return
    assert found is not None
    assert found[0] == pytest.approx(float(spearmanr(x, y).statistic), abs=1e-9)
    assert 1 / 101 <= found[1] <= 1
    assert spearman(x, [-v for v in y], np.random.default_rng(0), resamples=100) == pytest.approx((-found[0], found[1]))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=4, max_size=6))
@settings(max_examples=15, deadline=None)
def test_spearman_is_tested_by_permutations(values: list[tuple[int, int]]) -> None:
    from scipy.stats import spearmanr

    x, y = ([float(v[i]) for v in values] for i in (0, 1))
    assume(len(set(x)) > 1 and len(set(y)) > 1)
    exact = [abs(spearmanr(x, other).statistic) for other in itertools.permutations(y)]
    found = spearman(x, y, np.random.default_rng(0), resamples=4000)
    assert found is not None
    assert found[1] == pytest.approx(np.mean(np.array(exact) >= abs(found[0]) - 1e-9), abs=0.035)


def test_spearman_without_enough_pairs() -> None:
    rng = np.random.default_rng(0)
    assert spearman([1, 2], [1, 2], rng) is None
    with pytest.raises(ConfigError, match="as many finite values"):
        spearman([1, 2, math.nan], [1, 2, 3], rng)
