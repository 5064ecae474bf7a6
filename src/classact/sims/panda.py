"""Franka Panda arms in robosuite's worlds: 10-D poses in and out, proprioception, and where things are.

Shared by the tasks of robosuite 1.5 and LIBERO's of robosuite 1.4; imports neither.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from classact.data.rotations import matrix_to_axis_angle, matrix_to_rotation_6d, rotation_6d_to_matrix
from classact.data.types import FloatArray, StateArray
from classact.errors import ActionError, DataError, SimulatorError, choose
from classact.sims.base import CLOSED, SimulatorSpec
from classact.sims.mujoco import MujocoSimulator
from classact.sims.renderer import mujoco
from classact.sims.specs import STAGE

VIEWS: Mapping[str, str] = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}

_DIVERGED = ("BADQPOS", "BADQVEL", "BADQACC")  # MuJoCo's warnings of non-finite or too large values
LIFTED = 0.02
"""Metres."""

_HIDDEN = 3  # a visual group that MuJoCo does not draw unless asked to


def silence_robosuite() -> None:
    """Silence robosuite's advice on optional packages and its own files, at import and with every configuration."""
    logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)


def arm_command(action: StateArray) -> StateArray:
    """(7,) robosuite's absolute command [x y z, axis-angle, gripper] for a (10,) action: the grip site's target in the
    world, (3,) metres, two rows of its rotation (6,), then the gripper, -1 (open) to 1 (closed).

    Six numbers that hold no rotation are a DataError.
    """
    rotation = matrix_to_axis_angle(rotation_6d_to_matrix(np.asarray(action[3:9], np.float64)))
    return np.concatenate([action[:3], rotation, action[9:10]])


