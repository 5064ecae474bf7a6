"""An expert for Push-T: model-predictive control with smooth motions, found by sampling in the planning model.

The agent's target follows a uniform quadratic B-spline: its velocity is continuous, and the distance of neighbouring
control points limits its speed. Every ``segment`` steps the cross-entropy method chooses the next control points: broad
candidates first (the last plan, random walks, ways around the block), then ever finer ones around the best. The mean of
the elites is executed rather than the luckiest sample, because averaging the actions of similar states, which these
demonstrations are for, needs similar actions in similar states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from classact.data.types import StateArray
from classact.sims.experts import pusht_model as model
from classact.sims.experts.base import Attempt
from classact.sims.pusht import GOAL_POSE, PushT

QUANTUM = 0.125  # px; actions are multiples of it, so that a compact file holds exactly what was executed
LOW, HIGH = 22.0, 490.0  # px; the agent touches a wall just beyond
MIN_LENGTH, MAX_LENGTH = 100, 300  # of demonstrations: shorter ones start next to the goal, longer ones wander
_PLANNING_STREAM, _SLIP_STREAM = 0x706C616E, 0x736C6970

SCENARIOS = np.array(
    [[0, 0, 0], [1, 0, 1 / 60], [-1, 0, -1 / 60], [0.5, 0.87, -1 / 60], [-0.5, -0.87, 1 / 60], [0.5, -0.87, 0]]
)
"""(M, 3) displacements of the block x, y, angle, for one pixel of doubt."""


@dataclass(frozen=True)
class ExpertConfig:
    """Settings of the expert; lengths in px, times in control steps."""

    segment: int = 4  # between two plans, and between two control points
    knots: int = 12  # future control points that are planned
    max_speed: float = 18.0  # of the target
    push_speed: float = 9.0  # of the block; faster costs
    # How far the block is displaced in the scenarios that a plan must work in. A policy that retrieves this expert's
    # actions executes them in states some 20 px away; this makes it retrievable.
    doubt: float = 20.0
    relative_doubt: float = 0.4  # the same as a share of the distance to the goal beyond precision; the smaller counts
    precision: float = 4.0  # mean corner distance below which plans are made for the actual state alone
    broad: int = 300  # candidates of the first round
    starts: int = 6  # of them, from which the second round starts
    population: int = 90  # candidates of each later round
    spreads: tuple[float, ...] = (20.0, 10.0, 4.0)  # their standard deviations
    elites: int = 10  # candidates that the mean is taken over
    smoothness: float = 2e-4  # weight of the squared second difference of control points, per px^2
    slip_rate: float = 0.07  # share of deliberately wrong decisions, so that the data show recoveries
    slip: float = 40.0  # standard deviation of a slip
    relative_slip: float = 0.6  # the same as a share of the distance to the goal; the smaller one counts
    target_coverage: float = 0.953  # the block counts as placed from here on
    hold: int = 10  # steps that the agent rests at the end
    patience: int = 5  # decisions without a move, each with more effort, before the attempt is given up
    max_steps: int = 300  # give up after so many


@njit(cache=True)
def _limit(points, limit):  # type: ignore[no-untyped-def]
    """Shorten the steps between control points (K, 2) to ``limit`` px, in place from the second point on."""
    for k in range(1, points.shape[0]):
        for j in range(2):
            points[k, j] = min(max(points[k, j], LOW), HIGH)
        dx, dy = points[k, 0] - points[k - 1, 0], points[k, 1] - points[k - 1, 1]
        d = math.sqrt(dx * dx + dy * dy)
        if d > limit:
            points[k, 0] = points[k - 1, 0] + dx * limit / d
            points[k, 1] = points[k - 1, 1] + dy * limit / d


@njit(cache=True)
def _spline(p0, p1, p2, u):  # type: ignore[no-untyped-def]
    return 0.5 * (1 - u) ** 2 * p0 + (0.5 + u - u * u) * p1 + 0.5 * u * u * p2


@njit(cache=True)
def _corner_distance(s, goal):  # type: ignore[no-untyped-def]
    c, sn = math.cos(s[6]), math.sin(s[6])
    total = 0.0
    for i in range(goal.shape[0]):
        rx, ry = model.CORNERS[i, 0], model.CORNERS[i, 1]
        ex = s[4] + c * rx - sn * ry - goal[i, 0]
        ey = s[5] + sn * rx + c * ry - goal[i, 1]
        total += math.sqrt(ex * ex + ey * ey)
    return total / goal.shape[0]


@njit(cache=True)
def plan_cost(start, points, goal, segment, push_speed, s, con):  # type: ignore[no-untyped-def]
    """Cost of following control points (2 + K, 2) from the planning state ``start``.

    Mean over time of g(D) = D + 30 D / (D + 3), with D the mean distance of the tee's corners from their goals in px:
    steep near zero so that the last pixels count; plus a little of the agent's distance from the block, plus a cost of
    pushing faster than ``push_speed`` px per step.
    """
    s[:] = start
    cost = 0.0
    segments = points.shape[0] - 2
    for k in range(segments):
        bx, by, angle = s[4], s[5], s[6]
        for i in range(segment):
            u = (i + 1.0) / segment
            tx = _spline(points[k, 0], points[k + 1, 0], points[k + 2, 0], u)
            ty = _spline(points[k, 1], points[k + 1, 1], points[k + 2, 1], u)
            model.advance(s, tx, ty, con)
        moved = math.sqrt((s[4] - bx) ** 2 + (s[5] - by) ** 2 + (60.0 * (s[6] - angle)) ** 2) / segment
        d = _corner_distance(s, goal)
        away = math.sqrt((s[0] - s[4]) ** 2 + (s[1] - s[5]) ** 2)
        weight = 3.0 if k == segments - 1 else 1.0
        cost += weight * (d + 30.0 * d / (d + 3.0) + 0.02 * max(0.0, away - 80.0))
        cost += 2.0 * max(0.0, moved - push_speed) ** 2
    return cost / segments


@njit(cache=True)
def evaluate(start, scenarios, candidates, goal, segment, smoothness, limit, push_speed, costs):  # type: ignore[no-untyped-def]
    """Limit the speed of candidates (P, 2 + K, 2) in place and fill costs (P,): means over the scenarios.

    Scenarios (M, 3) displace the block by x, y and angle.
    """
    s = np.zeros(model.STATE_SIZE)
    con = np.zeros((model.MAX_CONTACTS, 8))
    displaced = start.copy()
    for p in range(candidates.shape[0]):
        points = candidates[p]
        _limit(points[1:], limit)
        cost = 0.0
        for m in range(scenarios.shape[0]):
            displaced[4:7] = start[4:7] + scenarios[m]
            cost += plan_cost(displaced, points, goal, segment, push_speed, s, con)
        cost /= scenarios.shape[0]
        for k in range(2, points.shape[0]):
            for j in range(2):
                bend = points[k, j] - 2 * points[k - 1, j] + points[k - 2, j]
                cost += smoothness * bend * bend
        costs[p] = cost


def goal_corners() -> StateArray:
    """(8, 2) corners of the tee at the goal."""
    c, s = math.cos(GOAL_POSE[2]), math.sin(GOAL_POSE[2])
    points = model.CORNERS + np.array([0.0, model.COG])
    goal: StateArray = points @ np.array([[c, s], [-s, c]]) + np.array(GOAL_POSE[:2])
    return goal


class Planner:
    """Chooses control points; keeps the last plan as a warm start."""

    def __init__(self, config: ExpertConfig) -> None:
        self.config = config
        self._goal = goal_corners()
        self._plan: StateArray | None = None  # (K, 2) future control points of the last plan

    def next_point(self, start: Any, fixed: StateArray, effort: int = 0) -> StateArray:
        """(2,) the next control point, given the planning state and the two control points (2, 2) before it.

        ``effort`` counts decisions without a move: each one looks further, with other random numbers.
        """
        cfg, knots = self.config, self.config.knots
        # The same random numbers at every decision, so that the choice depends on the state alone.
        rng = np.random.default_rng([_PLANNING_STREAM, effort])
        distance = self.distance(start)
        # Far away a plan must work for many states; the last pixels need precision, at the price of sharp turns.
        scenarios = min(cfg.doubt, cfg.relative_doubt * max(0.0, distance - cfg.precision)) * SCENARIOS
        smoothness = cfg.smoothness * min(1.0, distance / 20.0)

        def costs_of(future: StateArray, scenarios: StateArray) -> tuple[StateArray, StateArray]:
            """(P, K, 2) candidates with their speed limited, and their costs (P,)."""
            costs = np.empty(len(future))
            points = np.concatenate([np.broadcast_to(fixed, (len(future), 2, 2)), future], axis=1)
            evaluate(
                start, scenarios, points, self._goal, cfg.segment, smoothness, cfg.segment * cfg.max_speed,
                cfg.push_speed, costs,
            )  # fmt: skip
            return points[:, 2:], costs

        future, costs = costs_of(self._broad(rng, cfg.broad * (1 + 3 * effort), start, fixed), scenarios[:1])
        # The last plan always competes, so that the expert changes its mind only for something better.
        starts = cfg.starts * (1 + effort) - 1
        centers = np.concatenate([future[:1], future[np.argsort(costs, kind="stable")[:starts]]])
        for spread in cfg.spreads:
            # Smooth perturbations: neighbouring control points move together.
            noise = rng.normal(size=(cfg.population * (1 + effort), knots, 2))
            noise[:, 1:] = 0.6 * noise[:, :-1] + 0.8 * noise[:, 1:]
            noise *= spread * rng.uniform(0.3, 1.7, size=(len(noise), 1, 1))
            noise[: len(centers)] = 0.0
            future, costs = costs_of(centers[np.arange(len(noise)) % len(centers)] + noise, scenarios)
            best = int(np.argmin(costs))
            mine = np.arange(len(noise)) % len(centers) == best % len(centers)  # elites of a single mode
            order = np.argsort(np.where(mine, costs, np.inf), kind="stable")[: cfg.elites]
            mean, value = costs_of(future[order].mean(axis=0)[None], scenarios)
            centers = mean if value[0] <= costs[best] else future[best : best + 1]
        self._plan = centers[0].copy()
        point: StateArray = centers[0, 0].copy()
        return point

    def distance(self, start: Any) -> float:
        """Mean distance in px of the tee's corners from their goals."""
        return float(_corner_distance(start, self._goal))

    def _broad(self, rng: np.random.Generator, count: int, start: Any, fixed: StateArray) -> StateArray:
        """(P, K, 2) candidates of the first round."""
        cfg = self.config
        knots = cfg.knots
        future = np.empty((count, knots, 2))
        resting = np.repeat(fixed[1][None], knots, axis=0)
        last = resting if self._plan is None else np.concatenate([self._plan[1:], self._plan[-1:]])
        third = count // 3
        noise = np.cumsum(rng.normal(size=(third, knots, 2)), axis=1) * rng.uniform(2, 25, size=(third, 1, 1))
        future[:third] = last + noise
        future[0], future[1] = last, resting
        # Ways around: to a random spot beside the block, then through it towards another.
        n = count - third
        center = start[4:6]
        spot = center + rng.uniform(60, 130, (n, 1)) * _unit(start[6] + rng.uniform(0, 2 * np.pi, n))
        aim = center + rng.uniform(0, 70, (n, 1)) * _unit(start[6] + rng.uniform(0, 2 * np.pi, n))
        travel = rng.uniform(15, 160, size=(n, 1))
        push = (aim - spot) / np.linalg.norm(aim - spot, axis=1, keepdims=True)
        around = rng.choice([-1.0, 1.0], size=n)
        switch = rng.integers(1, 8, size=n)
        speed = rng.uniform(10, cfg.segment * cfg.max_speed, size=(n, 1))
        at = np.repeat(fixed[1][None], n, axis=0)
        angle0 = np.arctan2(at[:, 1] - center[1], at[:, 0] - center[0])
        angle1 = np.arctan2(spot[:, 1] - center[1], spot[:, 0] - center[0])
        turn = (angle1 - angle0) % (2 * np.pi)
        turn = np.where(around > 0, turn, turn - 2 * np.pi)
        radius0 = np.linalg.norm(at - center, axis=1)
        radius1 = np.linalg.norm(spot - center, axis=1)
        for k in range(knots):
            part = np.minimum((k + 1) / switch, 1.0)
            radius = np.maximum(radius0 * (1 - part) + radius1 * part, np.where(part < 1, 100.0, 0.0))
            circling = center + radius[:, None] * _unit(angle0 + turn * part)
            pushing = spot + push * np.minimum(speed * np.maximum(k + 1 - switch, 0)[:, None], travel)
            future[third:, k] = np.where((k + 1 <= switch)[:, None], circling, pushing)
        return future


