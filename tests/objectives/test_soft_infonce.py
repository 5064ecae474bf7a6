from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import entr, rel_entr
from torch import Tensor

from classact.errors import ConfigError
from classact.objectives import SoftInfoNCEConfig, make_objective, objective_config
from classact.objectives.base import Material, Objective
from classact.objectives.config import TAU_RANGE
from classact.objectives.soft_infonce import TAU_SCALE, SoftInfoNCE, soft_infonce
from classact.similarity.distribution import mark_duplicates
from classact.train.config import OptimizerConfig
from classact.train.optim import learning_rate, make_optimizer
from classact.utils.codec import to_json

TAU = 0.2


def draw(B: int = 9, F: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features and weights: symmetric, about half of them zero, anchor 0 without any positive."""
    rng = np.random.default_rng(seed)
    w = rng.uniform(0, 1, (B, B)) * (rng.uniform(size=(B, B)) < 0.6)
    w = np.triu(w, 1) + np.triu(w, 1).T
    w[0] = w[:, 0] = 0
    return torch.from_numpy(rng.normal(size=(B, F))), torch.from_numpy(w)


def eq1(
    z: Tensor, w: Tensor, tau: float, reduction: str, ignore: Tensor | None = None, keys: Tensor | None = None
) -> float:
    """Equation (1), loop by loop; of ``keys``, which are what anchors are compared with, the first B are the batch."""
    Z = [[float(v) for v in row] for row in (z if keys is None else keys)]
    Z = [[v / math.sqrt(sum(u * u for u in row)) for v in row] for row in Z]
    B, total, anchors = len(z), 0.0, 0
    for i in range(B):
        others = [k for k in range(len(Z)) if k != i and not (ignore is not None and ignore[i, k])]
        S = {k: sum(a * b for a, b in zip(Z[i], Z[k], strict=True)) / tau for k in others}
        norm = sum(math.exp(s) for s in S.values())
        weight = sum(float(w[i, j]) for j in others)
        if weight > 0:
            anchors += 1
            total -= sum(float(w[i, j]) * math.log(math.exp(S[j]) / norm) for j in others) / weight
    return total / (max(anchors, 1) if reduction == "anchors" else B)


@pytest.mark.parametrize("reduction", ["anchors", "batch"])
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


@pytest.mark.parametrize("reduction", ["anchors", "batch"])
def test_gradient(reduction: str) -> None:
    z, w = draw(6)
    ignore = torch.zeros(6, 6, dtype=torch.bool)
    ignore[2, 3] = ignore[3, 2] = True
    ignore[4] = True
    assert torch.autograd.gradcheck(
        lambda v: soft_infonce(v, w, temperature=TAU, reduction=reduction, ignore=ignore), z.requires_grad_()
    )


@pytest.mark.parametrize("reduction", ["anchors", "batch"])
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
        ({"temperature": 0.0}, r"0 < temperature < inf, got 0\.0"),
        ({"temperature": float("nan")}, "got nan"),
        ({"reduction": "mean"}, "unknown reduction 'mean': available are 'anchors', 'batch'"),
    ],
)
def test_settings_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SoftInfoNCEConfig(**change)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        soft_infonce(*draw(), **change)  # type: ignore[arg-type]


def test_shapes() -> None:
    z, w = draw()
    with pytest.raises(ConfigError, match=r"expected w of shape \(9, 9\) for 9 features, got \(9, 1\)"):
        soft_infonce(z, w[:, :1])
    with pytest.raises(ConfigError, match=r"expected ignore of shape \(9, 9\) for 9 features, got \(9,\)"):
        soft_infonce(z, w, ignore=torch.zeros(9, dtype=torch.bool))


# Keys beyond the batch


@pytest.mark.parametrize("reduction", ["anchors", "batch"])
def test_keys_are_further_candidates(reduction: str) -> None:
    z, _ = draw(5)
    rng = np.random.default_rng(1)
    keys = torch.cat([z, torch.from_numpy(3 * rng.normal(size=(7, 5)))])
    w = torch.from_numpy(rng.uniform(size=(5, 12)) * (rng.uniform(size=(5, 12)) < 0.4))
    w[2] = 0
    ignore = torch.from_numpy(rng.uniform(size=(5, 12)) < 0.2)
    options = {"temperature": TAU, "reduction": reduction, "ignore": ignore}
    expected = eq1(z, w, TAU, reduction, ignore, keys)
    assert float(soft_infonce(z, w, keys=keys, **options)) == pytest.approx(expected, rel=1e-12)
    beyond = keys[5:]
    assert torch.autograd.gradcheck(
        lambda a, b: soft_infonce(a, w, keys=torch.cat([a, b]), **options),
        (z.requires_grad_(), beyond.requires_grad_()),
    )


def test_the_batch_as_its_own_keys_changes_nothing() -> None:
    z, w = draw()
    assert torch.equal(soft_infonce(z, w, keys=z), soft_infonce(z, w))


def test_shapes_with_keys() -> None:
    z, w = draw()
    keys = torch.cat([z, z[:3]])
    with pytest.raises(ConfigError, match=r"expected w of shape \(9, 12\) for 9 features and 12 keys, got \(9, 9\)"):
        soft_infonce(z, w, keys=keys)
    with pytest.raises(ConfigError, match=r"expected ignore of shape \(9, 12\) for 9 features and 12 keys"):
        soft_infonce(z, torch.ones(9, 12), keys=keys, ignore=w > 0)


def test_a_temperature_with_a_gradient() -> None:
    z, w = draw()
    tau = torch.tensor(TAU, dtype=z.dtype, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: soft_infonce(z, w, temperature=t), tau)
    assert torch.equal(soft_infonce(z, w, temperature=tau.detach()), soft_infonce(z, w, temperature=TAU))


# The objective with its settings

ENDS = np.array([7, 15, 16, 30], np.int64)
N, F = 30, 5


def similar(seed: int = 0) -> NDArray[Any]:
    """(N, N) weights of all steps, two thirds of them zero; step 3 has no positive anywhere."""
    rng = np.random.default_rng(seed)
    w = rng.uniform(0, 1, (N, N)) * (rng.uniform(size=(N, N)) < 0.33)
    w = np.triu(w, 1) + np.triu(w, 1).T
    w[3] = w[:, 3] = 0
    return w


def material() -> Material:
    w = similar()

    def weights(steps: Any, anchors: int) -> Tensor:
        return torch.from_numpy(mark_duplicates(w[np.ix_(steps[:anchors], steps)], steps))

    return Material(F, ENDS, torch.zeros(N, 2), weights=weights)


def build(config: SoftInfoNCEConfig) -> SoftInfoNCE:
    made = make_objective(config, material())
    assert isinstance(made, SoftInfoNCE)
    return made.double()


@dataclass
class Oracle:
    """What the settings' documentation says, image by image and view by view, in plain Python.

    Attributes:
        config: settings.
        queue: (feature, step) of earlier batches' first views, newest batch first, each in the order that was drawn.
    """

    config: SoftInfoNCEConfig
    queue: list[tuple[NDArray[Any], int]] = field(default_factory=list)

    def weight(self, step: int, other: int) -> float:
        w = 1.0 if step == other else float(similar()[step, other])
        return w if self.config.weighting == "soft" else float(w > 0)

    def candidates(self, i: int, r: int, z: NDArray[Any], steps: list[int]) -> list[tuple[NDArray[Any], float]]:
        """Features that view r of image i is compared with, and their weights."""
        found = []
        for j, step in enumerate(steps):
            for view in range(self.config.views):
                if (j, view) == (i, r):
                    continue
                if j == i:
                    found.append((z[j, view], 1.0))
                elif not self.left_out(steps[i], step):
                    found.append((z[j, view], self.weight(steps[i], step)))
        found += [(f, self.weight(steps[i], step)) for f, step in self.queue if not self.left_out(steps[i], step)]
        return found

    def left_out(self, step: int, other: int) -> bool:
        episode = np.searchsorted(ENDS, [step, other], side="right")
        return self.config.pairs == "cross-episode" and bool(episode[0] == episode[1])

    def __call__(self, z: NDArray[Any], steps: list[int]) -> float:
        """The loss of (B, R, F) features, which then enter the queue."""
        losses = []
        for i in range(len(steps)):
            for r in range(self.config.views):
                candidates = self.candidates(i, r, z, steps)
                lengths = [np.linalg.norm(z[i, r]) * np.linalg.norm(f) for f, _ in candidates]
                logits = [
                    float(z[i, r] @ f) / length / self.config.temperature
                    for (f, _), length in zip(candidates, lengths, strict=True)
                ]
                total = sum(w for _, w in candidates)
                if total > 0:
                    top = math.log(sum(math.exp(logit) for logit in logits))
                    losses.append(sum(w * (top - s) for (_, w), s in zip(candidates, logits, strict=True)) / total)
        size = self.config.queue
        newest = [(z[i, 0], steps[i]) for i in shuffled(len(steps))]
        self.queue = [*newest, *self.queue][:size]
        return sum(losses) / (max(len(losses), 1) if self.config.reduction == "anchors" else z.shape[0] * z.shape[1])


def shuffled(count: int, seed: int = 0) -> list[int]:
    """The first order that a step's generator draws."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def compute(
    made: SoftInfoNCE, z: Tensor, steps: Sequence[int] | NDArray[Any], seed: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    rows = np.array(steps, np.int64)[:, None]
    return made.loss(z[:, None], rows, target=None, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=80)
@given(
    weighting=st.sampled_from(["soft", "hard"]),
    pairs=st.sampled_from(["all", "cross-episode"]),
    reduction=st.sampled_from(["anchors", "batch"]),
    views=st.integers(1, 3),
    queue=st.sampled_from([0, 3, 8, 20]),
    batches=st.lists(st.lists(st.integers(0, N - 1), min_size=1, max_size=8), min_size=1, max_size=5),
    seed=st.integers(0, 100),
)
def test_all_settings_together_equal_their_documentation(
    weighting: str, pairs: str, reduction: str, views: int, queue: int, batches: list[list[int]], seed: int
) -> None:
    config = SoftInfoNCEConfig(
        temperature=TAU, reduction=reduction, pairs=pairs, weighting=weighting, views=views, queue=queue
    )
    made, oracle = build(config), Oracle(config)
    rng = np.random.default_rng(seed)
    for steps in batches:
        z = rng.normal(size=(len(steps), views, F))
        loss, _ = compute(made, torch.from_numpy(z), steps)
        assert float(loss) == pytest.approx(oracle(z, steps), rel=1e-9, abs=1e-12)


def test_without_views_and_queue_it_is_the_plain_loss_to_the_last_bit() -> None:
    z, steps = draw(8)[0].float(), [0, 4, 9, 11, 17, 20, 25, 29]
    w = torch.from_numpy(similar()[np.ix_(steps, steps)])
    made = build(SoftInfoNCEConfig())
    assert not made.state_dict()
    assert not list(made.parameters())
    z.requires_grad_()
    loss, stats = compute(made, z[:, None], steps)
    expected = soft_infonce(z, w)
    assert torch.equal(loss, expected)
    for one, two in zip(torch.autograd.grad(loss, z), torch.autograd.grad(expected, z), strict=True):
        assert torch.equal(one, two)
    positives = (similar()[np.ix_(steps, steps)] > 0).sum(axis=1)
    assert stats.keys() == {"positives", "anchors", "kl"}
    assert (float(stats["positives"]), float(stats["anchors"])) == (positives.mean(), (positives > 0).mean())


@pytest.mark.parametrize(
    "config",
    [
        SoftInfoNCEConfig(temperature=TAU),
        SoftInfoNCEConfig(temperature=TAU, reduction="batch"),
        SoftInfoNCEConfig(temperature=TAU, pairs="cross-episode"),
        SoftInfoNCEConfig(temperature=TAU, weighting="hard"),
    ],
)
def test_the_divergence_of_proposition_1_is_logged(config: SoftInfoNCEConfig) -> None:
    steps = np.array([0, 4, 9, 11, 17, 20, 25, 29])
    z = draw(8)[0]
    _, stats = compute(build(config), z[:, None], list(steps))
    w = similar()[np.ix_(steps, steps)].astype(float)
    w = (w > 0).astype(float) if config.weighting == "hard" else w
    episode = np.searchsorted(ENDS, steps, side="right")
    left_out = np.eye(8, dtype=bool) if config.pairs == "all" else episode[:, None] == episode[None]
    unit = (z / z.norm(dim=1, keepdim=True)).numpy()
    p = np.where(left_out, 0, np.exp(unit @ unit.T / TAU))
    divergences = []
    for i in range(8):
        q = np.where(left_out[i], 0, w[i])
        if q.sum() > 0:
            divergences.append(rel_entr(q / q.sum(), p[i] / p[i].sum()).sum())
    assert 0 < len(divergences) < 8 or config.pairs == "all"
    expected = sum(divergences) / (len(divergences) if config.reduction == "anchors" else 8)
    assert float(stats["kl"]) == pytest.approx(expected, abs=1e-9)


def test_two_views_of_one_image_are_positives_where_nothing_else_is() -> None:
    # One episode, no similar steps: with pairs of other episodes only, the own views remain, as in SimCLR with one
    # image.
    made = build(SoftInfoNCEConfig(temperature=TAU, views=2, pairs="cross-episode"))
    z = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 2, F)))
    loss, stats = compute(made, z, [16, 17, 18])
    assert float(loss) == pytest.approx(0, abs=1e-12)  # a single candidate, and it is the positive
    assert (float(stats["positives"]), float(stats["anchors"])) == (0, 0)
    plain = build(SoftInfoNCEConfig(temperature=TAU, views=2))
    alone, _ = compute(plain, z[:1], [3])
    assert float(alone) == pytest.approx(0, abs=1e-12)


