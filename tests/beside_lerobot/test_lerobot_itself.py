"""What LeRobot itself reads, beside what classact reads: .ci/lerobot runs this in an environment that has both."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

lerobot = pytest.importorskip("lerobot", reason="needs LeRobot in an environment of its own: .ci/lerobot")

from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: E402

from classact.data.lerobot_writer import write_lerobot  # noqa: E402
from classact.data.readers import read_demonstrations  # noqa: E402
from conftest import SHARED  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "data/readers"))
from lerobot_files import episode, write_v3  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

RECORDED = ("video_v3.0", "multi_v3.0", "arm_v3.0", "image_v3.0", "nostate_v3.0")


def compare(root: Path, steps: list[int] | None = None) -> None:
    """Numbers exactly, frames as LeRobot's PyAV decodes them."""
    ours, theirs = read_demonstrations(root), LeRobotDataset("user/name", root=root, video_backend="pyav")
    assert (len(theirs), theirs.num_episodes, theirs.fps) == (ours.num_steps, len(ours), ours.schema.fps)
    starts = np.cumsum([0, *(size for _, size in ours.schema.proprioception)])
    for i in steps or range(len(theirs)):
        item: dict[str, Any] = theirs[i]
        assert_array_equal(item["action"].numpy(), ours.actions[i])
        for (key, size), start in zip(ours.schema.proprioception, starts, strict=False):
            assert_array_equal(item[f"observation.{key}"].numpy(), ours.proprioception[i, start : start + size])
        episode_index = int(ours.episode_index()[i])
        assert int(item["episode_index"]) == episode_index
        assert item["task"] == (ours.instructions[episode_index] if ours.instructions else "")
        for camera, images in ours.images.items():
            name = next(key for key in item if key.removeprefix("observation.").removeprefix("images.") == camera)
            frame = (item[name].numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)
            assert_array_equal(images[i], frame)


@pytest.mark.parametrize("name", RECORDED)
def test_data_that_lerobot_wrote(name: str) -> None:
    root = SHARED / "formats/lerobot" / name
    if not root.is_dir():
        pytest.skip(f"{root} is not here")
    rows = read_demonstrations(root).num_steps
    compare(root, np.linspace(0, rows - 1, 60).round().astype(int).tolist())


@pytest.mark.parametrize("pictures", [False, True])
def test_data_that_these_tests_write(pictures: bool, tmp_path: Path) -> None:
    episodes = [episode(n, i, task=("push", "pull")[i % 2]) for i, n in enumerate((5, 9, 3))]
    compare(write_v3(tmp_path / "a", episodes, pictures=pictures))


@pytest.mark.parametrize("images", ["video", "png"])
def test_data_that_classact_converts(images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(os.environ.get("CLASSACT_CONVERTED", SHARED / "formats/hdf5/mobile_aloha"))
    if not source.exists():
        pytest.skip(f"{source} is not here")
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path / "home"))
    data = read_demonstrations(source)
    root = write_lerobot(data, tmp_path / "a", images=images)
    again = read_demonstrations(root)
    assert_array_equal(again.actions, data.actions)
    compare(root, np.linspace(0, data.num_steps - 1, 60).round().astype(int).tolist())
