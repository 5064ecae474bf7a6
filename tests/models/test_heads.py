from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from classact.errors import CheckpointError, ConfigError
from classact.models.heads import (
    HEADS,
    DiffusionConfig,
    FlowConfig,
    HeadConfig,
    MLPConfig,
    MLPHead,
    ResidualConfig,
    UNetConfig,
    make_head,
)
from classact.models.weights import load_weights
from classact.utils.codec import from_json, to_json

TINY = UNetConfig(widths=(8, 16), kernel_size=3, groups=4, step_dim=8)
RESIDUAL: dict[str, Any] = {"network": "residual", "residual": ResidualConfig(16, 2, 8)}
CONFIGS: list[HeadConfig] = [
    DiffusionConfig(TINY, scheduler="ddpm"),
    MLPConfig(TINY),
    FlowConfig(TINY),
    DiffusionConfig(**RESIDUAL),
    MLPConfig(loss="l1", **RESIDUAL),
    FlowConfig(loss="l2", **RESIDUAL),
]
WHERE = Path("x/policy.json")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_registered_head_is_tried_here() -> None:
    assert {config.name for config in CONFIGS} == HEADS.keys()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.name}-{c.network}")
def test_a_head_has_a_loss_with_gradient_and_samples_without(config: HeadConfig) -> None:
    made = make_head(config, 6, 3, 8)
    features = torch.randn(5, 6, generator=generator(), requires_grad=True)
    loss = made.loss(features, torch.zeros(5, 8, 3), generator())
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.shape == ()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0
    sample = made.sample(features, generator())
    assert sample.shape == (5, 8, 3)
    assert not sample.requires_grad
    assert (made.feature_dim, made.action_dim, made.horizon, made.config) == (6, 3, 8, config)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.name}-{c.network}")
@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 12), max_size=3), seed=st.integers(0, 2**31))
def test_a_batch_in_parts_has_the_losses_of_the_whole(config: HeadConfig, cuts: list[int], seed: int) -> None:
    made = make_head(config, 6, 3, 8)
    features = torch.randn(12, 6, generator=generator(seed))
    actions = torch.rand(12, 8, 3, generator=generator(seed + 1)) * 2 - 1
    drawn = made.draw(12, generator(seed), features.device)
    assert all(len(rows) == 12 for rows in drawn)
    with torch.no_grad():
        whole = made.losses(features, actions, drawn)
        bounds = [0, *sorted(cuts), 12]
        parts = [
            made.losses(features[a:b], actions[a:b], tuple(rows[a:b] for rows in drawn))
            for a, b in pairwise(bounds)
            if a < b
        ]
        loss = made.loss(features, actions, generator(seed))
    assert whole.shape == (12,)
    assert_allclose(torch.cat(parts), whole, rtol=1e-4, atol=1e-6)
    assert_allclose(loss, whole.mean(), rtol=1e-6)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.name}-{c.network}")
def test_weights_are_a_function_of_the_seed(config: HeadConfig) -> None:
    before = torch.random.get_rng_state()
    one, two, other = (make_head(config, 6, 3, 8, seed=s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("config", [*CONFIGS, DiffusionConfig(), MLPConfig()], ids=repr)
def test_settings_survive_json(config: HeadConfig) -> None:
    assert read(json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "gaussian"}, r"policy.json: unknown head 'gaussian': available are 'diffusion', 'flow', 'mlp'"),
        (
            {"name": "mlp"},
            r"policy.json: unknown field 'scheduler': available are 'loss', 'network', .* Another version",
        ),
        ({"unet": {"widths": [8]}}, r"policy.json.unet: field 'kernel_size' is missing"),
        ({"unet": None}, r"policy.json.unet: expected an object with the fields of UNetConfig, got None"),
        ({"unet": {"widths": ["8"]}}, r"policy.json.unet.widths\[0\]: expected a whole number, got '8'"),
        ({"scheduler": "euler"}, r"policy.json.scheduler: unknown value 'euler'"),
    ],
)
def test_settings_of_another_version_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(to_json(CONFIGS[0]) | change)
    with pytest.raises(CheckpointError, match="unknown head 'None'"):
        read(None)


def read(value: Any) -> HeadConfig:
    return from_json(HeadConfig, value, "x/policy.json", error=CheckpointError)


def test_only_what_a_head_names_is_changed_for_acting() -> None:
    assert DiffusionConfig(TINY).with_acting({"inference_steps": 4}) == DiffusionConfig(TINY, inference_steps=4)
    assert DiffusionConfig(TINY).acting_settings() == {"scheduler": "ddim", "inference_steps": 16}
    assert MLPConfig(TINY).acting_settings() == {}
    with pytest.raises(ConfigError, match="scheduler is no setting of how a head 'mlp' acts: it has none"):
        MLPConfig(TINY).with_acting({"scheduler": "ddim"})
    with pytest.raises(ConfigError, match="unet is no setting of how a head 'diffusion' acts: only scheduler, infer"):
        DiffusionConfig(TINY).with_acting({"unet": TINY})