class PandaSimulator(MujocoSimulator):
    """One Panda and some objects; a task builds its robosuite environment and calls :meth:`_bind`."""

    views = VIEWS
    bodies: Mapping[str, str] = {}  # thing -> body of the model, for object_pose
    env: Any
    site: str  # the grip site's name in the model
    fingers: tuple[str, str]  # names of the finger joints
    ground: float  # height of what things lie on, metres

    def __init__(self, spec: SimulatorSpec, shift: str, cameras: Sequence[str] | None, env: Any) -> None:
        super().__init__(spec, shift, cameras)
        self._bind(env)

    def _bind(self, env: Any) -> None:
        """Take an environment, and find what is needed in its model."""
        self.env = env
        model = self.model
        # What robosuite does not draw either: collision shapes (its group 0), and marks of sites.
        model.geom_group[model.geom_group == 0] = _HIDDEN
        model.site_group[:] = _HIDDEN
        self._substeps = round(1 / (self.spec.control_hz * env.model_timestep))
        self._site = self._id("SITE", self.site)
        joints = [self._id("JOINT", name) for name in (*(f"robot0_joint{i}" for i in range(1, 8)), *self.fingers)]
        self._arm = model.jnt_qposadr[joints[:7]].copy()
        self._fingers = model.jnt_qposadr[joints[7:]].copy()
        self._finger_bodies = model.jnt_bodyid[joints[7:]].copy()

    @property
    def model(self) -> Any:
        return self.env.sim.model._model

    @property
    def data(self) -> Any:
        return self.env.sim.data._data

    def _id(self, kind: str, name: str) -> int:
        found = int(mujoco.mj_name2id(self.model, getattr(mujoco.mjtObj, f"mjOBJ_{kind}"), name))
        if found < 0:
            raise SimulatorError(f"{self.spec.name}: its model has no {kind.lower()} {name!r}: another version of it?")
        return found

    def ee_pose(self) -> tuple[StateArray, StateArray]:
        """The grip site: (3,) metres and (3, 3), in world coordinates."""
        data = self.data
        return data.site_xpos[self._site].copy(), data.site_xmat[self._site].reshape(3, 3).copy()

    def object_pose(self, name: str) -> tuple[StateArray, StateArray]:
        """A thing of :attr:`bodies`: (3,) metres and (3, 3), in world coordinates."""
        if name not in self.bodies:
            raise SimulatorError(f"{self.spec.name}: " + choose("object", name, self.bodies))
        body = self._id("BODY", self.bodies[name])
        return self.data.xpos[body].copy(), self.data.xmat[body].reshape(3, 3).copy()

    def joint_positions(self) -> StateArray:
        """(7,) angles of the arm's joints, radians."""
        positions: StateArray = self.data.qpos[self._arm]
        return positions

    def _proprioception(self) -> FloatArray:
        position, rotation = self.ee_pose()
        return np.concatenate(
            [position, matrix_to_rotation_6d(rotation), self.joint_positions(), self.data.qpos[self._fingers]]
        ).astype(np.float32)

    def _advance(self, action: StateArray) -> dict[str, float]:
        try:
            command = arm_command(action)
        except DataError as problem:
            raise ActionError(f"{self.spec.name}: the action's rotation: {problem}") from None
        data = self.data
        before, data.warning.number[:] = data.time, 0
        self._drive(command)
        # Where the physics diverges MuJoCo silently resets to the model's own pose.
        lost = [name for name in _DIVERGED if data.warning.number[getattr(mujoco.mjtWarning, f"mjWARN_{name}")]]
        if lost or not data.time > before + 0.9 / self.spec.control_hz:
            raise ActionError(
                f"{self.spec.name}: the physics diverged in step {self.steps} after the action "
                f"{np.round(action, 3).tolist()} ({', '.join(lost) or f'time {before:.4g} s to {data.time:.4g} s'}). "
                f"Reset; smaller changes of action keep it stable."
            )
        # Positions are one physics step ahead of what is derived from them; this catches up without touching the
        # solver's memory, so that images, poses and contacts belong to the state.
        mujoco.mj_fwdPosition(self.model, self.data)
        success = self._succeeded()
        # The criteria but for success are the parts of the task.
        stage = len(self.spec.criteria) if success else self._stage()
        return {"success": float(success), STAGE: float(stage), **self._progress()}

    @abstractmethod
    def _drive(self, command: StateArray) -> None:
        """Execute robosuite's command (7,) for one control step."""

    def _succeeded(self) -> bool:
        """The task's own rule, of the present state."""
        return bool(self.env._check_success())

    @abstractmethod
    def _stage(self) -> int:
        """Which part of a task that is not done the present state fulfils last, from 1; 0: none."""

    def _progress(self) -> dict[str, float]:
        """Further metrics of the present state."""
        return {}

    def grasping(self, name: str | None = None) -> bool:
        """Whether both fingers touch a thing of :attr:`bodies`, or with None anything that is not the gripper."""
        model, data = self.model, self.data
        touched = set()
        roots = model.body_weldid[self._finger_bodies]
        wanted = None if name is None else int(model.body_rootid[self._id("BODY", self.bodies[name])])
        for i in range(data.ncon):
            own = model.geom_bodyid[data.contact.geom[i]]
            bodies = model.body_weldid[own]
            for k in range(2):
                other = own[1 - k]
                if bodies[k] in roots and bodies[1 - k] not in roots and wanted in (None, model.body_rootid[other]):
                    touched.add(int(bodies[k]))
        return len(touched) == 2

    def lifted(self, name: str) -> bool:
        """Whether a thing is grasped, and all of it is more than :data:`LIFTED` above the ground."""
        if not self.grasping(name):
            return False
        model, data = self.model, self.data
        own = model.body_rootid[model.geom_bodyid] == model.body_rootid[self._id("BODY", self.bodies[name])]
        shapes = np.flatnonzero(own & (model.geom_contype != 0))
        up = data.geom_xmat[shapes][:, 6:]  # how far each axis of a shape's box points upwards
        center, half = model.geom_aabb[shapes, :3], model.geom_aabb[shapes, 3:]
        lowest = data.geom_xpos[shapes, 2] + (up * center).sum(axis=1) - (np.abs(up) * half).sum(axis=1)
        return bool(lowest.min() > self.ground + LIFTED)

    def closing(self) -> float:
        """The gripper command, -1 open .. 1 closed, that explains the fingers' positions: a state does not hold it."""
        if self.grasping():
            return CLOSED
        gap = float(np.abs(self.data.qpos[self._fingers]).mean()) / 0.04  # 1 where open
        return float(np.clip(1 - 2 * gap, -1, 1))
