"""The CLASS objective: soft InfoNCE with positives weighted by action similarity (paper section 4.2, eq. 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from classact.errors import ConfigError, choose

REDUCTIONS = ("anchors", "batch")
PAIRS = ("all", "cross-episode")


@dataclass(frozen=True)
class SoftInfoNCEConfig:
    """Settings of the objective.

    Attributes:
        temperature: tau (table 4: 0.05).
        reduction: "anchors": mean over the anchors that have a positive (released code); "batch": 1 / B (eq. 1). The
            two differ by the share of anchors with a positive, that is, by a factor on the learning rate.
        pairs: "all" (the paper), or "cross-episode": pairs of one episode are neither positives nor negatives, so that
            what is constant within an episode (its colours, its camera) cannot help to tell pairs apart.
    """

    temperature: float = 0.05
    reduction: str = "anchors"
    pairs: str = "all"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"expected a temperature above 0 (the paper uses 0.05), got {self.temperature}.")
        if self.reduction not in REDUCTIONS:
            raise ConfigError(choose("reduction", self.reduction, REDUCTIONS))
        if self.pairs not in PAIRS:
            raise ConfigError(choose("pairs", self.pairs, PAIRS))


def soft_infonce(
    z: Tensor, w: Tensor, *, temperature: float = 0.05, reduction: str = "anchors", ignore: Tensor | None = None
) -> Tensor:
    """L_CL of eq. (1).

    Args:
        z: (B, F) features; L2-normalised here. Computed in float32, or in float64 if z is.
        w: (B, B) soft positive weights >= 0; the diagonal is not read.
        temperature: tau > 0.
        reduction: see :class:`SoftInfoNCEConfig`.
        ignore: (B, B) bool, pairs left out of numerator and denominator.

    Returns:
        Scalar; zero (with zero gradient) where no anchor has a positive.

    Raises:
        ConfigError: unknown reduction, temperature not above 0, or shapes that do not fit.
    """
    SoftInfoNCEConfig(temperature, reduction)
    for name, matrix in (("w", w), ("ignore", ignore)):
        if matrix is not None and matrix.shape != (len(z), len(z)):
            raise ConfigError(
                f"expected {name} of shape {(len(z), len(z))} for {len(z)} features, got {tuple(matrix.shape)}."
            )
    out = torch.eye(len(z), dtype=torch.bool, device=z.device)
    if ignore is not None:
        out = out | ignore
    w = w.masked_fill(out, 0.0)
    z = torch.nn.functional.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1)
    S = (z @ z.T / temperature).masked_fill(out, -torch.inf)
    # An anchor with every pair left out has an empty softmax; its weights are zero, so any finite value will do.
    S = torch.where(out.all(dim=1, keepdim=True), torch.zeros_like(S), S)
    log_p = torch.log_softmax(S, dim=1).masked_fill(out, 0.0)
    total = w.sum(dim=1)
    has_positive = total > 1e-6
    per_anchor = -(w * log_p).sum(dim=1) / total.clamp_min(1e-6)
    per_anchor = torch.where(has_positive, per_anchor, torch.zeros_like(per_anchor))
    count = has_positive.sum().clamp_min(1) if reduction == "anchors" else len(z)
    loss: Tensor = per_anchor.sum() / count
    return loss
