from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from classact.data.actions import ActionSpace
from classact.data.schema import Schema
from classact.data.types import Demonstrations
from classact.data.windows import window_indices
from classact.errors import ConfigError
from classact.objectives.soft_infonce import soft_infonce
from classact.similarity import (
    ActionSimilarity,
    SimilarityConfig,
    dtw_pairwise,
    similarity_identity,
    window_stream,
)
from classact.similarity.model import scale_rotation
from classact.utils.codec import from_json, to_json

CONFIG = SimilarityConfig(quantile=0.05, pairs=100_000, estimate="sampled")


def walks(D: int = 2, steps: int = 300, seed: int = 0) -> Demonstrations:
    """Three episodes of smooth motion."""
    rng = np.random.default_rng(seed)
    actions = np.cumsum(rng.normal(size=(steps, D)), axis=0).astype(np.float32)
    ends = np.array([steps // 5, steps // 2, steps], np.int64)
    return Demonstrations("walks", ends, actions, np.zeros((steps, 1), np.float32))


def poses(steps: int = 300) -> Demonstrations:
    """The same motion of a gripper that turns."""
    data = walks(10, steps)
    actions = data.actions.copy()
    actions[:, 3:9] = ActionSpace.pose().orthogonalize(actions)[:, 3:9]
    return replace(data, actions=actions, schema=Schema())


@pytest.fixture(scope="module")
def similarity() -> ActionSimilarity:
    return ActionSimilarity(walks(), CONFIG)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_threshold_and_cdf_are_those_of_all_pairs(cost: str) -> None:
    data = walks()
    found = ActionSimilarity(data, replace(CONFIG, cost=cost)).distribution
    low, high = data.actions.min(axis=0), data.actions.max(axis=0)
    windows = ((data.actions - low) / (high - low) * 2 - 1)[window_indices(data.episode_ends, 16)]
    every = np.sort(dtw_pairwise(windows, cost=cost)[np.triu_indices(300, 1)])
    # DKW: at every point at once, the share of pairs below it is known up to epsilon.
    epsilon = found.epsilon
    assert epsilon == pytest.approx(np.sqrt(np.log(2000) / 2e5))
    assert (every < found.threshold).mean() <= 0.05 + epsilon
    assert (every <= found.threshold).mean() >= 0.05 - epsilon
    exact = np.searchsorted(every, found.values, side="right") / len(every)
    sampled = (1 - found.weight) * found.kept / found.pairs
    assert abs(exact - sampled).max() <= epsilon


@pytest.mark.parametrize(
    "change", [{}, {"cost": "euclidean"}, {"metric": "l2"}, {"band": 3}, {"horizon": 5}, {"stride": 3}]
)
def test_exact_threshold_and_weights_are_those_of_all_pairs(change: dict[str, Any]) -> None:
    config = replace(CONFIG, estimate="exact", pairs=5000, **change)
    found = ActionSimilarity(walks(), config)
    d = found.distances(np.arange(300))
    every = np.sort(d[np.triu_indices(300, 1)])
    rank = int(0.05 * len(every))
    assert found.distribution.threshold == every[rank - 1]
    assert (found.distribution.pairs, found.distribution.epsilon) == (len(every), 0)
    kept = every[every <= every[rank - 1]]
    expected = np.where(d <= kept[-1], 1 - np.searchsorted(kept, d, side="right") / len(kept), 0)
    np.fill_diagonal(expected, 0)
    assert_allclose(found.weights(np.arange(300)), expected, atol=1e-6)


def test_auto_is_exact_until_there_are_too_many_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    auto = replace(CONFIG, estimate="auto")
    assert ActionSimilarity(walks(), auto).distribution.exact
    monkeypatch.setattr("classact.similarity.config.AUTO_EXACT_PAIRS", 10)
    assert not ActionSimilarity(walks(), auto).distribution.exact


def test_l2_is_the_squared_distance_of_the_windows() -> None:
    found = ActionSimilarity(walks(), replace(CONFIG, metric="l2"))
    windows = found.stream.windows(np.array([0, 50, 299])).astype(np.float64)
    expected = ((windows[:, None] - windows[None]) ** 2).sum(axis=(2, 3))
    assert_allclose(found.distances(np.array([0, 50, 299])), expected, rtol=1e-5)


def test_weights_as_a_tensor(similarity: ActionSimilarity) -> None:
    rows = np.array([0, 3, 3, 100])
    assert_array_equal(similarity.weights_tensor(rows).numpy(), similarity.weights(rows))


def test_identity_names_data_and_settings() -> None:
    data = walks()
    one = similarity_identity(window_stream(data, CONFIG), CONFIG)
    assert one == similarity_identity(window_stream(walks(), CONFIG), CONFIG)
    other = similarity_identity(window_stream(walks(seed=1), CONFIG), CONFIG)
    assert one["windows"] != other["windows"]
    assert one["settings"]["horizon"] == 16


def test_the_seed_decides_the_sample() -> None:
    config = replace(CONFIG, pairs=2000)
    one, same, other = (ActionSimilarity(walks(), replace(config, seed=s)).distribution for s in (0, 0, 1))
    assert_array_equal(one.values, same.values)
    assert not np.array_equal(one.values, other.values)


def test_two_steps_are_one_pair() -> None:
    """No step is compared with itself: both orders of the only pair, never a zero."""
    data = Demonstrations(
        "two", np.array([1, 2], np.int64), np.array([[0.0], [1.0]], np.float32), np.zeros((2, 1), np.float32)
    )
    with pytest.raises(ConfigError, match="keeps 50 of 50 pairs whose distances all equal 4"):
        ActionSimilarity(data, SimilarityConfig(horizon=1, quantile=0.5, pairs=50, estimate="sampled"))


def test_weights_follow_the_distances(similarity: ActionSimilarity) -> None:
    rows = np.arange(0, 300, 3)
    d, w = similarity.distances(rows), similarity.weights(rows)
    assert w.shape == (100, 100)
    assert w.dtype == np.float32
    assert 0 <= w.min() <= w.max() <= 1
    assert_array_equal(w, w.T)
    assert_array_equal(w.diagonal(), 0)
    assert (w[d > similarity.distribution.threshold] == 0).all()
    off = ~np.eye(100, dtype=bool)
    ordered = w[off][np.argsort(d[off])]
    assert (np.diff(ordered) <= 0).all()
    # About K of all pairs are positives; this is a third of the steps.
    assert 0.02 < (w[off] > 0).mean() < 0.1


@pytest.mark.parametrize("metric", ["dtw", "l2"])
@pytest.mark.parametrize("anchors", [1, 5, 40])
def test_of_the_first_steps_alone(anchors: int, metric: str) -> None:
    """What a queue is contrasted with: the same bits as in the whole matrix, whose other rows are not computed."""
    similarity = ActionSimilarity(walks(), replace(CONFIG, metric=metric))
    rows = np.random.default_rng(anchors).integers(0, 300, 40)
    rows[-1] = rows[0]  # a step met again
    limit = similarity.distribution.threshold
    some = similarity.distances(rows, anchors, limit=limit)
    whole = similarity.distances(rows)[:anchors]
    assert some.shape == (anchors, 40)
    near = whole <= limit
    assert_array_equal(some[near], whole[near])
    assert (some[~near] > limit).all()
    weights = similarity.weights(rows, anchors)
    assert_array_equal(weights, similarity.weights(rows)[:anchors])
    assert_array_equal(similarity.weights_tensor(rows, anchors).numpy(), weights)
    assert weights[0, -1] == 1


@pytest.mark.parametrize("anchors", [None, 1, 9, 40])
def test_weights_on_a_device(
    similarity: ActionSimilarity, monkeypatch: pytest.MonkeyPatch, anchors: int | None
) -> None:
    """What surrounds the kernel; the kernel itself is in gpu_cases.py."""

    def on_cpu(x: torch.Tensor, y: torch.Tensor | None, *, check: bool, **settings: Any) -> torch.Tensor:
        assert not check
        return dtw_pairwise(x, y, **settings)

    monkeypatch.setattr("classact.similarity.gpu.dtw_pairwise_torch", on_cpu)
    rows = np.random.default_rng(0).integers(0, 300, 40)
    rows[-1] = rows[0]
    found = similarity._weights_on_device(rows, anchors).numpy()
    assert_allclose(found, similarity.weights(rows, anchors), rtol=0, atol=1e-7)


def test_a_duplicated_step_is_its_own_best_positive() -> None:
    """Also where many other pairs are at distance zero, so that 1 - CDF(0) is well below 1."""
    data = walks()
    still = data.actions.copy()
    still[:50] = still[0]
    similarity = ActionSimilarity(replace(data, actions=still), CONFIG)
    rows = np.array([7, 100, 7, 250, 7, 8])
    w = similarity.weights(rows)
    assert_array_equal(w[np.ix_([0, 2, 4], [0, 2, 4])], 1 - np.eye(3))
    assert_array_equal(w.diagonal(), 0)
    assert similarity.distances(rows)[0, 5] == 0
    assert 0.2 < w[0, 5] < 0.9


def test_a_duplicated_step_is_pulled_never_pushed(similarity: ActionSimilarity) -> None:
    """Moving the second view of a step to the first lowers the loss; as a negative (released code) it raises it."""
    rows = np.array([7, 7, 8, 9, 120, 121, 200, 290])
    w = torch.from_numpy(similarity.weights(rows))
    assert w[0, 2] > 0
    z = torch.randn(8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    as_negative = w.clone()
    as_negative[0, 1] = as_negative[1, 0] = 0.0
    slopes = []
    for weights in (w, as_negative):
        second = z[1].clone().requires_grad_()
        loss = soft_infonce(torch.cat([z[:1], second[None], z[2:]]), weights.double(), temperature=1.0)
        (gradient,) = torch.autograd.grad(loss, second)
        slopes.append(float(gradient @ z[0]))
    assert slopes[0] < 0 < slopes[1]


# The rotation of pose actions


def test_scaling_touches_the_rotation_of_pose_actions_only() -> None:
    arm = [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1]
    for space, expected in ((ActionSpace.pose(), arm), (ActionSpace.pose("left", "right"), arm * 2)):
        ones = np.ones((2, space.dim), np.float32)
        assert_array_equal(scale_rotation(ones, space, 0.5), [expected] * 2)
        assert_array_equal(ones, 1)
    for D in (2, 7, 8, 9, 10, 14, 20):
        for undeclared in (None, ActionSpace.joints(D, gripper=0)):
            assert_array_equal(scale_rotation(np.ones((2, D), np.float32), undeclared, 0.5), np.ones((2, D)))


def test_rotation_counts_a_quarter_in_the_squared_cost() -> None:
    data = poses()
    assert data.schema.actions == ActionSpace.pose()  # ten dimensions, and six of them are rotations
    plain, scaled = (ActionSimilarity(data, replace(CONFIG, pairs=1000, rotation_scale=s)) for s in (1.0, 0.5))
    assert_allclose(scaled.stream.values[3:9], plain.stream.values[3:9] / 2)
    assert_array_equal(scaled.stream.values[[0, 1, 2, 9]], plain.stream.values[[0, 1, 2, 9]])
    assert abs(plain.stream.values).max() == 1
    rows = np.array([0, 200])
    undeclared = ActionSimilarity(walks(D=10), replace(CONFIG, pairs=1000, rotation_scale=0.5))
    assert abs(undeclared.stream.values).max(axis=1) == pytest.approx(np.ones(10))  # ten numbers that are no pose
    assert 0.25 < scaled.distances(rows)[0, 1] / plain.distances(rows)[0, 1] < 1


# Messages


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 0}, "horizon of at least 1 step, got 0"),
        ({"quantile": 0.0}, r"K between 0 and 1 .* got 0\.0"),
        ({"quantile": 1.0}, r"K between 0 and 1 .* got 1\.0"),
        ({"quantile": float("nan")}, "got nan"),
        ({"seed": -1}, "a seed of at least 0, got -1"),
        ({"pairs": 0}, "at least 1 pair to measure, got 0"),
        ({"cost": "cosine"}, "unknown step cost 'cosine'"),
        ({"metric": "cosine"}, "unknown metric 'cosine'"),
        ({"estimate": "guess"}, "unknown estimate 'guess'"),
        ({"band": -1}, "Sakoe-Chiba band of at least 0 whole steps, or none, got -1"),
        ({"metric": "l2", "band": 2}, "no band and no other step cost, got band 2"),
        ({"metric": "l2", "cost": "euclidean"}, "got band None and cost 'euclidean'"),
    ],
)
def test_settings_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SimilarityConfig(**change)  # type: ignore[arg-type]


