"""Facts about the tasks that come with classact (paper Table 10), without starting any of them."""

from __future__ import annotations

from dataclasses import replace

from classact.data.actions import ActionSpace, Part
from classact.data.readers.osc import PROPRIOCEPTION
from classact.data.schema import Schema
from classact.data.types import Criterion
from classact.sims.base import SimulatorSpec

SUCCESS = (Criterion("success", "success", 0.5),)


def with_parts(*parts: str) -> tuple[Criterion, ...]:
    """Success, and how far an episode came: parts of the task in their order, by the metric ``stage``.

    ``stage`` says which part the present state fulfils last, counted from 1: 0 none, one more than there are parts
    where the task is done. So whoever has reached a part has reached all before it.
    """
    return SUCCESS + tuple(Criterion(name, STAGE, i, inclusive=True) for i, name in enumerate(parts, 1))


STAGE = "stage"

PUSHT = SimulatorSpec(
    name="pusht",
    cameras=("top",),
    image_size=96,
    image_sizes=(96, 256),
    action_dim=2,
    proprioception_dim=2,
    state_dim=5,
    max_steps=500,
    control_hz=10.0,
    criteria=(
        Criterion("iou>0.90", "iou", 0.9),  # the paper's
        Criterion("coverage>0.90", "coverage", 0.9),
        # Diffusion Policy's and LeRobot's
        Criterion("cov>=0.95@300", "coverage", 0.95, steps=300, inclusive=True),
    ),
    shifts=("fixed-color", "rand-color"),
    world=(0.0, 512.0),
    state_angles=(4,),
    schema=Schema(("top",), (("agent_pos", 2),), actions=ActionSpace.points()),
    action_limits=((0.0, 0.0), (512.0, 512.0)),
)

# Franka Panda arms in robosuite's worlds

PANDA_CAMERAS = ("agentview", "wrist")
CONTROL_HZ = 20


def _panda(
    name: str, max_steps: int, state_dim: int, objects: tuple[tuple[str, int], ...], parts: tuple[str, ...]
) -> SimulatorSpec:
    return SimulatorSpec(
        name=name,
        cameras=PANDA_CAMERAS,
        image_size=256,
        action_dim=10,
        proprioception_dim=18,
        state_dim=state_dim,
        max_steps=max_steps,
        control_hz=CONTROL_HZ,
        criteria=with_parts(*parts),
        shifts=("fixed", "random-static", "dynamic", "random-static-paper", "dynamic-paper"),
        objects=objects,
        schema=Schema(PANDA_CAMERAS, PROPRIOCEPTION, actions=ActionSpace.pose()),
        # A generous box about the table (metres), then entries of a rotation matrix and the gripper, with room for
        # noise.
        action_limits=((-0.6, -0.6, 0.7) + (-1.05,) * 7, (0.5, 0.6, 1.6) + (1.05,) * 7),
        packages=("robosuite", "mujoco"),
        group=25,
    )


# A state is time, 7 + 2 joints, 7 numbers per free object; then 9 + 6 per object velocities.
SQUARE = _panda("square", 400, 1 + 9 + 14 + 9 + 12, (("nut", 10),), ("grasped", "lifted", "hung"))
THREE_STACK_D0 = _panda(
    "three-stack-d0",
    600,
    1 + 9 + 21 + 9 + 18,
    (("cubeA", 10), ("cubeB", 17), ("cubeC", 24)),
    ("grasped", "stacked>=1", "second grasped"),
)
THREE_STACK_D1 = replace(THREE_STACK_D0, name="three-stack-d1")

PEG_TOP = 0.10
"""Of Square's peg, above its body's middle, metres."""

LIBERO_OBJECTS = ("target", "basket", *(f"other_{i}" for i in range(5)))
"""What the seven objects are in every task, in the order of the state. Which products the others are differs."""


def libero_object() -> SimulatorSpec:
    """LIBERO-Object, with what embeds its instructions on this machine."""
    from classact.data.language import SIZE, source_at_hand

    panda = Schema(PANDA_CAMERAS, PROPRIOCEPTION, SIZE, ActionSpace.pose())
    return replace(
        # Of the state: task, time, positions of 7 + 2 joints and seven objects, their velocities.
        _panda(
            "libero-object",
            400,
            2 + 58 + 51,
            tuple((name, 2 + 9 + 7 * i) for i, name in enumerate(LIBERO_OBJECTS)),
            ("grasped", "lifted"),
        ),
        schema=panda,
        # As for the others, over the floor.
        action_limits=((-0.5, -0.6, -0.1) + (-1.05,) * 7, (0.5, 0.6, 0.9) + (1.05,) * 7),
        packages=("hf-libero", "robosuite", "mujoco"),
        group=10,  # one simulator per task: each then needs the model of one task only
        tasks=10,
        language_source=source_at_hand(),
    )


