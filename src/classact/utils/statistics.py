"""Intervals and paired tests for success rates: classact reports no mean without an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.errors import ConfigError

RESAMPLES = 10_000  # of a bootstrap: enough for two digits of a 95 % interval
BOUNDS = [(1 - 0.95) / 2, (1 + 0.95) / 2]  # quantiles that bound a 95 % interval
_Z = NormalDist().inv_cdf(BOUNDS[1])


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, which holds the value."""

    value: float
    low: float
    high: float


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion, each bound in [0, 1].

    No trials, or more successes than trials, are a ConfigError.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ConfigError(f"expected 0 <= successes <= trials and trials >= 1, got {successes} of {trials}.")
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: NDArray[Any]) -> Estimate:
    """Mean of (n,) independent values with its 95 % interval, a percentile bootstrap's; one value has no finite one."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Estimate(mean, -math.inf, math.inf)
    drawn = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    low, high = np.quantile(np.asarray(values)[drawn].mean(axis=1), BOUNDS)
    return Estimate(mean, min(float(low), mean), max(float(high), mean))


def independent_difference(first: tuple[int, int], second: tuple[int, int]) -> Estimate:
    """Difference of two success rates, each (successes, trials), from other initial states, with its 95 % interval.

    Newcombe's, made of both Wilson intervals (Newcombe 1998, Statistics in Medicine 17, 873-890, method 10).
    """
    (p, low, high), (q, below, above) = ((k / n, *wilson_interval(k, n)) for k, n in (first, second))
    value = p - q
    return Estimate(value, value - math.hypot(p - low, above - q), value + math.hypot(high - p, q - below))


def dkw_epsilon(samples: int, delta: float = 1e-3) -> float:
    """Largest error of an empirical CDF of ``samples`` draws with probability 1 - ``delta``.

    Dvoretzky-Kiefer-Wolfowitz with Massart's constant: sqrt(ln(2 / delta) / (2 n)).
    """
    return math.sqrt(math.log(2 / delta) / (2 * samples))


# -- two policies from the same initial states -------------------------------------------------------------------------


def permutation_p(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Exact two-sided test that two methods, each trained several times, succeed equally often.

    Under the hypothesis the S + S' outcomes from an initial state are exchangeable between the methods, so the number
    of a state's successes that are the first method's is hypergeometric; convolving the states gives the exact chance
    of any difference of the means. With one training each this is McNemar's exact test.

    ``first`` (S, N) and ``second`` (S', N) are 0 or 1, of S and S' trainings from the same N initial states; anything
    else is a ConfigError.
    """
    from scipy.stats import hypergeom

    a, b = _paired(first, second)
    S, all_of = len(a), len(a) + len(b)
    totals = a.sum(axis=0) + b.sum(axis=0)
    chance = np.ones(1)  # of the successes of the first method
    for total, states in zip(*np.unique(totals, return_counts=True), strict=True):
        one = hypergeom.pmf(np.arange(S + 1), all_of, total, S)
        for _ in range(states):
            chance = np.convolve(chance, one)
    # The difference of the means times S S': integers, so that equality is exact.
    difference = all_of * np.arange(len(chance)) - S * int(totals.sum())
    observed = abs(all_of * int(a.sum()) - S * int(totals.sum()))
    return min(1.0, float(chance[np.abs(difference) >= observed].sum()))


def paired_difference(won: int, lost: int, states: int) -> Estimate:
    """Difference of two success rates from the same initial states, with Tango's 95 % score interval.

    The interval holds the differences that a score test does not reject (Tango 1998, Statistics in Medicine 17,
    891-908); unlike Wald's it stays within [-1, 1] and has a width where no state tells the policies apart. Of
    ``states`` initial states only the first policy succeeds from ``won``, only the second from ``lost``.
    """
    low, high = -_tango_upper(lost, won, states), _tango_upper(won, lost, states)
    value = (won - lost) / states
    return Estimate(value, min(low, value), max(high, value))


