"""An exact multiset of distances in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from classact.data.types import FloatArray
from classact.errors import ConfigError
from classact.similarity.reference import float32_limit

_OCTAVE = 23  # bits of a float32 fraction: values whose other bits agree lie within a factor of two
_SPARSE = 1 << 21  # distinct distances in an octave above which one counter per float32 value is smaller
_WAITING = 1 << 22  # distances collected and sorted before they are counted, for sequential memory access
_BLOCK = 1 << 20
_FULL = (1 << 32) - 1

Counted = tuple[NDArray[np.uint32], NDArray[np.int64]]  # distinct bit patterns, ascending, and how often each occurs


@nb.njit(cache=True)  # type: ignore[untyped-decorator]
def _run_lengths(ordered: Any, counts: Any) -> int:
    # In place: the distinct values move to the front.
    n = 0
    for k in range(len(ordered)):
        if n and ordered[k] == ordered[n - 1]:
            counts[n - 1] += 1
        else:
            ordered[n] = ordered[k]
            counts[n] = 1
            n += 1
    return n


@nb.njit(cache=True)  # type: ignore[untyped-decorator]
def _merge(a: Any, a_counts: Any, b: Any, b_counts: Any, out: Any, counts: Any) -> int:
    i = j = n = 0
    while i < len(a) or j < len(b):
        if j == len(b) or (i < len(a) and a[i] < b[j]):
            out[n], counts[n] = a[i], a_counts[i]
            i += 1
        elif i == len(a) or b[j] < a[i]:
            out[n], counts[n] = b[j], b_counts[j]
            j += 1
        else:
            out[n], counts[n] = a[i], a_counts[i] + b_counts[j]
            i += 1
            j += 1
        n += 1
    return n


@nb.njit(cache=True)  # type: ignore[untyped-decorator]
def _raise(table: Any, bits: Any, counts: Any, mask: int, over: Any) -> int:
    n = 0
    for k in range(len(bits)):
        b = np.int64(bits[k]) & mask
        total = np.int64(table[b]) + counts[k]
        if total > _FULL:
            times = (total - 1) // _FULL  # leaves at least 1, so that the counter stays listed
            over[n, 0], over[n, 1] = b, times
            n += 1
            total -= times * _FULL
        table[b] = total
    return n


class _Sparse:
    """Counts of few distinct distances within a factor of two: a sorted list."""

    def __init__(self) -> None:
        self.bits, self.counts = np.empty(0, np.uint32), np.empty(0, np.int64)

    def add(self, bits: NDArray[np.uint32], counts: NDArray[np.int64]) -> None:
        out = np.empty(len(bits) + len(self.bits), np.uint32)
        total = np.empty(len(out), np.int64)
        n = _merge(self.bits, self.counts, bits, counts, out, total)
        self.bits, self.counts = out[:n].copy(), total[:n].copy()

    def blocks(self) -> Iterator[Counted]:
        for at in range(0, len(self.bits), _BLOCK):
            yield self.bits[at : at + _BLOCK], self.counts[at : at + _BLOCK]


class _Dense:
    """Counts of the distances within a factor of two, one counter per float32 value: 32 MiB."""

    def __init__(self, octave: int) -> None:
        self.first = octave << _OCTAVE
        self.table = np.zeros(1 << _OCTAVE, np.uint32)
        self.carried: dict[int, int] = {}

    def add(self, bits: NDArray[np.uint32], counts: NDArray[np.int64]) -> None:
        over = np.empty((len(bits), 2), np.int64)
        for b, times in over[: _raise(self.table, bits, counts, (1 << _OCTAVE) - 1, over)].tolist():
            self.carried[b] = self.carried.get(b, 0) + times * _FULL

    def blocks(self) -> Iterator[Counted]:
        for at in range(0, len(self.table), _BLOCK):
            part = self.table[at : at + _BLOCK]
            found = np.flatnonzero(part)
            counts = part[found].astype(np.int64)
            for b, more in self.carried.items():
                if at <= b < at + _BLOCK:
                    counts[np.searchsorted(found, b - at)] += more
            if len(found):
                yield (found + (self.first + at)).astype(np.uint32), counts


class DistanceCounts:
    """How often each distance up to ``limit`` occurs.

    Non-negative float32 values order like their bit patterns, with only 2^23 of them between a distance and its double.
    So each such octave takes at most 32 MiB however many pairs are counted, and nearly all distances lie in the few
    octaves near the limit.
    """

    def __init__(self, limit: float) -> None:
        self.limit = float32_limit(limit)
        self._octaves: dict[int, _Sparse | _Dense] = {}
        self._waiting: list[NDArray[np.uint32]] = []
        self._waiting_total = 0
        self.total = 0

    def add(self, distances: FloatArray) -> None:
        """Count (K,) float32 distances of at most ``limit``."""
        self._check(distances)
        for start in range(0, len(distances), _WAITING):
            part = _patterns(distances[start : start + _WAITING])
            if self._waiting_total + len(part) > _WAITING:
                self._flush()
            self._waiting.append(part)
            self._waiting_total += len(part)
        self.total += len(distances)

    def add_counted(self, values: FloatArray, counts: NDArray[np.int64]) -> None:
        """Count the distinct distances ``values`` (U,), ascending, ``counts`` (U,) times."""
        self._check(values)
        if len(values) == 0:
            return
        if (values[1:] <= values[:-1]).any():
            raise ConfigError("expected distinct distances in ascending order.")
        self._add(_patterns(values), np.asarray(counts, np.int64))
        self.total += int(counts.sum())

    def items(self) -> tuple[FloatArray, NDArray[np.int64]]:
        """Distinct distances (U,) float32, ascending, and how often each occurs (U,)."""
        parts = list(self.blocks())
        values = np.concatenate([np.empty(0, np.float32), *(part[0] for part in parts)])
        return values, np.concatenate([np.empty(0, np.int64), *(part[1] for part in parts)])

    def blocks(self) -> Iterator[tuple[FloatArray, NDArray[np.int64]]]:
        """:meth:`items` in ascending blocks of bounded size."""
        self._flush()
        for octave in sorted(self._octaves):
            for bits, counts in self._octaves[octave].blocks():
                yield bits.view(np.float32), counts

    def _check(self, values: FloatArray) -> None:
        if len(values) and not (values.min() >= 0 and values.max() <= self.limit):
            raise ConfigError(f"expected distances within 0..{self.limit}, got {values.min()}..{values.max()}.")

    def _flush(self) -> None:
        if not self._waiting:
            return
        bits = np.concatenate([np.empty(0, np.uint32), *self._waiting])
        self._waiting, self._waiting_total = [], 0
        bits.sort()
        counts = np.empty(len(bits), np.int64)
        distinct = _run_lengths(bits, counts)
        self._add(bits[:distinct], counts[:distinct])

    def _add(self, bits: NDArray[np.uint32], counts: NDArray[np.int64]) -> None:
        octaves, first = np.unique(bits >> np.uint32(_OCTAVE), return_index=True)
        for octave, begin, end in zip(octaves.tolist(), first, np.append(first[1:], len(bits)), strict=True):
            found = self._octaves.setdefault(octave, _Sparse())
            found.add(bits[begin:end], counts[begin:end])
            if isinstance(found, _Sparse) and len(found.bits) > _SPARSE:
                dense = _Dense(octave)
                dense.add(found.bits, found.counts)
                self._octaves[octave] = dense


def _patterns(distances: FloatArray) -> NDArray[np.uint32]:
    # + 0 turns -0, which has another bit pattern, into 0.
    return np.asarray(np.ascontiguousarray(distances, np.float32) + np.float32(0)).view(np.uint32)
