from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fakes
import flawed_worker
from classact import sims
from classact.data.lowdim import LowDim
from classact.data.schema import Schema
from classact.data.types import FloatArray, Observation, RolloutResult
from classact.errors import ConfigError, SimulatorError
from classact.evaluation import rollout
from classact.evaluation.config import EvaluationConfig
from classact.evaluation.rollout import evaluate, run_evaluation, summarize, write_episodes
from classact.evaluation.rows import Alarms
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.policies import ImageLatents, RetrievalConfig, RetrievalPolicy
from classact.policies.base import Decision, FunctionPolicy, PolicySpec, Timestep, as_histories
from classact.policies.latents import StateLatents
from classact.policies.monitored import MonitoredPolicy
from classact.sims import Entry, make_simulator, pool
from classact.sims.pool import run_chunk
from classact.sims.processes import FaultError
from classact.utils.codec import to_json
from classact.utils.statistics import wilson_interval
from classact.utils.storage import read_arrays, read_jsonl
from simulators import need

SHORT = EvaluationConfig(episodes=5, max_steps=21, workers=1)


def retrieval() -> RetrievalPolicy:
    data = fakes.demonstrations()
    encoder = ImageEncoder(EncoderConfig(width=0.25, image_size=32, crop_size=28))
    latents = ImageLatents(encoder, LowDim.fit(data))
    return RetrievalPolicy.build(latents, data, RetrievalConfig(k=8, temperature=0.005, chunk_length=8))


def assert_same(one: Sequence[RolloutResult], two: Sequence[RolloutResult]) -> None:
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert (a.seed, a.steps, a.maxima, a.success, a.first_success) == (
            *(b.seed, b.steps, b.maxima, b.success, b.first_success),
        )
        assert a.states.tobytes() == b.states.tobytes()
        assert a.actions.tobytes() == b.actions.tobytes()
        assert {k: v.tobytes() for k, v in a.metrics.items()} == {k: v.tobytes() for k, v in b.metrics.items()}
        assert (a.decisions is None) == (b.decisions is None)
        assert (a.novelty is None) == (b.novelty is None)
        if a.decisions is not None and b.decisions is not None:
            assert_array_equal(a.decisions, b.decisions)
        if a.novelty is not None and b.novelty is not None:
            assert a.novelty.tobytes() == b.novelty.tobytes()


class Direct:
    """Stands for a process: its job is done here, so that it sees simulators made in a test."""

    def __init__(self, job: Callable[..., Any], _: float) -> None:
        self.job = job

    def ask(self, *request: Any) -> None:
        self.request = request

    def receive(self) -> list[Any]:
        try:
            return list(self.job(*self.request))
        except Exception as error:
            raise FaultError(traceback.format_exc(), error) from None

    def end(self, patience: float = 0.0) -> None:
        pass


@pytest.fixture
def ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "Process", Direct)
    monkeypatch.setattr(sims, "SIMULATORS", {"ladder": Entry("test_rollout:make_ladder", "Ladder", None, "plain")})


def make_ladder(*, image_size: int | None, shift: str, cameras: Sequence[str] | None = None) -> fakes.LadderSimulator:
    made.append(cameras)
    return fakes.LadderSimulator(image_size or 96, shift)


made: list[Sequence[str] | None] = []
"""The cameras that ladders were made with."""


