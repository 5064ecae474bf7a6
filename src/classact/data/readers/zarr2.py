"""Arrays of a Zarr version 2 store (a folder or a ``.zip``), read so that no damage passes for data.

The zarr library returns the fill value where a chunk file is missing, and Blosc decodes a truncated chunk to garbage
without complaint. So every chunk file is looked at before anything is decoded, and decoding goes chunk by chunk, so
that an error names the file.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import math
import stat
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.data.images import file_stamp
from classact.errors import DataError
from classact.utils.inputs import cannot_read, is_from_system, reading

_BLOSC_HEADER = 16


class Zarr2Store:
    """Read access to a store. Use it as a context manager.

    Args:
        path: the store's folder, or a zip file of it.

    Raises:
        DataError: the zip file is truncated or damaged; the store is of another Zarr version.
    """

    def __init__(self, path: Path) -> None:
        from zarr.storage import LocalStore, ZipStore

        self.path = path
        self._zip: zipfile.ZipFile | None = None
        # Folders inside a zip that lead to the store: people zip the folder as well as its content.
        self._prefix = ""
        if path.is_dir():
            self._backend: Any = LocalStore(path, read_only=True)
        else:
            try:
                self._zip = zipfile.ZipFile(path)
            except (zipfile.BadZipFile, OSError) as error:
                if is_from_system(error):
                    raise DataError(cannot_read(path, error)) from error
                raise DataError(
                    f"{path} ({path.stat().st_size:,} bytes) is not a complete zip file ({error}): it was truncated or "
                    f"damaged. Copy or download it again."
                ) from error
            self._sizes = {entry.filename: entry.file_size for entry in self._zip.infolist()}
            groups = sorted((n.removesuffix(".zgroup") for n in self._sizes if f"/{n}".endswith("/.zgroup")), key=len)
            self._prefix = groups[0] if groups else ""
            self._backend = ZipStore(path, mode="r")
        if self.size("zarr.json") is not None:
            self.close()
            raise DataError(f"{path} is a Zarr version 3 store, expected version 2. Write it with zarr_format=2.")

    def __enter__(self) -> Zarr2Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        # zarr's ZipStore (3.1) cannot close what it has not opened yet, which it does at the first use.
        with contextlib.suppress(AttributeError):
            self._backend.close()
        if self._zip is not None:
            self._zip.close()

    def size(self, name: str) -> int | None:
        """Bytes of a file of the store, None where it does not exist."""
        if self._zip is not None:
            return self._sizes.get(self._prefix + name)
        file = self.path / name
        with reading(file):
            try:
                file.lstat()
            except (FileNotFoundError, NotADirectoryError):
                return None
            status = file.stat()  # of a link that leads nowhere this raises: a file is meant to be here
            return status.st_size if stat.S_ISREG(status.st_mode) else None

    def stamp(self, name: str) -> tuple[int, ...]:
        """Of a member of a zip (bytes, CRC), of a file :func:`classact.data.images.file_stamp`."""
        if self._zip is not None:
            entry = self._zip.getinfo(self._prefix + name)
            return entry.file_size, entry.CRC
        return file_stamp(self.path / name)

    def head(self, name: str, count: int = -1) -> bytes:
        """The first ``count`` bytes of a file, by default all."""
        try:
            if self._zip is not None:
                with self._zip.open(self._prefix + name) as member:
                    return member.read(count)
            with (self.path / name).open("rb") as file:
                return file.read(count)
        except (OSError, RuntimeError, zipfile.BadZipFile) as error:  # RuntimeError: the archive is encrypted
            if is_from_system(error):
                raise DataError(cannot_read(self.path / name, error)) from error
            raise DataError(
                f"{self.path}: {name} cannot be read ({error}). Copy or download the data again."
            ) from error

    def arrays(self, group: str) -> list[str]:
        """Sorted names of the arrays directly in a group, by their metadata files; empty where there is no group."""
        if self._zip is not None:
            start = f"{self._prefix}{group}/"
            names = (n.removeprefix(start) for n in self._sizes if n.startswith(start) and n.endswith("/.zarray"))
            return sorted(n.removesuffix("/.zarray") for n in names if n.count("/") == 1 and n[0] != ".")
        folder = self.path / group
        with reading(folder):  # unlike glob, which passes over what may not be read
            entries = sorted(folder.iterdir()) if folder.is_dir() else []
            return [entry.name for entry in entries if entry.name[0] != "." and (entry / ".zarray").is_file()]

    def array(self, key: str) -> Zarr2Array:
        """An array's metadata, parsed and checked."""
        raw = self.head(f"{key}/.zarray")
        try:
            meta = json.loads(raw)
            shape, chunks = tuple(map(int, meta["shape"])), tuple(map(int, meta["chunks"]))
            dtype = np.dtype(meta["dtype"])
            if len(shape) != len(chunks) or min(chunks, default=1) < 1:
                raise ValueError(f"shape {shape} with chunks {chunks}")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.path}: {key}/.zarray is damaged ({error!r}); expected the JSON metadata of a Zarr version 2 "
                f"array. Copy or download the data again."
            ) from error
        return Zarr2Array(self, key, shape, chunks, dtype, meta)

    def _open(self, key: str) -> Any:
        import zarr

        return zarr.open_array(store=self._backend, path=self._prefix + key, mode="r", zarr_format=2)


