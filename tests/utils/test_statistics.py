from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from classact.errors import ConfigError
from classact.utils.statistics import (
    difference_over_seeds,
    dkw_epsilon,
    holm,
    paired_difference,
    permutation_p,
    success_over_seeds,
    wilson_interval,
)
from common import mcnemar_p

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


discordant = st.tuples(st.integers(0, 60), st.integers(0, 60))
pairs = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 60)).filter(lambda t: sum(t) > 0)
"""Won, lost, and starts on which both did the same."""


@given(discordant)
def test_mcnemar_counts_all_outcomes_that_are_as_extreme(counts: tuple[int, int]) -> None:
    won, lost = counts
    n = won + lost
    chance = [math.comb(n, k) / 2**n for k in range(n + 1)]
    more = sum(c for k, c in enumerate(chance) if abs(2 * k - n) > abs(won - lost))
    equal = sum(c for k, c in enumerate(chance) if abs(2 * k - n) == abs(won - lost))
    assert mcnemar_p(won, lost) == pytest.approx(more + equal)
    assert mcnemar_p(lost, won) == pytest.approx(mcnemar_p(won, lost))


def test_mcnemar_equals_statsmodels() -> None:
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    for won, lost in ((1, 7), (10, 10), (0, 5), (14, 3)):
        expected = tables.mcnemar([[5, won], [lost, 9]], exact=True).pvalue
        assert mcnemar_p(won, lost) == pytest.approx(expected)


trainings = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)).flatmap(
    lambda sizes: st.tuples(
        *(
            st.lists(st.lists(st.integers(0, 1), min_size=sizes[2], max_size=sizes[2]), min_size=s, max_size=s)
            for s in sizes[:2]
        )
    )
)
"""Outcomes of S and of S' trainings on the same starts."""


@given(discordant, st.integers(0, 5))
def test_permutations_of_one_training_each_are_mcnemar(counts: tuple[int, int], ties: int) -> None:
    won, lost = counts
    first = np.array([[1] * won + [0] * lost + [1] * (ties + 1)])
    second = np.array([[0] * won + [1] * lost + [1] * (ties + 1)])
    assert permutation_p(first, second) == pytest.approx(mcnemar_p(won, lost))


@given(trainings)
@settings(deadline=None, max_examples=60)
def test_permutations_equal_all_of_them(outcomes: tuple[list[list[int]], list[list[int]]]) -> None:
    """Every way to hand the S + S' outcomes of each start out to the two methods."""
    first, second = (np.array(rows) for rows in outcomes)
    S, all_of = len(first), len(first) + len(second)
    together = np.concatenate([first, second]).T
    sums = [
        [all_of * sum(column[i] for i in some) - S * column.sum() for some in itertools.combinations(range(all_of), S)]
        for column in together
    ]
    observed = abs(all_of * first.sum() - S * together.sum())
    expected = np.mean([abs(sum(way)) >= observed for way in itertools.product(*sums)])
    assert permutation_p(first, second) == pytest.approx(expected)
    assert permutation_p(second, first) == pytest.approx(expected)


def test_permutations_keep_their_level_with_unequal_numbers_of_seeds() -> None:
    """Under the hypothesis at most 5 % of all p are below 0.05; flipping signs of skewed differences gives more."""
    rng = np.random.default_rng(0)
    chances = np.where(np.arange(30) < 15, 0.15, 0.6)
    p = [permutation_p(rng.random((1, 30)) < chances, rng.random((4, 30)) < chances) for _ in range(1500)]
    assert 0.01 < np.mean(np.array(p) < 0.05) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1500)


def test_permutations_refuse_other_starts() -> None:
    with pytest.raises(ConfigError, match="outcomes of the same initial states, got 3 and 2 initial states"):
        permutation_p(np.zeros((1, 3)), np.zeros((2, 2)))


def test_paired_difference_published_values() -> None:
    """Fagerland, Lydersen, Laake 2014 (Statistics in Medicine 33), airway hyper-responsiveness: 1 and 7 of 21."""
    found = paired_difference(1, 7, 21)
    assert (found.value, found.low, found.high) == pytest.approx((-0.286, -0.517, -0.026), abs=5e-4)


def test_paired_difference_without_discordant_starts_has_a_width() -> None:
    z2 = 1.959963984540054**2
    found = paired_difference(0, 0, 50)
    assert (found.low, found.value, found.high) == pytest.approx((-z2 / (50 + z2), 0, z2 / (50 + z2)))


@given(pairs)
def test_paired_difference_holds_the_estimate_and_mirrors(counts: tuple[int, int, int]) -> None:
    won, lost, _ = counts
    found = paired_difference(won, lost, sum(counts))
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high
    assert found.value == pytest.approx((won - lost) / sum(counts))
    mirrored = paired_difference(lost, won, sum(counts))
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low), abs=1e-9)


