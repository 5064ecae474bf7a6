"""LeRobot's data sets: what is read, and what is refused by name."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot_files import Episode, episode, read_video, write_v2, write_v3, write_video
from numpy.testing import assert_array_equal

from classact.data.readers import hub, read_demonstrations
from classact.data.readers.lerobot_images import VideoFrames
from classact.data.readers.selection import chosen_episodes
from classact.errors import ConfigError, DataError, MissingDataError

STEPS = (5, 9, 3, 6)
VIEWS = {"observation.images.top": (32, 48), "observation.image": (24, 24)}


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return [episode(n, i, cameras=VIEWS, task=("push", "pull")[i % 2]) for i, n in enumerate(STEPS)]


@pytest.fixture(scope="module")
def v3(tmp_path_factory: pytest.TempPathFactory, episodes: list[Episode]) -> Path:
    return write_v3(tmp_path_factory.mktemp("v3") / "two_views", episodes)


@pytest.fixture
def own(v3: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(v3, tmp_path / "own"))


def change(root: Path, **values: Any) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values), encoding="utf-8")


@pytest.mark.parametrize("version", ["v3.0", "v2.1", "v2.0"])
def test_all_that_was_recorded_is_read(version: str, episodes: list[Episode], tmp_path: Path) -> None:
    root = write_v3(tmp_path / "a", episodes) if version == "v3.0" else write_v2(tmp_path / "a", episodes, version)
    data = read_demonstrations(root)
    assert data.lengths.tolist() == list(STEPS)
    assert_array_equal(data.actions, np.concatenate([one.values["action"] for one in episodes]))
    assert_array_equal(data.proprioception, np.concatenate([one.values["observation.state"] for one in episodes]))
    assert data.schema.proprioception == (("state", 2),)
    assert (data.schema.fps, data.simulator, data.states) == (10.0, "", None)
    assert data.instructions == ("push", "pull", "push", "pull")
    assert data.language is not None
    assert_array_equal(data.language[0], data.language[2])
    assert (data.language[0] != data.language[1]).any()
    assert set(data.images) == {"top", "image"}
    for camera, images in data.images.items():
        name = next(name for name in VIEWS if name.endswith(camera))
        videos = sorted(root.glob(f"videos/**/{name}/**/*.mp4"))
        expected = np.concatenate([read_video(path) for path in videos])
        assert_array_equal(np.asarray(images), expected)
        true = np.concatenate([one.frames[name] for one in episodes])
        assert np.abs(expected.astype(int) - true).mean() < 12  # the codec is lossy, the frame is the right one
        assert_array_equal(images.read([7, 0, 20]), expected[[7, 0, 20]])  # type: ignore[union-attr]


def test_pictures_are_read_exactly_and_a_single_task_is_no_language(tmp_path: Path) -> None:
    episodes = [episode(n, i, cameras={"observation.images.top": (16, 20)}) for i, n in enumerate(STEPS)]
    data = read_demonstrations(write_v3(tmp_path / "a", episodes, pictures=True))
    true = np.concatenate([one.frames["observation.images.top"] for one in episodes])
    assert_array_equal(np.asarray(data.images["top"]), true)
    assert_array_equal(data.images["top"].read([22, 4, 5]), true[[22, 4, 5]])  # type: ignore[union-attr]
    assert data.language is None
    assert data.instructions == ("push",) * 4


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_any_lengths_and_files_give_the_same_frames(drawn: st.DataObject) -> None:
    import tempfile

    lengths = drawn.draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    per_file = drawn.draw(st.integers(1, 5))
    episodes = [episode(n, i % 8, cameras={"observation.images.top": (16, 32)}) for i, n in enumerate(lengths)]
    with tempfile.TemporaryDirectory() as folder:
        root = write_v3(Path(folder) / "a", episodes, per_file=per_file)
        images = read_demonstrations(root).images["top"]
        expected = np.concatenate([read_video(path) for path in sorted(root.glob("videos/**/*.mp4"))])
        assert_array_equal(np.asarray(images), expected)
        rows = drawn.draw(st.lists(st.integers(0, len(expected) - 1), min_size=1, max_size=6))
        assert_array_equal(images.read(rows), expected[rows])  # type: ignore[union-attr]


def test_names_of_motors_tell_the_action_space(tmp_path: Path) -> None:
    arm = ["shoulder_pan.pos", "elbow_flex.pos", "gripper.pos"]
    two = [f"{side}_{name}" for side in ("left", "right") for name in arm]
    for number, (words, described) in enumerate(
        (
            (arm, "0:2 joints (joint), 2:3 gripper"),
            ({"motors": arm}, "0:2 joints (joint), 2:3 gripper"),
            (two, "0:2 left_joints (joint), 2:3 left_gripper (gripper), 3:5 right_joints (joint), 5:6 right_gripper"),
        )
    ):
        size = 6 if words is two else 3
        root = write_v3(
            tmp_path / str(number), [episode(4, actions=size), episode(3, 1, actions=size)], names={"action": words}
        )
        space = read_demonstrations(root).schema.actions
        assert space is not None
        assert space.describe().startswith(described)


def test_what_is_not_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = episode(5)
    one.values |= {"observation.environment_state": one.values["action"], "observation.effort": one.values["action"]}
    one.values["next.reward"] = one.values["action"][:, :1]
    with caplog.at_level(logging.WARNING):
        data = read_demonstrations(write_v3(tmp_path / "a", [one]))
    assert data.schema.keys == ("state", "effort")
    assert "not read: observation.environment_state, next.reward" in caplog.text


def test_the_first_episodes_or_some_by_number(v3: Path, episodes: list[Episode]) -> None:
    whole = read_demonstrations(v3)
    for asked, numbers in ((2, [0, 1]), ("2", [0, 1]), ("1:3", [1, 2]), ("3,0", [0, 3]), ("0:2,3", [0, 1, 3])):
        data = read_demonstrations(v3, episodes=asked)
        rows = np.concatenate([np.arange(*whole.bounds(e)) for e in numbers])
        assert_array_equal(data.actions, whole.actions[rows])
        assert_array_equal(np.asarray(data.images["top"]), np.asarray(whole.images["top"][rows]))
        assert data.instructions == tuple(episodes[e].task for e in numbers)


def test_files_of_episodes_that_are_not_asked_for_may_be_missing(own: Path) -> None:
    (own / "data/chunk-000/file-001.parquet").unlink()
    assert len(read_demonstrations(own, episodes="0:2")) == 2
    with pytest.raises(DataError, match=r"file-001\.parquet is missing\. The data set is incomplete"):
        read_demonstrations(own)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (0, "asked for the first 0 episodes, but x has 4"),
        ("5", "asked for the first 5 episodes, but x has 4"),
        ("2:6", r"episodes '2:6': 2:6 is not among the 4 of x, 0 to 3"),
        ("3:3", "3:3 is not among the 4"),
        ("0:2,1", "some are named twice"),
        ("first", "expected numbers and ranges, as in 0:50,60, got 'first'"),
        ("-1", "expected numbers and ranges"),
    ],
)
def test_selections_that_are_refused(asked: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        chosen_episodes(asked, 4, "x")


INFO: list[tuple[dict[str, Any], str]] = [
    ({"codebase_version": "v4.0"}, r"codebase_version is v4\.0, classact reads v2\.0 to v3\.x of LeRobot\. Update"),
    ({"codebase_version": "v1.6"}, r"codebase_version is v1\.6, .* Convert the data set with LeRobot"),
    ({"codebase_version": None}, "codebase_version is 'None', expected v2.0"),
    ({"storage_format": "lance"}, "storage_format 'lance' is not read"),
    ({"fps": 0}, "fps is 0, expected"),
    ({"fps": "ten"}, "fps is 'ten', expected"),
    ({"total_episodes": 9}, "lists 4 episodes, 4 of them different, but meta/info.json says 9"),
    ({"features": []}, "features is list, expected a JSON object"),
    ({"features": {}}, "there is no feature 'action'"),
    ({"chunks_size": 0}, "chunks_size is 0"),
    ({"data_path": "../../etc/passwd"}, "leads out of the data set"),
    ({"data_path": "{episode_chunk}"}, "names 'episode_chunk'; known are chunk_index, file_index"),
    ({"video_path": None}, "there are videos, but video_path is null"),
]


@pytest.mark.parametrize(
    ("values", "said"), INFO, ids=[next(iter(values)) + str(i) for i, (values, _) in enumerate(INFO)]
)
def test_information_that_is_refused(own: Path, values: dict[str, Any], said: str) -> None:
    change(own, **values)
    with pytest.raises(DataError, match=said):
        read_demonstrations(own)


def features(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "meta/info.json").read_text())["features"]
    return found


def test_depth_cameras_are_left_out_by_name_and_alone_refused(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = features(own)
    found["observation.images.top"]["info"] = {"is_depth_map": True}
    change(own, features=found)
    with caplog.at_level(logging.WARNING):
        assert set(read_demonstrations(own).images) == {"image"}
    assert "not read: observation.images.top (depth images)" in caplog.text
    found["observation.image"]["info"] = {"video.is_depth_map": True}
    change(own, features=found)
    with pytest.raises(DataError, match="all cameras are depth cameras, which are not read"):
        read_demonstrations(own)


def test_images_that_are_not_what_is_declared(own: Path) -> None:
    found = features(own)
    found["observation.images.top"]["shape"] = [64, 48, 3]
    change(own, features=found)
    images = read_demonstrations(own).images["top"]
    with pytest.raises(DataError, match=r"holds frames of 32 x 48 pixels, meta/info\.json declares 64 x 48"):
        np.asarray(images)
    found["observation.images.top"]["shape"] = [64, 48, 1]
    change(own, features=found)
    with pytest.raises(DataError, match=r"feature 'observation\.images\.top' has images of shape \[64, 48, 1\]"):
        read_demonstrations(own)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    ("data/chunk-000/file-000.parquet", cut, "cannot be read .* damaged or no Parquet file"),
    ("meta/episodes/chunk-000/file-000.parquet", cut, "cannot be read .* damaged or no Parquet file"),
    ("meta/info.json", cut, "info.json"),
    ("videos/observation.images.top/chunk-000/file-000.mp4", cut, "cannot be decoded|nearest frame|no frame"),
    (
        "videos/observation.images.top/chunk-000/file-000.mp4",
        Path.unlink,
        "is missing: the video of episode 0, camera 'top'",
    ),
]


@pytest.mark.parametrize(("name", "harm", "said"), DAMAGE)
def test_damage_is_named(own: Path, name: str, harm: Callable[[Path], None], said: str) -> None:
    harm(own / name)
    with pytest.raises(DataError, match=said) as caught:
        np.asarray(read_demonstrations(own).images["top"])
    assert Path(name).name in str(caught.value)
    assert "\n" not in str(caught.value)


def rewrite(root: Path, change_table: Callable[[pa.Table], pa.Table]) -> None:
    path = root / "data/chunk-000/file-000.parquet"
    pq.write_table(change_table(pq.read_table(path)), path)


def replaced(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


@pytest.mark.parametrize(
    ("change_table", "said"),
    [
        (lambda t: t.drop_columns(["action"]), "column 'action' is missing; there are"),
        (lambda t: t.slice(0, 10), "should be the 9 steps of episode 1 in order, but hold 5 rows"),
        (lambda t: replaced(t, "action", pa.array(["a"] * len(t))), "action: expected numbers, got string"),
        (lambda t: replaced(t, "action", pa.array([[1.0]] * len(t))), "row 0 holds 1 numbers, expected 2 in each"),
        (lambda t: replaced(t, "action", pa.array([None] * len(t), pa.list_(pa.float32()))), "rows hold nothing"),
        (lambda t: replaced(t, "action", pa.array([[1.0, None]] * len(t))), "numbers, expected 2 in each"),
        (lambda t: replaced(t, "action", pa.array([[np.nan, 1.0]] * len(t))), "NaN or infinite"),
        (lambda t: replaced(t, "frame_index", pa.array([0] * len(t))), "in order"),
        (lambda t: replaced(t, "timestamp", pa.array([0.0] * len(t))), "timestamps of episode 0 do not increase"),
        (lambda t: replaced(t, "task_index", pa.array([7] * len(t))), "has task 7, meta/tasks knows"),
        (lambda t: replaced(t, "task_index", pa.array([0, 1] * (len(t) // 2))), "episode 0 has several tasks"),
    ],
)
def test_rows_that_are_refused(own: Path, change_table: Callable[[pa.Table], pa.Table], said: str) -> None:
    rewrite(own, change_table)
    with pytest.raises(DataError, match=said):
        read_demonstrations(own)


def test_a_frame_is_found_by_its_time_or_missed(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    frames = episode(20).frames["observation.images.top"]
    write_video(path, frames)
    decoded = read_video(path)
    shape = (32, 48, 3)
    part = VideoFrames(path, shape, np.array([3, 4, 9, 19]) / 10)
    assert_array_equal(part.decode(0, 4), decoded[[3, 4, 9, 19]])
    assert_array_equal(part.decode(2, 4), decoded[[9, 19]])
    with pytest.raises(DataError, match=r"recorded at 0\.4300 s of the video, the nearest frame is at 0\.4000 s"):
        VideoFrames(path, shape, np.array([0.43])).decode(0, 1)
    with pytest.raises(DataError, match=r"recorded at 2\.1000 s of the video, the nearest frame is at 1\.9000 s"):
        VideoFrames(path, shape, np.array([1.9, 2.1])).decode(0, 2)


def test_images_are_identified_by_what_is_stored(own: Path, v3: Path) -> None:
    same, other = (read_demonstrations(root).images["top"].digest() for root in (own, v3))  # type: ignore[union-attr]
    assert same == other
    write_video(
        own / "videos/observation.images.top/chunk-000/file-001.mp4", episode(9, 3).frames["observation.images.top"]
    )
    assert read_demonstrations(own).images["top"].digest() != same  # type: ignore[union-attr]


# The hub


def test_names_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub.is_hub_name("lerobot/pusht")
    assert hub.is_hub_name("lerobot/pusht@v3.0")
    for path in ("runs/a.zarr", "data/episode_0.hdf5", "/abs/path", "./a/b", "one", "a/b/c", "a/../b"):
        assert not hub.is_hub_name(path)
    (tmp_path / "lerobot").mkdir()
    assert not hub.is_hub_name("lerobot/pusht")  # a folder of that name is meant


def test_a_local_copy_of_lerobot_is_taken(v3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path / "home"))
    shutil.copytree(v3, tmp_path / "home/user/views")
    data = read_demonstrations("user/views")
    assert (data.name, data.source, len(data)) == ("user-views", "user/views", 4)


def test_without_a_connection_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    class Offline:
        def dataset_info(self, *_: Any, **__: Any) -> None:
            raise OSError("no route to host")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface_hub, "HfApi", Offline)
    with pytest.raises(
        MissingDataError, match=r"user/views is no path here, and cannot be downloaded .*no route to host"
    ):
        read_demonstrations("user/views")
    cached = tmp_path / "cached"
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(cached))
    write_v3(cached, [episode(3)])
    assert len(read_demonstrations("user/views@main")) == 1
