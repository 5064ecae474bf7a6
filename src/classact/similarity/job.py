"""A sweep over all pairs that can be interrupted and resumed, by any number of processes, with one result.

Anchors are cut into units that depend on the number of windows alone. Every rank counts its share of the remaining
units and now and then replaces its part: a checksummed folder of counts and of the units they cover. A launch begins
with what the parts of earlier launches hold. A folder is locked by one launch at a time.
"""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from math import isqrt
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from classact.data.types import IntArray
from classact.errors import CheckpointError, ConfigError, StorageError, TrainingInterrupted
from classact.similarity.counts import DistanceCounts
from classact.similarity.stream import Sweep
from classact.utils.codec import first_difference, to_json
from classact.utils.interruptions import interruptible
from classact.utils.ranks import Ranks
from classact.utils.storage import read_arrays, read_json, verify_folder, write_arrays, write_folder, write_json

METADATA, ARRAYS = "part.json", "part.safetensors"  # files of a part: what it is of and its units, and what was counted
SAVE_SECONDS = 20.0  # at least so long between two writes of a part
SAVE_FACTOR = 20.0  # and at least so many durations of the last write: a slow disk takes 5 % of the time at most
UNIT_PAIRS = 1 << 27  # pairs of a unit: two seconds of a small computer, little enough to lose
LEAST_UNITS, MOST_UNITS = 64, 1 << 16
_TILE = 128  # anchors; large sets are cut at multiples of it, as sweeps cut their work

logger = logging.getLogger(__name__)
Progress = Callable[[int, int, str], None]


