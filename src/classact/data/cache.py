"""What lies in the cache: decoded images, digests of files, embeddings of instructions; and what of it may go."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from classact.data.images import IMAGES, META, USED, cache_folder
from classact.data.readers import EMBEDDED
from classact.data.readers.hub import is_hub_name
from classact.errors import ConfigError, DataError
from classact.utils.locks import BusyError, locked
from classact.utils.storage import read_json

DAY = 24 * 3600.0
FILES = {"digests": "digests of files", "language": "embeddings of instructions"}
"""Folders of small files that are made again in moments -> what they hold."""

_UNFINISHED = re.compile(r"\.\w+\.(\d+)\.\w+\.tmp")


@dataclass(frozen=True)
class Cached:
    """An entry: the images of one camera at one size, an unfinished one, or all small files of a kind.

    Attributes:
        path: its folder.
        kind: "recorded" or "rendered" images, "damaged", "unfinished", or what small files hold.
        what: shape, or how many files.
        nbytes: on disk.
        used: when it was used last, or made, in seconds since 1970.
        sources: data that it was made for, with cameras, as far as known; those that are gone.
        gone: whether it is known what it was made for, and all of that is gone.
    """

    path: Path
    kind: str
    what: str
    nbytes: int
    used: float
    sources: tuple[str, ...] = ()
    gone: bool = False


@dataclass(frozen=True)
class Cleaned:
    """What became of an entry: ``kept`` says why it was not removed, empty where it was, or would be."""

    entry: Cached
    kept: str = ""


def cached(root: Path | None = None) -> list[Cached]:
    """All entries, those used last first, then small files."""
    folder = cache_folder() if root is None else root
    images = [_image_entry(one) for one in _folders(folder / "images")]
    files = [_files(folder / name, words) for name, words in FILES.items()]
    return sorted(images, key=lambda one: -one.used) + [one for one in files if one is not None]


def clean(
    root: Path | None = None,
    *,
    older_than: float | None = None,
    gone: bool = False,
    everything: bool = False,
    dry_run: bool = False,
) -> list[Cleaned]:
    """Remove entries that one of the conditions holds for; what a running process uses stays.

    Args:
        root: of the cache; None: the usual one.
        older_than: days since an entry was used last.
        gone: the data that it was made for are gone.
        everything: all.
        dry_run: remove nothing.

    Raises:
        ConfigError: no condition.
    """
    if older_than is None and not gone and not everything:
        raise ConfigError(
            "what is to be removed from the cache? Say --older-than DAYS, --gone (data that are there no more) or "
            "--all; --dry-run shows it first."
        )
    limit = None if older_than is None else time.time() - older_than * DAY
    out = []
    for entry in cached(root):
        old = limit is not None and entry.used < limit
        if everything or old or (gone and entry.gone):
            out.append(Cleaned(entry, _in_use(entry, remove=not dry_run)))
    return out


def _folders(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from sorted(one for one in folder.iterdir() if one.is_dir())


def _image_entry(folder: Path) -> Cached:
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    used = folder.stat().st_mtime
    if folder.name.startswith("."):
        return Cached(folder, "unfinished", "", size, used)
    try:
        meta = read_json(folder / META)
        count, height, width, _ = meta["shape"]
        kind, what = str(meta["kind"]), f"{count:,} x {width} x {height}"
        if meta["bytes"] != (folder / IMAGES).stat().st_size:
            raise ValueError
    except (DataError, OSError, TypeError, KeyError, ValueError):
        return Cached(folder, "damaged", "", size, used)
    known: list[tuple[str, str]] = []
    with contextlib.suppress(DataError, OSError, TypeError, KeyError, ValueError):
        noted = read_json(folder / USED)
        known = [(str(source), str(camera)) for source, camera in noted["sources"]]
        used = float(noted["used"])
    there = {source: _is_there(source) for source, _ in known}
    sources = tuple(f"{source}, {camera}{'' if there[source] else ' (gone)'}" for source, camera in known)
    return Cached(folder, kind, what, size, used, sources, bool(there) and not any(there.values()))


def _is_there(source: str) -> bool:
    """Whether data may still be there: names are not looked up."""
    return source in EMBEDDED or source == "memory" or is_hub_name(source) or Path(source).exists()


def _files(folder: Path, words: str) -> Cached | None:
    found = [file.stat() for file in folder.glob("*") if file.is_file()] if folder.is_dir() else []
    if not found:
        return None
    used = max(one.st_mtime for one in found)
    return Cached(folder, words, f"{len(found):,} files", sum(one.st_size for one in found), used)


def _in_use(entry: Cached, *, remove: bool) -> str:
    """Why an entry must stay; empty where it need not, and then it is removed where ``remove`` says so."""
    if match := _UNFINISHED.fullmatch(entry.path.name):
        if _runs(int(match[1])):
            return f"process {match[1]} writes it"
        if remove:
            shutil.rmtree(entry.path, ignore_errors=True)
        return ""
    if not (entry.path / META).is_file():
        if remove:
            shutil.rmtree(entry.path, ignore_errors=True)
        return ""
    try:
        with locked(entry.path / META, wait=False):
            if remove:
                aside = entry.path.with_name(f".{entry.path.name}.{os.getpid()}.cleaned.tmp")
                entry.path.rename(aside)  # nobody opens it while it is being deleted
                shutil.rmtree(aside, ignore_errors=True)
    except BusyError:
        return "in use"
    except OSError as problem:
        return str(problem.strerror or problem)
    return ""


def _runs(process: int) -> bool:
    """Whether a process of this machine is running."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
