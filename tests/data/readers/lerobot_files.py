"""LeRobot data sets, small, written to the letter of versions 3.0 and 2.1; nothing of the reader is used."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FPS = 10
INDEX = ("timestamp", "frame_index", "episode_index", "index", "task_index")


PANDAS = {
    "index_columns": ["task"],
    "column_indexes": [{"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object"}],
    "columns": [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": dtype, "metadata": None}
        for name, kind, dtype in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ],
}
"""As pandas writes the tasks, whose words are its index."""


@dataclass
class Episode:
    """One demonstration: numbers and frames by feature, and its task."""

    values: dict[str, np.ndarray]
    frames: dict[str, np.ndarray] = field(default_factory=dict)
    task: str = "push"

    def __len__(self) -> int:
        return len(self.values["action"])


def episode(
    steps: int, seed: int = 0, *, actions: int = 2, cameras: Mapping[str, tuple[int, int]] | None = None, **more: Any
) -> Episode:
    """Random numbers; frames in which a bar moves, so that each is told from its neighbours."""
    rng = np.random.default_rng(seed)
    values = {
        "action": rng.uniform(0, 512, (steps, actions)).astype(np.float32),
        "observation.state": rng.uniform(0, 512, (steps, actions)).astype(np.float32),
    }
    frames = {}
    for name, (height, width) in ({"observation.images.top": (32, 48)} if cameras is None else cameras).items():
        pictures = np.full((steps, height, width, 3), 40 + 20 * seed, np.uint8)
        for t in range(steps):
            pictures[t, :, (4 * t) % (width - 8) : (4 * t) % (width - 8) + 8] = (200, 30, 60)
        frames[name] = pictures
    return Episode(values, frames, **more)


def write_video(path: Path, frames: np.ndarray, fps: int = FPS) -> None:
    """H.264 with keyframes every other frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(fps))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.options = {"g": "2", "crf": "10", "bf": "0"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def read_video(path: Path) -> np.ndarray:
    """Its frames one after another, as PyAV gives them."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def features(first: Episode, *, pictures: bool, names: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``features`` of info.json."""
    found: dict[str, Any] = {
        name: {"dtype": "float32", "shape": [values.shape[1]], "names": None} for name, values in first.values.items()
    }
    for name, frames in first.frames.items():
        found[name] = {
            "dtype": "image" if pictures else "video",
            "shape": list(frames.shape[1:]),
            "names": ["height", "width", "channels"],
        }
    for name in INDEX:
        found[name] = {"dtype": "float32" if name == "timestamp" else "int64", "shape": [1], "names": None}
    for name, words in (names or {}).items():
        found[name]["names"] = words
    return found


def png(frame: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, format="PNG")
    return out.getvalue()


def table(one: Episode, number: int, first: int, tasks: Sequence[str], *, pictures: bool) -> pa.Table:
    """Rows of an episode."""
    steps = len(one)
    columns: dict[str, Any] = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        for name, values in one.values.items()
    }
    if pictures:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        for name, frames in one.frames.items():
            columns[name] = pa.array([{"bytes": png(f), "path": f"{t}.png"} for t, f in enumerate(frames)], kind)
    columns |= {
        "timestamp": pa.array((np.arange(steps) / FPS).astype(np.float32)),
        "frame_index": pa.array(np.arange(steps)),
        "episode_index": pa.array(np.full(steps, number)),
        "index": pa.array(np.arange(first, first + steps)),
        "task_index": pa.array(np.full(steps, tasks.index(one.task))),
    }
    return pa.table(columns)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_v3(
    root: Path,
    episodes: Sequence[Episode],
    *,
    per_file: int = 2,
    pictures: bool = False,
    names: Mapping[str, Any] | None = None,
    **info: Any,
) -> Path:
    """Version 3.0, with ``per_file`` episodes in each Parquet file and video; ``info`` replaces parts of info.json."""
    tasks = list(dict.fromkeys(one.task for one in episodes))
    rows: list[dict[str, Any]] = []
    first = 0
    for file in range(0, len(episodes), per_file):
        group, where = episodes[file : file + per_file], {"chunk_index": 0, "file_index": file // per_file}
        tables, begin = [], 0.0
        for number, one in enumerate(group, file):
            tables.append(table(one, number, first, tasks, pictures=pictures))
            row: dict[str, Any] = {"episode_index": number, "tasks": [one.task], "length": len(one)}
            row |= {f"data/{key}": value for key, value in where.items()}
            row |= {"dataset_from_index": first, "dataset_to_index": first + len(one)}
            for name in () if pictures else one.frames:
                row |= {f"videos/{name}/{key}": value for key, value in where.items()}
                row |= {f"videos/{name}/from_timestamp": begin, f"videos/{name}/to_timestamp": begin + len(one) / FPS}
            rows.append(row)
            first, begin = first + len(one), begin + len(one) / FPS
        path = root / f"data/chunk-000/file-{file // per_file:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(tables), path, row_group_size=7)
        for name in () if pictures else group[0].frames:
            video = root / f"videos/{name}/chunk-000/file-{file // per_file:03d}.mp4"
            write_video(video, np.concatenate([one.frames[name] for one in group]))
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    words = pa.table({"task_index": list(range(len(tasks))), "task": tasks})
    words = words.replace_schema_metadata({"pandas": json.dumps(PANDAS)})
    pq.write_table(words, root / "meta/tasks.parquet")
    made = {
        "codebase_version": "v3.0",
        "fps": FPS,
        "features": features(episodes[0], pictures=pictures, names=names),
        "total_episodes": len(episodes),
        "total_frames": first,
        "total_tasks": len(tasks),
        "chunks_size": 1000,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None if pictures else "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    write_json(root / "meta/info.json", made | info)
    return root


def write_v2(root: Path, episodes: Sequence[Episode], version: str = "v2.1", **info: Any) -> Path:
    """Version 2.0 or 2.1: a Parquet file and a video for each episode."""
    tasks = list(dict.fromkeys(one.task for one in episodes))
    first, rows = 0, []
    for number, one in enumerate(episodes):
        path = root / f"data/chunk-000/episode_{number:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(one, number, first, tasks, pictures=False), path)
        for name, frames in one.frames.items():
            write_video(root / f"videos/chunk-000/{name}/episode_{number:06d}.mp4", frames)
        rows.append({"episode_index": number, "tasks": [one.task], "length": len(one)})
        first += len(one)
    made = {
        "codebase_version": version,
        "fps": FPS,
        "features": features(episodes[0], pictures=False),
        "total_episodes": len(episodes),
        "chunks_size": 1000,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    write_json(root / "meta/info.json", made | info)
    for name, lines in (
        ("episodes", rows),
        ("tasks", [{"task_index": number, "task": words} for number, words in enumerate(tasks)]),
    ):
        (root / f"meta/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    return root
