"""An encoder that turns with the image: the image encoder of Equivariant Diffusion Policy (arXiv 2407.01812).

Its features are fields over the eight rotations of the group C8: rotating the image by 45 degrees shifts each field by
one place. The filters are weighted sums of a fixed basis, which the package escnn computes (arXiv 1911.08251). The
layers are plain PyTorch around these bases: escnn's own keep expanded filters in evaluation mode, which averaged
weights would not update, and their names in a checkpoint depend on the mode.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from classact.errors import ConfigError, MissingDependencyError

ROTATIONS = 8  # elements of C8, the channels of one regular field
WIGNER = "lie_learn.representations.SO3.wigner_d"
LAST_MAPS = 3  # side of the maps that the last convolution turns into one cell
HALVINGS = 3
FIRST_KERNEL = 5
SMALLEST_CROP = LAST_MAPS * 2**HALVINGS + FIRST_KERNEL - 1


def _wigner_d_matrix(*_: Any, **__: Any) -> Any:
    raise MissingDependencyError(
        "escnn was loaded by classact without a working lie_learn, which rotations of the plane do not need. "
        "Representations of rotations in space (SO(3)) do: install a lie_learn that works with the NumPy that is here, "
        "and import escnn before classact's encoder 'equivariant' is made."
    )


@contextmanager
def _without_lie_learn() -> Iterator[None]:
    """Let escnn be imported where lie_learn is missing or broken (its binaries end with NumPy 1).

    escnn uses one function of it, for rotations in space only. A working lie_learn is never replaced, and the stand-in
    is removed after the import.
    """
    works = None
    with suppress(Exception):  # a binary for another NumPy fails with whatever it meets first
        works = importlib.import_module(WIGNER)
    if works:
        yield
        return
    stand_in: Any = ModuleType(WIGNER)
    stand_in.wigner_D_matrix = _wigner_d_matrix
    sys.modules[WIGNER] = stand_in
    try:
        yield
    finally:
        del sys.modules[WIGNER]


@cache
def _escnn() -> tuple[Any, Any]:
    try:
        with warnings.catch_warnings(), _without_lie_learn():
            warnings.filterwarnings("ignore", "`py3nj` package not found", UserWarning)
            warnings.filterwarnings("ignore", ".*invalid escape sequence")  # in a docstring, when it is first compiled
            return importlib.import_module("escnn.gspaces"), importlib.import_module("escnn.nn")
    except (ImportError, OSError) as error:  # OSError: its cache is a folder beside its code
        raise MissingDependencyError(
            f"the encoder 'equivariant' needs the package escnn ({error}). In a checkout install it with: uv sync "
            f"--extra equivar. With pip: pip install joblib && pip install --no-deps escnn==1.0.11 (it names py3nj and "
            f"lie_learn, which need a Fortran compiler and NumPy 1 and are not used here)."
        ) from None


@cache
def steerable_basis(kernel_size: int, regular: bool) -> tuple[Tensor, Tensor]:
    """All filters from one field to one regular field that turn with the image.

    Args:
        kernel_size: k, side of the filters.
        regular: whether the input is a regular field (c = 8 channels), or a trivial one (c = 1, a colour).

    Returns a (D, 8, c, k, k) float32 basis of D filters, and (D,) the standard deviation of each coefficient by He
    initialisation, generalised to steerable filters (arXiv 1711.07289), for one input field.
    """
    gspaces, layers = _escnn()
    with torch.random.fork_rng(devices=[]):
        plane = gspaces.rot2dOnR2(ROTATIONS)
        one = layers.FieldType(plane, [plane.regular_repr if regular else plane.trivial_repr])
        convolution = layers.R2Conv(one, layers.FieldType(plane, [plane.regular_repr]), kernel_size, initialize=False)
    expand = convolution.basisexpansion
    filters = torch.stack([expand(coefficients).detach() for coefficients in torch.eye(expand.dimension())])
    kinds = [(info["out_irreps_position"], info["in_irrep"]) for info in expand.get_basis_info()]
    filters_of = Counter(kinds)
    kinds_into = Counter(target for target, _ in filters_of)
    variances = [1 / (kinds_into[kind[0]] * filters_of[kind]) for kind in kinds]
    channels = ROTATIONS if regular else 1
    basis = filters.reshape(-1, ROTATIONS, channels, kernel_size, kernel_size)
    return basis, torch.tensor(variances).sqrt()


class SteerableConv(nn.Module):
    """A convolution between fields of C8, as escnn's R2Conv computes it: (B, c I, H, W) -> (B, 8 O, H', W').

    The I input fields are regular ones (c = 8) or colours (c = 1). The bias is one number per field, the coefficient of
    the constant vector of length 1.
    """

    basis: Tensor

    def __init__(
        self,
        fields_in: int,
        fields: int,
        kernel_size: int,
        padding: int = 0,
        *,
        regular: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        basis, deviation = steerable_basis(kernel_size, regular)
        self.kernel_size, self.padding, self.channels = kernel_size, padding, basis.shape[2]
        self.weight = nn.Parameter(torch.randn(fields, fields_in, len(basis)) * deviation / fields_in**0.5)
        self.bias = nn.Parameter(torch.zeros(fields)) if bias else None
        # Saved with the coefficients, which mean nothing in another basis; flat, because it has no image layout.
        self.register_buffer("basis", basis.flatten(1).clone())

    def filters(self) -> Tensor:
        """(8 O, c I, k, k), from the present coefficients."""
        fields, fields_in, k = self.weight.shape[0], self.weight.shape[1], self.kernel_size
        with torch.autocast(self.weight.device.type, enabled=False):  # rounded once, by the convolution
            sums = self.weight @ self.basis
        sums = sums.reshape(fields, fields_in, ROTATIONS, self.channels, k, k).transpose(1, 2)
        return sums.reshape(fields * ROTATIONS, fields_in * self.channels, k, k)

    def forward(self, x: Tensor) -> Tensor:
        """Fields of a batch of fields."""
        bias = None if self.bias is None else self.bias.repeat_interleave(ROTATIONS) * ROTATIONS**-0.5
        return functional.conv2d(x, self.filters(), bias, padding=self.padding)


class SteerableBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, without normalisation."""

    def __init__(self, fields_in: int, fields: int) -> None:
        super().__init__()
        self.conv1 = SteerableConv(fields_in, fields, 3, 1)
        self.conv2 = SteerableConv(fields, fields, 3, 1)
        self.shortcut = nn.Identity() if fields_in == fields else SteerableConv(fields_in, fields, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 8 I, H, W) -> (B, 8 O, H, W)."""
        out: Tensor = self.conv2(torch.relu(self.conv1(x)))
        return torch.relu(out + self.shortcut(x))


def shrink(maps: Tensor, side: int) -> Tensor:
    """Maximum pooling of square maps to ``side`` x ``side``, symmetric, so that it commutes with quarter turns.

    The stride is floor(S / side). Windows are as large as needed for the last one to end at the last pixel: where
    ``side`` divides S they are adjacent, else they overlap.
    """
    size = maps.shape[-1]
    stride = size // side
    return functional.max_pool2d(maps, size - (side - 1) * stride, stride)


class EquivariantResNet(nn.Module):
    """The C8-equivariant residual network: (B, 3, S, S) -> (B, 1024 width, 1, 1), regular fields of eight channels.

    At width 1: a 5x5 convolution to 16 fields, pairs of residual blocks of 16, 32, 64 and 128 fields with the maps
    halved between them, maximum pooling to 3 x 3, a 3x3 convolution; 4.5 million parameters. At the published 76 pixels
    the maps are 72, 36, 18, 9, 3, 1; at the paper's 224 (C.2) 220, 110, 55, 27, 3, 1. At every size the features turn
    exactly with quarter turns of the image, with odd eighths as far as pixels allow.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        first = max(1, round(16 * width))
        fields = [first << i for i in range(HALVINGS + 1)]
        self.stem = SteerableConv(3, first, FIRST_KERNEL, regular=False)
        pairs = zip([first, *fields], fields, strict=False)
        self.stages = nn.ModuleList(nn.Sequential(SteerableBlock(i, o), SteerableBlock(o, o)) for i, o in pairs)
        self.last = SteerableConv(fields[-1], fields[-1], LAST_MAPS)

    def forward(self, x: Tensor) -> Tensor:
        """Fields of a batch of images, one cell each."""
        if x.shape[-1] < SMALLEST_CROP:
            raise ConfigError(
                f"the encoder 'equivariant' needs crops of at least {SMALLEST_CROP} pixels, got {x.shape[-1]}; choose "
                f"a larger crop_size (and image_size)."
            )
        x = torch.relu(self.stem(x))
        for i, stage in enumerate(self.stages):
            if i:
                x = shrink(x, x.shape[-1] // 2)
            x = stage(x)
        return torch.relu(self.last(shrink(x, LAST_MAPS)))
