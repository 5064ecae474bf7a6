"""HDF5 files by declaration: a group or a file for each episode, or one long episode with marks of where they end.

Files of robomimic, LIBERO and ACT have readers of their own, which read by a layout as well where it says ``action``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from classact.data.images import ImageSource
from classact.data.layout import LAYOUT_FILE, NONE, Camera, Layout
from classact.data.named_layouts import Listed, Listing, is_layout_name
from classact.data.readers import hdf5 as h5
from classact.data.readers import read_layout
from classact.data.readers.declared import (
    assemble,
    chosen_layout,
    counted_array,
    episode_ends,
    not_there,
    resolve_layout,
    undeclared,
)
from classact.data.readers.hdf5_images import Frames, encoded_frames, frames
from classact.data.readers.parts import RecordedImages
from classact.data.types import Demonstrations, IntArray
from classact.errors import ConfigError, DataError, UndeclaredError

DESCRIPTION = "HDF5 files that a layout declares: a group or a file for each episode"
_TAKES = (
    *("data", "episodes", "episode_ends", "boundaries", "unfinished", "action", "next_state", "action_space", "state"),
    *("proprioception", "language", "cameras", "find_cameras", "fps", "timestamps"),
)
_GROUPS = ("data/demo_*", "traj_*", "demo_*", "episode_*", "episodes/*", "trajectories/*", "data/*")
"""Patterns of groups that are tried for episodes where nothing is declared."""
_FILES = ("*.h*5", "*/*.h*5")
_RECORDINGS = "recordings/MP4"
_MEMBERS = 10_000  # of a file that are looked at

T = TypeVar("T")


def matches(path: Path) -> bool:
    """A file named like HDF5, or a folder of such files."""
    return h5.is_hdf5_name(path) or (path.is_dir() and _folder_pattern(path) is not None)


def read(path: Path, *, episodes: int | None = None, layout: Layout | Path | None = None) -> Demonstrations:
    """Read by a layout: the given one, ``classact.json`` in the folder, or a named one that fits.

    Raises:
        DataError: damage, missing arrays, or arrays that match neither each other nor the layout.
        UndeclaredError: nothing says which array is what.
        ConfigError: more episodes than there are; an invalid layout.
    """
    own = path / LAYOUT_FILE
    if layout is None and own.is_file():
        layout = read_layout(Layout, own, str(own))
    if isinstance(layout, Path) and layout.is_file():
        layout = read_layout(Layout, layout, f"layout {layout}")
    pattern = layout.episodes if isinstance(layout, Layout) and layout.episodes else guessed_episodes(path)
    arrays = Hdf5Arrays(path, Layout(episodes=pattern), episodes)
    found, words = chosen_layout(layout, arrays.listing(), path)
    if found is None:
        if path.is_dir() and pattern is not None and guessed_episodes(first := _files(path, pattern)[0]) is not None:
            raise UndeclaredError(
                f"{path} is a folder of HDF5 files that hold many episodes each; name one of them, such as {first}."
            )
        raise undeclared(
            path, arrays.listing(), f"{path}: nothing says which array is what", "a known layout of arrays"
        )
    resolve_layout(found, _TAKES)
    if found.episodes is None and found.episode_ends is None:
        found = replace(found, episodes=pattern)
    arrays = Hdf5Arrays(path, found, episodes)
    return assemble(arrays, words, episodes=episodes if arrays.flat else None)


def declares(path: Path, layout: Layout | Path | None) -> bool:
    """Whether a layout, given or in the folder, says what actions are, so that a format's own reader has no say."""
    own = path / LAYOUT_FILE
    if layout is None and own.is_file():
        layout = own
    if isinstance(layout, Path) and is_layout_name(layout):
        return True
    if isinstance(layout, Path):
        layout = read_layout(Layout, layout, f"layout {layout}")
    return layout is not None and layout.action is not None


def listing(path: Path) -> Listing:
    """All arrays of the first episode."""
    return Hdf5Arrays(path, Layout(episodes=guessed_episodes(path)), 1).listing()


def guessed_episodes(path: Path) -> str | None:
    """What episodes are in a file or folder that declares nothing; None: a file is one episode, or a flat one."""
    if path.is_dir():
        return _folder_pattern(path)
    with h5.open_file(path) as file:
        for pattern in _GROUPS:
            if _groups(file, pattern):
                return pattern
        numbered = re.compile(r"(.*?)\d+")
        for name in map(str, file):
            match = numbered.fullmatch(name)
            if match and _is_group(file, name):
                return f"{match[1]}*"
    return None


def _folder_pattern(path: Path) -> str | None:
    for pattern in _FILES:
        if _files(path, pattern):
            return pattern
    return None


def _files(path: Path, pattern: str) -> list[Path]:
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise ConfigError(f"episodes is {pattern!r}, expected a pattern of files within {path}.")
    found = [file for file in path.glob(pattern) if file.is_file() and file.suffix in h5.SUFFIXES]
    names = {str(file.relative_to(path)): file for file in found}
    return [names[name] for name in sorted(names, key=_natural) if not any(p[0] == "." for p in Path(name).parts)]


