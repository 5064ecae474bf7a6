"""How fast frames of a LeRobot data set are there: LeRobot's own loader beside classact's, in one process.

    .ci/lerobot makes an environment that has both; in it:
    .venv-lerobot/bin/python benchmarks/lerobot_decoding.py DATA

LeRobot decodes a frame whenever it is asked for; classact decodes all of them once, into its store, and maps the store
into memory from then on. Median of several; each sees the same rows.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from common import parser, peak_mebibytes, save, seconds

REPEATS = 3
SHUFFLED = 600
"""Rows in random order, as a training asks for them."""


def main() -> None:
    arguments = parser(__doc__ or "", "lerobot_decoding")
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--size", type=int, default=96)
    options = arguments.parse_args()
    os.environ["CLASSACT_CACHE"] = tempfile.mkdtemp()

    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from classact.data.images import ImageStore, resized
    from classact.data.readers import read_demonstrations

    data = read_demonstrations(options.data)
    (camera, images), *_ = data.images.items()
    order = np.random.default_rng(0).permutation(len(images))[:SHUFFLED]
    result: dict[str, Any] = {"data": options.data.name, "frames": len(images), "pixels": options.size}

    def all_into(root: str) -> None:
        ImageStore(Path(root)).get_or_create(resized(images, options.size))

    found: dict[str, list[float]] = {name: [] for name in ("decode once", "open", "mapped", "lerobot pyav")}
    theirs = LeRobotDataset("user/name", root=options.data, video_backend="pyav")
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as root:
            found["decode once"].append(len(images) / seconds(lambda root=root: all_into(root)))
            found["open"].append(seconds(lambda root=root: all_into(root)))
            kept = ImageStore(Path(root)).get_or_create(resized(images, options.size))
            found["mapped"].append(SHUFFLED / seconds(lambda kept=kept: [np.array(kept[i]) for i in order]))
        found["lerobot pyav"].append(SHUFFLED / seconds(lambda: [theirs[int(i)] for i in order]))
    result["frames per second"] = {name: round(median(found[name]), 1) for name in found if name != "open"}
    result["seconds to open the store again"] = round(median(found["open"]), 4)
    result["peak MiB"] = round(peak_mebibytes(), 1)
    result["camera"] = camera
    save(options.json, result)


if __name__ == "__main__":
    main()
