"""One picture of a run, for a README: what the policy saw, what it remembered, what it did, how often it worked.

    uv run python benchmarks/hero.py RUN docs/pusht.png

The picture has its own light ground, so that it reads the same on a light and on a dark page.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image, ImageDraw, ImageFont

from classact.data.types import ImageArray
from classact.data.video import read_video
from classact.errors import DataError
from classact.evaluation.rows import EvaluationRow, VideoRow
from classact.pages.checks import Arrays
from classact.pages.headline import main_row
from classact.pages.reasons import MOST_NEIGHBORS, shares, world_size
from classact.pages.sources import Sources, read_sources
from classact.pages.style import percent, styles
from classact.pages.table import row_label, series
from classact.run.folder import Run
from classact.utils.storage import atomic_path
from common import command

WIDTH, EDGE, GAP = 1600, 64, 24
SCALE = 2  # lines and letters are drawn at twice the size and reduced: smooth edges
GROUND, INK, SOFT, LINE = "#fbfbf9", "#1d2127", "#5b636e", "#dcdcd6"
PLAN, NEAR = "#d95f02", "#7b4fc9"
FILM = 8

Box = tuple[float, float, float, float]


class Canvas:
    """Pillow drawing in units of the final picture."""

    def __init__(self, height: float) -> None:
        self.height = round(height)
        self.image = Image.new("RGB", (WIDTH * SCALE, self.height * SCALE), GROUND)
        self.draw = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, text: str, size: float, colour: str = INK, anchor: str = "ls") -> float:
        """Write one line; returns its width."""
        font = ImageFont.load_default(size * SCALE)
        self.draw.text((x * SCALE, y * SCALE), text, fill=colour, font=font, anchor=anchor)
        return float(font.getlength(text)) / SCALE

    def width(self, text: str, size: float) -> float:
        """The width of one line."""
        return float(ImageFont.load_default(size * SCALE).getlength(text)) / SCALE

    def bold(self, x: float, y: float, text: str, size: float, colour: str = INK, anchor: str = "ls") -> float:
        """Write one line heavily (Pillow's own font has one weight: the outline is thickened)."""
        font = ImageFont.load_default(size * SCALE)
        stroke = max(1, round(size * SCALE / 36))
        position = (x * SCALE, y * SCALE)
        self.draw.text(position, text, fill=colour, font=font, anchor=anchor, stroke_width=stroke, stroke_fill=colour)
        return float(font.getlength(text)) / SCALE

    def bar(self, box: Box, colour: str) -> None:
        """A filled bar with round ends."""
        x0, y0, x1, y1 = (v * SCALE for v in box)
        self.draw.rounded_rectangle((x0, y0, max(x1, x0 + y1 - y0), y1), radius=(y1 - y0) / 2, fill=colour)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float) -> None:
        """A polyline with round joints and ends."""
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        thick = round(width * SCALE)
        self.draw.line(scaled, fill=colour, width=thick, joint="curve")
        for x, y in (scaled[0], scaled[-1]):
            self.dot(x / SCALE, y / SCALE, width / 2, colour)

    def dot(self, x: float, y: float, radius: float, colour: str) -> None:
        """A filled circle."""
        box = ((x - radius) * SCALE, (y - radius) * SCALE, (x + radius) * SCALE, (y + radius) * SCALE)
        self.draw.ellipse(box, fill=colour)

    def picture(self, image: ImageArray, x: float, y: float, width: float) -> None:
        """Paste a frame: small ones are enlarged by whole pixels, so that they stay crisp; with a hairline around."""
        height = width * image.shape[0] / image.shape[1]
        size = (round(width * SCALE), round(height * SCALE))
        method = Image.Resampling.NEAREST if image.shape[1] < size[0] else Image.Resampling.LANCZOS
        self.image.paste(Image.fromarray(image).resize(size, method), (round(x * SCALE), round(y * SCALE)))
        corner = (x * SCALE + size[0], y * SCALE + size[1])
        self.draw.rectangle((x * SCALE, y * SCALE, *corner), outline=LINE, width=SCALE)

    def chunk(self, points: np.ndarray, x: float, y: float, scale: float, colour: str, width: float) -> None:
        """A planned path over a frame at (x, y): white casing, small start, large end."""
        path = [(x + float(px) * scale, y + float(py) * scale) for px, py in points]
        self.line(path, "#ffffff", width + 4)
        for (px, py), radius in ((path[0], width * 1.1), (path[-1], width * 1.7)):
            self.dot(px, py, radius + 2, "#ffffff")
        self.line(path, colour, width)
        self.dot(*path[0], width * 1.1, colour)
        self.dot(*path[-1], width * 1.7, colour)

    def save(self, out: Path) -> None:
        """Reduce to the final size and write a PNG, atomically."""
        final = self.image.resize((WIDTH, self.height), Image.Resampling.LANCZOS)
        with atomic_path(out) as temporary:
            final.save(temporary, format="PNG", optimize=True)


