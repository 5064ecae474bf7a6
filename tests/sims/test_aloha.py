from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("gym_aloha", reason="the extra 'aloha' is not installed")

from parts import check_parts

from classact.errors import ConfigError, SimulatorError
from classact.sims import make_simulator
from classact.sims.aloha import RANGES, AlohaTransfer, load_model, mujoco
from classact.sims.base import check_installed
from classact.sims.experts.aloha import BASES, LEFT, RIGHT, Reach, fingertips, script, solve
from classact.sims.experts.base import GiveUpError, attempt
from classact.sims.shifts import RotationPath, appearance_rng, rotate
from classact.sims.specs import ALOHA_CAMERAS as CAMERAS

SIZE = 96
CUBE = slice(17, 24)  # in a state


@pytest.fixture(scope="module")
def plain() -> Iterator[AlohaTransfer]:
    simulator = AlohaTransfer(image_size=SIZE)
    yield simulator
    simulator.close()


@pytest.fixture(scope="module")
def turning() -> Iterator[AlohaTransfer]:
    simulator = AlohaTransfer(image_size=SIZE, shift="rotation")
    yield simulator
    simulator.close()


def rest(simulator: AlohaTransfer) -> np.ndarray:
    return simulator.observe(render=False).proprioception


def run(simulator: AlohaTransfer, seed: int, steps: int = 60) -> np.ndarray:
    """(steps + 1, 46) states while the arms wander about where they start."""
    simulator.reset(seed)
    rng = np.random.default_rng(seed)
    target = rest(simulator)
    states = [simulator.get_state()]
    for _ in range(steps):
        target = (target + rng.normal(0, 0.03, 14)).astype(np.float32)
        simulator.step(target)
        states.append(simulator.get_state())
    return np.stack(states)


def test_facts_of_table_10(plain: AlohaTransfer) -> None:
    simulator = make_simulator("aloha-transfer")
    spec = simulator.spec
    assert (spec.image_size, spec.max_steps, spec.control_hz) == (256, 600, 50)
    assert spec.schema is not None
    assert spec.schema.actions is not None
    assert spec.schema.actions.describe() == (
        "0:6 left_joints (joint), 6:7 left_gripper (gripper), 7:13 right_joints (joint), 13:14 right_gripper (gripper)"
    )
    simulator.reset(0)
    assert (spec.action_dim, spec.proprioception_dim, spec.state_dim) == (14, 14, len(simulator.get_state()))
    assert spec.objects == (("cube", CUBE.start),)
    np.testing.assert_allclose(plain.data.qpos[16:], plain.get_state()[CUBE])
    simulator.close()


def test_starts_are_gym_alohas(plain: AlohaTransfer) -> None:
    starts = []
    for seed in (0, 1, 99_999, 100_000):
        plain.reset(seed)
        starts.append(plain.get_state()[CUBE])
        x, y = np.random.RandomState(seed).uniform([0.0, 0.4, 0.05], [0.2, 0.6, 0.05])[:2]
        assert starts[-1].tolist() == [x, y, 0.05, 1, 0, 0, 0]
    assert len({tuple(start) for start in starts}) == 4


def test_stepping_equals_gym_aloha(plain: AlohaTransfer) -> None:
    from dm_control import mujoco as suite
    from dm_control.rl import control
    from gym_aloha.constants import ASSETS_DIR, DT
    from gym_aloha.tasks import sim as tasks

    class Blind(tasks.TransferCubeTask):  # gym-aloha's own renders three views in each step
        def get_observation(self, physics: object) -> dict[str, np.ndarray]:
            return {"qpos": self.get_qpos(physics)}

    physics = suite.Physics.from_xml_path(str(ASSETS_DIR / "bimanual_viperx_transfer_cube.xml"))
    env = control.Environment(physics, Blind(), float("inf"), control_timestep=DT, flat_observation=False)
    demonstration = attempt(plain, script, 7)
    plain.reset(7)
    tasks.BOX_POSE[0] = plain.get_state()[CUBE]
    env.reset()
    rewards = set()
    for action in demonstration.actions:
        theirs, ours = env.step(action.astype(np.float64)), plain.step(action)
        assert np.array_equal(physics.data.qpos, plain.data.qpos)
        assert theirs.reward == ours["reward"]
        np.testing.assert_allclose(theirs.observation["qpos"], rest(plain), atol=1e-6)
        rewards.add(ours["reward"])
    assert rewards == {0, 1, 2, 4}


