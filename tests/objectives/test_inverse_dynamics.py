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
from classact.objectives.config import InverseDynamicsConfig
from classact.objectives.inverse_dynamics import InverseDynamics, inverse_dynamics_loss

LENGTHS = (9, 1, 3, 12, 5)
ENDS = np.cumsum(LENGTHS, dtype=np.int64)
F, A = 6, 2
SMALL = InverseDynamicsConfig(hidden=8)


def material(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> Material:
    actions = torch.rand(sum(lengths), A, generator=torch.Generator().manual_seed(7)) * 2 - 1
    return Material(F, np.cumsum(lengths, dtype=np.int64), actions, seed=seed)


def make(horizon: int = 1, seed: int = 0) -> InverseDynamics:
    return InverseDynamics(replace(SMALL, horizon=horizon), material(seed=seed))


def batch(objective: InverseDynamics, anchors: list[int]) -> tuple[Tensor, np.ndarray]:
    column = np.array(anchors)
    rows = np.concatenate([column[:, None], objective.draw(column, np.random.default_rng(0))], axis=1)
    z = torch.randn(len(anchors), 2, 1, F, generator=torch.Generator().manual_seed(1))
    return z, rows


def loss_of(objective: InverseDynamics, z: Tensor, rows: np.ndarray) -> Tensor:
    return objective.loss(z, rows, target=None, generator=torch.Generator())[0]


def squared_errors(predicted: Any, actions: Any, valid: Any) -> float:
    """The definition, loop by loop in float64."""
    errors = []
    for p_row, a_row, v in zip(predicted, actions, valid, strict=True):
        for p_step, a_step in zip(p_row, a_row, strict=True):
            errors += [(float(p) - float(a)) ** 2 for p, a in zip(p_step, a_step, strict=True) if v]
    return sum(errors) / len(errors) if errors else 0.0


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


VALID = torch.tensor([True, False, True, True, False])


def test_equals_its_definition() -> None:
    predicted, actions = drawn((5, 3, A), 0), drawn((5, 3, A), 1)
    expected = squared_errors(predicted, actions, VALID)
    assert float(inverse_dynamics_loss(predicted, actions, VALID)) == pytest.approx(expected, rel=1e-12)
    single = inverse_dynamics_loss(predicted.float(), actions.float(), VALID)
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(expected, rel=1e-5)


def test_gradient() -> None:
    predicted, actions = drawn((5, 3, A), 0).requires_grad_(), drawn((5, 3, A), 1)
    assert torch.autograd.gradcheck(lambda v: inverse_dynamics_loss(v, actions, VALID), predicted)


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), horizon=st.integers(1, 5))
def test_draw_looks_ahead_within_the_episode(lengths: list[int], horizon: int) -> None:
    lengths.append(horizon + 1)
    objective = InverseDynamics(replace(SMALL, horizon=horizon), material(tuple(lengths)))
    anchors = np.random.default_rng(0).permutation(sum(lengths))
    later = objective.draw(anchors, np.random.default_rng(0))
    assert later.dtype == np.int64
    assert later.shape == (len(anchors), objective.config.companions) == (len(anchors), 1)
    last = [sum(lengths[: e + 1]) - 1 for e, length in enumerate(lengths) for _ in range(length)]
    for anchor, (step,) in zip(anchors, later, strict=True):
        assert step == min(anchor + horizon, last[anchor])


@pytest.mark.parametrize("horizon", [1, 3])
def test_loss_equals_the_definition_row_by_row(horizon: int) -> None:
    objective = make(horizon)
    anchors = list(range(ENDS[-1]))
    z, rows = batch(objective, anchors)
    actions, predicted, wanted = objective.material.actions, [], []
    with torch.no_grad():
        for b, anchor in enumerate(anchors):
            if anchor + horizon < ENDS[np.searchsorted(ENDS, anchor, side="right")]:
                predicted.append(objective.mlp(torch.cat([z[b, 0, 0], z[b, 1, 0]])).view(horizon, A))
                wanted.append(actions[anchor : anchor + horizon])
        loss, stats = objective.loss(z, rows, target=None, generator=torch.Generator())
    assert len(wanted) == sum(max(length - horizon, 0) for length in LENGTHS)
    assert float(loss) == pytest.approx(squared_errors(predicted, wanted, [True] * len(wanted)), rel=1e-5)
    assert float(stats["valid"]) == pytest.approx(len(wanted) / len(anchors))


def test_an_mlp_of_zeros_pays_the_actions_themselves() -> None:
    objective = make(3)
    for parameter in objective.parameters():
        torch.nn.init.zeros_(parameter)
    z, rows = batch(objective, [0, 14, 29])
    expected = objective.material.actions[[0, 1, 2, 14, 15, 16]].square().mean()
    assert float(loss_of(objective, z, rows).detach()) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("horizon", [1, 3])
def test_rows_cut_short_change_nothing(horizon: int) -> None:
    objective = make(horizon)
    z, rows = batch(objective, [0, 7, 8, 9, 11, 13, 24, 29])
    cut = torch.from_numpy(rows[:, 1] - rows[:, 0] < horizon)
    assert 2 < int(cut.sum()) < 8
    results = []
    for value in (0.0, 1e4):
        features = z.clone()
        features[cut] += value
        features.requires_grad_()
        loss = loss_of(objective, features, rows)
        loss.backward()
        assert features.grad is not None
        assert (features.grad[cut] == 0).all()
        assert (features.grad[~cut].abs().amax(dim=(1, 2, 3)) > 0).all()
        results.append((loss.detach(), features.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    left = batch(objective, [0, 7, 8, 9, 11, 13, 24, 29])[0][~cut], rows[~cut.numpy()]
    assert float(loss_of(objective, *left).detach()) == pytest.approx(float(results[0][0]), rel=1e-5)


def test_actions_of_other_episodes_are_not_read() -> None:
    objective = make(3)
    z, rows = batch(objective, [0, 5, 6, 7, 8])
    loss = loss_of(objective, z, rows)
    assert float(loss.detach()) > 0
    objective.material.actions[9:] = torch.nan
    z.requires_grad_()
    again = loss_of(objective, z, rows)
    again.backward()
    assert torch.equal(loss, again)
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()  # NaN behind a mask would come back here


def test_a_batch_without_valid_rows() -> None:
    objective = make(3)
    z, rows = batch(objective, [9, 8, 12, 29])  # the last ones at the end of all data
    z.requires_grad_()
    loss = loss_of(objective, z, rows)
    loss.backward()
    assert float(loss.detach()) == 0
    assert z.grad is not None
    assert (z.grad == 0).all()


def test_gradient_reaches_features_and_mlp() -> None:
    objective = make(2)
    z, rows = batch(objective, [0, 1, 2, 13, 14, 15])
    z.requires_grad_()
    loss_of(objective, z, rows).backward()
    assert z.grad is not None
    assert (z.grad.abs().amax(dim=(2, 3)) > 0).all()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name
    assert not objective.material.actions.requires_grad


def test_shapes_refused() -> None:
    actions = torch.zeros(5, 3, A)
    for predicted, valid in ((actions[:, :2], 5), (actions[:, 0], 5), (actions, 4)):
        other = predicted if predicted.ndim == 2 else actions
        with pytest.raises(ConfigError, match=r"actions of shape \(B, h, A\) and a mask of shape \(B,\), got"):
            inverse_dynamics_loss(predicted, other, torch.ones(valid, dtype=torch.bool))
