"""Images of a camera that lie in several places, such as a data set or a video for each demonstration."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from classact.data.images import ImageSource, block_rows, file_stamp, remembered_digest
from classact.data.types import ImageArray, IntArray
from classact.errors import DataError


class Part(Protocol):
    """The images of one demonstration and camera, in a file."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def where(self) -> str:
        """The place within it, for messages."""

    @property
    def rows(self) -> int:
        """How many images."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, 3)."""

    @property
    def chunk(self) -> int:
        """How many are compressed together."""

    @property
    def decoder(self) -> str:
        """What else pixels depend on, as :attr:`ImageSource.decoder`."""

    def identity(self) -> list[Any]:
        """JSON values that say which of the file's images are meant, and how they are decoded."""

    def decode(self, start: int, stop: int) -> ImageArray:
        """(stop - start, H, W, 3) uint8 RGB images."""

    def digest(self) -> str:
        """SHA-256 of what is stored and of how it is decoded."""


class RecordedImages(ImageSource):
    """A camera's images in all demonstrations, which must be of one size."""

    def __init__(self, camera: str, parts: Sequence[Part]) -> None:
        shape = parts[0].shape
        for part in parts:
            if part.shape != shape:
                raise DataError(
                    f"{part.path}: {part.where} holds images of {part.shape[0]} x {part.shape[1]} pixels, "
                    f"{parts[0].where} of {shape[0]} x {shape[1]}. Expected one size for camera {camera!r}; read the "
                    f"demonstrations apart, or re-render them."
                )
        self.parts = tuple(parts)
        self._ends: IntArray = np.cumsum([part.rows for part in parts], dtype=np.int64)
        self.shape = (int(self._ends[-1]), *shape)
        self.decoder = next((part.decoder for part in parts if part.decoder), "")

    def digest(self) -> str:
        """Of all parts as stored, remembered while the files' stamps stay."""
        stamps = {str(path.resolve()): file_stamp(path) for path in {part.path for part in self.parts}}
        meant = [[str(part.path), *part.identity()] for part in self.parts]

        def compute() -> str:
            return hashlib.sha256("".join(part.digest() for part in self.parts).encode()).hexdigest()

        return remembered_digest([stamps, meant], compute)

    def spans(self) -> Iterator[tuple[int, int]]:
        """Whole chunks of one demonstration."""
        for part, end in zip(self.parts, self._ends.tolist(), strict=True):
            rows, first = block_rows(self.shape, part.chunk), end - part.rows
            yield from ((start, min(start + rows, end)) for start in range(first, end, rows))

    def decode(self, start: int, stop: int) -> ImageArray:
        """Rows may span demonstrations."""
        found = []
        while start < stop:
            number = int(np.searchsorted(self._ends, start, side="right"))
            part, end = self.parts[number], int(self._ends[number])
            first, upto = end - part.rows, min(stop, end)
            found.append(part.decode(start - first, upto - first))
            start = upto
        return np.concatenate(found) if len(found) != 1 else found[0]
