"""Held-out actions: how far policies are from what was done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fakes
from classact.data.images import resize_images
from classact.data.readers import first_episodes, last_episodes
from classact.data.types import Demonstrations
from classact.errors import ConfigError
from classact.evaluation.actions import PIXELS, HeldOut, action_error, nearest_by_pixels, references
from classact.policies.base import FunctionPolicy, PolicySpec, Timestep
from classact.similarity import dtw

STEPS = 4
DATA = fakes.demonstrations(0, 8, (11, 9, 13, 10, 12))
TRAINING, HELD = first_episodes(DATA, 3), last_episodes(DATA, 2)


def held(queries: int = 1000) -> HeldOut:
    return HeldOut.of(HELD, TRAINING, STEPS, queries)


def truth(data: Demonstrations, row: int, steps: int = STEPS) -> np.ndarray:
    """The next actions, the last one repeated."""
    end = int(data.episode_ends[np.searchsorted(data.episode_ends, row, side="right")])
    return data.actions[np.minimum(np.arange(row, row + steps), end - 1)]


def follows(rows: np.ndarray, away: float = 0.0) -> FunctionPolicy:
    """What was done at ``rows``, asked in that order, ``away`` in every dimension."""
    asked = iter(rows.tolist())

    def act(observations: Sequence[Timestep]) -> np.ndarray:
        return np.stack([truth(HELD, next(asked)) + away for _ in observations]).astype(np.float32)

    return FunctionPolicy(PolicySpec("known", STEPS), act)


def test_rows_are_every_so_many_steps_of_each_episode_or_fewer() -> None:
    assert held().rows.tolist() == [0, 4, 8, 10, 14, 18]
    assert held(3).rows.tolist() == [0, 8, 18]


def test_what_was_done_has_no_error_and_an_offset_has_its_length() -> None:
    assert action_error(follows(held().rows), held(), "known").l2.value == 0
    away = 6.0
    found = action_error(follows(held().rows, away), held(), "known")
    scale = 2 / (TRAINING.actions.max(0) - TRAINING.actions.min(0))
    assert_allclose(found.l2.value, np.linalg.norm(away * scale), rtol=1e-5)
    assert found.by_episode == pytest.approx([found.l2.value] * 2, rel=1e-5)
    assert found.l2.low is not None
    assert found.l2.high is not None
    assert found.l2.low <= found.l2.value <= found.l2.high


def test_dtw_is_that_of_the_similarity() -> None:
    rows, scale = held().rows, TRAINING.action_range().apply
    chunks = TRAINING.actions[: len(rows) * STEPS].reshape(len(rows), STEPS, -1)
    asked = iter(chunks)
    policy = FunctionPolicy(PolicySpec("p", STEPS), lambda seen: np.stack([next(asked) for _ in seen]))
    each = [dtw(scale(chunk), scale(truth(HELD, int(row)))) for chunk, row in zip(chunks, rows, strict=True)]
    assert_allclose(action_error(policy, held(), "p").dtw.value, np.mean(each), rtol=1e-5)


def test_ways_that_learn_nothing() -> None:
    found = {one.policy: one for one in references(held())}
    assert list(found) == ["nearest by pixels", "random", "mean"]
    mean = np.mean([truth(TRAINING, row) for row in range(TRAINING.num_steps)], axis=0)
    policy = FunctionPolicy(PolicySpec("mean", STEPS), lambda seen: np.repeat(mean[None], len(seen), 0))
    assert action_error(policy, held(), "mean").l2.value == pytest.approx(found["mean"].l2.value, rel=1e-5)
    assert found["mean"].l2.value < found["random"].l2.value
    assert references(held()) == references(held())
    assert references(held(), seed=1) != references(held())
    blind = replace(held(), training=TRAINING.with_images({}))
    assert [one.policy for one in references(blind)] == ["random", "mean"]


def test_the_nearest_picture_is_found_by_brute_force_as_well() -> None:
    rng = np.random.default_rng(0)
    training = TRAINING.with_images({"top": rng.integers(0, 256, (TRAINING.num_steps, 24, 24, 3), np.uint8)})
    rows = np.array([1, 7, 20])
    data = HELD.with_images({"top": rng.integers(0, 256, (HELD.num_steps, 24, 24, 3), np.uint8)})
    bank, asked = (
        resize_images(np.asarray(one.images["top"]), PIXELS).reshape(one.num_steps, -1).astype(float)
        for one in (training, data)
    )
    expected = [int(np.argmin(((bank - asked[row]) ** 2).sum(axis=1))) for row in rows]
    assert_array_equal(nearest_by_pixels(training, data, rows), expected)
    same = training.with_images({"top": np.asarray(training.images["top"])})
    assert_array_equal(nearest_by_pixels(training, same, np.arange(5)), np.arange(5))


def test_policies_that_see_several_observations_are_given_those_before() -> None:
    seen: list[list[np.ndarray]] = []

    def act(observations: Sequence[Timestep]) -> np.ndarray:
        for one in observations:
            assert isinstance(one, list)
            seen.append([observation.proprioception for observation in one])
        return np.zeros((len(observations), STEPS, 2), np.float32)

    action_error(FunctionPolicy(PolicySpec("p", STEPS, history=3), act), held(), "p")
    rows = HELD.proprioception
    assert_array_equal(seen[0], rows[[0, 0, 0]])
    assert_array_equal(seen[1], rows[[2, 3, 4]])
    assert_array_equal(seen[3], rows[[10, 10, 10]])  # the first step of the second episode


@pytest.mark.parametrize("spec", [PolicySpec("p", STEPS, speed=2.0), PolicySpec("p", STEPS + 1)])
def test_another_speed_or_length_is_refused(spec: PolicySpec) -> None:
    with pytest.raises(ConfigError, match=rf"T_a = {spec.chunk_length} at speed .*compared over 4 steps at speed 1"):
        action_error(FunctionPolicy(spec, lambda _: np.zeros((1, 1, 2), np.float32)), held(), "p")
