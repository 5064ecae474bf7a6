"""A sweep over a matrix of distances, and processes of a job that are to be killed.

As a program: ``fake_sweep.py JOB FOLDER [PAUSE [DIE_RANK DIE_CALL]]`` runs "count" or "positives" or "both" on
:func:`example`, waits PAUSE seconds in every call of the sweep, and kills rank DIE_RANK in its so manieth call.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from classact.data.types import FloatArray
from classact.errors import ConfigError
from classact.similarity import dtw_pairwise
from classact.similarity.counts import DistanceCounts
from classact.similarity.reference import dtw
from classact.similarity.stream import Pairs, Sweep, WindowStream

N = 150
EPISODE = np.arange(N) // 50
QUANTILE = 0.1
IDENTITY = {"data": "walk", "settings": {"horizon": 8, "cost": "sqeuclidean", "rotation": (0.5, 1)}}


class MatrixSweep(Sweep):
    """Hands out a matrix in blocks of ``block`` pairs whose order is shuffled, but the same every time."""

    device = "cpu"

    def __init__(self, matrix: FloatArray, block: int = 97) -> None:
        self.matrix = matrix
        self.block = block
        self.calls = 0
        self.counted: list[tuple[int, int]] = []
        self.deferred: list[tuple[DistanceCounts, FloatArray]] = []

    def __len__(self) -> int:
        return len(self.matrix)

    def pairs(self, first: int, last: int, *, limit: float = np.inf, prune: bool = True) -> Iterator[Pairs]:
        assert prune
        self.calls += 1
        self.counted.append((first, last))
        rows = self.matrix[first:last]
        columns = np.arange(len(self.matrix))
        anchors = np.arange(first, last)[:, None]
        keep = (rows <= np.float32(limit)) & (columns > anchors)
        left, right = np.nonzero(keep)
        order = np.random.default_rng(first).permutation(len(left))
        for at in range(0, len(order), self.block):
            part = order[at : at + self.block]
            i, j = left[part] + first, right[part]
            yield Pairs(i.astype(np.uint32), j.astype(np.uint32), self.matrix[i, j])

    def count(
        self,
        first: int,
        last: int,
        limit: float,
        counts: DistanceCounts,
        *,
        prune: bool = True,
        defer: bool = False,
    ) -> None:
        self.settle()
        found = [pairs.distances for pairs in self.pairs(first, last, limit=limit, prune=prune)]
        self.deferred = [(counts, distances) for distances in found]
        if not defer:
            self.settle()

    def settle(self) -> None:
        """As a GPU's: nothing is in the counts before."""
        for counts, distances in self.deferred:
            counts.add(distances)
        self.deferred = []


class SlowSweep(MatrixSweep):
    """Waits, and kills its own process."""

    pause = 0.0
    die_at = 0

    def pairs(self, first: int, last: int, *, limit: float = np.inf, prune: bool = True) -> Iterator[Pairs]:
        time.sleep(self.pause)
        for pairs in super().pairs(first, last, limit=limit, prune=prune):
            yield pairs
            if self.calls == self.die_at:
                os.kill(os.getpid(), signal.SIGKILL)


def stream(seed: int = 0, n: int = N, horizon: int = 8, dim: int = 2) -> WindowStream:
    """Windows of one random walk with a leap at its end, so that the last window has no neighbour."""
    rng = np.random.default_rng(seed)
    actions = (rng.normal(size=(n, dim)) * rng.uniform(0.05, 1, (n, 1))).cumsum(axis=0).astype(np.float32)
    actions[-1] += 100
    return WindowStream.build(actions, np.array([n // 3, n], np.int64), horizon)


def reference_matrix(windows: FloatArray, cost: str = "sqeuclidean", band: int | None = None) -> FloatArray:
    """(N, N) float32 distances of windows (N, T, D), from the float64 definition."""
    n = len(windows)
    matrix = np.zeros((n, n), np.float32)
    for i in range(n):
        for j in range(i):
            matrix[i, j] = matrix[j, i] = dtw(windows[i], windows[j], cost, band)
    return matrix


def example_matrix(seed: int = 0) -> FloatArray:
    """(N, N) float32, with ties."""
    matrix = dtw_pairwise(stream(seed).windows(np.arange(N)))
    return np.round(matrix, 1).astype(np.float32)


def threshold(matrix: FloatArray, quantile: float = QUANTILE) -> float:
    """The distance at ``quantile`` of all pairs i < j."""
    ordered = np.sort(matrix[np.triu_indices(len(matrix), 1)])
    return float(ordered[int(quantile * len(ordered)) - 1])


def talk(ranks: Any) -> None:
    """Check what two ranks tell each other."""
    assert (ranks.rank, ranks.world, ranks.local_rank) == (int(os.environ["RANK"]), 2, int(os.environ["LOCAL_RANK"]))
    ranks.barrier()
    assert ranks.broadcast_object({"rank": ranks.rank}) == {"rank": 0}
    assert ranks.on_first(lambda: ranks.rank) == 0

    def refuse() -> None:
        raise ConfigError("no such folder")

    for function, *told in (
        (refuse, "ConfigError('no such folder')", "ConfigError('no such folder')"),
        (lambda: 1 // 0, "ZeroDivisionError(", "ClassactError('rank 0 failed: ZeroDivisionError: "),
    ):
        found = "nothing"
        try:
            ranks.on_first(function)
        except Exception as error:
            found = repr(error)
        assert found.startswith(told[ranks.rank]), found
    print(f"rank {ranks.rank} talks", flush=True)


def main() -> None:
    from classact.similarity import job
    from classact.similarity.positives import count_positives
    from classact.utils.ranks import Ranks

    what, folder, *rest = sys.argv[1:]
    pause, die_rank, die_call = (*map(float, rest), *(0.0, -1.0, -1.0)[len(rest) :])
    job.SAVE_SECONDS = job.SAVE_FACTOR = 0.0
    # What a killed process wrote stays; syncing is for power cuts, and takes long on a busy disk.
    os.fsync = lambda _: None  # type: ignore[assignment]
    ranks = Ranks.from_environment()
    matrix = example_matrix()
    sweep = SlowSweep(matrix, block=5)
    sweep.pause = pause
    if ranks.rank == die_rank:
        sweep.die_at = int(die_call)
    if ranks.world > 1:
        talk(ranks)
    limit = threshold(matrix)
    if what in ("count", "both"):
        counts = job.count_pairs(Path(folder) / "counts", sweep, N, limit, IDENTITY, ranks)
        assert counts.total == (matrix[np.triu_indices(N, 1)] <= np.float32(limit)).sum()
    if what in ("positives", "both"):
        positives = count_positives(sweep, limit, EPISODE, Path(folder) / "positives", IDENTITY, ranks)
        assert positives.pairs == (matrix[np.triu_indices(N, 1)] <= np.float32(limit)).sum()
    print(f"rank {ranks.rank} of {ranks.world}: {sweep.calls} calls", flush=True)
    ranks.close()


if __name__ == "__main__":
    main()
