"""A sum of objectives is the weighted sum of what its parts compute alone on their own columns and views."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from classact.errors import ConfigError
from classact.objectives import CombinedConfig, make_objective, objective_config, split_sum
from classact.objectives.base import Material, Objective
from classact.objectives.combined import Combined
from small_objectives import TRAINED, small

F, ENDS = 6, np.array([20, 26, 60], np.int64)
SUMS = [f"{one}+0.3*{two}" for one, two in permutations(TRAINED, 2)] + ["0.5*class+tcn+3*dynamo+0.1*byol"]


def material() -> Material:
    rng = np.random.default_rng(0)
    W = torch.from_numpy(rng.uniform(0, 1, (60, 60)).astype(np.float32))
    actions = torch.from_numpy(rng.uniform(-1, 1, (60, 2)).astype(np.float32))
    return Material(
        F, ENDS, actions, seed=3, weights=lambda steps, anchors: W[steps[:anchors]][:, steps].fill_diagonal_(0)
    )


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def alone(objective: Objective, z: Tensor, rows: Any, target: Tensor | None, drawn: torch.Generator) -> Any:
    """Loss, what is logged, gradients to features and to own parameters."""
    z = z.clone().requires_grad_()
    loss, stats = objective.loss(z, rows, target=target, generator=drawn)
    loss.backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    return loss.detach(), stats, z.grad, [p.grad for p in objective.parameters() if p.requires_grad]


@pytest.mark.parametrize("name", SUMS)
def test_loss_and_gradients_are_the_weighted_sums_of_the_parts(name: str) -> None:
    config = small(name)
    made = make_objective(config, material())
    parts = [make_objective(part, material()) for part in config.parts]
    anchors = np.arange(0, 60, 4)
    B, R = len(anchors), made.config.views

    drawn = made.draw(anchors, np.random.default_rng(1))
    rng = np.random.default_rng(1)
    own = [part.draw(anchors, rng) for part in parts]
    np.testing.assert_array_equal(drawn, np.concatenate(own, axis=1))
    rows = np.concatenate([anchors[:, None], drawn], axis=1)
    M = rows.shape[1]
    assert (made.config.companions, R) == (M - 1, max(part.config.views for part in parts))
    assert made.config.together == any(part.config.together for part in parts)
    assert (made.config.target_decay is not None) == any(part.config.target_decay is not None for part in parts)

    z = torch.from_numpy(np.random.default_rng(2).normal(size=(B, M, R, F)).astype(np.float32)).requires_grad_()
    target = torch.from_numpy(np.random.default_rng(3).normal(size=(B, M, R, F)).astype(np.float32))
    loss, stats = made.loss(z, rows, target=target if made.config.target_decay else None, generator=generator())
    loss.backward()  # type: ignore[no-untyped-call]

    total, gradient, column, shared = torch.zeros(()), torch.zeros_like(z), 1, generator()
    logged: dict[str, Tensor] = {}
    for number, (part, weight, companions) in enumerate(zip(parts, config.weights, own, strict=True)):
        columns = [0, *range(column, column + companions.shape[1])]
        column += companions.shape[1]
        seen = None if part.config.target_decay is None else target[:, columns, : part.config.views]
        value, figures, slope, slopes = alone(
            part, z.detach()[:, columns, : part.config.views], rows[:, columns], seen, shared
        )
        total += weight * value
        gradient[:, columns, : part.config.views] += weight * slope
        prefix = config.parts[number].name.replace("-", "_")
        for key, figure in figures.items():
            logged[f"{prefix}_{key}" if key in logged else key] = figure
        logged[f"{prefix}_loss"] = value
        assert isinstance(made, Combined)
        found = [p.grad for p in made.parts[number].parameters() if p.requires_grad]
        assert len(found) == len(slopes)
        for one, two in zip(found, slopes, strict=True):
            torch.testing.assert_close(one, weight * two)
    torch.testing.assert_close(loss.detach(), total)
    assert z.grad is not None
    assert gradient.any()
    torch.testing.assert_close(z.grad, gradient)
    assert stats.keys() == logged.keys()
    for key, figure in logged.items():
        torch.testing.assert_close(stats[key], figure)
    assert not any(value.requires_grad for value in stats.values())


def test_figures_keep_their_names_unless_an_earlier_part_has_them() -> None:
    names = {}
    for text in ("class+time-contrastive", "time-contrastive+class", "class+tcn"):
        made = make_objective(small(text), material())
        anchors = np.arange(0, 60, 4)
        rows = np.concatenate([anchors[:, None], made.draw(anchors, np.random.default_rng(1))], axis=1)
        z = torch.from_numpy(np.random.default_rng(2).normal(size=(len(rows), rows.shape[1], 1, F)).astype(np.float32))
        names[text] = set(made.loss(z, rows, target=None, generator=generator())[1])
    assert names == {
        "class+time-contrastive": {
            *("positives", "anchors", "kl", "class_loss"),
            *("time_contrastive_anchors", "aligned", "time_contrastive_loss"),
        },
        "time-contrastive+class": {
            *("anchors", "aligned", "time_contrastive_loss"),
            *("positives", "class_anchors", "kl", "class_loss"),
        },
        "class+tcn": {
            *("positives", "anchors", "kl", "class_loss"),
            *("distance_positive", "distance_negative", "ordered", "tcn_loss"),
        },
    }


def test_each_part_sees_its_own_companions_only() -> None:
    made = make_objective(small("tcn+inverse-dynamics"), material())
    rows = np.concatenate([np.arange(0, 40, 5)[:, None], np.zeros((8, 3), np.int64)], axis=1)
    rows[:, 1:3] = rows[:, :1] + [[1, 50]]
    rows[:, 3] = rows[:, 0] + 2
    z = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 4, 1, F)).astype(np.float32))
    _, first = made.loss(z, rows, target=None, generator=generator())
    z[:, 3] += 1
    _, second = made.loss(z, rows, target=None, generator=generator())
    assert torch.equal(first["tcn_loss"], second["tcn_loss"])
    assert not torch.equal(first["inverse_dynamics_loss"], second["inverse_dynamics_loss"])


def test_after_a_step_every_part_follows() -> None:
    made = make_objective(small("tcn+byol"), material())
    assert isinstance(made, Combined)
    byol: Any = made.parts[1]
    with torch.no_grad():
        byol.projector[0].weight += 1
    before = byol.target_projector[0].weight.clone()
    made.after_step()
    torch.testing.assert_close(byol.target_projector[0].weight, before + 0.01)


def test_parts_with_own_networks_have_names_of_their_own() -> None:
    made = make_objective(small("inverse-dynamics+byol"), material())
    assert {name.split(".")[1] for name in made.state_dict()} == {"0", "1"}


def test_target_networks_that_follow_at_different_rates() -> None:
    with pytest.raises(ConfigError, match=r"share one target network, but these ask for decays of \[0\.9, 0\.99\]"):
        objective_config("byol+dynamo", ["byol.hidden=8", "dynamo.target=ema", "dynamo.decay=0.9"])
    alike = objective_config("byol+dynamo", ["byol.decay=0.9", "dynamo.target=ema", "dynamo.decay=0.9"])
    assert alike.target_decay == 0.9
    # Who asks for no target gets none of the one that another part asked for.
    assert objective_config("byol+dynamo").target_decay == 0.99


def test_sums_of_less_than_two_or_of_sums() -> None:
    one, two = objective_config("tcn"), objective_config("byol")
    for parts in ((), (one,), (one, one)):
        with pytest.raises(ConfigError, match="expected at least two different objectives to combine, got"):
            CombinedConfig(parts, (1.0,) * len(parts))
    with pytest.raises(ConfigError, match=r"to combine, got \['combined', 'class'\]"):
        CombinedConfig((CombinedConfig((one, two), (1.0, 1.0)), objective_config("class")), (1.0, 1.0))
    with pytest.raises(ConfigError, match=r"expected 2 weights above 0 for \['tcn', 'byol'\], got \[1\.0\]"):
        CombinedConfig((one, two), (1.0,))


def test_sums_are_read_with_their_factors() -> None:
    assert split_sum("a+0.1*b + 2e-1 * c") == [(None, "a"), ("0.1", "b"), ("2e-1", "c")]
    found = objective_config("class+0.1*tcn + 2e-1 * byol")
    assert (found.parts, found.weights) == (
        tuple(objective_config(name) for name in ("class", "tcn", "byol")),
        (1.0, 0.1, 0.2),
    )
