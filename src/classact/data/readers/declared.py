"""Demonstrations by a :class:`~classact.data.layout.Layout`, whatever the format that the arrays are stored in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from classact.data.images import ImageSource
from classact.data.layout import LAYOUT_FILE, NONE, ROTATIONS, Boundaries, Camera, Columns, Layout, Values
from classact.data.named_layouts import LAYOUTS, WITHOUT_ACTIONS, Listing, hint, is_layout_name
from classact.data.readers import first_episodes, read_layout
from classact.data.rotations import (
    axis_angle_to_matrix,
    euler_to_matrix,
    matrix_to_rotation_6d,
    quaternion_to_matrix,
)
from classact.data.schema import Schema
from classact.data.types import Demonstrations, ImageArray, IntArray
from classact.errors import DataError, UndeclaredError, UnknownNameError, choose

_SUFFIXES = re.compile(r"(\.zarr)?(\.zip)?$|\.(hdf5|h5)$")


class Array(Protocol):
    """An array with one row per step of all episodes."""

    @property
    def key(self) -> str:
        """Its path."""

    @property
    def where(self) -> str:
        """File and path, for messages."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """As stored."""

    def read(self) -> NDArray[Any]:
        """All rows."""


class Arrays(Protocol):
    """What a format gives for a layout to be read.

    Attributes:
        path: of the data, for messages and names.
        base: folder from which videos are named.
        layout: which is read.
        fps: steps per second where the format says so.
    """

    path: Path
    base: Path
    layout: Layout
    fps: float | None

    def listing(self) -> Listing:
        """All arrays."""

    def key(self, name: str) -> str:
        """The path of an array of this name, whether there or not."""

    def array(self, name: str) -> Array:
        """An array of this name; a DataError lists the others."""

    def ends(self, rows: int) -> IntArray:
        """(E,) where episodes end, given the number of steps."""

    def images(self, name: str, camera: Camera, where: str, rows: int) -> ImageSource:
        """The images of an array in the first ``rows`` steps."""

    def found_cameras(self) -> dict[str, Camera]:
        """All images there are, by their key."""

    def folder(self, episode: int) -> str:
        """The folder of an episode's files, from ``base``."""


def resolve_layout(layout: Layout | Path | None, takes: Sequence[str], hint: str = "") -> Layout | None:
    """The layout that is given, from a file where it is one; it must not set fields other than ``takes``."""
    where = "layout"
    if isinstance(layout, Path):
        where = f"layout {layout}"
        layout = read_layout(Layout, layout, where)
    if layout is not None:
        default = Layout()
        for name in (f.name for f in fields(Layout)):
            if name not in takes and getattr(layout, name) != getattr(default, name):
                raise UnknownNameError(f"{where}: {choose('field', name, takes)}{hint}")
    return layout


def chosen_layout(layout: Layout | str | Path | None, listing: Listing, path: Path) -> tuple[Layout | None, str]:
    """The layout in use, and what it assumes, in words: the given one, that of this name, or the first that fits.

    None where there is none.
    """
    if isinstance(layout, Path):
        layout = str(layout) if is_layout_name(layout) else read_layout(Layout, layout, f"layout {layout}")
    if isinstance(layout, Layout):
        return layout, ""
    if isinstance(layout, str):
        entry = LAYOUTS[layout]
        made = entry.layout(listing)
        if made is None:
            raise DataError(
                f"{path} is not of layout {layout!r} ({entry.description}); arrays are {names_of(listing)}. Declare "
                f"which is what in a layout of your own: classact data info {path} --propose layout.json"
            )
        return made, ""
    for name, entry in LAYOUTS.items():
        if (made := entry.layout(listing)) is not None:
            words = f"its arrays tell layout {name!r} ({entry.description})"
            return made, f"{words}; {WITHOUT_ACTIONS}" if made.action == NONE else words
    return None, ""


