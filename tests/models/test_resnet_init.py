"""Initial weights from files like torchvision's and R3M's. Nothing here reaches for the network."""

from __future__ import annotations

import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor

from classact.errors import CheckpointError, ConfigError, MissingDependencyError
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.models.encoders.resnet import R3M_URL, ResNet18

SCRATCH = EncoderConfig(backbone="resnet18", image_size=64, crop_size=64)
IMAGENET = replace(SCRATCH, init="imagenet")
R3M = replace(SCRATCH, init="r3m")
IMAGENET_FILE = "resnet18-f37072fd.pth"


@pytest.fixture(scope="module")
def torchvision_state() -> dict[str, Tensor]:
    from torchvision.models import resnet18

    return dict(resnet18(weights=None).state_dict())


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An empty cache and no network; returns the addresses that were asked for."""
    asked: list[str] = []

    def urlopen(request: Any, *_: Any, **__: Any) -> Any:
        asked.append(getattr(request, "full_url", request))
        raise URLError("no network")

    def connect(*_: Any) -> None:
        pytest.fail("a connection was tried")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "urlopen", urlopen)
    monkeypatch.setattr(socket.socket, "connect", connect)
    return asked


def check(encoder: ImageEncoder, state: dict[str, Tensor]) -> None:
    """The convolutions are those of ``state``, in the same order; everything else is fresh."""
    fresh = ImageEncoder(SCRATCH).state_dict()
    own = encoder.state_dict()
    convolutions = [v for k, v in state.items() if v.ndim == 4]
    found = [v for v in own.values() if v.ndim == 4]
    assert len(found) == len(convolutions) == 20
    assert all(torch.equal(a, b) for a, b in zip(found, convolutions, strict=True))
    assert all(torch.equal(v, fresh[k]) for k, v in own.items() if v.ndim != 4)
    assert not torch.equal(fresh["views.0.backbone.stem.0.weight"], own["views.0.backbone.stem.0.weight"])


def test_imagenet(torchvision_state: dict[str, Tensor], tmp_path: Path, downloads: list[str]) -> None:
    path = tmp_path / "hub" / "checkpoints" / IMAGENET_FILE
    path.parent.mkdir(parents=True)
    torch.save(torchvision_state, path)
    check(ImageEncoder(IMAGENET), torchvision_state)
    assert downloads == []


def test_imagenet_missing(tmp_path: Path, downloads: list[str]) -> None:
    path = tmp_path / "hub" / "checkpoints" / IMAGENET_FILE
    with pytest.raises(
        MissingDependencyError, match=f"neither at {path} nor .*no network.*put the file at {path}"
    ) as e:
        ImageEncoder(IMAGENET)
    assert len(downloads) == 1
    assert downloads[0].endswith(IMAGENET_FILE)
    assert downloads[0] in str(e.value)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"PK\x03\x04 torn zip"])
def test_imagenet_damaged(content: bytes, tmp_path: Path, downloads: list[str]) -> None:
    path = tmp_path / "hub" / "checkpoints" / IMAGENET_FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{path} is not a readable PyTorch file .*Delete it"):
        ImageEncoder(IMAGENET)
    assert downloads == []


def r3m(path: Path) -> ImageEncoder:
    return ImageEncoder(replace(R3M, init_path=str(path)))


def test_r3m(torchvision_state: dict[str, Tensor], tmp_path: Path, downloads: list[str]) -> None:
    """R3M's file: a wrapped ResNet-18 without its last layer, and a language model beside it."""
    inner = {f"module.convnet.{k}": v for k, v in torchvision_state.items() if not k.startswith("fc")}
    inner["module.lang_rew.pred.0.weight"] = torch.zeros(4, 4)
    torch.save({"r3m": inner, "global_step": 7}, tmp_path / "given.pt")
    check(r3m(tmp_path / "given.pt"), torchvision_state)
    cached = tmp_path / "hub" / "checkpoints" / "r3m_resnet18.pt"
    cached.parent.mkdir(parents=True)
    (tmp_path / "given.pt").rename(cached)
    check(ImageEncoder(R3M), torchvision_state)
    assert downloads == []


def test_r3m_missing(tmp_path: Path, downloads: list[str]) -> None:
    path = tmp_path / "given.pt"
    with pytest.raises(MissingDependencyError, match=f"no R3M checkpoint at {path}. Download {re.escape(R3M_URL)}"):
        r3m(path)
    assert downloads == []
    cached = tmp_path / "hub" / "checkpoints" / "r3m_resnet18.pt"
    with pytest.raises(MissingDependencyError, match=f"neither at {cached} nor .*no network.*put the file at {cached}"):
        ImageEncoder(R3M)
    assert len(downloads) == 1
    assert R3M_URL.partition("id=")[2] in downloads[0]


def test_r3m_download_is_a_web_page(tmp_path: Path, downloads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What Google Drive sends instead of a large file. It must not stay in the cache."""

    def page(_: str, file: str, **__: Any) -> None:
        Path(file).write_text("<!DOCTYPE html>")

    monkeypatch.setattr(torch.hub, "download_url_to_file", page)
    with pytest.raises(MissingDependencyError, match=r"the server sent a web page.*On a machine with a network"):
        ImageEncoder(R3M)
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []
    assert downloads == []


def test_r3m_of_another_kind(torchvision_state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=f"{path} is not a readable R3M checkpoint"):
        r3m(path)
    torch.save(torchvision_state, path)
    with pytest.raises(
        CheckpointError, match=r"expected an R3M checkpoint with the key 'r3m', found \['conv1\.weight'"
    ):
        r3m(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="with the key 'r3m', found list"):
        r3m(path)
    torch.save({"r3m": {"conv1.weight": torch.zeros(64, 3, 7, 7)}}, path)
    with pytest.raises(CheckpointError, match="found 0 of 20 ResNet-18 convolutions"):
        r3m(path)


def test_other_networks(torchvision_state: dict[str, Tensor]) -> None:
    backbone = ResNet18(0.5)
    with pytest.raises(CheckpointError, match=r"conv1\.weight has shape \(64, 3, 7, 7\), .* needs \(32, .*width 1\.0"):
        backbone.load_torchvision(torchvision_state, "file")
    bottleneck = torchvision_state | {"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv1\.weight has shape \(64, 64, 1, 1\).* of a ResNet-18"):
        ResNet18().load_torchvision(bottleneck, "file")
    some = {k: v for k, v in torchvision_state.items() if not k.startswith("layer4")}
    with pytest.raises(CheckpointError, match="file: found 15 of 20 ResNet-18 convolutions"):
        ResNet18().load_torchvision(some, "file")


@pytest.mark.parametrize("init", ["imagenet", "r3m"])
def test_pretrained_weights_are_for_resnet18(init: str, downloads: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"init '{init}' exists for the encoder 'resnet18' only; use init 'scratch'"):
        ImageEncoder(EncoderConfig(init=init))
    assert downloads == []
