"""Doubt that adds up over an episode, and the alarm that is calibrated on successes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import fakes
from classact.data.types import RolloutResult
from classact.errors import ConfigError, DataError
from classact.policies import DoubtAlarm, Novelty, NoveltyConfig, RetrievalConfig, RetrievalPolicy, Runner, StateLatents
from classact.policies.base import PolicySpec
from classact.policies.config import ControlConfig
from classact.policies.control import Controller
from classact.policies.doubt import RETURN, Announced

SPEC = PolicySpec("fake", 5, alarm=0.9)


def episode(doubt: list[float], reached: int | None, seed: int = 0) -> RolloutResult:
    """An episode with a decision every 5 steps that succeeds at step ``reached``."""
    nothing = np.zeros((0, 2))
    kept = {"decisions": np.arange(len(doubt)) * 5, "doubt": np.asarray(doubt, np.float64)}
    success = {"done": reached is not None}
    return RolloutResult(seed, 5 * len(doubt), {}, success, {"done": reached}, nothing, nothing, {}, **kept)


def successes(count: int) -> list[RolloutResult]:
    """Episodes that come to doubts 1, 2, ..., count before they succeed, and to far more after it."""
    return [episode([0.5, float(i + 1), 1e6], 10, i) for i in range(count)]


def test_the_level_is_the_conformal_quantile_of_doubt_before_success() -> None:
    results = [*successes(19), *[episode([1e9, 1e9], None) for _ in range(5)]]
    alarm = DoubtAlarm.calibrate(results, SPEC, alpha=0.05)
    assert (alarm.level, alarm.successes, alarm.criterion) == (19.0, 19, "done")  # ceil(20 * 0.95) of 19
    assert DoubtAlarm.calibrate(successes(99), SPEC, alpha=0.1).level == 90.0
    with pytest.raises(ConfigError, match=r"18 of 18 episodes succeeded by done, but .* at most 0\.05 .* needs 19\."):
        DoubtAlarm.calibrate(successes(18), SPEC)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.1, 0.25]))
def test_of_exchangeable_successes_at_most_alpha_ring(seed: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    rang = total = 0
    for _ in range(200):
        made = [episode([float(v)], 1) for v in rng.gamma(2, size=41)]
        alarm = DoubtAlarm.calibrate(made[:40], SPEC, alpha=alpha)
        rang, total = rang + (alarm.raised(made[40]) is not None), total + 1
    assert rang / total <= alpha + 4 * np.sqrt(alpha * (1 - alpha) / total)


def test_an_alarm_is_raised_at_the_first_decision_beyond_and_not_after_success() -> None:
    alarm = DoubtAlarm.calibrate(successes(19), SPEC)
    assert alarm.raised(episode([1, 19, 19.5, 30], None)) == 10
    assert alarm.raised(episode([1, 19, 19.5, 30], 10)) is None  # the decision before step 10 came after 10 steps
    assert alarm.raised(episode([1, 19, 19.5, 30], 11)) == 10
    with pytest.raises(DataError, match="episode 4 has no doubt"):
        alarm.raised(replace(episode([1], None, 4), doubt=None))


def test_what_an_alarm_announced_of_failures_so_long_before_their_end_and_of_successes() -> None:
    alarm = DoubtAlarm.calibrate(successes(19), SPEC)
    early, late, never = episode([1, 20, 21, 22], None), episode([1, 2, 3, 20], None), episode([1, 2, 3, 4], None)
    false, right = episode([20, 21], 7), episode([1, 21], 5)
    episodes = [early, late, never, false, right]
    assert alarm.announced(episodes) == Announced(announced=2, failures=3, false=1, successes=2)
    assert alarm.announced(episodes, lead=5) == Announced(1, 3, 1, 2)  # the late one came 5 steps before the end


def test_an_alarm_is_of_one_policy_and_comes_back_from_its_file(tmp_path: Path) -> None:
    alarm = DoubtAlarm.calibrate(successes(30), SPEC)
    alarm.save(tmp_path / "alarm.json")
    assert DoubtAlarm.load(tmp_path / "alarm.json") == alarm
    message = r"for policy 'fake' with T_a = 5 at speed 1, executing whole chunks, this is .* at speed 2, exec"
    with pytest.raises(ConfigError, match=message):
        alarm.check(replace(SPEC, speed=2.0))
    with pytest.raises(ConfigError, match=r"executing whole chunks, this is .* executing 2 of a chunk, averaged"):
        alarm.check(replace(SPEC, control=ControlConfig(2, 0.01)))
    with pytest.raises(ConfigError, match=r"policy 'fake' has no calibrated novelty score.* a head needs a monitor"):
        alarm.check(replace(SPEC, alarm=None))
    near = DoubtAlarm.calibrate(successes(30), replace(SPEC, acting={"k": 8}))
    with pytest.raises(ConfigError, match=r"calibrated with k = 8, now it is 4\. Calibrate it again"):
        near.check(replace(SPEC, acting={"k": 4}))
    halves = replace(SPEC, control=ControlConfig(2))
    DoubtAlarm.calibrate(successes(30), halves).check(halves)
    with pytest.raises(ConfigError, match="criterion 'dome'"):
        DoubtAlarm.calibrate(successes(30), SPEC, "dome")
    with pytest.raises(ConfigError, match="0 < alpha < 1, got 1"):
        DoubtAlarm.calibrate(successes(30), SPEC, alpha=1)


def retrieval(revisit: float | None) -> RetrievalPolicy:
    config = RetrievalConfig(k=6, temperature=0.01, chunk_length=5, min_actions=3, revisit=revisit)
    made = RetrievalPolicy.build(StateLatents(256.0, 256.0, (4,)), fakes.demonstrations(), config)
    made.calibrate(None, NoveltyConfig(m=2, alpha=0.5))
    return made


@pytest.mark.parametrize("revisit", [None, 0.999])
def test_the_controller_adds_up_distances_and_returns(revisit: float | None) -> None:
    policy, data = retrieval(revisit), fakes.demonstrations(3)
    assert data.states is not None
    rows = [5, 40, 5, 5, 60]
    seen = [replace(o, state=data.states[r]) for o, r in zip(fakes.observations(data, rows), rows, strict=True)]
    away = policy.distances(policy.latents.observations(seen), 2)
    returned = np.array([0, 0, 1, 1, 0]) if revisit else np.zeros(5)
    controller = Controller(policy)
    for _ in range(2):  # another episode starts from nothing
        controller.reset(1)
        doubts = [controller.act([[seen[0]]]), *(controller.act([[one] * 5]) for one in seen[1:])]
        found = np.concatenate([decision.doubt for decision in doubts if decision.doubt is not None])
        assert_allclose(found, np.cumsum(away + RETURN * returned), rtol=1e-6)
    silent = RetrievalPolicy(policy.latents, policy.bank, policy.actions, policy.episode_ends, policy.config)
    controller = Controller(silent)
    controller.reset(1)
    assert controller.act([[seen[0]]]).doubt is None


@pytest.mark.parametrize(("execute", "first"), [(1, 5), (2, 3), (5, 1), (None, 1)])
def test_the_decision_just_before_is_no_return_however_often_is_decided(execute: int | None, first: int) -> None:
    policy, data = retrieval(0.999), fakes.demonstrations(3)
    assert data.states is not None
    seen = replace(fakes.observations(data, [5])[0], state=data.states[5])
    controller = Controller(policy, ControlConfig(execute))
    controller.reset(1)
    visits = []
    for n in range(9):
        decision = controller.act([[seen] * ((n and (execute or 5)) or 1)])
        assert decision.visits is not None
        visits.append(int(decision.visits[0]))
    # T_a is 5: an observation of less than 5 steps ago is the same visit.
    assert visits == [max(0, n - first + 1) for n in range(9)]


def test_a_runner_says_when_its_episode_is_failing() -> None:
    policy, data = retrieval(0.999), fakes.demonstrations(3)
    assert data.states is not None
    seen = replace(fakes.observations(data, [5])[0], state=data.states[5])
    alarm = DoubtAlarm(0.35, 0.05, 19, "done", "retrieval", 5, 1.0)
    runner = Runner(policy, alarm=alarm)
    failing = []
    for _ in range(30):
        runner.step(seen)
        failing.append(runner.failing)
    assert runner.decision is not None
    assert runner.decision.doubt is not None
    assert failing == sorted(failing)
    assert failing[-1]
    assert not failing[0]
    runner.reset()
    assert not runner.failing
    with pytest.raises(ConfigError, match="T_a = 6"):
        Runner(policy, alarm=replace(alarm, chunk_length=6))
    with pytest.raises(ConfigError, match=r"executing whole chunks, this is .* executing 1 of a chunk"):
        Runner(policy, ControlConfig(execute=1), alarm=alarm)
    assert isinstance(policy.calibration, Novelty)
    assert_array_equal(Runner(policy).failing, False)
