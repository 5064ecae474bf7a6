"""Images in HDF5 files of demonstrations, decoded once.

Such files hold one dataset of images per demonstration and camera, mostly compressed;
:class:`~classact.data.types.Demonstrations` hold one array per camera. So images go into an
:class:`~classact.data.images.ImageStore`, demonstration by demonstration, and are memory-mapped from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from classact.data.images import ImageMap, ImageStore, file_stamp
from classact.data.readers import Progress
from classact.data.readers import hdf5 as h5
from classact.data.types import ImageArray
from classact.errors import DataError

_BLOCK = 64
"""Frames that are in RAM at a time while images are decoded, or one chunk of them where that is more."""


@dataclass(frozen=True)
class Frames:
    """The images of one demonstration and camera, still in the file.

    Attributes:
        path: the file.
        dataset: path of the dataset in it.
        rows: how many of its images count, from the first on.
        shape: (H, W, 3).
        decode: what turns stored rows into (n, H, W, 3) uint8 RGB images.
    """

    path: Path
    dataset: str
    rows: int
    shape: tuple[int, int, int]
    decode: Callable[[Any], ImageArray]


def as_stored(images: Any) -> ImageArray:
    """Images that are stored as they are to be."""
    return np.asarray(images, np.uint8)


def is_images(dataset: Any) -> bool:
    """Whether a dataset holds (L, H, W, 3) uint8 images."""
    return getattr(dataset, "ndim", 0) == 4 and dataset.shape[3] == 3 and dataset.dtype == np.uint8


def frames(parent: Any, key: str, rows: int, decode: Callable[[Any], ImageArray], used: int | None = None) -> Frames:
    """The (L, H, W, 3) images ``key`` of a group.

    Args:
        parent: group.
        key: path in it.
        rows: L, the number of actions.
        decode: see :class:`Frames`.
        used: how many count; None for all.

    Raises:
        DataError: missing, no images, or not one per action.
    """
    import h5py

    dataset = parent.get(key)
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{h5.where(parent)}: {key} is missing; there are {h5.members(parent)}. Expected images.")
    if not is_images(dataset) or 0 in dataset.shape[1:]:
        turn = " Channels are first: transpose." if dataset.ndim == 4 and dataset.shape[1] == 3 else ""
        raise DataError(
            f"{h5.where(parent)}: {key} is {dataset.dtype} of shape {dataset.shape}, expected uint8 RGB images of "
            f"shape ({rows}, H, W, 3).{turn}"
        )
    if len(dataset) != rows:
        raise DataError(
            f"{h5.where(parent)}: {key} has {len(dataset)} images, but there are {rows} actions. Expected one per "
            f"step; the demonstration is incomplete, leave it out or record it again."
        )
    return Frames(Path(dataset.file.filename), dataset.name, used or rows, dataset.shape[1:], decode)


def store_frames(
    kind: str,
    camera: str,
    parts: Sequence[Frames],
    settings: Mapping[str, Any],
    store: ImageStore,
    progress: Progress | None,
) -> ImageArray:
    """(N, H, W, 3) memory map of a camera's images in all demonstrations, decoded first where they were not before.

    Args:
        kind: name of the format.
        camera: name, for messages.
        parts: the demonstrations', in order.
        settings: what else decides the pictures, as JSON values.
        store: where they go.
        progress: called with (done, total) images.

    Raises:
        DataError: images of different sizes, or that cannot be decoded.
        StorageError: no space.
    """
    shape = parts[0].shape
    for part in parts:
        if part.shape != shape:
            raise DataError(
                f"{part.path}: {part.dataset.lstrip('/')} holds images of {part.shape[0]} x {part.shape[1]} pixels, "
                f"{parts[0].dataset.lstrip('/')} of {shape[0]} x {shape[1]}. Expected one size for camera {camera!r}; "
                f"read the demonstrations apart, or re-render them."
            )
    total = sum(part.rows for part in parts)
    files = {str(path.resolve()): list(file_stamp(path)) for path in {part.path for part in parts}}
    key = {
        "kind": kind,
        "files": files,
        "parts": [[str(part.path.resolve()), part.dataset, part.rows] for part in parts],
        "settings": dict(settings),
    }

    def fill(out: ImageMap) -> None:
        done = 0
        for path in dict.fromkeys(part.path for part in parts):
            with h5.open_file(path) as file:
                for part in parts:
                    if part.path != path:
                        continue
                    dataset = file[part.dataset]
                    block = _block(dataset)
                    for start in range(0, part.rows, block):
                        end = min(start + block, part.rows)
                        out[done : done + end - start] = part.decode(dataset[start:end])
                        done += end - start
                        if progress is not None:
                            progress(done, total)

    return store.get_or_create(key, (total, *shape), fill)


def _block(dataset: Any) -> int:
    """Rows to read at a time: whole chunks, for each would be decompressed again by every read that it is part of."""
    rows = 1 if dataset.chunks is None else int(dataset.chunks[0])
    return max(rows, _BLOCK // rows * rows)
