"""Random views of image batches: each image drawn on its own, on the device, from a given generator.

The paper's augmentations are a random crop per image and Gaussian noise (4.2, C.1); colour changes are an option (F.2)
and off by default, because Rand-Color results with and without them are not comparable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from classact.errors import ConfigError
from classact.train.config import AugmentConfig


@dataclass(frozen=True)
class Part:
    """Rows of a batch of ``total``: what one process or one micro-batch computes of it.

    Random numbers are drawn for the whole batch and then cut, so that its views do not depend on how it is shared.
    """

    rows: slice
    total: int

    def cut(self, drawn: Tensor) -> Tensor:
        """The part of what was drawn for all ``total`` rows."""
        return drawn[self.rows]


PIXEL_RANGE = (0.0, 255.0)
WIDE_RANGE = (-94.0, 349.0)  # beyond 0..255 (a rotated RGB cube): clamping would merge colours of a palette


def _whole(images: Tensor, part: Part | None) -> Part:
    return Part(slice(0, len(images)), len(images)) if part is None else part


def random_crop(
    images: Tensor, size: int, generator: torch.Generator, *, per: str = "image", part: Part | None = None
) -> Tensor:
    """(B, H, W, 3) uint8 images -> (B, size, size, 3) random crops; ``per`` is ``crop`` of :class:`AugmentConfig`.

    A crop larger than the images is a ConfigError.
    """
    B, H, W, _ = images.shape
    if not 1 <= size <= min(H, W):
        raise ConfigError(f"expected a crop of 1 to {min(H, W)} pixels for images of {H} x {W}, got {size}.")
    whole = _whole(images, part)
    count = whole.total if per == "image" else 1
    device = images.device

    def draw(most: int) -> Tensor:
        drawn = torch.randint(0, most + 1, (count, 1), generator=generator, device=device)
        return whole.cut(drawn.expand(whole.total, 1))

    top, left = draw(H - size), draw(W - size)
    offset = torch.arange(size, device=device)
    rows = (top + offset)[:, :, None]
    columns = (left + offset)[:, None, :]
    return images[torch.arange(B, device=device)[:, None, None], rows, columns]


@cache
def _color_bases(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Projection onto the grey axis, identity, and cross product with that axis: (3, 3) each.

    Cached, because copying them onto a GPU synchronises with it.
    """
    with torch.inference_mode(False):
        cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=dtype, device=device) / math.sqrt(3)
        return torch.full((3, 3), 1 / 3, dtype=dtype, device=device), torch.eye(3, dtype=dtype, device=device), cross


def hsv_matrices(batch: int, config: AugmentConfig, generator: torch.Generator, device: torch.device) -> Tensor:
    """(B, 3, 3) colour matrices: a rotation about the grey axis (hue), then a scaling of the distance to it."""
    turn = (torch.rand(batch, generator=generator, device=device) * 2 - 1) * config.hue * 2 * math.pi
    c, s = torch.cos(turn)[:, None, None], torch.sin(turn)[:, None, None]
    grey, eye, cross = _color_bases(turn.device, turn.dtype)
    # Rodrigues' formula with the unit axis (1, 1, 1) / sqrt(3).
    rotation = c * eye + s * cross + (1 - c) * grey
    factor = 1 + (torch.rand(batch, 1, 1, generator=generator, device=device) * 2 - 1) * config.saturation
    return (factor * eye + (1 - factor) * grey) @ rotation


def random_rotations(batch: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """(B, 3, 3) orthogonal matrices, uniform over rotations and reflections (Mezzadri 2007)."""
    Q, R = torch.linalg.qr(torch.randn(batch, 3, 3, generator=generator, device=device))
    # The signs that LAPACK leaves in R make Q neither uniform nor ever a reflection.
    return Q * torch.sign(R.diagonal(dim1=1, dim2=2))[:, None, :]


def change_color(pixels: Tensor, config: AugmentConfig, generator: torch.Generator, part: Part | None = None) -> Tensor:
    """Random colours for each image: (B, 3, H, W) float 0..255 -> the same shape."""
    whole = _whole(pixels, part)
    B, device = whole.total, pixels.device
    if config.color == "none":
        return pixels
    if config.color == "hsv":
        matrix = hsv_matrices(B, config, generator, device)
        shift = (torch.rand(B, 1, generator=generator, device=device) * 2 - 1) * config.brightness
        center = 0.0
    elif config.color == "rotate":
        matrix = random_rotations(B, generator, device)
        shift = torch.zeros(B, 1, device=device)
        center = 127.5
    else:
        stretch = torch.randn(B, 3, 3, generator=generator, device=device)
        matrix = 0.6 * random_rotations(B, generator, device) + 0.35 * stretch
        shift = torch.randn(B, 3, generator=generator, device=device) * config.brightness
        center = 127.5
    flat = whole.cut(matrix) @ (pixels - center).flatten(2) + whole.cut(shift + center)[:, :, None]
    return flat.reshape(pixels.shape).clamp_(*color_range(config))


def color_range(config: AugmentConfig) -> tuple[float, float]:
    """Lowest and highest pixel value of a view."""
    return WIDE_RANGE if config.color in ("rotate", "affine") else PIXEL_RANGE


def augment(
    images: Tensor, crop_size: int, config: AugmentConfig, generator: torch.Generator, part: Part | None = None
) -> Tensor:
    """One random view of each (B, H, W, 3) uint8 image: (B, 3, crop_size, crop_size) float32 pixels, within
    :func:`color_range`. Images of a ``part`` get the views of the whole batch.
    """
    whole = _whole(images, part)
    cropped = random_crop(images, crop_size, generator, per=config.crop, part=whole)
    pixels = change_color(cropped.permute(0, 3, 1, 2).float().contiguous(), config, generator, whole)
    if config.noise_std:
        shape = (whole.total, *pixels.shape[1:])
        noise = whole.cut(torch.randn(shape, generator=generator, device=pixels.device))
        pixels = pixels.add_(noise, alpha=config.noise_std).clamp_(*color_range(config))
    return pixels
