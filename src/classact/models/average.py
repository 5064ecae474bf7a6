"""Averages of weights over training (EMA; table 3)."""

from __future__ import annotations

import torch
from torch import nn


def ema_decay(step: int, power: float) -> float:
    """Decay of the weight average after update number ``step`` (from 1): 1 - (1 + step) ** -power.

    0.70 after 4 steps, 0.97 after 100, 0.998 after 4,000 at the paper's power of 0.75. This is the warm-up of the
    diffusers package (EMAModel, use_ema_warmup), which the released code intends, one update ahead of it.
    """
    return 1.0 - (1.0 + step) ** -power


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, decay: float) -> None:
    """In place, for all trained parameters: average = decay * average + (1 - decay) * network."""
    pairs = zip(average.parameters(), network.parameters(), strict=True)
    trained = [(kept, value) for kept, value in pairs if value.requires_grad]
    if trained:
        torch._foreach_lerp_([kept for kept, _ in trained], [value for _, value in trained], 1.0 - decay)