def _groups(file: Any, pattern: str) -> list[str]:
    """Groups of a file that a pattern names, by their numbers: demo_2 comes before demo_10."""
    parent, _, last = pattern.rpartition("/")
    group = file.get(parent) if parent else file
    if group is None or not hasattr(group, "keys"):
        return []
    name = re.compile(re.escape(last).replace(r"\*", ".*"))
    found = [str(key) for key in group if name.fullmatch(str(key)) and _is_group(group, str(key))]
    return [f"{parent}/{key}" if parent else key for key in sorted(found, key=_natural)]


def _is_group(parent: Any, name: str) -> bool:
    import h5py

    return isinstance(parent.get(name), h5py.Group)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", name)]


class Hdf5Arrays:
    """The arrays of episodes in HDF5 files, for :func:`~classact.data.readers.declared.assemble`.

    An array is as long as all episodes together. Where the arrays of observations have one row more than the actions in
    an episode (what was seen after the last action), that row is left out.
    """

    def __init__(self, path: Path, layout: Layout, episodes: int | None = None) -> None:
        self.path, self.layout = path, layout
        self.fps: float | None = None
        self.base = path if path.is_dir() else path.absolute().parent
        self._places = self._found()
        self.flat = layout.episodes is None and layout.episode_ends is not None
        if not self.flat:
            self._places = self._places[: h5.check_episodes(episodes, len(self._places), path)]
        self._known: dict[str, Hdf5Array] = {}
        self._steps: list[int] | None = None

    def _found(self) -> list[tuple[Path, str]]:
        """(file, group) of each episode."""
        pattern, group = self.layout.episodes, self.layout.data or "/"
        if self.path.is_dir():
            files = _files(self.path, pattern or "*.h*5")
            found = [(file, group) for file in files]
        elif pattern is None:
            found = [(self.path, group)]
        else:
            with h5.open_file(self.path) as file:
                inside = f"/{self.layout.data}" if self.layout.data else ""
                found = [(self.path, f"{name}{inside}") for name in _groups(file, pattern)]
        if not found:
            raise DataError(
                f"{self.path}: episodes are declared as {pattern!r}, but there are none. Declare what they are: groups "
                f"of a file (data/demo_*), or files of a folder (*.hdf5)."
            )
        return found

    def each(self, visit: Callable[[Any], T], most: int | None = None) -> list[T]:
        """What ``visit`` makes of the group of each episode (of the first so many), one file open at a time."""
        places, found = self._places[:most], list[T]()
        for path in dict.fromkeys(path for path, _ in places):
            with h5.open_file(path) as file:
                for name in (group for own, group in places if own == path):
                    found.append(visit(file if name == "/" else h5.group(file, name, "an episode")))
        return found

    def listing(self) -> Listing:
        """The arrays of the first episode."""
        found: dict[str, Listed] = {}

        def visit(name: str, node: Any) -> None:
            if len(found) < _MEMBERS and hasattr(node, "shape") and node.shape is not None:
                found[name] = Listed(name, tuple(node.shape), str(node.dtype))

        self.each(lambda node: node.visititems(visit), 1)
        return Listing("hdf5", found, self.layout.episodes)

    def key(self, name: str) -> str:
        """The path itself."""
        return name

    def array(self, name: str) -> Hdf5Array:
        """An array by its path within an episode."""
        if name not in self._known:
            self._known[name] = Hdf5Array(self, name)
        return self._known[name]

    def steps(self) -> list[int]:
        """Steps of each episode: the rows of its actions."""
        if self._steps is None:
            name = counted_array(self, self.layout)
            self._steps = self.each(lambda node: int((_dataset(node, name, self).shape or (0,))[0]))
            if 0 in self._steps:
                path, group = self._places[self._steps.index(0)]
                raise DataError(
                    f"{path}: {group.strip('/') or 'the file'}: {name} has 0 steps, expected at least 1. Remove the "
                    f"episode."
                )
        return self._steps

    def ends(self, rows: int) -> IntArray:
        """Where episodes end."""
        if self.flat:
            return episode_ends(self.array(str(self.layout.episode_ends)), self.layout.boundaries, rows)
        return np.cumsum(self.steps(), dtype=np.int64)

    def found_cameras(self) -> dict[str, Camera]:
        """All arrays of images in the first episode, encoded ones too where their name says that they are images."""
        found = {}
        for name, one in self.listing().arrays.items():
            encoded = one.dtype in ("uint8", "object") and len(one.shape) in (1, 2) and "image" in name
            if one.images or (encoded and (one.dtype == "object" or (len(one.shape) == 2 and one.shape[1] > 64))):
                if name.startswith(("next_obs/", "next_observations/")):
                    continue
                key = name.rpartition("/")[2]
                key = key.removesuffix("_image") if key not in ("rgb", "image", "color") else name.split("/")[-2]
                found[name.replace("/", "_") if key in found else key] = Camera(name)
        return found or self._recordings()

    def _recordings(self) -> dict[str, Camera]:
        """DROID's videos, which have a frame for each step; of stereo cameras the left view."""
        folder = self._places[0][0].parent / _RECORDINGS
        files = sorted(folder.glob("*.mp4")) if folder.is_dir() else []
        mono = [file for file in files if not file.stem.endswith("-stereo")]
        return {
            f"camera{file.stem}" if file.stem.isdigit() else file.stem: Camera(
                video=f"{{folder}}/{_RECORDINGS}/{file.name}", indexed=True
            )
            for file in mono
        }

    def folder(self, episode: int) -> str:
        """The folder of an episode's file."""
        return (
            self._places[0 if self.flat else episode][0].absolute().parent.relative_to(self.base.absolute()).as_posix()
        )

    def images(self, name: str, camera: Camera, where: str, rows: int) -> ImageSource:
        """The images of an array in all episodes; in a flat file the first ``rows``."""
        steps = iter([rows] if self.flat else self.steps())
        how: dict[str, Any] = {"flip": camera.flip, "bgr": camera.bgr}

        def part(node: Any) -> Frames:
            dataset, count = _dataset(node, name, self), next(steps)
            if dataset.ndim in (1, 2):
                return encoded_frames(node, name, len(dataset), count, **how)
            return frames(node, name, len(dataset), count, scale=camera.scale, **how)

        parts = self.each(part)
        return RecordedImages(where.partition("'")[2].rstrip("'") or name, parts)


