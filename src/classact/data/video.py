"""Frames to a video file that every browser plays, and back."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from classact.data.types import ImageArray
from classact.errors import DataError, MissingDependencyError
from classact.utils.storage import atomic_path

logger = logging.getLogger(__name__)

H264_ENCODERS = ("libx264", "libopenh264")


def write_mp4(path: Path, frames: ImageArray, fps: int) -> Path:
    """Write frames as H.264 (yuv420p), atomically.

    An odd height or width is padded by one repeated row or column, because yuv420p needs even sizes. Where PyAV
    was built without an H.264 encoder, an animated WebP is written beside it instead, and a warning is logged.

    Args:
        path: file to write, ending in ``.mp4``.
        frames: (T, H, W, 3) uint8 RGB, T >= 1.
        fps: frames per second, at least 1.

    Returns:
        The file written: ``path``, or ``path`` with the suffix ``.webp``.

    Raises:
        DataError: frames of another shape or dtype, or fps below 1.
        MissingDependencyError: neither an H.264 encoder nor Pillow's WebP support is here.
        StorageError: disk full or no permission; nothing is left behind.
    """
    path = Path(path)
    shape = getattr(frames, "shape", None)
    if shape is None or len(shape) != 4 or shape[3] != 3 or min(shape) < 1 or frames.dtype != np.uint8:
        raise DataError(
            f"{path}: expected frames of shape (T, H, W, 3) and dtype uint8 with T >= 1, "
            f"got {shape} {getattr(frames, 'dtype', type(frames).__name__)}."
        )
    if fps < 1:
        raise DataError(f"{path}: expected at least 1 frame per second, got {fps}.")
    height, width = shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    encoder = _h264_encoder()
    if encoder is None:
        return _write_webp(path, frames, fps)
    with atomic_path(path) as temporary:
        _encode(temporary, frames, fps, encoder)
    return path


def read_video(path: Path) -> ImageArray:
    """All frames of a file written by :func:`write_mp4`: (T, H, W, 3) uint8 RGB (MP4 is lossy).

    Raises:
        DataError: naming the file, when it is missing or cannot be decoded.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist. Expected a video written by classact.")
    try:
        frames = _decode_webp(path) if path.suffix == ".webp" else _decode(path)
    except (OSError, ValueError) as problem:  # PyAV's errors derive from these two
        raise DataError(f"{path} cannot be decoded ({problem}): the file is damaged; regenerate it.") from None
    if not frames:
        raise DataError(f"{path} holds no frame: the file is damaged; regenerate it.")
    return np.stack(frames)


def _h264_encoder() -> str | None:
    import av

    return next((name for name in H264_ENCODERS if name in av.codecs_available), None)


def _encode(path: Path, frames: ImageArray, fps: int, encoder: str) -> None:
    import av

    # The format is named because the temporary path does not end in .mp4; faststart lets a browser play at once.
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream: Any = container.add_stream(encoder, rate=Fraction(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18", "preset": "medium"} if encoder == "libx264" else {}
        for array in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _write_webp(path: Path, frames: ImageArray, fps: int) -> Path:
    from PIL import Image, features

    if not features.check("webp"):
        raise MissingDependencyError(
            f"cannot write {path}: PyAV has no H.264 encoder (looked for {', '.join(H264_ENCODERS)}) and Pillow has no "
            f"WebP support. Install the binary wheels of one of them: pip install --force-reinstall av pillow."
        )
    target = path.with_suffix(".webp")
    logger.warning("PyAV has no H.264 encoder: writing an animated WebP instead of an MP4 to %s.", target)
    images = [Image.fromarray(frame) for frame in frames]
    with atomic_path(target) as temporary:
        images[0].save(
            temporary,
            format="WEBP",
            save_all=True,
            append_images=images[1:],
            duration=round(1000 / fps),
            loop=0,
            lossless=True,
        )
    return target


def _decode(path: Path) -> list[ImageArray]:
    import av

    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24").astype(np.uint8) for frame in container.decode(video=0)]


def _decode_webp(path: Path) -> list[ImageArray]:
    from PIL import Image, ImageSequence

    with Image.open(path) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
