"""An encoder where other people's policies have theirs: modules that take their images and have their interfaces.

Images are (B, 3, H, W) floats in a range, :attr:`ImageSlot.values`. They are resized to the encoder's ``image_size``
and cropped in the centre; those of its ``crop_size`` are taken as they are, so that a random crop may come before.
Resizing is torch's antialiased one, which is close to classact's own, not equal: resize beforehand for equal features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from classact.errors import ConfigError, UnknownNameError, choose
from classact.models.encoders.image import ImageEncoder


class ImageSlot(nn.Module):
    """One camera's images -> features (B, F): robomimic's ``EncoderCore``, LeRobot's ``rgb_encoder``.

    Attributes:
        feature_dim: F.
        values: what 0 and 255 are in the images that come in.
    """

    def __init__(
        self, encoder: ImageEncoder, camera: str | None = None, *, values: tuple[float, float] = (0.0, 1.0)
    ) -> None:
        super().__init__()
        cameras = encoder.config.cameras
        if camera is not None and camera not in cameras:
            raise UnknownNameError(f"{choose('camera', camera, cameras)}, which the encoder reads.")
        if not values[0] < values[1]:
            raise ConfigError(f"expected values of black and white, the smaller first, got {values}.")
        self.encoder, self.values = encoder, values
        self.index = 0 if encoder.config.shared or camera is None else cameras.index(camera)

    @property
    def view(self) -> Any:
        """The camera's network."""
        return self.encoder.views[self.index]

    @property
    def feature_dim(self) -> int:
        """F, features of the camera."""
        return int(self.view.feature_dim)

    def output_shape(self, input_shape: Sequence[int] | None = None) -> list[int]:  # noqa: ARG002 (robomimic gives it)
        """[F], whatever the images' size."""
        return [self.feature_dim]

    def inputs(self, images: Tensor) -> Tensor:
        """(B, 3, crop, crop) as the encoder's networks take them."""
        config, (low, high) = self.encoder.config, self.values
        pixels = (images.float() - low) * (255 / (high - low))
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ConfigError(f"expected images of shape (B, 3, H, W), got {tuple(images.shape)}.")
        if pixels.shape[2:] != (config.crop_size, config.crop_size):
            size, edge = config.image_size, (config.image_size - config.crop_size) // 2
            if pixels.shape[2:] != (size, size):
                pixels = nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
            inside = slice(edge, edge + config.crop_size)
            pixels = pixels[:, :, inside, inside]
        return self.encoder.normalize(pixels)

    def forward(self, images: Tensor) -> Tensor:
        """Features of a batch."""
        features: Tensor = self.view(self.inputs(images))
        return features


class MapSlot(ImageSlot):
    """One camera's images -> {"feature_map": (B, C, h, w)}: the backbone of LeRobot's ACT.

    Attributes:
        channels: C.
    """

    @property
    def channels(self) -> int:
        """C, found by a black image."""
        crop = self.encoder.config.crop_size
        with torch.no_grad():
            black = torch.zeros(1, 3, crop, crop, device=self.encoder.mean.device)
            return int(self.view.backbone(black).shape[1])

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """Maps of a batch, unpooled."""
        return {"feature_map": self.view.backbone(self.inputs(images))}


class ObservationSlot(nn.Module):
    """Diffusion Policy's ``obs_encoder``: a dict of (B, C, H, W) images and (B, D) numbers -> (B, F V + D).

    Args:
        encoder: its cameras are the observations of type "rgb", under the names that ``cameras`` gives them.
        shape_meta: as in Diffusion Policy: {"obs": {key: {"shape": ..., "type": "rgb" or "low_dim"}}}.
        cameras: key of ``shape_meta`` -> camera of the encoder; None: the same names.
        values: what 0 and 255 are in the images, (-1, 1) where the policy's normaliser has scaled them.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        shape_meta: Mapping[str, Any],
        *,
        cameras: Mapping[str, str] | None = None,
        values: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        self.shapes = {key: tuple(entry["shape"]) for key, entry in shape_meta["obs"].items()}
        images = sorted(key for key, entry in shape_meta["obs"].items() if entry.get("type") == "rgb")
        self.numbers = sorted(set(self.shapes) - set(images))
        named = {key: (cameras or {}).get(key, key) for key in images}
        slots = {key: ImageSlot(encoder, camera, values=values) for key, camera in named.items()}
        if set(named.values()) != set(encoder.config.cameras):
            raise ConfigError(
                f"the encoder reads cameras {list(encoder.config.cameras)}, shape_meta has images of "
                f"{sorted(named.values())}. Say which is which: cameras={{key: camera}}."
            )
        self.slots = nn.ModuleDict(slots)

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return next(self.parameters()).dtype

    def output_shape(self) -> torch.Size:
        """(F V + D,)."""
        slots: Any = self.slots.values()
        features = sum(slot.feature_dim for slot in slots)
        return torch.Size([features + sum(self.shapes[key][0] for key in self.numbers)])

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Features of all images, then the numbers, each in the order of their keys' names."""
        for key, shape in self.shapes.items():
            if tuple(observations[key].shape[1:]) != shape:
                raise ConfigError(f"{key}: expected (B, *{shape}), got {tuple(observations[key].shape)}.")
        parts = [slot(observations[key]) for key, slot in self.slots.items()]
        return torch.cat([*parts, *(observations[key] for key in self.numbers)], dim=-1)
