"""LeRobot's data sets, versions 2.0, 2.1 and 3.0: ``meta/info.json``, Parquet files, videos or pictures.

Version 3 puts many episodes into a file, and ``meta/episodes`` says which rows and which part of a video are whose;
version 2 has a file for each episode. A frame belongs to a step by its time. What a feature is, its name says:

- ``action``: the actions; without any feature that is named so, demonstrations carry none.
- ``observation.*``, numbers: proprioception, by the rest of the name; but ``observation.environment_state``, which a
  robot does not see, is left out, as are features outside of ``observation``.
- ``observation.images.NAME`` or ``observation.NAME``, videos or images: camera NAME.

Several tasks become embeddings of instructions. Names of action dimensions that end in ``.pos`` are joints, grippers
where they say so, of an arm where they begin with ``left_`` or ``right_``; those that end in ``.vel`` are velocities.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.data.actions import ActionSpace, Part
from classact.data.images import ImageSource
from classact.data.language import embed_instruction
from classact.data.layout import LAYOUT_FILE, NONE, Camera, Layout, Values
from classact.data.lerobot_writer import MEANING
from classact.data.named_layouts import WITHOUT_ACTIONS, Listed, Listing
from classact.data.readers.declared import assemble, chosen_layout, resolve_layout
from classact.data.readers.lerobot_images import Pictures, VideoFrames
from classact.data.readers.parquet import read_columns, read_texts
from classact.data.readers.parts import RecordedImages
from classact.data.readers.selection import chosen_episodes
from classact.data.schema import Schema
from classact.data.types import Demonstrations, IntArray
from classact.errors import DataError, UndeclaredError
from classact.utils.codec import from_json
from classact.utils.storage import read_json, read_jsonl

DESCRIPTION = "a LeRobot data set, version 2.0 to 3.0: a folder with meta/info.json"

SELECTS = True
CHECKS = "classact.data.readers.lerobot_checks"

INFO = "meta/info.json"
ACTION = "action"
_TAKES = ("action", "next_state", "action_space", "proprioception", "cameras", "find_cameras", "fps")
CAMERA_TYPES = ("video", "image")
_PRIVILEGED = "observation.environment_state"
_BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_NUMBERS = re.compile(r"(float|int|uint)\d+|bool")
_LARGEST = 1 << 14
_FIELD = re.compile(r"\{(\w+)(?::0?(\d{1,2})d)?\}")


def matches(path: Path) -> bool:
    """A folder with LeRobot's metadata."""
    return path.is_dir() and (path / INFO).is_file()


