from __future__ import annotations

import contextlib
import copy
import json
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hdf5_files import NQ, NV, OSC, decode, demo, env_args, model, refusal, write_robomimic
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.transform import Rotation

from classact.data.actions import ActionSpace
from classact.data.layout import Layout
from classact.data.readers import declared_simulator, read_demonstrations
from classact.data.readers.kinematics import ArmModel
from classact.data.readers.osc import HAND_TO_SITE, Controller, site_rotation
from classact.data.readers.robomimic import matches, read
from classact.data.rotations import rotation_6d_to_matrix
from classact.errors import ConfigError, DataError

COMPOSITE = {"type": "BASIC", "body_parts": {"right": {**OSC, "input_type": "delta", "input_ref_frame": "world"}}}
"""robosuite's settings since 1.5."""


def write(tmp_path: Path, **options: Any) -> Path:
    demos = {"demo_10": demo(4, 10, image=6), "demo_0": demo(5, 0, image=6), "demo_2": demo(7, 2, image=6)}
    return write_robomimic(tmp_path / "square_ph.hdf5", demos, **options)


message = partial(refusal, read)


# What is read


@pytest.mark.parametrize("compressed", [True, False])
def test_round_trip(tmp_path: Path, compressed: bool) -> None:
    path = write(tmp_path, compressed=compressed)
    demos = read(path)
    order = [demo(5, 0, image=6), demo(7, 2, image=6), demo(4, 10, image=6)]  # by number, not by name
    assert (demos.name, demos.source, demos.simulator) == ("square-ph", str(path), "square")
    assert dict(demos.versions) == {"robosuite": "1.4.1"}
    assert_array_equal(demos.episode_ends, [5, 12, 16])
    assert_array_equal(demos.states, np.concatenate([d["states"] for d in order]))
    assert demos.schema.cameras == ("agentview", "wrist")
    assert demos.schema.actions == ActionSpace.pose()
    for camera, key in (("agentview", "agentview_image"), ("wrist", "robot0_eye_in_hand_image")):
        assert_array_equal(demos.images[camera], np.concatenate([d[f"obs/{key}"] for d in order]))
    columns = {key: demos.schema.columns([key]) for key in demos.schema.keys}
    for key, name in (("eef_pos", "eef_pos"), ("joint_pos", "joint_pos"), ("gripper_qpos", "gripper_qpos")):
        expected = np.concatenate([d[f"obs/robot0_{name}"] for d in order])
        assert_allclose(demos.proprioception[:, columns[key]], expected, rtol=1e-6)
    hand = Rotation.from_quat(np.concatenate([d["obs/robot0_eef_quat"] for d in order]))
    site = (hand * Rotation.from_euler("z", -90, degrees=True)).as_matrix()
    assert_allclose(demos.proprioception[:, columns["eef_rot6d"]], site[:, :2].reshape(-1, 6), atol=1e-6)


def test_the_site_s_rotation_where_it_is_observed(tmp_path: Path) -> None:
    content = demo(4, 1)
    site = Rotation.random(4, random_state=9)
    content["obs/robot0_eef_quat_site"] = site.as_quat()
    demos = read(write_robomimic(tmp_path / "a.hdf5", {"demo_0": content}))
    assert_allclose(demos.proprioception[:, 3:9], site.as_matrix()[:, :2].reshape(-1, 6), atol=1e-6)


def test_first_episodes(tmp_path: Path) -> None:
    path = write(tmp_path)
    demos = read(path, episodes=2)
    assert_array_equal(demos.episode_ends, [5, 12])
    assert demos.images["wrist"].shape == (12, 6, 6, 3)
    for episodes in (0, 4):
        with pytest.raises(ConfigError, match=f"first {episodes} episodes, but .*square_ph.hdf5 has 3. Ask for 1 to 3"):
            read(path, episodes=episodes)


