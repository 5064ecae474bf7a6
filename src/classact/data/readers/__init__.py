"""Readers: one module per format turns files into :class:`~classact.data.types.Demonstrations`.

A new format is one module with the members of :class:`Reader`, registered in :data:`READERS`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from classact.data.joined import check_weights, join
from classact.data.layout import Layout
from classact.data.rate import at_rate
from classact.data.readers.hub import hub_folder, is_hub_name
from classact.data.readers.selection import chosen_episodes
from classact.data.types import Demonstrations, ReadWith
from classact.errors import ConfigError, DataError
from classact.utils.codec import from_json
from classact.utils.inputs import cannot_read, input_path, reading, user_path
from classact.utils.registry import Registry

if TYPE_CHECKING:
    from classact.data.named_layouts import Listing
    from classact.data.validate import Finding

T = TypeVar("T")

logger = logging.getLogger(__name__)

READERS: Registry[Any] = Registry(
    "format",
    {
        "diffusion-policy-zarr": "classact.data.readers.diffusion_policy",
        "classact": "classact.data.readers.generated",
        "lerobot": "classact.data.readers.lerobot",
        "libero": "classact.data.readers.libero",
        "aloha": "classact.data.readers.aloha",
        "robomimic": "classact.data.readers.robomimic",
        "hdf5": "classact.data.readers.hdf5_arrays",
    },
)
"""Format name -> :class:`Reader`, or the name of a module with its members, imported when a path is read. The format of
a path is tried in this order."""

EMBEDDED = ("pusht-expert", "embedded")  # sources that come with classact, instead of a path


class Reader(Protocol):
    """What a format offers, mostly as a module.

    Where the data can say which simulator they come from, it also has ``declared_simulator(path)``: a cheap look-up of
    its registry name, or "". Where files hold more than is read, ``CHECKS`` names a module whose ``check(path,
    episodes)`` yields what is odd about that: :class:`classact.data.validate.Finding`.
    """

    DESCRIPTION: str  # one line: what files of this format look like

    def matches(self, path: Path) -> bool:
        """Whether ``path`` looks like this format, even if damaged; cheap."""

    def read(self, path: Path, *, episodes: int | None = None) -> Demonstrations:
        """Read the first ``episodes`` demonstrations, all by default.

        Images are memory maps, or an :class:`~classact.data.images.ImageSource`. Formats with layout files also take
        ``layout``, a path. A format with ``SELECTS = True`` also takes ``episodes`` as text, "0:50,60", and then reads
        nothing of others.
        """


def reader(name: str) -> Reader:
    """The reader of a format in :data:`READERS`."""
    entry = READERS[name]
    return cast(Reader, importlib.import_module(entry) if isinstance(entry, str) else entry)


def takes_layout(reader: Reader) -> bool:
    """Whether the format takes a layout file."""
    return "layout" in inspect.signature(reader.read).parameters


def read_demonstrations(
    source: str | Path | Sequence[str | Path],
    *,
    episodes: int | str | None = None,
    layout: Layout | str | Path | None = None,
    fps: float | None = None,
    weights: Sequence[float] = (),
    heldout: int = 0,
    cameras: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
) -> Demonstrations:
    """Read demonstrations of any format, or those that come with classact; several data sets are joined.

    Args:
        source: a file or folder in one of the formats of :data:`READERS`, a name of :data:`EMBEDDED`, or of a LeRobot
            data set on the hub, as in ``lerobot/pusht`` or ``lerobot/pusht@v3.0``; or several of them, of each of which
            ``episodes``, ``layout`` and ``fps`` say what is read.
        episodes: only the first so many demonstrations, or those of these numbers, as in "0:50,60".
        layout: which array is what (:class:`classact.data.layout.Layout`), a JSON file that says it, or a name of
            :data:`classact.data.named_layouts.LAYOUTS`. None: what the data themselves declare.
        fps: steps per second, a divisor of those recorded (:func:`classact.data.rate.at_rate`); None: as recorded.
        weights, heldout, cameras, keys: of several data sets, see :func:`classact.data.joined.join`.

    Raises:
        DataError: no such path, unknown format, or unusable data; names the file and field.
        ConfigError: invalid ``episodes`` or ``layout``, or a format without layouts.
    """
    if not isinstance(source, str | Path):
        if not source:
            raise ConfigError("expected demonstrations, got an empty list of data sets.")
        if len(source) > 1:
            each = [read_demonstrations(one, episodes=episodes, layout=layout, fps=fps) for one in source]
            return join(each, weights=weights, heldout=heldout, cameras=cameras, keys=keys, chosen=episodes)
        source = source[0]
    check_weights(weights, 1)
    if isinstance(source, str) and source in EMBEDDED:
        from classact.data.readers.generated import load_embedded

        if layout is not None:
            raise ConfigError(_no_layout(layout, repr(source), "the demonstrations that come with classact"))
        data = some_episodes(load_embedded(), episodes)
        return _at(data, episodes, layout, fps)
    name = str(source) if is_hub_name(source) else None
    path = input_path(source, missing=_available) if name is None else hub_folder(name)
    if path.name in ("", ".."):  # demonstrations are named by their path
        path = path.resolve()
    with reading(path):
        declared = layout if layout is None or isinstance(layout, Layout) else user_path(layout, ConfigError)
        data = _read(path, episodes, declared)
    if name is not None:
        data = replace(data, name=name.partition("@")[0].replace("/", "-"), source=name)
    if data.schema.assumption:
        logger.warning("%s (%s): not declared but assumed: %s", data.name, data.source, data.schema.assumption)
    if data.unread:
        logger.warning("%s (%s): not read: %s", data.name, data.source, ", ".join(data.unread))
    return _at(data, episodes, layout, fps)


def _at(
    data: Demonstrations, episodes: int | str | None, layout: Layout | str | Path | None, fps: float | None
) -> Demonstrations:
    """At the rate that is asked; they remember how they were read."""
    data = data if fps is None else at_rate(data, fps)
    return replace(data, read_with=ReadWith(episodes, layout, fps))


def _read(path: Path, episodes: int | str | None, layout: Layout | Path | None) -> Demonstrations:
    with suppress(OSError):  # which opening it says better
        if isinstance(layout, Path) and not (layout.stat() and (layout.is_file() or layout.is_dir())):
            raise ConfigError(f"layout {layout} is a device, pipe or socket. Expected a JSON file.")
    for name in READERS:
        module = reader(name)
        if not module.matches(path):
            continue
        if layout is not None and not takes_layout(module):
            raise ConfigError(_no_layout(layout, str(path), name))
        more: dict[str, Any] = {} if layout is None else {"layout": layout}
        count = int(episodes) if isinstance(episodes, str) and episodes.isdecimal() else episodes
        if isinstance(count, str) and not getattr(module, "SELECTS", False):
            return some_episodes(module.read(path, **more), count)
        return cast(Any, module).read(path, episodes=count, **more)
    raise DataError(f"{path} is in no known format: {_content(path)}. {_available()}")


def listing(source: str | Path) -> Listing | None:
    """The arrays of data, by name; None for formats that have no layouts.

    Raises:
        DataError: no such path, an unknown format, or damage.
    """
    if isinstance(source, str) and source in EMBEDDED:
        return None
    path = input_path(source, missing=_available) if not is_hub_name(source) else hub_folder(str(source))
    with reading(path):
        for name in READERS:
            module = reader(name)
            if module.matches(path):
                listed: Callable[[Path], Listing] | None = getattr(module, "listing", None)
                return None if listed is None else listed(path)
    return None


def declared_simulator(source: str | Path | Sequence[str | Path]) -> str:
    """Registry name of the simulator that demonstrations declare; empty where they declare none, or several differ.

    Cheap: reads a header at most. Reading reports what is wrong with the source.
    """
    if not isinstance(source, str | Path):
        found = {declared_simulator(one) for one in source}
        return found.pop() if len(found) == 1 else ""
    if isinstance(source, str) and source in EMBEDDED:
        return "pusht"
    with suppress(DataError, OSError):
        if is_hub_name(source):
            return ""  # LeRobot's data sets declare none, so nothing is downloaded to ask
        path = input_path(source)
        for name in READERS:
            module = reader(name)
            if module.matches(path):
                declared: Callable[[Path], str] = getattr(module, "declared_simulator", lambda _: "")
                return declared(path)
    return ""


def check_files(source: str | Path, episodes: int | str | None = None) -> list[Finding]:
    """What is odd about files of demonstrations beyond what is read from them: recorded statistics, times."""
    if isinstance(source, str) and source in EMBEDDED:
        return []
    path = hub_folder(str(source)) if is_hub_name(source) else input_path(source)
    with reading(path):
        module = next((found for found in map(reader, READERS) if found.matches(path)), None)
        if (checks := getattr(module, "CHECKS", None)) is None:
            return []
        return list(importlib.import_module(checks).check(path, episodes))


def read_layout(layout: type[T], source: Path | bytes, where: str) -> T:
    """A layout from a file or its content: a JSON object of a dataclass's fields, all optional.

    Raises:
        ConfigError: no such file, no JSON, unknown fields, or values of another type.
    """
    try:
        value = json.loads(source.read_bytes() if isinstance(source, Path) else source)
    except OSError as problem:
        from classact.data.named_layouts import LAYOUTS

        file = source if isinstance(source, Path) else where
        raise ConfigError(
            f"layout {cannot_read(file, problem)} Expected a JSON file that says what is what, or a name: "
            f"{', '.join(LAYOUTS)}."
        ) from None
    except ValueError as problem:
        raise ConfigError(f"{where} is not valid JSON ({problem}).") from None
    return from_json(layout, value, where, error=ConfigError, partial=True)


def some_episodes(data: Demonstrations, episodes: int | str | None) -> Demonstrations:
    """The demonstrations that :func:`read_demonstrations` is asked for."""
    if isinstance(episodes, str):
        return data.subset(chosen_episodes(episodes, len(data), f"{data.name} ({data.source})"))
    return first_episodes(data, episodes)


def first_episodes(demonstrations: Demonstrations, episodes: int | None) -> Demonstrations:
    """The first ``episodes`` demonstrations (None: all) as views."""
    return demonstrations if episodes is None else _some(demonstrations, "first", episodes)


def last_episodes(demonstrations: Demonstrations, count: int) -> Demonstrations:
    """The last ``count`` demonstrations as views; their episodes and steps count from 0 again."""
    return _some(demonstrations, "last", count)


def _some(data: Demonstrations, which: str, count: int) -> Demonstrations:
    if not 1 <= count <= len(data):
        raise ConfigError(
            f"asked for the {which} {count} episodes, but {data.name} ({data.source}) has {len(data)}. Ask for 1 to "
            f"{len(data)}."
        )
    first = 0 if which == "first" else len(data) - count
    episodes = slice(first, first + count)
    start, end = data.bounds(first)[0], data.bounds(first + count - 1)[1]
    return data.select(slice(start, end), data.episode_ends[episodes] - start, episodes)


def _no_layout(layout: Layout | str | Path, source: str, what: str) -> str:
    formats = ", ".join(name for name in READERS if takes_layout(reader(name)))
    named = "a layout" if isinstance(layout, Layout) else f"layout {layout}"
    return f"{named}: {source} ({what}) takes none; formats that do: {formats}. Leave the layout out."


def _available() -> str:
    formats = "; ".join(f"{name} ({reader(name).DESCRIPTION})" for name in READERS)
    return f"Formats that can be read: {formats}. Without a path: {EMBEDDED[0]!r}, the demonstrations in classact."


def _content(path: Path) -> str:
    if path.is_file():
        return "it is a file"
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    for entry in entries:
        with suppress(DataError, OSError):  # what may not be read is not what was meant
            input_path(entry)
            if any(reader(name).matches(entry) for name in READERS):
                return f"it is a folder that holds {entry.name}, which looks readable; did you mean {entry}"
    names = [entry.name for entry in entries]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"it is a folder that holds {', '.join(names[:8]) or 'nothing'}{more}"
