from __future__ import annotations

import math
from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from classact.errors import ConfigError
from classact.train.augment import WIDE_RANGE, Part, augment, change_color, hsv_matrices, random_crop, random_rotations
from classact.train.config import AugmentConfig, ColorAugmentation

CPU = torch.device("cpu")
PLAIN = AugmentConfig(noise_std=0)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def positions(B: int = 64, size: int = 40) -> Tensor:
    """Images whose pixels say where they are: red = row, green = column, blue = number of the image."""
    images = torch.zeros(B, size, size, 3, dtype=torch.uint8)
    images[..., 0] = torch.arange(size)[:, None]
    images[..., 1] = torch.arange(size)[None, :]
    images[..., 2] = torch.arange(B)[:, None, None]
    return images


# Crops


@pytest.mark.parametrize("per", ["image", "batch"])
def test_a_crop_is_a_part_of_its_image(per: str) -> None:
    crops = random_crop(positions(), 30, rng(), per=per)
    assert crops.shape == (64, 30, 30, 3)
    assert crops.dtype == torch.uint8
    top, left = crops[:, 0, 0, 0].long(), crops[:, 0, 0, 1].long()
    for b in range(64):
        assert torch.equal(crops[b], positions()[b, top[b] : top[b] + 30, left[b] : left[b] + 30])


def test_each_image_has_an_offset_of_its_own() -> None:
    corner = random_crop(positions(), 30, rng())[:, 0, 0, :2]
    assert len(corner.unique(dim=0)) > 30
    # All of 0..10 occur in both directions: the last offset too.
    corners = torch.cat([random_crop(positions(), 30, rng(s))[:, 0, 0, :2] for s in range(10)]).long()
    for direction in range(2):
        counts = torch.bincount(corners[:, direction], minlength=11)
        assert counts.shape == (11,)
        assert counts.min() > 0.5 * 640 / 11
    assert abs(torch.corrcoef(corners.T.double())[0, 1]) < 0.15


def test_one_offset_for_the_batch() -> None:
    corners = torch.stack([random_crop(positions(), 30, rng(s), per="batch")[:, 0, 0, :2] for s in range(20)])
    assert (corners == corners[:, :1]).all()
    assert len(corners[:, 0].unique(dim=0)) > 10


def test_images_need_not_be_square() -> None:
    images = positions()[:, :35]
    corners = torch.cat([random_crop(images, 33, rng(s))[:, 0, 0, :2] for s in range(5)])
    assert corners.amax(dim=0).tolist() == [2, 7]
    assert torch.equal(random_crop(images[:, :33, :33], 33, rng()), images[:, :33, :33])


@pytest.mark.parametrize("size", [0, 36])
def test_crop_that_does_not_fit(size: int) -> None:
    with pytest.raises(ConfigError, match=f"crop of 1 to 35 pixels for images of 35 x 40, got {size}"):
        random_crop(positions()[:, :35], size, rng())


# Whole views