def hero_image(root: Path, out: Path) -> Path:
    """Draw a run as one PNG of 1600 px width: query and neighbours, rollout, success rates; what is absent is left out.

    Args:
        root: the run's folder.
        out: file to write.

    Returns:
        ``out``.

    Raises:
        DataError: the folder holds none of the three, or a file is damaged (named).
        StorageError: the picture cannot be written.
    """
    sources = read_sources(root)
    film = _film(sources)
    parts: list[float] = [
        _reason_height(sources.neighbors) if sources.neighbors else 0,
        _film_height(film[1]) if film else 0,
        _success_height(sources) if sources.summary else 0,
    ]
    if not any(parts):
        raise DataError(
            f"{sources.root} has no picture to draw: {'; '.join(sources.absent.values())}. Evaluate and analyse first."
        )
    canvas = Canvas(EDGE * 2 + sum(parts) + 48 * (sum(part > 0 for part in parts) - 1))
    y = float(EDGE)
    if sources.neighbors:
        _draw_reason(canvas, sources.neighbors, y)
        y += parts[0] + 48
    if film:
        _draw_film(canvas, *film, y)
        y += parts[1] + 48
    if sources.summary:
        _draw_success(canvas, sources, y)
    canvas.save(Path(out))
    return Path(out)


QUERY = 470.0
SMALL = (WIDTH - 2 * EDGE - QUERY - 40 - 3 * GAP) / 4
HEAD, FOOT = 44.0, 58.0


def _reason_height(arrays: Arrays) -> float:
    ratio = arrays["neighbor_images"].shape[2] / arrays["neighbor_images"].shape[3]
    rows = 1 if arrays["weights"].shape[1] <= 4 else 2
    query = QUERY * arrays["query_images"].shape[1] / arrays["query_images"].shape[2] + 34
    return HEAD + max(rows * (SMALL * ratio + FOOT), query)


