from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classact.errors import ConfigError
from classact.similarity.apart import Apart, early_rows, objects_apart, share_apart, unseen_warnings
from classact.similarity.distribution import DistanceDistribution
from classact.similarity.stream import WindowStream

# Four episodes of twelve steps: for six steps the hand comes, by the same actions in all; then it goes where the thing
# is, which is at 0 or at 1 metre.
PLACES = np.array([0.0, 1.0, 0.0, 1.0])
ENDS = np.arange(12, 49, 12)
ACTIONS = np.concatenate([np.r_[np.zeros(6), np.full(6, place)] for place in PLACES])[:, None]
THING = {"thing": np.repeat(PLACES, 12)[:, None] * [3.0, 4.0]}  # 5 m apart
EPISODE = np.repeat(np.arange(4), 12)
NEAR = DistanceDistribution.fit(np.arange(1, 101, dtype=np.float32), 0.02)  # threshold 2, weight 1 below 1


def apart(horizon: int, share: float = 0.25) -> Apart:
    stream = WindowStream.build(ACTIONS.astype(np.float32), ENDS, horizon)
    (found,) = objects_apart(stream, EPISODE, THING, NEAR, early_rows(ENDS, share))
    return found


def test_windows_that_end_before_the_thing_matters_do_not_tell_where_it_is() -> None:
    short = apart(4)  # the last early window, of step 2, ends with step 5
    # Of six pairs of episodes two have the same place.
    assert short.random == pytest.approx(5 * 4 / 6)
    assert short.positives == pytest.approx(short.random)
    assert short.ratio == pytest.approx(1)
    assert short.unseen
    (said,) = unseen_warnings([short], 0.25, "4 steps")
    assert "do not tell where thing is: in the first 25 % of each demonstration they have it 3.33 apart" in said
    assert "any two demonstrations 3.33" in said
    # Of several things it is enough that one is told: the others are dealt with later.
    assert not unseen_warnings([short, Apart("next", 0.1, 1.0, 0.1), Apart("still", 0.0, 0.0)], 0.25, "4 steps")
    assert "where thing or other is: " in unseen_warnings([short, replace(short, name="other")], 0.25, "4 steps")[0]
    long = apart(12)
    assert long.positives == 0 == long.ratio
    assert not long.unseen
    assert not unseen_warnings([long], 0.25, "12 steps")
    assert share_apart(0.25, long) == "0 apart in positives in the first 25 %, 3.33 in any two: 0.00, 0.00 to 0.00"


def test_nothing_to_be_said_without_positives_or_of_what_never_changes() -> None:
    stream = WindowStream.build(np.arange(48, dtype=np.float32)[:, None] * 100, ENDS, 2)
    still = {"thing": np.ones((48, 1))}
    (found,) = objects_apart(stream, EPISODE, still, NEAR, early_rows(ENDS, 0.1))
    assert found == Apart("thing", None, 0.0)
    assert share_apart(0.1, found) == "no positives there; any two are 0 apart"
    stream = WindowStream.build(ACTIONS.astype(np.float32), ENDS, 2)
    (found,) = objects_apart(stream, EPISODE, still, NEAR, early_rows(ENDS, 0.1))
    assert found == Apart("thing", 0.0, 0.0)
    assert not found.unseen
    with pytest.raises(ConfigError, match="at least two episodes to compare, got one"):
        objects_apart(stream, np.zeros(48, np.int64), still, NEAR, np.arange(3))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_it_is_the_mean_over_pairs_and_its_jackknife(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 7, 5)
    ends, n = np.cumsum(lengths), int(lengths.sum())
    episode = np.repeat(np.arange(5), lengths)
    stream = WindowStream.build(rng.normal(size=(n, 2)).astype(np.float32), ends, 3)
    values = rng.normal(size=(n, 3))
    distribution = DistanceDistribution.fit(rng.uniform(0, 30, 200).astype(np.float32), 0.8)
    rows = early_rows(ends, 0.7)
    (found,) = objects_apart(stream, episode, {"x": values}, distribution, rows)

    from classact.similarity.pairwise import dtw_pairwise

    w = distribution.weights(dtw_pairwise(stream.windows(rows)))

    def ratio(left_out: int | None) -> tuple[float, float, float]:
        own = [i for i in range(len(rows)) if episode[rows[i]] != left_out]
        pairs = [(i, j) for i, j in permutations(own, 2) if episode[rows[i]] != episode[rows[j]]]
        far = np.array([np.linalg.norm(values[rows[i]] - values[rows[j]]) for i, j in pairs])
        weight = np.array([w[i, j] for i, j in pairs])
        near, usual = float((weight * far).sum() / weight.sum()), float(far.mean())
        return near, usual, near / usual

    near, usual, expected = ratio(None)
    assert (found.positives, found.random, found.ratio) == pytest.approx((near, usual, expected), rel=1e-4)
    others = np.array([ratio(e)[2] for e in range(5)])
    spread = 1.96 * np.sqrt(4 / 5 * ((others - others.mean()) ** 2).sum())
    assert found.high == pytest.approx(expected + spread, rel=1e-3)


def test_early_timesteps() -> None:
    ends = np.array([10, 12, 40])
    assert early_rows(ends, 0.2).tolist() == [0, 1, 10, *range(12, 18)]
    few = early_rows(ends, 0.5, most=6)
    assert np.array_equal(np.searchsorted(ends, few, side="right"), [0, 0, 1, 2, 2])
    with pytest.raises(ConfigError, match="share of each episode above 0, at most 1, got 0"):
        early_rows(ends, 0)
