"""One layout language for Zarr, HDF5 and LeRobot: parts, rotations, next states, videos, names, proposals."""

from __future__ import annotations

import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from hdf5_files import demo, episode, write_episode, write_robomimic
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_files import pose, umi_arrays, write_hdf5, write_real_pusht, write_store, write_umi
from lerobot_files import episode as episode_of_lerobot
from lerobot_files import write_v3
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.transform import Rotation

from classact.cli.main import main
from classact.data.actions import ActionSpace
from classact.data.layout import Camera, Columns, Layout, Values
from classact.data.named_layouts import LAYOUTS, NamedLayout
from classact.data.readers import read_demonstrations
from classact.data.types import Demonstrations
from classact.data.video import write_mp4
from classact.errors import ConfigError, DataError, UndeclaredError
from classact.utils.codec import to_json

LENGTHS = (4, 6)
STEPS = sum(LENGTHS)


def declared(tmp_path: Path, data: Path, layout: Layout | dict[str, Any], **options: Any) -> Demonstrations:
    file = tmp_path / "layout.json"
    file.write_text(json.dumps(to_json(layout)))
    return read_demonstrations(data, layout=file, **options)


def six(vectors: Any) -> Any:
    return Rotation.from_rotvec(vectors).as_matrix()[:, :2].reshape(-1, 6)


@pytest.mark.parametrize("kind", ["zarr", "v3", "groups", "files", "flat"])
def test_the_same_declaration_reads_every_store(tmp_path: Path, kind: str) -> None:
    """Concatenation, columns and a rotation give the same numbers from Zarr, and HDF5 of three shapes."""
    position, vectors, width = pose(STEPS, 1)
    quaternion = Rotation.from_rotvec(vectors).as_quat(scalar_first=True)
    images = np.random.default_rng(0).integers(0, 256, (STEPS, 3, 5, 7), np.uint8)
    arrays = {"tool": np.concatenate([position, quaternion], axis=1), "hand": width[:, 0], "view": images}
    layout = Layout(
        action=Values.of([Columns("tool", (0, 1, 2)), Columns("tool", (3, 4, 5, 6), "quaternion-wxyz"), "hand"]),
        action_space=ActionSpace.pose(),
        proprioception={"height": Values.of(Columns("tool", (2,))), "hand": Values.of("hand")},
        cameras={"front": Camera("view", bgr=True)},
        fps=20.0,
    )
    bounds = np.split(np.arange(STEPS), np.cumsum(LENGTHS)[:-1])
    if kind in ("zarr", "v3"):
        path = write_store(tmp_path / "a.zarr", arrays, LENGTHS, version=2 if kind == "zarr" else 3)
    elif kind == "groups":
        parts = {f"runs/take_{i}/{k}": v[rows] for i, rows in enumerate(bounds) for k, v in arrays.items()}
        path = write_hdf5(tmp_path / "a.hdf5", parts)
        layout = Layout.from_json(to_json(layout) | {"episodes": "runs/take_*"})
    elif kind == "files":
        for i, rows in enumerate(bounds):
            write_hdf5(tmp_path / "a" / f"{9 + i}.h5", {k: v[rows] for k, v in arrays.items()})
        path = tmp_path / "a"
        layout = Layout.from_json(to_json(layout) | {"episodes": "*.h5"})
    else:
        ends = np.zeros(STEPS, bool)
        ends[np.cumsum(LENGTHS) - 1] = True
        path = write_hdf5(tmp_path / "a.hdf5", arrays | {"done": ends})
        layout = Layout.from_json(to_json(layout) | {"episode_ends": "done", "boundaries": "last"})
    data = declared(tmp_path, path, layout)
    expected = np.concatenate([position, six(vectors), width], axis=1)
    assert_allclose(data.actions, expected, atol=1e-6)
    assert_allclose(data.proprioception, np.stack([position[:, 2], width[:, 0]], axis=1), rtol=1e-6)
    assert_array_equal(data.lengths, LENGTHS)
    assert_array_equal(data.images["front"], images.transpose(0, 2, 3, 1)[..., ::-1])
    assert (data.schema.fps, data.schema.assumption, data.unread) == (20.0, "", ())
    first = declared(tmp_path, path, layout, episodes=1)
    assert_array_equal(first.images["front"], np.asarray(data.images["front"])[: LENGTHS[0]])


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 99), every=st.integers(1, 4), length=st.integers(1, 9))
def test_the_next_state_that_is_kept_is_the_action(
    tmp_path_factory: pytest.TempPathFactory, seed: int, every: int, length: int
) -> None:
    folder = tmp_path_factory.mktemp("next")
    values = np.random.default_rng(seed).normal(size=(length + 5, 2)).astype(np.float32)
    path = write_store(folder / "a.zarr", {"joints": values}, (length, 5))
    layout = Layout(action=Values.of("joints"), next_state=True, proprioception={"q": Values.of("joints")}, fps=12.0)
    data = declared(folder, path, layout, fps=12.0 / every)
    for kept, own in zip(data, np.split(values, [length]), strict=True):
        states = own[::every]
        assert_array_equal(kept.proprioception, states)
        assert_array_equal(kept.actions[:-1], states[1:])
        last = (len(states) - 1) * every
        assert_array_equal(kept.actions[-1], own[min(last + every, len(own) - 1)])


