"""Demonstrations as a LeRobot data set, version 3.0, which LeRobot's own tools read.

States and actions are written exactly (float32). Images become videos (H.264, lossy), or PNG files in the Parquet
files, which are exact and larger. What actions mean is kept in ``meta/classact.json``, which LeRobot does not read.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from classact.data.actions import ActionSpace
from classact.data.readers.selection import written_episodes
from classact.data.schema import PROPRIOCEPTION
from classact.data.types import Demonstrations, ImageArray
from classact.data.video import h264_encoder
from classact.errors import ConfigError
from classact.utils.codec import to_json
from classact.utils.storage import atomic_path, write_json

VERSION = "v3.0"
logger = logging.getLogger(__name__)

MEANING = "meta/classact.json"
"""What actions mean, and which episodes carry any where some do not, in a data set that classact wrote."""

PER_FILE = 50
"""Episodes of a Parquet file and of a video."""

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
IMAGES_LOOKED_AT = 100
"""Of each episode, for its statistics."""

_INDEX = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}

Progress = Callable[[int, int], None]
Stats = dict[str, dict[str, Any]]


def write_lerobot(
    data: Demonstrations,
    out: Path,
    *,
    fps: float | None = None,
    images: Literal["video", "png"] = "video",
    progress: Progress | None = None,
) -> Path:
    """Write a data set into a new folder, complete or not at all.

    Args:
        data: with images, or without.
        out: folder, which must not exist.
        fps: steps per second, where the data do not say.
        images: as videos, or exactly.
        progress: called with (episodes done, in all).

    Raises:
        ConfigError: the rate is not known, or another one than the data declare, or the folder exists.
        MissingDependencyError: PyAV has no H.264 encoder.
        StorageError: no space or no permission; nothing is left behind.
    """
    known = data.schema.fps
    if fps is not None and (not fps > 0 or (known is not None and fps != known)):
        raise ConfigError(
            f"{data.name} ({data.source}): asked for {fps:g} steps per second; "
            + ("expected more than 0." if known is None else f"they have {known:g}. Leave --fps out.")
        )
    rate = fps if known is None else known
    if rate is None:
        raise ConfigError(f"{data.name} ({data.source}): its steps per second are not known. Say them: --fps 10.")
    rate = float(Fraction(rate).limit_denominator(1001))  # as videos have it, so that times of steps and frames agree
    if data.language is not None and not any(data.instructions):
        logger.warning(
            "%s (%s): its embeddings of instructions are left out: a LeRobot data set holds their texts, and there are "
            "none",
            data.name,
            data.source,
        )
    if out.exists():
        raise ConfigError(f"{out} exists. Choose another folder, or remove it.")
    if images == "video":
        h264_encoder(out)
    with atomic_path(out, replace=False) as temporary:
        temporary.mkdir()
        _Writer(data, temporary, rate, images).write(progress)
    return out


class _Writer:
    def __init__(self, data: Demonstrations, root: Path, fps: float, images: str) -> None:
        self.data, self.root, self.fps, self.pictures = data, root, fps, images == "png"
        self.cameras = {f"observation.images.{name}": array for name, array in data.images.items()}
        instructions = data.instructions or ("",) * len(data)
        self.tasks = list(dict.fromkeys(instructions))
        self.task = [self.tasks.index(text) for text in instructions]
        self.numbers = dict(_numbers(data))

    def write(self, progress: Progress | None) -> None:
        rows: list[dict[str, Any]] = []
        each: list[Stats] = []
        for first in range(0, len(self.data), PER_FILE):
            for row, stats in self._file(first, min(first + PER_FILE, len(self.data))):
                rows.append(row)
                each.append(stats)
                if progress is not None:
                    progress(len(rows), len(self.data))
        self._metadata(rows, each)

    def _file(self, first: int, last: int) -> Iterator[tuple[dict[str, Any], Stats]]:
        """Write some episodes into one Parquet file and a video for each camera."""
        import av
        import pyarrow.parquet as pq

        number = first // PER_FILE
        place = {"chunk_index": 0, "file_index": number}
        path = self.root / f"data/chunk-000/file-{number:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        containers: dict[str, Any] = {}
        writer = None
        try:
            if not self.pictures:
                for name, array in self.cameras.items():
                    video = self.root / f"videos/{name}/chunk-000/file-{number:03d}.mp4"
                    video.parent.mkdir(parents=True, exist_ok=True)
                    containers[name] = _open_video(video, array.shape, self.fps)
            begin = 0
            for e in range(first, last):
                start, end = self.data.bounds(e)
                frames = {name: np.asarray(array[start:end]) for name, array in self.cameras.items()}
                table = self._table(e, frames)
                writer = writer or pq.ParquetWriter(path, table.schema)
                writer.write_table(table)
                for name, (container, stream) in containers.items():
                    for picture in frames[name]:
                        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(_even(picture)), format="rgb24")
                        container.mux(stream.encode(frame))
                row = {"episode_index": e, "tasks": [self.tasks[self.task[e]]], "length": end - start}
                row |= {f"data/{key}": value for key, value in place.items()}
                row |= {"dataset_from_index": start, "dataset_to_index": end}
                for name in containers:
                    row |= {f"videos/{name}/{key}": value for key, value in place.items()}
                    row[f"videos/{name}/from_timestamp"] = begin / self.fps
                    row[f"videos/{name}/to_timestamp"] = (begin + end - start) / self.fps
                begin += end - start
                yield row, self._stats(e, table, frames)
            for container, stream in containers.values():
                container.mux(stream.encode(None))
        finally:
            for container, _ in containers.values():
                container.close()
            if writer is not None:
                writer.close()

    def _table(self, e: int, frames: Mapping[str, ImageArray]) -> Any:
        import pyarrow as pa

        start, end = self.data.bounds(e)
        steps = end - start
        columns: dict[str, Any] = {}
        for name, values in self.numbers.items():
            own = np.ascontiguousarray(values[start:end], np.float32)
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(own.ravel()), own.shape[1])
        if self.pictures:
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            for name, pictures in frames.items():
                stored = [{"bytes": _png(picture), "path": f"frame-{t:06d}.png"} for t, picture in enumerate(pictures)]
                columns[name] = pa.array(stored, kind)
        columns |= {
            "timestamp": pa.array((np.arange(steps) / self.fps).astype(np.float32)),
            "frame_index": pa.array(np.arange(steps)),
            "episode_index": pa.array(np.full(steps, e)),
            "index": pa.array(np.arange(start, end)),
            "task_index": pa.array(np.full(steps, self.task[e])),
        }
        table = pa.table(columns)
        return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": self._hub_features()}})})

    def _hub_features(self) -> dict[str, Any]:
        """Types of the columns as the package datasets has them."""
        found: dict[str, Any] = {
            name: {"feature": {"dtype": "float32", "_type": "Value"}, "length": values.shape[1], "_type": "List"}
            for name, values in self.numbers.items()
        }
        if self.pictures:
            found |= {name: {"_type": "Image"} for name in self.cameras}
        return found | {name: {"dtype": dtype, "_type": "Value"} for name, dtype in _INDEX.items()}

    def _stats(self, e: int, table: Any, frames: Mapping[str, ImageArray]) -> Stats:
        start, end = self.data.bounds(e)
        found = {name: _describe(values[start:end]) for name, values in self.numbers.items()}
        found |= {name: _describe(table.column(name).to_numpy()[:, None]) for name in _INDEX}
        for name, pictures in frames.items():
            some = pictures[np.unique(np.linspace(0, len(pictures) - 1, IMAGES_LOOKED_AT).round().astype(int))]
            values = _describe(some.reshape(-1, 3) / 255.0)
            found[name] = {key: [[[v]] for v in value] for key, value in values.items() if key != "count"}
            found[name]["count"] = [len(some)]
        return found

    def _features(self) -> dict[str, Any]:
        space, found = self.data.schema.actions, dict[str, Any]()
        for name, values in self.numbers.items():
            size = values.shape[1]
            names = _names(space, size) if name == "action" else None
            found[name] = {"dtype": "float32", "shape": [size], "names": names}
        for name, array in self.cameras.items():
            _, height, width, _ = array.shape
            if not self.pictures:
                height, width = height + height % 2, width + width % 2
            found[name] = {
                "dtype": "image" if self.pictures else "video",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
            }
            if not self.pictures:
                found[name]["info"] = {
                    "video.height": height,
                    "video.width": width,
                    "video.codec": "h264",
                    "video.pix_fmt": "yuv420p",
                    "video.is_depth_map": False,
                    "video.fps": _number(self.fps),
                    "video.channels": 3,
                    "has_audio": False,
                }
        return found | {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in _INDEX.items()}

    def _metadata(self, rows: list[dict[str, Any]], each: list[Stats]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        meta = self.root / "meta"
        for row, stats in zip(rows, each, strict=True):
            row |= {f"stats/{name}/{key}": value for name, own in stats.items() for key, value in own.items()}
            row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        path = meta / "episodes/chunk-000/file-000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
        tasks = pa.table({"task_index": pa.array(range(len(self.tasks)), pa.int64()), "task": self.tasks})
        pq.write_table(tasks.replace_schema_metadata({"pandas": json.dumps(_PANDAS)}), meta / "tasks.parquet")
        write_json(meta / "stats.json", _joined(each))
        info = {
            "codebase_version": VERSION,
            "robot_type": self.data.simulator or None,
            "total_episodes": len(self.data),
            "total_frames": self.data.num_steps,
            "total_tasks": len(self.tasks),
            "chunks_size": 1000,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": _number(self.fps),
            "splits": {"train": f"0:{len(self.data)}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": None
            if self.pictures or not self.cameras
            else "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
            "features": self._features(),
        }
        write_json(meta / "info.json", info)
        space, labelled = self.data.schema.actions, self.data.labelled
        meaning = {} if space is None else {"action_space": to_json(space)}
        if labelled is not None and self.data.actions.shape[1]:
            meaning["labelled"] = written_episodes(np.flatnonzero(labelled).tolist())
        if meaning:
            write_json(self.root / MEANING, meaning)


_PANDAS = {
    "index_columns": ["task"],
    "column_indexes": [{"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object"}],
    "columns": [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": dtype, "metadata": None}
        for name, kind, dtype in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ],
}
"""What pandas needs to take the tasks' words for the index, which LeRobot looks numbers up by."""


