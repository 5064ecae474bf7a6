"""An expert for Aloha-Transfer: two hands with closed-form inverse kinematics that wait for each other.

Each arm runs its own program: the right one fetches the cube and brings it to a meeting place; the left one goes there,
waits and takes the cube; then the right one lets go. The simulator's joints follow their targets within a few steps, so
targets are interpolated between the inverse kinematics of a motion's ends, bent and disturbed like a person's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from classact.data.types import FloatArray, StateArray
from classact.sims.aloha import AlohaTransfer
from classact.sims.experts.arm import rotation_about_z
from classact.sims.experts.base import GiveUpError

LEFT, RIGHT = 0, 1
OPEN, CLOSED = 1.0, 0.0

# The arm (ViperX 300), metres, from gym-aloha's model: the shoulder's height above the base, upper arm and forearm,
# the upper arm's elevation where its joint is 0, and the distance from the wrist to between the fingertips.
SHOULDER = 0.12705
UPPER, LOWER = math.hypot(0.05955, 0.3), 0.3
UPPER_ELEVATION = math.atan2(0.3, 0.05955)
HAND = 0.069744 + 0.138
BASES = np.array([[-0.469, 0.5, 0.0], [0.469, 0.5, 0.0]])
FACING = np.array([[1.0, 0.0], [-1.0, 0.0]])  # cosine and sine of where an arm's x axis points
JOINT_RANGE = np.array([[-3.1, -1.85, -1.76, -3.1, -1.86, -3.1], [3.1, 1.256, 1.605, 3.1, 2.23, 3.1]])

RETREAT, CARRY = np.array([0.09, 0.0, 0.07]), np.array([-0.05, 0.0, 0.02])  # metres, after the handover
TRIES = 3  # of grasping
GRIP_RATE = 0.07  # largest change of a gripper's command in a step
MEAN_SPEED = 1.3  # radians per second that no joint exceeds on average in a motion
MAX_TWIST, MIN_BEND = 0.7, 0.12  # radians of forearm and wrist while the right hand is aligned
HELD_WITHIN = 0.035  # metres between fingertips and cube while it is held


@dataclass(frozen=True)
class Reach:
    """Where the fingertips should be and how the hand is turned, in the world; angles in radians."""

    place: StateArray  # (3,) metres
    yaw: float  # of the hand about the world's z axis, 0 where the arm faces
    pitch: float  # downwards
    roll: float = 0.0  # about the hand's own axis; fingers close sideways at 0


Aim = Callable[[StateArray], Reach]  # how a hand is turned at a place


def solve(side: int, reach: Reach) -> StateArray:
    """(6,) joint positions for a reach, the elbow up; a GiveUpError beyond the arm's reach or a joint's range.

    The wrist is spherical, so its centre follows from the reach alone: waist, shoulder and elbow put it there, and the
    other three joints are the remaining rotation, R_03^T R = Rx(forearm) Ry(wrist) Rx(hand), with the solution that
    turns the forearm less.
    """
    local = reach.place - BASES[side]
    local[:2] *= FACING[side, 0]
    rotation = rotation_about_z(reach.yaw) @ _y(reach.pitch) @ _x(reach.roll)
    wrist = local - HAND * rotation[:, 0]
    waist = math.atan2(wrist[1], wrist[0])
    out, up = math.hypot(wrist[0], wrist[1]), wrist[2] - SHOULDER
    distance = math.hypot(out, up)
    if not abs(UPPER - LOWER) < distance < UPPER + LOWER:
        raise GiveUpError(f"the {('left', 'right')[side]} arm does not reach {reach.place.round(3).tolist()}")
    inner = math.acos((UPPER**2 + LOWER**2 - distance**2) / (2 * UPPER * LOWER))
    lift = math.acos((UPPER**2 + distance**2 - LOWER**2) / (2 * UPPER * distance))
    shoulder = UPPER_ELEVATION - math.atan2(up, out) - lift
    elbow = math.pi - UPPER_ELEVATION - inner
    rest = (rotation_about_z(waist) @ _y(shoulder + elbow)).T @ rotation
    bend = math.acos(np.clip(rest[0, 0], -1, 1))
    if bend < 1e-3:
        forearm, bend, hand = 0.0, 0.0, math.atan2(rest[2, 1], rest[1, 1])
    else:
        sign = 1.0 if rest[2, 0] < 0 else -1.0
        forearm = math.atan2(sign * rest[1, 0], -sign * rest[2, 0])
        hand = math.atan2(sign * rest[0, 1], sign * rest[0, 2])
        bend *= sign
    joints = np.array([waist, shoulder, elbow, forearm, bend, hand])
    if (joints < JOINT_RANGE[0]).any() or (joints > JOINT_RANGE[1]).any():
        raise GiveUpError(f"the {('left', 'right')[side]} arm's joints do not reach {reach.place.round(3).tolist()}")
    return joints


def fingertips(side: int, joints: StateArray) -> StateArray:
    """(3,) world position between the fingertips, in metres, of (6,) joint positions."""
    waist, shoulder, elbow, forearm, bend, _ = joints
    elevation = UPPER_ELEVATION - shoulder
    arm = np.array([UPPER * math.cos(elevation), 0.0, UPPER * math.sin(elevation) + SHOULDER])
    arm += _y(shoulder + elbow) @ (np.array([LOWER, 0, 0]) + _x(forearm) @ _y(bend) @ np.array([HAND, 0, 0]))
    place: StateArray = rotation_about_z(waist) @ arm
    place[:2] *= FACING[side, 0]
    return place + BASES[side]


def _bell(u: float) -> float:
    """Share of the way after the share u of the time, with the bell-shaped speed of least jerk."""
    return u**3 * (10 - 15 * u + 6 * u * u)


def _x(a: float) -> StateArray:
    c, s = math.cos(a), math.sin(a)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _y(a: float) -> StateArray:
    c, s = math.cos(a), math.sin(a)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


@dataclass(frozen=True)
class Style:
    """How one demonstration differs from another. Lengths in metres, angles in radians."""

    tempo: float  # divides durations
    pitch: float  # of the right hand when it grasps
    align: float  # how far the right hand turns to the cube's faces: 0 as the arm points, 1 entirely
    offset: StateArray  # (3,) where it grasps, from the cube's centre
    hover: float  # height above the cube before it descends
    misjudged: StateArray  # (2,) how far beside the cube it hovers first; zero in most demonstrations
    meeting: StateArray  # (3,) where the cube is handed over
    tilt: float  # change of the right hand's pitch until then
    roll: float  # of the left hand
    standoff: float  # from where the left hand waits to the cube
    delay: int  # steps until the left hand starts
    noise: float  # standard deviation of the joints' slow disturbance
    bend: float  # of the joints' detours in long motions

    @staticmethod
    def draw(rng: np.random.Generator) -> Style:
        """Draw how one demonstration is done."""
        miss = rng.normal(0.0, 0.018, 2)
        return Style(
            tempo=rng.uniform(0.85, 1.2),
            pitch=math.radians(rng.uniform(52, 70)),
            align=rng.uniform(0.0, 1.0),
            offset=np.array([*rng.normal(0, 0.003, 2), rng.uniform(-0.002, 0.006)]),
            hover=rng.uniform(0.07, 0.11),
            misjudged=miss if rng.random() < 0.25 else np.zeros(2),
            meeting=np.array([0.0, 0.5, 0.25]) + rng.uniform(-1, 1, 3) * (0.03, 0.03, 0.04),
            tilt=math.radians(rng.uniform(-12, 4)),
            roll=math.radians(90 + rng.normal(0, 4)) * (1 if rng.random() < 0.8 else -1),
            standoff=rng.uniform(0.08, 0.12),
            delay=int(rng.integers(0, 90)),
            noise=rng.uniform(0.002, 0.005),
            bend=rng.uniform(0.03, 0.08),
        )


@dataclass
class Shared:
    """What the hands know of each other."""

    offered: bool = False
    taken: bool = False


@dataclass
class Hand:
    """One arm's command, and how it moves."""

    side: int  # LEFT or RIGHT
    command: StateArray  # (6,) joint targets without disturbance
    grip: float  # the gripper's command
    goal: float  # what the gripper's command is on its way to
    style: Style
    rng: np.random.Generator
    drift: StateArray = field(default_factory=lambda: np.zeros(6))

    def _action(self) -> StateArray:
        keep = 0.93  # the disturbance is forgotten in some 14 steps
        self.drift = keep * self.drift + math.sqrt(1 - keep**2) * self.rng.normal(0, self.style.noise, 6)
        self.grip += float(np.clip(self.goal - self.grip, -GRIP_RATE, GRIP_RATE))
        return np.append(self.command + self.drift, self.grip)

    def move(self, reach: Reach, seconds: float, *, detour: float = 0.0) -> Iterator[StateArray]:
        """Go to a reach in about ``seconds`` with a bell-shaped speed, by a detour of so many radians per joint."""
        start, goal = self.command, solve(self.side, reach)
        skew = self.rng.uniform(0.88, 1.15)
        way = self.rng.normal(0, 1, 6) * detour * (1, 1, 1, 0.5, 1, 0.5)
        seconds = max(seconds, float(np.abs(goal - start).max()) / MEAN_SPEED)
        steps = max(2, round(50 * seconds / self.style.tempo * self.rng.uniform(0.9, 1.1)))
        for step in range(1, steps + 1):
            u = (step / steps) ** skew
            self.command = start + (goal - start) * _bell(u) + way * 16 * (u * (1 - u)) ** 2
            yield self._action()

    def slide(self, aim: Aim, start: StateArray, end: StateArray, seconds: float) -> Iterator[StateArray]:
        """Move the fingertips in a straight line."""
        steps = max(2, round(50 * seconds / self.style.tempo * self.rng.uniform(0.9, 1.1)))
        for step in range(1, steps + 1):
            self.command = solve(self.side, aim(start + (end - start) * _bell(step / steps)))
            yield self._action()

    def wait(self, seconds: float) -> Iterator[StateArray]:
        """Hold the command for about ``seconds``, disturbed as in motions."""
        for _ in range(max(1, round(50 * seconds / self.style.tempo * self.rng.uniform(0.8, 1.2)))):
            yield self._action()


