from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal

from classact.errors import CheckpointError, ConfigError
from classact.similarity import DistanceCounts, DistanceDistribution
from classact.similarity.distribution import quantile_rank, read_distribution, write_distribution

DISTANCES = np.arange(1, 11, dtype=np.float32)


def fit(*distances: float, quantile: float = 0.5) -> DistanceDistribution:
    return DistanceDistribution.fit(np.array(distances, np.float32), quantile)


def test_example() -> None:
    found = fit(*DISTANCES[::-1], quantile=0.4)
    assert found.threshold == 4
    assert_array_equal(found.values, [1, 2, 3, 4])
    assert_array_equal(found.weight, [0.75, 0.5, 0.25, 0])
    assert (found.kept, found.pairs, found.exact) == (4, 10, False)
    # 1 - CDF: the smallest of four kept distances has CDF 1/4; what is closer than any sample has CDF 0.
    assert_array_equal(found.weights(np.array([0, 1, 1.5, 2, 3.99, 4, 4.01, 9], np.float32)),
                       np.array([1, 0.75, 0.75, 0.5, 0.25, 0, 0, 0], np.float32))  # fmt: skip


def test_ties_share_a_weight() -> None:
    found = fit(0, 0, 0, 1, 1, 2, 9, 9, quantile=0.5)
    # The threshold is the fourth of eight; all pairs at that distance are kept.
    assert found.threshold == 1
    assert_array_equal(found.values, [0, 1])
    assert found.kept == 5
    assert_allclose(found.weights(np.array([0, 0.5, 1, 2], np.float32)), [0.4, 0.4, 0, 0], atol=1e-7)


def test_weights_of_a_matrix_keep_its_shape() -> None:
    found = fit(*DISTANCES).weights(DISTANCES[:6].reshape(2, 3))
    assert found.shape == (2, 3)
    assert found.dtype == np.float32


samples = arrays(np.float32, st.integers(20, 60), elements=st.floats(0, 1e6, width=32), unique=True)


@given(samples, st.floats(0.15, 0.95))
def test_weights_are_one_minus_the_cdf_of_the_kept(distances: Any, quantile: float) -> None:
    found = DistanceDistribution.fit(distances, quantile)
    kept = sorted(distances)[: int(np.floor(np.round(quantile * len(distances), 6)))]
    assert found.threshold == kept[-1]
    for d in (*distances, np.float32(0), np.float32(2e6)):
        expected = 1 - sum(k <= d for k in kept) / len(kept) if d <= kept[-1] else 0
        assert found.weights(np.array([d]))[0] == pytest.approx(expected, abs=1e-6)


@given(samples, st.floats(0.15, 0.95))
def test_weights_fall_within_one_and_zero(distances: Any, quantile: float) -> None:
    found = DistanceDistribution.fit(distances, quantile)
    w = found.weights(np.sort(distances))
    assert 0 <= w.min() <= w.max() <= 1
    assert (np.diff(w) <= 0).all()
    assert (w[np.sort(distances) > found.threshold] == 0).all()
    assert w[0] > 0


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e30])
def test_scale_changes_no_weight_and_the_histogram_counts_all(scale: float) -> None:
    distances = np.random.default_rng(0).exponential(size=500).astype(np.float32)
    plain = DistanceDistribution.fit(distances, 0.1)
    scaled = DistanceDistribution.fit(distances * np.float32(scale), 0.1)
    assert_array_equal(scaled.weights(distances * np.float32(scale)), plain.weights(distances))
    assert scaled.counts.sum() == 500
    assert (np.diff(scaled.edges) > 0).all()


def counting(distances: Any, limits: list[float]) -> Any:
    def count(limit: float) -> DistanceCounts:
        limits.append(limit)
        counts = DistanceCounts(limit)
        counts.add(distances[distances <= limit])
        return counts

    return count


def fitted(fit: Callable[[], DistanceDistribution]) -> tuple[DistanceDistribution | None, str]:
    try:
        return fit(), ""
    except ConfigError as error:
        return None, str(error)


