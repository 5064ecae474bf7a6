"""Windows of future actions, and of past observations, as step indices.

One window per step t (paper section 3): rows t .. t + T_p - 1, clamped at the end of the episode, so that the last
action repeats. There are as many windows as steps.
"""

from __future__ import annotations

import numpy as np

from classact.data.types import IntArray
from classact.errors import ConfigError


def window_indices(episode_ends: IntArray, horizon: int) -> IntArray:
    """(N, T) flat step indices of every window of ``horizon`` T, clamped within its episode, which may be shorter."""
    if horizon < 1:
        raise ConfigError(f"expected a horizon of at least 1 step, got {horizon}.")
    ends = np.asarray(episode_ends, dtype=np.int64)
    last = np.repeat(ends - 1, np.diff(ends, prepend=0))
    start = np.arange(int(ends[-1]), dtype=np.int64)
    return np.asarray(np.minimum(start[:, None] + np.arange(horizon), last[:, None]), dtype=np.int64)


def history_indices(episode_ends: IntArray, history: int) -> IntArray:
    """(N, T_o) flat step indices of the last T_o observations of every step, oldest first, clamped to its episode."""
    lengths = np.diff(episode_ends, prepend=0)
    first = np.repeat(episode_ends - lengths, lengths)
    step = np.arange(int(episode_ends[-1]), dtype=np.int64)
    return np.maximum(step[:, None] + np.arange(1 - history, 1), first[:, None])
