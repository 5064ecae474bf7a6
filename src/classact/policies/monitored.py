"""Any policy, monitored by a bank of demonstrations that scores the novelty of observations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from classact.errors import ConfigError
from classact.policies.base import Decision, Policy, PolicySpec, Timestep, as_histories, decide
from classact.policies.retrieval import RetrievalPolicy


def monitored(policy: Policy, monitor: RetrievalPolicy | None) -> Policy:
    """The policy, monitored if there is a calibrated monitor."""
    return policy if monitor is None or monitor.calibration is None else MonitoredPolicy(policy, monitor)


class MonitoredPolicy:
    """A policy's chunks with the novelty scores of a retrieval policy's bank.

    ``monitor`` is a calibrated retrieval policy of the same observations and actions (else a ConfigError), whose chunks
    are not used.
    """

    def __init__(self, policy: Policy, monitor: RetrievalPolicy) -> None:
        if monitor.calibration is None:
            raise ConfigError("the monitoring policy has no calibrated novelty score: call its calibrate first.")
        self.policy, self.monitor = policy, monitor
        own, bank = policy.spec.schema, monitor.spec.schema
        if difference := "" if own is None or bank is None else own.difference(bank):
            raise ConfigError(
                f"policy {policy.spec.name!r} was trained on other observations or actions than the bank of the "
                f"monitoring policy holds: {difference}. Watch it with a bank of its own task."
            )

    @property
    def spec(self) -> PolicySpec:
        """The acting policy's, with the views of both and the monitor's alarm level."""
        own, monitor = self.policy.spec, self.monitor.spec
        return replace(own, cameras=tuple(dict.fromkeys((*own.cameras, *monitor.cameras))), alarm=monitor.alarm)

    def prepare(self, batch: int = 1) -> None:
        """Prepare both."""
        self.policy.prepare(batch)
        self.monitor.prepare(batch)

    def decide(self, observations: Sequence[Timestep]) -> Decision:
        """The policy's chunk; the novelty of the newest observation of each environment."""
        newest = [history[-1] for history in as_histories(observations, self.policy.spec.history)]
        z = self.monitor.latents.observations(newest)
        return Decision(decide(self.policy, observations).chunk, self.monitor.novelty(z))
