from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from classact.errors import CheckpointError, ConfigError, DataError, StorageError
from classact.utils import storage
from classact.utils.codec import first_difference, without
from classact.utils.storage import (
    append_jsonl,
    atomic_path,
    check_name,
    check_writable,
    read_arrays,
    read_json,
    read_jsonl,
    sha256_file,
    slug,
    verify_folder,
    write_arrays,
    write_folder,
    write_json,
    write_jsonl,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# Whole or absent


def test_text_appears_and_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    write_text(path, "one")
    write_text(path, "two ü")
    assert path.read_text(encoding="utf-8") == "two ü"
    assert names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("before", [None, "previous"])
def test_failure_while_writing_a_file(tmp_path: Path, error: BaseException, before: str | None) -> None:
    path = tmp_path / "a.txt"
    if before is not None:
        path.write_text(before)

    def half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            assert temporary.parent == path.parent
            raise error

    with pytest.raises(type(error)):
        half()
    assert names(tmp_path) == ([] if before is None else ["a.txt"])
    assert before is None or path.read_text() == before


def test_folder_appears_and_is_replaced(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with atomic_path(tmp_path / "entry") as temporary:
            temporary.mkdir()
            (temporary / f"{content}.txt").write_text(content)
    assert names(tmp_path) == ["entry"]
    assert names(tmp_path / "entry") == ["two.txt"]


def test_first_folder_wins_where_replacing_is_not_wanted(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with atomic_path(tmp_path / "entry", replace=False) as temporary:
            temporary.mkdir()
            (temporary / f"{content}.txt").write_text(content)
    assert names(tmp_path) == ["entry"]
    assert names(tmp_path / "entry") == ["one.txt"]


def test_failure_while_writing_a_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "entry", lambda folder: (folder / "a.txt").write_text("previous") and None)

    def broken(folder: Path) -> None:
        (folder / "a.txt").write_text("half")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        write_folder(tmp_path / "entry", broken)
    assert names(tmp_path) == ["entry"]
    assert (tmp_path / "entry" / "a.txt").read_text() == "previous"
    verify_folder(tmp_path / "entry")


# Full disks

WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: write_text(path, "x" * 3_000_000),
    "json": lambda path: write_json(path, list(range(1_000_000))),
    "jsonl": lambda path: write_jsonl(path, [{"x": "y" * 3_000_000}]),
    "arrays": lambda path: write_arrays(path, {"x": np.zeros(1_000_000)}),
    "folder": lambda path: write_folder(path, lambda folder: (folder / "a").write_bytes(bytes(3_000_000)) and None),
}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    mount = shutil.which("mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        mount is None
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a small tmpfs needs root on Linux")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("writer", WRITERS)
def test_full_disk(small_disk: Path, writer: str) -> None:
    path = small_disk / "out"
    if writer == "folder":
        write_folder(path, lambda folder: (folder / "a").write_text("previous") and None)
    else:
        path.write_text("previous")
    with pytest.raises(StorageError, match=r"disk full while writing .*out \([\d,]+ bytes free\)\. Nothing that was"):
        WRITERS[writer](path)
    assert names(small_disk) == ["out"]
    if writer == "folder":
        verify_folder(path)
        assert (path / "a").read_text() == "previous"
    else:
        assert path.read_text() == "previous"


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on file sizes")
@pytest.mark.parametrize("writer", ["text", "arrays"])
def test_limit_on_file_size(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "out"
    path.write_text("previous")
    code = f"""
import resource, sys
from pathlib import Path
import numpy as np
from classact.errors import StorageError
from classact.utils.storage import write_arrays, write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
path = Path({str(path)!r})
try:
    write_text(path, "x" * 1_000_000) if {writer!r} == "text" else write_arrays(path, {{"x": np.zeros(1_000_000)}})
except StorageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert f"cannot write {path}: File too large. What was there before is unchanged." in done.stdout
    assert names(tmp_path) == ["out"]
    assert path.read_text() == "previous"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_disk_that_is_full_only_when_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"previous": True})

    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(StorageError, match="disk full while writing"):
        write_json(path, {"previous": False})
    assert read_json(path) == {"previous": True}
    assert names(tmp_path) == ["a.json"]


def test_errors_that_are_not_about_the_disk_pass(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    def half() -> None:
        with atomic_path(tmp_path / "a"):
            raise SafetensorError("invalid header")

    with pytest.raises(SafetensorError, match="invalid header"):
        half()
    assert names(tmp_path) == []


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (lambda path: write_text(path, "x"), lambda path: append_jsonl(path, {})):
        with pytest.raises(StorageError, match=r"cannot write .*a\.txt: (File exists|Not a directory)"):
            write(tmp_path / "file" / "a.txt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match=r"cannot write .*: Permission denied"):
            write_text(tmp_path / "a.txt", "x")
    finally:
        tmp_path.chmod(0o700)


# JSON


def plain_lists(value: Any) -> list[list[Any]]:
    """Lists that hold neither lists nor objects."""
    if isinstance(value, dict):
        return [found for inner in value.values() for found in plain_lists(inner)]
    if not isinstance(value, list):
        return []
    nested = any(isinstance(inner, list | dict) for inner in value)
    return [found for inner in value for found in plain_lists(inner)] if nested else [value]


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30))
@example(["a[", "b{", "],", "\n[", []])
@example({"x": [1, 2, [3, 4, {}], [], {"y": [5, "]"]}]})
def test_lists_of_plain_values_stand_on_one_line(value: Any) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        write_json(path, value)
        assert read_json(path) == value
        lines = [line.strip().removesuffix(",") for line in path.read_text(encoding="utf-8").splitlines()]
    for found in plain_lists(value):
        assert any(line.endswith(json.dumps(found)) for line in lines)


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": np.float32(0.5), "a": np.arange(3), "path": tmp_path, "none": None})
    assert read_json(path) == {"b": 0.5, "a": [0, 1, 2], "path": str(tmp_path), "none": None}
    assert list(read_json(path)) == ["b", "a", "path", "none"]


@pytest.mark.parametrize("value", [float("nan"), np.inf, np.float32("nan")])
def test_json_refuses_what_is_not_finite(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": value})
    assert names(tmp_path) == []


def test_json_refuses_other_objects(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot write set as JSON"):
        write_json(tmp_path / "a.json", {"x": {1}})


def test_reading_json_that_is_not_there_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(DataError, match=r"a\.json does not exist"):
        read_json(path)
    for content in (b"", b'{"x": 1', b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"a\.json is not valid JSON .* is damaged"):
            read_json(path, CheckpointError)


def test_jsonl_rows(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "a.jsonl"
    assert read_jsonl(path) == []
    for step in range(3):
        append_jsonl(path, {"step": np.int64(step)})
    assert read_jsonl(path) == [{"step": 0}, {"step": 1}, {"step": 2}]
    write_jsonl(path, [{"step": 7}])
    assert read_jsonl(path) == [{"step": 7}]


@pytest.mark.parametrize(
    ("torn", "kept"),
    [('{"st', []), ("{", []), ('{"step": 1}', [{"step": 1}])],
    ids=["half", "brace", "only the line end is missing"],
)
def test_appending_after_a_torn_line(tmp_path: Path, torn: str, kept: list[dict[str, int]]) -> None:
    path = tmp_path / "a.jsonl"
    append_jsonl(path, {"step": 0})
    with path.open("a") as file:
        file.write(torn)
    assert read_jsonl(path) == [{"step": 0}, *kept]
    append_jsonl(path, {"step": 2})
    append_jsonl(path, {"step": 3})
    assert read_jsonl(path) == [{"step": 0}, *kept, {"step": 2}, {"step": 3}]


def test_jsonl_damaged_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2 of 3: not valid JSON"):
        read_jsonl(path)


# Arrays and checksummed folders


def test_arrays_round_trip(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.array([1, 2], np.int64)}
    write_arrays(tmp_path / "a.safetensors", arrays)
    found = read_arrays(tmp_path / "a.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_arrays_missing_or_damaged(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(DataError, match="does not exist"):
        read_arrays(path)
    write_arrays(path, {"a": np.arange(100.0)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"a\.safetensors cannot be read .* damaged or incomplete"):
        read_arrays(path, CheckpointError)


@pytest.fixture
def checksummed(tmp_path: Path) -> Path:
    def fill(folder: Path) -> None:
        (folder / "part").mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "part" / "weights").write_bytes(bytes(range(100)))

    write_folder(tmp_path / "step-00000010", fill)
    return tmp_path / "step-00000010"


def test_whole_folders_verify(checksummed: Path) -> None:
    verify_folder(checksummed)
    weights = checksummed / "part" / "weights"
    assert read_json(checksummed / "checksums.json")["part/weights"] == [100, sha256_file(weights)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: os.truncate(folder / "part" / "weights", 60),
            "part/weights has 60 bytes, expected 100",
        ),
        (
            lambda folder: (folder / "config.json").write_text("[]"),
            r"config\.json has SHA-256 \w{12}\.\.\., expected \w{12}\.\.\.",
        ),
        (
            lambda folder: (folder / "part" / "weights").unlink(),
            "part/weights is missing: .*step-00000010 is inc",
        ),
        (lambda folder: (folder / "checksums.json").unlink(), r"checksums\.json does not exist"),
        (shutil.rmtree, "step-00000010 does not exist or is not a folder"),
    ],
)
def test_damaged_folders_are_named(checksummed: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(checksummed)
    with pytest.raises(CheckpointError, match=message):
        verify_folder(checksummed)


def test_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    # safetensors makes its files readable by the owner alone.
    (plain := tmp_path / "plain").write_text("x")
    write_arrays(tmp_path / "a.safetensors", {"a": np.zeros(2)})
    write_folder(tmp_path / "folder", lambda path: write_arrays(path / "a.safetensors", {"a": np.zeros(2)}))
    for path in (tmp_path / "a.safetensors", tmp_path / "folder" / "a.safetensors"):
        assert path.stat().st_mode == plain.stat().st_mode


# Differences


def test_first_difference_names_the_path() -> None:
    assert first_difference({"a": {"b": [1]}}, {"a": {"b": [1]}}, "s") is None
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 2}}, "s") == "s.a.b = 1, now it is 2"
    assert first_difference({"a": 1}, {"a": 1, "c": 3}, "s") == "s.c = None, now it is 3"
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 2}}, "") == "a.b = 1, now it is 2"
    assert first_difference({"a": {"c": 1}}, {"a": 5}, "") == "a = {'c': 1}, now it is 5"


def test_entries_are_left_out_by_their_paths() -> None:
    value = {"a": 1, "b": {"a": 2, "c": {"d": 3, "e": [4]}}, "f": None}
    assert without(value, "a") == {"b": value["b"], "f": None}
    assert without(value, "b.a", "b.c.d") == {"a": 1, "b": {"c": {"e": [4]}}, "f": None}
    assert without(value, "f.x", "c", "b.c") == {"a": 1, "b": {"a": 2}, "f": None}
    assert (without(None, "a"), without([1], "a")) == (None, [1])
    assert list(without({"z": 1, "y": 2, "x": 3}, "y")) == ["z", "x"]
    assert value["b"] == {"a": 2, "c": {"d": 3, "e": [4]}}


# Before the work


def refused(path: Path, **options: bool) -> str:
    with pytest.raises(StorageError) as caught:
        check_writable(path, **options)
    return str(caught.value)


def test_what_can_be_written_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    check_writable(tmp_path / "file")
    check_writable(tmp_path / "file", appended=True)
    check_writable(tmp_path / "new" / "deep" / "file")
    check_writable(tmp_path / "new", folder=True)
    monkeypatch.chdir(tmp_path)
    check_writable(Path("relative.json"))
    assert names(tmp_path) == ["file"]


def test_what_is_in_the_way_is_seen_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    assert "cannot write" in refused(tmp_path / "file" / "a" / "b.json")
    assert "Not a directory" in refused(tmp_path / "file", folder=True)
    assert "Is a directory" in refused(tmp_path / "folder")
    assert names(tmp_path) == ["file", "folder"]


def test_a_full_disk_is_seen_before_anything_is_written(small_disk: Path) -> None:
    (small_disk / "full").write_bytes(bytes(2**20))
    assert "disk full while writing" in refused(small_disk / "a.json")
    assert names(small_disk) == ["full"]


def test_a_read_only_disk_is_seen_before_anything_is_written(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert "Read-only file system" in refused(small_disk / "new" / "a.json")


# Disks that cannot sync


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF])
@pytest.mark.parametrize("writer", ["json", "folder"])
def test_disks_that_cannot_sync_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, writer: str
) -> None:
    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(storage.os, "fsync", refuse)
    WRITERS[writer](tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_a_disk_that_fails_after_the_rename_is_told_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    path = tmp_path / "a.json"
    write_json(path, 1)
    monkeypatch.setattr(storage.os, "fsync", fail)
    with pytest.raises(StorageError, match=r"a\.json was written, but the disk did not confirm it \(Input"):
        write_json(path, 2)
    assert read_json(path) == 2


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "entry"
    write_folder(path, lambda folder: (folder / "a").write_text("previous") and None)
    real = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if target == path and not self.name.endswith(".old.tmp"):
            raise OSError(errno.ENOTEMPTY if path.exists() else errno.EIO, "no")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(StorageError, match=r"What was there before is unchanged"):
        write_folder(path, lambda folder: (folder / "a").write_text("new") and None)
    assert (path / "a").read_text() == "previous"
    assert names(tmp_path) == ["entry"]


# Names


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "../x", "/x", "a b", "-x", "a\n", "ü", "x(y=1)", "a\\b", "a" * 201]
)
def test_names_that_are_paths_or_worse_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be the name of a head: expected 1 to 200 letters, digits"):
        check_name(name, "a head")


@given(st.text(max_size=300))
@example("dynamic(radius=1.2)")
@example("../../x")
def test_slugs_are_names(text: str) -> None:
    assert check_name(slug(text), "a head") == slug(text)


def test_long_slugs_differ_where_their_texts_do() -> None:
    assert slug("mlp-k5_a.b") == "mlp-k5_a.b"
    assert slug("a" * 300) != slug("a" * 301)