# The queue


def test_the_queue_holds_the_newest_features_and_their_steps_in_the_drawn_order() -> None:
    made = build(SoftInfoNCEConfig(queue=7, views=2))
    assert (made.queue_steps == -1).all()
    rng, kept = np.random.default_rng(0), list[tuple[int, NDArray[Any]]]()
    for seed, steps in enumerate(([1, 2, 5], [8, 9, 10], [20, 21], list(range(10, 20)))):  # the last more than it holds
        z = torch.from_numpy(rng.normal(size=(len(steps), 2, F))).requires_grad_()
        compute(made, z, steps, seed)
        newest = [(steps[i], z[i, 0].detach().numpy()) for i in shuffled(len(steps), seed)]
        kept = [*newest, *kept][:7]
        assert made.queue_steps.tolist() == [step for step, _ in kept] + [-1] * (7 - len(kept))
        np.testing.assert_array_equal(made.queue_z[: len(kept)], [feature for _, feature in kept])
        np.testing.assert_array_equal(made._queued, [step for step, _ in kept])
        assert not made.queue_z.requires_grad


@pytest.mark.parametrize("batches", [0, 1, 3])  # an empty, a partly filled and a full queue
def test_a_queue_goes_on_from_what_was_saved(batches: int) -> None:
    config = SoftInfoNCEConfig(temperature=TAU, queue=14)
    saved, fresh = build(config), build(config)
    loaded = deepcopy(fresh)
    rng = np.random.default_rng(0)
    for steps in ([0, 4, 9, 11, 17, 20], [1, 5, 10, 12, 18, 21], [2, 6, 11, 13, 19, 22])[:batches]:
        compute(saved, torch.from_numpy(rng.normal(size=(6, 1, F))), steps)
    compute(loaded, torch.from_numpy(rng.normal(size=(6, 1, F))), [7, 8, 14, 15, 16, 23])  # to be forgotten
    loaded.load_state_dict(saved.state_dict())
    np.testing.assert_array_equal(loaded._queued, saved._queued)
    assert len(loaded._queued) == min(14, 6 * batches)
    for _ in range(2):
        z, steps = torch.from_numpy(rng.normal(size=(6, 1, F))), [0, 5, 9, 12, 19, 20]
        losses = [float(compute(made, z, steps)[0]) for made in (saved, loaded, fresh)]
        assert losses[0] == losses[1]
        assert (losses[0] == losses[2]) == (batches == 0)


