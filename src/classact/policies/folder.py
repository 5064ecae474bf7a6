"""A policy's folder: policy.json says what it is, networks and arrays lie beside it, checksums seal all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from classact.errors import CheckpointError, UnknownNameError, choose
from classact.utils.codec import from_json, to_json
from classact.utils.storage import read_json, verify_folder, write_folder

METADATA = "policy.json"

Metadata = TypeVar("Metadata")
Config = TypeVar("Config", bound=Any)


def write_policy(folder: Path, metadata: Any, fill: Callable[[Path], None]) -> None:
    """Write a policy's folder in one step: the metadata, a dataclass with a field ``format``, and all other files by
    ``fill``, which is given the folder."""
    text = json.dumps(to_json(metadata), indent=2) + "\n"

    def all_files(path: Path) -> None:
        fill(path)
        (path / METADATA).write_text(text, encoding="utf-8")

    write_folder(Path(folder), all_files)


def read_format(folder: Path) -> str:
    """The format of the policy in a folder; CheckpointError where its metadata are damaged."""
    value = read_json(folder / METADATA, CheckpointError)
    return str(value.get("format") if isinstance(value, dict) else value)


def read_metadata(cls: type[Metadata], folder: Path, expected: str) -> Metadata:
    """The metadata of class ``cls`` that :func:`write_policy` wrote, after all files were checked."""
    verify_folder(folder)
    where = folder / METADATA
    if (found := read_format(folder)) != expected:
        raise CheckpointError(f"{where}: expected format {expected!r}, got {found!r}.")
    return from_json(cls, read_json(where, CheckpointError), str(where), error=CheckpointError)


def with_overrides(config: Config, overrides: Mapping[str, Any], kind: str, further: Iterable[str] = ()) -> Config:
    """Settings, called ``kind`` in messages, with some of them changed; ``further`` names could be given as well.

    Raises:
        ConfigError: an unknown name, or a value out of range.
    """
    known = [field.name for field in fields(config)]
    for name in overrides:
        if name not in known:
            raise UnknownNameError(choose(kind, name, (*known, *further)))
    return replace(config, **overrides)
