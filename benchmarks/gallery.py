"""What the simulated tasks look like under their visual shifts: one strip per task, all strips in one picture.

    uv run python benchmarks/gallery.py docs/gallery
    UV_PROJECT_ENVIRONMENT=.venv-libero uv run --extra libero python benchmarks/gallery.py docs/gallery

Simulators that cannot be installed together (LIBERO and robosuite 1.5) each leave their strips in the same folder; the
picture is made of all strips that lie there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image, ImageDraw, ImageFont

from classact.data.images import resize_images
from classact.data.types import ImageArray
from classact.errors import ConfigError, SimulatorError
from classact.sims import SIMULATORS, make_simulator
from classact.utils.progress import progress_bar
from classact.utils.storage import atomic_path
from common import command

TILE, LABEL, MARGIN = 192, 22, 4  # pixels
LATER = 300
"""Control steps after which moving cameras are shown again."""

ORDER = tuple(name for name, entry in SIMULATORS.items() if entry.paper)  # the paper's tasks
"""Of the strips, from above."""


@dataclass(frozen=True)
class Tile:
    """One picture of a strip: what is written under it, the shift, seed of start and appearance, step, camera."""

    label: str
    shift: str
    seed: int = 0
    step: int = 0
    camera: int = 0


_ARM = (
    Tile("fixed", "fixed"),
    Tile("random-static", "random-static", 1),
    Tile("random-static, next", "random-static", 2),
    Tile("dynamic", "dynamic", 3),
    Tile(f"dynamic, step {LATER}", "dynamic", 3, LATER),
    Tile("wrist camera", "fixed", 0, 0, 1),
)
STRIPS: dict[str, tuple[Tile, ...]] = {
    "pusht": (
        Tile("fixed-color", "fixed-color"),
        *(Tile("rand-color" + (", next" if seed > 1 else ""), "rand-color", seed) for seed in range(1, 6)),
    ),
    "aloha-transfer": (
        Tile("fixed", "fixed"),
        Tile("rotation-static", "rotation-static", 1),
        Tile("rotation-static, next", "rotation-static", 2),
        Tile("rotation", "rotation", 3),
        Tile(f"rotation, step {LATER}", "rotation", 3, LATER),
        Tile("camera angle", "fixed", 0, 0, 1),
    ),
}
"""Tiles of a task; others are arms with the camera shifts."""


def draw_strip(name: str, size: int = TILE) -> ImageArray:
    """(height, width, 3) picture of one task: its title, and its tiles with labels.

    Raises:
        ConfigError: unknown simulator, or its extra is not installed.
        SimulatorError: it does not start.
    """
    pictures = []
    probe = make_simulator(name)
    cameras = probe.spec.cameras
    probe.close()
    for tile in STRIPS.get(name, _ARM):
        camera = cameras[tile.camera]
        sim = make_simulator(name, image_size=256, shift=tile.shift, cameras=(camera,))
        try:
            sim.reset(tile.seed)
            sim.set_state(sim.get_state(), step=tile.step)
            image = sim.observe().images[camera]
        finally:
            sim.close()
        pictures.append(labelled(resize_images(image[None], size)[0], tile.label))
    return titled(np.concatenate(pictures, axis=1), SIMULATORS[name].title)


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def labelled(image: ImageArray, text: str) -> ImageArray:
    """The picture with a margin and words under it."""
    height, width = image.shape[:2]
    canvas = Image.new("RGB", (width + 2 * MARGIN, height + MARGIN + LABEL), "white")
    canvas.paste(Image.fromarray(image), (MARGIN, MARGIN))
    ImageDraw.Draw(canvas).text((MARGIN + 2, height + MARGIN + 3), text, fill=(60, 60, 60), font=_font(13))
    return np.asarray(canvas)


def titled(strip: ImageArray, title: str) -> ImageArray:
    """The picture with words above it."""
    canvas = Image.new("RGB", (strip.shape[1], strip.shape[0] + 24), "white")
    canvas.paste(Image.fromarray(strip), (0, 24))
    ImageDraw.Draw(canvas).text((MARGIN + 2, 5), title, fill="black", font=_font(15))
    return np.asarray(canvas)


def make_gallery(
    folder: Path, names: Sequence[str] = (), progress: Callable[[int, int, str], None] | None = None
) -> tuple[Path, dict[str, str]]:
    """Draw the strips of the tasks that are installed into ``folder``, and gallery.png of all strips that are there.

    Args:
        folder: for the strips (NAME.png) and the picture.
        names: tasks; all where empty.
        progress: called with (tasks done, in all, what is drawn).

    Returns:
        The picture, and for every task that could not be drawn the reason.

    Raises:
        ConfigError: unknown names, or nothing could be drawn and no strip is there.
    """
    asked = {name: SIMULATORS[name].title for name in names or ORDER}
    missing: dict[str, str] = {}
    for number, (name, title) in enumerate(asked.items()):
        if progress is not None:
            progress(number, len(asked), title)
        try:
            strip = draw_strip(name)
        except (ConfigError, SimulatorError) as problem:
            missing[name] = str(problem)
            continue
        save_picture(folder / f"{name}.png", strip)
    if progress is not None:
        progress(len(asked), len(asked), "")
    strips = [folder / f"{name}.png" for name in ORDER if (folder / f"{name}.png").exists()]
    if not strips:
        raise ConfigError(f"no task could be drawn: {'; '.join(missing.values())}")
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in strips]
    width = max(picture.shape[1] for picture in pictures)
    padded = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
    out = folder / "gallery.png"
    save_picture(out, np.concatenate(padded))
    return out, missing


def save_picture(path: Path, picture: ImageArray) -> None:
    """Write a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", optimize=True)


@dataclass(frozen=True)
class Flags:
    """Draw every installed task under its visual shifts into one picture."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="Folder for gallery.png and one strip per task.")]
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(help="Only these simulators.")] = ()


def main(arguments: Flags) -> None:
    """Draw; say what is missing and how to get it."""
    with progress_bar("draw tasks") as bar:
        picture, missing = make_gallery(arguments.out, arguments.tasks, bar)
    for name, reason in missing.items():
        print(f"{name}: not drawn now: {reason}", file=sys.stderr)
    print(f"Picture: {picture}")


if __name__ == "__main__":
    sys.exit(command(Flags, main))