@pytest.mark.parametrize(
    ("rotation", "stored"),
    [
        ("axis-angle", lambda r: r.as_rotvec()),
        ("quaternion-xyzw", lambda r: -r.as_quat()),
        ("quaternion-wxyz", lambda r: 3 * r.as_quat(scalar_first=True)),
        ("euler-xyz", lambda r: r.as_euler("xyz")),
        ("euler-ZYX", lambda r: r.as_euler("ZYX")),
        ("matrix", lambda r: r.as_matrix()),
        ("matrix", lambda r: r.as_matrix().reshape(-1, 9)),
    ],
)
def test_rotations_become_six_numbers(tmp_path: Path, rotation: str, stored: Any) -> None:
    turned = Rotation.random(STEPS, random_state=3)
    path = write_store(tmp_path / "a.zarr", {"r": stored(turned)}, LENGTHS)
    data = declared(tmp_path, path, Layout(action=Values((Columns("r", rotation=rotation),))))
    assert_allclose(data.actions, turned.as_matrix()[:, :2].reshape(-1, 6), atol=1e-6)
    with pytest.raises(DataError, match=rf"data/r: action is declared as a rotation, {rotation}, of 2 numbers"):
        declared(
            tmp_path,
            write_store(tmp_path / "b.zarr", {"r": np.ones((STEPS, 2))}, LENGTHS),
            {"action": {"array": "r", "rotation": rotation}},
        )


@pytest.mark.parametrize(
    ("boundaries", "values"),
    [("ends", [4, 10]), ("lengths", [4, 6]), ("numbers", [7] * 4 + [2] * 6), ("last", [0, 0, 0, 1, 0, 0, 0, 0, 0, 0])],
)
def test_where_episodes_end(tmp_path: Path, boundaries: str, values: list[int]) -> None:
    path = write_store(tmp_path / "a.zarr", {"action": np.ones((STEPS, 3)), "mark": np.array(values)}, LENGTHS)
    layout = {"episode_ends": "mark", "boundaries": boundaries}
    assert_array_equal(declared(tmp_path, path, layout).lengths, LENGTHS)
    bad = write_store(tmp_path / "b.zarr", {"action": np.ones((STEPS, 3)), "mark": np.ones((2, 2))}, LENGTHS)
    with pytest.raises(DataError, match=r"data/mark has shape \(2, 2\) and dtype float64, expected \([EN],\)"):
        declared(tmp_path, bad, layout)


