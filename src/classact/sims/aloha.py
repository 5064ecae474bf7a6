"""Aloha-Transfer (gym-aloha's model and reward) as a :class:`~classact.sims.base.Simulator`.

The right arm picks up a cube and hands it to the left one (paper 5.1; ACT's "transfer cube"). Physics and task are
gym-aloha's, but not its environment, which renders three 480 x 640 views in every step and declares joint targets to be
within -1..1, which they are not.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from classact.data.types import FloatArray, StateArray
from classact.errors import ActionError, SimulatorError
from classact.sims.base import check_installed, sized
from classact.sims.mujoco import MujocoSimulator
from classact.sims.renderer import Quality, gl_problem, mujoco
from classact.sims.specs import ALOHA_TRANSFER, ARM_JOINTS, STAGE

RANGES = {"gym-aloha": ("0.1", "0.2"), "mujoco": ("3.1", "3.9")}

check_installed("Aloha-Transfer", "aloha", RANGES)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        from dm_control import mujoco as suite
        from dm_control.rl.control import PhysicsError
        from gym_aloha.constants import ASSETS_DIR, DT, START_ARM_POSE, normalize_puppet_gripper_position
        from gym_aloha.tasks.sim import TransferCubeTask
        from gym_aloha.utils import sample_box_pose
    except ModuleNotFoundError:
        raise
    except (ImportError, RuntimeError, AttributeError) as error:  # dm_control starts GL when it is imported
        raise SimulatorError(gl_problem(error)) from error

ARMS_QPOS = 2 * (ARM_JOINTS + 2)  # both fingers of a gripper are joints
LIFTED = 0.04  # height of the cube's middle, metres; on the table it is at 0.02
TRANSFERRED = 4.0  # reward: the left gripper touches the cube, the table does not


@cache
def load_model() -> Any:
    """gym-aloha's model, dm_control's wrapper of it; loaded once per process.

    Its wrist cameras keep the world's z axis up, and so turn by 180 degrees whenever they look straight down, in the
    middle of a grasp. Here they are fixed to the hand.
    """
    wrapped = suite.Physics.from_xml_path(str(ASSETS_DIR / "bimanual_viperx_transfer_cube.xml")).model
    model = wrapped.ptr
    for side in ("left", "right"):
        camera = model.camera(f"{side}_wrist")
        back = camera.pos - model.body(f"vx300s_{side}/camera_focus").pos  # both are in the hand's frame
        back /= np.linalg.norm(back)
        sideways = np.array([0.0, -1.0, 0.0])
        axes = np.stack([sideways, np.cross(back, sideways), back], axis=1)  # a camera looks along its -z, y is up
        mujoco.mju_mat2Quat(camera.quat, axes.ravel())
        camera.mode[0] = mujoco.mjtCamLight.mjCAMLIGHT_FIXED
    return wrapped


class AlohaTransfer(MujocoSimulator):
    """Hand a cube from the right arm to the left one.

    State (46,) float64: time, qpos (23), qvel (22). Actions and proprioception (14,): each arm's six joint positions
    (radians) and gripper opening (0 closed to 1 open), the left arm first, as in gym-aloha and ACT. Actions are
    absolute targets; the actuators clamp them to ``action_limits``, and ``excess`` says how far they were beyond.
    Initial states are gym-aloha's: the cube is dropped from 3 cm above the table at x 0..0.2 m, y 0.4..0.6 m, never
    turned.

    Metrics of a step: ``reward`` 0..4 (1 the right gripper touches the cube, 2 lifted, 3 the left one touches it, 4 and
    the table does not); ``success``, 1 where the reward is 4; ``stage``: 1 both fingers of the right hand touch the
    cube, 2 it is lifted, 3 handed over (success).
    """

    views = {name: name for name in ALOHA_TRANSFER.cameras}  # noqa: RUF012 (a mapping that nobody changes)
    quality = Quality(samples=0, shadows=0)

    def __init__(
        self, *, image_size: int | None = None, shift: str = "fixed", cameras: Sequence[str] | None = None
    ) -> None:
        spec = sized(ALOHA_TRANSFER, image_size)
        super().__init__(spec, shift, cameras)
        self.physics = suite.Physics.from_model(load_model())
        self._task = TransferCubeTask()
        self._substeps = round(DT / self.physics.timestep())
        geoms = ("red_box", *(f"vx300s_right/10_{side}_gripper_finger" for side in ("left", "right")))
        self._cube, *self._fingers = (int(self.model.geom(name).id) for name in geoms)

    @property
    def model(self) -> Any:
        return self.physics.model.ptr

    @property
    def data(self) -> Any:
        return self.physics.data.ptr

    def _start(self, seed: int) -> None:
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:ARMS_QPOS] = START_ARM_POSE
        self.data.qpos[ARMS_QPOS:] = sample_box_pose(seed)
        self.data.ctrl[:] = START_ARM_POSE
        mujoco.mj_forward(self.model, self.data)

    def _advance(self, action: StateArray) -> dict[str, float]:
        self._task.before_step(action, self.physics)
        try:
            self.physics.step(self._substeps)
        except PhysicsError as error:
            raise ActionError(
                f"{self.spec.name}: the physics diverged in step {self.steps} after the action "
                f"{np.round(action, 3).tolist()}: {error}. Reset; smaller changes of action keep it stable."
            ) from error
        reward = float(self._task.get_reward(self.physics))
        success = reward == TRANSFERRED
        return {"success": float(success), "reward": reward, STAGE: 3.0 if success else self._stage()}

    def _stage(self) -> float:
        pairs = self.data.contact.geom[: self.data.ncon]
        touched = set(pairs[(pairs == self._cube).any(axis=1)].ravel().tolist())
        if not touched.issuperset(self._fingers):
            return 0.0
        return 2.0 if self.object_pose()[0][2] > LIFTED else 1.0

    def _proprioception(self) -> FloatArray:
        return np.asarray(self._task.get_qpos(self.physics), np.float32)

    def joint_positions(self) -> StateArray:
        """(2, 6) radians, the left arm first."""
        return np.array([self.data.qpos[:ARM_JOINTS], self.data.qpos[8 : 8 + ARM_JOINTS]])

    def gripper_openings(self) -> StateArray:
        """(2,) 0 closed to 1 open, the left gripper first."""
        return np.array([normalize_puppet_gripper_position(self.data.qpos[i]) for i in (6, 14)])

    def object_pose(self, name: str = "cube") -> tuple[StateArray, StateArray]:
        """(3,) position in metres and (3, 3) rotation of a thing in the world."""
        first = dict(self.spec.objects)[name] - 1
        position, rotation = np.array(self.data.qpos[first : first + 3]), np.empty(9)
        mujoco.mju_quat2Mat(rotation, self.data.qpos[first + 3 : first + 7])
        return position, rotation.reshape(3, 3)
