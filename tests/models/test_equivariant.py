from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch import Tensor
from torch.nn import functional

import fakes
from classact.errors import ConfigError, MissingDependencyError
from classact.models.encoders import EncoderConfig, ImageEncoder, equivariant
from classact.models.encoders.equivariant import (
    ROTATIONS,
    WIGNER,
    EquivariantResNet,
    SteerableBlock,
    SteerableConv,
    shrink,
    steerable_basis,
)
from classact.models.heads import DiffusionConfig, UNetConfig
from classact.train.config import AugmentConfig, FinetuneConfig
from classact.train.head import FineTuner
from simulators import REQUIRED

KINDS = [(5, False), (3, True), (1, True)]
"""Filters of the network: (side, whether the input is a regular field)."""


def settings(crop: int, width: float = 1 / 16) -> EncoderConfig:
    gray = (127.5, 127.5, 127.5)
    return EncoderConfig("equivariant", width, image_size=crop, crop_size=crop, mean=gray, std=gray)


pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def escnn() -> Any:
    """The oracle; tests that need it, or a basis that it computes, are skipped without it."""
    if importlib.util.find_spec("escnn") is None:
        if "equivar" in os.environ.get(REQUIRED, "").split():
            pytest.fail(f"{REQUIRED} asks for the extra equivar: escnn is not installed")
        pytest.skip("escnn is not installed: uv sync --extra equivar")
    spaces, layers = equivariant._escnn()
    return SimpleNamespace(layers=layers, plane=spaces.rot2dOnR2(ROTATIONS))


def fields(features: Tensor) -> Tensor:
    """(B, 8 O, ...) -> (B, O, 8, ...)."""
    return features.unflatten(1, (-1, ROTATIONS))


# Equivariance


@pytest.mark.parametrize(("crop", "width"), [(28, 1 / 16), (47, 1 / 8), (56, 1 / 8), (76, 1 / 16), (224, 1 / 16)])
@pytest.mark.usefixtures("escnn")
def test_a_quarter_turn_of_the_image_shifts_every_field_by_two(crop: int, width: float) -> None:
    encoder = ImageEncoder(settings(crop, width), seed=1)
    images = torch.randn((2, 1, 3, crop, crop), generator=torch.Generator().manual_seed(crop))
    with torch.no_grad():
        upright = fields(encoder(images))
        for quarters in range(1, 4):
            turned = fields(encoder(torch.rot90(images, quarters, (3, 4))))
            scale = float(upright.abs().max())
            assert float((turned - upright.roll(2 * quarters, 2)).abs().max()) < 1e-5 * scale
            assert float((turned - upright).abs().max()) > 0.1 * scale


def blobs(angle: float, size: int) -> Tensor:
    """(1, 3, S, S): one blob in each colour, turned counter-clockwise as they are seen; rows grow downwards."""
    grid = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    cosine, sine = np.cos(angle), np.sin(angle)
    colors = []
    for x0, y0, radius in ((0.35, 0.1, 0.2), (-0.1, -0.3, 0.15), (-0.3, 0.25, 0.25)):
        x1, y1 = cosine * x0 + sine * y0, -sine * x0 + cosine * y0
        colors.append(torch.exp(-((x - x1) ** 2 + (y - y1) ** 2) / (2 * radius**2)))
    return torch.stack(colors)[None]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.usefixtures("escnn")
def test_an_eighth_of_a_turn_shifts_every_field_by_one(seed: int) -> None:
    """Nearly exact before the maps are pooled; at the end, where three cells are left, the nearest of eight shifts."""
    backbone = ImageEncoder(settings(76, 0.25), seed=seed).views[0].backbone
    assert_allclose(blobs(np.pi / 2, 76), torch.rot90(blobs(0.0, 76), 1, (2, 3)), atol=1e-6)

    def early(images: Tensor) -> Tensor:
        return backbone.stages[0](torch.relu(backbone.stem(images))).square().sum((2, 3))

    def late(images: Tensor) -> Tensor:
        return backbone(images).flatten(1)

    def varying(of: Callable[[Tensor], Tensor], angle: float) -> Tensor:
        values = fields(of(blobs(angle, 76)))
        return values - values.mean(2, keepdim=True)

    with torch.no_grad():
        for of, tolerance in ((early, 0.02), (late, 0.7)):
            upright = varying(of, 0.0)
            for eighths in (1, 3, 5, 7):
                turned = varying(of, eighths * np.pi / 4)
                errors = [float((turned - upright.roll(s, 2)).norm() / upright.norm()) for s in range(ROTATIONS)]
                assert int(np.argmin(errors)) == eighths
                assert errors[eighths] < tolerance < sorted(errors)[1]


