"""A layout proposed for data that declare none, from the names, shapes and types of their arrays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from classact.data.layout import FILL_IN, Layout
from classact.data.named_layouts import LAYOUTS, Listed, Listing

_ACTION = re.compile(r"(.*/)?(actions?|acts?|commands?|controls?|target\w*|ctrl)(/.*)?")
_ROBOT = re.compile(
    r"(state|robot|agent_pos|agent|qpos|joint|eef|ee_|ee$|tcp|gripper|proprio|hand|arm|base|pose|position|cartesian).*"
)
_STATE = re.compile(
    r"(.*/)?(robot\d*_?)?(eef|ee|tcp|end_effector|hand|cartesian)\w*(pos|pose|position|quat|rot\w*|orient\w*)"
)
_PRIVATE = re.compile(
    r"(.*/)?(next_obs|next_observations|rewards?|timeouts?|success|states|env_states|.*vel\w*|.*torque\w*)(/.*)?"
)
_ENDS = re.compile(r"(.*/)?(episode_ends?|ends|traj_ends|episode_ends_idx)")
_LENGTHS = re.compile(r"(.*/)?(episode_lengths?|lengths|traj_lengths)")
_NUMBERS = re.compile(r"(.*/)?(episode_(index|id|idx|num\w*)|traj_(index|id)|demo_(index|id))")
_LAST = re.compile(r"(.*/)?(terminals?|dones?|is_last|episode_done|ends_episode)")
_TIME = re.compile(r"(.*/)?(timestamps?|times?)")
_WORDS = re.compile(r"(.*/)?(language\w*|instructions?|task_?(description|name|embedding)?|text_embedding)")
_ROTATIONS = (
    (re.compile(r".*(axis_?angle|rotvec|rot_vec)"), 3, "axis-angle"),
    (re.compile(r".*(euler|rpy|ypr)"), 3, "euler-xyz"),
    (re.compile(r".*(rot_?mat\w*|rotation_matrix)"), 9, "matrix"),
    (re.compile(r".*(quat\w*)"), 4, "quaternion-xyzw"),
)


@dataclass(frozen=True)
class Proposal:
    """What a layout file would hold, what each array is taken for, and what is to be looked at.

    Attributes:
        layout: JSON of a :class:`~classact.data.layout.Layout`, with :data:`FILL_IN` where nothing could be guessed.
        roles: name of an array -> what it is taken for.
        remarks: what was guessed and is to be checked, or to be filled in.
    """

    layout: Mapping[str, Any]
    roles: Mapping[str, str]
    remarks: tuple[str, ...]


def propose(found: Listing) -> Proposal:
    """A layout for data with these arrays: that of a name where one fits, else guessed array by array."""
    for name, entry in LAYOUTS.items():
        if (made := entry.layout(found)) is not None:
            meant = {key: _role(made, one) for key, one in found.arrays.items()}
            declared = ({} if found.episodes is None else {"episodes": found.episodes}) | made.to_json()
            return Proposal(declared, meant, (f"the arrays are those of layout {name!r} ({entry.description})",))
    layout: dict[str, Any] = {}
    roles: dict[str, str] = {}
    remarks: list[str] = []
    arrays = {name: one for name, one in found.arrays.items() if not _private(name)}
    _episodes(found, layout, roles, remarks)
    rows = _rows(found, layout)

    def near(count: int) -> bool:
        """Whether an array has one row per step; in HDF5 observations may have one more."""
        return abs(count - rows) <= (1 if found.format == "hdf5" else 0)

    whole = {name: one for name, one in arrays.items() if name not in roles and one.shape}
    steps = {name: one for name, one in whole.items() if one.shape[0] < 0 or near(one.shape[0])}
    actions = sorted((n for n, one in steps.items() if _ACTION.fullmatch(n) and one.numbers), key=_plainness)
    numbers = {n: one for n, one in steps.items() if one.numbers and n not in actions}
    states = [name for name in numbers if _ROBOT.match(_last(name))]
    if not states and (states := [name for name in numbers if _last(name) in ("obs", "observation", "observations")]):
        remarks.append(f"{states[0]} is taken for proprioception: name the columns that a robot measures, not objects'")
    words = [name for name, one in arrays.items() if _WORDS.fullmatch(name) and name not in roles]
    times = [n for n, one in numbers.items() if _TIME.fullmatch(n) and one.width == 1 and one.dtype.startswith("float")]
    if actions:
        layout["action"] = actions[0]
        roles[actions[0]] = f"action: {steps[actions[0]].width} numbers"
        if len(actions) > 1:
            remarks.append(f"action is {actions[0]}; there are {', '.join(actions[1:])}, too: a list joins several")
    elif poses := [name for name in numbers if _STATE.fullmatch(name) or _ROBOT.match(_last(name))]:
        chosen = [name for name in poses if _STATE.fullmatch(name)] or poses
        chosen += [name for name in poses if "gripper" in name and name not in chosen]
        layout |= {"action": _short([_part(name, numbers[name], remarks) for name in chosen]), "next_state": True}
        remarks.append(
            "no array is named like actions: the measured state of the next step is taken (next_state); of "
            'demonstrations without actions, write "action": [] and leave next_state out'
        )
    else:
        layout["action"] = FILL_IN
        remarks.append("action: fill in the name of the array that holds what was commanded; [] where there is none")
    if states:
        layout["proprioception"] = {_last(name): _part(name, numbers[name], remarks) for name in states}
        if len(layout["proprioception"]) < len(states):
            layout["proprioception"] = {name.replace("/", "_"): _part(name, numbers[name], []) for name in states}
        roles |= {name: f"proprioception: {numbers[name].width} numbers" for name in states}
    else:
        remarks.append("proprioception: no array is named like a robot's joints, pose or gripper; name those there are")
    cameras = [name for name, one in steps.items() if one.images or one.dtype in ("video", "image")]
    if found.format != "lerobot":
        _cameras(cameras, steps, layout, roles, remarks)
    if words and found.format != "lerobot":
        layout["language"] = words[0]
        roles[words[0]] = "language"
    if times:
        layout["timestamps"] = times[0]
        roles[times[0]] = "timestamps"
    elif found.format != "lerobot":
        remarks.append("fps: steps per second are not known; windows in seconds and --fps need them")
    for name in found.arrays:
        roles.setdefault(name, "not read")
    if found.format == "hdf5" and found.episodes is not None:
        layout = {"episodes": found.episodes, **layout}
    return Proposal(layout, {name: roles[name] for name in found.arrays}, tuple(dict.fromkeys(remarks)))


def _role(layout: Layout, one: Listed) -> str:
    """What an array is in a layout."""
    values = {"action": layout.action, **{f"proprioception {key}": v for key, v in layout.proprioception.items()}}
    uses = [what for what, value in values.items() if value and any(p.array == one.name for p in value.parts)]
    uses += ["timestamps"] if one.name == layout.timestamps else []
    if one.images or one.dtype in ("video", "image"):
        uses.append("camera")
    if one.name == (layout.episode_ends or "meta/episode_ends"):
        uses.append("where episodes end")
    return ", ".join(uses) or "not read"


def _private(name: str) -> bool:
    return _PRIVATE.fullmatch(name) is not None


def _last(name: str) -> str:
    """The last part of a name."""
    return name.rpartition("/")[2].rpartition(".")[2]


def _plainness(name: str) -> tuple[int, int, str]:
    return (0 if _last(name) in ("action", "actions") else 1, len(name), name)


def _short(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else parts


def _part(name: str, one: Listed, remarks: list[str]) -> Any:
    """An array by its name, as a rotation where the name says so."""
    for pattern, size, rotation in _ROTATIONS:
        if pattern.fullmatch(_last(name)) and one.width == size:
            more = {"euler-xyz": " (euler-XYZ about moving axes)", "quaternion-xyzw": " (or quaternion-wxyz)"}
            remarks.append(f"{name} is taken for a rotation, {rotation}{more.get(rotation, '')}: look whether it is")
            return {"array": name, "rotation": rotation}
    return name


def _cameras(
    cameras: list[str],
    steps: Mapping[str, Listed],
    layout: dict[str, Any],
    roles: dict[str, str],
    remarks: list[str],
) -> None:
    named: dict[str, Any] = {}
    for name in cameras:
        key = _last(name).removesuffix("_image")
        key = name.replace("/", "_") if key in named or key in ("rgb", "image", "color") else key
        named[key] = {"array": name, "scale": 255} if steps[name].dtype.startswith("float") else name
        if steps[name].dtype.startswith("float"):
            remarks.append(f"{name} is taken for images in [0, 1]: leave scale out where they are in [0, 255]")
        roles[name] = f"camera {key}"
    encoded = [name for name, one in steps.items() if _encoded(one) and name not in roles]
    for name in encoded:
        named[_last(name)] = name
        roles[name] = f"camera {_last(name)}: encoded pictures"
    if named:
        layout |= {"cameras": named, "find_cameras": False}
    else:
        remarks.append("cameras: no array holds images (N, H, W, 3); a video for each episode is declared as video")


def _encoded(one: Listed) -> bool:
    named = "image" in one.name or "rgb" in one.name or "cam" in one.name
    return named and (one.dtype == "object" or (one.dtype == "uint8" and len(one.shape) == 2 and one.shape[1] > 64))


def _episodes(found: Listing, layout: dict[str, Any], roles: dict[str, str], remarks: list[str]) -> None:
    """Where episodes end."""
    if found.format == "lerobot" or found.episodes is not None:
        return
    whole = {n: one for n, one in found.arrays.items() if len(one.shape) == 1 or one.shape[1:] == (1,)}
    kinds = (("ends", _ENDS), ("lengths", _LENGTHS), ("numbers", _NUMBERS), ("last", _LAST))
    for kind, pattern in kinds:
        for name in whole:
            if pattern.fullmatch(name):
                layout["episode_ends"] = name
                if kind != "ends":
                    layout["boundaries"] = kind
                roles[name] = f"where episodes end ({kind})"
                return
    if found.format == "hdf5":
        remarks.append("episodes: the file is taken for one episode; name the groups or files of episodes (episodes)")
        return
    layout["episode_ends"] = FILL_IN
    remarks.append("episode_ends: fill in the array that says where episodes end, and its boundaries")


def _rows(found: Listing, layout: Mapping[str, Any]) -> int:
    """How many steps arrays have: those of actions, else the most frequent length."""
    arrays = {name: one for name, one in found.arrays.items() if one.shape and name != layout.get("episode_ends")}
    actions = [name for name, one in arrays.items() if _ACTION.fullmatch(name) and one.numbers]
    if actions:
        return arrays[min(actions, key=_plainness)].shape[0]
    lengths = [one.shape[0] for one in arrays.values()]
    return max(set(lengths), key=lambda n: (lengths.count(n), n), default=0)