@dataclass(frozen=True)
class Zarr2Array:
    """One array: its metadata, and checked reading.

    Attributes:
        store, key: where it is (``data/action``).
        shape, chunks, dtype: as declared in its ``.zarray``.
        meta: the parsed ``.zarray``.
    """

    store: Zarr2Store
    key: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    meta: dict[str, Any]

    @property
    def where(self) -> str:
        """Store and array, for messages."""
        return f"{self.store.path}: {self.key}"

    def _grid(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, ...]]:
        """Indices of the chunks that hold some of the rows ``start``:``stop``, by default of all."""
        numbers = [range(math.ceil(n / c)) for n, c in zip(self.shape, self.chunks, strict=True)]
        if numbers:
            numbers[0] = range(
                start // self.chunks[0], math.ceil((self.shape[0] if stop is None else stop) / self.chunks[0])
            )
        return itertools.product(*numbers)

    def _file(self, index: tuple[int, ...]) -> str:
        return f"{self.key}/{self.meta.get('dimension_separator', '.').join(map(str, index)) or '0'}"

    def check_files(self, rows: int | None = None) -> None:
        """Check that every chunk (of the first ``rows`` rows) has its file, and that none is shorter than it says.

        Raises:
            DataError: naming the first missing or truncated chunk file, and how many of how many are missing.
        """
        files = [self._file(index) for index in self._grid(0, rows)]
        sizes = [self.store.size(file) for file in files]
        missing = [file for file, size in zip(files, sizes, strict=True) if size is None]
        if missing:
            raise DataError(
                f"{self.where}: chunk file {missing[0]} is missing ({len(missing)} of {len(files)} chunk files are). "
                f"Zarr would read it as {self.meta.get('fill_value')} without a word. Copy or download the data again; "
                f"if its writer leaves out constant chunks, write it with write_empty_chunks=True."
            )
        for file, size in zip(files, sizes, strict=True):
            expected = self._declared_size(file)
            if expected is not None and size != expected:
                raise DataError(
                    f"{self.where}: chunk file {file} has {size:,} bytes, expected {expected:,}: it was truncated or "
                    f"overwritten. Copy or download the data again."
                )

    def _declared_size(self, file: str) -> int | None:
        compressor = self.meta.get("compressor")
        if compressor is None and not self.meta.get("filters"):
            return math.prod(self.chunks) * self.dtype.itemsize
        if not isinstance(compressor, dict) or compressor.get("id") != "blosc":
            return None
        header = self.store.head(file, _BLOSC_HEADER)
        # Blosc 1 header: four single bytes, then nbytes, blocksize and cbytes; the last is the size of the whole chunk.
        return int(struct.unpack("<4B3I", header)[6]) if len(header) == _BLOSC_HEADER else _BLOSC_HEADER

    def _files(self, rows: int) -> list[str]:
        return [f"{self.key}/.zarray", *(self._file(index) for index in self._grid(0, rows))]

    def stamps(self, rows: int) -> list[Any]:
        """Of the files that hold the first ``rows`` rows, and of the metadata; call after the check."""
        return [[name, *self.store.stamp(name)] for name in self._files(rows)]

    def digest(self, rows: int) -> str:
        """SHA-256 of these files' content."""
        digest = hashlib.sha256(str(rows).encode())
        for name in self._files(rows):
            digest.update(hashlib.sha256(self.store.head(name)).digest())
        return digest.hexdigest()

    @functools.cached_property
    def _opened(self) -> Any:
        try:
            return self.store._open(self.key)
        except Exception as error:
            raise DataError(
                f"{self.where} cannot be opened ({type(error).__name__}: {error}); its compressor is "
                f"{self.meta.get('compressor')}. If that codec is not installed, install it, or write the array again "
                f"with Blosc."
            ) from error

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows ``start``:``stop``, by default all, decoded chunk by chunk; call after the check.

        Raises:
            DataError: naming the chunk file that cannot be decoded, or the codec that is not installed.
        """
        stop = stop if stop is not None or not self.shape else self.shape[0]
        array = self._opened
        out = np.empty(self.shape if stop is None else (stop - start, *self.shape[1:]), self.dtype)
        for index in self._grid(start, stop):
            place = [slice(i * c, min((i + 1) * c, n)) for i, c, n in zip(index, self.chunks, self.shape, strict=True)]
            target = list(place)
            if stop is not None:
                place[0] = slice(max(start, place[0].start), min(stop, place[0].stop))
                target[0] = slice(place[0].start - start, place[0].stop - start)
            try:
                out[tuple(target)] = array[tuple(place)]
            # Each codec raises errors of its own for damaged bytes.
            except Exception as error:
                if is_from_system(error):
                    raise DataError(cannot_read(self.store.path / self._file(index), error)) from error
                raise DataError(
                    f"{self.where}: chunk file {self._file(index)} cannot be decoded ({type(error).__name__}: "
                    f"{error}): it is damaged. Copy or download the data again."
                ) from error
        return out
