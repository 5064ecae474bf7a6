"""Episodes that are one demonstration twice: merged copies of a file, or one export per camera.

Whatever leaves an episode out must leave its copies out with it: retrieval would find them in its place.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from classact.data.normalize import LEAST_MAGNITUDE, ROUNDING
from classact.data.types import FloatArray, IntArray

ALIKE = 1e-5  # actions of two exports are the same where they differ by at most this share of their dimension's range


def first_copies(actions: FloatArray, episode_ends: IntArray, labelled: NDArray[np.bool_] | None = None) -> IntArray:
    """(E,) the first episode that each one is a copy of; itself where none precedes it.

    Copies have the same number of steps and the same ``actions`` (N, D) up to rounding; images do not count. Episodes
    that are not ``labelled`` (E,) carry no actions: whether they are copies is not known, and they count as none.
    """
    lengths = np.diff(episode_ends, prepend=0)
    first = np.arange(len(episode_ends), dtype=np.int64)
    known = np.ones(len(first), bool) if labelled is None else labelled
    low, high = actions.min(axis=0), actions.max(axis=0)
    size = np.maximum(np.maximum(np.abs(low), np.abs(high)), np.float32(LEAST_MAGNITUDE))
    step = np.maximum(ALIKE * (high.astype(np.float64) - low), ROUNDING * np.spacing(size).astype(np.float64))
    for length in np.unique(lengths):
        episodes = np.flatnonzero((lengths == length) & known)
        if len(episodes) < 2:
            continue
        rows = (episode_ends[episodes] - length)[:, None] + np.arange(length)
        # Actions in units of the tolerance. Copies have nearly equal sums, other episodes hardly ever.
        parts = ((actions[rows] - low.astype(np.float64)) / step).reshape(len(episodes), -1)
        weights = np.random.default_rng(0).random(parts.shape[1])
        sums = parts @ weights
        near = weights.sum()
        group, kept = np.arange(len(episodes)), list[int]()
        for one in np.argsort(sums, kind="stable"):
            for other in reversed(kept):
                if sums[other] < sums[one] - near:
                    break
                if np.abs(parts[one] - parts[other]).max() <= 1:
                    group[one] = other
                    break
            if group[one] == one:
                kept.append(int(one))
        smallest = group.copy()
        np.minimum.at(smallest, group, np.arange(len(group)))
        first[episodes] = episodes[smallest[group]]
    return first


def group_copies(first: IntArray, episode_ends: IntArray) -> tuple[IntArray, IntArray]:
    """(N,) steps in an order in which copies are adjacent, and (G,) where each group of them ends."""
    of = np.repeat(first, np.diff(episode_ends, prepend=0))
    steps = np.argsort(of, kind="stable")
    return steps, np.append(np.flatnonzero(np.diff(of[steps])) + 1, len(steps))


def describe_copies(first: IntArray, where: str) -> str:
    """One sentence about the result of :func:`first_copies`; empty where all episodes differ."""
    again = np.flatnonzero(first != np.arange(len(first)))
    if len(again) == 0:
        return ""
    return (
        f"{where}: {len(again)} of {len(first)} demonstrations have the same actions as an earlier one (the first: "
        f"episode {again[0]} those of episode {first[again[0]]}). Such copies are left out together."
    )
