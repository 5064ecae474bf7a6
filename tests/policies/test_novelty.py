from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import binom

from classact.errors import ConfigError, DataError
from classact.policies.novelty import (
    HELD_OUT,
    LEFT_OUT,
    Novelty,
    NoveltyConfig,
    distance,
    episode_maxima,
    episodes_needed,
    left_out_distances,
)
from classact.policies.search import ExactSearch


def calibrated(maxima: Any, alpha: float = 0.1, kind: str = HELD_OUT) -> Novelty:
    return Novelty(np.array(maxima, np.float64), 100, NoveltyConfig(alpha=alpha), kind)


def walks(seed: int, episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Random walks on a sphere, some wilder than others: unit latents and where episodes end."""
    rng = np.random.default_rng(seed)
    parts = []
    for length in rng.integers(1, 40, episodes):
        steps = rng.normal(0, rng.uniform(0.05, 0.5), (length, 5)).cumsum(axis=0) + np.array([3, 0, 0, 0, 0])
        parts.append(steps / np.linalg.norm(steps, axis=1, keepdims=True))
    ends = np.cumsum([len(part) for part in parts])
    return np.concatenate(parts).astype(np.float32), ends.astype(np.int64)


# The guarantee


@pytest.mark.parametrize(
    ("n", "alpha", "rate"), [(19, 0.1, 0.1), (15, 0.1, 1 / 16), (9, 0.1, 0.1), (29, 0.3, 0.3), (8, 0.1, 0)]
)
def test_false_alarms_are_as_rare_as_promised(n: int, alpha: float, rate: float) -> None:
    """For continuous distances the chance is known: 1 - ceil((n + 1)(1 - alpha)) / (n + 1)."""
    bank, _ = walks(0, 30)
    latents, ends = walks(1, 600)
    maxima = episode_maxima(distance(ExactSearch(bank).search(latents, 8)[1]), ends)
    maxima += np.random.default_rng(2).uniform(0, 1e-9, len(maxima))
    assert len(set(maxima)) == len(maxima)
    rng, draws, alarms = np.random.default_rng(3), 4000, 0
    for _ in range(draws):
        new, *others = rng.permutation(len(maxima))[: n + 1]
        novelty = calibrated(maxima[others], alpha)
        alarms += bool(novelty.score(maxima[[new]])[0] > novelty.alarm)
    assert binom.ppf(1e-4, draws, rate) <= alarms <= binom.ppf(1 - 1e-4, draws, rate)
    assert rate <= alpha


def test_ties_make_false_alarms_rarer_not_more_frequent() -> None:
    rng, draws, alarms = np.random.default_rng(0), 4000, 0
    for _ in range(draws):
        new, *others = rng.integers(0, 4, 20).astype(np.float64)
        novelty = calibrated(others)
        alarms += bool(novelty.score(np.array([new]))[0] > novelty.alarm)
    assert 0 <= alarms <= binom.ppf(1 - 1e-4, draws, 0.1)


@given(
    maxima=st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.3, 1.0, 2.0]), min_size=1, max_size=60),
    alpha=st.sampled_from([0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.9]),
    values=st.lists(st.floats(-0.1, 2.1), min_size=1, max_size=20),
)
def test_the_score_exceeds_the_alarm_just_where_the_distance_exceeds_the_threshold(
    maxima: list[float], alpha: float, values: list[float]
) -> None:
    novelty = calibrated(maxima, alpha)
    distances = np.sort(np.array(values + maxima))
    score = novelty.score(distances)
    assert score.dtype == np.float32
    assert ((score >= 0) & (score < 1)).all()
    assert (np.diff(score) >= 0).all()
    for s, found in zip(distances, score, strict=True):
        smaller = sum(m < s for m in maxima)
        assert found == np.float32(smaller / (len(maxima) + 1))
        assert (found > novelty.alarm) == (s > novelty.threshold)


def test_the_threshold_is_the_right_one_of_the_maxima() -> None:
    # In binary 30 * (1 - 0.1) is 27 and 10 * (1 - 0.3) is 7, but others of these come out beside a whole number.
    for hundredths in range(1, 100):
        for n in (1, 9, 10, 19, 29, 99, 199):
            novelty = calibrated(np.arange(1, n + 1), hundredths / 100)
            rank = -(-(n + 1) * (100 - hundredths) // 100)
            assert novelty.rank == rank
            assert novelty.threshold == (rank if rank <= n else math.inf)


def test_maxima_may_come_in_any_order_and_are_not_changed() -> None:
    given_maxima = np.array([0.3, 0.1, 0.2])
    novelty = Novelty(given_maxima, 5, NoveltyConfig(alpha=0.5), HELD_OUT)
    assert_array_equal(given_maxima, [0.3, 0.1, 0.2])
    assert_array_equal(novelty.maxima, [0.1, 0.2, 0.3])
    assert (novelty.threshold, novelty.alarm, novelty.episodes) == (0.2, 1.5 / 4, 3)
    assert_allclose(novelty.score(np.array([0.05, 0.1, 0.15, 0.2, 0.25, 9])), [0, 0, 0.25, 0.25, 0.5, 0.75])


# Too few


@pytest.mark.parametrize(("alpha", "needed"), [(0.1, 9), (0.05, 19), (0.01, 99), (0.3, 3), (0.5, 1), (0.9, 1)])
def test_too_few_episodes_never_alarm_and_say_how_many_are_needed(alpha: float, needed: int) -> None:
    assert episodes_needed(alpha) == needed
    enough = calibrated(np.arange(needed), alpha)
    assert enough.score(np.array([1e9]))[0] > enough.alarm
    if needed > 1:
        few = calibrated(np.arange(needed - 1), alpha)
        assert few.threshold == few.alarm == math.inf
        assert not few.score(np.array([1e9]))[0] > few.alarm
        assert few.describe() == (
            f"No alarm: calibrated on {needed - 1} held-out demonstrations, but a chance of a false alarm of at most "
            f"{alpha:g} per episode needs {needed}."
        )


def test_what_an_alarm_promises_depends_on_the_kind() -> None:
    held, left = calibrated(np.arange(20)), calibrated(np.arange(20), kind=LEFT_OUT)
    assert held.exact
    assert not left.exact
    assert held.describe().startswith("The alarm is raised in at most 0.1 of episodes")
    assert "calibrated on 20 held-out demonstrations" in held.describe()
    assert left.describe().startswith("The alarm is raised in about 0.1 of episodes")
    assert "each left out of the bank once" in left.describe()


# Distances


def test_distance_is_one_minus_the_mean_cosine() -> None:
    cosine = np.array([[1, 0.5], [0.25, -0.25]], np.float32)
    assert_array_equal(distance(cosine), [0.25, 1])
    assert distance(cosine).dtype == np.float64


def test_maxima_of_episodes() -> None:
    assert_array_equal(episode_maxima(np.array([1.0, 3, 2, 0, -1]), np.array([1, 3, 5])), [1, 3, 0])
    with pytest.raises(DataError, match="expected one distance per step, got 4 for 5 steps"):
        episode_maxima(np.zeros(4), np.array([1, 3, 5]))


@pytest.mark.parametrize("max_bytes", [2**20, 4 * 1000, 4])
@pytest.mark.parametrize("m", [1, 3, 8])
def test_leaving_one_out_equals_brute_force(m: int, max_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("classact.policies.novelty._QUERIES", 17)  # blocks that cut through episodes
    latents, ends = walks(4, 9)
    latents, ends = (latents, ends) if max_bytes > 4 else (latents[: ends[3]], ends[:4])
    rows = np.delete(np.arange(len(latents)), [0, 5, int(ends[0]), len(latents) - 1])  # not all may be retrieved
    calls: list[tuple[int, int]] = []
    search = ExactSearch(latents[rows], max_bytes=max_bytes)
    found = left_out_distances(search, rows, latents, ends, m, lambda done, all_: calls.append((done, all_)))
    episode = np.searchsorted(ends, np.arange(len(latents)), side="right")
    expected = []
    for step, z in enumerate(latents.astype(np.float64)):
        others = [latents[row].astype(np.float64) @ z for row in rows if episode[row] != episode[step]]
        expected.append(1 - np.mean(sorted(others)[-m:]))
    assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert calls[-1] == (len(latents), len(latents))
    assert all(before < after for (before, _), (after, _) in pairwise(calls))


def test_leaving_out_what_leaves_too_little() -> None:
    latents = np.tile(np.array([[1, 0]], np.float32), (10, 1))
    with pytest.raises(ConfigError, match="4 neighbours asked of 3 rows: of 10, 7 may not be found"):
        left_out_distances(ExactSearch(latents), np.arange(10), latents, np.array([7, 10]), 4)


# JSON and bad settings


def test_json() -> None:
    novelty = calibrated([0.1 + 0.2, 1 / 3, 1e-9], 0.25, LEFT_OUT)
    again = Novelty.from_json(novelty.to_json(), "here")
    assert again.maxima.tobytes() == novelty.maxima.tobytes()
    assert (again.config, again.kind, again.timesteps) == (novelty.config, novelty.kind, novelty.timesteps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maxima": []}, r"here: expected the largest distances of n >= 1 episodes"),
        ({"maxima": [1, None]}, r"here.maxima\[1\]: expected a number, got None"),
        ({"maxima": [math.nan]}, r"all finite, got shape \(1,\): \[nan\]"),
        ({"m": 0}, "expected m >= 1, got 0"),
        ({"kind": "guess"}, "expected kind 'held-out' or 'leave-one-out', got 'guess'"),
        ({"more": 1}, "here: unknown field 'more': available are 'alarm', 'alpha', 'episodes'"),
    ],
)
def test_damaged_json(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Novelty.from_json(calibrated([1]).to_json() | change, "here")
    with pytest.raises(DataError, match="got None"):
        Novelty.from_json(None, "here")


@pytest.mark.parametrize(("m", "alpha"), [(0, 0.1), (8, 0.0), (8, 1.0), (8, math.nan)])
def test_bad_settings(m: int, alpha: float) -> None:
    with pytest.raises(ConfigError, match=f"expected 0 < alpha < 1, got {alpha}" if m else "expected m >= 1, got 0"):
        NoveltyConfig(m, alpha)
