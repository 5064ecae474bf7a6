"""Diffusion Policy's Zarr stores: ``data/{img, state, action, ...}`` and ``meta/episode_ends``, Zarr version 2 or 3.

As in ``ReplayBuffer`` of https://github.com/real-stanford/diffusion_policy, every array of ``data`` has one row per
step; ``meta/episode_ends`` is the cumulative number of steps. ``data/action[t]`` is taken at row t.

A :class:`ZarrLayout` declares which array is what: in Python, in a JSON file, or in ``classact.json`` in the store.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.data.actions import ActionSpace
from classact.data.images import ImageSource
from classact.data.readers import first_episodes, read_layout
from classact.data.readers.zarr_store import ZarrArray, ZarrStore
from classact.data.schema import Schema
from classact.data.types import Demonstrations, ImageArray
from classact.errors import ConfigError, DataError
from classact.utils.codec import fields_from_json, to_json

DESCRIPTION = "a Zarr folder, or a .zip of one, with data/action and meta/episode_ends"
_ROBOT = ("state", "robot", "agent_pos", "qpos", "joint", "eef", "ee_", "gripper", "proprio")
"""Beginnings of arrays' names that are taken for proprioception where a store declares nothing."""

LAYOUT_FILE = "classact.json"  # the layout that lies in the store itself, beside data and meta
_DECLARE = f"declare which array is what in a layout (--layout FILE.json, {LAYOUT_FILE} in the store, or a ZarrLayout)"


@dataclass(frozen=True)
class Columns:
    """An array, or the columns (None: all) wanted of it, in order; ``array`` is named as in :class:`ZarrLayout`."""

    array: str
    columns: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ZarrLayout:
    """Which array of a store is what; undeclared arrays are not read. The default is :data:`PUSH_T`.

    An array is named by its key in ``data``, or, with a slash, by its path in the store ("meta/language").

    Attributes:
        data: group of the arrays with one row per step.
        episode_ends: path of the array of cumulative numbers of steps.
        action: the (N, D_a) actions.
        action_space: what the D_a dimensions mean; None: what D_a and the actions suggest
            (:meth:`classact.data.schema.Schema.assumed`).
        state: the (N, D_s) full simulator states; None for data without (real robots).
        proprioception: key, as in the schema -> (N, D) or (N,) array, or columns of one; concatenated in this order to
            (D_p,).
        language: embedding of each episode's instruction: (E, D_l), or (N, D_l) with equal rows within an episode.
        cameras: camera name -> (N, H, W, 3) images.
        find_cameras: every other array of shape (N, H, W, 3) in ``data`` is a camera as well, named by its key.
    """

    data: str = "data"
    episode_ends: str = "meta/episode_ends"
    action: str = "action"
    action_space: ActionSpace | None = None
    state: str | None = None
    proprioception: Mapping[str, str | Columns] = field(default_factory=dict)
    language: str | None = None
    cameras: Mapping[str, str] = field(default_factory=dict)
    find_cameras: bool = True

    @staticmethod
    def from_json(value: Any, where: str = "layout") -> ZarrLayout:
        """A layout from JSON: an object of this class's fields, all optional; a ConfigError for anything else.

        A proprioception key has the name of an array, or ``{"array": NAME, "columns": [0, 1]}``; ``action_space`` is a
        name of :data:`classact.data.actions.ACTION_SPACES`, or an :class:`~classact.data.actions.ActionSpace`.
        """
        space = value.get("action_space") if isinstance(value, dict) else None
        if isinstance(space, str):
            try:
                value = {**value, "action_space": to_json(ActionSpace.named(space))}
            except ConfigError as problem:
                raise ConfigError(f"{where}.action_space: {problem}") from None
        return fields_from_json(ZarrLayout, value, where, error=ConfigError, partial=True)


PUSH_T = ZarrLayout(state="state", proprioception={"agent_pos": Columns("state", (0, 1))}, cameras={"top": "img"})
"""Diffusion Policy's Push-T: the agent's x and y, in pixels of its 512 x 512 world, are the first two of the state."""
_PUSH_T_WORDS = "Push-T's layout"


