"""Motions of a Panda arm for scripted experts: smooth, noisy like a person's, precise where it counts.

A script owns one :class:`Arm` and composes its motions, each a generator of actions::

    arm = Arm(sim, rng)
    yield from arm.move(above, yaw)
    yield from arm.move(handle, yaw, precise=True)
    yield from arm.grasp()

Actions are (10,) float32: position of the grip site (world, metres), two rows of its rotation, gripper (-1 open .. +1
closed). Rotations are those of a gripper that points roughly down: a *yaw* (radians, unwrapped, of the site's x axis,
along which the fingers open) and a tilt of less than 90 degrees. Unwrapped yaws say which way round the hand turns,
which matters for joint 7's limits, see :meth:`Arm.reachable_yaws`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from classact.data.rotations import axis_angle_to_matrix, matrix_to_axis_angle, matrix_to_rotation_6d
from classact.data.types import FloatArray, StateArray
from classact.errors import ConfigError
from classact.sims.base import CLOSED, OPEN
from classact.sims.specs import CONTROL_HZ

MAX_STEP = 0.03  # greatest motion of the commanded position per control step, metres
MAX_TURN = 0.15  # greatest turn of commanded yaw and tilt per control step, radians
JOINT_7_LIMIT = 2.8973  # radians either way (Panda)
BASE = (-0.56, 0.0)  # where robosuite puts the arm at its 0.8 m table, metres

_PEAK = 1.875  # a minimum-jerk motion's highest speed over its mean speed
_RAMP = 0.1  # per step: how fast noise fades in and out

Position = StateArray | tuple[float, float, float] | Callable[[], StateArray]
"""(3,) metres, or a function that returns it, called before each step."""

Rotation = float | StateArray | Callable[[], "float | StateArray"]
"""Yaw of a gripper that points straight down, or a (3, 3) matrix, or a function that returns either."""

Steps = Generator[FloatArray, None, None]  # a motion


@dataclass(frozen=True)
class Style:
    """What makes one demonstration differ from another."""

    speed: float = 1.0  # factor on all speeds
    position_noise: float = 0.0  # standard deviation of the commanded position's wander, metres
    rotation_noise: float = 0.0  # of yaw and tilt, radians
    curvature: float = 0.0  # how far paths bow sideways, as a share of their length; negative: to the other side
    arch: float = 1.0  # factor on how far paths bow upwards
    pause: float = 0.0  # chance of a short rest where a script allows it (Arm.pause)

    def __post_init__(self) -> None:
        if self.speed <= 0 or min(self.position_noise, self.rotation_noise, self.arch) < 0 or not 0 <= self.pause <= 1:
            raise ConfigError(
                f"style of an arm: expected speed > 0, noise and arch >= 0 and pause in 0..1, got {self}."
            )

    @staticmethod
    def draw(rng: np.random.Generator) -> Style:
        """A random person: up to 20 % faster or slower, wandering by a millimetre or two, bowing either way."""
        return Style(
            speed=float(rng.uniform(0.85, 1.2)),
            position_noise=float(rng.uniform(0.0008, 0.0025)),
            rotation_noise=float(np.radians(rng.uniform(0.3, 1.2))),
            curvature=float(rng.normal(0.0, 0.07)),
            arch=float(rng.uniform(0.6, 1.4)),
            pause=float(rng.uniform(0.0, 0.3)),
        )


class Wander:
    """Smooth noise of several dimensions: an Ornstein-Uhlenbeck process, low-passed, within three deviations."""

    MEMORY, SMOOTHING = 15.0, 4.0  # control steps

    def __init__(self, sizes: StateArray, rng: np.random.Generator) -> None:
        self._sizes, self._rng = sizes, rng
        self._raw, self._smooth = np.zeros(len(sizes)), np.zeros(len(sizes))

    def __call__(self) -> StateArray:
        kick = np.sqrt(2 / self.MEMORY) * self._rng.normal(size=len(self._sizes))
        self._raw = np.clip(self._raw * (1 - 1 / self.MEMORY) + kick, -3, 3)
        self._smooth = self._smooth + (self._raw - self._smooth) / self.SMOOTHING
        return self._smooth * self._sizes


class Arm:
    """Commands a simulator's arm.

    Args:
        sim: a :class:`~classact.sims.panda.PandaSimulator`, read, never written.
        style: None: drawn from ``rng``, the demonstration's generator.
        speed: peak speed of motions before the style's factor, metres per second.
        turn: peak turning speed, radians per second. Faster turns near the robot, where the forearm points down, turn
            joint 5 instead of 7 for good.
        base: (x, y) of the arm's foot, metres.

    Attributes:
        position, yaw, tilt: (3,), radians, (3,) axis-angle: the last command without noise. Motions start here.
        grip: the last gripper command.
        steps: how many actions were given.
    """

    def __init__(
        self,
        sim: Any,
        rng: np.random.Generator,
        *,
        style: Style | None = None,
        speed: float = 0.4,
        turn: float = 1.4,
        base: tuple[float, float] = BASE,
    ) -> None:
        self.sim, self.rng = sim, rng
        self.style = Style.draw(rng) if style is None else style
        self.position, rotation = (np.array(value, np.float64) for value in sim.ee_pose())
        self.yaw, self.tilt = split(rotation)
        self.grip, self.steps = OPEN, 0
        self._speed, self._turn = speed * self.style.speed, turn * self.style.speed
        self._base = np.array(base)
        sizes = [self.style.position_noise] * 3 + [self.style.rotation_noise] * 3
        self._wander = Wander(np.array(sizes), rng)
        self._loudness = 0.0
        self._trim = np.zeros(3)  # what precise motions add against the controller's steady-state error

    def move(
        self,
        position: Position,
        rotation: Rotation | None = None,
        grip: float | None = None,
        *,
        speed: float = 1.0,
        arch: float = 0.0,
        precise: bool = False,
        tolerance: float | None = None,
        angle: float | None = None,
        settle: int = 25,
        until: Callable[[], bool] | None = None,
    ) -> Generator[FloatArray, None, bool]:
        """Go somewhere with minimum jerk, from the last command, and wait until the arm has arrived.

        Args:
            position: where to; a callable is asked before each step, so that the goal may move.
            rotation: of the hand there; None: unchanged. A yaw is taken unwrapped; a matrix is reached the shorter way.
            grip: gripper command from now on; None: the last one.
            speed: factor on the arm's speed.
            arch: metres by which the path bows upwards in its middle, times the style's.
            precise: no wandering near the goal, tight tolerances, and the controller's steady-state error is corrected.
            tolerance: distance in metres at which the arm has arrived; None: 0.003 if precise, 0.015 if not.
            angle: in radians; None: 0.03 if precise, 0.15 if not.
            settle: control steps to wait for it at most, after the command has reached the goal.
            until: ends the motion early when true, asked before each step.

        Returns:
            Whether the arm has arrived, or ``until`` was true.
        """
        tolerance = (0.003 if precise else 0.015) if tolerance is None else tolerance
        angle = (0.03 if precise else 0.15) if angle is None else angle
        self.grip = self.grip if grip is None else grip
        start, start_yaw, start_tilt = self.position - self._trim, self.yaw, self.tilt.copy()
        goal, yaw, tilt = self._goal(position, rotation, start_yaw, start_tilt)
        length = float(np.linalg.norm(goal - start))
        turn = max(abs(yaw - start_yaw), float(np.linalg.norm(tilt - start_tilt)))
        seconds = _PEAK * max(length / (self._speed * speed), turn / (self._turn * speed)) + 2 * arch / self._speed
        count = max(4, int(np.ceil(seconds * CONTROL_HZ)))
        x, y = (goal - start)[:2]  # it bows sideways, level, at right angles to the path; and upwards
        bow = self.style.curvature * np.array([-y, x, 0.0]) + np.array([0.0, 0.0, arch * self.style.arch])
        for step in range(1, count + settle + 1):
            if until is not None and until():
                return True
            goal, yaw, tilt = self._goal(position, rotation, start_yaw, start_tilt)
            s = minimum_jerk(step / count)
            if step > count:
                place, turned = self.sim.ee_pose()
                error = goal - place
                off = float(np.linalg.norm(matrix_to_axis_angle(compose(yaw, tilt).T @ turned)))
                if np.linalg.norm(error) <= tolerance and off <= angle:
                    return True
                if precise:
                    self._trim = np.clip(self._trim + 0.15 * error, -0.01, 0.01)
            if not precise:
                self._trim = 0.95 * self._trim
            way = start + s * (goal - start) + 16 * s**2 * (1 - s) ** 2 * bow
            near = min(1.0, float(np.linalg.norm(goal - way)) / 0.04) if precise else 1.0
            yield self._command(
                way + self._trim, start_yaw + s * (yaw - start_yaw), start_tilt + s * (tilt - start_tilt), near
            )
        return False

    def hold(self, steps: int, grip: float | None = None, *, precise: bool = True) -> Steps:
        """Stay at the last command; without wandering if ``precise``."""
        self.grip = self.grip if grip is None else grip
        for _ in range(steps):
            yield self._command(self.position, self.yaw, self.tilt, 0.0 if precise else 1.0)

    def grasp(self, steps: int = 16) -> Steps:
        """Close the gripper and wait."""
        yield from self.hold(steps, CLOSED)

    def release(self, steps: int = 10) -> Steps:
        """Open the gripper and wait."""
        yield from self.hold(steps, OPEN)

    def pause(self) -> Steps:
        """Sometimes rest, as the style has it."""
        if self.rng.random() < self.style.pause:
            yield from self.hold(int(self.rng.integers(2, 9)), precise=False)

    def reachable_yaws(
        self, yaw: float, position: StateArray | tuple[float, ...], *, period: float = 2 * np.pi, margin: float = 0.25
    ) -> list[float]:
        """The unwrapped yaws equal to ``yaw`` (radians) that joint 7 can reach at a position, nearest to its middle
        first.

        With a hand that points down and the elbow in its plane, yaw is a constant plus joint 1 minus joint 7, and joint
        1 is the direction from the arm's foot to the hand. Yaws ``period`` apart are equal (pi for a gripper that may
        be turned round); joint 7 stays ``margin`` radians from its limits.
        """
        place, rotation = self.sim.ee_pose()
        now = self.yaw + wrap(split(rotation)[0] - self.yaw)
        joints = self.sim.joint_positions()
        middle = now + float(joints[6]) + wrap(self._direction(position) - self._direction(place))
        reach = JOINT_7_LIMIT - margin
        first = np.ceil((middle - reach - yaw) / period)
        last = np.floor((middle + reach - yaw) / period)
        found = [float(yaw + n * period) for n in np.arange(first, last + 1)]
        return sorted(found, key=lambda value: abs(value - middle))

    def _direction(self, position: StateArray | tuple[float, ...]) -> float:
        x, y = np.asarray(position)[:2] - self._base
        return float(np.arctan2(y, x))

    def _goal(
        self, position: Position, rotation: Rotation | None, start_yaw: float, start_tilt: StateArray
    ) -> tuple[StateArray, float, StateArray]:
        goal = np.asarray(position() if callable(position) else position, np.float64)
        turned = rotation() if callable(rotation) else rotation
        if turned is None:
            return goal, start_yaw, start_tilt
        if np.ndim(turned) == 0:
            return goal, float(np.asarray(turned)), np.zeros(3)
        yaw, tilt = split(np.asarray(turned, np.float64))
        return goal, start_yaw + wrap(yaw - start_yaw), tilt

    def _command(self, position: StateArray, yaw: float, tilt: StateArray, loudness: float) -> FloatArray:
        """One action; the command follows within its speed limits, and remembers its position without noise."""
        self.position = self.position + shorten(position - self.position, MAX_STEP)
        self.yaw += float(np.clip(yaw - self.yaw, -MAX_TURN, MAX_TURN))
        self.tilt = self.tilt + shorten(tilt - self.tilt, MAX_TURN)
        self._loudness += float(np.clip(loudness - self._loudness, -_RAMP, _RAMP))
        wander = self._wander() * self._loudness
        rotation = axis_angle_to_matrix(wander[3:]) @ compose(self.yaw, self.tilt)
        self.steps += 1
        action = np.concatenate([self.position + wander[:3], matrix_to_rotation_6d(rotation), [self.grip]])
        return action.astype(np.float32)


def minimum_jerk(time: float) -> float:
    """Share of the way done at a share of the time: 0 to 1, at rest at both ends; 1 afterwards."""
    t = min(time, 1.0)
    return t**3 * (10 - 15 * t + 6 * t**2)


def rotation_about_z(angle: float) -> StateArray:
    """(3, 3) rotation by ``angle`` radians about the world's z axis."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def down(yaw: float) -> StateArray:
    """(3, 3) rotation of a gripper that points straight down, its x axis at ``yaw``."""
    return rotation_about_z(yaw) @ np.diag([1.0, -1.0, -1.0])


def compose(yaw: float, tilt: StateArray) -> StateArray:
    """(3, 3) rotation of a gripper that points down at ``yaw`` and is then tilted by (3,) an axis-angle."""
    return axis_angle_to_matrix(tilt) @ down(yaw)


def split(rotation: StateArray) -> tuple[float, StateArray]:
    """Yaw in -pi..pi and tilt (3,) of a (3, 3) rotation, the inverse of :func:`compose`."""
    yaw = yaw_of(rotation)
    return yaw, matrix_to_axis_angle(rotation @ down(yaw).T)


def yaw_of(rotation: StateArray) -> float:
    """Direction of a (3, 3) rotation's x axis seen from above, -pi..pi: of a gripper, or of an object on a table."""
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


def wrap(angle: float) -> float:
    """The same angle in -pi..pi."""
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def shorten(vector: StateArray, length: float) -> StateArray:
    """A vector, shortened to at most ``length``."""
    size = float(np.linalg.norm(vector))
    return vector if size <= length else vector * (length / size)
