"""Whether results can be written, and under which names, is known before there are any."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classact.data.images import cache_folder
from classact.errors import ConfigError, StorageError
from classact.evaluation.config import EvaluationConfig
from classact.evaluation.rollout import run_evaluation
from classact.run.evaluate import evaluate_run
from classact.run.folder import Run
from classact.run.recording import roll_out
from classact.utils.locks import BusyError
from classact.utils.storage import read_json, write_json
from fakes import Acts
from lock_owners import another_owner
from sections import run_sections


class Still(Acts):
    name, chunk_length, asked = "still", 8, 0

    def act(self, observations: Any) -> np.ndarray:
        self.asked += 1
        return np.full((len(observations), 8, 2), 256, np.float32)


SETTINGS = EvaluationConfig(episodes=1, max_steps=8, workers=1)


@pytest.mark.parametrize("name", ["a/x", "../../x", "..", ".x", "rand color"])
def test_evaluations_have_names_and_no_paths(tmp_path: Path, name: str) -> None:
    run, policy = Run(tmp_path / "runs" / "one"), Still()
    for evaluate in (
        lambda: evaluate_run(run, name=name),
        lambda: roll_out(run, name, policy, "-", ("pusht", SETTINGS), {}, title=name, quiet=True),
    ):
        with pytest.raises(ConfigError, match=r"cannot be the name of an evaluation: expected 1 to 200 letters"):
            evaluate()
    assert not policy.asked
    assert list(tmp_path.iterdir()) == []


def test_rollouts_that_cannot_be_kept_are_not_made(tmp_path: Path) -> None:
    (tmp_path / "evaluations").write_text("in the way")
    policy = Still()
    with pytest.raises(StorageError, match=r"cannot write .*evaluations/x: (Not a directory|File exists)"):
        run_evaluation(policy, "pusht", SETTINGS, tmp_path / "evaluations" / "x", encoder="-")
    assert not policy.asked


@pytest.mark.parametrize("name", ["summary.json", "config.json", "report.html", "intermediate.jsonl"])
def test_rollouts_whose_rows_cannot_be_kept_are_not_made(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    policy = Still()
    with pytest.raises(StorageError, match=rf"cannot write .*{name}: Is a directory"):
        roll_out(Run(tmp_path), "x", policy, "-", ("pusht", SETTINGS), {}, title="x", quiet=True)
    assert not policy.asked


def test_two_evaluations_of_one_name_are_not_mixed(tmp_path: Path) -> None:
    policy = Still()
    with another_owner(tmp_path / "x"), pytest.raises(BusyError, match="x is in use by process"):
        run_evaluation(policy, "pusht", SETTINGS, tmp_path / "x", encoder="-")
    assert not policy.asked


def test_sections_that_others_measured_meanwhile_stay(tmp_path: Path) -> None:
    path = tmp_path / "results.json"

    def measure(name: str) -> dict[str, Any]:
        write_json(path, {**(read_json(path) if path.exists() else {}), f"theirs-{name}": {}})
        return {"seconds": 1}

    found = run_sections(["a", "b"], ["a", "b"], measure, path=path, again=False, say=str)
    assert set(found) == set(read_json(path)) == {"a", "b", "theirs-a", "theirs-b"}


def test_sections_are_not_measured_where_they_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    def measure(name: str) -> dict[str, Any]:
        raise AssertionError(name)

    with pytest.raises(StorageError, match="cannot write"):
        run_sections(["a"], ["a"], measure, path=tmp_path / "file" / "results.json", again=False, say=str)


@pytest.mark.parametrize("home", ["file/home", None])
def test_without_a_home_there_is_a_temporary_cache(
    tmp_path: Path, home: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLASSACT_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which is to be ignored
    monkeypatch.setenv("HOME", "~" if home is None else str(tmp_path / home))
    with caplog.at_level(logging.WARNING):
        folder = cache_folder()
        assert folder == cache_folder()  # and so for processes that are started from now on
    assert folder.is_dir()
    (said,) = caplog.records
    assert f"Decoded images go to {folder} for now; set CLASSACT_CACHE" in said.getMessage()


def test_a_cache_that_was_asked_for_is_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLASSACT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match=r"CLASSACT_CACHE names a folder that cannot be used: cannot write .*cache"):
        cache_folder()
