from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from classact.data.types import FloatArray, StateArray
from classact.errors import ActionError, ConfigError, SimulatorError
from classact.sims import make_simulator
from classact.sims.base import CLOSED, OPEN, check_installed

try:
    if not importlib.metadata.version("robosuite").startswith("1.5"):
        pytest.skip("needs robosuite 1.5; LIBERO's is here", allow_module_level=True)
except importlib.metadata.PackageNotFoundError:
    pytest.skip("needs the extra robosuite", allow_module_level=True)

from poses import pose_action
from scipy.spatial.transform import Rotation

from classact.sims.panda import arm_command
from classact.sims.renderer import mujoco
from classact.sims.robosuite_tasks import RANGES, RobosuiteSimulator

TASKS = ("square", "three-stack-d0", "three-stack-d1")
SIZE = 64

Make = Callable[..., RobosuiteSimulator]


@pytest.fixture(scope="module")
def make() -> Iterator[Make]:
    """Simulators by their arguments, made once."""
    made: dict[Any, RobosuiteSimulator] = {}

    def get(name: str, shift: str = "fixed", copy: int = 0, **settings: Any) -> RobosuiteSimulator:
        key = (name, shift, copy, *sorted(settings.items()))
        if key not in made:
            sim = make_simulator(name, image_size=SIZE, shift=shift, **settings)
            assert isinstance(sim, RobosuiteSimulator)
            made[key] = sim
        return made[key]

    yield get
    for sim in made.values():
        sim.close()


def stay(sim: RobosuiteSimulator, gripper: float = OPEN) -> FloatArray:
    return pose_action(*sim.ee_pose(), gripper)


def wild(sim: RobosuiteSimulator, seed: int, steps: int) -> list[FloatArray]:
    """Actions about the present pose."""
    rng = np.random.default_rng(seed)
    place, rotation = sim.ee_pose()
    return [
        pose_action(
            place + rng.uniform(-0.1, 0.1, 3),
            Rotation.from_rotvec(rng.uniform(-0.3, 0.3, 3)).as_matrix() @ rotation,
            rng.uniform(-1, 1),
        )
        for _ in range(steps)
    ]


def run(sim: RobosuiteSimulator, actions: list[FloatArray]) -> StateArray:
    states = []
    for action in actions:
        sim.step(action)
        states.append(sim.get_state())
    return np.stack(states)


# -- starts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_is_an_episode_whatever_was_before(make: Make, name: str) -> None:
    sim, fresh = make(name, cameras=("agentview", "wrist")), make(name, copy=1, cameras=("agentview", "wrist"))
    fresh.reset(7)
    first = fresh.get_state()
    actions = wild(fresh, 0, 6)
    expected = run(fresh, actions)
    sim.reset(3)
    run(sim, wild(sim, 1, 5))
    sim.set_state(sim.get_state())
    sim.reset(7)
    assert_array_equal(sim.get_state(), first)
    assert_array_equal(run(sim, actions), expected)
    mine, other = sim.observe(), fresh.observe()
    for camera in sim.spec.cameras:
        assert_array_equal(mine.images[camera], other.images[camera])
    assert_array_equal(mine.proprioception, other.proprioception)
    sim.reset(8)
    assert np.abs(sim.get_state() - first).max() > 0.01


@pytest.mark.parametrize(("name", "reach"), [("three-stack-d0", 0.1), ("three-stack-d1", 0.2)])
def test_cubes_start_within_the_range_apart_and_turned(make: Make, name: str, reach: float) -> None:
    sim = make(name)
    places, yaws = [], []
    for seed in range(40):
        sim.reset(seed)
        poses = [sim.object_pose(cube) for cube, _ in sim.spec.objects]
        here = np.array([place[:2] for place, _ in poses])
        apart = np.linalg.norm(here[:, None] - here[None], axis=-1)[np.triu_indices(3, 1)]
        assert apart.min() > np.sqrt(2) * 0.04  # no two squares of these sizes touch, however they are turned
        places.append(here)
        yaws += [np.arctan2(rotation[1, 0], rotation[0, 0]) for _, rotation in poses]
    spread = np.abs(places)
    assert 0.93 * reach < spread.max() <= reach
    assert max(yaws) > 2.8
    assert min(yaws) < -2.8


def test_the_nut_starts_beside_the_pegs(make: Make) -> None:
    sim = make("square")
    starts = []
    for seed in range(20):
        sim.reset(seed)
        starts.append(sim.object_pose("nut")[0])
    low, high = np.min(starts, axis=0), np.max(starts, axis=0)
    assert -0.1151 < low[0] < high[0] < -0.1099
    assert 0.11 < low[1] < 0.13
    assert 0.2 < high[1] < 0.225