def groups_of(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulators say that so many episodes are evaluated side by side."""

    def make(*args: Any, **options: Any) -> Any:
        sim = make_simulator(*args, **options)
        return SimpleNamespace(spec=replace(sim.spec, group=count), close=sim.close)

    monkeypatch.setattr(rollout, "make_simulator", make)


class Constant(fakes.Acts):
    """Always the same chunk."""

    name = "constant"
    cameras = ("front",)
    chunk_length = 3

    def __init__(self, chunks: Any) -> None:
        self.chunks = chunks

    def act(self, observations: Sequence[Timestep]) -> FloatArray:
        return np.asarray([self.chunks] * len(observations), np.float32)


# What is the same whatever the machine


def test_fake_policy_is_the_same_for_any_number_of_workers() -> None:
    # 21 steps are no multiple of the chunks of 8.
    results = [evaluate(fakes.ChasePolicy(), "pusht", replace(SHORT, workers=n)) for n in (1, 2, 3)]
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])
    assert [r.seed for r in results[0]] == [100_000 + i for i in range(5)]
    # Episodes differ, and something happened in them.
    assert len({r.states.tobytes() for r in results[0]}) == 5
    assert any(np.ptp(r.states[:, 2]) > 0 for r in results[0])


def test_retrieval_is_the_same_for_any_number_of_workers() -> None:
    policy = retrieval()
    config = replace(SHORT, episodes=3, max_steps=10)
    assert_same(
        evaluate(policy, "pusht", replace(config, workers=1)), evaluate(policy, "pusht", replace(config, workers=2))
    )


def test_history_and_ensembling_are_the_same_for_any_number_of_workers() -> None:
    policy = fakes.WatchfulPolicy(chunk_length=8, history=2)
    config = replace(SHORT, execute=3, ensemble=0.1)
    results = evaluate(policy, "pusht", config)
    assert_same(results, evaluate(policy, "pusht", replace(config, workers=3)))
    for result in results:
        assert result.steps == 21
        assert_array_equal(result.decisions, np.arange(0, 21, 3))
        assert_array_equal(result.novelty, (result.states[:-1:3, 4] / 7).astype(np.float32))
    (plain,) = evaluate(policy, "pusht", replace(config, episodes=1, ensemble=None))
    assert_array_equal(plain.actions[:3], results[0].actions[:3])  # until there is a second proposal
    assert not np.array_equal(plain.actions[3:6], results[0].actions[3:6])


def test_groups_do_not_change_what_a_policy_without_arithmetic_does(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(fakes.ChasePolicy(), "pusht", SHORT)
    groups_of(2, monkeypatch)
    assert_same(whole, evaluate(fakes.ChasePolicy(), "pusht", replace(SHORT, workers=2)))


def test_every_episode_runs_to_the_limit_and_its_actions_lead_to_its_states() -> None:
    config = replace(SHORT, episodes=2)
    results = evaluate(fakes.ChasePolicy(), "pusht", config)
    for result in results:
        assert result.steps == 21
        assert result.states.shape == (22, 5)
        assert result.actions.shape == (21, 2)
        sim = make_simulator("pusht")
        sim.reset(result.seed)
        states = [sim.get_state()]
        trace = []
        for action in result.actions:
            trace.append(sim.step(action)["coverage"])
            states.append(sim.get_state())
        sim.close()
        assert_array_equal(np.stack(states), result.states)
        assert_array_equal(np.asarray(trace, np.float32), result.metrics["coverage"])
        assert result.maxima["coverage"] == max(trace)


def test_progress_reaches_the_end() -> None:
    calls: list[tuple[int, int]] = []
    evaluate(fakes.ChasePolicy(), "pusht", replace(SHORT, episodes=2), lambda d, t, _: calls.append((d, t)))
    assert calls == [(16, 42), (32, 42), (42, 42)]


# How the policy is called


class Recorder(fakes.Acts):
    """Steps up by one, and keeps what it was shown: per call and environment the states, and whether with images."""

    name = "recorder"
    cameras = ("front",)

    def __init__(self, chunk_length: int, history: int) -> None:
        self.chunk_length, self.history = chunk_length, history
        self.timesteps: list[list[list[float]]] = []

    def act(self, observations: Sequence[Timestep]) -> FloatArray:
        histories = as_histories(observations, self.history)
        assert all(observation.images for history in histories for observation in history)
        self.timesteps.append([[float(o.proprioception[0]) for o in history] for history in histories])
        return np.ones((len(observations), self.chunk_length, 1), np.float32)


@pytest.mark.usefixtures("ladder")
@pytest.mark.parametrize(
    ("execute", "expected"),
    [
        (None, [[0, 0, 0], [2, 3, 4]]),
        (1, [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6]]),
        (2, [[0, 0, 0], [0, 1, 2], [2, 3, 4], [4, 5, 6]]),
    ],
)
def test_a_policy_with_history_sees_the_last_observations(execute: int | None, expected: list[list[float]]) -> None:
    # As if those before the first were equal to it, and again so in the second group of episodes.
    config = EvaluationConfig(episodes=3, first_seed=0, shift="plain", workers=2, execute=execute)
    policy = Recorder(4, 3)
    results = evaluate(policy, "ladder", config)
    assert policy.timesteps == [[timestep] * 3 for timestep in expected]
    assert [r.steps for r in results] == [7, 7, 7]
    step = execute or 4
    for result in results:
        assert_array_equal(result.decisions, np.arange(0, 7, step))
        assert result.novelty is None


@pytest.mark.usefixtures("ladder")
def test_each_group_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    groups_of(2, monkeypatch)
    policy = Recorder(4, 2)
    config = EvaluationConfig(episodes=3, first_seed=0, shift="plain", workers=1, execute=3, ensemble=0.5)
    evaluate(policy, "ladder", config)
    timesteps = [[0, 0], [2, 3], [5, 6]]
    assert policy.timesteps == [[timestep] * 2 for timestep in timesteps] + [[timestep] for timestep in timesteps]


@pytest.mark.parametrize(("history", "expected"), [(1, [5]), (2, [4, 5]), (5, [1, 2, 3, 4, 5]), (9, [1, 2, 3, 4, 5])])
def test_only_what_is_returned_is_rendered(history: int, expected: list[int]) -> None:
    rendered = []

    class Counting(fakes.LadderSimulator):
        def observe(self, *, render: bool = True) -> Observation:
            rendered.append(self.steps)
            return super().observe(render=render)

    observations, metrics, states = run_chunk(Counting(), np.ones((5, 1), np.float32), True, history)
    assert rendered == expected == [o.proprioception[0] for o in observations]
    assert len(metrics) == len(states) == 5


def test_control_that_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="execute 9 asked of policy 'chase', whose chunks hold T_a = 8"):
        evaluate(fakes.ChasePolicy(), "pusht", replace(SHORT, execute=9))
    with pytest.raises(ConfigError, match=r"ensemble 0.1 has no effect with execute 8 = T_a"):
        evaluate(fakes.ChasePolicy(), "pusht", replace(SHORT, execute=8, ensemble=0.1))
    with pytest.raises(ConfigError, match=r"ensemble 0.1 has no effect where whole chunks"):
        replace(SHORT, ensemble=0.1)


class Moody(Constant):
    """Scores only its first decision."""

    def decide(self, observations: Sequence[Timestep]) -> Decision:
        first = as_histories(observations, 1)[0][0].proprioception[0] == 0
        return Decision(self.act(observations), np.zeros(len(observations), np.float32) if first else None)


@pytest.mark.usefixtures("ladder")
def test_scores_at_some_decisions_only() -> None:
    with pytest.raises(ConfigError, match="'constant' gave novelty scores at 1 of 3 decisions, expected all or none"):
        evaluate(Moody([[1.0]] * 3), "ladder", EvaluationConfig(episodes=2, shift="plain", workers=1))


# Success


@pytest.mark.usefixtures("ladder")
def test_success_is_strictly_more_at_any_step_counted_from_one() -> None:
    config = EvaluationConfig(episodes=3, first_seed=0, shift="plain", max_steps=2, workers=1)
    two = evaluate(Constant([[1.0]] * 3), "ladder", config)
    # Seed 0 climbs to 0.25 and 0.5: equal to the threshold is not above it. Seeds 1 and 2 reach 0.51 and 0.52.
    assert [r.success["height>0.5"] for r in two] == [False, True, True]
    assert [r.first_success["height>0.5"] for r in two] == [None, 2, 2]
    seven = evaluate(Constant([[1.0]] * 3), "ladder", replace(config, max_steps=None))
    assert [r.steps for r in seven] == [7, 7, 7]
    assert [r.first_success["height>0.5"] for r in seven] == [3, 2, 2]


@pytest.mark.usefixtures("ladder")
def test_success_stays_when_the_metric_falls_again_within_a_chunk() -> None:
    config = EvaluationConfig(episodes=1, first_seed=0, shift="plain", max_steps=3, workers=1)
    (result,) = evaluate(Constant([[3.0], [-3.0], [0.0]]), "ladder", config)
    assert result.first_success["height>0.5"] == 1
    assert result.success["height>0.5"]
    assert_array_equal(result.metrics["height"], np.float32([0.75, 0, 0]))


# Failures


class Sighted(fakes.Acts):
    """Acts on what it sees: on the colours and on the newest and the oldest of T_o pictures."""

    name = "sighted"
    cameras = ("top",)
    chunk_length = 4
    history = 2

    def __init__(self, signals: Mapping[int, int] | None = None) -> None:
        self.signals = dict(signals or {})
        self.calls = 0

    def act(self, observations: Sequence[Timestep]) -> FloatArray:
        self.calls += 1
        if signal_number := self.signals.get(self.calls):
            victim = multiprocessing.active_children()[0]
            os.kill(victim.pid or 0, signal_number)
            if signal_number == signal.SIGKILL:
                victim.join()
        histories = as_histories(observations, 2)
        seen = np.asarray([[o.images["top"].mean(axis=(0, 1)) for o in history] for history in histories])
        target = 100 + seen[:, 1, :2] + 40 * (seen[:, 1, 1:] - seen[:, 0, 1:])
        return np.repeat(target[:, None], 4, axis=1).astype(np.float32)


COLORS = replace(SHORT, episodes=3, shift="rand-color", workers=2)


@pytest.fixture(scope="module")
def undisturbed() -> list[RolloutResult]:
    faults: list[str] = []
    results = evaluate(Sighted(), "pusht", COLORS, faults=faults)
    assert faults == []
    return results


def test_dead_workers_change_nothing(undisturbed: list[RolloutResult], tmp_path: Path) -> None:
    # Right after the reset, and twice later; 21 steps are five whole chunks and a part.
    policy = Sighted(dict.fromkeys((1, 3, 6), signal.SIGKILL))
    seen: list[str] = []
    results, rows = run_evaluation(
        policy, "pusht", COLORS, tmp_path, encoder="e", progress=lambda _d, _t, status: seen.append(status)
    )
    assert_same(results, undisturbed)
    assert multiprocessing.active_children() == []
    # Nothing is hidden.
    assert [row.faults for row in rows] == [3] * len(fakes.CRITERIA)
    faults = [row["fault"] for row in read_jsonl(tmp_path / "faults.jsonl")]
    assert [text.split(" at step ")[1] for text in faults] == [f"{n} died (exit code -9)" for n in (0, 8, 20)]
    assert seen[0] == "step 4 of 21, worker restarts: 1"
    _, rows = run_evaluation(fakes.ChasePolicy(), "pusht", replace(SHORT, episodes=1), tmp_path, encoder="e")
    assert rows[0].faults == 0
    assert not (tmp_path / "faults.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "episodes"), [("aloha-transfer", 2), ("three-stack-d0", 1)])
def test_dead_workers_change_nothing_in_mujoco_either(name: str, episodes: int) -> None:
    # There, states hold less than what decides the next step: only repeating the episode brings the rest back.
    need(name)
    spec = make_simulator(name, image_size=48).spec
    moving = next(shift for shift in spec.shifts if shift in ("dynamic", "rotation"))
    config = EvaluationConfig(episodes=episodes, shift=moving, image_size=48, max_steps=10, workers=1)

    class Nudge(fakes.Acts):
        """Moves on from where it is, by what it sees."""

        name = "nudge"
        chunk_length = 3
        cameras = spec.cameras[:1]
        calls = 0

        def act(self, observations: Sequence[Any]) -> FloatArray:
            self.calls += 1
            if self.calls == killed:
                victim = multiprocessing.active_children()[0]
                os.kill(victim.pid or 0, signal.SIGKILL)
                victim.join()
            seen = np.asarray([o.images[spec.cameras[0]].mean() for o in observations], np.float32)
            assert all(list(o.images) == [spec.cameras[0]] for o in observations)
            at = np.stack([o.proprioception for o in observations])
            if spec.action_dim == 10:
                at = np.concatenate([at[:, :9], np.ones((len(at), 1), np.float32)], axis=1)
            at[:, :3] += 1e-4 * seen[:, None] * np.float32([1, -1, -2])
            return np.repeat(at[:, None], 3, axis=1)

    killed, faults = 0, []
    expected = evaluate(Nudge(), name, config, faults=faults)
    assert faults == []
    killed = 4  # at step 9 of 10
    assert_same(evaluate(Nudge(), name, config, faults=faults), expected)
    assert len(faults) == 1


def test_a_hung_worker_is_ended_and_changes_nothing(
    undisturbed: list[RolloutResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "TIMEOUT", 15.0)  # in which a process also has to start
    faults: list[str] = []
    assert_same(evaluate(Sighted({2: signal.SIGSTOP}), "pusht", COLORS, faults=faults), undisturbed)
    assert "gave no sign of life for 15 s and was ended" in faults[0]
    assert multiprocessing.active_children() == []


def go_wrong(kind: str, steps: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAW", str(folder / "gone-wrong"))
    monkeypatch.setattr(pool, "Simulators", partial(flawed_worker.Flawed, kind, steps))


@pytest.mark.parametrize(
    ("kind", "message"),
    [("die", "at step 8 died (exit code 7)"), ("raise once", "at step 8 raised classact.errors.SimulatorError: GL sh")],
)
def test_a_fault_in_the_middle_of_a_chunk_changes_nothing(
    kind: str, message: str, undisturbed: list[RolloutResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_wrong(kind, 19, tmp_path, monkeypatch)  # the worker of two episodes is in the second of them then
    faults: list[str] = []
    assert_same(evaluate(Sighted(), "pusht", COLORS, faults=faults), undisturbed)
    assert len(faults) == 1
    assert message in faults[0]


def test_a_worker_that_dies_again_and_again_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "Simulators", flawed_worker.Dying)
    with pytest.raises(
        SimulatorError,
        match=r"process of 1 episodes \(seeds 100000 to 100000\) at step 0 died \(exit code 3\)\. So did 3 others .*"
        r"killed for memory\? Evaluate with fewer workers",
    ):
        evaluate(fakes.ChasePolicy(), "pusht", replace(SHORT, episodes=1))
    assert multiprocessing.active_children() == []


def test_what_a_simulator_raises_twice_is_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_wrong("raise always", 6, tmp_path, monkeypatch)
    with pytest.raises(
        SimulatorError, match=r"(?s)at step 4 failed, in a new process too:\nTraceback.*GL shows nothing"
    ):
        evaluate(Sighted(), "pusht", replace(COLORS, episodes=1))
    assert multiprocessing.active_children() == []


def test_a_simulator_that_repeats_itself_differently_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_wrong("wander", 6, tmp_path, monkeypatch)
    with pytest.raises(
        SimulatorError,
        match=r"seed 100000 again led to another state than before \(.* up to 0\.\d+\).*not deterministic",
    ):
        evaluate(Sighted(), "pusht", replace(COLORS, episodes=1))


def test_a_request_that_a_hung_worker_does_not_read() -> None:
    worker = pool.Worker(("pusht", 96, "fixed-color"), [])
    worker.reset([1, 2], False)
    worker.answer()
    worker.process.timeout = 2.0
    os.kill(worker.process.pid, signal.SIGSTOP)
    worker.step(np.full((2, 60_000, 2), 256, np.float32), False, 1)  # more than a pipe holds
    with pytest.raises(FaultError, match="no sign of life for 2 s"):
        worker.process.receive()
    assert multiprocessing.active_children() == []


# What is rendered


@pytest.mark.usefixtures("ladder")
def test_only_the_cameras_that_the_policy_reads_are_rendered() -> None:
    config = EvaluationConfig(episodes=1, first_seed=0, shift="plain", workers=1)

    def cameras(**attributes: Any) -> Sequence[str] | None:
        policy = Constant([[1.0]] * 3)
        for name, value in attributes.items():
            setattr(policy, name, value)
        made.clear()
        evaluate(policy, "ladder", config)
        return made[-1]

    assert cameras(cameras=("front",)) == ("front",)
    assert cameras(cameras=()) is None
    with pytest.raises(
        ConfigError, match="'constant', simulator 'ladder': unknown camera 'wrist': available are 'front"
    ):
        cameras(cameras=("wrist",))


# Failures that are not a process's


@pytest.mark.usefixtures("ladder")
def test_what_a_simulator_raises_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise FloatingPointError("the physics exploded")

    monkeypatch.setattr(fakes.LadderSimulator, "step", broken)
    with pytest.raises(SimulatorError, match=r"(?s)at step 0 failed, in a new process too:.*the physics exploded"):
        evaluate(Constant([[1.0]]), "ladder", EvaluationConfig(episodes=1, shift="plain", workers=1))


@pytest.mark.usefixtures("ladder")
@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([[1.0, 2.0]], r"'constant' gave actions of shape \(2, 1, 2\), but simulator 'ladder' takes \(2, T_a, 1\)"),
        ([1.0], r"shape \(2, 1\).*trained on another task"),
        (np.zeros((0, 1)), r"shape \(2, 0, 1\).*T_a >= 1"),
        ([[np.nan], [1.0], [np.inf]], r"gave 4 NaN or infinite of 6 action values"),
    ],
)
def test_unusable_actions(chunks: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(Constant(chunks), "ladder", EvaluationConfig(episodes=2, shift="plain", workers=1))


@pytest.mark.parametrize("change", [{"episodes": 0}, {"workers": -1}, {"max_steps": 0}])
def test_config_refuses(change: dict[str, int]) -> None:
    key, value = next(iter(change.items()))
    with pytest.raises(ConfigError, match=f"expected {key} >= [01], got {value}"):
        replace(SHORT, **change)


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match="unknown simulator 'pong': available are"):
        evaluate(fakes.ChasePolicy(), "pong", SHORT)
    with pytest.raises(ConfigError, match="unknown shift 'dark': available are 'fixed-color', 'rand-color'"):
        evaluate(fakes.ChasePolicy(), "pusht", replace(SHORT, shift="dark"))


# Files and tables


def test_files_and_rows(tmp_path: Path) -> None:
    folder = tmp_path / "chase-a"
    config = replace(SHORT, episodes=2, max_steps=9)
    results, rows = run_evaluation(fakes.ChasePolicy(), "pusht", config, folder, encoder="state")
    arrays = read_arrays(folder / "rollouts.safetensors")
    assert_array_equal(arrays["seeds"], [100_000, 100_001])
    assert_array_equal(arrays["ends"], [9, 18])
    assert arrays["actions"].shape == (18, 2)
    assert arrays["actions"].dtype == np.float32
    assert arrays["states"].shape == (20, 5)
    assert arrays["states"].dtype == np.float64
    assert arrays["coverage"].shape == arrays["iou"].shape == (18,)
    assert_array_equal(arrays["states"][10:], results[1].states)
    episodes = read_jsonl(folder / "episodes.jsonl")
    assert [row["seed"] for row in episodes] == [100_000, 100_001]
    for row, result in zip(episodes, results, strict=True):
        assert row["steps"] == 9
        assert row["max_coverage"] == row["maxima"]["coverage"] == result.maxima["coverage"]
        assert row["success"] == dict.fromkeys(fakes.CRITERIA, False)
        assert row["first_success"] == dict.fromkeys(fakes.CRITERIA)
    assert [row.criterion for row in rows] == fakes.CRITERIA
    for row in rows:
        assert (row.policy, row.encoder, row.simulator, row.shift) == ("chase", "state", "pusht", "fixed-color")
        assert (row.evaluation, row.episodes, row.successes, row.success) == ("chase-a", 2, 0, 0.0)
        assert (row.low, row.high) == wilson_interval(0, 2)
        assert row.seconds > 0
        assert row.metrics["coverage"] == np.mean([r.maxima["coverage"] for r in results])
        assert (row.training, row.augmentation, row.maximum_of, row.alarms) == ("none", "none", None, None)
    json.dumps(to_json(rows), allow_nan=False)


def test_summary_counts_successes(tmp_path: Path) -> None:
    def result(seed: int, first: int | None) -> RolloutResult:
        return RolloutResult(
            seed=seed,
            steps=2,
            maxima={"height": 0.75},
            success={"h": first is not None},
            first_success={"h": first},
            states=np.zeros((3, 1)),
            actions=np.zeros((2, 1), np.float32),
            metrics={"height": np.zeros(2, np.float32)},
        )

    results = [result(0, 1), result(1, None), result(2, 2), result(3, 2)]
    (row,) = summarize(results, 2.5, **LABELS)
    assert (row.successes, row.episodes, row.success, row.seconds) == (3, 4, 0.75, 2.5)
    assert 0 < row.low < 0.75 < row.high < 1
    write_episodes(tmp_path, results)
    assert [r["first_success"]["h"] for r in read_jsonl(tmp_path / "episodes.jsonl")] == [1, None, 2, 2]


# Novelty

LABELS = {"policy": "p", "encoder": "e", "simulator": "s", "shift": "none", "evaluation": "x"}


def scored(seed: int, success: bool, novelty: Sequence[float], first: int = 9) -> RolloutResult:
    steps = 4 * len(novelty)
    return RolloutResult(
        seed=seed,
        steps=steps,
        maxima={"height": 0.75},
        success={"h": success, "never": False},
        first_success={"h": first if success else None, "never": None},
        states=np.zeros((steps + 1, 1)),
        actions=np.zeros((steps, 1), np.float32),
        metrics={"height": np.zeros(steps, np.float32)},
        decisions=np.arange(0, steps, 4, dtype=np.int64),
        novelty=np.asarray(novelty, np.float32),
    )


SCORED = [
    scored(0, True, [0.1, 0.2]),
    scored(1, True, [0.1, 0.75, 0.9]),
    scored(2, False, [0.8, 0.1]),
    scored(3, False, [0.5, 0.5, 0.5, 0.625]),
    scored(4, False, [0.5]),  # equal to the level is not above it
    # Success after 8 steps is what the decision before step 8 sees: an alarm there comes too late to count.
    scored(5, True, [0.1, 0.2, 0.9], first=8),
    scored(6, True, [0.1, 0.2, 0.9], first=9),
    scored(7, True, [0.1, 0.9, 0.9], first=4),
    scored(8, True, [0.1, 0.9, 0.9], first=5),
]


def test_alarms_are_counted() -> None:
    rows = summarize(SCORED, 1.0, alarm=0.5, **LABELS)
    assert [row.criterion for row in rows] == ["h", "never"]
    assert [row.alarms for row in rows] == [Alarms(failures=2, successes=3), Alarms(failures=7, successes=0)]
    unscored = [replace(r, novelty=None) for r in SCORED]
    for without in (summarize(SCORED, 1.0, **LABELS), summarize(unscored, 1.0, alarm=0.5, **LABELS)):
        assert all(row.alarms is None for row in without)


def test_novelty_is_written(tmp_path: Path) -> None:
    write_episodes(tmp_path, SCORED, alarm=0.5)
    rows = read_jsonl(tmp_path / "episodes.jsonl")
    assert [row["first_alarm"] for row in rows] == [None, 4, 0, 12, None, 8, 8, 4, 4]
    assert [row["alarm_before_success"]["h"] for row in rows] == [
        *(False, True, True, True, False),
        *(False, True, False, True),
    ]
    assert [row["alarm_before_success"]["never"] for row in rows] == [r["first_alarm"] is not None for r in rows]
    highest = np.float32([0.2, 0.9, 0.8, 0.625, 0.5, 0.9, 0.9, 0.9, 0.9])
    assert_array_equal(np.float32([row["max_novelty"] for row in rows]), highest)
    arrays = read_arrays(tmp_path / "rollouts.safetensors")
    assert_array_equal(arrays["decision_ends"], [2, 5, 7, 11, 12, 15, 18, 21, 24])
    assert arrays["decision_ends"].dtype == arrays["decisions"].dtype == np.int64
    assert_array_equal(arrays["decisions"], [0, 4, 0, 4, 8, 0, 4, 0, 4, 8, 12, 0, *[0, 4, 8] * 4])
    assert arrays["novelty"].dtype == np.float32
    for part, result in zip(np.split(arrays["novelty"], arrays["decision_ends"][:-1]), SCORED, strict=True):
        assert_array_equal(part, result.novelty)
    write_episodes(tmp_path / "quiet", SCORED)
    for row in read_jsonl(tmp_path / "quiet" / "episodes.jsonl"):
        assert row.keys() & {"max_novelty", "first_alarm", "alarm_before_success"} == {"max_novelty"}


def test_without_scores_files_are_as_they_were(tmp_path: Path) -> None:
    results = [replace(result, novelty=None) for result in SCORED]
    write_episodes(tmp_path, results, alarm=0.5)
    expected = {"seeds", "ends", "actions", "states", "height"}
    assert read_arrays(tmp_path / "rollouts.safetensors").keys() == expected
    keys = ["seed", "steps", "maxima", "max_height", "success", "first_success"]
    assert all(list(row) == keys for row in read_jsonl(tmp_path / "episodes.jsonl"))


def test_evaluation_with_novelty_and_labels(tmp_path: Path) -> None:
    config = replace(SHORT, execute=4)
    results, rows = run_evaluation(
        fakes.WatchfulPolicy(), "pusht", config, tmp_path / "a", encoder="state", labels={"training": "frozen"}
    )
    level = 0.5
    alarms = sum(bool((result.states[:-1:4, 4] / 7 > level).any()) for result in results)
    assert 0 < alarms < 5
    for row in rows:
        assert (row.training, row.alarms) == ("frozen", Alarms(failures=alarms, successes=0))
    assert sum(r["first_alarm"] is not None for r in read_jsonl(tmp_path / "a" / "episodes.jsonl")) == alarms
    json.dumps(to_json(rows), allow_nan=False)


def test_where_no_alarm_can_ring_none_are_counted(tmp_path: Path) -> None:
    class Uncertain(fakes.WatchfulPolicy):
        alarm = math.inf

    _, rows = run_evaluation(Uncertain(), "pusht", replace(SHORT, episodes=1), tmp_path, encoder="e")
    assert all(row.alarms is None for row in rows)
    (episode,) = read_jsonl(tmp_path / "episodes.jsonl")
    assert episode["max_novelty"] > 0
    assert "first_alarm" not in episode


def test_retrieval_from_demonstrations_of_another_task_is_refused() -> None:
    data = fakes.demonstrations()
    schema = Schema(("top",), (("arm", 1), ("gripper", 1)), actions=data.schema.actions)
    lowdim = LowDim.fit(replace(data, schema=schema))
    encoder = ImageEncoder(EncoderConfig(width=0.25, image_size=32, crop_size=28))
    policy = RetrievalPolicy.build(ImageLatents(encoder, lowdim), data, RetrievalConfig(k=8))
    assert policy.spec.schema == schema
    with pytest.raises(
        ConfigError, match=r"policy 'retrieval' was trained on other .* than simulator 'pusht' has: propr"
    ):
        evaluate(policy, "pusht", SHORT)


def test_policies_say_which_cameras_they_read() -> None:
    data = fakes.demonstrations()
    policy = retrieval()
    assert policy.spec.cameras == ("top",)
    states = RetrievalPolicy.build(StateLatents(256, 256, (4,)), data, RetrievalConfig(k=8, chunk_length=8))
    assert states.spec.cameras == ()
    policy.calibrate()

    class Acting(Constant):
        cameras = ("wrist", "top")

    assert MonitoredPolicy(Acting([[1.0]]), policy).spec.cameras == ("wrist", "top")
    assert MonitoredPolicy(fakes.ChasePolicy(), policy).spec.cameras == ("top",)  # it reads none


def test_a_policy_that_is_lost_costs_its_episode_alone() -> None:
    far = np.array([[5000.0, -5000.0]], np.float32)
    decisions = []

    def act(observations: Sequence[Any]) -> FloatArray:
        decisions.append(len(observations))
        own = np.full((len(observations), 4, 2), 256, np.float32)
        return own if len(decisions) == 1 else own + far

    policy = FunctionPolicy(PolicySpec("lost", 4), act)
    (result,) = evaluate(policy, "pusht", EvaluationConfig(episodes=1, max_steps=12, workers=1))
    assert result.actions[0].tolist() == [256, 256]
    low, high = np.array(sims.simulator_spec("pusht").action_limits)
    assert np.allclose(result.actions[4:], [[2 * high[0] - low[0], 2 * low[1] - high[1]]] * 8, rtol=1e-5)


def test_a_policy_of_other_embeddings_of_instructions_is_refused() -> None:
    policy = PolicySpec("told", 4, language_source="bert-base-uncased")
    spec = replace(make_simulator("pusht").spec, language_source="stand-in")
    with pytest.raises(
        ConfigError, match="policy 'told': instructions were embedded by 'bert-base-uncased', but simul"
    ):
        rollout._check_spec(policy, spec)
    rollout._check_spec(replace(policy, language_source=""), spec)