def test_filters(tmp_path: Path) -> None:
    path = write(tmp_path, masks={"train": ["demo_10", "demo_2"], "none": [], "gone": ["demo_2", "demo_7"]})
    layout = tmp_path / "layout.json"
    layout.write_text(json.dumps({"filter": "train", "cameras": {}}))
    assert_array_equal(read(path, layout=layout).episode_ends, [7, 11])
    with pytest.raises(ConfigError, match="unknown filter 'valid': available are 'gone', 'none', 'train'"):
        read(path, layout=Layout(filter="valid"))
    assert "mask/none lists 0 demonstrations" in message(path, layout=Layout(filter="none"))
    assert "mask/gone lists 'demo_7', which is not in data" in message(path, layout=Layout(filter="gone"))


def test_layouts(tmp_path: Path) -> None:
    path, layout = write(tmp_path), tmp_path / "layout.json"
    layout.write_text(json.dumps({"cameras": {"front": "obs/agentview_image"}}))
    assert "obs/agentview_image is missing; there are agentview_image" in message(path, layout=layout)
    layout.write_text(json.dumps({"cameras": {"front": "agentview_image"}, "accept": ["robosuite"]}))
    demos = read(path, layout=layout)
    assert list(demos.images) == ["front"]
    assert dict(demos.versions) == {}
    for content, expected in (
        ('{"camera": {}}', "unknown field 'camera': available are 'accept', 'action', .* \\(did you mean 'cameras'"),
        ('{"bgr": true}', "unknown field 'bgr'"),
        ('{"filter": 3}', "filter: expected text, got 3"),
        ('{"cameras": ["a"]}', r"cameras: expected an object, got \['a'\]"),
        ('{"accept": ["numpy"]}', r"accept\[0\]: unknown value 'numpy': available are 'robosuite'"),
        ("[]", r"expected an object with the fields of Layout, got \[\]"),
        ("{", "is not valid JSON"),
    ):
        layout.write_text(content)
        with pytest.raises(ConfigError, match=f"layout {re.escape(str(layout))}.*{expected}"):
            read(path, layout=layout)
    with pytest.raises(ConfigError, match=r"missing\.json cannot be read"):
        read(path, layout=tmp_path / "missing.json")
    with pytest.raises(ConfigError, match="unknown field 'bgr'"):
        read(path, layout=Layout(bgr=True))


@pytest.mark.parametrize(
    ("attributes", "simulator", "version"),
    [
        (env_args("StackThree_D0"), "three-stack-d0", "1.4.1"),
        (env_args("StackThree_D1", "1.5.1"), "three-stack-d1", "1.5.1"),
        (env_args("Lift", None), "", "unknown"),
        (
            {
                "env": "NutAssemblySquare",
                "env_info": json.dumps({"controller_configs": OSC}),
                "repository_version": "1",
            },
            "square",
            "1",
        ),
    ],
)
def test_environments(tmp_path: Path, attributes: dict[str, str], simulator: str, version: str) -> None:
    demos = read(write_robomimic(tmp_path / "a.hdf5", {"demo_0": demo(3, 0)}, attributes=attributes))
    assert (demos.simulator, dict(demos.versions)) == (simulator, {"robosuite": version})
    assert demos.schema.cameras == (("agentview", "wrist") if simulator else ())


def test_without_states_there_is_no_simulator(tmp_path: Path) -> None:
    content = demo(3, 0)
    del content["states"]
    demos = read(write_robomimic(tmp_path / "a.hdf5", {"demo_0": content}))
    assert (demos.states, demos.simulator) == (None, "")


# Actions


def goals(commands: np.ndarray, position: np.ndarray, site: Rotation) -> np.ndarray:
    """Reference: what a delta means, with SciPy."""
    clipped = np.clip(commands[:, :6], -1, 1)
    rotation = (Rotation.from_rotvec(0.5 * clipped[:, 3:]) * site).as_matrix()
    return np.concatenate([position + 0.05 * clipped[:, :3], rotation[:, :2].reshape(-1, 6), commands[:, 6:]], axis=1)