@given(arrays(np.float32, st.integers(50, 200), elements=st.integers(0, 40).map(float)), st.floats(0.1, 0.9))
def test_exact_equals_sampling_every_pair_once(distances: Any, quantile: float) -> None:
    sample = np.random.default_rng(0).choice(distances, 30)
    expected, message = fitted(lambda: DistanceDistribution.fit(distances, quantile))
    found, found_message = fitted(
        lambda: DistanceDistribution.fit_exact(sample, quantile, len(distances), counting(distances, []))
    )
    assert found_message == message
    if expected is None or found is None:
        return
    assert (found.threshold, found.kept, found.pairs) == (expected.threshold, expected.kept, expected.pairs)
    assert (found.exact, found.epsilon) == (True, 0)
    assert_array_equal(found.weights(distances), expected.weights(distances))


def test_a_bracket_that_was_too_low_is_widened(caplog: pytest.LogCaptureFixture) -> None:
    distances = np.random.default_rng(0).uniform(1, 2, 100_000).astype(np.float32)
    limits: list[float] = []
    lucky = np.sort(distances)[:5000]  # not a fair sample: all of it below the threshold
    found = DistanceDistribution.fit_exact(lucky, 0.3, len(distances), counting(distances, limits))
    assert found.threshold == np.sort(distances)[29_999]
    assert len(limits) > 1
    assert limits == sorted(limits)
    assert "the sampled bracket of the threshold was too low" in caplog.text


def test_exact_counts_only_up_to_its_bracket() -> None:
    distances = np.random.default_rng(0).uniform(1, 2, 500_000).astype(np.float32)
    limits: list[float] = []
    DistanceDistribution.fit_exact(distances[:100_000], 0.02, len(distances), counting(distances, limits))
    assert len(limits) == 1
    assert 1.02 < limits[0] < 1.04


def test_json() -> None:
    found = fit(*DISTANCES, quantile=0.4)
    value = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (value["threshold"], value["kept"], value["pairs"], value["quantile"]) == (4, 4, 10, 0.4)
    assert sum(value["histogram"]["counts"]) == 10
    assert len(value["histogram"]["edges"]) == len(value["histogram"]["counts"]) + 1


@pytest.mark.parametrize("quantile", [-0.1, 0.0, 1.0, 1.5, float("nan")])
def test_quantile_out_of_range(quantile: float) -> None:
    with pytest.raises(ConfigError, match=rf"K between 0 and 1 .* got {quantile}"):
        fit(1, 2, 3, quantile=quantile)


def test_quantile_that_selects_nothing() -> None:
    with pytest.raises(ConfigError, match=r"K = 0.01 of 10 pairs selects no pair at all; expected K of at least 0\.1"):
        fit(*DISTANCES, quantile=0.01)


def test_equal_distances() -> None:
    with pytest.raises(ConfigError, match=r"keeps 10 of 10 pairs whose distances all equal 3"):
        fit(*[3.0] * 10)
    with pytest.raises(ConfigError, match=r"keeps all 10 pairs \(distances up to 4\)"):
        fit(1, 2, 3, *[4.0] * 7, quantile=0.5)
    with pytest.raises(ConfigError, match=r"keeps 1 of 10 pairs whose distances all equal 1"):
        fit(*DISTANCES, quantile=0.1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite(bad: float) -> None:
    with pytest.raises(ConfigError, match="NaN or infinite"):
        fit(1, 2, bad)


@pytest.mark.parametrize(
    ("quantile", "pairs", "rank"), [(0.29, 100, 29), (1 / 3, 39, 13), (0.015, 10**13, 15 * 10**10)]
)
def test_the_rank_is_that_of_the_number_as_written(quantile: float, pairs: int, rank: int) -> None:
    assert quantile_rank(quantile, pairs) == rank


# On disk


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    found = fit(*DISTANCES, quantile=0.4)
    identity = {"windows": "abc", "settings": {"horizon": 16, "band": None}}
    write_distribution(tmp_path / "d", found, identity)
    back = read_distribution(tmp_path / "d", identity)
    assert back.to_json() == found.to_json()
    assert_array_equal(back.weights(DISTANCES), found.weights(DISTANCES))


def test_other_settings_and_damage_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    with pytest.raises(CheckpointError, match="d does not exist; 'classact similarity' writes it"):
        read_distribution(folder, {})
    write_distribution(folder, fit(*DISTANCES, quantile=0.4), {"settings": {"horizon": 16}})
    with pytest.raises(ConfigError, match=r"d was made with settings\.horizon = 16, now it is 8\. Use the data"):
        read_distribution(folder, {"settings": {"horizon": 8}})
    file = folder / "distribution.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"distribution\.safetensors has [\d,]+ bytes, expected [\d,]+"):
        read_distribution(folder, {"settings": {"horizon": 16}})
