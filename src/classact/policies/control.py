"""Closed-loop control: when a policy is called, and which of its proposed actions are executed.

*Receding horizon*: of each chunk of T_a actions only the first ``execute`` are executed before the next decision.
*Temporal ensembling* (ACT, arXiv 2304.13705, section IV-A): consecutive chunks then overlap, and the executed action is
the weighted mean of all actions proposed for its step, the i-th oldest weighted by exp(-m i).

:class:`Controller` steps B environments together, chunk by chunk, as an evaluation does. :class:`Runner` is one robot,
asked for one action at a time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from classact.data.actions import ActionSpace
from classact.data.types import FloatArray, Observation
from classact.errors import ConfigError, DataError
from classact.policies.base import Decision, Policy, Timestep, decide
from classact.policies.config import ControlConfig
from classact.policies.doubt import RETURN, DoubtAlarm

MEMORY = 1000
"""Latest decisions of an episode that a policy may remember: a robot's episode has no end."""


class Controller:
    """B environments controlled in lockstep. Holds their last T_o observations, the chunks that still count, the doubt
    (:mod:`classact.policies.doubt`) and, for a policy that remembers, the latents of their decisions.

    Args:
        policy: any policy.
        config: receding horizon and ensembling; None: as the policy says (``PolicySpec.control``), which executes whole
            chunks where nothing else was evaluated. Settings that do not suit the policy's T_a are a ConfigError.
        action_space: for ensembling: what the D dimensions mean, so that rotations are averaged as rotations; None
            takes the policy's.
    """

    def __init__(
        self, policy: Policy, config: ControlConfig | None = None, action_space: ActionSpace | None = None
    ) -> None:
        spec = policy.spec
        self.policy, self.config = policy, spec.control if config is None else config
        execute = self.config.execute
        self.action_space = spec.action_space if action_space is None else action_space
        self.history = spec.history
        self.config.check(spec.chunk_length, spec.name)
        # Decisions whose chunks would still be under way if they were executed whole.
        under_way = 1 if execute is None else math.ceil(spec.chunk_length / execute)
        self._chunks: deque[FloatArray] = deque(maxlen=1 if self.config.ensemble is None else under_way)
        self._seen: list[deque[Observation]] = []
        self._memory: list[deque[FloatArray]] = []
        # An observation within T_a steps of the last one is no return to it, however often is decided.
        self._recent = under_way - 1
        self._doubt = np.zeros(0)
        self._given = 0

    def reset(self, count: int = 1) -> None:
        """Start ``count`` episodes: forget all observations and proposals."""
        if count < 1:
            raise ConfigError(f"expected at least 1 environment, got {count}.")
        self._seen = [deque(maxlen=self.history) for _ in range(count)]
        self._memory = [deque(maxlen=MEMORY) for _ in range(count)]
        self._doubt = np.zeros(count)
        self._chunks.clear()
        self._given = 0

    def act(self, observations: Sequence[Sequence[Observation]]) -> Decision:
        """What to execute now: the policy's decision with, as its chunk, the (B, n, D) actions until the next call.

        Args:
            observations: per environment those since the last call, oldest first. At the first call of an episode that
                is one, which also stands for those before it; later those after each of the n last actions, of which
                all but the last T_o may be left out.

        Raises:
            DataError: another number of environments or steps, or observations that the policy refuses.
            ConfigError: unusable actions. After any error, the call may be repeated with other observations.
        """
        now = self._with(observations)
        timesteps: list[Timestep] = [list(seen) if self.history > 1 else seen[-1] for seen in now]
        memory = [np.asarray(list(kept)[: max(len(kept) - self._recent, 0)], np.float32) for kept in self._memory]
        decision = decide(self.policy, timesteps, memory)
        chunk, execute = decision.chunk, self.config.execute
        if execute is not None:
            spec = self.policy.spec
            if chunk.shape[1] != spec.chunk_length:
                raise ConfigError(
                    f"policy {spec.name!r} gave chunks of {chunk.shape[1]} actions, but its chunk_length says "
                    f"{spec.chunk_length}."
                )
            if self.config.ensemble is None:
                chunk = chunk[:, :execute]
            else:
                proposed = deque((*self._chunks, chunk), maxlen=self._chunks.maxlen)
                chunk = self._ensemble(proposed, execute, self.config.ensemble)
                self._chunks = proposed
        self._seen, self._given = now, chunk.shape[1]
        if decision.latents is not None:
            for kept, latents in zip(self._memory, decision.latents, strict=True):
                kept.append(latents)
        if decision.distance is None:
            return replace(decision, chunk=chunk)
        returned = 0 if decision.visits is None else RETURN * (decision.visits > 0)
        self._doubt = self._doubt + decision.distance + returned
        return replace(decision, chunk=chunk, doubt=self._doubt)

    def _with(self, observations: Sequence[Sequence[Observation]]) -> list[deque[Observation]]:
        """The last T_o observations of each environment with the new ones."""
        if len(observations) != len(self._seen):
            now = f"was reset for {len(self._seen)}" if self._seen else "was not reset yet"
            raise DataError(
                f"got observations of {len(observations)} environments, but the controller {now}. Call "
                f"reset({len(observations)}) where their episodes start."
            )
        least, most = (min(self.history, self._given), self._given) if self._given else (1, 1)
        for index, new in enumerate(observations):
            if isinstance(new, Observation) or not least <= len(new) <= most:
                found = "one that is not in a list" if isinstance(new, Observation) else str(len(new))
                expected = f"{least}" if least == most else f"{least} to {most}"
                since = f"after the {most} actions given last" if self._given else "at the start of its episode"
                raise DataError(
                    f"environment {index}: expected {expected} new observations {since} (T_o = {self.history}), got "
                    f"{found}."
                )
        return [
            deque((*seen, *new) if self._given else [new[0]] * self.history, maxlen=self.history)
            for seen, new in zip(self._seen, observations, strict=True)
        ]

    def _ensemble(self, kept: Sequence[FloatArray], execute: int, m: float) -> FloatArray:
        """(B, n, D) weighted means of what the kept chunks, oldest first, propose for the next n steps."""
        chunks, weights = aligned(np.stack(kept), execute, m)
        space = self.action_space
        if space is not None and space.has_rotations:
            # (K, n, B, D) -> (n, B, K, 1, D): one mean per step, because each step has its own weights.
            actions = np.ascontiguousarray(np.moveaxis(chunks, 0, 2)[..., None, :])
            each = np.broadcast_to(weights.T[:, None, :], actions.shape[:3])
            return np.moveaxis(space.average(actions, each)[..., 0, :], 0, 1)
        # Element by element in a fixed order: an environment's result does not depend on how many there are.
        mean = (weights[:, :, None, None] * chunks).sum(axis=0)
        return np.moveaxis(mean, 0, 1).astype(np.float32)


