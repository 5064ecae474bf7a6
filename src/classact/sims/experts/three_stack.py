"""Three-Stack by script: the red cube onto the green one, the blue cube onto the red one (ranges D0 and D1 alike).

A cube is grasped at any side that joint 7 can reach and that leaves the fingers room beside the other cubes; side,
height, path and speed differ between demonstrations. What slips or falls is grasped again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from classact.data.types import FloatArray, StateArray
from classact.sims.base import CLOSED, OPEN
from classact.sims.experts.arm import BASE, Arm, compose, rotation_about_z, yaw_of
from classact.sims.experts.base import GiveUpError

HALF = {"cubeA": 0.020, "cubeB": 0.025, "cubeC": 0.020}  # half sides of the cubes, metres
TRIES = 4  # times that one cube is taken before giving up

FINGER = (0.048, 0.012, 0.011)  # an open finger: centre along the opening, half sizes along and across it, metres
PALM = (0.105, 0.033)
"""Half sizes of the hand along and across the opening, metres; it begins PALM_HEIGHT above the grip site."""
PALM_HEIGHT = 0.04

ROOM = 0.006  # clearance that the hand wants from other cubes, metres

SHOULDER, WRIST, HAND = 1.245, 0.088, 0.21  # height of the shoulder, hand outside the wrist, wrist to grip site, metres
STRETCH, SHRINK, MAX_TILT = 0.68, 0.33, 0.5
"""Greatest distance from shoulder to wrist (at 0.72 the elbow is straight, and then bends the wrong way), and least
from the arm's axis to the hand, metres, and greatest outward tilt, radians, which brings the wrist nearer."""


def script(sim: Any, rng: np.random.Generator) -> Iterator[FloatArray]:
    """Actions (10,) that stack the cubes; ``sim`` is a :class:`classact.sims.robosuite_tasks.ThreeStackD0`."""
    arm = Arm(sim, rng, speed=0.3, turn=1.4)
    tries = {"cubeA": 0, "cubeC": 0}
    while True:
        # B may have been pushed, A may have been knocked down while C was placed: look each time.
        cube, under = ("cubeA", "cubeB") if not _on(sim, "cubeA", "cubeB") else ("cubeC", "cubeA")
        if cube == "cubeC" and _on(sim, cube, under):
            yield from arm.hold(10, precise=False)
            return
        tries[cube] += 1
        if tries[cube] > TRIES:
            raise GiveUpError(f"{cube} could not be put on {under} in {TRIES} tries")
        yield from arm.pause()
        if (yield from _take(sim, arm, rng, cube, under)):
            yield from arm.pause()
            yield from _put(sim, arm, rng, cube, under)


def _take(sim: Any, arm: Arm, rng: np.random.Generator, cube: str, under: str) -> Any:
    """Grasp a cube and lift it; returns whether it came along."""
    if sim.object_pose(cube)[0][2] < 0.7:
        raise GiveUpError(f"{cube} fell off the table")
    yaw, tilted = _side(sim, arm, rng, cube, under)
    hover = rng.uniform(0.06, 0.10)
    low = np.array([*(rotation_about_z(yaw) @ [0.0, rng.normal(0.0, 0.002), 0.0])[:2], rng.uniform(-0.006, 0.003)])

    def above() -> StateArray:
        return np.asarray(sim.object_pose(cube)[0] + [low[0], low[1], hover])

    def at() -> StateArray:
        return np.asarray(sim.object_pose(cube)[0] + low)

    # A matrix is reached the shorter way round, which joint 7 may not have; the elbow wants the tilt early.
    there = tilted if abs(yaw - arm.yaw) < 3 else yaw
    yield from arm.move(above, there, OPEN, arch=rng.uniform(0.0, 0.03), tolerance=0.012, angle=0.1)
    if rng.random() < 0.2:  # hesitates, like a person who is not sure yet
        off = rng.normal(0.0, 0.006, 3)
        yield from arm.move(lambda: above() + off, speed=0.6)
    yield from arm.move(at(), tilted, speed=rng.uniform(0.6, 0.8), precise=True, tolerance=0.004, settle=12)
    yield from arm.grasp(int(rng.integers(9, 13)))
    start = float(sim.object_pose(cube)[0][2])
    up = np.array([*arm.position[:2], arm.position[2] + rng.uniform(0.04, 0.06)])
    yield from arm.move(up, speed=0.6, settle=4, tolerance=0.03)
    return bool(sim.object_pose(cube)[0][2] > start + 0.015)


