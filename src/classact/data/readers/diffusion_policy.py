"""Diffusion Policy's Zarr stores: ``data/{img, state, action, ...}`` and ``meta/episode_ends``, Zarr version 2 or 3.

As in ``ReplayBuffer`` of https://github.com/real-stanford/diffusion_policy, every array of ``data`` has one row per
step; ``meta/episode_ends`` is the cumulative number of steps. ``data/action[t]`` is taken at row t. Real robots have
``videos/EPISODE/CAMERA.mp4`` beside the store, which is called ``replay_buffer.zarr``.

A :class:`~classact.data.layout.Layout` declares which array is what.
"""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from classact.data.images import ImageSource
from classact.data.layout import LAYOUT_FILE, NONE, Camera, Columns, Layout, Values
from classact.data.named_layouts import WITHOUT_ACTIONS, Listed, Listing
from classact.data.readers import read_layout
from classact.data.readers.declared import (
    assemble,
    chosen_layout,
    episode_ends,
    not_there,
    resolve_layout,
    to_uint8,
    undeclared,
)
from classact.data.readers.zarr_store import ZarrArray, ZarrStore
from classact.data.types import Demonstrations, ImageArray, IntArray
from classact.errors import ConfigError, DataError

DESCRIPTION = "a Zarr folder, or a .zip of one, with data/action and meta/episode_ends"
_ROBOT = ("state", "robot", "agent_pos", "qpos", "joint", "eef", "ee_", "gripper", "proprio")
"""Beginnings of arrays' names that are taken for proprioception where a store declares nothing."""

_STORE, _VIDEOS = "replay_buffer.zarr", "videos"
DATA, ENDS = "data", "meta/episode_ends"
_TAKES = (
    *("data", "episode_ends", "boundaries", "unfinished", "action", "next_state", "action_space", "state"),
    *("proprioception", "language", "cameras", "find_cameras", "fps", "timestamps"),
)

PUSH_T = Layout(
    state="state", proprioception={"agent_pos": Values.of(Columns("state", (0, 1)))}, cameras={"top": Camera("img")}
)
"""Diffusion Policy's Push-T: the agent's x and y, in pixels of its 512 x 512 world, are the first two of the state."""
_PUSH_T_WORDS = "Push-T's layout"


def matches(path: Path) -> bool:
    """A folder with Zarr metadata or named like a store, or that holds Diffusion Policy's; a zip file of one."""
    if path.is_dir():
        marks = (path / ".zgroup", path / "zarr.json")
        own = path.suffix == ".zarr" or any(mark.is_file() for mark in marks) or (path / ENDS).is_dir()
        return own or (path / _STORE).is_dir()
    return path.name.endswith(".zarr.zip") or (path.suffix == ".zip" and _is_zipped(path))


def _is_zipped(path: Path) -> bool:
    """Whether an archive holds a store."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # damaged archives raise errors of many kinds
        return False
    return any(f"/{name}".endswith(("/.zarray", "/.zgroup", "/zarr.json")) for name in names)


def declared_simulator(path: Path) -> str:
    """ "pusht" for a store without a layout whose actions and states have Push-T's sizes; reading says so aloud."""
    try:
        arrays = ZarrArrays(path)
        if arrays.store.size(LAYOUT_FILE) is not None:
            return ""
        _, words = _assumed(arrays)
    except (ConfigError, DataError):
        return ""  # read() reports what is wrong
    return "pusht" if words.startswith(_PUSH_T_WORDS) else ""


def read(path: Path, *, episodes: int | None = None, layout: Layout | Path | None = None) -> Demonstrations:
    """Read a store (a folder or ``.zarr.zip``); images are decoded on demand.

    The layout is by default ``classact.json`` in the store, else one of :data:`classact.data.named_layouts.LAYOUTS`
    that fits, else Push-T's.

    Raises:
        DataError: missing or damaged files, arrays that match neither each other nor the layout, unusable values.
        ConfigError: more episodes than there are; an invalid layout.
    """
    arrays = ZarrArrays(path)
    if layout is None and arrays.store.size(LAYOUT_FILE) is not None:
        layout = read_layout(Layout, arrays.store.head(LAYOUT_FILE), f"{path}: {LAYOUT_FILE}")
    if layout is None:
        arrays.layout, words = _assumed(arrays)
    else:
        found, words = chosen_layout(layout, arrays.listing(), path)
        arrays.layout = resolve_layout(found, _TAKES) or Layout()
    return assemble(arrays, words, episodes=episodes)


def listing(path: Path) -> Listing:
    """All arrays of a store."""
    return ZarrArrays(path).listing()


def _assumed(arrays: ZarrArrays) -> tuple[Layout, str]:
    """The layout of a store that declares none, and what it assumes, in words.

    Push-T's, where actions and states have its sizes, or a named one; else actions are ``action``, proprioception is
    every array of a row of numbers per step whose name says that it is a robot's, and cameras are all images. Without
    any array that is named like actions, demonstrations carry none. An UndeclaredError where there are others, or
    nothing is observed.
    """
    found = arrays.listing()
    names = found.arrays
    without = "action" not in names and not found.actions()
    if found.widths(action=2, state=5) or (without and found.widths(state=5) and {"img", "keypoint"} <= set(names)):
        made = PUSH_T if "img" in names else replace(PUSH_T, cameras=None)
        return (replace(made, action=NONE), f"{_PUSH_T_WORDS}; {WITHOUT_ACTIONS}") if without else (made, _PUSH_T_WORDS)
    layout, words = chosen_layout(None, found, arrays.path)
    if layout is not None:
        return layout, words
    robot = [name for name, one in names.items() if "/" not in name and name.startswith(_ROBOT) and one.numbers]
    cameras = arrays.found_cameras()
    if "action" not in names and not (without and (robot or cameras)):
        inside = [name for name in names if "/" not in name]
        raise undeclared(
            arrays.path,
            found,
            f"{arrays.path}: data/action is missing; arrays in data: {', '.join(inside) or 'none'}",
            DESCRIPTION,
        )
    words = f"proprioception is {', '.join(robot) or 'nothing'}, cameras are {', '.join(cameras) or 'none'}"
    made = Layout(proprioception={name: Values.of(name) for name in robot})
    return (replace(made, action=NONE), f"{WITHOUT_ACTIONS}; {words}") if without else (made, words)