def test_same_seed_is_the_same_episode_whatever_was_before(plain: AlohaTransfer, turning: AlohaTransfer) -> None:
    fresh = AlohaTransfer(image_size=SIZE)
    expected, image = run(fresh, 5), fresh.observe().images["top"]
    run(plain, 11)
    assert np.array_equal(run(plain, 5), expected)
    assert np.array_equal(plain.observe().images["top"], image)
    assert np.array_equal(run(turning, 5), expected)  # a shift changes pictures, nothing else
    assert not np.array_equal(turning.observe().images["top"], image)
    fresh.close()


def test_what_follows_set_state_depends_on_the_state_alone(plain: AlohaTransfer) -> None:
    state = run(plain, 3)[40]
    fresh, results = AlohaTransfer(image_size=SIZE), []
    action = rest(plain) + np.float32(0.1)
    for simulator in (fresh, plain):
        simulator.set_state(state)
        assert np.array_equal(simulator.get_state(), state)
        for _ in range(5):
            simulator.step(action)
        results.append(simulator.get_state())
    assert np.array_equal(results[0], results[1])


def cube_in(image: np.ndarray) -> np.ndarray:
    """(2,) where the red pixels are, from the picture's centre, x right and y up."""
    red = (image[..., 0] > 120) & (image[..., 1] < 80)
    rows, columns = np.nonzero(red)
    middle = (len(image) - 1) / 2
    return np.array([columns.mean() - middle, middle - rows.mean()])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pictures_turn_as_the_paper_says(seed: int) -> None:
    fixed = AlohaTransfer(image_size=256)
    turning = AlohaTransfer(image_size=256, shift="rotation")
    resting = AlohaTransfer(image_size=256, shift="rotation-static")
    fixed.reset(seed)
    state = fixed.get_state()
    state[CUBE][:2] = 0.2, 0.4  # a corner of where it starts: 60 pixels from the centre
    fixed.set_state(state)
    place = cube_in(fixed.observe().images["top"])
    start = appearance_rng(seed).uniform(0, 360)
    angles = []
    for step in (0, 60, 120):
        seen = []
        for simulator in (turning, resting):
            simulator.set_appearance(seed)
            simulator.set_state(state, step=step)
            x, y = cube_in(simulator.observe().images["top"])
            seen.append(math.degrees(math.atan2(y, x) - math.atan2(place[1], place[0])) % 360)
            assert math.hypot(x, y) == pytest.approx(np.hypot(*place), abs=0.5)
        angles.append(seen[0])
        assert (seen[1] - start + 180) % 360 - 180 == pytest.approx(0, abs=0.6)
    assert (angles[0] - start + 180) % 360 - 180 == pytest.approx(0, abs=0.6)
    moved = [(angle - angles[0] + 180) % 360 - 180 for angle in angles]
    sense = math.copysign(1, moved[1])
    np.testing.assert_allclose(moved, [0, sense * 30, sense * 60], atol=0.6)
    turned = rotate(fixed.observe().images["top"], start + sense * 60)
    turning.set_state(state, step=120)
    assert np.array_equal(turning.observe().images["top"], turned)
    for simulator in (fixed, turning, resting):
        simulator.close()


