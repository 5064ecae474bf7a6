"""Every loader against plain indexing, bit by bit; threads that end; what is said before anything is copied."""

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
from classact.train import loader as loading
from classact.train.loader import PrefetchLoader, ResidentLoader, describe, make_loader

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


def loaders(images: dict[str, ImageArray], device: str) -> dict[str, loading.ImageLoader]:
    return {
        "resident": ResidentLoader(images, device),
        "one thread": PrefetchLoader(images, device, depth=1, workers=1),
        "many threads": PrefetchLoader(images, device, depth=7, workers=4),
    }


def check(found: dict[str, torch.Tensor], rows: IntArray, device: str) -> None:
    assert found.keys() == example().keys()
    for camera, array in example().items():
        assert found[camera].device.type == device
        assert found[camera].dtype == torch.uint8
        assert_array_equal(found[camera].cpu().numpy(), array[rows])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["resident", "one thread", "many threads"])
def test_every_loader_gives_what_plain_indexing_gives(mapped: dict[str, ImageArray], kind: str, device: str) -> None:
    loader = loaders(mapped, device)[kind]
    asked = batches()
    given_back = list(loader.batches(iter(asked)))
    assert len(given_back) == len(asked)
    for (rows, found), wanted in zip(given_back, asked, strict=True):
        assert rows is wanted
        check(found, wanted, device)
        check(loader.take(wanted), wanted, device)
    # What was handed out is the caller's own.
    rows, found = given_back[0]
    found["front"].zero_()
    check(loader.take(rows), rows, device)


@given(
    rows=st.lists(st.integers(0, N - 1), max_size=20),
    side=st.integers(1, 9),
    depth=st.integers(1, 4),
    seed=st.integers(0),
)
def test_any_rows_of_any_size(rows: list[int], side: int, depth: int, seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, (N, side, side, 3), dtype=np.uint8)
    asked = np.array(rows, np.int64)
    for loader in (ResidentLoader({"a": array}, "cpu"), PrefetchLoader({"a": array}, "cpu", depth=depth)):
        ((_, found),) = loader.batches([asked])
        assert_array_equal(found["a"].numpy(), array[asked])
    # The GPU's way of gathering, in words where rows are whole numbers of them.
    assert_array_equal(loading._select(torch.from_numpy(array), torch.from_numpy(asked)).numpy(), array[asked])


def test_images_are_copied_in_blocks(mapped: dict[str, ImageArray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BLOCK_BYTES", 20 * 8 * 8 * 3)
    copied: list[int] = []
    contiguous = np.ascontiguousarray
    monkeypatch.setattr(loading.np, "ascontiguousarray", lambda block: copied.append(len(block)) or contiguous(block))
    found = loading._copy(mapped["front"], torch.device("cpu"))
    assert copied == [20, 20, 10]
    assert_array_equal(found.numpy(), example()["front"])


# -- threads -------------------------------------------------------------------------------------------------------


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(loading.THREAD_NAME)]


def endless() -> Iterator[IntArray]:
    while True:
        yield np.arange(4)


class Slow(PrefetchLoader):
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

    loader = PrefetchLoader(example(), "cpu", depth=3, workers=2)
    reader = loader.batches(source())
    next(reader)
    assert taken == [0, 1, 2, 3]
    next(reader)
    assert taken == [0, 1, 2, 3, 4]
    reader.close()  # type: ignore[attr-defined]
    assert workers() == []


def test_closing_ends_the_threads_at_once() -> None:
    loader = Slow(example(), "cpu", depth=20, workers=2)
    loader.seconds = 0.2
    reader = loader.batches(endless())
    next(reader)
    assert 1 <= len(workers()) <= 2
    before = loader.begun
    reader.close()  # type: ignore[attr-defined]
    assert loader.begun < before + 10, "batches that nobody waits for were gathered"
    assert workers() == []


def test_an_abandoned_reader_and_one_used_up_leave_no_threads() -> None:
    loader = PrefetchLoader(example(), "cpu")
    for _ in loader.batches(endless()):
        break
    assert len(list(loader.batches(batches()))) == 12
    assert workers() == []


def test_ctrl_c_while_waiting_ends_the_threads() -> None:
    loader = Slow(example(), "cpu", depth=5)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        for number, _ in enumerate(loader.batches(endless())):
            if number == 2:
                raise KeyboardInterrupt
    assert workers() == []


def test_what_a_thread_raises_comes_with_its_batch() -> None:
    loader = Slow(example(), "cpu", depth=8)
    loader.fails = 5
    reader = loader.batches(np.array([i]) for i in range(9))
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

    reader = PrefetchLoader(example(), "cpu", depth=4).batches(source())
    assert [int(next(reader)[0][0]) for _ in range(2)] == [1, 2]
    with pytest.raises(ValueError, match="no more rows"):
        next(reader)
    assert workers() == []


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["resident", "many threads"])
def test_rows_that_are_not_there(kind: str) -> None:
    loader = loaders(example(), "cpu")[kind]
    for rows, bad in (([0, -1], -1), ([N, 0], N), ([3, 2 * N], 2 * N)):
        with pytest.raises(DataError, match=f"row {bad} was asked of 50 images: expected 0 <= row < 50"):
            loader.take(np.array(rows))
        with pytest.raises(DataError, match=f"row {bad} was asked"):
            list(loader.batches([np.array(rows)]))
    with pytest.raises(DataError, match=r"expected rows of shape \(B,\) and dtype int64, got \(2,\) int32"):
        loader.take(np.zeros(2, np.int32))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"got \(2, 1\) int64"):
        loader.take(np.zeros((2, 1), np.int64))


