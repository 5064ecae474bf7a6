"""Chunks played at another speed than demonstrated."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.transform import Rotation

import fakes
from classact.data.actions import ActionSpace, Part
from classact.errors import ConfigError
from classact.policies import MonitoredPolicy, ParametricConfig, RetrievalConfig, RetrievalPolicy, StateLatents
from classact.policies.base import decide
from classact.policies.speed import check_reach, played, reach
from classact.train.config import FinetuneConfig


@given(st.floats(0.1, 8), st.integers(1, 20))
def test_the_targets_lie_on_the_line_that_the_demonstration_draws(speed: float, length: int) -> None:
    times = np.arange(1, 201, dtype=np.float64)  # after demonstrated action i so many steps have passed
    chunks = np.stack([times, -3 * times], axis=-1)[None, : max(reach(length, speed), 1)]
    out = played(chunks, speed, length)
    assert out.shape == (1, length, 2)
    expected = np.maximum(speed * np.arange(1, length + 1), 1)
    assert_allclose(out[0], np.stack([expected, -3 * expected], axis=-1), rtol=1e-6)


def test_whole_speeds_take_demonstrated_actions_and_one_takes_all() -> None:
    chunks = np.random.default_rng(0).normal(size=(2, 3, 16, 2)).astype(np.float32)
    assert_array_equal(played(chunks, 2, 5), chunks[..., 1:10:2, :])
    assert_array_equal(played(chunks, 1, 5), chunks[..., :5, :])
    assert played(chunks, 1.5, 5).dtype == np.float32


def test_rounding_takes_no_action_too_many() -> None:
    assert reach(10, 1.1) == 11  # 1.1 * 10 is 11.000000000000002
    assert reach(5, 1.5) == 8
    assert reach(4, 0.5) == 2


def test_rotations_are_interpolated_as_rotations() -> None:
    angles = np.radians(np.arange(0, 160, 10))
    matrices = Rotation.from_rotvec(angles[:, None] * np.array([[0.6, 0.0, 0.8]])).as_matrix()
    actions = np.concatenate([np.zeros((16, 3)), matrices[:, :2].reshape(16, 6), np.ones((16, 1))], axis=1)
    out = played(actions[None], 1.5, 10, ActionSpace.pose())[0]
    rows = out[:, 3:9].reshape(10, 2, 3)
    assert_allclose(rows @ rows.transpose(0, 2, 1), np.broadcast_to(np.eye(2), (10, 2, 2)), atol=1e-6)
    expected = Rotation.from_rotvec((np.radians(15 * np.arange(1, 11) - 10))[:, None] * np.array([[0.6, 0.0, 0.8]]))
    full = np.stack([rows[:, 0], rows[:, 1], np.cross(rows[:, 0], rows[:, 1])], axis=1)
    away = (Rotation.from_matrix(full) * expected.inv()).magnitude()
    assert np.degrees(away).max() < 0.2  # Gram-Schmidt of a mean of two 10 degrees apart


def test_more_than_a_chunk_holds_is_refused_with_both_numbers() -> None:
    message = r"chunk_length 9 \(T_a\) at speed 2 takes 18 actions of a chunk, expected at most its horizon of 16"
    for refused in (
        lambda: RetrievalConfig(chunk_length=9, speed=2.0),
        lambda: FinetuneConfig(chunk_length=9, speed=2.0),
        lambda: check_reach(9, 2.0, 16),
    ):
        with pytest.raises(ConfigError, match=message):
            refused()
    with pytest.raises(ConfigError, match="0 < speed < inf, got 0"):
        ParametricConfig(speed=0)


def test_retrieval_plays_the_average_and_monitored_policies_what_they_follow() -> None:
    config = RetrievalConfig(k=6, temperature=0.01, chunk_length=5, min_actions=3, revisit=0.999)
    data = fakes.demonstrations()
    slow = RetrievalPolicy.build(StateLatents(256.0, 256.0, (4,)), data, replace(config, chunk_length=15))
    fast = RetrievalPolicy.build(StateLatents(256.0, 256.0, (4,)), data, replace(config, speed=3.0))
    assert data.states is not None
    now = [
        replace(one, state=data.states[row])
        for row, one in zip((5, 40), fakes.observations(data, [5, 40]), strict=True)
    ]
    z = fast.latents.observations(now)
    assert fast.spec.speed == 3
    for memory in ([], [z[:1], z[1:]]):
        whole, decision = slow.decide(now, memory), fast.decide(now, memory)
        assert_allclose(decision.chunk, whole.chunk[:, 2::3], rtol=1e-5)
    monitored = MonitoredPolicy(fast, slow)
    assert_array_equal(decide(monitored, now, [z[:1], z[1:]]).chunk, decision.chunk)
    with pytest.raises(ConfigError, match=r"on the bank of the monitoring policy: chunk_length 5 .* takes 15 actions"):
        MonitoredPolicy(fast, RetrievalPolicy.build(slow.latents, data, replace(config, horizon=12)))


def test_a_base_that_goes_the_same_way_in_less_time_is_faster() -> None:
    space = ActionSpace((Part("joints", "joint", 1), Part("base", "velocity", 2)))
    chunks = np.arange(24, dtype=np.float32).reshape(1, 8, 3)
    for speed in (2.0, 1.5):
        plain, moving = played(chunks, speed, 4), played(chunks, speed, 4, space)
        assert_allclose(moving[..., :1], plain[..., :1])
        assert_allclose(moving[..., 1:], speed * plain[..., 1:])
    assert_array_equal(played(chunks, 1, 4, space), chunks[:, :4])
