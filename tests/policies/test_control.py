from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import fakes
from classact.data.actions import ActionSpace
from classact.data.types import FloatArray, Observation
from classact.errors import ConfigError, DataError
from classact.policies.base import Decision, FunctionPolicy, PolicySpec, Timestep, as_histories, decide
from classact.policies.config import ControlConfig
from classact.policies.control import Controller, Runner, aligned


def observation(*values: float) -> Observation:
    return Observation({}, np.asarray(values, np.float32))


def chunk_of(history: Sequence[Observation], length: int, dim: int) -> FloatArray:
    """Some chunk that tells every observation and its place apart."""
    seen = np.concatenate([o.proprioception for o in history]).astype(np.float64)
    phase = seen @ np.arange(1, len(seen) + 1)
    return np.sin(phase + 1.7 * np.arange(length)[:, None] + np.arange(dim)).astype(np.float32)


class Fake(fakes.Acts):
    """Answers from its timesteps alone, and counts its calls."""

    name = "fake"

    def __init__(self, length: int, history: int = 1, dim: int = 2) -> None:
        self.chunk_length, self.history, self.dim, self.calls = length, history, dim, 0

    def act(self, observations: Sequence[Timestep]) -> FloatArray:
        self.calls += 1
        for timestep in observations:
            assert isinstance(timestep, Observation) == (self.history == 1)
        histories = as_histories(observations, self.history)
        return np.stack([chunk_of(history, self.chunk_length, self.dim) for history in histories])


class Scored(Fake):
    """Finds the proprioception novel, and names neighbours."""

    alarm: float | None = 0.5

    def decide(self, observations: Sequence[Timestep]) -> Decision:
        seen = [o for (o,) in as_histories(observations, 1)]
        novelty = np.asarray([o.proprioception[0] for o in seen], np.float32)
        return Decision(self.act(observations), novelty, "neighbours")  # type: ignore[arg-type]


def world(seed: int, count: int, steps: int) -> list[list[Observation]]:
    """Per environment what is observed before each step, whatever is done."""
    rng = np.random.default_rng(seed)
    return [[observation(*row) for row in rng.uniform(-2, 2, (steps, 3))] for _ in range(count)]


def controlled(controller: Controller, seen: list[list[Observation]], steps: int) -> FloatArray:
    """(B, steps, D) actions, each decision being told as little as allowed."""
    controller.reset(len(seen))
    chunks: list[FloatArray] = []
    done, new = 0, [[one[0]] for one in seen]
    while done < steps:
        chunks.append(controller.act(new).chunk)
        start, done = done, done + chunks[-1].shape[1]
        new = [one[max(start + 1, done + 1 - controller.history) : done + 1] for one in seen]
    return np.concatenate(chunks, axis=1)[:, :steps]


Mean = Callable[[list[FloatArray], list[float]], FloatArray]


def plain_mean(actions: list[FloatArray], weights: list[float]) -> FloatArray:
    return np.asarray(sum(w * a.astype(np.float64) for w, a in zip(weights, actions, strict=True)) / sum(weights))


def by_dictionary(
    policy: Fake, seen: list[Observation], steps: int, execute: int, m: float | None, mean: Mean
) -> FloatArray:
    """(steps, D): step by step, every action ever proposed for a step in a list, the oldest first."""
    proposals: dict[int, list[FloatArray]] = {}
    executed = []
    for step in range(steps):
        if step % execute == 0:
            history = [seen[max(0, step - ago)] for ago in range(policy.history - 1, -1, -1)]
            for ahead, action in enumerate(chunk_of(history, policy.chunk_length, policy.dim)):
                proposals.setdefault(step + ahead, []).append(action)
        known = proposals[step]
        if m is None:
            executed.append(known[-1])
        else:
            executed.append(mean(known, [math.exp(-m * i) for i in range(len(known))]))
    return np.stack(executed)


# Against the dictionary


