"""Every feed against plain indexing, bit by bit; threads that end; what is said before anything is copied."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from classact.data.types import ImageArray, IntArray
from classact.errors import ConfigError, DataError
from classact.train import loader as feeding
from classact.train.loader import PrefetchFeed, ResidentFeed, describe, make_feed

N = 50
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def example(n: int = N, seed: int = 0) -> dict[str, ImageArray]:
    """Two cameras of different size; the rows of the second are no multiple of 8 bytes."""
    rng = np.random.default_rng(seed)
    sizes = {"front": 8, "wrist": 5}
    return {camera: rng.integers(0, 256, (n, s, s, 3), dtype=np.uint8) for camera, s in sizes.items()}


@pytest.fixture
def mapped(tmp_path: Path) -> dict[str, ImageArray]:
    """The example as read-only memory maps."""
    for camera, array in example().items():
        np.save(tmp_path / f"{camera}.npy", array)
    return {camera: np.load(tmp_path / f"{camera}.npy", mmap_mode="r") for camera in example()}


def batches(count: int = 12, seed: int = 1) -> list[IntArray]:
    """Of several lengths; the odd ones sorted; rows come twice."""
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(0, N, int(rng.integers(0, 30)), dtype=np.int64) for _ in range(count)]
    return [np.sort(rows) if i % 2 else rows for i, rows in enumerate(drawn)]


def feeds(images: dict[str, ImageArray], device: str) -> dict[str, feeding.ImageFeed]:
    return {
        "resident": ResidentFeed(images, device),
        "ram": ResidentFeed(images, device, ram=True),
        "one thread": PrefetchFeed(images, device, depth=1, workers=1),
        "many threads": PrefetchFeed(images, device, depth=7, workers=4),
    }


def check(found: dict[str, torch.Tensor], rows: IntArray, device: str) -> None:
    assert found.keys() == example().keys()
    for camera, array in example().items():
        assert found[camera].device.type == device
        assert found[camera].dtype == torch.uint8
        assert_array_equal(found[camera].cpu().numpy(), array[rows])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["resident", "ram", "one thread", "many threads"])
def test_every_feed_gives_what_plain_indexing_gives(mapped: dict[str, ImageArray], kind: str, device: str) -> None:
    feed = feeds(mapped, device)[kind]
    asked = batches()
    given_back = list(feed.batches(iter(asked)))
    assert len(given_back) == len(asked)
    for (rows, found), wanted in zip(given_back, asked, strict=True):
        assert rows is wanted
        check(found, wanted, device)
        check(feed.take(wanted), wanted, device)
    # What was handed out is the caller's own.
    rows, found = given_back[0]
    found["front"].zero_()
    check(feed.take(rows), rows, device)


@given(
    rows=st.lists(st.integers(0, N - 1), max_size=20),
    side=st.integers(1, 9),
    depth=st.integers(1, 4),
    seed=st.integers(0),
)
def test_any_rows_of_any_size(rows: list[int], side: int, depth: int, seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, (N, side, side, 3), dtype=np.uint8)
    asked = np.array(rows, np.int64)
    for feed in (ResidentFeed({"a": array}, "cpu"), PrefetchFeed({"a": array}, "cpu", depth=depth)):
        ((_, found),) = feed.batches([asked])
        assert_array_equal(found["a"].numpy(), array[asked])
    # The GPU's way of gathering, in words where rows are whole numbers of them.
    assert_array_equal(feeding._select(torch.from_numpy(array), torch.from_numpy(asked)).numpy(), array[asked])


def test_a_copy_in_memory_is_made_in_blocks_and_tells(
    mapped: dict[str, ImageArray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "BLOCK_BYTES", 20 * 8 * 8 * 3)
    told: list[tuple[int, int]] = []
    feed = ResidentFeed(mapped, "cpu", ram=True, progress=lambda *numbers: told.append(numbers))
    assert [done for done, _ in told] == [0, 20, 40, 50, 50, 100]
    assert {total for _, total in told} == {100}
    assert not any(isinstance(array, np.memmap) for array in feed._arrays.values())
    check(feed.take(np.arange(N)), np.arange(N), "cpu")


# -- threads -------------------------------------------------------------------------------------------------------


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(feeding.THREAD_NAME)]


def endless() -> Iterator[IntArray]:
    while True:
        yield np.arange(4)


class Slow(PrefetchFeed):
    """Every batch takes a while; one of them fails."""

    seconds = 0.0
    fails = -1
    begun = 0

    def _load(self, rows: IntArray) -> Any:
        self.begun += 1
        time.sleep(self.seconds)
        if rows[0] == self.fails:
            raise OSError("the disk is gone")
        return super()._load(rows)


def test_batches_are_gathered_ahead_but_not_too_far() -> None:
    taken: list[int] = []

    def source() -> Iterator[IntArray]:
        for i in range(N):
            taken.append(i)
            yield np.array([i])

    feed = PrefetchFeed(example(), "cpu", depth=3, workers=2)
    reader = feed.batches(source())
    next(reader)
    assert taken == [0, 1, 2, 3]
    next(reader)
    assert taken == [0, 1, 2, 3, 4]
    reader.close()  # type: ignore[attr-defined]
    assert workers() == []


def test_closing_ends_the_threads_at_once() -> None:
    feed = Slow(example(), "cpu", depth=20, workers=2)
    feed.seconds = 0.2
    reader = feed.batches(endless())
    next(reader)
    assert 1 <= len(workers()) <= 2
    before = feed.begun
    reader.close()  # type: ignore[attr-defined]
    assert feed.begun < before + 10, "batches that nobody waits for were gathered"
    assert workers() == []


def test_an_abandoned_reader_and_one_used_up_leave_no_threads() -> None:
    feed = PrefetchFeed(example(), "cpu")
    for _ in feed.batches(endless()):
        break
    assert len(list(feed.batches(batches()))) == 12
    assert workers() == []


def test_ctrl_c_while_waiting_ends_the_threads() -> None:
    feed = Slow(example(), "cpu", depth=5)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        for number, _ in enumerate(feed.batches(endless())):
            if number == 2:
                raise KeyboardInterrupt
    assert workers() == []


def test_what_a_thread_raises_comes_with_its_batch() -> None:
    feed = Slow(example(), "cpu", depth=8)
    feed.fails = 5
    reader = feed.batches(np.array([i]) for i in range(9))
    got = [int(next(reader)[0][0]) for _ in range(5)]
    assert got == [0, 1, 2, 3, 4]
    with pytest.raises(OSError, match="the disk is gone"):
        next(reader)
    assert workers() == []


def test_what_the_source_of_rows_raises_comes_with_its_batch() -> None:
    def source() -> Iterator[IntArray]:
        yield np.array([1])
        yield np.array([2])
        raise ValueError("no more rows")

    reader = PrefetchFeed(example(), "cpu", depth=4).batches(source())
    assert [int(next(reader)[0][0]) for _ in range(2)] == [1, 2]
    with pytest.raises(ValueError, match="no more rows"):
        next(reader)
    assert workers() == []


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["resident", "many threads"])
def test_rows_that_are_not_there(kind: str) -> None:
    feed = feeds(example(), "cpu")[kind]
    for rows, bad in (([0, -1], -1), ([N, 0], N), ([3, 2 * N], 2 * N)):
        with pytest.raises(DataError, match=f"row {bad} was asked of 50 images: expected 0 <= row < 50"):
            feed.take(np.array(rows))
        with pytest.raises(DataError, match=f"row {bad} was asked"):
            list(feed.batches([np.array(rows)]))
    with pytest.raises(DataError, match=r"expected rows of shape \(B,\) and dtype int64, got \(2,\) int32"):
        feed.take(np.zeros(2, np.int32))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"got \(2, 1\) int64"):
        feed.take(np.zeros((2, 1), np.int64))
    with pytest.raises(DataError, match="got list"):
        feed.take([1, 2])  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [ResidentFeed, PrefetchFeed, make_feed])
def test_images_that_are_none(make: Any) -> None:
    with pytest.raises(DataError, match="images of at least one camera, got none"):
        make({}, "cpu")
    with pytest.raises(
        DataError, match=r"images 'a' of shape \(N, S, S, 3\) and dtype uint8, got \(4, 3, 8, 8\) uint8"
    ):
        make({"a": np.zeros((4, 3, 8, 8), np.uint8)}, "cpu")
    with pytest.raises(DataError, match=r"got \(4, 8, 8, 3\) float32"):
        make({"a": np.zeros((4, 8, 8, 3), np.float32)}, "cpu")
    with pytest.raises(DataError, match=r"as many images of every camera, got \{'a': 4, 'b': 5\}"):
        make({"a": np.zeros((4, 8, 8, 3), np.uint8), "b": np.zeros((5, 8, 8, 3), np.uint8)}, "cpu")


def test_settings_out_of_range() -> None:
    with pytest.raises(ConfigError, match="depth >= 1 and workers >= 1, got depth 0 and workers 2"):
        PrefetchFeed(example(), "cpu", depth=0)
    with pytest.raises(ConfigError, match="unknown way of feeding images 'gpu': available are 'auto', 'disk'"):
        make_feed(example(), "cpu", "gpu")


# -- the choice ------------------------------------------------------------------------------------------------------

BYTES = N * (8 * 8 + 5 * 5) * 3


def choice(images: dict[str, ImageArray], mode: str, free: int | None, device: str = "cpu") -> tuple[Any, str]:
    said: list[str] = []
    feed = make_feed(images, device, mode, say=said.append, free_bytes=free)
    check(feed.take(np.array([3, 1, 3])), np.array([3, 1, 3]), device)
    (line,) = said
    return feed, line


def test_memory_maps_that_fit_and_that_do_not(mapped: dict[str, ImageArray]) -> None:
    enough = -(-BYTES * 4 // 3)
    start = r"images: 50 x 8 x 8 x 3 + 50 x 5 x 5 x 3 = 13 KiB, "
    feed, line = choice(mapped, "auto", enough)
    assert isinstance(feed, ResidentFeed)
    assert line == start + "17.4 KiB free in main memory: memory-mapped, the operating system keeps them in memory"
    feed, line = choice(mapped, "auto", enough - 2)
    assert isinstance(feed, PrefetchFeed)
    assert line.endswith("read from disk as needed (more than 75% of what is free)")
    feed, line = choice(mapped, "disk", 10**9)
    assert isinstance(feed, PrefetchFeed)
    assert line.endswith("free in main memory: read from disk as needed")
    feed, line = choice(mapped, "ram", enough)
    assert isinstance(feed, ResidentFeed)
    assert not any(feeding._mapped(array) for array in feed._arrays.values())
    assert line.endswith("copied into main memory")
    for mode in ("resident", "ram"):
        message = (
            rf"{start.replace('+', '[+]')[:-2]} are to be kept in main memory \(mode '{mode}'\), but of the 9.77 KiB "
            rf"free in main memory images may take 7.32 KiB \(75%\).*Choose the mode 'disk' or 'auto'"
        )
        with pytest.raises(ConfigError, match=message):
            choice(mapped, mode, 10_000)


def test_arrays_in_memory_need_no_more_of_it() -> None:
    for mode in ("auto", "resident", "ram"):
        feed, line = choice(example(), mode, 0)
        assert isinstance(feed, ResidentFeed)
        assert line.endswith("used where they are")
    images = example()
    for feed in (make_feed(images, "cpu", mode) for mode in ("auto", "resident", "ram")):
        assert np.shares_memory(feed._arrays["front"], images["front"])  # type: ignore[attr-defined]


def test_each_process_of_a_machine_has_its_copy(mapped: dict[str, ImageArray], monkeypatch: pytest.MonkeyPatch) -> None:
    free = -(-3 * BYTES * 4 // 3)

    def made(mode: str, sharers: int | None, free: int = free, images: Any = mapped) -> str:
        said: list[str] = []
        make_feed(images, "cpu", mode, say=said.append, free_bytes=free, sharers=sharers)
        return said[0]

    assert made("ram", 3).endswith(": copied into main memory by each of 3 processes, 39.1 KiB in all")
    assert made("ram", 1).endswith(": copied into main memory")
    with pytest.raises(ConfigError, match=r"\(mode 'ram'\) by each of 3 processes, 39.1 KiB in all, but of the"):
        made("ram", 3, free - 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert "each of 3 processes" in made("ram", None)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert "processes" not in made("ram", None)
    # Memory maps are shared, and arrays that are there already need no more.
    assert made("resident", 3, free // 3 + 1).endswith("the operating system keeps them in memory")
    assert made("ram", 3, 0, example()).endswith("used where they are")


def test_what_the_images_take_of_a_gpu(mapped: dict[str, ImageArray]) -> None:
    assert ResidentFeed(mapped, "cpu").device_bytes == 0
    if torch.cuda.is_available():
        assert ResidentFeed(mapped, "cuda").device_bytes == BYTES


def test_what_is_free_is_measured() -> None:
    free, total = feeding.free_memory(torch.device("cpu"))
    assert 0 < free < total
    _, line = choice(example(), "auto", None)
    assert " GiB free in main memory: used where they are" in line
    assert " of " in line


@pytest.mark.gpu
def test_the_choice_on_a_gpu(mapped: dict[str, ImageArray]) -> None:
    feed, line = choice(mapped, "auto", None, "cuda")
    assert isinstance(feed, ResidentFeed)
    assert line.endswith("free in cuda: kept on the device")
    assert isinstance(choice(mapped, "auto", 10, "cuda")[0], PrefetchFeed)
    assert isinstance(choice(mapped, "ram", 10**6, "cuda")[0], PrefetchFeed)
    with pytest.raises(ConfigError, match="kept in cuda"):
        choice(mapped, "resident", 10, "cuda")


def test_images_are_described_with_their_size() -> None:
    # Broadcast: the numbers of a large data set without its bytes.
    large = np.broadcast_to(np.uint8(0), (254_000, 224, 224, 3))
    assert describe({"a": large}) == "images: 254,000 x 224 x 224 x 3 = 35.6 GiB"
    small = np.zeros((4, 64, 64, 3), np.uint8)
    assert describe({"a": small, "b": small}) == "images: 2 x (4 x 64 x 64 x 3) = 96 KiB"
    assert describe({"a": np.broadcast_to(np.uint8(0), (200, 128, 128, 3))}).endswith("= 9.38 MiB")


def test_out_of_memory_says_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 13 KiB")

    monkeypatch.setattr(feeding.torch, "empty", full)
    with pytest.raises(ConfigError, match=r"50 x 8 x 8 x 3 = 9.38 KiB do not fit into the memory of cpu.*mode 'disk'"):
        ResidentFeed(example(), "cpu", ram=True)
