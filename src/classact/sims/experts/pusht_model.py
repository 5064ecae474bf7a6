"""Push-T physics for planning: the contact solver of pymunk (Chipmunk) for one circle against the tee, compiled.

gym-pusht's world is simple: the space damps every velocity to zero at each physics step, shapes have neither friction
nor restitution, and the agent is kinematic. What remains of Chipmunk's solver are normal impulses and penetration
correction (``cpArbiter.c``: ``cpArbiterPreStep``, ``cpArbiterApplyImpulse``), without the warm start. One control step
takes about two microseconds and agrees with pymunk to well below a pixel; plans are made here and executed in the real
simulator.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

SUBSTEPS, DT = 10, 0.01
STIFFNESS, DAMPING = 100.0, 20.0
RADIUS = 15.0  # agent
COG = 45.0  # the centre of mass lies this far down the block's own y axis
INV_MASS = 1.0
INV_MOMENT = 1.0 / (2 * (120.0**2 + 30.0**2) / 12 + 2 * 15.0**2)  # two bars' moments about the block's origin
WALL_LOW, WALL_HIGH = 7.0, 504.0  # inner faces of the walls
SLOP = 0.1  # penetration that Chipmunk tolerates, px
BIAS = 1.0 - (0.9**60) ** DT  # share of the penetration that it removes per physics step
ITERATIONS = 10

# Boxes of the tee about its centre of mass: x low, x high, y low, y high.
BOXES = np.array([[-60.0, 60.0, -COG, 30.0 - COG], [-15.0, 15.0, 30.0 - COG, 120.0 - COG]])
CORNERS = np.array(
    [[-60.0, -COG], [60.0, -COG], [60.0, 30 - COG], [15.0, 30 - COG], [15.0, 120 - COG], [-15.0, 120 - COG],
     [-15.0, 30 - COG], [-60.0, 30 - COG]]
)  # fmt: skip
WALL_REACH = 100.0  # no corner is farther than this from the centre of mass
MAX_CONTACTS = 2 + 2 * len(CORNERS)

STATE_SIZE = 13  # agent x, y, vx, vy; centre of mass x, y, angle; velocity x, y, w; correction velocity x, y, w


def planning_state(state: Any, agent_velocity: tuple[float, float], block_velocity: tuple[float, float, float]) -> Any:
    """(STATE_SIZE,) from a simulator state (5,), the agent's velocity and the block's (vx, vy, w)."""
    full = np.zeros(STATE_SIZE)
    full[0:2] = state[0:2]
    full[2:4] = agent_velocity
    angle = float(state[4])
    full[4] = state[2] - COG * math.sin(angle)
    full[5] = state[3] + COG * math.cos(angle)
    full[6] = angle
    full[7:10] = block_velocity
    return full


@njit(cache=True)
def _add_contact(con, k, rx, ry, nx, ny, speed, distance):  # type: ignore[no-untyped-def]
    """Contact k at (rx, ry) from the centre of mass, normal (nx, ny) into the block, pushed at ``speed``."""
    arm = rx * ny - ry * nx
    con[k, 0] = nx
    con[k, 1] = ny
    con[k, 2] = arm
    con[k, 3] = speed
    con[k, 4] = -BIAS * min(0.0, distance + SLOP) / DT
    con[k, 5] = 1.0 / (INV_MASS + arm * arm * INV_MOMENT)
    con[k, 6] = 0.0
    con[k, 7] = 0.0


@njit(cache=True)
def advance(s, target_x, target_y, con):  # type: ignore[no-untyped-def]
    """One control step of the planning state ``s`` in place; ``con`` (MAX_CONTACTS, 8) is scratch space."""
    for _ in range(SUBSTEPS):
        s[2] += (STIFFNESS * (target_x - s[0]) - DAMPING * s[2]) * DT
        s[3] += (STIFFNESS * (target_y - s[1]) - DAMPING * s[3]) * DT
        s[0] += s[2] * DT
        s[1] += s[3] * DT
        s[4] += (s[7] + s[10]) * DT
        s[5] += (s[8] + s[11]) * DT
        s[6] += (s[9] + s[12]) * DT
        for k in range(7, 13):
            s[k] = 0.0
        near_wall = (
            s[4] < WALL_LOW + WALL_REACH
            or s[4] > WALL_HIGH - WALL_REACH
            or s[5] < WALL_LOW + WALL_REACH
            or s[5] > WALL_HIGH - WALL_REACH
        )
        dx, dy = s[0] - s[4], s[1] - s[5]
        if not near_wall and dx * dx + dy * dy > (WALL_REACH + RADIUS) ** 2:
            continue
        c, sn = math.cos(s[6]), math.sin(s[6])
        # In the block's frame both boxes are axis-aligned and the solver needs no rotations.
        qx, qy = c * dx + sn * dy, -sn * dx + c * dy
        vx, vy = c * s[2] + sn * s[3], -sn * s[2] + c * s[3]
        n = 0
        for b in range(2):
            x0, x1, y0, y1 = BOXES[b, 0], BOXES[b, 1], BOXES[b, 2], BOXES[b, 3]
            px, py = min(max(qx, x0), x1), min(max(qy, y0), y1)
            ex, ey = px - qx, py - qy
            d2 = ex * ex + ey * ey
            if d2 >= RADIUS * RADIUS:
                continue
            if d2 > 1e-18:
                d = math.sqrt(d2)
                nx, ny = ex / d, ey / d
                gap = d - RADIUS
            else:  # the agent's centre is inside: leave through the nearest face
                left, right, up, down = qx - x0, x1 - qx, qy - y0, y1 - qy
                depth = min(min(left, right), min(up, down))
                nx, ny = 0.0, 0.0
                if depth == left:
                    nx, px = 1.0, x0
                elif depth == right:
                    nx, px = -1.0, x1
                elif depth == up:
                    ny, py = 1.0, y0
                else:
                    ny, py = -1.0, y1
                gap = -depth - RADIUS
            _add_contact(con, n, px, py, nx, ny, vx * nx + vy * ny, gap)
            n += 1
        if near_wall:
            for i in range(CORNERS.shape[0]):
                rx, ry = CORNERS[i, 0], CORNERS[i, 1]
                wx, wy = s[4] + c * rx - sn * ry, s[5] + sn * rx + c * ry
                if wx < WALL_LOW:
                    _add_contact(con, n, rx, ry, c, -sn, 0.0, wx - WALL_LOW)
                    n += 1
                elif wx > WALL_HIGH:
                    _add_contact(con, n, rx, ry, -c, sn, 0.0, WALL_HIGH - wx)
                    n += 1
                if wy < WALL_LOW:
                    _add_contact(con, n, rx, ry, sn, c, 0.0, wy - WALL_LOW)
                    n += 1
                elif wy > WALL_HIGH:
                    _add_contact(con, n, rx, ry, -sn, -c, 0.0, WALL_HIGH - wy)
                    n += 1
        if n == 0:
            continue
        ux = uy = uw = bx = by = bw = 0.0
        for _i in range(ITERATIONS if n > 1 else 1):
            for k in range(n):
                nx, ny, arm, mass = con[k, 0], con[k, 1], con[k, 2], con[k, 5]
                old = con[k, 7]
                new = max(0.0, old + (con[k, 4] - (bx * nx + by * ny + bw * arm)) * mass)
                con[k, 7] = new
                bx += (new - old) * nx * INV_MASS
                by += (new - old) * ny * INV_MASS
                bw += (new - old) * arm * INV_MOMENT
                old = con[k, 6]
                new = max(0.0, old - (ux * nx + uy * ny + uw * arm - con[k, 3]) * mass)
                con[k, 6] = new
                ux += (new - old) * nx * INV_MASS
                uy += (new - old) * ny * INV_MASS
                uw += (new - old) * arm * INV_MOMENT
        s[7], s[8], s[9] = c * ux - sn * uy, sn * ux + c * uy, uw
        s[10], s[11], s[12] = c * bx - sn * by, sn * bx + c * by, bw
