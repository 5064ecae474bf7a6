from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.testing import assert_allclose, assert_array_equal

from classact.data.normalize import CONSTANT_MARGIN, MinMax, constant_dimensions
from classact.errors import DataError
from classact.utils.codec import from_json, to_json

# Multiples of 1/8 up to 1024: ranges that robots have, and no range so narrow that float32 cannot resolve it.
matrices = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=10),
    elements=st.integers(-8192, 8192).map(lambda n: n / 8),
)


@given(matrices)
def test_round_trip(values: np.ndarray) -> None:
    scale = MinMax.fit(values)
    unit = scale.apply(values)
    assert unit.dtype == np.float32
    assert np.abs(unit).max() <= 1 + 1e-6
    assert_allclose(scale.invert(unit), values, rtol=0, atol=1e-3)


@given(matrices)
def test_the_range_of_each_dimension_becomes_minus_one_to_one(values: np.ndarray) -> None:
    unit = MinMax.fit(values).apply(values)
    constant = values.min(axis=0) == values.max(axis=0)
    assert_allclose(unit[:, ~constant].min(axis=0), -1, atol=1e-6)
    assert_allclose(unit[:, ~constant].max(axis=0), 1, atol=1e-6)


@given(st.integers(-8192, 8192).map(lambda n: n / 8), st.integers(1, 5))
def test_constant_dimensions_become_zero(value: float, count: int) -> None:
    values = np.full((count, 2), value, np.float32)
    values[:, 1] = 0
    scale = MinMax.fit(values)
    # The margin itself is rounded to float32 at this magnitude.
    assert_allclose(scale.apply(values), 0, atol=2e-3)
    assert_allclose(scale.invert(np.zeros((3, 2))), values[:1].repeat(3, axis=0), atol=1e-3)
    assert_allclose(scale.apply(values + np.float32(CONSTANT_MARGIN)), 1, atol=5e-3)


magnitudes = st.builds(
    lambda sign, exponent: sign * 10.0**exponent, st.sampled_from([-1.0, 1.0]), st.floats(-12, 37.9, exclude_max=True)
)


@given(magnitudes, st.lists(st.integers(-4, 4), min_size=1, max_size=6))
def test_constant_dimensions_of_any_magnitude_become_zero_even_with_rounding(value: float, steps: list[int]) -> None:
    values = (np.float32(value) + np.array(steps, np.float32) * np.spacing(np.float32(value)))[:, None]
    assert constant_dimensions(values).all()
    scale = MinMax.fit(values)
    assert_allclose(scale.apply(values), 0, atol=1e-2)
    assert_allclose(scale.invert(np.zeros_like(values)), values, rtol=2e-6, atol=1e-8)


@given(magnitudes, st.floats(16, 1e6))
def test_what_changes_by_more_than_rounding_keeps_its_range(value: float, ulps: float) -> None:
    size = max(abs(value), 1e-3)
    values = np.array([[value], [value + ulps * float(np.spacing(np.float32(size)))]], np.float32)
    assert_array_equal(np.abs(MinMax.fit(values).apply(values)), 1)


def test_small_values_around_zero_are_no_constant() -> None:
    values = np.array([[-5e-8], [0], [5e-8]], np.float32)
    assert_array_equal(MinMax.fit(values).apply(values)[:, 0], [-1, 0, 1])


def test_what_was_computed_from_larger_numbers_has_their_rounding() -> None:
    values = np.array([[-6e-8], [6e-8]], np.float32)
    assert not constant_dimensions(values).any()
    assert constant_dimensions(values, np.array([1.0])).all()
    assert np.abs(MinMax.fit(values, np.array([1.0])).apply(values)).max() < 1e-5


@given(matrices)
def test_json_is_exact(values: np.ndarray) -> None:
    scale = MinMax.fit(values / np.float32(3))
    again = from_json(MinMax, json.loads(json.dumps(to_json(scale))), "file")
    assert_array_equal(again.low, scale.low)
    assert_array_equal(again.high, scale.high)
    assert again.low.dtype == again.high.dtype == np.float32


def test_batches_of_any_shape() -> None:
    scale = MinMax.fit(np.array([[0, -1], [512, 1]], np.float32))
    values = np.random.default_rng(0).uniform(-1, 1, (4, 3, 2)).astype(np.float32)
    assert scale.invert(values).shape == (4, 3, 2)
    assert_array_equal(scale.invert(values)[2, 1], scale.invert(values[2, 1]))
    assert_array_equal(scale.apply(np.array([256.0, 0.0])), [0, 0])


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((0, 2)), np.zeros((2, 2, 2))])
def test_fit_refuses_shapes(values: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"expected values of shape \(N, D\) with N >= 1"):
        MinMax.fit(values)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_fit_refuses_what_is_not_finite(value: float) -> None:
    with pytest.raises(DataError, match="NaN or infinite"):
        MinMax.fit(np.array([[0.0, value]]))


def test_other_number_of_dimensions() -> None:
    scale = MinMax.fit(np.array([[0, 0], [1, 1]], np.float32))
    for function in (scale.apply, scale.invert):
        for shape in ((4, 3), (4, 1), ()):
            with pytest.raises(DataError, match="was fitted on 2 dimensions, got values of shape"):
                function(np.zeros(shape))


@pytest.mark.parametrize(
    "value", [None, {}, {"low": [0.0]}, [0, 1], {"low": [0.0], "high": None}, {"low": [0.0], "high": ["a"]}]
)
def test_missing_statistics_are_not_the_identity(value: Any) -> None:
    with pytest.raises(DataError, match=r"file(\.high)?: (expected|field '(low|high)' is missing)"):
        from_json(MinMax, value, "file")


def test_a_range_that_float32_cannot_hold() -> None:
    with pytest.raises(DataError, match=r"dimension 1: its values from -2e\+38 to 3e\+38 span more than float32 holds"):
        MinMax.fit(np.array([[0, -2e38], [1, 3e38]], np.float32))
