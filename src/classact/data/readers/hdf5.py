"""What the readers of HDF5 files share: errors that name the file, checked arrays, layouts."""

from __future__ import annotations

import functools
import json
import logging
import mmap
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.data.images import file_stamp
from classact.data.layout import Layout
from classact.data.named_layouts import looks_like_actions
from classact.data.readers.declared import resolve_layout as resolved
from classact.data.types import StateArray
from classact.errors import ClassactError, ConfigError, DataError
from classact.utils.inputs import cannot_read, is_from_system

SUFFIXES = (".hdf5", ".h5")
UNKNOWN = "unknown"  # a package's version where the file does not declare it
logger = logging.getLogger(__name__)

_MAGIC = b"\x89HDF\r\n\x1a\n"
_LARGEST = 1e18
_SMALL, _DENSEST = 1 << 26, 1000  # bytes that any array may take; how often more than it takes on disk a larger one may


def resolve_layout(layout: Layout | Path | None, takes: Sequence[str]) -> Layout:
    """The layout in use, given, from a file or the default; it must not set fields other than ``takes``."""
    return resolved(layout, takes, ". Others need action as well, which then declares all.") or Layout()


def versions(found: str, layout: Layout) -> dict[str, str]:
    """The versions to record for the states, given robosuite's."""
    return {} if "robosuite" in layout.accept else {"robosuite": found}


# Files


def is_hdf5_name(path: Path) -> bool:
    """Whether a path is a file named like HDF5."""
    return path.suffix in SUFFIXES and path.is_file()


def listed(folder: Path, key: Callable[[Path], Any], *, warn: bool = False) -> list[Path]:
    """The files of a folder for which ``key`` is not None, in its order, without hidden ones (macOS's ``._NAME``).

    ``warn`` logs other files named like HDF5, so that no episode is missed silently. Two files of one key, such as
    episode_1.hdf5 and episode_01.hdf5, are a DataError.
    """
    found: dict[Any, Path] = {}
    others = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.is_dir():
            continue
        place = key(path)
        if place is None:
            if path.suffix.lower() in SUFFIXES:
                others.append(path.name)
        elif place in found:
            raise DataError(
                f"{folder}: {found[place].name} and {path.name} are one episode or task. Remove one of them."
            )
        else:
            found[place] = path
    if others and warn:
        logger.warning(
            "%s: %d HDF5 files are not named like the others and are left out: %s",
            *(folder, len(others), ", ".join(others[:8]) + (", ..." if len(others) > 8 else "")),
        )
    return [found[place] for place in sorted(found)]


@contextmanager
def open_file(path: Path) -> Iterator[Any]:
    """An HDF5 file for reading; any HDF5 error, also while it is open, is a DataError that names it."""
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as problem:
        if "unable to lock file" in str(problem):
            raise DataError(
                f"{path} cannot be read: another program (a recorder, a notebook) has it open for writing. Close it "
                f"there; where none has, the disk cannot lock files: set HDF5_USE_FILE_LOCKING=FALSE."
            ) from problem
        if "already open" in str(problem):
            raise DataError(
                f"{path} cannot be read: it is marked as open for writing, so its recorder is still at work or was "
                f"killed. Close it there, or clear the mark: h5clear -s {path.name}."
            ) from problem
        if is_from_system(problem):
            raise DataError(cannot_read(path, problem)) from problem
        with path.open("rb") as raw:
            magic = raw.read(len(_MAGIC))
        what = "is truncated or damaged" if magic == _MAGIC else "is no HDF5 file, or its start is damaged"
        raise DataError(f"{path} {what} ({problem}). Copy or download it again.") from None
    try:
        with file:
            _check_heaps(path, file_stamp(path))
            yield file
    except ClassactError:
        raise
    except (
        OSError,
        RuntimeError,
        KeyError,
        ValueError,
        TypeError,
    ) as problem:  # h5py's for damaged chunks, types, links
        if is_from_system(problem):
            raise DataError(cannot_read(path, problem)) from problem
        raise DataError(f"{path} is damaged: {problem}. Copy or download it again.") from None


_HEAP = b"GCOL\x01\x00\x00\x00"
_SCANNED = 1 << 28  # bytes; looking through larger files would take longer than what it protects from is likely


@functools.lru_cache(maxsize=4096)
def _check_heaps(path: Path, stamp: tuple[int, int, int]) -> None:
    """Refuse a file with a damaged heap of texts, over which the HDF5 library (1.14) never ends: free space of size 0.

    HDF5's file format, section III.E: a collection is 8 bytes of signature and version, its size, then objects: number
    (2 bytes), references (2), nothing (4), size (8), data padded to 8; number 0 is free space, whose size counts its
    own head.
    """
    if not 0 < stamp[0] <= _SCANNED:
        return
    with path.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[8] > 3 or content[13 if content[8] < 2 else 10] != 8:  # sizes are not of 8 bytes
            return
        at = content.find(_HEAP)
        while at >= 0:
            place, end = at + 16, min(at + int.from_bytes(content[at + 8 : at + 16], "little"), len(content))
            while place + 16 <= end:
                number = int.from_bytes(content[place : place + 2], "little")
                size = int.from_bytes(content[place + 8 : place + 16], "little")
                if number == 0 and size == 0:
                    raise DataError(f"{path} is damaged: a heap at byte {at} never ends. Copy or download it again.")
                place += size if number == 0 else 16 + (size + 7) // 8 * 8
            at = content.find(_HEAP, at + 8)


def where(node: Any) -> str:
    """``FILE: data/demo_3`` of a group, for messages."""
    return f"{node.file.filename}: {node.name.lstrip('/') or 'the file'}"