def _tango_upper(b: int, c: int, n: int) -> float:
    def inside(delta: float) -> bool:
        # q: maximum-likelihood estimate of the chance to lose a state, given the difference delta.
        A, B, C = 2 * n, -b - c + (2 * n - b + c) * delta, -c * delta * (1 - delta)
        q = max(((max(B * B - 4 * A * C, 0.0)) ** 0.5 - B) / (2 * A), 0.0, -delta)
        return (b - c - n * delta) ** 2 <= _Z * _Z * n * (2 * q + delta * (1 - delta))

    # The statistic decreases with delta, so the accepted differences are one interval around the estimate.
    low, high = (b - c) / n, 1.0
    if inside(high):
        return high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) else (low, middle)
    return low


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for their number by Holm's step-down procedure (Holm 1979), in the given order.

    Calling those below alpha significant makes any false finding among all of them with a chance of at most alpha.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1.0, p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(steps)
    return [float(value) for value in adjusted]


# -- several training seeds from the same initial states ---------------------------------------------------------------


def success_over_seeds(outcomes: NDArray[Any], rng: np.random.Generator) -> Estimate:
    """Mean success of several trainings from the same initial states, with its 95 % interval.

    Outcomes from one state are dependent, so states are resampled by ``rng``, each with all its outcomes (percentile
    bootstrap). The interval covers states, not other seeds. One training has Wilson's interval.

    ``outcomes`` are (S, N) 0 or 1, of S trainings from N initial states; anything else is a ConfigError.
    """
    found = _outcomes(outcomes)
    if len(found) == 1:
        k, n = int(found.sum()), found.shape[1]
        return Estimate(k / n, *wilson_interval(k, n))
    return _bootstrap_mean(found.mean(axis=0), rng, 0.0)


def difference_over_seeds(first: NDArray[Any], second: NDArray[Any], rng: np.random.Generator) -> Estimate:
    """Difference of the mean success of two methods from the same initial states, with its 95 % interval.

    One training each: :func:`paired_difference`. Else a bootstrap over states, as in :func:`success_over_seeds`.

    ``first`` (S, N) and ``second`` (S', N) are 0 or 1, from the same initial states; anything else is a ConfigError.
    """
    a, b = _paired(first, second)
    if len(a) == len(b) == 1:
        return paired_difference(int((a > b).sum()), int((a < b).sum()), a.shape[1])
    return _bootstrap_mean(a.mean(axis=0) - b.mean(axis=0), rng, -1.0)


def _paired(first: NDArray[Any], second: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    a, b = _outcomes(first), _outcomes(second)
    if a.shape[1] != b.shape[1]:
        raise ConfigError(
            f"expected outcomes of the same initial states, got {a.shape[1]} and {b.shape[1]} initial states."
        )
    return a, b


def _outcomes(outcomes: NDArray[Any]) -> NDArray[np.int64]:
    found = np.asarray(outcomes)
    if found.ndim != 2 or 0 in found.shape or not np.isin(found, (0, 1)).all():
        raise ConfigError(f"expected outcomes (S, N) of 0 and 1, at least one of each axis, got shape {found.shape}.")
    return found.astype(np.int64)


def _bootstrap_mean(values: NDArray[np.float64], rng: np.random.Generator, least: float) -> Estimate:
    n, value = len(values), float(values.mean())
    if np.ptp(values) < 1e-12:
        # A bootstrap of equal values has no width. Wilson has this for 0 of n, and Tango for no discordant state.
        half = _Z * _Z / (n + _Z * _Z)
        return Estimate(value, max(least, value - half), min(1.0, value + half))
    # A mean needs only how often each value is drawn, and there are few different ones.
    distinct, counts = np.unique(values, return_counts=True)
    means = rng.multinomial(n, counts / n, size=RESAMPLES) @ distinct / n
    low, high = np.quantile(means, BOUNDS)
    return Estimate(value, max(least, min(float(low), value)), min(1.0, max(float(high), value)))
