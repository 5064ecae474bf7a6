"""Inputs that users name: paths, and the operating system's errors about them."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

from classact.errors import ClassactError, DataError, MissingDataError

_PERMISSIONS = " Change its permissions, or those of the folders above it."
_ADVICE = {
    errno.EACCES: _PERMISSIONS,
    errno.EPERM: _PERMISSIONS,
    errno.ENOTDIR: " Part of the path is a file, not a folder.",
    errno.EISDIR: " Expected a file.",
    errno.ELOOP: " Its symbolic links lead in a circle.",
    errno.EAGAIN: " Another program has it open for writing: close it there.",
}


def is_from_system(problem: BaseException) -> TypeGuard[OSError]:
    """Whether an error is the operating system's; libraries also raise OSError, without a number, for damage."""
    return isinstance(problem, OSError) and problem.errno is not None


def cannot_read(path: str | os.PathLike[str], problem: OSError) -> str:
    """Message for an unreadable input: which file (``problem`` may name another one), why, what to do."""
    where = Path(os.fsdecode(problem.filename) if isinstance(problem.filename, str | bytes) else path)
    if problem.errno is None:
        return f"{where} cannot be read ({problem})."
    advice = _ADVICE.get(problem.errno, "")
    if problem.errno == errno.ENOENT and where.is_symlink():
        advice = f" It is a link to {where.readlink()}, which does not exist."
    # Not problem.strerror, where libraries put their own paragraphs.
    return f"{where} cannot be read ({os.strerror(problem.errno)}).{advice}"


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns the operating system's errors on an input into a DataError."""
    try:
        yield
    except ClassactError:
        raise
    except OSError as problem:
        raise DataError(cannot_read(path, problem)) from problem


def user_path(text: str | os.PathLike[str], error: type[ClassactError] = DataError) -> Path:
    """A path as a user writes it, with ``~`` and ``~user`` expanded; an ``error`` if empty, of no such user, or no
    path.
    """
    name = os.fspath(text)
    if not name or "\0" in name:
        raise error(f"{name!r} is no path: it {'holds a null character' if name else 'is empty'}.")
    try:
        return Path(name).expanduser()
    except RuntimeError:
        if os.path.lexists(name):  # a name may begin with ~
            return Path(name)
        who = Path(name).parts[0][1:]
        whose = f"user {who!r}" if who else "the user that runs this"
        raise error(f"{name} cannot be looked up: {whose} has no home folder on this machine. Write it out.") from None


def input_path(text: str | os.PathLike[str], missing: Callable[[], str] = str) -> Path:
    """An existing, readable file or folder, as a user writes it (:func:`user_path`).

    Raises:
        MissingDataError: it does not exist; ends with the text of ``missing``.
        DataError: it cannot be read.
    """
    path = user_path(text)
    with reading(path):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            if path.is_symlink():
                raise
            raise MissingDataError(f"{path} does not exist. {missing()}".rstrip()) from None
        if stat.S_ISDIR(mode):
            with os.scandir(path):
                os.stat(f"{path}/.")  # noqa: PTH116 (Path drops the dot; entering is another permission than listing)
        elif stat.S_ISREG(mode):
            with path.open("rb"):
                pass
        else:
            raise DataError(f"{path} is neither a file nor a folder, but a device, pipe or socket.")
    return path
