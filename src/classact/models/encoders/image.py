"""The image encoder f_theta: declared image transform, trunk, pooling of its maps; saved as one small folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from classact.data.images import resize_images
from classact.data.schema import check_images
from classact.data.types import ImageArray
from classact.errors import CheckpointError, ConfigError, UnknownNameError, choose
from classact.models.encoders.color import whiten
from classact.models.encoders.equivariant import EquivariantResNet
from classact.models.encoders.layers import SpatialSoftmax
from classact.models.encoders.resnet import ResNet18, initialize
from classact.models.encoders.small import SmallResNet
from classact.utils.storage import read_json, verify_folder, write_folder

INITS = ("scratch", "imagenet", "r3m")
COLORS = ("rgb", "whiten")
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
ASPECT_TOLERANCE = 0.02
FORMAT = "classact-encoder-2"
FORMAT_1 = "classact-encoder-1"
"""Of one camera, before there could be several; still read."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trunk:
    """A network that makes maps of an image, and how its maps become features.

    Attributes:
        make: width -> network, (B, 3, S, S) -> maps (B, C, H, W).
        pool: settings, H, W -> module, maps -> features (B, F).
    """

    make: Callable[[float], nn.Module]
    pool: Callable[[EncoderConfig, int, int], nn.Module]


def _coordinates(config: EncoderConfig, height: int, width: int) -> nn.Module:
    """Where in the image each map is high (paper C.1)."""
    if min(height, width) < 2:
        raise ConfigError(
            f"encoder {config.trunk!r} makes {height} x {width} maps of a crop of {config.crop_size} pixels, where "
            f"every coordinate is the same; choose a larger crop_size (and image_size)."
        )
    return SpatialSoftmax(height, width)


def _values(_: EncoderConfig, __: int, ___: int) -> nn.Module:
    """The maps' cells themselves."""
    return nn.Flatten()


TRUNKS: dict[str, Trunk] = {
    "small": Trunk(SmallResNet, _coordinates),
    "resnet18": Trunk(ResNet18, _coordinates),
    "equivariant": Trunk(EquivariantResNet, _values),
}


@dataclass(frozen=True)
class EncoderConfig:
    """An encoder of one camera or several, and its image transform, which travels with the weights.

    Attributes:
        trunk: "small" (minutes on a CPU), "resnet18" (the paper's) or "equivariant" (of its baseline EquiVar; with mean
            and std 127.5, and the extra equivar).
        width: factor on the trunk's channels.
        cameras: which views it reads; their features are concatenated in this order (F.1: a wrist camera).
        shared: one network for all views, instead of one each (the released code).
        image_size: images are resized to this side first (paper: 256).
        crop_size: side of the random crop in training and the centre crop in evaluation (paper: 224).
        mean, std: channel normalisation of 0..255 values; ignored when color is "whiten".
        color: "rgb", or "whiten": remove each image's own colour statistics (see encoders/color.py).
        aspect: width / height of the camera's images before they are resized to a square; other ones are refused.
            None: any, of encoders that were saved before it was kept.
        init: initial weights: "scratch", "imagenet" or "r3m" (the last two for resnet18).
        init_path: local R3M checkpoint.
    """

    trunk: str = "small"
    width: float = 1.0
    cameras: tuple[str, ...] = ("top",)
    shared: bool = False
    image_size: int = 64
    crop_size: int = 56
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (64.0, 64.0, 64.0)
    color: str = "rgb"
    aspect: float | None = 1.0
    init: str = "scratch"
    init_path: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.cameras, str) or not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(f"expected a tuple of at least one camera, each named once, got {self.cameras!r}.")
        for kind, value, known in (
            ("encoder trunk", self.trunk, TRUNKS),
            ("init", self.init, INITS),
            ("color", self.color, COLORS),
        ):
            if value not in known:
                raise UnknownNameError(choose(kind, value, known))
        if not min(self.width, 1.0 if self.aspect is None else self.aspect, *self.std) > 0:
            raise ConfigError(
                f"expected width > 0, std > 0 and aspect > 0, got width {self.width}, std {self.std}, aspect "
                f"{self.aspect}."
            )
        if not 16 <= self.crop_size <= self.image_size:
            raise ConfigError(
                f"expected 16 <= crop_size <= image_size, got crop_size {self.crop_size} and image_size "
                f"{self.image_size}."
            )


