"""Image encoders: one folder on disk each, with the image transform they expect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from classact.models.encoders.config import BACKBONES, POOLINGS, EncoderConfig
from classact.utils.lazy import attach

if TYPE_CHECKING:
    from classact.models.encoders.image import ImageEncoder as ImageEncoder
    from classact.models.encoders.image import pretrained_config as pretrained_config

__getattr__, __dir__ = attach(__name__, __file__)

__all__ = ["BACKBONES", "POOLINGS", "EncoderConfig"]
