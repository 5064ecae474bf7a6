"""Images stored once, decoded, as memory maps; and the one way in which images are resized.

An image store is a folder with one sub-folder per entry::

    ROOT/<fingerprint>/images.npy   (N, H, W, 3) uint8, read through a memory map, never as a whole
    ROOT/<fingerprint>/meta.json    what the images are (the key), their shape, size and digests

An entry is built under a temporary name and renamed when whole, so an interrupted build leaves nothing that looks like
an entry. Several processes may build the same entry at once: the first that finishes wins, the others use its entry.
"""

from __future__ import annotations

import atexit
import datetime
import functools
import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from classact.data.types import ImageArray
from classact.errors import ConfigError, DataError, MissingDependencyError, StorageError
from classact.utils.inputs import cannot_read, user_path
from classact.utils.storage import UNSYNCABLE, atomic_path, check_writable, read_json

ImageMap = np.memmap[Any, np.dtype[np.uint8]]

CACHE_VARIABLE = "CLASSACT_CACHE"
IMAGES = "images.npy"
META = "meta.json"

_LAYOUT = 1
_HEADROOM = 64 * 2**20
_SAMPLE_BLOCKS = 64
_SAMPLE_BYTES = 4096
_LEFTOVER_SECONDS = 24 * 3600
_ATTEMPTS = 3
_HASH_BYTES = 2**22
_HASH_THREADS = 8

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where decoded images go: ``CLASSACT_CACHE``, else ``$XDG_CACHE_HOME/classact``, else ``~/.cache/classact``.

    Where the last two cannot be written (a home that does not exist, a read-only one), a temporary folder, which is
    said, and which processes that this one starts take as well.

    Raises:
        StorageError: the folder that ``CLASSACT_CACHE`` names cannot be written.
    """
    chosen, base = os.environ.get(CACHE_VARIABLE), os.environ.get("XDG_CACHE_HOME", "")
    # XDG's are to be ignored where they are relative. Without any home, "~" stays, which is relative, too.
    usual = Path(base if Path(base).is_absolute() else os.path.expanduser("~/.cache")) / "classact"  # noqa: PTH111
    folder = user_path(chosen, StorageError) if chosen else usual
    if problem := _unusable(folder, chosen is not None and chosen != ""):
        temporary = tempfile.mkdtemp(prefix="classact-cache-")
        logger.warning(
            "%s Decoded images go to %s for now; set %s to a folder that stays.", problem, temporary, CACHE_VARIABLE
        )
        os.environ[CACHE_VARIABLE] = temporary
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        return Path(temporary)
    return folder


@functools.cache
def _unusable(folder: Path, chosen: bool) -> str:
    """Why a cache cannot be used; empty where it can."""
    if not folder.is_absolute() and not chosen:
        return "There is no home folder."
    try:
        check_writable(folder, folder=True)
    except StorageError as error:
        if chosen:
            raise StorageError(f"{CACHE_VARIABLE} names a folder that cannot be used: {error}") from None
        return str(error).partition(". What was")[0] + "."
    return ""


def resize_images(images: ImageArray, size: int | tuple[int, int]) -> ImageArray:
    """Resize frames, each on its own: the result of a frame does not depend on what it is batched with.

    Data sets and live observations must both go through this function; then they are equal bit by bit.

    Args:
        images: (N, H, W, 3) uint8.
        size: new (height, width) in pixels, or the side of a square.

    Returns:
        (N, height, width, 3) uint8; the very same array if it has that size already. Area averaging (OpenCV
        ``INTER_AREA``) unless a side grows, then bilinear interpolation (``INTER_LINEAR``).

    Raises:
        DataError: not (N, H, W, 3) uint8.
        ConfigError: a size below one pixel.
        MissingDependencyError: OpenCV is not installed.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ConfigError(f"expected an image size of at least 1 x 1 pixel, got {height} x {width}.")
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise DataError(
            f"expected images of shape (N, H, W, 3) and dtype uint8 to resize, got {images.shape} {images.dtype}."
        )
    if images.shape[1:3] == (height, width):
        return images
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError(
            f"resizing images needs OpenCV ({error}); install it with 'pip install opencv-python-headless'."
        ) from error
    shrinks = height <= images.shape[1] and width <= images.shape[2]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    out = np.empty((len(images), height, width, 3), np.uint8)
    for n, frame in enumerate(images):
        out[n] = cv2.resize(np.ascontiguousarray(frame), (width, height), interpolation=method)
    return out


