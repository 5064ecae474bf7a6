"""How many positives every anchor has, exactly: one sweep over all pairs, by any number of processes, resumable."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from classact.data.types import IntArray
from classact.errors import StorageError, TrainingInterrupted
from classact.similarity.job import UNIT_PAIRS, Progress, check_ranks, cut_units, unit_pairs
from classact.similarity.sealed import DamagedFileError, check_same, open_sealed, plain, write_sealed
from classact.similarity.stream import Sweep
from classact.utils.interruptions import interruptible
from classact.utils.ranks import Ranks

FORMAT = 1
MOST_GROUPS = 64
"""Files that the work is kept in until all of it is done: 8 bytes per window each."""

logger = logging.getLogger(__name__)


@nb.njit(cache=True)  # type: ignore[untyped-decorator]
def _count(left: Any, right: Any, episode: Any, positives: Any, same_episode: Any) -> None:
    for k in range(len(left)):
        i, j = left[k], right[k]
        positives[i] += 1
        positives[j] += 1
        if episode[i] == episode[j]:
            same_episode[i] += 1
            same_episode[j] += 1


@dataclass(frozen=True)
class Degrees:
    """How many positives anchors have in the whole data set.

    Attributes:
        positives: (N,) int64; each pair below the threshold counts for both of its ends.
        same_episode: (N,) int64, those of them that lie in the anchor's own episode.
    """

    positives: IntArray
    same_episode: IntArray

    @staticmethod
    def zeros(n: int) -> Degrees:
        """No positives yet, for ``n`` anchors."""
        return Degrees(np.zeros(n, np.int64), np.zeros(n, np.int64))

    def add(self, left: NDArray[np.uint32], right: NDArray[np.uint32], episode: IntArray) -> None:
        """Count the positive pairs (left[k], right[k]), given the (N,) episode of each anchor."""
        _count(left, right, episode, self.positives, self.same_episode)

    @property
    def pairs(self) -> int:
        """Positive pairs in all."""
        return int(self.positives.sum()) // 2


def count_degrees(
    sweep: Sweep,
    threshold: float,
    episode: IntArray,
    folder: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    ranks: Ranks | None = None,
    progress: Progress | None = None,
) -> Degrees:
    """Positives of every anchor, by one sweep over the pairs i < j of N windows.

    Args:
        sweep: over the windows.
        threshold: largest distance of a positive pair.
        episode: (N,) int64, episode of each window.
        folder: where finished parts of the work are kept, on a disk that all ranks share, for the caller to delete;
            None: nowhere, and every rank does all of the work.
        identity: JSON that says of which data and settings the distances are; parts of another one are refused.
        ranks: the processes that share the work; None is this one alone.
        progress: called with (pairs done, pairs to do, status); with several ranks, of this rank's share.

    Returns:
        The positives, on every rank.

    Raises:
        ConfigError: ``folder`` holds parts of other data or settings.
        StorageError: disk full, or a part vanished.
        TrainingInterrupted: Ctrl-C or SIGTERM; what was counted is saved.
    """
    ranks = ranks or Ranks()
    n = len(episode)
    cut = cut_units(n)
    pairs = unit_pairs(cut, n)
    units = len(pairs)
    groups = 1 if folder is None else min(MOST_GROUPS, -(-int(pairs.sum()) // UNIT_PAIRS), units)
    members = [range(g * units // groups, (g + 1) * units // groups) for g in range(groups)]
    card = {"identity": plain(identity or {}), "format": FORMAT, "n": n, "threshold": float(threshold)}
    paths = [Path(folder or ".") / f"degrees-{g:02d}.safetensors" for g in range(groups)]
    left = list(range(groups))
    if folder is not None:
        check_ranks(ranks, card)
        left = ranks.on_first(lambda: [g for g, path in enumerate(paths) if not _usable(path, card)])
    mine = left if folder is None else ranks.share(left)
    total = int(pairs.sum()) if ranks.world == 1 else sum(int(pairs[members[g]].sum()) for g in mine)
    done = total - sum(int(pairs[members[g]].sum()) for g in mine)
    found = 0
    degrees = Degrees.zeros(n)
    if progress is not None:
        progress(done, total, "")
    with interruptible() as interrupted:
        for g in mine:
            degrees = Degrees.zeros(n)
            for unit in members[g]:
                for block in sweep.pairs(int(cut[unit]), int(cut[unit + 1]), limit=threshold):
                    degrees.add(block.left, block.right, episode)
                    found += len(block)
                done += int(pairs[unit])
                if progress is not None:
                    progress(done, total, f"{found:,} kept")
                if interrupted() and unit != members[g][-1]:
                    raise _stopped(done, total, folder)
            if folder is not None:
                _write(paths[g], degrees, card)
            if interrupted():
                raise _stopped(done, total, folder)
    if folder is None:
        return degrees
    ranks.barrier()
    degrees = Degrees.zeros(n)
    for path in paths:
        _read(path, degrees, card)
    ranks.barrier()  # whoever deletes the folder now takes nothing from others
    return degrees


def _stopped(done: int, total: int, folder: Path | None) -> BaseException:
    if folder is None:
        return KeyboardInterrupt()
    return TrainingInterrupted(
        f"stopped after {done:,} of {total:,} pairs; whole parts of what was counted are saved in {folder}, and the "
        f"same command goes on from there."
    )


def _usable(path: Path, card: Mapping[str, Any]) -> bool:
    if not path.exists():
        return False
    try:
        with open_sealed(path) as file:
            check_same(path, file.card, card)
    except DamagedFileError as error:
        logger.warning("%s Its pairs are counted again.", error)
        return False
    return True


def _write(path: Path, degrees: Degrees, card: Mapping[str, Any]) -> None:
    arrays = {"positives": degrees.positives, "same_episode": degrees.same_episode}
    write_sealed(path, {name: array.astype(np.uint32) for name, array in arrays.items()}, card)


def _read(path: Path, degrees: Degrees, card: Mapping[str, Any]) -> None:
    try:
        with open_sealed(path) as file:
            check_same(path, file.card, card)
            degrees.positives[:] += file.array("positives")
            degrees.same_episode[:] += file.array("same_episode")
    except DamagedFileError as error:
        raise StorageError(f"{error} Is {path.parent} on a disk that all ranks share?") from None
