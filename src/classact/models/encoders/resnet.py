"""ResNet-18 as the paper uses it (C.1), and where its initial weights come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from classact.errors import CheckpointError, ConfigError, DataError, MissingDependencyError
from classact.models.encoders.layers import replace_batch_norm
from classact.models.encoders.timm_backbone import TimmBackbone
from classact.utils.inputs import cannot_read, is_from_system

R3M_URL = "https://drive.google.com/uc?id=1A1ic-p4KtYlKXdXHcV2QV0cUzI4kn0u-"
"""R3M's ResNet-18 (arXiv 2203.12601), as in its authors' loader."""
R3M_DIRECT_URL = R3M_URL.replace("drive.google.com/uc?", "drive.usercontent.google.com/download?confirm=t&")
"""The same without the warning page for files above 100 MB (this one holds R3M's language model as well)."""


class ResNet18(nn.Module):
    """torchvision's ResNet-18 up to layer4 with GroupNorm: (B, 3, S, S) -> maps (B, 512 width, S/32, S/32)."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        from torchvision.models.resnet import BasicBlock, ResNet

        base = max(8, round(64 * width / 8) * 8)
        net = ResNet(BasicBlock, [2, 2, 2, 2], width_per_group=64)
        if base != 64:
            _narrow(net, base)
        replace_batch_norm(net)
        self.stem = nn.Sequential(net.conv1, net.bn1)
        self.pool = net.maxpool
        self.layers = nn.Sequential(net.layer1, net.layer2, net.layer3, net.layer4)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps of a batch of images."""
        out: Tensor = self.layers(self.pool(torch.relu(self.stem(x))))
        return out

    def load_torchvision(self, state: dict[str, Tensor], source: str) -> None:
        """Load the convolutions of a torchvision ResNet-18 state dict; norms and fc are left out."""
        names = {"conv1": "stem.0"} | {f"layer{i}": f"layers.{i - 1}" for i in range(1, 5)}
        own, taken = self.state_dict(), 0
        for key, value in state.items():
            head, _, rest = key.partition(".")
            target = f"{names.get(head, '')}.{rest}"
            if value.ndim != 4 or target not in own:
                continue
            if own[target].shape != value.shape:
                raise CheckpointError(
                    f"{source}: {key} has shape {tuple(value.shape)}, this encoder needs {tuple(own[target].shape)}. "
                    f"Pre-trained weights must be of a ResNet-18 and fit width 1.0 only."
                )
            own[target].copy_(value)
            taken += 1
        expected = sum(value.ndim == 4 for value in own.values())
        if taken != expected:
            raise CheckpointError(f"{source}: found {taken} of {expected} ResNet-18 convolutions. Is it a ResNet-18?")


def _narrow(net: Any, base: int) -> None:
    from torchvision.models.resnet import BasicBlock

    net.inplanes = base
    net.conv1 = nn.Conv2d(3, base, 7, 2, 3, bias=False)
    net.bn1 = nn.BatchNorm2d(base)
    for i, stride in enumerate((1, 2, 2, 2)):
        setattr(net, f"layer{i + 1}", net._make_layer(BasicBlock, base << i, 2, stride=stride))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")  # as ResNet does at full width


def imagenet_weights() -> tuple[dict[str, Tensor], str]:
    """State dict of torchvision's ImageNet-1K ResNet-18, from the torch hub cache or its download."""
    from torchvision.models import ResNet18_Weights

    weights = ResNet18_Weights.IMAGENET1K_V1
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True)), str(path)
    except Exception as error:
        if is_from_system(error) and path.exists():
            raise DataError(cannot_read(path, error)) from error
        if path.exists():
            raise CheckpointError(
                f"{path} is not a readable PyTorch file ({error}). Delete it and download {weights.url} again."
            ) from None
        raise MissingDependencyError(
            f"ImageNet weights of ResNet-18 are neither at {path} nor could they be downloaded ({error}). "
            f"On a machine with a network download {weights.url} and put the file at {path}; "
            f"or train from scratch with init 'scratch'."
        ) from None


def r3m_weights(path: str | None) -> tuple[dict[str, Tensor], str]:
    """State dict of R3M's ResNet-18 (keys stripped to torchvision's) from a local file or its download."""
    file = Path(path) if path else Path(torch.hub.get_dir()) / "checkpoints" / "r3m_resnet18.pt"
    if not file.exists():
        if path:
            raise MissingDependencyError(f"no R3M checkpoint at {file}. Download {R3M_URL} and give its path.")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(R3M_DIRECT_URL, str(file), progress=False)
            with file.open("rb") as start:
                is_page = start.read(1) == b"<"
            if is_page:
                file.unlink()
                raise OSError("the server sent a web page")
        except OSError as error:
            raise MissingDependencyError(
                f"R3M weights of ResNet-18 are neither at {file} nor could they be downloaded ({error}). "
                f"On a machine with a network download {R3M_URL}, put the file at {file} or give its path as "
                f"init_path; or train from scratch with init 'scratch'."
            ) from None
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if is_from_system(error):
            raise DataError(cannot_read(file, error)) from error
        raise CheckpointError(
            f"{file} is not a readable R3M checkpoint ({error}). Delete it, download {R3M_URL} with a browser and put "
            f"the file there."
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("r3m"), dict):
        keys = list(content)[:5] if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{file}: expected an R3M checkpoint with the key 'r3m', found {keys}.")
    prefix = "module.convnet."
    return {k.removeprefix(prefix): v for k, v in content["r3m"].items() if k.startswith(prefix)}, str(file)


def initialize(backbone: nn.Module, init: str, init_path: str | None) -> None:
    """Load initial weights into a backbone: "scratch", "imagenet" or "r3m" (paper 5.2); timm's have loaded theirs."""
    if init == "scratch" or isinstance(backbone, TimmBackbone):
        return
    if init == "pretrained":
        raise ConfigError("init 'pretrained' is for backbones of timm (timm/NAME); use 'imagenet', 'r3m' or 'scratch'.")
    if not isinstance(backbone, ResNet18):
        raise ConfigError(f"init {init!r} exists for the encoder 'resnet18' only; use init 'scratch' here.")
    state, source = imagenet_weights() if init == "imagenet" else r3m_weights(init_path)
    with torch.no_grad():
        backbone.load_torchvision(state, source)