def matches(path: Path) -> bool:
    """A folder with Zarr metadata or named like a store; a zip file named like one."""
    if path.is_dir():
        marks = (path / ".zgroup", path / "zarr.json")
        return path.suffix == ".zarr" or any(mark.is_file() for mark in marks) or (path / "meta/episode_ends").is_dir()
    return path.name.endswith(".zarr.zip") or (path.suffix == ".zip" and _is_zipped(path))


def _is_zipped(path: Path) -> bool:
    """Whether an archive holds a store."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False
    return any(f"/{name}".endswith(("/meta/episode_ends/.zarray", "/meta/episode_ends/zarr.json")) for name in names)


def declared_simulator(path: Path) -> str:
    """ "pusht" for a store without a layout whose actions and states have Push-T's sizes; reading says so aloud."""
    try:
        store = ZarrStore(path)
        if store.size(LAYOUT_FILE) is not None:
            return ""
        _, words = assumed_layout(store)
    except (ConfigError, DataError):
        return ""  # read() reports what is wrong
    return "pusht" if words == _PUSH_T_WORDS else ""


def read(path: Path, *, episodes: int | None = None, layout: ZarrLayout | Path | None = None) -> Demonstrations:
    """Read a store (a folder or ``.zarr.zip``); images are decoded on demand.

    The layout is by default ``classact.json`` in the store, else Push-T's.

    Raises:
        DataError: missing or damaged files, arrays that match neither each other nor the layout, unusable values.
        ConfigError: more episodes than there are; an invalid layout.
    """
    store = ZarrStore(path)
    if isinstance(layout, Path):
        layout = read_layout(ZarrLayout, layout, f"layout {layout}")
    elif layout is None and store.size(LAYOUT_FILE) is not None:
        layout = read_layout(ZarrLayout, store.head(LAYOUT_FILE), f"{path}: {LAYOUT_FILE}")
    demonstrations, cameras = _without_images(store, layout)
    demonstrations = first_episodes(demonstrations, episodes)
    steps = demonstrations.num_steps
    return demonstrations.with_images({camera: ZarrImages(array, steps) for camera, array in cameras.items()})


def _without_images(store: ZarrStore, declared: ZarrLayout | None) -> tuple[Demonstrations, dict[str, ZarrArray]]:
    """Everything but the images, and the images' arrays."""
    layout, assumed_words = assumed_layout(store) if declared is None else (declared, "")
    action = _array(store, layout, layout.action)
    state = None if layout.state is None else _array(store, layout, layout.state)
    robot = {key: Columns(part) if isinstance(part, str) else part for key, part in layout.proprioception.items()}
    arrays = {key: _array(store, layout, part.array) for key, part in robot.items()}
    cameras = _cameras(store, layout)
    for array in (*([] if state is None else [state]), *arrays.values(), *cameras.values()):
        if array.shape[:1] != action.shape[:1]:
            raise DataError(
                f"{array.where} has shape {array.shape}, but {action.key} has shape {action.shape}: expected the same "
                f"number of rows, one per step. The file is incomplete; copy or download the data again, or cut all "
                f"arrays to the shorter length."
            )
    actions = _cast(_matrix(action), np.float32)
    parts = {key: _columns(array, key, robot[key].columns) for key, array in arrays.items()}
    schema = Schema((), tuple((key, part.shape[1]) for key, part in parts.items()), actions=layout.action_space)
    if layout.action_space is None:
        assumed = Schema.assumed((), schema.proprioception_dim, actions.shape[1], values=actions)
        assumption = "; ".join(filter(None, (assumed_words, assumed.assumption)))
        schema = replace(schema, actions=assumed.actions, assumption=assumption)
    path = store.path
    demonstrations = Demonstrations(
        name=path.name.removesuffix(".zip").removesuffix(".zarr").replace("_", "-"),
        episode_ends=_episode_ends(store, layout),
        actions=actions,
        proprioception=_cast(np.concatenate([np.zeros((len(actions), 0)), *parts.values()], axis=1), np.float32),
        states=None if state is None else _cast(_matrix(state), np.float64),
        source=str(path),
        schema=schema,
    )
    if layout.language is not None:
        language = _language(_array(store, layout, layout.language), demonstrations)
        schema = replace(schema, language=language.shape[1])
        demonstrations = replace(demonstrations, language=language, schema=schema)
    return demonstrations, cameras