@pytest.mark.parametrize("controller", [OSC, COMPOSITE, {"type": "BASIC", "body_parts": {"arms": {"right": OSC}}}])
def test_deltas_become_poses(tmp_path: Path, controller: dict[str, Any]) -> None:
    content = demo(30, 3)
    path = write_robomimic(tmp_path / "a.hdf5", {"demo_0": content}, attributes=env_args(controller=controller))
    site = Rotation.from_quat(content["obs/robot0_eef_quat"]) * Rotation.from_euler("z", -90, degrees=True)
    assert_allclose(read(path).actions, goals(content["actions"], content["obs/robot0_eef_pos"], site), atol=1e-6)


numbers = st.floats(-1.5, 1.5, allow_nan=False, width=64)


@settings(max_examples=60, deadline=None)
@given(
    command=st.lists(numbers, min_size=7, max_size=7),
    place=st.lists(numbers, min_size=3, max_size=3),
    turn=st.lists(st.floats(-3, 3), min_size=3, max_size=3),
)
def test_any_delta_against_scipy(command: list[float], place: list[float], turn: list[float]) -> None:
    controller = Controller.from_json(COMPOSITE, "test")
    commands, position, site = np.array([command]), np.array([place]), Rotation.from_rotvec([turn])
    found = controller.poses(commands, position, site.as_matrix())
    assert_allclose(found, goals(commands, position, site), atol=1e-12)
    assert_allclose(np.linalg.det(rotation_6d_to_matrix(found[:, 3:9])), 1)


def test_poses_stay_poses(tmp_path: Path) -> None:
    content = demo(20, 5)
    content["actions"][:, :3] *= 3  # beyond 1: not clipped
    path = write_robomimic(
        tmp_path / "a.hdf5", {"demo_0": content}, attributes=env_args(controller={**OSC, "control_delta": False})
    )
    commands, found = content["actions"], read(path).actions
    assert_allclose(found[:, :3], commands[:, :3], rtol=1e-6)
    rotation = rotation_6d_to_matrix(found[:, 3:9].astype(np.float64))
    assert_allclose(rotation, Rotation.from_rotvec(commands[:, 3:6]).as_matrix(), atol=1e-6)
    assert_allclose(found[:, 9], commands[:, 6], rtol=1e-6)


def test_poses_that_are_declared_as_differences(tmp_path: Path) -> None:
    """Diffusion Policy's ..._abs.hdf5: env_args of the original, actions converted."""
    content = demo(20, 5)
    rng = np.random.default_rng(0)
    site = Rotation.from_quat(content["obs/robot0_eef_quat"]) * Rotation.from_rotvec([0, 0, -np.pi / 2])
    content["actions"][:, :3] = content["obs/robot0_eef_pos"] + rng.uniform(-0.05, 0.05, (20, 3))
    turned = Rotation.from_rotvec(rng.uniform(-0.2, 0.2, (20, 3))) * site
    content["actions"][:, 3:6] = turned.as_rotvec()
    demos = read(write_robomimic(tmp_path / "image_abs.hdf5", {"demo_0": content}))
    assert demos.schema.assumption.startswith("env_args declare actions as differences")
    assert_allclose(demos.actions[:, :3], content["actions"][:, :3], atol=1e-6)
    assert_allclose(demos.actions[:, 3:9], turned.as_matrix()[:, :2].reshape(-1, 6), atol=1e-6)
    # One demonstration of differences, and none is taken for poses.
    demos = read(write_robomimic(tmp_path / "mixed.hdf5", {"demo_0": content, "demo_1": demo(20, 6)}))
    assert demos.schema.assumption == ""
    assert np.abs(demos.actions[:, :3] - demos.proprioception[:, :3]).max() <= 0.05 + 1e-6


def test_before_1_5_no_rotation_keeps_the_goal() -> None:
    commands = np.zeros((5, 7))
    commands[[1, 3], 5] = 1.0, -0.5
    site = Rotation.from_rotvec(np.outer([0.1, 0.2, 0.3, 0.4, 0.5], [0, 0, 1]))
    position = np.zeros((5, 3))
    held = Controller.from_json(OSC, "test").poses(commands, position, site.as_matrix())
    angles = Rotation.from_matrix(rotation_6d_to_matrix(held[:, 3:9])).as_euler("xyz")[:, 2]
    assert_allclose(angles, [0.1, 0.7, 0.7, 0.15, 0.15], atol=1e-12)
    free = Controller.from_json(COMPOSITE, "test").poses(commands, position, site.as_matrix())
    angles = Rotation.from_matrix(rotation_6d_to_matrix(free[:, 3:9])).as_euler("xyz")[:, 2]
    assert_allclose(angles, [0.1, 0.7, 0.3, 0.15, 0.5], atol=1e-12)


