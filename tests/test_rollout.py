from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fakes
from classact import rollout, sims
from classact.encoders import EncoderConfig, ImageEncoder
from classact.errors import ConfigError, SimulatorError
from classact.normalize import MinMax
from classact.policies import ImageLatents, RetrievalConfig, RetrievalPolicy
from classact.rollout import EvaluationConfig, evaluate, run_evaluation, summarize, write_episodes
from classact.sims import make_simulator
from classact.statistics import wilson_interval
from classact.storage import read_arrays, read_jsonl
from classact.types import FloatArray, Observation, RolloutResult

SHORT = EvaluationConfig(episodes=5, max_steps=21, workers=1)


def retrieval() -> RetrievalPolicy:
    data = fakes.demonstrations()
    encoder = ImageEncoder(EncoderConfig(width=0.25, image_size=32, crop_size=28))
    latents = ImageLatents(encoder, MinMax.fit(data.proprioception))
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


class Threads:
    """Stands for a multiprocessing context: workers are threads here, so that they see simulators made in a test."""

    Pipe = staticmethod(multiprocessing.Pipe)

    class Process:
        exitcode = 0

        def __init__(self, target: Any, args: Any, daemon: bool) -> None:
            # The evaluator closes its copy of the worker's end, which a process would have of its own.
            pipe = Connection(os.dup(args[0].fileno()))
            self.thread = threading.Thread(target=target, args=(pipe, *args[1:]), daemon=daemon)
            self.start, self.join, self.is_alive = self.thread.start, self.thread.join, self.thread.is_alive


@pytest.fixture
def ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout.mp, "get_context", lambda _: Threads)
    monkeypatch.setattr(sims, "SIMULATORS", {"ladder": lambda size, shift: fakes.LadderSimulator(size, shift)})


class Constant:
    """Always the same chunk."""

    name = "constant"
    needs_images = True
    chunk_length = 3

    def __init__(self, chunks: Any) -> None:
        self.chunks = chunks

    def act(self, observations: Sequence[Observation]) -> FloatArray:
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


def test_groups_do_not_change_what_a_policy_without_arithmetic_does(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(fakes.ChasePolicy(), "pusht", SHORT)
    monkeypatch.setattr(rollout, "GROUP", 2)
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


class Killer(fakes.ChasePolicy):
    """Kills one of the simulator processes at its second decision."""

    calls = 0

    def act(self, observations: Sequence[Observation]) -> FloatArray:
        self.calls += 1
        if self.calls == 2:
            victim = multiprocessing.active_children()[0]
            os.kill(victim.pid or 0, signal.SIGKILL)
            victim.join()
        return super().act(observations)


def test_a_dead_worker_is_one_clear_error_and_leaves_no_process() -> None:
    with pytest.raises(SimulatorError, match=r"process died \(exit code -9\).*killed for memory.*fewer workers"):
        evaluate(Killer(), "pusht", replace(SHORT, workers=2))
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("ladder")
def test_what_a_simulator_raises_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise FloatingPointError("the physics exploded")

    monkeypatch.setattr(fakes.LadderSimulator, "step", broken)
    with pytest.raises(SimulatorError, match="the physics exploded"):
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
    with pytest.raises(ConfigError, match=f"{key} {value}"):
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
        assert row["success"] == {"coverage>0.90": False, "iou>0.90": False}
        assert row["first_success"] == {"coverage>0.90": None, "iou>0.90": None}
    assert [row["criterion"] for row in rows] == ["coverage>0.90", "iou>0.90"]
    for row in rows:
        labels = {"policy": "chase", "encoder": "state", "simulator": "pusht", "shift": "fixed-color"}
        assert labels.items() <= row.items()
        assert (row["evaluation"], row["episodes"], row["successes"], row["success"]) == ("chase-a", 2, 0, 0.0)
        assert (row["low"], row["high"]) == wilson_interval(0, 2)
        assert row["seconds"] > 0
        assert row["mean_max_coverage"] == np.mean([r.maxima["coverage"] for r in results])
    json.dumps(rows, allow_nan=False)


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
    (row,) = summarize(results, 2.5, policy="p")
    assert (row["successes"], row["episodes"], row["success"], row["seconds"]) == (3, 4, 0.75, 2.5)
    assert 0 < row["low"] < 0.75 < row["high"] < 1
    write_episodes(tmp_path, results)
    assert [r["first_success"]["h"] for r in read_jsonl(tmp_path / "episodes.jsonl")] == [1, None, 2, 2]
