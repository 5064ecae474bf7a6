from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from hdf5_files import episode, refusal, write_episode
from numpy.testing import assert_allclose, assert_array_equal

from classact.data.actions import ActionSpace
from classact.data.layout import Layout
from classact.data.readers import declared_simulator, read_demonstrations
from classact.data.readers.aloha import matches, read
from classact.errors import ConfigError

LENGTHS = {0: 5, 2: 7, 10: 4}


def write(folder: Path, *, compressed: bool = False, **options: Any) -> list[dict[str, Any]]:
    """Three episodes, the contents in their order."""
    folder.mkdir(exist_ok=True)
    contents = {i: episode(steps, i, **options) for i, steps in LENGTHS.items()}
    for i in (10, 0, 2):
        write_episode(folder / f"episode_{i}.hdf5", contents[i], compressed=compressed)
    return list(contents.values())


message = partial(refusal, read)


def test_round_trip(tmp_path: Path) -> None:
    folder = tmp_path / "sim_transfer_cube"
    contents = write(folder, cameras=("top", "angle"))
    demos = read(folder)
    assert (demos.name, demos.source, demos.simulator) == ("sim-transfer-cube", str(folder), "")
    assert_array_equal(demos.episode_ends, [5, 12, 16])
    assert_allclose(demos.actions, np.concatenate([c["action"] for c in contents]), rtol=1e-6)
    assert_allclose(demos.proprioception, np.concatenate([c["observations/qpos"] for c in contents]), rtol=1e-6)
    assert demos.states is None
    assert demos.schema.proprioception == (("qpos", 14),)
    assert demos.schema.actions == ActionSpace.joints(6, "left", "right")
    assert list(demos.images) == ["angle", "top"]
    for camera, images in demos.images.items():
        assert_array_equal(images, np.concatenate([c[f"observations/images/{camera}"] for c in contents]))


def test_compressed_pictures_come_out_as_rgb(tmp_path: Path) -> None:
    """ALOHA's recorder gives RGB to OpenCV, so what OpenCV reads is RGB, and a viewer of the JPEG sees BGR."""
    folder = tmp_path / "real"
    contents = write(folder, compressed=True, smooth=True)
    demos = read(folder)
    expected = np.concatenate([c["observations/images/top"] for c in contents])
    assert demos.images["top"].shape == expected.shape
    assert np.abs(np.asarray(demos.images["top"], int) - expected).max() <= 4  # JPEG; exchanged channels are far off
    exchanged = read(folder, layout=Layout(bgr=True)).images["top"]
    assert_array_equal(exchanged, np.asarray(demos.images["top"])[..., ::-1])
    with h5py.File(folder / "episode_0.hdf5") as file:
        assert file["observations/images/top"].shape[1] > file["compress_len"][0].max()  # padded


def test_declared_bgr(tmp_path: Path) -> None:
    folder = tmp_path / "real"
    contents = write(folder)
    layout = tmp_path / "layout.json"
    layout.write_text(json.dumps({"bgr": True, "cameras": {"front": "top"}}))
    demos = read(folder, layout=layout)
    expected = np.concatenate([c["observations/images/top"] for c in contents])[..., ::-1]
    assert_array_equal(demos.images["front"], expected)
    with pytest.raises(ConfigError, match="unknown field 'filter': available are 'bgr', 'cameras'"):
        read(folder, layout=Layout(filter="train"))


def test_first_episodes_and_one_file(tmp_path: Path) -> None:
    folder = tmp_path / "real"
    contents = write(folder)
    assert_array_equal(read(folder, episodes=2).episode_ends, [5, 12])
    with pytest.raises(ConfigError, match=r"first 4 episodes, but .*real has 3"):
        read(folder, episodes=4)
    one = read(folder / "episode_10.hdf5")
    assert_allclose(one.actions, contents[2]["action"], rtol=1e-6)


def test_episodes_without_images(tmp_path: Path) -> None:
    folder = tmp_path / "real"
    write(folder, cameras=())
    demos = read(folder)
    assert (dict(demos.images), demos.schema.cameras, demos.num_steps) == ({}, (), 16)


def test_what_matches(tmp_path: Path) -> None:
    write(tmp_path / "a")
    assert matches(tmp_path / "a")
    assert matches(tmp_path / "a" / "episode_0.hdf5")
    assert not matches(tmp_path)
    damaged = tmp_path / "episode_3.hdf5"
    damaged.touch()
    assert matches(damaged)
    assert not matches(tmp_path / "episode_4.hdf5")
    (tmp_path / "demo.hdf5").touch()
    assert not matches(tmp_path / "demo.hdf5")


def test_simulated_episodes_name_their_simulator(tmp_path: Path) -> None:
    for folder in (tmp_path / "sim_transfer_cube", tmp_path / "sim_insertion", tmp_path / "real"):
        write(folder, compressed=folder.name == "real")
    assert declared_simulator(tmp_path / "sim_transfer_cube") == "aloha-transfer"
    assert declared_simulator(tmp_path / "sim_transfer_cube" / "episode_2.hdf5") == "aloha-transfer"
    assert declared_simulator(tmp_path / "sim_insertion") == ""
    assert declared_simulator(tmp_path / "sim_insertion" / "episode_2.hdf5") == ""
    assert declared_simulator(tmp_path / "real") == ""
    first = tmp_path / "sim_transfer_cube" / "episode_0.hdf5"
    write_episode(first, episode(5, 0) | {"action": np.zeros((5, 16))})
    assert declared_simulator(tmp_path / "sim_transfer_cube") == ""
    first.write_bytes(b"hello")
    assert declared_simulator(tmp_path / "sim_transfer_cube") == ""


