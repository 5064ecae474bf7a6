"""Settings of image encoders, and their backbones by name, without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from classact.errors import ConfigError, UnknownNameError, choose
from classact.utils.codec import ADDED
from classact.utils.limits import check_names, check_range


@dataclass(frozen=True)
class Backbone:
    """A network from images to maps, and its pooling.

    Attributes:
        make: "module:Class" of width -> network, (B, 3, S, S) -> maps (B, C, H, W).
        pooling: of the maps, where the settings name none; see :data:`POOLINGS`.
    """

    make: str
    pooling: str = "spatial-softmax"


BACKBONES: Mapping[str, Backbone] = {
    "small": Backbone("classact.models.encoders.small:SmallResNet"),
    "resnet18": Backbone("classact.models.encoders.resnet:ResNet18"),
    "equivariant": Backbone("classact.models.encoders.equivariant:EquivariantResNet", "cells"),
}

TIMM = "timm/"
"""Before the name of a model of timm, which is a backbone as well (:mod:`classact.models.encoders.timm_backbone`)."""

OWN = "own"
POOLINGS: Mapping[str, str] = {
    "spatial-softmax": "classact.models.encoders.layers:coordinates",
    "average": "classact.models.encoders.layers:average",
    "cells": "classact.models.encoders.layers:values",
    OWN: "classact.models.encoders.layers:values",  # the network has pooled already
}
"""Name -> "module:function" of settings, H, W -> module, maps -> features (B, F)."""


@dataclass(frozen=True)
class EncoderConfig:
    """An encoder of one camera or several, and its image transform, which travels with the weights.

    Attributes:
        backbone: "small" (minutes on a CPU), "resnet18" (the paper's) or "equivariant" (of its baseline EquiVar; with
            mean and std 127.5, and the extra equivar), or "timm/NAME": any model of timm, with its own mean and std.
        width: factor on the backbone's channels; 1 for timm's.
        pooling: of the backbone's maps: "spatial-softmax", "average", "cells" (all values), or "own" (that of a timm
            model, such as a class token). None: the spatial softmax (C.1), but the cells of "equivariant".
        cameras: which views it reads; their features are concatenated in this order (F.1: a wrist camera). (): none;
            then policies see numbers alone.
        shared: one network for all views, instead of one each (the released code).
        image_size: images are resized to this side first (paper: 256).
        crop_size: side of the random crop in training and the centre crop in evaluation (paper: 224).
        mean, std: channel normalisation of 0..255 values; ignored when color is "whiten".
        color: "rgb", or "whiten": remove each image's own colour statistics (see encoders/color.py).
        aspect: width / height of the cameras' images before they are resized to squares; other ones are refused. Of
            cameras that differ, one for each.
        init: initial weights: "scratch"; "imagenet" or "r3m" for resnet18; "pretrained" for timm's: those of its name.
        init_path: local file of them, of R3M or of timm's model.
    """

    backbone: str = "small"
    width: float = 1.0
    cameras: tuple[str, ...] = ("top",)
    shared: bool = False
    image_size: int = 64
    crop_size: int = 56
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (64.0, 64.0, 64.0)
    color: Literal["rgb", "whiten"] = "rgb"
    aspect: float | tuple[float, ...] = 1.0
    init: Literal["scratch", "imagenet", "r3m", "pretrained"] = "scratch"
    init_path: str | None = None
    pooling: str | None = field(default=None, metadata=ADDED)

    def __post_init__(self) -> None:
        if isinstance(self.cameras, str) or len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(f"expected a tuple of cameras, each named once, got {self.cameras!r}.")
        if self.backbone not in BACKBONES and not (self.timm and re.fullmatch(r"[\w.-]+", self.timm)):
            raise UnknownNameError(choose("encoder backbone", self.backbone, (*BACKBONES, "timm/NAME")))
        if self.pooling is not None and self.pooling not in POOLINGS:
            raise UnknownNameError(choose("pooling", self.pooling, POOLINGS))
        if self.pooling == OWN and not self.timm:
            raise ConfigError(
                f"backbone {self.backbone!r} has no pooling of its own, which models of timm have. Choose "
                f"{', '.join(name for name in POOLINGS if name != OWN)}, or none for its usual one."
            )
        check_names(self)
        check_range(self, "width", above=0)
        if len(self.aspects) != len(self.cameras) or not all(aspect > 0 for aspect in self.aspects):
            raise ConfigError(
                f"expected an aspect above 0, or one for each of {len(self.cameras)} cameras, got {self.aspect}."
            )
        if not min(self.std) > 0:
            raise ConfigError(f"expected std > 0 in each channel, got {self.std}.")
        check_range(self, "crop_size", least=16, most=self.image_size)

    @property
    def timm(self) -> str:
        """The name of a model of timm; empty for other backbones."""
        return self.backbone.removeprefix(TIMM) if self.backbone.startswith(TIMM) else ""

    @property
    def pooled_by(self) -> str:
        """The key of :data:`POOLINGS` that ``pooling`` comes to."""
        return self.pooling or ("spatial-softmax" if self.timm else BACKBONES[self.backbone].pooling)

    @property
    def aspects(self) -> tuple[float, ...]:
        """Width / height of each camera's images."""
        return self.aspect if isinstance(self.aspect, tuple) else (self.aspect,) * len(self.cameras)
