"""Optimiser, learning-rate schedule and weight averaging of the paper's table 3 and 4."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from classact.train.config import OptimizerConfig


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
        # adapt for any weight decay.
        groups[0]["always_adapt"] = True
        return Lars(groups, lr=config.learning_rate, momentum=config.momentum, trust_coeff=0.001)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.999))


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Rate of a step counted from 0: linear warm-up, then half a cosine that reaches zero at ``steps``, or the peak."""
    warmup = min(config.warmup_steps, steps // 10)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.decay == "none":
        return config.learning_rate
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