def _put(sim: Any, arm: Arm, rng: np.random.Generator, cube: str, under: str) -> Any:
    """Put the cube that is held onto another, let go, and leave upwards."""
    gap = HALF[cube] + HALF[under]
    high = gap + rng.uniform(0.035, 0.06)
    aim = rng.normal(0.0, 0.002, 2)
    turned = 0.0
    if rng.random() < 0.5:  # sometimes with aligned sides
        turned = yaw_of(sim.object_pose(under)[1]) - yaw_of(sim.object_pose(cube)[1])
        turned = (turned + np.pi / 4) % (np.pi / 2) - np.pi / 4
        turned = turned if _in_reach(arm, arm.yaw + turned, sim.object_pose(under)[0]) else 0.0
    # Tilted as it was grasped: then the cube is level.
    rotation = rotation_about_z(turned) @ compose(arm.yaw, arm.tilt)

    def over(height: float) -> StateArray:
        """Where the grip site is when the cube is over its place: it may have moved within the hand."""
        held = sim.ee_pose()[0] - sim.object_pose(cube)[0]
        goal = sim.object_pose(under)[0] + held
        return np.array([goal[0] + aim[0], goal[1] + aim[1], goal[2] + height])

    def lost() -> bool:
        return bool(np.linalg.norm(sim.ee_pose()[0] - sim.object_pose(cube)[0]) > 0.05)

    arch = rng.uniform(0.0, 0.04)
    yield from arm.move(lambda: over(high), rotation, CLOSED, arch=arch, tolerance=0.006, angle=0.08, until=lost)
    if lost():
        return
    yield from arm.move(lambda: over(gap + 0.012), speed=0.6, precise=True, tolerance=0.003, settle=15, until=lost)
    yield from arm.move(lambda: over(gap + 0.001), speed=0.5, precise=True, tolerance=0.0025, settle=8)
    yield from arm.release(int(rng.integers(6, 9)))
    up = arm.position + np.array([0.0, 0.0, rng.uniform(0.06, 0.09)])
    yield from arm.move(up, speed=0.8, settle=0)


def _on(sim: Any, upper: str, lower: str) -> bool:
    """Whether a cube rests on another, near enough to stay."""
    offset = sim.object_pose(upper)[0] - sim.object_pose(lower)[0]
    return bool(np.abs(offset[:2]).max() < HALF[lower] + 0.005 and abs(offset[2] - HALF[upper] - HALF[lower]) < 0.006)


def _side(sim: Any, arm: Arm, rng: np.random.Generator, cube: str, under: str) -> tuple[float, StateArray]:
    """The unwrapped yaw at which a cube is taken, and the hand's rotation (3, 3), tilted where it is far away."""
    place, rotation = sim.object_pose(cube)
    goal = sim.object_pose(under)[0]
    yaws = arm.reachable_yaws(yaw_of(rotation), place, period=np.pi / 2)
    yaws = [yaw for yaw in yaws if _in_reach(arm, yaw, goal)] or yaws
    if not yaws:
        raise GiveUpError(f"no side of {cube} is in reach of joint 7")
    others = [(*sim.object_pose(name), half) for name, half in HALF.items() if name != cube]
    goal = goal + np.array([0.0, 0.0, HALF[cube] + HALF[under]])
    outward = max(place - [*BASE, 0], goal - [*BASE, 0], key=lambda way: float(np.linalg.norm(way[:2])))[:2]
    distance = float(np.linalg.norm(outward))
    want = _tilt(place, goal)

    def along(yaw: float) -> float:
        """How much of a tilt about the fingers' opening is outward."""
        return float(np.array([-np.sin(yaw), np.cos(yaw)]) @ outward / distance)

    # Turning costs time, lack of room costs the grasp, a tilt needs its direction; the rest is chance.
    costs = [
        abs(yaw - arm.yaw)
        + 200 * max(0.0, ROOM - _room(place, yaw, others))
        + 10 * want * (1 - abs(along(yaw)))
        + rng.exponential(0.3)
        for yaw in yaws
    ]
    yaw = yaws[int(np.argmin(costs))]
    tilt = np.sign(along(yaw)) * min(want / max(abs(along(yaw)), 0.5), MAX_TILT)
    return yaw, compose(yaw, tilt * np.array([np.cos(yaw), np.sin(yaw), 0.0]))


def _tilt(*places: StateArray) -> float:
    """The least outward tilt of the hand, in radians, with which the arm is nowhere overstretched or folded."""
    ways = [(float(np.linalg.norm(place[:2] - BASE)), float(place[2])) for place in places]
    tilt = 0.0
    while tilt < MAX_TILT:
        sine, cosine = np.sin(tilt), np.cos(tilt)
        reach = max(np.hypot(r - WRIST - HAND * sine, z + HAND * cosine - SHOULDER) for r, z in ways)
        nearest = min(r - HAND * np.sin(tilt + 0.02) for r, _ in ways)
        if reach <= STRETCH or nearest < SHRINK:
            break
        tilt += 0.02
    return tilt


def _in_reach(arm: Arm, yaw: float, place: StateArray) -> bool:
    return any(abs(yaw - other) < 1e-6 for other in arm.reachable_yaws(yaw, place, period=2 * np.pi, margin=0.15))


def _room(place: StateArray, yaw: float, others: list[tuple[StateArray, StateArray, float]]) -> float:
    """Metres between the open hand, its grip site at ``place`` (3,), and the nearest other cube (position, rotation,
    half side); negative where they overlap.
    """
    out, along, across = FINGER
    finger = np.array([[x, y] for x in (-along, 0, along) for y in (-across, 0, across)])
    aside = np.array([out, 0.0])
    fingers = np.concatenate([finger - aside, finger + aside])
    palm = np.array([[x, y] for x in np.linspace(-PALM[0], PALM[0], 11) for y in np.linspace(-PALM[1], PALM[1], 5)])
    turn, room = rotation_about_z(yaw)[:2, :2], np.inf
    for center, rotation, half in others:
        tall = center[2] + half > place[2] + PALM_HEIGHT
        points = np.concatenate([fingers, palm]) if tall else fingers
        frame = rotation_about_z(yaw_of(rotation))[:2, :2]
        seen = (place[:2] + points @ turn.T - center[:2]) @ frame  # in the other cube's axes
        room = min(room, float((np.abs(seen).max(axis=1) - half).min()))
    return room
