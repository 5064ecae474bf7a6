"""A reader: a folder of episodes as NumPy wrote them, with ``actions``, ``position`` and ``images`` in each."""

from types import SimpleNamespace

import numpy as np

from classact.data.actions import ActionSpace
from classact.data.readers import READERS
from classact.data.schema import Schema
from classact.data.types import Demonstrations
from classact.errors import ConfigError, DataError


def matches(path):
    """Whether the folder holds episodes. Cheap, for every reader is asked."""
    return path.is_dir() and any(path.glob("episode_*.npz"))


def read(path, *, episodes=None):
    """The first ``episodes`` demonstrations, all by default."""
    files = sorted(path.glob("episode_*.npz"))
    if episodes is not None and not 1 <= episodes <= len(files):
        raise ConfigError(f"asked for {episodes} episodes of {path}, which has {len(files)}.")
    parts = []
    for file in files[:episodes]:
        with np.load(file) as arrays:
            if missing := {"actions", "position", "images"} - set(arrays):
                raise DataError(f"{file} lacks {sorted(missing)}; it holds {sorted(arrays)}. Record it again.")
            parts.append({name: arrays[name] for name in ("actions", "position", "images")})
    return Demonstrations(
        name=path.name,
        source=str(path),
        episode_ends=np.cumsum([len(part["actions"]) for part in parts], dtype=np.int64),
        actions=np.concatenate([part["actions"] for part in parts]).astype(np.float32),
        proprioception=np.concatenate([part["position"] for part in parts]).astype(np.float32),
        images={"front": np.concatenate([part["images"] for part in parts])},
        schema=Schema(("front",), (("position", 2),), actions=ActionSpace.points()),
    )


READERS.register("npz-episodes", SimpleNamespace(DESCRIPTION="a folder of episode_*.npz", matches=matches, read=read))
