"""Writers of small data sets in layouts that are declared or recognised: UMI's and real Push-T's Zarr, and others."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from scipy.spatial.transform import Rotation

from classact.data.video import write_mp4


def write_store(path: Path, arrays: Mapping[str, Any], lengths: Sequence[int], *, version: int = 2) -> Path:
    """A Zarr store: ``data`` of (N, ...) arrays and ``meta/episode_ends``; a zip where it is named so."""
    folder = path.with_suffix("") if path.suffix == ".zip" else path
    group = zarr.open_group(str(folder), mode="w", zarr_format=version)  # type: ignore[arg-type]
    for name, value in {**{f"data/{k}": v for k, v in arrays.items()}, "meta/episode_ends": np.cumsum(lengths)}.items():
        chunks = (min(3, len(value)), *value.shape[1:])
        config: Any = {"write_empty_chunks": True}
        array = group.create_array(name, shape=value.shape, chunks=chunks, dtype=value.dtype, config=config)
        array[...] = value
    if path.suffix == ".zip":
        shutil.make_archive(str(folder), "zip", folder)
        shutil.rmtree(folder)
    return path


def pose(steps: int, seed: int) -> tuple[Any, Any, Any]:
    """Positions (N, 3), axis-angle rotations (N, 3) and gripper widths (N, 1)."""
    rng = np.random.default_rng(seed)
    vectors = Rotation.random(steps, random_state=seed).as_rotvec()
    return rng.normal(size=(steps, 3)), vectors, rng.uniform(0, 0.1, (steps, 1))


def umi_arrays(steps: int, arms: int = 1, cameras: int = 1) -> dict[str, Any]:
    """UMI's arrays for N steps."""
    rng = np.random.default_rng(steps)
    found: dict[str, Any] = {}
    for arm in range(arms):
        position, rotation, width = pose(steps, arm)
        found[f"robot{arm}_eef_pos"] = position.astype(np.float32)
        found[f"robot{arm}_eef_rot_axis_angle"] = rotation.astype(np.float32)
        found[f"robot{arm}_gripper_width"] = width.astype(np.float32)
        found[f"robot{arm}_demo_start_pose"] = np.zeros((steps, 6)) + 1
    for camera in range(cameras):
        found[f"camera{camera}_rgb"] = rng.integers(1, 256, (steps, 8, 8, 3), np.uint8)
    return found


def write_umi(path: Path, lengths: Sequence[int], **options: int) -> Path:
    """UMI's store."""
    return write_store(path, umi_arrays(sum(lengths), **options), lengths)


def write_real_pusht(path: Path, lengths: Sequence[int], cameras: int = 1, fps: float = 10.0) -> Path:
    """Real Push-T's folder: ``replay_buffer.zarr`` at 10 Hz, and videos at 30, whose frames tell step and episode."""
    steps = sum(lengths)
    position, rotation, _ = pose(steps, 0)
    times = np.concatenate([100.0 + 1000 * e + np.arange(n) / fps for e, n in enumerate(lengths)])
    arrays = {
        "action": np.concatenate([position, rotation], axis=1),
        "robot_eef_pose": np.concatenate([position + 1, rotation], axis=1),
        "robot_joint": position.repeat(2, axis=1),
        "timestamp": times,
        "stage": np.ones(steps, np.int64),
    }
    write_store(path / "replay_buffer.zarr", arrays, lengths)
    for episode, length in enumerate(lengths):
        for camera in range(cameras):
            frames = np.zeros((3 * length, 16, 24, 3), np.uint8)
            frames[:] = (20 + 10 * np.arange(3 * length) // 3)[:, None, None, None] + 40 * camera
            file = path / "videos" / str(episode) / f"{camera}.mp4"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_mp4(file, frames, fps=3 * fps)
    return path


def write_hdf5(path: Path, arrays: Mapping[str, Any]) -> Path:
    """One file of these arrays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file[name] = value
    return path
