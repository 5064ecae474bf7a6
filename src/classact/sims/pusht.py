"""Push-T (gym-pusht's physics) as a :class:`~classact.sims.base.Simulator`, with fixed or random colours.

Intended differences from ``gym_pusht.envs.PushTEnv``:

* initial states come from ``numpy.random.RandomState(seed)`` as in Diffusion Policy (gym-pusht >= 0.1.6 draws others);
* ``set_state`` sets the angle before the position, so that the block lands where the state says;
* no collision handler (pymunk 7 removed it; gym-pusht only counts contacts with it) and no rendering while stepping;
* an image depends on the state and the colours alone: no action cross, no contact marks.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from classact.data.types import FloatArray, ImageArray, Observation, StateArray
from classact.errors import ConfigError
from classact.sims.base import check_views, sized
from classact.sims.shifts import FIXED_COLORS, Color, PushTColors, appearance_rng, check_shift
from classact.sims.specs import PUSHT

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pygame and pymunk import modules that warn about their own deprecations
    import cv2
    import pygame
    import pymunk
    import shapely
    from gym_pusht.envs.pusht import PushTEnv

CANVAS = 512  # pixels per side that are drawn before resizing; also the workspace in simulator units
SUBSTEPS, DT = 10, 0.01  # physics steps per control step, seconds each
STIFFNESS, DAMPING = 100.0, 20.0  # PD controller of the agent: k_p, k_v
GOAL_POSE = (256.0, 256.0, math.pi / 4)  # x, y, angle
AGENT_RADIUS = 15
WALL_COLOR: Color = (211, 211, 211)  # LightGray
WALLS = (((5, 506), (5, 5)), ((5, 5), (506, 5)), ((506, 5), (506, 506)), ((5, 506), (506, 506)))

# The tee: two rectangles in the block's own frame, x right, y down, in pixels.
TEE_BAR = np.array([(-60, 30), (60, 30), (60, 0), (-60, 0)], dtype=np.float64)
TEE_STEM = np.array([(-15, 30), (-15, 120), (15, 120), (15, 30)], dtype=np.float64)
TEE = np.stack([TEE_BAR, TEE_STEM])  # (2, 4, 2)
TEE_AREA = 120.0 * 30.0 + 30.0 * 90.0
TEE_REACH = 124.0  # no point of the tee is farther from its origin


def start_state(seed: int) -> StateArray:
    """(5,) agent x, y, block x, y, angle that Diffusion Policy draws for ``seed`` (its ``pusht_env.py``, ``reset``)."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"pusht: expected a seed in 0..{2**32 - 1}, got {seed}.")
    rs = np.random.RandomState(seed)  # the legacy generator defines these initial states
    agent, block = [rs.randint(50, 450) for _ in range(2)], [rs.randint(100, 400) for _ in range(2)]
    return np.array([*agent, *block, rs.randn() * 2 * np.pi - np.pi], dtype=np.float64)


def place(points: StateArray, x: float, y: float, angle: float) -> StateArray:
    """(..., 2) points of the block's frame in world coordinates, for a block at (x, y) turned by ``angle``."""
    c, s = math.cos(angle), math.sin(angle)
    placed: StateArray = points @ np.array([[c, s], [-s, c]]) + np.array([x, y])
    return placed


_GOAL_SHAPES = shapely.polygons(place(TEE, *GOAL_POSE))  # (2,)
shapely.prepare(_GOAL_SHAPES)


def coverage(x: float, y: float, angle: float) -> float:
    """Share of the goal's area that a block at (x, y, angle) covers: gym-pusht's measure.

    Both tees are two rectangles that share only an edge, so the pairwise intersections add up.
    """
    if math.hypot(x - GOAL_POSE[0], y - GOAL_POSE[1]) > 2 * TEE_REACH:
        return 0.0
    block = shapely.polygons(place(TEE, x, y, angle))  # (2,)
    return float(shapely.area(shapely.intersection(_GOAL_SHAPES[:, None], block[None])).sum()) / TEE_AREA


class _Physics(PushTEnv):  # type: ignore[misc]
    """gym-pusht's world without its collision handler, initial states and observations."""

    def _setup(self) -> None:
        self.space = pymunk.Space()
        self.space.gravity = 0, 0
        self.space.damping = 0.0
        for a, b in WALLS:
            self.space.add(self.add_segment(self.space, a, b, 2))
        self.agent = self.add_circle(self.space, (256, 400), AGENT_RADIUS)
        self.block, self._block_shapes = self.add_tee(self.space, (256, 300), 0)


def _lighter(color: Color) -> Color:
    """gym-pusht fills shapes with a lighter shade of their colour and outlines them in the colour itself."""
    return tuple(round(min(1.2 * channel, 255.0)) for channel in color)


def draw(state: StateArray, colors: PushTColors, size: int) -> ImageArray:
    """(size, size, 3) RGB image of ``state`` (5,), the same pixels as gym-pusht's observation.

    The pygame calls of pymunk's debug drawing, made directly: several times faster, and without marks on contact
    points.
    """
    screen: Any = pygame.Surface((CANVAS, CANVAS), depth=32)
    screen.fill(colors.background)
    for points in place(TEE, *GOAL_POSE):
        pygame.draw.polygon(screen, colors.goal, _pixels(points))
    agent = _pixels(state[None, :2])[0]
    pygame.draw.circle(screen, colors.agent, agent, AGENT_RADIUS)
    pygame.draw.circle(screen, _lighter(colors.agent), agent, AGENT_RADIUS - 4)
    for points in place(TEE, float(state[2]), float(state[3]), float(state[4])):
        pygame.draw.polygon(screen, _lighter(colors.tee), _pixels(points))
        corners = [(float(x), float(y)) for x, y in points]
        for i in range(4):
            _thick_line(screen, corners[i - 1], corners[i], colors.tee)
    for a, b in WALLS:
        _thick_line(screen, a, b, WALL_COLOR)
    canvas = np.frombuffer(screen.get_buffer(), dtype=np.uint8).reshape(CANVAS, CANVAS, 4)
    image = canvas if size == CANVAS else cv2.resize(canvas, (size, size))
    return np.ascontiguousarray(image[:, :, _CHANNELS])


