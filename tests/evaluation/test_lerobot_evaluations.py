"""LeRobot's eval_info.json of any version, with intervals, without LeRobot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from classact.cli.main import main
from classact.errors import ConfigError, DataError
from classact.evaluation.lerobot import ALL, Episodes, lerobot_differences, lerobot_rows, read_eval_info
from classact.utils.statistics import independent_difference, mean_interval, paired_difference, wilson_interval


def rewards(successes: list[bool]) -> list[float]:
    return [1.0 if success else 0.25 * i for i, success in enumerate(successes)]


def recent(**tasks: list[bool]) -> dict[str, Any]:
    """As LeRobot writes it since 0.4."""
    every = [success for own in tasks.values() for success in own]
    per_task = [
        {
            "task_group": name,
            "task_id": 0,
            "metrics": {"successes": own, "sum_rewards": rewards(own), "max_rewards": rewards(own), "video_paths": []},
        }
        for name, own in tasks.items()
    ]
    overall = {"pc_success": 100 * float(np.mean(every)), "n_episodes": len(every), "eval_s": 1.0}
    return {"per_task": per_task, "per_group": {}, "overall": overall}


def early(successes: list[bool], first_seed: int = 1000) -> dict[str, Any]:
    """As LeRobot wrote it before."""
    episodes = [
        {"episode_ix": i, "success": success, "sum_reward": 2.0, "max_reward": 1.0, "seed": first_seed + i}
        for i, success in enumerate(successes)
    ]
    return {"per_episode": episodes, "aggregated": {"pc_success": 100 * float(np.mean(successes)), "eval_s": 1.0}}


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_both_forms_give_rows_with_intervals(tmp_path: Path) -> None:
    own = [True, True, False]
    (task,) = read_eval_info(write(tmp_path / "a/eval_info.json", early(own)))
    assert (task.successes, task.seeds) == (tuple(own), (1000, 1001, 1002))
    tasks = read_eval_info(write(tmp_path / "b/eval_info.json", recent(left=own, right=[True])).parent)
    rows = lerobot_rows("b", tasks)
    assert [(row.task, row.successes, row.episodes) for row in rows] == [
        ("left 0", 2, 3),
        ("right 0", 1, 1),
        (ALL, 3, 4),
    ]
    assert (rows[2].success.low, rows[2].success.high) == wilson_interval(3, 4)
    assert rows[1].max_reward.high == float("inf")  # one episode says nothing of the spread


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", r"is not valid JSON .*: the file is damaged"),
        ([1], r"is no eval_info\.json of lerobot-eval: expected per_task .* found list\."),
        ("[" * 100_000, r"is not valid JSON"),
        (
            {"per_episode": [{"success": True, "sum_reward": 10**400, "max_reward": 0}]},
            r"a reward of episode 0 is 1000",
        ),
        ({"settings": {}}, r"or per_episode and aggregated, found settings\."),
        ({**recent(a=[True]), "overall": None}, r"overall, or aggregated, is missing"),
        ({**recent(a=[True]), "overall": {"pc_success": 0.0}}, r"says 0\.0 % of 1 episodes, .* give 100 % of 1"),
        ({"per_task": [], "overall": {}}, r"holds no episodes"),
        ({"per_task": [3], "overall": {}}, r"per_task\[0\]: expected a task with its metrics, got 3\."),
        (
            {"per_task": [{"metrics": {"successes": [True], "sum_rewards": []}}], "overall": {}},
            r"one value per episode, got successes 1, sum_rewards 0, max_rewards missing\.",
        ),
        ({"per_episode": [{"success": 1, "sum_reward": 0, "max_reward": 0}]}, r"success of episode 0 is 1, expected"),
        (json.dumps(early([True])).replace("2.0", "NaN"), r"reward of episode 0 is nan, expected a finite number"),
    ],
)
def test_anything_else_is_named(value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"eval_info\.json.*{message}"):
        read_eval_info(write(tmp_path / "eval_info.json", value))


outcomes = st.lists(st.booleans(), min_size=2, max_size=30)


@settings(max_examples=30, deadline=None)
@given(outcomes, outcomes)
def test_differences_are_paired_where_seeds_agree_and_only_there(a: list[bool], b: list[bool]) -> None:
    def of(own: list[bool], seeds: tuple[int, ...] | None) -> tuple[Episodes, ...]:
        zeros = (0.0,) * len(own)
        return (Episodes("", tuple(own), zeros, zeros, seeds),)

    shared = min(len(a), len(b))
    (paired,) = lerobot_differences({"a": of(a, tuple(range(len(a)))), "b": of(b, tuple(range(len(b))))})
    won = sum(y > x for x, y in zip(a, b, strict=False))
    lost = sum(y < x for x, y in zip(a, b, strict=False))
    assert (paired.states, paired.won, paired.lost) == (shared, won, lost)
    assert paired.difference == paired_difference(won, lost, shared)
    (alone,) = lerobot_differences({"a": of(a, None), "b": of(b, None)})
    assert (alone.states, alone.won) == (0, 0)
    assert alone.difference == independent_difference((sum(b), len(b)), (sum(a), len(a)))
    assert alone.difference.low <= alone.difference.value <= alone.difference.high
    if len(a) != len(b):
        with pytest.raises(ConfigError, match=r"b and a are not of the same episodes: .* Leave --paired out"):
            lerobot_differences({"a": of(a, None), "b": of(b, None)}, paired=True)


def test_newcombes_interval_is_that_of_his_paper() -> None:
    found = independent_difference((56, 70), (48, 80))
    assert_allclose((found.value, found.low, found.high), (0.2, 0.0524, 0.3339), atol=5e-5)


def test_a_mean_lies_within_what_was_seen() -> None:
    found = mean_interval(np.array([0.0, 1.0, 1.0, 1.0]))
    assert 0 <= found.low < found.value == 0.75 < found.high <= 1


def test_the_command_needs_no_run_and_takes_nothing_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write(tmp_path / "first/eval_info.json", recent(pusht=[True] * 9 + [False]))
    second = write(tmp_path / "second/eval_info.json", recent(pusht=[False] * 10))
    assert main(["evaluate", "--from-lerobot", str(first), str(second), "--paired"]) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in ("90 % (9 of 10)", "60 to 98 %", "10 shared", "0 : 9"))
    for words, message in (
        ([str(tmp_path), "--from-lerobot", str(first)], "RUN is not part of it"),
        (["--from-lerobot", str(first), "--episodes", "5"], "--episodes is not part of it"),
        (["--from-lerobot", str(first), str(first)], "names a file twice"),
        ([], "RUN is missing: Folder of a run with a policy. Or name LeRobot's results"),
        ([str(tmp_path), "--paired"], "--paired is about --from-lerobot"),
    ):
        assert main(["evaluate", *words]) != 0
        assert message in capsys.readouterr().err
