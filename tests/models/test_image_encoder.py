from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from classact.data.images import resize_images
from classact.errors import CheckpointError, ConfigError, DataError
from classact.models.encoders import EncoderConfig, ImageEncoder, pretrained_config
from classact.models.encoders.image import CONFIG, WEIGHTS
from classact.models.weights import load_weights
from classact.utils.storage import CHECKSUMS, write_folder

SMALL = EncoderConfig(width=0.25, image_size=32, crop_size=28, aspect=4 / 3)
RESNET = EncoderConfig(backbone="resnet18", width=0.125, image_size=64, crop_size=64, aspect=4 / 3)
FRAMES = np.random.default_rng(0).integers(0, 256, (5, 30, 40, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    return ImageEncoder(SMALL, seed=3)


@pytest.fixture
def folder(encoder: ImageEncoder, tmp_path: Path) -> Path:
    encoder.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


# Architecture


@pytest.mark.parametrize(
    ("backbone", "width", "crop", "features"),
    [
        ("small", 1.0, 56, 256),
        ("small", 0.25, 28, 64),
        ("small", 0.55, 16, 144),
        ("small", 2.0, 24, 512),
        ("resnet18", 0.5, 64, 512),
        ("resnet18", 0.01, 40, 128),
    ],
)
def test_width(backbone: str, width: float, crop: int, features: int) -> None:
    encoder = ImageEncoder(EncoderConfig(backbone=backbone, width=width, image_size=crop, crop_size=crop))
    assert encoder.feature_dim == features
    assert encoder(torch.zeros(2, 1, 3, crop, crop)).shape == (2, features)


def test_sizes_as_documented() -> None:
    small = ImageEncoder(EncoderConfig())
    assert sum(p.numel() for p in small.parameters()) == pytest.approx(0.6e6, rel=0.1)
    assert small.views[0].backbone(torch.zeros(1, 3, 64, 64)).shape == (1, 128, 8, 8)


@pytest.mark.parametrize("config", [SMALL, RESNET, EncoderConfig()])
def test_no_batch_norm(config: EncoderConfig) -> None:
    encoder = ImageEncoder(config)
    norms = [m for m in encoder.modules() if "Norm" in type(m).__name__]
    assert len(norms) >= 9
    assert {type(m) for m in norms} == {nn.GroupNorm}
    assert not [name for name in encoder.state_dict() if "running" in name]


@pytest.mark.parametrize("config", [SMALL, RESNET])
def test_the_seed_decides_the_weights(config: EncoderConfig) -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    one, same, other = (ImageEncoder(config, seed=s).state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not any(torch.equal(one[k], other[k]) for k in one if one[k].ndim == 4)


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_resnet_starts_as_torchvision_does(width: float) -> None:
    """He et al. 2015, fan out; at every width. The smallest convolution has 2,048 weights."""
    for module in ImageEncoder(replace(RESNET, width=width)).modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert float(module.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "vit"}, "unknown encoder backbone 'vit': available are 'equivariant', 'resnet18', 'small'"),
        ({"init": "clip"}, "unknown init 'clip': available are 'imagenet', 'pretrained', 'r3m', 'scratch'"),
        ({"color": "lab"}, "unknown color 'lab': available are 'rgb', 'whiten'"),
        ({"crop_size": 65}, "16 <= crop_size <= 64, got 65"),
        ({"crop_size": 15}, "16 <= crop_size <= 64, got 15"),
        ({"width": 0.0}, r"expected width > 0, got 0\.0"),
        ({"std": (1.0, 0.0, 1.0)}, r"std > 0 in each channel, got \(1\.0, 0\.0, 1\.0\)"),
        ({"aspect": 0.0}, r"expected an aspect above 0, or one for each of 1 cameras, got 0\.0"),
    ],
)
def test_settings_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EncoderConfig(**change)


def test_maps_of_a_single_cell_are_refused() -> None:
    """All coordinates would be the same whatever the image."""
    with pytest.raises(ConfigError, match="'resnet18' makes 1 x 1 maps of a crop of 32 pixels"):
        ImageEncoder(replace(RESNET, crop_size=32))


# Encoding


