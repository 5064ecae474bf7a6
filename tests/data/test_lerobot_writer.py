"""LeRobot data sets that classact writes, read back; tests/beside_lerobot reads them with LeRobot itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fakes
from classact.cli.main import main
from classact.data.actions import ActionSpace
from classact.data.lerobot_writer import PER_FILE, write_lerobot
from classact.data.readers import read_demonstrations
from classact.data.types import Demonstrations
from classact.errors import ConfigError


def demonstrations(lengths: tuple[int, ...] = (5, 3, 4), fps: float | None = 10.0) -> Demonstrations:
    data = fakes.two_views(fakes.demonstrations(0, 17, lengths))
    tasks = tuple(("push it", "pull it")[e % 2] for e in range(len(data)))
    return replace(data, schema=replace(data.schema, fps=fps), instructions=tasks)


@pytest.mark.parametrize("images", ["video", "png"])
@pytest.mark.parametrize("lengths", [(5, 3, 4), (2,) * (PER_FILE + 3)])
def test_a_round_trip_is_exact_but_for_videos(images: str, lengths: tuple[int, ...], tmp_path: Path) -> None:
    data = demonstrations(lengths)
    done: list[tuple[int, int]] = []
    write_lerobot(data, tmp_path / "a", images=images, progress=lambda *at: done.append(at))  # type: ignore[arg-type]
    read = read_demonstrations(tmp_path / "a")
    assert_array_equal(read.actions, data.actions)
    assert_array_equal(read.proprioception, data.proprioception)
    assert_array_equal(read.episode_ends, data.episode_ends)
    assert (read.instructions, read.schema.fps) == (data.instructions, 10.0)
    assert read.schema.actions == data.schema.actions
    assert set(read.images) == set(data.images)
    for camera, pictures in data.images.items():
        found, true = np.asarray(read.images[camera]), np.asarray(pictures)
        if images == "png":
            assert_array_equal(found, true)
        else:
            height, width = true.shape[1:3]
            assert found.shape[1:3] == (height + height % 2, width + width % 2)
    assert done[-1] == (len(data), len(data))


def test_statistics_are_those_of_the_data(tmp_path: Path) -> None:
    data = demonstrations()
    root = write_lerobot(data, tmp_path / "a", images="png")
    stats = json.loads((root / "meta/stats.json").read_text())
    for name, value in (("min", data.actions.min(0)), ("max", data.actions.max(0)), ("mean", data.actions.mean(0))):
        assert_allclose(stats["action"][name], value, rtol=1e-5)
    assert_allclose(stats["action"]["std"], data.actions.astype(np.float64).std(0), rtol=1e-5)
    top = np.asarray(data.images["top"]).reshape(-1, 3) / 255
    assert_allclose(np.ravel(stats["observation.images.top"]["mean"]), top.mean(0), rtol=1e-6)
    assert stats["action"]["count"] == [data.num_steps]


def test_what_actions_mean_comes_back_whatever_they_are(tmp_path: Path) -> None:
    space = ActionSpace.joints(1, gripper=1)
    data = demonstrations()
    data = replace(data, schema=replace(data.schema, actions=space))
    root = write_lerobot(data, tmp_path / "a", images="png")
    names = json.loads((root / "meta/info.json").read_text())["features"]["action"]["names"]
    assert names == ["joints.pos", "gripper.pos"]
    assert read_demonstrations(root).schema.actions == space
    (root / "meta/classact.json").unlink()
    found = read_demonstrations(root).schema.actions
    assert found is not None
    assert found.describe() == space.describe()


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"steps per second are not known\. Say them: --fps 10"):
        write_lerobot(demonstrations(fps=None), tmp_path / "a")
    for fps in (3.0, 0.0, -5.0):
        with pytest.raises(ConfigError, match=rf"asked for {fps:g} steps per second; they have .* Leave --fps out"):
            write_lerobot(demonstrations(), tmp_path / "a", fps=fps)
    with pytest.raises(ConfigError, match="asked for 0 steps per second; expected more than 0"):
        write_lerobot(demonstrations(fps=None), tmp_path / "a", fps=0.0)
    assert not (tmp_path / "a").exists()
    (tmp_path / "b").mkdir()
    with pytest.raises(ConfigError, match=r"b exists\. Choose another folder"):
        write_lerobot(demonstrations(), tmp_path / "b")


def test_names_and_rates_stay_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = demonstrations(fps=12.50025)
    size = data.proprioception.shape[1]
    assert size > 1
    keys = (("proprioception", 1), ("state", size - 1))
    language = np.ones((len(data), 5), np.float32)
    data = replace(
        data, schema=replace(data.schema, proprioception=keys, language=5), language=language, instructions=()
    )
    read = read_demonstrations(write_lerobot(data, tmp_path / "a"))
    assert read.schema.proprioception == keys
    np.testing.assert_array_equal(read.proprioception, data.proprioception)
    assert read.schema.fps == pytest.approx(12513 / 1001)  # the nearest that a video has
    assert "embeddings of instructions are left out" in caplog.text


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["data", "convert", "pusht-expert", "--episodes", "2", "--out", str(out), "--quiet"]
    assert main(command) == 0
    assert f"LeRobot data set: {out}" in capsys.readouterr().out
    assert len(read_demonstrations(out)) == 2