def names_of(listing: Listing) -> str:
    """The names of all arrays, for messages."""
    names = sorted(listing.arrays)
    return (", ".join(names[:12]) or "none") + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def assemble(
    arrays: Arrays, words: str = "", *, episodes: int | None = None, name: str | None = None, **known: Any
) -> Demonstrations:
    """Demonstrations by the layout of ``arrays``.

    Args:
        arrays: where they come from.
        words: what the layout assumes.
        episodes: only the first so many.
        name: of the demonstrations, by default of the path.
        known: further fields of :class:`Demonstrations`.

    Raises:
        DataError: missing arrays, or arrays that match neither each other nor the layout.
        ConfigError: a layout that contradicts itself, or more episodes than there are.
    """
    layout, path = arrays.layout, arrays.path
    action = layout.action or Values.of("action")
    main = arrays.array(counted_array(arrays, layout))
    ends = arrays.ends(main.shape[0]) if main.shape else np.zeros(0, np.int64)
    rows = main.shape[0] if main.shape else 0
    if layout.unfinished and len(ends) and 0 < ends[-1] < rows:
        rows = int(ends[-1])
        words = "; ".join(filter(None, (words, f"rows behind the last episode's end, {rows}, are not read")))
    read = _Reader(arrays, main, rows, {})
    cameras = _cameras(arrays, read)
    convention = "rows" if layout.action_space is None else layout.action_space.convention
    actions = read.values(action, "action", convention) if action.parts else np.zeros((rows, 0), np.float32)
    robot = {key: read.values(part, f"proprioception {key!r}") for key, part in layout.proprioception.items()}
    state = None if layout.state is None else read.matrix(layout.state, flat=False)
    if layout.next_state:
        actions = _next_of_each(actions, ends)
    fps = layout.fps or _rate(arrays, read, ends) or arrays.fps
    parts = [np.zeros((len(actions), 0)), *robot.values()]
    schema = Schema(
        (), tuple((key, part.shape[1]) for key, part in robot.items()), actions=layout.action_space, fps=fps
    )
    schema = replace(schema, assumption=words)
    if layout.action_space is None and action.parts:
        assumed = Schema.assumed((), schema.proprioception_dim, actions.shape[1], values=_cast(actions, np.float32))
        both = "; ".join(filter(None, (words, assumed.assumption)))
        schema = replace(schema, actions=assumed.actions, assumption=both)
    data = Demonstrations(
        name=_SUFFIXES.sub("", name or path.name).replace("_", "-"),
        episode_ends=ends,
        actions=_cast(actions, np.float32),
        proprioception=_cast(np.concatenate(parts, axis=1), np.float32),
        states=None if state is None else _cast(state, np.float64),
        source=str(path),
        schema=schema,
        **known,
    )
    if layout.language is not None:
        data = _with_language(data, arrays.array(layout.language), rows)
    data = replace(data, unread=_unread(arrays, cameras))
    data = first_episodes(data, episodes)
    sources = {camera: _source(arrays, camera, spec, read, data) for camera, spec in cameras.items()}
    return data.with_images(sources)


def counted_array(arrays: Arrays, layout: Layout) -> str:
    """The array whose rows are the steps: that of actions, or where there are none, of anything that is observed."""
    if layout.action != NONE:
        return (layout.action or Values.of("action")).parts[0].array
    seen = [part.array for value in layout.proprioception.values() for part in value.parts]
    cameras = [*(layout.cameras or {}).values(), *(arrays.found_cameras().values() if layout.find_cameras else ())]
    names = [*seen, *(one.array for one in cameras), layout.timestamps, layout.state]
    found = next((name for name in names if name is not None), None)
    if found is None:
        raise undeclared(
            arrays.path,
            arrays.listing(),
            f"{arrays.path}: there are neither actions nor numbers or images that are observed",
            "at least one of them",
        )
    return found


def _cameras(arrays: Arrays, read: _Reader) -> dict[str, Camera]:
    """Declared cameras, and those that are found."""
    layout = arrays.layout
    cameras = dict(layout.cameras or {})
    declared = {arrays.key(one.array): name for name, one in cameras.items() if one.array is not None}
    for name in declared.values():
        _check_images(arrays.array(str(cameras[name].array)))
    for key, found in arrays.found_cameras().items() if layout.find_cameras else ():
        if found.video is not None:
            if not any(one.video == found.video for one in cameras.values()):
                cameras.setdefault(key, found)
            continue
        key_of = arrays.key(str(found.array))
        if key_of in declared:
            continue
        if key in cameras:
            place = cameras[key].video or arrays.key(str(cameras[key].array))
            raise DataError(
                f"{arrays.array(str(found.array)).where} holds images, but camera {key!r} is declared as "
                f"{place}. Declare another name for one of them, or set find_cameras to false."
            )
        cameras[key] = found
    for camera in cameras.values():
        if camera.array is not None:
            read.check_rows(arrays.array(camera.array))
    return cameras


