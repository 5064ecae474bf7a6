"""Parquet files: checked columns, and errors that name the file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.errors import DataError
from classact.utils.inputs import is_from_system


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """A ``pyarrow.parquet.ParquetFile``; errors of pyarrow, also while it is open, are DataErrors that name it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise DataError(f"{path} is missing. The data set is incomplete: copy or download it again.")
    with path.open("rb"):  # what the system says of it is said with its name
        pass
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as problem:
        if isinstance(problem, DataError) or is_from_system(problem):
            raise
        raise DataError(
            f"{path} cannot be read ({problem}): it is damaged or no Parquet file. Copy or download it again."
        ) from None


def read_columns(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """Columns as arrays of numbers: (N,) for an empty shape, else (N, D), D the product of the shape.

    Raises:
        DataError: a damaged file, a missing column, values of another kind or size, or none in some rows.
    """
    with open_parquet(path) as file:
        names = file.schema_arrow.names
        for name in shapes:
            if name not in names:
                raise DataError(f"{path}: column {name!r} is missing; there are {', '.join(names)}.")
        table = file.read(columns=list(shapes), use_threads=False)
        return {name: _numbers(table.column(name), shape, f"{path}: {name}") for name, shape in shapes.items()}


def read_rows(file: Any, column: str, start: int, stop: int) -> Any:
    """Rows ``start``:``stop`` of a column, from the row groups that hold them."""
    if column not in file.schema_arrow.names:
        raise DataError(f"column {column!r} is missing; there are {', '.join(file.schema_arrow.names)}.")
    counts = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    ends = np.cumsum(counts)
    first, last = (int(np.searchsorted(ends, row, side="right")) for row in (start, stop - 1))
    table = file.read_row_groups(list(range(first, min(last + 1, len(counts)))), columns=[column], use_threads=False)
    before = int(ends[first]) - counts[first] if first < len(counts) else 0
    return table.column(column).slice(start - before, stop - start)


def read_texts(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """All rows of some columns as Python values; columns that are not there are left out."""
    with open_parquet(path) as file:
        here = [name for name in columns if name in file.schema_arrow.names]
        rows: list[dict[str, Any]] = file.read(columns=here, use_threads=False).select(here).to_pylist()
        return rows


def _numbers(column: Any, shape: tuple[int, ...], where: str) -> NDArray[Any]:
    import pyarrow as pa

    rows, size = len(column), math.prod(shape)
    if column.null_count:
        raise DataError(f"{where}: {column.null_count} of {rows} rows hold nothing, expected {size} numbers in each.")
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if len(shape) == 1 and (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)):
        lengths = np.asarray(values.value_lengths())
        if (lengths != size).any():
            bad = int(np.argmax(lengths != size))
            raise DataError(f"{where}: row {bad} holds {int(lengths[bad])} numbers, expected {size} in each.")
    while pa.types.is_nested(values.type) and not pa.types.is_struct(values.type):
        values = values.flatten()
    kind = values.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise DataError(f"{where}: expected numbers, got {kind}.")
    if values.null_count or len(values) != rows * size:
        raise DataError(
            f"{where}: {rows} rows hold {len(values) - values.null_count} numbers, expected {size} in each, "
            f"{rows * size} in all."
        )
    array = np.asarray(values.to_numpy(zero_copy_only=False))
    return array.reshape(rows, size) if shape else array