def aligned(chunks: FloatArray, execute: int, m: float) -> tuple[FloatArray, NDArray[np.float64]]:
    """The proposals (K, n, B, D) for the next n steps of (K, B, T, D) chunks, oldest first, decided n = ``execute``
    steps apart, and their (K, n) float64 weights, which sum to 1 over K.

    The i-th oldest of the proposals for a step weighs exp(-m i). A chunk that does not reach a step has its last action
    there, with weight 0.
    """
    count, length = len(chunks), chunks.shape[2]
    place = execute * np.arange(count - 1, -1, -1)[:, None] + np.arange(execute)  # (K, n) in each chunk
    reaches = place < length
    rank = np.maximum(np.cumsum(reaches, axis=0) - 1, 0)
    weights = np.where(reaches, np.exp(-m * rank), 0.0)
    weights /= weights.sum(axis=0)
    proposals = chunks[np.arange(count)[:, None], :, np.minimum(place, length - 1)]
    return proposals, weights


class Runner:
    """One robot, one action at a time: calls the policy only when its actions are used up.

    The policy is prepared when the runner is made, which on a GPU may take a minute. ``decision`` is the latest, with
    the (1, n, D) actions that were to be executed; None before the first. ``alarm``, calibrated for this policy (else a
    ConfigError), tells when an episode is :attr:`failing`.
    """

    def __init__(
        self,
        policy: Policy,
        config: ControlConfig | None = None,
        action_space: ActionSpace | None = None,
        *,
        alarm: DoubtAlarm | None = None,
    ) -> None:
        self.alarm = alarm
        self._controller = Controller(policy, config, action_space)
        if alarm is not None:
            alarm.check(replace(policy.spec, control=self._controller.config))
        policy.prepare(1)
        self.reset()

    def reset(self) -> None:
        """Start an episode."""
        self._controller.reset(1)
        self._new: deque[Observation] = deque(maxlen=self._controller.history)
        self._pending: deque[FloatArray] = deque()
        self.decision: Decision | None = None

    def step(self, observation: Observation) -> FloatArray:
        """The (D,) action for this control step; call it with the observation before every single one.

        Errors are those of :meth:`Controller.act`, and the step may be repeated with another observation. One taken
        between decisions is checked at the next; if it is refused there, :meth:`reset`.
        """
        new = deque((*self._new, observation), maxlen=self._new.maxlen)
        if not self._pending:
            self.decision = self._controller.act([list(new)])
            new.clear()
            self._pending.extend(self.decision.chunk[0])
        self._new = new
        return self._pending.popleft()

    @property
    def novelty(self) -> float | None:
        """Score of the latest decision in [0, 1]; None before the first, and where the policy has none."""
        return None if self.decision is None or self.decision.novelty is None else float(self.decision.novelty[0])

    @property
    def alarmed(self) -> bool:
        """Whether the latest decision's novelty exceeds the policy's alarm level: a reason to stop and hand over."""
        level = self._controller.policy.spec.alarm
        return level is not None and self.novelty is not None and self.novelty > level

    @property
    def failing(self) -> bool:
        """Whether the episode's doubt is beyond the alarm's level: hardly any that succeeds comes to this."""
        doubt = None if self.decision is None else self.decision.doubt
        return self.alarm is not None and doubt is not None and float(doubt[0]) > self.alarm.level