@pytest.mark.parametrize(
    ("controller", "expected"),
    [
        ({"type": "BASIC", "body_parts": {"left": OSC}}, "name the controller None, expected 'OSC_POSE'"),
        ({**OSC, "impedance_mode": "variable"}, "impedance_mode is 'variable', expected 'fixed'"),
        ({**OSC, "output_max": [1, 2]}, "input and output limits: .*; expected 1 or 6"),
        ({**OSC, "input_max": -1}, "input_min .* must lie below input_max"),
        (
            {"type": "BASIC", "body_parts": {"right": {**OSC, "input_type": "absolute"}}},
            "absolute in the frame 'base' of the robot's base, expected 'world'",
        ),
    ],
)
def test_other_controllers(tmp_path: Path, controller: dict[str, Any], expected: str) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", {"demo_0": demo(3, 0)}, attributes=env_args(controller=controller))
    assert re.search(expected, message(path))


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        (env_args(robots="Sawyer"), "of the robots Sawyer"),
        (env_args(robots=["Panda", "Panda"]), "of the robots Panda, Panda"),
        (env_args(controller={"type": "JOINT_POSITION"}), "of controller JOINT_POSITION"),
        (env_args(controller={"type": "OSC_POSITION"}), "of controller OSC_POSITION"),
        ({}, "of no declared controller"),
    ],
)
def test_other_robots_and_controllers_are_taken_as_recorded(
    tmp_path: Path, attributes: dict[str, Any], reason: str
) -> None:
    demos = {f"demo_{i}": demo(3 + i, i, image=8) | {"actions": np.full((3 + i, 4), i + 0.5)} for i in range(2)}
    data = read_demonstrations(write_robomimic(tmp_path / "a.hdf5", demos, attributes=attributes))
    assert_array_equal(data.actions, np.repeat([[0.5] * 4, [1.5] * 4], [3, 4], axis=0))
    assert data.schema.proprioception == (
        *(("robot0_eef_pos", 3), ("robot0_eef_rotation", 6)),
        *(("robot0_gripper_qpos", 2), ("robot0_joint_pos", 7)),
    )
    rotation = Rotation.from_quat(demos["demo_1"]["obs/robot0_eef_quat"]).as_matrix()[:, :2].reshape(-1, 6)
    assert_allclose(data.proprioception[3:, 3:9], rotation, atol=1e-6)
    assert (data.simulator, data.states, data.schema.actions) == ("", None, None)
    assert set(data.images) == {"agentview", "wrist"}
    assert f"actions ({reason}) are taken as they were recorded" in data.schema.assumption
    assert data.unread == ("obs/object",)


def test_other_robots_without_observations_are_refused(tmp_path: Path) -> None:
    content = {key: value for key, value in demo(3, 0).items() if not key.startswith("obs/")}
    path = write_robomimic(tmp_path / "a.hdf5", {"demo_0": content}, attributes=env_args(robots="Sawyer"))
    assert "the robots Sawyer, expected one Panda" in message(path)


