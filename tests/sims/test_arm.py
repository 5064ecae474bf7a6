from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from classact.data.rotations import geodesic_distance, rotation_6d_to_matrix
from classact.data.types import FloatArray, StateArray
from classact.errors import ConfigError
from classact.sims.base import CLOSED, OPEN
from classact.sims.experts.arm import (
    JOINT_7_LIMIT,
    MAX_STEP,
    MAX_TURN,
    Arm,
    Style,
    compose,
    down,
    minimum_jerk,
    rotation_about_z,
    split,
    wrap,
    yaw_of,
)

START, TILT = np.array([-0.1, 0.0, 1.0]), np.array([0.0, 0.15, 0.0])
QUIET = Style()
BASE = np.array([-0.56, 0.0])


def at(x: float, y: float, z: float) -> StateArray:
    """A place that far from the start."""
    return START + np.array([x, y, z])


class LaggingArm:
    """Goes a quarter of the way to what is commanded, and stays ``sag`` below it; joint 7 and 1 as a Panda's."""

    def __init__(self, sag: float = 0.0) -> None:
        self.sag = sag
        self.position, self.yaw, self.tilt = START.copy(), np.pi / 2, TILT.copy()

    def ee_pose(self) -> tuple[StateArray, StateArray]:
        return self.position, compose(self.yaw, self.tilt)

    def joint_positions(self) -> StateArray:
        joints = np.zeros(7)
        joints[0] = np.arctan2(*(self.position[:2] - BASE)[::-1])
        joints[6] = np.pi / 2 + np.pi / 4 + joints[0] - self.yaw
        return joints

    def step(self, action: FloatArray) -> None:
        values = action.astype(np.float64)
        self.position = self.position + 0.25 * (values[:3] - [0, 0, self.sag] - self.position)
        yaw, tilt = split(rotation_6d_to_matrix(values[3:9]))
        self.yaw += 0.25 * wrap(yaw - self.yaw)
        self.tilt = self.tilt + 0.25 * (tilt - self.tilt)


def follow(sim: LaggingArm, motion: Iterator[FloatArray]) -> tuple[FloatArray, object]:
    """The motion's actions (L, 10) and what it returned."""
    actions: list[FloatArray] = []
    while True:
        try:
            actions.append(next(motion))
        except StopIteration as end:
            return np.array(actions), end.value
        sim.step(actions[-1])


def rotations(actions: FloatArray) -> FloatArray:
    return rotation_6d_to_matrix(actions[:, 3:9])


GOALS: dict[str, Callable[[], StateArray]] = {"near": lambda: START + 0.01, "far": lambda: at(0.5, 0.3, -0.15)}


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("yaw", [np.pi / 2, -2.0])
def test_arrives(goal: str, precise: bool, yaw: float) -> None:
    sim = LaggingArm()
    arm = Arm(sim, np.random.default_rng(0))
    actions, arrived = follow(sim, arm.move(GOALS[goal](), yaw, precise=precise, arch=0.05))
    assert arrived
    assert actions.dtype == np.float32
    assert actions.shape == (arm.steps, 10)
    assert np.linalg.norm(sim.ee_pose()[0] - GOALS[goal]()) < (0.003 if precise else 0.015)
    assert geodesic_distance(sim.ee_pose()[1], down(yaw)) < (0.03 if precise else 0.15)
    assert len(actions) < 120
    assert (actions[:, 9] == OPEN).all()


@pytest.mark.parametrize("seed", range(20))
def test_commands_are_smooth(seed: int) -> None:
    sim = LaggingArm()
    rng = np.random.default_rng(seed)
    arm = Arm(sim, rng)
    parts = [START]
    for _ in range(4):
        goal = START + rng.uniform(-0.3, 0.3, 3)
        actions, _ = follow(sim, arm.move(goal, rng.uniform(-2, 4), arch=rng.uniform(0, 0.2), speed=3.0, settle=5))
        parts.append(actions[:, :3])
    path = np.vstack(parts)
    noise = 6 * arm.style.position_noise  # from one bound to the other; a step is far smaller
    assert np.linalg.norm(np.diff(path, axis=0), axis=1).max() < MAX_STEP + noise
    turns = geodesic_distance(rotations(actions[1:]), rotations(actions[:-1]))
    assert turns.max() < 2 * MAX_TURN