def _draw_reason(canvas: Canvas, arrays: Arrays, top: float) -> None:
    # The middle query: neither the trivial start nor the settled end of an episode.
    q = len(arrays["query_images"]) // 2
    part = shares(arrays["weights"][q])
    order = np.argsort(-part, kind="stable")[:MOST_NEIGHBORS]
    planar = arrays["query_chunk"].shape[-1] == 2
    x, y, world = float(EDGE), top + HEAD, world_size(arrays)
    canvas.bold(x, top + 18, "What the policy sees and plans", 24)
    canvas.picture(arrays["query_images"][q], x, y, QUERY)
    if planar:
        if "neighbor_chunks" in arrays:
            for k in order[::-1]:
                points = arrays["neighbor_chunks"][q, k] * (QUERY / world) + (x, y)
                canvas.line([(float(a), float(b)) for a, b in points], "#b9a3e0", 1.6)
        canvas.chunk(arrays["query_chunk"][q], x, y, QUERY / world, PLAN, 5)
    bottom = y + QUERY * arrays["query_images"].shape[1] / arrays["query_images"].shape[2]
    shown = f", {len(order)} shown" if len(order) < len(part) else ""
    canvas.text(x, bottom + 28, f"the plan averages {len(part)} demonstration steps by weight{shown}", 16, SOFT)
    left = x + QUERY + 40
    canvas.bold(left, top + 18, "Why: the demonstrations it remembers", 24)
    for i, k in enumerate(order):
        image = arrays["neighbor_images"][q, k]
        height = SMALL * image.shape[0] / image.shape[1]
        cx, cy = left + (i % 4) * (SMALL + GAP), y + (i // 4) * (height + FOOT)
        canvas.picture(image, cx, cy, SMALL)
        if planar and "neighbor_chunks" in arrays:
            canvas.chunk(arrays["neighbor_chunks"][q, k], cx, cy, SMALL / world, NEAR, 3)
        canvas.bar((cx, cy + height + 9, cx + SMALL, cy + height + 16), LINE)
        canvas.bar((cx, cy + height + 9, cx + SMALL * float(part[k] / part.max()), cy + height + 16), NEAR)
        canvas.bold(cx, cy + height + 39, percent(float(part[k])), 18)
        if "episode" in arrays:
            words = f"demo {int(arrays['episode'][q, k])}"
            words += f", step {int(arrays['step'][q, k])}" if "step" in arrays else ""
            canvas.text(cx + SMALL, cy + height + 39, words, 15, SOFT, "rs")


def _film(sources: Sources) -> tuple[VideoRow, ImageArray] | None:
    """The median rollout where there is one (neither the best nor the worst), else the first; evenly spaced frames."""
    if not sources.videos:
        return None
    main = main_row(sources.summary, sources.own)
    own = [row for row in sources.videos if main and row.evaluation == main.evaluation]
    candidates = own or sources.videos
    row = next((row for row in candidates if row.label == "median"), candidates[0])
    frames = read_video(Run(sources.root).analysis / "videos" / row.file)
    return row, frames[np.linspace(0, len(frames) - 1, FILM).round().astype(int)]


def _film_height(frames: ImageArray) -> float:
    return HEAD + _film_width() * frames.shape[1] / frames.shape[2]


def _film_width() -> float:
    return (WIDTH - 2 * EDGE - (FILM - 1) * 10) / FILM


def _draw_film(canvas: Canvas, row: VideoRow, frames: ImageArray, top: float) -> None:
    width = canvas.bold(EDGE, top + 18, "What it does", 24)
    words = [f"{row.label} rollout", f"seed {row.seed}"]
    words += [f"largest coverage {row.coverage:.3f}"] if row.coverage is not None else []
    words.append("success" if row.success else "failure")
    canvas.text(EDGE + width + 18, top + 18, ", ".join(words), 17, SOFT)
    for i, frame in enumerate(frames):
        canvas.picture(frame, EDGE + i * (_film_width() + 10), top + HEAD, _film_width())


def _success_rows(sources: Sources) -> list[EvaluationRow]:
    """Rows of the headline's criterion; one figure in a README carries one criterion, named beside it."""
    main = main_row(sources.summary, sources.own)
    return [r for r in sources.summary if main and r.criterion == main.criterion and r.maximum_of is None]


def _success_height(sources: Sources) -> float:
    return HEAD + 38 * len(_success_rows(sources)) + 22


def _draw_success(canvas: Canvas, sources: Sources, top: float) -> None:
    shown = _success_rows(sources)
    look = styles([series(row) for row in shown])
    width = canvas.bold(EDGE, top + 18, "How often it works", 24)
    simulators = " and ".join(sorted({row.simulator for row in shown}))
    note = f"share of episodes with {shown[0].criterion}{f' on {simulators}' if simulators else ''}, 95% intervals"
    canvas.text(EDGE + width + 18, top + 18, note, 17, SOFT)
    longest = max(canvas.width(row_label(row, shown), 18) for row in shown)
    left, right = EDGE + max(330.0, longest + 22), WIDTH - EDGE - 330.0
    bottom = top + HEAD + 38 * len(shown)
    for tick in range(0, 101, 25):
        x = left + (right - left) * tick / 100
        canvas.line([(x, top + HEAD - 4), (x, bottom - 4)], LINE, 1)
        canvas.text(x, bottom + 18, f"{tick}%", 15, SOFT, "ms")
    for i, row in enumerate(shown):
        y, colour = top + HEAD + 38 * i + 14, look[series(row)][0]
        x0, x, x1 = (left + (right - left) * getattr(row, key) for key in ("low", "success", "high"))
        canvas.text(left - 22, y, row_label(row, shown), 18, INK, "rm")
        canvas.line([(x0, y), (x1, y)], colour, 3.5)
        canvas.dot(x, y, 8.5, colour)
        canvas.bold(right + 96, y, percent(row.success), 20, INK, "rm")
        words = f"{row.successes} of {row.episodes}, {percent(row.low)} to {percent(row.high)}"
        canvas.text(right + 112, y, words, 16, SOFT, "lm")


@dataclass(frozen=True)
class Flags:
    """Draw one picture (PNG) of a run."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="Folder of a run.")]
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="File of the picture.")]


def main(arguments: Flags) -> None:
    """Draw."""
    print(f"Picture: {hero_image(arguments.run, arguments.out)}")


if __name__ == "__main__":
    sys.exit(command(Flags, main))
