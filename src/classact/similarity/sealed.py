"""One file with arrays, what they are of, and a checksum of both: the parts of a sweep that may be continued."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.errors import ClassactError, ConfigError, DataError
from classact.utils.inputs import cannot_read
from classact.utils.storage import atomic_path, first_difference

_CHUNK = 1 << 20


class DamagedFileError(ClassactError):
    """A part of a sweep that cannot be used; the message is for the log, because the part is computed again."""


def write_sealed(path: Path, arrays: Mapping[str, NDArray[Any]], card: Mapping[str, Any]) -> None:
    """Write arrays (.,), a JSON card and the SHA-256 of both as one safetensors file, atomically.

    Raises:
        StorageError: disk full or no permission.
    """
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    text = json.dumps(card, sort_keys=True, allow_nan=False)
    digest = hashlib.sha256(text.encode())
    for array in arrays.values():
        digest.update(array.data)
    # One entry: the library writes several in an order that changes from run to run.
    metadata = {"classact": json.dumps({"card": json.loads(text), "sha256": digest.hexdigest()}, sort_keys=True)}
    with atomic_path(path) as temporary:
        save_file(arrays, temporary, metadata)


@contextmanager
def open_sealed(path: Path, *, verify: bool = True) -> Iterator[SealedFile]:
    """Open what :func:`write_sealed` wrote.

    Args:
        path: the file.
        verify: compare the content with its checksum, too; a wrong length is always found.

    Raises:
        DamagedFileError: missing, truncated, changed or no such file at all.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            sealed = SealedFile(path, file)
            if verify:
                sealed.verify()
            yield sealed
    except (SafetensorError, FileNotFoundError) as error:
        raise DamagedFileError(f"{path} cannot be read: {error}.") from None
    except OSError as error:  # it may be whole, so that its pairs are not counted again
        raise DataError(cannot_read(path, error)) from error


class SealedFile:
    """An open file of :func:`write_sealed`, read a bounded piece at a time.

    Attributes:
        card: its card.
    """

    def __init__(self, path: Path, file: Any) -> None:
        self.path = path
        self._file = file
        try:
            content = json.loads((file.metadata() or {})["classact"])
            self.card: dict[str, Any] = content["card"]
            self._digest = content["sha256"]
        except (KeyError, TypeError, ValueError):
            raise DamagedFileError(f"{path} has no card: it was not written by classact, or is damaged.") from None

    def verify(self) -> None:
        """Compare the content with its checksum.

        Raises:
            DamagedFileError: they differ.
        """
        digest = hashlib.sha256(json.dumps(self.card, sort_keys=True, allow_nan=False).encode())
        for name in sorted(self._file.keys()):
            for (piece,) in self.pieces(name):
                digest.update(np.ascontiguousarray(piece).data)
        if digest.hexdigest() != self._digest:
            raise DamagedFileError(
                f"{self.path} has SHA-256 {digest.hexdigest()[:12]}..., expected {self._digest[:12]}...: it is damaged."
            )

    def array(self, name: str) -> NDArray[Any]:
        """The whole array ``name``."""
        try:
            return np.asarray(self._file.get_tensor(name))
        except Exception as error:
            raise DamagedFileError(f"{self.path} has no array {name!r}: {error}.") from None

    def pieces(self, *names: str) -> Iterator[tuple[NDArray[Any], ...]]:
        """The arrays ``names``, equally long, a piece at a time."""
        slices = [self._file.get_slice(name) for name in names]
        length = int(slices[0].get_shape()[0])
        for at in range(0, length, _CHUNK):
            yield tuple(s[at : min(at + _CHUNK, length)] for s in slices)


def plain(value: Any) -> Any:
    """``value`` as JSON gives it back: lists instead of tuples, numbers instead of NumPy's."""
    return json.loads(
        json.dumps(value, default=lambda item: item.item() if isinstance(item, np.generic) else str(item))
    )


def check_same(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a file made of other data or with other settings.

    Args:
        path: the file, for the message.
        found: its card.
        expected: values it must have, in the order they are looked at; the keys of ``identity`` are named bare.

    Raises:
        ConfigError: naming the first difference and both values.
    """
    for key, value in expected.items():
        name = "" if key == "identity" else key
        if difference := first_difference(found.get(key), plain(value), name):
            raise ConfigError(
                f"{path} was made with {difference}. Choose another folder for the new settings or data, or remove "
                f"{path.parent} to start over."
            )


def drop(paths: Sequence[Path]) -> None:
    """Delete files."""
    for path in paths:
        path.unlink(missing_ok=True)
