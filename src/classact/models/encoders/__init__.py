"""Image encoders: one folder on disk each, with the image transform they expect."""

from classact.models.encoders.image import (
    COLORS,
    INITS,
    TRUNKS,
    EncoderConfig,
    ImageEncoder,
    encoder_config_from_json,
    pretrained_config,
)

__all__ = [
    "COLORS",
    "INITS",
    "TRUNKS",
    "EncoderConfig",
    "ImageEncoder",
    "encoder_config_from_json",
    "pretrained_config",
]
