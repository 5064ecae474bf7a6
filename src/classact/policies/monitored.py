"""Any policy beside a bank of demonstrations: its reasons, the novelty of what is seen, and a way out of circles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from classact.errors import ConfigError
from classact.policies.base import Decision, Memory, Policy, PolicySpec, Timestep, as_histories, decide
from classact.policies.retrieval import RetrievalPolicy


def monitored(policy: Policy, monitor: RetrievalPolicy | None) -> Policy:
    """The policy, beside a monitor if there is one that would do anything."""
    useful = monitor is not None and (monitor.calibration is not None or monitor.spec.remembers)
    return MonitoredPolicy(policy, monitor) if monitor is not None and useful else policy


class MonitoredPolicy:
    """A policy's chunks, with the neighbours and the novelty scores of a retrieval policy's bank.

    Where an episode returns to an observation (``revisit`` of the monitor's settings), the demonstration is followed
    that the monitor would follow. Elsewhere its chunks are not used.

    Args:
        policy: acts.
        monitor: a retrieval policy of the same observations and actions, calibrated or one that remembers (else a
            ConfigError).
    """

    def __init__(self, policy: Policy, monitor: RetrievalPolicy) -> None:
        remembers = monitor.spec.remembers
        if monitor.calibration is None and not remembers:
            raise ConfigError("the monitoring policy has no calibrated novelty score: call its calibrate first.")
        self.policy, self.monitor = policy, monitor
        own, bank = policy.spec.schema, monitor.spec.schema
        if difference := "" if own is None or bank is None else own.difference(bank):
            raise ConfigError(
                f"policy {policy.spec.name!r} was trained on other observations or actions than the bank of the "
                f"monitoring policy holds: {difference}. Watch it with a bank of its own task."
            )
        if remembers and (most := monitor.config.horizon) < policy.spec.chunk_length:
            raise ConfigError(
                f"policy {policy.spec.name!r} executes {policy.spec.chunk_length} actions of a chunk (T_a), the "
                f"monitoring policy's demonstrations are followed for at most its horizon of {most}. Make a bank of a "
                f"longer horizon, or switch its revisit off."
            )

    @property
    def spec(self) -> PolicySpec:
        """The acting policy's, with the views of both and the monitor's alarm level and memory."""
        own, monitor = self.policy.spec, self.monitor.spec
        cameras = tuple(dict.fromkeys((*own.cameras, *monitor.cameras)))
        return replace(own, cameras=cameras, alarm=monitor.alarm, remembers=monitor.remembers)

    def prepare(self, batch: int = 1) -> None:
        """Prepare both."""
        self.policy.prepare(batch)
        self.monitor.prepare(batch)

    def decide(self, observations: Sequence[Timestep], memory: Memory = ()) -> Decision:
        """The policy's chunk, or a demonstrated one; the rest as the monitor has it of each newest observation."""
        newest = [history[-1] for history in as_histories(observations, self.policy.spec.history)]
        seen = self.monitor.decide(newest, memory)
        chunk = decide(self.policy, observations).chunk
        if seen.visits is not None and seen.visits.any():
            assert seen.neighbors is not None
            again = seen.visits > 0
            chunk = chunk.copy()
            chunk[again] = self.monitor.followed(seen.neighbors, chunk.shape[1])[again]
        return replace(seen, chunk=chunk)
