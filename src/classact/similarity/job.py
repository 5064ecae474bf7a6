"""A sweep over all pairs that may be stopped, killed and continued, by any number of processes, with one result.

The anchors are cut into units that depend on the number of windows alone. Every rank counts the units that are left,
dealt in turn, and every so often replaces its one part file: the distances it counted so far, and of which units. A
launch begins with what the parts of earlier launches hold. Only one launch at a time may work in a folder.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.errors import ConfigError, StorageError, TrainingInterrupted
from classact.similarity.counts import DistanceCounts
from classact.similarity.sealed import DamagedFileError, SealedFile, check_same, drop, open_sealed, plain, write_sealed
from classact.similarity.stream import Sweep
from classact.utils.interruptions import interruptible
from classact.utils.ranks import Ranks
from classact.utils.storage import first_difference

FORMAT = 1
COUNTS = "counts.safetensors"
"""The counted distances of all pairs. Parts of it are ``counts-LAUNCH-RANK.safetensors``."""

SAVE_SECONDS = 20.0
"""At least so long between two writes of a part."""
SAVE_FACTOR = 20.0
"""And at least so many times the duration of the last write, so that a slow disk takes 5 % of the time at most."""

UNIT_PAIRS = 1 << 27
"""Pairs of a unit: two seconds of a small computer, little enough to lose."""
LEAST_UNITS, MOST_UNITS = 64, 1 << 16
_TILE = 128  # anchors; large sets are cut at multiples, where sweeps cut their own work

logger = logging.getLogger(__name__)
Progress = Callable[[int, int, str], None]


# -- units ------------------------------------------------------------------------------------------------------------


def cut_units(n: int) -> NDArray[np.int64]:
    """Boundaries (U + 1,) of units of anchors with about equally many pairs i < j; a function of ``n`` alone.

    Unit u holds the anchors ``cut[u] <= i < cut[u + 1]``.

    Raises:
        ConfigError: fewer than 2 windows.
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


