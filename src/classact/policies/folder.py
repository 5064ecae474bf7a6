"""A policy's checksummed folder: metadata in policy.json, with networks and arrays beside it."""

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
    """Write a policy's folder atomically: the metadata, a dataclass with a field ``format``, and what ``fill`` writes
    into it.
    """
    text = json.dumps(to_json(metadata), indent=2) + "\n"

    def all_files(path: Path) -> None:
        fill(path)
        (path / METADATA).write_text(text, encoding="utf-8")

    write_folder(Path(folder), all_files)


def read_format(folder: Path) -> str:
    """The format of the policy in a folder; CheckpointError where its metadata are damaged."""
    value = read_json(folder / METADATA, CheckpointError)
    return str(value.get("format") if isinstance(value, dict) else value)


def read_metadata(cls: type[Metadata], folder: Path, *expected: str) -> Metadata:
    """Verify the checksums and read the metadata that :func:`write_policy` wrote, in an ``expected`` format."""
    verify_folder(folder)
    where = folder / METADATA
    if (found := read_format(folder)) not in expected:
        raise CheckpointError(f"{where}: expected format {' or '.join(map(repr, expected))}, got {found!r}.")
    return from_json(cls, read_json(where, CheckpointError), str(where), error=CheckpointError)


def with_overrides(config: Config, overrides: Mapping[str, Any], kind: str, further: Iterable[str] = ()) -> Config:
    """Settings, called ``kind`` in messages, with some of them changed; ``further`` are other allowed names.

    Unknown names and values out of range are ConfigErrors.
    """
    known = [field.name for field in fields(config)]
    for name in overrides:
        if name not in known:
            raise UnknownNameError(choose(kind, name, (*known, *further)))
    return replace(config, **overrides)