def assumed_layout(store: ZarrStore) -> tuple[ZarrLayout, str]:
    """The layout of a store that declares none, and what it assumes, in words.

    Push-T's, where actions and states have its sizes; else actions are ``action``, proprioception is every array of a
    row of numbers per step whose name says that it is a robot's, and cameras are all images. A DataError where there
    are no actions.
    """
    action = _array(store, PUSH_T, PUSH_T.action)
    names = store.arrays(PUSH_T.data)
    if action.shape[1:] == (2,) and "state" in names and store.array("data/state").shape[1:] == (5,):
        return (PUSH_T if "img" in names else replace(PUSH_T, cameras={})), _PUSH_T_WORDS
    arrays = {name: store.array(f"{PUSH_T.data}/{name}") for name in names if name != PUSH_T.action}
    robot = {name: name for name, array in arrays.items() if name.startswith(_ROBOT) and _is_numbers(array)}
    images = [name for name, array in arrays.items() if len(array.shape) == 4 and array.shape[3] == 3]
    left = [name for name in arrays if name not in (*robot, *images)]
    words = f"proprioception is {', '.join(robot) or 'nothing'}, cameras are {', '.join(images) or 'none'}"
    words += f"; not read: {', '.join(left)}" if left else ""
    return ZarrLayout(proprioception=robot), words


def _is_numbers(array: ZarrArray) -> bool:
    return len(array.shape) in (1, 2) and array.dtype.kind in "fiu"


def _array(store: ZarrStore, layout: ZarrLayout, name: str) -> ZarrArray:
    path = name if "/" in name else f"{layout.data}/{name}"
    group, _, key = path.rpartition("/")
    keys = store.arrays(group)
    if key not in keys:
        raise DataError(
            f"{store.path}: {path} is missing; arrays in {group}: {', '.join(keys) or 'none'}. Either this is not a "
            f"Diffusion Policy store ({DESCRIPTION}), or its keys differ: {_DECLARE}."
        )
    return store.array(path)


def _cameras(store: ZarrStore, layout: ZarrLayout) -> dict[str, ZarrArray]:
    cameras = {camera: _array(store, layout, name) for camera, name in layout.cameras.items()}
    for array in cameras.values():
        if len(array.shape) != 4 or array.shape[3] != 3:
            raise DataError(
                f"{array.where} has shape {array.shape}, expected images of shape (N, H, W, 3): one RGB frame per "
                f"step, channels last. Transpose or convert the array."
            )
    declared = {array.key for array in cameras.values()}
    for name in store.arrays(layout.data) if layout.find_cameras else []:
        array = store.array(f"{layout.data}/{name}")
        if array.key in declared or len(array.shape) != 4 or array.shape[3] != 3:
            continue
        if name in cameras:
            raise DataError(
                f"{array.where} holds images, but camera {name!r} is declared as {cameras[name].key}. Declare another "
                f"name for one of them, or set find_cameras to false."
            )
        cameras[name] = array
    return cameras


def _episode_ends(store: ZarrStore, layout: ZarrLayout) -> NDArray[np.int64]:
    array = _array(store, layout, layout.episode_ends)
    if array.dtype.kind not in "iu" or len(array.shape) != 1:
        raise DataError(
            f"{array.where} has shape {array.shape} and dtype {array.dtype}, expected (E,) integers: the cumulative "
            f"number of steps after each episode."
        )
    return array.read().astype(np.int64)