def _check_images(array: Array) -> None:
    shape = array.shape
    if len(shape) in (1, 2) and array.dtype.kind in "uO":
        return  # encoded pictures, which the format checks
    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise DataError(
            f"{array.where} has shape {shape}, expected images of shape (N, H, W, 3) or (N, 3, H, W): one RGB frame "
            f"per step. Convert the array, or declare other cameras."
        )


@dataclass(frozen=True)
class _Reader:
    """Columns of arrays in the first ``rows`` steps, each read once."""

    arrays: Arrays
    main: Array
    rows: int
    done: dict[str, NDArray[Any]]

    def check_rows(self, array: Array) -> None:
        """Refuse an array that has not one row per step."""
        if array.shape[:1] == self.main.shape[:1] or (
            self.arrays.layout.unfinished and array.shape and array.shape[0] >= self.rows
        ):
            return
        raise DataError(
            f"{array.where} has shape {array.shape}, but {self.main.key} has shape {self.main.shape}: expected the "
            f"same number of rows, one per step. The file is incomplete; copy or download the data again, or cut all "
            f"arrays to the shorter length."
        )

    def matrix(self, name: str, *, flat: bool = True, square: bool = False) -> NDArray[Any]:
        """(N, D) numbers; ``flat``: also of (N,); ``square``: also of (N, 3, 3)."""
        array = self.arrays.array(name)
        shape = array.shape
        good = len(shape) == 2 or (flat and len(shape) == 1) or (square and shape[1:] == (3, 3))
        if not good or array.dtype.kind not in "fiu":
            raise DataError(
                f"{array.where} has shape {shape} and dtype {array.dtype}, expected (N, D) numbers: one row per step."
            )
        self.check_rows(array)
        if array.key not in self.done:
            self.done[array.key] = array.read()[: self.rows]
        return self.done[array.key].reshape(len(self.done[array.key]), -1)

    def values(self, wanted: Values, what: str, convention: str = "rows") -> NDArray[Any]:
        """(N, D) of columns side by side, rotations as 6-D ones."""
        flat = what != "action" or len(wanted.parts) > 1
        found = [self._part(part, what, convention, flat) for part in wanted.parts]
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    def _part(self, part: Columns, what: str, convention: str, flat: bool) -> NDArray[Any]:
        values = self.matrix(part.array, flat=flat, square=part.rotation == "matrix")
        where = self.arrays.array(part.array).where
        if part.columns is not None:
            if not part.columns or min(part.columns) < 0 or max(part.columns) >= values.shape[1]:
                raise DataError(
                    f"{where} has {values.shape[1]} columns, but {what} is declared as columns {tuple(part.columns)}. "
                    f"Declare columns from 0 to {values.shape[1] - 1}."
                )
            values = values[:, list(part.columns)]
        if part.rotation is None:
            return values
        kind, _, order = part.rotation.partition("-")
        kind = "axis-angle" if part.rotation == "axis-angle" else kind
        if values.shape[1] != ROTATIONS[kind]:
            raise DataError(
                f"{where}: {what} is declared as a rotation, {part.rotation}, of {values.shape[1]} numbers, expected "
                f"{ROTATIONS[kind]}. Declare which columns hold it."
            )
        numbers = values.astype(np.float64)
        try:
            if kind == "axis-angle":
                matrix = axis_angle_to_matrix(numbers)
            elif kind == "quaternion":
                matrix = quaternion_to_matrix(numbers, order)
            elif kind == "euler":
                matrix = euler_to_matrix(numbers, order)
            else:
                matrix = numbers.reshape(-1, 3, 3)
            return matrix_to_rotation_6d(matrix, convention)
        except DataError as problem:
            raise DataError(f"{where}: {what}: {problem}") from None


