"""Direct regression of action chunks (paper C.2, "MLP"): the U-Net of Diffusion Policy without diffusion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from classact.models.heads.base import Head
from classact.models.heads.config import MLPConfig
from classact.models.heads.unet1d import ConditionalUNet1d, check_horizon


class MLPHead(Head):
    """A learned (1, T_p, D) sequence in the place of the noisy chunk, trained by the mean squared error of actions.

    Args:
        config: settings.
        feature_dim, action_dim, horizon: C, D and T_p.
    """

    def __init__(self, config: MLPConfig, feature_dim: int, action_dim: int, horizon: int) -> None:
        super().__init__(feature_dim, action_dim, horizon)
        check_horizon(horizon, config.unet)
        self.config = config
        self.start = nn.Parameter(torch.randn(1, horizon, action_dim))
        self.unet = ConditionalUNet1d(action_dim, feature_dim, config.unet, steps=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C) -> (B, T_p, D)."""
        return self.generate(features, ())

    def losses(self, features: Tensor, actions: Tensor, drawn: tuple[Tensor, ...]) -> Tensor:  # noqa: ARG002
        """Squared error of the actions, the mean over a row."""
        self.check(features, actions)
        return torch.nn.functional.mse_loss(self(features), actions, reduction="none").mean(dim=(1, 2))

    def generate(self, features: Tensor, noise: tuple[Tensor, ...]) -> Tensor:  # noqa: ARG002
        """The predicted chunks: one pass."""
        chunk: Tensor = self.unet(self.start.expand(len(features), -1, -1), features)
        return chunk

    def accelerate(self) -> None:
        """Compile the U-Net."""
        self.unet.compile(mode="reduce-overhead", dynamic=False)
