from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classact.errors import ConfigError
from classact.statistics import dkw_epsilon, wilson_interval

counts = st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts)
def test_wilson_equals_the_closed_form(count: tuple[int, int]) -> None:
    successes, trials = count
    z, p = 1.959963984540054, successes / trials
    middle = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    low, high = wilson_interval(successes, trials)
    assert low == pytest.approx(max(0, middle - half), abs=1e-9)
    assert high == pytest.approx(min(1, middle + half), abs=1e-9)


@given(counts)
def test_wilson_holds_the_proportion_and_mirrors(count: tuple[int, int]) -> None:
    successes, trials = count
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    assert low < high
    mirrored = wilson_interval(trials - successes, trials)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_wilson_published_values() -> None:
    """Newcombe 1998 (Statistics in Medicine 17), table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for count, expected in published.items():
        assert wilson_interval(*count) == pytest.approx(expected, abs=5e-5)


def test_wilson_confidence() -> None:
    assert wilson_interval(5, 10, 0.99)[0] < wilson_interval(5, 10, 0.95)[0]


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses(successes: int, trials: int) -> None:
    with pytest.raises(ConfigError, match=f"got {successes} of {trials}"):
        wilson_interval(successes, trials)


def test_dkw_values() -> None:
    assert dkw_epsilon(1000, 0.05) == pytest.approx(math.sqrt(math.log(40) / 2000))
    assert 2 * math.exp(-2 * 1000 * dkw_epsilon(1000, 1e-3) ** 2) == pytest.approx(1e-3)
    assert dkw_epsilon(4000) == pytest.approx(dkw_epsilon(1000) / 2)


def test_dkw_bounds_the_error_of_an_empirical_cdf() -> None:
    """Uniform draws: the largest distance of CDF and empirical CDF passes the bound in at most delta of the trials."""
    n, delta, trials = 200, 0.1, 2000
    draws = np.sort(np.random.default_rng(0).uniform(size=(trials, n)), axis=1)
    error = np.maximum(np.arange(1, n + 1) / n - draws, draws - np.arange(n) / n).max(axis=1)
    # Massart's constant is tight, so the share is near delta; three standard errors of slack.
    share = (error > dkw_epsilon(n, delta)).mean()
    assert 0.02 < share < delta + 3 * math.sqrt(delta * (1 - delta) / trials)


@pytest.mark.parametrize(("samples", "delta"), [(0, 0.1), (10, 0.0), (10, 1.0)])
def test_dkw_refuses(samples: int, delta: float) -> None:
    with pytest.raises(ConfigError, match="expected samples >= 1 and 0 < delta < 1"):
        dkw_epsilon(samples, delta)
