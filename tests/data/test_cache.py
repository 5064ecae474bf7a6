"""What lies in the cache, and what of it may go."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from classact.cli.main import main
from classact.data.cache import DAY, cached, clean
from classact.data.images import CACHE_VARIABLE, META, USED, ImageStore, remembered_digest
from classact.data.types import Demonstrations
from classact.errors import ConfigError
from classact.run.config import FramesConfig
from classact.run.frames import prepare_frames
from classact.sims import NO_SIMULATOR


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def prepared(source: Path, seed: int = 0, size: int = 4) -> Demonstrations:
    """Demonstrations that were read from ``source``, with their images in the cache."""
    source.mkdir(exist_ok=True)
    images = np.random.default_rng(seed).integers(0, 255, (6, 8, 8, 3), np.uint8)
    zeros = np.zeros((6, 1), np.float32)
    data = Demonstrations("a", np.array([6]), zeros, zeros, images={"top": images}, source=str(source))
    return prepare_frames(data, ("top",), size, FramesConfig(simulator=NO_SIMULATOR))


def test_entries_say_what_they_were_made_for(cache: Path, tmp_path: Path) -> None:
    remembered_digest([1], lambda: "digest")
    prepared(tmp_path / "a")
    prepared(tmp_path / "copy")  # the same images
    prepared(tmp_path / "b", seed=1)
    other, first, files = cached()
    assert (other.kind, other.what, other.sources) == ("recorded", "6 x 4 x 4", (f"{tmp_path / 'b'}, top",))
    assert first.sources == (f"{tmp_path / 'a'}, top", f"{tmp_path / 'copy'}, top")
    assert first.nbytes == sum(file.stat().st_size for file in first.path.iterdir())
    assert (files.kind, files.what) == ("digests of files", "1 files")
    assert first.path.parent == cache / "images"
    (tmp_path / "a").rmdir()
    assert not cached()[1].gone  # the copy is there
    (tmp_path / "copy").rmdir()
    assert cached()[1].gone


def test_only_what_was_named_is_removed(tmp_path: Path, cache: Path) -> None:
    prepared(tmp_path / "a")
    prepared(tmp_path / "b", seed=1)
    gc.collect()
    (tmp_path / "a").rmdir()
    with pytest.raises(ConfigError, match=r"--older-than DAYS, --gone .* or --all"):
        clean()
    (shown,) = clean(gone=True, dry_run=True)
    assert shown.kept == ""
    assert len(cached()) == 2
    (removed,) = clean(gone=True)
    assert removed.entry.path == shown.entry.path
    assert not removed.entry.path.exists()
    (left,) = cached()
    used = json.loads((left.path / USED).read_text())
    (left.path / USED).write_text(json.dumps(used | {"used": time.time() - 10 * DAY}))
    assert clean(older_than=11) == []
    assert [one.kept for one in clean(older_than=9)] == [""]
    assert list((cache / "images").iterdir()) == []
    assert prepared(tmp_path / "b", seed=1).images["top"].shape == (6, 4, 4, 3)  # it is made again


def test_what_is_in_use_stays(tmp_path: Path, cache: Path) -> None:
    data = prepared(tmp_path / "a")
    pixels = np.asarray(data.images["top"][2:4])
    assert [one.kept for one in clean(everything=True)] == ["in use"]
    view = data.images["top"][2:4]
    del data
    gc.collect()
    assert [one.kept for one in clean(everything=True)] == ["in use"]  # a part of it is
    assert (view == pixels).all()
    del view
    del pixels
    gc.collect()
    code = (
        "import sys, fcntl, time; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_SH); print(1, flush=True); input()"
    )
    (entry,) = cached()
    with subprocess.Popen(
        [sys.executable, "-c", code, str(entry.path / META)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert [one.kept for one in clean(everything=True)] == ["in use"]
        other.communicate(b"\n")
    unfinished = cache / f"images/.abc.{os.getpid()}.0123.tmp"
    unfinished.mkdir()
    dead = cache / f"images/.abc.{other.pid}.0123.tmp"
    dead.mkdir()
    (cache / "images/0123").mkdir()  # damaged
    kept = {one.entry.path.name: one.kept for one in clean(everything=True)}
    assert kept == {entry.path.name: "", "0123": "", dead.name: "", unfinished.name: f"process {os.getpid()} writes it"}
    assert list((cache / "images").iterdir()) == [unfinished]


def test_using_an_entry_again_writes_nothing_for_an_hour(tmp_path: Path, cache: Path) -> None:
    prepared(tmp_path / "a")
    (entry,) = ImageStore().root.iterdir()
    stamp = (entry / USED).stat().st_mtime_ns
    prepared(tmp_path / "a")
    assert (entry / USED).stat().st_mtime_ns == stamp
    assert entry.parent == cache / "images"


def test_the_command_lists_and_cleans(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(tmp_path / "a")
    gc.collect()
    assert main(["data", "cache"]) == 0
    said = capsys.readouterr().out
    assert "recorded" in said
    assert f"{cache}: 1 KiB" in said
    assert main(["data", "cache", "clean"]) == 1
    assert main(["data", "cache", "list", "--all"]) == 1
    assert main(["data", "cache", "clear"]) == 1
    assert "unknown action 'clear'" in capsys.readouterr().err
    assert main(["data", "cache", "clean", "--all", "--dry-run"]) == 0
    assert "would be freed" in capsys.readouterr().out
    assert main(["data", "cache", "clean", "--all"]) == 0
    assert "removed" in capsys.readouterr().out
    assert cached() == []