def test_a_queue_in_a_sum_goes_on_from_what_was_saved() -> None:
    config = objective_config("class+tcn", ["class.queue=8", "class.temperature=0.2"])
    one, two = (make_objective(config, material()).double() for _ in range(2))

    def step(made: Objective, seed: int) -> float:
        rows = np.random.default_rng(seed).integers(0, N, (6, 3))
        z = torch.from_numpy(np.random.default_rng(seed).normal(size=(6, 3, 1, F)))
        return float(made.loss(z, rows, target=None, generator=torch.Generator().manual_seed(seed))[0])

    for seed in range(3):
        step(one, seed)
    two.load_state_dict(one.state_dict())
    assert step(one, 5) == step(two, 5)


def test_no_gradient_goes_to_the_queue_but_much_comes_from_it() -> None:
    made, plain = (build(SoftInfoNCEConfig(temperature=TAU, queue=queue)) for queue in (8, 0))
    first, second = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 6, 1, F)))
    first.requires_grad_()
    second.requires_grad_()
    compute(made, first, [0, 4, 9, 11, 17, 20])
    loss, _ = compute(made, second, [1, 5, 10, 12, 18, 21])
    loss.backward()
    assert first.grad is None
    assert second.grad is not None
    queued = second.grad.clone()
    second.grad = None
    compute(plain, second, [1, 5, 10, 12, 18, 21])[0].backward()
    assert (queued - second.grad).norm() > 0.1 * second.grad.norm()


