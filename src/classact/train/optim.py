"""Optimiser, learning-rate schedule and weight averaging of the paper's table 3 and 4."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from classact.errors import ConfigError, UnknownNameError, choose

OPTIMIZERS = ("lars", "adamw")


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of the optimiser.

    Attributes:
        name: "lars" (the paper) or "adamw" (better for small networks and few steps).
        learning_rate: peak rate (table 4: 0.5 for LARS).
        momentum: of LARS.
        weight_decay: on tensors of two or more dimensions.
        warmup_steps: linear warm-up (table 3: 500); at most a tenth of all steps.
        clip_norm: largest norm of the whole gradient, applied after backward (table 3: 0.5).
        ema_power: weight average decay 1 - (1 + step) ** -power (table 3: 0.75).
    """

    name: str = "lars"
    learning_rate: float = 0.5
    momentum: float = 0.9
    weight_decay: float = 1e-6
    warmup_steps: int = 500
    clip_norm: float = 0.5
    ema_power: float = 0.75

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise UnknownNameError(choose("optimizer", self.name, OPTIMIZERS))
        positive = self.learning_rate > 0 and self.clip_norm > 0
        if not positive or not 0 < self.ema_power <= 1 or self.warmup_steps < 0:
            raise ConfigError(
                f"expected learning_rate > 0, clip_norm > 0, 0 < ema_power <= 1 and warmup_steps >= 0, got {self}."
            )
        if not 0 <= self.momentum < 1 or not self.weight_decay >= 0:
            raise ConfigError(f"expected 0 <= momentum < 1 and weight_decay >= 0, got {self}.")


def make_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """LARS (timm) or AdamW. Biases, norms and the softmax temperature get no decay and, under LARS, plain momentum."""
    parameters = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.name == "lars":
        from timm.optim.lars import Lars

        # timm adapts no group whose weight decay is zero: exactly the released code's rule for ndim <= 1. The others
        # adapt whatever their weight decay.
        groups[0]["always_adapt"] = True
        return Lars(groups, lr=config.learning_rate, momentum=config.momentum, trust_coeff=0.001)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.999))


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Rate of a step counted from 0: linear warm-up, then half a cosine that reaches zero at ``steps``."""
    warmup = min(config.warmup_steps, steps // 10)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
