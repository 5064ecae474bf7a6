from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("metaworld", reason="its tasks need the extra 'metaworld': pip install 'classact[metaworld]'")

from classact.sims import SIMULATORS, make_simulator
from classact.sims.experts.base import attempt
from classact.sims.experts.metaworld import noisy
from classact.utils.lazy import resolve

TASKS = [name for name in SIMULATORS if name.startswith("metaworld-")]


@pytest.mark.parametrize("name", TASKS)
def test_the_expert_succeeds(name: str) -> None:
    sim = make_simulator(name)
    made = [attempt(sim, resolve(SIMULATORS[name].expert), seed) for seed in range(5)]
    assert sum(one.success for one in made) >= 3, [one.reason for one in made]
    goals = np.array([one.proprioception[0, 36:39] for one in made])
    assert (goals.std(axis=0) > 0).any()  # seen, and another in each episode
    assert np.array_equal(made[1].actions, attempt(sim, resolve(SIMULATORS[name].expert), 1).actions)
    sim.close()


def test_a_share_of_actions_is_random() -> None:
    sim = make_simulator("metaworld-reach")
    rewards = []
    for share in (0.0, 1.0):
        sim.reset(5)
        script = noisy(sim, np.random.default_rng(0), 0.0, share)  # type: ignore[arg-type]
        rewards.append([sim.step(next(script))["reward"] for _ in range(40)][-1])
    assert rewards[0] > 2 * rewards[1]
    sim.close()


def test_an_action_is_executed_twice_and_observed_with_the_step_before() -> None:
    sim = make_simulator("metaworld-reach")
    sim.reset(0)
    before = sim.observe(render=False).proprioception
    sim.step(np.array([1, 0, 0, -1], np.float32))
    after = sim.observe(render=False).proprioception
    assert 0.001 < after[0] - before[0] < 0.02  # metres: the hand follows by a spring
    assert np.allclose(sim.observe(render=False).proprioception, after)  # looking changes nothing
    assert not np.array_equal(after[18:22], after[:4])
    sim.close()


def test_an_action_beyond_the_limits_is_clipped_as_metaworld_does() -> None:
    sim = make_simulator("metaworld-reach")
    reached = []
    for scale in (1, 2):
        sim.reset(0)
        for _ in range(3):
            sim.step(np.array([scale, -scale, 0, scale], np.float32))
        reached.append(sim.observe(render=False).proprioception)
    assert np.array_equal(*reached)
    sim.close()