@given(
    length=st.integers(1, 9),
    share=st.floats(0, 1),
    m=st.sampled_from([None, 0.0, 0.01, 0.7, 5000.0]),
    history=st.integers(1, 4),
    count=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_controller_is_the_dictionary(
    length: int, share: float, m: float | None, history: int, count: int, seed: int
) -> None:
    execute = max(1, round(share * length))
    if execute == length:
        m = None
    policy, steps = Fake(length, history), 3 * length + 2
    seen = world(seed, count, steps + length + 1)
    found = controlled(Controller(policy, ControlConfig(execute, m)), seen, steps)
    expected = np.stack([by_dictionary(policy, one, steps, execute, m, plain_mean) for one in seen])
    assert found.dtype == np.float32
    if m is None:
        assert_array_equal(found, expected)
    else:
        assert_allclose(found, expected, rtol=0, atol=1e-6)


@settings(max_examples=25)
@given(
    length=st.integers(2, 7),
    share=st.floats(0, 0.99),
    m=st.sampled_from([0.0, 0.3]),
    mean=st.sampled_from(["gram_schmidt", "chordal"]),
    seed=st.integers(0, 1000),
)
def test_rotations_are_averaged_as_rotations(length: int, share: float, m: float, mean: str, seed: int) -> None:
    space = ActionSpace.pose(rotation_mean=mean)
    execute = min(max(1, round(share * length)), length - 1)
    policy, steps = Fake(length, history=2, dim=space.dim), 2 * length + 3
    seen = world(seed, 2, steps + length + 1)

    def by_space(actions: list[FloatArray], weights: list[float]) -> FloatArray:
        return space.average(np.stack(actions)[:, None], np.asarray(weights))[0]

    found = controlled(Controller(policy, ControlConfig(execute, m), space), seen, steps)
    expected = np.stack([by_dictionary(policy, one, steps, execute, m, by_space) for one in seen])
    assert_allclose(found, expected, rtol=0, atol=2e-5)  # nearly parallel vectors magnify float32's rounding
    space.check_rotations(found)


@given(
    length=st.integers(1, 6),
    share=st.floats(0, 1),
    ensemble=st.booleans(),
    history=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_runner_is_the_controller(length: int, share: float, ensemble: bool, history: int, seed: int) -> None:
    execute = max(1, round(share * length))
    config = ControlConfig(execute, 0.1 if ensemble and execute < length else None)
    steps = 2 * length + 3
    seen = world(seed, 1, steps + length + 1)
    expected = controlled(Controller(Fake(length, history), config), seen, steps)[0]
    policy = Fake(length, history)
    runner = Runner(policy, config)
    for _ in range(2):  # the second episode knows nothing of the first
        policy.calls = 0
        runner.reset()
        found = np.stack([runner.step(o) for o in seen[0][:steps]])
        assert_array_equal(found, expected)
        assert policy.calls == math.ceil(steps / execute)


# By hand


def test_weights_are_acts() -> None:
    # Four decisions one step apart, chunks of 3: the first no longer reaches this step.
    chunks = np.arange(4, dtype=np.float32)[:, None, None, None] * np.ones((1, 1, 3, 1), np.float32)
    proposals, weights = aligned(chunks, 1, 0.01)
    raw = np.exp([0, -0.01, -0.02])
    assert_allclose(weights[:, 0], [0, *raw / raw.sum()], rtol=1e-12)
    assert_array_equal(proposals[:, 0, 0, 0], [0, 1, 2, 3])
    # Two steps apart, only the first of the two steps has two proposals.
    _, weights = aligned(chunks[:2], 2, 0.5)
    assert_allclose(weights, [[1 / (1 + math.exp(-0.5)), 0], [math.exp(-0.5) / (1 + math.exp(-0.5)), 1]], rtol=1e-12)


def test_without_options_a_chunk_passes_as_it_is() -> None:
    policy, controller = Fake(5, dim=3), Controller(Fake(5, dim=3))
    controller.reset(2)
    seen = [observation(1, 2, 3), observation(4, 5, 6)]
    for new in ([[o] for o in seen], [[o] for o in seen[::-1]]):
        assert controller.act(new).chunk.tobytes() == policy.act([one[-1] for one in new]).tobytes()


def test_ensembling_of_one_environment_does_not_depend_on_the_others() -> None:
    seen = world(3, 5, 40)
    controller = Controller(Fake(7, history=2), ControlConfig(2, 0.2))
    together = controlled(controller, seen, 30)
    for one, expected in zip(seen, together, strict=True):
        assert controlled(controller, [one], 30)[0].tobytes() == expected.tobytes()


def test_rotations_are_known_from_the_policy() -> None:
    policy = Fake(4, dim=10)
    policy.action_space = ActionSpace.pose()
    seen = world(0, 1, 30)
    policy.action_space.check_rotations(controlled(Controller(policy, ControlConfig(1, 0.0)), seen, 12))
    other = Controller(policy, ControlConfig(1, 0.0), ActionSpace.pose("left", "right"))
    with pytest.raises(DataError, match=r"expected actions of shape \(\.\.\., 20\), got \(1, 1, 1, 1, 10\)"):
        controlled(other, seen, 2)


def test_novelty_neighbors_and_alarm_arrive() -> None:
    runner = Runner(Scored(3), ControlConfig(execute=2))
    assert runner.decision is None
    assert runner.novelty is None
    assert not runner.alarmed
    found = []
    for value in (0.25, 0.9, 0.5, 0.9, 0.75):
        runner.step(observation(value))
        found.append((runner.novelty, runner.alarmed))
    # Scored where it decides, at every other step; equal to the level is not above it.
    assert found == [(0.25, False), (0.25, False), (0.5, False), (0.5, False), (0.75, True)]
    assert runner.decision is not None
    assert runner.decision.neighbors == "neighbours"
    runner.reset()
    assert runner.novelty is None
    policy = Scored(3)
    policy.alarm = None
    silent = Runner(policy)
    silent.step(observation(1.0))
    assert silent.novelty == 1.0
    assert not silent.alarmed


def test_the_alarm_level_is_read_when_it_is_asked_for() -> None:
    policy = Scored(3)
    runner = Runner(policy)
    runner.step(observation(0.75))
    assert runner.alarmed
    policy.alarm = 0.8  # calibrated again
    assert not runner.alarmed


def test_a_runner_prepares_its_policy_for_one_environment() -> None:
    policy: Any = Fake(3)
    prepared: list[int] = []
    policy.prepare = prepared.append
    Runner(policy)
    assert prepared == [1]


# A function as a policy


def test_a_function_is_a_policy() -> None:
    def act(observations: Sequence[Any]) -> Any:
        return [[[float(o.proprioception[0])]] for o in observations]

    policy = FunctionPolicy(PolicySpec("mine", 1), act)
    assert policy.spec == PolicySpec("mine", 1, cameras=(), history=1, schema=None, action_space=None, alarm=None)
    decision = decide(policy, [observation(3), observation(4)])
    assert_array_equal(decision.chunk, np.float32([[[3]], [[4]]]))
    assert decision.chunk.dtype == np.float32
    assert decision.novelty is None
    assert decision.neighbors is None
    assert Runner(policy).step(observation(5)) == 5


@pytest.mark.parametrize("history", [0, 1.5, None])
def test_impossible_histories(history: Any) -> None:
    with pytest.raises(ConfigError, match=rf"'fake': expected history to be a .* at least 1, got {history}"):
        Controller(Fake(3, history))


# Bad settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"execute": 0}, "expected execute >= 1 or None for whole chunks, got 0"),
        ({"execute": 1, "ensemble": -0.1}, "finite number of at least 0 or None, got -0.1"),
        ({"execute": 1, "ensemble": math.inf}, "finite number of at least 0 or None, got inf"),
        ({"execute": 1, "ensemble": math.nan}, "finite number of at least 0 or None, got nan"),
        ({"ensemble": 0.0}, "ensemble 0.0 has no effect where whole chunks are executed.*Set execute"),
    ],
)
def test_config_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ControlConfig(**settings)


