"""Every error that classact raises on purpose.

One base class, so that callers can catch all of them; each also derives from the Python exception that users expect. A
message says what was found, where, what was expected (both numbers) and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ClassactError(Exception):
    """Base of all errors raised on purpose by classact."""


class DataError(ClassactError, ValueError):
    """Demonstrations that cannot be used: wrong shapes, non-finite values, damaged files."""


class UndeclaredError(DataError):
    """Demonstrations of which nothing says which array is what; a layout is to say it."""


class MissingDataError(DataError, FileNotFoundError):
    """Missing files."""


class ConfigError(ClassactError, ValueError):
    """A setting that contradicts the data, another setting or its allowed range."""


class UnknownNameError(ConfigError, KeyError):
    """An unknown name; the message lists the known ones."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # KeyError would show the message's representation


class CheckpointError(ClassactError, ValueError):
    """A checkpoint that is damaged, incomplete or of another architecture."""


class StorageError(ClassactError, OSError):
    """Writing failed (disk full, no permission). What was there before is untouched."""


class MissingDependencyError(ClassactError, ImportError):
    """A missing optional package, simulator or download. The message names the remedy."""


class TrainingInterrupted(ClassactError):  # noqa: N818 (no error: it was asked for)
    """Ctrl-C or SIGTERM during training: the state was saved; the message says where."""


class SimulatorError(ClassactError, RuntimeError):
    """A simulator or one of its worker processes failed."""


class ActionError(SimulatorError, ValueError):
    """An action that cannot be executed, or that the physics did not survive: its author's fault."""


def choose(kind: str, name: object, available: Iterable[object]) -> str:
    """Message for an unknown ``name`` of some ``kind``: all of ``available``, and the nearest of them."""
    options = sorted(str(option) for option in available)
    near = difflib.get_close_matches(str(name), options, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {kind} {name!r}: available are {', '.join(map(repr, options))}{hint}"
