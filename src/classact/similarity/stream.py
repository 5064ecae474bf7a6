"""All windows of a data set as slices of one padded stream, and the interface of a sweep over their pairs.

Every episode is followed by T - 1 copies of its last action, so that each step begins a full window (paper section 3).
Neighbouring windows overlap: a step distance is shared by all window pairs that contain it, and nothing depends on
episode lengths.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from classact.data.types import FloatArray, IntArray
from classact.errors import ConfigError
from classact.similarity.counts import DistanceCounts
from classact.similarity.reference import check_finite

SLACK = 64  # zeros on either side of the stream beyond T, so that vectors of windows may be read past its ends


@dataclass(frozen=True)
class WindowStream:
    """N windows of T steps in D dimensions.

    Attributes:
        values: (D, P) float32, contiguous: the padded stream, with T + :data:`SLACK` zeros before and behind.
        starts: (N,) int64, ascending: window w is ``values[:, starts[w] : starts[w] + T]``.
        horizon: T.
    """

    values: FloatArray
    starts: IntArray
    horizon: int

    @staticmethod
    def build(actions: FloatArray, episode_ends: IntArray, horizon: int) -> WindowStream:
        """Lay out the windows of ``actions`` (N, D), normalised; window w begins at step w.

        Raises:
            ConfigError: a horizon below 1.
            DataError: NaN or infinite actions.
        """
        if horizon < 1:
            raise ConfigError(f"expected a horizon of at least 1 step, got {horizon}.")
        actions = np.asarray(actions, np.float32)
        check_finite("actions", actions)
        ends = np.asarray(episode_ends, np.int64)
        lengths = np.diff(ends, prepend=0)
        repeat = np.ones(len(actions), np.int64)
        repeat[ends - 1] = horizon
        steps = np.repeat(np.arange(len(actions)), repeat)
        margin = SLACK + horizon
        values = np.zeros((actions.shape[1], len(steps) + 2 * margin), np.float32)
        values[:, margin:-margin] = actions[steps].T
        starts = np.arange(len(actions), dtype=np.int64) + margin
        starts += np.repeat(np.arange(len(ends)), lengths) * (horizon - 1)
        return WindowStream(values, starts, horizon)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def dim(self) -> int:
        """D."""
        return len(self.values)

    def windows(self, rows: IntArray) -> FloatArray:
        """(B, T, D) float32: the windows ``rows`` (B,)."""
        at = self.starts[rows][:, None] + np.arange(self.horizon)
        return np.ascontiguousarray(self.values.T[at])

    @cached_property
    def points(self) -> FloatArray:
        """(P, D) float32: the stream with one row per step."""
        return np.ascontiguousarray(self.values.T)


@dataclass(frozen=True)
class Pairs:
    """Window pairs (left[k], right[k]): (K,) uint32 window numbers, and their (K,) float32 distances."""

    left: NDArray[np.uint32]
    right: NDArray[np.uint32]
    distances: FloatArray

    def __len__(self) -> int:
        return len(self.left)


class Sweep(ABC):
    """Distances of all pairs of a stream's windows, in blocks; nothing of size N x N ever exists."""

    device: str

    @abstractmethod
    def pairs(self, first: int, last: int, *, limit: float = np.inf, prune: bool = True) -> Iterator[Pairs]:
        """Pairs i < j of the anchors first <= i < last with a distance of at most ``limit``.

        Blocks are of bounded size; the set of pairs is exact, their order is the backend's own. ``prune`` skips the
        alignment of pairs that a lower bound excludes, which changes no result. Anchors out of range and a limit of NaN
        are ConfigErrors.
        """

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
        """Add the distances of :meth:`pairs` to ``counts``.

        With ``defer`` a GPU may keep them until :meth:`settle`: reading them out once saves time.
        """
        del defer
        for block in self.pairs(first, last, limit=limit, prune=prune):
            counts.add(block.distances)

    def settle(self) -> None:  # noqa: B027
        """Add what :meth:`count` left on the device to its counts."""
