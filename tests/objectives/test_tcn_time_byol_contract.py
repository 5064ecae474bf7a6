"""What the training expects of TCN, time-contrastive and BYOL alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from classact.objectives.base import Material, Objective
from classact.objectives.byol import BYOL
from classact.objectives.config import BYOLConfig, TCNConfig, TimeContrastiveConfig
from classact.objectives.tcn import TCN
from classact.objectives.time_contrastive import TimeContrastive

F = 4
MAKERS: dict[str, Callable[[Material], Objective]] = {
    "tcn": lambda material: TCN(TCNConfig(margin=1000.0), material),  # every triplet is within the margin
    "time-contrastive": lambda material: TimeContrastive(TimeContrastiveConfig(), material),
    "byol": lambda material: BYOL(BYOLConfig(hidden=8, projection=3), material),
}


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5).filter(lambda lengths: max(lengths) >= 3),
    seed=st.integers(0, 1000),
    B=st.integers(1, 12),
)
def test_contract(name: str, lengths: list[int], seed: int, B: int) -> None:
    ends = np.cumsum(lengths, dtype=np.int64)
    objective = MAKERS[name](Material(F, ends, torch.zeros(int(ends[-1]), 2)))
    rng = np.random.default_rng(seed)
    anchors = rng.integers(0, ends[-1], B)
    longest = int(np.argmax(lengths))
    anchors[0] = ends[longest] - lengths[longest]  # at least one row that counts
    drawn = objective.draw(anchors, rng)
    assert drawn.shape == (B, objective.config.companions)
    assert np.issubdtype(drawn.dtype, np.integer)
    assert ((drawn >= 0) & (drawn < ends[-1])).all()

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

    loss.backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    # Two rows in a BatchNorm become +1 and -1, whatever they were: hardly any gradient is left.
    if not (name == "byol" and B == 1):
        assert z.grad[0].any()
    for p in objective.parameters():
        if p.requires_grad:
            assert p.grad is not None
            assert p.grad.isfinite().all()
        else:
            assert p.grad is None
    objective.after_step()


@pytest.mark.parametrize("config", [TCNConfig(), TimeContrastiveConfig(), BYOLConfig()])
def test_settings_are_frozen(config: TCNConfig | TimeContrastiveConfig | BYOLConfig) -> None:
    with pytest.raises(FrozenInstanceError):
        config.name = "other"  # type: ignore[misc]
