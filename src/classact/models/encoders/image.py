"""The image encoder f_theta: declared image transform, backbone, pooling of its maps; saved as one small folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from classact.data.images import Images, resize_images
from classact.data.schema import check_images
from classact.errors import CheckpointError, ConfigError
from classact.models.encoders.color import whiten
from classact.models.encoders.config import BACKBONES, POOLINGS, EncoderConfig
from classact.models.weights import load_weights, seeded
from classact.utils.codec import from_json, to_json
from classact.utils.hub import model_card, model_folder, push_saved
from classact.utils.lazy import resolve
from classact.utils.storage import CARD, read_json, verify_folder, write_folder, write_json

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
ASPECT_TOLERANCE = 0.02
FORMAT = "classact-encoder-2"

logger = logging.getLogger(__name__)


class View(nn.Module):
    """The network of one view: backbone, then pooling of its maps to F features (``feature_dim``)."""

    def __init__(self, config: EncoderConfig, *, load_init: bool = False) -> None:
        super().__init__()
        if config.timm:
            from classact.models.encoders.timm_backbone import TimmBackbone

            self.backbone: nn.Module = TimmBackbone(config, load_init=load_init)
            count = 1  # windows of transformers cannot be cut from no image
        else:
            self.backbone, count = resolve(BACKBONES[config.backbone].make)(config.width), 0
        with torch.no_grad():
            maps = self.backbone(torch.zeros(count, 3, config.crop_size, config.crop_size))
            self.pool: nn.Module = resolve(POOLINGS[config.pooled_by])(config, *maps.shape[2:])
            self.feature_dim = int(self.pool(maps).shape[1])

    def forward(self, inputs: Tensor, *, bf16: bool = False) -> Tensor:
        """(B, 3, crop, crop) -> (B, F) float32."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=bf16):
            maps = self.backbone(inputs)
        features: Tensor = self.pool(maps)
        return features.float()


