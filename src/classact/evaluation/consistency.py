"""How far each demonstration is from what the others do: those that contradict them stand out.

Each is left out of the bank in turn, with copies of it, and the policy is asked what it would do at its timesteps. The
error is that of :mod:`classact.evaluation.actions`: L2 of whole chunks, actions scaled to [-1, 1]. A large one means
that in situations that look alike the others did something else: a mistake, a slip of the recording, or another way to
do the task. The encoder was trained on all demonstrations, so errors say which ones differ, not how a policy would do
without them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from classact.data.types import Demonstrations, FloatArray, IntArray
from classact.evaluation.rows import Consistency, EpisodeError
from classact.policies.base import Neighbors
from classact.policies.novelty import Progress
from classact.policies.retrieval import RetrievalPolicy

QUERIES = 10_000
"""Timesteps at most that are asked about, about as many of each demonstration."""

_LEAST = 4  # of each demonstration


@dataclass(frozen=True)
class LeftOut:
    """What the others would do at timesteps of demonstrations.

    Attributes:
        rows: (Q,) the timesteps, ascending.
        errors: (Q,) L2 of what was done there.
        chunks: (Q, T_a, D) what the others would do.
        neighbors: which of their timesteps this comes from, (Q, k).
    """

    rows: IntArray
    errors: FloatArray
    chunks: FloatArray
    neighbors: Neighbors


def timesteps(data: Demonstrations, queries: int = QUERIES, episodes: IntArray | None = None) -> IntArray:
    """All timesteps of ``episodes`` (None: of all); where they are more than ``queries``, so many, evenly over each."""
    episodes = np.arange(len(data)) if episodes is None else episodes
    steps = int(data.lengths[episodes].sum())
    most = steps if steps <= queries else max(_LEAST, queries // len(episodes))
    found = [np.linspace(start, end - 1, min(end - start, most)) for start, end in map(data.bounds, episodes.tolist())]
    return np.concatenate(found).round().astype(np.int64)


def left_out(policy: RetrievalPolicy, data: Demonstrations, progress: Progress | None = None) -> LeftOut:
    """Ask a policy about the demonstrations ``data`` in its bank, each without itself.

    Raises:
        ConfigError: there are not two different demonstrations.
    """
    rows = timesteps(data, episodes=np.flatnonzero(data.carries_actions()))
    decision = policy.decide_left_out(rows, progress)
    assert decision.neighbors is not None
    scale = data.action_range()
    apart = scale.apply(decision.chunk) - scale.apply(policy.chunks(rows))
    errors = np.linalg.norm(apart, axis=2).mean(axis=1)
    return LeftOut(rows, np.asarray(errors, np.float32), decision.chunk, decision.neighbors)


def consistency(data: Demonstrations, found: LeftOut, steps: int) -> Consistency:
    """Errors by demonstration, over chunks of ``steps`` actions."""
    episode = data.episode_index()[found.rows]
    episodes = []
    for e in np.flatnonzero(data.carries_actions()).tolist():
        own = np.flatnonzero(episode == e)
        worst = own[found.errors[own].argmax()]
        step = int(found.rows[worst]) - data.bounds(e)[0]
        mean = float(found.errors[own].mean())
        episodes.append(EpisodeError(e, int(data.lengths[e]), mean, step, float(found.errors[worst])))
    return Consistency(steps, len(found.rows), len(data.labelled_actions()), tuple(episodes))