@pytest.mark.parametrize(("kernel_size", "regular"), KINDS)
@pytest.mark.usefixtures("escnn")
def test_every_filter_of_a_basis_turns_with_the_picture(kernel_size: int, regular: bool) -> None:
    basis, deviation = steerable_basis(kernel_size, regular)
    count = {(5, False): 11, (3, True): 48, (1, True): 8}[kernel_size, regular]
    assert basis.shape == (count, ROTATIONS, ROTATIONS if regular else 1, kernel_size, kernel_size)
    assert deviation.shape == (count,)
    turned = torch.rot90(basis, 1, (3, 4))
    assert_allclose(turned, basis.roll((-2, -2) if regular else -2, (1, 2) if regular else 1), atol=1e-6)
    assert int(torch.linalg.matrix_rank(basis.flatten(1))) == count


@given(st.integers(1, 24), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_shrinking_leaves_no_pixel_out_and_turns_with_the_maps(size: int, side: int, seed: int) -> None:
    side = min(side, size)
    maps = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, size * size, size, size)))
    maps[0].flatten(1).fill_diagonal_(100.0)  # each pixel is the highest of one map
    small = shrink(maps, side)
    assert small.shape == (1, size * size, side, side)
    assert bool((small.flatten(2).amax(2) == 100).all())
    assert torch.equal(shrink(torch.rot90(maps, 1, (2, 3)), side), torch.rot90(small, 1, (2, 3)))
    if size % side == 0:
        assert torch.equal(small, functional.max_pool2d(maps, size // side))


# The published network


@pytest.mark.parametrize(("kernel_size", "regular"), KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_computes_what_escnn_computes(escnn: Any, kernel_size: int, regular: bool, bias: bool) -> None:
    plane, layers = escnn.plane, escnn.layers
    one = plane.regular_repr if regular else plane.trivial_repr
    kinds = layers.FieldType(plane, 3 * [one]), layers.FieldType(plane, 2 * [plane.regular_repr])
    theirs = layers.R2Conv(*kinds, kernel_size, padding=1, bias=bias, initialize=False)
    ours = SteerableConv(3, 2, kernel_size, 1, regular=regular, bias=bias)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        theirs.weights.copy_(ours.weight.flatten())
        if ours.bias is not None:
            theirs.bias.copy_(ours.bias.normal_(generator=generator))
        x = torch.randn((2, kinds[0].size, 9, 9), generator=generator)
        assert_allclose(ours(x), theirs(kinds[0](x)).tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kernel_size", "regular"), KINDS)
def test_a_layer_starts_as_escnn_starts(
    escnn: Any, kernel_size: int, regular: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    steerable_basis(kernel_size, regular)
    plane, layers = escnn.plane, escnn.layers
    one = plane.regular_repr if regular else plane.trivial_repr
    kinds = layers.FieldType(plane, 3 * [one]), layers.FieldType(plane, 2 * [plane.regular_repr])
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: torch.ones(shape))
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)  # so that deviations are left
    theirs = layers.R2Conv(*kinds, kernel_size)
    ours = SteerableConv(3, 2, kernel_size, regular=regular)
    assert_allclose(ours.weight.detach().flatten(), theirs.weights.detach(), rtol=1e-5)
    assert ours.bias is not None
    assert not bool(ours.bias.any())


def test_the_network_computes_what_it_computes_in_escnn(escnn: Any) -> None:
    """At 76 pixels, with escnn's convolutions and poolings in the published order."""
    plane, layers = escnn.plane, escnn.layers
    backbone = ImageEncoder(settings(76), seed=2).views[0].backbone

    def kind(count: int) -> Any:
        return layers.FieldType(plane, count * [plane.regular_repr])

    def convolve(x: Any, ours: SteerableConv) -> Any:
        size, padding, bias = ours.kernel_size, ours.padding, ours.bias is not None
        theirs = layers.R2Conv(x.type, kind(len(ours.weight)), size, padding=padding, bias=bias, initialize=False)
        theirs.weights.copy_(ours.weight.flatten())
        return theirs(x)

    images = torch.randn((2, 3, 76, 76), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = convolve(layers.FieldType(plane, 3 * [plane.trivial_repr])(images), backbone.stem)
        x = layers.ReLU(x.type)(x)
        for stage, pool in zip(backbone.stages, (2, 2, 2, 3), strict=True):
            for block in stage:
                inner = convolve(x, block.conv1)
                inner = convolve(layers.ReLU(inner.type)(inner), block.conv2)
                inner += x if x.type == inner.type else convolve(x, block.shortcut)
                x = layers.ReLU(inner.type)(inner)
            x = layers.PointwiseMaxPool(x.type, pool)(x)
        x = convolve(x, backbone.last)
        expected = layers.ReLU(x.type)(x).tensor
        assert_allclose(backbone(images), expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


@pytest.mark.usefixtures("escnn")
def test_sizes_are_those_of_the_publication() -> None:
    encoder = ImageEncoder(settings(76, 1.0))
    assert encoder.feature_dim == 1024
    assert sum(p.numel() for p in encoder.parameters()) == 4_535_904
    assert not [m for m in encoder.modules() if "Norm" in type(m).__name__]
    blocks = [m.conv2.weight.shape[0] for m in encoder.modules() if isinstance(m, SteerableBlock)]
    assert blocks == [16, 16, 32, 32, 64, 64, 128, 128]


@pytest.mark.parametrize(
    ("crop", "sides"), [(76, [72, 36, 18, 9, 3]), (224, [220, 110, 55, 27, 3]), (56, [52, 26, 13, 6, 3])]
)
@pytest.mark.usefixtures("escnn")
def test_maps_shrink_as_documented(crop: int, sides: list[int]) -> None:
    backbone = EquivariantResNet(1 / 16)
    seen: list[int] = []
    for layer in (*backbone.stages, backbone.last):
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
    assert backbone(torch.zeros(0, 3, crop, crop)).shape == (0, 64, 1, 1)
    assert seen == sides


@pytest.mark.parametrize(("width", "features"), [(0.25, 256), (0.5, 512), (0.01, 64)])
@pytest.mark.usefixtures("escnn")
def test_width_scales_the_fields(width: float, features: int) -> None:
    encoder = ImageEncoder(settings(28, width))
    assert encoder.feature_dim == features
    assert encoder(torch.zeros(2, 1, 3, 28, 28)).shape == (2, features)


@pytest.mark.usefixtures("escnn")
def test_a_crop_that_is_too_small_is_refused() -> None:
    with pytest.raises(ConfigError, match="'equivariant' needs crops of at least 28 pixels, got 27; choose a larger"):
        ImageEncoder(settings(27))


# As an encoder


@pytest.mark.usefixtures("escnn")
def test_the_seed_decides_the_weights() -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    one, same, other = (ImageEncoder(settings(28), seed=s).state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[k], same[k]) for k in one)
    weights = [k for k in one if k.endswith("weight")]
    assert len(weights) == 21
    assert not any(torch.equal(one[k], other[k]) for k in weights)


@pytest.mark.usefixtures("escnn")
def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3)).astype(np.uint8)
    encoder = ImageEncoder(settings(32), seed=3)
    encoder.save_pretrained(tmp_path / "encoder")
    loaded = ImageEncoder.from_pretrained(tmp_path / "encoder")
    assert loaded.config == encoder.config
    assert loaded.encode(images).tobytes() == encoder.encode(images).tobytes()


@pytest.mark.usefixtures("escnn")
def test_evaluation_mode_keeps_nothing_of_the_weights() -> None:
    """Averaged weights change under a policy that acts with them."""
    encoder = ImageEncoder(settings(28))
    names = list(encoder.state_dict())
    images = torch.randn((1, 1, 3, 28, 28), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        trained = encoder(images)
        encoder.eval()
        assert torch.equal(encoder(images), trained)
        encoder.views[0].backbone.last.weight.mul_(2)
        assert_allclose(encoder(images), 2 * trained, rtol=1e-5)
    assert list(encoder.state_dict()) == names


@pytest.mark.usefixtures("escnn")
def test_bfloat16_rounds_the_filters_once() -> None:
    encoder = ImageEncoder(settings(28, 0.125))
    images = torch.randn((4, 1, 3, 28, 28), generator=torch.Generator().manual_seed(0))
    stem = encoder.views[0].backbone.stem
    with torch.no_grad():
        exact, rounded = encoder(images), encoder(images, bf16=True)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(stem.filters(), stem.filters().float())
            assert stem(images[:, 0]).dtype == torch.bfloat16
    assert rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).norm() / exact.norm()) < 0.03


@pytest.mark.usefixtures("escnn")
def test_a_policy_is_trained_from_scratch_with_it(tmp_path: Path) -> None:
    """EquiVar: the encoder, a diffusion head, no pre-training (paper C.2)."""
    unet = UNetConfig(widths=(8, 16), kernel_size=3, groups=4, step_dim=8)
    made = FineTuner(
        fakes.demonstrations(),
        FinetuneConfig(
            head=DiffusionConfig(unet),
            encoder=EncoderConfig("equivariant", 1 / 16, image_size=32, crop_size=28),
            augment=AugmentConfig(),
            epochs=2 * 16 / sum(fakes.STEPS),
            batch_size=16,
            precision="float32",
        ),
        tmp_path,
    )
    before = {name: p.detach().clone() for name, p in made.encoder.named_parameters()}
    policy = made.fit()
    assert made.step == 2
    assert policy.encoder is made.average_encoder
    for name, parameter in made.encoder.named_parameters():
        assert bool(torch.isfinite(parameter).all())
        assert not torch.equal(parameter, before[name]), f"{name} was not trained"
    bases = [(n, b) for n, b in made.encoder.named_buffers() if n.endswith("basis")]
    averages = dict(made.average_encoder.named_buffers())
    assert len(bases) == 21
    assert all(torch.equal(averages[name], basis) for name, basis in bases)


# Without escnn, and without what it asks for


def test_without_escnn_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "escnn", None)
    monkeypatch.setitem(sys.modules, "escnn.gspaces", None)
    equivariant._escnn.cache_clear()
    steerable_basis.cache_clear()
    with pytest.raises(
        MissingDependencyError,
        match=r"needs the package escnn \(.*\).*uv sync --extra equivar.*--no-deps escnn==1\.0\.11",
    ):
        ImageEncoder(settings(56))


