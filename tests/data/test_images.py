from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from classact.data import images as module
from classact.data.images import Entry, ImageStore, cache_folder, file_stamp, frames_digest, resize_images
from classact.errors import ConfigError, DataError, StorageError

SHAPE = (5, 60, 80, 3)
KEY = {"kind": "test", "path": "/somewhere", "size": 3}
FRAMES = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)


def fill(out: np.ndarray) -> None:
    out[:] = FRAMES


def unexpected(_: np.ndarray) -> None:
    pytest.fail("built again although the entry is good")


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


# The store


def test_built_once_then_mapped(store: ImageStore) -> None:
    assert store.get(Entry(KEY, SHAPE, unexpected)) is None
    built = store.get_or_create(Entry(KEY, SHAPE, fill))
    again = store.get_or_create(Entry(dict(reversed(KEY.items())), SHAPE, unexpected))
    for images in (built, again):
        assert isinstance(images, np.memmap)
        assert not images.flags.writeable
        assert_array_equal(images, FRAMES)
    meta = json.loads((store.folder(Entry(KEY, SHAPE, fill)) / "meta.json").read_text())
    assert meta["kind"] == "test"
    assert meta["key"] == KEY
    assert meta["shape"] == list(SHAPE)
    assert [file.name for file in store.root.iterdir()] == [meta["fingerprint"]]


def test_another_key_or_shape_is_another_entry(store: ImageStore) -> None:
    store.get_or_create(Entry(KEY, SHAPE, fill))
    assert store.get(Entry({**KEY, "size": 4}, SHAPE, unexpected)) is None
    assert store.get(Entry(KEY, (4, *SHAPE[1:]), unexpected)) is None


@pytest.mark.parametrize("shape", [(5, 60, 80), (5, 60, 80, 4), (0, 60, 80, 3)])
def test_shapes_that_are_not_images(store: ImageStore, shape: Any) -> None:
    with pytest.raises(DataError, match=r"expected images of shape \(N, H, W, 3\)"):
        store.get_or_create(Entry(KEY, shape, unexpected))


def truncate(folder: Path) -> None:
    os.truncate(folder / "images.npy", 1000)


def blank(folder: Path) -> None:
    file = folder / "images.npy"
    file.write_bytes(bytes(file.stat().st_size))


def lose_images(folder: Path) -> None:
    (folder / "images.npy").unlink()


def lose_meta(folder: Path) -> None:
    (folder / "meta.json").unlink()


def cut_meta(folder: Path) -> None:
    os.truncate(folder / "meta.json", 20)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, r"images\.npy has 1,000 bytes, expected 72,128"),
        (blank, r"the content of images\.npy is not what was written"),
        (lose_images, r"No such file"),
        (lose_meta, r"meta\.json does not exist"),
        (cut_meta, r"meta\.json is not valid JSON"),
    ],
)
def test_damaged_entry_is_built_again(
    store: ImageStore, caplog: pytest.LogCaptureFixture, damage: Any, reason: str
) -> None:
    store.get_or_create(Entry(KEY, SHAPE, fill))
    damage(store.folder(Entry(KEY, SHAPE, fill)))
    with caplog.at_level(logging.WARNING):
        assert_array_equal(store.get_or_create(Entry(KEY, SHAPE, fill)), FRAMES)
    assert len(caplog.records) == 1
    assert caplog.records[0].name == "classact.data.images"
    assert "are damaged and will not be used" in caplog.text
    assert re.search(reason, caplog.text)
    assert len(list(store.root.iterdir())) == 1
    assert_array_equal(store.get_or_create(Entry(KEY, SHAPE, unexpected)), FRAMES)


@pytest.mark.parametrize("error", [DataError("bad frame"), KeyboardInterrupt(), ZeroDivisionError()])
def test_interrupted_build_leaves_nothing(store: ImageStore, error: BaseException) -> None:
    def interrupted(out: np.ndarray) -> None:
        out[:2] = 7
        raise error

    with pytest.raises(type(error)):
        store.get_or_create(Entry(KEY, SHAPE, interrupted))
    assert list(store.root.iterdir()) == []
    assert_array_equal(store.get_or_create(Entry(KEY, SHAPE, fill)), FRAMES)