@pytest.mark.parametrize("size", ["paper", "small", "debug"])
def test_every_head_has_every_size(size: str) -> None:
    for entry in HEADS.values():
        config = entry.config.preset(size)
        assert type(config) is entry.config
        assert config.describe()


def test_settings_of_no_head() -> None:
    with pytest.raises(
        ConfigError, match=r"DiffusionConfig \(diffusion\), MLPConfig \(mlp\), FlowConfig \(flow\); got UNet"
    ):
        make_head(TINY, 6, 3, 8)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="got feature_dim 0, action_dim 3, horizon 8"):
        make_head(CONFIGS[1], 0, 3, 8)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.name}-{c.network}")
def test_weights_of_another_architecture_are_refused(config: HeadConfig) -> None:
    made = make_head(config, 6, 3, 8)
    state = make_head(config, 6, 3, 8, seed=1).state_dict()
    load_weights(made, state, WHERE)
    assert all(torch.equal(v, state[k]) for k, v in made.state_dict().items())
    with pytest.raises(CheckpointError, match=r"has shape .*, expected .*another architecture"):
        load_weights(made, make_head(config, 7, 3, 8).state_dict(), WHERE)
    with pytest.raises(CheckpointError, match=r"holds zzz .1 tensors unknown here., which this .*Head"):
        load_weights(made, state | {"zzz": torch.zeros(1)}, WHERE)
    name = "network.out.1.bias"
    with pytest.raises(CheckpointError, match=rf"lacks {name} .1 of \d+ tensors missing., which this .*Head"):
        load_weights(made, {k: v for k, v in state.items() if k != name}, WHERE)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.name}-{c.network}")
def test_features_are_standardised_where_a_head_acts_and_not_where_it_learns(config: HeadConfig) -> None:
    made, plain = make_head(config, 6, 3, 8), make_head(config, 6, 3, 8)
    made.center.copy_(torch.arange(6.0))
    made.scale.fill_(2.0)
    features = torch.randn(4, 6, generator=generator())
    assert_allclose(
        made.sample(2 * features + made.center, generator()), plain.sample(features, generator()), atol=1e-4
    )
    zeros = torch.zeros(4, 8, 3)
    assert torch.equal(made.loss(features, zeros, generator()), plain.loss(features, zeros, generator()))


# The two-step flow


def test_flow_goes_from_noise_to_what_is_predicted() -> None:
    made = make_head(FlowConfig(**RESIDUAL), 6, 3, 8)
    features, noise = torch.randn(4, 6, generator=generator()), torch.randn(4, 8, 3, generator=generator(1))
    seen: list[tuple[torch.Tensor, float]] = []
    target = torch.rand(4, 8, 3, generator=generator(2))

    class Exact(torch.nn.Module):
        def forward(self, x: torch.Tensor, _: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            seen.append((x, float(time[0])))
            return target

    made.network = Exact()
    assert torch.equal(made.generate(features, (noise,)), target)
    (first, at), (second, later) = seen
    assert (at, later) == (0, 8)
    assert torch.equal(first, noise)
    assert_allclose(second, (noise + target) / 2, atol=1e-6)
    time = torch.tensor([0.0, 0.25, 0.5, 1.0])
    loss = made.losses(features, target + 1, (time, noise))
    assert_allclose(loss, [1] * 4, rtol=1e-6)
    x, _ = seen[-1]
    assert_allclose(x, (1 - time)[:, None, None] * noise + time[:, None, None] * (target + 1), atol=1e-6)


# Direct regression


def test_mlp_has_a_learned_sequence_and_no_steps() -> None:
    made = make_head(CONFIGS[1], 6, 3, 8)
    assert isinstance(made, MLPHead)
    assert made.start.shape == (1, 8, 3)
    assert made.network.embedding is None
    features = torch.randn(4, 6, generator=generator())
    actions = torch.rand(4, 8, 3, generator=generator(1))
    expected = made.network(made.start.repeat(4, 1, 1), features)
    loss, mean = made.loss(features, actions, generator()).detach(), (expected - actions).square().mean().detach()
    assert_allclose(loss, mean, rtol=1e-6)  # the mean of rows is rounded otherwise than that of all
    assert torch.equal(made.sample(features, generator(0)), made.sample(features, generator(1)))


def test_mlp_learns_eight_chunks_by_heart() -> None:
    made = make_head(MLPConfig(UNetConfig((16, 32), 5, 8)), 8, 2, 16)
    chunks = torch.rand(8, 16, 2, generator=generator()) * 2 - 1
    optimizer = torch.optim.AdamW(made.parameters(), lr=5e-3)
    for _ in range(200):
        optimizer.zero_grad()
        made.loss(torch.eye(8), chunks, generator()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert (made.sample(torch.eye(8), generator()) - chunks).abs().mean() < 0.05


def test_nothing_heavy_is_imported_before_a_head_is_made() -> None:
    code = (
        "import sys, classact.models.heads as h, classact.models.encoders, classact.policies as p; "
        "h.DiffusionConfig(), p.RetrievalConfig(); assert 'torch' not in sys.modules; "
        "h.make_head(h.DiffusionConfig(h.UNetConfig((8,))), 2, 1, 4); assert 'diffusers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
