"""Cameras in videos that lie beside the data, one for each episode: real Push-T's, DROID's, declared ones."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from classact.data.images import ImageSource
from classact.data.layout import Camera
from classact.data.readers.lerobot_images import VideoFrames, frame_times, video_shape
from classact.data.readers.parts import RecordedImages
from classact.data.types import Demonstrations, StateArray
from classact.errors import ConfigError, DataError

_FRAMES_OFF = 1.5
"""Steps by which a frame's time may differ from that of its step, where videos have clocks of their own."""


class Places(Protocol):
    """Where videos are: in ``base``, and those of an episode perhaps in a folder of its own."""

    path: Path
    base: Path

    def folder(self, episode: int) -> str:
        """Of an episode, from ``base``; "." for that itself."""


def episode_videos(
    places: Places, camera: str, spec: Camera, times: StateArray | None, data: Demonstrations
) -> ImageSource:
    """Frames of a camera's video for each episode: by the time since its start, or one for each step.

    Args:
        places: where they are.
        camera: its name, for messages.
        spec: its declaration.
        times: (N,) seconds at each step; None: as ``data``'s rate tells.
        data: episodes and rate.

    Raises:
        DataError: a missing or damaged video, or one with too few frames; no times are known.
        ConfigError: no name of a video.
    """
    template, fps = str(spec.video), data.schema.fps
    if fps is None and not spec.indexed:
        raise DataError(
            f"{places.path}: camera {camera!r} is in videos ({template}), but nothing says at what times steps were "
            f"taken. Declare fps or timestamps in a layout, or indexed where there is one frame for each step."
        )
    varies = "{episode}" in template or "{folder}" in template
    if not (varies or len(data) == 1) or Path(template).is_absolute() or ".." in Path(template).parts:
        raise ConfigError(
            f"camera {camera!r}: expected the name of a video within {places.base} with {{episode}} for its number, or "
            f"{{folder}} for that of its file, as in videos/{{episode}}/0.mp4, got {template!r}."
        )
    parts = []
    for episode in range(len(data)):
        name = template.replace("{episode}", str(episode)).replace("{folder}", places.folder(episode))
        file = places.base / name
        if not file.is_file():
            raise DataError(
                f"{file} is missing: the video of episode {episode}, camera {camera!r}, beside {places.path.name}. "
                f"Copy the videos as well, read fewer episodes, or leave cameras out in a layout."
            )
        start, end = data.bounds(episode)
        try:
            parts.append(_frames(file, None if times is None else times[start:end], end - start, fps, spec.indexed))
        except DataError as problem:
            raise DataError(
                f"{places.path}: camera {camera!r} is in videos beside the data, as real Push-T's are; of episode "
                f"{episode}: {problem}"
            ) from None
    return RecordedImages(camera, parts)


def _frames(file: Path, times: StateArray | None, steps: int, fps: float | None, indexed: bool) -> VideoFrames:
    shape = video_shape(file)
    if not indexed:
        assert fps is not None
        seconds = np.arange(steps) / fps if times is None else times - times[0]
        return VideoFrames(file, shape, seconds, tolerance=_FRAMES_OFF / fps)
    seconds = frame_times(file)
    if len(seconds) < steps:
        raise DataError(
            f"{file} holds {len(seconds)} frames, but there are {steps} steps, and each has one by declaration. The "
            f"video is incomplete, or its frames have times of their own: leave indexed out."
        )
    return VideoFrames(file, shape, seconds[:steps])
