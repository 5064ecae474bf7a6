"""Which of several processes computes what: locks on files, which the kernel releases when their process dies."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BusyError(Exception):
    """Another process has claimed it.

    Attributes:
        path: of the lock.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is locked by another process")
        self.path = path


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file, which is made and stays.

    Args:
        path: of the file; nothing is written into it.
        wait: until it is free.

    Raises:
        BusyError: it is not free, and ``wait`` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise BusyError(path) from None
        yield


def lock_of(path: Path) -> Path:
    """The file whose lock is that of a file or folder: beside it, for it may not be there yet, or be replaced."""
    return path.with_name(f".{path.name}.lock")
