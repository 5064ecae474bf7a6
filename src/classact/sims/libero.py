"""LIBERO-Object on robosuite 1.4 as one :class:`~classact.sims.base.Simulator` (paper 5.1, Table 10).

Ten tasks "pick up the ... and place it in the basket". The seed chooses the task, ``seed % 10`` in LIBERO's order, so
that 200 consecutive seeds test each task 20 times, as the paper does, and the initial state:

* seeds from 100,000 (evaluation): LIBERO's own initial state number ``seed // 10 % 50`` of the task;
* seeds below (demonstrations): objects drawn from the regions of the task's file by LIBERO's samplers, the arm's joints
  with the noise of LIBERO's own initial states (0.02 rad).

Then objects fall onto the floor for half a second while the arm opens its hand, as in LIBERO's evaluation.

Intended differences from LIBERO's environment: positions derived after a step are those of the state, not one physics
step older; contacts and torques are computed once per physics step instead of three times (the same up to the solver's
tolerance); the arm takes absolute poses; our own renderer draws upright images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from classact.data.language import embed_instruction
from classact.data.readers.libero import PRODUCTS
from classact.data.rotations import matrix_to_axis_angle
from classact.data.types import FloatArray, StateArray
from classact.errors import SimulatorError
from classact.sims.base import sized
from classact.sims.libero_world import (
    NQ,
    START_STATES,
    assets_folder,
    draw_placements,
    make_environment,
    start_states,
    task_instruction,
)
from classact.sims.mujoco import MujocoSimulator
from classact.sims.panda import PandaSimulator
from classact.sims.renderer import mujoco
from classact.sims.shifts import CameraShift, Shift
from classact.sims.specs import LIBERO_OBJECTS, libero_object

FIRST_EVALUATION_SEED = 100_000
SETTLE = 10  # control steps for objects to come to rest before an episode starts
JOINT_NOISE = 0.02  # standard deviation of the arm's initial state, radians

TARGET = (0.0, 0.0, 0.2)  # of moving cameras, 0.2 m above the floor as the released one is above its table
_PLACING_STREAM = 0x6C696265


def _moved(shift: Shift) -> Shift:
    """A shift with a target over a table, moved with its scene to the floor; others unchanged."""
    if not isinstance(shift, CameraShift) or shift.target is None:
        return shift
    by = np.subtract(TARGET, shift.target)
    return replace(
        shift,
        target=TARGET,
        min_x=None if shift.min_x is None else shift.min_x + float(by[0]),
        min_z=None if shift.min_z is None else shift.min_z + float(by[2]),
    )


class LiberoObject(PandaSimulator):
    """Put what the instruction names into the basket.

    State (111,) float64: task 0..9, time, qpos (58), qvel (51); the seven objects' poses are in the order of
    :data:`LIBERO_OBJECTS`. Action (10,): see :func:`classact.sims.panda.arm_command`. Metrics: ``success``, LIBERO's
    own rule after the step (the thing's centre is inside the basket); ``stage``: 1 the thing is grasped, 2 lifted.

    Shifts: the released cameras are made for a table 0.8 m high, so they are moved with the scene: they look at
    :data:`TARGET`, and ``min_x`` and ``min_z`` move along. Constants given by hand, as in ``dynamic(target=(0, 0,
    0.1))``, are taken as they are.
    """

    target = TARGET
    ground = 0.0
    adapt = staticmethod(_moved)
    site = "gripper0_grip_site"
    fingers = ("gripper0_finger_joint1", "gripper0_finger_joint2")

    def __init__(
        self, *, image_size: int | None = None, shift: str = "fixed", cameras: Sequence[str] | None = None
    ) -> None:
        spec = sized(libero_object(), image_size)
        assets_folder()  # fail now, not in the first episode
        # Not PandaSimulator's: the first episode decides which environment is needed.
        MujocoSimulator.__init__(self, spec, shift, cameras)
        self._envs: dict[int, Any] = {}
        self._task: int | None = None
        self._words: dict[int, FloatArray] = {}
        self.language_source = spec.language_source

    @property
    def task(self) -> int:
        """The present task, 0..9."""
        if self._task is None:
            raise SimulatorError("libero-object: no episode was started: call reset or set_state first.")
        return self._task

    @property
    def model(self) -> Any:
        return self._envs[self.task].sim.model._model

    @property
    def data(self) -> Any:
        return self._envs[self.task].sim.data._data

    @property
    def instruction(self) -> str:
        return task_instruction(self.task)

    def model_key(self) -> str:
        """A task's model: tasks have different objects."""
        return f"{self.spec.name}/{PRODUCTS[self.task]}"

    def _use(self, task: int) -> None:
        """Switch to a task; its environment is made at first use and kept."""
        if task not in self._envs:
            self._envs[task] = make_environment(task)
        if task != self._task:
            self._task = task
            env = self._envs[task]
            names = [item.root_body for item in env.objects]
            free = [item.joints[-1] for item in env.objects]
            self._bind(env)
            places = [int(self.model.jnt_qposadr[self._id("JOINT", joint)]) for joint in free]
            if places != [9 + 7 * i for i in range(len(LIBERO_OBJECTS))] or PRODUCTS[task] not in names[0]:
                raise SimulatorError(f"libero-object: objects {names} of {PRODUCTS[task]} at {places}: another LIBERO?")
            self.bodies: Mapping[str, str] = dict(zip(LIBERO_OBJECTS, names, strict=True))

    def _start(self, seed: int) -> None:
        self._use(seed % len(PRODUCTS))
        data = self.data
        mujoco.mj_resetData(self.model, data)
        if seed >= FIRST_EVALUATION_SEED:
            state = start_states(self.task)[seed // len(PRODUCTS) % START_STATES]
            data.qpos[:], data.qvel[:] = state[1 : 1 + NQ], state[1 + NQ :]
        else:
            self._place(seed)
        self._settle(0.0)
        position, rotation = self.ee_pose()
        opening = np.concatenate([position, matrix_to_axis_angle(rotation), [-1.0]])
        for _ in range(SETTLE):
            self._drive(opening)
        data.time = 0.0
        self._restored()

    def _place(self, seed: int) -> None:
        env, data = self.env, self.data
        for joint, pose in draw_placements(env, seed):
            env.sim.data.set_joint_qpos(joint, pose)
        noise = np.random.default_rng([seed, _PLACING_STREAM]).normal(0, JOINT_NOISE, 7)
        data.qpos[self._arm] = env.robots[0].init_qpos + noise
        data.qpos[self._fingers] = env.robots[0].gripper.init_qpos

    def _restored(self) -> None:
        mujoco.mj_forward(self.model, self.data)
        self._settle(self.closing())

    def _settle(self, closing: float) -> None:
        """Set what controllers remember as a function of the state."""
        data, robot = self.data, self.env.robots[0]
        data.ctrl[:] = 0
        data.qacc_warmstart[:] = 0
        mujoco.mj_forward(self.model, data)
        robot.gripper.current_action = np.array([-closing, closing])
        # The null space posture of the arm is the nominal one; the goal is where the arm is.
        robot.controller.update_initial_joints(robot.init_qpos)
        robot.controller.new_update = True

    def _stage(self) -> int:
        return 2 if self.lifted("target") else int(self.grasping("target"))

    def _drive(self, command: StateArray) -> None:
        model, data, robot = self.model, self.data, self.env.robots[0]
        for i in range(self._substeps):
            mujoco.mj_step1(model, data)
            robot.control(command, policy_step=i == 0)
            mujoco.mj_step2(model, data)

    def get_state(self) -> StateArray:
        return np.concatenate([[self.task], super().get_state()])

    def set_state(self, state: StateArray, *, step: int = 0) -> None:
        """Switch to the state's task and put it there; actuators and controllers forget the past."""
        state = self.spec.check_state(state)
        if state[0] not in range(len(PRODUCTS)):
            raise SimulatorError(
                f"libero-object: expected a task 0..{len(PRODUCTS) - 1} as a state's first number, got {state[0]}. "
                f"States that LIBERO recorded lack it: put it in front."
            )
        self._use(int(state[0]))
        data = self.data
        data.time, data.qpos[:], data.qvel[:] = state[1], state[2 : 2 + NQ], state[2 + NQ :]
        self.steps = step
        self._restored()

    def _language(self) -> FloatArray:
        if self.task not in self._words:
            self._words[self.task] = embed_instruction(self.instruction, self.language_source)[0]
        return self._words[self.task]

    def close(self) -> None:
        super().close()
        self._envs.clear()
        self._task = None
