"""Sections of a benchmark: measured one by one, each written as soon as it is done, so that it can be continued."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from classact.errors import ClassactError, DataError, UnknownNameError, choose
from classact.utils.locks import update_json
from classact.utils.machine import hardware, versions
from classact.utils.storage import check_writable, read_json

Row = dict[str, Any]


def run_sections(
    sections: Sequence[str],
    known: Collection[str],
    measure: Callable[[str], Row],
    *,
    path: Path | None,
    again: bool,
    say: Callable[[str], None],
    check: Callable[[str, Row], None] | None = None,
    error: type[ClassactError] = DataError,
) -> Row:
    """Measure sections and note where and when; return these and all others that the results file holds.

    Args:
        sections: names.
        known: all names there are.
        measure: measures one.
        path: results file (JSON); sections that it holds already are kept.
        again: measure those again, too.
        say: told what is going on.
        check: called with name and result of a section before it is kept; raises where it should not be.
        error: raised where the file is damaged.

    Raises:
        ConfigError: an unknown section.
        StorageError: the results file cannot be written.
    """
    for name in sections:
        if name not in known:
            raise UnknownNameError(choose("section", name, known))
    if path is not None:
        check_writable(path)
    results: Row = read_json(path, error) if path is not None and path.exists() else {}
    for name in sections:
        if name in results and not again:
            if check is not None:
                check(name, results[name])
            say(f"{name}: kept from {path}")
            continue
        say(f"{name} ...")
        measured = measure(name)
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        results[name] = measured | {"hardware": hardware(), "versions": versions(), "measured": stamp}
        if path is not None:
            # Other processes may have measured other sections since.
            results = update_json(path, partial(_with, name, results[name]), {}, error)
    return results


def _with(name: str, section: Row, results: Row) -> Row:
    return results | {name: section}
