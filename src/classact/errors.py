"""Every error that classact raises on purpose.

One base class, so that callers can catch all of them at once. A message says what was found, where, what was
expected (both numbers) and what to do about it.
"""

from __future__ import annotations


class ClassactError(Exception):
    """Base of all errors raised on purpose by classact."""


class DataError(ClassactError):
    """Demonstrations that cannot be used: missing files, wrong shapes, non-finite values."""


class ConfigError(ClassactError):
    """A setting that contradicts the data, another setting or the range that is allowed."""


class CheckpointError(ClassactError):
    """A checkpoint that is damaged, incomplete or of another architecture."""


class StorageError(ClassactError):
    """Writing failed (disk full, no permission). What was there before is untouched."""


class MissingDependencyError(ClassactError):
    """An optional package, simulator or download that is not here. The message names the remedy."""


class TrainingInterrupted(ClassactError):  # noqa: N818 (no error: it was asked for)
    """Ctrl-C or SIGTERM during training: the state was saved; the message says where."""


class SimulatorError(ClassactError):
    """A simulator or one of its worker processes failed."""


class ActionError(SimulatorError):
    """An action that cannot be executed, or that the physics did not survive: its author's fault."""


def choose(kind: str, name: str, available: object) -> str:
    """Message for an unknown ``name`` of some ``kind``, listing what ``available`` iterates over."""
    options = ", ".join(repr(str(option)) for option in sorted(available))  # type: ignore[call-overload]
    return f"unknown {kind} {name!r}: available are {options}"