def _pixels(points: StateArray) -> list[tuple[int, int]]:
    return [(round(x), round(y)) for x, y in points.tolist()]


def _thick_line(screen: Any, a: tuple[float, float], b: tuple[float, float], color: Color) -> None:
    """``draw_fat_segment`` of gym-pusht's ``pymunk_override.py`` for radius 2."""
    (ax, ay), (bx, by) = (round(a[0]), round(a[1])), (round(b[0]), round(b[1]))
    pygame.draw.lines(screen, color, False, [(ax, ay), (bx, by)], 4)
    ox, oy = float(abs(by - ay)), float(abs(bx - ax))
    if ox == 0 and oy == 0:
        return
    scale = 2 / math.sqrt(ox * ox + oy * oy)
    ox, oy = round(ox * scale), round(oy * scale)
    pygame.draw.polygon(screen, color, [(ax - ox, ay - oy), (bx - ox, by - oy), (bx + ox, by + oy), (ax + ox, ay + oy)])
    pygame.draw.circle(screen, color, (ax, ay), 2)
    pygame.draw.circle(screen, color, (bx, by), 2)


def _channel_order() -> list[int]:
    """Channel positions of red, green and blue in a 32-bit surface, which depend on the platform."""
    probe: Any = pygame.Surface((1, 1), depth=32)
    probe.fill((1, 2, 3))
    stored = list(np.frombuffer(probe.get_buffer(), dtype=np.uint8))
    return [stored.index(channel) for channel in (1, 2, 3)]


_CHANNELS = _channel_order()


class PushT:
    """Push the tee onto its outline with a round agent.

    State (5,) float64: agent x, y, block x, y in pixels of the 512 workspace, block angle in [0, 2 pi), without
    velocities: ``set_state`` puts everything at rest. Action (2,): the agent's target position in pixels, tracked by a
    PD controller; positions outside the workspace are passed on, unless farther outside than it is wide.

    Metrics of a step: ``coverage`` in 0..1 and ``iou`` = coverage / (2 - coverage), as both tees have equal areas.
    """

    def __init__(
        self, *, image_size: int | None = None, shift: str = "fixed-color", cameras: Sequence[str] | None = None
    ) -> None:
        self.spec = sized(PUSHT, image_size)
        check_views(self.spec, cameras)
        self.shift = check_shift("pusht", shift, PUSHT.shifts)
        self._world = _Physics(obs_type="state")
        self._world._setup()
        self.colors = FIXED_COLORS

    def reset(self, seed: int) -> None:
        """Diffusion Policy's initial state for ``seed``, set in its legacy order (position, then angle, then one
        substep).
        """
        state = start_state(seed)
        self._world._setup()
        self._world._set_state(state.tolist())
        self.set_appearance(seed)

    def set_appearance(self, seed: int) -> None:
        self.colors = self.shift.draw(appearance_rng(seed)).colors or FIXED_COLORS

    def get_state(self) -> StateArray:
        agent, block = self._world.agent.position, self._world.block.position
        return np.array([agent.x, agent.y, block.x, block.y, self._world.block.angle % (2 * math.pi)])

    def set_state(self, state: StateArray, *, step: int = 0) -> None:  # noqa: ARG002 (nothing here moves with time)
        """Put agent and block at ``state`` (5,), at rest, in a fresh world: what follows depends on ``state`` alone.

        ``get_state`` returns ``state`` up to rounding (pymunk stores the centre of mass: 1e-12 px).
        """
        state = self.spec.check_state(state)
        agent_x, agent_y, x, y, angle = state.tolist()
        world = self._world
        world._setup()  # cached contacts of an earlier state would leak into the next step
        world.agent.position = agent_x, agent_y
        world.block.angle = angle  # before the position: it turns the block about its centre of mass
        world.block.position = x, y
        world.space.reindex_shapes_for_body(world.agent)
        world.space.reindex_shapes_for_body(world.block)

    def step(self, action: FloatArray) -> Mapping[str, float]:
        """One control step of 0.1 s towards ``action`` (2,) px; the same arithmetic as ``PushTEnv.step``."""
        target_x, target_y = self.spec.check_action(action).tolist()
        agent, space = self._world.agent, self._world.space
        for _ in range(SUBSTEPS):
            (x, y), (vx, vy) = agent.position, agent.velocity
            ax = STIFFNESS * (target_x - x) + DAMPING * (0 - vx)
            ay = STIFFNESS * (target_y - y) + DAMPING * (0 - vy)
            agent.velocity = vx + ax * DT, vy + ay * DT
            space.step(DT)
        block = self._world.block
        covered = coverage(block.position.x, block.position.y, block.angle)
        return {"coverage": covered, "iou": covered / (2 - covered)}

    def observe(self, *, render: bool = True) -> Observation:
        state = self.get_state()
        images = {"top": draw(state, self.colors, self.spec.image_size)} if render else {}
        return Observation(images=images, proprioception=state[:2].astype(np.float32), state=state)

    def render(self, size: int = CANVAS) -> ImageArray:
        """(size, size, 3) image for people, of any size."""
        return draw(self.get_state(), self.colors, size)

    def close(self) -> None:
        pass