@pytest.mark.parametrize("color", ["rgb", "whiten"])
def test_encode_is_resize_centre_crop_normalise_forward(color: str) -> None:
    config = replace(SMALL, color=color, mean=(100.0, 120.0, 140.0), std=(50.0, 60.0, 70.0))
    encoder = ImageEncoder(config)
    resized = np.stack([cv2.resize(frame, (32, 32), interpolation=cv2.INTER_LINEAR) for frame in FRAMES])
    pixels = torch.from_numpy(resized[:, 2:30, 2:30].transpose(0, 3, 1, 2).astype(np.float32))
    inputs = encoder.normalize(pixels)
    if color == "rgb":
        assert torch.allclose(inputs[:, 1], (pixels[:, 1] - 120) / 60)
    with torch.no_grad():
        expected = encoder(inputs[:, None]).numpy()
    found = encoder.encode(FRAMES)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.std(axis=0).max() > 1e-3


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, color="whiten"), RESNET])
def test_encode_does_not_depend_on_the_batch(config: EncoderConfig) -> None:
    """Up to rounding: the convolution library may sum in another order. Features are coordinates within [-1, 1]."""
    encoder = ImageEncoder(config)
    whole = encoder.encode(FRAMES)
    for batch_size in (1, 2, 5):
        np.testing.assert_allclose(encoder.encode(FRAMES, batch_size=batch_size), whole, rtol=0, atol=5e-6)
    np.testing.assert_allclose(encoder.encode(FRAMES[::-1])[::-1], whole, rtol=0, atol=5e-6)
    assert abs(whole[0] - whole[1]).max() > 1e-4


def test_encode_in_bfloat16_is_close(encoder: ImageEncoder) -> None:
    exact, low = encoder.encode(FRAMES), encoder.encode(FRAMES, bf16=True)
    assert low.dtype == np.float32
    assert not np.array_equal(exact, low)
    np.testing.assert_allclose(low, exact, atol=0.02)


def test_encode_nothing(encoder: ImageEncoder) -> None:
    assert encoder.encode(FRAMES[:0]).shape == (0, 64)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (FRAMES[0], r"expected images of shape \(N, H, W, 3\), .* got \(30, 40, 3\)"),
        (FRAMES[..., :1], r"got \(5, 30, 40, 1\)\. It has 1 channels"),
        (FRAMES.astype(np.float32), r"expected uint8 values 0\.\.255, got float32"),
        (FRAMES[:, :0, :0], r"got \(5, 0, 0, 3\), which has no pixels"),
    ],
)
def test_encode_refuses(encoder: ImageEncoder, images: Any, message: str) -> None:
    with pytest.raises(DataError, match=r"camera 'top': .*" + message):
        encoder.encode(images)


def test_images_much_smaller_than_the_encoder_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    encoder = ImageEncoder(SMALL)
    with caplog.at_level(logging.WARNING, "classact"):
        encoder.encode(FRAMES)
        encoder.encode(resize_images(FRAMES, (18, 24)))
        assert not caplog.records  # more than half of 32 pixels
        encoder.encode(resize_images(FRAMES, (15, 20)))
        encoder.encode(resize_images(FRAMES, (15, 20)))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "camera 'top': images are 15 x 20 pixels, upscaled to 32 x 32" in caplog.text


def test_images_of_another_shape_would_be_distorted(encoder: ImageEncoder) -> None:
    with pytest.raises(
        ConfigError, match=r"camera 'top': images are 30 x 30 pixels \(width / height 1\.00\), .* had 1\.33\. Crop them"
    ):
        encoder.encode(FRAMES[:, :, :30])
    prepared = np.stack([cv2.resize(frame, (32, 32), interpolation=cv2.INTER_LINEAR) for frame in FRAMES])
    np.testing.assert_allclose(encoder.encode(prepared), encoder.encode(FRAMES), atol=1e-6)


# Several views

TWO = replace(SMALL, cameras=("top", "wrist"))
OTHER = FRAMES[::-1, :, ::-1]
VIEWS = {"wrist": OTHER, "top": FRAMES, "side": FRAMES[:2]}  # in any order, and more than are read


@pytest.mark.parametrize("color", ["rgb", "whiten"])
def test_two_views_are_two_encoders_side_by_side(color: str) -> None:
    config = replace(TWO, color=color)
    both = ImageEncoder(config, seed=3)
    assert (both.feature_dim, len(both.views)) == (128, 2)
    parts = []
    for number, camera in enumerate(config.cameras):
        alone = ImageEncoder(replace(config, cameras=(camera,)), seed=8)
        prefix = f"views.{number}."
        own = {k.replace(prefix, "views.0."): v for k, v in both.state_dict().items() if k.startswith(prefix)}
        load_weights(alone, own, Path("x"))
        parts.append(alone.encode(VIEWS))
        np.testing.assert_array_equal(alone.encode(VIEWS[camera]), parts[-1])
    np.testing.assert_array_equal(both.encode(VIEWS), np.concatenate(parts, axis=1))
    assert not np.allclose(both.encode({"top": OTHER, "wrist": FRAMES}), both.encode(VIEWS))
    swapped = ImageEncoder(replace(config, cameras=("wrist", "top")))
    load_weights(swapped, both.state_dict(), Path("x"))
    np.testing.assert_array_equal(swapped.encode({"top": OTHER, "wrist": FRAMES}), both.encode(VIEWS))


