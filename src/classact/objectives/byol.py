"""Bootstrap Your Own Latent (Grill et al., arXiv 2006.07733), the representation learning of VINN (arXiv 2112.01511).

What CLASS's paper (section 5.2, C.1) calls VINN is BYOL of the repository lucidrains/byol-pytorch, followed here as
before simplicial embeddings became its default in 2026.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from classact.data.types import IntArray
from classact.errors import ConfigError
from classact.models.average import update_ema
from classact.models.weights import seeded
from classact.objectives.base import Loss, Material, Objective
from classact.objectives.config import BYOLConfig


def byol_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean over the images of 2 - 2 cos(q_1, t_2) + 2 - 2 cos(q_2, t_1), within 0..8.

    ``predictions`` (B, 2, P) are q of the two views, in float32 or float64; ``targets`` (B, 2, P) are t of the two
    views by the target network, without gradient.
    """
    if predictions.ndim != 3 or predictions.shape[1] != 2 or predictions.shape != targets.shape:
        raise ConfigError(
            f"expected predictions and targets of one shape (B, 2, P), got {tuple(predictions.shape)} and "
            f"{tuple(targets.shape)}."
        )
    dtype = torch.promote_types(predictions.dtype, torch.float32)
    q = torch.nn.functional.normalize(predictions.to(dtype), dim=2)
    t = torch.nn.functional.normalize(targets.detach().to(dtype), dim=2).flip(1)
    return (2 - 2 * (q * t).sum(dim=2)).sum(dim=1).mean()


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, BatchNorm, ReLU, Linear: projector and predictor alike."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class BYOL(Objective):
    """Predict, from one view of an image, what the target network makes of the other.

    Both views go through the networks as one batch, so BatchNorm's statistics are of both (the repository, since 2023).
    The target projector runs in training mode, too, with statistics of its batch; only its parameters follow.
    """

    def __init__(self, config: BYOLConfig, material: Material) -> None:
        super().__init__()
        self.config = config
        F, H, P = material.feature_dim, config.hidden, config.projection
        with seeded(material.seed):
            self.projector, self.predictor = perceptron(F, H, P), perceptron(P, H, P)
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.to(material.device)

    def loss(self, z: Tensor, rows: IntArray, *, target: Tensor | None, generator: torch.Generator) -> Loss:
        """Logs the spread of the targets' directions: 0 where all collapsed into one, at most 1."""
        if target is None or target.shape != z.shape or z.shape[1:3] != (1, 2):
            got = "none" if target is None else f"{tuple(target.shape)}"
            raise ConfigError(
                f"byol: expected features of 2 views by the encoder and by the target network, (B, 1, 2, F) each, got "
                f"{tuple(z.shape)} and {got}."
            )
        count = len(z)
        predictions = self.predictor(self.projector(z.flatten(0, 2)))  # (2 B, P)
        with torch.no_grad():
            targets = self.target_projector(target.flatten(0, 2))
        loss = byol_loss(predictions.view(count, 2, -1), targets.view(count, 2, -1))
        directions = torch.nn.functional.normalize(targets, dim=1)
        return loss, {"spread": 1 - directions.mean(dim=0).square().sum()}

    def after_step(self) -> None:
        """The target projector follows."""
        update_ema(self.target_projector, self.projector, self.config.decay)
