"""A small residual network that learns within minutes on two CPU cores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from classact.models.encoders.layers import ResidualBlock, backward_without_barriers, group_norm


class SmallResNet(nn.Module):
    """5x5 stride-2 stem, then residual blocks: (B, 3, S, S) -> maps (B, 128 width, S/8, S/8).

    At width 1: stem 32, blocks 64 (stride 2), 128 (stride 2), 128 (stride 1); 0.6 million parameters.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        stem, middle, last = (max(8, round(c * width / 8) * 8) for c in (32, 64, 128))
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 5, 2, 2, bias=False), group_norm(stem))
        self.blocks = nn.Sequential(
            ResidualBlock(stem, middle, 2), ResidualBlock(middle, last, 2), ResidualBlock(last, last, 1)
        )
        for module in self.blocks.modules():
            if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
                module.register_forward_hook(backward_without_barriers)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps of a batch of images."""
        out: Tensor = self.blocks(torch.relu(self.stem(x)))
        return out
