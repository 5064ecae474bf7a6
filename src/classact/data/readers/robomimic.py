"""robomimic's and MimicGen's HDF5 files of robosuite tasks: ``data/demo_i`` with ``env_args``; one file, one task.

Format: https://robomimic.github.io/docs/datasets/overview.html. ``obs/<key>`` is observed before ``actions`` of the
same row are taken, images are uint8 and upright. Raw files (as collected, or ``demo.hdf5`` as downloaded) hold only
states and the model: the robot's pose follows from these (:mod:`classact.data.readers.kinematics`), and images are
rendered.

Recorded differences or poses of one Panda become absolute 10-D poses of the grip site (section D), see
:mod:`classact.data.readers.osc`. Of other robots and controllers, and in files that do not say what their actions mean
(real robots), actions are taken as they were recorded, and this is said. Diffusion Policy's conversion
(``..._abs.hdf5``) writes poses but leaves ``env_args`` at differences, so the numbers are checked, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.data.actions import ActionSpace
from classact.data.layout import Layout
from classact.data.readers import hdf5 as h5
from classact.data.readers import hdf5_arrays
from classact.data.readers.hdf5_images import Frames, demonstrations, frames, is_images
from classact.data.readers.kinematics import ArmModel
from classact.data.readers.osc import COMMAND_DIM, PROPRIOCEPTION, Controller, at_gripper, site_rotation
from classact.data.rotations import matrix_to_rotation_6d, quaternion_to_matrix
from classact.data.schema import Schema
from classact.data.types import Demonstrations
from classact.errors import ConfigError, DataError, UnknownNameError, choose

DESCRIPTION = "a robomimic or MimicGen .hdf5 file with data/demo_0, data/demo_1, ..."
_LAYOUT = ("filter", "cameras", "accept")

SIMULATORS: Mapping[str, str] = {
    "NutAssemblySquare": "square",
    "StackThree_D0": "three-stack-d0",
    "StackThree_D1": "three-stack-d1",
}
"""robosuite's or MimicGen's name of an environment -> classact's of its simulator."""

CAMERAS: Mapping[str, str] = {"agentview_image": "agentview", "robot0_eye_in_hand_image": "wrist"}
"""Keys of images -> camera names in classact's simulators; other keys lose their ``_image``."""

_DEMO = "demonstrations demo_0, demo_1, ..."

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Environment:
    """Where a file's demonstrations were recorded; robosuite's ``version`` may be "unknown", the rest empty or None."""

    name: str
    version: str
    controller: Any
    robots: tuple[str, ...] = ()
    fps: float | None = None

    @staticmethod
    def of(data: Any) -> Environment:
        """From the attributes of group ``data``: robomimic's ``env_args``, or what robosuite's own collector writes."""
        args = h5.json_attribute(data, "env_args")
        if args is None:
            args = {"env_name": h5.text(data.attrs, "env"), "env_kwargs": h5.json_attribute(data, "env_info")}
        version = args.get("env_version") or h5.text(data.attrs, "repository_version") or h5.UNKNOWN
        settings = args.get("env_kwargs")
        settings = settings if isinstance(settings, dict) else {}
        robots = settings.get("robots") or ()
        robots = (robots,) if isinstance(robots, str) else tuple(map(str, robots))
        rate = settings.get("control_freq")
        fps = float(rate) if isinstance(rate, int | float) and 0 < rate < 10_000 else None
        name, controller = str(args.get("env_name") or ""), settings.get("controller_configs")
        return Environment(name, str(version), controller, robots, fps)

    @property
    def other(self) -> str:
        """Why commands cannot be made poses of a Panda's gripper, in words; empty where they can."""
        if self.robots and not (len(self.robots) == 1 and self.robots[0].endswith("Panda")):
            return f"of the robots {', '.join(self.robots)}"
        if self.controller is None:
            return "of no declared controller"
        kind = str(self.controller.get("type", "")) if isinstance(self.controller, dict) else ""
        parts = self.controller.get("body_parts") if isinstance(self.controller, dict) else None
        return "" if kind in ("", "OSC_POSE", "BASIC") or parts else f"of controller {kind}"


def matches(path: Path) -> bool:
    """A file named like HDF5; tried after the formats with a signature of their own."""
    return h5.is_hdf5_name(path)


listing = hdf5_arrays.listing


