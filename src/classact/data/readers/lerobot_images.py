"""Images of LeRobot data sets: frames of videos, found by their time, and pictures in Parquet files."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.data.images import file_stamp
from classact.data.types import ImageArray
from classact.errors import DataError

TOLERANCE = 1e-4
"""Seconds by which a frame's time may differ from that of its step, as in LeRobot."""


@dataclass(frozen=True, eq=False)
class VideoFrames:
    """The frames of one episode in a video file, which may hold those of other episodes as well.

    Attributes:
        path: of the video.
        shape: (H, W, 3).
        times: (L,) seconds from the video's start, increasing.
        tolerance: seconds by which the nearest frame's time may differ.
    """

    path: Path
    shape: tuple[int, int, int]
    times: NDArray[np.float64]
    chunk: int = 1
    tolerance: float = TOLERANCE

    @property
    def rows(self) -> int:
        """L, steps of the episode."""
        return len(self.times)

    @property
    def where(self) -> str:
        """From when to when."""
        return f"{self.times[0]:.3f} to {self.times[-1]:.3f} s"

    @property
    def decoder(self) -> str:
        """Versions of the libraries that decode and convert colours."""
        import av

        versions = {name: ".".join(map(str, av.library_versions[name])) for name in ("libavcodec", "libswscale")}
        return " ".join(f"{name} {version}" for name, version in versions.items())

    def identity(self) -> list[Any]:
        """The times."""
        return [hashlib.sha256(self.times.tobytes()).hexdigest()]

    def digest(self) -> str:
        """Of the whole video and of the times."""
        digest = hashlib.sha256(_file_digest(self.path, file_stamp(self.path)).encode())
        digest.update(self.times.tobytes())
        return digest.hexdigest()

    def decode(self, start: int, stop: int) -> ImageArray:
        """Frames of steps ``start``:``stop``; a DataError where there is none at the time of a step."""
        import av

        out = np.empty((stop - start, *self.shape), np.uint8)
        try:
            with av.open(str(self.path)) as container:
                self._fill(container, out, self.times[start:stop])
        except (OSError, ValueError, av.FFmpegError) as problem:
            if isinstance(problem, DataError):
                raise
            raise DataError(
                f"{self.path} cannot be decoded ({problem}): the video is damaged or incomplete. Copy or download it "
                f"again."
            ) from None
        return out

    def _fill(self, container: Any, out: ImageArray, wanted: NDArray[np.float64]) -> None:
        if not container.streams.video:
            raise DataError(f"{self.path} holds no video stream. Copy or download it again.")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise DataError(f"{self.path}: the video's codec is not known. Copy or download it again.")
        stream.codec_context.thread_count = 1  # several blocks are decoded side by side
        found = (stream.codec_context.height, stream.codec_context.width, 3)
        if found != self.shape:
            raise DataError(
                f"{self.path} holds frames of {found[0]} x {found[1]} pixels, meta/info.json declares "
                f"{self.shape[0]} x {self.shape[1]}. The video is of other data, or info.json is wrong."
            )
        if wanted[0] > TOLERANCE:
            container.seek(int((wanted[0] - TOLERANCE) / stream.time_base), stream=stream)
        place, before = 0, None
        for frame in container.decode(stream):
            while place < len(wanted) and frame.time is not None and frame.time >= wanted[place] - TOLERANCE:
                nearest = frame
                if before is not None and abs(before.time - wanted[place]) < abs(frame.time - wanted[place]):
                    nearest = before
                self._check_time(nearest.time, wanted[place])
                out[place] = nearest.to_ndarray(format="rgb24")
                place += 1
            if place == len(wanted):
                return
            before = frame if frame.time is not None else before
        if before is None:
            raise DataError(f"{self.path}: no frame can be decoded, expected one at {wanted[0]:.4f} s.")
        for rest in range(place, len(wanted)):
            self._check_time(before.time, wanted[rest])
            out[rest] = before.to_ndarray(format="rgb24")

    def _check_time(self, found: float, wanted: float) -> None:
        # Time stamps are float32 in the files.
        if abs(found - wanted) > self.tolerance + np.spacing(np.float32(wanted)):
            raise DataError(
                f"{self.path}: a step was recorded at {wanted:.4f} s of the video, the nearest frame is at {found:.4f} "
                f"s, expected within {self.tolerance:g} s. The video is incomplete or of other data: copy or download "
                f"it again, or record the data set anew."
            )


