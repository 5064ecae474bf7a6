"""The conditional 1-D U-Net of Diffusion Policy (Chi et al. 2023, section IV), with or without a denoising step.

Convolutions run over the steps of a chunk. Features (and the step's embedding) act on every residual block through
FiLM: a scale and a bias for each channel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from classact.errors import ConfigError
from classact.models.heads.config import UNetConfig


class StepEmbedding(nn.Module):
    """Denoising step k -> (B, dim): sines, then cosines at geometric frequencies from 1 to 1/10000, then an MLP."""

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        exponents = torch.arange(dim // 2) / (dim // 2 - 1)
        self.register_buffer("frequencies", torch.exp(-math.log(10_000) * exponents), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim))

    def forward(self, step: Tensor) -> Tensor:
        """(B,) steps, whole or not -> (B, dim)."""
        angles = step[:, None].to(self.frequencies.dtype) * self.frequencies
        embedded: Tensor = self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))
        return embedded


def _convolution(channels_in: int, channels: int, config: UNetConfig) -> nn.Sequential:
    conv = nn.Conv1d(channels_in, channels, config.kernel_size, padding=config.kernel_size // 2)
    return nn.Sequential(conv, nn.GroupNorm(config.groups, channels), nn.Mish())


class FiLMBlock(nn.Module):
    """Two convolutions with a shortcut; conditions scale and shift the channels between them (Perez et al. 2018)."""

    def __init__(self, channels_in: int, channels: int, condition_dim: int, config: UNetConfig) -> None:
        super().__init__()
        self.first = _convolution(channels_in, channels, config)
        self.second = _convolution(channels, channels, config)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(condition_dim, 2 * channels))
        self.shortcut = nn.Conv1d(channels_in, channels, 1) if channels_in != channels else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, channels_in, T) under conditions (B, C) -> (B, channels, T)."""
        # The scale is used as it is, not added to one.
        scale, bias = self.film(condition)[:, :, None].chunk(2, dim=1)
        out: Tensor = self.second(torch.addcmul(bias, scale, self.first(x))) + self.shortcut(x)
        return out


class _Level(nn.Module):
    def __init__(
        self, channels_in: int, channels: int, condition_dim: int, config: UNetConfig, resample: nn.Module
    ) -> None:
        super().__init__()
        self.first = FiLMBlock(channels_in, channels, condition_dim, config)
        self.second = FiLMBlock(channels, channels, condition_dim, config)
        self.resample = resample

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """What goes to the other side of the U, and to the next level."""
        x = self.second(self.first(x, condition), condition)
        return x, self.resample(x)


class ConditionalUNet1d(nn.Module):
    """(B, T, D) sequences under (B, C) features -> (B, T, D) sequences.

    Args:
        action_dim: D.
        feature_dim: C.
        config: architecture.
        steps: embed a denoising step and join it to the features; without it the network takes features only.
    """

    def __init__(self, action_dim: int, feature_dim: int, config: UNetConfig, *, steps: bool = True) -> None:
        super().__init__()
        self.config = config
        self.embedding = StepEmbedding(config.step_dim) if steps else None
        condition = feature_dim + (config.step_dim if steps else 0)
        widths, last = config.widths, config.widths[-1]
        self.down = nn.ModuleList()
        for i, (before, width) in enumerate(zip((action_dim, *widths), widths, strict=False)):
            # The lowest level is not resampled: its steps are those of the middle.
            halve = nn.Conv1d(width, width, 3, stride=2, padding=1) if i + 1 < len(widths) else nn.Identity()
            self.down.append(_Level(before, width, condition, config, halve))
        self.middle = nn.ModuleList(FiLMBlock(last, last, condition, config) for _ in range(2))
        self.up = nn.ModuleList()
        for below, width in zip(widths[:0:-1], widths[-2::-1], strict=True):
            double = nn.ConvTranspose1d(width, width, 4, stride=2, padding=1)
            self.up.append(_Level(2 * below, width, condition, config, double))
        self.out = nn.Sequential(_convolution(widths[0], widths[0], config), nn.Conv1d(widths[0], action_dim, 1))

    def forward(self, sequence: Tensor, features: Tensor, step: Tensor | None = None) -> Tensor:
        """One pass.

        Args:
            sequence: (B, T, D); T a multiple of ``config.multiple``.
            features: (B, C).
            step: (B,) integer denoising steps, for a network that embeds them.

        Raises:
            ConfigError: T that cannot be halved so often, or a step given to a network without steps (or not given).
        """
        check_horizon(sequence.shape[1], self.config)
        if (step is None) != (self.embedding is None):
            raise ConfigError(
                f"this U-Net was made {'without' if self.embedding is None else 'with'} a denoising step, but was "
                f"called {'without' if step is None else 'with'} one."
            )
        if self.embedding is not None:
            features = torch.cat([self.embedding(step), features], dim=1)
        x = sequence.transpose(1, 2)
        kept: list[Tensor] = []
        for level in self.down:
            across, x = level(x, features)
            kept.append(across)
        for block in self.middle:
            x = block(x, features)
        # What the top level keeps is not used: Diffusion Policy has one level less on the way up.
        for level in self.up:
            _, x = level(torch.cat([x, kept.pop()], dim=1), features)
        out: Tensor = self.out(x).transpose(1, 2)
        return out


def check_horizon(horizon: int, config: UNetConfig) -> None:
    """Refuse chunks that the U-Net cannot halve once per level and double again.

    Raises:
        ConfigError: with the nearest horizons that are possible.
    """
    if horizon >= 1 and horizon % config.multiple == 0:
        return
    below = horizon // config.multiple * config.multiple
    near = f"{below} or {below + config.multiple}" if below >= 1 else f"{config.multiple}"
    raise ConfigError(
        f"a U-Net of {len(config.widths)} levels needs a horizon T_p that is a multiple of {config.multiple}, got "
        f"{horizon}; choose {near}."
    )