def test_each_view_has_weights_of_its_own_unless_they_are_shared() -> None:
    own = ImageEncoder(TWO, seed=3)
    one, two = (view.state_dict() for view in own.views)
    assert not any(torch.equal(one[k], two[k]) for k in one if one[k].ndim == 4)
    # The first view starts as an encoder of one camera does.
    single = ImageEncoder(SMALL, seed=3).views[0].state_dict()
    assert all(torch.equal(one[k], single[k]) for k in one)
    shared = ImageEncoder(replace(TWO, shared=True), seed=3)
    assert (shared.feature_dim, len(shared.views)) == (128, 1)
    assert shared.state_dict().keys() == ImageEncoder(SMALL).state_dict().keys()
    features = shared.encode({"top": FRAMES, "wrist": FRAMES})
    np.testing.assert_allclose(features[:, :64], features[:, 64:], atol=1e-6)
    np.testing.assert_allclose(features[:, :64], ImageEncoder(SMALL, seed=3).encode(FRAMES), atol=1e-6)
    np.testing.assert_allclose(shared.encode(VIEWS)[:, 64:], ImageEncoder(SMALL, seed=3).encode(OTHER), atol=1e-6)


@pytest.mark.parametrize("shared", [False, True])
def test_two_views_in_any_batch_and_on_disk(shared: bool, tmp_path: Path) -> None:
    encoder = ImageEncoder(replace(TWO, shared=shared), seed=3)
    whole = encoder.encode(VIEWS)
    np.testing.assert_allclose(encoder.encode(VIEWS, batch_size=2), whole, rtol=0, atol=5e-6)
    assert encoder.encode({"top": FRAMES[:0], "wrist": OTHER[:0]}).shape == (0, 128)
    encoder.save_pretrained(tmp_path / "encoder")
    loaded = ImageEncoder.from_pretrained(tmp_path / "encoder")
    assert loaded.config == encoder.config
    assert loaded.encode(VIEWS).tobytes() == whole.tobytes()


def test_views_of_different_sizes_meet_at_the_encoders() -> None:
    large = np.random.default_rng(1).integers(0, 256, (5, 48, 64, 3)).astype(np.uint8)
    small = resize_images(large, 32)
    encoder = ImageEncoder(TWO)
    found = encoder.encode({"top": FRAMES, "wrist": large})
    np.testing.assert_allclose(found, encoder.encode({"top": FRAMES, "wrist": small}), atol=1e-6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (FRAMES, r"this encoder reads 2 cameras, \['top', 'wrist'\]: pass images by camera"),
        ({"top": FRAMES}, r"the encoder reads camera 'wrist', there are \['top'\]"),
        ({}, r"the encoder reads camera 'top', there are no images"),
        ({"top": FRAMES, "wrist": FRAMES[:3]}, r"camera 'wrist' has 3 images, 'top' has 5; expected one for each"),
        ({"top": FRAMES, "wrist": FRAMES[0]}, r"camera 'wrist': expected images of shape \(N, H, W, 3\), .* got"),
        ({"top": FRAMES, "wrist": FRAMES / 255}, r"camera 'wrist': expected uint8 values 0\.\.255, got float64"),
    ],
)
def test_views_refused(images: Any, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        ImageEncoder(TWO).encode(images)


def test_inputs_of_another_number_of_views(encoder: ImageEncoder) -> None:
    for shape in ((2, 3, 28, 28), (2, 2, 3, 28, 28)):
        with pytest.raises(ConfigError, match=r"expected inputs of shape \(B, 1, 3, H, W\).*\['top'\], got \(2, "):
            encoder(torch.zeros(shape))


@pytest.mark.parametrize("cameras", ["top", ("top", "top")])
def test_cameras_refused(cameras: Any) -> None:
    with pytest.raises(ConfigError, match="expected a tuple of cameras, each named once, got"):
        replace(SMALL, cameras=cameras)


# On disk


def test_saved_and_loaded_is_the_same(encoder: ImageEncoder, folder: Path) -> None:
    loaded = ImageEncoder.from_pretrained(folder)
    assert loaded.config == encoder.config
    assert loaded.feature_dim == 64
    own, other = encoder.state_dict(), loaded.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[k], other[k]) for k in own)
    assert loaded.encode(FRAMES).tobytes() == encoder.encode(FRAMES).tobytes()
    assert sorted(file.name for file in folder.iterdir()) == sorted([CHECKSUMS, CONFIG, WEIGHTS])