def script(simulator: AlohaTransfer, rng: np.random.Generator) -> Iterator[FloatArray]:
    """(14,) joint targets and grippers, until the left hand has the cube alone; see ``experts.base.Script``."""
    style, shared = Style.draw(rng), Shared()
    joints, grips = simulator.joint_positions(), simulator.gripper_openings()
    left, right = (
        Hand(side, joints[side], grip, grip, style, np.random.default_rng(rng.integers(2**63)))
        for side, grip in enumerate(np.clip(grips, CLOSED, OPEN).tolist())
    )
    for commands in zip(_take(simulator, left, shared), _fetch(simulator, right, shared), strict=False):
        yield np.concatenate(commands).astype(np.float32)


def _fetch(simulator: AlohaTransfer, hand: Hand, shared: Shared) -> Iterator[StateArray]:
    """The right hand: pick the cube up, offer it, let go when it is taken."""
    style = hand.style
    yield from hand.wait(0.1)
    for attempt in range(TRIES):
        cube, turned = _look(simulator)
        over, at = cube + np.array([0.0, 0.0, style.hover]), cube + style.offset
        aim = _aim(over, at, turned, style.align, style.pitch)
        hand.goal = OPEN
        if attempt == 0 and style.misjudged.any():
            astray = over + np.append(style.misjudged, 0.0)
            yield from hand.move(_aim(astray, astray, turned, style.align, style.pitch)(astray), 1.2, detour=style.bend)
            yield from hand.move(aim(over), 0.4)
        else:
            yield from hand.move(aim(over), 1.3 if attempt == 0 else 0.8, detour=style.bend)
        yield from hand.slide(aim, over, at, 0.6)
        hand.goal = CLOSED
        yield from hand.wait(0.4)
        yield from hand.slide(aim, at, at + np.array([0.0, 0.0, 0.05]), 0.4)
        if _holds(simulator, RIGHT):
            break
    else:
        raise GiveUpError(f"the right hand missed the cube {TRIES} times")
    back = style.meeting + RETREAT
    aim = _aim(style.meeting, back, 0.0, 0.7, style.pitch + style.tilt)
    yield from hand.move(aim(style.meeting), 1.3, detour=0.6 * style.bend)
    yield from hand.wait(0.1)
    if not _holds(simulator, RIGHT):
        raise GiveUpError("the right hand lost the cube on its way")
    shared.offered = True
    while not shared.taken:
        yield from hand.wait(0.02)
    hand.goal = OPEN
    yield from hand.wait(0.35)
    yield from hand.slide(aim, style.meeting, back, 0.6)
    yield from hand.wait(1.0)


