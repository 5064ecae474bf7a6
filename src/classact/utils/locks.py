"""File locks between processes, which the kernel releases when their process dies.

A training owns its folder (:func:`own`); shared files, such as a run's tables, are changed by one process at a time
(:func:`update_json`). Lock files are hidden, and stay.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shlex
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from classact.errors import DataError, StorageError
from classact.utils.storage import explain, read_json, write_json

if sys.platform != "win32":
    import fcntl

OWNER = ".lock"  # file in a folder that has an owner: which process that is (JSON)
UNLOCKABLE = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""Errors of file systems without locks."""

logger = logging.getLogger(__name__)


class BusyError(StorageError):
    """Another process holds the lock at ``path``."""

    def __init__(self, path: Path) -> None:
        text = f"{path} is locked by another process"
        if path.name == OWNER:
            text = (
                f"{path.parent} is in use by {_owner(path)}. Wait until it has ended, or stop it, and run this command "
                f"again; or choose another folder."
            )
        super().__init__(text)
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return BusyError, (self.path,)


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']} since {owner['since']} ({owner['command']})"
    except (OSError, ValueError, KeyError, TypeError):  # not written yet
        return "another process"


@cache
def _say_unlocked(folder: Path, reason: str) -> None:
    logger.warning("%s cannot be locked (%s): start only one command at a time that writes there.", folder, reason)


def _lock(descriptor: int, path: Path, *, wait: bool) -> bool:
    """Lock an open file; False where another process holds it. True, with a warning, where locks are not supported."""
    if sys.platform == "win32":
        _say_unlocked(path.parent, "locks are not supported on Windows")
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNLOCKABLE:
            raise
        _say_unlocked(path.parent, error.strerror)
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at a path: its folder may have been removed."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _take(path: Path, *, wait: bool) -> int:
    """A descriptor of the locked file; closing it releases the lock. Raises as :func:`locked`."""
    while True:
        with ExitStack() as unless_taken:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
                except PermissionError:
                    descriptor = os.open(path, os.O_RDONLY)  # another user's, which can still be locked
                unless_taken.callback(os.close, descriptor)
                free = _lock(descriptor, path, wait=wait)
                if free and _is_at(descriptor, path):
                    unless_taken.pop_all()
                    return descriptor
            except OSError as error:
                raise explain(error, path) from error
        if not free:
            raise BusyError(path)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file, created if missing; it also excludes other threads of the process.

    Raises:
        BusyError: it is taken, and ``wait`` is False.
        StorageError: it cannot be made.
    """
    descriptor = _take(path, wait=wait)
    try:
        yield
    finally:
        os.close(descriptor)


def share(path: Path) -> int | None:
    """Lock an existing file together with others, until the descriptor is closed; None where that is not possible.

    Whoever asks for it alone (:func:`locked`) finds it taken.
    """
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def lock_of(path: Path) -> Path:
    """The lock file of a file or folder: beside it, because it may not exist yet, or be replaced."""
    return path.with_name(f".{path.name}.lock")


def update_json(path: Path, change: Callable[[Any], Any], new: Any = None, error: type[Exception] = DataError) -> Any:
    """Replace a JSON file's content by ``change`` of it, under a lock; returns the new content.

    ``change`` gets ``new`` where there is no file; a damaged one is an ``error``.
    """
    with locked(lock_of(path)):
        content = change(read_json(path, error) if path.exists() else new)
        write_json(path, content)
    return content


class Hold:
    """A folder that this process owns for as long as this object lives. Made by :func:`own`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / OWNER
        self._descriptor = _take(self.path, wait=False)
        weakref.finalize(self, os.close, self._descriptor)
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        since = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "command": command[:1000], "since": since}
        try:
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"{json.dumps(owner)}\n".encode())
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.EINVAL):  # another user's file, locked but not writable
                raise explain(error, self.path) from error

    def intact(self) -> bool:
        """Whether the folder is still the one that was locked, and not removed or replaced."""
        return _is_at(self._descriptor, self.path)


_holds: weakref.WeakValueDictionary[tuple[int, str], Hold] = weakref.WeakValueDictionary()
_forever: list[Hold] = []
_mutex = threading.Lock()


def own(folder: Path, *, forever: bool = False) -> Hold:
    """Own a folder, created if missing, while the result lives: no other process can own it.

    A process that already owns it continues to; a folder removed in the meantime is locked anew. ``forever`` is until
    the process ends, unless this process holds it already.

    Raises:
        BusyError: another process owns it; says which.
        StorageError: it cannot be made or written.
    """
    key = os.getpid(), os.path.realpath(folder)  # a forked process owns nothing
    with _mutex:
        hold = _holds.get(key)
        if hold is None or not hold.intact():
            hold = _holds[key] = Hold(Path(folder))
            if forever:
                _forever.append(hold)
        return hold
