"""DynaMo: in-domain dynamics pre-training (Cui et al. 2024, arXiv 2409.12192; jeffacce/dynamo_ssl).

An inverse model gives each frame of a context a small latent, z_t = inverse(s_1 .. s_t). A forward model predicts the
features s_{t+1} from (s_1, z_2) .. (s_t, z_{t+1}). So z_{t+1} has seen s_{t+1}, and must say in a few numbers what
changed. No action is read.

Where the paper and the released code differ, or the paper is silent:

- Covariance penalty: the code averages the squared off-diagonal entries, the paper writes (1/d) sum, d - 1 times as
  much. ``covariance``; default the code.
- Target: the code predicts stop-gradient features on Push-T, LIBERO and Kitchen, those of an averaged encoder on
  Block-Push and the xArm. ``target``; default stop-gradient. With an averaged encoder, the code raises the decay from
  0.99 to 1, and takes z from an averaged inverse model without gradient, so that the inverse model keeps its initial
  weights. Here the decay is constant, and both models are trained.
- Ends of episodes: the code leaves out contexts that exceed their episode. Here every step is an anchor; beyond the end
  the last step is repeated, and repeated frames enter neither term.
- The features enter both models and the loss without projector or normalisation (code).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from classact.data.types import IntArray
from classact.errors import ConfigError
from classact.models.weights import seeded
from classact.objectives.base import Loss, Material, Objective, masked_mean
from classact.objectives.causal import CausalTransformer
from classact.objectives.config import DynaMoConfig


def dynamics_loss(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """1 - cos(predicted, target), the mean over valid transitions; zero (with zero gradient) where there are none.

    ``predicted`` and ``target`` (B, T - 1, F), the latter without gradient, are the next frame's features; ``valid``
    (B, T - 1) says which transitions exist.
    """
    if target.shape != predicted.shape or valid.shape != predicted.shape[:-1]:
        raise ConfigError(
            f"expected predictions and targets of shape (B, T - 1, F) and a mask of shape (B, T - 1), got "
            f"{tuple(predicted.shape)}, {tuple(target.shape)} and {tuple(valid.shape)}."
        )
    cosine = torch.nn.functional.cosine_similarity(predicted, target.detach(), dim=-1)
    return masked_mean(1 - cosine, valid)


def covariance_penalty(s: Tensor, valid: Tensor, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    """Squared off-diagonal entries of the features' covariance (as in VICReg, arXiv 2105.04906), against collapse.

    Over the ``valid`` (n,) rows of ``s`` (n, F); zero for fewer than two of them, or one dimension. ``reduction`` is
    ``covariance`` of :class:`DynaMoConfig`.
    """
    if s.ndim != 2 or valid.shape != s.shape[:1]:
        raise ConfigError(
            f"expected features of shape (n, F) and a mask of shape (n,), got {tuple(s.shape)} and "
            f"{tuple(valid.shape)}."
        )
    out, count, F = ~valid[:, None], valid.sum(), s.shape[1]
    mean = s.masked_fill(out, 0.0).sum(dim=0) / count.clamp_min(1)
    centred = (s - mean).masked_fill(out, 0.0)
    C = centred.T @ centred / (count - 1).clamp_min(1)
    total = C.masked_fill(torch.eye(F, dtype=torch.bool, device=s.device), 0.0).square().sum()
    penalty: Tensor = total / (F if reduction == "sum" else max(F * (F - 1), 1))
    return penalty


class DynaMo(Objective):
    """Contexts of consecutive steps; each next frame's features are predicted from those before and a latent."""

    def __init__(self, config: DynaMoConfig, material: Material) -> None:
        super().__init__()
        material.check_episodes(2, "a prediction of the next step")
        self.config, self.material = config, material
        F, Z, T = material.feature_dim, config.latent_dim, config.context
        sizes = {"layers": config.layers, "heads": config.heads, "width": config.width}
        with seeded(material.seed):
            self.inverse_model = CausalTransformer(F, Z, length=T, **sizes)
            self.forward_model = CausalTransformer(F + Z, F, length=T - 1, **sizes)
        self.to(material.device)

    def draw(self, anchors: IntArray, rng: np.random.Generator) -> IntArray:
        """The T - 1 steps after each anchor; beyond the end of its episode the last step is repeated."""
        _, ends = self.material.bounds(anchors)
        return np.minimum(anchors[:, None] + np.arange(1, self.config.context), ends[:, None] - 1)

    def loss(self, z: Tensor, rows: IntArray, *, target: Tensor | None, generator: torch.Generator) -> Loss:
        """1 - cos over the transitions that exist, and the covariance penalty over all frames that are not repeated."""
        if target is None and self.config.target == "ema":
            raise ConfigError("target 'ema' needs the features of an averaged encoder, got none.")
        s = z[:, :, 0]
        # Frames that are not repeated; repeated ones come last, and nothing before sees them.
        new = torch.from_numpy(np.diff(rows, axis=1, prepend=-1) > 0).to(s.device)
        latent = self.inverse_model(s)
        predicted = self.forward_model(torch.cat([s[:, :-1], latent[:, 1:]], dim=-1))
        wanted = s if self.config.target == "stop-gradient" or target is None else target[:, :, 0]
        dynamics = dynamics_loss(predicted, wanted[:, 1:], new[:, 1:])
        covariance = covariance_penalty(s.flatten(0, 1), new.flatten(), self.config.covariance)
        loss = dynamics + self.config.covariance_weight * covariance
        return loss, {"dynamics": dynamics.detach(), "covariance": covariance.detach()}
