from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hdf5_files import libero_attributes, libero_demo, refusal, write_robomimic
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.transform import Rotation

from classact.data.actions import ActionSpace
from classact.data.language import source_at_hand
from classact.data.layout import Layout
from classact.data.readers import READERS, declared_simulator, reader
from classact.data.readers.libero import TASKS, matches, read
from classact.data.rotations import rotation_6d_to_matrix
from classact.errors import ClassactError, ConfigError

KETCHUP = TASKS[4]


def embed(words: str) -> tuple[np.ndarray, str]:
    """Three numbers that tell instructions apart."""
    return np.array([len(words), sum(words.encode()), words.count(" ")], np.float32), "test"


def write(folder: Path, task: str = KETCHUP, *, seeds: tuple[int, ...] = (0, 1), **options: Any) -> Path:
    convention = options.pop("convention", "opengl")
    demos = {f"demo_{i}": libero_demo(6 + i, seed, **options) for i, seed in enumerate(seeds)}
    words = "pick " + task.replace("_", " ").removeprefix("pick up ")
    return write_robomimic(folder / f"{task}_demo.hdf5", demos, attributes=libero_attributes(task, words, convention))


load = partial(read, embed=embed)
message = partial(refusal, load)


@pytest.mark.parametrize("late", [True, False])
def test_round_trip(tmp_path: Path, late: bool) -> None:
    """Where observations are a row late, they go with the next row's action and state."""
    path = write(tmp_path, late=late)
    demos = load(path)
    parts = [libero_demo(6 + i, i, late=late) for i in (0, 1)]
    seen = slice(None, -1) if late else slice(None)
    done = slice(1, None) if late else slice(None)
    assert demos.name == KETCHUP.replace("_", "-")
    assert demos.simulator == "libero-object"
    assert dict(demos.versions) == {"language": "test"}
    assert_array_equal(demos.lengths, [5, 6] if late else [6, 7])
    states = np.concatenate([d["states"][done] for d in parts])
    assert demos.states is not None
    assert_array_equal(demos.states[:, 0], np.full(len(states), 4))
    assert_array_equal(demos.states[:, 1:], states)
    assert demos.schema.actions == ActionSpace.pose()
    joints = demos.proprioception[:, demos.schema.columns(["joint_pos"])]
    assert_allclose(joints, states[:, 1:8], rtol=1e-6)  # what is observed belongs to the state
    hand = np.concatenate([d["obs/ee_states"][seen] for d in parts])
    site = Rotation.from_rotvec(hand[:, 3:]) * Rotation.from_rotvec([0, 0, -np.pi / 2])
    assert_allclose(demos.proprioception[:, 3:9], site.as_matrix()[:, :2].reshape(-1, 6), atol=1e-6)
    commands = np.concatenate([d["actions"][done] for d in parts])
    assert_allclose(demos.actions[:, :3], hand[:, :3] + 0.05 * commands[:, :3], atol=1e-6)
    turned = Rotation.from_rotvec(0.5 * commands[:, 3:6]) * site
    assert_allclose(rotation_6d_to_matrix(demos.actions[:, 3:9].astype(float)), turned.as_matrix(), atol=1e-6)
    assert_allclose(demos.actions[:, 9], commands[:, 6], rtol=1e-6)
    assert list(demos.images) == ["agentview", "wrist"]
    for camera, key in (("agentview", "agentview_rgb"), ("wrist", "eye_in_hand_rgb")):
        assert_array_equal(demos.images[camera], np.concatenate([d[f"obs/{key}"][seen] for d in parts])[:, ::-1])


def test_upright_images_stay(tmp_path: Path) -> None:
    demos = load(write(tmp_path, convention="opencv", late=False))
    expected = np.concatenate([libero_demo(6 + i, i)["obs/agentview_rgb"] for i in (0, 1)])
    assert_array_equal(demos.images["agentview"], expected)


def test_a_file_without_states(tmp_path: Path) -> None:
    content = libero_demo(6, 0)
    del content["states"]
    path = write_robomimic(
        tmp_path / "a_demo.hdf5", {"demo_0": content}, attributes=libero_attributes(KETCHUP, "pick it")
    )
    demos = load(path)
    assert (demos.states, demos.simulator, demos.num_steps) == (None, "", 5)  # late, as LIBERO's script writes
    assert "no states tell which row an observation belongs to" in demos.schema.assumption
    assert load(write(tmp_path)).schema.assumption == ""


