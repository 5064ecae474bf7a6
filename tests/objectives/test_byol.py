from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from classact.errors import ConfigError
from classact.objectives.base import Material
from classact.objectives.byol import BYOL, byol_loss
from classact.objectives.config import BYOLConfig

F = 6


def make(seed: int = 0, **settings: Any) -> BYOL:
    config = BYOLConfig(**{"hidden": 8, "projection": 5, **settings})
    return BYOL(config, Material(F, np.array([9], np.int64), torch.zeros(9, 2), seed=seed))


def features(B: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of encoder and target network, (B, 1, 2, F) each."""
    drawn = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, B, 1, 2, F)))
    return drawn[0], drawn[1]


def compute(objective: BYOL, z: Tensor, target: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    rows = np.zeros((len(z), 1), np.int64)
    return objective.loss(z, rows, target=target, generator=torch.Generator())


def value(objective: BYOL, z: Tensor, target: Tensor) -> float:
    return float(compute(objective, z, target)[0].detach())


def cosine(x: list[float], y: list[float]) -> float:
    lengths = math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in y))
    return sum(a * b for a, b in zip(x, y, strict=True)) / lengths


def definition(q: list[list[list[float]]], t: list[list[list[float]]]) -> float:
    """The mean of both directions' 2 - 2 cos, loop by loop."""
    both = [(2 - 2 * cosine(a[0], b[1])) + (2 - 2 * cosine(a[1], b[0])) for a, b in zip(q, t, strict=True)]
    return sum(both) / len(both)


def mlp(network: nn.Module, rows: list[list[float]]) -> list[list[float]]:
    """Linear, BatchNorm by the statistics of the rows (biased variance, 1e-5), ReLU, Linear; loop by loop."""
    w1, b1, gain, shift, w2, b2 = (p.detach().double().tolist() for p in network.parameters())

    def linear(w: list[list[float]], b: list[float], x: list[float]) -> list[float]:
        return [sum(a * c for a, c in zip(line, x, strict=True)) + offset for line, offset in zip(w, b, strict=True)]

    hidden = [linear(w1, b1, x) for x in rows]
    for u in range(len(b1)):
        column = [h[u] for h in hidden]
        mean = sum(column) / len(column)
        variance = sum((v - mean) ** 2 for v in column) / len(column)
        for h in hidden:
            h[u] = max(0.0, gain[u] * (h[u] - mean) / math.sqrt(variance + 1e-5) + shift[u])
    return [linear(w2, b2, h) for h in hidden]


def test_loss_equals_the_definition() -> None:
    q, t = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 7, 2, 5)))
    assert float(byol_loss(q, t)) == pytest.approx(definition(q.tolist(), t.tolist()), rel=1e-12)
    single = byol_loss(q.float(), t.float())
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(definition(q.tolist(), t.tolist()), rel=1e-5)


def test_each_view_is_predicted_from_the_other() -> None:
    q = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert float(byol_loss(q, q.flip(1))) == pytest.approx(0, abs=1e-6)
    assert float(byol_loss(q, q)) == pytest.approx(4)
    assert float(byol_loss(q, -q.flip(1))) == pytest.approx(8)


def test_gradient_of_the_loss_reaches_predictions_only() -> None:
    q, t = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 2, 4))).requires_grad_().unbind(0)
    assert torch.autograd.gradcheck(lambda x: byol_loss(x, t.detach()), q.detach().requires_grad_())
    targets = t.detach().requires_grad_()
    assert not torch.autograd.grad(byol_loss(q, targets), targets, allow_unused=True)[0]


