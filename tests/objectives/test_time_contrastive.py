from __future__ import annotations

import math
from collections import Counter
from itertools import combinations
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
from classact.objectives.config import TimeContrastiveConfig
from classact.objectives.time_contrastive import TimeContrastive, draw_negatives, time_contrastive_loss, time_similarity

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=4).filter(lambda lengths: max(lengths) > 2)


def make(lengths: list[int], **settings: Any) -> TimeContrastive:
    ends = np.cumsum(lengths, dtype=np.int64)
    return TimeContrastive(TimeContrastiveConfig(**settings), Material(5, ends, torch.zeros(int(ends[-1]), 2)))


def features(B: int = 7, F: int = 5, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(B, 3, F)))


def masks(B: int = 7, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Random rows to contrast with, none for row 0."""
    rng = np.random.default_rng(seed)
    drawn = rng.uniform(size=(2, B, B)) < 0.5
    drawn[:, np.arange(B), np.arange(B)] = False
    drawn[:, 0] = False
    return torch.from_numpy(drawn[0]), torch.from_numpy(drawn[1])


def compare(x: list[float], y: list[float], similarity: str) -> float:
    if similarity == "l2":
        return -math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)))
    lengths = math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in y))
    return sum(a * b for a, b in zip(x, y, strict=True)) / lengths


def definition(
    z: Tensor, negatives: tuple[Tensor, Tensor], similarity: str, tau: float, rows: list[int], epsilon: float = 0.0
) -> float:
    """R3M's loss within a video, loop by loop; ``epsilon`` is 1e-8 there."""
    total, frames = 0.0, z.tolist()
    for b in rows:
        i, j, k = frames[b]
        s_ij, s_jk, s_ik = (math.exp(compare(x, y, similarity) / tau) for x, y in ((i, j), (j, k), (i, k)))
        others = range(len(z))
        sum_i = sum(math.exp(compare(i, frames[n][0], similarity) / tau) for n in others if negatives[0][b, n])
        sum_k = sum(math.exp(compare(k, frames[n][2], similarity) / tau) for n in others if negatives[1][b, n])
        term_k = -math.log(epsilon + s_jk / (epsilon + s_ik + s_jk + sum_k))
        term_i = -math.log(epsilon + s_ij / (epsilon + s_ij + s_ik + sum_i))
        total += (term_k + term_i) / 2
    return total / len(rows)


@pytest.mark.parametrize("similarity", ["l2", "cosine"])
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_equals_the_definition(similarity: str, tau: float) -> None:
    z, negatives = features(), masks()
    expected = definition(z, negatives, similarity, tau, list(range(7)))
    loss = time_contrastive_loss(z, negatives, similarity=similarity, temperature=tau)
    assert float(loss) == pytest.approx(expected, rel=1e-12)
    single = time_contrastive_loss(z.float(), negatives, similarity=similarity, temperature=tau)
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(expected, rel=1e-4)


def test_equals_r3m_with_its_epsilon_where_that_does_not_matter() -> None:
    z, negatives = features(), masks()
    expected = definition(z, negatives, "l2", 1.0, list(range(7)), epsilon=1e-8)
    assert float(time_contrastive_loss(z, negatives)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("similarity", ["l2", "cosine"])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_equal_features_give_the_log_of_the_candidates_and_a_finite_gradient(n: int, similarity: str) -> None:
    z = torch.ones(6, 3, 4, requires_grad=True)
    mask = torch.zeros(6, 6, dtype=torch.bool)
    for row in range(6):
        mask[row, [(row + d) % 6 for d in range(1, n + 1)]] = True
    loss = time_contrastive_loss(z, (mask, mask), similarity=similarity)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(2 + n))
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_far_features_in_order_give_the_closed_form_without_overflow() -> None:
    # i, j, k at 0, 500, 1000 on a line: each term is log(1 + e^-500), and the reverse order of j and k costs 500.
    line = torch.tensor([[[0.0], [500.0], [1000.0]]])
    none = torch.zeros(1, 1, dtype=torch.bool)
    assert float(time_contrastive_loss(line, (none, none))) == pytest.approx(0.0, abs=1e-6)
    swapped = line[:, [0, 2, 1]]
    # L_i = S(i,k) - S(i,j) = 500; L_k: S(j,k) = S(i,k) = -500, log 2.
    assert float(time_contrastive_loss(swapped, (none, none))) == pytest.approx((500 + math.log(2)) / 2, rel=1e-6)


@pytest.mark.parametrize("similarity", ["l2", "cosine"])
def test_gradient(similarity: str) -> None:
    z = features(B=4, F=3).requires_grad_()
    negatives = masks(4)
    assert torch.autograd.gradcheck(lambda x: time_contrastive_loss(x, negatives, similarity=similarity), z)


def test_small_distances_keep_their_digits() -> None:
    x = torch.full((40, 8), 100.0) + 1e-3 * torch.arange(40.0)[:, None]
    expected = torch.linalg.vector_norm(x[:, None].double() - x[None].double(), dim=2)
    torch.testing.assert_close(-time_similarity(x, x).double(), expected, rtol=1e-5, atol=1e-7)


@given(lengths=LENGTHS, window=st.sampled_from([0, 2, 3, 7]), seed=st.integers(0, 99))
def test_every_draw_is_allowed(lengths: list[int], window: int, seed: int) -> None:
    anchors = np.arange(sum(lengths))
    drawn = make(lengths, window=window).draw(anchors, np.random.default_rng(seed))
    episodes = np.repeat(np.arange(len(lengths)), lengths)
    ends = np.cumsum(lengths)
    assert drawn.shape == (len(anchors), 2)
    assert drawn.dtype == np.int64
    for i, (j, k) in zip(anchors.tolist(), drawn.tolist(), strict=True):
        if ends[episodes[i]] - i < 3:
            assert (j, k) == (i, i)
            continue
        assert i < j < k
        assert episodes[i] == episodes[j] == episodes[k]
        assert not window or k - i <= window


@settings(max_examples=40)
@given(lengths=LENGTHS, window=st.sampled_from([0, 2, 3, 7]), data=st.data())
def test_draws_are_uniform_over_pairs_of_later_steps(lengths: list[int], window: int, data: Any) -> None:
    i = data.draw(st.integers(0, sum(lengths) - 1))
    end = next(int(e) for e in np.cumsum(lengths) if e > i)
    pairs = list(combinations(range(i + 1, min(end, i + window + 1) if window else end), 2)) or [(i, i)]
    drawn = make(lengths, window=window).draw(np.full(4000, i), np.random.default_rng(0))
    counted = Counter(map(tuple, drawn.tolist()))
    counts = np.array([counted[pair] for pair in pairs])
    expected = 4000 / len(pairs)
    assert counts.sum() == 4000
    assert len(pairs) == 1 or chi2.sf(float(((counts - expected) ** 2 / expected).sum()), len(pairs) - 1) > 1e-7


@given(B=st.integers(1, 9), count=st.integers(0, 11), seed=st.integers(0, 99))
def test_negatives_are_as_many_candidates_as_asked_for(B: int, count: int, seed: int) -> None:
    candidates = torch.from_numpy(np.random.default_rng(seed).uniform(size=(B, B)) < 0.6)
    drawn = draw_negatives(candidates, count, torch.Generator().manual_seed(seed))
    assert not (drawn & ~candidates).any()
    available = candidates.sum(dim=1)
    assert torch.equal(drawn.sum(dim=1), available.clamp_max(count) if count else available)


def test_negatives_are_uniform_over_the_candidates() -> None:
    candidates = torch.ones(2000, 8, dtype=torch.bool)
    candidates[:, [2, 5]] = False
    counts = draw_negatives(candidates, 3, torch.Generator().manual_seed(0)).sum(dim=0).double()
    assert counts[[2, 5]].tolist() == [0, 0]
    # Six candidates, three of them drawn: each with probability 1/2, standard deviation 22.
    assert ((counts[[0, 1, 3, 4, 6, 7]] - 1000).abs() < 5 * 22.4).all()


@pytest.mark.parametrize("similarity", ["l2", "cosine"])
def test_the_objective_contrasts_with_all_rows_of_other_episodes(similarity: str) -> None:
    objective = make([6, 5, 4, 2], negatives=0, similarity=similarity, temperature=0.7)
    rows = np.array([[0, 1, 4], [2, 3, 5], [6, 7, 10], [14, 14, 14], [16, 16, 16]])
    episode = [0, 0, 1, 2, 3]
    z = features(B=5)
    mask = torch.tensor([[a != b for b in episode] for a in episode])
    loss, stats = objective.loss(z[:, :, None], rows, target=None, generator=torch.Generator())
    assert float(loss) == pytest.approx(definition(z, (mask, mask), similarity, 0.7, [0, 1, 2]), rel=1e-12)
    assert float(stats["anchors"]) == pytest.approx(3 / 5)
    ordered = 0
    for i, j, k in z[:3].tolist():
        near = min(compare(i, j, similarity), compare(j, k, similarity))
        ordered += near > compare(i, k, similarity)
    assert float(stats["aligned"]) == pytest.approx(ordered / 3)


def test_the_drawn_negatives_are_decided_by_the_generator_and_differ_between_the_terms() -> None:
    objective = make([4] * 12, negatives=2)
    anchors = np.arange(0, 48, 4)
    rows = np.concatenate([anchors[:, None], objective.draw(anchors, np.random.default_rng(0))], axis=1)
    z = features(B=12)
    one, again, other = (
        float(objective.loss(z[:, :, None], rows, target=None, generator=torch.Generator().manual_seed(s))[0])
        for s in (1, 1, 2)
    )
    assert one == again
    assert one != other
    generator = torch.Generator().manual_seed(1)
    candidates = ~torch.eye(12, dtype=torch.bool)
    drawn = draw_negatives(candidates, 2, generator), draw_negatives(candidates, 2, generator)
    assert not torch.equal(*drawn)
    assert one == pytest.approx(definition(z, drawn, "l2", 1.0, list(range(12))), rel=1e-12)


def test_a_batch_of_ends_gives_zero_and_no_gradient() -> None:
    objective = make([2, 1, 2, 3])
    anchors = np.arange(5)
    rows = np.concatenate([anchors[:, None], objective.draw(anchors, np.random.default_rng(0))], axis=1)
    z = torch.zeros(5, 3, 1, 5, requires_grad=True)
    loss, stats = objective.loss(z, rows, target=None, generator=torch.Generator())
    loss.backward()
    assert float(loss.detach()) == float(stats["anchors"]) == float(stats["aligned"]) == 0
    assert z.grad is not None
    assert not z.grad.any()


def test_one_episode_alone_has_no_negatives() -> None:
    objective = make([9])
    rows = np.array([[0, 3, 8], [1, 2, 4]])
    z = features(B=2)
    none = torch.zeros(2, 2, dtype=torch.bool)
    loss, _ = objective.loss(z[:, :, None], rows, target=None, generator=torch.Generator())
    assert float(loss) == pytest.approx(definition(z, (none, none), "l2", 1.0, [0, 1]), rel=1e-12)


def test_shapes_that_do_not_fit() -> None:
    good, bad = torch.zeros(4, 4, dtype=torch.bool), torch.zeros(4, 3, dtype=torch.bool)
    with pytest.raises(ConfigError, match=r"\(B, 3, F\): the timesteps i, j, k; got \(4, 2, 5\)"):
        time_contrastive_loss(torch.zeros(4, 2, 5), (good, good))
    with pytest.raises(ConfigError, match=r"negatives of k of shape \(4, 4\) for 4 rows, got \(4, 3\)"):
        time_contrastive_loss(torch.zeros(4, 3, 5), (good, bad))
    with pytest.raises(ConfigError, match="0 < temperature < inf"):
        time_contrastive_loss(torch.zeros(4, 3, 5), (good, good), temperature=-1.0)
