"""What a policy must offer, and the one way it is called. Policies know no simulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias, cast

import numpy as np

from classact.data.actions import ActionSpace
from classact.data.schema import Schema
from classact.data.types import FloatArray, IntArray, Observation, StateArray
from classact.errors import ConfigError, DataError
from classact.policies.config import ControlConfig

Timestep: TypeAlias = Observation | Sequence[Observation]  # one observation or, for T_o > 1, the last T_o, oldest first

Memory: TypeAlias = Sequence[FloatArray]
"""Of each of B environments the (n, d) latents of its earlier decisions, oldest first; empty: nothing is remembered."""


@dataclass(frozen=True)
class Neighbors:
    """The rows that a decision was made from, with similarities and weights, nearest first; each (B, k)."""

    rows: IntArray
    cosine: FloatArray
    weights: FloatArray


@dataclass(frozen=True)
class Decision:
    """What a policy decided for B environments.

    Attributes:
        chunk: (B, T_a, D) float32 unnormalised actions, to be executed open-loop.
        novelty: (B,) float32 in [0, 1]: how far each observation is from what was demonstrated, calibrated on held-out
            demonstrations; None where the policy has no such score.
        distance: (B,) the distance behind ``novelty``: one minus the mean cosine of the nearest timesteps.
        doubt: (B,) float64 that the episode will succeed, added up over its decisions by the caller
            (:class:`classact.policies.control.Controller`); None where the policy gives no distance.
        neighbors: the demonstrated timesteps it was decided from, if any; of a monitored policy those of its monitor.
        latents: (B, d) what the next decisions of these episodes must be given as memory; None where the policy does
            not remember.
        visits: (B,) how often each episode had been at such an observation before; None where it does not remember.
    """

    chunk: FloatArray
    novelty: FloatArray | None = None
    neighbors: Neighbors | None = None
    latents: FloatArray | None = None
    visits: IntArray | None = None
    distance: StateArray | None = None
    doubt: StateArray | None = None


@dataclass(frozen=True)
class PolicySpec:
    """What callers need to know of a policy.

    Attributes:
        name: short name for tables: ``retrieval``.
        chunk_length: T_a, actions of a chunk.
        cameras: views that are read, and so rendered; () where images are not.
        history: T_o, observations that a decision is made from.
        schema: what observations must hold and actions mean; None: anything.
        action_space: what the D dimensions of an action mean, so that rotations are averaged as rotations; None: every
            dimension is averaged by itself.
        alarm: the novelty above which an observation counts as unknown: infinite where too few episodes calibrated it,
            None where the policy has no such score.
        remembers: decisions depend on the latents of earlier ones of the episode, which the caller keeps
            (:class:`Remembering`).
        speed: demonstrated steps per executed one.
        language_source: what must embed the instructions of observations (:mod:`classact.data.language`), for it has
            embedded those that were learned from; empty: it is not known, or there are none.
        control: how much of a chunk is executed, and whether chunks are averaged, where callers do not say otherwise.
        acting: the other settings that decide what it does with the same weights and bank, as JSON values; of
            retrieval k and temperature, among others. Evaluations say them.
    """

    name: str
    chunk_length: int
    cameras: tuple[str, ...] = ()
    history: int = 1
    schema: Schema | None = None
    action_space: ActionSpace | None = None
    alarm: float | None = None
    remembers: bool = False
    speed: float = 1.0
    language_source: str = ""
    control: ControlConfig = field(default_factory=ControlConfig)
    acting: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("chunk_length", "history"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(
                    f"policy {self.name!r}: expected {name} to be a whole number of at least 1, got {value!r}."
                )


class Policy(Protocol):
    """Maps observations to chunks of actions, batched over environments. Stateless between calls."""

    @property
    def spec(self) -> PolicySpec:
        """What it needs and gives."""

    def decide(self, observations: Sequence[Timestep]) -> Decision:
        """What to do in B environments at these timesteps."""

    def prepare(self, batch: int = 1) -> None:
        """Do now what would slow the first decisions of ``batch`` environments."""


class Remembering(Policy, Protocol):
    """A policy that also looks at earlier decisions of an episode; it keeps nothing itself."""

    def decide(self, observations: Sequence[Timestep], memory: Memory = ()) -> Decision:
        """What to do in B environments, whose earlier decisions had the latents ``memory``; () for none."""


@dataclass(frozen=True)
class FunctionPolicy:
    """A function ``act``, (B timesteps) -> (B, T_a, D) unnormalised actions, as a policy without novelty score."""

    spec: PolicySpec
    act: Callable[[Sequence[Timestep]], FloatArray]

    def decide(self, observations: Sequence[Timestep]) -> Decision:
        """The function's chunks."""
        return Decision(self.act(observations))

    def prepare(self, batch: int = 1) -> None:
        """There is nothing to prepare."""


def as_histories(observations: Sequence[Timestep], history: int) -> list[list[Observation]]:
    """Timesteps as lists of T_o = ``history`` observations, oldest first; another number is a DataError."""
    histories = []
    for index, timestep in enumerate(observations):
        found = [timestep] if isinstance(timestep, Observation) else list(timestep)
        if len(found) != history:
            raise DataError(
                f"timestep {index} of {len(observations)} holds {len(found)} observations, expected the last {history} "
                f"(T_o), oldest first. At the start of an episode, repeat its first observation."
            )
        histories.append(found)
    return histories


def decide(policy: Policy, observations: Sequence[Timestep], memory: Memory = ()) -> Decision:
    """Call a policy, users' own included, for its decision at B timesteps: a chunk (B, T_a, D), T_a >= 1 and finite.
    A policy that does not remember is not given the memory.

    Raises:
        DataError: a timestep with another number of observations than the policy decides from.
        ConfigError: actions or scores of wrong shape, NaN or infinite.
    """
    count, name = len(observations), policy.spec.name
    as_histories(observations, policy.spec.history)
    given: object = (
        cast(Remembering, policy).decide(observations, memory) if policy.spec.remembers else policy.decide(observations)
    )
    if not isinstance(given, Decision):
        raise ConfigError(
            f"policy {name!r}: decide returned {type(given).__name__}, expected a classact.policies.Decision. "
            f"Return one, or make the policy a classact.policies.FunctionPolicy."
        )
    chunk = np.asarray(given.chunk, np.float32)
    expected = f"({count}, T_a, D)"
    if chunk.ndim != 3 or len(chunk) != count or chunk.shape[1] < 1:
        raise ConfigError(
            f"policy {name!r} gave actions of shape {chunk.shape}, expected {expected} with T_a >= 1 for "
            f"{count} observations. Was the policy trained on another task?"
        )
    if not (finite := np.isfinite(chunk)).all():
        bad = int((~finite).sum())
        raise ConfigError(
            f"policy {name!r} gave {bad} NaN or infinite of {finite.size} action values, expected finite "
            f"{expected}. Its weights or normalisation are damaged: train or build it again."
        )
    novelty = None if given.novelty is None else np.asarray(given.novelty, np.float32)
    if novelty is not None and (novelty.shape != (count,) or not np.isfinite(novelty).all()):
        raise ConfigError(
            f"policy {name!r} gave novelty scores {novelty.tolist()} of shape {novelty.shape}, expected "
            f"({count},) finite numbers."
        )
    return replace(given, chunk=chunk, novelty=novelty)
