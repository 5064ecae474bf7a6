"""The image encoder f_theta: declared image transform, trunk, spatial softmax; saved as one small folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from classact.encoders.color import whiten
from classact.encoders.layers import SpatialSoftmax
from classact.encoders.resnet import ResNet18, initialize
from classact.encoders.small import SmallResNet
from classact.errors import CheckpointError, ConfigError, choose
from classact.images import resize_images
from classact.storage import read_json, verify_folder, write_folder
from classact.types import ImageArray

TRUNKS: dict[str, type[nn.Module]] = {"small": SmallResNet, "resnet18": ResNet18}
INITS = ("scratch", "imagenet", "r3m")
COLORS = ("rgb", "whiten")
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FORMAT = "classact-encoder-1"


@dataclass(frozen=True)
class EncoderConfig:
    """One camera's encoder and its image transform, which travels with the weights.

    Attributes:
        trunk: "small" (minutes on a CPU) or "resnet18" (the paper's).
        width: factor on the trunk's channels.
        camera: which camera image it reads.
        image_size: images are resized to this side first (paper: 256).
        crop_size: side of the random crop in training and the centre crop in evaluation (paper: 224).
        mean, std: channel normalisation of 0..255 values; ignored when color is "whiten".
        color: "rgb", or "whiten": remove each image's own colour statistics (see encoders/color.py).
        init: initial weights: "scratch", "imagenet" or "r3m" (the last two for resnet18).
        init_path: local R3M checkpoint.
    """

    trunk: str = "small"
    width: float = 1.0
    camera: str = "top"
    image_size: int = 64
    crop_size: int = 56
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (64.0, 64.0, 64.0)
    color: str = "rgb"
    init: str = "scratch"
    init_path: str | None = None

    def __post_init__(self) -> None:
        for kind, value, known in (
            ("encoder trunk", self.trunk, TRUNKS),
            ("init", self.init, INITS),
            ("color", self.color, COLORS),
        ):
            if value not in known:
                raise ConfigError(choose(kind, value, known))
        if not self.width > 0 or not min(self.std) > 0:
            raise ConfigError(f"expected width > 0 and std > 0, got width {self.width} and std {self.std}.")
        if not 16 <= self.crop_size <= self.image_size:
            raise ConfigError(
                f"expected 16 <= crop_size <= image_size, got crop_size {self.crop_size} and image_size "
                f"{self.image_size}."
            )


class ImageEncoder(nn.Module):
    """Maps images to features: trunk, then spatial softmax (paper 4.2, C.1).

    Attributes:
        config: architecture and image transform.
        feature_dim: F, twice the number of feature maps.
    """

    def __init__(self, config: EncoderConfig, *, seed: int = 0, load_init: bool = True) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU as well
            self.trunk = TRUNKS[config.trunk](config.width)
        if load_init:
            initialize(self.trunk, config.init, config.init_path)
        with torch.no_grad():
            maps = self.trunk(torch.zeros(1, 3, config.crop_size, config.crop_size))
        if min(maps.shape[2:]) < 2:
            raise ConfigError(
                f"encoder {config.trunk!r} makes {maps.shape[2]} x {maps.shape[3]} maps of a crop of "
                f"{config.crop_size} pixels, where every coordinate is the same; choose a larger crop_size (and "
                f"image_size)."
            )
        self.pool = SpatialSoftmax(maps.shape[2], maps.shape[3])
        self.feature_dim = 2 * int(maps.shape[1])
        self.register_buffer("mean", torch.tensor(config.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.std)[:, None, None], persistent=False)

    mean: Tensor
    std: Tensor

    def normalize(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) float pixels 0..255 -> network input. The colour part of the declared transform."""
        return whiten(pixels) if self.config.color == "whiten" else (pixels - self.mean) / self.std

    def forward(self, inputs: Tensor, *, bf16: bool = False) -> Tensor:
        """(B, 3, crop, crop) normalised inputs -> (B, F) float32 features, not yet L2-normalised.

        Args:
            bf16: run the trunk's convolutions in bfloat16.
        """
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=bf16):
            maps = self.trunk(inputs)
        features: Tensor = self.pool(maps)
        return features

    @torch.inference_mode()
    def encode(self, images: ImageArray, *, batch_size: int = 512, bf16: bool = False) -> np.ndarray[Any, Any]:
        """Features of images as they are at run time: resize, centre crop, normalise, encode.

        Args:
            images: (N, H, W, 3) uint8.
            batch_size: images per pass.
            bf16: as in :meth:`forward`.

        Returns:
            (N, F) float32.
        """
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise ConfigError(
                f"expected images of shape (N, H, W, 3) and dtype uint8, got {images.shape} {images.dtype}."
            )
        size, crop = self.config.image_size, self.config.crop_size
        edge = (size - crop) // 2
        parts = []
        for start in range(0, len(images), batch_size):
            block = resize_images(np.asarray(images[start : start + batch_size]), size)
            cropped = np.ascontiguousarray(block[:, edge : edge + crop, edge : edge + crop])
            pixels = torch.from_numpy(cropped).to(self.mean.device).permute(0, 3, 1, 2).float().contiguous()
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
        verify_folder(path)
        card = read_json(path / CONFIG, CheckpointError)
        found = card.get("format") if isinstance(card, dict) else card
        if found != FORMAT:
            raise CheckpointError(f"{path} is no encoder: {CONFIG} is of format {found!r}, expected {FORMAT!r}.")
        config = encoder_config_from_json(card.get("encoder"), path / CONFIG)
        encoder = ImageEncoder(config, load_init=False)
        encoder.load_weights(load_file(path / WEIGHTS), path / WEIGHTS)
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
