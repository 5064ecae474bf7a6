from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from classact.data.types import Demonstrations
from classact.errors import ConfigError
from classact.models.average import ema_decay, update_ema
from classact.run.presets import PRESETS
from classact.train.config import OptimizerConfig
from classact.train.optim import learning_rate, make_optimizer
from classact.train.representation import Trainer

PAPER = OptimizerConfig()


# Learning rate


def test_schedule() -> None:
    """500 steps of warm-up, then half a cosine: peak, half at the middle, (almost) nothing at the end."""
    rate = [learning_rate(PAPER, step, 10_000) for step in range(10_000)]
    assert rate[0] == pytest.approx(0.5 / 500)
    assert rate[249] == pytest.approx(0.25)
    assert rate[499] == rate[500] == 0.5
    assert rate[5250] == pytest.approx(0.25)
    assert rate[7625] == pytest.approx(0.25 * (1 + math.cos(0.75 * math.pi)))
    assert 0 < rate[9999] < 1e-7
    assert learning_rate(PAPER, 10_000, 10_000) == 0
    assert (np.diff(rate[:500]) > 0).all()
    assert (np.diff(rate[500:]) < 0).all()


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (9, 0), (10, 1), (100, 10), (4999, 499), (5000, 500)])
def test_short_trainings_warm_up_for_a_tenth(steps: int, warmup: int) -> None:
    rate = [learning_rate(PAPER, step, steps) for step in range(steps)]
    assert sum(r < 0.5 for r in rate[:warmup]) == max(0, warmup - 1)
    assert rate[warmup] == 0.5
    assert min(rate) > 0


def test_no_warmup() -> None:
    assert learning_rate(replace(PAPER, warmup_steps=0), 0, 10_000) == 0.5


# Weight average


def diffusers_decay(optimization_step: int, power: float) -> float:
    """diffusers' EMAModel.get_decay with use_ema_warmup, inv_gamma 1, update_after_step 0, min_decay 0."""
    step = max(0, optimization_step - 0 - 1)
    if step <= 0:
        return 0.0
    value = 1 - (1 + step / 1.0) ** -power
    return max(min(value, 0.9999), 0.0)


def test_ema_decay_is_the_warm_up_with_a_power() -> None:
    for updates in (1, 2, 4, 100, 4000, 200_000):
        assert ema_decay(updates, 0.75) == pytest.approx(1 - (1 + updates) ** -0.75)
        assert ema_decay(updates, 0.75) == pytest.approx(diffusers_decay(updates + 1, 0.75))
    assert [round(ema_decay(n, 0.75), 3) for n in (4, 100, 4000)] == [0.701, 0.969, 0.998]
    # What the released code computes, for its power never acts.
    assert ema_decay(100, 0.75) != pytest.approx(min(0.9999, (1 + 100) / (10 + 100)), abs=0.01)


def test_update_ema() -> None:
    average, values = (
        nn.ParameterList(torch.tensor(v) for v in vs) for vs in ([[1.0, 2.0], [3.0]], [[2.0, 4.0], [9.0]])
    )
    values[1].requires_grad_(False)
    first = average[0]
    update_ema(average, values, 0.75)
    assert torch.equal(first, torch.tensor([1.25, 2.5]))
    assert average[1].item() == 3  # frozen ones stay as they are
    assert torch.equal(values[0], torch.tensor([2.0, 4.0]))


def test_ema_follows_the_recursion_with_changing_decay() -> None:
    values = np.random.default_rng(0).normal(size=30)
    average, expected = nn.ParameterList([torch.zeros((), dtype=torch.float64)]), 0.0
    for n, value in enumerate(values, 1):
        update_ema(average, nn.ParameterList([torch.tensor(value)]), ema_decay(n, 0.75))
        expected = (1 - (1 + n) ** -0.75) * expected + (1 + n) ** -0.75 * value
    assert average[0].item() == pytest.approx(expected, rel=1e-12)


# Optimisers