def _unit(angle: StateArray) -> StateArray:
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def quantise(target: StateArray) -> StateArray:
    """The nearest action that the file can hold exactly."""
    rounded: StateArray = np.round(target / QUANTUM) * QUANTUM
    return rounded


@dataclass(frozen=True)
class Solution:
    """One attempt."""

    seed: int  # initial state
    states: StateArray  # (L, 5) float64 state before each action
    actions: StateArray  # (L, 2) float64 multiples of QUANTUM, as executed
    coverage: StateArray  # (L,) after each action
    placed: bool  # whether the block was placed and stayed there while the agent rested


def solve(simulator: PushT, seed: int, config: ExpertConfig | None = None) -> Solution:
    """Solve Push-T from the initial state of ``seed``; the same seed gives the same bytes."""
    cfg = config or ExpertConfig()
    rng = np.random.default_rng([seed, _SLIP_STREAM])
    planner = Planner(cfg)
    simulator.reset(seed)
    states, actions, covered = [], [], []

    def act(target: StateArray) -> float:
        action = quantise(target)
        states.append(simulator.get_state())
        actions.append(action)
        covered.append(simulator.step(action.astype(np.float32))["coverage"])
        return covered[-1]

    point = simulator.get_state()[:2]
    fixed = np.stack([point, point])
    placed = False
    idle = 0
    while len(actions) < cfg.max_steps and not placed:
        agent, block = simulator._world.agent, simulator._world.block
        start = model.planning_state(
            simulator.get_state(), tuple(agent.velocity), (*block.velocity, block.angular_velocity)
        )
        new = planner.next_point(start, fixed, idle)
        if rng.random() < cfg.slip_rate:
            slip = min(cfg.slip, cfg.relative_slip * planner.distance(start))
            new = np.clip(new + slip * rng.normal(size=2), LOW, HIGH)
        for i in range(cfg.segment):
            if act(_spline(fixed[0], fixed[1], new, (i + 1) / cfg.segment)) >= cfg.target_coverage:
                placed = True
                break
        fixed = np.stack([fixed[1], new])
        resting = len(actions) > cfg.segment and np.ptp(actions[-cfg.segment :], axis=0).max() < 1.0
        idle = idle + 1 if resting else 0
        if idle > cfg.patience:
            break  # nothing better within the horizon: another initial state is cheaper
    if placed:
        rest = simulator.get_state()[:2]
        for _ in range(cfg.hold):
            act(rest)
        placed = min(covered[-cfg.hold :]) >= 0.95
    return Solution(seed, np.array(states), np.array(actions), np.array(covered), placed)


class PlanRecorder:
    """The planner as a recorder: attempts that pass :meth:`refuse` are demonstrations."""

    def __init__(self, config: ExpertConfig) -> None:
        self.config = config

    def __call__(self, seed: int) -> Attempt:
        solution = solve(PushT(), seed, self.config)
        reason = self.refuse(solution)
        return Attempt(
            seed=seed,
            states=solution.states,
            actions=solution.actions.astype(np.float32),  # multiples of 1/8 px: exact
            proprioception=solution.states[:, :2].astype(np.float32),
            success=not reason,
            reason=reason,
        )

    def refuse(self, solution: Solution) -> str:
        """Why an attempt is no demonstration; empty where it is: placed, held, and of a usual length."""
        if not solution.placed:
            return "not placed"
        if not MIN_LENGTH <= len(solution.actions) <= MAX_LENGTH:
            return f"not {MIN_LENGTH} to {MAX_LENGTH} steps long"
        return ""

    def close(self) -> None:
        """Nothing to free: every attempt has its own simulator."""
