"""Gaits: Gymnasium's own rewards and falls, and experts that run."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="the gaits need the extra 'locomotion': pip install 'classact[locomotion]'")

import gymnasium

from classact.sims import SIMULATORS, make_simulator
from classact.sims.experts.base import attempt
from classact.sims.experts.locomotion import noisy
from classact.utils.lazy import resolve

TASKS = {"half-cheetah": "HalfCheetah-v5", "hopper": "Hopper-v5"}


@pytest.mark.parametrize("name", TASKS)
def test_the_expert_runs(name: str) -> None:
    sim = make_simulator(name)
    made = [attempt(sim, resolve(SIMULATORS[name].expert), seed) for seed in range(5)]
    assert sum(one.success for one in made) >= 4, [one.reason for one in made]
    assert not np.array_equal(made[0].states[0], made[1].states[0])
    assert np.array_equal(made[1].actions, attempt(sim, resolve(SIMULATORS[name].expert), 1).actions)
    sim.close()


@pytest.mark.parametrize("name", TASKS)
def test_rewards_are_those_of_gymnasium_until_a_fall(name: str) -> None:
    sim, env = make_simulator(name), gymnasium.make(TASKS[name])
    rng, total, fell = np.random.default_rng(0), 0.0, False
    seen, _ = env.reset(seed=3)
    sim.reset(3)
    for _ in range(200):
        np.testing.assert_allclose(sim.observe(render=False).proprioception, seen, rtol=1e-6, atol=1e-6)
        action = rng.uniform(-1, 1, sim.spec.action_dim).astype(np.float32)
        seen, reward, fallen, _, _ = env.step(action)
        metrics = sim.step(action)
        total += float(reward)
        assert metrics["return"] == pytest.approx(total, rel=1e-4)
        if fallen:
            fell = True
            break
    assert fell == (name == "hopper")
    if fell:
        assert [sim.step(action)["reward"] for _ in range(5)] == [0.0] * 5
        assert sim.observe(render=False).state[-2:].tolist() == pytest.approx([total, 1.0], rel=1e-4)
    env.close()
    sim.close()


def test_a_share_of_actions_is_random() -> None:
    sim = make_simulator("half-cheetah")
    returns = []
    for share in (0.0, 1.0):
        sim.reset(5)
        script = noisy(sim, np.random.default_rng(0), 0.0, share)  # type: ignore[arg-type]
        returns.append([sim.step(next(script))["return"] for _ in range(200)][-1])
    assert returns[0] > returns[1] + 100
    sim.close()