def test_loading_looks_for_no_initial_weights(tmp_path: Path) -> None:
    config = replace(RESNET, init="r3m", init_path="/nowhere/r3m.pt")
    ImageEncoder(config, load_init=False).save_pretrained(tmp_path / "encoder")
    assert ImageEncoder.from_pretrained(tmp_path / "encoder").config == config


def test_truncated(folder: Path) -> None:
    size = (folder / WEIGHTS).stat().st_size
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(size // 2)
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS} has {size // 2:,} bytes, expected {size:,}: it was truncat"):
        ImageEncoder.from_pretrained(folder)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    def fill(path: Path) -> None:
        (path / CONFIG).write_text('{"format": "classact-retrieval-1"}')

    write_folder(tmp_path / "other", fill)
    with pytest.raises(CheckpointError, match=r"no encoder: .*'classact-retrieval-1', expected 'classact-encoder-2'"):
        ImageEncoder.from_pretrained(tmp_path / "other")


def test_settings_of_another_version(encoder: ImageEncoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path / "saved")
    value = json.loads((tmp_path / "saved" / CONFIG).read_text())
    settings = value["encoder"]
    for number, (other, message) in enumerate(
        (
            (settings | {"depth": 3}, r"config.json.encoder: unknown field 'depth'"),
            ({k: v for k, v in settings.items() if k != "width"}, r"encoder: field 'width' is missing"),
            (settings | {"width": "1"}, r"config.json.encoder.width: expected a number, got '1'"),
            (None, r"config.json.encoder: expected an object with the fields of EncoderConfig, got None"),
        )
    ):

        def fill(path: Path, other: object = other) -> None:
            (path / CONFIG).write_text(json.dumps(value | {"encoder": other}))

        write_folder(tmp_path / str(number), fill)
        with pytest.raises(CheckpointError, match=message):
            pretrained_config(tmp_path / str(number))


def test_weights_of_another_architecture(encoder: ImageEncoder, folder: Path) -> None:
    """Sealed with right checksums, and yet the weights do not fit the settings."""
    card = json.loads((folder / CONFIG).read_text())
    card["encoder"]["width"] = 0.5

    def fill(path: Path) -> None:
        shutil.copy(folder / WEIGHTS, path)
        (path / CONFIG).write_text(json.dumps(card))

    write_folder(folder.parent / "mixed", fill)
    message = r"has shape \(8,.*\), expected \(16,.*\) for this .*'small' of width 0\.5\)\. .*another architecture"
    with pytest.raises(CheckpointError, match=message):
        ImageEncoder.from_pretrained(folder.parent / "mixed")
    state = encoder.state_dict()
    kept = {k: v.clone() for k, v in state.items()}
    missing = {k: v for k, v in state.items() if k != "views.0.pool.temperature"}
    with pytest.raises(
        CheckpointError,
        match=r"lacks views\.0\.pool\.temperature \(1 of \d+ tensors missing\), which this Im",
    ):
        load_weights(encoder, missing, Path("x"))
    with pytest.raises(
        CheckpointError, match=r"holds head\.weight \(1 tensors unknown here\), which this ImageEncoder \('small'"
    ):
        load_weights(encoder, state | {"head.weight": torch.zeros(1)}, Path("x"))
    assert all(torch.equal(v, kept[k]) for k, v in encoder.state_dict().items())


def test_hub_id(encoder: ImageEncoder, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    asked: list[str] = []

    def download(name: str, revision: str | None) -> str:
        asked.append(name)
        assert revision is None
        if name == "someone/encoder":
            return str(folder)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = ImageEncoder.from_pretrained("someone/encoder")
    assert loaded.encode(FRAMES).tobytes() == encoder.encode(FRAMES).tobytes()
    with pytest.raises(CheckpointError, match=r"someone/else is no folder .* nor found in its cache \(no network\)"):
        ImageEncoder.from_pretrained("someone/else")
    with pytest.raises(CheckpointError, match="does not exist"):
        ImageEncoder.from_pretrained("runs/a/encoder")
    assert asked == ["someone/encoder", "someone/else"]
