"""Every metric against a slow definition or another package."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from scipy.stats import entropy, spearmanr

from classact.data.actions import ACTION_SPACES
from classact.evaluation.probe import metrics
from classact.evaluation.probe.metrics import (
    Metric,
    alignment,
    average_chunks,
    chunk_errors,
    draw_episodes,
    effective_rank_estimate,
    episode_mean,
    ndcg,
    other_episode_share,
    pair_mean,
    spearman,
    uniformity,
    view_matches,
)
from classact.policies.latents import unit
from classact.similarity import COSTS, dtw

seeds = st.integers(0, 2**32 - 1)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def latents(generator: np.random.Generator, n: int = 40, d: int = 6) -> np.ndarray:
    return unit(generator.normal(size=(n, d)).astype(np.float32))


def rotation(generator: np.random.Generator, d: int) -> np.ndarray:
    return np.linalg.qr(generator.normal(size=(d, d)))[0].astype(np.float32)


# Intervals


@given(seeds)
def test_mean_over_steps_with_whole_episodes_drawn_again(seed: int) -> None:
    generator = rng(seed)
    episodes = np.sort(generator.integers(0, 5, 30)) * 3  # numbers with gaps
    values = generator.normal(size=30)
    values[generator.integers(0, 30)] = np.nan
    found = episode_mean(values, episodes, rng(1), resamples=50)
    assert found.value == pytest.approx(np.nanmean(values))
    labels = np.unique(episodes[np.isfinite(values)])
    drawn = rng(1).multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=50)
    means = []
    for counts in drawn:
        rows = np.concatenate(
            [np.flatnonzero(episodes == e) for e, n in zip(labels, counts, strict=True) for _ in range(n)]
        )
        means.append(np.nanmean(values[rows]))
    assert found.low == pytest.approx(np.quantile(means, 0.025))
    assert found.high == pytest.approx(np.quantile(means, 0.975))


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Steps of an episode share its offset: an interval over steps would miss the truth most of the time."""
    generator = rng(2)
    covered = narrow = 0
    for _ in range(200):
        offset = generator.normal(size=40)
        episodes = np.repeat(np.arange(40), 25)
        values = offset[episodes] + 0.1 * generator.normal(size=1000)
        found = episode_mean(values, episodes, generator, resamples=300)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0 <= found.high
        narrow += abs(values.mean()) <= 1.96 * values.std() / math.sqrt(1000)
    assert 176 <= covered <= 198
    assert narrow < 120


def test_no_interval_of_one_episode_and_no_number_of_nothing() -> None:
    assert episode_mean(np.array([1.0, 3.0]), np.array([4, 4]), rng()) == Metric(2.0)
    nothing = episode_mean(np.full(3, np.nan), np.arange(3), rng())
    assert nothing.to_json() == {"value": None, "low": None, "high": None}
    assert pair_mean(np.empty(0), np.empty(0, int), np.empty(0, int), rng()).to_json()["value"] is None
    one = pair_mean(np.ones(3), np.zeros(3, int), np.zeros(3, int), rng(), transform=np.log)
    assert one == Metric(0.0)


@given(seeds)
def test_pairs_of_episodes_drawn_again(seed: int) -> None:
    generator = rng(seed)
    left, right = generator.integers(0, 4, (2, 60))
    values = generator.random(60)
    found = pair_mean(values, left, right, rng(3), transform=np.sqrt, resamples=30)
    assert found.value == pytest.approx(math.sqrt(values.mean()))
    labels = np.unique([left, right])
    means = []
    for m in draw_episodes((len(labels),), rng(3), 30):
        count = dict(zip(labels.tolist(), m.tolist(), strict=True))
        # Copies of an episode are not compared with each other.
        w = [count[i] if i == j else count[i] * count[j] for i, j in zip(left.tolist(), right.tolist(), strict=True)]
        if sum(w):
            means.append(math.sqrt(np.average(values, weights=w)))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


# Retrieval


@given(seeds, st.floats(1e-3, 1))
def test_chunks_are_averaged_as_written(seed: int, tau: float) -> None:
    generator = rng(seed)
    chunks = generator.normal(size=(3, 5, 4, 2)).astype(np.float32)
    cosine = generator.uniform(-1, 1, (3, 5)).astype(np.float32)
    for q, found in enumerate(average_chunks(chunks, cosine, tau)):
        best = cosine[q].astype(float).max()
        w = np.array([math.exp((float(c) - best) / tau) for c in cosine[q]])
        expected = sum(w[i] / w.sum() * chunks[q, i].astype(float) for i in range(5))
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_averaged_rotations_are_rotations() -> None:
    space = ACTION_SPACES["pose"]()
    generator = rng(1)
    columns = space.dimensions("rotation_6d")
    chunks = generator.normal(size=(2, 4, 3, space.dim)).astype(np.float32)
    frames = np.linalg.qr(generator.normal(size=(2, 4, 3, 3, 3)))[0][..., :2, :]
    chunks[..., columns] = frames.reshape(2, 4, 3, 6)
    found = average_chunks(chunks, np.zeros((2, 4), np.float32), 1.0, space)[..., columns].reshape(2, 3, 2, 3)
    np.testing.assert_allclose(found @ found.swapaxes(-1, -2), np.broadcast_to(np.eye(2), (2, 3, 2, 2)), atol=1e-5)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("band", [None, 0, 2])