def declared_simulator(path: Path) -> str:
    """Name of the simulator of a file's states; empty where unknown."""
    try:
        with h5.open_file(path) as file:
            return SIMULATORS.get(Environment.of(file["data"]).name, "")
    except (ConfigError, DataError, KeyError):
        return ""  # read() reports what is wrong


def read(path: Path, *, episodes: int | None = None, layout: Layout | Path | None = None) -> Demonstrations:
    """Read a file; ``layout`` declares ``filter`` (a list in ``mask``), ``cameras`` and ``accept``.

    Returns:
        Demonstrations with (N, 10) actions (:meth:`ActionSpace.pose`), (N, 18) proprioception, (N, D_s) states [time,
        qpos, qvel], images at native resolution; ``simulator`` as in :data:`SIMULATORS`, else empty.

    Raises:
        DataError: damage, missing groups or keys, arrays that do not match, NaN, controllers other than OSC_POSE; names
            file and demonstration.
        ConfigError: more episodes than there are, an unknown filter, an invalid layout.
    """
    if hdf5_arrays.declares(path, layout):
        return hdf5_arrays.read(path, episodes=episodes, layout=layout)
    chosen = h5.resolve_layout(layout, _LAYOUT)
    declared = chosen.camera_arrays()
    with h5.open_file(path) as file:
        groups = list(map(str, file["data"])) if hasattr(file.get("data"), "keys") else None
        demos = [file["data"].get(name) for name in groups or () if name.startswith("demo_")][:1]
        own = len(file) == 0 or groups == [] or (bool(demos) and _is_ours(demos[0]))
    if not own:  # another format, known by its arrays or not at all
        return hdf5_arrays.read(path, episodes=episodes, layout=layout)
    with h5.open_file(path) as file:
        data = h5.group(file, "data", f"robomimic's layout: {_DEMO}")
        names = _filtered(file, h5.numbered(data, "demo_", _DEMO), chosen.filter)
        names = names[: h5.check_episodes(episodes, len(names), path)]
        environment = Environment.of(data)
        if (reason := environment.other) and "obs" in data[names[0]]:
            made = _as_recorded(path, data, names, reason, declared)
            return replace(made, schema=replace(made.schema, fps=environment.fps))
        demos = [h5.group(data, name, _DEMO) for name in names]
        controller = controller_of(data, environment) if any("actions" in demo for demo in demos) else None
        raw = [_raw(demo) for demo in demos]
        seen = sorted(map(str, data[names[0]].get("obs", ())))
        images = _frames(data, names, [len(part.position) for part in raw], declared)
    assumption = ""
    acted = [(part.commands, part.position, part.rotation) for part in raw if part.commands is not None]
    if controller is not None and not controller.absolute and all(at_gripper(*part) for part in acted):
        controller = replace(controller, absolute=True)
        assumption = (
            "env_args declare actions as differences, but all lie where the gripper is: taken as absolute poses"
        )
    recordings = [part.recording(controller) for part in raw]
    states = h5.joined_states(recordings)
    simulator = SIMULATORS.get(environment.name, "") if states is not None else ""
    rendered = tuple(CAMERAS.values()) if simulator else ()
    cameras = tuple(dict.fromkeys((*rendered, *images)))
    schema = Schema(cameras, PROPRIOCEPTION, actions=ActionSpace.pose(), fps=environment.fps, assumption=assumption)
    used = {frame.where.rpartition("/")[2] for parts in images.values() for frame in parts[:1]}
    unread = tuple(f"obs/{key}" for key in seen if key not in used and not _USED.fullmatch(key))
    more: dict[str, Any] = {"simulator": simulator, "versions": h5.versions(environment.version, chosen)}
    return demonstrations(path.stem, path, recordings, images, schema, states=states, unread=unread, **more)


def _is_ours(demo: Any) -> bool:
    """Whether a demonstration is robomimic's, rather than of groups of other names."""
    groups = [key for key in map(str, demo) if hasattr(demo.get(key), "keys")] if hasattr(demo, "keys") else []
    return not groups or "obs" in groups


_USED = re.compile(r"robot0_(eef_pos|eef_quat|eef_quat_site|joint_pos|gripper_qpos)")
_QUATERNION, _ROTATION = "_eef_quat", "_eef_rotation"
_SEEN = re.compile(r"robot\d+_(eef_pos|eef_quat|joint_pos|gripper_qpos)")
"""Keys of ``obs`` that are a robot's own; others are of objects, or velocities."""


