"""Policy heads by name. Adding one is a file and an entry of :data:`HEADS`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from classact.models.heads.config import (
    HEADS,
    DiffusionConfig,
    FlowConfig,
    HeadConfig,
    HeadEntry,
    MLPConfig,
    ResidualConfig,
    UNetConfig,
    head_entry,
)
from classact.utils.lazy import attach

if TYPE_CHECKING:
    from classact.models.heads.base import Generators as Generators
    from classact.models.heads.base import Head as Head
    from classact.models.heads.base import make_head as make_head
    from classact.models.heads.base import standard_normal as standard_normal
    from classact.models.heads.diffusion import DiffusionHead as DiffusionHead
    from classact.models.heads.flow import FlowHead as FlowHead
    from classact.models.heads.mlp import MLPHead as MLPHead
    from classact.models.heads.networks import ResidualMLP as ResidualMLP
    from classact.models.heads.unet1d import ConditionalUNet1d as ConditionalUNet1d

__getattr__, __dir__ = attach(__name__, __file__)

__all__ = [
    "HEADS",
    "DiffusionConfig",
    "FlowConfig",
    "HeadConfig",
    "HeadEntry",
    "MLPConfig",
    "ResidualConfig",
    "UNetConfig",
    "head_entry",
]
