"""A scripted expert for LIBERO-Object: grasp the named product from above, drop it into the basket.

Grasps follow from the scene: where the product's collision shapes are narrow enough for the fingers, flat enough to
hold, and the open hand touches no neighbour. Round products can be grasped from any side, boxes across their short
side; chance decides among grasps of similar worth, and about heights, speeds and paths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from classact.data.types import FloatArray, StateArray
from classact.sims.base import OPEN
from classact.sims.experts.arm import Arm
from classact.sims.experts.base import GiveUpError

BASE = (-0.6, 0.0)  # where LIBERO puts the arm on the floor, metres

TRIES = 3

# The Panda's hand, metres, in the grip site's frame (x: along which the fingers open; z: down).
APERTURE = 0.068  # the widest product that is taken; the pads are 0.076 apart
DEPTH = 0.014  # how far below a product's top the site goes: 1 cm deeper, the palm sticks to thin lids
FINGERTIP = 0.012  # how far the fingers reach below the site
PALM = (0.116, 0.046, -0.015)  # half sizes along x and y, lower edge; with room
FINGERS = (0.030, 0.068, 0.026)  # nearest and farthest |x|, half size along y; with room

RIM, WALL = 0.15, 0.03  # the basket's height above the floor; how far above it things are carried
# Tall things are let go with their lower end this high: LIBERO calls it success when they fall, not before.
BOTTOM = 0.075

_WINDOW = 0.02  # pads touch a product within this of their middle
_SAMPLES = np.stack(np.meshgrid(*[np.linspace(-1, 1, 7)] * 3, indexing="ij"), -1).reshape(-1, 3)  # (343, 3)


@dataclass(frozen=True)
class Grasp:
    """Where the grip site goes."""

    position: StateArray  # (3,) metres
    yaw: float  # of the direction along which the fingers open, radians, unwrapped


def shape_points(sim: Any, name: str) -> StateArray:
    """(N, 3) points in and on a thing's collision shapes, world metres."""
    model, data = sim.model, sim.data
    root = model.body_rootid[_body(sim, name)]
    found = [
        (center + half * _SAMPLES) @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom]
        for geom in np.flatnonzero(model.body_rootid[model.geom_bodyid] == root)
        if model.geom_contype[geom]
        for center, half in [np.split(model.geom_aabb[geom], 2)]
    ]
    return np.concatenate(found)


def _body(sim: Any, name: str) -> int:
    return int(sim.model.body(sim.bodies[name]).id)


def choose_grasp(sim: Any, arm: Arm, rng: np.random.Generator) -> Grasp:
    """The best grasp of the target that the arm can reach, with a little chance."""
    points = shape_points(sim, "target")
    others = np.concatenate([shape_points(sim, name) for name in sim.bodies if name != "target"])
    top, bottom = points[:, 2].max(), points[:, 2].min()
    lowest = bottom + FINGERTIP + 0.001
    height = max(lowest, (top + bottom) / 2, top - DEPTH - float(rng.uniform(-0.003, 0.004)))
    basket = sim.object_pose("basket")[0]
    best: tuple[float, Grasp] | None = None
    middle = points[:, :2].mean(0)
    for theta in rng.uniform(0, np.pi) + np.arange(36) * np.pi / 36:
        axes = np.array([[np.cos(theta), np.sin(theta)], [-np.sin(theta), np.cos(theta)]])  # along, across
        own = (points[:, :2] - middle) @ axes.T
        near = (others[:, :2] - middle) @ axes.T
        level = np.abs(points[:, 2] - height) < 0.012
        for shift in (-0.015, -0.007, 0.0, 0.007, 0.015):
            held = own[level & (np.abs(own[:, 1] - shift) < _WINDOW), 0]
            if len(held) == 0 or np.ptp(held) > APERTURE or abs(shift) > 0.3 * np.ptp(own[:, 1]):
                continue
            along = (held.max() + held.min()) / 2
            place = np.array([*(middle + np.array([along, shift]) @ axes), height])
            hits = _hits(np.column_stack([near - [along, shift], height - others[:, 2]]))
            # The chord of a turned box is longer: the narrow grasp is the one in which its faces lie flat.
            cost = 25 * np.ptp(held) + 8 * abs(shift) + (2 + 0.02 * hits if hits else 0) + rng.uniform(0, 0.25)
            over = arm.reachable_yaws(theta, basket, period=np.pi)
            for yaw in arm.reachable_yaws(theta, place, period=np.pi):
                if min((abs(yaw - other) for other in over), default=1.0) > 1e-6:
                    continue
                total = cost + 0.15 * abs(yaw - arm.yaw)
                if best is None or total < best[0]:
                    best = (total, Grasp(place, yaw))
    if best is None:
        raise GiveUpError("no side of the product fits between the fingers in reach")
    return best[1]