def test_the_same_step_again_is_a_positive_of_weight_1() -> None:
    # Step 3 is similar to none; seen again two batches later, it has exactly one positive, its own feature in the
    # queue.
    made = build(SoftInfoNCEConfig(temperature=TAU, queue=9))
    rng = np.random.default_rng(0)
    z = torch.from_numpy(rng.normal(size=(3, 3, 1, F)))
    for features, batch in zip(z, ([3, 8, 20], [9, 21, 11], [3, 10, 22]), strict=True):
        loss, stats = compute(made, features, batch)
    steps = [3, 10, 22, 9, 21, 11, 3, 8, 20]
    w = mark_duplicates(similar()[np.ix_(steps, steps)], np.array(steps))[:3]
    assert w[0].tolist() == [0.0] * 6 + [1.0, 0.0, 0.0]
    keys = torch.cat([z[2], z[1], z[0]])[:, 0]  # the order within the queue does not matter
    expected = eq1(keys[:3], torch.from_numpy(w), TAU, "anchors", None, keys)
    assert float(loss) == pytest.approx(expected, rel=1e-12)
    # What is logged is of the batch alone, so that runs with and without a queue compare.
    within = (w[:, :3] > 0).sum(axis=1)
    assert within.sum() < (w > 0).sum()
    assert float(stats["positives"]) == within.mean()
    assert float(stats["anchors"]) == (within > 0).mean()


