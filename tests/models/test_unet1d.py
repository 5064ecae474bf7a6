from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from classact.errors import ConfigError
from classact.models.heads import ConditionalUNet1d, DiffusionConfig, MLPConfig, UNetConfig, make_head

Array = np.ndarray[Any, Any]
TINY = UNetConfig(widths=(8, 16, 24), kernel_size=5, groups=4, step_dim=8)


# The architecture of Chi et al. (2023) in float64 NumPy, from the definitions of its layers.


def convolution(x: Array, w: Array, b: Array, stride: int, padding: int) -> Array:
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding)))
    size = w.shape[2]
    starts = range(0, x.shape[2] - size + 1, stride)
    return np.stack([np.einsum("bck,ock->bo", x[:, :, t : t + size], w) + b for t in starts], axis=2)


def transposed(x: Array, w: Array, b: Array) -> Array:
    """Kernel 4, stride 2, padding 1: every input step adds its kernel to steps 2 t - 1 ... 2 t + 2."""
    out = np.zeros((len(x), w.shape[1], 2 * x.shape[2] + 2))
    for t in range(x.shape[2]):
        out[:, :, 2 * t : 2 * t + 4] += np.einsum("bi,iok->bok", x[:, :, t], w)
    return out[:, :, 1:-1] + b[:, None]


def group_norm(x: Array, groups: int, w: Array, b: Array) -> Array:
    parts = x.reshape(len(x), groups, -1)
    parts = (parts - parts.mean(2, keepdims=True)) / np.sqrt(parts.var(2, keepdims=True) + 1e-5)
    return parts.reshape(x.shape) * w[:, None] + b[:, None]


def mish(x: Array) -> Array:
    return x * np.tanh(np.log1p(np.exp(x)))


