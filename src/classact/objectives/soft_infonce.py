"""The CLASS objective: soft InfoNCE with positives weighted by action similarity (paper section 4.2, eq. 1)."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from classact.data.copies import first_copies
from classact.data.types import IntArray
from classact.errors import ConfigError
from classact.objectives.base import Loss, Material, Objective
from classact.objectives.config import TAU_RANGE, SoftInfoNCEConfig

TAU_SCALE = 0.3
"""log tau per unit of its parameter; its steps shrink with the square. LARS gives scalars plain momentum at its full
rate of 0.5, with which log tau itself would leave its range within the warm-up."""

LEAST = 1e-6
"""Sum of weights above which an anchor has a positive."""


def soft_infonce(
    z: Tensor,
    w: Tensor,
    *,
    temperature: float | Tensor = 0.05,
    reduction: Literal["anchors", "batch"] = "anchors",
    ignore: Tensor | None = None,
    keys: Tensor | None = None,
) -> Tensor:
    """L_CL of eq. (1); zero (with zero gradient) where no anchor has a positive.

    Args:
        z: (B, F) features; L2-normalised here. Computed in float32, or in float64 if z is.
        w: (B, C) soft positive weights >= 0; the diagonal is not read.
        temperature: tau > 0.
        reduction: see :class:`SoftInfoNCEConfig`.
        ignore: (B, C) bool, pairs left out of numerator and denominator.
        keys: (C, F) that the anchors are compared with; the first B rows are z. None: z alone, C = B.
    """
    SoftInfoNCEConfig(temperature=0.05 if isinstance(temperature, Tensor) else temperature, reduction=reduction)
    count = len(z) if keys is None else len(keys)
    for name, matrix in (("w", w), ("ignore", ignore)):
        if matrix is not None and matrix.shape != (len(z), count):
            raise ConfigError(
                f"expected {name} of shape {(len(z), count)} for {len(z)} features"
                f"{'' if keys is None else f' and {count} keys'}, got {tuple(matrix.shape)}."
            )
    w, out = _counted(w, ignore)
    z = torch.nn.functional.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1)
    others = z if keys is None else torch.nn.functional.normalize(keys.to(z.dtype), dim=1)
    S = (z @ others.T / temperature).masked_fill(out, -torch.inf)
    # An anchor without any pair has an empty softmax; its weights are zero, so any finite value will do.
    S = torch.where(out.all(dim=1, keepdim=True), torch.zeros_like(S), S)
    log_p = torch.log_softmax(S, dim=1).masked_fill(out, 0.0)
    total = w.sum(dim=1)
    return _mean(-(w * log_p).sum(dim=1) / total.clamp_min(LEAST), total, reduction)


@torch.no_grad()
def weight_entropy(
    w: Tensor, *, reduction: Literal["anchors", "batch"] = "anchors", ignore: Tensor | None = None
) -> Tensor:
    """Mean entropy in nats of q_ij = w_ij / sum_j w_ij, the constant of Proposition 1: L_CL = D_KL(Q || P) + entropy.

    Arguments as of :func:`soft_infonce`.
    """
    w, _ = _counted(w.double(), ignore)
    total = w.sum(dim=1)
    return _mean(torch.special.entr(w / total.clamp_min(LEAST)[:, None]).sum(dim=1), total, reduction)


def _counted(w: Tensor, ignore: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B, C) weights with those of pairs that do not count at zero, and which pairs these are."""
    out = torch.eye(*w.shape, dtype=torch.bool, device=w.device)
    if ignore is not None:
        out = out | ignore
    return w.masked_fill(out, 0.0), out


def _mean(per_anchor: Tensor, total: Tensor, reduction: Literal["anchors", "batch"]) -> Tensor:
    """Sum of (B,) values over the anchors with a positive weight in ``total`` (B,), divided by their number or by B."""
    has_positive = total > LEAST
    divisor = has_positive.sum().clamp_min(1) if reduction == "anchors" else len(total)
    mean: Tensor = torch.where(has_positive, per_anchor, torch.zeros_like(per_anchor)).sum() / divisor
    return mean