def test_both_senses_and_all_quadrants_occur(turning: AlohaTransfer) -> None:
    paths = []
    for seed in range(40):
        turning.set_appearance(seed)
        assert isinstance(turning._appearance, RotationPath)
        paths.append(turning._appearance)
    assert {path.rate for path in paths} == {0.5, -0.5}
    assert {int(path.start // 90) for path in paths} == {0, 1, 2, 3}


def test_views_other_than_the_first_do_not_turn() -> None:
    fixed, turning = (AlohaTransfer(image_size=SIZE, shift=shift, cameras=CAMERAS) for shift in ("fixed", "rotation"))
    pictures = []
    for simulator in (fixed, turning):
        simulator.reset(1)
        pictures.append(simulator.observe().images)
        simulator.close()
    assert tuple(pictures[0]) == CAMERAS
    assert [name for name in CAMERAS if not np.array_equal(pictures[0][name], pictures[1][name])] == ["top"]
    assert len({image.tobytes() for image in pictures[0].values()}) == len(CAMERAS)


def test_wrist_views_stay_with_the_hand(plain: AlohaTransfer) -> None:
    states = attempt(plain, script, 3).states
    for side in ("left", "right"):
        turned = []
        for state in states[::40]:
            plain.set_state(state)
            hand = plain.data.body(f"vx300s_{side}/gripper_link").xmat.reshape(3, 3)
            turned.append(hand.T @ plain.data.camera(f"{side}_wrist").xmat.reshape(3, 3))
        np.testing.assert_allclose(turned, np.broadcast_to(turned[0], (len(turned), 3, 3)), atol=1e-6)
        focus = plain.data.body(f"vx300s_{side}/camera_focus").xpos - plain.data.camera(f"{side}_wrist").xpos
        forward = -plain.data.camera(f"{side}_wrist").xmat.reshape(3, 3)[:, 2]
        np.testing.assert_allclose(forward, focus / np.linalg.norm(focus), atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_expert_hands_the_cube_over(plain: AlohaTransfer, seed: int) -> None:
    done = attempt(plain, script, seed)
    assert done.success, done.reason
    assert 150 < len(done) <= 400
    assert plain.step(done.actions[-1]) == {"success": 1, "reward": 4, "stage": 3, "excess": 0}
    # The criterion is met at the first touch; afterwards the right hand lets go and leaves.
    attempt(plain, script, seed, tail=plain.spec.max_steps)
    cube, _ = plain.object_pose("cube")
    tips = [fingertips(side, plain.joint_positions()[side]) for side in (LEFT, RIGHT)]
    assert np.linalg.norm(cube - tips[LEFT]) < 0.03
    assert np.linalg.norm(cube - tips[RIGHT]) > 0.06


def test_the_expert_does_one_part_after_the_other(plain: AlohaTransfer) -> None:
    done = attempt(plain, script, 0)
    plain.reset(0)
    check_parts(plain.spec, [plain.step(action) for action in done.actions])


def test_experts_repeat_themselves_only_from_the_same_seed(plain: AlohaTransfer) -> None:
    first, again = attempt(plain, script, 4), attempt(plain, script, 4)
    assert np.array_equal(first.actions, again.actions)
    assert np.array_equal(first.states, again.states)
    plain.reset(4)
    other = next(script(plain, np.random.default_rng(1)))
    assert not np.array_equal(first.actions[0], other)
    low, high = np.array(plain.spec.action_limits)
    assert (first.actions >= low).all()
    assert (first.actions <= high).all()
    assert np.abs(np.diff(first.actions, axis=0)).max() < 0.1


def test_random_actions_do_not_succeed(plain: AlohaTransfer) -> None:
    low, high = np.array(plain.spec.action_limits)
    rng = np.random.default_rng(0)
    plain.reset(0)
    metrics = [plain.step(rng.uniform(low, high)) for _ in range(200)]
    assert {m["success"] for m in metrics} == {0}


@pytest.mark.parametrize("side", [LEFT, RIGHT])
def test_inverse_kinematics_are_the_models(plain: AlohaTransfer, side: int) -> None:
    rng = np.random.default_rng(side)
    plain.reset(0)
    body = f"vx300s_{('left', 'right')[side]}/gripper_link"
    solved = 0
    for _ in range(40):
        place = BASES[side] + [rng.uniform(0.2, 0.5) * (1 - 2 * side), rng.uniform(-0.15, 0.15), rng.uniform(0, 0.3)]
        reach = Reach(place, *rng.uniform([-0.4, -0.2, -1.6], [0.4, 1.4, 1.6]))
        try:
            joints = solve(side, reach)
        except GiveUpError:
            continue
        solved += 1
        plain.data.qpos[8 * side : 8 * side + 6] = joints
        mujoco.mj_forward(plain.model, plain.data)
        hand = plain.data.body(body)
        forward = hand.xmat.reshape(3, 3)[:, 0]
        tips = hand.xpos + 0.138 * forward
        np.testing.assert_allclose(tips, place, atol=1e-5)
        np.testing.assert_allclose(fingertips(side, joints), place, atol=1e-5)
        assert forward[2] == pytest.approx(-math.sin(reach.pitch), abs=1e-5)
    assert solved > 20
    with pytest.raises(GiveUpError, match=r"arm does not reach \[0.0, 0.5, 2.0\]"):
        solve(side, Reach(np.array([0.0, 0.5, 2.0]), 0.0, 0.0))


def test_actions_beyond_limits_are_clamped_by_the_actuators_and_reported(plain: AlohaTransfer) -> None:
    plain.reset(0)
    action = rest(plain).astype(np.float64)
    low, high = np.array(plain.spec.action_limits)
    assert plain.step(action)["excess"] == 0
    action[2] = high[2] + 0.25 * (high - low)[2]
    assert plain.step(action)["excess"] == pytest.approx(0.25, abs=1e-6)
    for _ in range(30):
        plain.step(action)
    reached = plain.get_state()
    plain.reset(0)
    limit = rest(plain).astype(np.float64)
    plain.step(limit)
    limit[2] = high[2]
    for _ in range(31):
        assert plain.step(limit)["excess"] == 0
    assert np.array_equal(plain.get_state(), reached)
    action[6] = 1.5  # of a gripper whose limits are 0 and 1
    assert plain.step(action)["excess"] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(7), r"expected a finite action of shape \(14,\) \(0:6 left_joints .* got \(7,\)"),
        (np.full(14, np.nan), r"expected a finite action of shape \(14,\)"),
        (np.full(14, 100.0), r"is 100, .* times the width of its limits .* or still normalised\?"),
    ],
)
def test_actions_of_another_space(plain: AlohaTransfer, action: np.ndarray, message: str) -> None:
    plain.reset(0)
    before = plain.get_state()
    with pytest.raises(SimulatorError, match=message):
        plain.step(action)
    assert np.array_equal(plain.get_state(), before)


