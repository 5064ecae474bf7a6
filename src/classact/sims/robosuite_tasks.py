"""Square and Three-Stack on robosuite 1.5 as :class:`~classact.sims.base.Simulator` (paper Table 10).

Square is robosuite's own NutAssemblySquare. Three-Stack is its Stack with a third cube, and the ranges D0 and D1 and
the success rule of MimicGen (Mandlekar et al. 2023).

Intended differences from robosuite's environment:

* the arm's null space posture is the nominal initial one, not the episode's noisy one, so that what follows depends on
  the state and the actions alone;
* a state does not hold the gripper's command; ``set_state`` takes it from the fingers (a held thing stays held);
* the observables of robosuite, which nothing here reads, are not computed.
"""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from classact.data.types import StateArray
from classact.sims.base import SimulatorSpec, check_installed, sized
from classact.sims.panda import PandaSimulator, silence_robosuite
from classact.sims.renderer import mujoco
from classact.sims.specs import CONTROL_HZ, PEG_TOP, SQUARE, THREE_STACK_D0, THREE_STACK_D1

RANGES = {"robosuite": ("1.5", "1.6"), "mujoco": ("3.1", "3.10")}

ON_PEG = 0.03  # from the nut's middle to the peg's axis along x and y, as robosuite's rule has it

check_installed("Square or Three-Stack", "robosuite", RANGES)
silence_robosuite()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from robosuite.controllers import load_composite_controller_config
    from robosuite.environments.manipulation.nut_assembly import NutAssemblySquare
    from robosuite.environments.manipulation.stack import Stack
    from robosuite.models.objects import BoxObject
    from robosuite.utils.binding_utils import MjSim
    from robosuite.utils.mjcf_utils import CustomMaterial


@cache
def _compiled(xml: str) -> Any:
    """The process's MjModel of a scene, shared by a task's environments (it holds 100 MB of textures and meshes)."""
    return mujoco.MjModel.from_xml_string(xml)


class _Shared:
    def _initialize_sim(self, xml_string: str | None = None) -> None:
        env: Any = self
        xml = xml_string or env.model.get_xml()
        for process in env._xml_processors:
            xml = process(xml)
        env.sim = MjSim(_compiled(xml))
        env.sim.forward()
        env.initialize_time(env.control_freq)


class _Square(_Shared, NutAssemblySquare):  # type: ignore[misc]
    pass


class _ThreeStack(_Shared, Stack):  # type: ignore[misc]
    def __init__(self, *, reach: float, **settings: Any) -> None:
        self.reach = reach
        super().__init__(**settings)

    def _load_model(self) -> None:
        super()._load_model()
        material = CustomMaterial(
            texture="WoodBlue",
            tex_name="bluewood",
            mat_name="bluewood_mat",
            tex_attrib={"type": "cube"},
            mat_attrib={"texrepeat": "1 1", "specular": "0.4", "shininess": "0.1"},
        )
        half = [0.02, 0.02, 0.02]
        self.cubeC = BoxObject(name="cubeC", size_min=half, size_max=half, rgba=[0, 0, 1, 1], material=material)
        self.model.merge_objects([self.cubeC])
        self.model.mujoco_objects.append(self.cubeC)
        sampler = self.placement_initializer
        sampler.add_objects(self.cubeC)
        sampler.x_range = sampler.y_range = (-self.reach, self.reach)

    def stacked(self) -> int:
        """How many cubes rest where they belong: A on B, then C on A."""
        top = self.table_offset[2]
        # Resting heights above the table are 0.07 (A on B) and 0.11 (C on A).
        if not self._rests(self.cubeA, self.cubeB, top + 0.04):
            return 0
        return 2 if self._rests(self.cubeC, self.cubeA, top + 0.08) else 1

    def _check_success(self) -> bool:
        return self.stacked() == 2

    def _rests(self, upper: Any, lower: Any, above: float) -> bool:
        """Contact, height, not held."""
        height = self.sim.data.body_xpos[self.sim.model.body_name2id(upper.root_body)][2]
        held = self._check_grasp(gripper=self.robots[0].gripper, object_geoms=upper)
        return bool(height > above and self.check_contact(upper, lower) and not held)


