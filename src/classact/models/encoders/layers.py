"""Building blocks shared by the image encoders."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def group_norm(channels: int, groups: int = 16) -> nn.GroupNorm:
    """GroupNorm of at most ``groups`` equal groups with at least four channels each."""
    most = min(groups, channels // 4)
    return nn.GroupNorm(max((g for g in range(1, most + 1) if channels % g == 0), default=1), channels)


def replace_batch_norm(module: nn.Module, groups: int = 16) -> nn.Module:
    """Put a fresh GroupNorm in the place of every BatchNorm2d (paper C.1).

    Affine parameters and running statistics are discarded: of pre-trained weights only the convolutions stay.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, group_norm(child.num_features, groups))
        else:
            replace_batch_norm(child, groups)
    return module


class SpatialSoftmax(nn.Module):
    """Expected image coordinates of each feature map: (B, C, H, W) -> (B, 2 C), x then y of each map, in [-1, 1].

    The temperature is learned, from 1. Computed in float32 whatever the trunk ran in.
    """

    grid: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))
        ys, xs = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        self.register_buffer("grid", torch.stack([xs.flatten(), ys.flatten()], dim=-1), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Coordinates of a batch of feature maps."""
        # Multiplying by the inverse: the backward pass of a division costs several times as much on a CPU.
        attention = torch.softmax(maps.float().flatten(2) * self.temperature.reciprocal(), dim=-1)  # (B, C, H W)
        return (attention @ self.grid).flatten(1)


class Subsample(nn.Module):
    """Keep every ``stride``-th pixel.

    Before a 1x1 convolution the same as giving that convolution the stride, whose backward pass is slow on CPUs.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride))."""
        return x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride].contiguous()


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm and a shortcut (He et al., 2016)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = group_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = group_norm(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            project = nn.Conv2d(channels_in, channels, 1, bias=False)
            self.shortcut = nn.Sequential(Subsample(stride), project, group_norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H / stride, W / stride)."""
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))
