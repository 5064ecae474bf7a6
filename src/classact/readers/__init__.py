"""Readers: one module per format turns files into :class:`~classact.types.Demonstrations`.

A new format is one module beside this one, with the three members of :class:`Reader`, and one line in :data:`READERS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

from classact.errors import ConfigError, DataError
from classact.types import Demonstrations

Progress = Callable[[int, int], None]
"""Called with (done, total) while something long is read."""

READERS: dict[str, str] = {
    "diffusion-policy-zarr": "classact.readers.diffusion_policy",
}
"""Format name -> module. Modules are imported only when a path is read; what they need beyond NumPy, even later."""

EMBEDDED = ("pusht-expert", "embedded")
"""Sources that come with classact, instead of a path."""


class Reader(Protocol):
    """What the module of a format offers."""

    DESCRIPTION: str
    """One line: what files of this format look like."""

    def matches(self, path: Path) -> bool:
        """Whether the existing ``path`` looks like this format. Cheap; damaged files of the format match as well."""

    def read(self, path: Path, *, episodes: int | None = None, progress: Progress | None = None) -> Demonstrations:
        """Read the first ``episodes`` demonstrations, all by default."""


def reader(name: str) -> Reader:
    """The module of a format in :data:`READERS`."""
    return cast(Reader, importlib.import_module(READERS[name]))


def read_demonstrations(
    source: str | Path, *, episodes: int | None = None, progress: Progress | None = None
) -> Demonstrations:
    """Read demonstrations from a path, whatever its format, or those that come with classact.

    Args:
        source: a file or folder in one of the formats of :data:`READERS`, or a name of :data:`EMBEDDED`.
        episodes: only the first so many demonstrations.
        progress: called with (done, total) steps while images are decoded.

    Raises:
        DataError: no such path, no known format, or data that cannot be used; the message names the file and field.
        ConfigError: fewer than one episode asked for, or more than there are.
    """
    if isinstance(source, str) and source in EMBEDDED:
        from classact.readers.embedded import load_embedded

        return first_episodes(load_embedded(), episodes)
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(f"{path} does not exist. {_available()}")
    for name in READERS:
        if reader(name).matches(path):
            return reader(name).read(path, episodes=episodes, progress=progress)
    raise DataError(f"{path} is in no known format: {_content(path)}. {_available()}")


def first_episodes(demonstrations: Demonstrations, episodes: int | None) -> Demonstrations:
    """The first ``episodes`` demonstrations as views, nothing copied; all where None.

    Raises:
        ConfigError: fewer than one, or more than there are.
    """
    if episodes is None:
        return demonstrations
    if not 1 <= episodes <= len(demonstrations):
        raise ConfigError(
            f"asked for the first {episodes} episodes, but {demonstrations.name} ({demonstrations.source}) has "
            f"{len(demonstrations)}. Ask for 1 to {len(demonstrations)}."
        )
    steps = int(demonstrations.episode_ends[episodes - 1])
    return replace(
        demonstrations,
        episode_ends=demonstrations.episode_ends[:episodes],
        actions=demonstrations.actions[:steps],
        proprioception=demonstrations.proprioception[:steps],
        states=None if demonstrations.states is None else demonstrations.states[:steps],
        images={camera: array[:steps] for camera, array in demonstrations.images.items()},
    )


def _available() -> str:
    formats = "; ".join(f"{name} ({reader(name).DESCRIPTION})" for name in READERS)
    return f"Formats that can be read: {formats}. Without a path: {EMBEDDED[0]!r}, the demonstrations in classact."


def _content(path: Path) -> str:
    if path.is_file():
        return "it is a file"
    entries = sorted(path.iterdir())
    for entry in entries:
        if any(reader(name).matches(entry) for name in READERS):
            return f"it is a folder that holds {entry.name}, which looks readable; did you mean {entry}"
    names = [entry.name for entry in entries]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"it is a folder that holds {', '.join(names[:8]) or 'nothing'}{more}"
