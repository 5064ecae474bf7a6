from __future__ import annotations

import pytest
import torch
from torch import nn

from classact.models.encoders.layers import ResidualBlock, SpatialSoftmax, Subsample, group_norm, replace_batch_norm


@pytest.mark.parametrize("place", [(0, 0), (2, 5), (4, 6), (3, 0)])
def test_spatial_softmax_of_one_bright_cell_is_its_place(place: tuple[int, int]) -> None:
    """5 rows, 7 columns: x runs over columns, y over rows, both from -1 to 1."""
    maps = torch.zeros(2, 3, 5, 7)
    maps[1, 2, *place] = 100.0
    found = SpatialSoftmax(5, 7)(maps)
    assert found.shape == (2, 6)
    expected = torch.zeros(2, 6)
    expected[1, 4:] = torch.tensor([place[1] / 3 - 1, place[0] / 2 - 1])
    assert torch.allclose(found, expected, atol=1e-6)


def test_spatial_softmax_is_the_weighted_mean_of_places() -> None:
    maps = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    p = maps.flatten().exp() / maps.exp().sum()
    x, y = SpatialSoftmax(2, 2)(maps)[0].tolist()
    assert x == pytest.approx(float(p[1] + p[3] - p[0] - p[2]))
    assert y == pytest.approx(float(p[2] + p[3] - p[0] - p[1]))


def test_temperature_starts_at_one_and_is_learned() -> None:
    pool = SpatialSoftmax(3, 3)
    (parameter,) = pool.parameters()
    assert parameter.item() == 1
    maps = torch.zeros(1, 1, 3, 3)
    maps[..., 2, 2] = 1.0
    warm = pool(maps)
    warm.sum().backward()
    assert parameter.grad is not None
    assert parameter.grad.item() < 0  # colder is sharper: nearer to the corner (1, 1)
    with torch.no_grad():
        parameter.fill_(0.5)
    assert (pool(maps) > warm).all()


def test_spatial_softmax_computes_in_float32() -> None:
    maps = torch.randn(2, 3, 7, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    pool = SpatialSoftmax(7, 7)
    assert pool(maps).dtype == torch.float32
    assert torch.equal(pool(maps), pool(maps.float()))


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(3, 1), (8, 2), (16, 4), (24, 6), (32, 8), (40, 10), (64, 16), (72, 12), (88, 11), (128, 16), (512, 16)],
)
def test_group_norm(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


def test_every_batch_norm_is_replaced() -> None:
    block = nn.Sequential(nn.Conv2d(3, 64, 1), nn.BatchNorm2d(64), nn.Sequential(nn.BatchNorm2d(32), nn.ReLU()))
    assert isinstance(block[1], nn.BatchNorm2d)
    nn.init.constant_(block[1].weight, 3.0)
    found = replace_batch_norm(block)
    assert found is block
    assert [type(m) for m in block.modules() if "Norm" in type(m).__name__] == [nn.GroupNorm] * 2
    norm = block[1]
    assert isinstance(norm, nn.GroupNorm)
    assert (norm.num_groups, norm.num_channels) == (16, 64)
    assert (norm.weight == 1).all()


@pytest.mark.parametrize(("stride", "side"), [(1, 6), (2, 6), (2, 7), (3, 8)])
def test_subsample_stands_for_the_stride_of_a_convolution(stride: int, side: int) -> None:
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    strided = nn.Conv2d(3, 4, 1, stride, bias=False)
    dense = nn.Conv2d(3, 4, 1, bias=False)
    dense.load_state_dict(strided.state_dict())
    assert torch.allclose(dense(Subsample(stride)(x)), strided(x), atol=1e-6)


@pytest.mark.parametrize(("channels_in", "stride"), [(16, 1), (16, 2), (8, 1)])
def test_residual_block(channels_in: int, stride: int) -> None:
    block = ResidualBlock(channels_in, 16, stride)
    x = torch.randn(2, channels_in, 9, 9, generator=torch.Generator().manual_seed(0))
    side = (9 + stride - 1) // stride
    assert block(x).shape == (2, 16, side, side)
    # With the second norm at zero only the shortcut is left.
    nn.init.zeros_(block.norm2.weight)
    assert torch.equal(block(x), torch.relu(block.shortcut(x)))
    assert isinstance(block.shortcut, nn.Identity) == (channels_in == 16 and stride == 1)
