"""train.jsonl and the trackers beside it. Those of extras are really run, each in a process of its own, offline."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classact.errors import ConfigError, MissingDependencyError, StorageError
from classact.train import trackers
from classact.train.trackers import Trackers, numbers_of
from classact.utils.storage import read_json, read_jsonl

ROW = {"steps": 10, "epoch": 0.5, "loss": 1.25, "note": "warm-up", "ok": True, "bad": float("inf")}


def needs(name: str) -> Any:
    return pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed (the extra {name!r})")


class Recorder:
    """A tracker that remembers, and fails where it is told to."""

    name = "recorder"

    def __init__(self, fail: str = "") -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.fail, self.closed = fail, 0

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        if self.fail == "log":
            raise RuntimeError("connection lost")
        self.rows.append((step, dict(numbers)))

    def close(self) -> None:
        self.closed += 1
        if self.fail == "close":
            raise RuntimeError("cannot finish")


def tracked(folder: Path, *recorders: Recorder) -> Trackers:
    made = Trackers(folder=folder)
    made.trackers += recorders  # type: ignore[arg-type]
    return made


def test_rows_go_to_the_file_whatever_is_asked_for(tmp_path: Path) -> None:
    with closing(Trackers(folder=tmp_path)) as found:
        found.log(20, {"loss": 1.0, "note": "a"})
        found.log(20, {"loss": np.float32(0.5)})  # again, after a resume
    assert read_jsonl(tmp_path / "train.jsonl") == [{"step": 20, "loss": 1.0, "note": "a"}, {"step": 20, "loss": 0.5}]
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_a_row_that_names_its_step_has_it_once(tmp_path: Path) -> None:
    Trackers(folder=tmp_path).log(3, {"step": 3, "steps": 4})
    assert (tmp_path / "train.jsonl").read_text() == '{"step": 3, "steps": 4}\n'


def test_without_a_folder_nothing_is_written() -> None:
    found = Trackers()
    found.log(1, ROW)
    found.close()


def test_trackers_get_the_numbers_of_a_row(tmp_path: Path) -> None:
    recorder = Recorder()
    with closing(tracked(tmp_path, recorder)) as found:
        found.log(7, {"step": 7, "n": np.int64(2), "loss": np.float32(0.5), "nothing": None, "list": [1], "note": "1"})
    assert recorder.rows == [(7, {"n": 2.0, "loss": 0.5})]
    assert recorder.closed == 1
    found.close()
    assert recorder.closed == 1
    assert numbers_of(ROW) == {"steps": 10, "epoch": 0.5, "loss": 1.25}


@pytest.mark.parametrize("fail", ["log", "close"])
def test_a_tracker_that_fails_is_left_out_and_the_rest_goes_on(
    tmp_path: Path, fail: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken, sound = Recorder(fail), Recorder()
    with caplog.at_level(logging.WARNING), closing(tracked(tmp_path, broken, sound)) as found:
        for step in range(3):
            found.log(step, {"loss": 1.0})
    (record,) = caplog.records
    assert (
        "the tracker recorder failed and is left out from here on (RuntimeError: con" in record.message or fail != "log"
    )
    assert "train.jsonl has every row" in record.message
    assert len(read_jsonl(tmp_path / "train.jsonl")) == len(sound.rows) == 3
    assert sound.closed == 1


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*train.jsonl"):
        Trackers(folder=tmp_path).log(1, {"loss": 1.0})


def test_trackers_need_a_folder() -> None:
    with pytest.raises(ConfigError, match="the trackers wandb, tensorboard keep files beside the training"):
        Trackers(["wandb", "tensorboard"], None)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_names_the_extra(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        MissingDependencyError, match=rf"the tracker '{name}' needs .* pip install 'classact\[{name}\]'"
    ):
        Trackers([name], tmp_path)


def test_a_tracker_that_cannot_start_closes_those_that_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()

    def refuse(*_: Any) -> Any:
        raise ValueError("no account")

    monkeypatch.setattr(trackers, "TRACKERS", {"recorder": lambda *_: recorder, "wandb": refuse})
    message = r"the tracker 'wandb' could not start \(ValueError: no account\). Repair that, or leave it out"
    with pytest.raises(ConfigError, match=message):
        Trackers(["recorder", "wandb"], tmp_path)
    assert recorder.closed == 1


def test_what_trackers_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(trackers, "TRACKERS", {"recorder": lambda *told: opened.append(told) or Recorder()})
    Trackers(["recorder", "recorder"], tmp_path, config={"path": tmp_path, "nested": {"k": (1, 2)}}, start=3)
    # A name that is given twice is one tracker.
    assert opened == [(tmp_path, {"path": str(tmp_path), "nested": {"k": [1, 2]}}, 3)]


# -- the real ones ---------------------------------------------------------------------------------------------------

PROGRAM = """
import os, sys
from pathlib import Path
from classact.train.trackers import Trackers
name, folder, first, last, end = sys.argv[1:]
found = Trackers([name], Path(folder), config={"batch_size": 160, "crop": {"size": 56}},
                      start=int(first) - 1)
for step in range(int(first), int(last) + 1):
    found.log(step, {"steps": 9, "loss": float(step), "note": "text"})
if end == "kill":
    os._exit(9)
found.close()
print("closed")
"""


def train(name: str, folder: Path, first: int, last: int, end: str = "close") -> None:
    """Log steps ``first`` to ``last`` in a process that is killed afterwards, or not."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    # Only classact's own warnings are errors here: the trackers import what they like.
    command = [
        sys.executable,
        "-W",
        "error::RuntimeWarning",
        "-c",
        PROGRAM,
        name,
        str(folder),
        str(first),
        str(last),
        end,
    ]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=240, check=False)
    assert done.returncode == (9 if end == "kill" else 0), done.stderr
    assert done.stdout == ("" if end == "kill" else "closed\n")  # standard output is for results
    assert "failed and is left out" not in done.stderr


def rows_again(folder: Path) -> None:
    assert [row["step"] for row in read_jsonl(folder / "train.jsonl")] == [1, 2, 3, 4, 3, 4, 5, 6]


@needs("tensorboard")
def test_tensorboard_shows_a_killed_and_continued_run_as_one(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train("tensorboard", tmp_path, 1, 4, "kill")
    train("tensorboard", tmp_path, 3, 6)
    rows_again(tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"steps", "loss"}
    # Steps 3 and 4 once: those of the killed process are hidden.
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(n, float(n)) for n in range(1, 7)]
    assert "config/text_summary" in events.Tags()["tensors"]


@needs("wandb")
def test_wandb_runs_offline_under_one_id(tmp_path: Path) -> None:
    train("wandb", tmp_path, 1, 4, "kill")
    train("wandb", tmp_path, 3, 6)
    rows_again(tmp_path)
    identity = read_json(tmp_path / "tracking.json")["id"]
    files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda path: path.parent.name)
    assert {path.name for path in files} == {f"run-{identity}.wandb"}
    assert wandb_steps(files[-1]) == [3, 4, 5, 6]


def wandb_steps(path: Path) -> list[int]:
    """The steps in a file of wandb: records like those of LevelDB's log, in blocks of 32 KiB behind 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, at, found, record = path.read_bytes(), 7, [], b""
    while at + 7 <= len(content):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind not in (1, 4):  # more of it follows
            continue
        message = wandb_internal_pb2.Record()
        message.ParseFromString(record)
        record = b""
        items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in message.history.item}
        if "loss" in items:
            assert items["loss"] == items["step"]
            assert "note" not in items
            found.append(items["step"])
    return found