@pytest.mark.parametrize("name", TASKS)
def test_objects_are_found_in_the_state(make: Make, name: str) -> None:
    sim = make(name)
    sim.reset(1)
    state = sim.get_state()
    assert state.shape == (sim.spec.state_dim,)
    for thing, first in sim.spec.objects:
        place, rotation = sim.object_pose(thing)
        assert_array_equal(state[first : first + 3], place)
        w, x, y, z = state[first + 3 : first + 7]
        assert_allclose(Rotation.from_quat([x, y, z, w]).as_matrix(), rotation, atol=1e-12)


# -- acting ----------------------------------------------------------------------------------------


def test_the_command_is_the_rotation_of_the_action() -> None:
    for rotation in Rotation.random(20, random_state=0):
        place = np.array([0.1, -0.2, 0.9])
        action = pose_action(place, rotation.as_matrix(), CLOSED)
        assert action.dtype == np.float32
        assert_allclose(action[3:6], rotation.inv().apply([1, 0, 0]), atol=1e-6)  # the matrix's first row
        assert_allclose(action[6:9], rotation.inv().apply([0, 1, 0]), atol=1e-6)
        command = arm_command(action.astype(np.float64))
        assert_allclose(command[:3], place, atol=1e-7)
        assert (Rotation.from_rotvec(command[3:6]) * rotation.inv()).magnitude() < 1e-6
        assert command[6] == CLOSED


@pytest.mark.parametrize("name", TASKS[:2])
def test_steps_are_those_of_robosuite(make: Make, name: str) -> None:
    sim, other = make(name), make(name, copy=1)
    sim.reset(5)
    other.reset(5)
    actions = wild(sim, 2, 5)
    ours = run(sim, actions)
    for action, state in zip(actions, ours, strict=True):
        other.env.step(arm_command(action.astype(np.float64)))
        assert_array_equal(other.get_state(), state)


def test_a_commanded_pose_is_held_and_reached(make: Make) -> None:
    sim = make("square")
    sim.reset(0)
    place, rotation = sim.ee_pose()
    for _ in range(20):
        sim.step(pose_action(place, rotation, OPEN))
    assert np.linalg.norm(sim.ee_pose()[0] - place) < 1e-3
    goal = place + np.array([0.04, 0.05, -0.03])
    turned = Rotation.from_euler("z", 30, degrees=True).as_matrix() @ rotation
    for _ in range(40):
        sim.step(pose_action(goal, turned, OPEN))
    reached, seen = sim.ee_pose()
    assert np.linalg.norm(reached - goal) < 5e-3
    assert Rotation.from_matrix(seen.T @ turned).magnitude() < 0.03


def test_the_gripper_opens_and_closes(make: Make) -> None:
    sim = make("three-stack-d0")
    sim.reset(0)
    action = stay(sim)
    widths = {}
    for command in (OPEN, CLOSED, OPEN):
        action[9] = command
        for _ in range(15):
            sim.step(action)
        widths[command] = float(np.abs(sim.observe(render=False).proprioception[-2:]).sum())
    assert widths[OPEN] > 0.075
    assert widths[CLOSED] < 0.01


def test_proprioception_is_where_the_arm_is(make: Make) -> None:
    sim = make("square")
    sim.reset(4)
    run(sim, wild(sim, 0, 3))
    seen = sim.observe(render=False).proprioception
    keys = sim.spec.schema
    assert keys is not None
    assert len(seen) == keys.proprioception_dim == sim.spec.proprioception_dim
    place, rotation = sim.ee_pose()
    assert_allclose(seen[:3], place, atol=1e-6)
    assert_allclose(seen[3:9].reshape(2, 3), rotation[:2], atol=1e-6)
    assert_allclose(seen[9:16], sim.get_state()[1:8], atol=1e-6)
    assert_allclose(seen[16:], sim.get_state()[8:10], atol=1e-6)


