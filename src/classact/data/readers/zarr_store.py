"""Arrays of a Zarr store, version 2 or 3 (a folder or a ``.zip``), read so that no damage passes for data.

The zarr library (3.1) returns the fill value for missing chunk files, and Blosc decodes a truncated chunk to garbage.
So every chunk file (of version 3 every shard) is checked before decoding, which goes chunk by chunk so that errors name
the file. Writers of version 3 leave out chunks that hold the fill value alone, so a few missing ones are said, not
refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import math
import os
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from classact.data.images import file_stamp, remembered_digest
from classact.errors import DataError
from classact.utils.inputs import cannot_read, is_from_system

_BLOSC_HEADER = 16
_METADATA = {2: ".zarray", 3: "zarr.json"}
_FEW = 0.1
"""Share of a version 3 array's chunk files that may be missing."""

logger = logging.getLogger(__name__)


class ZarrStore:
    """Read access to a store's folder or zip file, open as long as one of its arrays is in use."""

    def __init__(self, path: Path) -> None:
        from zarr.storage import LocalStore, ZipStore

        self.path = path
        self._zip: zipfile.ZipFile | None = None
        # Folders inside a zip that lead to the store, which may be zipped with or without its folder.
        self._prefix = ""
        if path.is_dir():
            self._backend: Any = LocalStore(path, read_only=True)
            self._sizes = dict(_sizes(path))
        else:
            try:
                self._zip = zipfile.ZipFile(path)
            except Exception as error:  # damaged archives raise errors of many kinds
                if is_from_system(error):
                    raise DataError(cannot_read(path, error)) from error
                raise DataError(
                    f"{path} ({path.stat().st_size:,} bytes) is not a complete zip file ({error}): it was truncated or "
                    f"damaged. Copy or download it again."
                ) from error
            self._sizes = {entry.filename: entry.file_size for entry in self._zip.infolist()}
            roots = (n.removesuffix(mark) for n in self._sizes for mark in (".zgroup", "zarr.json") if _named(n, mark))
            self._prefix = min(roots, key=len, default="")
            self._backend = ZipStore(path, mode="r")
        self.version: Literal[2, 3] = 2 if self.size("zarr.json") is None else 3

    def size(self, name: str) -> int | None:
        """Bytes of a file of the store, None where it does not exist."""
        return self._sizes.get(self._prefix + name)

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
        except Exception as error:  # encrypted, cut or bent archives raise errors of many kinds
            if is_from_system(error):
                raise DataError(cannot_read(self.path / name, error)) from error
            raise DataError(
                f"{self.path}: {name} cannot be read ({error}). Copy or download the data again."
            ) from error

    def arrays(self, group: str) -> list[str]:
        """Sorted names of the arrays directly in a group, by their metadata files."""
        start, mark = f"{self._prefix}{group}/" if group else self._prefix, f"/{_METADATA[self.version]}"
        names = (n.removeprefix(start) for n in self._sizes if n.startswith(start) and n.endswith(mark))
        found = sorted(n.removesuffix(mark) for n in names if n.count("/") == 1 and n[0] != ".")
        prefix = f"{group}/" if group else ""
        return found if self.version == 2 else [name for name in found if self._is_array(prefix + name)]

    def has_array(self, key: str) -> bool:
        """Whether an array has metadata."""
        return self.size(f"{key}/{_METADATA[self.version]}") is not None

    def has_group(self, name: str) -> bool:
        """Whether there is anything in a group."""
        return any(file.startswith(f"{self._prefix}{name}/") for file in self._sizes)

    def all_arrays(self) -> list[str]:
        """Sorted paths of all arrays."""
        mark = f"/{_METADATA[self.version]}"
        names = (n.removeprefix(self._prefix) for n in self._sizes if n.startswith(self._prefix) and n.endswith(mark))
        found = sorted(n.removesuffix(mark) for n in names if not any(part[:1] == "." for part in n.split("/")[:-1]))
        return found if self.version == 2 else [name for name in found if self._is_array(name)]

    def described(self, key: str) -> tuple[tuple[int, ...], str]:
        """Shape and type of an array by its metadata alone, which need not be usable: () and "unknown" then."""
        try:
            value = json.loads(self.head(f"{key}/{_METADATA[self.version]}"))
            shape = tuple(int(n) for n in value["shape"])
            kind = value["dtype"] if self.version == 2 else value["data_type"]
            return shape, str(np.dtype(kind)) if isinstance(kind, str) else "unknown"
        except (ValueError, KeyError, TypeError):
            return (), "unknown"

    def _is_array(self, key: str) -> bool:
        try:
            metadata = json.loads(self.head(f"{key}/zarr.json"))
        except ValueError:
            return True  # opening it says what is wrong
        return not isinstance(metadata, dict) or metadata.get("node_type") != "group"

    def array(self, key: str) -> ZarrArray:
        """An array with checked metadata."""
        import zarr

        name = f"{key}/{_METADATA[self.version]}"
        _register_codecs(self.head(name))  # which raises the system's own error
        try:
            array = zarr.open_array(store=self._backend, path=self._prefix + key, mode="r", zarr_format=self.version)
            if len(array.shape) != len(array.chunks) or min(array.chunks, default=1) < 1:
                raise ValueError(f"shape {array.shape} with chunks {array.chunks}")
        except Exception as error:  # of as many kinds as there are fields
            codec = re.search(r"imagecodecs_\w+", str(error))
            if codec is not None:
                raise DataError(
                    f"{self.path}: {key} is compressed with {codec[0]} (as UMI's images are, in JPEG XL), which needs "
                    f"the package imagecodecs: pip install imagecodecs. Or write the array again with Blosc, or leave "
                    f"it out in a layout."
                ) from error
            raise DataError(
                f"{self.path}: {key} cannot be opened ({type(error).__name__}: {error}). Either {name} is "
                f"damaged: copy or download the data again. Or its codec is not installed: install it, or write the "
                f"array again with Blosc."
            ) from error
        return ZarrArray(self, key, array)


