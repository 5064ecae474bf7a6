"""Checks of files that a report is drawn from; each error names the file, the place and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.errors import DataError
from classact.pages.table import Row
from classact.utils.storage import read_json

Arrays = dict[str, NDArray[Any]]


def mapping(path: Path) -> Row:
    """A file that holds one JSON object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(value).__name__}. Regenerate the file.")
    return value


def need(path: Path, row: Any, keys: Sequence[str], where: str) -> None:
    """Check that a JSON value is an object with these keys."""
    if not isinstance(row, dict):
        raise DataError(f"{path}, {where}: expected a JSON object, got {type(row).__name__}. Regenerate the file.")
    if missing := [key for key in keys if key not in row]:
        raise DataError(f"{path}, {where}: lacks {missing}; there are {sorted(row)}. Regenerate the file.")


def shapes(path: Path, arrays: Arrays, wanted: Mapping[str, tuple[int | None, ...]]) -> None:
    """Check that arrays are there, finite, and of these shapes; None is any size."""
    for name, shape in wanted.items():
        if name not in arrays:
            raise DataError(f"{path}: lacks {name!r}; there are {sorted(arrays)}. Regenerate the file.")
        found = arrays[name].shape
        if len(found) != len(shape) or any(w is not None and w != f for w, f in zip(shape, found, strict=True)):
            text = ", ".join("*" if size is None else str(size) for size in shape)
            raise DataError(f"{path}: expected {name} of shape ({text}), got {found}. Regenerate the file.")
        if not np.isfinite(arrays[name]).all():
            raise DataError(f"{path}: {name} holds NaN or infinite values. Regenerate the file.")