def _as_recorded(
    path: Path, data: Any, names: list[str], reason: str, cameras: Mapping[str, str] | None
) -> Demonstrations:
    """Actions (N, D) as they are, and the robots' own observations; rotations become 6-D."""
    first = data[names[0]]["obs"]
    numbers = [
        key for key in sorted(map(str, first)) if getattr(first[key], "ndim", 0) == 2 and not is_images(first[key])
    ]
    numbers = [key for key in numbers if first[key].dtype.kind in "fiu"]
    used = [key for key in numbers if _SEEN.fullmatch(key)]
    used = used or [key for key in numbers if "object" not in key]
    left = [key for key in numbers if key not in used]
    recordings = []
    for name in names:
        demo = data[name]
        actions = h5.recorded_actions(demo, "actions")
        obs = h5.group(demo, "obs", "observations")
        steps = _steps(demo, obs, [*used, *numbers]) if actions is None else len(actions)
        values = [_seen(obs, key, steps) for key in used]
        recordings.append(
            h5.Recording(h5.where(demo), actions, np.concatenate([np.zeros((steps, 0)), *values], axis=1), None)
        )
    sizes = {key: _seen(first, key, len(recordings[0])).shape[1] for key in used}
    dimensions = next((part.actions.shape[1] for part in recordings if part.actions is not None), 0)
    for part in recordings:
        own = dimensions if part.actions is None else part.actions.shape[1]
        found = (own, part.proprioception.shape[1])
        if found != (expected := (dimensions, sum(sizes.values()))):
            raise DataError(
                f"{part.where}: {found[0]} dimensions of actions and {found[1]} of proprioception, the first "
                f"demonstration has {expected[0]} and {expected[1]}. Read them apart."
            )
    images = _frames(data, names, list(map(len, recordings)), cameras)
    taken = f"actions ({reason}) are taken as they were recorded" if dimensions else ""
    words = "; ".join(filter(None, (taken, f"proprioception is {', '.join(used) or 'nothing'}")))
    keys = tuple((key.replace(_QUATERNION, _ROTATION), size) for key, size in sizes.items())
    schema = Schema(tuple(images), keys, actions=None, assumption=words)
    unread = tuple(f"obs/{key}" for key in left)
    return demonstrations(path.stem, path, recordings, images, schema, unread=unread)


def _seen(obs: Any, key: str, steps: int) -> F64:
    if not key.endswith(_QUATERNION):
        return h5.matrix(obs, key, rows=steps)
    return np.asarray(matrix_to_rotation_6d(quaternion_to_matrix(h5.matrix(obs, key, 4, steps))), np.float64)


def _steps(demo: Any, obs: Any, numbers: list[str]) -> int:
    """Of a demonstration without actions: rows of what is observed."""
    seen = [key for key in (*numbers, *map(str, obs)) if getattr(obs.get(key), "ndim", 0)]
    if not seen or not len(obs[seen[0]]):
        raise DataError(f"{h5.where(demo)}: there are neither actions nor observations. Remove the demonstration.")
    return len(obs[seen[0]])


def _filtered(file: Any, names: list[str], chosen: str | None) -> list[str]:
    if chosen is None:
        return names
    masks = file.get("mask")
    available = [] if masks is None else list(masks)
    if chosen not in available:
        raise UnknownNameError(f"{file.filename}: " + choose("filter", chosen, available))
    wanted = {name.decode() if isinstance(name, bytes) else str(name) for name in masks[chosen][()]}
    if missing := sorted(wanted - set(names)):
        raise DataError(f"{file.filename}: mask/{chosen} lists {missing[0]!r}, which is not in data.")
    if not wanted:
        raise DataError(f"{file.filename}: mask/{chosen} lists 0 demonstrations, expected at least 1.")
    return [name for name in names if name in wanted]


def controller_of(data: Any, environment: Environment) -> Controller:
    """How the actions in group ``data`` are meant; they must be poses of one Panda."""
    if environment.robots and not (len(environment.robots) == 1 and environment.robots[0].endswith("Panda")):
        raise DataError(
            f"{h5.where(data)}: was recorded with the robots {', '.join(environment.robots)}, expected one Panda: of "
            f"others it is not known how the gripper is mounted on the hand."
        )
    if environment.controller is None:
        raise DataError(
            f"{h5.where(data)}: attribute 'env_args' names no controller_configs (env_kwargs), so nobody knows what "
            f"the actions mean. Expected a recording of a robosuite task; copy the attributes of the original file."
        )
    return Controller.from_json(environment.controller, h5.where(data))


