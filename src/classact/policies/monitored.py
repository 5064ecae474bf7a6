"""Any policy beside a bank of demonstrations: its reasons, the novelty of what is seen, and a way out of circles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from classact.errors import ConfigError
from classact.models.encoders.image import ImageEncoder
from classact.policies.base import Decision, Memory, Policy, PolicySpec, Timestep, as_histories, decide
from classact.policies.folder import read_metadata, write_policy
from classact.policies.latents import ImageLatents, unit
from classact.policies.parametric import ParametricPolicy
from classact.policies.published import Published
from classact.policies.retrieval import RetrievalPolicy
from classact.policies.speed import check_reach
from classact.utils.codec import to_json

FORMAT = "classact-monitored-1"
PARTS = ("head", "monitor")
"""Folders of a saved one; not "policy", by which the folder of a run is told from that of a policy."""


@dataclass(frozen=True)
class MonitoredMetadata:
    """policy.json of a monitored policy, whose parts are folders of their own."""

    format: str


def monitored(policy: Policy, monitor: RetrievalPolicy | None) -> Policy:
    """The policy, beside a monitor if there is one that would do anything."""
    useful = monitor is not None and (monitor.calibration is not None or monitor.spec.remembers)
    return MonitoredPolicy(policy, monitor) if monitor is not None and useful else policy


def _sees_alike(policy: ParametricPolicy, monitor: RetrievalPolicy) -> bool:
    """Whether one pass of an encoder serves both: a frozen one, that the head was trained on."""
    latents = monitor.latents
    if not isinstance(latents, ImageLatents) or policy.config.history > 1:
        return False
    theirs = (latents.encoder.config, to_json(latents.lowdim), latents.bf16)
    if theirs != (policy.encoder.config, to_json(policy.lowdim), policy.config.bf16):
        return False
    own = latents.encoder.state_dict()
    return all(torch.equal(value.cpu(), own[name].cpu()) for name, value in policy.encoder.state_dict().items())


class MonitoredPolicy(Published):
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
        self._shared = policy if isinstance(policy, ParametricPolicy) and _sees_alike(policy, monitor) else None
        own, bank = policy.spec.schema, monitor.spec.schema
        if difference := "" if own is None or bank is None else own.difference(bank):
            raise ConfigError(
                f"policy {policy.spec.name!r} was trained on other observations or actions than the bank of the "
                f"monitoring policy holds: {difference}. Watch it with a bank of its own task."
            )
        if remembers:
            where = f"policy {policy.spec.name!r}, on the bank of the monitoring policy: "
            check_reach(policy.spec.chunk_length, policy.spec.speed, monitor.config.horizon, where)

    @property
    def spec(self) -> PolicySpec:
        """The acting policy's, with the views of both and the monitor's alarm level and memory."""
        own, monitor = self.policy.spec, self.monitor.spec
        cameras = tuple(dict.fromkeys((*own.cameras, *monitor.cameras)))
        # Where an episode returns to an observation, the monitor acts.
        acting = {**own.acting, "monitor": dict(monitor.acting)} if monitor.remembers else own.acting
        return replace(own, cameras=cameras, alarm=monitor.alarm, remembers=monitor.remembers, acting=acting)

    @property
    def image_encoder(self) -> ImageEncoder | None:
        """The acting policy's."""
        return self.policy.image_encoder if isinstance(self.policy, Published) else None

    def save(self, folder: Path) -> None:
        """Write both policies, each with its checksums, as one folder.

        Raises:
            ConfigError: the acting policy cannot be saved.
        """
        acting = self.policy
        if not isinstance(acting, Published):
            raise ConfigError(f"policy {acting.spec.name!r} cannot be saved: it is none of classact's own kinds.")

        def fill(path: Path) -> None:
            for part, one in zip(PARTS, (acting, self.monitor), strict=True):
                one.save(path / part)

        write_policy(Path(folder), MonitoredMetadata(FORMAT), fill)

    @staticmethod
    def load(folder: str | Path, *, device: str = "cpu", **overrides: Any) -> MonitoredPolicy:
        """Read a folder written by :meth:`save`; ``overrides`` are of the acting policy.

        Raises:
            CheckpointError: damaged or incomplete, or another policy.
            ConfigError: unknown overrides, values out of range, or a device that is not there.
        """
        path = Path(folder)
        read_metadata(MonitoredMetadata, path, FORMAT)
        acting, monitor = (path / part for part in PARTS)
        head = ParametricPolicy.load(acting, device=device, **overrides)
        return MonitoredPolicy(head, RetrievalPolicy.load(monitor, device=device))

    def prepare(self, batch: int = 1) -> None:
        """Prepare both."""
        self.policy.prepare(batch)
        self.monitor.prepare(batch)

    def decide(self, observations: Sequence[Timestep], memory: Memory = ()) -> Decision:
        """The policy's chunk, or a demonstrated one; the rest as the monitor has it of each newest observation."""
        histories = as_histories(observations, self.policy.spec.history)
        if self._shared is not None:
            features = self._shared.features([one for (one,) in histories])
            seen = self.monitor.decide_from(unit(features), memory)
            chunk = self._shared.decide_from(features, histories).chunk
        else:
            seen = self.monitor.decide([history[-1] for history in histories], memory)
            chunk = decide(self.policy, observations).chunk
        if seen.visits is not None and seen.visits.any():
            assert seen.neighbors is not None
            again = seen.visits > 0
            chunk = chunk.copy()
            chunk[again] = self.monitor.followed(seen.neighbors, chunk.shape[1], self.spec.speed)[again]
        return replace(seen, chunk=chunk)
