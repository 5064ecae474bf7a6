"""LeRobot's data sets, versions 2.0, 2.1 and 3.0: ``meta/info.json``, Parquet files, videos or pictures.

Version 3 puts many episodes into a file, and ``meta/episodes`` says which rows and which part of a video are whose;
version 2 has a file for each episode. A frame belongs to a step by its time. What a feature is, its name says:

- ``action``: the actions.
- ``observation.*``, numbers: proprioception, by the rest of the name; but ``observation.environment_state``, which a
  robot does not see, is left out, as are features outside of ``observation``.
- ``observation.images.NAME`` or ``observation.NAME``, videos or images: camera NAME.

Several tasks become embeddings of instructions. Names of action dimensions that end in ``.pos`` are joints, grippers
where they say so, of an arm where they begin with ``left_`` or ``right_``; those that end in ``.vel`` are velocities.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.data.actions import ActionSpace, Part
from classact.data.language import embed_instruction
from classact.data.lerobot_writer import MEANING
from classact.data.readers.lerobot_images import Pictures, VideoFrames
from classact.data.readers.parquet import read_columns, read_texts
from classact.data.readers.parts import RecordedImages
from classact.data.readers.selection import chosen_episodes
from classact.data.schema import Schema
from classact.data.types import Demonstrations
from classact.errors import DataError
from classact.utils.codec import from_json
from classact.utils.storage import read_json, read_jsonl

DESCRIPTION = "a LeRobot data set, version 2.0 to 3.0: a folder with meta/info.json"

SELECTS = True
CHECKS = "classact.data.readers.lerobot_checks"

INFO = "meta/info.json"
CAMERA_TYPES = ("video", "image")
_PRIVILEGED = "observation.environment_state"
_BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_NUMBERS = re.compile(r"(float|int|uint)\d+|bool")
_LARGEST = 1 << 14
_FIELD = re.compile(r"\{(\w+)(?::0?(\d{1,2})d)?\}")

logger = logging.getLogger(__name__)


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


def read(path: Path, *, episodes: int | str | None = None) -> Demonstrations:
    """Read a data set; images are decoded on demand.

    Args:
        path: its folder.
        episodes: the first so many, or which, as in "0:50,60".

    Raises:
        DataError: an unknown version, missing or damaged files, features that do not fit each other.
        ConfigError: episodes that are not there.
    """
    info = read_info(path)
    places = recorded_episodes(path, info)
    places = [places[e] for e in chosen_episodes(episodes, len(places), path)]
    low = {name: f for name, f in info.features.items() if name == "action" or is_proprioception(f)}
    cameras = {f.short: f for f in info.features.values() if f.name.startswith("observation.") and f.is_camera}
    _say_left_out(path, info, [*low, *(f.name for f in cameras.values())])
    columns = {name: feature.shape for name, feature in low.items()}
    rows = read_rows_of(info, places, columns | dict.fromkeys(("timestamp", "frame_index", "task_index"), ()))
    parts: dict[str, list[Any]] = {camera: [] for camera in cameras}
    for place, own in zip(places, rows, strict=True):
        for camera, feature in cameras.items():
            parts[camera].append(_images(path, feature, place, own["timestamp"]))
    keys = [name for name in low if name != "action"]
    proprioception = [np.concatenate([_flat(own[key]) for key in keys] or [_none(own)], axis=1) for own in rows]
    actions = np.concatenate([_flat(own["action"]) for own in rows])
    schema = Schema(
        tuple(cameras),
        tuple((low[key].short, int(np.prod(low[key].shape))) for key in keys),
        actions=_declared_space(path) or _action_space(low["action"]),
        fps=info.fps,
    )
    if schema.actions is None:
        assumed = Schema.assumed((), schema.proprioception_dim, actions.shape[1], values=actions)
        schema = replace(schema, actions=assumed.actions, assumption=assumed.assumption)
    tasks = _tasks(path, info)
    instructions = tuple(_instruction(path, place, own, tasks) for place, own in zip(places, rows, strict=True))
    language, versions = None, {}
    if len(set(instructions)) > 1:
        embedded = [embed_instruction(text or "no instruction") for text in instructions]
        language, versions = np.stack([vector for vector, _ in embedded]), {"language": embedded[0][1]}
        schema = replace(schema, language=language.shape[1])
    return Demonstrations(
        name=path.resolve().name.replace("_", "-"),
        episode_ends=np.cumsum([place.length for place in places], dtype=np.int64),
        actions=np.ascontiguousarray(actions, np.float32),
        proprioception=np.concatenate(proprioception).astype(np.float32),
        images={camera: RecordedImages(camera, own) for camera, own in parts.items()},
        source=str(path),
        schema=schema,
        language=language,
        versions=versions,
        instructions=instructions if any(instructions) else (),
    )


# Metadata


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
    if "action" not in features:
        raise DataError(f"{file}: there is no feature 'action'; features are {', '.join(features) or 'none'}.")
    if not _NUMBERS.fullmatch(features["action"].dtype) or len(features["action"].shape) != 1:
        action = features["action"]
        raise DataError(f"{file}: feature 'action' is {action.dtype} of shape {action.shape}, expected (D,) numbers.")
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


def _say_left_out(path: Path, info: Info, used: Sequence[str]) -> None:
    left = [name for name in info.features if name not in used and name not in _BOOKKEEPING]
    if left:
        depth = ", ".join(name for name in left if info.features[name].depth)
        logger.warning(
            "%s: features that are not read: %s%s", path, ", ".join(left), f" (depth images: {depth})" if depth else ""
        )


def _declared_space(path: Path) -> ActionSpace | None:
    """What actions mean in a data set that classact wrote; None in others."""
    file = path / MEANING
    if not file.is_file():
        return None
    value = read_json(file)
    return from_json(ActionSpace, value.get("action_space") if isinstance(value, dict) else value, str(file))


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


def _flat(values: NDArray[Any]) -> NDArray[Any]:
    return values.reshape(len(values), -1)


def _none(own: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    return np.zeros((len(own["frame_index"]), 0))


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