def group(parent: Any, name: str, meaning: str) -> Any:
    """A group in another; if missing, the error lists what is there instead."""
    import h5py

    found = parent.get(name)
    if not isinstance(found, h5py.Group):
        raise DataError(f"{where(parent)}: group {name!r} is missing; there are {members(parent)}. Expected {meaning}.")
    return found


def members(node: Any) -> str:
    """What a group holds, for messages."""
    names = [str(name) for name in sorted(node, key=str)]
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return (", ".join(names[:12]) or "none") + more


def numbered(parent: Any, prefix: str, meaning: str) -> list[str]:
    """Members of a group named ``<prefix><number>``, at least one, by number: demo_2 comes before demo_10."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)")
    found = sorted((int(match[1]), name) for name in map(str, parent) if (match := pattern.fullmatch(name)))
    if not found:
        raise DataError(f"{where(parent)}: holds 0 demonstrations; there are {members(parent)}. Expected {meaning}.")
    return [name for _, name in found]


def matrix(parent: Any, name: str, columns: int | None = None, rows: int | None = None) -> NDArray[np.float64]:
    """(L, D) float64 of a dataset in a group; L (the number of actions) and D where known.

    Raises:
        DataError: missing, of another shape, not numbers, not finite, or larger than anything a robot measures.
    """
    import h5py

    dataset = parent.get(name)
    wanted = f"numbers of shape ({rows or 'L'}, {columns or 'D'})"
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{where(parent)}: {name} is missing; there are {members(parent)}. Expected {wanted}.")
    if dataset.dtype.kind not in "fiu" or dataset.ndim != 2 or (columns is not None and dataset.shape[1] != columns):
        raise DataError(f"{where(parent)}: {name} is {dataset.dtype} of shape {dataset.shape}, expected {wanted}.")
    if rows is not None and len(dataset) != rows:
        raise DataError(
            f"{where(parent)}: {name} has {len(dataset)} rows, but there are {rows} actions. Expected one row per "
            f"step; the demonstration is incomplete, leave it out or record it again."
        )
    if len(dataset) == 0:
        raise DataError(f"{where(parent)}: {name} has 0 steps, expected at least 1. Remove the demonstration.")
    check_size(dataset)
    values = dataset[()].astype(np.float64)
    usable = np.abs(values) < _LARGEST  # false for NaN as well
    if not usable.all():
        row, column = (int(i) for i in np.argwhere(~usable)[0])
        raise DataError(
            f"{where(parent)}: {name}[{row}, {column}] is {values[row, column]}; {int((~usable).any(axis=1).sum())} of "
            f"{len(values)} steps hold NaN, infinite or absurd values. Drop or repair the demonstration."
        )
    return values


def check_size(dataset: Any) -> None:
    """Refuse an array that would take far more memory than its file holds: a damaged shape, or a bomb."""
    stored = int(dataset.id.get_storage_size())
    if dataset.nbytes > max(_SMALL, _DENSEST * stored):
        raise DataError(
            f"{where(dataset)} has shape {dataset.shape} and takes {dataset.nbytes:,} bytes, but {stored:,} are "
            f"stored: its shape is damaged, or most of it was never written. Copy or download the file again."
        )


def text(attributes: Any, name: str) -> str | None:
    """A text attribute, None where there is none."""
    value = attributes.get(name)
    if isinstance(value, str):  # h5py passes on bytes that are not UTF-8
        value = value.encode("utf-8", "surrogateescape")
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return None if value is None else str(value)


def json_attribute(node: Any, name: str) -> dict[str, Any] | None:
    """A JSON object in an attribute, None where there is none."""
    content = text(node.attrs, name)
    if content is None:
        return None
    try:
        value = json.loads(content)
    except ValueError as problem:
        raise DataError(f"{where(node)}: attribute {name!r} is not valid JSON ({problem}).") from None
    if not isinstance(value, dict):
        raise DataError(f"{where(node)}: attribute {name!r} is {value!r}, expected a JSON object.")
    return value


# Demonstrations


@dataclass(frozen=True)
class Recording:
    """One demonstration of L steps: arrays (L, D), and in ``where`` file and demonstration, for messages.

    ``actions`` are None where it carries none.
    """

    where: str
    actions: StateArray | None
    proprioception: StateArray
    states: StateArray | None

    def __len__(self) -> int:
        return len(self.proprioception)


def recorded_actions(parent: Any, name: str, columns: int | None = None) -> NDArray[np.float64] | None:
    """:func:`matrix` of actions; None where a demonstration with observations holds nothing that is named like them."""
    if name not in parent and any(key in parent for key in ("obs", "observations")):
        found: list[str] = []
        parent.visititems(lambda key, node: found.append(key) if hasattr(node, "shape") else None)
        if not any(looks_like_actions(key) for key in found):
            return None
    return matrix(parent, name, columns)


def joined_states(recordings: Sequence[Recording]) -> StateArray | None:
    """(N, D_s) float64 of all demonstrations; None unless all have states, of one size."""
    sizes = [None if part.states is None else part.states.shape[1] for part in recordings]
    for part, size in zip(recordings, sizes, strict=True):
        if size != sizes[0]:
            raise DataError(
                f"{part.where}: states have {size or 0} dimensions, those of {recordings[0].where} have "
                f"{sizes[0] or 0}. Expected one simulated task in all demonstrations; read them apart."
            )
    return None if sizes[0] is None else np.concatenate([part.states for part in recordings if part.states is not None])


def check_episodes(episodes: int | None, found: int, path: Path) -> int:
    """How many demonstrations to read."""
    if episodes is not None and not 1 <= episodes <= found:
        raise ConfigError(f"asked for the first {episodes} episodes, but {path} has {found}. Ask for 1 to {found}.")
    return found if episodes is None else episodes