def unit_pairs(cut: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """(U,) pairs i < j of each unit."""
    before = cut * (2 * n - 1 - cut) // 2
    return np.diff(before)


def check_ranks(ranks: Ranks, card: Mapping[str, Any]) -> None:
    """Refuse ranks that were started on different data or with different settings.

    Raises:
        ConfigError: on a rank whose ``card`` is not that of rank 0.
    """
    if difference := first_difference(ranks.broadcast_object(dict(card)), dict(card), ""):
        raise ConfigError(
            f"rank {ranks.rank} was started with other data or settings than rank 0: {difference}. Start all ranks "
            f"with the same command on the same data."
        )


# -- counting ---------------------------------------------------------------------------------------------------------


def count_pairs(
    folder: Path | None,
    sweep: Sweep,
    n: int,
    limit: float,
    identity: Mapping[str, Any],
    ranks: Ranks | None = None,
    progress: Progress | None = None,
) -> DistanceCounts:
    """How often each distance up to ``limit`` occurs among the pairs i < j of ``n`` windows.

    The result, and the file :data:`COUNTS`, are the same for any number of ranks and interruptions.

    Args:
        folder: where parts and the result are kept, on a disk that all ranks share; None keeps them in memory.
        sweep: distances of the windows.
        n: number of windows.
        limit: larger distances are not counted.
        identity: JSON that says of which data and settings the distances are; parts of another one are refused.
        ranks: the processes that share the work; None is this one alone.
        progress: called with (pairs done, pairs to do, status); with several ranks, of this rank's share.

    Returns:
        The counts, on every rank.

    Raises:
        ConfigError: ``folder`` holds parts of other data or settings, or several ranks without a folder.
        StorageError: disk full, or a part vanished.
        TrainingInterrupted: Ctrl-C or SIGTERM; what was counted is saved.
    """
    ranks = ranks or Ranks()
    cut = cut_units(n)
    if folder is None:
        if ranks.world > 1:
            raise ConfigError(f"{ranks.world} ranks exchange their counts as files: give a folder that all can write.")
        counts = DistanceCounts(limit)
        _count(sweep, cut, list(range(len(cut) - 1)), counts, n, 0, progress, lambda _: False)
        return counts
    counts = DistanceCounts(limit)
    top = float(counts.limit) if np.isfinite(counts.limit) else "infinite"
    card = {"identity": plain(identity), "format": FORMAT, "n": n, "limit": top}
    check_ranks(ranks, card)
    counting = _Counting(Path(folder), card, counts, ranks, sweep)
    left, whole = ranks.on_first(lambda: counting.adopt(len(cut) - 1))
    if not whole:
        counting.launch = ranks.on_first(lambda: uuid.uuid4().hex[:8])
        done = int(unit_pairs(cut, n).sum() - unit_pairs(cut, n)[left].sum()) if ranks.world == 1 else 0
        with interruptible() as interrupted:

            def after(unit: int) -> bool:
                counting.units.append(unit)
                stop = interrupted()
                counting.save(now=stop)
                return stop

            if _count(sweep, cut, ranks.share(left), counting.counts, n, done, progress, after):
                raise TrainingInterrupted(
                    f"stopped after {len(counting.units):,} of {len(cut) - 1:,} units; what was counted is saved in "
                    f"{folder}, and the same command goes on from there."
                )
            if ranks.world > 1:
                counting.save(now=True)
        ranks.barrier()
        ranks.on_first(lambda: counting.merge(len(cut) - 1))
    if not ranks.first:
        counting.read()
    return counting.counts


def _count(
    sweep: Sweep,
    cut: NDArray[np.int64],
    units: Sequence[int],
    counts: DistanceCounts,
    n: int,
    done: int,
    progress: Progress | None,
    after: Callable[[int], bool],
) -> bool:
    pairs = unit_pairs(cut, n)
    total = done + int(pairs[list(units)].sum())
    if progress is not None:
        progress(done, total, "")
    for unit in units:
        sweep.count(int(cut[unit]), int(cut[unit + 1]), float(counts.limit), counts, defer=True)
        done += int(pairs[unit])
        stop = after(unit)
        if progress is not None:
            progress(done, total, f"{counts.total:,} kept")
        if stop:
            return True
    sweep.settle()
    return False


class _Counting:
    """One rank's counts, and the files of all."""

    def __init__(self, folder: Path, card: dict[str, Any], counts: DistanceCounts, ranks: Ranks, sweep: Sweep) -> None:
        self.folder, self.card, self.counts, self.ranks, self.sweep = folder, card, counts, ranks, sweep
        self.launch = ""
        self.units: list[int] = []
        self.adopted: list[Path] = []
        self.saved = time.monotonic()
        self.pause = SAVE_SECONDS

    def part(self, rank: int) -> Path:
        return self.folder / f"counts-{self.launch}-{rank:05d}.safetensors"

    def adopt(self, units: int) -> tuple[list[int], bool]:
        """Take over what earlier launches counted; returns the units that are left, and whether the result is here."""
        drop(list(self.folder.glob(".counts*.tmp")))  # of writers that were killed
        sizes: list[tuple[int, Path]] = []
        for path in sorted(self.folder.glob("counts*.safetensors")):
            try:
                with open_sealed(path) as file:
                    check_same(path, file.card, self.card)
                    sizes.append((-len(file.array("units")), path))
            except DamagedFileError as error:
                logger.warning("%s Its pairs are counted again.", error)
                self.adopted.append(path)
        # The largest first: a part that took over others, and died before it deleted them, stands for them.
        for _, path in sorted(sizes):
            self.adopted.append(path)
            with open_sealed(path, verify=False) as file:
                found = [int(unit) for unit in file.array("units")]
                if not set(found) & set(self.units):
                    self._add(file)
                    self.units += found
        left = sorted(set(range(units)) - set(self.units))
        whole = any(path.name == COUNTS for _, path in sizes)
        if whole:
            drop([path for path in self.adopted if path.name != COUNTS])
        return left, whole

    def _add(self, file: SealedFile) -> None:
        for values, counts in file.pieces("values", "counts"):
            self.counts.add_counted(values, counts)

    def save(self, *, now: bool) -> None:
        """Replace this rank's part, unless the last one is recent."""
        begin = time.monotonic()
        if now or begin - self.saved >= self.pause:
            self.sweep.settle()
            self._write(self.part(self.ranks.rank))
            drop(self.adopted)
            self.adopted = []
            self.saved = time.monotonic()
            self.pause = max(SAVE_SECONDS, SAVE_FACTOR * (self.saved - begin))

    def _write(self, path: Path) -> None:
        values, counts = self.counts.items()
        units = np.array(sorted(self.units), np.int32)
        write_sealed(path, {"values": values, "counts": counts, "units": units}, self.card)

    def merge(self, units: int) -> None:
        """On rank 0: add the parts of the other ranks to its own counts and write the result."""
        parts = [self.part(rank) for rank in range(1, self.ranks.world)]
        for path in parts:
            try:
                with open_sealed(path) as file:
                    self._add(file)
                    self.units += [int(unit) for unit in file.array("units")]
            except DamagedFileError as error:
                raise StorageError(
                    f"{error} A rank has just written it: is {self.folder} on a disk that all ranks share? Run the "
                    f"same command again: what is whole is kept."
                ) from None
        if sorted(self.units) != list(range(units)):
            raise StorageError(
                f"{self.folder}: the parts cover {len(self.units):,} units, expected {units:,}, each once. Is another "
                f"launch at work in that folder? Run the same command again, once."
            )
        self._write(self.folder / COUNTS)
        drop([*parts, self.part(0), *(path for path in self.adopted if path.name != COUNTS)])

    def read(self) -> None:
        """On the other ranks: replace the own counts by the result."""
        self.counts = DistanceCounts(float(self.counts.limit))
        path = self.folder / COUNTS
        try:
            with open_sealed(path) as file:
                check_same(path, file.card, self.card)
                self._add(file)
        except DamagedFileError as error:
            raise StorageError(f"{error} Is {self.folder} on a disk that all ranks share?") from None
