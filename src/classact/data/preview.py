"""Pictures of demonstrations, to look at before anything is learned: a contact sheet, or the video of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from classact.data.images import resize_images
from classact.data.types import Demonstrations, ImageArray
from classact.data.video import write_mp4
from classact.errors import ConfigError, DataError
from classact.utils.storage import atomic_path

CELL = 128
_GAP = 4


def _views(data: Demonstrations, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> ImageArray:
    """(n, CELL, V CELL, 3) all cameras side by side, each within a square."""
    if not data.images:
        raise DataError(f"{data.name} ({data.source}) holds no images to look at.")
    parts = []
    for images in data.images.values():
        frames = np.asarray(images[rows])
        height, width = (max(1, round(CELL * side / max(frames.shape[1:3]))) for side in frames.shape[1:3])
        square = np.zeros((len(rows), CELL, CELL, 3), np.uint8)
        top, left = (CELL - height) // 2, (CELL - width) // 2
        square[:, top : top + height, left : left + width] = resize_images(frames, (height, width))
        parts.append(square)
    return np.concatenate(parts, axis=2)


def contact_sheet(data: Demonstrations, episodes: int = 6, frames: int = 6) -> ImageArray:
    """(H, W, 3) frames of some episodes, a row for each, evenly over time; cameras side by side."""
    chosen = np.unique(np.linspace(0, len(data) - 1, episodes).round().astype(int))
    lines = []
    for episode in chosen.tolist():
        start, end = data.bounds(episode)
        rows = np.linspace(start, end - 1, frames).round().astype(np.int64)
        cells = _views(data, rows)
        gap = np.full((CELL, _GAP, 3), 255, np.uint8)
        line = [part for cell in cells for part in (gap, cell)][1:]
        lines += [np.full((_GAP, sum(part.shape[1] for part in line), 3), 255, np.uint8), np.concatenate(line, axis=1)]
    return np.concatenate(lines[1:])


def write_preview(data: Demonstrations, path: Path, episode: int | None = None) -> Path:
    """Write a contact sheet (.png), or of one episode its video (.mp4) at the recorded rate, 10 per second if unknown.

    Raises:
        DataError: there are no images.
        ConfigError: an episode that is not there, or of a contact sheet, or a name that ends in neither.
    """
    if path.suffix not in (".png", ".mp4"):
        raise ConfigError(f"{path}: expected the name of a .png, for a contact sheet, or of an .mp4, for an episode.")
    if path.suffix == ".mp4":
        number = 0 if episode is None else episode
        if not 0 <= number < len(data):
            raise ConfigError(f"{data.name} ({data.source}) has episodes 0 to {len(data) - 1}, not {number}.")
        frames = _views(data, np.arange(*data.bounds(number)))
        return write_mp4(path, frames, max(1, round(data.schema.fps or 10)))
    if episode is not None:
        raise ConfigError(f"{path}: a contact sheet shows several episodes. Name an .mp4 to see episode {episode}.")
    from PIL import Image

    sheet = contact_sheet(data)
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")
    return path