@pytest.mark.parametrize("color", get_args(ColorAugmentation))
@pytest.mark.parametrize("crop", ["image", "batch"])
def test_the_generator_decides_everything(crop: str, color: str) -> None:
    config = AugmentConfig(crop=crop, color=color)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, same, other = (augment(positions(), 30, config, rng(s)) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == (64, 3, 30, 30)
    assert one.dtype == torch.float32


def test_without_noise_and_colour_a_view_is_a_crop() -> None:
    images = positions()
    found = augment(images, 30, PLAIN, rng())
    assert torch.equal(found, random_crop(images, 30, rng()).permute(0, 3, 1, 2).float())
    assert torch.equal(images, positions())


@pytest.mark.parametrize("std", [1.0, 5.0])
def test_noise(std: float) -> None:
    images = torch.full((8, 40, 40, 3), 128, dtype=torch.uint8)
    noise = augment(images, 40, AugmentConfig(noise_std=std), rng()) - 128
    n = noise.numel()
    assert float(noise.std()) == pytest.approx(std, rel=4 / math.sqrt(2 * n))
    assert abs(float(noise.mean())) < 4 * std / math.sqrt(n)
    # Every image, channel and pixel on its own.
    assert abs(torch.corrcoef(noise.flatten(1)) - torch.eye(8)).max() < 0.1
    assert abs(torch.corrcoef(noise.transpose(0, 1).flatten(1)) - torch.eye(3)).max() < 0.1


def test_noise_stays_within_the_range_of_pixels() -> None:
    for value, inward in ((0, 1), (255, -1)):
        images = torch.full((4, 40, 40, 3), value, dtype=torch.uint8)
        change = (augment(images, 40, AugmentConfig(noise_std=5), rng()) - value) * inward
        assert change.min() == 0
        assert 0.45 < float((change > 0).float().mean()) < 0.55


def test_a_view_does_not_depend_on_the_other_images() -> None:
    """With the same draws the first image looks the same beside black and beside white ones."""
    for color in get_args(ColorAugmentation):
        views = []
        for value in (0, 255):
            images = positions(4)
            images[1:] = value
            views.append(augment(images, 30, AugmentConfig(color=color, noise_std=40.0), rng())[0])
        assert torch.equal(*views)


# Parts of a batch


@settings(max_examples=30)
@given(
    color=st.sampled_from(get_args(ColorAugmentation)),
    crop=st.sampled_from(["image", "batch"]),
    noise=st.sampled_from([0.0, 5.0]),
    cuts=st.lists(st.integers(0, 13), max_size=4),
    seed=st.integers(0, 3),
)
def test_parts_of_a_batch_have_the_views_of_the_whole(
    color: str, crop: str, noise: float, cuts: list[int], seed: int
) -> None:
    """However it is cut; and each part leaves the generator where the whole does."""
    config = AugmentConfig(crop=crop, color=color, noise_std=noise)
    images, generator = positions(13, 20), rng(seed)
    whole = augment(images, 16, config, generator)
    edges = [0, *sorted(cuts), 13]
    found = []
    for first, last in pairwise(edges):
        part, own = Part(slice(first, last), 13), rng(seed)
        views = augment(images[first:last], 16, config, own, part)
        assert views.shape == (last - first, 3, 16, 16)
        assert torch.equal(own.get_state(), generator.get_state())
        found.append(views)
    # Products of matrices may be rounded otherwise in another batch; everything else is to the bit.
    assert torch.allclose(torch.cat(found), whole, rtol=0, atol=1e-3 if color != "none" else 0)


def test_a_part_is_no_batch_of_its_own() -> None:
    images = positions(8, 20)
    later = augment(images[4:], 16, PLAIN, rng(), Part(slice(4, 8), 8))
    assert not torch.equal(later, augment(images[4:], 16, PLAIN, rng()))


# Colours

RAINBOW = torch.tensor([[255.0, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]])
PUSHT = torch.tensor([[255.0, 255, 255], [144, 238, 144], [119, 136, 153], [65, 105, 225]])


def test_hue_turns_about_the_grey_axis() -> None:
    config = AugmentConfig(color="hsv", hue=0.5, saturation=0)
    matrices = hsv_matrices(200, config, rng(), CPU).double()
    assert torch.allclose(matrices.sum(dim=2), torch.ones(200, 3, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(matrices @ matrices.transpose(1, 2), torch.eye(3).double().expand(200, 3, 3), atol=1e-5)
    assert torch.allclose(torch.linalg.det(matrices), torch.ones(200).double(), atol=1e-5)
    # trace = 1 + 2 cos(angle): all hues occur.
    cosine = (matrices.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    assert cosine.min() < -0.98
    assert cosine.max() > 0.98


def test_a_third_of_a_turn_swaps_the_primaries() -> None:
    """Hue is uniform within +- hue turns; with hue at 1/3 the largest turn takes red to green or to blue."""
    matrices = hsv_matrices(5000, AugmentConfig(color="hsv", hue=1 / 3, saturation=0), rng(), CPU)
    red = matrices[:, :, 0]
    for primary in ([0.0, 1, 0], [0.0, 0, 1], [1.0, 0, 0]):
        assert (red - torch.tensor(primary)).norm(dim=1).min() < 0.01
    assert red.min() > -0.34  # beyond a third of a turn red's channels go no lower than -1/3


def test_no_hue_no_saturation_is_the_identity() -> None:
    matrices = hsv_matrices(5, AugmentConfig(color="hsv", hue=0, saturation=0), rng(), CPU)
    assert torch.allclose(matrices, torch.eye(3).expand(5, 3, 3), atol=1e-6)


def test_saturation_scales_the_distance_to_grey() -> None:
    matrices = hsv_matrices(500, AugmentConfig(color="hsv", hue=0, saturation=0.5), rng(), CPU)
    grey, off = torch.ones(3), torch.tensor([1.0, -1, 0])
    assert torch.allclose(matrices @ grey, grey.expand(500, 3), atol=1e-6)
    scaled = matrices @ off
    factor = scaled[:, 0]
    assert torch.allclose(scaled, factor[:, None] * off, atol=1e-6)
    assert 0.5 <= factor.min() < 0.52
    assert 1.48 < factor.max() <= 1.5


def test_hsv_changes_a_grey_image_in_brightness_only() -> None:
    pixels = torch.full((100, 3, 2, 2), 128.0)
    found = change_color(pixels, AugmentConfig(color="hsv", brightness=40), rng())
    assert torch.allclose(found, found[:, :1, :1, :1].expand_as(found), atol=1e-3)
    shift = found[:, 0, 0, 0] - 128
    assert -40.001 <= shift.min() < -35
    assert 35 < shift.max() <= 40.001


def test_hsv_stays_within_the_range_of_pixels() -> None:
    found = change_color(RAINBOW.T[None, :, :, None].repeat(100, 1, 1, 1), AugmentConfig(color="hsv"), rng())
    assert (found.min(), found.max()) == (0, 255)


def test_rotations_are_uniform() -> None:
    """Half are reflections; every entry has mean 0 and mean square 1/3, none goes with another."""
    found = random_rotations(4000, rng(), CPU)
    assert torch.allclose(found @ found.transpose(1, 2), torch.eye(3).expand(4000, 3, 3), atol=1e-5)
    assert abs(found.mean(dim=0)).max() < 0.05
    assert abs((found**2).mean(dim=0) - 1 / 3).max() < 0.02
    assert abs(torch.corrcoef(found.flatten(1).T) - torch.eye(9)).max() < 0.08
    assert abs(torch.linalg.det(found).mean()) < 0.1


def test_rotate_is_a_rotation_about_mid_grey() -> None:
    """Colours keep their distances from each other and from grey: nothing is clamped, not even the cube's corners."""
    corners = torch.cat([RAINBOW, 255 - RAINBOW])
    images = corners.T[None, :, :, None].repeat(2000, 1, 1, 1)
    found = change_color(images, AugmentConfig(color="rotate"), rng())[..., 0].transpose(1, 2)
    assert torch.allclose(torch.cdist(found, found), torch.cdist(corners, corners).expand(2000, 8, 8), atol=0.1)
    assert torch.allclose((found - 127.5).norm(dim=2), torch.tensor(127.5 * math.sqrt(3)).expand(2000, 8), atol=0.01)
    assert WIDE_RANGE[0] <= found.min() < -90
    assert 345 < found.max() <= WIDE_RANGE[1]
    assert len(found[:, 0].unique(dim=0)) == 2000


@pytest.mark.parametrize("palette", [RAINBOW, PUSHT])
def test_affine_keeps_four_colours_apart(palette: Tensor) -> None:
    """Clamping to 0..255 would merge some: 2,000 palettes, none loses a colour."""
    images = palette.T[None, :, :, None].repeat(2000, 1, 1, 1)
    found = change_color(images, AugmentConfig(color="affine"), rng())
    colors = found[..., 0].transpose(1, 2)
    apart = torch.cdist(colors, colors) + 1e9 * torch.eye(4)
    closest = apart.flatten(1).min(dim=1).values
    assert closest.min() > 0.1
    assert closest.quantile(0.05) > 15  # three standard deviations of the noise
    assert WIDE_RANGE[0] <= found.min() < 0
    assert 255 < found.max() <= WIDE_RANGE[1]
    assert len(found[:, :, 0, 0].unique(dim=0)) > 1900


def test_affine_is_one_affine_map_per_image() -> None:
    """Colours half-way between others stay half-way, but for clamping."""
    a, b = torch.tensor([100.0, 120, 140]), torch.tensor([140.0, 130, 110])
    images = torch.stack([a, (a + b) / 2, b], dim=1)[None, :, :, None].repeat(300, 1, 1, 1)
    found = change_color(images, AugmentConfig(color="affine"), rng())[..., 0]
    inside = ((found > WIDE_RANGE[0]) & (found < WIDE_RANGE[1])).flatten(1).all(dim=1)
    assert inside.float().mean() > 0.8
    assert torch.allclose(found[inside][:, :, 1], found[inside][:, :, [0, 2]].mean(dim=2), atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": "pixel"}, "unknown crop 'pixel': available are 'batch', 'image'"),
        ({"color": "sepia"}, "unknown color 'sepia': available are 'affine', 'hsv', 'none', 'rotate'"),
        ({"noise_std": -1.0}, r"noise_std >= 0, got -1\.0"),
        ({"brightness": -1.0}, "brightness >= 0"),
    ],
)
def test_settings_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**change)  # type: ignore[arg-type]
