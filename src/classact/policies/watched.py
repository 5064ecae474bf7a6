"""Any policy, watched by a bank of demonstrations: it acts, and retrieval says how new what it sees is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from classact.errors import ConfigError
from classact.policies.base import Decision, Moment, Policy, PolicySpec, as_histories, decide
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
        own, bank = policy.spec.schema, watcher.spec.schema
        if difference := "" if own is None or bank is None else own.difference(bank):
            raise ConfigError(
                f"policy {policy.spec.name!r} was trained on other observations or actions than the bank of the "
                f"watching policy holds: {difference}. Watch it with a bank of its own task."
            )

    @property
    def spec(self) -> PolicySpec:
        """Of the policy that acts, with the views that either of both reads and the watcher's alarm level."""
        own, watcher = self.policy.spec, self.watcher.spec
        return replace(own, cameras=tuple(dict.fromkeys((*own.cameras, *watcher.cameras))), alarm=watcher.alarm)

    def prepare(self, batch: int = 1) -> None:
        """Prepare both."""
        self.policy.prepare(batch)
        self.watcher.prepare(batch)

    def decide(self, observations: Sequence[Moment]) -> Decision:
        """The policy's chunk; the novelty of the newest observation of each environment."""
        newest = [history[-1] for history in as_histories(observations, self.policy.spec.history)]
        z = self.watcher.latents.observations(newest)
        return Decision(decide(self.policy, observations).chunk, self.watcher.novelty(z))