def test_killed_build_leaves_nothing_that_looks_whole(store: ImageStore) -> None:
    code = f"""
import os, signal
from pathlib import Path
from classact.data.images import Entry, ImageStore
def fill(out):
    out[:2] = 7
    os.kill(os.getpid(), signal.SIGKILL)
ImageStore(Path({str(store.root)!r})).get_or_create(Entry({KEY!r}, {SHAPE!r}, fill))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    (leftover,) = store.root.iterdir()
    assert store.get(Entry(KEY, SHAPE, unexpected)) is None
    assert_array_equal(store.get_or_create(Entry(KEY, SHAPE, fill)), FRAMES)
    assert leftover.exists(), "might belong to a build that still runs"
    old = time.time() - 2 * 24 * 3600
    os.utime(leftover, (old, old))
    store.get_or_create(Entry({**KEY, "size": 4}, SHAPE, fill))
    assert not leftover.exists()


def test_first_of_two_builders_wins(store: ImageStore) -> None:
    inner: list[np.memmap] = []

    def slow(out: np.ndarray) -> None:
        out[:] = 1
        # Another process builds and finishes the same entry while this one is at work.
        inner.append(ImageStore(store.root).get_or_create(Entry(KEY, SHAPE, fill)))

    outer = store.get_or_create(Entry(KEY, SHAPE, slow))
    assert_array_equal(outer, FRAMES)
    assert_array_equal(inner[0], FRAMES)
    assert len(list(store.root.iterdir())) == 1


def _build(root: Path, barrier: Any, results: Any) -> None:
    def together(out: np.ndarray) -> None:
        out[:] = FRAMES
        barrier.wait()

    results.put(bool((ImageStore(root).get_or_create(Entry(KEY, SHAPE, together)) == FRAMES).all()))


def test_concurrent_processes(store: ImageStore) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.SimpleQueue()
    processes = [context.Process(target=_build, args=(store.root, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [results.get(), results.get()] == [True, True]
    assert len(list(store.root.iterdir())) == 1
    results.close()


def test_not_enough_space_is_said_before_starting(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(store.root.parent)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(StorageError, match=r"67,180,864 bytes needed, 1,000,000 bytes free.*CLASSACT_CACHE"):
        store.get_or_create(Entry(KEY, SHAPE, unexpected))
    assert list(store.root.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve disk space")
def test_disk_that_fills_up_is_an_error_not_a_crash(store: ImageStore) -> None:
    # A limit on file size stands in for a full disk: without the reservation, writing into the map dies by a signal.
    code = f"""
