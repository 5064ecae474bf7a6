"""Images in HDF5 files of demonstrations: one dataset per demonstration and camera, mostly compressed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from classact.data.images import block_rows
from classact.data.named_layouts import WITHOUT_ACTIONS
from classact.data.readers import hdf5 as h5
from classact.data.readers.declared import to_uint8
from classact.data.readers.parts import RecordedImages
from classact.data.schema import Schema
from classact.data.types import Demonstrations, ImageArray
from classact.errors import DataError

_PIXELS = 1 << 25


@dataclass(frozen=True)
class Frames:
    """The images of one demonstration and camera, in the file.

    Attributes:
        rows: how many of its images count, from the first.
        shape: (H, W, 3).
        chunk: how many are compressed together.
        jpeg, flip, bgr: whether they are JPEG (or PNG) files, upside down, with red and blue swapped.
        first: whether channels are first.
        scale: what numbers are multiplied with.
    """

    path: Path
    dataset: str
    rows: int
    shape: tuple[int, int, int]
    chunk: int
    jpeg: bool = False
    flip: bool = False
    bgr: bool = False
    first: bool = False
    scale: float = 1.0

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
        if self.jpeg:
            images = np.stack([_picture(row, where, self.shape) for row in stored])
        else:
            images = to_uint8(stored, where, start, self.scale)
        images = images.transpose(0, 2, 3, 1) if self.first else images
        images = images[:, ::-1] if self.flip else images
        return images[..., ::-1] if self.bgr else images

    def digest(self) -> str:
        """SHA-256 of what is stored and of how it is decoded."""
        how = (self.rows, self.shape, self.jpeg, self.flip, self.bgr)
        how = how if not self.first and self.scale == 1 else (*how, self.first, self.scale)  # type: ignore[assignment]
        digest = hashlib.sha256(repr(how).encode())
        with h5.open_file(self.path) as file:
            dataset = file[self.dataset]
            if dataset.chunks is None:
                for start in range(0, self.rows, block_rows(dataset.shape)):
                    stored = dataset[start : start + block_rows(dataset.shape)]
                    digest.update(np.ascontiguousarray(stored).data if stored.dtype.kind != "O" else _joined(stored))
                return digest.hexdigest()
            if dataset.dtype.kind == "O":  # of lengths of their own, which lie elsewhere in the file
                digest.update(_joined(dataset[: self.rows]))
                return digest.hexdigest()
            digest.update(repr((dataset.chunks, dataset.compression, dataset.shuffle, dataset.scaleoffset)).encode())
            for place in dataset.iter_chunks():  # compressed as they are: faster than decoding
                offset = tuple(part.start for part in place)
                if offset[0] < self.rows and dataset.id.get_chunk_info_by_coord(offset).byte_offset is not None:
                    digest.update(repr(offset).encode() + dataset.id.read_direct_chunk(offset)[1])
        return digest.hexdigest()


def _joined(pictures: Any) -> bytes:
    """All pictures of lengths of their own, with the lengths."""
    files = [bytes(np.frombuffer(one, np.uint8) if isinstance(one, bytes) else np.asarray(one)) for one in pictures]
    return b"".join(len(one).to_bytes(8, "little") + one for one in files)


def is_images(dataset: Any) -> bool:
    """Whether a dataset holds (L, H, W, 3) or (L, 3, H, W) images."""
    shape: tuple[int, ...] = getattr(dataset, "shape", None) or ()
    return len(shape) == 4 and 3 in (shape[1], shape[3]) and dataset.dtype.kind in "fiu"


def frames(
    parent: Any,
    key: str,
    rows: int,
    used: int | None = None,
    *,
    flip: bool = False,
    bgr: bool = False,
    scale: float = 1.0,
) -> Frames:
    """The (L, H, W, 3) images ``key`` of a group, or (L, 3, H, W), for L = ``rows`` actions, of which ``used`` count.

    Numbers other than uint8 are whole ones from 0 to 255, once multiplied with ``scale``. Missing images, another type,
    or not one per action are DataErrors.
    """
    import h5py

    dataset = parent.get(key)
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{h5.where(parent)}: {key} is missing; there are {h5.members(parent)}. Expected images.")
    shape = dataset.shape
    good = dataset.ndim == 4 and 3 in (shape[1], shape[3]) and dataset.dtype.kind in "fiu" and 0 not in shape[1:]
    if not good:
        raise DataError(
            f"{h5.where(parent)}: {key} is {dataset.dtype} of shape {shape}, expected uint8 RGB images of shape "
            f"({rows}, H, W, 3)."
        )
    _check_count(parent, key, dataset, rows)
    first = shape[3] != 3
    size = (*shape[2:], 3) if first else shape[1:]
    chunk = 1 if dataset.chunks is not None and dataset.chunks[1:] != shape[1:] else _chunk(dataset)
    found = Frames(*_place(dataset), used or rows, size, chunk, flip=flip, bgr=bgr, first=first, scale=scale)
    if dataset.dtype.kind == "f" and rows and found.decode(0, 1).max() <= 1:
        raise DataError(
            f"{h5.where(parent)}: the largest value of {key}[0] is 1 or less; expected values from 0 to 255. These "
            "look "
            f'like images scaled to [0, 1]: multiply by 255, round, and store them as uint8, or declare "scale": 255.'
        )
    return found


def encoded_frames(
    parent: Any, key: str, rows: int, used: int | None = None, *, flip: bool = False, bgr: bool = False
) -> Frames:
    """The (L, B) JPEG files ``key`` of a group, padded with zeros, or (L,) of lengths of their own; the first must be
    decodable.
    """
    import h5py

    dataset = parent.get(key)
    bytes_of = dataset.dtype if isinstance(dataset, h5py.Dataset) else np.dtype(float)
    own_lengths = bytes_of.kind == "O" and (vlen := h5py.check_vlen_dtype(bytes_of)) is not None and vlen == np.uint8
    plain = bytes_of.kind == "O" and h5py.check_string_dtype(bytes_of) is not None
    if not isinstance(dataset, h5py.Dataset) or not (own_lengths or plain or bytes_of == np.uint8) or len(dataset) == 0:
        what = "missing" if not isinstance(dataset, h5py.Dataset) else f"{dataset.dtype} of shape {dataset.shape}"
        raise DataError(
            f"{h5.where(parent)}: {key} is {what}, expected uint8 RGB images of shape ({rows}, H, W, 3), or the bytes "
            f"of JPEG files."
        )
    _check_count(parent, key, dataset, rows)
    shape = _picture(dataset[0], f"{h5.where(parent)}/{key}", None).shape
    return Frames(*_place(dataset), used or rows, shape, _chunk(dataset), jpeg=True, flip=flip, bgr=bgr)


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


def _picture(data: Any, where: str, shape: tuple[int, ...] | None) -> Any:
    """(H, W, 3) of a zero-padded JPEG (or PNG) file, channels in the order in which OpenCV was given them."""
    import io

    import cv2
    from PIL import Image

    stored = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else np.ascontiguousarray(data)
    try:  # its size before it is decoded, for it may be absurd
        with Image.open(io.BytesIO(stored.data), formats=("JPEG", "PNG")) as header:
            found = (header.height, header.width, 3)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        found = None
    if found is not None and (found[0] * found[1] > _PIXELS if shape is None else found != shape):
        expected = f"at most {_PIXELS:,} pixels" if shape is None else f"one size, and the first has {shape}"
        raise DataError(f"{where}: a picture has shape {found}, expected {expected}.")
    image = None if found is None else cv2.imdecode(stored, cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"{where}: a picture cannot be decoded, expected JPEG bytes. Record or copy the episode again.")
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

    ``known`` are further fields of :class:`Demonstrations`: states and their meaning, language. What a schema declares
    of actions is left out where no recording has any.
    """
    size = next((part.actions.shape[1] for part in recordings if part.actions is not None), 0)
    if not size:
        schema = replace(schema, actions=None, assumption="; ".join(filter(None, (schema.assumption, WITHOUT_ACTIONS))))
    labelled = np.array([part.actions is not None for part in recordings])
    actions = [np.zeros((len(part), size)) if part.actions is None else part.actions for part in recordings]
    return Demonstrations(
        name=name.replace("_", "-"),
        episode_ends=np.cumsum([len(part) for part in recordings], dtype=np.int64),
        actions=np.concatenate(actions).astype(np.float32),
        labelled=None if labelled.all() else labelled,
        proprioception=np.concatenate([part.proprioception for part in recordings]).astype(np.float32),
        images={camera: RecordedImages(camera, parts) for camera, parts in images.items()},
        source=str(source),
        schema=schema,
        **known,
    )
