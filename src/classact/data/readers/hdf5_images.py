"""Images in HDF5 files of demonstrations: one dataset per demonstration and camera, mostly compressed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from classact.data.images import block_rows
from classact.data.readers import hdf5 as h5
from classact.data.readers.parts import RecordedImages
from classact.data.schema import Schema
from classact.data.types import Demonstrations, ImageArray
from classact.errors import DataError


@dataclass(frozen=True)
class Frames:
    """The images of one demonstration and camera, in the file.

    Attributes:
        rows: how many of its images count, from the first.
        shape: (H, W, 3).
        chunk: how many are compressed together.
        jpeg, flip, bgr: whether they are JPEG files, upside down, with red and blue swapped.
    """

    path: Path
    dataset: str
    rows: int
    shape: tuple[int, int, int]
    chunk: int
    jpeg: bool = False
    flip: bool = False
    bgr: bool = False

    @property
    def where(self) -> str:
        """The data set's name."""
        return self.dataset.lstrip("/")

    @property
    def decoder(self) -> str:
        """OpenCV's version, of JPEG files."""
        if not self.jpeg:
            return ""
        import cv2

        return f"opencv {cv2.__version__}"

    def identity(self) -> list[Any]:
        """All fields but the path."""
        return [str(value) for name, value in vars(self).items() if name != "path"]

    def decode(self, start: int, stop: int) -> ImageArray:
        """(stop - start, H, W, 3) uint8 RGB images."""
        with h5.open_file(self.path) as file:
            stored = file[self.dataset][start:stop]
        where = f"{self.path}: {self.dataset.lstrip('/')}"
        images = np.stack([_picture(row, where, self.shape) for row in stored]) if self.jpeg else stored
        images = images[:, ::-1] if self.flip else images
        return images[..., ::-1] if self.bgr else images

    def digest(self) -> str:
        """SHA-256 of what is stored and of how it is decoded."""
        how = (self.rows, self.shape, self.jpeg, self.flip, self.bgr)
        digest = hashlib.sha256(repr(how).encode())
        with h5.open_file(self.path) as file:
            dataset = file[self.dataset]
            if dataset.chunks is None:
                for start in range(0, self.rows, block_rows(dataset.shape)):
                    digest.update(np.ascontiguousarray(dataset[start : start + block_rows(dataset.shape)]).data)
                return digest.hexdigest()
            digest.update(repr((dataset.chunks, dataset.compression, dataset.shuffle, dataset.scaleoffset)).encode())
            for place in dataset.iter_chunks():  # compressed as they are: faster than decoding
                offset = tuple(part.start for part in place)
                if offset[0] < self.rows and dataset.id.get_chunk_info_by_coord(offset).byte_offset is not None:
                    digest.update(repr(offset).encode() + dataset.id.read_direct_chunk(offset)[1])
        return digest.hexdigest()


def is_images(dataset: Any) -> bool:
    """Whether a dataset holds (L, H, W, 3) uint8 images."""
    return getattr(dataset, "ndim", 0) == 4 and dataset.shape[3] == 3 and dataset.dtype == np.uint8


def frames(
    parent: Any, key: str, rows: int, used: int | None = None, *, flip: bool = False, bgr: bool = False
) -> Frames:
    """The (L, H, W, 3) images ``key`` of a group, for L = ``rows`` actions, of which ``used`` count.

    Missing images, another type, or not one per action are DataErrors.
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
    _check_count(parent, key, dataset, rows)
    return Frames(*_place(dataset), used or rows, dataset.shape[1:], _chunk(dataset), flip=flip, bgr=bgr)


def jpeg_frames(parent: Any, key: str, rows: int, *, bgr: bool = False) -> Frames:
    """The (L, B) JPEG files ``key`` of a group, padded with zeros; the first must be decodable."""
    dataset = parent[key]
    _check_count(parent, key, dataset, rows)
    shape = _picture(dataset[0], f"{h5.where(parent)}/{key}", None).shape
    return Frames(*_place(dataset), rows, shape, _chunk(dataset), jpeg=True, bgr=bgr)


def _check_count(parent: Any, key: str, dataset: Any, rows: int) -> None:
    if len(dataset) != rows:
        raise DataError(
            f"{h5.where(parent)}: {key} has {len(dataset)} images, but there are {rows} actions. Expected one per "
            f"step; the demonstration is incomplete, leave it out or record it again."
        )


def _place(dataset: Any) -> tuple[Path, str]:
    return Path(dataset.file.filename), dataset.name


def _chunk(dataset: Any) -> int:
    return 1 if dataset.chunks is None else int(dataset.chunks[0])


def _picture(data: ImageArray, where: str, shape: tuple[int, ...] | None) -> Any:
    """(H, W, 3) of a zero-padded JPEG file, channels in the order in which OpenCV was given them."""
    import cv2

    image = cv2.imdecode(np.ascontiguousarray(data), cv2.IMREAD_COLOR) if data.any() else None
    if image is None:
        raise DataError(f"{where}: a picture cannot be decoded, expected JPEG bytes. Record or copy the episode again.")
    if shape is not None and image.shape != shape:
        raise DataError(f"{where}: a picture has shape {image.shape}, the first has {shape}. Expected one size.")
    return image


def demonstrations(
    name: str,
    source: Path,
    recordings: Sequence[h5.Recording],
    images: Mapping[str, Sequence[Frames]],
    schema: Schema,
    **known: Any,
) -> Demonstrations:
    """Concatenated recordings as demonstrations, with ``images`` of each camera per recording.

    ``known`` are further fields of :class:`Demonstrations`: states and their meaning, language.
    """
    return Demonstrations(
        name=name.replace("_", "-"),
        episode_ends=np.cumsum([len(part.actions) for part in recordings], dtype=np.int64),
        actions=np.concatenate([part.actions for part in recordings]).astype(np.float32),
        proprioception=np.concatenate([part.proprioception for part in recordings]).astype(np.float32),
        images={camera: RecordedImages(camera, parts) for camera, parts in images.items()},
        source=str(source),
        schema=schema,
        **known,
    )
