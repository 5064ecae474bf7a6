"""Inverse and forward dynamics of numbers and of images.

All take observations (B, C + 1, *O): o_{t-C+1..t}, and for the inverse dynamics o_{t+1} behind them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from classact.models.latent_actions.config import IMAGE_SIZE, LatentActionConfig

SLOPE = 0.2  # of leaky ReLUs
CHANNELS = (32, 64, 128, 256)


def dense(inputs: int, hidden: list[int], outputs: int) -> nn.Sequential:
    """Linear layers with leaky ReLUs between them."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.LeakyReLU(SLOPE)]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


class InverseMLP(nn.Module):
    """(B, C + 1, O) -> z (B, Z)."""

    def __init__(self, config: LatentActionConfig, size: int) -> None:
        super().__init__()
        self.layers = dense((config.context + 1) * size, 2 * [config.scaled(1024)], config.latent_dim)

    def forward(self, observations: Tensor) -> Tensor:
        """Infer latent actions."""
        return self.layers(observations.flatten(1))


class ForwardMLP(nn.Module):
    """(B, C, O) and z (B, Z) -> o_{t+1} (B, O), not its difference from o_t."""

    def __init__(self, config: LatentActionConfig, size: int) -> None:
        super().__init__()
        self.layers = dense(config.context * size + config.latent_dim, 2 * [config.scaled(1024)], size)

    def forward(self, context: Tensor, z: Tensor) -> Tensor:
        """Predict the next observation."""
        return self.layers(torch.cat([context.flatten(1), z], dim=1))


def positions(length: int, width: int) -> Tensor:
    """(length, width) sines and cosines of all positions: no table that an episode could outgrow."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width]


def causal_mask(length: int) -> Tensor:
    """(length, length), True where a position must not look: at those behind it."""
    return torch.ones(length, length, dtype=torch.bool).triu(1)


class InverseTransformer(nn.Module):
    """A bidirectional encoder over o_{t-C+1..t+1} and a token whose output becomes z."""

    def __init__(self, config: LatentActionConfig, size: int) -> None:
        super().__init__()
        width = config.scaled(512)
        self.embed, self.out = nn.Linear(size, width), nn.Linear(width, config.latent_dim)
        self.token = nn.Parameter(torch.randn(width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 8, 4 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.register_buffer("place", positions(config.context + 1, width), persistent=False)

    def forward(self, observations: Tensor) -> Tensor:
        """Infer latent actions."""
        seen = self.embed(observations) + self.place
        asked = self.token.expand(len(seen), 1, -1)
        return self.out(self.layers(torch.cat([asked, seen], dim=1))[:, 0])


class ForwardTransformer(nn.Module):
    """A causal decoder over o_{t-C+1..t} that attends to z; its last output becomes o_{t+1}."""

    def __init__(self, config: LatentActionConfig, size: int) -> None:
        super().__init__()
        width = config.scaled(512)
        self.embed, self.latent = nn.Linear(size, width), nn.Linear(config.latent_dim, width)
        layer = nn.TransformerDecoderLayer(width, 8, 4 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.layers, self.out = nn.TransformerDecoder(layer, 3), nn.Linear(width, size)
        self.register_buffer("place", positions(config.context, width), persistent=False)
        self.register_buffer("mask", causal_mask(config.context), persistent=False)

    def each(self, context: Tensor, z: Tensor) -> Tensor:
        """(B, C, O) outputs at all positions."""
        seen = self.embed(context) + self.place
        return self.out(self.layers(seen, self.latent(z)[:, None], tgt_mask=self.mask, tgt_is_causal=True))

    def forward(self, context: Tensor, z: Tensor) -> Tensor:
        """Predict the next observation."""
        return self.each(context, z)[:, -1]


def _downwards(channels: int, config: LatentActionConfig) -> nn.Sequential:
    """(B, channels, 64, 64) -> (B, W, 4, 4)."""
    layers: list[nn.Module] = []
    for width in map(config.scaled, CHANNELS):
        layers += [nn.Conv2d(channels, width, 4, 2, 1), nn.GroupNorm(8, width), nn.LeakyReLU(SLOPE)]
        channels = width
    return nn.Sequential(*layers)


class InverseCNN(nn.Module):
    """(B, C + 1, 3, 64, 64) pixels from 0 to 1, stacked as channels -> z (B, Z)."""

    def __init__(self, config: LatentActionConfig, size: int) -> None:  # noqa: ARG002 (all images are of one size)
        super().__init__()
        self.maps = _downwards(3 * (config.context + 1), config)
        place = IMAGE_SIZE >> len(CHANNELS)
        self.out = nn.Linear(config.scaled(CHANNELS[-1]) * place**2, config.latent_dim)

    def forward(self, observations: Tensor) -> Tensor:
        """Infer latent actions."""
        return self.out(self.maps(observations.flatten(1, 2)).flatten(1))


class ForwardCNN(nn.Module):
    """(B, C, 3, 64, 64) and z -> the next image: what changes of the last one."""

    def __init__(self, config: LatentActionConfig, size: int) -> None:  # noqa: ARG002
        super().__init__()
        self.maps, top = _downwards(3 * config.context, config), config.scaled(CHANNELS[-1])
        self.latent = nn.Linear(config.latent_dim, 2 * top)
        layers: list[nn.Module] = []
        for width in map(config.scaled, CHANNELS[-2::-1]):
            layers += [nn.ConvTranspose2d(top, width, 4, 2, 1), nn.GroupNorm(8, width), nn.LeakyReLU(SLOPE)]
            top = width
        self.upwards = nn.Sequential(*layers, nn.ConvTranspose2d(top, 3, 4, 2, 1))

    def forward(self, context: Tensor, z: Tensor) -> Tensor:
        """Predict the next image."""
        scale, shift = self.latent(z)[:, :, None, None].chunk(2, dim=1)
        return context[:, -1] + self.upwards(self.maps(context.flatten(1, 2)) * (1 + scale) + shift)


NETWORKS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "mlp": (InverseMLP, ForwardMLP),
    "transformer": (InverseTransformer, ForwardTransformer),
    "cnn": (InverseCNN, ForwardCNN),
}
"""Name -> inverse and forward dynamics, made of settings and the size of an observation."""