@dataclass(frozen=True)
class Raw:
    """A demonstration before its commands are made poses."""

    where: str
    commands: F64 | None
    position: F64
    rotation: F64
    joints: F64
    fingers: F64
    states: F64 | None

    def recording(self, controller: Controller | None) -> h5.Recording:
        """With absolute poses as actions, and proprioception as :data:`~classact.data.readers.osc.PROPRIOCEPTION`."""
        return h5.Recording(
            self.where,
            None
            if self.commands is None or controller is None
            else controller.poses(self.commands, self.position, self.rotation),
            np.concatenate([self.position, matrix_to_rotation_6d(self.rotation), self.joints, self.fingers], axis=1),
            self.states,
        )


def _raw(demo: Any) -> Raw:
    commands = h5.recorded_actions(demo, "actions", COMMAND_DIM)
    steps = None if commands is None else len(commands)
    states = h5.matrix(demo, "states", rows=steps) if "states" in demo else None
    if steps is None and states is not None:
        steps = len(states)
    return Raw(h5.where(demo), commands, *_robot(demo, steps, states), states)


def _robot(demo: Any, steps: int | None, states: F64 | None) -> tuple[F64, F64, F64, F64]:
    """Grip site's position (L, 3) and rotation (L, 3, 3), joint positions (L, 7), fingers (L, 2)."""
    obs = demo.get("obs")
    needed = ("robot0_eef_pos", "robot0_eef_quat", "robot0_joint_pos", "robot0_gripper_qpos")
    missing = [key for key in needed if obs is None or key not in obs]
    if not missing:
        # robosuite 1.5 observes the site's rotation; for earlier versions see the module osc.
        steps = len(h5.matrix(obs, "robot0_eef_pos", 3, steps))
        if "robot0_eef_quat_site" in obs:
            rotation = quaternion_to_matrix(h5.matrix(obs, "robot0_eef_quat_site", 4, steps))
        else:
            rotation = site_rotation(quaternion_to_matrix(h5.matrix(obs, "robot0_eef_quat", 4, steps)))
        sizes = {"robot0_eef_pos": 3, "robot0_joint_pos": 7, "robot0_gripper_qpos": 2}
        position, joints, fingers = (h5.matrix(obs, key, size, steps) for key, size in sizes.items())
        return position, rotation, joints, fingers
    model = h5.text(demo.attrs, "model_file")
    if states is None or model is None:
        lacks = "no states" if states is None else "no model (attribute 'model_file')"
        raise DataError(
            f"{h5.where(demo)}: obs lacks {', '.join(missing)}, and there are {lacks} to compute them from. Write "
            f"observations with robomimic's dataset_states_to_obs.py, or use the original file."
        )
    arm = ArmModel(model, h5.where(demo))
    if (len(arm.arm), len(arm.fingers)) != (7, 2):
        raise DataError(
            f"{arm.where}: the arm has {len(arm.arm)} joints and {len(arm.fingers)} fingers, expected 7 and 2: a "
            f"Panda with its gripper."
        )
    qpos = arm.qpos(states)
    return *arm.grip_pose(qpos), qpos[:, arm.arm], qpos[:, arm.fingers]


def _frames(
    data: Any, names: list[str], lengths: list[int], cameras: Mapping[str, str] | None
) -> dict[str, list[Frames]]:
    """Camera -> its images in each demonstration."""
    if cameras is None:
        first = data[names[0]].get("obs", {})
        keys = [key for key in map(str, first) if is_images(first.get(key))]
        found = {CAMERAS.get(key, key.removesuffix("_image")): key for key in sorted(keys)}
        order = {camera: n for n, camera in enumerate(CAMERAS.values())}
        cameras = dict(sorted(found.items(), key=lambda item: (order.get(item[0], len(order)), item)))
    return {
        camera: [
            frames(h5.group(data[name], "obs", "observations"), key, steps)
            for name, steps in zip(names, lengths, strict=True)
        ]
        for camera, key in cameras.items()
    }
