"""Per-dimension min-max normalisation to [-1, 1], and its inverse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.errors import DataError

CONSTANT_MARGIN = 0.1
"""Constant dimensions are widened by this on either side, so that they map to 0, not to NaN; from 2048 on by 1/1024 to
1/512 of their value, because float32 holds 7 digits."""

ROUNDING = 8  # largest span in units in the last place of a constant dimension, as after another order of the same sum

LEAST_MAGNITUDE = 1e-3  # of rounding: values nearer to 0 that span less than 1e-9 (metres, radians) never change


def constant_dimensions(values: NDArray[Any], magnitude: NDArray[Any] | float = 0.0) -> NDArray[np.bool_]:
    """(D,) which dimensions of finite (N, D) values never change, up to float32 rounding.

    ``magnitude`` (D,) is that of the numbers the values were computed from, where larger than theirs: 1 for entries of
    rotation matrices, whose zeros may be off by the rounding of ones.
    """
    low, high = values.min(axis=0).astype(np.float32), values.max(axis=0).astype(np.float32)
    size = np.maximum(np.maximum(np.abs(low), np.abs(high)), np.maximum(magnitude, LEAST_MAGNITUDE))
    return np.asarray(high.astype(np.float64) - low <= ROUNDING * np.spacing(size.astype(np.float32), dtype=np.float32))


@dataclass(frozen=True)
class MinMax:
    """Affine map of each dimension's data range [low, high], (D,) float32, low < high, to [-1, 1]."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @staticmethod
    def fit(values: NDArray[Any], magnitude: NDArray[Any] | float = 0.0) -> MinMax:
        """Fit on (N, D) values; ``magnitude`` is that of :func:`constant_dimensions`."""
        if values.ndim != 2 or len(values) == 0:
            raise DataError(f"expected values of shape (N, D) with N >= 1 to fit a normalisation, got {values.shape}.")
        if not np.isfinite(values).all():
            raise DataError("cannot fit a normalisation on NaN or infinite values.")
        low = values.min(axis=0).astype(np.float32)
        high = values.max(axis=0).astype(np.float32)
        span = high.astype(np.float64) - low
        if (span > np.finfo(np.float32).max / 2).any():
            d = int(np.argmax(span))
            raise DataError(
                f"cannot normalise dimension {d}: its values from {low[d]:.3g} to {high[d]:.3g} span more than float32 "
                f"holds. Give the data other units."
            )
        constant = constant_dimensions(values, magnitude)
        # A power of two, so that adding and subtracting it is exact.
        _, exponent = np.frexp(np.maximum(np.abs(low), np.abs(high)))
        margin = np.where(exponent > 11, np.ldexp(np.float32(1), exponent - 10), np.float32(CONSTANT_MARGIN))
        limit = np.finfo(np.float32).max
        with np.errstate(over="ignore"):
            low = np.where(constant, np.maximum(low - margin, -limit), low)
            high = np.where(constant, np.minimum(high + margin, limit), high)
        return MinMax(low, high)

    def apply(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """(..., D) data units -> (..., D) in [-1, 1] for data in the fitted range."""
        self._check(values)
        return np.asarray((values - self.low) / (self.high - self.low) * 2 - 1, dtype=np.float32)

    def invert(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """The inverse of :meth:`apply`."""
        self._check(values)
        return np.asarray((values + 1) / 2 * (self.high - self.low) + self.low, dtype=np.float32)

    def _check(self, values: NDArray[Any]) -> None:
        if values.shape[-1:] != self.low.shape:
            raise DataError(
                f"normalisation was fitted on {len(self.low)} dimensions, got values of shape {values.shape}."
            )