class View(nn.Module):
    """What one view passes through: trunk, then what makes features of its maps.

    Attributes:
        feature_dim: F; of a spatial softmax twice the number of feature maps.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        kind = TRUNKS[config.trunk]
        self.trunk = kind.make(config.width)
        with torch.no_grad():
            maps = self.trunk(torch.zeros(0, 3, config.crop_size, config.crop_size))
            self.pool = kind.pool(config, maps.shape[2], maps.shape[3])
            self.feature_dim = int(self.pool(maps).shape[1])

    def forward(self, inputs: Tensor, *, bf16: bool = False) -> Tensor:
        """(B, 3, crop, crop) -> (B, F) float32."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=bf16):
            maps = self.trunk(inputs)
        features: Tensor = self.pool(maps)
        return features.float()


class ImageEncoder(nn.Module):
    """Maps the images of one moment to features: of each view trunk and pooling, mostly a spatial softmax (4.2, C.1).

    Attributes:
        config: architecture and image transform.
        views: one network for each camera, or the one that all share.
        feature_dim: F V, the features of all V views.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig, *, seed: int = 0, load_init: bool = True) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU as well
            count = 1 if config.shared else len(config.cameras)
            views = [View(config) for _ in range(count)]
        self.views = nn.ModuleList(views)
        if load_init:
            for view in views:
                initialize(view.trunk, config.init, config.init_path)
        self.feature_dim = len(config.cameras) * views[0].feature_dim
        self._warned = False
        self.register_buffer("mean", torch.tensor(config.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.std)[:, None, None], persistent=False)

    def normalize(self, pixels: Tensor) -> Tensor:
        """(..., 3, H, W) float pixels 0..255 -> network input. The colour part of the declared transform."""
        if self.config.color == "whiten":
            return whiten(pixels.flatten(0, -4)).reshape(pixels.shape)
        return (pixels - self.mean) / self.std

    def forward(self, inputs: Tensor, *, bf16: bool = False) -> Tensor:
        """Normalised inputs -> features, not yet L2-normalised.

        Args:
            inputs: (B, V, 3, crop, crop), one image for each camera.
            bf16: run the trunk's convolutions in bfloat16.

        Returns:
            (B, V F) float32, camera by camera.

        Raises:
            ConfigError: another number of views.
        """
        B, count = inputs.shape[0], len(self.config.cameras)
        if inputs.ndim != 5 or inputs.shape[1] != count:
            raise ConfigError(
                f"expected inputs of shape (B, {count}, 3, H, W), one image for each of {list(self.config.cameras)}, "
                f"got {tuple(inputs.shape)}."
            )
        if self.config.shared:
            features: Tensor = self.views[0](inputs.flatten(0, 1), bf16=bf16)
            return features.reshape(B, -1)
        return torch.cat([view(inputs[:, v], bf16=bf16) for v, view in enumerate(self.views)], dim=1)

    def images(self, images: Mapping[str, ImageArray] | ImageArray) -> list[ImageArray]:
        """The (N, H, W, 3) uint8 arrays of the encoder's cameras, in its order.

        Args:
            images: by camera; or one array for an encoder of one camera.

        Raises:
            ConfigError: a camera is missing, or views differ in length or in shape from those trained on.
            DataError: what is there are no images.
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
            self._check_aspect(camera, array.shape[1], array.shape[2])
            self._check_detail(camera, array.shape[1], array.shape[2])
            if len(array) != len(chosen[0]):
                raise ConfigError(
                    f"camera {camera!r} has {len(array)} images, {cameras[0]!r} has {len(chosen[0])}; expected one "
                    f"for each moment."
                )
        return chosen

    def _check_aspect(self, camera: str, height: int, width: int) -> None:
        aspect = self.config.aspect
        prepared = height == width == self.config.image_size
        if not prepared and aspect is not None and abs(width / height / aspect - 1) > ASPECT_TOLERANCE:
            raise ConfigError(
                f"camera {camera!r}: images are {height} x {width} pixels (width / height {width / height:.2f}), those "
                f"that this encoder was trained on had {aspect:.2f}. Crop them to that shape; resizing "
                f"would distort what it sees."
            )

    def _check_detail(self, camera: str, height: int, width: int) -> None:
        size = self.config.image_size
        if 2 * min(height, width) < size and not self._warned:
            self._warned = True  # once: a robot would say it at every step
            logger.warning(
                "camera %r: images are %d x %d pixels, upscaled to %d x %d: they hold less than half of the detail "
                "that this encoder has room for. Unless it was trained on images as small, pass larger ones.",
                camera,
                height,
                width,
                size,
                size,
            )

    @torch.inference_mode()
    def encode(
        self, images: Mapping[str, ImageArray] | ImageArray, *, batch_size: int = 512, bf16: bool = False
    ) -> np.ndarray[Any, Any]:
        """Features of images as they are at run time: resize, centre crop, normalise, encode.

        Args:
            images: camera -> (N, H, W, 3) uint8; or one array for an encoder of one camera.
            batch_size: images per pass and camera.
            bf16: as in :meth:`forward`.

        Returns:
            (N, V F) float32.
        """
        views = self.images(images)
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

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json and model.safetensors, sealed with checksums, in one step."""
        from safetensors.torch import save_file

        card = {"format": FORMAT, "feature_dim": self.feature_dim, "encoder": asdict(self.config)}

        def fill(path: Path) -> None:
            save_file({k: v.contiguous() for k, v in self.state_dict().items()}, path / WEIGHTS)
            (path / CONFIG).write_text(_dump(card), encoding="utf-8")

        write_folder(Path(folder), fill)

    @staticmethod
    def from_pretrained(folder: str | Path) -> ImageEncoder:
        """Load a folder written by :meth:`save_pretrained`, or a Hugging Face hub id of such a folder.

        Raises:
            CheckpointError: damaged, incomplete, or of another architecture.
        """
        from safetensors.torch import load_file

        path = _local(folder)
        config, found = _read_card(path)
        state = load_file(path / WEIGHTS)
        if found == FORMAT_1:
            state = {f"views.0.{name}": value for name, value in state.items()}
        encoder = ImageEncoder(config, load_init=False)
        encoder.load_weights(state, path / WEIGHTS)
        return encoder

    def load_weights(self, state: dict[str, Tensor], source: Path) -> None:
        """Copy weights in; names and shapes must match exactly.

        Raises:
            CheckpointError: naming the first difference and both architectures.
        """
        own = self.state_dict()
        what = f"this encoder is {self.config.trunk!r} of width {self.config.width}"
        if missing := sorted(own.keys() - state.keys()):
            raise CheckpointError(
                f"{source} lacks {missing[0]} ({len(missing)} of {len(own)} tensors missing); {what}."
            )
        if extra := sorted(state.keys() - own.keys()):
            raise CheckpointError(f"{source} holds {extra[0]} ({len(extra)} tensors unknown here); {what}.")
        for name, value in own.items():
            if value.shape != state[name].shape:
                raise CheckpointError(
                    f"{source}: {name} has shape {tuple(state[name].shape)}, expected {tuple(value.shape)}; {what}. "
                    f"The checkpoint is of another architecture."
                )
        self.load_state_dict(state)


def pretrained_config(folder: str | Path) -> EncoderConfig:
    """The settings of an encoder that :meth:`ImageEncoder.from_pretrained` would load; no network is built.

    Raises:
        CheckpointError: no encoder, a damaged one, or one of another version.
    """
    return _read_card(_local(folder))[0]


def _read_card(path: Path) -> tuple[EncoderConfig, str]:
    """Settings and format of a saved encoder, whose files are whole."""
    verify_folder(path)
    card = read_json(path / CONFIG, CheckpointError)
    found = card.get("format") if isinstance(card, dict) else card
    if found not in (FORMAT, FORMAT_1):
        raise CheckpointError(f"{path} is no encoder: {CONFIG} is of format {found!r}, expected {FORMAT!r}.")
    settings = card.get("encoder")
    if found == FORMAT_1 and isinstance(settings, dict) and "camera" in settings:
        several = {"cameras": [settings["camera"]], "shared": False, "aspect": None}
        settings = {k: v for k, v in settings.items() if k != "camera"} | several
    return encoder_config_from_json(settings, path / CONFIG), found


def encoder_config_from_json(value: Any, where: Path) -> EncoderConfig:
    """An EncoderConfig from plain JSON; unknown or missing keys are named."""
    known = EncoderConfig.__dataclass_fields__
    if not isinstance(value, dict) or set(value) != set(known):
        got = sorted(value) if isinstance(value, dict) else value
        raise CheckpointError(
            f"{where}: expected encoder settings {sorted(known)}, got {got}: another version wrote it."
        )
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    return EncoderConfig(**plain)


def _dump(value: Any) -> str:
    import json

    return json.dumps(value, indent=2) + "\n"


def _local(folder: str | Path) -> Path:
    path = Path(folder)
    if path.exists() or len(path.parts) != 2:
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(folder)))
    except Exception as error:
        raise CheckpointError(
            f"{folder} is neither a local folder nor a hub repository that could be downloaded ({error})."
        ) from None
