"""Actions of the Panda's simulators."""

from __future__ import annotations

import numpy as np

from classact.data.rotations import matrix_to_rotation_6d
from classact.data.types import FloatArray, StateArray


def pose_action(position: StateArray, rotation: StateArray, gripper: float) -> FloatArray:
    """(10,) of where the grip site shall be: (3,) metres and (3, 3) in the world, gripper -1 open to 1 closed."""
    return np.concatenate([position, matrix_to_rotation_6d(rotation), [gripper]]).astype(np.float32)