def test_without_noise_the_step_limit_is_exact() -> None:
    sim = LaggingArm()
    arm = Arm(sim, np.random.default_rng(0), style=QUIET)
    actions, arrived = follow(sim, arm.move(GOALS["far"](), speed=20.0, tolerance=0.001, settle=100))
    path = np.vstack([START, actions[:, :3]])
    assert np.linalg.norm(np.diff(path, axis=0), axis=1).max() == pytest.approx(MAX_STEP, rel=1e-4)
    assert arrived


def test_deterministic_and_different() -> None:
    def run(seed: int) -> FloatArray:
        sim = LaggingArm()
        arm = Arm(sim, np.random.default_rng(seed))
        return follow(sim, arm.move(GOALS["far"](), 0.3, arch=0.1))[0]

    assert run(3).tobytes() == run(3).tobytes()
    one, other = run(3), run(4)
    steps = min(len(one), len(other))
    assert np.linalg.norm(one[:steps, :3] - other[:steps, :3], axis=1).max() > 0.005


def test_noise_is_there_bounded_and_silent_where_it_counts() -> None:
    sim, quiet_sim = LaggingArm(), LaggingArm()
    style = Style(position_noise=0.002, rotation_noise=0.01)
    noisy, quiet = (Arm(s, np.random.default_rng(5), style=x) for s, x in ((sim, style), (quiet_sim, QUIET)))
    for motion in ("move", "hold"):
        pair = []
        for s, arm in ((sim, noisy), (quiet_sim, quiet)):
            steps = arm.move(at(0.2, 0, 0), 1.0) if motion == "move" else arm.hold(300, precise=False)
            pair.append(follow(s, steps)[0])
        length = min(map(len, pair))
        off = np.abs(pair[0][:length, :3] - pair[1][:length, :3])
        assert off.max() <= 3 * 0.002 + 1e-6
        turned = geodesic_distance(rotations(pair[0][:length]), rotations(pair[1][:length]))
        assert turned.max() <= 3 * 0.01 * np.sqrt(3)
    assert off.std() > 0.0005
    assert np.abs(np.diff(pair[0][:, :3], axis=0)).max() < 0.002  # no jitter
    actions, _ = follow(sim, noisy.grasp(30))
    assert np.ptp(actions[12:, :9], axis=0).max() < 1e-6
    assert (actions[:, 9] == CLOSED).all()


def test_precise_motions_correct_a_lasting_error() -> None:
    goal = at(0.1, 0, -0.1)
    for precise in (False, True):
        sim = LaggingArm(sag=0.006)
        arm = Arm(sim, np.random.default_rng(0), style=QUIET)
        _, arrived = follow(sim, arm.move(goal, precise=precise, tolerance=0.002, settle=60))
        assert arrived is precise
        assert bool(np.linalg.norm(sim.ee_pose()[0] - goal) < 0.002) is precise


def test_a_moving_goal_is_followed() -> None:
    sim = LaggingArm()
    arm = Arm(sim, np.random.default_rng(0), style=QUIET)
    goal = at(0.2, 0.0, -0.1)

    def moving() -> StateArray:
        return goal + np.array([0.0, 0.002 * min(arm.steps, 20), 0.0])

    _, arrived = follow(sim, arm.move(moving, lambda: arm.steps * 1e-4, precise=True))
    assert arrived
    assert np.linalg.norm(sim.ee_pose()[0] - (goal + at(0, 0.04, 0) - START)) < 0.003


def test_motions_start_from_the_last_command() -> None:
    sim = LaggingArm()
    arm = Arm(sim, np.random.default_rng(0), style=QUIET)
    first, _ = follow(sim, arm.move(at(0.2, 0, 0), settle=0))
    assert np.linalg.norm(sim.ee_pose()[0] - first[-1, :3]) > 0.01  # the arm lags
    second, _ = follow(sim, arm.move(at(0.2, 0.2, 0)))
    assert np.linalg.norm(second[0, :3] - first[-1, :3]) < 0.001


