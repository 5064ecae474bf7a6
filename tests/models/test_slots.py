"""The encoder in other people's policies. Diffusion Policy and robomimic are stood in for by what they document of
their interfaces; tests/beside_lerobot has LeRobot itself.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn

from classact.errors import ConfigError, UnknownNameError
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.models.slots import ImageSlot, MapSlot, ObservationSlot
from snippets import snippet

TWO = EncoderConfig(width=0.25, image_size=32, crop_size=28, cameras=("top", "wrist"))
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
IMAGES = torch.from_numpy(FRAMES).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    return ImageEncoder(EncoderConfig(width=0.25, image_size=32, crop_size=28), seed=1).eval()


@torch.no_grad()
def test_a_slot_gives_the_features_of_its_camera() -> None:
    two = ImageEncoder(TWO, seed=1).eval()
    black = np.zeros_like(FRAMES)
    expected = two.encode({"top": black, "wrist": FRAMES})[:, two.feature_dim // 2 :]
    slot = ImageSlot(two, "wrist")
    assert_allclose(slot(IMAGES).numpy(), expected, atol=1e-5)
    assert_allclose(slot(IMAGES[:, :, 2:30, 2:30]).numpy(), expected, atol=1e-5)  # cropped already
    assert_allclose(ImageSlot(two, "wrist", values=(-1, 1))(2 * IMAGES - 1).numpy(), expected, atol=1e-4)
    assert (slot.feature_dim, slot.output_shape((3, 32, 32))) == (64, [64])
    maps = MapSlot(two, "wrist")
    pooled = maps.view.pool(maps(IMAGES)["feature_map"])
    assert_allclose(pooled.numpy(), expected, atol=1e-5)
    assert maps.channels == 32
    smooth = nn.functional.interpolate(torch.rand(1, 3, 6, 6), (64, 64), mode="bicubic").clamp(0, 1)
    frames = (smooth * 255).round().byte().permute(0, 2, 3, 1).numpy()
    assert_allclose(slot(smooth).numpy(), two.encode({"top": frames, "wrist": frames})[:, 64:], atol=0.02)


def test_refused(encoder: ImageEncoder) -> None:
    with pytest.raises(UnknownNameError, match="unknown camera 'front': available are 'top', which the encoder reads"):
        ImageSlot(encoder, "front")
    with pytest.raises(ConfigError, match="smaller first, got"):
        ImageSlot(encoder, values=(1.0, 0.0))
    with pytest.raises(ConfigError, match=r"shape \(B, 3, H, W\), got \(3, 32, 32, 3\)"):
        ImageSlot(encoder)(torch.zeros(3, 32, 32, 3))
    meta = {"obs": {"pos": {"shape": [2]}, "top": {"shape": [3, 32, 32], "type": "rgb"}}}
    with pytest.raises(ConfigError, match=r"reads cameras \['top', 'wrist'\], shape_meta has images of \['top'\]"):
        ObservationSlot(ImageEncoder(TWO), meta)
    with pytest.raises(ConfigError, match=r"pos: expected \(B, \*\(2,\)\), got \(3, 5\)"):
        ObservationSlot(encoder, meta)({"top": IMAGES, "pos": torch.zeros(3, 5)})


def test_diffusion_policy(encoder: ImageEncoder) -> None:
    """What DiffusionUnetImagePolicy does with its obs_encoder: asks for its size, and encodes (B T_o, ...)."""

    class DiffusionUnetImagePolicy:
        def __init__(self, *given: Any, **_: int) -> None:
            self.encoder = given[2]
            self.dim = self.encoder.output_shape()[0]

        def encode(self, observations: dict[str, Tensor]) -> Tensor:
            return self.encoder(observations)

    meta = {"obs": {"agent_pos": {"shape": [2], "type": "low_dim"}, "image": {"shape": [3, 32, 32], "type": "rgb"}}}
    found: dict[str, Any] = {"encoder": encoder, "shape_meta": meta, "noise_scheduler": None}
    exec(snippet("diffusion-policy"), found | {"DiffusionUnetImagePolicy": DiffusionUnetImagePolicy}, found)
    policy, position = found["policy"], torch.rand(3, 2)
    with torch.no_grad():
        out = policy.encode({"image": 2 * IMAGES - 1, "agent_pos": position})
    assert out.shape == (3, policy.dim)
    assert_allclose(out[:, :-2].numpy(), encoder.encode(FRAMES), atol=1e-4)
    assert torch.equal(out[:, -2:], position)
    assert (policy.encoder.device.type, policy.encoder.dtype) == ("cpu", torch.float32)


def test_robomimic(encoder: ImageEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cores are registered by name as they are defined, and made with the images' shape."""
    cores: dict[str, Any] = {}

    class EncoderCore(nn.Module):
        def __init__(self, input_shape: tuple[int, ...]) -> None:
            self.input_shape = input_shape
            super().__init__()

        def __init_subclass__(cls, **_: Any) -> None:
            cores[cls.__name__] = cls

    for name in ("robomimic", "robomimic.models", "robomimic.models.obs_core"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["robomimic.models"].obs_core = sys.modules["robomimic.models.obs_core"]  # type: ignore[attr-defined]
    sys.modules["robomimic.models.obs_core"].EncoderCore = EncoderCore  # type: ignore[attr-defined]
    rgb = SimpleNamespace()
    config = SimpleNamespace(observation=SimpleNamespace(encoder=SimpleNamespace(rgb=rgb)))
    exec(snippet("robomimic"), {"encoder": encoder, "config": config})
    core = cores[rgb.core_class](input_shape=(3, 32, 32), **rgb.core_kwargs)
    assert core.output_shape((3, 32, 32)) == [64]
    with torch.no_grad():
        assert_allclose(core(IMAGES).numpy(), encoder.encode(FRAMES), atol=1e-5)
