from __future__ import annotations

import pytest
import torch
from torch import Tensor

from classact.models.encoders import color
from classact.models.encoders.color import whiten

PALETTE = torch.tensor([[255.0, 255, 255], [144, 238, 144], [119, 136, 153], [65, 105, 225]])


def scene(seed: int = 0) -> Tensor:
    """(1, 3, 24, 24): seven tenths background, three other colours."""
    labels = torch.randint(0, 10, (24 * 24,), generator=torch.Generator().manual_seed(seed))
    labels = torch.where(labels > 3, 0, labels)
    return PALETTE[labels].T.reshape(1, 3, 24, 24)


def distances(pixels: Tensor) -> Tensor:
    """Between all pairs of 150 pixels: all that is left of colours up to rotation and shift."""
    points = pixels[0].flatten(1).T[:150]
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


def change(pixels: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    return (matrix @ pixels.flatten(2) + shift[:, None]).reshape(pixels.shape)


def draw(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    stretch = torch.randn(3, 3, generator=g)
    return torch.linalg.qr(torch.randn(3, 3, generator=g))[0], stretch, 40 * torch.randn(3, generator=g)


@pytest.mark.parametrize("seed", range(5))
def test_rotations_and_shifts_of_colour_change_nothing(seed: int) -> None:
    rotation, _, shift = draw(seed)
    plain = whiten(scene())
    changed = whiten(change(scene(), rotation, shift))
    assert torch.allclose(distances(changed), distances(plain), atol=1e-4)
    assert distances(plain).max() > 3
    # The very rotation is left, no other change.
    assert torch.allclose(changed, change(plain, rotation, torch.zeros(3)), atol=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_any_affine_change_changes_nothing_but_for_the_regularisation(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotation, stretch, shift = draw(seed)
    matrix = 0.6 * rotation + 0.35 * stretch
    before, after = (distances(whiten(x)) for x in (scene(), change(scene(), matrix, shift)))
    raw = (
        distances(change(scene(), matrix, shift)) / distances(scene()).max()
        - distances(scene()) / distances(scene()).max()
    )
    assert abs(after - before).mean() / before.max() < abs(raw).mean()
    monkeypatch.setattr(color, "RIDGE", 1e-7)
    monkeypatch.setattr(color, "FLOOR", 1e-7)
    before, after = (distances(whiten(x)) for x in (scene(), change(scene(), matrix, shift)))
    assert torch.allclose(after, before, rtol=0.02, atol=0.02)
    assert not torch.allclose(
        distances(change(scene(), matrix, shift)) / 100, distances(scene()) / 100, rtol=0.02, atol=0.02
    )


@pytest.mark.parametrize("count", [1, 2, 7, 24, 575, 576])
@pytest.mark.parametrize("levels", [2, 5, 256])
def test_the_median_by_sorting_is_torchs(count: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(count)
    whole = torch.randint(0, levels, (3, 3, count), generator=generator).float()
    for flat in (whole, whole + torch.randn(whole.shape, generator=generator)):
        found = color._sorted_median(flat)
        assert found.shape == (3, 3, 1)
        assert torch.equal(found, flat.median(dim=-1, keepdim=True).values)


@pytest.mark.gpu
def test_deterministic_kernels_give_the_same_bits() -> None:
    pixels = scene().cuda()
    plain = whiten(pixels)
    try:
        torch.use_deterministic_algorithms(True)
        assert torch.equal(whiten(pixels), plain)
    finally:
        torch.use_deterministic_algorithms(False)


def test_half_the_contrast_changes_little() -> None:
    half = whiten(scene() / 2 + 60)
    assert abs(half - whiten(scene())).max() < 0.05


def test_background_is_zero_and_the_second_moment_the_identity() -> None:
    found = whiten(scene())[0].flatten(1)
    background = (scene()[0].flatten(1) == 255).all(dim=0)
    assert background.float().mean() > 0.6
    assert (found[:, background] == 0).all()
    timestep = found @ found.T / found.shape[1]
    values = torch.linalg.eigvalsh(timestep)
    assert values.max() == pytest.approx(1, abs=0.03)
    assert values.min() > 0.3


def test_each_image_on_its_own() -> None:
    other = change(scene(1), torch.eye(3) * 0.3, torch.tensor([5.0, 0, 90]))
    both = whiten(torch.cat([scene(), other]))
    assert torch.allclose(both[:1], whiten(scene()), atol=1e-5)
    assert torch.allclose(both[1:], whiten(other), atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 77.0, 255.0])
def test_constant_image(value: float) -> None:
    found = whiten(torch.full((2, 3, 8, 8), value))
    assert (found == 0).all()


def test_grey_image() -> None:
    grey = scene().mean(dim=1, keepdim=True).expand(1, 3, 24, 24)
    found = whiten(grey)
    assert torch.isfinite(found).all()
    assert torch.allclose(found, found[:, :1].expand_as(found), atol=1e-3)
    assert 0.9 < float((found**2).sum(dim=1).mean()) < 1.01


def test_noise_below_a_grey_level_is_not_amplified() -> None:
    noise = 0.5 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert float(whiten(200 + noise).std()) < 0.3
