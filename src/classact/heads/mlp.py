"""Direct regression of action chunks (paper C.2, "MLP"): the U-Net of Diffusion Policy without diffusion."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from classact.heads.base import Generators, Head
from classact.heads.unet1d import ConditionalUNet1d, UNetConfig, check_horizon


@dataclass(frozen=True)
class MLPConfig:
    """Settings of direct regression.

    Attributes:
        unet: architecture; ``step_dim`` has no effect, for there are no denoising steps.
    """

    unet: UNetConfig = field(default_factory=UNetConfig)


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
        chunk: Tensor = self.unet(self.start.expand(len(features), -1, -1), features)
        return chunk

    def loss(self, features: Tensor, actions: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Mean squared error of the actions; nothing is random."""
        self._check(features, actions)
        return torch.nn.functional.mse_loss(self(features), actions)

    @torch.no_grad()
    def sample(self, features: Tensor, generator: Generators) -> Tensor:
        """The predicted chunks; nothing is random."""
        self._check(features, generator=generator)
        chunk: Tensor = self(features)
        return chunk
