"""Names of what can be chosen: objectives, readers, simulators, shifts, heads. Other packages may add to them.

A plugin is a module that calls ``register`` of a registry at import. Plugins are imported when names are listed, or an
unknown one is looked up. They are

* modules named in the environment variable ``CLASSACT_PLUGINS`` (separated by commas), and
* entry points of the group ``classact.plugins`` of installed distributions.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from classact.errors import ConfigError, UnknownNameError, choose

Entry = TypeVar("Entry")
VARIABLE = "CLASSACT_PLUGINS"
GROUP = "classact.plugins"

_loaded: set[str] = set()
_loading: list[str] = []
_registered: dict[str, list[str]] = {}


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Name -> entry, in the order of registration; ``kind`` is what messages call an entry: "objective"."""

    def __init__(self, kind: str, entries: Mapping[str, Entry]) -> None:
        self.kind, self._entries = kind, dict(entries)

    def register(self, name: str, entry: Entry) -> None:
        """Add an entry; a ConfigError where another entry has the name."""
        if self._entries.setdefault(name, entry) != entry:
            raise ConfigError(f"{self.kind} {name!r} is registered already. Give yours another name.")
        if _loading:
            _registered[_loading[-1]].append(f"{self.kind} {name!r}")

    def __getitem__(self, name: str) -> Entry:
        """The entry of this name; an UnknownNameError, if even plugins have none, lists the known names."""
        if name not in self._entries:
            load_plugins()
        if name not in self._entries:
            raise UnknownNameError(choose(self.kind, name, self._entries))
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(self._entries)

    def __len__(self) -> int:
        load_plugins()
        return len(self._entries)


def load_plugins() -> None:
    """Import the plugins that were not imported yet; a ConfigError where that fails."""
    for name in map(str.strip, os.environ.get(VARIABLE, "").split(",")):
        if name and name not in _loaded:
            _load(name, f"the environment variable {VARIABLE}")
    if GROUP not in _loaded:
        _loaded.add(GROUP)
        for entry in entry_points(group=GROUP):
            _load(entry.module, f"entry point {entry.name!r} of {entry.dist.name if entry.dist else 'a distribution'}")


def _load(module: str, named_by: str) -> None:
    _loaded.add(module)
    _loading.append(module)
    _registered[module] = []
    try:
        importlib.import_module(module)
    except Exception as error:
        _loaded.discard(module)
        raise ConfigError(
            f"plugin {module!r}, named by {named_by}, cannot be imported ({type(error).__name__}: {error}). "
            f"Mend it, or remove its name there."
        ) from error
    finally:
        _loading.pop()


def plugins() -> dict[str, list[str]]:
    """Plugin -> what it registered when it was imported: ``objective 'mine'``. Raises as :func:`load_plugins`."""
    load_plugins()
    return {module: list(found) for module, found in _registered.items()}
