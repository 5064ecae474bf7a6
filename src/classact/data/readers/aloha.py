"""ACT's and ALOHA's HDF5 files: a folder of ``episode_i.hdf5``.

One file is one episode: ``/action`` and ``/observations/qpos`` (T, n), joint positions, 14 for ALOHA's two arms, and
``/observations/images/<camera>``, (T, H, W, 3) or, with the attribute ``compress``, (T, L) bytes of JPEG files padded
with zeros (``/compress_len`` holds their lengths).

Channels of compressed images: ALOHA's recorder passes RGB arrays to OpenCV, which takes them for BGR; its readers
decode with OpenCV and swap nothing, so both errors cancel, as they do here. Viewers of the JPEG bytes show red and blue
swapped. Where a writer encoded true RGB, or recorded BGR, declare ``{"bgr": true}`` in a layout.

Mobile ALOHA's ``/base_action`` (T, 2), the base's linear and angular velocity, follows the joints. Simulator states are
not recorded, so these episodes cannot be re-rendered.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from classact.data.actions import ActionSpace, Part
from classact.data.layout import Layout
from classact.data.readers import hdf5 as h5
from classact.data.readers import hdf5_arrays
from classact.data.readers.hdf5_images import Frames, demonstrations, encoded_frames, frames
from classact.data.schema import Schema
from classact.data.types import Demonstrations
from classact.errors import ConfigError, DataError

DESCRIPTION = "a folder of ALOHA's episode_0.hdf5, episode_1.hdf5, ..."
_LAYOUT = ("cameras", "bgr")

SIMULATOR = "aloha-transfer"
ARM_JOINTS = 6
DIM = 2 * (ARM_JOINTS + 1)
BASE = "base_action"
FPS = 50.0
"""Of ACT's recorder (DT = 0.02 s); files do not say it."""
_NAME = re.compile(r"episode_(\d+)\.(?:hdf5|h5)")


def matches(path: Path) -> bool:
    """A folder that holds an ``episode_i.hdf5``, or one such file."""
    if path.is_dir():
        return any(_NAME.fullmatch(entry.name) and not entry.is_dir() for entry in path.iterdir())
    return path.is_file() and _NAME.fullmatch(path.name) is not None


listing = hdf5_arrays.listing


def declared_simulator(path: Path) -> str:
    """ "aloha-transfer" where the (first) episode was simulated (attribute ``sim``) and has its schema.

    ACT has two simulated tasks of one schema, told apart only by the names of their folders.
    """
    files = [path] if path.is_file() else h5.listed(path, _number)
    folder = path.absolute() if path.is_dir() else path.absolute().parent
    if not files or "insertion" in folder.name:
        return ""
    try:
        with h5.open_file(files[0]) as root:
            shapes = [getattr(root.get(name), "shape", ())[1:] for name in ("action", "observations/qpos")]
            return SIMULATOR if bool(root.attrs.get("sim", False)) and shapes == [(DIM,), (DIM,)] else ""
    except (ConfigError, DataError):
        return ""  # read() reports what is wrong


def read(path: Path, *, episodes: int | None = None, layout: Layout | Path | None = None) -> Demonstrations:
    """Read a folder of episodes, by number, or one episode's file; ``layout`` declares ``cameras`` and ``bgr``.

    Returns:
        Demonstrations with (N, n) actions, for n = 14 ``ActionSpace.joints(6, "left", "right")``, and a mobile base's
        two velocities behind them; (N, n) proprioception "qpos", no states, images at native resolution.

    Raises:
        DataError: damage, missing groups, arrays that do not match, NaN, images that cannot be decoded; names the file.
        ConfigError: more episodes than there are, an invalid layout.
    """
    if hdf5_arrays.declares(path, layout):
        return hdf5_arrays.read(path, episodes=episodes, layout=layout)
    chosen = h5.resolve_layout(layout, _LAYOUT)
    declared = chosen.camera_arrays()
    files = [path] if path.is_file() else h5.listed(path, _number, warn=True)
    if not files:
        raise DataError(f"{path}: holds 0 files episode_i.hdf5, expected one for each episode.")
    files = files[: h5.check_episodes(episodes, len(files), path)]
    recordings = []
    joints: int | None = None
    total, left = 0, list[str]()
    images: list[dict[str, Frames]] = []
    for file in files:
        with h5.open_file(file) as root:
            actions = h5.recorded_actions(root, "action", joints)
            steps = None if actions is None else len(actions)
            joints = joints if actions is None else actions.shape[1]
            if actions is not None and BASE in root:
                actions = np.concatenate([actions, h5.matrix(root, BASE, rows=steps)], axis=1)
            dimensions = total if actions is None else actions.shape[1]
            if dimensions != (total := total or dimensions):
                raise DataError(
                    f"{file}: {dimensions - (joints or 0)} dimensions of {BASE}, {files[0]} has "
                    f"{total - (joints or 0)}. Read them apart."
                )
            observations = h5.group(root, "observations", "ACT's layout: /action, /observations/qpos and images")
            seen = h5.matrix(observations, "qpos", joints, steps)
            joints, steps = seen.shape[1], len(seen)
            recordings.append(h5.Recording(str(file), actions, seen, None))
            left = left or [f"observations/{name}" for name in ("qvel", "effort") if name in observations]
            pictures = observations.get("images", {})
            cameras = {name: name for name in sorted(pictures)} if declared is None else declared
            if images and set(cameras) != set(images[0]):
                raise DataError(
                    f"{file}: observations/images holds {sorted(cameras) or 'none'}, {files[0]} holds "
                    f"{sorted(images[0]) or 'none'}. Expected the same cameras in all episodes; choose those in common "
                    f"in a layout (cameras), or read the folders apart."
                )
            images.append({camera: _frames(observations, key, steps, chosen.bgr) for camera, key in cameras.items()})
    assert joints is not None
    space = _space(joints, total - joints) if total else None
    assumption = "" if not total or joints == DIM else f"the {joints} dimensions of actions are joint positions"
    schema = Schema(tuple(images[0]), (("qpos", joints),), actions=space, fps=FPS, assumption=assumption)
    parts = {camera: [of_episode[camera] for of_episode in images] for camera in images[0]}
    return demonstrations(path.stem, path, recordings, parts, schema, unread=tuple(left))


def _space(joints: int, base: int) -> ActionSpace:
    """Of so many joints, and velocities of a base."""
    arms = (
        ActionSpace.joints(ARM_JOINTS, "left", "right").parts if joints == DIM else (Part("joints", "joint", joints),)
    )
    return ActionSpace((*arms, *((Part("base", "velocity", base),) if base else ())))


def _number(path: Path) -> int | None:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def _frames(observations: Any, camera: str, steps: int, bgr: bool) -> Frames:
    key = f"images/{camera}"
    dataset = observations.get(key)
    if getattr(dataset, "ndim", 0) in (1, 2):
        return encoded_frames(observations, key, steps, bgr=bgr)
    return frames(observations, key, steps, bgr=bgr)