def video_shape(path: Path) -> tuple[int, int, int]:
    """(H, W, 3) of a video's frames; a DataError where it is none."""
    import av

    with path.open("rb"):  # what the system says of it is said with its name
        pass
    try:
        with av.open(str(path)) as container:
            if container.streams.video and (context := container.streams.video[0].codec_context) is not None:
                return (context.height, context.width, 3)
    except (OSError, ValueError, av.FFmpegError) as problem:
        raise DataError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be decoded ({_why(problem)}): the video is damaged or "
            f"incomplete. Copy or download it again, or leave its camera out in a layout."
        ) from None
    raise DataError(f"{path} holds no video that can be decoded. Copy or download it again.")


def _why(problem: Exception) -> str:
    """An error's words, without the file's name, which PyAV puts behind them."""
    return str(getattr(problem, "strerror", None) or problem)


def frame_times(path: Path) -> NDArray[np.float64]:
    """(F,) seconds at which a video's frames are shown, in order, without decoding them."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            packets = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
            return np.sort(np.array(packets, np.float64)) * float(stream.time_base or 0)
    except (OSError, ValueError, IndexError, av.FFmpegError) as problem:
        raise DataError(f"{path} cannot be decoded ({_why(problem)}). Copy or download it again.") from None


@dataclass(frozen=True)
class Pictures:
    """The pictures of one episode in a column of a Parquet file, encoded as PNG or JPEG.

    Attributes:
        path: of the file.
        column: of ``struct{bytes, path}``.
        first, rows: row of the first one, and how many.
        shape: (H, W, 3).
        root: of the data set, to which the paths of pictures outside of the file are relative.
    """

    path: Path
    column: str
    first: int
    rows: int
    shape: tuple[int, int, int]
    root: Path
    chunk: int = 1

    @property
    def where(self) -> str:
        """Column and rows."""
        return f"{self.column}, rows {self.first} to {self.first + self.rows - 1}"

    @property
    def decoder(self) -> str:
        """Pillow's version."""
        import PIL

        return f"pillow {PIL.__version__}"

    def identity(self) -> list[Any]:
        """Column and rows."""
        return [self.column, self.first, self.rows]

    def digest(self) -> str:
        """Of the pictures as stored."""
        digest = hashlib.sha256()
        for stored in self._stored(0, self.rows):
            digest.update(len(stored).to_bytes(8, "little") + stored)
        return digest.hexdigest()

    def decode(self, start: int, stop: int) -> ImageArray:
        """Pictures of steps ``start``:``stop``."""
        return np.stack([self._picture(stored) for stored in self._stored(start, stop)])

    def _stored(self, start: int, stop: int) -> list[bytes]:
        from classact.data.readers.parquet import open_parquet, read_rows

        with open_parquet(self.path) as file:
            values = read_rows(file, self.column, self.first + start, self.first + stop)
        out = []
        for value in values.to_pylist():
            content = value.get("bytes") if isinstance(value, dict) else None
            if content is None and isinstance(value, dict) and value.get("path"):
                content = self._outside(str(value["path"]))
            if not isinstance(content, bytes):
                raise DataError(f"{self.path}: {self.column} holds no pictures. Expected bytes of PNG or JPEG files.")
            out.append(content)
        return out

    def _outside(self, name: str) -> bytes:
        file = self.root / name
        if ".." in Path(name).parts or Path(name).is_absolute() or not file.is_file():
            raise DataError(f"{self.path}: {self.column} names the picture {name!r}, which is not in {self.root}.")
        return file.read_bytes()

    def _picture(self, stored: bytes) -> ImageArray:
        import io

        from PIL import Image

        try:
            with Image.open(io.BytesIO(stored), formats=("PNG", "JPEG")) as image:
                if (image.height, image.width) != self.shape[:2]:  # before it is decoded
                    raise DataError(
                        f"{self.path}: a picture of {self.column} has {image.height} x {image.width} pixels, "
                        f"meta/info.json declares {self.shape[0]} x {self.shape[1]}."
                    )
                return np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
            if isinstance(problem, DataError):
                raise
            raise DataError(
                f"{self.path}: a picture of {self.column} cannot be decoded ({problem}). Copy or download the file "
                f"again."
            ) from None


@functools.lru_cache(maxsize=4096)
def _file_digest(path: Path, stamp: tuple[int, int, int]) -> str:  # noqa: ARG001 (of a changed file it is another)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
