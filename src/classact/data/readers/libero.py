"""LIBERO's HDF5 files: one ``*_demo.hdf5`` per task, or a folder of them.

Differences from robomimic's similar layout:

- Images are upside down, as OpenGL draws them (attribute ``macros_image_convention``: "opengl"), and are turned
  upright; "opencv" files are upright already.
- LIBERO's script writes into row t what was observed *after* action t, but the state *before* it. Observations then go
  with the actions and states of the next row, and each demonstration's last observation and first action are left out.
  Regenerated files often pair them properly; the joint positions, in observations and states alike, tell which.
- ``ee_states`` is the grip site's position and the axis-angle rotation of the *hand*
  (:mod:`classact.data.readers.osc`).

Actions become absolute 10-D poses; states of LIBERO-Object get the task's number in front.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.data.actions import ActionSpace
from classact.data.layout import Layout
from classact.data.readers import hdf5 as h5
from classact.data.readers import hdf5_arrays
from classact.data.readers.hdf5_images import Frames, demonstrations, frames
from classact.data.readers.osc import COMMAND_DIM, PROPRIOCEPTION, Controller, site_rotation
from classact.data.readers.robomimic import Environment, Raw, controller_of
from classact.data.rotations import axis_angle_to_matrix
from classact.data.schema import Schema
from classact.data.types import Demonstrations, FloatArray
from classact.errors import ConfigError, DataError

DESCRIPTION = "LIBERO's *_demo.hdf5 file of a task, or a folder of them"
_LAYOUT = ("cameras", "accept")

SIMULATOR = "libero-object"
PRODUCTS = (
    *("alphabet_soup", "cream_cheese", "salad_dressing", "bbq_sauce", "ketchup", "tomato_sauce", "butter"),
    *("milk", "chocolate_pudding", "orange_juice"),
)
"""What LIBERO-Object's tasks put into the basket, in the benchmark's order."""

TASKS = tuple(f"pick_up_the_{product}_and_place_it_in_the_basket" for product in PRODUCTS)
"""LIBERO-Object's tasks in the benchmark's order; a state's first number is an index here."""

CAMERAS: Mapping[str, str] = {"agentview": "agentview_rgb", "wrist": "eye_in_hand_rgb"}
"""Names of the cameras in classact's simulator -> keys of images."""

_ASSUMPTION = (
    "no states tell which row an observation belongs to: each is taken to be observed after its row's action, as "
    "LIBERO's script writes it"
)
_DEMO = "demonstrations demo_0, demo_1, ..."
_ENDING = "_demo"
_JOINTS = slice(1, 8)  # where a state [time, qpos, qvel] holds the arm's joints: LIBERO's models begin with the robot
Embed = Callable[[str], tuple[FloatArray, str]]  # instruction -> (D_l,) float32, and what made it
F64 = NDArray[np.float64]


def matches(path: Path) -> bool:
    """A file that declares its problem, or is named so and cannot be opened; a folder of files named so."""
    if path.is_dir():
        return any(_named(entry) for entry in path.iterdir())
    if not h5.is_hdf5_name(path):
        return False
    try:
        with h5.open_file(path) as file:
            return "problem_info" in file["data"].attrs or "bddl_file_name" in file["data"].attrs
    except (ConfigError, DataError, KeyError):
        return _named(path)


def _named(path: Path) -> bool:
    return path.suffix in h5.SUFFIXES and path.stem.endswith(_ENDING) and not path.name.startswith(".")


listing = hdf5_arrays.listing


def declared_simulator(path: Path) -> str:
    """ "libero-object" where the (first) file is of one of its tasks."""
    try:
        files = [path] if path.is_file() else h5.listed(path, _order)
        with h5.open_file(files[0]) as file:
            return SIMULATOR if _task_name(files[0], file["data"]) in TASKS else ""
    except (ConfigError, DataError, KeyError, IndexError):
        return ""  # read() reports what is wrong


