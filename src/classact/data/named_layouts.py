"""Layouts of the field's data sets by name, for ``--layout NAME``; other packages may register theirs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from classact.data.actions import ActionSpace
from classact.data.layout import NONE, Columns, Layout, Values
from classact.utils.registry import Registry

POSITION, ROTATION = (0, 1, 2), (3, 4, 5)  # columns of a pose of six numbers

_SIDE = 8
_ACTIONS = re.compile(r"(.*[./])?(\w*(actions?|commands?)\w*|acts?|controls?|target\w*|ctrl|cmds?)([./].*)?")
WITHOUT_ACTIONS = "no array is named like actions: these demonstrations carry none"


@dataclass(frozen=True)
class Listed:
    """An array as data list it: its name as in a :class:`Layout`, its shape (of the first episode in HDF5), its
    type."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def numbers(self) -> bool:
        """Whether it holds a number, or a row of numbers, for each step."""
        return len(self.shape) in (1, 2) and self.dtype.startswith(("float", "int", "uint"))

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def images(self) -> bool:
        """Whether it holds (N, H, W, 3) images, or (N, 3, H, W) ones that are large enough to be nothing else."""
        if len(self.shape) != 4 or self.dtype == "bool":
            return False
        return self.shape[3] == 3 or (self.shape[1] == 3 and min(self.shape[2:]) >= _SIDE)


@dataclass(frozen=True)
class Listing:
    """What data hold: format, array by name, and, of HDF5, what episodes are (:attr:`Layout.episodes`)."""

    format: Literal["zarr", "hdf5", "lerobot"]
    arrays: Mapping[str, Listed]
    episodes: str | None = None

    def actions(self) -> list[str]:
        """Arrays that are named like actions, whether they are or not, and damaged ones as well; but no images."""
        seen = ("video", "image")
        return [
            n for n, one in self.arrays.items() if looks_like_actions(n) and not one.images and one.dtype not in seen
        ]

    def widths(self, **wanted: int) -> bool:
        """Whether arrays of these names are rows of so many numbers; two underscores stand for a slash."""
        names = {name.replace("__", "/"): size for name, size in wanted.items()}
        return all(
            name in self.arrays and self.arrays[name].numbers and self.arrays[name].width == size
            for name, size in names.items()
        )


def looks_like_actions(name: str) -> bool:
    """Whether an array's name says that it may hold actions."""
    return _ACTIONS.fullmatch(name) is not None


@dataclass(frozen=True)
class NamedLayout:
    """A layout by name.

    Attributes:
        description: whose it is, and which arrays tell it.
        make: the layout for data with these arrays; None where they are others. Data without a declaration are read by
            the first one that is not None.
        actions: the arrays that hold its actions, and how many numbers they have: data that only lack these, and
            anything else named like actions, are demonstrations without actions.
    """

    description: str
    make: Callable[[Listing], Layout | None]
    actions: Mapping[str, int] = field(default_factory=dict)

    def layout(self, found: Listing) -> Layout | None:
        """The layout for data with these arrays, with or without actions; None where they are others."""
        made = self.make(found)
        if made is not None or not self.actions or found.actions():
            return made
        rows = next((one.shape[0] for one in found.arrays.values() if one.numbers), -1)
        absent = {name: Listed(name, (rows, width), "float32") for name, width in self.actions.items()}
        made = self.make(replace(found, arrays={**found.arrays, **absent}))
        if made is None or not made.proprioception:
            return None
        return replace(made, action=NONE, action_space=None)


def _umi(found: Listing) -> Layout | None:
    arms = [a for a in ("robot0", "robot1") if found.widths(**{f"{a}_eef_pos": 3, f"{a}_eef_rot_axis_angle": 3})]
    if found.format != "zarr" or not arms or "action" in found.arrays:
        return None
    parts: dict[str, Columns] = {}
    grippers = [len(arms) and found.widths(**{f"{arm}_gripper_width": 1}) for arm in arms]
    for arm in arms:
        parts[f"{arm}_eef_pos"] = Columns(f"{arm}_eef_pos")
        parts[f"{arm}_eef_rotation"] = Columns(f"{arm}_eef_rot_axis_angle", rotation="axis-angle")
        if all(grippers):
            parts[f"{arm}_gripper_width"] = Columns(f"{arm}_gripper_width")
    names = () if len(arms) == 1 else tuple(arms)
    return Layout(
        action=Values(tuple(parts.values())),
        next_state=True,
        action_space=ActionSpace.pose(*names, gripper=1 if all(grippers) else 0),
        proprioception={key: Values.of(part) for key, part in parts.items()},
        fps=59.94,
        unfinished=True,
    )


def _real_pusht(found: Listing) -> Layout | None:
    if found.format != "zarr" or not found.widths(action=6, robot_eef_pose=6, timestamp=1):
        return None
    pose = "robot_eef_pose"
    proprioception = {
        "eef_pos": Columns(pose, POSITION),
        "eef_rotation": Columns(pose, ROTATION, "axis-angle"),
        **({"joints": Columns("robot_joint")} if "robot_joint" in found.arrays else {}),
    }
    return Layout(
        action=Values((Columns("action", POSITION), Columns("action", ROTATION, "axis-angle"))),
        action_space=ActionSpace.pose(gripper=0),
        proprioception={key: Values.of(part) for key, part in proprioception.items()},
        timestamps="timestamp",
        unfinished=True,
    )