@pytest.mark.parametrize("kind", ["zarr", "hdf5"])
def test_names_that_are_not_there_are_the_layouts_fault(tmp_path: Path, kind: str) -> None:
    arrays = {"cmd": np.ones((STEPS, 3)), "joints": np.ones((STEPS, 2))}
    if kind == "zarr":
        path, said = (
            write_store(tmp_path / "a.zarr", arrays, LENGTHS),
            r"a\.zarr: data/joint is missing; arrays in data: cmd",
        )
    else:
        path, said = (
            write_hdf5(tmp_path / "a.hdf5", arrays),
            r"a\.hdf5: the file: joint is missing; arrays are cmd, joints",
        )
    layout = Layout(action=Values.of("cmd"), proprioception={"q": Values.of("joint")})
    with pytest.raises(DataError, match=said + r".*\. The layout names it: correct the name there, or leave it out"):
        read_demonstrations(path, layout=layout)


# Named layouts


@pytest.mark.parametrize(("arms", "cameras", "name"), [(1, 1, "u.zarr.zip"), (2, 2, "u.zarr"), (1, 0, "u.zarr.zip")])
def test_umi_is_recognised(
    tmp_path: Path, arms: int, cameras: int, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_umi(tmp_path / name, LENGTHS, arms=arms, cameras=cameras)
    data, arrays = read_demonstrations(path), umi_arrays(STEPS, arms, cameras)
    assert "not declared but assumed: its arrays tell layout 'umi'" in caplog.text
    assert "not read: robot0_demo_start_pose" in caplog.text
    names = () if arms == 1 else ("robot0", "robot1")
    assert data.schema.actions == ActionSpace.pose(*names)
    assert list(data.images) == [f"camera{c}_rgb" for c in range(cameras)]
    assert_allclose(data.proprioception[:, 3:9], six(arrays["robot0_eef_rot_axis_angle"]), atol=1e-5)
    rows = np.r_[1:4, 3, 5:10, 9]
    assert_array_equal(data.actions, data.proprioception[rows])
    assert_array_equal(read_demonstrations(path, layout="umi").actions, data.actions)


def test_umi_rows_of_an_unfinished_episode_are_left_out_and_said(tmp_path: Path) -> None:
    arrays = umi_arrays(STEPS + 3) | {"camera0_rgb": umi_arrays(STEPS + 1)["camera0_rgb"]}
    data = read_demonstrations(write_store(tmp_path / "u.zarr", arrays, LENGTHS))
    assert (data.num_steps, len(data.images["camera0_rgb"])) == (STEPS, STEPS)
    assert f"rows behind the last episode's end, {STEPS}, are not read" in data.schema.assumption
    assert_array_equal(data.actions[-1], data.proprioception[-1])
    arrays["camera0_rgb"] = arrays["camera0_rgb"][: STEPS - 1]
    with pytest.raises(DataError, match=r"camera0_rgb has shape \(9, 8, 8, 3\), but data/robot0_eef_pos has shape"):
        read_demonstrations(write_store(tmp_path / "v.zarr", arrays, LENGTHS))


@pytest.mark.parametrize("inner", ["", "replay_buffer.zarr"])
def test_real_push_t_with_its_videos(tmp_path: Path, inner: str) -> None:
    path = write_real_pusht(tmp_path / "real", LENGTHS, cameras=2)
    data = read_demonstrations(path / inner)
    assert (data.schema.fps, data.schema.actions) == (10.0, ActionSpace.pose(gripper=0))
    assert data.schema.proprioception == (("eef_pos", 3), ("eef_rotation", 6), ("joints", 6))
    assert list(data.images) == ["camera0", "camera1"]
    assert "stage" in data.unread
    for camera in (0, 1):
        shown = np.asarray(data.images[f"camera{camera}"])[:, 8, 12, 0].astype(int)
        expected = np.concatenate([20 + 10 * np.arange(n) + 40 * camera for n in LENGTHS])
        assert abs(shown - expected).max() <= 4  # a step's frame, three of the video's to one
    (path / "videos/1/1.mp4").unlink()
    with pytest.raises(DataError, match=r"videos/1/1\.mp4 is missing: the video of episode 1, camera 'camera1'"):
        read_demonstrations(path)
    assert len(read_demonstrations(path, episodes=1)) == 1
    assert not declared(tmp_path, path, {"proprioception": {}, "find_cameras": False}).images


def test_videos_that_are_too_short_are_refused(tmp_path: Path) -> None:
    path = write_real_pusht(tmp_path / "real", LENGTHS)
    write_real_pusht(tmp_path / "other", (1, 6))
    (tmp_path / "other/videos/0/0.mp4").replace(path / "videos/0/0.mp4")
    with pytest.raises(DataError, match=r"0\.mp4: a step was recorded at 0\.3000 s of the video, the nearest frame is"):
        np.asarray(read_demonstrations(path).images["camera0"])


def test_act_of_other_names_and_joints(tmp_path: Path) -> None:
    contents = [episode(n, n, smooth=True) for n in LENGTHS]
    for content in contents:
        for key in ("action", "observations/qpos"):
            content[key] = content[key][:, :9]
    (tmp_path / "arms").mkdir()
    for i, content in enumerate(contents):
        write_episode(tmp_path / "arms" / f"{i}.hdf5", content, compressed=True)
    data = read_demonstrations(tmp_path / "arms")
    assert_allclose(data.actions, np.concatenate([c["action"] for c in contents]), rtol=1e-6)
    assert (data.schema.proprioception, data.schema.fps, list(data.images)) == ((("qpos", 9),), 50.0, ["top"])
    assert "tell layout 'act'" in data.schema.assumption
    assert "observations/qvel" in data.unread
    shown = np.asarray(data.images["top"])[0].mean(axis=(0, 1))
    assert abs(shown - contents[0]["observations/images/top"][0].mean(axis=(0, 1))).max() < 8


def test_pictures_of_lengths_of_their_own(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (STEPS, 1, 1, 3), np.uint8).repeat(16, 1).repeat(24, 2)
    path = write_hdf5(
        tmp_path / "arm" / "0.hdf5", {"action": np.ones((STEPS, 3)), "observations/qpos": np.ones((STEPS, 3))}
    )
    with h5py.File(path, "a") as file:
        kept = file.create_dataset("observations/images/top", (STEPS,), h5py.vlen_dtype(np.uint8))
        for i, image in enumerate(images):
            kept[i] = cv2.imencode(".png", image)[1].ravel()
    found = read_demonstrations(tmp_path / "arm").images["top"]
    assert_array_equal(found, images)
    assert len(found.digest()) == 64  # type: ignore[union-attr]


def test_droid_and_maniskill(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    angles = rng.uniform(-1, 1, (5, 3))
    cartesian = np.concatenate([rng.normal(size=(5, 3)), angles], axis=1)
    for i in range(2):
        write_hdf5(
            tmp_path / "droid" / f"take {i}" / "trajectory.h5",
            {
                "action/cartesian_position": cartesian,
                "action/gripper_position": np.ones(5),
                "observation/robot_state/cartesian_position": cartesian,
                "observation/robot_state/joint_positions": rng.normal(size=(5, 7)),
            },
        )
        folder = tmp_path / "droid" / f"take {i}" / "recordings/MP4"
        folder.mkdir(parents=True)
        frames = np.zeros((6, 16, 24, 3), np.uint8) + (20 + 30 * np.arange(6))[:, None, None, None].astype(np.uint8)
        for name in ("123.mp4", "123-stereo.mp4"):
            write_mp4(folder / name, frames + 10 * i, fps=60)  # a frame for each step, whatever their times
    data = read_demonstrations(tmp_path / "droid")
    assert list(data.images) == ["camera123"]
    shown = np.asarray(data.images["camera123"])[:, 8, 12, 0].astype(int)
    assert abs(shown - [20 + 30 * k + 10 * i for i in range(2) for k in range(5)]).max() <= 4
    write_mp4(folder / "123.mp4", frames[:4], fps=60)
    with pytest.raises(DataError, match=r"123\.mp4 holds 4 frames, but there are 5 steps"):
        read_demonstrations(tmp_path / "droid")
    turned = Rotation.from_euler("xyz", angles).as_matrix()[:, :2].reshape(-1, 6)
    assert_allclose(data.actions[5:, 3:9], turned, atol=1e-6)
    assert (len(data), data.schema.actions, data.schema.fps) == (2, ActionSpace.pose(), 15.0)
    qpos = rng.normal(size=(6, 9))
    arrays = {"actions": rng.normal(size=(5, 8)), "obs/agent/qpos": qpos}
    arrays["obs/sensor_data/base_camera/rgb"] = rng.integers(0, 256, (6, 4, 4, 3), np.uint8)
    path = write_hdf5(tmp_path / "t.h5", {f"traj_{i}/{k}": v for i in (0, 10, 9) for k, v in arrays.items()})
    data = read_demonstrations(path)
    assert (len(data), data.num_steps, list(data.images)) == (3, 15, ["base_camera"])
    assert_allclose(data.proprioception[:5], qpos[:5], rtol=1e-6)  # what follows the last action is left out
    assert np.asarray(data.images["base_camera"]).shape == (15, 4, 4, 3)


@pytest.mark.parametrize("stored", ["text", "embedding"])
def test_language_of_each_episode_in_hdf5(tmp_path: Path, stored: str) -> None:
    words = ("pick up the cup", "open the drawer")
    vectors = np.random.default_rng(0).normal(size=(2, 4))
    for i in range(2):
        value: Any = words[i] if stored == "text" else vectors[i]
        write_hdf5(tmp_path / "a" / f"{i}.h5", {"cmd": np.ones((5, 3)), "language_instruction": value})
    data = declared(tmp_path, tmp_path / "a", {"action": "cmd", "language": "language_instruction"})
    assert data.language is not None
    if stored == "text":
        assert data.instructions == words
        assert len(np.unique(data.language, axis=0)) == 2
    else:
        assert_allclose(data.language, vectors, rtol=1e-6)


def test_language_of_each_step_may_have_a_last_row_more(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(2, 4))
    for i in range(2):
        rows = np.tile(vectors[i], (6 + i, 1))
        write_hdf5(tmp_path / "a" / f"{i}.h5", {"cmd": np.ones((5 + i, 3)), "obs/lang": rows})
    data = declared(tmp_path, tmp_path / "a", {"action": "cmd", "language": "obs/lang"})
    assert data.language is not None
    assert_allclose(data.language, vectors, rtol=1e-6)


def test_arrays_lie_within_data_in_the_group_of_each_episode(tmp_path: Path) -> None:
    arrays = {
        f"data/demo_{i}/{inner}cmd": np.full((5, 3), i + 10 * bool(inner)) for i in (0, 1) for inner in ("", "in/")
    }
    path = write_hdf5(tmp_path / "a.hdf5", arrays)
    read = declared(tmp_path, path, {"action": "cmd", "data": "in", "episodes": "data/demo_*"})
    assert read.actions[:, 0].tolist() == [10.0] * 5 + [11.0] * 5


def test_shapes_beyond_what_is_stored_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["cmd"] = np.ones((5, 3))
        file.create_dataset("joints", (5, 1 << 32), chunks=(1, 1 << 20), dtype=np.float64)
    with pytest.raises(
        DataError, match=r"joints has shape \(5, 4294967296\) and takes 171,798,691,840 bytes, but 0 are"
    ):
        declared(tmp_path, tmp_path / "a.hdf5", {"action": "cmd", "proprioception": {"q": "joints"}})
    small = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    header = b"IHDR" + struct.pack(">2I", 8192, 8192) + small[24:29]  # a picture of 200 MB, says its head
    huge = np.frombuffer(small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:], np.uint8)
    write_hdf5(tmp_path / "b" / "0.hdf5", {"action": np.ones((1, 3)), "observations/qpos": np.ones((1, 3))})
    with h5py.File(tmp_path / "b" / "0.hdf5", "a") as file:
        file["observations/images/top"] = huge[None]
    with pytest.raises(DataError, match=r"top: a picture has shape \(8192, 8192, 3\), expected at most 33,554,432"):
        read_demonstrations(tmp_path / "b")


def test_robomimic_by_name(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", {f"demo_{i}": demo(3 + i, i, image=8) for i in range(2)})
    data = read_demonstrations(path, layout="robomimic-real")
    assert data.actions.shape == (7, 7)  # as recorded, where the reader of robomimic makes poses
    assert data.schema.keys == ("robot0_eef_pos", "robot0_eef_rotation", "robot0_gripper_qpos", "robot0_joint_pos")
    with pytest.raises(
        DataError, match=r"a\.hdf5 is not of layout 'act' \(ACT's HDF5.*arrays are actions, dones, obs/"
    ):
        read_demonstrations(path, layout="act")
    with pytest.raises(ConfigError, match=r"layout umj cannot be read .* or a name: umi, real-pusht, act"):
        read_demonstrations(path, layout="umj")


def test_another_packages_layout_is_taken_by_name_and_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LAYOUTS, "_entries", dict(LAYOUTS._entries))
    mine = Layout(action=Values.of("cmd"), fps=5.0)
    LAYOUTS.register("mine", NamedLayout("ours", lambda found: mine if "cmd" in found.arrays else None))
    path = write_store(tmp_path / "a.zarr", {"cmd": np.ones((STEPS, 3))}, LENGTHS)
    assert read_demonstrations(path, layout="mine").schema.fps == read_demonstrations(path).schema.fps == 5.0


# LeRobot


def test_features_of_lerobot_by_declaration(tmp_path: Path) -> None:
    ones = [episode_of_lerobot(n, n) for n in LENGTHS]
    path = write_v3(tmp_path / "set", ones)
    plain = read_demonstrations(path)
    layout = {
        "action": {"array": "observation.state", "columns": [1, 0]},
        "next_state": True,
        "proprioception": {"x": {"array": "observation.state", "columns": [0]}},
        "cameras": {},
        "find_cameras": False,
    }
    data = declared(tmp_path, path, layout)
    state = plain.proprioception[:, plain.schema.columns(("state",))]
    assert_array_equal(data.actions, state[np.r_[1:4, 3, 5:10, 9]][:, [1, 0]])
    assert_array_equal(data.proprioception, state[:, :1])
    assert not data.images
    assert "action" in data.unread
    info = json.loads((path / "meta/info.json").read_text())
    del info["features"]["action"]
    (path / "meta/info.json").write_text(json.dumps(info))
    assert not read_demonstrations(path).carries_actions().any()
    assert_array_equal(declared(tmp_path, path, layout).actions, data.actions)
    with pytest.raises(ConfigError, match="unknown field 'episode_ends': available are 'action', 'action_space'"):
        declared(tmp_path, path, layout | {"episode_ends": "index"})


# Pictures


def test_images_of_other_types_are_read_where_that_is_declared(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (STEPS, 8, 9, 3), np.uint8)
    arrays = {"action": np.ones((STEPS, 3)), "rgb": (images / 255).astype(np.float32).transpose(0, 3, 1, 2)}
    path = write_store(tmp_path / "a.zarr", arrays, LENGTHS)
    with pytest.raises(DataError, match=r'data/rgb.*scaled to \[0, 1\].*declare the camera with "scale": 255'):
        read_demonstrations(path)
    data = declared(tmp_path, path, {"cameras": {"a": {"array": "rgb", "scale": 255}}})
    assert_array_equal(data.images["a"], images)
    flipped = declared(tmp_path, path, {"cameras": {"a": {"array": "rgb", "scale": 255, "flip": True}}})
    assert_array_equal(flipped.images["a"], images[:, ::-1])
    assert flipped.images["a"].digest() != data.images["a"].digest()  # type: ignore[union-attr]


# Proposals


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_a_proposed_layout_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    position, vectors, width = pose(STEPS, 1)
    arrays = {
        "commands": position,
        "ee_quat": Rotation.from_rotvec(vectors).as_quat(),
        "gripper": width[:, 0],
        "wrist": np.zeros((STEPS, 4, 4, 3), np.uint8) + np.arange(1, STEPS + 1, dtype=np.uint8)[:, None, None, None],
        "tactile": np.ones((STEPS, 3, 3, 2)),
        "timestamp": np.arange(STEPS) / 5,
    }
    path = write_store(tmp_path / "a.zarr", arrays, LENGTHS)
    assert main(["data", "info", str(path)]) == 1
    shown = printed(capsys)
    assert "tactile 10 x 3 x 3 x 2 float64: not read" in shown
    assert "ee_quat is taken for a rotation, quaternion-xyzw (or quaternion-wxyz): look whether it is" in shown
    assert '"action": "commands"' in shown
    assert main(["data", "info", str(path), "--propose", str(tmp_path / "layout.json")]) == 0
    data = read_demonstrations(path, layout=tmp_path / "layout.json")
    assert_allclose(data.actions, position, rtol=1e-6)
    assert data.schema.proprioception == (("ee_quat", 6), ("gripper", 1))
    assert (data.schema.fps, list(data.images), data.unread) == (5.0, ["wrist"], ("tactile",))
    sheet = tmp_path / "sheet.png"
    assert main(["data", "info", str(path), "--layout", str(tmp_path / "layout.json"), "--sheet", str(sheet)]) == 0
    assert "not read tactile" in printed(capsys)
    assert sheet.stat().st_size > 100


def test_what_cannot_be_guessed_is_to_be_filled_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_hdf5(tmp_path / "a.hdf5", {"x": np.ones((STEPS, 3)), "y": np.ones((STEPS, 4))})
    with pytest.raises(UndeclaredError, match=r"a\.hdf5: nothing says which array is what; arrays are x, y\. Expected"):
        read_demonstrations(path)
    file = tmp_path / "layout.json"
    assert main(["data", "info", str(path), "--propose", str(file)]) == 0
    assert "action: fill in the name of the array that holds what was commanded" in printed(capsys)
    with pytest.raises(ConfigError, match=re.escape(f"layout {file}.action: 'FILL IN' stands where the name")):
        read_demonstrations(path, layout=file)
    file.write_text(file.read_text().replace("FILL IN", "x"))
    assert read_demonstrations(path, layout=file).actions.shape == (STEPS, 3)


def test_observations_in_one_array_are_proposed_with_a_remark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    arrays = {"actions": np.ones((5, 3)), "obs": np.ones((6, 4)), "rewards": np.ones(5)}
    path = write_hdf5(tmp_path / "a" / "t.h5", {f"run_{i}/{k}": v for i in range(2) for k, v in arrays.items()})
    with pytest.raises(UndeclaredError, match=r"many episodes each; name one of them, such as .*t\.h5"):
        read_demonstrations(tmp_path / "a")
    assert main(["data", "info", str(path), "--propose", str(tmp_path / "layout.json")]) == 0
    assert "obs is taken for proprioception: name the columns that a robot measures" in printed(capsys)
    data = read_demonstrations(path, layout=tmp_path / "layout.json")
    assert (len(data), data.num_steps, data.schema.proprioception) == (2, 10, (("obs", 4),))
    assert data.unread == ("rewards",)


def test_layouts_are_json_and_back() -> None:
    layout = Layout(
        action=Values.of(["a", Columns("b", (1, 0), "euler-xyz")]),
        next_state=True,
        action_space=ActionSpace.points(),
        cameras={"front": Camera("rgb"), "side": Camera(video="videos/{episode}/1.mp4")},
        proprioception={"q": Values.of("joints")},
        boundaries="lengths",
    )
    written = to_json(layout)
    assert set(written) == {
        *("action", "next_state", "action_space", "cameras", "proprioception", "boundaries"),
    }
    assert (written["cameras"]["front"], written["action_space"]) == ("rgb", "point")
    assert Layout.from_json(json.loads(json.dumps(written))) == layout
