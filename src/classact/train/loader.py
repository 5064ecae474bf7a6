"""Images on their way to training: batches of uint8 rows on the device, from its memory or prefetched from disk.

Both give the same bytes in the same order; augmentation and normalisation happen later, on the device.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from classact.data.images import Images, JoinedImages
from classact.data.schema import check_images
from classact.data.types import IntArray
from classact.errors import ConfigError, DataError
from classact.train.config import Loader
from classact.utils.machine import memory_limits

LoadedBatch = tuple[IntArray, dict[str, Tensor]]
"""Rows (B,) in order, and per camera their images (B, S, S, 3) uint8 on the device."""

IMAGE_SHARE = 0.75  # of the free memory, for images; the rest is for the network, its gradients and activations
BLOCK_BYTES = 256 * 2**20  # copied at once when images move as a whole
THREAD_NAME = "classact-images"


def count_images(images: Mapping[str, Images]) -> int:
    """The number of rows N that all cameras share."""
    if not images:
        raise DataError("expected images of at least one camera, got none. Render or prepare them first.")
    for camera, array in images.items():
        check_images(array, f"camera {camera!r}")
    counts = {camera: len(array) for camera, array in images.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"expected as many images of every camera, got {counts}. Read all of them from one data set.")
    return next(iter(counts.values()))


def _check_rows(rows: IntArray, count: int) -> IntArray:
    if rows.dtype != np.int64 or rows.ndim != 1:
        raise DataError(f"expected rows of shape (B,) and dtype int64, got {rows.shape} {rows.dtype}.")
    # For a missing row numpy would return another one, and a GPU abort.
    for row in (int(rows.min()), int(rows.max())) if len(rows) else ():
        if not 0 <= row < count:
            raise DataError(f"row {row} was asked of {count} images: expected 0 <= row < {count}.")
    return rows


def upload(rows: IntArray, device: torch.device) -> Tensor:
    """Rows as an index on ``device``, without synchronising with a GPU."""
    index = torch.from_numpy(rows)
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index.to(device)


def _gather(array: Images, rows: IntArray, pinned: bool) -> Tensor:
    """(B, S, S, 3) copies of the rows, in one thread."""
    out = torch.empty((len(rows), *array.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
    if isinstance(array, JoinedImages):
        array.take(rows, out.numpy())
        return out
    # The rows were checked; with its own check numpy would gather into a buffer first.
    np.take(array, rows, axis=0, out=out.numpy(), mode="clip")
    return out


class ResidentLoader:
    """All images in the device's memory: on a GPU one tensor per camera, on a CPU the arrays themselves.

    A memory map is read as a whole, block by block, onto a GPU. On a CPU it stays one, cached by the operating system.
    Images that do not fit in memory are a ConfigError.
    """

    def __init__(self, images: Mapping[str, Images], device: str | torch.device) -> None:
        self.count, self.device = count_images(images), torch.device(device)
        self._tensors: dict[str, Tensor] = {}
        self._arrays: dict[str, Images] = {}
        if self.device.type == "cpu":
            self._arrays = {camera: _plain(array) for camera, array in images.items()}
        else:
            self._tensors = {camera: _copy(array, self.device) for camera, array in images.items()}

    def take(self, rows: IntArray) -> dict[str, Tensor]:
        """Camera -> (B, S, S, 3) uint8 on the device, for (B,) int64 rows in any order, also repeated; does not
        synchronise with a GPU.
        """
        _check_rows(rows, self.count)
        if self.device.type == "cpu":
            return {camera: _gather(array, rows, pinned=False) for camera, array in self._arrays.items()}
        index = upload(rows, self.device)
        return {camera: _select(tensor, index) for camera, tensor in self._tensors.items()}

    @property
    def device_bytes(self) -> int:
        """The images' share of a GPU's memory; 0 on a CPU."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def batches(self, rows: Iterable[IntArray]) -> Generator[LoadedBatch]:
        """A batch for each element of ``rows``, in order."""
        for batch in rows:
            yield batch, self.take(batch)