def _register_codecs(metadata: bytes) -> None:
    """Let the package imagecodecs decode what it encoded, where it is there."""
    if b"imagecodecs_" not in metadata:
        return
    with contextlib.suppress(ImportError):
        from imagecodecs.numcodecs import register_codecs

        register_codecs(verbose=False)


def _named(path: str, name: str) -> bool:
    return f"/{path}".endswith(f"/{name}")


def _sizes(folder: Path) -> Iterator[tuple[str, int]]:
    """(path within the folder, bytes) of all its files; broken links are errors: a file is meant there."""

    def refuse(problem: OSError) -> None:
        raise DataError(cannot_read(problem.filename, problem)) from problem

    for base, _, names in os.walk(folder, onerror=refuse, followlinks=True):
        for path in (Path(base, name) for name in names):
            try:
                yield path.relative_to(folder).as_posix(), path.stat().st_size
            except OSError as problem:
                refuse(problem)


class ZarrArray:
    """One array: its metadata, and checked reading; ``where`` is store and array, for messages."""

    def __init__(self, store: ZarrStore, key: str, array: Any) -> None:
        self.store, self.key, self._array = store, key, array
        self.where = f"{store.path}: {key}"
        self.shape: tuple[int, ...] = array.shape
        self.chunks: tuple[int, ...] = array.shards or array.chunks  # what a file holds
        self.dtype: np.dtype[Any] = array.dtype

    def _grid(self, start: int, stop: int | None) -> Iterator[tuple[str, tuple[slice, ...]]]:
        """(file, slices) of each chunk that holds some of the rows ``start``:``stop``, and which of them it holds."""
        ends = [*self.shape]
        if stop is not None:
            ends[0] = min(stop, ends[0])
        starts = [start, *(0 for _ in ends[1:])] if ends else []
        numbers = [range(s // c, math.ceil(e / c)) for s, e, c in zip(starts, ends, self.chunks, strict=True)]
        for index in itertools.product(*numbers):
            place = (
                slice(max(s, i * c), min(e, (i + 1) * c))
                for i, s, e, c in zip(index, starts, ends, self.chunks, strict=True)
            )
            yield f"{self.key}/{self._array.metadata.encode_chunk_key(index)}", tuple(place)

    def _files(self, rows: int | None) -> list[str]:
        return [file for file, _ in self._grid(0, rows)]

    def check_files(self, rows: int | None = None) -> None:
        """Check that every chunk (of the first ``rows`` rows) has a file of the size it declares."""
        files = self._files(rows)
        sizes = {file: self.store.size(file) for file in files}
        missing = [file for file, size in sizes.items() if size is None]
        if missing and self.store.version == 3 and len(missing) <= _FEW * len(files):
            logger.warning(
                "%s: %d of %d chunk files are not there, so all their values are %s. Their writer leaves such chunks "
                "out; if it cannot be so, the copy is incomplete.",
                *(self.where, len(missing), len(files), self._array.fill_value),
            )
        elif missing:
            raise DataError(
                f"{self.where}: chunk file {missing[0]} is missing ({len(missing)} of {len(files)} chunk files are). "
                f"Zarr would read it as {self._array.fill_value} without a word. Copy or download the data again; "
                f"if its writer leaves out constant chunks, write it with write_empty_chunks=True."
            )
        for file, size in sizes.items():
            if size is not None and (expected := self._declared_size(file)) not in (None, size):
                raise DataError(
                    f"{self.where}: chunk file {file} has {size:,} bytes, expected {expected:,}: it was truncated or "
                    f"overwritten. Copy or download the data again."
                )

    def _declared_size(self, file: str) -> int | None:
        meta = self._array.metadata
        if self.store.version == 2:
            plain, name = meta.compressor is None and not meta.filters, getattr(meta.compressor, "codec_id", "")
        else:
            codecs = [codec.to_dict()["name"] for codec in meta.codecs]
            plain, name = codecs == ["bytes"], codecs[-1]
        if plain:
            return math.prod(self.chunks) * self.dtype.itemsize
        if name != "blosc":
            return None
        header = self.store.head(file, _BLOSC_HEADER)
        # Blosc 1 header: four single bytes, then nbytes, blocksize and cbytes, the size of the whole chunk.
        return int(struct.unpack("<4B3I", header)[6]) if len(header) == _BLOSC_HEADER else _BLOSC_HEADER

    def digest(self, rows: int) -> str:
        """SHA-256 of the metadata and of the checked files of the first ``rows`` rows; remembered while their stamps
        stay.
        """
        files = [name for name in self._files(rows) if self.store.size(name) is not None]
        names = [f"{self.key}/{_METADATA[self.store.version]}", *files]

        def compute() -> str:
            digest = hashlib.sha256(str(rows).encode())
            for name in names:
                digest.update(hashlib.sha256(self.store.head(name)).digest())
            return digest.hexdigest()

        stamps = [[name, *self.store.stamp(name)] for name in names]
        return remembered_digest([str(self.store.path.resolve()), self.key, *stamps], compute)

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows ``start``:``stop``, by default all, decoded chunk by chunk; call after the check, except for all."""
        if stop is None:
            self.check_files()
        rows = self.shape[:1] if stop is None else (stop - start,)
        out = np.empty((*rows, *self.shape[1:]), self.dtype)
        for file, place in self._grid(start, stop):
            target = (slice(place[0].start - start, place[0].stop - start), *place[1:]) if place else ()
            try:
                out[target] = self._array[place]
            except Exception as error:  # each codec raises errors of its own for damaged bytes
                if is_from_system(error):
                    raise DataError(cannot_read(self.store.path / file, error)) from error
                raise DataError(
                    f"{self.where}: chunk file {file} cannot be decoded ({type(error).__name__}: {error}): it is "
                    f"damaged. Copy or download the data again."
                ) from error
        return out
