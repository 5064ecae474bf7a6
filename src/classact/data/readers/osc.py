"""robosuite's operational space controller: its 7-D commands as absolute 10-D poses.

A command is [position 3, axis-angle 3, gripper 1]. The controller drives the grip site, in world axes, to a goal:

- *absolute* commands (``control_delta: false``): the position and the rotation themselves, unscaled;
- *delta* commands a, clipped to the controller's input range and scaled to its output range (usually 1 -> 0.05 m and
  0.5 rad): position + 0.05 a[:3] and R(0.5 a[3:6]) R_site, with the site's current position and R_site.

Since robosuite 1.5 differences may be in the axes of the robot's base (``input_ref_frame``), taken for the world's:
robosuite's single arms stand unrotated. Before 1.5 a delta whose three rotations are exactly 0 keeps the rotation of
the last goal, not of the site; so it is here.

``robot0_eef_quat`` is not the site's rotation but that of the hand's body, a quarter turn away (:data:`HAND_TO_SITE`),
although ``robot0_eef_pos`` is the site's (robosuite issue 298).

The paper uses absolute poses throughout (section D): position 3, 6-D rotation 6, gripper 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.data.rotations import axis_angle_to_matrix, geodesic_distance, matrix_to_rotation_6d
from classact.errors import DataError

COMMAND_DIM = 7
HAND_TO_SITE = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
"""R_hand^T R_site of the Panda's gripper: -90 degrees about the hand's z axis."""

PROPRIOCEPTION = (("eef_pos", 3), ("eef_rot6d", 6), ("joint_pos", 7), ("gripper_qpos", 2))
"""Keys and sizes of what is read of a robosuite arm; Table 10's end-effector pose, joint position, gripper state."""

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Controller:
    """How commands become goals.

    Attributes:
        absolute: whether commands are goals, or differences from the site's pose.
        low, high: (6,) range that differences are clipped to.
        output_low, output_high: (6,) what the ends of that range mean, in metres and radians.
        holds: whether a difference without rotation keeps the goal's rotation (robosuite before 1.5).
    """

    absolute: bool
    low: F64
    high: F64
    output_low: F64
    output_high: F64
    holds: bool

    @staticmethod
    def from_json(value: Any, where: str) -> Controller:
        """From a recording's ``controller_configs``: a part's settings, or since robosuite 1.5 a composite of parts.

        It must be an operational space controller of one arm's pose, in a known frame.
        """
        part, composite = _arm(value)
        kind = part.get("type")
        if kind != "OSC_POSE":
            raise DataError(
                f"{where}: controller_configs name the controller {kind!r}, expected 'OSC_POSE': only commands of end-"
                f"effector poses become the poses that the paper uses. Record the actions with that controller."
            )
        if part.get("impedance_mode", "fixed") != "fixed":
            raise DataError(
                f"{where}: the controller's impedance_mode is {part['impedance_mode']!r}, expected 'fixed': actions "
                f"would hold gains as well."
            )
        if composite:
            absolute = part.get("input_type", "delta") == "absolute"
            if absolute and part.get("input_ref_frame", "base") != "world":
                raise DataError(
                    f"{where}: commands are absolute in the frame {part.get('input_ref_frame', 'base')!r} of the "
                    f"robot's base, expected 'world' (input_ref_frame). Convert the actions first."
                )
        else:
            absolute = not part.get("control_delta", True)
        try:
            limits = [
                np.broadcast_to(np.asarray(part.get(name, default), np.float64), (6,))
                for name, default in (
                    ("input_min", -1),
                    ("input_max", 1),
                    ("output_min", [-0.05] * 3 + [-0.5] * 3),
                    ("output_max", [0.05] * 3 + [0.5] * 3),
                )
            ]
        except (TypeError, ValueError) as problem:
            raise DataError(f"{where}: the controller's input and output limits: {problem}; expected 1 or 6.") from None
        if (limits[0] >= limits[1]).any():
            raise DataError(f"{where}: the controller's input_min {limits[0]} must lie below input_max {limits[1]}.")
        return Controller(absolute, limits[0], limits[1], limits[2], limits[3], holds=not composite)

    def poses(self, commands: F64, position: F64, rotation: F64) -> F64:
        """(L, 10) absolute poses [position, 6-D rotation in rows, gripper] of (L, 7) recorded commands.

        ``position`` (L, 3) and ``rotation`` (L, 3, 3) are those of the grip site at each command.
        """
        if self.absolute:
            goal, turned = commands[:, :3], axis_angle_to_matrix(commands[:, 3:6])
        else:
            scale = (self.output_high - self.output_low) / (self.high - self.low)
            clipped = np.clip(commands[:, :6], self.low, self.high)
            delta = (clipped - (self.high + self.low) / 2) * scale + (self.output_high + self.output_low) / 2
            goal, turned = position + delta[:, :3], axis_angle_to_matrix(delta[:, 3:]) @ rotation
            if self.holds:
                # The row whose goal holds at each step; before the first rotation it is the site's initial rotation.
                moves = (delta[:, 3:] != 0).any(axis=1)
                turned[0] = turned[0] if moves[0] else rotation[0]
                turned = turned[np.maximum.accumulate(np.where(moves, np.arange(len(moves)), 0))]
        return np.concatenate([goal, matrix_to_rotation_6d(turned), commands[:, 6:]], axis=1)


def _arm(value: Any) -> tuple[Mapping[str, Any], bool]:
    """Settings of the (right) arm's controller, and whether they were part of a composite."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, Mapping):
        return {}, False
    parts = value.get("body_parts", value.get("body_parts_controller_configs"))
    if not isinstance(parts, Mapping):
        return value, False
    parts = parts.get("arms", parts)
    part = parts.get("right", {}) if isinstance(parts, Mapping) else {}
    return (part if isinstance(part, Mapping) else {}), True


def site_rotation(hand: F64) -> F64:
    """(..., 3, 3) rotations of the grip site, from those of the hand's body."""
    return hand @ HAND_TO_SITE


def at_gripper(commands: F64, position: F64, rotation: F64) -> bool:
    """Whether (L, 7) commands, read as poses, all lie within 0.3 m and 1 rad of the grip site.

    Differences do not: they are at most 1, of either sign, where the site is about 1 m above the floor; and rotations
    of at most 1.8 rad, where a gripper that points down is turned by about pi.
    """
    near = np.linalg.norm(commands[:, :3] - position, axis=1).max() < 0.3
    return bool(near and geodesic_distance(axis_angle_to_matrix(commands[:, 3:6]), rotation).max() < 1.0)