# Bimanual ViperX arms of gym-aloha

ALOHA_CAMERAS = ("top", "angle", "left_pillar", "right_pillar", "left_wrist", "right_wrist")
ARM_JOINTS = 6

ALOHA_TRANSFER = SimulatorSpec(
    name="aloha-transfer",
    cameras=ALOHA_CAMERAS,
    image_size=256,
    action_dim=14,
    proprioception_dim=14,
    state_dim=46,
    max_steps=600,
    control_hz=50.0,
    criteria=with_parts("grasped", "lifted"),
    shifts=("fixed", "rotation-static", "rotation"),
    objects=(("cube", 1 + 2 * (ARM_JOINTS + 2)),),  # behind the time and the arms; both fingers of a gripper are joints
    schema=Schema(ALOHA_CAMERAS, (("qpos", 14),), actions=ActionSpace.joints(ARM_JOINTS, "left", "right")),
    # What the actuators' controls are limited to: each arm's joints in radians, then its gripper, 0 (closed) to 1
    # (open) of gym-aloha's scale; the actuators stop a few percent before either end.
    action_limits=(
        2 * (-3.14158, -1.85005, -1.76278, -3.14158, -1.8675, -3.14158, 0.0),
        2 * (3.14158, 1.25664, 1.6057, 3.14158, 2.23402, 3.14158, 1.0),
    ),
    packages=("gym-aloha", "dm-control", "mujoco"),
)

# MetaWorld's Sawyer arm

METAWORLD_CAMERAS = ("corner2", "corner3", "gripperPOV")


def _metaworld(task: str) -> SimulatorSpec:
    return SimulatorSpec(
        name=f"metaworld-{task}",
        cameras=METAWORLD_CAMERAS,
        image_size=64,
        action_dim=4,
        proprioception_dim=39,
        # Time, qpos, qvel, where the hand is drawn to, what a reset draws, the observation.
        state_dim=1 + 16 + 15 + 3 + 6 + 39,
        max_steps=100,
        control_hz=40.0,
        criteria=SUCCESS,
        shifts=("fixed",),
        schema=Schema(
            METAWORLD_CAMERAS,
            (("hand", 4), ("objects", 14), ("before", 18), ("goal", 3)),
            actions=ActionSpace((Part("hand", "velocity", 3), Part("gripper", "gripper", 1))),
        ),
        action_limits=((-1.0,) * 4, (1.0,) * 4),
        packages=("metaworld", "mujoco"),
    )


# Those of CLAM's experiments, and an easy one.
METAWORLD_ASSEMBLY = _metaworld("assembly")
METAWORLD_BIN_PICKING = _metaworld("bin-picking")
METAWORLD_PEG_INSERT_SIDE = _metaworld("peg-insert-side")
METAWORLD_REACH = _metaworld("reach")
METAWORLD_SHELF_PLACE = _metaworld("shelf-place")

# Locomotion

LOCOMOTION_CAMERAS = ("track",)


def _locomotion(name: str, joints: int, actions: int, control_hz: float, expert: float) -> SimulatorSpec:
    """Of a task whose expert has a mean return of ``expert``."""
    return SimulatorSpec(
        name=name,
        cameras=LOCOMOTION_CAMERAS,
        image_size=64,
        action_dim=actions,
        proprioception_dim=2 * joints - 1,
        state_dim=1 + 2 * joints + 2,  # time, qpos, qvel, the return so far, whether it has fallen
        max_steps=1000,
        control_hz=control_hz,
        criteria=(Criterion("success", "return", 0.9 * expert, inclusive=True),),
        shifts=("fixed",),
        schema=Schema(
            LOCOMOTION_CAMERAS,
            (("positions", joints - 1), ("velocities", joints)),
            actions=ActionSpace((Part("torques", "effort", actions),)),
        ),
        action_limits=((-1.0,) * actions, (1.0,) * actions),
        packages=("gymnasium", "mujoco"),
    )


HALF_CHEETAH = _locomotion("half-cheetah", 9, 6, 20.0, 4040.0)
HOPPER = _locomotion("hopper", 6, 3, 125.0, 3307.0)
