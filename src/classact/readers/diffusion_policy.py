"""Diffusion Policy's Zarr stores: ``data/{img, state, action, ...}`` and ``meta/episode_ends``, Zarr version 2.

The layout is that of ``ReplayBuffer`` in https://github.com/real-stanford/diffusion_policy: every array of ``data`` has
one row per step; ``meta/episode_ends`` is the cumulative number of steps. ``data/action[t]`` is taken at row t.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.errors import DataError
from classact.images import ImageMap, ImageStore
from classact.readers import Progress, first_episodes
from classact.readers.zarr2 import Zarr2Array, Zarr2Store
from classact.types import Demonstrations, ImageArray

DESCRIPTION = "a Zarr version 2 folder, or .zarr.zip, with data/action and meta/episode_ends"


@dataclass(frozen=True)
class ZarrLayout:
    """Which array of a store is what. The defaults fit Push-T.

    Attributes:
        data: group of the arrays with one row per step.
        episode_ends: array of cumulative numbers of steps.
        action: key in ``data`` of the (N, D_a) actions.
        state: key of the (N, D_s) full simulator states; None for data without (real robots).
        proprioception: key of the array that holds what the robot knows of itself.
        proprioception_columns: its columns that count; None for all. Push-T: the agent's x and y, in pixels of its
            512 x 512 world.
        cameras: key of an image array -> camera name.
        find_cameras: take every other array of shape (N, H, W, 3) as a camera as well, named by its key.
    """

    data: str = "data"
    episode_ends: str = "meta/episode_ends"
    action: str = "action"
    state: str | None = "state"
    proprioception: str = "state"
    proprioception_columns: tuple[int, ...] | None = (0, 1)
    cameras: Mapping[str, str] = field(default_factory=lambda: {"img": "top"})
    find_cameras: bool = True


def matches(path: Path) -> bool:
    """A folder with Zarr metadata or named like a store; a zip file named like one."""
    if path.is_dir():
        return path.suffix == ".zarr" or (path / ".zgroup").is_file() or (path / "meta/episode_ends").is_dir()
    return path.name.endswith(".zarr.zip")


def read(
    path: Path,
    *,
    episodes: int | None = None,
    progress: Progress | None = None,
    layout: ZarrLayout | None = None,
    store: ImageStore | None = None,
) -> Demonstrations:
    """Read a store. Images are decoded once into an image store and memory-mapped from there.

    Args:
        path: folder, or ``.zarr.zip`` file.
        episodes: only the first so many demonstrations; only their images are decoded.
        progress: called with (done, total) steps of each camera while it is decoded; not called when it was before.
        layout: which array is what, by default Push-T's.
        store: where decoded images go, by default the user's cache.

    Returns:
        Demonstrations with (N, D_a) float32 actions, (N, D_p) float32 proprioception, (N, D_s) float64 states and
        one (N, H, W, 3) uint8 memory map per camera, at native resolution.

    Raises:
        DataError: missing or damaged files, arrays that do not fit together, values that cannot be used.
        ConfigError: more episodes asked for than there are.
        StorageError: no space for the decoded images.
    """
    layout = layout or ZarrLayout()
    with Zarr2Store(path) as zarr_store:
        arrays = _find_arrays(zarr_store, layout)
        actions = _matrix(arrays[layout.action])
        states = None if layout.state is None else _matrix(arrays[layout.state])
        robot = arrays[layout.proprioception]
        demonstrations = first_episodes(
            # Everything but the images is checked before they are decoded, which takes long.
            Demonstrations(
                name=path.name.removesuffix(".zip").removesuffix(".zarr").replace("_", "-"),
                episode_ends=_episode_ends(zarr_store, layout),
                actions=_cast(actions, np.float32),
                proprioception=_cast(_columns(robot, _matrix(robot), layout.proprioception_columns), np.float32),
                states=None if states is None else _cast(states, np.float64),
                source=str(path),
            ),
            episodes,
        )
        images = {
            camera: _images(arrays[key], demonstrations.num_steps, store or ImageStore(), progress)
            for key, camera in _cameras(arrays, layout).items()
        }
    return demonstrations.with_images(images)


def _find_arrays(store: Zarr2Store, layout: ZarrLayout) -> dict[str, Zarr2Array]:
    keys = store.arrays(layout.data)
    needed = [key for key in (layout.action, layout.state, layout.proprioception) if key is not None]
    for key in needed:
        if key not in keys:
            found = ", ".join(keys) or "none"
            raise DataError(
                f"{store.path}: {layout.data}/{key} is missing; arrays in {layout.data}: {found}. Either this is not a "
                f"Diffusion Policy store ({DESCRIPTION}), or its keys differ: pass a ZarrLayout that names them."
            )
    arrays = {key: store.array(f"{layout.data}/{key}") for key in keys}
    steps = arrays[layout.action].shape[:1]
    for key in [*needed, *_cameras(arrays, layout)]:
        if arrays[key].shape[:1] != steps:
            raise DataError(
                f"{arrays[key].where} has shape {arrays[key].shape}, but {arrays[layout.action].key} has shape "
                f"{arrays[layout.action].shape}: expected the same number of rows, one per step. The file is "
                f"incomplete; copy or download the data again, or cut all arrays to the shorter length."
            )
    return arrays


def _cameras(arrays: Mapping[str, Zarr2Array], layout: ZarrLayout) -> dict[str, str]:
    cameras = {}
    for key, array in arrays.items():
        is_image = len(array.shape) == 4 and array.shape[3] == 3
        if key in layout.cameras:
            if not is_image:
                raise DataError(
                    f"{array.where} has shape {array.shape}, expected images of shape (N, H, W, 3): one RGB frame per "
                    f"step, channels last. Transpose or convert the array."
                )
            cameras[key] = layout.cameras[key]
        elif is_image and layout.find_cameras:
            cameras[key] = key
    return cameras


def _episode_ends(store: Zarr2Store, layout: ZarrLayout) -> NDArray[np.int64]:
    group, _, name = layout.episode_ends.rpartition("/")
    if name not in store.arrays(group):
        raise DataError(
            f"{store.path}: {layout.episode_ends} is missing, so nobody knows where episodes end. Copy or download the "
            f"data again, or pass a ZarrLayout with the right key."
        )
    array = store.array(layout.episode_ends)
    if array.dtype.kind not in "iu" or len(array.shape) != 1:
        raise DataError(
            f"{array.where} has shape {array.shape} and dtype {array.dtype}, expected (E,) integers: the cumulative "
            f"number of steps after each episode."
        )
    return array.read().astype(np.int64)


def _matrix(array: Zarr2Array) -> NDArray[Any]:
    if len(array.shape) != 2 or array.dtype.kind not in "fiu":
        raise DataError(
            f"{array.where} has shape {array.shape} and dtype {array.dtype}, expected (N, D) numbers: one row per step."
        )
    return array.read()


def _cast(values: NDArray[Any], dtype: type) -> NDArray[Any]:
    # A float64 beyond float32 becomes infinite, which Demonstrations reports with its place.
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, dtype=dtype)


def _columns(array: Zarr2Array, values: NDArray[Any], columns: tuple[int, ...] | None) -> NDArray[Any]:
    if columns is None:
        return values
    if not columns or min(columns) < 0 or max(columns) >= values.shape[1]:
        raise DataError(
            f"{array.where} has {values.shape[1]} columns, but proprioception is declared as columns {columns}. "
            f"Pass a ZarrLayout with proprioception_columns that exist."
        )
    return values[:, list(columns)]


def _images(array: Zarr2Array, steps: int, store: ImageStore, progress: Progress | None) -> ImageArray:
    if array.dtype.kind not in "fiu":
        raise DataError(f"{array.where} has dtype {array.dtype}, expected images of numbers from 0 to 255.")
    array.check_files()
    _, height, width, _ = array.shape
    key = {
        "kind": "diffusion-policy-zarr",
        "path": str(array.store.path.resolve()),
        "array": array.key,
        "identity": array.identity(),
    }
    whole = store.get(key, (array.shape[0], height, width, 3))
    if whole is not None:
        return whole[:steps]

    def fill(out: ImageMap) -> None:
        largest = 0.0
        for place, values in array.blocks(steps):
            rows = slice(place[0].start, min(place[0].stop, steps))
            values = values[: rows.stop - rows.start]
            out[(rows, *place[1:])] = _to_uint8(values, array, place)
            largest = max(largest, float(values.max()))
            if progress is not None:
                progress(rows.stop, steps)
        if array.dtype.kind == "f" and largest == 1.0:
            raise DataError(
                f"{array.where}: the largest value is 1.0; expected values from 0 to 255. These look like images "
                f"scaled to [0, 1]: multiply by 255, round, and store them as uint8."
            )

    return store.get_or_create(key, (steps, height, width, 3), fill)


def _to_uint8(values: NDArray[Any], array: Zarr2Array, place: tuple[slice, ...]) -> ImageArray:
    """Convert whole numbers 0..255 of any dtype exactly; everything else is an error that says where and what."""
    if values.dtype == np.uint8:
        return values
    low, high = values.min(), values.max()
    # Written so that NaN, which compares false with everything, fails it.
    if low >= 0 and high <= 255:
        converted = values.astype(np.uint8)
        if values.dtype.kind != "f" or np.array_equal(converted, values):
            return converted
        bad, why = values != converted, "is not a whole number"
        if high <= 1:
            why += ". These look like images scaled to [0, 1]: multiply by 255, round, and store them as uint8"
    else:
        bad, why = ~((values >= 0) & (values <= 255)), "is not in 0..255"
    where = [int(i) + part.start for i, part in zip(np.argwhere(bad)[0], place, strict=True)]
    raise DataError(
        f"{array.where}[{', '.join(map(str, where))}] is {values[bad][0]}, which {why}. Expected RGB images of whole "
        f"numbers from 0 to 255; {int(bad.sum()):,} of {values.size:,} values in this chunk are not."
    )
