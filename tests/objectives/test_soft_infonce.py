from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import entr, rel_entr
from torch import Tensor

from classact.errors import ConfigError
from classact.objectives import REDUCTIONS, SoftInfoNCEConfig, soft_infonce

TAU = 0.2


def draw(B: int = 9, F: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features and weights: symmetric, about half of them zero, anchor 0 without any positive."""
    rng = np.random.default_rng(seed)
    w = rng.uniform(0, 1, (B, B)) * (rng.uniform(size=(B, B)) < 0.6)
    w = np.triu(w, 1) + np.triu(w, 1).T
    w[0] = w[:, 0] = 0
    return torch.from_numpy(rng.normal(size=(B, F))), torch.from_numpy(w)


def eq1(z: Tensor, w: Tensor, tau: float, reduction: str, ignore: Tensor | None = None) -> float:
    """Equation (1), loop by loop."""
    Z = [[float(v) for v in row] for row in z]
    Z = [[v / math.sqrt(sum(u * u for u in row)) for v in row] for row in Z]
    B, total, anchors = len(Z), 0.0, 0
    for i in range(B):
        others = [k for k in range(B) if k != i and not (ignore is not None and ignore[i, k])]
        S = {k: sum(a * b for a, b in zip(Z[i], Z[k], strict=True)) / tau for k in others}
        norm = sum(math.exp(s) for s in S.values())
        weight = sum(float(w[i, j]) for j in others)
        if weight > 0:
            anchors += 1
            total -= sum(float(w[i, j]) * math.log(math.exp(S[j]) / norm) for j in others) / weight
    return total / (anchors if reduction == "anchors" else B)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("tau", [0.05, 1.0])
def test_equals_equation_1(tau: float, reduction: str) -> None:
    z, w = draw()
    expected = eq1(z, w, tau, reduction)
    assert float(soft_infonce(z, w, temperature=tau, reduction=reduction)) == pytest.approx(expected, rel=1e-12)
    single = soft_infonce(z.float(), w.float(), temperature=tau, reduction=reduction)
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(expected, rel=1e-5)


def test_the_reductions_differ_by_the_share_of_anchors_with_a_positive() -> None:
    z, w = draw()
    anchors, batch = (float(soft_infonce(z, w, reduction=r)) for r in ("anchors", "batch"))
    assert batch == pytest.approx(anchors * 8 / 9)


@pytest.mark.parametrize("B", [2, 3, 50])
def test_equal_features_give_the_log_of_the_candidates(B: int) -> None:
    w = torch.rand(B, B, generator=torch.Generator().manual_seed(0))
    loss = soft_infonce(torch.ones(B, 4), w, temperature=0.05)
    assert float(loss) == pytest.approx(math.log(B - 1), abs=1e-6)


def test_a_single_positive_is_infonce() -> None:
    """Cross entropy over the other samples, whatever the weight."""
    z, _ = draw(8)
    partner = torch.arange(8) ^ 1
    w = torch.zeros(8, 8, dtype=z.dtype)
    w[torch.arange(8), partner] = torch.rand(8, generator=torch.Generator().manual_seed(0), dtype=z.dtype) + 0.1
    unit = z / z.norm(dim=1, keepdim=True)
    logits = (unit @ unit.T / TAU).fill_diagonal_(-torch.inf)
    expected = torch.nn.functional.cross_entropy(logits, partner)
    assert float(soft_infonce(z, w, temperature=TAU)) == pytest.approx(float(expected), rel=1e-12)


def test_proposition_1() -> None:
    """Loss = mean of KL(Q || P) + H(Q) over the anchors (appendix A)."""
    z, w = draw(12)
    Q = w.numpy()[1:] / w.numpy()[1:].sum(axis=1, keepdims=True)
    cosine = torch.nn.functional.cosine_similarity(z[:, None], z[None], dim=-1).numpy()
    P = np.exp(cosine / TAU) * (1 - np.eye(12))
    P = (P / P.sum(axis=1, keepdims=True))[1:]
    divergence, entropy = rel_entr(Q, P).sum(axis=1), entr(Q).sum(axis=1)
    assert divergence.min() > 0.01
    assert float(soft_infonce(z, w, temperature=TAU)) == pytest.approx((divergence + entropy).mean(), rel=1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradient(reduction: str) -> None:
    z, w = draw(6)
    ignore = torch.zeros(6, 6, dtype=torch.bool)
    ignore[2, 3] = ignore[3, 2] = True
    ignore[4] = True
    assert torch.autograd.gradcheck(
        lambda v: soft_infonce(v, w, temperature=TAU, reduction=reduction, ignore=ignore), z.requires_grad_()
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_positives_no_loss_no_gradient(reduction: str) -> None:
    z = draw()[0].float().requires_grad_()
    loss = soft_infonce(z, torch.zeros(9, 9), reduction=reduction)
    loss.backward()
    assert float(loss.detach()) == 0
    assert z.grad is not None
    assert (z.grad == 0).all()


def test_the_diagonal_is_not_read() -> None:
    z, w = draw()
    other = w.clone().fill_diagonal_(1.0)
    assert torch.equal(soft_infonce(z, w), soft_infonce(z, other))
    other.fill_diagonal_(torch.nan)
    assert torch.equal(soft_infonce(z, w), soft_infonce(z, other))


def test_ignored_pairs_do_not_exist() -> None:
    z, w = draw()
    ignore = torch.from_numpy(np.random.default_rng(3).uniform(size=(9, 9)) < 0.4)
    expected = eq1(z, w, TAU, "anchors", ignore)
    assert float(soft_infonce(z, w, temperature=TAU, ignore=ignore)) == pytest.approx(expected, rel=1e-12)
    assert abs(expected - eq1(z, w, TAU, "anchors")) > 0.01


def test_ignoring_a_sample_is_leaving_it_out() -> None:
    z, w = draw()
    ignore = torch.zeros(9, 9, dtype=torch.bool)
    ignore[5] = ignore[:, 5] = True
    rest = [i for i in range(9) if i != 5]
    left = float(soft_infonce(z[rest], w[rest][:, rest], temperature=TAU))
    loss = soft_infonce(z.requires_grad_(), w, temperature=TAU, ignore=ignore)
    assert float(loss.detach()) == pytest.approx(left)
    loss.backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    assert (z.grad[5] == 0).all()
    assert (z.grad[1] != 0).any()


def test_everything_ignored() -> None:
    z, w = draw()
    z.requires_grad_()
    # Anomaly mode finds NaN anywhere on the way back, even where it is masked out later.
    with pytest.warns(UserWarning, match="Anomaly Detection"):
        anomaly = torch.autograd.detect_anomaly()
    with anomaly:
        loss = soft_infonce(z, w, ignore=torch.ones(9, 9, dtype=torch.bool))
        loss.backward()
    assert float(loss.detach()) == 0
    assert z.grad is not None
    assert (z.grad == 0).all()


def test_lengths_of_features_and_of_weights_do_not_matter() -> None:
    z, w = draw()
    lengths = torch.tensor([1e-3, 1, 5, 1e4, 2, 0.1, 30, 1, 7], dtype=z.dtype)
    assert float(soft_infonce(lengths[:, None] * z, w)) == pytest.approx(float(soft_infonce(z, w)), rel=1e-12)
    assert float(soft_infonce(z, lengths[:, None] * w)) == pytest.approx(float(soft_infonce(z, w)), rel=1e-12)


def test_inputs_stay_as_they_are() -> None:
    z, w = draw()
    kept = z.clone(), w.clone()
    soft_infonce(z, w, ignore=torch.eye(9, dtype=torch.bool).roll(1, 0))
    assert torch.equal(z, kept[0])
    assert torch.equal(w, kept[1])


def test_bfloat16_features_are_computed_in_float32() -> None:
    z, w = draw()
    low = z.bfloat16()
    loss = soft_infonce(low, w.float())
    assert loss.dtype == torch.float32
    assert torch.equal(loss, soft_infonce(low.float(), w.float()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, r"temperature above 0 .* got 0\.0"),
        ({"temperature": float("nan")}, "got nan"),
        ({"reduction": "mean"}, "unknown reduction 'mean': available are 'anchors', 'batch'"),
    ],
)
def test_settings_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SoftInfoNCEConfig(**change)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        soft_infonce(*draw(), **change)  # type: ignore[arg-type]


def test_unknown_pairs() -> None:
    with pytest.raises(ConfigError, match="unknown pairs 'some': available are 'all', 'cross-episode'"):
        SoftInfoNCEConfig(pairs="some")


def test_shapes() -> None:
    z, w = draw()
    with pytest.raises(ConfigError, match=r"expected w of shape \(9, 9\) for 9 features, got \(9, 1\)"):
        soft_infonce(z, w[:, :1])
    with pytest.raises(ConfigError, match=r"expected ignore of shape \(9, 9\) for 9 features, got \(9,\)"):
        soft_infonce(z, w, ignore=torch.zeros(9, dtype=torch.bool))
