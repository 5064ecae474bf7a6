"""What is odd about demonstrations, and pictures of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from classact.cli.main import main
from classact.data.images import ImageSource
from classact.data.preview import CELL, contact_sheet, write_preview
from classact.data.schema import Schema
from classact.data.types import Demonstrations
from classact.data.validate import LAGS, Finding, lag_scores, validate
from classact.data.video import read_video
from classact.errors import ConfigError, DataError


def walk(lengths: tuple[int, ...] = (30, 40, 35), lag: int = 1, **changes: Any) -> Demonstrations:
    """A robot whose joints follow its commands ``lag`` steps later, with a camera that sees it."""
    rng = np.random.default_rng(0)
    actions, seen = [], []
    for n in lengths:
        path = np.cumsum(rng.normal(size=(n + 20, 2)), axis=0)
        actions.append(path[10 : 10 + n])
        seen.append(path[10 - lag : 10 - lag + n])
    steps = sum(lengths)
    images = rng.integers(40, 200, (steps, 12, 16, 3), np.uint8)
    data = Demonstrations(
        "walk",
        np.cumsum(lengths),
        np.concatenate(actions).astype(np.float32),
        np.concatenate(seen).astype(np.float32),
        images={"top": images},
        schema=Schema(("top",), (("joints", 2),)),
    )
    return replace(data, **changes)


def found(data: Demonstrations) -> dict[str, Finding]:
    return {one.check: one for one in validate(data)}


def test_nothing_is_odd_about_good_data() -> None:
    assert validate(walk()) == [Finding("note", "lag", "joints", found(walk())["lag"].what)]
    assert "follows the actions by 1 steps (correlation of changes 1.00)" in found(walk())["lag"].what
    assert validate(walk(lag=0)) == []


def test_a_lag_is_found_in_both_directions() -> None:
    for lag in (-3, 0, 2, 7):
        data = walk(lag=lag)
        assert int(np.argmax(lag_scores(data.actions, data.proprioception, data))) - LAGS == lag
    ahead = found(walk(lag=-3))["lag"]
    assert (ahead.kind, ahead.where) == ("problem", "joints")
    assert "joints is ahead of the actions by 3 steps" in ahead.what


def test_each_oddity_is_named() -> None:
    data = walk(lag=0)
    actions = data.actions.copy()
    actions[:, 1] = 2.5
    assert found(replace(data, actions=actions))["constant"].where == "action 1"
    actions = data.actions.copy()
    actions[50, 0] += 500
    jumps = found(replace(data, actions=actions))["jumps"]
    assert jumps.kind == "problem"
    assert "2 jumps" in jumps.what
    assert "at step 19 of episode 1" in jumps.what
    clipped = np.minimum(data.actions, np.quantile(data.actions, 0.6, axis=0)).astype(np.float32)
    assert "are at the highest value" in found(replace(data, actions=clipped))["saturated"].what
    twice = data.subset([0, 1, 0, 2])
    copies = found(twice)["equal episodes"]
    assert (copies.kind, copies.where) == ("problem", "episodes 2")
    assert "episode 2 those of 0" in copies.what
    lengths = found(walk((30, 30, 30, 3, 200)))["lengths"]
    assert "1 of 5 are" in lengths.what


def test_jumps_between_episodes_are_none() -> None:
    data = walk(lag=0)
    actions = data.actions.copy()
    actions[30:70] += 1000
    assert "jumps" not in found(replace(data, actions=actions))


def test_frames_that_cannot_be() -> None:
    data = walk(lag=0)
    images = np.asarray(data.images["top"]).copy()
    dark = images.copy()
    dark[10:13] = 1
    assert "black" in found(data.with_images({"top": dark}))["black frames"].what
    still = np.repeat(images[:1], len(images), axis=0)
    assert "all frames looked at are the same" in found(data.with_images({"top": still}))["frozen"].what
    slow = np.repeat(images[::7], 7, axis=0)[: len(images)]
    assert "equal the next one although the robot moves" in found(data.with_images({"top": slow}))["frozen"].what
    rests = replace(data, proprioception=np.zeros_like(data.proprioception)).with_images({"top": slow})
    assert "frozen" not in found(rests)


class Broken(ImageSource):
    shape = (105, 12, 16, 3)

    def digest(self) -> str:
        return ""

    def decode(self, start: int, stop: int) -> Any:  # noqa: ARG002
        raise DataError("video.mp4 cannot be decoded")


def test_frames_that_cannot_be_decoded_are_a_finding() -> None:
    assert found(walk().with_images({"top": Broken()}))["frames"].what == "video.mp4 cannot be decoded"


def test_the_command_says_what_it_found(human_zarr: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["data", "validate", str(human_zarr), "--episodes", "20", "--quiet"])
    said = capsys.readouterr().out
    assert "20 episodes, 0 problems" in said
    assert status == 0


def test_a_contact_sheet_and_a_video(tmp_path: Path) -> None:
    data = walk()
    data = data.with_images({**data.images, "wrist": np.asarray(data.images["top"])[:, :, :8]})
    sheet = contact_sheet(data, episodes=3, frames=4)
    assert sheet.shape == (3 * CELL + 2 * 4, 4 * 2 * CELL + 3 * 4, 3)
    written = write_preview(data, tmp_path / "a.png")
    with Image.open(written) as image:
        assert image.size[1] == 3 * CELL + 2 * 4
    video = read_video(write_preview(data, tmp_path / "a.mp4", episode=1))
    assert video.shape == (40, CELL, 2 * CELL, 3)
    with pytest.raises(ConfigError, match=r"has episodes 0 to 2, not 3"):
        write_preview(data, tmp_path / "b.mp4", episode=3)
    with pytest.raises(ConfigError, match=r"expected the name of a \.png"):
        write_preview(data, tmp_path / "b.gif")
    with pytest.raises(DataError, match="holds no images to look at"):
        write_preview(data.with_images({}), tmp_path / "b.png")