def _next_of_each(values: NDArray[Any], ends: IntArray) -> NDArray[Any]:
    """Row t + 1 at row t; at the last one of an episode, where nothing follows, its own."""
    out = np.concatenate([values[1:], values[-1:]])
    last = ends[(ends > 0) & (ends <= len(values))] - 1
    out[last] = values[last]
    return out


_REGULAR = 0.05
"""Share of a step by which the median distance of timestamps may differ from their mean."""


def _rate(arrays: Arrays, read: _Reader, ends: IntArray) -> float | None:
    """Steps per second that timestamps tell, rounded to a whole number where it is near one."""
    name = arrays.layout.timestamps
    if name is None:
        return None
    times = read.matrix(name)[:, 0].astype(np.float64)
    where = arrays.array(name).where
    inside = np.ones(len(times), bool)
    inside[np.concatenate([[0], ends[:-1]])[: len(ends)]] = False
    steps = np.diff(times, prepend=times[0])[inside]
    if not np.isfinite(times).all() or (len(steps) and steps.min() <= 0):
        raise DataError(f"{where}: times do not increase within an episode, expected seconds. Leave timestamps out.")
    if not len(steps):
        return None
    rate = 1 / float(np.median(steps))
    nearest = round(rate)
    return float(nearest) if nearest and abs(rate - nearest) < _REGULAR * rate / max(1, nearest) ** 0.5 else rate


def _with_language(data: Demonstrations, array: Array, rows: int) -> Demonstrations:
    """With an embedding of each episode's instruction, whether stored for each episode or at each step."""
    texts = array.dtype.kind in "OSU"
    if texts and len(array.shape) == 1:
        values = np.array([_text(one) for one in array.read()], object)[:, None]
    elif len(array.shape) != 2 or array.dtype.kind not in "fiu":
        raise DataError(
            f"{array.where} has shape {array.shape} and dtype {array.dtype}, expected (N, D) numbers: one row per step."
        )
    else:
        values = array.read()
    if len(values) > rows and len(values) != len(data):
        values = values[:rows]
    if len(values) not in (len(data), data.num_steps):
        raise DataError(
            f"{array.where} has shape {array.shape}, expected one embedding for each of {len(data)} episodes or for "
            f"each of {data.num_steps} steps."
        )
    if len(values) == data.num_steps:
        first = values[data.episode_ends - data.lengths]
        of_episode = first[data.episode_index()]
        # NaN is no difference here: Demonstrations reports where it is.
        differs = ((values != of_episode) & ~((values != values) & (of_episode != of_episode))).any(axis=1)
        if differs.any():
            step = int(np.argmax(differs))
            episode = int(data.episode_index()[step])
            raise DataError(
                f"{array.where} differs within episode {episode}: step {step} holds another embedding than step "
                f"{data.bounds(episode)[0]}. Expected one instruction for each episode; split the episode there, or "
                f"leave language out."
            )
        values = first
    known: dict[str, Any] = {}
    if texts:
        from classact.data.language import embed_instruction

        instructions = tuple(values[:, 0].tolist())
        embedded = [embed_instruction(words or "no instruction") for words in instructions]
        known = {"instructions": instructions, "versions": {**data.versions, "language": embedded[0][1]}}
        values = np.stack([vector for vector, _ in embedded])
    language = _cast(values, np.float32)
    return replace(data, language=language, schema=replace(data.schema, language=language.shape[1]), **known)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _cast(values: NDArray[Any], dtype: type) -> NDArray[Any]:
    # A float64 beyond float32 becomes infinite; Demonstrations reports where it is.
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, dtype=dtype)


def _unread(arrays: Arrays, cameras: Mapping[str, Camera]) -> tuple[str, ...]:
    """Arrays that the layout does not name."""
    layout = arrays.layout
    used = {arrays.key(name) for name in layout.arrays()}
    if layout.action is None:
        used.add(arrays.key("action"))
    used |= {arrays.key(one.array) for one in cameras.values() if one.array is not None}
    used.add(arrays.key(layout.episode_ends or "meta/episode_ends"))
    return tuple(name for name in arrays.listing().arrays if arrays.key(name) not in used)


