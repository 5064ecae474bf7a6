"""Colour whitening: an image transform under which the choice of colours in a scene matters little."""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 0.02
FLOOR = 4.0  # variance (grey levels squared) below which a colour direction counts as noise and is not amplified


def _median(flat: Tensor) -> Tensor:
    """(B, 3, P) -> (B, 3, 1), the lower of two middle values."""
    if flat.is_cuda and torch.are_deterministic_algorithms_enabled():
        return _sorted_median(flat)  # torch's own is refused there
    return flat.median(dim=-1, keepdim=True).values


def _sorted_median(flat: Tensor) -> Tensor:
    middle = (flat.shape[-1] - 1) // 2
    return flat.sort(dim=-1).values[..., middle : middle + 1]


def whiten(pixels: Tensor) -> Tensor:
    """Remove each image's own colour statistics from (B, 3, H, W) float pixels, 0..255.

    The median of each channel (the background of a table-top scene) moves to zero and the 3 x 3 second-moment matrix of
    the differences from it to the identity. In an image where one colour fills more than half, any affine change of its
    colours (tint, contrast, another palette of up to four colours) leaves the result unchanged up to a rotation of
    colour space and the regularisation; in others the median may become another colour.
    """
    flat = pixels.flatten(2)
    flat = flat - _median(flat)
    moment = flat @ flat.transpose(1, 2) / flat.shape[-1]
    values, vectors = torch.linalg.eigh(moment)
    values = values.clamp_min(0)
    scale = torch.rsqrt(values + RIDGE * values[:, -1:] + FLOOR)
    matrix = (vectors * scale[:, None, :]) @ vectors.transpose(1, 2)
    return (matrix @ flat).reshape(pixels.shape)
