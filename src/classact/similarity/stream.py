"""All windows of a data set as slices of one padded stream, and the interface of a sweep over their pairs.

Every episode is followed by T - 1 copies of its last action, so that each step begins a full window (paper section 3).
Neighbouring windows overlap: a step distance is shared by all window pairs that contain it, and nothing depends on
episode lengths.

With a stride of s, windows hold the means of s steps each. An episode is then laid out as s runs one behind the other,
those of the means that begin at its steps p, p + s, p + 2 s, ..., for p = 0 .. s - 1. So windows are slices still, and
those that begin s steps apart are neighbours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.data.types import FloatArray, IntArray
from classact.errors import ConfigError
from classact.similarity.counts import DistanceCounts
from classact.similarity.reference import check_finite

SLACK = 64  # zeros on either side of the stream beyond T, so that vectors of windows may be read past its ends


def means(actions: FloatArray, episode_ends: IntArray, stride: int) -> FloatArray:
    """(N, D) float32: for each step the mean of its action and those of the ``stride`` - 1 steps behind it.

    Behind an episode its last action is repeated.
    """
    if stride == 1:
        return actions
    ends = np.asarray(episode_ends, np.int64)
    last = np.repeat(ends - 1, np.diff(ends, prepend=0))
    total = np.zeros_like(actions)
    for step in range(stride):
        total += actions[np.minimum(np.arange(len(actions)) + step, last)]
    total /= stride
    return total


@dataclass(frozen=True)
class WindowStream:
    """N windows of T compared steps in D dimensions.

    Attributes:
        values: (D, P) float32, contiguous: the padded stream, with T + :data:`SLACK` zeros before and behind.
        starts: (N,) int64: window w is ``values[:, starts[w] : starts[w] + T]``. Ascending where the stride is 1.
        horizon: T, which spans T times the stride of the data's steps.
        stride: steps of the data per compared one.
    """

    values: FloatArray
    starts: IntArray
    horizon: int
    stride: int = 1

    @staticmethod
    def build(actions: FloatArray, episode_ends: IntArray, horizon: int, stride: int = 1) -> WindowStream:
        """Lay out the windows of ``actions`` (N, D), normalised; window w begins at step w.

        Args:
            actions: of all episodes.
            episode_ends: (E,) where they end.
            horizon: steps of the data that a window spans; the last mean of one that ``stride`` does not divide reaches
                beyond it.
            stride: steps of the data per compared one.

        Raises:
            ConfigError: a horizon below 1, or a stride beyond it.
            DataError: NaN or infinite actions.
        """
        if horizon < 1:
            raise ConfigError(f"expected a horizon of at least 1 step, got {horizon}.")
        if not 1 <= stride <= horizon:
            raise ConfigError(f"expected a stride of 1 to {horizon}, the horizon, got {stride}.")
        actions = np.asarray(actions, np.float32)
        check_finite("actions", actions)
        ends = np.asarray(episode_ends, np.int64)
        lengths = np.diff(ends, prepend=0)
        T = -(-horizon // stride)
        # Runs: for each episode and p < stride the windows that begin at its steps p, p + stride, ...
        phase = np.tile(np.arange(stride), len(ends))
        windows = -(-(np.repeat(lengths, stride) - phase) // stride)  # none where an episode ends before p
        sizes = np.where(windows > 0, windows + T - 1, 0)
        begins = np.cumsum(sizes) - sizes
        within = np.arange(int(sizes.sum())) - np.repeat(begins, sizes)
        first = np.repeat(np.repeat(ends - lengths, stride) + phase, sizes) + stride * within
        last = np.repeat(np.repeat(ends - 1, stride), sizes)
        margin = SLACK + T
        values = np.zeros((actions.shape[1], len(first) + 2 * margin), np.float32)
        values[:, margin : len(first) + margin] = means(actions, ends, stride)[np.minimum(first, last)].T
        own = np.arange(len(actions)) - np.repeat(ends - lengths, lengths)  # step within the episode
        run = np.repeat(np.arange(len(ends)), lengths) * stride + own % stride
        return WindowStream(values, margin + begins[run] + own // stride, T, stride)

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

    def in_order(self) -> tuple[WindowStream, IntArray]:
        """The stream with its windows numbered as they lie, which is what sweeps take, and their own numbers (N,)."""
        order = np.argsort(self.starts)
        return replace(self, starts=self.starts[order]), order

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
    """Distances of all pairs of a stream's windows, in blocks; nothing of size N x N ever exists.

    Backends take streams whose starts ascend; :class:`InOrder` makes one of any.
    """

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


class InOrder(Sweep):
    """A sweep over the windows of a stream as they lie, whose pairs have the windows' own numbers.

    Anchors are numbered as windows lie.

    Args:
        stream: any.
        backend: makes the sweep over a stream whose starts ascend.
    """

    def __init__(self, stream: WindowStream, backend: Callable[[WindowStream], Sweep]) -> None:
        laid, order = stream.in_order()
        self._sweep, self._order = backend(laid), order.astype(np.uint32)
        self.device = self._sweep.device

    def pairs(self, first: int, last: int, *, limit: float = np.inf, prune: bool = True) -> Iterator[Pairs]:
        """See :meth:`Sweep.pairs`; of the two of a pair the smaller number is left."""
        for block in self._sweep.pairs(first, last, limit=limit, prune=prune):
            one, other = self._order[block.left], self._order[block.right]
            yield Pairs(np.minimum(one, other), np.maximum(one, other), block.distances)

    def count(self, *args: Any, **options: Any) -> None:
        """See :meth:`Sweep.count`: distances have no numbers."""
        self._sweep.count(*args, **options)

    def settle(self) -> None:
        """See :meth:`Sweep.settle`."""
        self._sweep.settle()
