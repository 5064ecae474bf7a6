"""Settings of image encoders, and their backbones by name, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from classact.errors import ConfigError, UnknownNameError, choose
from classact.utils.limits import check_names, check_range


@dataclass(frozen=True)
class Backbone:
    """A network from images to maps, and its pooling.

    Attributes:
        make: "module:Class" of width -> network, (B, 3, S, S) -> maps (B, C, H, W).
        pool: "module:function" of settings, H, W -> module, maps -> features (B, F).
    """

    make: str
    pool: str


BACKBONES: Mapping[str, Backbone] = {
    "small": Backbone("classact.models.encoders.small:SmallResNet", "classact.models.encoders.layers:coordinates"),
    "resnet18": Backbone("classact.models.encoders.resnet:ResNet18", "classact.models.encoders.layers:coordinates"),
    "equivariant": Backbone(
        "classact.models.encoders.equivariant:EquivariantResNet", "classact.models.encoders.layers:values"
    ),
}


@dataclass(frozen=True)
class EncoderConfig:
    """An encoder of one camera or several, and its image transform, which travels with the weights.

    Attributes:
        backbone: "small" (minutes on a CPU), "resnet18" (the paper's) or "equivariant" (of its baseline EquiVar; with
            mean and std 127.5, and the extra equivar).
        width: factor on the backbone's channels.
        cameras: which views it reads; their features are concatenated in this order (F.1: a wrist camera).
        shared: one network for all views, instead of one each (the released code).
        image_size: images are resized to this side first (paper: 256).
        crop_size: side of the random crop in training and the centre crop in evaluation (paper: 224).
        mean, std: channel normalisation of 0..255 values; ignored when color is "whiten".
        color: "rgb", or "whiten": remove each image's own colour statistics (see encoders/color.py).
        aspect: width / height of the cameras' images before they are resized to squares; other ones are refused. Of
            cameras that differ, one for each.
        init: initial weights: "scratch", "imagenet" or "r3m" (the last two for resnet18).
        init_path: local R3M checkpoint.
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
    init: Literal["scratch", "imagenet", "r3m"] = "scratch"
    init_path: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.cameras, str) or not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(f"expected a tuple of at least one camera, each named once, got {self.cameras!r}.")
        if self.backbone not in BACKBONES:
            raise UnknownNameError(choose("encoder backbone", self.backbone, BACKBONES))
        check_names(self)
        check_range(self, "width", above=0)
        if len(self.aspects) != len(self.cameras) or not min(self.aspects) > 0:
            raise ConfigError(
                f"expected an aspect above 0, or one for each of {len(self.cameras)} cameras, got {self.aspect}."
            )
        if not min(self.std) > 0:
            raise ConfigError(f"expected std > 0 in each channel, got {self.std}.")
        check_range(self, "crop_size", least=16, most=self.image_size)

    @property
    def aspects(self) -> tuple[float, ...]:
        """Width / height of each camera's images."""
        return self.aspect if isinstance(self.aspect, tuple) else (self.aspect,) * len(self.cameras)
