from __future__ import annotations

import errno
import json
import logging
import os
import pickle
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest

import fakes
from classact.errors import StorageError
from classact.run.folder import Run
from classact.run.recording import add_time
from classact.utils import locks
from classact.utils.locks import OWNER, BusyError, lock_of, locked, own, update_json
from classact.utils.storage import read_json, read_jsonl, write_json
from lock_owners import another_owner

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")


def test_a_folder_has_one_owner_who_is_named_until_it_dies(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with another_owner(folder) as other:
        expected = rf"run is in use by process {other.pid} on \S+ since 20\d\d-\S+ \S+ \(-c .*run\)\. Wait until it has"
        with pytest.raises(BusyError, match=expected) as caught:
            own(folder)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # as other ranks get it
        other.send_signal(signal.SIGKILL)
        other.wait()
        hold = own(folder)
    assert json.loads((folder / OWNER).read_text())["pid"] == os.getpid()
    assert own(folder) is hold  # whoever owns it goes on
    del hold


def test_a_folder_is_free_again_once_nobody_holds_it(tmp_path: Path) -> None:
    hold = own(tmp_path)
    del hold
    with another_owner(tmp_path), pytest.raises(BusyError):
        own(tmp_path)


def test_a_folder_is_the_same_under_every_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    hold = own(folder)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    for spelling in ("run", "./run/", "link", "run/../run"):
        assert own(Path(spelling)) is hold


def test_a_folder_that_was_removed_and_taken_by_another_process_is_no_longer_owned(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    hold = own(folder)
    shutil.rmtree(folder)
    assert not hold.intact()
    with another_owner(folder), pytest.raises(BusyError):
        own(folder)
    shutil.rmtree(folder)
    assert own(folder).intact()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_disks_without_locks_are_said(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING):
        own(tmp_path / "run")
        assert update_json(tmp_path / "a.json", lambda found: found + 1, 0) == 1
        update_json(tmp_path / "a.json", lambda found: found + 1, 0)
    assert read_json(tmp_path / "a.json") == 2
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2, "once for each folder"
    assert f"cannot be locked ({os.strerror(code)}): start only one command at a time" in said[0]


def test_other_errors_of_a_lock_are_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*file/run/\.lock: (File exists|Not a directory)"):
        own(tmp_path / "file" / "run")


def test_what_many_add_to_a_run_is_all_there(tmp_path: Path) -> None:
    run, count = Run(tmp_path), 8
    write_json(run.config, {"timings": {}})
    gate = threading.Barrier(count)

    def finish(name: str) -> None:
        gate.wait()
        for part in range(3):
            run.add_summary([fakes.row(evaluation=f"{name}-{part}")])
            add_time(run, name, 1.0)
            run.add_intermediate([fakes.intermediate(stage=f"heads/{name}", step=part)])
            run.drop_intermediate("pretrain")

    jobs = [threading.Thread(target=finish, args=(f"k{i}",)) for i in range(count)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert len(run.read_summary()) == len(read_jsonl(run.intermediates)) == 3 * count
    assert run.read_config()["timings"] == {f"k{i}": 3.0 for i in range(count)}


def test_a_change_that_fails_changes_nothing_and_frees_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, [1])
    with pytest.raises(ZeroDivisionError):
        update_json(path, lambda _: 1 / 0)
    assert read_json(path) == [1]
    with locked(lock_of(path), wait=False):
        pass