class ImageEncoder(nn.Module):
    """Maps the images of one timestep to features: per view backbone and pooling, by default a spatial softmax (4.2,
    C.1).

    Attributes:
        views: one network for each camera, or the one that all share.
        feature_dim: F V, the features of all V views.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig, *, seed: int = 0, load_init: bool = True) -> None:
        super().__init__()
        self.config = config
        with seeded(seed):
            networks = min(1, len(config.cameras)) if config.shared else len(config.cameras)
            views = [View(config, load_init=load_init) for _ in range(networks)]
        self.views = nn.ModuleList(views)
        if load_init:
            from classact.models.encoders.resnet import initialize

            for view in views:
                initialize(view.backbone, config.init, config.init_path)
        self.feature_dim = len(config.cameras) * views[0].feature_dim if views else 0
        self._warned = False
        self.register_buffer("mean", torch.tensor(config.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.std)[:, None, None], persistent=False)

    def normalize(self, pixels: Tensor) -> Tensor:
        """(..., 3, H, W) float pixels 0..255 -> network input: the colour part of the declared transform."""
        if self.config.color == "whiten":
            return whiten(pixels.flatten(0, -4)).reshape(pixels.shape)
        return (pixels - self.mean) / self.std

    def forward(self, inputs: Tensor, *, bf16: bool = False) -> Tensor:
        """(B, V, 3, crop, crop) normalised inputs, one image per camera -> (B, V F) float32 features, not yet
        L2-normalised; ``bf16`` runs the backbone's convolutions in bfloat16.
        """
        B, count = inputs.shape[0], len(self.config.cameras)
        if inputs.ndim != 5 or inputs.shape[1] != count:
            raise ConfigError(
                f"expected inputs of shape (B, {count}, 3, H, W), one image for each of {list(self.config.cameras)}, "
                f"got {tuple(inputs.shape)}."
            )
        if not count:
            return inputs.new_zeros(B, 0)
        if self.config.shared:
            features: Tensor = self.views[0](inputs.flatten(0, 1), bf16=bf16)
            return features.reshape(B, -1)
        return torch.cat([view(inputs[:, v], bf16=bf16) for v, view in enumerate(self.views)], dim=1)

    def images(self, images: Mapping[str, Images] | Images) -> list[Images]:
        """The (N, H, W, 3) uint8 arrays of the encoder's cameras, in its order.

        Raises:
            ConfigError: a camera is missing, or views differ in length or in shape from those trained on.
            DataError: not images.
        """
        cameras = self.config.cameras
        if not isinstance(images, Mapping):
            if len(cameras) != 1:
                raise ConfigError(f"this encoder reads {len(cameras)} cameras, {list(cameras)}: pass images by camera.")
            images = {cameras[0]: images}
        if missing := [camera for camera in cameras if camera not in images]:
            raise ConfigError(f"the encoder reads camera {missing[0]!r}, there are {sorted(images) or 'no images'}.")
        chosen = [images[camera] for camera in cameras]
        for camera, array in zip(cameras, chosen, strict=True):
            check_images(array, f"camera {camera!r}")
            self._check_size(camera, array.shape[1], array.shape[2])
            if len(array) != len(chosen[0]):
                raise ConfigError(
                    f"camera {camera!r} has {len(array)} images, {cameras[0]!r} has {len(chosen[0])}; expected one "
                    f"for each timestep."
                )
        return chosen

    def _check_size(self, camera: str, height: int, width: int) -> None:
        size, aspect = self.config.image_size, self.config.aspects[self.config.cameras.index(camera)]
        prepared = height == width == size
        if not prepared and abs(width / height / aspect - 1) > ASPECT_TOLERANCE:
            raise ConfigError(
                f"camera {camera!r}: images are {height} x {width} pixels (width / height {width / height:.2f}), those "
                f"that this encoder was trained on had {aspect:.2f}. Crop them to that shape; resizing would distort "
                f"what it sees."
            )
        if 2 * min(height, width) < size and not self._warned:
            self._warned = True  # once: a robot would warn at every step
            logger.warning(
                "camera %r: images are %d x %d pixels, upscaled to %d x %d: they hold less than half of the detail "
                "that this encoder has room for. Unless it was trained on images as small, pass larger ones.",
                *(camera, height, width, size, size),
            )

    @torch.inference_mode()
    def encode(
        self, images: Mapping[str, Images] | Images, *, batch_size: int = 512, bf16: bool = False, count: int = 0
    ) -> np.ndarray[Any, Any]:
        """(N, V F) float32 features of images as at run time: resize, centre crop, normalise, encode.

        ``images`` are (N, H, W, 3) uint8 by camera, or one array for an encoder of one camera; ``batch_size`` is per
        camera, ``count`` N of an encoder without cameras.
        """
        views = self.images(images)
        if not views:
            return np.zeros((count, 0), np.float32)
        size, crop = self.config.image_size, self.config.crop_size
        edge = (size - crop) // 2
        parts = []
        for start in range(0, len(views[0]), batch_size):
            cropped = []
            for array in views:
                block = resize_images(np.asarray(array[start : start + batch_size]), size)
                cropped.append(np.ascontiguousarray(block[:, edge : edge + crop, edge : edge + crop]))
            stacked = torch.from_numpy(np.stack(cropped, axis=1)).to(self.mean.device)
            pixels = stacked.permute(0, 1, 4, 2, 3).float().contiguous()
            parts.append(self(self.normalize(pixels), bf16=bf16).cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, self.feature_dim), np.float32)

    def save_pretrained(self, folder: str | Path, *, card: str | None = None) -> None:
        """Write config.json and model.safetensors, checksummed, atomically; a ``card`` as README.md beside them."""
        from safetensors.torch import save_file

        def fill(path: Path) -> None:
            save_file({k: v.contiguous() for k, v in self.state_dict().items()}, path / WEIGHTS)
            write_json(path / CONFIG, to_json(Metadata(FORMAT, self.feature_dim, self.config)))
            if card is not None:
                (path / CARD).write_text(card, encoding="utf-8")

        write_folder(Path(folder), fill)

    def push_to_hub(self, name: str, *, private: bool | None = None, card: str | None = None) -> str:
        """Upload what :meth:`save_pretrained` writes as ``user/name``, by default with a short card; returns its
        address.

        Raises:
            ConfigError: as of :func:`classact.utils.hub.push_folder`.
        """
        card = encoder_card(self, name) if card is None else card
        return push_saved(lambda folder: self.save_pretrained(folder, card=card), name, private=private)

    @staticmethod
    def from_pretrained(folder: str | Path, *, revision: str | None = None) -> ImageEncoder:
        """Load an encoder.

        Args:
            folder: written by :meth:`save_pretrained`, that of a policy, which has an encoder, or a model of the hub:
                ``user/name``, ``user/name@revision``.
            revision: of the hub.

        Raises:
            CheckpointError: damaged or incomplete, another architecture, or neither here nor to be downloaded.
        """
        from safetensors.torch import load_file

        path = _local(folder, revision)
        encoder = ImageEncoder(_read_metadata(path).encoder, load_init=False)
        load_weights(encoder, load_file(path / WEIGHTS), path / WEIGHTS)
        return encoder

    def extra_repr(self) -> str:
        """What the encoder is, for error messages."""
        return f"{self.config.backbone!r} of width {self.config.width}"


def pretrained_config(folder: str | Path) -> EncoderConfig:
    """The settings of a saved encoder, without a network; errors as of :meth:`ImageEncoder.from_pretrained`."""
    return _read_metadata(_local(folder)).encoder


@dataclass(frozen=True)
class Metadata:
    """config.json of a saved encoder; ``feature_dim``, of all views, is for other readers."""

    format: str
    feature_dim: int
    encoder: EncoderConfig


def _read_metadata(path: Path) -> Metadata:
    verify_folder(path)
    value = read_json(path / CONFIG, CheckpointError)
    found = value.get("format") if isinstance(value, dict) else value
    if found != FORMAT:
        raise CheckpointError(f"{path} is no encoder: {CONFIG} is of format {found!r}, expected {FORMAT!r}.")
    return from_json(Metadata, value, str(path / CONFIG), error=CheckpointError)


def _local(folder: str | Path, revision: str | None = None) -> Path:
    path = model_folder(folder, revision)
    inner = path / "encoder"
    return inner if not (path / WEIGHTS).exists() and (inner / WEIGHTS).is_file() else path


def encoder_facts(encoder: ImageEncoder) -> dict[str, object]:
    """What a card says of an encoder."""
    config = encoder.config
    sizes = f"resized to {config.image_size} x {config.image_size}, cropped to {config.crop_size} x {config.crop_size}"
    return {
        "Backbone": f"{config.backbone}, width {config.width:g}, from {config.init}",
        "Cameras": config.cameras,
        "Images": sizes,
        "Features": encoder.feature_dim,
        "Parameters": f"{sum(parameter.numel() for parameter in encoder.parameters()):,}",
    }


def encoder_card(encoder: ImageEncoder, name: str) -> str:
    """The card of an encoder by itself, to be loaded as ``name``."""
    cameras = ", ".join(f"{camera!r}: frames" for camera in encoder.config.cameras)
    usage = f"""
from classact.models.encoders import ImageEncoder

encoder = ImageEncoder.from_pretrained("{name}")
features = encoder.encode({{{cameras}}})  # (N, H, W, 3) uint8 -> (N, {encoder.feature_dim}) float32
"""
    about = "An encoder of robots' camera images that was trained on their demonstrations, with its image transform."
    return model_card(name.rpartition("/")[2], about, encoder_facts(encoder), usage, tags=["image-feature-extraction"])
