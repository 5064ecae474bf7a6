"""Direct regression of action chunks (paper C.2, "MLP"): the network of Diffusion Policy without diffusion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from classact.models.heads.config import MLPConfig
from classact.models.heads.networks import NetworkHead, chunk_losses, make_network


class MLPHead(NetworkHead):
    """A learned (1, T_p, D) sequence in the place of the noisy chunk, trained by the error of actions.

    Args:
        config: settings.
        feature_dim, action_dim, horizon: C, D and T_p.
    """

    config: MLPConfig

    def __init__(self, config: MLPConfig, feature_dim: int, action_dim: int, horizon: int) -> None:
        super().__init__(feature_dim, action_dim, horizon)
        self.config = config
        self.start = nn.Parameter(torch.randn(1, horizon, action_dim))
        self.network = make_network(config, feature_dim, action_dim, horizon, steps=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C) -> (B, T_p, D)."""
        return self.generate(features, ())

    def losses(self, features: Tensor, actions: Tensor, drawn: tuple[Tensor, ...]) -> Tensor:  # noqa: ARG002
        """Error of the actions, the mean over a row."""
        self.check(features, actions)
        return chunk_losses(self(features), actions, self.config.loss)

    def generate(self, features: Tensor, noise: tuple[Tensor, ...]) -> Tensor:  # noqa: ARG002
        """The predicted chunks: one pass."""
        chunk: Tensor = self.network(self.start.expand(features.shape[0], -1, -1), features)
        return chunk