class ImageStore:
    """A folder of decoded images; see the module's description.

    Args:
        root: the folder; by default ``images`` in :func:`cache_folder`. It may be deleted at any time: whatever is
            missing is built again when next needed.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = cache_folder() / "images" if root is None else Path(root)

    def folder(self, key: Mapping[str, Any], shape: tuple[int, int, int, int]) -> Path:
        """Where the entry of ``key`` and ``shape`` is, whether it exists or not."""
        identity = json.dumps([_LAYOUT, key, shape], sort_keys=True, allow_nan=False)
        return self.root / hashlib.sha256(identity.encode()).hexdigest()[:32]

    def get(self, key: Mapping[str, Any], shape: tuple[int, int, int, int]) -> ImageMap | None:
        """The read-only (N, H, W, 3) images of an entry; None where there is none or where it is damaged (logged)."""
        folder = self.folder(key, shape)
        try:
            if not folder.exists():
                return None
            return _open(folder, shape)
        except (DataError, OSError, ValueError) as problem:
            if isinstance(cause := problem.__cause__ or problem, PermissionError):
                raise StorageError(
                    f"{cannot_read(folder, cause)} Or set {CACHE_VARIABLE} to a folder of your own."
                ) from problem
            logger.warning("the stored images in %s are damaged and will not be used: %s", folder, problem)
            return None

    def get_or_create(
        self, key: Mapping[str, Any], shape: tuple[int, int, int, int], fill: Callable[[ImageMap], None]
    ) -> ImageMap:
        """The images of an entry, built first where they are missing or damaged.

        Args:
            key: what the images are, as JSON values: everything that decides their content. ``key["kind"]`` says
                what kind of source they come from.
            shape: (N, H, W, 3).
            fill: writes all of its (N, H, W, 3) uint8 argument, a memory map of zeros. What it raises passes through
                and leaves no entry.

        Returns:
            (N, H, W, 3) uint8, a read-only memory map.

        Raises:
            StorageError: not enough space (needed and free are printed), no permission.
            DataError: a shape that is not that of images.
        """
        if len(shape) != 4 or shape[3] != 3 or min(shape) < 1:
            raise DataError(f"expected images of shape (N, H, W, 3) with at least one pixel, got {tuple(shape)}.")
        folder = self.folder(key, shape)
        # Another process may find the entry damaged, or empty the cache, between our rename and our opening it.
        for _ in range(_ATTEMPTS):
            if (images := self.get(key, shape)) is not None:
                return images
            if folder.exists():
                _discard(folder)
            self._build(folder, key, shape, fill)
        raise StorageError(f"{folder} was built {_ATTEMPTS} times and could not be read back: the disk may be failing.")

    def _build(
        self,
        folder: Path,
        key: Mapping[str, Any],
        shape: tuple[int, int, int, int],
        fill: Callable[[ImageMap], None],
    ) -> None:
        with atomic_path(folder, replace=False) as temporary:
            _remove_leftovers(self.root)
            _check_space(self.root, math.prod(shape))
            temporary.mkdir()
            path = temporary / IMAGES
            images = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
                path, mode="w+", dtype=np.uint8, shape=shape
            )
            _reserve(path)
            fill(images)
            images.flush()
            digest = frames_digest(images)
            del images
            meta = {
                "layout": _LAYOUT,
                "kind": key.get("kind", "images"),
                "fingerprint": folder.name,
                "key": dict(key),
                "shape": list(shape),
                "bytes": path.stat().st_size,
                "sample_sha256": _sample_digest(path),
                "images_sha256": digest,
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            }
            (temporary / META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


def _open(folder: Path, shape: tuple[int, ...]) -> ImageMap:
    path = folder / IMAGES
    meta = read_json(folder / META)
    if not isinstance(meta, dict) or not {"bytes", "sample_sha256"} <= meta.keys():
        raise DataError(f"{META} lacks 'bytes' or 'sample_sha256'")
    found = path.stat().st_size
    if found != meta["bytes"]:
        raise DataError(f"{IMAGES} has {found:,} bytes, expected {meta['bytes']:,}")
    if _sample_digest(path) != meta["sample_sha256"]:
        raise DataError(f"the content of {IMAGES} is not what was written")
    images: ImageMap = np.load(path, mmap_mode="r")
    if images.shape != tuple(shape) or images.dtype != np.uint8:
        raise DataError(f"{IMAGES} holds {images.shape} {images.dtype}, expected {tuple(shape)} uint8")
    return images


def frames_digest(images: ImageArray) -> str:
    """SHA-256 over the shape and every pixel of (N, H, W, 3) ``images``: which images these are.

    About 1 GB/s on each core. A store's entry is not read: its digest was written when it was built.
    """
    if known := _built_digest(images):
        return known
    rows = max(1, _HASH_BYTES // max(1, images[:1].nbytes))

    def block(start: int) -> bytes:
        return hashlib.sha256(np.ascontiguousarray(images[start : start + rows]).data).digest()

    digest = hashlib.sha256(str(images.shape).encode())
    with ThreadPoolExecutor(min(_HASH_THREADS, os.cpu_count() or 1)) as pool:
        for part in pool.map(block, range(0, len(images), rows)):
            digest.update(part)
    return digest.hexdigest()


def file_stamp(path: Path) -> tuple[int, int, int]:
    """(bytes, time of modification, time of change) in ns: another one, when a file's content is another one.

    Copying tools set the time of modification back to that of the original; nothing sets that of change.
    """
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _built_digest(images: ImageArray) -> str | None:
    """What the store wrote of a whole entry; None for others, some rows of an entry, or one that can be changed."""
    path = Path(getattr(images, "filename", None) or "")
    if path.name != IMAGES or images.flags.writeable or not images.flags.c_contiguous:
        return None
    try:
        meta = read_json(path.with_name(META))
        return str(meta["images_sha256"]) if meta["shape"] == list(images.shape) else None
    except (DataError, OSError, KeyError, TypeError):
        return None  # another's file of this name, or an entry that an older version built


def _sample_digest(path: Path) -> str:
    # Reading all of a large entry takes seconds at every start; blocks spread over the file catch what goes wrong in
    # practice (truncation, a hole of zeros after a crash, another file in its place).
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in np.unique(np.linspace(0, max(0, size - _SAMPLE_BYTES), _SAMPLE_BLOCKS, dtype=np.int64)):
            file.seek(int(start))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _check_space(root: Path, size: int) -> None:
    needed, free = size + _HEADROOM, shutil.disk_usage(root).free
    if free < needed:
        raise StorageError(
            f"not enough disk space for decoded images in {root}: {needed:,} bytes needed, {free:,} bytes free. "
            f"Free some space, or set {CACHE_VARIABLE} to a folder on a larger disk."
        )


def _reserve(path: Path) -> None:
    # Storing into a memory map of a sparse file on a full disk kills the process with SIGBUS; asking for the blocks
    # beforehand turns that into an ordinary OSError.
    if not hasattr(os, "posix_fallocate"):
        return
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, os.fstat(descriptor).st_size)
    except OSError as error:
        if error.errno not in UNSYNCABLE:  # disks that cannot promise space
            raise
    finally:
        os.close(descriptor)


def _discard(folder: Path) -> None:
    # Renamed first, so that nobody opens an entry while it is being deleted.
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.damaged.tmp")
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"cannot remove the damaged {folder}: {error.strerror}. Delete it by hand.") from error
    shutil.rmtree(aside, ignore_errors=True)


def _remove_leftovers(root: Path) -> None:
    # A killed build leaves its temporary folder. Those of running builds are younger than this.
    for folder in root.glob(".*.tmp"):
        try:
            if time.time() - folder.stat().st_mtime > _LEFTOVER_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue
