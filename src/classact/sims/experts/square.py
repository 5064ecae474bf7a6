"""Square: grasp the nut by its handle, carry it over the peg, let it down (robosuite's NutAssemblySquare)."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from classact.data.types import FloatArray, StateArray
from classact.sims.base import OPEN
from classact.sims.experts.arm import Arm, rotation_about_z, wrap, yaw_of
from classact.sims.experts.base import GiveUpError
from classact.sims.specs import PEG_TOP

HANDLE = 0.068  # metres from the nut's middle to where the handle is best held: its outer half
RESTING = 0.83  # height of the nut on the table
TRIES = 4  # grasps, and ways down the peg, before giving up
FAR = 0.1  # from the hand to the nut's middle: beyond, it is not held
ALIGNED = 0.012  # from the nut's middle to the peg's axis, along x and y, when the peg is in the nut

LIFT = np.array([0.0, 0.0, 0.06])

_QUARTER = np.pi / 2

Outcome = Generator[FloatArray, None, bool]  # a part of the script, and whether it was successful


@dataclass(frozen=True)
class Plan:
    """One demonstration's choices; metres, and radians of unwrapped yaws."""

    side: int  # +1 or -1: the hand's x axis is a quarter turn to the left of the handle, or to the right
    grasp_yaw: float
    place_yaw: float
    along: float  # where the handle is held, outward from the nut's middle
    over: float  # and above it; the fingers reach the table 1 mm below
    above: float  # height from which the hand comes down to the handle
    carry: float  # height of the nut over the peg's top on the way
    hover: float  # over the peg's top, where it is aligned
    let_go: float  # height of the nut over the table at which the hand opens
    handle_yaw: float  # direction of the handle on the peg
    misjudged: StateArray  # by how much handle and peg are missed at first; mostly zero


def script(sim: Any, rng: np.random.Generator) -> Iterator[FloatArray]:
    """Actions (10,) for simulator ``square``."""
    arm = Arm(sim, rng)
    yield from arm.hold(int(rng.integers(2, 6)), OPEN)  # the nut falls to the table, and a person looks
    for _ in range(TRIES):
        plan = choose_plan(sim, arm, rng)
        if (yield from _pick(sim, arm, plan)) and (yield from _place(sim, arm, plan)):
            yield from arm.hold(40)
            return
        yield from arm.hold(3, OPEN)
    raise GiveUpError(f"{TRIES} tries to put the nut on the peg failed")


def choose_plan(sim: Any, arm: Arm, rng: np.random.Generator) -> Plan:
    """Draw a plan; mostly the hand turns the shorter way and stays off joint 7's limits."""
    nut, rotation = sim.object_pose("nut")
    peg, _ = sim.object_pose("peg")
    handle = yaw_of(rotation)
    # Towards the robot: beyond the peg the elbow is stretched.
    handle_yaw = np.pi + float(rng.uniform(-0.12, 0.12))
    goal = peg + HANDLE * rotation_about_z(handle_yaw)[:, 0]
    grasp = nut + HANDLE * rotation[:, 0]
    options = [
        (side, first, last)
        for side in (1, -1)
        for first in arm.reachable_yaws(handle + side * _QUARTER, grasp)
        for last in arm.reachable_yaws(handle_yaw + side * _QUARTER, goal)
    ]
    if not options:
        raise GiveUpError("no way to turn the hand to the handle and the handle to the peg")
    costs = [abs(first - arm.yaw) + abs(last - first) for _, first, last in options]
    side, first, last = options[int(np.argmin(np.array(costs) + 0.3 * rng.gumbel(size=len(costs))))]
    return Plan(
        side=side,
        grasp_yaw=first,
        place_yaw=last,
        along=HANDLE + float(rng.uniform(-0.004, 0.004)),
        over=float(rng.uniform(0.0, 0.003)),
        above=float(rng.uniform(0.06, 0.11)),
        carry=float(rng.uniform(0.03, 0.07)),
        hover=float(rng.uniform(0.018, 0.03)),
        let_go=float(rng.uniform(0.015, 0.06)),
        handle_yaw=handle_yaw,
        misjudged=np.append(rng.normal(0, 0.008, 2), 0) * (rng.random() < 0.25),
    )


def _pick(sim: Any, arm: Arm, plan: Plan) -> Outcome:
    """Grasp the nut by the handle and lift it; returns whether it came along."""

    def spot(above: float) -> StateArray:
        nut, rotation = sim.object_pose("nut")
        return np.asarray(nut + plan.along * rotation[:, 0] + [0, 0, above + plan.over])

    def yaw() -> float:
        handle = yaw_of(sim.object_pose("nut")[1])
        return plan.grasp_yaw + wrap(handle + plan.side * _QUARTER - plan.grasp_yaw)

    yield from arm.move(lambda: spot(plan.above) + plan.misjudged, yaw, OPEN, arch=0.02, tolerance=0.012)
    yield from arm.pause()
    yield from arm.move(lambda: spot(0.0), yaw, speed=0.5, precise=True)
    yield from arm.grasp(int(arm.rng.integers(15, 20)))
    before = sim.object_pose("nut")[0][2]
    yield from arm.move(arm.position + LIFT, speed=0.35)
    return bool(sim.object_pose("nut")[0][2] > before + 0.03)


def _place(sim: Any, arm: Arm, plan: Plan) -> Outcome:
    """Carry the nut to the peg and put it over; returns whether it is on it."""
    peg = sim.object_pose("peg")[0]
    top = float(peg[2]) + PEG_TOP
    level = rotation_about_z(plan.handle_yaw)

    def in_hand() -> tuple[StateArray, StateArray]:
        """The nut's pose in the hand: slipping and tilting in it do not matter."""
        place, hand = sim.ee_pose()
        nut, rotation = sim.object_pose("nut")
        return hand.T @ (nut - place), hand.T @ rotation

    def rotation() -> StateArray:
        return np.asarray(level @ in_hand()[1].T)

    def carrying() -> StateArray:
        goal = np.array([peg[0], peg[1], top + plan.carry]) + plan.misjudged
        return np.asarray(goal - rotation() @ in_hand()[0])

    def over(height: float) -> StateArray:
        return np.asarray([peg[0], peg[1], height] - sim.ee_pose()[1] @ in_hand()[0])

    def lost() -> bool:
        return bool(np.linalg.norm(in_hand()[0]) > FAR)

    yield from arm.move(carrying, plan.place_yaw, arch=0.03, tolerance=0.02, settle=15, until=lost)
    yield from arm.pause()
    hover, below = top + plan.hover, RESTING + plan.let_go
    for _ in range(TRIES):
        yield from arm.move(lambda: over(hover), rotation, speed=0.5, precise=True, settle=40, until=lost)
        yield from arm.move(
            lambda: over(below), rotation, speed=0.4, precise=True, tolerance=0.006, settle=12, until=lost
        )
        nut, _ = sim.object_pose("nut")
        if np.abs(nut[:2] - peg[:2]).max() < ALIGNED and nut[2] < top - 0.02:
            yield from arm.release()
            yield from arm.move(arm.position + LIFT, speed=0.6)
            return bool(sim.object_pose("nut")[0][2] < top - 0.03)
        if lost():
            break
    return False