def test_errors_of_chunks(cost: str, band: int | None) -> None:
    predicted, true = rng(0).normal(size=(2, 7, 5, 3)).astype(np.float32)
    warped, straight = chunk_errors(predicted, true, cost=cost, band=band)
    for q in range(7):
        assert warped[q] == pytest.approx(dtw(predicted[q], true[q], cost, band), rel=1e-5)
        steps = [math.dist(a, b) for a, b in zip(predicted[q].tolist(), true[q].tolist(), strict=True)]
        assert straight[q] == pytest.approx(sum(steps) / 5, rel=1e-5)
    assert not np.any(chunk_errors(true, true, cost=cost, band=band))


@given(seeds)
def test_ndcg_is_that_of_scikit_learn(seed: int) -> None:
    from sklearn.metrics import ndcg_score

    generator = rng(seed)
    relevance = generator.random((4, 30)) * (generator.random((4, 30)) < 0.5)
    relevance[:, 0] = 0.5  # never all zero, for which scikit-learn says 0
    score = generator.random((4, 30))
    found = np.take_along_axis(relevance, np.argsort(-score, axis=1)[:, :8], axis=1)
    ideal = -np.sort(-relevance, axis=1)[:, :8]
    value = ndcg(found, ideal)
    assert value.mean() == pytest.approx(ndcg_score(relevance, score, k=8))
    assert (value <= 1).all()