@dataclass(frozen=True)
class _Task:
    """A file's demonstrations; ``assumed``: for some, no states tell which row an observation belongs to."""

    name: str
    instruction: str
    version: str
    recordings: tuple[h5.Recording, ...]
    assumed: bool
    images: Mapping[str, tuple[Frames, ...]]


def read(
    path: Path,
    *,
    episodes: int | None = None,
    layout: Layout | Path | None = None,
    embed: Embed | None = None,
) -> Demonstrations:
    """Read a file, or all ``*_demo.hdf5`` of a folder: LIBERO-Object's tasks in the benchmark's order, others by name.

    ``layout`` declares ``cameras`` and ``accept``. ``embed`` embeds an instruction, by default
    :func:`classact.data.language.embed_instruction`.

    Returns:
        Demonstrations with (N, 10) actions (:meth:`ActionSpace.pose`), (N, 18) proprioception, language, upright images
        of cameras "agentview" and "wrist". Where all tasks are of LIBERO-Object, ``simulator`` is "libero-object",
        with (N, D_s) states [task, time, qpos, qvel]; else empty, with states [time, qpos, qvel], None where tasks
        differ in their size.

    Raises:
        DataError: damage, missing groups or keys, arrays that do not match, NaN, controllers other than OSC_POSE; names
            file and demonstration.
        ConfigError: more episodes than there are, an invalid layout.
    """
    if hdf5_arrays.declares(path, layout):
        return hdf5_arrays.read(path, episodes=episodes, layout=layout)
    chosen = h5.resolve_layout(layout, _LAYOUT)
    declared = chosen.camera_arrays()
    files = [path] if path.is_file() else h5.listed(path, _order, warn=True)
    if not files:
        raise DataError(f"{path}: holds 0 files *{_ENDING}.hdf5, expected one for each task.")
    left = h5.check_episodes(episodes, sum(_count(file) for file in files), path)
    tasks: list[_Task] = []
    for file in files:
        if left > 0:
            tasks.append(_task(file, left, CAMERAS if declared is None else declared))
            left -= len(tasks[-1].recordings)
    recordings = [part for task in tasks for part in task.recordings]
    language, source = _language(tasks, embed)
    ours = all(task.name in TASKS for task in tasks)
    sizes = {None if part.states is None else part.states.shape[1] for part in recordings}
    states = h5.joined_states(recordings) if ours or len(sizes) == 1 else None
    simulator = SIMULATOR if ours and states is not None else ""
    versions = {"language": source}
    if tasks[0].version != h5.UNKNOWN:  # LIBERO's own files never say
        versions |= h5.versions(tasks[0].version, chosen)
    cameras = tuple(dict.fromkeys((*(CAMERAS if simulator else ()), *tasks[0].images)))
    schema = Schema(
        cameras,
        PROPRIOCEPTION,
        language.shape[1],
        ActionSpace.pose(),
        assumption=_ASSUMPTION if any(task.assumed for task in tasks) else "",
    )
    images = {camera: [part for task in tasks for part in task.images[camera]] for camera in tasks[0].images}
    known: dict[str, Any] = {"states": states, "language": language, "simulator": simulator, "versions": versions}
    return demonstrations(path.stem.removesuffix(_ENDING), path, recordings, images, schema, **known)


def _order(file: Path) -> tuple[int, str] | None:
    if not _named(file):
        return None
    name = file.stem.removesuffix(_ENDING)
    return (TASKS.index(name) if name in TASKS else len(TASKS), name)


def _count(path: Path) -> int:
    with h5.open_file(path) as file:
        return len(h5.numbered(h5.group(file, "data", f"LIBERO's layout: {_DEMO}"), "demo_", _DEMO))


