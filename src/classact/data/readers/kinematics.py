"""Forward kinematics of the MJCF model stored with a recording: where its gripper was.

robosuite's recordings (robomimic, MimicGen, LIBERO) hold each demonstration's MJCF model beside its states. The pose of
the arm's grip site, the point that robosuite controls, follows from the two, without observations or an installed
simulator, whatever the recording's version.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classact.data.rotations import axis_angle_to_matrix, quaternion_to_matrix
from classact.errors import DataError

SITES = ("gripper0_grip_site", "gripper0_right_grip_site")  # the first arm's, before robosuite 1.5 and since
ARM_JOINTS = "robot0_joint"
GRIPPER_JOINTS = ("gripper0_finger_joint", "gripper0_right_finger_joint")

_SIZES = {"free": (7, 6), "ball": (4, 3), "hinge": (1, 1), "slide": (1, 1)}
_LARGEST = 1e6
_ORIENTATIONS = ("axisangle", "euler", "xyaxes", "zaxis")

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class _Frame:
    """A body's pose in its parent, (3,) and (3, 3), and the joints that move it: (name, type, axis, anchor, qpos)."""

    position: F64
    rotation: F64
    joints: tuple[tuple[str, str, F64, F64, int], ...]


class ArmModel:
    """The first arm of a robosuite model: joints, fingers, grip site.

    Args:
        xml: MJCF, as MuJoCo saves it; a DataError without a grip site, or with orientations in another form.
        where: file and demonstration, for messages.

    Attributes:
        nq, nv: sizes of qpos and qvel; a recorded state [time, qpos, qvel] has 1 + nq + nv numbers.
        arm, fingers: qpos addresses of the arm's and of the gripper's joints.
    """

    def __init__(self, xml: str, where: str) -> None:
        self.where = where
        self.nq, self.nv = 0, 0
        self._names: dict[str, int] = {}
        self._chain: tuple[_Frame, ...] = ()
        try:
            world = ET.fromstring(xml).find("worldbody")
        except ET.ParseError as problem:
            raise DataError(f"{where}: the recorded model is not valid XML ({problem}).") from None
        if world is None:
            raise DataError(
                f"{where}: the recorded model has no worldbody, expected an MJCF model (attribute 'model_file'): this "
                f"robomimic file has no observations, and they cannot be computed. Write them with robomimic's "
                f"dataset_states_to_obs.py, or use the original file."
            )
        self._walk(world, ())
        if not self._chain:
            raise DataError(
                f"{where}: the recorded model has no site {' or '.join(SITES)}. Expected a robosuite model with one "
                f"arm and its gripper."
            )
        self.arm: list[int] = [at for name, at in self._names.items() if name.startswith(ARM_JOINTS)]
        self.fingers: list[int] = [at for name, at in self._names.items() if name.startswith(GRIPPER_JOINTS)]

    def qpos(self, states: F64) -> F64:
        """(L, nq) of (L, 1 + nq + nv) recorded states."""
        if states.shape[1] != 1 + self.nq + self.nv:
            raise DataError(
                f"{self.where}: states have {states.shape[1]} dimensions, but the recorded model has 1 + {self.nq} + "
                f"{self.nv} (time, qpos, qvel). Model and states belong to different recordings."
            )
        return states[:, 1 : 1 + self.nq]

    def grip_pose(self, qpos: F64) -> tuple[F64, F64]:
        """World position (L, 3) in metres and rotation (L, 3, 3) of the grip site."""
        count = len(qpos)
        position, rotation = np.zeros((count, 3)), np.broadcast_to(np.eye(3), (count, 3, 3))
        for frame in self._chain:
            position = position + rotation @ frame.position
            rotation = rotation @ frame.rotation
            for _, kind, axis, anchor, at in frame.joints:
                value = qpos[:, at, None]
                if kind == "slide":
                    position = position + (rotation @ (value * axis)[..., None])[..., 0]
                else:
                    # A hinge turns about its anchor, which stays fixed.
                    turned = rotation @ axis_angle_to_matrix(value * axis)
                    position = position + (rotation - turned) @ anchor
                    rotation = turned
        return position, rotation

    def _walk(self, body: ET.Element, above: tuple[_Frame, ...]) -> None:
        # MuJoCo numbers bodies, and with them joints, depth first in the order of the file.
        frames = above
        if body.tag == "body":
            frames = (*above, self._frame(body))
        for site in body.findall("site"):
            if site.get("name") in SITES:
                self._chain = (*frames, _Frame(*self._pose(site), ()))
                if bad := [j for frame in frames for j in frame.joints if j[1] not in ("hinge", "slide")]:
                    raise DataError(f"{self.where}: joint {bad[0][0]!r} of the arm is of type {bad[0][1]}.")
        for child in body.findall("body"):
            self._walk(child, frames)

    def _frame(self, body: ET.Element) -> _Frame:
        joints = []
        for joint in body:
            if joint.tag not in ("joint", "freejoint"):
                continue
            kind = "free" if joint.tag == "freejoint" else joint.get("type", "hinge")
            name = joint.get("name", "")
            if kind not in _SIZES:
                raise DataError(f"{self.where}: joint {name!r} is of type {kind!r}, expected one of {list(_SIZES)}.")
            axis = self._vector(joint, "axis", "0 0 1")
            if not axis.any():
                raise DataError(f"{self.where}: joint {name!r} of the recorded model has an axis of length 0.")
            joints.append((name, kind, axis / np.linalg.norm(axis), self._vector(joint, "pos", "0 0 0"), self.nq))
            self._names[name] = self.nq
            self.nq += _SIZES[kind][0]
            self.nv += _SIZES[kind][1]
        return _Frame(*self._pose(body), tuple(joints))

    def _pose(self, node: ET.Element) -> tuple[F64, F64]:
        if other := [form for form in _ORIENTATIONS if form in node.attrib]:
            raise DataError(
                f"{self.where}: {node.tag} {node.get('name')!r} of the recorded model has an orientation as "
                f"{other[0]}, expected quat, as MuJoCo saves models."
            )
        return self._vector(node, "pos", "0 0 0"), quaternion_to_matrix(self._vector(node, "quat", "1 0 0 0"), "wxyz")

    def _vector(self, node: ET.Element, name: str, default: str) -> F64:
        content = node.get(name, default)
        try:
            vector = np.array(content.split(), np.float64)
        except ValueError:
            vector = np.zeros(0)
        if len(vector) != len(default.split()) or not (np.abs(vector) < _LARGEST).all():
            raise DataError(
                f"{self.where}: {node.tag} {node.get('name')!r} of the recorded model has {name} {content!r}, expected "
                f"{len(default.split())} numbers."
            )
        return vector