class ZarrArrays:
    """The arrays of a store, for :func:`~classact.data.readers.declared.assemble`."""

    def __init__(self, path: Path, layout: Layout | None = None) -> None:
        inner = path / _STORE
        inside = path.is_dir() and inner.is_dir() and not (path / DATA).is_dir()
        self.path, self.base = path, path if inside or path.name != _STORE else path.absolute().parent
        self.store = ZarrStore(inner if inside else path)
        self.layout = Layout() if layout is None else layout
        self._whole = not self.store.has_group(DATA)  # arrays lie in the store itself
        self.fps: float | None = None
        self._known: dict[str, ZarrArray] = {}

    @property
    def _data(self) -> str:
        return self.layout.data if self.layout.data is not None else "" if self._whole else DATA

    def key(self, name: str) -> str:
        """The path of an array."""
        joined = f"{self._data}/{name}"
        if "/" in name or not self._data or (not self.store.has_array(joined) and self.store.has_array(name)):
            return name
        return joined

    def listing(self) -> Listing:
        """All arrays of the store."""
        found = {}
        for key in self.store.all_arrays():
            shape, dtype = self.store.described(key)
            name = key.removeprefix(f"{self._data}/") if self._data else key
            name = key if "/" in name else name
            found[name] = Listed(name, shape, dtype)
        return Listing("zarr", found)

    def array(self, name: str) -> ZarrArray:
        """An array by its key in ``data``, or its path."""
        path = self.key(name)
        if path not in self._known:
            group, _, key = path.rpartition("/")
            keys = self.store.arrays(group)
            if key not in keys:
                inside = f"arrays in {group or 'the store'}: {', '.join(keys) or 'none'}"
                raise not_there(self, f"{self.path}: {path} is missing; {inside}", DESCRIPTION)
            self._known[path] = self.store.array(path)
        return self._known[path]

    def ends(self, rows: int) -> IntArray:
        """Where episodes end."""
        return episode_ends(self.array(self.layout.episode_ends or ENDS), self.layout.boundaries, rows)

    def found_cameras(self) -> dict[str, Camera]:
        """All arrays of images in ``data``; where there are none, videos beside the store."""
        names = self.store.arrays(self._data)
        shapes = {name: Listed(name, *self.store.described(self.key(name))) for name in names}
        found = {name: Camera(name) for name, one in shapes.items() if one.images}
        first = self.base / _VIDEOS / "0"
        if not found and first.is_dir():
            for file in sorted(first.glob("*.mp4")):
                name = f"camera{file.stem}" if file.stem.isdigit() else file.stem
                found[name] = Camera(video=f"{_VIDEOS}/{{episode}}/{file.name}")
        return found

    def folder(self, episode: int) -> str:  # noqa: ARG002 (all are in one place)
        """The data's own."""
        return "."

    def images(self, name: str, camera: Camera, where: str, rows: int) -> ImageSource:  # noqa: ARG002 (others say it)
        """The images of an array."""
        return ZarrImages(self.array(name), rows, camera)


class ZarrImages(ImageSource):
    """A camera's images in the first ``steps`` rows of an array, channels last or first; missing or truncated chunks,
    and numbers other than 0..255, are DataErrors.
    """

    def __init__(self, array: ZarrArray, steps: int, camera: Camera | None = None) -> None:
        if array.dtype.kind not in "fiu":
            raise DataError(f"{array.where} has dtype {array.dtype}, expected images of numbers from 0 to 255.")
        array.check_files(steps)
        self._array, self._camera = array, camera or Camera(array.key)
        self.chunk, self.itemsize = array.chunks[0], array.dtype.itemsize
        self._first = array.shape[3] != 3
        height, width = array.shape[2:] if self._first else array.shape[1:3]
        self.shape = (steps, height, width, 3)
        if array.dtype.kind == "f" and self.decode(0, min(steps, array.chunks[0])).max(initial=0) == 1:
            raise DataError(
                f"{array.where}: the largest value is 1.0; expected values from 0 to 255. These look like images "
                f"scaled to [0, 1]: multiply by 255, round, and store them as uint8, or declare the camera with "
                '"scale": '
                f"255."
            )

    def digest(self) -> str:
        """Of the chunk files as stored, and of how they are decoded."""
        how = (self._first, self._camera.scale, self._camera.bgr, self._camera.flip)
        return self._array.digest(len(self)) + ("" if how == (False, 1.0, False, False) else repr(how))

    def decode(self, start: int, stop: int) -> ImageArray:
        """Rows of the array; types other than uint8 are converted where exact."""
        values: NDArray[np.generic] = self._array.read(start, stop)
        camera = self._camera
        images = to_uint8(values, self._array.where, start, camera.scale)
        images = images.transpose(0, 2, 3, 1) if self._first else images
        images = images[:, ::-1] if camera.flip else images
        return np.ascontiguousarray(images[..., ::-1] if camera.bgr else images)
