"""Demonstrations at fewer steps per second than they were recorded at, so that T steps mean the same behaviour."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from classact.data.types import Demonstrations, IntArray
from classact.errors import ConfigError

_TOLERANCE = 1e-3
SHORTEST = 0.5
"""Seconds below which windows of actions hold little behaviour: nearly all are alike, moving on in one direction."""


def at_rate(data: Demonstrations, fps: float) -> Demonstrations:
    """Every k-th step of each episode, k = recorded fps / ``fps``; images stay views.

    The action of a kept step is that of the last step before the next kept one, whose target is reached then: actions
    are absolute. Velocities are the mean over the k steps.

    Raises:
        ConfigError: the recorded rate is not known, lower, or no multiple of ``fps``.
    """
    where, recorded = f"{data.name} ({data.source})", data.schema.fps
    if not fps > 0:
        raise ConfigError(f"expected more than 0 steps per second, got {fps:g}.")
    if recorded is None:
        raise ConfigError(
            f"{where}: at how many steps per second it was recorded is not known, so {fps:g} cannot be made."
        )
    every = round(recorded / fps)
    if every < 1 or abs(recorded / fps - every) > _TOLERANCE:
        rates = ", ".join(f"{recorded / k:g}" for k in (1, 2, 3, 4, 5, 10))
        raise ConfigError(
            f"{where} has {recorded:g} steps per second, which {fps:g} does not divide; possible are {rates}."
        )
    if every == 1:
        return data
    rows = np.concatenate([np.arange(start, end, every) for start, end in map(data.bounds, range(len(data)))])
    ends = np.cumsum([-(-length // every) for length in data.lengths.tolist()], dtype=np.int64)
    kept = data.select(rows, ends, slice(None))
    last = np.repeat(data.episode_ends - 1, np.diff(ends, prepend=0))
    actions = data.actions[np.minimum(rows + every - 1, last)].copy()
    space = data.schema.actions
    if space is not None and (moving := space.dimensions("velocity")).any():
        spans: IntArray = np.minimum(rows[:, None] + np.arange(every), last[:, None])
        actions[:, moving] = data.actions[spans][:, :, moving].mean(axis=1)
    return replace(kept, actions=actions, schema=replace(data.schema, fps=recorded / every))


def short_windows(data: Demonstrations, horizon: int) -> str:
    """What is to be said of windows of ``horizon`` actions that span little time; empty where they do not."""
    fps = data.schema.fps
    if fps is None or horizon / fps >= SHORTEST:
        return ""
    better = fps / max(2, round(fps / horizon))
    return (
        f"{data.name}: windows of {horizon} steps are {horizon / fps:.2g} s at {fps:g} steps per second. In so little "
        f"time most demonstrations do alike: positives then say where the robot is going, not what it is about. "
        f"Subsample (--fps {better:.3g}), or choose a longer --horizon."
    )
