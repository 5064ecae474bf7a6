"""Demonstrations that ``classact data generate`` wrote: simulator states and actions, and optionally images.

A file NAME.npz, format "classact-demonstrations-2":

* ``lengths``, ``seeds`` (E,) int64: steps, and the seed of the episode's ``reset``;
* ``states`` (N, D_s) float64, ``actions`` (N, D_a) and ``proprioception`` (N, D_p) float32, episodes concatenated;
  where there are no ``actions``, demonstrations carry none;
* ``language`` (E, D_l) float32, where episodes have an instruction;
* ``header``: JSON, see :func:`write`.

With images it is a folder: ``demonstrations.npz``, an ``images-CAMERA.npy`` (N, H, W, 3) uint8 per camera, read through
a memory map, and ``checksums.json``.

The demonstrations in the package, of our Push-T expert, are in the smaller "classact-demonstrations-1": integer
differences from step to step. ``actions`` (N, 2) int16 are in 1/8 px, of which the expert executes multiples;
``states`` (N, 5) int32 in 1/1024 px and 1/65536 rad, within 0.0005 px and 0.00001 rad of the simulator's. The header
has the settings and versions with which ``sims/experts`` can make them again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from classact.data.actions import ActionSpace
from classact.data.named_layouts import WITHOUT_ACTIONS
from classact.data.readers import first_episodes
from classact.data.schema import Schema
from classact.data.types import Demonstrations, ImageArray, IntArray, StateArray
from classact.errors import CheckpointError, DataError
from classact.utils.codec import from_json, to_json
from classact.utils.inputs import cannot_read, is_from_system
from classact.utils.storage import atomic_path, verify_folder, write_folder

DESCRIPTION = "an .npz file, or a folder with demonstrations.npz, by classact data generate"
FORMAT, PUSHT_FORMAT = "classact-demonstrations-2", "classact-demonstrations-1"
EMBEDDED = Path(__file__).resolve().parents[2] / "assets" / "pusht_expert.npz"
ACTION_UNITS = np.array([8.0, 8.0])  # per px
STATE_UNITS = np.array([1024.0, 1024.0, 1024.0, 1024.0, 65536.0])  # per px, per rad
FILE = "demonstrations.npz"
_ARRAYS: Mapping[str, str] = {
    "lengths": "int64",
    "seeds": "int64",
    "states": "float64",
    "actions": "float32",
    "proprioception": "float32",
}
_REMEDY = "Copy or generate it again."


@dataclass(frozen=True)
class Images:
    """Images that are stored with the demonstrations.

    Attributes:
        shift: the visual shift that they show.
        size: side in pixels.
        seed: of the appearances (:func:`classact.sims.rendering.appearance_seed`).
        draw: fills a camera's (N, size, size, 3) uint8 memory map, given its name and the map.
    """

    shift: str
    size: int
    seed: int
    cameras: tuple[str, ...]
    draw: Callable[[str, ImageArray], None]


def write(
    out: Path,
    data: Demonstrations,
    *,
    seeds: Sequence[int],
    instructions: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
    images: Images | None = None,
) -> None:
    """Write demonstrations, whole or not at all.

    Args:
        out: the file (.npz); a folder where there are images.
        data: with states; only the images of ``images`` are stored.
        seeds: (E,) of the episodes' initial states.
        instructions: (E,) in words; empty where the task has none.
        facts: further entries of the header.
    """
    assert data.states is not None
    header: dict[str, Any] = {
        "format": FORMAT,
        "simulator": data.simulator,
        "versions": dict(data.versions),
        "schema": to_json(data.schema),
        "instructions": list(instructions),
        **(facts or {}),
        "images": None,
    }
    arrays: dict[str, NDArray[Any]] = {
        "lengths": data.lengths,
        "seeds": np.asarray(seeds, np.int64),
        "states": data.states,
        "actions": data.actions,
        "proprioception": data.proprioception,
    }
    if data.language is not None:
        arrays["language"] = data.language
    if images is None:
        with atomic_path(out) as temporary:
            _write_arrays(temporary, header, arrays)
        return
    header["images"] = {name: getattr(images, name) for name in ("shift", "size", "seed", "cameras")}

    def fill(folder: Path) -> None:
        _write_arrays(folder / FILE, header, arrays)
        shape = (data.num_steps, images.size, images.size, 3)
        for camera in images.cameras:
            frames: Any = open_memmap(folder / _image_file(camera), mode="w+", dtype=np.uint8, shape=shape)  # type: ignore[no-untyped-call]
            images.draw(camera, frames)
            frames.flush()

    write_folder(out, fill)


def write_pusht(
    out: Path,
    header: Mapping[str, Any],
    *,
    seeds: Sequence[int],
    states: Sequence[StateArray],
    actions: Sequence[StateArray],
) -> None:
    """Write format 1: float64 states (L, 5) and actions (L, 2), multiples of 1/8 px, of each episode."""
    units = {"action_units": ACTION_UNITS.tolist(), "state_units": STATE_UNITS.tolist()}
    arrays: dict[str, NDArray[Any]] = {
        "seeds": np.array(seeds, dtype=np.int64),
        "lengths": np.array([len(a) for a in actions], dtype=np.int64),
        "actions": np.concatenate([_differences(a * ACTION_UNITS) for a in actions]).astype(np.int16),
        "states": np.concatenate([_differences(s * STATE_UNITS) for s in states]).astype(np.int32),
    }
    with atomic_path(out) as temporary:
        _write_arrays(temporary, {"format": PUSHT_FORMAT, **units, **header}, arrays)


def _differences(values: StateArray) -> StateArray:
    return np.diff(np.round(values), axis=0, prepend=0.0)


def _read_pusht(header: dict[str, Any], arrays: dict[str, NDArray[Any]], source: str, name: str) -> Demonstrations:
    ends = np.cumsum(arrays["lengths"], dtype=np.int64)

    def summed(differences: IntArray) -> IntArray:
        parts = np.split(differences, ends[:-1])
        return np.concatenate([np.cumsum(part, axis=0, dtype=np.int64) for part in parts])

    states = summed(arrays["states"]) / np.array(header["state_units"])
    return Demonstrations(
        name=name,
        episode_ends=ends,
        actions=(summed(arrays["actions"]) / np.array(header["action_units"])).astype(np.float32),
        proprioception=states[:, :2].astype(np.float32),
        states=states,
        source=source,
        schema=Schema(("top",), (("agent_pos", 2),), actions=ActionSpace.points()),
        simulator="pusht",
        versions=header.get("packages", {}),
    )


def _write_arrays(path: Path, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    text = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, header=text, **arrays)


def _image_file(camera: str) -> str:
    return f"images-{camera}.npy"


def matches(path: Path) -> bool:
    """An .npz file, or a folder that holds demonstrations.npz."""
    return path.suffix == ".npz" if path.is_file() else (path / FILE).is_file()


def declared_simulator(path: Path) -> str:
    """Registry name in the header; empty where it cannot be read, which :func:`read` reports."""
    try:
        return str(read_header(path).get("simulator", ""))
    except DataError:
        return ""


def read(path: Path, *, episodes: int | None = None) -> Demonstrations:
    """Read what :func:`write` wrote; verifies checksums, which reads a folder's images once.

    Raises:
        DataError: damaged, incomplete, another file, or another version's format.
        ConfigError: more episodes than there are.
    """
    name = path.name.removesuffix(".npz")
    if path.is_dir():
        try:
            verify_folder(path, _REMEDY)
        except CheckpointError as problem:
            raise DataError(str(problem)) from None
    file = path / FILE if path.is_dir() else path
    header, arrays = _load(file)
    try:
        if header["format"] == PUSHT_FORMAT:
            return first_episodes(_read_pusht(header, arrays, str(file), name), episodes)
        shown, schema = header["images"], from_json(Schema, header["schema"], f"{file}: schema")
        data = Demonstrations(
            name=name,
            episode_ends=np.cumsum(arrays["lengths"], dtype=np.int64),
            actions=arrays.get("actions", np.zeros((len(arrays["proprioception"]), 0), np.float32)),
            proprioception=arrays["proprioception"],
            states=arrays["states"],
            images={camera: _map_images(path / _image_file(camera)) for camera in shown["cameras"]} if shown else {},
            source=str(path),
            schema=schema if "actions" in arrays else replace(schema, actions=None, assumption=WITHOUT_ACTIONS),
            language=arrays.get("language"),
            simulator=header["simulator"],
            versions=header["versions"],
            images_shift=shown["shift"] if shown else "",
        )
    except (KeyError, TypeError) as problem:
        raise DataError(
            f"{file}: the header cannot be used ({type(problem).__name__}: {problem}): it is damaged, or another "
            f"version wrote it. {_REMEDY}"
        ) from None
    if len(arrays["seeds"]) != len(data):
        raise DataError(f"{file}: there are {len(arrays['seeds'])} seeds for {len(data)} episodes. {_REMEDY}")
    return first_episodes(data, episodes)


def load_embedded() -> Demonstrations:
    """The demonstrations in the package."""
    return replace(read(EMBEDDED), name="pusht-expert")


def read_header(path: Path) -> dict[str, Any]:
    """The header and ``seeds`` of a file or folder; nothing else is decompressed or checked."""
    header, arrays = _load(path / FILE if path.is_dir() else path, ("seeds",))
    return {**header, "seeds": arrays["seeds"].tolist()}


def _load(path: Path, only: Sequence[str] | None = None) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            found = list(content)
            wanted = found if only is None else ["header", *only]
            arrays = {key: content[key] for key in wanted} if "header" in found else {}
        header = json.loads(arrays.pop("header").tobytes()) if arrays else None
    except Exception as problem:  # a damaged archive fails in as many ways as there are bytes in it
        if is_from_system(problem):
            raise DataError(cannot_read(path, problem)) from problem
        raise DataError(
            f"{path} cannot be read ({problem}): it is damaged, or classact did not write it. {_REMEDY}"
        ) from problem
    if not isinstance(header, dict) or "format" not in header:
        raise DataError(
            f"{path} holds no demonstrations by classact: its arrays are {', '.join(found) or 'none'}, expected "
            f"header, {', '.join(_ARRAYS)}."
        )
    if header["format"] not in (FORMAT, PUSHT_FORMAT):
        raise DataError(
            f"{path}: expected format {FORMAT!r} or {PUSHT_FORMAT!r}, got {header['format']!r}. Use a newer classact."
        )
    if header["format"] == FORMAT:
        for key, dtype in _ARRAYS.items():
            if only is not None and key not in only:
                continue
            if key == "actions" and key not in arrays:
                continue  # demonstrations without actions
            if key not in arrays or arrays[key].dtype != dtype:
                what = f"dtype {arrays[key].dtype}" if key in arrays else "nothing"
                raise DataError(f"{path}: expected array {key!r} of dtype {dtype}, got {what}. {_REMEDY}")
    return header, arrays


def _map_images(path: Path) -> ImageArray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as problem:
        if is_from_system(problem):
            raise DataError(cannot_read(path, problem)) from problem
        raise DataError(f"{path} cannot be read ({problem}). {_REMEDY}") from None
