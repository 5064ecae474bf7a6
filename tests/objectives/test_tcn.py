from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import Tensor

from classact.errors import ConfigError
from classact.objectives.base import Material
from classact.objectives.config import TCNConfig
from classact.objectives.tcn import TCN, tcn_distances

LENGTHS = st.lists(st.integers(1, 14), min_size=1, max_size=4).filter(lambda lengths: max(lengths) > 1)


def make(lengths: list[int], **settings: Any) -> TCN:
    ends = np.cumsum(lengths, dtype=np.int64)
    return TCN(TCNConfig(**settings), Material(5, ends, torch.zeros(int(ends[-1]), 2)))


def features(B: int = 7, F: int = 5, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(B, 3, F)))


def tcn_loss(z: Tensor, *, margin: float = 2.0, scale: float = 10.0, valid: Tensor | None = None) -> Tensor:
    """What the objective says to features (B, 3, F)."""
    rows = np.zeros((len(z), 3), np.int64)
    rows[:, 1] = 1 if valid is None else valid.numpy()  # the positive of a row that does not count is the anchor
    objective = make([2], margin=margin, scale=scale)
    return objective.loss(z[:, :, None], rows, target=None, generator=torch.Generator())[0]


def definition(z: Tensor, margin: float, scale: float, rows: list[int]) -> float:
    """The repository's loss, loop by loop."""
    total = 0.0
    for b in rows:
        embedded = []
        for x in z[b].tolist():
            length = math.sqrt(sum(v * v for v in x))
            embedded.append([scale * v / length for v in x])
        a, p, n = embedded
        near = sum((x - y) ** 2 for x, y in zip(a, p, strict=True))
        far = sum((x - y) ** 2 for x, y in zip(a, n, strict=True))
        total += max(0.0, margin + near - far)
    return total / len(rows)


def allowed(lengths: list[int], anchor: int, positive_margin: int, negative_margin: int) -> tuple[set[int], set[int]]:
    """Positives and negatives of a step, by looking at every step."""
    episodes = [e for e, length in enumerate(lengths) for _ in range(length)]
    steps = range(len(episodes))
    own = [s for s in steps if episodes[s] == episodes[anchor]]
    positives = {s for s in own if 0 < abs(s - anchor) <= positive_margin} or {anchor}
    negatives = {s for s in own if abs(s - anchor) >= negative_margin}
    if not negatives:
        negatives = {s for s in steps if episodes[s] != episodes[anchor]}
    return positives, negatives or {max(reversed(own), key=lambda s: abs(s - anchor))}


@pytest.mark.parametrize(("margin", "scale"), [(2.0, 10.0), (0.5, 1.0), (150.0, 10.0)])
def test_equals_the_definition(margin: float, scale: float) -> None:
    z = features()
    expected = definition(z, margin, scale, list(range(7)))
    assert expected > 0
    assert float(tcn_loss(z, margin=margin, scale=scale)) == pytest.approx(expected, rel=1e-12)
    single = tcn_loss(z.float(), margin=margin, scale=scale)
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(expected, rel=1e-4)


def test_gradient() -> None:
    z = features(B=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tcn_loss(x, margin=150.0), z)
    assert torch.autograd.gradcheck(lambda x: tcn_distances(x, scale=3.0), z)


def test_a_batch_without_any_positive_gives_zero_and_no_gradient() -> None:
    objective = make([1, 1, 1, 2])
    anchors = np.arange(3)
    rows = np.concatenate([anchors[:, None], objective.draw(anchors, np.random.default_rng(0))], axis=1)
    assert (rows[:, 0] == rows[:, 1]).all()
    assert (rows[:, 0] != rows[:, 2]).all()
    z = torch.zeros(3, 3, 1, 5, requires_grad=True)
    loss, stats = objective.loss(z, rows, target=None, generator=torch.Generator())
    loss.backward()
    assert float(loss.detach()) == 0
    assert z.grad is not None
    assert not z.grad.any()
    assert all(math.isfinite(float(value)) for value in stats.values())


def test_the_objective_leaves_out_rows_without_a_positive_and_logs_the_others() -> None:
    objective = make([40, 1], margin=150.0)
    rows = np.array([[0, 5, 35], [40, 40, 3], [39, 30, 2]])
    z = features(B=3)[:, :, None]
    loss, stats = objective.loss(z, rows, target=None, generator=torch.Generator())
    assert float(loss) == pytest.approx(definition(z[:, :, 0], 150.0, 10.0, [0, 2]), rel=1e-12)
    near, far = (d[[0, 2]] for d in tcn_distances(z[:, :, 0]))
    assert float(stats["distance_positive"]) == pytest.approx(float(near.mean()))
    assert float(stats["distance_negative"]) == pytest.approx(float(far.mean()))
    assert float(stats["ordered"]) == pytest.approx(float((near < far).double().mean()))


@given(lengths=LENGTHS, margins=st.tuples(st.integers(1, 6), st.integers(1, 8)), seed=st.integers(0, 99))
def test_every_draw_is_allowed(lengths: list[int], margins: tuple[int, int], seed: int) -> None:
    near, far = margins[0], margins[0] + margins[1]
    anchors = np.arange(sum(lengths))
    drawn = make(lengths, positive_margin=near, negative_margin=far).draw(anchors, np.random.default_rng(seed))
    assert drawn.shape == (len(anchors), 2)
    assert drawn.dtype == np.int64
    for anchor, (positive, negative) in zip(anchors.tolist(), drawn.tolist(), strict=True):
        positives, negatives = allowed(lengths, anchor, near, far)
        assert positive in positives
        assert negative in negatives


@settings(max_examples=40)
@given(lengths=LENGTHS, margins=st.tuples(st.integers(1, 6), st.integers(1, 8)), data=st.data())
def test_draws_are_uniform_over_what_is_allowed(lengths: list[int], margins: tuple[int, int], data: Any) -> None:
    near, far = margins[0], margins[0] + margins[1]
    anchor = data.draw(st.integers(0, sum(lengths) - 1))
    rng = np.random.default_rng(0)
    drawn = make(lengths, positive_margin=near, negative_margin=far).draw(np.full(4000, anchor), rng)
    for column, steps in zip(drawn.T, allowed(lengths, anchor, near, far), strict=True):
        counts = np.bincount(column, minlength=sum(lengths))[sorted(steps)]
        expected = 4000 / len(steps)
        statistic = float(((counts - expected) ** 2 / expected).sum())
        assert counts.sum() == 4000
        assert len(steps) == 1 or chi2.sf(statistic, len(steps) - 1) > 1e-7


def test_an_episode_alone_and_too_short_gives_its_farthest_step() -> None:
    negatives = make([6]).draw(np.arange(6), np.random.default_rng(0))[:, 1]
    assert negatives.tolist() == [5, 5, 5, 0, 0, 0]


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"\(B, 3, F\): anchor, positive, negative; got \(4, 2, 5\)"):
        tcn_loss(torch.zeros(4, 2, 5))
