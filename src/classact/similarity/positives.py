"""The exact number of positives of every anchor: one resumable sweep over all pairs, by any number of processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from classact.data.types import IntArray
from classact.similarity.job import Progress, tally_pairs
from classact.similarity.stream import Sweep
from classact.utils.ranks import Ranks


@nb.njit(cache=True)  # type: ignore[untyped-decorator]
def _count(left: Any, right: Any, episode: Any, total: Any, same_episode: Any) -> None:
    for k in range(len(left)):
        i, j = left[k], right[k]
        total[i] += 1
        total[j] += 1
        if episode[i] == episode[j]:
            same_episode[i] += 1
            same_episode[j] += 1


@dataclass(frozen=True)
class Positives:
    """Positives per anchor in the whole data set: (N,) int64 in total, where each pair counts for both of its ends, and
    of these in the anchor's own episode.
    """

    total: IntArray
    same_episode: IntArray

    @property
    def pairs(self) -> int:
        """Positive pairs in all."""
        return int(self.total.sum()) // 2


class _Tally:
    def __init__(self, sweep: Sweep, threshold: float, episode: IntArray) -> None:
        self.sweep, self.threshold, self.episode = sweep, threshold, episode
        self.positives = Positives(np.zeros(len(episode), np.int64), np.zeros(len(episode), np.int64))

    @property
    def kept(self) -> int:
        return self.positives.pairs

    def count(self, first: int, last: int) -> None:
        for block in self.sweep.pairs(first, last, limit=self.threshold):
            _count(block.left, block.right, self.episode, self.positives.total, self.positives.same_episode)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"total": self.positives.total, "same_episode": self.positives.same_episode}

    def add(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.positives.total[:] += arrays["total"]
        self.positives.same_episode[:] += arrays["same_episode"]


def count_positives(
    sweep: Sweep,
    threshold: float,
    episode: IntArray,
    folder: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    ranks: Ranks | None = None,
    progress: Progress | None = None,
) -> Positives:
    """Positives of every anchor, pairs of at most ``threshold``, by one sweep over the pairs i < j of N windows.

    ``episode`` (N,) int64 is each window's episode, ``identity`` JSON of the data and settings; for the rest and errors
    see :func:`classact.similarity.job.tally_pairs`.
    """
    n = len(episode)
    metadata = {"identity": identity or {}, "n": n, "threshold": float(threshold)}
    return tally_pairs(lambda: _Tally(sweep, threshold, episode), n, metadata, folder, ranks, progress).positives