def test_folder(tmp_path: Path) -> None:
    """Tasks in the benchmark's order, each with its own instruction in the benchmark's words."""
    for task in (TASKS[9], TASKS[0], TASKS[4]):
        write(tmp_path, task, late=False)
    (tmp_path / "notes.txt").touch()
    demos = load(tmp_path)
    assert len(demos) == 6
    assert demos.states is not None
    starts = demos.episode_ends - demos.lengths
    assert_array_equal(demos.states[starts, 0], [0, 0, 4, 4, 9, 9])
    expected = [embed(TASKS[i].replace("_", " "))[0] for i in (0, 0, 4, 4, 9, 9)]
    assert_array_equal(demos.language, expected)
    assert demos.schema.language == 3
    few = load(tmp_path, episodes=3)
    assert_array_equal(few.episode_ends, demos.episode_ends[:3])
    assert_array_equal(few.images["wrist"], demos.images["wrist"][: few.num_steps])
    with pytest.raises(ConfigError, match=r"first 7 episodes, but .* has 6"):
        load(tmp_path, episodes=7)


def test_other_tasks(tmp_path: Path) -> None:
    """The files' own words; no task number and no simulator; no states where scenes differ."""
    write(tmp_path, "open_the_drawer", late=False)
    demos = load(tmp_path)
    assert demos.simulator == ""
    assert_array_equal(demos.language, [embed("pick open the drawer")[0]] * 2)
    assert demos.states is not None
    assert demos.states.shape[1] == 39
    content = libero_demo(5, 3)
    content["states"] = np.concatenate([content["states"], content["states"][:, :4]], axis=1)
    attributes = libero_attributes("close_it", "close it")
    write_robomimic(tmp_path / "close_it_demo.hdf5", {"demo_0": content}, attributes=attributes)
    assert load(tmp_path).states is None


def test_layout(tmp_path: Path) -> None:
    path = write(tmp_path)
    demos = load(path, layout=Layout(cameras={"front": "agentview_rgb"}, accept=("robosuite",)))
    assert list(demos.images) == ["front"]
    demos = load(path, layout=Layout(cameras={}))
    assert (dict(demos.images), demos.schema.cameras) == ({}, ("agentview", "wrist"))  # what can be rendered
    with pytest.raises(ConfigError, match="unknown field 'filter': available are 'accept', 'cameras'"):
        load(path, layout=Layout(filter="train"))


def test_what_matches(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert matches(path)
    assert matches(tmp_path)
    renamed = path.rename(tmp_path / "anything.h5")
    assert matches(renamed)
    assert not matches(tmp_path)
    damaged = tmp_path / "x_demo.hdf5"
    damaged.write_bytes(b"hello")
    assert matches(damaged)
    plain = write_robomimic(tmp_path / "image_demo.hdf5", {"demo_0": libero_demo(3, 0)})
    assert not matches(plain)  # named so, but robomimic's
    assert not matches(tmp_path / "none_demo.hdf5")


def test_found_before_robomimic(tmp_path: Path) -> None:
    path = write(tmp_path)
    for source in (path, tmp_path):
        assert next(name for name in READERS if reader(name).matches(source)) == "libero"
        assert declared_simulator(source) == "libero-object"
    path.write_bytes(b"hello")
    assert declared_simulator(path) == declared_simulator(tmp_path) == ""


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("actions", np.zeros((7, 6)), r"actions is float64 of shape \(7, 6\), expected numbers of shape \(L, 7\)"),
        ("actions", np.full((7, 7), np.nan), r"actions\[0, 0\] is nan"),
        ("obs/ee_states", np.zeros((7, 3)), r"ee_states is float64 of shape \(7, 3\), expected .* \(7, 6\)"),
        ("obs/joint_states", None, "obs/joint_states is missing"),
        ("obs/gripper_states", np.zeros((6, 2)), "gripper_states has 6 rows, but there are 7 actions"),
        ("obs/agentview_rgb", np.zeros((6, 8, 8, 3), np.uint8), "agentview_rgb has 6 images, but there are 7 actions"),
        ("obs/eye_in_hand_rgb", None, "eye_in_hand_rgb is missing; there are agentview_rgb"),
        ("states", np.zeros((7, 5)), "states have 6 dimensions, those of .*demo_0 have 40"),
    ],
)
def test_bad_demonstrations(tmp_path: Path, key: str, value: np.ndarray | None, expected: str) -> None:
    bad = libero_demo(7, 1)
    bad[key] = value
    demos = {"demo_0": libero_demo(6, 0), "demo_1": {k: v for k, v in bad.items() if v is not None}}
    path = write_robomimic(tmp_path / "x_demo.hdf5", demos, attributes=libero_attributes(KETCHUP, "pick it"))
    found = message(path)
    assert "data/demo_1" in found
    assert re.search(expected, found)


