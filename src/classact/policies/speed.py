"""Acting faster or slower than was demonstrated: chunks of absolute actions played at another speed.

People who record demonstrations are careful; a robot that knows where to go need not be. Before it is demonstrated
step s (j + 1) that the j-th executed action of a chunk should be reached (j = 0, 1, ...; speed s), so its target is
demonstrated action s (j + 1) - 1, interpolated where that is between two.
"""

from __future__ import annotations

import math

import numpy as np

from classact.data.actions import ActionSpace
from classact.data.types import FloatArray
from classact.errors import ConfigError

_DIGITS = 9  # 1.1 * 10 steps are 11, whatever binary fractions say


def reach(length: int, speed: float) -> int:
    """Demonstrated actions that ``length`` executed ones take."""
    return math.ceil(round(speed * length, _DIGITS))


def check_reach(length: int, speed: float, horizon: int, where: str = "") -> None:
    """Refuse to execute more of a chunk than its ``horizon`` actions (T_p); ``where`` names the policy."""
    if (needed := reach(length, speed)) > horizon:
        raise ConfigError(
            f"{where}chunk_length {length} (T_a) at speed {speed:g} takes {needed} actions of a chunk, expected at "
            f"most its horizon of {horizon} (T_p). Lower one of the two, or make the horizon longer."
        )


def played(chunks: FloatArray, speed: float, length: int, space: ActionSpace | None = None) -> FloatArray:
    """Chunks (..., T, D) of absolute actions at ``speed`` -> (..., ``length``, D), T >= reach(length, speed).

    Rotations of the action space are interpolated as rotations. At speed 1 these are the first ``length`` actions.
    """
    if speed == 1:
        return chunks[..., :length, :]
    out = _interpolated(chunks, speed, length, space)
    if space is not None and (moving := space.dimensions("velocity")).any():
        out[..., moving] *= speed  # the same way in less time
    return out


def _interpolated(chunks: FloatArray, speed: float, length: int, space: ActionSpace | None) -> FloatArray:
    at = np.maximum(np.round(speed * np.arange(1, length + 1), _DIGITS) - 1, 0)
    before = np.floor(at).astype(np.int64)
    after, share = np.ceil(at).astype(np.int64), at - before
    if space is None or not space.has_rotations:
        weight = share[:, None].astype(chunks.dtype)
        mixed: FloatArray = (1 - weight) * chunks[..., before, :] + weight * chunks[..., after, :]
        return mixed
    # (..., n, 2, 1, D): one mean per step, because each step has its own weights.
    pairs = np.stack([chunks[..., before, :], chunks[..., after, :]], axis=-2)[..., None, :]
    weights = np.broadcast_to(np.stack([1 - share, share], axis=-1), pairs.shape[:-2])
    return space.average(pairs, weights)[..., 0, :]
