"""The demonstrations that come with classact: our Push-T expert's, actions and states; images are rendered on demand.

``sims/experts`` made them and can make them again; the file's header says with which settings, seeds and versions.
The format is one small .npz of integers, differences from step to step within each episode:

* ``actions`` (N, 2) int16 in 1/8 px. The expert executes multiples of 1/8 px, so this is exact;
* ``states`` (N, 5) int32 in 1/1024 px and 1/65536 rad: within 0.0005 px and 0.00001 rad of what the simulator had;
* ``lengths``, ``seeds`` (E,) int64: steps, and the seed that ``reset`` starts the episode with;
* ``header``: JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.data.actions import ActionSpace
from classact.data.schema import Schema
from classact.data.types import Demonstrations, IntArray, StateArray
from classact.utils.storage import atomic_path

PATH = Path(__file__).resolve().parents[2] / "assets" / "pusht_expert.npz"
NAME = "pusht-expert"
FORMAT = "classact-demonstrations-1"
ACTION_UNITS = np.array([8.0, 8.0])  # per px
STATE_UNITS = np.array([1024.0, 1024.0, 1024.0, 1024.0, 65536.0])  # per px, per rad


def write_file(
    out: Path,
    header: dict[str, Any],
    *,
    seeds: Sequence[int],
    states: Sequence[StateArray],
    actions: Sequence[StateArray],
) -> None:
    """Write episodes: states (L, 5) and actions (L, 2) of each, float64, actions multiples of 1/8 px."""
    header = {
        "format": FORMAT,
        "action_units": ACTION_UNITS.tolist(),
        "state_units": STATE_UNITS.tolist(),
        **header,
    }
    with atomic_path(out) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8),
            seeds=np.array(seeds, dtype=np.int64),
            lengths=np.array([len(a) for a in actions], dtype=np.int64),
            actions=np.concatenate([_encode(a, ACTION_UNITS) for a in actions]).astype(np.int16),
            states=np.concatenate([_encode(s, STATE_UNITS) for s in states]).astype(np.int32),
        )


def demonstrations(header: dict[str, Any], arrays: dict[str, NDArray[Any]], source: str, name: str) -> Demonstrations:
    """What :func:`write_file` wrote, from the header and arrays of the file ``source``."""
    ends = np.cumsum(arrays["lengths"], dtype=np.int64)
    states = _decode(arrays["states"], ends) / np.array(header["state_units"])
    return Demonstrations(
        name=name,
        episode_ends=ends,
        actions=(_decode(arrays["actions"], ends) / np.array(header["action_units"])).astype(np.float32),
        proprioception=states[:, :2].astype(np.float32),
        states=states,
        source=source,
        schema=Schema(("top",), (("agent_pos", 2),), actions=ActionSpace.points()),
        simulator="pusht",
        versions=header.get("packages", {}),
    )


def _encode(values: StateArray, units: StateArray) -> StateArray:
    return np.diff(np.round(values * units), axis=0, prepend=0.0)


def _decode(differences: NDArray[Any], ends: IntArray) -> IntArray:
    parts = np.split(differences, ends[:-1])
    return np.concatenate([np.cumsum(part, axis=0, dtype=np.int64) for part in parts])
