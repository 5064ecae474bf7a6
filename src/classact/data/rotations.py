"""Rotations in the representations that robot data use, batched over leading dimensions.

The hub is the rotation matrix R (..., 3, 3), which maps coordinates in the rotated (tool) frame to the world frame.
Everything is computed in float64 and returned in the input's dtype, float32 or float64. Non-finite values, other
shapes, matrices that are no rotation, and zero vectors where a direction is needed are DataErrors.

**The 6-D representation** (Zhou et al. 2019, "On the Continuity of Rotation Representations in Neural Networks"; paper
section D) is two orthonormal vectors of the matrix, from which Gram-Schmidt restores the third. Zhou et al. take the
first two *columns*; PyTorch3D, Diffusion Policy, UMI and the released code of CLASS take the first two *rows*, the
default, for it is what recorded 10-D pose actions hold. The numbers do not tell the two apart (each is the other's
inverse rotation), so the convention must be declared.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from classact.errors import ConfigError, DataError, UnknownNameError, choose

F = TypeVar("F", np.float32, np.float64)

CONVENTIONS = ("rows", "columns")  # which two vectors of the matrix the 6-D representation holds, one after the other
ORDERS = ("xyzw", "wxyz")  # the quaternion's scalar is last (SciPy, robosuite, ROS) or first (MuJoCo, PyTorch3D)
DEGENERATE = 1e-5  # vectors shorter than this, or closer to parallel (sine), span no plane up to rounding
NOT_A_ROTATION = 5e-3  # distance of R R^T from the identity, well above float16 storage and long products in float32


def rotation_6d_to_matrix(values: NDArray[F], convention: str = "rows") -> NDArray[F]:
    """(..., 6) -> (..., 3, 3) by Gram-Schmidt: b1 = a1 / |a1|, b2 is the rest of a2 normalised, b3 = b1 x b2.

    ``values`` are a1 and a2, which need not be orthonormal (averages, a network's output); "rows" or "columns" is what
    b1, b2, b3 become.
    """
    check_convention(convention)
    v = _checked(values, (6,), "6-D rotations")
    bad = degenerate_6d(v)
    if bad.any():
        at = first_true(bad)
        a1, a2 = v[at][:3], v[at][3:]
        raise DataError(
            f"6-D rotation{_at(at)} is degenerate: its vectors {_show(a1)} and {_show(a2)} have lengths "
            f"{np.linalg.norm(a1):.3g} and {np.linalg.norm(a2):.3g}, expected two vectors longer than {DEGENERATE:g} "
            f"that are not parallel. Check that these six columns hold a rotation."
        )
    rows = _gram_schmidt(v)
    return (rows if convention == "rows" else np.swapaxes(rows, -1, -2)).astype(values.dtype)


def matrix_to_rotation_6d(matrix: NDArray[F], convention: str = "rows") -> NDArray[F]:
    """(..., 3, 3) -> (..., 6): the first two rows, or columns, concatenated."""
    check_convention(convention)
    m = _rotation_matrices(matrix)
    if convention == "columns":
        m = np.swapaxes(m, -1, -2)
    return m[..., :2, :].reshape(*m.shape[:-2], 6).astype(matrix.dtype)


def orthogonalize_6d(values: NDArray[F]) -> NDArray[F]:
    """(..., 6) -> (..., 6) with two orthonormal vectors, by Gram-Schmidt; the same in either convention."""
    return rotation_6d_to_matrix(values)[..., :2, :].reshape(values.shape)


def degenerate_6d(values: NDArray[Any]) -> NDArray[np.bool_]:
    """(..., 6) -> (...): whether the two vectors are too short or too nearly parallel to define a rotation."""
    a1, a2 = values[..., :3], values[..., 3:]
    n1, n2 = np.linalg.norm(a1, axis=-1), np.linalg.norm(a2, axis=-1)
    sine = np.linalg.norm(np.cross(a1, a2), axis=-1) / np.maximum(n1 * n2, np.finfo(np.float64).tiny)
    return np.asarray((n1 < DEGENERATE) | (n2 < DEGENERATE) | (sine < DEGENERATE))


def quaternion_to_matrix(quaternion: NDArray[F], order: str = "xyzw") -> NDArray[F]:
    """(..., 4) -> (..., 3, 3); q and -q are one rotation, and any non-zero length is normalised."""
    if order not in ORDERS:
        raise UnknownNameError(choose("quaternion order", order, ORDERS))
    q = _checked(quaternion, (4,), "quaternions")
    short = np.linalg.norm(q, axis=-1) < DEGENERATE
    if short.any():
        at = first_true(short)
        raise DataError(
            f"quaternion{_at(at)} is {_show(q[at])} of length {np.linalg.norm(q[at]):.3g}, expected length 1 (at "
            f"least {DEGENERATE:g}). Check that these four columns hold a quaternion."
        )
    q = q if order == "xyzw" else np.roll(q, -1, axis=-1)
    return _flat(q, lambda flat: _scipy().from_quat(flat).as_matrix(), 1, (3, 3)).astype(quaternion.dtype)


def axis_angle_to_matrix(axis_angle: NDArray[F]) -> NDArray[F]:
    """(..., 3) -> (..., 3, 3); the vector's length is the angle in radians, zero is no rotation."""
    v = _checked(axis_angle, (3,), "axis-angle vectors")
    return _flat(v, lambda flat: _scipy().from_rotvec(flat).as_matrix(), 1, (3, 3)).astype(axis_angle.dtype)


def euler_to_matrix(angles: NDArray[F], axes: str = "xyz") -> NDArray[F]:
    """(..., 3) radians -> (..., 3, 3), about fixed ``axes`` in this order, or moving ones in capitals, as SciPy has
    it.
    """
    if not re.fullmatch("[xyz]{3}|[XYZ]{3}", axes) or axes[0] == axes[1] or axes[1] == axes[2]:
        raise ConfigError(f"expected three axes of Euler angles, such as 'xyz' or 'ZYX', got {axes!r}.")
    v = _checked(angles, (3,), "Euler angles")
    return _flat(v, lambda flat: _scipy().from_euler(axes, flat).as_matrix(), 1, (3, 3)).astype(angles.dtype)


def matrix_to_axis_angle(matrix: NDArray[F]) -> NDArray[F]:
    """(..., 3, 3) -> (..., 3), of length 0..pi; at pi the axis and its negative are both right."""
    m = _rotation_matrices(matrix)
    return _flat(m, lambda flat: _scipy().from_matrix(flat).as_rotvec(), 2, (3,)).astype(matrix.dtype)


def geodesic_distance(one: NDArray[F], other: NDArray[F]) -> NDArray[F]:
    """Angle (radians, 0..pi) of the rotation between (..., 3, 3) matrices, which broadcast: shape (...)."""
    between = np.swapaxes(_rotation_matrices(one), -1, -2) @ _rotation_matrices(other)
    angle = _flat(between, lambda flat: _scipy().from_matrix(flat).magnitude(), 2, ())
    return angle.astype(np.result_type(one, other))


def nearest_rotation(matrix: NDArray[F]) -> tuple[NDArray[F], NDArray[np.bool_]]:
    """The rotation nearest to each (..., 3, 3) matrix in Frobenius norm, by SVD: U diag(1, 1, det(U V^T)) V^T.

    Of a weighted mean of rotation matrices this is their chordal mean, which minimises the weighted sum of squared
    Frobenius distances. Also returns (...) whether the rotation is *not* determined (the mean of opposite rotations, a
    zero matrix).
    """
    m = _checked(matrix, (3, 3), "matrices")
    u, s, vt = np.linalg.svd(m)
    sign = np.where(np.linalg.det(u @ vt) < 0, -1.0, 1.0)
    u[..., :, 2] *= sign[..., None]
    return (u @ vt).astype(matrix.dtype), np.asarray(s[..., 1] + sign * s[..., 2] < DEGENERATE)


def check_convention(convention: str) -> None:
    """Refuse unknown 6-D conventions."""
    if convention not in CONVENTIONS:
        raise UnknownNameError(choose("6-D rotation convention", convention, CONVENTIONS))


def first_true(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    """Index of a mask's first true element; () for a mask without dimensions."""
    return tuple(int(i) for i in np.argwhere(mask)[0])


def _at(index: tuple[int, ...]) -> str:
    return f" at index {list(index)}" if index else ""


def _show(vector: NDArray[Any]) -> str:
    return "[" + ", ".join(f"{v:.3g}" for v in vector) + "]"


def _checked(values: Any, tail: tuple[int, ...], what: str) -> NDArray[np.float64]:
    """The values as float64, checked for type, shape and finiteness."""
    if not isinstance(values, np.ndarray) or values.dtype not in (np.float32, np.float64):
        found = getattr(values, "dtype", type(values).__name__)
        raise DataError(f"expected {what} as an array of float32 or float64, got {found}. Convert it first.")
    if values.shape[max(values.ndim - len(tail), 0) :] != tail:
        expected = ", ".join(str(n) for n in tail)
        raise DataError(f"expected {what} of shape (..., {expected}), got {values.shape}.")
    finite = np.isfinite(values)
    if not finite.all():
        at = first_true(~finite)
        raise DataError(f"{what}: the value{_at(at)} is {values[at]}, expected finite numbers.")
    return values.astype(np.float64)


def _rotation_matrices(matrix: Any) -> NDArray[np.float64]:
    m = _checked(matrix, (3, 3), "rotation matrices")
    off = np.abs(m @ np.swapaxes(m, -1, -2) - np.eye(3)).max(axis=(-2, -1))
    bad = (off > NOT_A_ROTATION) | (np.linalg.det(m) < 0)
    if bad.any():
        at = first_true(bad)
        raise DataError(
            f"matrix{_at(at)} is no rotation: R R^T is {off[at]:.3g} off the identity (at most {NOT_A_ROTATION:g} is "
            f"taken for rounding) and its determinant is {np.linalg.det(m[at]):.3g}, expected 1. Project it with "
            f"nearest_rotation if it is meant to be one."
        )
    return m


def _gram_schmidt(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 6) -> (..., 3, 3) with rows b1, b2, b3."""
    a1, a2 = values[..., :3], values[..., 3:]
    b1 = a1 / np.linalg.norm(a1, axis=-1, keepdims=True)
    # Normalising a2 first keeps the remainder of a long or short a2 as accurate as that of a unit vector.
    a2 = a2 / np.linalg.norm(a2, axis=-1, keepdims=True)
    b2 = a2 - (b1 * a2).sum(axis=-1, keepdims=True) * b1
    b2 = b2 / np.linalg.norm(b2, axis=-1, keepdims=True)
    # Once more: where a1 and a2 are nearly parallel, rounding leaves a part of b1 in the short remainder.
    b2 = b2 - (b1 * b2).sum(axis=-1, keepdims=True) * b1
    b2 = b2 / np.linalg.norm(b2, axis=-1, keepdims=True)
    return np.stack([b1, b2, np.cross(b1, b2)], axis=-2)


def _flat(
    values: NDArray[np.float64],
    function: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    own: int,
    tail: tuple[int, ...],
) -> NDArray[np.float64]:
    """Apply a function of (N, ...) arrays over all leading dimensions (SciPy before 1.17 knows only one)."""
    lead = values.shape[: values.ndim - own]
    if 0 in lead:
        return np.zeros((*lead, *tail))
    return np.asarray(function(values.reshape(-1, *values.shape[values.ndim - own :])).reshape((*lead, *tail)))


def _scipy() -> Any:
    from scipy.spatial.transform import Rotation  # here, because importing it takes longer than most commands

    return Rotation