class SoftInfoNCE(Objective):
    """CLASS, with its ablations and extensions as settings."""

    queue_z: Tensor
    queue_steps: Tensor

    def __init__(self, config: SoftInfoNCEConfig, material: Material) -> None:
        super().__init__()
        if material.weights is None:
            raise ConfigError("objective 'class' learns from action similarity, and none was measured.")
        self.config, self.weights = config, material.weights
        episodes = material.episodes()
        if config.pairs == "cross-episode":
            episodes = first_copies(material.actions.cpu().numpy(), material.episode_ends)[episodes]  # copies are one
        self._episodes = torch.from_numpy(episodes).to(material.device)
        if config.learned_temperature:
            self.scaled_log_tau = nn.Parameter(torch.tensor(math.log(config.temperature) / TAU_SCALE))
        if config.queue:
            # Saved with checkpoints, so that a resumed training contrasts with the same. -1: not filled yet.
            self.register_buffer("queue_z", torch.zeros(config.queue, material.feature_dim))
            self.register_buffer("queue_steps", torch.full((config.queue,), -1))
            # Of the module that is loaded, which may be a copy of this one.
            self.register_load_state_dict_post_hook(lambda made, _: made._read_queue())  # type: ignore[no-untyped-call]
            self._read_queue()
        self.to(material.device)

    def _read_queue(self) -> None:
        # Weights are computed from steps on the host, without synchronising with a GPU.
        steps = self.queue_steps.cpu().numpy()
        self._queued: IntArray = steps[steps >= 0]

    def temperature(self) -> float | Tensor:
        """tau, with a gradient where it is learned."""
        if not self.config.learned_temperature:
            return self.config.temperature
        return (TAU_SCALE * self.scaled_log_tau).exp()

    def loss(self, z: Tensor, rows: IntArray, *, target: Tensor | None, generator: torch.Generator) -> Loss:
        """Soft InfoNCE over all views of the anchors' images, and over the queue.

        Logs positives per anchor and the share of anchors with any, both within the batch, the divergence D_KL(Q || P)
        of Proposition 1, which is the loss without what no representation could change, and a learned tau.
        """
        config, views = self.config, self.config.views
        anchors = rows[:, 0]
        features = z[:, 0].flatten(0, 1)  # (B R, F), the views of an image side by side
        filled = len(self._queued) if config.queue else 0
        steps = np.concatenate([anchors, self._queued]) if filled else anchors
        weights = self.weights(steps, len(anchors))
        if config.weighting == "hard":
            weights = (weights > 0).to(weights.dtype)
        ignore = None
        if config.pairs == "cross-episode":
            episodes = self._episodes[torch.from_numpy(steps).to(z.device)]
            ignore = episodes[: len(anchors), None] == episodes[None, :]
            weights = weights.masked_fill(ignore, 0.0)
        positives = (weights[:, : len(anchors)] > 0).sum(dim=1).double()
        stats = {"positives": positives.mean(), "anchors": (positives > 0).double().mean()}
        keys = None
        if views > 1:
            weights, ignore = self._spread(weights, ignore, len(anchors))
        if filled:
            keys = torch.cat([features, self.queue_z[:filled]])
        tau = self.temperature()
        loss = soft_infonce(features, weights, temperature=tau, reduction=config.reduction, ignore=ignore, keys=keys)
        stats["kl"] = loss.detach().double() - weight_entropy(weights, reduction=config.reduction, ignore=ignore)
        if config.queue:
            self._push(z[:, 0, 0].detach(), anchors, generator)
        if config.learned_temperature:
            stats["tau"] = torch.as_tensor(tau).detach()
        return loss, stats

    def _spread(self, weights: Tensor, ignore: Tensor | None, count: int) -> tuple[Tensor, Tensor | None]:
        """Weights of images -> weights of their views: (B, C) -> (B R, B R + queue)."""
        R = self.config.views
        own = torch.eye(count, weights.shape[1], dtype=torch.bool, device=weights.device)
        weights = weights.masked_fill(own, 1.0)
        # Other views of the same image are positives whatever their episode; a view and itself are excluded later.
        ignore = None if ignore is None else ignore & ~own

        def spread(matrix: Tensor) -> Tensor:
            within = matrix[:, :count].repeat_interleave(R, dim=1)
            return torch.cat([within, matrix[:, count:]], dim=1).repeat_interleave(R, dim=0)

        return spread(weights), None if ignore is None else spread(ignore)

    @torch.no_grad()
    def after_step(self) -> None:
        """A learned temperature stays within its range."""
        if self.config.learned_temperature:
            # Clamping at use would leave no gradient beyond a limit, and no way back.
            low, high = TAU_RANGE
            self.scaled_log_tau.clamp_(math.log(low) / TAU_SCALE, math.log(high) / TAU_SCALE)

    @torch.no_grad()
    def _push(self, z: Tensor, anchors: IntArray, generator: torch.Generator) -> None:
        """Newest first; what no longer fits is dropped."""
        # Batches are in data order: without a shuffle the first episodes would never stay.
        order = torch.randperm(len(z), generator=generator, device=generator.device).to(z.device)
        size = len(self.queue_z)
        self.queue_z = torch.cat([z[order], self.queue_z])[:size]
        steps = torch.from_numpy(anchors).to(z.device)[order]
        self.queue_steps = torch.cat([steps, self.queue_steps])[:size]
        self._queued = np.concatenate([anchors[order.cpu().numpy()], self._queued])[:size]