def _task(path: Path, most: int, cameras: Mapping[str, str]) -> _Task:
    with h5.open_file(path) as file:
        data = file["data"]
        names = h5.numbered(data, "demo_", _DEMO)[:most]
        environment = Environment.of(data)
        demos = [h5.group(data, name, _DEMO) for name in names]
        controller = controller_of(data, environment) if any("actions" in demo for demo in demos) else None
        task = _task_name(path, data)
        upright = h5.text(data.attrs, "macros_image_convention") == "opencv"
        recordings, images, assumed = [], [], False
        for demo in demos:
            recording, late, told = _recording(demo, controller)
            assumed |= not told
            recordings.append(_with_task(recording, task))
            steps = len(recording)
            obs = h5.group(demo, "obs", "observations")
            images.append(
                {camera: frames(obs, key, steps + late, steps, flip=not upright) for camera, key in cameras.items()}
            )
        return _Task(
            task,
            _instruction(data, task),
            environment.version,
            tuple(recordings),
            assumed,
            {camera: tuple(parts[camera] for parts in images) for camera in cameras},
        )


def _task_name(path: Path, data: Any) -> str:
    """The benchmark's name: that of the BDDL file, or of the file itself."""
    bddl = h5.text(data.attrs, "bddl_file_name")
    return PurePosixPath(bddl).stem if bddl else path.stem.removesuffix(_ENDING)


def _instruction(data: Any, task: str) -> str:
    """The benchmark's instruction, a task's name in words, as in the simulator's observations.

    The files word it differently ("pick the ketchup ..." for "pick up the ketchup ..."), which would have another
    embedding. Theirs is used for tasks outside LIBERO-Object.
    """
    if task in TASKS:
        return task.replace("_", " ")
    info = h5.json_attribute(data, "problem_info")
    found = None if info is None else info.get("language_instruction")
    if isinstance(found, list):  # some recordings hold its words
        found = " ".join(str(word) for word in found)
    if not isinstance(found, str) or not found.strip():
        raise DataError(
            f"{h5.where(data)}: attribute 'problem_info' holds no language_instruction, expected the task in words. "
            f"Copy the attributes of the original file."
        )
    return found.strip().strip('"')


def _recording(demo: Any, controller: Controller | None) -> tuple[h5.Recording, int, bool]:
    """A demonstration, by how many rows its observations are late (0 or 1), and whether its states tell."""
    commands = h5.recorded_actions(demo, "actions", COMMAND_DIM)
    rows = len(h5.matrix(demo, "obs/ee_states", 6)) if commands is None else len(commands)
    states = h5.matrix(demo, "states", rows=rows) if "states" in demo else None
    hand, joints, fingers = (
        h5.matrix(demo, f"obs/{key}", size, rows)
        for key, size in (("ee_states", 6), ("joint_states", 7), ("gripper_states", 2))
    )
    where = h5.where(demo)
    late, told = _late(joints, states, where)
    if late:
        commands = None if commands is None else commands[1:]
        hand, joints, fingers = hand[:-1], joints[:-1], fingers[:-1]
        states = None if states is None else states[1:]
    position, rotation = hand[:, :3], site_rotation(axis_angle_to_matrix(hand[:, 3:]))
    raw = Raw(where, commands, position, rotation, joints, fingers, states)
    return raw.recording(controller), late, told


def _late(joints: F64, states: F64 | None, where: str) -> tuple[int, bool]:
    if len(joints) < 2:
        raise DataError(f"{where}: has {len(joints)} step, expected at least 2. Remove the demonstration.")
    if states is None or states.shape[1] < _JOINTS.stop:
        return 1, False  # what LIBERO's own script writes
    recorded = states[:, _JOINTS]
    same, next_ = np.abs(joints - recorded)[:-1].mean(), np.abs(joints[:-1] - recorded[1:]).mean()
    return int(next_ < same), True


def _with_task(recording: h5.Recording, task: str) -> h5.Recording:
    if recording.states is None or task not in TASKS:
        return recording
    number = np.full((len(recording.states), 1), float(TASKS.index(task)))
    return replace(recording, states=np.concatenate([number, recording.states], axis=1))


def _language(tasks: list[_Task], embed: Embed | None) -> tuple[FloatArray, str]:
    """(E, D_l), and what made them."""
    if embed is None:
        from classact.data.language import embed_instruction

        embed = embed_instruction
    found = [embed(task.instruction) for task in tasks]
    lengths = [len(task.recordings) for task in tasks]
    return np.repeat(np.stack([vector for vector, _ in found]), lengths, axis=0), found[0][1]