def _source(arrays: Arrays, camera: str, spec: Camera, read: _Reader, data: Demonstrations) -> ImageSource:
    if spec.array is not None:
        return arrays.images(spec.array, spec, f"camera {camera!r}", data.num_steps)
    from classact.data.readers.videos import episode_videos

    name = arrays.layout.timestamps
    times = None if name is None or spec.indexed else read.matrix(name)[:, 0].astype(np.float64)
    return episode_videos(arrays, camera, spec, times, data)


def undeclared(path: Path, listing: Listing, what: str, expected: str) -> UndeclaredError:
    """The error for data whose arrays nothing says the meaning of."""
    known = ", ".join(LAYOUTS)
    inside = "" if "arrays in" in what else f"; arrays are {names_of(listing)}"
    inside += hint(listing)
    return UndeclaredError(
        f"{what}{inside}. Expected {expected}, or a layout that declares which array is what: 'classact data "
        f"info {path} --propose layout.json' writes one to look at. --layout takes such a file, or a name ({known}); "
        f"{LAYOUT_FILE} in the data is taken by itself."
    )


def not_there(arrays: Arrays, what: str, expected: str) -> DataError:
    """The error for an array that is missing: which a layout names, or which data without one should have."""
    if arrays.layout == Layout() or arrays.layout.action is None:
        return undeclared(arrays.path, arrays.listing(), what, expected)
    inside = "" if "arrays in" in what else f"; arrays are {names_of(arrays.listing())}"
    return DataError(f"{what}{inside}. The layout names it: correct the name there, or leave it out.")


def episode_ends(array: Array, boundaries: Boundaries, rows: int) -> IntArray:
    """(E,) cumulative numbers of steps from what an array says of episodes (:attr:`Layout.boundaries`)."""
    per_step = boundaries in ("numbers", "last")
    kinds = "iub" if boundaries == "last" else "iu"
    flat = len(array.shape) == 1 or (per_step and array.shape[1:] == (1,))
    if array.dtype.kind not in kinds + ("f" if boundaries == "last" else "") or not flat:
        meanings = {
            "ends": "(E,) integers: the cumulative number of steps after each episode",
            "lengths": "(E,) integers: the number of steps of each episode",
            "numbers": "(N,) integers: the number of each step's episode",
            "last": "(N,) flags: whether a step is the last of its episode",
        }
        raise DataError(
            f"{array.where} has shape {array.shape} and dtype {array.dtype}, expected {meanings[boundaries]}."
        )
    if per_step and array.shape[0] != rows:
        raise DataError(f"{array.where} has {array.shape[0]} rows, but there are {rows} steps. Expected one per step.")
    values = array.read().reshape(-1)
    if boundaries == "ends":
        return values.astype(np.int64)
    if boundaries == "lengths":
        return np.cumsum(values, dtype=np.int64)
    if boundaries == "numbers":
        return np.append(np.flatnonzero(np.diff(values.astype(np.int64))) + 1, rows).astype(np.int64)
    ends = np.flatnonzero(values) + 1
    if not len(ends) or ends[-1] != rows:
        ends = np.append(ends, rows)  # the last episode may not have been finished
    return ends.astype(np.int64)


def to_uint8(values: NDArray[Any], where: str, first: int, scale: float = 1.0) -> ImageArray:
    """Images of whole numbers 0..255 of any dtype, exactly; with a scale rounded. An error says where and what is none.

    ``first`` is the number of the first row, for messages.
    """
    if scale != 1:
        values = np.rint(values.astype(np.float64) * scale)
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
            why += (
                ". These look like images scaled to [0, 1]: multiply by 255, round, and store them as uint8, or "
                "declare "
                'the camera with "scale": 255'
            )
    else:
        bad, why = ~((values >= 0) & (values <= 255)), "is not in 0..255"
    row, *pixel = np.argwhere(bad)[0].tolist()
    raise DataError(
        f"{where}[{', '.join(map(str, (first + row, *pixel)))}] is {values[bad][0]}, which {why}. Expected RGB "
        f"images of whole numbers from 0 to 255; {int(bad.sum()):,} of {values.size:,} values around it are not."
    )