@pytest.mark.parametrize("B", [1, 4])
def test_the_objective_equals_the_definition(B: int) -> None:
    objective = make().double()
    for network in (objective.projector, objective.predictor, objective.target_projector):
        for p, n in zip(network.parameters(), range(9), strict=False):  # away from gain 1, shift 0, and from each other
            generator = torch.Generator().manual_seed(n + 10 * sum(v.numel() for v in network.parameters()))
            p.data += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    z, target = features(B)
    q = mlp(objective.predictor, mlp(objective.projector, z.flatten(0, 2).tolist()))
    t = mlp(objective.target_projector, target.flatten(0, 2).tolist())
    pairs = [[rows[2 * b : 2 * b + 2] for b in range(B)] for rows in (q, t)]
    loss, stats = compute(objective, z, target)
    assert float(loss.detach()) == pytest.approx(definition(*pairs), rel=1e-9)
    directions = [[v / math.sqrt(sum(u * u for u in row)) for v in row] for row in t]
    mean = [sum(column) / len(t) for column in zip(*directions, strict=True)]
    assert float(stats["spread"]) == pytest.approx(1 - sum(v * v for v in mean), rel=1e-9)


def test_gradient_of_the_objective() -> None:
    objective = make(hidden=4, projection=3).double()
    z, target = features(3)
    assert torch.autograd.gradcheck(lambda x: compute(objective, x, target)[0], z.clone().requires_grad_())


def test_a_batch_in_which_all_is_the_same_has_no_spread() -> None:
    z = torch.ones(4, 1, 2, F)
    assert float(compute(make(), z, z)[1]["spread"]) == pytest.approx(0, abs=1e-6)


def test_the_target_projector_starts_as_the_projector_and_follows_with_the_decay() -> None:
    objective = make(decay=0.9)
    start = [p.clone() for p in objective.target_projector.parameters()]
    assert all(map(torch.equal, start, objective.projector.parameters()))
    with torch.no_grad():
        for p in objective.projector.parameters():
            p += 1
    for _ in range(7):
        objective.after_step()
    for before, now in zip(start, objective.target_projector.parameters(), strict=True):
        torch.testing.assert_close(now, before + 1 - 0.9**7)


def test_the_target_projector_uses_the_statistics_of_its_batch() -> None:
    objective = make()
    z, target = (x.float() for x in features())
    before = value(objective, z, target)
    with torch.no_grad():
        objective.target_projector[1].running_mean += 100.0
        objective.predictor[1].running_var *= 100.0
    assert value(objective, z, target) == before


def test_the_target_projector_is_not_trained_and_is_saved() -> None:
    objective = make()
    trained = {name.split(".")[0] for name, p in objective.named_parameters() if p.requires_grad}
    assert trained == {"projector", "predictor"}
    with torch.no_grad():
        for p in objective.parameters():
            p += 0.5
    other = make(seed=1)
    other.load_state_dict(objective.state_dict())
    z, target = (x.float() for x in features())
    assert value(other, z, target) == value(copy.deepcopy(objective), z, target)


def test_default_networks_are_the_repositorys() -> None:
    objective = make(hidden=4096, projection=256)
    sizes = [(layer.in_features, layer.out_features) for layer in objective.modules() if isinstance(layer, nn.Linear)]
    assert sizes == [(F, 4096), (4096, 256), (256, 4096), (4096, 256), (F, 4096), (4096, 256)]
    assert objective.config.target_decay == 0.99
    assert not torch.equal(objective.projector[3].bias, objective.predictor[3].bias)


def test_features_that_do_not_fit() -> None:
    z = torch.zeros(4, 1, 2, F)
    with pytest.raises(ConfigError, match=r"byol: expected features of 2 views .* got \(4, 1, 2, 6\) and none"):
        compute(make(), z, None)
    with pytest.raises(ConfigError, match=r"got \(4, 1, 1, 6\) and \(4, 1, 1, 6\)"):
        compute(make(), z[:, :, :1], z[:, :, :1])
    with pytest.raises(ConfigError, match=r"one shape \(B, 2, P\), got \(4, 2, 3\) and \(4, 2, 5\)"):
        byol_loss(torch.zeros(4, 2, 3), torch.zeros(4, 2, 5))