@dataclass(frozen=True)
class Feature:
    """An entry of ``features`` in info.json: its type, shape and the names of its dimensions, where it has any."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    depth: bool

    @property
    def is_camera(self) -> bool:
        """Whether it holds colour images."""
        return self.dtype in CAMERA_TYPES and not self.depth

    @property
    def short(self) -> str:
        """The name in a schema."""
        return self.name.removeprefix("observation.").removeprefix("images.")


@dataclass(frozen=True)
class Info:
    """What info.json says, checked."""

    path: Path
    version: str
    fps: float
    episodes: int
    features: Mapping[str, Feature]
    data_path: str
    video_path: str | None
    chunk: int

    def file(self, root: Path, template: str, **values: int | str) -> Path:
        """The file that a template of info.json names."""

        def put(match: re.Match[str]) -> str:
            if match[1] not in values:
                raise DataError(f"{self.path}: {template!r} names {match[1]!r}; known are {', '.join(values)}.")
            value = values[match[1]]
            return str(value) if match[2] is None or isinstance(value, str) else f"{value:0{int(match[2])}d}"

        name = Path(_FIELD.sub(put, template))
        if name.is_absolute() or ".." in name.parts or "\0" in str(name):
            raise DataError(f"{self.path}: {template!r} leads out of the data set.")
        return root / name


@dataclass(frozen=True)
class Recorded:
    """Where an episode is: the file of its rows, the first of them and how many, and of its videos.

    ``videos`` are camera feature -> (file, second at which the episode begins).
    """

    index: int
    file: Path
    first: int
    length: int
    videos: Mapping[str, tuple[Path, float]]


def read(path: Path, *, episodes: int | str | None = None, layout: Layout | Path | None = None) -> Demonstrations:
    """Read a data set; images are decoded on demand.

    Args:
        path: its folder.
        episodes: the first so many, or which, as in "0:50,60".
        layout: which feature is what, where names do not say it: ``action`` (columns of features, rotations, the next
            step's state), ``proprioception`` and ``cameras``, all of them then.

    Raises:
        DataError: an unknown version, missing or damaged files, features that do not fit each other.
        ConfigError: episodes that are not there, or an invalid layout.
    """
    if layout is None and (path / LAYOUT_FILE).is_file():
        layout = path / LAYOUT_FILE
    info = read_info(path)
    given, words = (None, "") if layout is None else chosen_layout(layout, _listing(info), path)
    chosen = resolve_layout(given, _TAKES) or Layout()
    none = ACTION not in info.features and not _listing(info).actions()
    action = chosen.action or (NONE if none and _observes(info) else Values.of(ACTION))
    if chosen.action is None and action == NONE:
        words = "; ".join(filter(None, (words, WITHOUT_ACTIONS)))
    used = [part.array for value in (action, *chosen.proprioception.values()) for part in value.parts]
    for name in used:
        _check_feature(info, name)
    if not chosen.proprioception:
        by_name = {f.short: Values.of(name) for name, f in info.features.items() if is_proprioception(f)}
        chosen = replace(chosen, proprioception=by_name)
    places = recorded_episodes(path, info)
    places = [places[e] for e in chosen_episodes(episodes, len(places), path)]
    low = {part.array for value in (action, *chosen.proprioception.values()) for part in value.parts}
    columns = {name: info.features[name].shape for name in info.features if name in low}
    rows = read_rows_of(info, places, columns | dict.fromkeys(("timestamp", "frame_index", "task_index"), ()))
    space = chosen.action_space
    if space is None and action == Values.of(ACTION):
        space = _action_space_of(path, info)
    arrays = LeRobotArrays(path, info, replace(chosen, action=action, action_space=space), places, rows)
    tasks = _tasks(path, info)
    instructions = tuple(_instruction(path, place, own, tasks) for place, own in zip(places, rows, strict=True))
    known: dict[str, Any] = {"instructions": instructions if any(instructions) else ()}
    made = assemble(arrays, words, name=path.resolve().name, **known)
    if (labelled := _meaning(path).get("labelled")) is not None and made.actions.shape[1]:
        every = chosen_episodes(str(labelled), info.episodes, path / MEANING) if labelled else []
        made = made.only_labelled(np.flatnonzero(np.isin([place.index for place in places], every)).tolist())
    depth = {name: f"{name} (depth images)" for name, feature in info.features.items() if feature.depth}
    made = replace(made, unread=tuple(depth.get(name, name) for name in made.unread))
    if len(set(instructions)) > 1 and made.language is None:
        embedded = [embed_instruction(text or "no instruction") for text in instructions]
        language = np.stack([vector for vector, _ in embedded])
        schema = replace(made.schema, language=language.shape[1])
        made = replace(made, language=language, versions={"language": embedded[0][1]}, schema=schema)
    return made


def listing(path: Path) -> Listing:
    """All features of a data set."""
    return _listing(read_info(path))


def _listing(info: Info) -> Listing:
    features = {name: f for name, f in info.features.items() if name not in _BOOKKEEPING}
    return Listing("lerobot", {name: Listed(name, (-1, *f.shape), f.dtype) for name, f in features.items()})


def _check_feature(info: Info, name: str) -> None:
    found = info.features.get(name)
    if found is None:
        alike = [
            one for one in info.features if one.startswith("action") and _NUMBERS.fullmatch(info.features[one].dtype)
        ]
        such = json.dumps({"action": alike} if alike else {"action": "observation.state", "next_state": True})
        raise UndeclaredError(
            f"{info.path}: there is no feature {name!r}; features are {', '.join(info.features) or 'none'}. Declare "
            f"others in a layout (--layout FILE.json), such as {such}."
        )
    if not _NUMBERS.fullmatch(found.dtype) or len(found.shape) != 1:
        raise DataError(
            f"{info.path}: feature {name!r} is {found.dtype} of shape {found.shape}, expected (D,) numbers."
        )


@dataclass(frozen=True)
class FeatureArray:
    """A feature of all chosen episodes, (N, D)."""

    key: str
    where: str
    rows: Sequence[NDArray[Any]]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all episodes together."""
        return (sum(len(part) for part in self.rows), *self.rows[0].shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """As stored; of flags as whole numbers."""
        return np.dtype(np.uint8) if self.rows[0].dtype == bool else self.rows[0].dtype

    def read(self) -> NDArray[Any]:
        """All rows."""
        values = np.concatenate(self.rows)
        return values.astype(np.uint8) if values.dtype == bool else values


class LeRobotArrays:
    """The features of a data set, for :func:`~classact.data.readers.declared.assemble`."""

    def __init__(
        self,
        path: Path,
        info: Info,
        layout: Layout,
        places: Sequence[Recorded],
        rows: Sequence[Mapping[str, NDArray[Any]]],
    ) -> None:
        self.path = self.base = path
        self.layout, self._info, self._places, self._rows = layout, info, places, rows
        self.fps: float | None = info.fps

    def listing(self) -> Listing:
        """All features but the bookkeeping."""
        return _listing(self._info)

    def key(self, name: str) -> str:
        """The name itself."""
        return name

    def array(self, name: str) -> FeatureArray:
        """A feature of numbers, or of images by its shape alone."""
        if name not in self._info.features:
            _check_feature(self._info, name)
        where = f"{self._info.path}: feature {name!r}"
        if name not in self._rows[0]:
            shape = self._info.features[name].shape
            return FeatureArray(
                name, where, [np.broadcast_to(np.uint8(0), (place.length, *shape)) for place in self._places]
            )
        return FeatureArray(name, where, [own[name] for own in self._rows])

    def ends(self, rows: int) -> IntArray:  # noqa: ARG002 (metadata say it)
        """Where episodes end."""
        return np.cumsum([place.length for place in self._places], dtype=np.int64)

    def found_cameras(self) -> dict[str, Camera]:
        """All colour images that are observed."""
        features = self._info.features.values()
        return {f.short: Camera(f.name) for f in features if f.name.startswith("observation.") and f.is_camera}

    def folder(self, episode: int) -> str:  # noqa: ARG002 (all are in one place)
        """The data's own."""
        return "."

    def images(self, name: str, camera: Camera, where: str, rows: int) -> ImageSource:  # noqa: ARG002
        """The images of a feature."""
        feature = self._info.features[name]
        if not feature.is_camera or camera != Camera(name):
            what = "more than the name of a feature" if feature.is_camera else f"{name!r}, which is {feature.dtype}"
            raise DataError(f"{self._info.path}: {where} is declared as {what}, expected the name of colour images.")
        times = [own["timestamp"] for own in self._rows]
        parts = [_images(self.path, feature, place, own) for place, own in zip(self._places, times, strict=True)]
        return RecordedImages(where.partition("'")[2].rstrip("'"), parts)


# Metadata


def declared_schema(path: Path, info: Info) -> Schema:
    """What the metadata say of observations and actions: no layout, no assumed action space, no instructions."""
    features = info.features.values()
    return Schema(
        tuple(f.short for f in features if f.name.startswith("observation.") and f.is_camera),
        tuple((f.short, int(np.prod(f.shape))) for f in features if is_proprioception(f)),
        actions=_action_space_of(path, info),
        fps=info.fps,
    )


def read_info(path: Path) -> Info:
    """``meta/info.json``, checked.

    Raises:
        DataError: another version, storage or type than this module reads, or values of the wrong kind.
    """
    file = path / INFO
    value = read_json(file)
    if not isinstance(value, dict):
        raise DataError(f"{file}: expected a JSON object, got {type(value).__name__}.")
    version = str(value.get("codebase_version", ""))
    number = re.fullmatch(r"v(\d+)\.(\d+)(\.\d+)?", version)
    if number is None:
        raise DataError(
            f"{file}: codebase_version is {version!r}, expected v2.0, v2.1 or v3.0. Convert the data set with LeRobot."
        )
    if int(number[1]) not in (2, 3):
        advice = "Update classact" if int(number[1]) > 3 else "Convert the data set with LeRobot"
        raise DataError(f"{file}: codebase_version is {version}, classact reads v2.0 to v3.x of LeRobot. {advice}.")
    storage = value.get("storage_format", "parquet")
    if storage not in ("parquet", None):
        raise DataError(
            f"{file}: storage_format {storage!r} is not read, only Parquet files and videos are. Export the data set "
            f"as Parquet with LeRobot."
        )
    features = {str(name): _feature(file, str(name), one) for name, one in _mapping(file, value, "features").items()}
    if not any(feature.is_camera for feature in features.values()) and any(f.depth for f in features.values()):
        raise DataError(f"{file}: all cameras are depth cameras, which are not read. Record colour images as well.")
    fps = value.get("fps")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps <= 10_000:
        raise DataError(f"{file}: fps is {fps!r}, expected frames per second above 0.")
    count = value.get("total_episodes")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise DataError(f"{file}: total_episodes is {count!r}, expected a whole number of at least 1.")
    chunk, data_path, video_path = value.get("chunks_size", 1000), value.get("data_path"), value.get("video_path")
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise DataError(f"{file}: chunks_size is {chunk!r}, expected a whole number of at least 1.")
    if not isinstance(data_path, str) or not isinstance(video_path, str | None):
        raise DataError(f"{file}: data_path is {data_path!r} and video_path {video_path!r}, expected names of files.")
    if video_path is None and any(f.dtype == "video" for f in features.values()):
        raise DataError(f"{file}: there are videos, but video_path is null, expected the names of their files.")
    return Info(file, version, float(fps), count, features, data_path, video_path, chunk)


def _mapping(file: Path, value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name)
    if not isinstance(found, dict):
        raise DataError(f"{file}: {name} is {type(found).__name__}, expected a JSON object.")
    return found


def _feature(file: Path, name: str, value: Any) -> Feature:
    if not isinstance(value, dict) or not isinstance(value.get("dtype"), str):
        raise DataError(f"{file}: feature {name!r} is {value!r}, expected dtype, shape and names.")
    shape = value.get("shape")
    whole = isinstance(shape, list) and all(isinstance(n, int) and 0 <= n <= _LARGEST for n in shape)
    if not whole or not isinstance(shape, list):
        raise DataError(f"{file}: feature {name!r} has shape {shape!r}, expected whole numbers up to {_LARGEST}.")
    dtype, names = str(value["dtype"]), value.get("names")
    info = value.get("info") if isinstance(value.get("info"), dict) else value.get("video_info")
    marks = info if isinstance(info, dict) else {}
    depth = any(bool(marks.get(mark)) for mark in ("is_depth_map", "video.is_depth_map"))
    if dtype in CAMERA_TYPES and not depth:
        shape = _image_shape(file, name, shape, names)
    if isinstance(names, dict):  # {"motors": [...]}
        names = [one for group in names.values() for one in (group if isinstance(group, list) else [group])]
    words = tuple(str(one) for one in names) if isinstance(names, list) else ()
    return Feature(name, dtype, tuple(shape), words, depth)


def _image_shape(file: Path, name: str, shape: list[int], names: Any) -> list[int]:
    """(H, W, 3), for channels may be declared first."""
    named_first = isinstance(names, list) and bool(names) and str(names[0]).startswith("channel")
    if len(shape) == 3 and (named_first or (shape[0] == 3 and shape[2] != 3)):
        shape = [shape[1], shape[2], shape[0]]
    if len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise DataError(f"{file}: feature {name!r} has images of shape {shape}, expected (H, W, 3): colour images.")
    return shape


def is_proprioception(feature: Feature) -> bool:
    """Whether it holds numbers that the robot itself observes."""
    inside = feature.name.startswith("observation.") and feature.name != _PRIVILEGED
    return inside and _NUMBERS.fullmatch(feature.dtype) is not None and 0 not in feature.shape


def _observes(info: Info) -> bool:
    """Whether anything is seen: numbers of the robot itself, or images."""
    return any(is_proprioception(f) or (f.is_camera and f.name != f.short) for f in info.features.values())


def _meaning(path: Path) -> dict[str, Any]:
    """What a data set that classact wrote says of its actions; empty of others."""
    file = path / MEANING
    value = read_json(file) if file.is_file() else {}
    if not isinstance(value, dict):
        raise DataError(f"{file}: expected a JSON object, got {type(value).__name__}.")
    return value


def _action_space_of(path: Path, info: Info) -> ActionSpace | None:
    """What actions mean: declared by classact, else as motors' names tell; None where there are none."""
    if (declared := _meaning(path).get("action_space")) is not None:
        return from_json(ActionSpace, declared, str(path / MEANING))
    return _action_space(info.features[ACTION]) if ACTION in info.features else None


def _action_space(feature: Feature) -> ActionSpace | None:
    """Joints, grippers and velocities, where every dimension is a motor's by name; else None."""
    size = feature.shape[0]
    if len(feature.names) != size or not all(name.endswith((".pos", ".vel")) for name in feature.names):
        return None
    parts: list[Part] = []
    for name in feature.names:
        arm = next((side for side in ("left", "right") if name.startswith(f"{side}_")), None)
        kind = "velocity" if name.endswith(".vel") else "gripper" if "gripper" in name else "joint"
        title = "_".join(filter(None, (arm, {"gripper": "gripper", "joint": "joints", "velocity": "base"}[kind])))
        if parts and (parts[-1].kind, parts[-1].arm) == (kind, arm):
            parts[-1] = replace(parts[-1], size=parts[-1].size + 1)
        else:
            taken = sum(part.name == title or part.name.startswith(f"{title}_") for part in parts)
            parts.append(Part(f"{title}_{taken + 1}" if taken else title, kind, 1, arm))
    return ActionSpace(tuple(parts))


# Episodes


def recorded_episodes(path: Path, info: Info) -> list[Recorded]:
    """Where each episode is, by number."""
    return _v3(path, info) if info.version.startswith("v3") else _v2(path, info)


def _v3(path: Path, info: Info) -> list[Recorded]:
    files = sorted((path / "meta/episodes").glob("*/*.parquet"))
    if not files:
        raise DataError(f"{path}: meta/episodes holds no Parquet file. Copy or download the data set again.")
    videos = [name for name, feature in info.features.items() if feature.dtype == "video" and feature.is_camera]
    fields = ["episode_index", "length", "dataset_from_index", "data/chunk_index", "data/file_index"]
    of_videos = ("chunk_index", "file_index", "from_timestamp")
    fields += [f"videos/{name}/{field}" for name in videos for field in of_videos]
    values = [read_columns(file, dict.fromkeys(fields, ())) for file in files]
    table = {field: np.concatenate([part[field] for part in values]) for field in fields}
    order = np.argsort(table["episode_index"], kind="stable")
    _check_count(path, info, table["episode_index"][order])
    found = []
    starts: dict[Path, int] = {}
    for row in order.tolist():
        where = {"chunk_index": int(table["data/chunk_index"][row]), "file_index": int(table["data/file_index"][row])}
        file = info.file(path, info.data_path, **where)
        first = int(table["dataset_from_index"][row])
        starts[file] = min(starts.get(file, first), first)
        of_episode = {}
        for name in videos:
            place = {field: int(table[f"videos/{name}/{field}"][row]) for field in of_videos[:2]}
            begin = float(table[f"videos/{name}/from_timestamp"][row])
            of_episode[name] = (info.file(path, str(info.video_path), video_key=name, **place), begin)
        found.append(Recorded(int(table["episode_index"][row]), file, first, int(table["length"][row]), of_episode))
    return [replace(one, first=one.first - starts[one.file]) for one in found]


def _v2(path: Path, info: Info) -> list[Recorded]:
    rows = read_jsonl(path / "meta/episodes.jsonl")
    videos = [name for name, feature in info.features.items() if feature.dtype == "video" and feature.is_camera]
    found = []
    for row in rows:
        index, length = row.get("episode_index"), row.get("length")
        if not isinstance(index, int) or not isinstance(length, int) or isinstance(length, bool) or length < 1:
            raise DataError(
                f"{path}/meta/episodes.jsonl: an episode has index {index!r} and length {length!r}, expected whole "
                f"numbers."
            )
        where: dict[str, Any] = {"episode_chunk": index // info.chunk, "episode_index": index}
        of_episode = {name: (info.file(path, str(info.video_path), video_key=name, **where), 0.0) for name in videos}
        found.append(Recorded(index, info.file(path, info.data_path, **where), 0, length, of_episode))
    found.sort(key=lambda one: one.index)
    _check_count(path, info, np.array([one.index for one in found]))
    return found


def _check_count(path: Path, info: Info, indices: NDArray[Any]) -> None:
    if len(indices) != info.episodes or (np.diff(indices) <= 0).any():
        raise DataError(
            f"{path}: meta/episodes lists {len(indices)} episodes, {len(np.unique(indices))} of them different, but "
            f"{INFO} says {info.episodes}. The data set is incomplete: copy or download it again."
        )


def read_rows_of(
    info: Info, places: Sequence[Recorded], shapes: dict[str, tuple[int, ...]]
) -> list[dict[str, NDArray[Any]]]:
    """Columns of each episode."""
    needed = shapes | {"episode_index": ()}
    out: list[dict[str, NDArray[Any]]] = []
    at: tuple[Path, dict[str, NDArray[Any]]] | None = None
    for place in places:
        if at is None or at[0] != place.file:
            at = (place.file, read_columns(place.file, needed))
        own = {name: values[place.first : place.first + place.length] for name, values in at[1].items()}
        index, steps = own["episode_index"], own["frame_index"]
        if len(index) != place.length or (index != place.index).any() or (steps != np.arange(place.length)).any():
            raise DataError(
                f"{place.file}: rows {place.first} to {place.first + place.length - 1} should be the {place.length} "
                f"steps of episode {place.index} in order, but hold {len(index)} rows of episodes "
                f"{np.unique(index).tolist()[:4]}. The file does not belong to {info.path.parent}, or is incomplete."
            )
        out.append(own)
    return out


def _images(path: Path, feature: Feature, place: Recorded, times: NDArray[Any]) -> VideoFrames | Pictures:
    shape = (feature.shape[0], feature.shape[1], 3)
    if feature.dtype == "image":
        return Pictures(place.file, feature.name, place.first, place.length, shape, path)
    file, begin = place.videos[feature.name]
    if not file.is_file():
        raise DataError(
            f"{file} is missing: the video of episode {place.index}, camera {feature.short!r}. Copy or download the "
            f"data set again."
        )
    when = begin + times.astype(np.float64)
    if not np.isfinite(when).all() or (np.diff(when) <= 0).any() or when[0] < 0:
        raise DataError(f"{place.file}: timestamps of episode {place.index} do not increase, expected seconds.")
    return VideoFrames(file, shape, when)


# Tasks


def _tasks(path: Path, info: Info) -> dict[int, str]:
    """Number of a task -> its words."""
    table = path / "meta/tasks.parquet"
    if info.version.startswith("v3"):
        rows = read_texts(table, ("task_index", "task", "__index_level_0__"))
    else:
        rows = read_jsonl(path / "meta/tasks.jsonl")
    out = {}
    for row in rows:
        words = row.get("task", row.get("__index_level_0__"))
        if not isinstance(row.get("task_index"), int) or not isinstance(words, str):
            raise DataError(f"{path}/meta/tasks: a task is {row!r}, expected its number and its words.")
        out[int(row["task_index"])] = words
    return out


def _instruction(path: Path, place: Recorded, own: Mapping[str, NDArray[Any]], tasks: Mapping[int, str]) -> str:
    numbers = np.unique(own["task_index"])
    if len(numbers) > 1:
        raise DataError(
            f"{path}: episode {place.index} has several tasks, {[tasks.get(int(n), int(n)) for n in numbers[:4]]}. "
            f"Expected one instruction for each episode: split the episode there."
        )
    if int(numbers[0]) not in tasks:
        raise DataError(f"{path}: episode {place.index} has task {int(numbers[0])}, meta/tasks knows {sorted(tasks)}.")
    return tasks[int(numbers[0])]
