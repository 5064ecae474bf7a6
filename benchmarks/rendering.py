"""Frames a second of the MuJoCo tasks at 256 pixels: the settings chosen here against MuJoCo's own, side by side.

Both contenders run in one process, in turns, on the same timesteps of an expert's episode. Adds to the results file
what can be measured in this environment (LIBERO needs one of its own) and draws docs/rendering/NAME.png, one per task.

    uv run python benchmarks/rendering.py
    UV_PROJECT_ENVIRONMENT=.venv-libero uv run --extra libero python benchmarks/rendering.py
"""

from __future__ import annotations

import importlib
import json
import statistics
from pathlib import Path

import numpy as np

from classact.data.types import ImageArray
from classact.errors import ClassactError
from classact.sims import SIMULATORS, make_simulator
from classact.sims.experts.base import attempt
from classact.utils.progress import progress_bar
from common import parser, save, seconds
from gallery import ORDER, labelled, save_picture, titled

SIZE = 256
PICTURES = Path(__file__).resolve().parents[1] / "docs" / "rendering"


def measure(name: str, frames: int, repeats: int) -> dict[str, object]:
    """Frames a second of both settings, how much the pictures differ, and the pictures of one timestep."""
    from classact.sims.renderer import Quality

    module, _, function = str(SIMULATORS[name].expert).partition(":")
    chosen = make_simulator(name, image_size=SIZE)
    episode = attempt(chosen, getattr(importlib.import_module(module), function), seed=0)
    shipped = make_simulator(name, image_size=SIZE)
    shipped_quality = Quality(samples=4, shadows=4096, reflections=True)  # MuJoCo's own
    settings = {"chosen": chosen.quality, "shipped": shipped_quality}  # type: ignore[attr-defined]
    shipped.quality = shipped_quality  # type: ignore[attr-defined]
    states = episode.states[np.linspace(0, len(episode) - 1, frames).astype(int)]

    def render(sim: object) -> list[ImageArray]:
        images = []
        for state in states:
            sim.set_state(state)  # type: ignore[attr-defined]
            images.append(next(iter(sim.observe().images.values())))  # type: ignore[attr-defined]
        return images

    pictures = {"chosen": render(chosen), "shipped": render(shipped)}  # the first frame of a context is slow
    rates: dict[str, list[float]] = {"chosen": [], "shipped": []}
    for _ in range(repeats):
        for key, sim in (("chosen", chosen), ("shipped", shipped)):
            rates[key].append(frames / seconds(lambda sim=sim: render(sim)))
    difference = np.abs(np.float32(pictures["chosen"]) - np.float32(pictures["shipped"]))
    middle = frames // 2
    tiles = [labelled(pictures[key][middle], key) for key in ("shipped", "chosen")]
    strip = titled(np.concatenate(tiles, axis=1), SIMULATORS[name].title)
    save_picture(PICTURES / f"{name}.png", strip)
    chosen.close()
    shipped.close()
    fps = {key: statistics.median(values) for key, values in rates.items()}
    return {
        **{f"{key}_frames_per_second": value for key, value in fps.items()},
        "ratio": fps["chosen"] / fps["shipped"],
        "settings": {key: vars(value) for key, value in settings.items()},
        "mean_absolute_difference": float(difference.mean()),
        "share_of_pixels_beyond_16": float((difference.max(axis=-1) > 16).mean()),
        "frames": frames,
        "repeats": repeats,
    }


def main() -> None:
    arguments = parser(__doc__ or "", "rendering")
    arguments.add_argument("tasks", nargs="*", default=[name for name in ORDER if name != "pusht"])
    arguments.add_argument("--frames", type=int, default=40)
    arguments.add_argument("--repeats", type=int, default=5)
    options = arguments.parse_args()
    result = json.loads(options.json.read_text())["tasks"] if options.json.exists() else {}
    with progress_bar("render") as bar:
        for number, name in enumerate(options.tasks):
            bar(number, len(options.tasks), name)
            try:
                result[name] = measure(name, options.frames, options.repeats)
            except ClassactError as problem:
                print(f"{name}: not measured: {problem}")
    save(options.json, {"image_size": SIZE, "tasks": result})


if __name__ == "__main__":
    main()