import resource
from pathlib import Path
from classact.errors import StorageError
from classact.data.images import Entry, ImageStore
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    ImageStore(Path({str(store.root)!r})).get_or_create(Entry({KEY!r}, {SHAPE!r}, lambda out: out.fill(1)))
except StorageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "File too large" in done.stdout
    assert list(store.root.iterdir()) == []


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        ImageStore(tmp_path / "file" / "store").get_or_create(Entry(KEY, SHAPE, fill))


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLASSACT_CACHE", str(tmp_path / "chosen"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "chosen"
    assert ImageStore().root == tmp_path / "chosen" / "images"
    monkeypatch.delenv("CLASSACT_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "classact"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "classact"


# Which images these are


@pytest.mark.parametrize("block", [2**22, 1000])
def test_every_frame_is_part_of_the_identity(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HASH_BYTES", block)
    images = np.random.default_rng(0).integers(0, 256, (700, 4, 6, 3)).astype(np.uint8)
    found = {frames_digest(images), frames_digest(images[:-1]), frames_digest(images.reshape(700, 6, 4, 3))}
    for n in range(len(images)):
        images[n, n % 4, n % 6, n % 3] ^= 1
        found.add(frames_digest(images))
    assert len(found) == 703


def test_identity_is_that_of_the_pixels_wherever_they_lie(store: ImageStore, tmp_path: Path) -> None:
    entry = store.get_or_create(Entry(KEY, SHAPE, fill))
    np.save(tmp_path / "images.npy", FRAMES)
    own = np.load(tmp_path / "images.npy", mmap_mode="r")
    for images in (entry, own, FRAMES[::-1][::-1], np.asfortranarray(FRAMES)):
        assert frames_digest(images) == frames_digest(FRAMES)
    assert frames_digest(entry[1:3]) == frames_digest(FRAMES[1:3])
    assert frames_digest(entry[::-1]) == frames_digest(FRAMES[::-1])
    repaired = np.load(entry.filename, mmap_mode="c")
    repaired[3] = 0
    assert frames_digest(repaired) == frames_digest(np.array(repaired)) != frames_digest(FRAMES)


def test_whole_entries_are_not_read_again(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.get_or_create(Entry(KEY, SHAPE, fill))
    monkeypatch.setattr(module, "ThreadPoolExecutor", lambda _: pytest.fail("hashed again"))
    frames_digest(store.get_or_create(Entry(KEY, SHAPE, unexpected)))


def test_stamp_of_a_file_whose_time_was_set_back(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    before = file_stamp(file)
    assert file_stamp(file) == before
    time.sleep(0.02)  # file systems tell times a few milliseconds apart
    file.write_bytes(b"two")
    os.utime(file, ns=(before[1], before[1]))
    assert file_stamp(file)[:2] == before[:2]
    assert file_stamp(file) != before


# Resizing


@pytest.mark.parametrize("size", [32, (30, 40), (60, 40), (90, 120), (30, 120), 96])
def test_a_frame_is_resized_alike_in_any_batch(size: int | tuple[int, int]) -> None:
    whole = resize_images(FRAMES, size)
    assert whole.shape == (5, *((size, size) if isinstance(size, int) else size), 3)
    assert whole.dtype == np.uint8
    for n, frame in enumerate(FRAMES):
        assert_array_equal(resize_images(frame[None], size)[0], whole[n])
        assert_array_equal(resize_images(np.asfortranarray(frame)[None], size)[0], whole[n])


def test_live_frames_equal_stored_frames(store: ImageStore) -> None:
    stored = store.get_or_create(Entry(KEY, (5, 32, 32, 3), lambda out: np.copyto(out, resize_images(FRAMES, 32))))
    for n, frame in enumerate(FRAMES):
        assert_array_equal(resize_images(frame[None], 32)[0], stored[n])


def test_shrinking_averages_areas() -> None:
    """By a whole factor, area interpolation is the mean of each block."""
    blocks = FRAMES.reshape(5, 30, 2, 40, 2, 3).astype(np.float64).mean(axis=(2, 4))
    assert np.abs(resize_images(FRAMES, (30, 40)) - blocks).max() <= 0.5


def test_enlarging_keeps_constants_and_linear_ramps() -> None:
    ramp = np.broadcast_to(np.arange(0, 200, 20, dtype=np.uint8)[None, None, :, None], (1, 4, 10, 3))
    wide = resize_images(ramp, (4, 20))[0, 0, :, 0].astype(int)
    assert_array_equal(wide[1:-1], np.arange(5, 185, 10))


def test_same_size_is_the_same_array() -> None:
    assert resize_images(FRAMES, (60, 80)) is FRAMES


@pytest.mark.parametrize("images", [FRAMES[0], FRAMES.astype(np.float32), FRAMES[..., :2]])
def test_resize_refuses_what_is_not_images(images: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"expected images of shape \(N, H, W, 3\) and dtype uint8 to resize, got"):
        resize_images(images, 32)


def test_resize_refuses_no_pixels() -> None:
    with pytest.raises(ConfigError, match="at least 1 x 1 pixel, got 0 x 0"):
        resize_images(FRAMES, 0)
