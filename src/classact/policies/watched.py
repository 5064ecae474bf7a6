"""Any policy, watched by a bank of demonstrations: it acts, and retrieval says how new what it sees is."""

from __future__ import annotations

from collections.abc import Sequence

from classact.data.schema import Schema
from classact.data.types import FloatArray
from classact.errors import ConfigError
from classact.policies.base import Decision, Moment, Policy, as_histories, decide, history_length
from classact.policies.retrieval import RetrievalPolicy


def watched(policy: Policy, watcher: RetrievalPolicy | None) -> Policy:
    """The policy, watched where there is a calibrated watcher.

    Raises:
        ConfigError: as :class:`WatchedPolicy`.
    """
    return policy if watcher is None or watcher.calibration is None else WatchedPolicy(policy, watcher)


class WatchedPolicy:
    """A policy's chunks with the novelty scores of a retrieval policy's bank.

    Args:
        policy: what acts.
        watcher: a calibrated retrieval policy of the same observations; its chunks are not used.

    Raises:
        ConfigError: the watcher has no calibrated score, or was made of other observations or actions.
    """

    def __init__(self, policy: Policy, watcher: RetrievalPolicy) -> None:
        if watcher.calibration is None:
            raise ConfigError("the watching policy has no calibrated novelty score: call its calibrate first.")
        self.policy, self.watcher = policy, watcher
        self.history = history_length(policy)
        self.schema: Schema | None = getattr(policy, "schema", None)
        difference = "" if self.schema is None or watcher.schema is None else self.schema.difference(watcher.schema)
        if difference:
            raise ConfigError(
                f"policy {policy.name!r} was trained on other observations or actions than the bank of the watching "
                f"policy holds: {difference}. Watch it with a bank of its own task."
            )
        self.action_space = getattr(policy, "action_space", None)

    @property
    def name(self) -> str:
        """That of the policy that acts."""
        return self.policy.name

    @property
    def needs_images(self) -> bool:
        """Whether either of both does."""
        return self.policy.needs_images or self.watcher.needs_images

    @property
    def cameras(self) -> tuple[str, ...] | None:
        """The views that either of both reads; None where the acting policy does not say."""
        own = getattr(self.policy, "cameras", None if self.policy.needs_images else ())
        return None if own is None else tuple(dict.fromkeys((*own, *self.watcher.cameras)))

    @property
    def chunk_length(self) -> int:
        """T_a of the policy that acts."""
        return self.policy.chunk_length

    @property
    def alarm(self) -> float | None:
        """The level above which what is seen counts as unknown."""
        return self.watcher.alarm

    def prepare(self, batch: int = 1) -> None:
        """Prepare both for a batch size, where they can be."""
        if (own := getattr(self.policy, "prepare", None)) is not None:
            own(batch)
        self.watcher.prepare(batch)

    def decide(self, observations: Sequence[Moment]) -> Decision:
        """The policy's chunk; the novelty of the newest observation of each environment."""
        newest = [history[-1] for history in as_histories(observations, self.history)]
        z = self.watcher.latents.observations(newest)
        return Decision(decide(self.policy, observations).chunk, self.watcher.novelty(z))

    def act(self, observations: Sequence[Moment]) -> FloatArray:
        """(B, T_a, D) unnormalised actions."""
        return self.decide(observations).chunk