def test_settings_that_do_not_fit_the_policy() -> None:
    with pytest.raises(ConfigError, match="execute 5 asked of policy 'fake', whose chunks hold T_a = 4 actions"):
        Controller(Fake(4), ControlConfig(5))
    with pytest.raises(ConfigError, match=r"ensemble 0.1 has no effect with execute 4 = T_a .* at most 3"):
        Controller(Fake(4), ControlConfig(4, 0.1))
    policy = Fake(4)
    controller = Controller(policy, ControlConfig(2))
    policy.chunk_length = 3  # from now on it gives other chunks than it said
    controller.reset()
    policy.act = lambda _: np.zeros((1, 4, 2), np.float32)  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="'fake' gave chunks of 4 actions, but its chunk_length says 3"):
        controller.act([[observation(0)]])


# Bad observations


def test_observations_of_wrong_number() -> None:
    controller, one = Controller(Fake(4, history=3)), observation(0)
    with pytest.raises(DataError, match=r"got observations of 2 environments, but .* not reset yet. Call reset\(2\)"):
        controller.act([[one], [one]])
    with pytest.raises(ConfigError, match="at least 1 environment, got 0"):
        controller.reset(0)
    controller.reset(2)
    with pytest.raises(DataError, match="of 1 environments, but the controller was reset for 2"):
        controller.act([[one]])
    with pytest.raises(
        DataError, match=r"environment 1: expected 1 new observations at the start of its episode .*got 3"
    ):
        controller.act([[one], [one] * 3])
    controller.reset(2)
    with pytest.raises(DataError, match=r"environment 0: expected 1 new .*got one that is not in a list"):
        controller.act([one, one])  # type: ignore[list-item]
    controller.reset(2)
    controller.act([[one], [one]])
    for count in (2, 5):
        with pytest.raises(
            DataError, match=rf"environment 1: expected 3 to 4 new observations after the 4 actions .*3\), got {count}"
        ):
            controller.act([[one] * 3, [one] * count])