# A learned temperature


def learned(temperature: float = TAU) -> SoftInfoNCE:
    return build(SoftInfoNCEConfig(temperature=temperature, learned_temperature=True))


def now(made: SoftInfoNCE) -> float:
    return float(torch.as_tensor(made.temperature()).detach())


def descend(made: SoftInfoNCE, z: Tensor, steps: list[int], rate: float, count: int) -> list[float]:
    """Temperatures after steps of plain descent on the temperature alone."""
    optimizer, taus = torch.optim.SGD(made.parameters(), lr=rate), []
    for _ in range(count):
        optimizer.zero_grad()
        loss, stats = compute(made, z, steps)
        assert float(stats["tau"]) == pytest.approx(now(made))
        loss.backward()
        optimizer.step()
        made.after_step()
        taus.append(now(made))
    return taus


LEARNED_STEPS = [0, 4, 9, 11, 17, 20, 25, 29]


def test_a_learned_temperature_gets_the_gradient_of_the_loss() -> None:
    made, z = learned(), draw(8)[0][:, None]
    loss, stats = compute(made, z, LEARNED_STEPS)
    loss.backward()
    assert float(stats["tau"]) == pytest.approx(TAU)
    w = torch.from_numpy(similar()[np.ix_(LEARNED_STEPS, LEARNED_STEPS)])
    step = 1e-5
    above, below = (eq1(z[:, 0], w, TAU * math.exp(h), "anchors") for h in (step, -step))
    assert made.scaled_log_tau.grad is not None
    # The parameter is log(tau) / TAU_SCALE.
    assert float(made.scaled_log_tau.detach()) == pytest.approx(math.log(TAU) / TAU_SCALE)
    assert float(made.scaled_log_tau.grad) == pytest.approx(TAU_SCALE * (above - below) / (2 * step), rel=1e-6)
    assert float(loss.detach()) == pytest.approx(eq1(z[:, 0], w, TAU, "anchors"), rel=1e-7)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_learned_temperature_goes_to_its_limits_and_comes_back(sign: int) -> None:
    near = torch.from_numpy(similar()[np.ix_(LEARNED_STEPS, LEARNED_STEPS)]) > 0
    # Features whose cosines are high exactly where there is a positive, or exactly where there is none.
    values, vectors = torch.linalg.eigh(sign * near.double() + 8 * torch.eye(8, dtype=torch.float64))
    z = (vectors * values.sqrt())[:, None]
    made = learned()
    low, high = TAU_RANGE
    rate = 3.0 / TAU_SCALE**2  # a step on log tau itself at 3
    taus = descend(made, z, LEARNED_STEPS, rate, count=80)
    assert all(low * (1 - 1e-6) <= tau <= high * (1 + 1e-6) for tau in taus)
    # Where positives are far, a loss is lowest where nothing is told apart.
    assert taus[-1] == pytest.approx(high, rel=0.01) if sign < 0 else taus[-1] < TAU / 2

    with torch.no_grad():
        made.scaled_log_tau.fill_(30.0 if sign > 0 else -30.0)  # one huge step beyond the other limit
    made.after_step()
    assert now(made) == pytest.approx(high if sign > 0 else low)
    back = descend(made, z, LEARNED_STEPS, rate, count=80)
    assert back[-1] == pytest.approx(taus[-1], rel=0.05)


