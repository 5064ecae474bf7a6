"""Inverse dynamics: which actions lead from one step to a later one (Pathak et al. 2017, arXiv 1705.05363).

Like CLASS it learns from images and recorded actions, but from one pair of steps at a time: actions are regressed, not
compared between demonstrations. Not in the paper's tables; beside CLASS it tells what comparing adds.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from classact.data.types import IntArray
from classact.errors import ConfigError
from classact.models.weights import seeded
from classact.objectives.base import Loss, Material, Objective, masked_mean
from classact.objectives.config import InverseDynamicsConfig


def inverse_dynamics_loss(predicted: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error of (B, h, A) predicted and demonstrated actions a_t .. a_{t+h-1}, over the (B,) ``valid``
    rows, whose step t + h exists; zero (with zero gradient) without any.
    """
    if actions.shape != predicted.shape or predicted.ndim != 3 or valid.shape != predicted.shape[:1]:
        raise ConfigError(
            f"expected predictions and actions of shape (B, h, A) and a mask of shape (B,), got "
            f"{tuple(predicted.shape)}, {tuple(actions.shape)} and {tuple(valid.shape)}."
        )
    return masked_mean((predicted - actions).square().mean(dim=(1, 2)), valid)


class InverseDynamics(Objective):
    """An MLP predicts the h actions between steps t and t + h from the features of the two."""

    def __init__(self, config: InverseDynamicsConfig, material: Material) -> None:
        super().__init__()
        material.check_episodes(config.horizon + 1, f"a horizon of {config.horizon}")
        self.config, self.material = config, material
        H, outputs = config.hidden, config.horizon * material.actions.shape[1]
        with seeded(material.seed):
            first, second, last = nn.Linear(2 * material.feature_dim, H), nn.Linear(H, H), nn.Linear(H, outputs)
        self.mlp = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
        self.to(material.device)

    def draw(self, anchors: IntArray, rng: np.random.Generator) -> IntArray:
        """Step t + h of each anchor t, or the last one of its episode."""
        _, ends = self.material.bounds(anchors)
        return np.minimum(anchors + self.config.horizon, ends - 1)[:, None]

    def loss(self, z: Tensor, rows: IntArray, *, target: Tensor | None, generator: torch.Generator) -> Loss:
        """Squared error of scaled actions, the mean over the rows whose step t + h exists."""
        h, device = self.config.horizon, z.device
        valid = torch.from_numpy(rows[:, 1] - rows[:, 0] == h).to(device)
        # Masked rows read no step of another episode either.
        steps = np.minimum(rows[:, :1] + np.arange(h), rows[:, 1:])
        actions = self.material.actions[torch.from_numpy(steps).to(device)]
        predicted = self.mlp(z[:, :, 0].flatten(1)).view(actions.shape)
        loss = inverse_dynamics_loss(predicted, actions, valid)
        return loss, {"valid": valid.double().mean()}
