"""An exact multiset of distances in bounded memory: one counter per float32 value."""

from __future__ import annotations

import mmap
import sys
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from classact.errors import ConfigError
from classact.types import FloatArray

_PAGE = 10  # bits: 1,024 counters of 4 bytes are one page of memory
_FULL = (1 << 32) - 1
_WAITING = 1 << 23  # distances that are collected and sorted before they are counted: random access would take longer


@nb.njit(cache=True)  # type: ignore[untyped-decorator]
def _add(table: Any, used: Any, bits: Any, counts: Any, over: Any) -> int:
    n = 0
    for k in range(len(bits)):
        b = np.int64(bits[k])
        used[b >> _PAGE] = True
        total = np.int64(table[b]) + counts[k]
        if total > _FULL:
            times = (total - 1) // _FULL  # leaves at least 1, so that the counter stays listed
            over[n, 0], over[n, 1] = b, times
            n += 1
            total -= times * _FULL
        table[b] = total
    return n


@nb.njit(cache=True)  # type: ignore[untyped-decorator]
def _list(table: Any, pages: Any, bits: Any, counts: Any) -> int:
    n = 0
    for page in pages:
        for b in range(page << _PAGE, min((page + 1) << _PAGE, len(table))):
            if table[b]:
                bits[n] = b
                counts[n] = table[b]
                n += 1
    return n


def _reserve(size: int) -> NDArray[np.uint32]:
    # Address space only: a page of memory is taken when a counter in it is first raised.
    if sys.platform == "win32":
        return np.zeros(size, np.uint32)
    reserved = mmap.mmap(-1, 4 * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0))
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        reserved.madvise(mmap.MADV_NOHUGEPAGE)  # else each lone small distance would take 2 MiB
    return np.frombuffer(reserved, np.uint32)


class DistanceCounts:
    """How often each distance up to a limit occurs.

    Non-negative float32 values order like their bit patterns, so a table indexed by the pattern is an exact, sorted
    multiset. Only its pages that hold a distance take memory: 4 kB for each 1,024 neighbouring float32 values, so 32
    MiB for each factor of two of distances that is filled, however many pairs are counted.

    Args:
        limit: largest distance that may be added.

    Attributes:
        total: how many distances were added.
    """

    def __init__(self, limit: float) -> None:
        if not limit >= 0:
            raise ConfigError(f"expected a limit of distances of at least 0, got {limit}.")
        self.limit = np.float32(limit)
        size = int(self.limit.view(np.uint32)) + 1
        self._table = _reserve(size)
        self._used = np.zeros((size >> _PAGE) + 1, np.bool_)
        self._carried: dict[int, int] = {}
        self._waiting: list[NDArray[np.uint32]] = []
        self._waiting_total = 0
        self.total = 0

    def add(self, distances: FloatArray) -> None:
        """Count (K,) float32 distances, each of at most ``limit``."""
        self._check(distances)
        for start in range(0, len(distances), _WAITING):
            part = _patterns(distances[start : start + _WAITING])
            if self._waiting_total + len(part) > _WAITING:
                self._flush()
            self._waiting.append(part)
            self._waiting_total += len(part)
        self.total += len(distances)

    def add_counted(self, values: FloatArray, counts: NDArray[np.int64]) -> None:
        """Count each of the distinct distances ``values`` (U,) as often as ``counts`` (U,) says."""
        self._check(values)
        self._raise(_patterns(values), np.asarray(counts, np.int64))
        self.total += int(counts.sum())

    def items(self) -> tuple[FloatArray, NDArray[np.int64]]:
        """Distinct distances (U,) float32, ascending, and how often each occurs (U,)."""
        if not self._used.any():
            bits, counts = self._sorted()
            return bits.view(np.float32), counts
        self._flush()
        pages = np.flatnonzero(self._used)
        distinct = sum(int(np.count_nonzero(self._table[p << _PAGE : (p + 1) << _PAGE])) for p in pages.tolist())
        bits, counts = np.empty(distinct, np.uint32), np.empty(distinct, np.int64)
        _list(self._table, pages, bits, counts)
        for b, more in self._carried.items():
            counts[np.searchsorted(bits, b)] += more
        return bits.view(np.float32), counts

    def _check(self, values: FloatArray) -> None:
        if len(values) and not (values.min() >= 0 and values.max() <= self.limit):
            raise ConfigError(f"expected distances within 0..{self.limit}, got {values.min()}..{values.max()}.")

    def _sorted(self) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        bits = np.concatenate([np.empty(0, np.uint32), *self._waiting])
        bits.sort()
        first = np.flatnonzero(np.concatenate([np.ones(min(len(bits), 1), np.bool_), bits[1:] != bits[:-1]]))
        return bits[first], np.diff(first, append=len(bits)).astype(np.int64)

    def _flush(self) -> None:
        self._raise(*self._sorted())
        self._waiting, self._waiting_total = [], 0

    def _raise(self, bits: NDArray[np.uint32], counts: NDArray[np.int64]) -> None:
        over = np.empty((len(bits), 2), np.int64)
        for b, times in over[: _add(self._table, self._used, bits, counts, over)].tolist():
            self._carried[b] = self._carried.get(b, 0) + times * _FULL


def _patterns(distances: FloatArray) -> NDArray[np.uint32]:
    # + 0 turns -0, whose pattern is another one, into 0.
    return np.asarray(np.ascontiguousarray(distances, np.float32) + np.float32(0)).view(np.uint32)
