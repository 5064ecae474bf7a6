"""What a policy must offer, and the one way it is asked. One file per policy; nothing here knows a simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from classact.data.types import FloatArray, Observation
from classact.errors import ConfigError, DataError

if TYPE_CHECKING:
    from classact.policies.retrieval import Neighbors

Moment: TypeAlias = Observation | Sequence[Observation]
"""What one decision is made from: an observation or, for T_o > 1, the last T_o of them, oldest first."""


@dataclass(frozen=True)
class Decision:
    """What a policy decided for B environments.

    Attributes:
        chunk: (B, T_a, D) float32 unnormalised actions, to be executed open-loop.
        novelty: (B,) float32 in [0, 1]: how far each observation is from what was demonstrated, calibrated on
            held-out demonstrations; None where the policy has no such score.
        neighbors: the demonstrated moments it was decided from, where there are any.
    """

    chunk: FloatArray
    novelty: FloatArray | None = None
    neighbors: Neighbors | None = None


class Policy(Protocol):
    """Maps observations to chunks of actions, batched over environments. Holds no state between calls.

    A policy may also have ``decide(observations) -> Decision``, which says more than ``act``; ``alarm``, the novelty
    (float, or None) above which what it sees counts as unknown; ``schema``, what observations must hold and actions
    mean; ``cameras``, the names of the views that it reads, so that no others are rendered; and ``prepare(batch)``,
    which makes the first decisions as fast as the later ones. Ask through :func:`decide`: it copes with
    all.
    """

    @property
    def name(self) -> str:
        """Short name for tables: ``retrieval``."""

    @property
    def needs_images(self) -> bool:
        """False where only proprioception and state are read: the evaluator then skips rendering."""

    @property
    def chunk_length(self) -> int:
        """T_a: how many actions a chunk has. All are executed before the next call, unless control says fewer."""

    @property
    def history(self) -> int:
        """T_o: how many observations a decision is made from. A policy that does not say decides from 1."""

    def act(self, observations: Sequence[Moment]) -> FloatArray:
        """(B moments) -> (B, T_a, D) unnormalised actions, to be executed open-loop."""


def history_length(policy: Policy) -> int:
    """T_o of a policy: its ``history``, 1 where it has none.

    Raises:
        ConfigError: less than 1, or no whole number.
    """
    history = getattr(policy, "history", 1)
    if not isinstance(history, int) or history < 1:
        raise ConfigError(
            f"policy {policy.name!r}: expected history (T_o) to be a whole number of at least 1, got {history!r}."
        )
    return history


def alarm_level(policy: Policy) -> float | None:
    """The novelty above which a policy calls what it sees unknown: its ``alarm``, None where it has none."""
    alarm = getattr(policy, "alarm", None)
    return None if alarm is None else float(alarm)


def as_histories(observations: Sequence[Moment], history: int) -> list[list[Observation]]:
    """Moments as lists of T_o observations each, oldest first.

    Raises:
        DataError: a moment that does not hold ``history`` observations.
    """
    histories = []
    for index, moment in enumerate(observations):
        found = [moment] if isinstance(moment, Observation) else list(moment)
        if len(found) != history:
            raise DataError(
                f"moment {index} of {len(observations)} holds {len(found)} observations, expected the last {history} "
                f"(T_o), oldest first. At the start of an episode, repeat its first observation."
            )
        histories.append(found)
    return histories


def decide(policy: Policy, observations: Sequence[Moment]) -> Decision:
    """Ask a policy: by its own ``decide`` where it has one, else by ``act``.

    Args:
        policy: any policy, users' own included.
        observations: B moments.

    Returns:
        The decision, its chunk (B, T_a, D) with T_a >= 1 and finite.

    Raises:
        DataError: a moment of another number of observations than the policy decides from.
        ConfigError: actions or scores of wrong shape, NaN or infinite.
    """
    count = len(observations)
    as_histories(observations, history_length(policy))
    own = getattr(policy, "decide", None)
    given = Decision(policy.act(observations)) if own is None else own(observations)
    if not isinstance(given, Decision):
        raise ConfigError(
            f"policy {policy.name!r}: decide returned {type(given).__name__}, expected a classact.policies.Decision. "
            f"Return one, or leave decide out and have act only."
        )
    chunk = np.asarray(given.chunk, np.float32)
    expected = f"({count}, T_a, D)"
    if chunk.ndim != 3 or len(chunk) != count or chunk.shape[1] < 1:
        raise ConfigError(
            f"policy {policy.name!r} gave actions of shape {chunk.shape}, expected {expected} with T_a >= 1 for "
            f"{count} observations. Was the policy trained on another task?"
        )
    if not (finite := np.isfinite(chunk)).all():
        bad = int((~finite).sum())
        raise ConfigError(
            f"policy {policy.name!r} gave {bad} NaN or infinite of {finite.size} action values, expected finite "
            f"{expected}. Its weights or normalisation are damaged: train or build it again."
        )
    novelty = None if given.novelty is None else np.asarray(given.novelty, np.float32)
    if novelty is not None and (novelty.shape != (count,) or not np.isfinite(novelty).all()):
        raise ConfigError(
            f"policy {policy.name!r} gave novelty scores {novelty.tolist()} of shape {novelty.shape}, expected "
            f"({count},) finite numbers."
        )
    return Decision(chunk, novelty, given.neighbors)
