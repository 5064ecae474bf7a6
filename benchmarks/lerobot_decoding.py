"""How fast frames of a LeRobot data set are there, in one process each.

    .ci/lerobot makes an environment that has classact and LeRobot; in it:
    .venv-lerobot/bin/python benchmarks/lerobot_decoding.py DATA

Parts, each kept in the results file until it is measured again (``--parts``):

* decoding: LeRobot's own loader beside classact's. LeRobot decodes a frame whenever it is asked for; classact decodes
  all of them once, into its store, and maps the store into memory from then on. Both see the same rows.
* opening: reading a data set whose frames are in the store, to where a training could begin; the data set's episodes
  are written as often as makes 30,000 frames.
* training: steps of pre-training from videos and from the same frames in a Zarr store, in turns.

Medians of several. The last two need no LeRobot.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from classact.data.types import Demonstrations
from classact.utils.machine import hardware, versions
from classact.utils.storage import read_json, write_json
from common import parser, peak_mebibytes, seconds

REPEATS = 3
SHUFFLED = 600
"""Rows in random order, as a training asks for them."""

OPENED, OPENINGS = 30_000, 5
STEPS = 15


def decoding(data: Demonstrations, source: Path, size: int) -> dict[str, Any]:
    """Frames per second beside LeRobot's loader, and what its store costs to open."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from classact.data.images import ImageStore, resized

    (camera, images), *_ = data.images.items()
    order = np.random.default_rng(0).permutation(len(images))[:SHUFFLED]

    def all_into(root: str) -> None:
        ImageStore(Path(root)).get_or_create(resized(images, size))

    found: dict[str, list[float]] = {name: [] for name in ("decode once", "open", "mapped", "lerobot pyav")}
    theirs = LeRobotDataset("user/name", root=source, video_backend="pyav")
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as root:
            found["decode once"].append(len(images) / seconds(lambda root=root: all_into(root)))
            found["open"].append(seconds(lambda root=root: all_into(root)))
            kept = ImageStore(Path(root)).get_or_create(resized(images, size))
            found["mapped"].append(SHUFFLED / seconds(lambda kept=kept: [np.array(kept[i]) for i in order]))
        found["lerobot pyav"].append(SHUFFLED / seconds(lambda: [theirs[int(i)] for i in order]))
    return {
        "data": source.name,
        "frames": len(images),
        "pixels": size,
        "frames per second": {name: round(median(found[name]), 1) for name in found if name != "open"},
        "seconds to open the store again": round(median(found["open"]), 4),
        "peak MiB": round(peak_mebibytes(), 1),
        "camera": camera,
        "hardware": hardware(),
        "versions": versions(),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def opening(data: Demonstrations, size: int) -> dict[str, Any]:
    """Seconds to read 30,000 frames' data set and to map its frames, which are in the store."""
    from classact.data.lerobot_writer import write_lerobot
    from classact.data.readers import read_demonstrations
    from classact.run.config import FramesConfig
    from classact.run.frames import prepare_frames
    from classact.sims import NO_SIMULATOR

    often = -(-OPENED // data.num_steps)
    camera = next(iter(data.images))
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "set"
        write_lerobot(data.subset([*range(len(data))] * often), path)

        def opened() -> Demonstrations:
            return prepare_frames(
                read_demonstrations(path), (camera,), size, FramesConfig(simulator=NO_SIMULATOR, shift="fixed")
            )

        made = opened()  # decodes them into the store
        return {
            "frames": made.num_steps,
            "episodes": len(made),
            "pixels": size,
            "seconds": round(median([seconds(opened) for _ in range(OPENINGS)]), 4),
        }


def training(data: Demonstrations, size: int) -> dict[str, Any]:
    """Images per second of pre-training from the videos, and from a Zarr store of the same frames, in turns."""
    import zarr

    from classact.data.readers import read_demonstrations
    from classact.run.frames import prepare_frames
    from classact.run.presets import configure
    from classact.train.batches import epoch_batches
    from classact.train.representation import Trainer

    config = configure(data.source)
    encoder = replace(config.pretrain.encoder, image_size=size, crop_size=round(0.875 * size))
    similarity = replace(config.pretrain.similarity, estimate="sampled", pairs=100_000)
    settings = replace(config.pretrain, encoder=encoder, similarity=similarity)
    (camera,) = encoder.cameras
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "set.zarr"
        group = zarr.open_group(str(path), mode="w", zarr_format=2)
        arrays = {
            "data/action": data.actions,
            "data/state": data.proprioception,
            f"data/{camera}": np.asarray(data.images[camera]),
            "meta/episode_ends": data.episode_ends,
        }
        for name, array in arrays.items():
            chunks = (64, *array.shape[1:])
            group.create_array(name, shape=array.shape, dtype=array.dtype, chunks=chunks)[:] = array
        trainers = {}
        for name, source in (("video", data), ("zarr", read_demonstrations(path))):
            frames = prepare_frames(source, (camera,), size, config.frames)
            trainers[name] = Trainer(frames, settings)
    times: dict[str, list[float]] = {name: [] for name in trainers}
    batches = epoch_batches(data.num_steps, settings.batch_size, 0, 0)
    for step in range(STEPS + 3):
        rows = next(batches)
        for name in [*trainers][:: 1 if step % 2 else -1]:
            took = seconds(lambda name=name, rows=rows: trainers[name].train_step(rows))
            if step >= 3:  # the first ones allocate memory and choose kernels
                times[name].append(took)
    rate = {name: settings.batch_size / median(own) for name, own in times.items()}
    ratios = [zarr_ / video for video, zarr_ in zip(times["video"], times["zarr"], strict=True)]
    return {
        "frames": data.num_steps,
        "pixels": size,
        "batch size": settings.batch_size,
        "steps": STEPS,
        "images per second": {name: round(value, 1) for name, value in rate.items()},
        "video to zarr": round(median(ratios), 3),
        "range of the middle half": [round(float(q), 3) for q in np.quantile(ratios, (0.25, 0.75))],
    }


def main() -> None:
    arguments = parser(__doc__ or "", "lerobot_decoding")
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--size", type=int, default=96)
    arguments.add_argument("--parts", nargs="+", default=["decoding", "opening", "training"])
    options = arguments.parse_args()
    os.environ["CLASSACT_CACHE"] = tempfile.mkdtemp()

    from classact.data.readers import read_demonstrations

    data = read_demonstrations(options.data)
    result = dict(read_json(options.json)) if options.json.exists() else {}
    if "decoding" in options.parts:
        result |= decoding(data, options.data, options.size)
    for name, measure in (("opening", opening), ("training", training)):
        if name in options.parts:
            before = os.getloadavg()[0]
            result[name] = measure(data, options.size) | {
                "load before": round(before, 1),
                "hardware": hardware(),
                "measured": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            write_json(options.json, result)
            print(name, result[name])
    write_json(options.json, result)
    print(f"written to {options.json}")


if __name__ == "__main__":
    main()