class RobosuiteSimulator(PandaSimulator):
    """A task of robosuite 1.5 with one Panda.

    State: [time, qpos, qvel] of the whole world, as robomimic records it. Action (10,): see
    :func:`classact.sims.panda.arm_command`. Metrics: ``success``, the task's own rule after the step, and ``stage``.
    """

    facts: SimulatorSpec
    kind: Any  # class of robosuite's environment
    settings: Mapping[str, Any] = {}  # of its constructor
    target = (0.0, 0.0, 0.9)
    site = "gripper0_right_grip_site"
    fingers = ("gripper0_right_finger_joint1", "gripper0_right_finger_joint2")

    def __init__(
        self, *, image_size: int | None = None, shift: str = "fixed", cameras: Sequence[str] | None = None
    ) -> None:
        env = _environment(self.kind, **self.settings)
        super().__init__(sized(self.facts, image_size), shift, cameras, env)
        self.ground = float(env.table_offset[2])

    def _start(self, seed: int) -> None:
        # One generator, shared, draws objects and joints: its state is set, it is not replaced.
        self.env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self.env.reset()
        self._settle(0.0)

    def _restored(self) -> None:
        self._settle(self.closing())

    def _settle(self, closing: float) -> None:
        """Set what controllers remember as a function of the state."""
        robot = self.env.robots[0]
        robot.gripper["right"].current_action = np.array([-closing, closing])
        # Also puts the goal where the arm is.
        arm = robot.part_controllers["right"]
        arm.update_initial_joints(robot.init_qpos)
        for controller in robot.part_controllers.values():
            controller.new_update = True
        data = self.data
        data.ctrl[:] = 0
        data.qacc_warmstart[:] = 0
        mujoco.mj_forward(self.model, data)

    def _drive(self, command: StateArray) -> None:
        sim, robot = self.env.sim, self.env.robots[0]
        for i in range(self._substeps):
            sim.step1()
            robot.control(command, policy_step=i == 0)
            sim.step2()


@cache
def _controllers() -> dict[str, Any]:
    config = load_composite_controller_config(controller="BASIC", robot="Panda")
    arm = config["body_parts"]["right"] | {"input_type": "absolute", "input_ref_frame": "world"}
    return {**config, "body_parts": {"right": arm}}


def _environment(kind: Any, **settings: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = kind(
            robots="Panda",
            controller_configs=copy.deepcopy(_controllers()),
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            use_object_obs=False,
            hard_reset=False,
            ignore_done=True,
            control_freq=CONTROL_HZ,
            renderer="mujoco",  # the other one opens a viewer's library
            seed=0,
            **settings,
        )
    env._observables = OrderedDict()
    env.robots[0].robot_model.mujoco_model = None  # a compiled arm of 50 MB for controllers that are not used here
    return env


class Square(RobosuiteSimulator):
    """Put the square nut on the square peg: robosuite's NutAssemblySquare, which keeps a round nut far away.

    Stages: 1 the nut is grasped, 2 lifted, 3 hung: over the peg, whose top is in its hole.
    """

    facts = SQUARE
    kind = _Square
    bodies: Mapping[str, str] = {"nut": "SquareNut_main", "peg": "peg1"}

    def _stage(self) -> int:
        off = self.object_pose("nut")[0] - self.object_pose("peg")[0]
        if np.abs(off[:2]).max() < ON_PEG and off[2] < PEG_TOP:
            return 3
        return 2 if self.lifted("nut") else int(self.grasping("nut"))


class ThreeStackD0(RobosuiteSimulator):
    """Put the red cube A on the green cube B, and the blue cube C on A. Metric ``stacked``: how many rest there.

    Stages: 1 A is grasped, 2 stacked, 3 C is grasped then.

    Cubes start within ``reach`` metres of the table's centre along x and y.
    """

    facts = THREE_STACK_D0
    kind = _ThreeStack
    settings = {"reach": 0.10}  # noqa: RUF012 (a mapping that nobody changes)
    bodies: Mapping[str, str] = {"cubeA": "cubeA_main", "cubeB": "cubeB_main", "cubeC": "cubeC_main"}

    def _stage(self) -> int:
        if self.env.stacked():
            return 3 if self.grasping("cubeC") else 2
        return int(self.grasping("cubeA"))

    def _progress(self) -> dict[str, float]:
        return {"stacked": float(self.env.stacked())}


class ThreeStackD1(ThreeStackD0):
    """The same with wider initial positions."""

    facts = THREE_STACK_D1
    settings = {"reach": 0.20}  # noqa: RUF012 (a mapping that nobody changes)
