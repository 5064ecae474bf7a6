"""Building blocks shared by the image encoders."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from classact.errors import ConfigError
from classact.models.encoders.config import EncoderConfig


def group_norm(channels: int, groups: int = 16) -> nn.GroupNorm:
    """GroupNorm of at most ``groups`` equal groups with at least four channels each."""
    most = min(groups, channels // 4)
    return nn.GroupNorm(max((g for g in range(1, most + 1) if channels % g == 0), default=1), channels)


def replace_batch_norm(module: nn.Module, groups: int = 16) -> nn.Module:
    """Replace every BatchNorm2d by a new GroupNorm (paper C.1).

    Affine parameters and running statistics are discarded: of pre-trained weights only the convolutions stay.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, group_norm(child.num_features, groups))
        else:
            replace_batch_norm(child, groups)
    return module


def backward_without_barriers(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
    """A forward hook of 3x3 convolutions with stride 2: on two cores, their backward pass uses one thread where that
    computes the same bits as two.

    In bfloat16 oneDNN shares transposed pixels among threads there and spins until all are done, also while another
    process has the other core: beside a busy one this took several times as long as everything else.
    """
    if torch.compiler.is_compiling() or out.grad_fn is None or (out.device.type, out.dtype) != ("cpu", torch.bfloat16):
        return
    assert isinstance(module, nn.Conv2d)
    if torch.get_num_threads() != 2 or not out.is_contiguous():
        return
    if _one_thread_is_as_two(inputs[0].shape, module.weight.shape, out.shape):
        out.grad_fn.register_prehook(lambda _: torch.set_num_threads(1))
        out.grad_fn.register_hook(lambda *_: torch.set_num_threads(2))


@cache
def _one_thread_is_as_two(*shapes: torch.Size) -> bool:
    """Tested once per shape of inputs, weights and outputs, on which oneDNN's split of sums among threads depends."""
    generator = torch.Generator().manual_seed(0)
    x, w, y = (torch.randn(shape, generator=generator).bfloat16() for shape in shapes)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        backward = torch.ops.aten.convolution_backward
        found.append(backward(y, x, w, None, (2, 2), (1, 1), (1, 1), False, (0, 0), 1, (True, True, False))[:2])
    return all(torch.equal(one, two) for one, two in zip(*found, strict=True))


class SpatialSoftmax(nn.Module):
    """Expected image coordinates of each feature map: (B, C, H, W) -> (B, 2 C), x then y of each map, in [-1, 1].

    The temperature is learned, from 1. Computed in float32 whatever the backbone ran in.
    """

    grid: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))
        ys, xs = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        self.register_buffer("grid", torch.stack([xs.flatten(), ys.flatten()], dim=-1), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Coordinates of a batch of feature maps."""
        # Multiplying by the inverse: the backward pass of a division costs several times as much on a CPU.
        attention = torch.softmax(maps.float().flatten(2) * self.temperature.reciprocal(), dim=-1)  # (B, C, H W)
        return (attention @ self.grid).flatten(1)


def coordinates(config: EncoderConfig, height: int, width: int) -> nn.Module:
    """Spatial softmax: where in the image each map is high (paper C.1)."""
    if min(height, width) < 2:
        raise ConfigError(
            f"encoder {config.backbone!r} makes {height} x {width} maps of a crop of {config.crop_size} pixels, where "
            f"every coordinate is the same; choose a larger crop_size (and image_size)."
        )
    return SpatialSoftmax(height, width)


def average(*_: object) -> nn.Module:
    """The mean of each map."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def values(*_: object) -> nn.Module:
    """The cells of the maps, unpooled."""
    return nn.Flatten()


class Subsample(nn.Module):
    """Keep every ``stride``-th pixel: before a 1x1 convolution the same as its stride, whose backward pass is slow on
    CPUs.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride))."""
        return x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride].contiguous()


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm and a shortcut (He et al., 2016)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = group_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = group_norm(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            project = nn.Conv2d(channels_in, channels, 1, bias=False)
            self.shortcut = nn.Sequential(Subsample(stride), project, group_norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H / stride, W / stride)."""
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))