class Picky(Fake):
    """Refuses to look at anything negative."""

    def act(self, observations: Sequence[Timestep]) -> FloatArray:
        for history in as_histories(observations, self.history):
            if any(o.proprioception[0] < 0 for o in history):
                raise DataError("negative")
        return super().act(observations)


def test_a_refused_observation_leaves_no_trace() -> None:
    bad, good = observation(-1), [observation(i) for i in range(9)]
    runner, expected = (
        Runner(Picky(2, history=2), ControlConfig(1, 0.3)),
        Runner(Fake(2, history=2), ControlConfig(1, 0.3)),
    )
    for step, one in enumerate(good):
        if step in (0, 1, 5):  # at the start, where it would stand for those before it, and later
            before = runner.decision
            for _ in range(2):
                with pytest.raises(DataError, match="negative"):
                    runner.step(bad)
            assert runner.decision is before
        assert_array_equal(runner.step(one), expected.step(one))


def test_unusable_actions_leave_the_controller_as_it_was() -> None:
    policy, plain = Fake(3), Controller(Fake(3), ControlConfig(1, 0.0))
    controller = Controller(policy, ControlConfig(1, 0.0))
    for one in (controller, plain):
        one.reset()
        one.act([[observation(1)]])
    usual = policy.act
    policy.act = lambda _: np.full((1, 3, 2), np.nan, np.float32)  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="6 NaN"):
        controller.act([[observation(2)]])
    policy.act = usual  # type: ignore[method-assign]
    for value in (2, 3):
        found, expected = (one.act([[observation(value)]]).chunk for one in (controller, plain))
        assert_array_equal(found, expected)


def test_moments_of_wrong_length() -> None:
    one = observation(0)
    with pytest.raises(DataError, match=r"timestep 1 of 2 holds 1 observations, expected the last 2 \(T_o\)"):
        decide(Fake(4, history=2), [[one, one], [one]])
    with pytest.raises(DataError, match="timestep 0 of 1 holds 1 observations, expected the last 3"):
        decide(Fake(4, history=3), [one])
    with pytest.raises(DataError, match="timestep 0 of 1 holds 2 observations, expected the last 1"):
        decide(Fake(4), [[one, one]])


# Bad decisions


@pytest.mark.parametrize(
    ("chunk", "novelty", "message"),
    [
        (np.zeros((2, 3)), None, r"actions of shape \(2, 3\), expected \(2, T_a, D\) with T_a >= 1 for 2 observations"),
        (np.zeros((1, 3, 1)), None, r"actions of shape \(1, 3, 1\), expected \(2, T_a, D\)"),
        (np.zeros((2, 0, 1)), None, r"actions of shape \(2, 0, 1\)"),
        (np.full((2, 3, 1), np.nan), None, "6 NaN or infinite of 6 action values"),
        (np.zeros((2, 3, 1)), np.zeros(3), r"novelty scores \[0.0, 0.0, 0.0\] of shape \(3,\), expected \(2,\) finite"),
        (np.zeros((2, 3, 1)), np.array([0.5, np.nan]), r"novelty scores \[0.5, nan\]"),
    ],
)
def test_unusable_decisions(chunk: Any, novelty: Any, message: str) -> None:
    policy: Any = Fake(3)
    policy.decide = lambda _: Decision(chunk, novelty)
    with pytest.raises(ConfigError, match="policy 'fake' gave " + message):
        decide(policy, [observation(0), observation(1)])


def test_decide_that_returns_something_else() -> None:
    policy: Any = Fake(3)
    policy.decide = lambda _: (np.zeros((1, 3, 2)), None)
    with pytest.raises(ConfigError, match=r"decide returned tuple, expected a classact.policies.Decision"):
        decide(policy, [observation(0)])