def _act(found: Listing) -> Layout | None:
    names = found.arrays
    if found.format != "hdf5" or "action" not in names or "observations/qpos" not in names:
        return None
    action = Values.of([name for name in ("action", "base_action") if name in names])
    return Layout(action=action, proprioception={"qpos": Values.of("observations/qpos")}, fps=50.0)


_SEEN = re.compile(r"(robot\d+_)?(eef_pos|eef_quat|joint_pos\w*|gripper_\w*(pos|position|state)\w*)")


def _robomimic_real(found: Listing) -> Layout | None:
    if found.format != "hdf5" or "actions" not in found.arrays:
        return None
    proprioception = {}
    for name in sorted(found.arrays):
        group, _, key = name.rpartition("/")
        if group != "obs" or not _SEEN.fullmatch(key) or not found.arrays[name].numbers:
            continue
        if key.endswith("_quat") and found.arrays[name].width == 4:
            rotation = Columns(name, rotation="quaternion-xyzw")
            proprioception[key.removesuffix("quat") + "rotation"] = Values((rotation,))
        else:
            proprioception[key] = Values.of(name)
    return Layout(action=Values.of("actions"), proprioception=proprioception) if proprioception else None


def _droid(found: Listing) -> Layout | None:
    state = "observation/robot_state"
    if found.format != "hdf5" or not found.widths(action__cartesian_position=6):
        return None
    names = found.arrays
    gripper = [Columns(name) for name in ("action/gripper_position",) if name in names]
    pose = "action/cartesian_position"
    seen: dict[str, Values] = {}
    if found.widths(**{f"{state}/cartesian_position": 6}):
        seen["eef_pos"] = Values.of(Columns(f"{state}/cartesian_position", POSITION))
        seen["eef_rotation"] = Values.of(Columns(f"{state}/cartesian_position", ROTATION, "euler-xyz"))
    for key, name in (("joints", "joint_positions"), ("gripper", "gripper_position")):
        if f"{state}/{name}" in names:
            seen[key] = Values.of(f"{state}/{name}")
    return Layout(
        action=Values((Columns(pose, POSITION), Columns(pose, ROTATION, "euler-xyz"), *gripper)),
        action_space=ActionSpace.pose(gripper=len(gripper)),
        proprioception=seen,
        fps=15.0,
    )


def _maniskill(found: Listing) -> Layout | None:
    if found.format != "hdf5" or not found.widths(actions=found.arrays["actions"].width if _has_actions(found) else 0):
        return None
    seen = {key: Values.of(name) for key, name in (("qpos", "obs/agent/qpos"),) if name in found.arrays}
    if not seen:
        return None
    if found.widths(obs__extra__tcp_pose=7):
        seen["tcp_pos"] = Values.of(Columns("obs/extra/tcp_pose", POSITION))
        seen["tcp_rotation"] = Values.of(Columns("obs/extra/tcp_pose", (3, 4, 5, 6), "quaternion-wxyz"))
    return Layout(action=Values.of("actions"), proprioception=seen, fps=20.0)


def _has_actions(found: Listing) -> bool:
    return "actions" in found.arrays


LAYOUTS: Registry[NamedLayout] = Registry(
    "layout",
    {
        "umi": NamedLayout(
            "UMI's Zarr: robot0_eef_pos, robot0_eef_rot_axis_angle, robot0_gripper_width (and robot1_...), no actions: "
            "the pose at the next step is the action, at 59.94 steps per second",
            _umi,
        ),
        "real-pusht": NamedLayout(
            "Diffusion Policy's real robots: action and robot_eef_pose of six numbers (position, axis-angle), "
            "timestamp, and videos/EPISODE/CAMERA.mp4 beside the store",
            _real_pusht,
            {"action": 6},
        ),
        "act": NamedLayout(
            "ACT's HDF5, a file for each episode: action (and base_action), observations/qpos and images, at 50 steps "
            "per second",
            _act,
            {"action": 1},
        ),
        "droid": NamedLayout(
            "DROID's trajectory.h5, a folder for each episode, with recordings/MP4/CAMERA.mp4 in it: "
            "action/cartesian_position (Euler angles) and gripper_position, at 15 steps per second",
            _droid,
            {"action/cartesian_position": 6},
        ),
        "maniskill": NamedLayout(
            "ManiSkill's trajectories: traj_0/actions and obs/agent/qpos, at 20 steps per second",
            _maniskill,
            {"actions": 1},
        ),
        "robomimic-real": NamedLayout(
            "robomimic's HDF5 of real robots: actions as recorded, obs/..._eef_pos, _eef_quat, joint_pos, gripper_...",
            _robomimic_real,
            {"actions": 1},
        ),
    },
)
"""Name -> layout; those of data without a declaration are tried in this order."""


def is_layout_name(layout: object) -> bool:
    """Whether a layout is given by its name, rather than by a file."""
    return str(layout) in LAYOUTS and not Path(str(layout)).exists()


def hint(found: Listing) -> str:
    """What data that no layout fits look like, and what they lack, for messages; empty where they look like nothing."""
    names = list(found.arrays)
    if found.episodes == "traj_*" or any(name.startswith("traj_") for name in names):
        return (
            ". It looks like ManiSkill's trajectories, which hold no observations (obs/agent/qpos) unless they are "
            "replayed: python -m mani_skill.trajectory.replay_trajectory -o rgb --save-traj --traj-path FILE"
        )
    tops = {name.partition("/")[0] for name in names}
    if {"action", "observation"} <= tops:
        return ". It looks like DROID's trajectory.h5, but lacks action/cartesian_position of six numbers"
    return ""