def _take(simulator: AlohaTransfer, hand: Hand, shared: Shared) -> Iterator[StateArray]:
    """The left hand: go to the meeting place, wait, take the cube, hold it."""
    style = hand.style
    yield from hand.wait(style.delay / 50)
    hand.goal = OPEN
    yield from hand.move(
        Reach(style.meeting - np.array([style.standoff, 0, 0]), 0.0, 0.0, style.roll), 1.4, detour=style.bend
    )
    while not shared.offered:
        yield from hand.wait(0.02)
    cube, _ = simulator.object_pose()
    pitch = -style.tilt  # the cube turns with the right hand, and this one with the cube
    yield from hand.move(Reach(cube, 0.0, pitch, style.roll), 0.7)
    hand.goal = CLOSED
    yield from hand.wait(0.5)
    shared.taken = True
    yield from hand.wait(0.5)
    yield from hand.move(Reach(cube + CARRY, 0.0, pitch, style.roll), 0.6)
    yield from hand.wait(0.5)
    if not _holds(simulator, LEFT):
        raise GiveUpError("the left hand did not get the cube")


def _look(simulator: AlohaTransfer) -> tuple[StateArray, float]:
    """The cube's position, and how far its faces are turned, -45 to 45 degrees in radians."""
    place, rotation = simulator.object_pose()
    quarter = math.pi / 2
    turned = math.atan2(rotation[1, 0], rotation[0, 0])
    return place, (turned + quarter / 2) % quarter - quarter / 2