def test_actions_of_another_space_are_refused_and_others_reported(make: Make) -> None:
    sim = make("square")
    sim.reset(0)
    with pytest.raises(SimulatorError, match=r"shape \(10,\) \(0:3 position, 3:9 rotation.*got \(7,\)"):
        sim.step(np.zeros(7, np.float32))
    action = stay(sim)
    action[2] = -0.9  # normalised
    with pytest.raises(SimulatorError, match=r"dimension 2 of the action is -0\.9, 1\.8 times the width"):
        sim.step(action)
    action = stay(sim)
    action[3:9] = 0.0
    with pytest.raises(SimulatorError, match="square: the action's rotation: 6-D rotation is degenerate"):
        sim.step(action)
    action = stay(sim)
    assert sim.step(action)["excess"] == 0.0
    action[2] = 1.69
    assert sim.step(action)["excess"] == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("steps", [0, 5])
def test_physics_that_diverge_are_said(make: Make, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log
    sim = make("three-stack-d0")
    sim.reset(0)
    for action in wild(sim, 0, steps):
        sim.step(action)
    state, action = sim.get_state(), stay(sim)
    state[1 + sim.model.nq + 9] = 1e13  # of a cube
    sim.set_state(state, step=steps)
    with pytest.raises(ActionError, match=rf"the physics diverged in step {steps} after the action \[.* \(BADQ"):
        sim.step(action)
    sim.reset(0)  # and is usable again
    assert sim.step(stay(sim))["excess"] == 0


# -- states ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS[:2])
def test_what_follows_a_state_depends_on_it_alone(make: Make, name: str) -> None:
    sim, other = make(name), make(name, copy=1)
    sim.reset(11)
    actions = wild(sim, 3, 8)
    state = run(sim, actions)[4]
    sim.set_state(state)
    assert_array_equal(sim.get_state(), state)
    expected = run(sim, actions[5:])
    other.reset(12)
    run(other, wild(other, 4, 3))
    other.set_state(state)
    assert_array_equal(run(other, actions[5:]), expected)


def test_a_held_cube_stays_held(make: Make) -> None:
    sim, other = make("three-stack-d0"), make("three-stack-d0", copy=1)
    grasp(sim)
    lifted = stay(sim, CLOSED)
    lifted[2] += 0.06
    for _ in range(20):
        sim.step(lifted)
    held, height = sim.get_state(), sim.object_pose("cubeA")[0][2]
    assert height > 0.86
    assert sim.grasping()
    sim.set_state(held)
    action = stay(sim, CLOSED)
    after = run(sim, [action] * 5)
    assert sim.object_pose("cubeA")[0][2] == pytest.approx(height, abs=5e-4)
    sim.set_state(held)
    sim.step(action)
    assert_allclose(sim.data.ctrl[7:9], 0.0, atol=1e-9)  # squeezed from the first step on, as it was
    other.reset(3)
    run(other, wild(other, 4, 3))
    other.set_state(held)
    assert_array_equal(run(other, [action] * 5), after)
    sim.reset(0)
    assert not sim.grasping()
    assert sim.closing() == pytest.approx(0.0, abs=0.1)


def grasp(sim: RobosuiteSimulator) -> StateArray:
    """A state with cube A in the closed hand, on the table."""
    sim.reset(0)
    place, rotation = sim.object_pose("cubeA")
    yaw = np.arctan2(rotation[1, 0], rotation[0, 0])
    yaw += np.round((np.pi / 2 - yaw) / (np.pi / 2)) * np.pi / 2  # the side nearest to how the hand starts
    down = Rotation.from_euler("z", yaw).as_matrix() @ np.diag([1.0, -1.0, -1.0])
    for height, gripper, steps in ((0.1, OPEN, 30), (0.0, OPEN, 30), (0.0, CLOSED, 15)):
        for _ in range(steps):
            sim.step(pose_action(place + np.array([0, 0, height - 0.01]), down, gripper))
    return sim.get_state()


def put(sim: RobosuiteSimulator, where: dict[str, tuple[float, float, float]]) -> None:
    """Things at places, at rest, upright."""
    state = sim.get_state()
    first = dict(sim.spec.objects)
    for thing, place in where.items():
        state[first[thing] : first[thing] + 7] = [*place, 1, 0, 0, 0]
    state[1 + sim.model.nq :] = 0
    sim.set_state(state)


SUCCESS = (
    ({"cubeB": (0, 0, 0.825), "cubeA": (0, 0.01, 0.87), "cubeC": (0, 0, 0.91)}, True),
    ({"cubeB": (0, 0, 0.825), "cubeC": (0, 0.01, 0.87), "cubeA": (0, 0, 0.91)}, False),  # wrong order
    ({"cubeB": (0, 0, 0.825), "cubeA": (0, 0.01, 0.87), "cubeC": (0.1, 0, 0.82)}, False),  # C on the table
    ({"cubeA": (0, 0, 0.82), "cubeB": (0, 0, 0.865), "cubeC": (0, 0, 0.91)}, False),  # A under B
    ({"cubeB": (0, 0, 0.825), "cubeA": (0.1, 0, 0.82), "cubeC": (0.1, 0, 0.86)}, False),  # C on A on the table
)


@pytest.mark.parametrize(("where", "expected"), SUCCESS)
def test_three_stack_counts_a_on_b_and_c_on_a(
    make: Make, where: dict[str, tuple[float, float, float]], expected: bool
) -> None:
    sim = make("three-stack-d1")
    sim.reset(0)
    put(sim, where)
    action = stay(sim)
    for _ in range(5):
        metrics = sim.step(action)
    assert metrics["success"] == float(expected)


def test_a_cube_beside_another_is_not_stacked(make: Make) -> None:
    sim = make("three-stack-d1")
    sim.reset(0)
    put(sim, {"cubeB": (0, 0, 0.825), "cubeA": (0, 0, 0.8695), "cubeC": (0.0395, 0, 0.8695)})
    assert sim.env.check_contact(sim.env.cubeA, sim.env.cubeB)
    assert sim.env.check_contact(sim.env.cubeC, sim.env.cubeA)
    assert not sim._succeeded()
    put(sim, {"cubeC": (0, 0, 0.909)})
    assert sim._succeeded()


def test_a_held_cube_is_not_stacked(make: Make) -> None:
    """The same stack, with the hand still closed about C, or open."""
    sim = make("three-stack-d0")
    sim.reset(0)
    state = grasp(sim)
    first = dict(sim.spec.objects)
    x, y, z = state[first["cubeA"] : first["cubeA"] + 3]
    state[first["cubeC"] : first["cubeC"] + 7] = state[first["cubeA"] : first["cubeA"] + 7]
    state[first["cubeA"] : first["cubeA"] + 7] = [x, y, z - 0.04, 1, 0, 0, 0]
    state[first["cubeB"] : first["cubeB"] + 7] = [x, y, z - 0.085, 1, 0, 0, 0]
    sim.set_state(state)
    sim.env.table_offset = np.array([0, 0, z - 0.11])  # as if the table were lower: only the grasp decides
    try:
        assert sim.env.check_contact(sim.env.cubeC, sim.env.cubeA)
        assert not sim._succeeded()
        state[8:10] = [0.04, -0.04]
        sim.set_state(state)
        assert sim._succeeded()
    finally:
        sim.env.table_offset = np.array([0, 0, 0.8])


def test_square_counts_the_nut_on_its_peg_with_the_hand_away(make: Make) -> None:
    sim = make("square")
    for place, expected in (((0.23, 0.1, 0.84), True), ((0.23, 0.1, 0.95), False), ((0.1, 0.1, 0.84), False)):
        sim.reset(0)
        put(sim, {"nut": place})
        assert sim.step(stay(sim))["success"] == float(expected)


@pytest.mark.parametrize("name", TASKS)
def test_random_actions_do_not_succeed(make: Make, name: str) -> None:
    sim = make(name)
    sim.reset(100_000)
    assert max(sim.step(action)["success"] for action in wild(sim, 5, 40)) == 0.0


# -- pictures --------------------------------------------------------------------------------------


def seen_camera(sim: RobosuiteSimulator) -> tuple[StateArray, StateArray, float]:
    """Place, direction and vertical field of view (degrees) of the camera that drew the last picture."""
    left, right = sim.renderer()._renderer.scene.camera
    angle = np.degrees(2 * np.arctan(left.frustum_top / left.frustum_near))
    return (left.pos + right.pos) / 2, np.array(left.forward), float(angle)


@pytest.mark.parametrize("name", TASKS[:2])
def test_the_moving_camera_is_where_the_formula_says(make: Make, name: str) -> None:
    sim = make(name, "dynamic")
    center = np.array([0.0, 0.0, 1.0])
    for seed in range(3):
        sim.reset(seed)
        state, outward = sim.get_state(), []
        for step in (0, 1, 100, 200):
            sim.set_state(state, step=step)
            sim.observe()
            place, forward, angle = seen_camera(sim)
            assert np.linalg.norm(place - center) == pytest.approx(0.9, abs=1e-5)
            assert_allclose(forward, (center - place) / 0.9, atol=1e-5)
            assert angle == pytest.approx(45.0, abs=1e-3)
            outward.append((place - center) / 0.9)
        assert outward[0][0] >= 0.4 / 0.9 - 1e-6
        assert outward[0][2] >= 0.1 / 0.9 - 1e-6
        arcs = [np.arctan2(np.linalg.norm(np.cross(outward[0], u)), outward[0] @ u) for u in outward]
        assert_allclose(arcs, [0, 1.5e-3, 0.15, 0.3], atol=2e-5)
        # On one great circle.
        assert abs(np.cross(outward[0], outward[2]) @ outward[3]) < 1e-4


def test_the_papers_camera_looks_at_the_tasks_own_target(make: Make) -> None:
    sim = make("square", "random-static-paper")
    sim.reset(1)
    sim.observe()
    place, forward, angle = seen_camera(sim)
    assert_allclose(place + forward, sim.target, atol=1e-5)
    assert angle == pytest.approx(45.0, abs=1e-3)  # agentview's own


def test_the_fixed_view_is_the_models_camera(make: Make) -> None:
    sim = make("three-stack-d0")
    sim.reset(0)
    sim.observe()
    place, forward, _ = seen_camera(sim)
    camera = mujoco.mj_name2id(sim.model, mujoco.mjtObj.mjOBJ_CAMERA, "agentview")
    assert_allclose(place, sim.data.cam_xpos[camera], atol=1e-5)
    assert_allclose(forward, -sim.data.cam_xmat[camera].reshape(3, 3)[:, 2], atol=1e-5)


def test_a_nut_that_is_not_needed_is_no_motion(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The round nut falls from 10 m, out of sight, while the arm rests."""
    sim = make("square")
    sim.reset(0)
    state = sim.get_state()
    sim.observe()
    renderer = sim.renderer()
    monkeypatch.setattr(renderer, "_open", lambda: pytest.fail("a new GL context was opened"))
    (far,) = (i for i in renderer._free if np.linalg.norm(state[1 + i : 4 + i]) > 5)
    state[1 + far + 2] -= 3.0
    sim.set_state(state)
    sim.observe()


@pytest.mark.parametrize("name", TASKS[:2])
def test_shapes_for_collisions_and_marks_are_not_drawn(make: Make, name: str) -> None:
    sim = make(name)
    sim.reset(0)
    sim.observe()
    scene = sim.renderer()._renderer.scene
    drawn = [scene.geoms[i] for i in range(scene.ngeom)]
    assert len(drawn) > 10
    assert all(geom.objtype != mujoco.mjtObj.mjOBJ_SITE for geom in drawn)
    for geom in drawn:
        label = mujoco.mj_id2name(sim.model, mujoco.mjtObj.mjOBJ_GEOM, geom.objid) or ""
        assert "collision" not in label


# -- what is refused -------------------------------------------------------------------------------


def test_unknown_objects_and_other_states_are_named(make: Make) -> None:
    with pytest.raises(SimulatorError, match="unknown object 'cubeD': available are 'cubeA', 'cubeB', 'cubeC'"):
        make("three-stack-d0").object_pose("cubeD")
    with pytest.raises(SimulatorError, match=r"expected a finite state of shape \(45,\), got \(58,\)"):
        make("square").set_state(np.zeros(58))


@pytest.mark.parametrize(
    ("robosuite", "engine", "which"),
    [
        ("1.4.0", "3.8.1", "robosuite 1.4.0"),
        ("1.6.0", "3.8.1", "robosuite 1.6.0"),
        ("1.5.2", "3.10.0", "mujoco 3.10.0"),
    ],
)
def test_versions_that_break_are_refused(robosuite: str, engine: str, which: str) -> None:
    message = f"from 3.1 to before 3.10; installed are robosuite {robosuite} and mujoco {engine}, and {which} is none"
    with pytest.raises(ConfigError, match=message):
        check_installed("Square", "robosuite", RANGES, {"robosuite": robosuite, "mujoco": engine})
    check_installed("Square", "robosuite", RANGES, {"robosuite": "1.5.2", "mujoco": "3.8.1"})
    check_installed("Square", "robosuite", RANGES, {"robosuite": "1.5.2", "mujoco": "3.9.0"})


def test_a_missing_robosuite_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.delitem(sys.modules, "classact.sims.robosuite_tasks")
    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ConfigError, match=r"'square' needs the extra 'robosuite'.*\(no module 'robosuite'\)"):
        make_simulator("square")


def test_nothing_is_printed() -> None:
    code = "from classact.sims import make_simulator as make; make('square').reset(0); make('three-stack-d0').reset(0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240)
    assert done.stdout + done.stderr == ""