def test_bad_files(tmp_path: Path) -> None:
    path = write(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "is truncated or damaged" in message(path)
    attributes = libero_attributes("other", "other")
    attributes["problem_info"] = "{}"
    write_robomimic(path, {"demo_0": libero_demo(6, 0)}, attributes=attributes)
    assert "'problem_info' holds no language_instruction" in message(path)
    attributes = {k: v for k, v in libero_attributes(KETCHUP, "it").items() if k != "env_args"}
    write_robomimic(path, {"demo_0": libero_demo(6, 0)}, attributes=attributes)
    assert "'env_args' names no controller_configs" in message(path)
    write_robomimic(path, {"demo_0": libero_demo(1, 0)}, attributes=libero_attributes(KETCHUP, "it"))
    assert "has 1 step, expected at least 2" in message(path)
    write_robomimic(path, {}, attributes=libero_attributes(KETCHUP, "it"))
    assert "holds 0 demonstrations" in message(path)
    path.unlink()
    assert "holds 0 files *_demo.hdf5" in message(tmp_path)


@pytest.fixture(scope="module")
def simulator() -> Any:
    pytest.importorskip("libero", reason="needs the extra 'libero'")
    from classact.sims import make_simulator

    try:
        sim: Any = make_simulator("libero-object", image_size=32, cameras=("agentview", "wrist"))
        sim.reset(TASKS.index(KETCHUP))
    except ClassactError as problem:
        pytest.skip(f"LIBERO does not start here: {problem}")
    yield sim
    sim.close()


def test_the_simulator_s_tasks_and_words(simulator: Any) -> None:
    from libero.libero.benchmark.libero_suite_task_map import libero_task_map

    assert tuple(libero_task_map["libero_object"]) == TASKS
    assert simulator.language_source == source_at_hand()
    assert simulator.instruction == KETCHUP.replace("_", " ")
    assert simulator.task == TASKS.index(KETCHUP)


@pytest.mark.filterwarnings("ignore")
def test_an_episode_of_our_simulator(tmp_path: Path, simulator: Any) -> None:
    """Written as LIBERO's script does: states before an action, observations after it, images upside down."""
    rng = np.random.default_rng(0)
    rows: dict[str, list[Any]] = {key: [] for key in libero_demo(2, 0)}
    goals, seen = [], []
    for _ in range(8):
        position, rotation = simulator.ee_pose()
        delta = rng.uniform(-1, 1, 7)
        turned = (Rotation.from_rotvec(0.5 * delta[3:6]) * Rotation.from_matrix(rotation)).as_matrix()
        goals.append([*(position + 0.05 * delta[:3]), *turned[:2].reshape(6), delta[6]])
        rows["actions"].append(delta)
        rows["states"].append(simulator.get_state()[1:])
        simulator.step(np.array(goals[-1], np.float32))
        seen.append(simulator.observe())
        hand = simulator.data.body("robot0_right_hand").xquat
        rows["obs/ee_states"].append([*simulator.ee_pose()[0], *Rotation.from_quat(np.roll(hand, -1)).as_rotvec()])
        rows["obs/joint_states"].append(simulator.joint_positions())
        rows["obs/gripper_states"].append(seen[-1].proprioception[-2:])
        rows["obs/agentview_rgb"].append(seen[-1].images["agentview"][::-1])
        rows["obs/eye_in_hand_rgb"].append(seen[-1].images["wrist"][::-1])
    arrays = {key: np.array(value) for key, value in rows.items()}
    path = write_robomimic(
        tmp_path / "a_demo.hdf5", {"demo_0": arrays}, attributes=libero_attributes(KETCHUP, "pick the ketchup")
    )
    demos = load(path)
    assert demos.simulator == simulator.spec.name
    assert_allclose(demos.actions, goals[1:], atol=2e-5)
    assert_allclose(demos.proprioception, [o.proprioception for o in seen[:-1]], atol=2e-5)
    assert_array_equal(demos.states, [o.state for o in seen[:-1]])
    for camera in ("agentview", "wrist"):
        assert_array_equal(demos.images[camera], [o.images[camera] for o in seen[:-1]])
    assert (demos.schema.cameras, demos.schema.actions) == (
        simulator.spec.schema.cameras,
        simulator.spec.schema.actions,
    )
    assert demos.schema.proprioception == simulator.spec.schema.proprioception
    assert demos.states is not None
    simulator.set_state(demos.states[3])
    assert_array_equal(simulator.get_state(), demos.states[3])
