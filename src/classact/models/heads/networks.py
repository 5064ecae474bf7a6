"""Networks that heads stand on: from chunks and features to chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from classact.models.heads.base import Head
from classact.models.heads.config import NetworkHeadConfig, ResidualConfig
from classact.models.heads.unet1d import ConditionalUNet1d, StepEmbedding, check_horizon


class ResidualBlock(nn.Module):
    """A two-layer perceptron beside a shortcut; conditions scale and shift what it reads (FiLM, Perez et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.film = nn.Linear(width, 2 * width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """(B, W) under :attr:`film` (B, 2 W) of conditions -> (B, W)."""
        scale, shift = modulation.chunk(2, dim=1)
        out: Tensor = x + self.narrow(nn.functional.gelu(self.wide(self.norm(x) * (1 + scale) + shift)))
        return out


class ResidualMLP(nn.Module):
    """(B, T, D) sequences under (B, C) features -> (B, T, D) sequences, flattened in between.

    Args:
        action_dim: D.
        feature_dim: C.
        horizon: T.
        config: architecture.
        steps: embed a denoising step or time, beside the features.
    """

    def __init__(
        self, action_dim: int, feature_dim: int, horizon: int, config: ResidualConfig, *, steps: bool = True
    ) -> None:
        super().__init__()
        width, flat = config.width, horizon * action_dim
        self.embedding = StepEmbedding(config.step_dim) if steps else None
        condition = feature_dim + (config.step_dim if steps else 0)
        self.condition = nn.Sequential(nn.Linear(condition, width), nn.GELU())
        self.inwards = nn.Linear(flat, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(config.blocks))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, flat))

    def forward(self, sequence: Tensor, features: Tensor, step: Tensor | None = None) -> Tensor:
        """One pass.

        Args:
            sequence: (B, T, D).
            features: (B, C).
            step: (B,) denoising steps, for a network that embeds them.
        """
        return self.under(self.modulations(features, step), sequence)

    def modulations(self, features: Tensor, step: Tensor | None = None) -> list[Tensor]:
        """All that a pass depends on beside its sequence: for each block (B, 2 W) of the features and step."""
        if self.embedding is not None:
            features = torch.cat([self.embedding(step), features], dim=1)
        condition = self.condition(features)
        films: list[nn.Linear] = [block.film for block in self.blocks]  # type: ignore[misc]
        return [film(condition) for film in films]

    def under(self, modulations: Sequence[Tensor], sequence: Tensor) -> Tensor:
        """One pass under :meth:`modulations`."""
        x = self.inwards(sequence.flatten(1))
        for block, modulation in zip(self.blocks, modulations, strict=True):
            x = block(x, modulation)
        out: Tensor = self.out(x).reshape(sequence.shape)
        return out


def passes(network: nn.Module, features: Tensor, steps: Sequence[float]) -> Iterator[Callable[[Tensor], Tensor]]:
    """The passes of sampling, one for each denoising step or time: functions of sequences (B, T, D).

    On a CPU a residual network's modulations are computed for all steps together: its time is that of reading weights.
    """
    count = len(features)
    if isinstance(network, ResidualMLP) and features.device.type == "cpu":
        each_step = torch.tensor(steps).repeat_interleave(count)
        together = network.modulations(features.repeat(len(steps), 1), each_step)
        for at in range(0, count * len(steps), count):
            yield partial(network.under, [each[at : at + count] for each in together])
    else:
        for step in steps:
            yield partial(_pass, network, features, torch.full((count,), step, device=features.device))


def _pass(network: nn.Module, features: Tensor, step: Tensor, sequence: Tensor) -> Tensor:
    out: Tensor = network(sequence, features, step)
    return out


def make_network(
    config: NetworkHeadConfig, feature_dim: int, action_dim: int, horizon: int, *, steps: bool = True
) -> ConditionalUNet1d | ResidualMLP:
    """The network of a head.

    Args:
        config: of the head.
        feature_dim, action_dim, horizon: C, D and T_p.
        steps: embed a denoising step.

    Raises:
        ConfigError: a horizon that the U-Net cannot halve as often as it has to.
    """
    if config.network == "residual":
        return ResidualMLP(action_dim, feature_dim, horizon, config.residual, steps=steps)
    check_horizon(horizon, config.unet)
    return ConditionalUNet1d(action_dim, feature_dim, config.unet, steps=steps)


class NetworkHead(Head):
    """A head that stands on a network, in which nearly all of its time is spent."""

    network: nn.Module

    def accelerate(self) -> None:
        """Compile the network."""
        self.network.compile(mode="reduce-overhead", dynamic=False)


def chunk_losses(predicted: Tensor, actions: Tensor, loss: str) -> Tensor:
    """(B,) "l1" or "l2" errors of chunks (B, T, D), each the mean over a row."""
    measure = nn.functional.l1_loss if loss == "l1" else nn.functional.mse_loss
    return measure(predicted, actions, reduction="none").mean(dim=(1, 2))