class Hdf5Array:
    """An array of all episodes, one after another."""

    def __init__(self, arrays: Hdf5Arrays, name: str) -> None:
        self._arrays, self.key = arrays, name
        found = arrays.each(lambda node: _described(node, name, arrays))
        shapes = [(place, shape) for place, shape, _ in found]
        self.dtype: np.dtype[Any] = found[0][2]
        self.where, self._once = f"{arrays.path}: {name}", False
        self.shape: tuple[int, ...]
        self._rows: Sequence[int]
        if name == arrays.layout.language and not arrays.flat:
            several = self.dtype.kind in "OS" or len(shapes[0][1]) > 1  # else numbers are one embedding
            self._once = not all(
                shape[:1] == (own,) or (several and shape[:1] == (own + 1,))
                for (_, shape), own in zip(shapes, arrays.steps(), strict=True)
            )
        if self._once:  # an embedding, or a text, of each episode
            self._rows, size = [1] * len(shapes), int(np.prod(shapes[0][1]))
            self.shape = (len(shapes),) if self.dtype.kind in "OS" else (len(shapes), size)
            return
        for place, shape in shapes:
            if shape[1:] != shapes[0][1][1:] and not (len(shape) == 2 and self.dtype == np.uint8):
                raise DataError(
                    f"{place}: {name} has rows of shape {shape[1:]}, those of {shapes[0][0]} have {shapes[0][1][1:]}. "
                    f"Expected the same in all episodes; read them apart."
                )
        self._rows = [shape[0] if shape else 1 for _, shape in shapes]
        if not arrays.flat and shapes[0][1]:
            steps, main = arrays.steps(), counted_array(arrays, arrays.layout)
            what = "actions" if arrays.layout.action != NONE else f"of {main}"
            for (place, shape), own in zip(shapes, steps, strict=True):
                if shape[0] not in (own, own + 1):
                    raise DataError(
                        f"{place}: {name} has {shape[0]} rows, but there are {own} {what}. Expected one row per step; "
                        f"the demonstration is incomplete, leave it out or record it again."
                    )
            self._rows = steps
        self.shape = (sum(self._rows), *shapes[0][1][1:])

    def read(self) -> NDArray[Any]:
        """All rows; DataErrors for numbers that are not finite."""
        counts = iter(self._rows)

        def rows(node: Any) -> NDArray[Any]:
            dataset, count = _dataset(node, self.key, self._arrays), next(counts)
            h5.check_size(dataset)
            if self._once:
                values = np.asarray(dataset[()]).reshape(1, -1)
                values = values[:, 0] if len(self.shape) == 1 else values
            else:
                values = np.asarray(dataset[()])[None] if dataset.ndim == 0 else np.asarray(dataset[:count])
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                bad = [int(i) for i in np.argwhere(~np.isfinite(values))[0]]
                raise DataError(
                    f"{h5.where(node)}: {self.key}{bad} is {values[tuple(bad)]}, expected finite numbers. Drop or "
                    f"repair the demonstration."
                )
            return values

        return np.concatenate(self._arrays.each(rows))


def _described(node: Any, name: str, arrays: Hdf5Arrays) -> tuple[str, tuple[int, ...], np.dtype[Any]]:
    dataset = _dataset(node, name, arrays)
    return h5.where(node), tuple(dataset.shape), dataset.dtype


def _dataset(node: Any, name: str, arrays: Hdf5Arrays) -> Any:
    import h5py

    found = node.get(name)
    if not isinstance(found, h5py.Dataset) or found.shape is None:
        raise not_there(arrays, f"{h5.where(node)}: {name} is missing", "the arrays of an episode")
    return found