def network() -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 2))
    net.register_parameter("temperature", nn.Parameter(torch.ones(())))
    for p in net.parameters():
        nn.init.normal_(p, generator=generator)
    return net


@pytest.mark.parametrize("weight_decay", [1e-6, 0.1, 0.0])
def test_lars_against_a_transcription(weight_decay: float) -> None:
    """You et al. 2017 with momentum; parameters of one dimension or none get plain momentum without decay."""
    net = network()
    config = replace(PAPER, weight_decay=weight_decay)
    optimizer = make_optimizer(net.parameters(), config)
    expected = [p.detach().clone().double() for p in net.parameters()]
    momentum = [torch.zeros_like(p) for p in expected]
    generator = torch.Generator().manual_seed(1)
    for rate in (0.5, 0.3, 0.1):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for n, p in enumerate(net.parameters()):
            p.grad = torch.randn(p.shape, generator=generator)
            g, x = p.grad.double(), expected[n]
            if p.ndim > 1:
                trust = 0.001 * x.norm() / (g.norm() + weight_decay * x.norm())
                g = trust * (g + weight_decay * x)
            momentum[n] = 0.9 * momentum[n] + g
            expected[n] = x - rate * momentum[n]
        optimizer.step()
    for p, x in zip(net.parameters(), expected, strict=True):
        assert torch.allclose(p.detach().double(), x, rtol=1e-5, atol=1e-6)
    assert sorted({p.ndim for p in net.parameters()}) == [0, 1, 2, 4]


def test_adamw_decays_matrices_only() -> None:
    net = network()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = make_optimizer(net.parameters(), OptimizerConfig(name="adamw", learning_rate=0.1, weight_decay=0.5))
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, x in zip(net.parameters(), before, strict=True):
        assert torch.allclose(p, x * (0.95 if p.ndim > 1 else 1.0))


@pytest.mark.parametrize("name", ["lars", "adamw"])
def test_every_parameter_is_optimised_once(name: str) -> None:
    net = network()
    optimizer = make_optimizer(net.parameters(), replace(PAPER, name=name))
    assert sorted(id(p) for g in optimizer.param_groups for p in g["params"]) == sorted(map(id, net.parameters()))


# Clipping


@pytest.fixture(scope="module")
def data() -> Demonstrations:
    rng = np.random.default_rng(0)
    actions = np.cumsum(rng.normal(size=(60, 2)), axis=0).astype(np.float32)
    images = {"top": rng.integers(0, 256, (60, 32, 32, 3)).astype(np.uint8)}
    return Demonstrations("walk", np.array([30, 60], np.int64), actions, actions, images=images)


@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_the_gradient_is_clipped_after_backward(data: Demonstrations, clip: float) -> None:
    """The released code clips before backward, which does nothing."""
    config = PRESETS["debug"].pretrain
    trainer = Trainer(data, replace(config, optimizer=replace(config.optimizer, clip_norm=clip)))
    row = trainer.train_step(np.arange(0, 60, 2))
    used = math.sqrt(sum(float((p.grad**2).sum()) for p in trainer.encoder.parameters() if p.grad is not None))
    assert row["grad_norm"] > 1e-2
    assert used == pytest.approx(min(clip, row["grad_norm"]), rel=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "sgd"}, "unknown optimizer 'sgd': available are 'adamw', 'lars'"),
        ({"learning_rate": 0.0}, "learning_rate > 0"),
        ({"learning_rate": float("nan")}, "learning_rate > 0"),
        ({"clip_norm": 0.0}, "clip_norm > 0"),
        ({"ema_power": 0.0}, "ema_power <= 1"),
        ({"ema_power": 1.5}, "ema_power <= 1"),
        ({"warmup_steps": -1}, "warmup_steps >= 0"),
        ({"momentum": 1.0}, "momentum < 1"),
        ({"weight_decay": -1e-6}, "weight_decay >= 0"),
    ],
)
def test_settings_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimizerConfig(**change)  # type: ignore[arg-type]