def _hits(points: StateArray) -> int:
    """How many (N, 3) points, in the grip site's frame, the open hand would touch."""
    x, y, z = np.abs(points[:, 0]), np.abs(points[:, 1]), points[:, 2]
    palm = (x < PALM[0]) & (y < PALM[1]) & (z < PALM[2])
    fingers = (x > FINGERS[0]) & (x < FINGERS[1]) & (y < FINGERS[2]) & (z < FINGERTIP)
    return int((palm | fingers).sum())


def script(sim: Any, rng: np.random.Generator) -> Iterator[FloatArray]:
    """Demonstrate the present task of a :class:`~classact.sims.libero.LiberoObject`."""
    arm = Arm(sim, rng, base=BASE)
    for _ in range(TRIES):
        grasp = choose_grasp(sim, arm, rng)
        yield from take(arm, grasp, rng)
        if holds(sim):
            yield from put(arm, sim, rng)
            if inside(sim):
                return
        up = arm.position + np.array([0.0, 0.0, 0.1])
        yield from arm.move(up, grip=OPEN)
    raise GiveUpError(f"the product slipped {TRIES} times")


def take(arm: Arm, grasp: Grasp, rng: np.random.Generator) -> Iterator[FloatArray]:
    """Go above it, down, close, lift a little."""
    above = grasp.position + np.array([*rng.normal(0, 0.004, 2), rng.uniform(0.06, 0.10)])
    yield from arm.move(above, grasp.yaw, OPEN, arch=0.02, tolerance=0.02)
    yield from arm.pause()
    yield from arm.move(grasp.position, grasp.yaw, precise=True, speed=0.7)
    yield from arm.grasp(int(rng.integers(10, 15)))
    yield from arm.move(grasp.position + np.array([0.0, 0.0, 0.06]), speed=0.7, settle=5)


def put(arm: Arm, sim: Any, rng: np.random.Generator) -> Iterator[FloatArray]:
    """Carry it over the basket, lower it, let go."""
    points = shape_points(sim, "target")
    hangs = float(sim.ee_pose()[0][2] - points[:, 2].min())
    aim = rng.normal(0, 0.006, 2)

    def over(height: float) -> StateArray:
        site, basket = sim.ee_pose()[0], sim.object_pose("basket")[0]
        offset = sim.object_pose("target")[0][:2] - site[:2]
        return np.array([*(basket[:2] + aim - offset), height])

    carry = RIM + WALL + hangs + float(rng.uniform(0.0, 0.04))
    yield from arm.move(np.array([*arm.position[:2], carry - 0.02]), settle=3)
    if not holds(sim):
        return
    yield from arm.move(lambda: over(carry), arch=0.02, tolerance=0.02)
    yield from arm.pause()
    if not holds(sim):
        return
    let_go = max(RIM + 0.015, BOTTOM + hangs) + float(rng.uniform(0.0, 0.015))
    if carry - let_go > 0.02:
        yield from arm.move(lambda: over(let_go), speed=0.8, tolerance=0.015)
    yield from arm.release(int(rng.integers(8, 13)))
    if holds(sim):  # thin lids sometimes stick to the open hand: strip them off on the basket's floor
        yield from arm.move(lambda: over(hangs - 0.01), settle=5)
        yield from arm.release(4)
    yield from arm.move(arm.position + np.array([0.0, 0.0, 0.08]), settle=0)


def holds(sim: Any) -> bool:
    """Whether the target is in the hand."""
    points = shape_points(sim, "target")
    site = sim.ee_pose()[0]
    return bool(points[:, 2].min() > 0.03 and np.linalg.norm(points - site, axis=1).min() < 0.03)


def inside(sim: Any) -> bool:
    """Whether the target lies roughly in the basket; LIBERO's check is stricter."""
    target, basket = sim.object_pose("target")[0], sim.object_pose("basket")[0]
    return bool(np.abs(target - basket)[:2].max() < 0.06 and target[2] < RIM)