def _select(tensor: Tensor, index: Tensor) -> Tensor:
    """Rows of (N, S, S, 3); moved as 8-byte words where possible, an eighth of the elements."""
    flat = tensor.view(len(tensor), -1)
    if flat.shape[1] % 8 == 0:
        flat = flat.view(torch.int64)
    return flat.index_select(0, index).view(torch.uint8).view(len(index), *tensor.shape[1:])


def _plain(array: Images) -> Images:
    """Without a memory map's own methods, which cost time for each row; of several data sets as they are."""
    return array if isinstance(array, JoinedImages) else np.asarray(array)


def _copy(array: Images, device: torch.device) -> Tensor:
    try:
        out = torch.empty(array.shape, dtype=torch.uint8, device=device)
    except RuntimeError as error:  # torch's own class for it is for GPUs only
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise ConfigError(
            f"{describe({'': array})} do not fit into the memory of {device}. Choose the loader 'prefetch'."
        ) from error
    step = max(1, BLOCK_BYTES // max(1, math.prod(array.shape[1:])))
    for start in range(0, len(array), step):
        block = array[start : start + step]
        with warnings.catch_warnings():
            # A memory map may be read-only; this view is never written to.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            out[start : start + len(block)].copy_(torch.from_numpy(np.ascontiguousarray(block)))
    return out


class PrefetchLoader:
    """Batches gathered by threads from memory maps or arrays, ``depth`` ahead of the one in use; onto a GPU through
    pinned memory.
    """

    def __init__(
        self, images: Mapping[str, Images], device: str | torch.device, *, depth: int = 4, workers: int = 2
    ) -> None:
        self.count, self.device = count_images(images), torch.device(device)
        self.depth, self.workers = depth, workers
        self._arrays = {camera: _plain(array) for camera, array in images.items()}
        # Copies run beside the training's kernels, on their own stream.
        self._stream: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def take(self, rows: IntArray) -> dict[str, Tensor]:
        """See :meth:`ResidentLoader.take`; reads in this thread."""
        return self._receive(*self._load(_check_rows(rows, self.count)))

    def batches(self, rows: Iterable[IntArray]) -> Generator[LoadedBatch]:
        """See :meth:`ResidentLoader.batches`. Elements of ``rows`` are taken in advance, in this thread; an error is
        raised when its batch is due. Close the iterator where it is not used up.
        """
        waiting: deque[tuple[IntArray, Future[tuple[dict[str, Tensor], torch.cuda.Event | None]]]] = deque()
        source: Iterator[IntArray] | None = iter(rows)
        problem: Exception | None = None
        pool = ThreadPoolExecutor(self.workers, THREAD_NAME)
        try:
            while True:
                while source is not None and len(waiting) <= self.depth:
                    try:
                        ahead = _check_rows(next(source), self.count)
                    except StopIteration:
                        source = None
                    except Exception as error:
                        source, problem = None, error
                    else:
                        waiting.append((ahead, pool.submit(self._load, ahead)))
                if not waiting:
                    if problem is not None:
                        raise problem
                    return
                batch, loaded = waiting.popleft()
                yield batch, self._receive(*loaded.result())
        finally:
            # Running batches are finished, at most one per thread; the others are not begun.
            pool.shutdown(wait=True, cancel_futures=True)

    def _load(self, rows: IntArray) -> tuple[dict[str, Tensor], torch.cuda.Event | None]:
        """In a worker: the images, and the event of their arrival."""
        if self._stream is None:
            return {camera: _gather(array, rows, pinned=False) for camera, array in self._arrays.items()}, None
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            # Torch does not reuse pinned memory until its copy is done.
            out = {
                camera: _gather(array, rows, pinned=True).to(self.device, non_blocking=True)
                for camera, array in self._arrays.items()
            }
            return out, self._stream.record_event()

    def _receive(self, images: dict[str, Tensor], arrived: torch.cuda.Event | None) -> dict[str, Tensor]:
        """In the consumer: make its stream, not its thread, wait."""
        if arrived is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(arrived)
            for tensor in images.values():
                tensor.record_stream(stream)
        return images


ImageLoader = ResidentLoader | PrefetchLoader


def describe(images: Mapping[str, Images]) -> str:
    """Such as "images: 254,000 x 224 x 224 x 3 = 35.6 GiB"."""
    shapes: dict[str, int] = {}
    for array in images.values():
        shape = " x ".join([f"{len(array):,}", *map(str, array.shape[1:])])
        shapes[shape] = shapes.get(shape, 0) + 1
    parts = [shape if n == 1 else f"{n} x ({shape})" for shape, n in shapes.items()]
    return f"images: {' + '.join(parts)} = {describe_bytes(sum(_bytes(array) for array in images.values()))}"


def _bytes(array: Images) -> int:
    return math.prod(array.shape)


def describe_bytes(count: float) -> str:
    """Such as "35.6 GiB"."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}" if count < 1000 * scale else f"{count / scale:,.0f} {unit}"
    return f"{count / 2**10:.3g} KiB"


def free_memory(device: torch.device) -> tuple[int, int]:
    """(free, total) bytes of the device's memory; for CPUs those of the machine, or of the container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    import psutil  # type: ignore[import-untyped]

    memory = psutil.virtual_memory()
    frees, totals = zip((int(memory.available), int(memory.total)), *memory_limits(), strict=True)
    return min(frees), min(totals)


def make_loader(
    images: Mapping[str, Images],
    device: str | torch.device,
    mode: Loader = "auto",
    say: Callable[[str], None] | None = None,
) -> ImageLoader:
    """Choose how images, camera -> (N, S, S, 3) uint8, get to the device, and say so before anything is copied.

    Args:
        mode: "resident": all in the device's memory (a CPU reads memory maps through the operating system's cache);
            "prefetch": read by threads as needed; "auto": resident where they fit into :data:`IMAGE_SHARE` of the free
            memory, else prefetch.
        say: called with one line: memory needed and free, and the choice.

    Raises:
        DataError: as :func:`count_images`.
        ConfigError: a mode that needs more memory than is free.
    """
    count_images(images)
    device = torch.device(device)
    free, total = free_memory(device)
    place = "main memory" if device.type == "cpu" else str(device)
    have = f"{describe_bytes(free)} of {describe_bytes(total)} free in {place}"
    mapped = any(_mapped(array) for array in images.values())
    # Arrays in main memory need no more of it.
    needed = sum(_bytes(array) for array in images.values())
    fits = (device.type == "cpu" and not mapped) or needed <= IMAGE_SHARE * free
    if mode == "resident" and not fits:
        raise ConfigError(
            f"{describe(images)} are to be kept in {place} (loader 'resident'), but of the {have} images may take "
            f"{describe_bytes(IMAGE_SHARE * free)} ({IMAGE_SHARE:.0%}); the rest is for the network. Choose the "
            f"loader 'prefetch' or 'auto', use smaller images, or free some memory."
        )
    resident = mode == "resident" or (mode == "auto" and fits)
    if not resident:
        does = "read from disk as needed" if mapped else "copied as needed"
        if mode == "auto":
            does += f" (more than {IMAGE_SHARE:.0%} of what is free)"
    elif device.type != "cpu":
        does = "kept on the device"
    else:
        does = "memory-mapped, the operating system keeps them in memory" if mapped else "used where they are"
    if say is not None:
        say(f"{describe(images)}, {have}: {does}")
    return ResidentLoader(images, device) if resident else PrefetchLoader(images, device)


def _mapped(array: Images) -> bool:
    if isinstance(array, JoinedImages):
        return any(map(_mapped, array.sources))
    base: object = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            return True
        base = base.base
    return False
