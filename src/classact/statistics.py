"""Intervals for success rates: a mean without one is not reported anywhere in classact."""

from __future__ import annotations

from classact.errors import ConfigError


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion, each bound in [0, 1].

    Raises:
        ConfigError: no trials, or more successes than trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ConfigError(f"expected 0 <= successes <= trials and trials >= 1, got {successes} of {trials}.")
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def dkw_epsilon(samples: int, delta: float = 1e-3) -> float:
    """Largest error of an empirical CDF of ``samples`` draws with probability 1 - ``delta``.

    Dvoretzky-Kiefer-Wolfowitz with Massart's constant: sqrt(ln(2 / delta) / (2 n)).
    """
    import math

    if samples < 1 or not 0 < delta < 1:
        raise ConfigError(f"expected samples >= 1 and 0 < delta < 1, got {samples} and {delta}.")
    return math.sqrt(math.log(2 / delta) / (2 * samples))