def _language(array: ZarrArray, data: Demonstrations) -> NDArray[np.float32]:
    """(E, D_l): one row per episode, whether stored so or repeated at each step."""
    values = _matrix(array)
    if len(values) not in (len(data), data.num_steps):
        raise DataError(
            f"{array.where} has shape {array.shape}, expected one embedding for each of {len(data)} episodes or for "
            f"each of {data.num_steps} steps."
        )
    if len(values) == data.num_steps:
        first = values[data.episode_ends - data.lengths]
        rows = first[data.episode_index()]
        # NaN is no difference here: Demonstrations reports where it is.
        differs = ((values != rows) & ~((values != values) & (rows != rows))).any(axis=1)
        if differs.any():
            step = int(np.argmax(differs))
            episode = int(data.episode_index()[step])
            raise DataError(
                f"{array.where} differs within episode {episode}: step {step} holds another embedding than step "
                f"{data.bounds(episode)[0]}. Expected one instruction for each episode; split the episode there, or "
                f"leave language out."
            )
        values = first
    return _cast(values, np.float32)


def _matrix(array: ZarrArray, *, flat: bool = False) -> NDArray[Any]:
    """(N, D) numbers; where ``flat``, also (N,), as a gripper's opening is often stored."""
    if flat and len(array.shape) == 1 and array.dtype.kind in "fiu":
        return array.read()[:, None]
    if len(array.shape) != 2 or array.dtype.kind not in "fiu":
        raise DataError(
            f"{array.where} has shape {array.shape} and dtype {array.dtype}, expected (N, D) numbers: one row per step."
        )
    return array.read()


def _cast(values: NDArray[Any], dtype: type) -> NDArray[Any]:
    # A float64 beyond float32 becomes infinite; Demonstrations reports where it is.
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, dtype=dtype)


def _columns(array: ZarrArray, key: str, columns: tuple[int, ...] | None) -> NDArray[Any]:
    values = _matrix(array, flat=True)
    if columns is None:
        return values
    if not columns or min(columns) < 0 or max(columns) >= values.shape[1]:
        raise DataError(
            f"{array.where} has {values.shape[1]} columns, but proprioception {key!r} is declared as columns "
            f"{tuple(columns)}. Declare columns from 0 to {values.shape[1] - 1}."
        )
    return values[:, list(columns)]


class ZarrImages(ImageSource):
    """A camera's images in the first ``steps`` rows of an array; missing or truncated chunks, and numbers other than
    0..255, are DataErrors.
    """

    def __init__(self, array: ZarrArray, steps: int) -> None:
        if array.dtype.kind not in "fiu":
            raise DataError(f"{array.where} has dtype {array.dtype}, expected images of numbers from 0 to 255.")
        array.check_files(steps)
        self._array = array
        self.chunk, self.itemsize = array.chunks[0], array.dtype.itemsize
        _, height, width, _ = array.shape
        self.shape = (steps, height, width, 3)
        if array.dtype.kind == "f" and self.decode(0, min(steps, array.chunks[0])).max() == 1:
            raise DataError(
                f"{array.where}: the largest value is 1.0; expected values from 0 to 255. These look like images "
                f"scaled to [0, 1]: multiply by 255, round, and store them as uint8."
            )

    def digest(self) -> str:
        """Of the chunk files as stored."""
        return self._array.digest(len(self))

    def decode(self, start: int, stop: int) -> ImageArray:
        """Rows of the array; types other than uint8 are converted where exact."""
        return _to_uint8(self._array.read(start, stop), self._array, start)


def _to_uint8(values: NDArray[Any], array: ZarrArray, first: int) -> ImageArray:
    """Convert whole numbers 0..255 of any dtype exactly; anything else is an error that says where and what."""
    if values.dtype == np.uint8:
        return values
    low, high = values.min(), values.max()
    # Written so that NaN, which compares false with everything, fails.
    if low >= 0 and high <= 255:
        converted = values.astype(np.uint8)
        if values.dtype.kind != "f" or np.array_equal(converted, values):
            return converted
        bad, why = values != converted, "is not a whole number"
        if high <= 1:
            why += ". These look like images scaled to [0, 1]: multiply by 255, round, and store them as uint8"
    else:
        bad, why = ~((values >= 0) & (values <= 255)), "is not in 0..255"
    row, *pixel = np.argwhere(bad)[0].tolist()
    raise DataError(
        f"{array.where}[{', '.join(map(str, (first + row, *pixel)))}] is {values[bad][0]}, which {why}. Expected RGB "
        f"images of whole numbers from 0 to 255; {int(bad.sum()):,} of {values.size:,} values around it are not."
    )