def _numbers(data: Demonstrations) -> Iterator[tuple[str, NDArray[Any]]]:
    if data.actions.shape[1]:
        yield "action", data.actions
    start, keys = 0, data.schema.keys
    for key, size in data.schema.proprioception:
        name = "state" if len(keys) == 1 or (key == PROPRIOCEPTION and "state" not in keys) else key
        yield f"observation.{name}", data.proprioception[:, start : start + size]
        start += size


def _names(space: ActionSpace | None, size: int) -> list[str] | None:
    """Of the dimensions of actions; joints and grippers as LeRobot's robots name them."""
    if space is None:
        return None
    names = []
    for part, where in space.layout():
        end = {"joint": ".pos", "gripper": ".pos", "velocity": ".vel"}.get(part.kind, "")
        count = where.stop - where.start
        names += [f"{part.name}{f'_{i}' if count > 1 else ''}{end}" for i in range(count)]
    assert len(names) == size
    return names


def _number(fps: float) -> float | int:
    return int(fps) if fps == int(fps) else fps


def _png(picture: ImageArray) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(picture).save(out, format="PNG")
    return out.getvalue()


def _even(picture: ImageArray) -> ImageArray:
    """Padded by a repeated row or column: yuv420p needs even sizes."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _open_video(path: Path, shape: tuple[int, ...], fps: float) -> tuple[Any, Any]:
    import av

    container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
    encoder = h264_encoder(path)
    stream: Any = container.add_stream(encoder, rate=Fraction(fps).limit_denominator(1001))  # exactly
    stream.height, stream.width = shape[1] + shape[1] % 2, shape[2] + shape[2] % 2
    stream.pix_fmt = "yuv420p"
    # Every other frame can be found without decoding those before, as LeRobot writes them.
    stream.options = {"crf": "18", "g": "2", "bf": "0"} if encoder == "libx264" else {"g": "2"}
    return container, stream


def _describe(values: NDArray[Any]) -> dict[str, Any]:
    """Statistics of (N, D) values, each a list of D numbers."""
    values = values.astype(np.float64)
    found = {name: getattr(values, name)(axis=0).tolist() for name in ("min", "max", "mean", "std")}
    found |= {name: np.quantile(values, q, axis=0).tolist() for name, q in QUANTILES.items()}
    return found | {"count": [len(values)]}


def _joined(each: list[Stats]) -> Stats:
    """Of all episodes, from those of each; quantiles are means weighted by length, as LeRobot has them."""
    out: Stats = {}
    for name in each[0]:
        own = [stats[name] for stats in each]
        count = np.array([one["count"][0] for one in own], np.float64)

        def stacked(key: str, own: list[dict[str, Any]] = own) -> NDArray[np.float64]:
            return np.array([one[key] for one in own], np.float64)

        weight = (count / count.sum()).reshape(-1, *([1] * (stacked("mean").ndim - 1)))
        mean = (weight * stacked("mean")).sum(axis=0)
        variance = (weight * (stacked("std") ** 2 + (stacked("mean") - mean) ** 2)).sum(axis=0)
        out[name] = {
            "min": stacked("min").min(axis=0).tolist(),
            "max": stacked("max").max(axis=0).tolist(),
            "mean": mean.tolist(),
            "std": np.sqrt(variance).tolist(),
            "count": [int(count.sum())],
            **{key: (weight * stacked(key)).sum(axis=0).tolist() for key in QUANTILES},
        }
    return out
