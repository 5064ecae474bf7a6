"""Images: decoded on demand, stored once at the training size, and resized in one way.

Readers give an :class:`ImageSource` per camera, which holds no images.

An image store is a folder with one sub-folder per entry::

    ROOT/<fingerprint>/images.npy   (N, H, W, 3) uint8, read through a memory map, never as a whole
    ROOT/<fingerprint>/meta.json    what the images are (the key), their shape, size and digests
    ROOT/<fingerprint>/used.json    which data they were made for, and when they were used last

An entry is built under a temporary name and renamed when complete, so an interrupted build leaves no entry. Of several
processes that build the same entry, the first to finish wins and the others use its entry. While it is mapped,
meta.json is locked, together with other readers, so that :mod:`classact.data.cache` removes no entry in use.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import functools
import hashlib
import itertools
import json
import logging
import math
import os
import shutil
import tempfile
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from classact.errors import ConfigError, DataError, MissingDependencyError, StorageError
from classact.utils.inputs import cannot_read, user_path
from classact.utils.locks import OWNER, own, share
from classact.utils.machine import cores
from classact.utils.storage import UNSYNCABLE, atomic_path, check_writable, read_json, write_json

ImageArray = NDArray[np.uint8]
ImageMap = np.memmap[Any, np.dtype[np.uint8]]
IntRows = NDArray[np.int64]
Progress = Callable[[int, int], None]  # called with (images done, images in all)
CACHE_VARIABLE = "CLASSACT_CACHE"
IMAGES = "images.npy"
META = "meta.json"
USED = "used.json"

_LAYOUT = 1
_HEADROOM = 64 * 2**20
_SAMPLE_BLOCKS = 64
_SAMPLE_BYTES = 4096
_LEFTOVER_SECONDS = 24 * 3600
_NOTED, _NOTED_SECONDS = 20, 3600
_ATTEMPTS = 3
_HASH_BYTES = 2**22
_HASH_THREADS = 8
_BLOCK_BYTES = 2**24
_DECODERS = 8

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where decoded images go: ``CLASSACT_CACHE``, else ``$XDG_CACHE_HOME/classact``, else ``~/.cache/classact``.

    If the last two are not writable (no home, a read-only one), a temporary folder, with a warning; child processes use
    it, too. If the first is not, a StorageError.
    """
    chosen, base = os.environ.get(CACHE_VARIABLE), os.environ.get("XDG_CACHE_HOME", "")
    # Relative XDG paths are to be ignored. Without any home, "~" stays, which is relative, too.
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
    """Resize (N, H, W, 3) uint8 frames to ``size``, (height, width) or the side of a square, each on its own.

    Data sets and live observations both go through this function, so they are equal bit by bit. Area averaging (OpenCV
    ``INTER_AREA``), or bilinear interpolation if a side grows; frames of that size come back as they are.
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
    cv2 = _opencv()
    shrinks = height <= images.shape[1] and width <= images.shape[2]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    out = np.empty((len(images), height, width, 3), np.uint8)
    for n, frame in enumerate(images):
        out[n] = cv2.resize(np.ascontiguousarray(frame), (width, height), interpolation=method)
    return out


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError(
            f"resizing images needs OpenCV ({error}); install it with 'pip install opencv-python-headless'."
        ) from error
    return cv2


class ImageSource(ABC):
    """The images of one camera, (N, H, W, 3) uint8 RGB, decoded on demand, by several threads at once.

    It is used like a memory map: a shape, rows by number, slices that read nothing, ``np.asarray`` for all of it. A
    format's subclass gives ``shape``, which images these are (:meth:`digest`), and how to decode them (:meth:`decode`,
    and :meth:`spans` where some are compressed together).

    Attributes:
        shape: (N, H, W, 3), as recorded.
        chunk, itemsize: images compressed together, and bytes of a stored number.
        decoder: what else the pixels depend on, such as a library's version; empty where decoding is exact.
    """

    shape: tuple[int, int, int, int]
    chunk: int = 1
    itemsize: int = 1
    decoder: str = ""
    dtype = np.dtype(np.uint8)
    ndim = 4

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of every image as stored, independent of where the files are; see :func:`remembered_digest`."""

    @abstractmethod
    def decode(self, start: int, stop: int) -> ImageArray:
        """(stop - start, H, W, 3) images ``start``:``stop``; errors name the file."""

    def spans(self) -> Iterator[tuple[int, int]]:
        """(start, stop) of images decoded together, in order: a whole number of compressed chunks."""
        rows = block_rows(self.shape, self.chunk, self.itemsize)
        return ((start, min(start + rows, len(self))) for start in range(0, len(self), rows))

    def read(self, rows: NDArray[Any] | Sequence[int], size: int | None = None) -> ImageArray:
        """Images by number, in any order: (n, H, W, 3), or (n, size, size, 3) as :func:`resize_images` makes them."""
        wanted = np.arange(len(self))[np.asarray(rows, np.int64)]
        out = np.empty((len(wanted), *(self.shape[1:3] if size is None else (size, size)), 3), np.uint8)
        span_of = self.span_of(wanted)
        for span in np.unique(span_of):
            places = np.flatnonzero(span_of == span)
            first = int(wanted[places].min())
            images = self.decode(first, int(wanted[places].max()) + 1)[wanted[places] - first]
            out[places] = images if size is None else resize_images(images, size)
        return out

    def span_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of :meth:`spans` each row is in."""
        return np.searchsorted(self._stops, rows, side="right")

    @functools.cached_property
    def _stops(self) -> NDArray[np.int64]:
        return np.fromiter((stop for _, stop in self.spans()), np.int64)

    def __len__(self) -> int:
        return self.shape[0]

    @overload
    def __getitem__(self, rows: int | np.integer[Any]) -> ImageArray: ...

    @overload
    def __getitem__(self, rows: slice | NDArray[Any] | Sequence[int]) -> ImageSource: ...

    def __getitem__(self, rows: Any) -> ImageArray | ImageSource:
        chosen = np.arange(len(self))[rows]
        return self.read(chosen[None])[0] if chosen.ndim == 0 else _Rows(self, chosen)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self.read(np.arange(len(self))), dtype)


Images = ImageArray | ImageSource  # images that are there, such as a memory map, or that will be decoded


class ArrayImages(ImageSource):
    """(N, H, W, 3) uint8 ``images`` in memory or in a memory map."""

    def __init__(self, images: ImageArray) -> None:
        count, height, width, _ = images.shape
        self._images, self.shape = images, (count, height, width, 3)

    def digest(self) -> str:
        """Of every pixel; for a store's entry, the digest written when it was built."""
        return frames_digest(self._images)

    def decode(self, start: int, stop: int) -> ImageArray:
        """The images themselves."""
        return np.asarray(self._images[start:stop])


