"""Videos that every browser plays."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from classact.data.types import ImageArray
from classact.errors import DataError, MissingDependencyError
from classact.utils.storage import atomic_path

H264_ENCODERS = ("libx264", "libopenh264")


def write_mp4(path: Path, frames: ImageArray, fps: int, crf: int = 18) -> Path:
    """Write (T, H, W, 3) uint8 RGB frames, T >= 1, as H.264 (yuv420p) to an ``.mp4`` file, atomically; returns
    ``path``.

    ``crf`` is x264's: 18 shows no loss, 26 takes a third of the space. An odd height or width is padded by a repeated
    row or column, because yuv420p needs even sizes.

    Raises:
        DataError: frames of another shape or dtype, or fps below 1.
        MissingDependencyError: PyAV was built without an H.264 encoder.
        StorageError: disk full or no permission; nothing is left behind.
    """
    import av

    shape = getattr(frames, "shape", None)
    if shape is None or len(shape) != 4 or shape[3] != 3 or min(shape) < 1 or frames.dtype != np.uint8:
        raise DataError(
            f"{path}: expected frames of shape (T, H, W, 3) and dtype uint8 with T >= 1, "
            f"got {shape} {getattr(frames, 'dtype', type(frames).__name__)}."
        )
    if fps < 1:
        raise DataError(f"{path}: expected at least 1 frame per second, got {fps}.")
    encoder = h264_encoder(path)
    frames = np.pad(frames, ((0, 0), (0, shape[1] % 2), (0, shape[2] % 2), (0, 0)), mode="edge")
    # The format is named because the temporary path does not end in .mp4; faststart lets a browser play at once.
    options = {"movflags": "+faststart"}
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4", options=options) as container:
        stream: Any = container.add_stream(encoder, rate=Fraction(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(crf), "preset": "medium"} if encoder == "libx264" else {}
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def h264_encoder(path: Path) -> str:
    """PyAV's encoder of H.264; a MissingDependencyError, which names what cannot be written, where it has none."""
    import av

    for name in H264_ENCODERS:
        if name in av.codecs_available:
            return name
    raise MissingDependencyError(
        f"cannot write {path}: PyAV has no H.264 encoder (looked for {', '.join(H264_ENCODERS)}). Install its binary "
        f"wheel: pip install --force-reinstall --only-binary av av."
    )


def read_video(path: Path) -> ImageArray:
    """All frames of a file that :func:`write_mp4` wrote: (T, H, W, 3) uint8 RGB (MP4 is lossy)."""
    import av

    if not path.exists():
        raise DataError(f"{path} does not exist. Expected a video written by classact.")
    try:
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return np.stack(frames).astype(np.uint8)
    except (OSError, ValueError) as problem:  # PyAV's errors derive from these two; ValueError: no frame
        raise DataError(f"{path} cannot be decoded ({problem}): the file is damaged; regenerate it.") from None