def cut_units(n: int) -> IntArray:
    """Boundaries (U + 1,) of units of anchors with about equally many pairs i < j; a function of ``n`` alone.

    Unit u holds the anchors ``cut[u] <= i < cut[u + 1]``.
    """
    if n < 2:
        raise ConfigError(f"expected at least 2 windows to compare, got {n}.")
    total = n * (n - 1) // 2
    wide = n // (8 * _TILE)  # the narrowest unit then has four tiles of anchors
    units = min(max(min(-(-total // UNIT_PAIRS), wide), LEAST_UNITS), MOST_UNITS, n - 1)
    # The first i anchors have i (2 n - 1 - i) / 2 pairs; solved in integers, so that every machine cuts alike.
    cuts = [(2 * n - 1 - isqrt((2 * n - 1) ** 2 - 8 * (total * u // units))) // 2 for u in range(units)]
    if units <= wide:
        cuts = [round(cut / _TILE) * _TILE for cut in cuts]
    return np.unique(np.array([*cuts, n], np.int64))


def unit_pairs(cut: IntArray, n: int) -> IntArray:
    """(U,) pairs i < j of each unit."""
    return np.diff(cut * (2 * n - 1 - cut) // 2)


def check_ranks(ranks: Ranks, metadata: Mapping[str, Any]) -> None:
    """Refuse ranks whose ``metadata`` (data and settings) are not rank 0's."""
    if difference := first_difference(ranks.broadcast_object(dict(metadata)), dict(metadata), ""):
        raise ConfigError(
            f"rank {ranks.rank} was started with other data or settings than rank 0: {difference}. Start all ranks "
            f"with the same command on the same data."
        )


class Tally(Protocol):
    """Counts over pairs; the counts of different units add up, in any order."""

    @property
    def kept(self) -> int:
        """Pairs counted so far."""

    def count(self, first: int, last: int) -> None:
        """Count the pairs i < j of the anchors first <= i < last."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that was counted."""

    def add(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Add the :meth:`arrays` of another tally."""


T = TypeVar("T", bound=Tally)


def tally_pairs(
    new: Callable[[], T],
    n: int,
    metadata: Mapping[str, Any],
    folder: Path | None,
    ranks: Ranks | None = None,
    progress: Progress | None = None,
) -> T:
    """Count the pairs i < j of ``n`` windows; every rank gets the tally of all.

    Neither counts nor the bytes of the last part depend on the number of ranks or interruptions.

    Args:
        new: makes an empty tally.
        n: number of windows.
        metadata: JSON of the data and settings; parts of other ones are a ConfigError.
        folder: for the parts, on a disk that all ranks share, for the caller to delete; None, for one rank, keeps
            nothing.
        ranks: the processes that share the work; None is this one alone.
        progress: called with (pairs done, pairs to do, status) of this rank's share.

    Raises:
        StorageError: disk full, or a part vanished.
        TrainingInterrupted: Ctrl-C or SIGTERM; what was counted is saved.
    """
    ranks = ranks or Ranks()
    cut = cut_units(n)
    pairs = unit_pairs(cut, n)
    if folder is None:
        if ranks.world > 1:
            raise ConfigError(f"{ranks.world} ranks exchange their counts as files: give a folder that all can write.")
        tally = new()
        for _ in _count(tally, cut, pairs, list(range(len(pairs))), 0, progress):
            pass
        return tally
    metadata = to_json(metadata)
    check_ranks(ranks, metadata)
    parts = _Parts(Path(folder), metadata, new, len(pairs))
    left = ranks.on_first(parts.adopt)
    if left:
        done = int(pairs.sum() - pairs[left].sum()) if ranks.world == 1 else 0
        with interruptible() as interrupted:
            for unit in _count(parts.tally, cut, pairs, ranks.share(left), done, progress):
                parts.units.append(unit)
                stop = interrupted()
                parts.save(now=stop)
                if stop:
                    raise TrainingInterrupted(
                        f"stopped after {len(parts.units):,} of {len(pairs):,} units; what was counted is saved in "
                        f"{folder}, and the same command goes on from there."
                    )
            parts.save(now=True)
        ranks.barrier()
        if ranks.world > 1:
            ranks.on_first(parts.merge)
    if not ranks.first:
        parts.gather()
    ranks.barrier()  # whoever deletes the folder now takes nothing from others
    return parts.tally


def _count(
    tally: Tally, cut: IntArray, pairs: IntArray, units: list[int], done: int, progress: Progress | None
) -> Iterator[int]:
    total = done + int(pairs[units].sum())
    if progress is not None:
        progress(done, total, "")
    for unit in units:
        tally.count(int(cut[unit]), int(cut[unit + 1]))
        done += int(pairs[unit])
        yield unit
        if progress is not None:
            progress(done, total, f"{tally.kept:,} kept")


class _Parts(Generic[T]):
    def __init__(self, folder: Path, metadata: Mapping[str, Any], new: Callable[[], T], total: int) -> None:
        self.folder, self.metadata, self.new, self.total = folder, metadata, new, total
        self.tally = new()
        self.units: list[int] = []
        self.old: list[Path] = []
        self.saved = time.monotonic()
        self.pause = SAVE_SECONDS

    def adopt(self) -> list[int]:
        """Begin with what all parts hold; returns the remaining units."""
        self.tally, self.units, self.old = self.new(), [], []
        for leftover in self.folder.glob(".part-*.tmp"):  # of writers that were killed
            shutil.rmtree(leftover, ignore_errors=True)
        found: list[tuple[int, Path, list[int]]] = []
        for path in sorted(self.folder.glob("part-*")):
            self.old.append(path)
            try:
                verify_folder(path, "Its pairs are counted again.")
            except CheckpointError as error:
                logger.warning("%s", error)
                continue
            metadata = read_json(path / METADATA)
            units = metadata.pop("units")
            if difference := first_difference(metadata, self.metadata, ""):
                raise ConfigError(
                    f"{path} was made with {difference}. Choose another folder for the new settings or data, or remove "
                    f"{self.folder} to start over."
                )
            found.append((-len(units), path, units))
        # Largest first: a part that took over others supersedes them, even if its process died before deleting them.
        for _, path, units in sorted(found):
            if not set(units) & set(self.units):
                self.tally.add(read_arrays(path / ARRAYS))
                self.units += units
        return sorted(set(range(self.total)) - set(self.units))

    def save(self, *, now: bool) -> None:
        """Replace the parts that hold this rank's counts by a new one, unless the last is recent."""
        begin = time.monotonic()
        if not now and begin - self.saved < self.pause:
            return

        def fill(folder: Path) -> None:
            write_arrays(folder / ARRAYS, self.tally.arrays())
            write_json(folder / METADATA, {**self.metadata, "units": sorted(self.units)})

        path = self.folder / f"part-{uuid.uuid4().hex}"
        write_folder(path, fill)
        for other in self.old:
            shutil.rmtree(other, ignore_errors=True)
        self.old = [path]
        self.saved = time.monotonic()
        self.pause = max(SAVE_SECONDS, SAVE_FACTOR * (self.saved - begin))

    def gather(self) -> None:
        """Take over the parts of all ranks, which must be complete."""
        if left := self.adopt():
            raise StorageError(
                f"{self.folder}: the parts of all ranks lack {len(left):,} of {self.total:,} units. Is it on a disk "
                f"that all ranks share, and no other launch at work there? Run the same command again: what is whole "
                f"is kept."
            )

    def merge(self) -> None:
        """On rank 0: replace all parts by one."""
        self.gather()
        self.save(now=True)


class _Distances:
    def __init__(self, sweep: Sweep, limit: float) -> None:
        self.sweep, self.counts = sweep, DistanceCounts(limit)

    @property
    def kept(self) -> int:
        return self.counts.total

    def count(self, first: int, last: int) -> None:
        self.sweep.count(first, last, float(self.counts.limit), self.counts, defer=True)

    def arrays(self) -> dict[str, NDArray[Any]]:
        self.sweep.settle()
        values, counts = self.counts.items()
        return {"values": values, "counts": counts}

    def add(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.counts.add_counted(arrays["values"], arrays["counts"])


def count_pairs(
    folder: Path | None,
    sweep: Sweep,
    n: int,
    limit: float,
    identity: Mapping[str, Any],
    ranks: Ranks | None = None,
    progress: Progress | None = None,
) -> DistanceCounts:
    """How often each distance up to ``limit`` occurs among the pairs i < j of the ``n`` windows of ``sweep``.

    ``identity`` is the ``metadata`` of :func:`tally_pairs`, which describes the rest.
    """
    top = float(limit) if np.isfinite(limit) else "infinite"
    metadata = {"identity": identity, "n": n, "limit": top}
    found = tally_pairs(lambda: _Distances(sweep, limit), n, metadata, folder, ranks, progress)
    sweep.settle()
    return found.counts
