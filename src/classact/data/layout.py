"""Layouts: which array of a data set is what. One declaration for Zarr stores, HDF5 files and LeRobot data sets.

A :class:`Layout` is written in Python, in a JSON file (``--layout FILE.json``), in ``classact.json`` in the data
themselves, or has a name in :data:`LAYOUTS` (``--layout umi``). :mod:`classact.data.readers.declared` reads by it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from classact.data.actions import ACTION_SPACES, ActionSpace
from classact.errors import ConfigError
from classact.utils.codec import fields_from_json, to_json

LAYOUT_FILE = "classact.json"  # the layout that lies in the data themselves
FILL_IN = "FILL IN"  # what a proposed layout holds where nothing could be guessed

_ROTATION = re.compile(r"axis-angle|quaternion-(xyzw|wxyz)|euler-([xyz]{3}|[XYZ]{3})|matrix")
ROTATIONS: Mapping[str, int] = {"axis-angle": 3, "quaternion": 4, "euler": 3, "matrix": 9}
"""How a rotation is stored, up to the first dash -> numbers."""

Boundaries = Literal["ends", "lengths", "numbers", "last"]
Package = Literal["robosuite"]
ACCEPTED: tuple[str, ...] = get_args(Package)  # packages that a layout may accept


@dataclass(frozen=True)
class Columns:
    """An array, or some columns of it in order.

    Attributes:
        array: its name, as in :class:`Layout`.
        columns: None for all.
        rotation: how these numbers are a rotation, which becomes a 6-D one: "axis-angle" (radians), "quaternion-xyzw",
            "quaternion-wxyz", "euler-xyz" (radians about fixed axes in this order, as SciPy has it; "euler-XYZ" about
            moving ones), "matrix" (nine numbers, row by row). None: numbers as they are.
    """

    array: str
    columns: tuple[int, ...] | None = None
    rotation: str | None = None

    def __post_init__(self) -> None:
        if self.rotation is not None and not _ROTATION.fullmatch(self.rotation):
            raise ConfigError(
                f"{self.array}: unknown rotation {self.rotation!r}: available are 'axis-angle', 'quaternion-xyzw', "
                f"'quaternion-wxyz', 'euler-xyz' (any order; 'euler-XYZ' about moving axes), 'matrix'."
            )
        if self.array == FILL_IN:
            raise ConfigError(f"{FILL_IN!r} stands where the name of an array is to be. Say which one it is.")


@dataclass(frozen=True)
class Values:
    """Columns of one or several arrays, side by side."""

    parts: tuple[Columns, ...]

    @staticmethod
    def of(value: Any) -> Values:
        """From the name of an array, its columns, or several of these."""
        if isinstance(value, Values):
            return value
        several = value if isinstance(value, (list, tuple)) else (value,)
        return Values(tuple(part if isinstance(part, Columns) else Columns(part) for part in several))

    @staticmethod
    def from_json(value: Any, where: str) -> Values:
        """From a name, ``{"array": NAME, "columns": [0, 1], "rotation": "axis-angle"}``, or a list of these."""
        if not isinstance(value, list):
            return Values((_columns(value, where),))
        return Values(tuple(_columns(part, f"{where}[{i}]") for i, part in enumerate(value)))

    def to_json(self) -> Any:
        """Inverse of :meth:`from_json`, as short as it can be."""
        parts: list[Any] = []
        for part in self.parts:
            given = {key: value for key, value in vars(part).items() if value is not None}
            parts.append(part.array if len(given) == 1 else to_json(given))
        return parts[0] if len(parts) == 1 else parts


NONE = Values(())
"""The actions of demonstrations that carry none."""


def _columns(value: Any, where: str) -> Columns:
    if isinstance(value, str):
        try:
            return Columns(value)
        except ConfigError as problem:
            raise ConfigError(f"{where}: {problem}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected text, or an object with the fields of Columns, got {value!r:.80}.")
    return fields_from_json(Columns, value, where, error=ConfigError, partial=True)


@dataclass(frozen=True)
class Camera:
    """Where a camera's images are: in an array, or in a video for each episode.

    Attributes:
        array: (N, H, W, 3) or (N, 3, H, W) images of numbers from 0 to 255; in HDF5 files also of JPEG or PNG files.
        video: name of a video, from the folder that holds the store or file, with ``{episode}`` for the episode's
            number, or ``{folder}`` for the folder of its HDF5 file.
        indexed: whether the video has a frame for each step, whatever their times.
        scale: what the array's numbers are multiplied with: 255 for images in [0, 1].
        bgr: whether red and blue are swapped.
        flip: whether images are upside down.
    """

    array: str | None = None
    video: str | None = None
    indexed: bool = False
    scale: float = 1.0
    bgr: bool = False
    flip: bool = False

    def __post_init__(self) -> None:
        if (self.array is None) == (self.video is None):
            raise ConfigError("a camera has an array or a video: declare one of the two.")
        if self.array == FILL_IN:
            raise ConfigError(f"{FILL_IN!r} stands where the name of an array is to be. Say which one it is.")
        if self.video is not None and (self.scale, self.bgr, self.flip) != (1.0, False, False):
            raise ConfigError("scale, bgr and flip are of arrays; videos are decoded as they are.")
        if self.indexed and self.video is None:
            raise ConfigError("indexed is of videos; an array has a row for each step.")
        if not 0 < self.scale < 1e9:
            raise ConfigError(f"expected a scale above 0, got {self.scale}.")

    @staticmethod
    def of(value: Any) -> Camera:
        """From the name of an array, or a camera."""
        return value if isinstance(value, Camera) else Camera(value)

    @staticmethod
    def from_json(value: Any, where: str) -> Camera:
        """From the name of an array, or an object of this class's fields."""
        if isinstance(value, dict):
            return fields_from_json(Camera, value, where, error=ConfigError, partial=True)
        if not isinstance(value, str):
            raise ConfigError(f"{where}: expected text, or an object with the fields of Camera, got {value!r:.80}.")
        try:
            return Camera(value)
        except ConfigError as problem:
            raise ConfigError(f"{where}: {problem}") from None

    def to_json(self) -> Any:
        """Inverse of :meth:`from_json`, as short as it can be."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return self.array if list(given) == ["array"] else given


@dataclass(frozen=True)
class Layout:
    """Which array is what; all fields are optional, and undeclared arrays are not read.

    Arrays are named from the group ``data``, or by their path in the store. In HDF5 files with a group or a file for
    each episode, they are named within the episode ("obs/joints"); features of LeRobot by their full names.

    Attributes:
        data: group of the arrays with one row per step (Zarr stores: "data").
        episodes: HDF5: what episodes are: groups of a file ("data/demo_*"), or files of a folder
            ("episode_*.hdf5", "*/trajectory.h5"); sorted by their numbers. None: the whole file, in which
            ``episode_ends`` says where they end, or which is one episode.
        episode_ends: path of the array that says where episodes end.
        boundaries: what it holds: cumulative numbers of steps ("ends"), numbers of steps ("lengths"), or for each step
            the number of its episode ("numbers") or whether it is the last ("last": terminals, dones).
        unfinished: whether rows behind the last episode's end are left out: an episode that was never finished.
        action: the (N, D_a) actions; no arrays at all: these demonstrations carry none. None: as the format has it;
            then the formats that have readers of their own (robomimic, LIBERO, ACT) take ``filter``, ``cameras``,
            ``accept`` and ``bgr`` only.
        next_state: whether ``action`` names measured states rather than commands: the action of a step is the state
            at the next one, and at the last step its own.
        action_space: what the D_a dimensions mean; None: what D_a and the actions suggest
            (:meth:`classact.data.schema.Schema.assumed`).
        state: the (N, D_s) full simulator states; None for data without (real robots).
        proprioception: key, as in the schema -> (N, D) or (N,) values; concatenated in this order to (D_p,).
        language: embedding of each episode's instruction: (E, D_l), or (N, D_l) with equal rows within an episode;
            or the instructions themselves, texts.
        cameras: camera name -> its images. None: all that are found.
        find_cameras: whether every other array of images is a camera as well, named by its key.
        fps: steps per second.
        timestamps: seconds at each step; they tell ``fps``, and which frame of a video belongs to a step.
        filter: name of a list of demonstrations in ``mask``; only these are read (robomimic).
        accept: packages whose recorded version is not compared with the installed one, for recorded states known to
            look right in it; the version is then not recorded (robomimic, LIBERO).
        bgr: whether decoded images have red and blue swapped, to be swapped back (ALOHA: files whose writer encoded
            true RGB or recorded BGR).
    """

    data: str | None = None
    episodes: str | None = None
    episode_ends: str | None = None
    boundaries: Boundaries = "ends"
    unfinished: bool = False
    action: Values | None = None
    next_state: bool = False
    action_space: ActionSpace | None = None
    state: str | None = None
    proprioception: Mapping[str, Values] = field(default_factory=dict)
    language: str | None = None
    cameras: Mapping[str, Camera] | None = None
    find_cameras: bool = True
    fps: float | None = None
    timestamps: str | None = None
    filter: str | None = None
    accept: tuple[Package, ...] = ()
    bgr: bool = False

    def __post_init__(self) -> None:
        if self.action is not None:
            object.__setattr__(self, "action", Values.of(self.action))
        object.__setattr__(self, "proprioception", {k: Values.of(v) for k, v in self.proprioception.items()})
        if self.cameras is not None:
            object.__setattr__(self, "cameras", {name: Camera.of(value) for name, value in self.cameras.items()})
        object.__setattr__(self, "accept", tuple(self.accept))
        for name in ("data", "episodes", "episode_ends", "state", "language", "timestamps"):
            if getattr(self, name) == FILL_IN:
                raise ConfigError(f"{name} is {FILL_IN!r}: say which array it is.")
        if empty := [key for key, value in self.proprioception.items() if not value.parts]:
            raise ConfigError(f"proprioception {empty[0]!r}: expected at least one array, got an empty list.")
        if self.next_state and not (self.action and self.action.parts):
            raise ConfigError("next_state needs action: the names of the states that the next step's are actions.")
        if self.action_space is not None and self.action == NONE:
            raise ConfigError("action_space says what actions mean, but action is declared as none ([]).")
        if self.fps is not None and not 0 < self.fps < 1e6:
            raise ConfigError(f"fps is {self.fps}, expected steps per second above 0.")

    @staticmethod
    def from_json(value: Any, where: str = "layout") -> Layout:
        """A layout from JSON: an object of this class's fields, all optional; a ConfigError for anything else.

        ``action_space`` is a name of :data:`classact.data.actions.ACTION_SPACES`, or an
        :class:`~classact.data.actions.ActionSpace`.
        """
        space = value.get("action_space") if isinstance(value, dict) else None
        if isinstance(space, str):
            try:
                value = {**value, "action_space": to_json(ActionSpace.named(space))}
            except ConfigError as problem:
                raise ConfigError(f"{where}.action_space: {problem}") from None
        return fields_from_json(Layout, value, where, error=ConfigError, partial=True)

    def to_json(self) -> dict[str, Any]:
        """Inverse of :meth:`from_json`: the fields that are not as by default."""
        default = Layout()
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        found = {name: to_json(value) for name, value in given.items() if value != getattr(default, name)}
        named = [name for name in ACTION_SPACES if ActionSpace.named(name) == self.action_space]
        return found | ({"action_space": named[0]} if named else {})

    def camera_arrays(self) -> Mapping[str, str] | None:
        """Camera -> array, for formats that have images in arrays of one kind only; None where none are declared."""
        if self.cameras is None:
            return None
        for name, camera in self.cameras.items():
            if camera.array is None or camera != Camera(camera.array):
                raise ConfigError(
                    f"layout: camera {name!r} has more than the name of an array, which this format takes only where "
                    f"action is declared as well."
                )
        return {name: str(camera.array) for name, camera in self.cameras.items()}

    def arrays(self) -> list[str]:
        """Names of all arrays that are declared, cameras' too."""
        values = [*([] if self.action is None else [self.action]), *self.proprioception.values()]
        names = [part.array for value in values for part in value.parts]
        names += [name for name in (self.state, self.language, self.timestamps) if name is not None]
        return names + [one.array for one in (self.cameras or {}).values() if one.array is not None]