def test_one_step_cannot_be_compared() -> None:
    data = Demonstrations("one", np.array([1]), np.zeros((1, 2), np.float32), np.zeros((1, 1), np.float32))
    with pytest.raises(ConfigError, match="expected at least 2 steps to compare, got 1"):
        ActionSimilarity(data, CONFIG)


def test_a_horizon_longer_than_every_episode() -> None:
    with pytest.raises(
        ConfigError, match=r"a horizon of 151 steps is longer than every episode \(the longest has 150\)"
    ):
        ActionSimilarity(walks(), replace(CONFIG, horizon=151))


def test_actions_that_never_change() -> None:
    data = replace(walks(), actions=np.ones((300, 2), np.float32))
    with pytest.raises(ConfigError, match=r"distances all equal 0.*The actions hardly vary"):
        ActionSimilarity(data, replace(CONFIG, pairs=1000))


def test_steps_that_do_not_exist(similarity: ActionSimilarity) -> None:
    for rows, found in (([-1, 0], "-1..0"), ([0, 300], "0..300")):
        with pytest.raises(ConfigError, match=rf"expected steps within 0\.\.299, got {re.escape(found)}"):
            similarity.weights(np.array(rows))


def test_a_device_that_cannot_be_used_falls_back(caplog: pytest.LogCaptureFixture) -> None:
    """As on a machine whose torch has no triton; the sweep is not even looked for where the distribution is known."""
    known = ActionSimilarity(walks(), CONFIG).distribution
    other = ActionSimilarity(walks(), CONFIG, device="meta", distribution=known)

    def unusable(*_: Any) -> Any:
        raise ConfigError("no triton")

    other._weights_on_device = unusable  # type: ignore[method-assign]
    for _ in range(2):
        assert other.weights_tensor(np.arange(4)).shape == (4, 4)
    assert caplog.text.count("weights of batches are computed on the CPU: no triton") == 1
    assert "sweep" not in vars(other)