class Transcription:
    def __init__(self, network: ConditionalUNet1d) -> None:
        self.config = network.config
        self.state: Mapping[str, Array] = {k: v.double().numpy() for k, v in network.state_dict().items()}

    def block(self, name: str, x: Array) -> Array:
        w, b = self.state[f"{name}.0.weight"], self.state[f"{name}.0.bias"]
        x = convolution(x, w, b, 1, self.config.kernel_size // 2)
        return mish(group_norm(x, self.config.groups, self.state[f"{name}.1.weight"], self.state[f"{name}.1.bias"]))

    def residual(self, name: str, x: Array, condition: Array) -> Array:
        film = mish(condition) @ self.state[f"{name}.film.1.weight"].T + self.state[f"{name}.film.1.bias"]
        channels = film.shape[1] // 2
        out = self.block(f"{name}.first", x)
        out = film[:, :channels, None] * out + film[:, channels:, None]
        out = self.block(f"{name}.second", out)
        if f"{name}.shortcut.weight" in self.state:
            x = convolution(x, self.state[f"{name}.shortcut.weight"], self.state[f"{name}.shortcut.bias"], 1, 0)
        return out + x

    def embed(self, step: Array) -> Array:
        half = self.config.step_dim // 2
        frequency = np.exp(-math.log(10_000) / (half - 1) * np.arange(half))
        x = np.concatenate([np.sin(step[:, None] * frequency), np.cos(step[:, None] * frequency)], axis=1)
        x = mish(x @ self.state["embedding.mlp.0.weight"].T + self.state["embedding.mlp.0.bias"])
        return x @ self.state["embedding.mlp.2.weight"].T + self.state["embedding.mlp.2.bias"]

    def __call__(self, sequence: Array, features: Array, step: Array | None) -> Array:
        condition = features if step is None else np.concatenate([self.embed(step), features], axis=1)
        x, kept = sequence.transpose(0, 2, 1), []
        levels = len(self.config.widths)
        for i in range(levels):
            x = self.residual(f"down.{i}.second", self.residual(f"down.{i}.first", x, condition), condition)
            kept.append(x)
            if i < levels - 1:
                w, b = self.state[f"down.{i}.resample.weight"], self.state[f"down.{i}.resample.bias"]
                x = convolution(x, w, b, 2, 1)
        for i in range(2):
            x = self.residual(f"middle.{i}", x, condition)
        for i in range(levels - 1):
            x = np.concatenate([x, kept.pop()], axis=1)
            x = self.residual(f"up.{i}.second", self.residual(f"up.{i}.first", x, condition), condition)
            x = transposed(x, self.state[f"up.{i}.resample.weight"], self.state[f"up.{i}.resample.bias"])
        x = self.block("out.0", x)
        return convolution(x, self.state["out.1.weight"], self.state["out.1.bias"], 1, 0).transpose(0, 2, 1)


def network(config: UNetConfig = TINY, *, steps: bool = True, seed: int = 0) -> ConditionalUNet1d:
    """With weights that leave no layer at its initial identity."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = ConditionalUNet1d(3, 5, config, steps=steps)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return made


def inputs(T: int, B: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(B, T, 3, generator=generator, dtype=torch.float64)
    return x, torch.randn(B, 5, generator=generator, dtype=torch.float64), torch.tensor([0, 7, 15])[:B]


@pytest.mark.parametrize("steps", [True, False])
@pytest.mark.parametrize(
    ("config", "T"),
    [
        (TINY, 16),
        (TINY, 4),
        (UNetConfig((8,), 3, 2, 4), 5),
        (UNetConfig((16, 8), 1, 8, 6), 2),
        (UNetConfig((4, 8, 8, 12), 7, 4, 4), 8),
    ],
)
def test_equals_a_transcription_of_the_architecture(config: UNetConfig, T: int, steps: bool) -> None:
    made = network(config, steps=steps).double()
    x, features, step = inputs(T)
    out = made(x, features, step if steps else None).detach().numpy()
    expected = Transcription(made)(x.numpy(), features.numpy(), step.numpy() if steps else None)
    # Frequencies of the embedding are float32, as in the published networks.
    assert_allclose(out, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_single_precision_is_enough() -> None:
    made = network()
    x, features, step = inputs(16)
    out = made(x.float(), features.float(), step).detach().numpy()
    assert_allclose(out, Transcription(made)(x.numpy(), features.numpy(), step.numpy()), rtol=1e-3, atol=1e-4)


def test_has_as_many_parameters_as_the_published_networks() -> None:
    # Diffusion Policy's notebook of Push-T from states prints 6.535322e+07: 2 actions, 2 x 5 features.
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in ConditionalUNet1d(2, features, UNetConfig(), steps=steps).parameters())
            for features, steps in ((10, True), (20, True), (20, False))
        ]
    # The last two are the released code's ConditionalUnet1D and Unet1D, without its learned (1, 16, 2) sequence.
    assert counts == [65_353_218, 65_496_578, 61_301_026 - 32]


def test_rows_of_a_batch_do_not_see_each_other() -> None:
    made = network().double()
    x, features, step = inputs(16)
    for row in range(3):
        alone = made(x[row : row + 1], features[row : row + 1], step[row : row + 1])
        assert_allclose(made(x, features, step)[row].detach(), alone[0].detach(), rtol=1e-12)


def test_step_and_features_matter_and_every_parameter_learns() -> None:
    made = network().double()
    x, features, step = inputs(16)
    out = made(x, features, step)
    assert not torch.allclose(out, made(x, features, step.flip(0)))
    assert not torch.allclose(out, made(x, features.flip(0), step))
    out.square().sum().backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(
    ("T", "message"),
    [
        (15, r"3 levels needs a horizon T_p that is a multiple of 4, got 15; choose 12 or 16"),
        (2, r"multiple of 4, got 2; choose 4\."),
        (0, r"multiple of 4, got 0; choose 4\."),
    ],
)
def test_horizons_that_cannot_be_halved(T: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        network()(torch.zeros(1, T, 3), torch.zeros(1, 5), torch.zeros(1, dtype=torch.int64))
    for config in (DiffusionConfig(TINY), MLPConfig(TINY)):
        with pytest.raises(ConfigError, match=r"multiple of 4|horizon 0"):
            make_head(config, 5, 3, T)


def test_a_step_is_given_where_there_is_one() -> None:
    with pytest.raises(ConfigError, match="made with a denoising step, but was called without one"):
        network()(torch.zeros(1, 4, 3), torch.zeros(1, 5))
    with pytest.raises(ConfigError, match="made without a denoising step, but was called with one"):
        network(steps=False)(torch.zeros(1, 4, 3), torch.zeros(1, 5), torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": ()}, "at least one width"),
        ({"widths": (256, 0)}, "all of at least 1"),
        ({"widths": (64, 100)}, r"8 equal groups, which 100 of widths \(64, 100\) does not allow"),
        ({"kernel_size": 4}, "odd kernel_size .* got 4"),
        ({"step_dim": 7}, "even step_dim of at least 4 .* got 7"),
        ({"step_dim": 2}, "even step_dim of at least 4 .* got 2"),
        ({"groups": 0}, "groups >= 1"),
    ],
)
def test_impossible_architectures(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UNetConfig(**options)
