from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.transform import Rotation

from classact.data import rotations as ro
from classact.errors import ConfigError, DataError

DTYPES = [np.float32, np.float64]
ROUNDING = {np.float32: 1e-6, np.float64: 1e-14}


def random_matrices(seed: int, *shape: int) -> np.ndarray:
    count = int(np.prod(shape))
    return Rotation.random(count, random_state=np.random.default_rng(seed)).as_matrix().reshape(*shape, 3, 3)


@st.composite
def axis_angles(draw: st.DrawFn) -> np.ndarray:
    """(N, 3): angles over all magnitudes, most of all next to 0 and to pi; axes along coordinates, too."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(1, 6))
    axes = np.where(rng.random((n, 1)) < 0.3, np.eye(3)[rng.integers(0, 3, n)], rng.normal(size=(n, 3)))
    axes *= rng.choice([-1, 1], (n, 1)) / np.linalg.norm(axes, axis=1, keepdims=True)
    small = 10.0 ** rng.uniform(-18, 0, n)
    choices = np.stack([np.zeros(n), small, np.full(n, np.pi), np.pi - small, rng.uniform(0, np.pi, n)])
    return axes * choices[rng.integers(0, len(choices), n), np.arange(n)][:, None]


# Against SciPy


@pytest.mark.parametrize("dtype", DTYPES)
@given(v=axis_angles())
def test_agrees_with_scipy(dtype: Any, v: np.ndarray) -> None:
    v = v.astype(dtype)
    tolerance = ROUNDING[dtype]
    theirs = Rotation.from_rotvec(v)
    matrix = ro.axis_angle_to_matrix(v)
    assert matrix.dtype == dtype
    assert_allclose(matrix, theirs.as_matrix(), atol=tolerance)
    for order, scalar_first in (("xyzw", False), ("wxyz", True)):
        q = theirs.as_quat()[:, [3, 0, 1, 2] if scalar_first else [0, 1, 2, 3]].astype(dtype)
        for sign in (1, -1):
            found = ro.quaternion_to_matrix(q * sign, order)
            assert found.dtype == dtype
            assert_allclose(found, theirs.as_matrix(), atol=tolerance)
    angle = ro.geodesic_distance(np.eye(3, dtype=dtype), matrix)
    assert angle.dtype == dtype
    assert_allclose(angle, theirs.magnitude(), atol=4 * tolerance)


def test_geodesic_distance_of_pairs() -> None:
    a, b = random_matrices(0, 50), random_matrices(1, 50)
    expected = (Rotation.from_matrix(a).inv() * Rotation.from_matrix(b)).magnitude()
    assert_allclose(ro.geodesic_distance(a, b), expected, atol=1e-14)
    assert_allclose(ro.geodesic_distance(b, a), expected, atol=1e-14)
    assert_array_equal(ro.geodesic_distance(a[:, None], b[None]).shape, (50, 50))
    assert_allclose(ro.geodesic_distance(a, a), 0, atol=1e-15)


@pytest.mark.parametrize("angle", [1e-12, 1e-9, 1e-4, np.pi - 1e-4, np.pi - 1e-9])
def test_geodesic_distance_keeps_its_digits_at_both_ends(angle: float) -> None:
    m = ro.axis_angle_to_matrix(np.array([0.6, 0.0, 0.8]) * angle)
    assert abs(ro.geodesic_distance(np.eye(3), m) - angle) < 1e-15 * max(angle, 0.5)


# Round trips


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("convention", ro.CONVENTIONS)
@given(v=axis_angles())
def test_round_trip_over_6d(convention: str, dtype: Any, v: np.ndarray) -> None:
    matrix = ro.axis_angle_to_matrix(v).astype(dtype)
    six = ro.matrix_to_rotation_6d(matrix, convention)
    assert six.dtype == dtype
    assert_allclose(ro.rotation_6d_to_matrix(six, convention), matrix, atol=ROUNDING[dtype])
    assert_allclose(ro.orthogonalize_6d(six), six, atol=ROUNDING[dtype])


@given(v=axis_angles())
def test_axis_angle_comes_back(v: np.ndarray) -> None:
    back = ro.matrix_to_axis_angle(ro.axis_angle_to_matrix(v))
    at_pi = np.linalg.norm(v, axis=1) > np.pi - 1e-7  # there the axis and its negative are one rotation
    assert_allclose(back[~at_pi], v[~at_pi], atol=1e-14)
    assert_allclose(np.abs(back[at_pi]), np.abs(v[at_pi]), atol=1e-6)


# The 6-D representation


def test_rows_and_columns() -> None:
    m = random_matrices(3, 4)
    assert_array_equal(ro.matrix_to_rotation_6d(m), m[:, :2, :].reshape(4, 6))
    assert_array_equal(ro.matrix_to_rotation_6d(m, "rows"), ro.matrix_to_rotation_6d(m))
    assert_array_equal(ro.matrix_to_rotation_6d(m, "columns"), m[:, :, :2].transpose(0, 2, 1).reshape(4, 6))
    six = ro.matrix_to_rotation_6d(m)
    inverse = ro.rotation_6d_to_matrix(six, "columns")
    assert_allclose(inverse, np.swapaxes(m, -1, -2), atol=1e-15)  # which is why the convention must be declared


def test_gram_schmidt_as_zhou_et_al_write_it() -> None:
    a = np.random.default_rng(0).normal(size=(40, 6))
    for values, matrix in zip(a, ro.rotation_6d_to_matrix(a, "columns"), strict=True):
        a1, a2 = values[:3], values[3:]
        b1 = a1 / np.linalg.norm(a1)
        b2 = (a2 - (b1 @ a2) * b1) / np.linalg.norm(a2 - (b1 @ a2) * b1)
        assert_allclose(matrix, np.stack([b1, b2, np.cross(b1, b2)], axis=1), atol=1e-13)


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3), tilt=st.floats(1e-4, 1))
def test_gram_schmidt_of_anything_is_a_rotation(seed: int, scale: float, tilt: float) -> None:
    rng = np.random.default_rng(seed)
    a1, a2 = rng.normal(size=(2, 3)) + 0.1
    a1 /= np.linalg.norm(a1)
    across = np.cross(a1, a2)
    across /= np.linalg.norm(across)
    values = np.concatenate([a1 * scale, (a1 + tilt * across) / scale])  # of any lengths, nearly parallel
    m = ro.rotation_6d_to_matrix(values)
    assert_allclose(m @ m.T, np.eye(3), atol=1e-14)
    assert np.linalg.det(m) > 0.999
    assert_allclose(m[1], across, atol=1e-10)


def test_leading_dimensions() -> None:
    m = random_matrices(5, 2, 3, 4)
    vectors = ro.matrix_to_axis_angle(m)
    assert vectors.shape == (2, 3, 4, 3)
    assert_array_equal(vectors[1, 2, 3], ro.matrix_to_axis_angle(m[1, 2, 3]))
    assert ro.axis_angle_to_matrix(vectors).shape == m.shape
    assert ro.quaternion_to_matrix(np.ones((2, 3, 4, 4))).shape == m.shape
    empty = ro.axis_angle_to_matrix(np.zeros((2, 0, 3)))
    assert empty.shape == (2, 0, 3, 3)
    assert ro.matrix_to_axis_angle(empty).shape == (2, 0, 3)
    assert ro.matrix_to_rotation_6d(m).shape == (2, 3, 4, 6)
    assert ro.rotation_6d_to_matrix(np.zeros((0, 6), np.float32)).shape == (0, 3, 3)
    assert ro.geodesic_distance(m, m[0]).shape == (2, 3, 4)


def test_arguments_are_left_alone_and_may_be_read_only() -> None:
    m = random_matrices(6, 5).astype(np.float32)
    m.setflags(write=False)
    vectors = ro.matrix_to_axis_angle(m).copy()
    vectors.setflags(write=False)
    ro.axis_angle_to_matrix(vectors)
    ro.nearest_rotation(m)


# Nearest rotation


def test_nearest_rotation_is_the_chordal_mean() -> None:
    m = random_matrices(7, 20)
    w = np.random.default_rng(0).dirichlet(np.ones(20))
    nearest, unknown = ro.nearest_rotation(np.einsum("n,nij->ij", w, m))
    assert not unknown
    assert_allclose(nearest, Rotation.from_matrix(m).mean(w).as_matrix(), atol=1e-12)


def test_nearest_rotation_of_reflections_and_of_nothing() -> None:
    found, unknown = ro.nearest_rotation(np.stack([np.diag([3.0, 2.0, -1.0]), np.zeros((3, 3)), -np.eye(3)]))
    assert_allclose(np.linalg.det(found), 1)
    assert_allclose(found[0], np.eye(3), atol=1e-15)
    assert_array_equal(unknown, [False, True, True])  # every half turn is as near to -I


# Bad input

SIX = np.array([1.0, 0, 0, 0, 1, 0])


@pytest.mark.parametrize(
    ("function", "values", "message"),
    [
        (ro.rotation_6d_to_matrix, np.zeros((2, 6)), r"6-D rotation at index \[0\] is degenerate.*lengths 0 and 0"),
        (ro.rotation_6d_to_matrix, np.stack([SIX, [1, 2, 3, -2, -4, -6]]), r"at index \[1\].*\[1, 2, 3\] and \[-2, -4"),
        (ro.rotation_6d_to_matrix, SIX * [1, 1, 1, 0, 0, 0], r"6-D rotation is degenerate.*lengths 1 and 0"),
        (ro.rotation_6d_to_matrix, SIX[:5], r"6-D rotations of shape \(..., 6\), got \(5,\)"),
        (ro.rotation_6d_to_matrix, SIX.astype(int), r"float32 or float64, got int64"),
        (ro.rotation_6d_to_matrix, SIX * np.nan, r"the value at index \[0\] is nan, expected finite"),
        (ro.rotation_6d_to_matrix, [1.0, 0, 0, 0, 1, 0], r"float32 or float64, got list"),
        (ro.quaternion_to_matrix, np.eye(4)[[0, 1]] * [[1], [0]], r"quaternion at index \[1\] is .* of length 0"),
        (ro.quaternion_to_matrix, np.zeros((3,)), r"quaternions of shape \(..., 4\), got \(3,\)"),
        (ro.axis_angle_to_matrix, np.array([0, np.inf, 0]), r"axis-angle vectors: the value at index \[1\] is inf"),
        (ro.axis_angle_to_matrix, np.array(1.0), r"axis-angle vectors of shape \(..., 3\), got \(\)"),
        (ro.matrix_to_axis_angle, np.eye(3) * 2, r"matrix is no rotation: R R\^T is 3 off.*at most 0.005.*is 8, expe"),
        (ro.matrix_to_axis_angle, np.diag([1.0, 1, -1]), r"determinant is -1, expected 1"),
        (ro.matrix_to_rotation_6d, np.zeros((2, 3, 3)), r"matrix at index \[0\] is no rotation"),
        (ro.matrix_to_rotation_6d, np.eye(4), r"rotation matrices of shape \(..., 3, 3\), got \(4, 4\)"),
    ],
)
def test_refuses(function: Callable[[Any], Any], values: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        function(values)


def test_unknown_conventions() -> None:
    for call in (lambda: ro.rotation_6d_to_matrix(SIX, "cols"), lambda: ro.matrix_to_rotation_6d(np.eye(3), "cols")):
        with pytest.raises(ConfigError, match=re.escape("unknown 6-D rotation convention 'cols': available are 'col")):
            call()
    with pytest.raises(ConfigError, match="unknown quaternion order 'wxzy': available are 'wxyz', 'xyzw'"):
        ro.quaternion_to_matrix(np.eye(4), "wxzy")


def test_half_precision_storage_passes_for_a_rotation() -> None:
    m = random_matrices(9, 500)
    stored = m.astype(np.float16).astype(np.float32)
    assert (ro.geodesic_distance(stored, m.astype(np.float32)) < 2e-3).all()