def test_ndcg_of_perfect_worst_and_undefined_rankings() -> None:
    gains = np.array([[3.0, 2.0], [0.0, 0.0], [0.0, 0.0]])
    ideal = np.array([[3.0, 2.0], [1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_array_equal(ndcg(gains, ideal), [1.0, 0.0, np.nan])


# Correlation


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """SciPy's, which is not defined (and warns) where one side takes fewer than two values."""
    return spearmanr(x, y).statistic if len(set(x)) > 1 and len(set(y)) > 1 else math.nan


@given(seeds, st.booleans())
@example(99999, True)  # one of the resamples holds a single value
def test_correlation_is_that_of_scipy(seed: int, ties: bool) -> None:
    generator = rng(seed)
    x = generator.normal(size=50)
    y = x + generator.normal(size=50)
    if ties:
        x, y = np.round(x), np.round(y)
    left, right = generator.integers(0, 3, 50), generator.integers(3, 8, 50)
    found = spearman(x, y, left, right, (3, 5), rng(1), resamples=20)
    assert found.value == pytest.approx(rank_correlation(x, y))
    drawn = draw_episodes((3, 5), rng(1), 20)
    assert (drawn[:, :3].sum(axis=1) == 3).all()
    resamples = [np.repeat(np.arange(50), m[left] * m[right]) for m in drawn]
    values = np.array([rank_correlation(x[again], y[again]) for again in resamples])
    known = values[np.isfinite(values)]
    if len(known):
        assert (found.low, found.high) == pytest.approx(tuple(np.quantile(known, [0.025, 0.975])))


def test_correlation_of_a_constant_is_not_defined() -> None:
    ones, left = np.ones(4), np.arange(4)
    assert math.isnan(spearman(ones, np.arange(4.0), left, left[::-1], (4,), rng(), resamples=5).value)
    assert math.isnan(spearman(ones[:1], ones[:1], left[:1], left[1:2], (4,), rng()).value)
    assert spearman(np.arange(4.0), np.arange(4.0) ** 3, left, left, (1, 3), rng()) == Metric(pytest.approx(1.0))


# Views and neighbours


@given(seeds, st.integers(0, 3))
def test_states_are_recognised_as_a_loop_says(seed: int, tolerance: int) -> None:
    generator = rng(seed)
    first = latents(generator, 20)
    second = unit(first + 0.4 * latents(generator, 20))
    episodes = np.sort(generator.integers(0, 3, 20))
    steps = np.arange(20) * 2
    found = view_matches(first, second, episodes, steps, tolerance)
    for i in range(20):
        cosines = [float(np.dot(first[i].astype(float), second[j].astype(float))) for j in range(20)]
        others = [c for j, c in enumerate(cosines) if episodes[j] != episodes[i]]
        nearest = int(np.argmax(cosines))
        assert found["cosine_same"][i] == pytest.approx(cosines[i])
        assert found["cosine_different"][i] == pytest.approx(np.mean(others) if others else np.nan, nan_ok=True)
        assert found["same_state"][i] == (nearest == i)
        near = episodes[nearest] == episodes[i] and abs(steps[nearest] - steps[i]) <= tolerance
        assert found["nearly_same_state"][i] == near


def test_views_of_an_encoder_that_sees_no_shift_and_of_one_that_sees_nothing_else() -> None:
    z, episodes = latents(rng()), np.repeat(np.arange(4), 10)
    steps = np.tile(np.arange(10), 4)
    perfect = view_matches(z, z, episodes, steps)
    assert perfect["same_state"].all()
    assert perfect["nearly_same_state"].all()
    np.testing.assert_allclose(perfect["cosine_same"], 1, atol=1e-6)
    turned = rotation(rng(1), 6)
    again = view_matches(z @ turned, z @ turned, episodes, steps)
    np.testing.assert_allclose(again["cosine_different"], perfect["cosine_different"], atol=1e-6)
    blind = view_matches(z, latents(rng(2)), episodes, steps)
    assert blind["same_state"].mean() < 0.2


def test_share_of_neighbours_from_other_episodes() -> None:
    episodes = np.array([0, 0, 1, 1, 2])
    rows = np.array([[0, 2, 4], [3, 2, 2]])
    np.testing.assert_allclose(other_episode_share(rows, episodes, np.array([0, 1])), [2 / 3, 0])


# Geometry


@given(seeds)
def test_alignment_and_uniformity_are_those_of_the_paper(seed: int) -> None:
    generator = rng(seed)
    z = latents(generator, 15)
    episodes = np.sort(generator.integers(0, 4, 15))
    left, right = generator.integers(0, 15, (2, 12))
    found = alignment(z, left, right, episodes, rng())
    wide = z.astype(float)
    assert found.value == pytest.approx(
        np.mean([math.dist(wide[i], wide[j]) ** 2 for i, j in zip(left, right, strict=True)])
    )
    expected = math.log(np.exp(-2 * pdist(wide) ** 2).mean())
    assert uniformity(z, episodes, rng()).value == pytest.approx(expected, abs=1e-9)
    turned = z @ rotation(generator, 6)
    assert alignment(turned, left, right, episodes, rng()).value == pytest.approx(found.value, abs=1e-5)
    assert uniformity(turned, episodes, rng()).value == pytest.approx(expected, abs=1e-5)


def test_uniformity_of_a_point_and_of_opposite_points() -> None:
    z = np.ones((4, 1), np.float32)
    assert uniformity(z, np.arange(4), rng()).value == 0
    assert uniformity(z[:2] * [[1], [-1]], np.arange(2), rng()).value == pytest.approx(-8)


def test_distances_in_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    z, (left, right) = latents(rng()), rng(1).integers(0, 40, (2, 99))
    before = metrics.squared_distances(z, left, right)
    monkeypatch.setattr(metrics, "_PAIRS", 60)
    np.testing.assert_array_equal(metrics.squared_distances(z, left, right), before)


def test_distances_of_two_sets_need_no_copy_of_both() -> None:
    z, other = latents(rng(), 30), latents(rng(1), 20)
    left, right = rng(2).integers(0, 30, 99), rng(3).integers(0, 20, 99)
    both = metrics.squared_distances(np.concatenate([z, other]), left, right + 30)
    np.testing.assert_array_equal(metrics.squared_distances(z, left, right, other), both)


def effective_rank(z: np.ndarray) -> float:
    return effective_rank_estimate(z, np.zeros(len(z), int)).value


@given(seeds, st.integers(1, 6))
def test_effective_rank_is_that_of_the_singular_values(seed: int, inner: int) -> None:
    generator = rng(seed)
    z = (generator.normal(size=(30, inner)) @ generator.normal(size=(inner, 6)) + 3).astype(np.float32)
    sigma = np.linalg.svd(z.astype(float) - z.astype(float).mean(axis=0), compute_uv=False)
    found = effective_rank(z)
    assert found == pytest.approx(math.exp(entropy(sigma)), rel=1e-4)
    assert 1 <= found <= inner * 1.001
    assert effective_rank(z @ rotation(generator, 6)) == pytest.approx(found, rel=1e-3)


def test_effective_rank_of_equal_directions_and_of_a_point() -> None:
    assert effective_rank(np.concatenate([np.eye(5), -np.eye(5)]).astype(np.float32)) == pytest.approx(5)
    assert effective_rank(np.full((9, 3), 0.3, np.float32)) == 1
    assert effective_rank_estimate(latents(rng()), np.zeros(40, int)).low is None


def test_the_jackknife_leaves_groups_of_episodes_out() -> None:
    z, episodes = latents(rng(4), 60), np.repeat(np.arange(12), 5)
    found = effective_rank_estimate(z, episodes, groups=4)
    assert found.value == pytest.approx(effective_rank(z))
    left_out = np.array([effective_rank(z[episodes % 4 != g]) for g in range(4)])
    deviation = math.sqrt(3 / 4 * ((left_out - left_out.mean()) ** 2).sum())
    assert found.low == pytest.approx(found.value - 3.1824463 * deviation, rel=1e-6)
    assert found.high == pytest.approx(min(found.value + 3.1824463 * deviation, 6))
