"""What is odd about demonstrations, and pictures of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from classact.cli.data import dimension_ranges
from classact.cli.main import main
from classact.data.images import ImageSource
from classact.data.lerobot_writer import write_lerobot
from classact.data.preview import CELL, contact_sheet, write_preview
from classact.data.readers import check_files
from classact.data.schema import Schema
from classact.data.types import Demonstrations
from classact.data.validate import LAGS, TURNS, Finding, lag_scores, turned_frames, validate
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


def scene(episodes: int, *, moves: bool = False, lean: float = 1.0) -> Any:
    """(E, 24, 24, 3) first frames: a table below a bright wall, things on it, the light of the day."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:24, :24] / 24
    frames = []
    for _ in range(episodes):
        wall = 190 - lean * 130 * y + 40 * (x > 0.6) * (y < 0.4)
        if moves:  # a camera on the hand: nothing stays where it is
            wall = np.roll(rng.normal(128, 60, (24, 24)), rng.integers(24, size=2), axis=(0, 1))
        top, left = rng.integers(10, 18, size=2)
        wall[top : top + 5, left : left + 5] = rng.integers(0, 255)
        frames.append(np.repeat((wall * rng.uniform(0.7, 1.0))[..., None], 3, axis=2) + rng.normal(0, 6, (24, 24, 3)))
    return np.stack(frames).clip(0, 255).astype(np.uint8)


def turned(frames: Any) -> dict[str, list[int]]:
    return {word: turned_frames(frames, turn).tolist() for word, turn in TURNS.items()}


@given(st.sets(st.integers(0, 19), min_size=1, max_size=9), st.sampled_from(list(TURNS)))
@settings(max_examples=20)
def test_frames_that_are_upside_down_are_found_and_no_others(wrong: set[int], word: str) -> None:
    frames = scene(20)
    for e in wrong:
        frames[e] = TURNS[word](frames[e : e + 1])[0]
    assert sorted(wrong) in turned(frames).values()


def test_scenes_that_say_nothing_of_up_and_down_raise_no_alarm() -> None:
    none: dict[str, list[int]] = {word: [] for word in TURNS}
    for episodes in (1, 2, 3, 40):
        assert turned(scene(episodes)) == none
        assert turned(scene(episodes, moves=True)) == none
        assert turned(scene(episodes, lean=0.0)) == none
    flat = np.full((10, 24, 24, 3), 90, np.uint8)
    assert turned(flat) == none
    assert turned(np.random.default_rng(0).integers(0, 255, flat.shape, np.uint8)) == none


def test_an_episode_that_is_upside_down_is_a_row() -> None:
    data = walk((10, 12, 11, 9), lag=0)
    images = np.repeat(scene(4), data.lengths, axis=0)
    images[10:22] = images[10:22, ::-1]
    finding = found(data.with_images({"top": images}))["upside down"]
    assert (finding.kind, finding.where) == ("problem", "camera top, episodes 1")
    assert "1 of 4 look flipped upside down beside the others" in finding.what


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A LeRobot data set that classact wrote."""
    return write_lerobot(walk(), tmp_path / "set", fps=10, images="png")


def change(file: Path, column: str, values: Any) -> None:
    table = pq.read_table(file)
    at = table.schema.get_field_index(column)
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type)), file)


def test_recorded_statistics_are_compared(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_files(written) == []
    file = written / "meta/stats.json"
    stats = json.loads(file.read_text())
    right = stats["action"]["mean"][1]
    stats["action"]["mean"][1] += 30
    del stats["observation.state"]
    file.write_text(json.dumps(stats))
    wrong, missing = check_files(written)
    assert (wrong.kind, wrong.check, wrong.where) == ("problem", "statistics", "action")
    assert f"mean of dimension 1 is recorded as {right + 30:.5g}, computed is {right:.5g}" in wrong.what
    assert (missing.kind, missing.where) == ("note", "observation.state")
    assert check_files(written, "0:2") == []  # those of the whole data set say nothing of a part
    table = written / "meta/episodes/chunk-000/file-000.parquet"
    most = pq.read_table(table).column("stats/action/max").to_pylist()
    change(table, "stats/action/max", [most[0], [float("nan"), most[1][1]], most[2]])
    (odd,) = check_files(written, "0:2")
    assert odd.where == "action, episodes 1"
    assert "of episode 1, max of dimension 0 is recorded as nan" in odd.what
    assert main(["data", "validate", str(written), "--quiet"]) == 1
    assert "2 problems" in capsys.readouterr().out


def test_times_are_compared_with_the_rate(written: Path) -> None:
    data = written / "data/chunk-000/file-000.parquet"
    times = pq.read_table(data).column("timestamp").to_numpy()

    def said(values: Any) -> list[tuple[str, str]]:
        change(data, "timestamp", values.astype(np.float32))
        return [(one.kind, f"{one.where}: {one.what}") for one in check_files(written)]

    gap = times.copy()
    gap[50:70] += 0.4  # of the second episode
    ((kind, what),) = said(gap)
    assert kind == "problem"
    assert "episodes 1: 1 gaps; the first, 1.9000 to 2.4000 s, at step 19 of episode 1, expected 0.1 s" in what
    back = times.copy()
    back[[10, 11]] = back[[11, 10]]
    assert any("do not increase" in what for _, what in said(back))
    ((kind, what),) = said(times / 1.5)
    assert "66.67 ms apart, 15 per second, but meta/info.json says fps 10" in what
    ((kind, what),) = said(times + 0.003 * np.sin(np.arange(len(times))) * (times > 0))
    assert kind == "note"
    assert "times differ by up to" in what
    info = written / "meta/info.json"
    info.write_text(info.read_text().replace('"total_frames": 105', '"total_frames": 106'))
    ((kind, what),) = said(times)
    assert "total_frames is 106, the episodes have 105 steps" in what


def test_what_cannot_be_read_is_a_row_too(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = written / "data/chunk-000/file-000.parquet"
    actions = pq.read_table(data).column("action").to_pylist()
    actions[7][1] = float("nan")
    change(data, "action", actions)
    assert main(["data", "validate", str(written), "--quiet"]) == 1
    said = capsys.readouterr().out
    assert "reading" in said
    assert "actions[7, 1] is nan" in " ".join(said.replace("│", " ").split())


def test_info_names_dimensions_and_gives_their_quantiles(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ranges = dict(dimension_ranges(walk(lag=0)))
    assert list(ranges) == ["action 0", "action 1", "joints 0", "joints 1"]
    low, *_, median, _, _, high = ranges["joints 1"]
    assert low <= median <= high
    assert median == pytest.approx(float(np.median(walk(lag=0).proprioception[:, 1])))
    main(["data", "info", str(written)])
    said = capsys.readouterr().out
    assert "10 steps per second" in said
    assert "99 %" in said


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
    with pytest.raises(ConfigError, match=r"a contact sheet shows several episodes\. Name an \.mp4 to see episode 1"):
        write_preview(data, tmp_path / "b.png", episode=1)
    with pytest.raises(ConfigError, match=r"expected the name of a \.png"):
        write_preview(data, tmp_path / "b.gif")
    with pytest.raises(DataError, match="holds no images to look at"):
        write_preview(data.with_images({}), tmp_path / "b.png")
