"""What a training expects of every objective, on random episodes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from classact.errors import ConfigError
from classact.objectives import ObjectiveConfig, make_objective, objective_config
from classact.objectives.base import Material, Objective
from small_objectives import TRAINED, small

F = 4
CONFIGS: dict[str, ObjectiveConfig] = {
    **{name: small(name) for name in TRAINED},
    "tcn": small("tcn", "margin=1000"),  # every triplet is within the margin
    "dynamo, ema": small("dynamo", "target=ema"),
    "class, all settings": small("class", "queue=5", "views=2", "learned_temperature=true", "pairs=cross-episode"),
}


def make(config: ObjectiveConfig, lengths: list[int]) -> Objective:
    ends = np.cumsum(lengths, dtype=np.int64)
    data = Material(
        F,
        ends,
        torch.zeros(int(ends[-1]), 2),
        weights=lambda steps, anchors: torch.ones(anchors, len(steps)).fill_diagonal_(0),
    )
    return make_objective(config, data)


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5).filter(lambda lengths: max(lengths) >= 3),
    seed=st.integers(0, 1000),
    B=st.integers(1, 12),
)
def test_contract(name: str, lengths: list[int], seed: int, B: int) -> None:
    objective, steps = make(CONFIGS[name], lengths), sum(lengths)
    assert objective.config == CONFIGS[name]
    rng = np.random.default_rng(seed)
    anchors = rng.integers(0, steps, B)
    anchors[0] = sum(lengths[: int(np.argmax(lengths))])  # at least one row that counts
    drawn = objective.draw(anchors, rng)
    assert drawn.shape == (B, objective.config.companions)
    assert np.issubdtype(drawn.dtype, np.integer)
    assert ((drawn >= 0) & (drawn < steps)).all()

    rows = np.concatenate([anchors[:, None], drawn], axis=1)
    shape = (B, 1 + objective.config.companions, objective.config.views, F)
    z = torch.from_numpy(rng.normal(size=shape).astype(np.float32)).requires_grad_()
    target = None
    if objective.config.target_decay is not None:
        target = torch.from_numpy(rng.normal(size=shape).astype(np.float32))
    loss, stats = objective.loss(z, rows, target=target, generator=torch.Generator().manual_seed(seed))
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert bool(loss.isfinite())
    for value in stats.values():
        assert value.shape == ()
        assert not value.requires_grad
        assert math.isfinite(float(value))

    loss.backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    assert z.grad.isfinite().all()
    # Two rows in a BatchNorm become +1 and -1 whatever they were; of two anchors, each is the other's only candidate.
    if {"byol": 1, "class": 2, "class, all settings": 12}.get(name, 0) < B:
        assert z.grad[0].any()
    for p in objective.parameters():
        if p.requires_grad:
            assert p.grad is not None
            assert p.grad.isfinite().all()
        else:
            assert p.grad is None
    objective.after_step()


@pytest.mark.parametrize("name", TRAINED)
def test_draws_are_decided_by_the_generator(name: str) -> None:
    objective, anchors = make(CONFIGS[name], [80, 50, 3]), np.arange(133)
    one, again, other = (objective.draw(anchors, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (one == again).all()
    assert (one != other).any() == (name in ("tcn", "time-contrastive"))  # what others see beside an anchor is fixed


@pytest.mark.parametrize(
    ("name", "options", "lengths", "least", "message"),
    [
        ("tcn", [], [1], 2, "a positive that is not the anchor needs an episode of at least 2 steps, but the longest "),
        ("tcn", [], [1, 1, 1], 2, r"at least 2 steps, but the longest of 3 has 1\. Learn from longer"),
        ("time-contrastive", [], [1, 2, 1], 3, "at least 3 steps, but the longest of 3 has 2"),
        ("dynamo", ["layers=1"], [1, 1, 1], 2, "a prediction of the next step needs an episode of at least 2 steps"),
        ("inverse-dynamics", ["horizon=12"], [9, 12], 13, "a horizon of 12 needs an episode of at least 13 steps"),
    ],
)
def test_data_in_which_no_row_counts_are_refused(
    name: str, options: list[str], lengths: list[int], least: int, message: str
) -> None:
    config = objective_config(name, options)
    with pytest.raises(ConfigError, match=message):
        make(config, lengths)
    make(config, [*lengths, least])