def test_demonstrations_of_different_sizes_are_refused(tmp_path: Path) -> None:
    demos = {f"demo_{i}": demo(3, i) | {"actions": np.zeros((3, 4 + i))} for i in range(2)}
    path = write_robomimic(tmp_path / "a.hdf5", demos, attributes={})
    assert "demo_1: 5 dimensions of actions and 18 of proprioception, the first demonstration has 4 and 18" in message(
        path
    )


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ("action/joints", "observation/joints"),
            "looks like DROID's trajectory.h5, but lacks action/cartesian_position",
        ),
        (("traj_0/actions", "traj_1/actions"), "looks like ManiSkill's trajectories, which hold no observations"),
    ],
)
def test_formats_known_by_name_alone_are_named(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    with h5py.File(tmp_path / "trajectory.h5", "w") as file:
        for name in names:
            file[name] = np.zeros((3, 7))
    assert said in message(tmp_path / "trajectory.h5")
    assert "--propose layout.json" in message(tmp_path / "trajectory.h5")


# Kinematics of the recorded model


@pytest.mark.parametrize(
    "names",
    [("gripper0_grip_site", "gripper0_finger_joint"), ("gripper0_right_grip_site", "gripper0_right_finger_joint")],
)
def test_kinematics_equal_mujoco_s(names: tuple[str, str]) -> None:
    mujoco = pytest.importorskip("mujoco", reason="needs MuJoCo to compare with")
    xml = model(*names)
    reference = mujoco.MjModel.from_xml_string(xml)
    data = mujoco.MjData(reference)
    ours = ArmModel(xml, "test")
    assert (ours.nq, ours.nv) == (reference.nq, reference.nv) == (NQ, NV)
    assert ours.arm == [int(reference.joint(f"robot0_joint{i}").qposadr[0]) for i in range(1, 8)]
    assert ours.fingers == [int(reference.joint(f"{names[1]}{i}").qposadr[0]) for i in (1, 2)]
    qpos = np.random.default_rng(0).normal(size=(20, NQ))
    position, rotation = ours.grip_pose(qpos)
    for row in range(len(qpos)):
        data.qpos[:] = qpos[row]
        mujoco.mj_forward(reference, data)
        assert_allclose(position[row], data.site(names[0]).xpos, atol=1e-12)
        assert_allclose(rotation[row], data.site(names[0]).xmat.reshape(3, 3), atol=1e-12)


def test_raw_files(tmp_path: Path) -> None:
    content = {key: value for key, value in demo(6, 4).items() if not key.startswith("obs/")}
    demos = read(write_robomimic(tmp_path / "demo.hdf5", {"demo_1": content}, xml=model()))
    arm = ArmModel(model(), "test")
    qpos = content["states"][:, 1 : 1 + NQ]
    position, rotation = arm.grip_pose(qpos)
    assert_allclose(demos.proprioception[:, :3], position, atol=1e-5)
    assert_allclose(demos.proprioception[:, 3:9], rotation[:, :2].reshape(-1, 6), atol=1e-5)
    assert_allclose(demos.proprioception[:, 9:], qpos[:, 7:16], rtol=1e-5)
    assert_allclose(demos.actions, goals(content["actions"], position, Rotation.from_matrix(rotation)), atol=1e-5)
    assert demos.images == {}


@pytest.mark.parametrize(
    ("xml", "expected"),
    [
        ("<mujoco", "the recorded model is not valid XML"),
        ("<mujoco/>", "the recorded model has no worldbody"),
        ("<mujoco><worldbody/></mujoco>", "has no site gripper0_grip_site or gripper0_right_grip_site"),
        (model().replace("robot0_joint7", "other"), "the arm has 6 joints and 2 fingers, expected 7 and 2"),
        (model().replace("<freejoint", '<joint type="slide"'), "states have 32 dimensions, but .* 1 \\+ 10 \\+ 10"),
        (model().replace('type="slide"', 'type="screw"'), "is of type 'screw', expected one of"),
        (model().replace('quat="0.92 0', 'quat="0.92'), "has quat '0.92 0 -0.38', expected 4 numbers"),
        (model().replace('axis="0 1 0"', 'axis="0 0 0"'), "has an axis of length 0"),
        (model().replace('quat="0.92 0 0 -0.38"', 'euler="1 0 0"'), "has an orientation as euler, expected quat"),
        (model().replace('<joint name="robot0_joint3"', '<joint type="ball" name="robot0_joint3"'), "of type ball"),
    ],
)
def test_models_that_do_not_fit(tmp_path: Path, xml: str, expected: str) -> None:
    content = {key: value for key, value in demo(3, 4).items() if not key.startswith("obs/")}
    found = message(write_robomimic(tmp_path / "demo.hdf5", {"demo_1": content}, xml=xml))
    assert "data/demo_1" in found
    assert re.search(expected, found)


# Bad input


def test_missing_keys(tmp_path: Path) -> None:
    content = demo(3, 0)
    del content["obs/robot0_eef_quat"], content["obs/robot0_joint_pos"]
    found = message(write_robomimic(tmp_path / "a.hdf5", {"demo_4": content}))
    assert "data/demo_4: obs lacks robot0_eef_quat, robot0_joint_pos, and there are no model" in found
    del content["states"]
    assert "there are no states to compute" in message(write_robomimic(tmp_path / "a.hdf5", {"demo_4": content}))
    del content["actions"]
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        file.create_group("data").attrs.update(env_args())
        file.create_dataset("data/demo_0/obs/x", data=np.zeros(3))
    assert "data/demo_0: obs lacks robot0_eef_pos, robot0_eef_quat" in message(tmp_path / "b.hdf5")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("actions", np.zeros((3, 14)), r"actions is float64 of shape \(3, 14\), expected numbers of shape \(L, 7\)"),
        ("actions", np.zeros((0, 7)), "actions has 0 steps, expected at least 1"),
        ("actions", np.full((3, 7), np.nan), r"actions\[0, 0\] is nan; 3 of 3 steps hold NaN"),
        ("states", np.zeros((2, 32)), "states has 2 rows, but there are 3 actions"),
        ("states", np.full((3, 32), np.inf), r"states\[0, 0\] is inf"),
        ("obs/robot0_eef_pos", np.zeros((3, 2)), r"robot0_eef_pos is float64 of shape \(3, 2\), expected .*\(3, 3\)"),
        ("obs/robot0_joint_pos", np.zeros((2, 7)), "robot0_joint_pos has 2 rows, but there are 3 actions"),
        ("obs/agentview_image", np.zeros((2, 6, 6, 3), np.uint8), "agentview_image has 2 images, but there are 3"),
        ("obs/agentview_image", np.zeros((3, 5, 6, 3), np.uint8), "images of 5 x 6 pixels, .* of 6 x 6"),
        ("obs/agentview_image", np.zeros((3, 4, 6, 6), np.uint8), "agentview_image is uint8 of shape"),
        ("obs/agentview_image", np.zeros((3, 6, 6, 3)), r"the largest value of agentview_image\[0\] is 1 or less"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, key: str, value: np.ndarray, expected: str) -> None:
    bad = demo(3, 0, image=6)
    bad[key] = value
    path = write_robomimic(tmp_path / "a.hdf5", {"demo_0": demo(4, 1, image=6), "demo_1": bad})
    found = message(path)
    assert "data/demo_1" in found
    assert re.search(expected, found)


def test_states_of_different_sizes(tmp_path: Path) -> None:
    other = demo(3, 0)
    other["states"] = np.zeros((3, 5))
    path = write_robomimic(tmp_path / "a.hdf5", {"demo_0": demo(4, 1), "demo_1": other})
    assert re.search("data/demo_1: states have 5 dimensions, those of .*data/demo_0 have 32", message(path))
    del other["states"]
    path = write_robomimic(tmp_path / "a.hdf5", {"demo_0": demo(4, 1), "demo_1": other})
    assert "data/demo_1: states have 0 dimensions" in message(path)


def test_missing_groups(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file["other"] = 1
    assert "nothing says which array is what; arrays are other. Expected" in message(path)
    with h5py.File(path, "w") as file:
        file["data/episode_0/joints"] = np.zeros((3, 2))
    assert "nothing says which array is what; arrays are joints. Expected" in message(path)
    with h5py.File(path, "w") as file:
        file.create_group("data")
    assert "data: holds 0 demonstrations; there are none. Expected demonstrations demo_0" in message(path)
    write_robomimic(path, {"demo_0": demo(3, 0)}, attributes={"env_args": "{"})
    assert "attribute 'env_args' is not valid JSON" in message(path)
    write_robomimic(path, {"demo_0": demo(3, 0)}, attributes={"env_args": "3"})
    assert "attribute 'env_args' is 3, expected a JSON object" in message(path)


def test_damaged_files(tmp_path: Path) -> None:
    path = write(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert matches(path)
    assert "is truncated or damaged" in message(path)
    path.write_bytes(b"hello")
    assert "is no HDF5 file, or its start is damaged" in message(path)
    # A damaged chunk of images: found while they are decoded.
    write(tmp_path)
    with h5py.File(path, "r") as file:
        chunk = file["data/demo_2/obs/agentview_image"].id.get_chunk_info(1)
    damaged = bytearray(content)
    damaged[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(damaged)
    assert "is damaged" in message(path)


@pytest.mark.parametrize("image", [0, 6])
def test_damage_anywhere_is_said(tmp_path: Path, image: int) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", {"demo_0": demo(4, 0, image=image)}, xml=model())
    content, rng = path.read_bytes(), np.random.default_rng(image)
    for _ in range(60):
        damaged = bytearray(content)
        if rng.random() < 0.5:
            del damaged[int(rng.integers(len(damaged))) :]
        else:
            start = int(rng.integers(len(damaged)))
            damaged[start : start + 16] = rng.integers(0, 256, 16, np.uint8).tobytes()[: len(damaged) - start]
        path.write_bytes(damaged)
        with contextlib.suppress(DataError, ConfigError):  # numbers may be damaged and still be numbers
            decode(read(path))


def test_a_heap_over_which_hdf5_never_ends(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", {"demo_0": demo(4, 0)}, xml=model())
    content = bytearray(path.read_bytes())
    at = content.index(b"GCOL")
    content[at + 16 : at + 32] = bytes(16)
    path.write_bytes(content)
    assert f"a.hdf5 is damaged: a heap at byte {at} never ends" in message(path)


def test_what_matches(tmp_path: Path) -> None:
    assert matches(write(tmp_path))
    assert not matches(tmp_path)
    (tmp_path / "a.txt").touch()
    assert not matches(tmp_path / "a.txt")


def test_found_by_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLASSACT_CACHE", str(tmp_path / "cache"))
    path, layout = write(tmp_path, masks={"train": ["demo_2"]}), tmp_path / "layout.json"
    assert read_demonstrations(path, episodes=1).num_steps == 5
    layout.write_text('{"filter": "train"}')
    assert read_demonstrations(path, layout=layout).num_steps == 7
    assert declared_simulator(path) == "square"
    path.write_bytes(b"hello")
    assert declared_simulator(path) == ""
    with pytest.raises(DataError, match=r"square_ph\.hdf5 is no HDF5 file"):
        read_demonstrations(path)


# The real simulator


def panda(**settings: Any) -> Any:
    """robosuite's own environment with delta commands, whichever version is installed."""
    robosuite = pytest.importorskip("robosuite", reason="needs the extra 'robosuite' or 'libero'")
    config: Any
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if robosuite.__version__ < "1.5":
            config = robosuite.load_controller_config(default_controller="OSC_POSE")
        else:
            config = copy.deepcopy(robosuite.load_composite_controller_config(controller="BASIC", robot="Panda"))
            config["body_parts"] = {"right": config["body_parts"]["right"] | settings}
        return config, robosuite.make(
            "NutAssemblySquare",
            robots="Panda",
            controller_configs=copy.deepcopy(config),
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            hard_reset=False,
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("frame", ["world", "base"])
def test_robosuite_s_own_goals(monkeypatch: pytest.MonkeyPatch, frame: str) -> None:
    """The hand's quarter turn, the kinematics of its XML, and every goal against robosuite's controller itself."""
    monkeypatch.setenv("MUJOCO_GL", "egl")
    config, env = panda(input_ref_frame=frame)
    env.reset()
    robot, sim = env.robots[0], env.sim
    old = not hasattr(robot, "part_controllers")
    controller = robot.controller if old else robot.part_controllers["right"]
    site = robot.eef_site_id if old else robot.eef_site_id["right"]
    rng = np.random.default_rng(0)
    commands = rng.uniform(-1.3, 1.3, (25, 7))
    commands[[0, 6, 7, 15], 3:6] = 0
    states, hands, rows = [], [], []
    for command in commands:
        sim.forward()
        states.append(np.array(sim.get_state().flatten()))
        hand = sim.data.get_body_xmat("robot0_right_hand").copy()
        assert_allclose(hand.T @ sim.data.site_xmat[site].reshape(3, 3), HAND_TO_SITE, atol=2e-6)
        hands.append(hand)
        rows.append(np.array(sim.data.site_xpos[site]))
        env.step(command)
        goal, turned = controller.goal_pos, controller.goal_ori
        if not old and frame == "base":
            goal, turned = controller.origin_pos + controller.origin_ori @ goal, controller.origin_ori @ turned
        rows[-1] = np.concatenate([rows[-1], goal, turned[:2].reshape(6)])
    expected = np.stack(rows)
    # robosuite's XML has six digits of everything.
    position, rotation = ArmModel(sim.model.get_xml(), "test").grip_pose(np.stack(states)[:, 1 : 1 + sim.model.nq])
    assert_allclose(position, expected[:, :3], atol=1e-5)
    assert_allclose(rotation, site_rotation(np.stack(hands)), atol=1e-5)
    found = Controller.from_json(config, "test").poses(commands, expected[:, :3], site_rotation(np.stack(hands)))
    assert_allclose(found[:, :9], expected[:, 3:], atol=1e-5)
    assert Controller.from_json(config, "test").holds == old
    env.close()


@pytest.mark.filterwarnings("ignore")
def test_an_episode_of_our_square(tmp_path: Path) -> None:
    """Recorded from classact's simulator in robomimic's layout, read back: states, poses, actions are the same."""
    pytest.importorskip("robosuite", "1.5", reason="needs the extra 'robosuite'")
    from classact.sims import make_simulator

    sim: Any = make_simulator("square", image_size=32)
    sim.reset(3)
    rng = np.random.default_rng(1)
    actions, observed = [], []
    content: dict[str, list[Any]] = {key: [] for key in demo(1, 0) if key not in ("rewards", "dones", "obs/object")}
    for _ in range(12):
        position, rotation = sim.ee_pose()
        hand = sim.data.body("robot0_right_hand").xquat
        delta = rng.uniform(-1, 1, 7)
        content["actions"].append(delta)
        content["states"].append(sim.get_state())
        content["obs/robot0_eef_pos"].append(position)
        content["obs/robot0_eef_quat"].append(np.roll(hand, -1))
        content["obs/robot0_joint_pos"].append(sim.joint_positions())
        content["obs/robot0_gripper_qpos"].append(sim.data.qpos[7:9].copy())
        observed.append(sim.observe(render=False).proprioception)
        goal = goals(delta[None], position[None], Rotation.from_matrix(rotation[None]))[0]
        actions.append(goal.astype(np.float32))
        sim.step(actions[-1])
    arrays = {key: np.array(value) for key, value in content.items()}
    xml = sim.env.model.get_xml()  # not MuJoCo's last one, which may be of another test
    path = write_robomimic(
        tmp_path / "square.hdf5",
        {"demo_0": arrays},
        attributes=env_args(version="1.5.2", controller=COMPOSITE),
        xml=xml,
    )
    demos = read(path)
    assert demos.simulator == sim.spec.name
    assert demos.schema == sim.spec.schema
    assert_array_equal(demos.states, arrays["states"])
    assert_allclose(demos.actions, actions, atol=1e-6)
    assert_allclose(demos.proprioception, observed, atol=1e-6)
    raw = {key: arrays[key] for key in ("actions", "states")}
    path = write_robomimic(
        tmp_path / "raw.hdf5", {"demo_0": raw}, attributes=env_args(version="1.5.2", controller=COMPOSITE), xml=xml
    )
    computed = read(path)
    assert_allclose(computed.actions, actions, atol=1e-5)
    assert_allclose(computed.proprioception, observed, atol=1e-5)
    # States come back exactly, and another recording of them would show the same.
    assert demos.states is not None
    sim.set_state(demos.states[7])
    assert_array_equal(sim.get_state(), demos.states[7])
    assert_allclose(sim.observe(render=False).proprioception, demos.proprioception[7], atol=1e-6)
    sim.close()
