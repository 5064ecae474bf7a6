from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from classact.errors import ConfigError
from classact.objectives.base import Material
from classact.objectives.config import DynaMoConfig
from classact.objectives.dynamo import DynaMo, covariance_penalty, dynamics_loss

SMALL = DynaMoConfig(latent_dim=3, layers=2, heads=2, width=8)
LENGTHS = (9, 1, 3, 12, 5)
F = 6


def material(lengths: tuple[int, ...] = LENGTHS, feature_dim: int = F, seed: int = 0) -> Material:
    return Material(feature_dim, np.cumsum(lengths, dtype=np.int64), torch.zeros(sum(lengths), 2), seed=seed)


def batch(objective: DynaMo, anchors: list[int], seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Features (B, T, 1, F), alike where steps are, and the rows."""
    table = torch.randn(100, 1, F, generator=torch.Generator().manual_seed(seed))
    column = np.array(anchors)
    rows = np.concatenate([column[:, None], objective.draw(column, np.random.default_rng(0))], axis=1)
    return table[rows], rows


def loss_of(objective: DynaMo, z: Tensor, rows: np.ndarray, target: Tensor | None = None) -> Tensor:
    return objective.loss(z, rows, target=target, generator=torch.Generator())[0]


def stirred(config: DynaMoConfig = SMALL) -> DynaMo:
    """Weights far from the initial ones, with which all outputs are nearly alike."""
    objective = DynaMo(config, material())
    generator = torch.Generator().manual_seed(5)
    for parameter in objective.parameters():
        parameter.data += 0.4 * torch.randn(parameter.shape, generator=generator)
    return objective


# The definitions, loop by loop in float64.


def cosine_terms(predicted: Any, target: Any, valid: Any) -> float:
    terms = []
    for p_row, t_row, v_row in zip(predicted, target, valid, strict=True):
        for p, t, v in zip(p_row, t_row, v_row, strict=True):
            if v:
                dot = sum(float(a) * float(b) for a, b in zip(p, t, strict=True))
                lengths = np.sqrt(sum(float(a) ** 2 for a in p) * sum(float(b) ** 2 for b in t))
                terms.append(1 - dot / lengths)
    return sum(terms) / len(terms) if terms else 0.0


def covariance_terms(s: Any, valid: Any, reduction: str) -> float:
    kept = [[float(v) for v in row] for row, keep in zip(s, valid, strict=True) if keep]
    n, d = len(kept), len(kept[0])
    mean = [sum(row[i] for row in kept) / n for i in range(d)]

    def entry(i: int, j: int) -> float:
        return sum((row[i] - mean[i]) * (row[j] - mean[j]) for row in kept) / (n - 1)

    squares = [entry(i, j) ** 2 for i in range(d) for j in range(d) if i != j]
    return sum(squares) / (len(squares) if reduction == "mean" else d)


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask(shape: tuple[int, ...], seed: int = 3) -> Tensor:
    chosen = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    assert chosen.any()
    assert not chosen.all()
    return chosen


def test_dynamics_loss_equals_its_definition() -> None:
    predicted, target, valid = drawn((7, 4, F), 0), drawn((7, 4, F), 1), mask((7, 4))
    expected = cosine_terms(predicted, target, valid)
    assert float(dynamics_loss(predicted, target, valid)) == pytest.approx(expected, rel=1e-12)
    single = dynamics_loss(predicted.float(), target.float(), valid)
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_covariance_penalty_equals_its_definition(reduction: str) -> None:
    s, valid = drawn((20, F), 0) @ drawn((F, F), 1) + 3, mask((20,))
    expected = covariance_terms(s, valid, reduction)
    assert float(covariance_penalty(s, valid, reduction)) == pytest.approx(expected, rel=1e-12)
    assert float(covariance_penalty(s.float(), valid, reduction)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 0.0), (0.01, 0.0), (500.0, 0.0), (-2.0, 2.0)])
def test_predictions_along_their_target(factor: float, expected: float) -> None:
    target = drawn((3, 4, F), 0)
    assert float(dynamics_loss(factor * target, target, mask((3, 4)))) == pytest.approx(expected, abs=1e-12)


def test_predictions_across_their_target() -> None:
    target = drawn((3, 4, 2), 0)
    across = torch.stack([-target[..., 1], target[..., 0]], dim=-1)
    assert float(dynamics_loss(across, target, mask((3, 4)))) == pytest.approx(1.0, abs=1e-12)


def test_covariance_of_degenerate_features() -> None:
    everything = torch.ones(8, dtype=torch.bool)
    assert float(covariance_penalty(torch.full((8, F), 4.0), everything)) == 0
    # One number in all dimensions: each entry of the covariance is its variance.
    x = drawn((8, 1), 0)
    assert float(covariance_penalty(x.expand(8, F), everything)) == pytest.approx(float(x.var()) ** 2)
    assert float(covariance_penalty(x.expand(8, F), everything, "sum")) == pytest.approx((F - 1) * float(x.var()) ** 2)
    signs = torch.tensor([[(-1.0) ** (i >> bit & 1) for bit in range(3)] for i in range(8)])
    assert float(covariance_penalty(5 * signs, everything)) == 0  # uncorrelated
    assert float(covariance_penalty(x, everything)) == 0  # a single dimension
    one = torch.arange(8) == 3
    assert float(covariance_penalty(drawn((8, F), 1), one)) == 0


def test_gradients() -> None:
    predicted, target, valid = drawn((3, 4, F), 0).requires_grad_(), drawn((3, 4, F), 1), mask((3, 4))
    assert torch.autograd.gradcheck(lambda v: dynamics_loss(v, target, valid), predicted)
    s, kept = drawn((9, 4), 2).requires_grad_(), mask((9,))
    for reduction in ("mean", "sum"):
        assert torch.autograd.gradcheck(lambda v, r=reduction: covariance_penalty(v, kept, r), s)


def test_the_target_gets_no_gradient() -> None:
    predicted, target = drawn((3, 4, F), 0).requires_grad_(), drawn((3, 4, F), 1).requires_grad_()
    dynamics_loss(predicted, target, mask((3, 4))).backward()
    assert target.grad is None
    assert predicted.grad is not None
    assert (predicted.grad[mask((3, 4))] != 0).any()
    assert (predicted.grad[~mask((3, 4))] == 0).all()


def test_nothing_valid_and_zero_features() -> None:
    predicted = torch.zeros(3, 4, F, requires_grad=True)
    none = torch.zeros(3, 4, dtype=torch.bool)
    with pytest.warns(UserWarning, match="Anomaly Detection"):
        anomaly = torch.autograd.detect_anomaly()
    with anomaly:
        loss = dynamics_loss(predicted, torch.ones(3, 4, F), none)
        loss = loss + covariance_penalty(predicted.flatten(0, 1), none.flatten())
        loss.backward()
    assert float(loss.detach()) == 0
    assert predicted.grad is not None
    assert (predicted.grad == 0).all()
    assert float(dynamics_loss(torch.zeros(3, 4, F), torch.ones(3, 4, F), ~none)) == 1  # no direction, no cosine


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), context=st.integers(2, 7))
def test_draw_walks_to_the_end_of_the_episode(lengths: list[int], context: int) -> None:
    lengths.append(2)  # one transition at least
    objective = DynaMo(replace(SMALL, context=context), material(tuple(lengths)))
    anchors = np.random.default_rng(0).permutation(sum(lengths))
    steps = objective.draw(anchors, np.random.default_rng(0))
    assert steps.dtype == np.int64
    assert steps.shape == (len(anchors), objective.config.companions) == (len(anchors), context - 1)
    last = {step: sum(lengths[: e + 1]) - 1 for e, n in enumerate(lengths) for step in range(*_span(lengths, e, n))}
    for anchor, row in zip(anchors, steps, strict=True):
        here = int(anchor)
        for step in row:
            here = here + 1 if here < last[int(anchor)] else here
            assert step == here


def _span(lengths: list[int], e: int, n: int) -> tuple[int, int]:
    return sum(lengths[:e]), sum(lengths[:e]) + n


@pytest.mark.parametrize("covariance", ["mean", "sum"])
def test_loss_equals_the_definition_frame_by_frame(covariance: str) -> None:
    """Each prediction is computed by itself from the frames that it may see; frames that are repeated are left out."""
    objective = stirred(replace(SMALL, covariance=covariance, covariance_weight=0.3))
    anchors = [0, 3, 6, 8, 9, 10, 12, 20, 24, 26, 29]  # some whole, some cut short, two without a transition
    z, rows = batch(objective, anchors)
    ends = np.cumsum(LENGTHS)
    predicted, wanted, frames = [], [], []
    with torch.no_grad():
        for b, anchor in enumerate(anchors):
            alive = min(5, int(ends[np.searchsorted(ends, anchor, side="right")]) - anchor)
            s = z[b, :alive, 0]
            frames += list(s)
            latent = [objective.inverse_model(s[None, : t + 1])[0, -1] for t in range(alive)]
            for t in range(alive - 1):
                seen = torch.stack([torch.cat([s[u], latent[u + 1]]) for u in range(t + 1)])
                predicted.append(objective.forward_model(seen[None])[0, -1])
                wanted.append(s[t + 1])
        loss, stats = objective.loss(z, rows, target=None, generator=torch.Generator())
    dynamics = cosine_terms([predicted], [wanted], [[True] * len(wanted)])
    penalty = covariance_terms(frames, [True] * len(frames), covariance)
    assert len(wanted) < 4 * len(anchors)
    assert float(stats["dynamics"]) == pytest.approx(dynamics, rel=1e-5)
    assert float(stats["covariance"]) == pytest.approx(penalty, rel=1e-5)
    assert float(loss) == pytest.approx(dynamics + 0.3 * penalty, rel=1e-5)


def test_repeated_frames_change_nothing() -> None:
    objective = stirred()
    z, rows = batch(objective, [5, 7, 8, 9, 10, 22, 27])
    repeated = torch.from_numpy(np.diff(rows, axis=1, prepend=-1) == 0)
    assert 5 < int(repeated.sum()) < repeated.numel()
    results = []
    for value in (None, 1e4, 0.0):
        features = z.clone()
        if value is not None:
            features[repeated] = value * torch.randn(int(repeated.sum()), 1, F)
        features.requires_grad_()
        objective.zero_grad()
        loss = loss_of(objective, features, rows)
        loss.backward()
        assert features.grad is not None
        assert (features.grad[repeated] == 0).all()
        gradients = [p.grad.clone() for p in objective.parameters() if p.grad is not None]
        results.append((loss.detach(), features.grad, gradients))
    for loss, gradient, gradients in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])
        for one, other in zip(gradients, results[0][2], strict=True):
            torch.testing.assert_close(one, other)


def test_a_batch_without_transitions() -> None:
    objective = stirred()
    z, rows = batch(objective, [9, 8, 12])  # a single step, and last steps
    z.requires_grad_()
    loss, stats = objective.loss(z, rows, target=None, generator=torch.Generator())
    loss.backward()
    assert float(stats["dynamics"]) == 0
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    kept = z.detach()[:, 0, 0]
    assert float(loss.detach()) == pytest.approx(0.04 * covariance_terms(kept, [True] * 3, "mean"), rel=1e-5)
    assert all(p.grad is not None and (p.grad == 0).all() for p in objective.parameters())


def test_gradient_reaches_features_and_both_models() -> None:
    objective = stirred(replace(SMALL, covariance_weight=0.0))
    z, rows = batch(objective, [0, 1, 2, 13, 14, 15])
    z.requires_grad_()
    loss_of(objective, z, rows).backward()
    assert z.grad is not None
    assert (z.grad.abs().amax(dim=(0, 2, 3)) > 0).all()  # the last frame by way of its latent
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


def test_the_features_predicted_are_held_still() -> None:
    """The gradient is that of predicting a copy."""
    objective, by_average = stirred(), stirred(replace(SMALL, target="ema"))
    z, rows = batch(objective, [0, 4, 7, 13, 20])
    gradients = []
    for model, target in ((objective, None), (by_average, z.clone().requires_grad_())):
        features = z.clone().requires_grad_()
        loss_of(model, features, rows, target).backward()
        assert target is None or target.grad is None
        assert features.grad is not None
        gradients.append(features.grad)
    assert torch.equal(*gradients)


def test_target_of_an_averaged_encoder() -> None:
    objective = stirred(replace(SMALL, target="ema", covariance_weight=0.0))
    assert objective.config.target_decay == 0.99
    assert DynaMo(replace(SMALL, target="ema", decay=0.9), material()).config.target_decay == 0.9
    assert DynaMo(SMALL, material()).config.target_decay is None
    z, rows = batch(objective, [0, 4, 13])
    target, _ = batch(objective, [0, 4, 13], seed=1)
    with torch.no_grad():
        loss, opposite = loss_of(objective, z, rows, target), loss_of(objective, z, rows, -target)
        assert not torch.equal(loss, loss_of(objective, z, rows, z))
    assert float(loss + opposite) == pytest.approx(2.0, abs=1e-5)
    with pytest.raises(ConfigError, match="target 'ema' needs the features of an averaged encoder, got none"):
        loss_of(objective, z, rows)


def test_default_networks_are_those_of_table_6() -> None:
    made = DynaMo(DynaMoConfig(), material())
    assert len(made.inverse_model.blocks) == len(made.forward_model.blocks) == 6  # type: ignore[arg-type]
    weights = made.state_dict()
    assert not torch.equal(weights["inverse_model.blocks.0.qkv.weight"], weights["forward_model.blocks.0.qkv.weight"])


def test_shapes_refused() -> None:
    s = torch.zeros(3, 4, F)
    for target, valid in ((s[:, :3], torch.ones(3, 4)), (s, torch.ones(3, 3))):
        with pytest.raises(ConfigError, match=r"a mask of shape \(B, T - 1\), got \(3, 4, 6\)"):
            dynamics_loss(s, target, valid.bool())
    for features, rows in ((s, 12), (s.flatten(0, 1), 11)):
        with pytest.raises(ConfigError, match=r"expected features of shape \(n, F\) and a mask of shape \(n,\), got"):
            covariance_penalty(features, torch.ones(rows, dtype=torch.bool))
