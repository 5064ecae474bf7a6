"""Held-out demonstrations as videos: what the policy sees, the nearest demonstrated frames, how novel it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from classact.data.images import resize_images
from classact.data.types import Demonstrations, ImageArray, IntArray, StateArray
from classact.data.video import write_mp4
from classact.evaluation.consistency import timesteps
from classact.evaluation.rows import NoveltyVideo
from classact.policies import RetrievalPolicy
from classact.policies.base import Neighbors
from classact.policies.novelty import Novelty
from classact.run.folder import Run
from classact.utils.codec import to_json
from classact.utils.progress import Callback
from classact.utils.storage import write_json

MOST_FRAMES = 240
MOST_RATE = 15  # frames per second; less where an episode is long, so that it plays as fast as it was recorded
MOST_CAMERAS = 3
SHOWN = 6
"""Neighbours in a video."""

QUERIES = 2000
"""Timesteps at most by which the two demonstrations are chosen."""

UNKNOWN_RATE = 10.0  # of data that do not say it
CRF = 26

_PAD, _TITLE, _CELL, _CURVE = 12, 18, 96, 96
_SIDES = {1: 216, 2: 168, 3: 140}  # of a seen picture, by the number of cameras
_INK, _SOFT, _LINE, _PLAN, _NEAR, _ALARM = "#1d2127", "#5b636e", "#d9d9d4", "#d95f02", "#7b4fc9", "#b1401b"


def write_novelty_videos(
    run: Run,
    policy: RetrievalPolicy,
    data: Demonstrations,
    heldout: Demonstrations,
    numbers: Sequence[int],
    progress: Callback | None = None,
) -> list[NoveltyVideo]:
    """analysis/novelty: the demonstration of ``heldout`` that is farthest from ``data``, the policy's bank, and the
    nearest.

    ``numbers`` are those of all demonstrations in the data set, the held-out ones last. Empty where the policy has no
    calibrated novelty score.
    """
    calibration = policy.calibration
    if calibration is None:
        return []
    asked = timesteps(heldout, QUERIES)
    ends = np.searchsorted(asked, heldout.episode_ends)
    some = heldout.select(asked, ends.astype(np.int64), slice(None))
    away = policy.distances(policy.latents.demonstrations(some), calibration.config.m)
    mean = np.add.reduceat(away, np.append(0, ends[:-1])) / np.diff(ends, prepend=0)
    chosen = {"most novel": int(mean.argmax()), "most familiar": int(mean.argmin())}
    if len(mean) == 1:
        chosen = {"held out": 0}
    rows = []
    for label, episode in chosen.items():
        film = _Film(policy, data, heldout, episode, calibration, numbers)
        number = numbers[len(data) + episode]
        path = run.novelty / f"demonstration-{number}.mp4"
        write_mp4(path, film.frames(progress, label), film.rate, CRF)
        rows.append(film.row(path.name, label, number))
    write_json(run.novelty / "videos.json", to_json(rows))
    for path in run.novelty.glob("demonstration-*.mp4"):
        if path.name not in {row.file for row in rows}:  # of another training
            path.unlink(missing_ok=True)
    return rows


class _Film:
    """One held-out demonstration: every ``stride``-th step is a frame."""

    def __init__(
        self,
        policy: RetrievalPolicy,
        bank: Demonstrations,
        data: Demonstrations,
        episode: int,
        calibration: Novelty,
        numbers: Sequence[int],
    ) -> None:
        start, end = data.bounds(episode)
        own = data.select(slice(start, end), np.array([end - start]), slice(episode, episode + 1))
        z = policy.latents.demonstrations(own)
        self.bank, self.own, self.count, self.numbers = bank, own, end - start, numbers
        self.fps = data.schema.fps or UNKNOWN_RATE
        self.known = data.schema.fps is not None
        self.stride = max(1, -(-self.count // MOST_FRAMES), round(self.fps / MOST_RATE))
        self.rate = max(1, round(self.fps / self.stride))
        self.steps: IntArray = np.arange(0, self.count, self.stride)
        self.away: StateArray = policy.distances(z, calibration.config.m)
        self.level, self.farthest = calibration.threshold, float(calibration.maxima[-1])
        self.neighbors: Neighbors = policy.search(z[self.steps])
        self.cameras = list(own.images)[:MOST_CAMERAS]

    def row(self, file: str, label: str, number: int) -> NoveltyVideo:
        beyond = np.flatnonzero(self.away > self.level)
        return NoveltyVideo(
            file,
            label,
            number,
            self.count,
            float(self.away.mean()),
            float(self.away.max()),
            int(beyond[0]) if len(beyond) else None,
            (len(self.cameras), len(self.own.images)),
        )

    def frames(self, progress: Callback | None, label: str) -> ImageArray:
        """(T, H, W, 3)."""
        canvas = _Canvas(len(self.cameras))
        seen = {camera: np.asarray(self.own.images[camera][self.steps]) for camera in self.cameras}
        order = np.argsort(-self.neighbors.weights, axis=1, kind="stable")[:, :SHOWN]
        rows = np.take_along_axis(self.neighbors.rows, order, axis=1)
        weights = np.take_along_axis(self.neighbors.weights, order, axis=1)
        unique, inverse = np.unique(rows, return_inverse=True)
        first = next(iter(self.bank.images.values()))
        pictures = squares(np.asarray(first[unique]), _CELL)[inverse.reshape(rows.shape)]
        episodes = np.searchsorted(self.bank.episode_ends, rows, side="right")
        within = rows - (self.bank.episode_ends - self.bank.lengths)[episodes]
        frames = []
        for number, step in enumerate(self.steps.tolist()):
            canvas.clear()
            novel = bool(self.away[step] > self.level)
            for place, (camera, images) in enumerate(seen.items()):
                canvas.query(place, camera, images[number], novel=novel)
            for place in range(rows.shape[1]):
                words = f"demo {self.numbers[episodes[number, place]]} · {within[number, place]}"
                canvas.neighbor(place, pictures[number, place], float(weights[number, place]), words)
            canvas.curve(self.away, step, (self.level, self.farthest), self.time(step))
            frames.append(canvas.array())
            if progress is not None:
                progress(number + 1, len(self.steps), label)
        return np.stack(frames)

    def time(self, step: int) -> str:
        """Of a step, in words."""
        if not self.known:
            return f"step {step} of {self.count}"
        return f"{step / self.fps:.1f} of {(self.count - 1) / self.fps:.1f} s"


def squares(images: ImageArray, side: int) -> ImageArray:
    """(n, side, side, 3) images as large as a square holds, with their shape kept."""
    height, width = (max(1, round(side * size / max(images.shape[1:3]))) for size in images.shape[1:3])
    out = np.full((len(images), side, side, 3), 255, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    out[:, top : top + height, left : left + width] = resize_images(images, (height, width))
    return out


@dataclass
class _Font:
    small: Any
    usual: Any


class _Canvas:
    """The curve of distances above (a player's buttons cover what is below), query left, neighbours right."""

    def __init__(self, cameras: int) -> None:
        from PIL import ImageFont

        self.side = _SIDES[cameras]
        left = cameras * self.side + (cameras - 1) * 6
        self.grid = _PAD + left + 2 * _PAD
        columns = -(-SHOWN // 2)
        cell = _CELL + 24
        self.width = self.grid + columns * (_CELL + 8) - 8 + _PAD
        self.above = _PAD + _TITLE + _CURVE + 12  # where pictures' titles are
        self.top = self.above + _TITLE
        self.height = self.top + max(self.side, 2 * cell) + _PAD
        self.width, self.height = self.width + self.width % 2, self.height + self.height % 2
        self.font = _Font(ImageFont.load_default(10), ImageFont.load_default(12))
        self.clear()

    def clear(self) -> None:
        from PIL import Image, ImageDraw

        self.image = Image.new("RGB", (self.width, self.height), "white")
        self.draw = ImageDraw.Draw(self.image)
        self.draw.text((self.grid, self.above - 3), "nearest demonstrated frames", _SOFT, font=self.font.usual)

    def query(self, place: int, camera: str, image: ImageArray, *, novel: bool) -> None:
        from PIL import Image

        left, top = _PAD + place * (self.side + 6), self.top
        self.draw.text((left, self.above - 3), camera[:22], _SOFT, font=self.font.usual)
        self.image.paste(Image.fromarray(squares(image[None], self.side)[0]), (left, top))
        if novel:
            box = (left, top, left + self.side - 1, top + self.side - 1)
            self.draw.rectangle(box, outline=_ALARM, width=4)

    def neighbor(self, place: int, image: ImageArray, weight: float, words: str) -> None:
        from PIL import Image

        columns = -(-SHOWN // 2)
        left, top = self.grid + (place % columns) * (_CELL + 8), self.top + (place // columns) * (_CELL + 24)
        self.image.paste(Image.fromarray(image), (left, top))
        self.draw.rectangle((left, top + _CELL + 2, left + _CELL - 1, top + _CELL + 5), fill=_LINE)
        if (long := round(weight * _CELL)) > 0:
            self.draw.rectangle((left, top + _CELL + 2, left + long - 1, top + _CELL + 5), fill=_NEAR)
        self.draw.text((left, top + _CELL + 7), words, _SOFT, font=self.font.small)
        self.draw.text((left + _CELL, top + _CELL + 7), f"{100 * weight:.0f}%", _INK, font=self.font.small, anchor="ra")

    def curve(self, away: StateArray, step: int, levels: tuple[float, float], time: str) -> None:
        left, right, top = _PAD, self.width - _PAD, _PAD + _TITLE
        bottom = top + _CURVE
        alarm = np.isfinite(levels[0])
        level = levels[0] if alarm else levels[1]
        highest = 1.12 * max(float(away.max()), level, 1e-9)
        x = left + (right - left) * np.arange(len(away)) / max(len(away) - 1, 1)
        y = bottom - _CURVE * np.maximum(away, 0) / highest
        points = np.stack([x, y], axis=1)
        self.draw.text((left, _PAD - 3), "distance from what was demonstrated", _SOFT, font=self.font.usual)
        self.draw.text((right, _PAD - 3), time, _INK, font=self.font.usual, anchor="ra")
        self.draw.line((left, bottom, right, bottom), fill=_LINE, width=1)
        height, colour = bottom - _CURVE * level / highest, _ALARM if alarm else _SOFT
        for dash in range(left, right, 10):
            self.draw.line((dash, height, min(dash + 5, right), height), fill=colour, width=1)
        words = "alarm level" if alarm else "farthest of all held out; too few for an alarm level"
        self.draw.text((right, height - 2), words, colour, font=self.font.small, anchor="rb")
        if len(points) > 1:
            self.draw.line(points.ravel().tolist(), fill="#b9bcc2", width=2, joint="curve")
            if step:
                self.draw.line(points[: step + 1].ravel().tolist(), fill=_PLAN, width=2, joint="curve")
        self.draw.line((x[step], top, x[step], bottom), fill=_SOFT, width=1)
        self.draw.ellipse((x[step] - 4, y[step] - 4, x[step] + 4, y[step] + 4), fill=_PLAN, outline="white")

    def array(self) -> ImageArray:
        return np.asarray(self.image)