def test_tilt_fades_and_long_turns_are_not_shortened() -> None:
    sim = LaggingArm()
    arm = Arm(sim, np.random.default_rng(0), style=QUIET)
    actions, _ = follow(sim, arm.move(START, np.pi / 2 - 4.0))
    yaws = np.unwrap([yaw_of(r) for r in rotations(actions)])
    assert yaws[-1] - yaws[0] == pytest.approx(-4.0, abs=0.05)
    assert (np.diff(yaws) <= 1e-6).all()
    assert np.linalg.norm(split(rotations(actions[-1:])[0].astype(float))[1]) < 1e-3
    back, _ = follow(sim, arm.move(START, down(np.pi / 2)))  # a matrix: the shorter way
    assert np.ptp(np.unwrap([yaw_of(r) for r in rotations(back)])) == pytest.approx(2 * np.pi - 4.0, abs=0.05)


def test_until_ends_a_motion() -> None:
    sim = LaggingArm()
    arm = Arm(sim, np.random.default_rng(0))
    actions, arrived = follow(sim, arm.move(GOALS["far"](), until=lambda: arm.steps >= 7))
    assert len(actions) == 7
    assert arrived


def test_gives_up_waiting() -> None:
    sim = LaggingArm()
    arm = Arm(sim, np.random.default_rng(0), style=QUIET)
    motion = arm.move(at(0.1, 0, 0), settle=9)
    actions = [next(motion) for _ in range(5)]  # never executed

    def rest() -> Iterator[FloatArray]:
        assert (yield from motion) is False

    actions.extend(rest())
    assert np.allclose(np.array(actions)[-9:, 0], START[0] + 0.1)


def test_pauses_follow_the_style() -> None:
    for chance, expected in ((0.0, 0), (1.0, 10)):
        sim = LaggingArm()
        arm = Arm(sim, np.random.default_rng(0), style=Style(pause=chance))
        paused = sum(bool(len(follow(sim, arm.pause())[0])) for _ in range(10))
        assert paused == expected


@pytest.mark.parametrize("period", [np.pi, 2 * np.pi])
@pytest.mark.parametrize("yaw", np.linspace(-3, 6, 7))
def test_reachable_yaws_respect_joint_7(yaw: float, period: float) -> None:
    sim = LaggingArm()
    arm = Arm(sim, np.random.default_rng(0), style=QUIET)
    place = np.array([0.1, 0.25, 0.9])
    found = arm.reachable_yaws(yaw, place, period=period)
    assert len(found) >= (1 if period < 4 else 0)
    for value in found:
        assert (value - yaw) / period == pytest.approx(round((value - yaw) / period))
        sim = LaggingArm()
        arm = Arm(sim, np.random.default_rng(0), style=QUIET)
        follow(sim, arm.move(place, value, tolerance=1e-3, angle=1e-2, settle=60))
        assert abs(sim.joint_positions()[6]) < JOINT_7_LIMIT - 0.2
    if period > 4:
        missed = (np.array([yaw + n * period for n in range(-3, 4)])[:, None] == found).any(axis=1)
        assert missed.sum() == len(found) <= 1


def test_helpers() -> None:
    assert [minimum_jerk(t) for t in (0.0, 0.5, 1.0, 2.0)] == pytest.approx([0, 0.5, 1, 1])
    assert np.allclose(rotation_about_z(0.3) @ [1, 0, 0], [np.cos(0.3), np.sin(0.3), 0])
    assert np.allclose(down(0.3)[:, 2], [0, 0, -1])
    assert np.linalg.det(down(0.3)) == pytest.approx(1)
    assert yaw_of(down(0.3)) == pytest.approx(0.3)
    assert wrap(3 * np.pi - 0.1) == pytest.approx(np.pi - 0.1)
    rotation = compose(1.2, np.array([0.1, -0.2, 0.0]))
    yaw, tilt = split(rotation)
    assert np.allclose(compose(yaw, tilt), rotation)


def test_styles_vary_within_reason_and_are_checked() -> None:
    styles = [Style.draw(np.random.default_rng(seed)) for seed in range(200)]
    assert len({style.speed for style in styles}) == 200
    assert all(style.position_noise <= 0.0025 for style in styles)
    assert all(0.8 < style.speed < 1.25 for style in styles)
    with pytest.raises(ConfigError, match="expected speed > 0"):
        Style(speed=0)