def test_bad_states(plain: AlohaTransfer) -> None:
    with pytest.raises(SimulatorError, match=r"finite state of shape \(46,\), got \(23,\)"):
        plain.set_state(np.zeros(23))


@pytest.mark.parametrize(("package", "version"), [("gym-aloha", "0.2.0"), ("mujoco", "3.9.0"), ("mujoco", "4.0.0")])
def test_versions_that_break_are_refused(package: str, version: str) -> None:
    good = {"gym-aloha": "0.1.3", "mujoco": "3.8.1"}
    check_installed("Aloha-Transfer", "aloha", RANGES, good)
    bad = good | {package: version}
    said = f"are gym-aloha {bad['gym-aloha']} and mujoco {bad['mujoco']}, and {package} {version} is none that it runs"
    with pytest.raises(ConfigError, match=said):
        check_installed("Aloha-Transfer", "aloha", RANGES, bad)


def test_physics_that_diverge_are_said(plain: AlohaTransfer) -> None:
    plain.reset(0)
    state = plain.get_state()
    state[24:] = 1e12
    plain.set_state(state)
    with pytest.raises(SimulatorError, match=r"the physics diverged in step 0 after the action \[0\.0, .*BADQACC"):
        plain.step(np.zeros(14))
    plain.reset(0)  # and is usable again
    assert plain.step(rest(plain))["excess"] == 0


@pytest.mark.parametrize("code", ["", "simulator.close()"])
def test_a_process_ends_quietly_with_or_without_closing(code: str) -> None:
    lines = [
        "from classact.sims.aloha import AlohaTransfer",
        f"simulator = AlohaTransfer(image_size={SIZE})",
        "simulator.reset(0); simulator.observe()",
        code,
    ]
    ended = subprocess.run([sys.executable, "-W", "error", "-c", "\n".join(lines)], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_limits_are_those_of_the_actuators() -> None:
    ranges = np.asarray(load_model().actuator_ctrlrange)  # (16, 2): each arm's joints, left finger, right finger
    for side, limits in enumerate(AlohaTransfer(image_size=SIZE).spec.action_limits):
        assert limits == (*ranges[:6, side], float(side), *ranges[8:14, side], float(side))