@pytest.mark.parametrize("make", [ResidentLoader, PrefetchLoader, make_loader])
def test_images_that_are_none(make: Any) -> None:
    with pytest.raises(DataError, match="images of at least one camera, got none"):
        make({}, "cpu")
    with pytest.raises(DataError, match=r"camera 'a': expected images of shape \(N, H, W, 3\), .*got \(4, 3, 8, 8\)"):
        make({"a": np.zeros((4, 3, 8, 8), np.uint8)}, "cpu")
    with pytest.raises(DataError, match=r"camera 'a': expected uint8 values 0\.\.255, got float32"):
        make({"a": np.zeros((4, 8, 8, 3), np.float32)}, "cpu")
    with pytest.raises(DataError, match=r"as many images of every camera, got \{'a': 4, 'b': 5\}"):
        make({"a": np.zeros((4, 8, 8, 3), np.uint8), "b": np.zeros((5, 8, 8, 3), np.uint8)}, "cpu")


# -- the choice ------------------------------------------------------------------------------------------------------

BYTES = N * (8 * 8 + 5 * 5) * 3


def choice(images: dict[str, ImageArray], mode: Any, free: int | None, device: str = "cpu") -> tuple[Any, str]:
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        if free is not None:
            patch.setattr(loading, "free_memory", lambda _: (free, 10**12))
        loader = make_loader(images, device, mode, said.append)
    check(loader.take(np.array([3, 1, 3])), np.array([3, 1, 3]), device)
    (line,) = said
    return loader, line


def test_memory_maps_that_fit_and_that_do_not(mapped: dict[str, ImageArray]) -> None:
    enough = -(-BYTES * 4 // 3)
    start = "images: 50 x 8 x 8 x 3 + 50 x 5 x 5 x 3 = 13 KiB, "
    loader, line = choice(mapped, "auto", enough)
    assert isinstance(loader, ResidentLoader)
    assert (
        line
        == start + "17.4 KiB of 931 GiB free in main memory: memory-mapped, the operating system keeps them in memory"
    )
    loader, line = choice(mapped, "auto", enough - 2)
    assert isinstance(loader, PrefetchLoader)
    assert line.endswith("read from disk as needed (more than 75% of what is free)")
    loader, line = choice(mapped, "prefetch", 10**9)
    assert isinstance(loader, PrefetchLoader)
    assert line.endswith("free in main memory: read from disk as needed")
    message = (
        rf"{start.replace('+', '[+]')[:-2]} are to be kept in main memory \(loader 'resident'\), but of the 9.77 KiB "
        rf"of 931 GiB free in main memory images may take 7.32 KiB \(75%\).*Choose the loader 'prefetch' or 'auto'"
    )
    with pytest.raises(ConfigError, match=message):
        choice(mapped, "resident", 10_000)


def test_arrays_in_memory_need_no_more_of_it() -> None:
    for mode in ("auto", "resident"):
        loader, line = choice(example(), mode, 0)
        assert isinstance(loader, ResidentLoader)
        assert line.endswith("used where they are")
    images = example()
    for loader in (make_loader(images, "cpu", "auto"), make_loader(images, "cpu", "resident")):
        assert np.shares_memory(loader._arrays["front"], images["front"])  # type: ignore[attr-defined]


def test_what_the_images_take_of_a_gpu(mapped: dict[str, ImageArray]) -> None:
    assert ResidentLoader(mapped, "cpu").device_bytes == 0
    if torch.cuda.is_available():
        assert ResidentLoader(mapped, "cuda").device_bytes == BYTES


def test_what_is_free_is_measured() -> None:
    free, total = loading.free_memory(torch.device("cpu"))
    assert 0 < free < total
    _, line = choice(example(), "auto", None)
    assert " GiB free in main memory: used where they are" in line


@pytest.mark.gpu
def test_the_choice_on_a_gpu(mapped: dict[str, ImageArray]) -> None:
    loader, line = choice(mapped, "auto", None, "cuda")
    assert isinstance(loader, ResidentLoader)
    assert line.endswith("free in cuda: kept on the device")
    assert isinstance(choice(mapped, "auto", 10, "cuda")[0], PrefetchLoader)
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

    monkeypatch.setattr(loading.torch, "empty", full)
    with pytest.raises(
        ConfigError, match=r"50 x 8 x 8 x 3 = 9.38 KiB do not fit into the memory of cpu.*loader 'prefetch'"
    ):
        loading._copy(example()["front"], torch.device("cpu"))
