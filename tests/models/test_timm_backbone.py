"""Any model of timm as a backbone: rows of a batch by themselves, sizes, weights. Nothing is downloaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch

import fakes
from classact.errors import ConfigError, MissingDependencyError, UnknownNameError
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.run.presets import PRESETS, with_backbone
from classact.train.representation import Trainer

CNN = EncoderConfig(backbone="timm/test_resnet", image_size=64, crop_size=64)
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "pooling", "features"),
    [
        *(("test_resnet", None, 2 * 96), ("test_efficientnet", "average", 64), ("test_vit", None, 2 * 64)),
        *(("test_vit", "own", 64), ("test_efficientnet", "own", 256)),
    ],
)
def test_an_image_has_its_features_whatever_is_beside_it(name: str, pooling: str | None, features: int) -> None:
    encoder = ImageEncoder(replace(CNN, backbone=f"timm/{name}", pooling=pooling)).train()
    assert encoder.feature_dim == features
    inputs = torch.randn(3, 1, 3, 64, 64)
    out = encoder(inputs)
    out.square().sum().backward()
    assert [name for name, value in encoder.named_parameters() if value.grad is None] == []
    torch.testing.assert_close(encoder(inputs[1:2]), out[1:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder.eval()(inputs), out)  # nothing is random, no statistics are kept


def test_weights_of_a_file_are_timms_and_are_not_needed_again(tmp_path: Path) -> None:
    original = timm.create_model("test_resnet", num_classes=7).eval()
    for module in original.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    torch.save(original.state_dict(), tmp_path / "weights.pth")
    config = replace(CNN, init="pretrained", init_path=str(tmp_path / "weights.pth"), pooling="own")
    encoder = ImageEncoder(config).train()
    inputs = torch.randn(2, 1, 3, 64, 64)
    with torch.no_grad():
        expected = original.forward_head(original.forward_features(inputs[:, 0]), pre_logits=True)
        torch.testing.assert_close(encoder(inputs), expected, rtol=1e-4, atol=1e-5)
    encoder.save_pretrained(tmp_path / "encoder")
    (tmp_path / "weights.pth").unlink()
    loaded = ImageEncoder.from_pretrained(tmp_path / "encoder")
    assert loaded.encode(FRAMES).tobytes() == encoder.eval().encode(FRAMES).tobytes()


def test_weights_that_are_not_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"weights of 'test_resnet' could not be loaded .* init_path; or"):
        ImageEncoder(replace(CNN, init="pretrained"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"backbone": "timm/test_vit", "crop_size": 56}, ConfigError, r"of 56 pixels .*patch size \(16\).*for 160"),
        ({"backbone": "timm/test_resnett"}, UnknownNameError, r"no model 'test_resnett' \(did you mean 'test_resnet'"),
        (
            {"backbone": "timm/test_resnet.mine"},
            UnknownNameError,
            r"unknown weights of timm 'test_resnet\.mine': .*r160_in1k",
        ),
        ({"backbone": "timm/levit_128s"}, ConfigError, r"normalises over batches \(BatchNorm1d\)"),
        ({"width": 0.5}, ConfigError, r"one width: expected width 1, got 0\.5"),
        ({"init": "imagenet"}, ConfigError, r"use init 'pretrained'"),
        ({"crop_size": 32}, ConfigError, "makes 1 x 1 maps of a crop of 32 pixels"),
        ({"backbone": "small", "init": "pretrained"}, ConfigError, "init 'pretrained' is for backbones of timm"),
        ({"backbone": "small", "pooling": "own"}, ConfigError, "'small' has no pooling of its own"),
        ({"pooling": "max"}, UnknownNameError, "unknown pooling 'max': available are 'average', 'cells', 'own'"),
        ({"backbone": "timm/../x"}, UnknownNameError, "unknown encoder backbone 'timm/../x'"),
    ],
)
def test_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ImageEncoder(replace(CNN, **change))


def test_a_preset_with_a_model_of_timm_has_its_scaling_and_a_size_that_it_takes() -> None:
    small = PRESETS["debug"].pretrain.encoder
    made = with_backbone(small, "timm/test_efficientnet")
    assert (made.width, made.crop_size, made.image_size) == (1.0, 64, 73)
    published = timm.models.get_pretrained_cfg("test_efficientnet")
    np.testing.assert_allclose(made.mean, 255 * np.array(published.mean), rtol=1e-4)
    np.testing.assert_allclose(made.std, 255 * np.array(published.std), rtol=1e-4)
    assert ImageEncoder(made).feature_dim == 2 * 64
    assert with_backbone(replace(made, pooling="own"), "small") == replace(EncoderConfig(), image_size=73, crop_size=64)


def test_a_backbone_of_timm_is_trained(tmp_path: Path) -> None:
    config = fakes.pretrain_config(
        encoder=replace(CNN, backbone="timm/test_vit", image_size=32, crop_size=32), epochs=0.2
    )
    data = fakes.demonstrations()
    trainer = Trainer(data, config, tmp_path)
    before = [value.clone() for value in trainer.encoder.parameters()]
    encoder = trainer.fit()
    assert isinstance(encoder, ImageEncoder)
    moved = [not torch.equal(a, b) for a, b in zip(before, trainer.encoder.parameters(), strict=True)]
    assert all(moved)