@pytest.fixture
def no_lie_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "lie_learn"]:
        monkeypatch.delitem(sys.modules, name)


def written(folder: Path, code: str) -> None:
    """A package lie_learn whose module of Wigner's matrices is ``code``."""
    path = folder / (WIGNER.replace(".", "/") + ".py")
    path.parent.mkdir(parents=True)
    for parent in (path.parent, path.parents[1], path.parents[2]):
        (parent / "__init__.py").touch()
    path.write_text(code, encoding="utf-8")


@pytest.mark.usefixtures("no_lie_learn")
@pytest.mark.parametrize("code", ["raise ImportError('absent')", "raise ValueError('numpy.dtype size changed')"])
def test_a_broken_lie_learn_is_replaced_while_escnn_is_imported(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, code)
    monkeypatch.syspath_prepend(tmp_path)
    with equivariant._without_lie_learn():
        module = importlib.import_module(WIGNER)
        with pytest.raises(
            MissingDependencyError, match=r"without a working lie_learn.*rotations in space \(SO\(3\)\)"
        ):
            module.wigner_D_matrix(1, 0.0, 0.0, 0.0)
    assert WIGNER not in sys.modules
    with pytest.raises(RuntimeError, match="in between"), equivariant._without_lie_learn():
        raise RuntimeError("in between")
    assert WIGNER not in sys.modules


@pytest.mark.usefixtures("no_lie_learn")
def test_a_lie_learn_that_works_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "def wigner_D_matrix():\n    return 'real'\n")
    monkeypatch.syspath_prepend(tmp_path)
    with equivariant._without_lie_learn():
        assert importlib.import_module(WIGNER).wigner_D_matrix() == "real"
    assert importlib.import_module(WIGNER).wigner_D_matrix() == "real"
