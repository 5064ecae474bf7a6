"""No objective: the encoder keeps its initial weights, random ones or those of ImageNet or R3M (paper 5.2)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class NoneConfig:
    """Settings of no training: there are none. Which weights these are is the encoder's ``init``."""

    name: str = field(default="none", init=False)