def learned_by_lars(seed: int, best: float = 0.05, count: int = 150) -> NDArray[Any]:
    """Temperatures over the best one, from which the first steps of a long training by table 3 and 4 start.

    The positive of each of 200 fixed features is drawn from softmax(cosine / best) over the others. So it is, given
    that it is in the batch, over the batch: the expected loss is lowest at ``best``, and batches of 16 make much noise.
    """
    rng = np.random.default_rng(seed)
    z = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(200, 16))), dim=1)
    share = torch.softmax((z @ z.T / best).fill_diagonal_(-torch.inf), dim=1)
    w = torch.from_numpy(rng.multinomial(1, share.numpy())).double()
    where = Material(
        16, np.array([200]), torch.zeros(200, 2), weights=lambda steps, anchors: w[steps[:anchors]][:, steps]
    )
    made = make_objective(SoftInfoNCEConfig(temperature=best, learned_temperature=True), where).double()
    assert isinstance(made, SoftInfoNCE)
    config = OptimizerConfig()
    optimizer, taus = make_optimizer(made.parameters(), config), []
    for step in range(count):
        steps = rng.choice(200, 16, replace=False)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, 10 * count)
        optimizer.zero_grad()
        compute(made, z[steps][:, None], steps)[0].backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), config.clip_norm)
        optimizer.step()
        made.after_step()
        taus.append(now(made))
    return np.array(taus) / best


def test_under_lars_a_learned_temperature_stays_where_it_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """LARS adapts no rate of a single number, which so gets plain momentum at the rate of 0.5."""
    assert all(taus.min() > 1 / 3 and taus.max() < 3 for taus in map(learned_by_lars, range(3)))
    # With log tau itself as the parameter it does not.
    monkeypatch.setattr(importlib.import_module("classact.objectives.soft_infonce"), "TAU_SCALE", 1.0)
    assert all(taus.min() < 1 / 3 or taus.max() > 3 for taus in map(learned_by_lars, range(3)))


def test_a_learned_temperature_is_one_setting_of_many() -> None:
    config = SoftInfoNCEConfig(temperature=TAU, learned_temperature=True, views=2, queue=6, pairs="cross-episode")
    made, fixed = build(config), build(SoftInfoNCEConfig(**_but(config, learned_temperature=False)))
    rng = np.random.default_rng(0)
    for steps in ([0, 8, 20], [1, 9, 21], [2, 10, 22]):
        z = torch.from_numpy(rng.normal(size=(3, 2, F)))
        loss, expected = compute(made, z, steps)[0], compute(fixed, z, steps)[0]
        assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-6)


def _but(config: SoftInfoNCEConfig, **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in to_json(config).items() if key != "name"} | changes