@pytest.mark.parametrize("value", [0.3, 256.1, -2.2e6, 1.7e9])
def test_dimensions_that_only_round_differently_decide_nothing(value: float) -> None:
    data = walks()
    noise = np.random.default_rng(1).integers(-3, 4, (len(data.actions), 2)) * np.spacing(np.float32(value))
    wider = replace(
        data, actions=np.hstack([data.actions, np.float32(value) + noise.astype(np.float32)]), schema=Schema()
    )
    rows = np.arange(0, 300, 3)
    known = ActionSimilarity(data, CONFIG).weights(rows) > 0
    assert (known != (ActionSimilarity(wider, CONFIG).weights(rows) > 0)).mean() < 2e-3


def test_a_rotation_that_never_changes_decides_nothing() -> None:
    data = poses()
    still = data.actions.copy()
    still[:, 3:9] = [1, 0, 0, 0, 1, 0]
    shaken = still.copy()
    shaken[:, [4, 6]] += np.random.default_rng(0).normal(0, 6e-8, (300, 2)).astype(np.float32)
    rows = np.arange(0, 300, 3)
    known, found = (
        ActionSimilarity(replace(data, actions=actions, schema=Schema()), CONFIG).weights(rows) > 0
        for actions in (still, shaken)
    )
    assert_array_equal(found, known)


def test_a_band_spans_the_same_time_with_a_stride() -> None:
    config = SimilarityConfig(horizon=16, band=5)
    assert [replace(config, stride=stride).alignment_band for stride in (1, 2, 5, 16)] == [5, 3, 1, 1]
    assert replace(config, band=None, stride=4).alignment_band is None
    assert SimilarityConfig(metric="l2", stride=4).alignment_band == 0


def test_settings_of_before_strides_are_read() -> None:
    known = to_json(SimilarityConfig(quantile=0.1))
    assert from_json(SimilarityConfig, {key: value for key, value in known.items() if key != "stride"}, "file") == (
        SimilarityConfig(quantile=0.1)
    )