@given(pairs)
@settings(max_examples=30, deadline=None)
def test_paired_difference_inverts_the_score_test(counts: tuple[int, int, int]) -> None:
    """At each bound inside (-1, 1), the statistic with numerically fitted chances is z."""
    from scipy.optimize import minimize_scalar

    won, lost, same = counts
    n = sum(counts)
    found = paired_difference(won, lost, n)
    for bound in (found.low, found.high):
        assume(abs(bound) < 0.999 and won and lost and same)

        def negative(q: float, delta: float = bound) -> float:
            p = q + delta
            return -(won * math.log(p) + lost * math.log(q) + same * math.log(1 - p - q))

        least, most = max(0.0, -bound), (1 - bound) / 2
        fit = minimize_scalar(
            negative, bounds=(least + 1e-12, most - 1e-12), method="bounded", options={"xatol": 1e-12}
        )
        variance = n * (2 * fit.x + bound - bound**2)
        assert abs(won - lost - n * bound) / math.sqrt(variance) == pytest.approx(1.95996, abs=2e-3)


def test_paired_difference_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    draws = rng.multinomial(60, (0.25, 0.1, 0.65), size=600)
    hit = [(d := paired_difference(int(b), int(c), 60)).low <= 0.15 <= d.high for b, c, _ in draws]
    assert 0.92 < np.mean(hit) < 0.98


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_steps_down(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    m = len(p_values)
    for p, q in zip(p_values, adjusted, strict=True):
        # The largest Bonferroni factor among hypotheses that are at most as likely as this one.
        steps = sorted(p_values)
        expected = max(min(1.0, (m - i) * v) for i, v in enumerate(steps) if v <= p)
        assert q == pytest.approx(expected)
        assert p <= q <= 1


def test_holm_equals_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p_values = [0.01, 0.04, 0.03, 0.005, 0.5]
    assert holm(p_values) == pytest.approx(multitest.multipletests(p_values, method="holm")[1])
    assert holm([]) == []


outcomes = st.tuples(st.integers(1, 4), st.integers(2, 30), st.integers(0, 10**6)).map(
    lambda t: (np.random.default_rng(t[2]).random((t[0], t[1])) < np.random.default_rng(t[2] + 1).random()).astype(int)
)


@given(outcomes)
@settings(max_examples=40, deadline=None)
def test_success_over_seeds_holds_the_mean(found: np.ndarray) -> None:
    estimate = success_over_seeds(found, np.random.default_rng(0))
    assert estimate.value == pytest.approx(found.mean())
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.low < estimate.high
    if len(found) == 1:
        assert (estimate.low, estimate.high) == wilson_interval(int(found.sum()), found.shape[1])


def test_success_over_seeds_respects_that_starts_are_shared() -> None:
    """The same outcomes three times say no more than once; independent ones say more."""
    rng = np.random.default_rng(1)
    once = (rng.random(100) < 0.6).astype(int)
    shared = success_over_seeds(np.stack([once] * 3), np.random.default_rng(0))
    apart = success_over_seeds((rng.random((3, 100)) < 0.6).astype(int), np.random.default_rng(0))
    low, high = wilson_interval(int(once.sum()), 100)
    assert shared.high - shared.low == pytest.approx(high - low, rel=0.1)
    assert apart.high - apart.low < 0.75 * (high - low)


def test_success_over_seeds_equals_a_plain_bootstrap() -> None:
    found = (np.random.default_rng(3).random((2, 25)) < 0.7).astype(int)
    rng = np.random.default_rng(5)
    means = [found[:, rng.integers(0, 25, 25)].mean() for _ in range(20_000)]
    estimate = success_over_seeds(found, np.random.default_rng(0))
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.025)
    assert estimate == success_over_seeds(found, np.random.default_rng(0))


def test_all_seeds_alike_still_have_a_width() -> None:
    none = success_over_seeds(np.zeros((3, 40), int), np.random.default_rng(0))
    assert (none.low, none.high) == pytest.approx(wilson_interval(0, 40))


def test_difference_over_seeds() -> None:
    rng = np.random.default_rng(2)
    a, b = (rng.random((1, 60)) < 0.7).astype(int), (rng.random((1, 60)) < 0.4).astype(int)
    won, lost = int((a > b).sum()), int((a < b).sum())
    assert difference_over_seeds(a, b, rng) == paired_difference(won, lost, 60)
    several = difference_over_seeds(np.concatenate([a, a]), b, np.random.default_rng(0))
    assert several.value == pytest.approx((won - lost) / 60)
    single = paired_difference(won, lost, 60)
    assert (several.low, several.high) == pytest.approx((single.low, single.high), abs=0.04)
    mirrored = difference_over_seeds(b, np.concatenate([a, a]), np.random.default_rng(0))
    assert (mirrored.low, mirrored.high) == pytest.approx((-several.high, -several.low))
    with pytest.raises(ConfigError, match="got 60 and 59 initial states"):
        difference_over_seeds(a, b[:, 1:], rng)
    with pytest.raises(ConfigError, match="of 0 and 1"):
        success_over_seeds(np.array([[0, 2]]), rng)
