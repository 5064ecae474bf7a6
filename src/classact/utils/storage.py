"""Files that are either complete or absent: write to a temporary name, sync, rename; checksums beside tensors."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from classact.errors import CheckpointError, ConfigError, DataError, StorageError
from classact.utils.codec import to_json
from classact.utils.inputs import cannot_read, reading

# Read at import, with a single thread: reading it means setting it.
_UMASK = os.umask(0)
os.umask(_UMASK)


UNSYNCABLE = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}
"""Errors of disks that cannot sync a folder, or anything (CIFS, VirtualBox shares, WSL's DrvFs, FUSE)."""


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSYNCABLE:
            raise


def _sync_folder(folder: Path) -> None:
    # A rename survives a power cut only once the directory entry itself is on disk.
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows, and folders that may be written but not listed
        return
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def explain(error: OSError, path: Path, *, done: bool = False) -> StorageError:
    """The error where ``path`` cannot be written, or is ``done`` but not confirmed by the disk."""
    if done:
        return StorageError(
            f"{path} was written, but the disk did not confirm it ({error.strerror or error}): it may be gone after a "
            f"power cut. Check the disk, and run the same command again."
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free if path.parent.exists() else 0
        return StorageError(
            f"disk full while writing {path} ({free:,} bytes free). Nothing that was there before is changed; "
            f"free some space, or choose another folder, and run the same command again."
        )
    return StorageError(f"cannot write {path}: {error.strerror or error}. What was there before is unchanged.")


def check_writable(path: Path, *, folder: bool = False, appended: bool = False) -> None:
    """Refuse early what could not be written after hours of work; leaves nothing behind.

    ``path`` is a file to write, or ``appended`` to, or a ``folder`` to write into. A StorageError for an obstructing
    file, no permission, a read-only disk, or a full one.
    """
    path = Path.cwd() / path
    there = path if folder else path.parent
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    probe = there / f".{uuid.uuid4().hex[:8]}.check.tmp"
    try:
        if not folder and path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if appended and path.exists():
            path.open("ab").close()
        try:
            with probe.open("xb") as file:
                file.write(bytes(4096))
                file.flush()
                _sync(file.fileno())  # a quota may show no sooner
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)
    except OSError as error:
        raise explain(error, path) from error


MAX_NAME = 200  # characters: file systems take 255 bytes, and temporary names are longer


def check_name(name: str, kind: str) -> str:
    """A user's name for something of some ``kind``, which becomes a folder's name.

    A path, a hidden name, or characters that not every disk takes are a ConfigError.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name) or len(name) > MAX_NAME:
        shown = name if len(name) <= MAX_NAME else f"{name[:40]}..."
        raise ConfigError(
            f"{shown!r} cannot be the name of {kind}: expected 1 to {MAX_NAME} letters, digits, '.', '_' and '-', "
            f"beginning with a letter, a digit or '_'. Choose another name."
        )
    return name


def slug(name: str) -> str:
    """Any text as a name that :func:`check_name` accepts; long ones end in a digest of the text."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".-") or "_"
    if len(plain) > MAX_NAME:
        plain = f"{plain[: MAX_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return plain


def _put_folder(temporary: Path, path: Path, replace: bool) -> None:
    try:
        # Succeeds only if nothing, or an empty folder, is there: two writers cannot both succeed.
        temporary.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not replace:
            return
        # A folder cannot be replaced atomically: move the old one aside first, then delete it.
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old.tmp")
        path.rename(aside)
        try:
            temporary.rename(path)
        except OSError:
            aside.rename(path)
            raise
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def atomic_path(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """A temporary path beside ``path`` to write a file or a folder to; renamed to ``path`` on success only.

    Of two writers of a folder that shall not be replaced, the first wins. On a StorageError (disk full, no permission)
    the temporary is removed and ``path`` left unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    done = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir():
            for file in sorted(temporary.rglob("*")):
                if file.is_file():
                    _sync_file(file)
            _sync_folder(temporary)
            _put_folder(temporary, path, replace)
        else:
            _sync_file(temporary)
            temporary.replace(path)
        done = True
        _sync_folder(path.parent)
    except StorageError:
        raise
    except OSError as error:
        raise explain(error, path, done=done) from error
    except Exception as error:
        # safetensors reports a full disk as its own error, with the operating system's number in the text.
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None or type(error).__name__ != "SafetensorError":
            raise
        raise explain(OSError(int(found[1]), os.strerror(int(found[1]))), path) from error
    finally:
        # A failure to clean up must not hide the error above.
        with contextlib.suppress(OSError):
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)


def _sync_file(path: Path) -> None:
    with contextlib.suppress(OSError):  # some network disks have no modes
        path.chmod(0o666 & ~_UMASK)  # safetensors leaves its files readable by the owner alone
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys in order, a list of plain values on one line; NaN and infinities are refused."""
    write_text(path, json_text(value) + "\n")


def json_text(value: Any) -> str:
    """What :func:`write_json` writes, without the line's end."""
    return _flat_lists(json.dumps(value, indent=2, allow_nan=False, default=to_json))


def _flat_lists(indented: str) -> str:
    """Indented JSON, each list without lists or objects on one line: episodes are thousands of values."""
    out: list[str] = []
    opened: int | None = None  # the line that opens the innermost list, while that holds plain values alone
    for line in indented.split("\n"):
        # Strings hold no line breaks and end in a quote, so these characters at an end are JSON's own.
        if opened is not None and line.strip() in ("]", "],"):
            line = out[opened] + " ".join(item.strip() for item in out[opened + 1 :]) + line.strip()
            del out[opened:]
            opened = None
        elif line.endswith(("[", "{", "]", "],", "}", "},")):
            opened = len(out) if line.endswith("[") else None
        out.append(line)
    return "\n".join(out)


def read_json(path: Path, error: type[Exception] = DataError) -> Any:
    """Read JSON; a missing or damaged file is an ``error``, an unreadable one a DataError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path} does not exist. Expected a folder written by classact.") from None
    except OSError as problem:
        raise DataError(cannot_read(path, problem)) from problem
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise error(f"{path} is not valid JSON ({problem}): the file is damaged; restore or regenerate it.") from None


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False, default=to_json) + "\n"


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    write_text(path, "".join(map(_line, rows)))


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Append one row and flush it to the operating system; a torn last line is removed first."""
    line = _line(row).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            _drop_torn_line(file)
            file.write(line)
    except OSError as error:
        raise explain(error, path) from error


def _drop_torn_line(file: BinaryIO) -> None:
    # A row appended to a torn one would be a damaged line in the middle, and the file unreadable.
    file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
    if file.read(1) in (b"", b"\n"):
        return
    file.seek(0)
    content = file.read()
    start = content.rfind(b"\n") + 1
    try:
        json.loads(content[start:])
        file.write(b"\n")
    except ValueError:
        file.truncate(start)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read rows; a torn last line (of a killed writer) is left out."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as problem:
        raise DataError(f"{path} is no text ({problem}): the file is damaged.") from None
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number == len(lines):
                break
            raise DataError(f"{path}, line {number} of {len(lines)}: not valid JSON; the file is damaged.") from None
    return rows


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write named arrays as one safetensors file, atomically."""
    from safetensors.numpy import save_file

    with atomic_path(path) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)


def read_arrays(path: Path, error: type[Exception] = DataError) -> dict[str, NDArray[Any]]:
    """Read what :func:`write_arrays` wrote."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    with reading(path):
        if not path.exists():
            raise error(f"{path} does not exist. Expected a folder written by classact.")
        path.open("rb").close()  # safetensors does not distinguish unreadable files from damaged ones
    try:
        return dict(load_file(path))
    except SafetensorError as problem:
        raise error(f"{path} cannot be read ({problem}): the file is damaged or incomplete.") from None


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


CHECKSUMS = "checksums.json"
CARD = "README.md"
"""For people, who may edit it: no part of what is checked."""


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write files into a new folder; add checksums; move it to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.mkdir()
        fill(temporary)
        files = sorted(file for file in temporary.rglob("*") if file.is_file() and file.name != CARD)
        sums = {str(file.relative_to(temporary)): [file.stat().st_size, sha256_file(file)] for file in files}
        (temporary / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")


def verify_folder(path: Path, remedy: str = "Use another checkpoint, or train again.") -> None:
    """Verify the checksums of a folder of :func:`write_folder`; ``remedy`` ends the message.

    Raises:
        CheckpointError: names the file, expected and found size or digest.
        DataError: an unreadable file, which may be intact, so that no older checkpoint may replace it.
    """
    with reading(path):
        if not path.is_dir():
            raise CheckpointError(f"{path} does not exist or is not a folder.")
        for name, (size, digest) in read_json(path / CHECKSUMS, CheckpointError).items():
            file = path / name
            if not file.exists():
                raise CheckpointError(f"{file} is missing: {path} is incomplete. {remedy}")
            found = file.stat().st_size
            if found != size:
                raise CheckpointError(
                    f"{file} has {found:,} bytes, expected {size:,}: it was truncated or overwritten. {remedy}"
                )
            if (other := sha256_file(file)) != digest:
                raise CheckpointError(
                    f"{file} has SHA-256 {other[:12]}..., expected {digest[:12]}...: its content is damaged. {remedy}"
                )