def test_found_by_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLASSACT_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "real")
    assert read_demonstrations(tmp_path / "real").num_steps == 16
    assert read_demonstrations(tmp_path / "real" / "episode_2.hdf5").num_steps == 7


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("action", np.zeros((7, 7)), "action is float64 of shape (7, 7), expected numbers of shape (L, 14)"),
        ("action", np.zeros((0, 14)), "action has 0 steps"),
        ("action", np.full((7, 14), np.inf), "action[0, 0] is inf; 7 of 7 steps"),
        ("observations/qpos", np.zeros((6, 14)), "qpos has 6 rows, but there are 7 actions"),
        ("observations/qpos", np.zeros((7, 13)), "qpos is float64 of shape (7, 13)"),
        ("observations/images/top", np.zeros((6, 16, 24, 3), np.uint8), "top has 6 images, but there are 7 actions"),
        ("observations/images/top", np.zeros((7, 4, 16, 24), np.uint8), "expected uint8 RGB images of shape"),
        ("observations/images/top", np.zeros((7, 16, 20, 3), np.uint8), "holds images of 16 x 20 pixels"),
        ("observations/images/top", np.zeros((7, 90), np.uint8), "a picture cannot be decoded, expected JPEG bytes"),
        ("observations/images/top", np.zeros((6, 90), np.uint8), "top has 6 images, but there are 7 actions"),
        ("observations/images/top", None, "holds none, "),
    ],
)
def test_bad_episodes(tmp_path: Path, key: str, value: np.ndarray | None, expected: str) -> None:
    folder = tmp_path / "real"
    write(folder)
    bad = episode(7, 2)
    bad[key] = value
    write_episode(folder / "episode_2.hdf5", {k: v for k, v in bad.items() if v is not None})
    found = message(folder)
    assert "episode_2.hdf5" in found
    assert expected in found


def test_pictures_that_cannot_be_decoded(tmp_path: Path) -> None:
    """Found in the middle, while they are decoded."""
    folder = tmp_path / "real"
    write(folder, compressed=True)
    for value, expected in (
        (np.zeros(1, np.uint8), "a picture cannot be decoded"),
        (
            cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1],
            "a picture has shape (8, 8, 3), expected one size, and the first has (16, ",
        ),
    ):
        with h5py.File(folder / "episode_2.hdf5", "a") as file:
            pictures = file["observations/images/top"]
            row = np.zeros(pictures.shape[1], np.uint8)
            row[: len(value)] = value[: len(row)]
            pictures[4] = row
        found = message(folder)
        assert "episode_2.hdf5" in found
        assert expected in found


def test_bad_files(tmp_path: Path) -> None:
    folder = tmp_path / "real"
    write(folder)
    path = folder / "episode_2.hdf5"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "episode_2.hdf5 is truncated or damaged" in message(folder)
    with h5py.File(path, "w") as file:
        file["action"] = np.zeros((3, 14))
    assert "group 'observations' is missing; there are action. Expected ACT's layout" in message(folder)
    for file_path in folder.iterdir():
        file_path.unlink()
    assert "holds 0 files episode_i.hdf5" in message(folder)


@pytest.mark.parametrize("joints", [6, 8])
def test_arms_with_any_number_of_joints(tmp_path: Path, joints: int) -> None:
    contents = [episode(n, n) for n in (3, 4)]
    for i, content in enumerate(contents):
        for key in ("action", "observations/qpos"):
            content[key] = content[key][:, :joints]
        write_episode(tmp_path / f"episode_{i}.hdf5", content)
    data = read(tmp_path)
    assert_allclose(data.actions, np.concatenate([c["action"] for c in contents]), rtol=1e-6)
    assert data.schema.proprioception == (("qpos", joints),)
    assert data.schema.actions is not None
    assert data.schema.actions.describe() == f"0:{joints} joints (joint)"
    assert data.schema.fps == 50
    assert "joint positions" in data.schema.assumption
    contents[0]["observations/qpos"] = contents[0]["observations/qpos"][:, :-1]
    write_episode(tmp_path / "episode_0.hdf5", contents[0])
    assert f"qpos is float64 of shape (3, {joints - 1}), expected numbers of shape (3, {joints})" in message(tmp_path)


def test_a_mobile_base_moves_as_well(tmp_path: Path) -> None:
    contents = [episode(n, n) for n in (3, 4)]
    bases = [np.random.default_rng(n).normal(size=(n, 2)) for n in (3, 4)]
    for i, (content, base) in enumerate(zip(contents, bases, strict=True)):
        write_episode(tmp_path / f"episode_{i}.hdf5", content | {"base_action": base})
    data = read(tmp_path)
    assert_allclose(data.actions[:, :14], np.concatenate([c["action"] for c in contents]), rtol=1e-6)
    assert_allclose(data.actions[:, 14:], np.concatenate(bases), rtol=1e-6)
    assert data.schema.actions is not None
    assert data.schema.actions.describe().endswith("13:14 right_gripper (gripper), 14:16 base (velocity)")
    write_episode(tmp_path / "episode_1.hdf5", contents[1])
    assert "0 dimensions of base_action" in message(tmp_path)
    assert "has 2. Read them apart" in message(tmp_path)


def test_what_is_observed_and_not_read_is_listed(tmp_path: Path) -> None:
    content = episode(3, 0)
    write_episode(tmp_path / "episode_0.hdf5", content | {"observations/qvel": content["action"]})
    assert read(tmp_path).unread == ("observations/qvel",)