def _aim(start: StateArray, end: StateArray, turned: float, align: float, pitch: float) -> Aim:
    """How the right hand is turned from ``start`` to ``end``: its yaw between the arm's direction (``align`` 0) and the
    cube's faces (1).

    It aligns less where the wrist is nearly straight on the way: forearm and hand turn about the same axis there, and
    small rotations of the hand need large ones of the forearm. An arm that points at the place never turns it.
    """

    def toward(place: StateArray, share: float) -> Reach:
        pointing = math.atan2(BASES[RIGHT, 1] - place[1], BASES[RIGHT, 0] - place[0])
        return Reach(place, pointing + share * (turned - pointing), pitch)

    way = np.linspace(start, end, 6)
    for share in (align, 0.5 * align, 0.2 * align):
        joints = np.array([solve(RIGHT, toward(place, share)) for place in way])
        if np.abs(joints[:, 3]).max() < MAX_TWIST and np.abs(joints[:, 4]).min() > MIN_BEND:
            return partial(toward, share=share)
    return partial(toward, share=0.0)


def _holds(simulator: AlohaTransfer, side: int) -> bool:
    cube, _ = simulator.object_pose()
    return bool(np.linalg.norm(cube - fingertips(side, simulator.joint_positions()[side])) < HELD_WITHIN)