class _Rows(ImageSource):
    def __init__(self, source: ImageSource, rows: NDArray[np.int64]) -> None:
        inner = source if isinstance(source, _Rows) else None
        self._source: ImageSource = source if inner is None else inner._source
        self._rows: NDArray[np.int64] = rows if inner is None else inner._rows[rows]
        self.shape, self.decoder = (len(rows), *source.shape[1:]), source.decoder

    def digest(self) -> str:
        return hashlib.sha256(self._source.digest().encode() + self._rows.tobytes()).hexdigest()

    def decode(self, start: int, stop: int) -> ImageArray:
        return self._source.read(self._rows[start:stop])

    def spans(self) -> Iterator[tuple[int, int]]:
        changes = np.flatnonzero(np.diff(self._source.span_of(self._rows))) + 1
        return itertools.pairwise([0, *changes.tolist(), len(self)])


class JoinedImages(ImageSource):
    """Images of several data sets, one after another: they stay where they are, memory maps or to be decoded.

    Args:
        sources: of each data set; of one shape in the end, but not before they are resized.
        pieces: (number of the source, first row, last row + 1), in order.
    """

    def __init__(self, sources: Sequence[Images], pieces: Sequence[tuple[int, int, int]]) -> None:
        self.sources = tuple(sources)
        self.pieces = tuple(piece for piece in pieces if piece[1] < piece[2])
        self._ends = np.cumsum([stop - start for _, start, stop in self.pieces], dtype=np.int64)
        count = int(self._ends[-1]) if self.pieces else 0
        self.shape = (count, *self.sources[self.pieces[0][0] if self.pieces else 0].shape[1:])
        kinds = [one.decoder for one in self.sources if isinstance(one, ImageSource) and one.decoder]
        self.decoder = ", ".join(dict.fromkeys(kinds))

    @property
    def is_decoded(self) -> bool:
        """Whether all of them are arrays or memory maps."""
        return all(isinstance(one, np.ndarray) for one in self.sources)

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded images."""
        return math.prod(self.shape)

    def digest(self) -> str:
        """Of all images of the sources, and of which are meant."""
        each = [frames_digest(one) for one in self.sources]
        return hashlib.sha256(json.dumps([each, self.pieces]).encode()).hexdigest()

    def decode(self, start: int, stop: int) -> ImageArray:
        """See :meth:`ImageSource.decode`; rows may span data sets."""
        return self.read(np.arange(start, stop))

    def spans(self) -> Iterator[tuple[int, int]]:
        """Those of the sources, cut where pieces end."""
        for (number, first, last), end in zip(self.pieces, self._ends.tolist(), strict=True):
            source, begin = self.sources[number], end - (last - first)
            inner = source.spans() if isinstance(source, ImageSource) else ArrayImages(source).spans()
            for start, stop in inner:
                if start < last and stop > first:
                    yield begin + max(start, first) - first, begin + min(stop, last) - first

    def read(self, rows: NDArray[Any] | Sequence[int], size: int | None = None) -> ImageArray:
        """See :meth:`ImageSource.read`; without ``size`` all must be of one shape."""
        wanted = np.arange(len(self))[np.asarray(rows, np.int64)]
        out = np.empty((len(wanted), *(self.shape[1:3] if size is None else (size, size)), 3), np.uint8)
        return self.take(wanted, out, size)

    def take(self, rows: IntRows, out: ImageArray, size: int | None = None) -> ImageArray:
        """Write the images of ``rows`` into ``out``, and return it."""
        piece_of = np.searchsorted(self._ends, rows, side="right")
        for piece in np.unique(piece_of).tolist():
            number, first, last = self.pieces[piece]
            places = np.flatnonzero(piece_of == piece)
            inside = rows[places] - (int(self._ends[piece]) - (last - first)) + first
            source = self.sources[number]
            if size is None and source.shape[1:] != out.shape[1:]:
                raise DataError(
                    f"images of several data sets have {source.shape[1]} x {source.shape[2]} and {out.shape[1]} x "
                    f"{out.shape[2]} pixels: prepare them at one size with classact.run.frames."
                )
            if isinstance(source, ImageSource):
                out[places] = source.read(inside, size)
            else:
                out[places] = source[inside] if size is None else resize_images(source[inside], size)
        return out

    @overload
    def __getitem__(self, rows: int | np.integer[Any]) -> ImageArray: ...

    @overload
    def __getitem__(self, rows: slice | NDArray[Any] | Sequence[int]) -> ImageSource: ...

    def __getitem__(self, rows: Any) -> ImageArray | ImageSource:
        """Slices of neighbouring rows are of this kind, too."""
        if not isinstance(rows, slice) or (rows.step or 1) != 1:
            return super().__getitem__(rows)
        start, stop, _ = rows.indices(len(self))
        pieces = []
        for (number, first, last), end in zip(self.pieces, self._ends.tolist(), strict=True):
            begin = end - (last - first)
            low, high = max(start, begin), min(stop, end)
            if low < high:
                pieces.append((number, first + low - begin, first + high - begin))
        return JoinedImages(self.sources, pieces)


def is_decoded(images: Images) -> bool:
    """Whether rows are only copied, not decoded, when they are asked for."""
    return images.is_decoded if isinstance(images, JoinedImages) else not isinstance(images, ImageSource)


def block_rows(shape: tuple[int, ...], chunk: int = 1, itemsize: int = 1) -> int:
    """How many images of (N, H, W, 3), stored as numbers of ``itemsize`` bytes, are decoded at a time: a multiple of
    ``chunk``.
    """
    rows = max(1, _BLOCK_BYTES // max(1, itemsize * math.prod(shape[1:])))
    return max(chunk, rows // chunk * chunk)


def remembered_digest(stamps: Any, compute: Callable[[], str]) -> str:
    """A digest of what files hold, computed once per value of ``stamps``.

    These are all files' stamps (:func:`file_stamp`) and which part of their content is meant, as JSON values.
    """
    name = hashlib.sha256(json.dumps(stamps, sort_keys=True).encode()).hexdigest()
    path = cache_folder() / "digests" / f"{name[:32]}.json"
    with contextlib.suppress(DataError, OSError, TypeError, KeyError):
        return str(read_json(path)["digest"])
    digest = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"digest": digest})
    return digest


@dataclass(frozen=True)
class Entry:
    """An entry of an :class:`ImageStore`, built or not.

    Attributes:
        key: JSON values that the images depend on; ``key["kind"]`` is the kind of source.
        shape: (N, H, W, 3).
        fill: writes all of its (N, H, W, 3) uint8 argument, a memory map of zeros; what it raises leaves no entry.
        resumes: ``fill`` goes on where another call of it was stopped, by what that left in the folder of the map's
            file (:func:`unfinished`). What a process that was killed had written is then used.
    """

    key: Mapping[str, Any]
    shape: tuple[int, int, int, int]
    fill: Callable[[ImageMap], None]
    resumes: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape)


def resized(images: ImageSource, size: int, progress: Progress | None = None) -> Entry:
    """The entry of recorded images at ``size`` x ``size`` pixels, decoded once, several blocks at a time."""
    shape = (len(images), size, size, 3)
    key = {"kind": "recorded", "images": images.digest(), "native": list(images.shape), "decoder": images.decoder}
    if images.shape != shape:
        key["resizer"] = f"opencv {_opencv().__version__}"

    def block(out: ImageMap, start: int, stop: int) -> int:
        out[start:stop] = resize_images(images.decode(start, stop), size)
        return stop

    def fill(out: ImageMap) -> None:
        workers = min(_DECODERS, cores())
        waiting: deque[Future[int]] = deque()
        pool = ThreadPoolExecutor(workers)
        try:
            for start, stop in [*images.spans(), (len(images), len(images))]:
                if start < stop:
                    waiting.append(pool.submit(block, out, start, stop))
                while waiting and (start == stop or len(waiting) > workers):  # few blocks are in memory at a time
                    done = waiting.popleft().result()
                    if progress is not None:
                        progress(done, len(images))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    return Entry(key, shape, fill)


class ImageStore:
    """A folder of decoded images, by default ``images`` in :func:`cache_folder`; see the module's docstring.

    It may be deleted at any time: missing entries are rebuilt when needed.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = cache_folder() / "images" if root is None else Path(root)

    def folder(self, entry: Entry) -> Path:
        """An entry's path, whether it exists or not."""
        identity = json.dumps([_LAYOUT, entry.key, entry.shape], sort_keys=True, allow_nan=False)
        return self.root / hashlib.sha256(identity.encode()).hexdigest()[:32]

    def get(self, entry: Entry) -> ImageMap | None:
        """The read-only (N, H, W, 3) images of an entry; None where it is missing or damaged (logged)."""
        folder = self.folder(entry)
        try:
            if not folder.exists():
                return None
            return _open(folder, entry.shape)
        except (DataError, OSError, ValueError) as problem:
            if isinstance(cause := problem.__cause__ or problem, PermissionError):
                raise StorageError(
                    f"{cannot_read(folder, cause)} Or set {CACHE_VARIABLE} to a folder of your own."
                ) from problem
            logger.warning("the stored images in %s are damaged and will not be used: %s", folder, problem)
            return None

    def get_or_create(self, entry: Entry) -> ImageMap:
        """The images of an entry, a read-only memory map, built first where missing or damaged.

        Raises:
            StorageError: not enough space, with both numbers, or no permission.
            DataError: a shape that is not that of images.
        """
        if len(entry.shape) != 4 or entry.shape[3] != 3 or min(entry.shape) < 1:
            raise DataError(f"expected images of shape (N, H, W, 3) with at least one pixel, got {tuple(entry.shape)}.")
        folder = self.folder(entry)
        # Another process may find the entry damaged, or empty the cache, between our rename and our opening it.
        for _ in range(_ATTEMPTS):
            if (images := self.get(entry)) is not None:
                return images
            if folder.exists():
                _discard(folder)
            self._build(folder, entry)
        raise StorageError(f"{folder} was built {_ATTEMPTS} times and could not be read back: the disk may be failing.")

    def note_use(self, entry: Entry, source: str, camera: str) -> None:
        """Write down that an entry was used now, for whoever cleans up; nothing where the store cannot be written."""
        file, now = self.folder(entry) / USED, time.time()
        with contextlib.suppress(DataError, StorageError, OSError, TypeError, KeyError, ValueError):
            known = read_json(file) if file.exists() else {"sources": []}
            asked = [str(Path(source).resolve()) if Path(source).exists() else source, camera]
            if asked not in known["sources"] or now - float(known["used"]) > _NOTED_SECONDS:
                sources = [one for one in known["sources"] if one != asked][1 - _NOTED :]
                write_json(file, {"used": now, "sources": [*sources, asked]})

    def free_space(self, needed: int) -> int:
        """Free bytes of the disk; a StorageError where they are fewer than ``needed``."""
        root = self.root
        while not root.exists() and root != root.parent:
            root = root.parent
        free = shutil.disk_usage(root).free
        if free < needed + _HEADROOM:
            raise StorageError(
                f"not enough disk space for decoded images in {self.root}: {needed + _HEADROOM:,} bytes needed, "
                f"{free:,} bytes free. Free some space, or set {CACHE_VARIABLE} to a folder on a larger disk."
            )
        return free

    def _build(self, folder: Path, entry: Entry) -> None:
        with atomic_path(folder, replace=False) as temporary:
            adopted = entry.resumes and _adopt(folder, temporary, entry)
            _remove_leftovers(self.root)
            path = temporary / IMAGES
            if not adopted:
                self.free_space(entry.nbytes)
                temporary.mkdir()
            hold = own(temporary)
            mode: Any = "r+" if adopted else "w+"
            images = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
                path, mode=mode, dtype=np.uint8, shape=entry.shape
            )
            if not adopted:
                _reserve(path)
            try:
                entry.fill(images)
            except BaseException:
                if entry.resumes:  # kept for the next try, under a name that is not cleaned up
                    images.flush()
                    del hold
                    temporary.rename(temporary.with_name(f"{temporary.name[:-4]}-stopped.tmp"))
                raise
            unfinished(images).unlink(missing_ok=True)
            (temporary / OWNER).unlink(missing_ok=True)
            del hold
            images.flush()
            digest = frames_digest(images)
            del images
            meta = {
                "layout": _LAYOUT,
                "kind": entry.key.get("kind", "images"),
                "fingerprint": folder.name,
                "key": dict(entry.key),
                "shape": list(entry.shape),
                "bytes": path.stat().st_size,
                "sample_sha256": _sample_digest(path),
                "images_sha256": digest,
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            }
            (temporary / META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


def unfinished(images: ImageMap) -> Path:
    """The file that says what of a store's entry under construction is there already; ``fill`` alone reads it."""
    return Path(str(images.filename)).with_name("done.txt")


def _adopt(folder: Path, temporary: Path, entry: Entry) -> bool:
    """Take over what a stopped process has left of an entry; whether there was anything of use."""
    for left in sorted(folder.parent.glob(f".{folder.name}.*.tmp")):
        try:
            hold = own(left)
            images = np.lib.format.open_memmap(left / IMAGES, mode="r")  # type: ignore[no-untyped-call]
            if images.shape == tuple(entry.shape) and images.dtype == np.uint8 and unfinished(images).exists():
                left.rename(temporary)
                del hold
                (temporary / OWNER).unlink(missing_ok=True)
                return True
        except (StorageError, OSError, ValueError):  # at work, gone, or of no use
            continue
    return False


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
    if (lock := share(folder / META)) is not None:
        weakref.finalize(images, os.close, lock)
    return images


def frames_digest(images: Images) -> str:
    """SHA-256 of (N, H, W, 3) ``images``, over the shape and every pixel: about 1 GB/s per core.

    Images not yet decoded have their own :meth:`ImageSource.digest`; that of a store's entry was written when it was
    built.
    """
    if isinstance(images, ImageSource):
        return images.digest()
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
    """(bytes, modification time, change time in ns) of a file.

    Copying tools set the modification time back to that of the original; nothing sets the change time.
    """
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _built_digest(images: ImageArray) -> str | None:
    """The digest that the store wrote for a whole entry; None for anything else."""
    path = Path(getattr(images, "filename", None) or "")
    if path.name != IMAGES or images.flags.writeable or not images.flags.c_contiguous:
        return None
    try:
        meta = read_json(path.with_name(META))
        return str(meta["images_sha256"]) if meta["shape"] == list(images.shape) else None
    except (DataError, OSError, KeyError, TypeError):
        return None  # another's file of this name, or an entry that an older version built


def _sample_digest(path: Path) -> str:
    # Reading all of a large entry takes seconds on every use; blocks spread over the file catch what happens
    # (truncation, a hole of zeros after a crash, another file in its place).
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in np.unique(np.linspace(0, max(0, size - _SAMPLE_BYTES), _SAMPLE_BLOCKS, dtype=np.int64)):
            file.seek(int(start))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _reserve(path: Path) -> None:
    # Writing to a memory map of a sparse file on a full disk kills the process with SIGBUS; allocating the blocks
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
    # A killed build leaves its temporary folder; those of running builds are younger than this.
    for folder in root.glob(".*.tmp"):
        try:
            if time.time() - folder.stat().st_mtime > _LEFTOVER_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue
