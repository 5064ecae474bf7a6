"""What the D dimensions of an action mean, and what may therefore be done with them.

Positions may be subtracted, rotations must be composed, grippers are absolute commands. :class:`ActionSpace` declares
which is which. Actions are absolute throughout, as in the paper (section D: position-based control; end-effector
orientation as 6-D rotation).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from classact.data.rotations import (
    NOT_A_ROTATION,
    check_convention,
    degenerate_6d,
    first_true,
    nearest_rotation,
    orthogonalize_6d,
    rotation_6d_to_matrix,
)
from classact.errors import ConfigError, DataError, UnknownNameError, choose

F = TypeVar("F", np.float32, np.float64)

KINDS: dict[str, int | None] = {
    "position": 3,
    "rotation_6d": 6,
    "gripper": None,
    "joint": None,
    "velocity": None,
    "effort": None,
    "wrapped_angle": None,
    "point_2d": 2,
}
"""Kind of a part -> its number of dimensions; None for any."""

_AXES = {"position": "xyz", "point_2d": "xy"}

ROTATION_MEANS = ("gram_schmidt", "chordal")


@dataclass(frozen=True)
class Part:
    """Consecutive dimensions of one meaning.

    Attributes:
        name: unique in its action space.
        kind: a key of :data:`KINDS`. "position": in metres, or the unit of the robot's commands; "joint": joint
            positions (radians or metres), never wrapped; "velocity": of a base, per second; "effort": torques or
            forces; "wrapped_angle": radians modulo 2 pi; "gripper": absolute command or opening; "point_2d": a target
            in the plane.
        size: number of dimensions; 0 for the kind's own.
        arm: which arm it belongs to, None for a single arm. A position and a rotation of one arm are a pose.
    """

    name: str
    kind: str
    size: int = 0
    arm: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownNameError(f"action part {self.name!r}: " + choose("kind", self.kind, KINDS))
        expected = KINDS[self.kind]
        if self.size == 0 and expected is not None:
            object.__setattr__(self, "size", expected)
        if self.size < 1 or (expected is not None and self.size != expected):
            raise ConfigError(
                f"action part {self.name!r}: expected {expected or 'at least 1'} dimensions of a {self.kind}, got "
                f"{self.size}."
            )


@dataclass(frozen=True)
class ActionSpace:
    """Declaration of an action's D dimensions.

    Attributes:
        parts: in order.
        convention: which vectors of the matrix 6-D rotations hold: "rows" or "columns"
            (:mod:`classact.data.rotations` says who uses which).
        rotation_mean: how rotations are averaged: "gram_schmidt" orthogonalises the mean of the 6-D vectors (section
            4.4 and the released code, hence the default); "chordal" takes the rotation nearest to the mean of the
            matrices. The former depends on the choice of axes and differs from the intrinsic (Karcher) mean by the
            square of the rotations' spread: negligible within a few degrees, several times chordal's error for wide
            spreads (tests/test_actions.py measures both).
    """

    parts: tuple[Part, ...]
    convention: str = "rows"
    rotation_mean: str = "gram_schmidt"

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        check_convention(self.convention)
        if self.rotation_mean not in ROTATION_MEANS:
            raise UnknownNameError(choose("mean of rotations", self.rotation_mean, ROTATION_MEANS))
        if not self.parts:
            raise ConfigError("expected at least 1 part of an action, got 0.")
        for name, count in Counter(part.name for part in self.parts).items():
            if count > 1:
                raise ConfigError(f"action part {name!r}: the name occurs {count} times, expected once.")
        for (arm, kind), count in Counter((part.arm, part.kind) for part in self.parts).items():
            if count > 1 and kind in ("position", "rotation_6d"):
                which = "the only arm" if arm is None else f"arm {arm!r}"
                raise ConfigError(
                    f"{which} has {count} parts of kind {kind}, expected at most 1: a pose is one position and one "
                    f"rotation. Name the arms."
                )

    # The field's layouts

    @staticmethod
    def pose(
        *arms: str, gripper: int = 1, convention: str = "rows", rotation_mean: str = "gram_schmidt"
    ) -> ActionSpace:
        """End-effector poses: per arm [position 3, 6-D rotation 6, gripper 1] (appendix B: 10-D; two arms: 20-D).

        ``arms`` are names, none for a single arm; ``gripper`` is the dimensions of each gripper, 0 for none.
        """
        parts = _parts(arms, [("position", "position", 3), ("rotation", "rotation_6d", 6)], gripper)
        return ActionSpace(parts, convention, rotation_mean)

    @staticmethod
    def joints(count: int, *arms: str, gripper: int = 1) -> ActionSpace:
        """Joint positions: per arm [joints, gripper]; (7) is a Franka's 8-D, (6, "left", "right") ALOHA's 14-D.

        ``count`` is the joints of each arm; the rest is as for :meth:`pose`.
        """
        return ActionSpace(_parts(arms, [("joints", "joint", count)], gripper))

    @staticmethod
    def points(count: int = 1) -> ActionSpace:
        """Targets in the plane (Push-T: one, in pixels of its world)."""
        return ActionSpace(tuple(Part("point" if count == 1 else f"point_{i}", "point_2d") for i in range(count)))

    @staticmethod
    def named(name: str) -> ActionSpace:
        """A member of :data:`ACTION_SPACES`."""
        if name not in ACTION_SPACES:
            raise UnknownNameError(choose("action space", name, ACTION_SPACES))
        return ACTION_SPACES[name]()

    @staticmethod
    def guess(dim: int) -> tuple[ActionSpace, str]:
        """The action space that D alone suggests, and what that assumes, in words.

        Only 2, 10 and 20 mean one thing in the field. Others mean several (7: six joints and a gripper, or a pose with
        axis-angle) and must be declared: a ConfigError.
        """
        for name in _UNAMBIGUOUS:
            space = ActionSpace.named(name)
            if space.dim == dim:
                assumed = f"assumed from D = {dim}: action space {name!r}, {space.describe()}"
                if space.has_rotations:
                    assumed += "; 6-D rotations hold the first two rows of the matrix (as Diffusion Policy has it)"
                return space, assumed + "; actions are absolute."
        candidates = sorted(name for name in ACTION_SPACES if ActionSpace.named(name).dim == dim)
        known = f" ({' or '.join(candidates)} or another)" if candidates else ""
        raise ConfigError(
            f"{dim} action dimensions can mean several things{known}; only "
            f"{', '.join(str(ActionSpace.named(name).dim) for name in _UNAMBIGUOUS)} are told apart by their number. "
            f"Declare the action space, e.g. ActionSpace.joints(7) or ActionSpace.pose('left', 'right')."
        )

    # What it says

    @property
    def dim(self) -> int:
        """D, the number of dimensions of an action."""
        return sum(part.size for part in self.parts)

    @property
    def has_rotations(self) -> bool:
        """Whether some dimensions are rotations or angles, for which plain means and differences are wrong."""
        return any(part.kind in ("rotation_6d", "wrapped_angle") for part in self.parts)

    def layout(self) -> list[tuple[Part, slice]]:
        """The parts, each with its dimensions."""
        ends = np.cumsum([part.size for part in self.parts])
        return [(part, slice(int(end) - part.size, int(end))) for part, end in zip(self.parts, ends, strict=True)]

    def dimensions(self, kind: str) -> NDArray[np.bool_]:
        """(D,) which dimensions are of a kind of :data:`KINDS`."""
        if kind not in KINDS:
            raise UnknownNameError(choose("kind", kind, KINDS))
        return np.concatenate([np.full(part.size, part.kind == kind) for part in self.parts])

    def names(self) -> list[str]:
        """Of each of the D dimensions: ``left_position x``, ``joints[3]``, ``gripper``."""
        found = []
        for part in self.parts:
            axes = [f" {axis}" for axis in _AXES.get(part.kind, "")] or [f"[{i}]" for i in range(part.size)]
            found += [part.name + axis for axis in (axes if part.size > 1 else [""])]
        return found

    def describe(self) -> str:
        """One line: ``0:3 position, 3:9 rotation (rotation_6d, rows), 9:10 gripper``."""
        lines = []
        for part, where in self.layout():
            kind = f"{part.kind}, {self.convention}" if part.kind == "rotation_6d" else part.kind
            lines.append(f"{where.start}:{where.stop} {part.name}" + ("" if kind == part.name else f" ({kind})"))
        return ", ".join(lines)

    def magnitude(self) -> NDArray[np.float64]:
        """(D,) 1 for entries of rotation matrices, else 0: the ``magnitude`` of :meth:`MinMax.fit`."""
        return self.dimensions("rotation_6d").astype(np.float64)

    # Checks

    def check(self, actions: Any, where: str = "actions") -> None:
        """Refuse anything but (..., D) finite float32 or float64."""
        if not isinstance(actions, np.ndarray) or actions.dtype not in (np.float32, np.float64):
            found = getattr(actions, "dtype", type(actions).__name__)
            raise DataError(f"{where}: expected an array of float32 or float64, got {found}. Convert it first.")
        if actions.ndim == 0 or actions.shape[-1] != self.dim:
            raise DataError(
                f"{where}: expected actions of shape (..., {self.dim}), got {actions.shape}. The action space is "
                f"{self.describe()}."
            )
        finite = np.isfinite(actions)
        if not finite.all():
            at = first_true(~finite)
            raise DataError(f"{where}: the value at index {list(at)} is {actions[at]}, expected finite numbers.")

    def check_rotations(self, actions: Any, where: str = "actions") -> None:
        """:meth:`check`, and that the rotations of recorded actions (..., D) are orthonormal, which reveals a wrong
        declaration.
        """
        self.check(actions, where)
        for part, columns in self._rotations():
            pairs = actions[..., columns].astype(np.float64).reshape(*actions.shape[:-1], 2, 3)
            off = np.abs(pairs @ np.swapaxes(pairs, -1, -2) - np.eye(2)).max(axis=(-2, -1))
            if (off > NOT_A_ROTATION).any():
                at = first_true(off > NOT_A_ROTATION)
                a1, a2 = pairs[at]
                raise DataError(
                    f"{where}: {part.name} (dimensions {columns.start}:{columns.stop}) at index {list(at)} is no 6-D "
                    f"rotation: its vectors have lengths {np.linalg.norm(a1):.3g} and {np.linalg.norm(a2):.3g} and "
                    f"inner product {a1 @ a2:.3g}, expected 1, 1 and 0. Declare another action space, convert the "
                    f"rotations (classact.data.rotations), or orthogonalize them."
                )

    def about_mean(self, actions: NDArray[F]) -> NDArray[F]:
        """Actions (N, D) whose angles are within pi of their mean direction: the jump is where they are rarest."""
        angles = self.dimensions("wrapped_angle")
        if not angles.any():
            return actions
        out = actions.copy()
        values = actions[:, angles].astype(np.float64)
        mean = np.angle(np.exp(1j * values).mean(axis=0))
        away = np.abs(values - mean) > np.pi  # the others keep their bits
        out[:, angles] = np.where(away, mean + wrap(values - mean), values)
        return out

    # Averages

    def average(self, actions: NDArray[F], weights: NDArray[Any]) -> NDArray[F]:
        """Weighted mean of K chunks (..., K, T, D) whose rotations are rotations again (paper section 4.4, and the
        released code).

        ``weights`` (..., K) are non-negative, not all zero. Everything but rotations and angles, grippers too, is the
        plain weighted mean; angles come back within half a turn of the one with the largest weight. Where a mean of
        rotations is not determined (opposite ones of equal weight), the one with the largest weight is taken: a
        demonstrated rotation rather than rounding noise. Bad shapes, weights or rotations are DataErrors.
        """
        self.check(actions)
        if actions.ndim < 3 or getattr(weights, "shape", None) != actions.shape[:-2]:
            raise DataError(
                f"expected actions of shape (..., K, T, {self.dim}) and weights of shape (..., K), got "
                f"{actions.shape} and {getattr(weights, 'shape', type(weights).__name__)}."
            )
        if not (np.isfinite(weights).all() and (weights >= 0).all() and (weights.sum(axis=-1) > 0).all()):
            raise DataError(
                f"expected finite weights of at least 0 that are not all 0, got values from {np.min(weights):g} to "
                f"{np.max(weights):g} and sums from {np.min(weights.sum(axis=-1)):g} on."
            )
        w = weights.astype(np.float64) / weights.sum(axis=-1, dtype=np.float64, keepdims=True)
        mean: NDArray[np.float64] = np.einsum("...k,...ktd->...td", w, actions)
        best = np.argmax(w, axis=-1)[..., None, None, None]
        if (angles := self.dimensions("wrapped_angle")).any():
            # As offsets from the heaviest: those within half a turn of it are averaged like plain numbers.
            values = actions[..., angles].astype(np.float64)
            center = np.take_along_axis(values, best, axis=-3)
            center = (
                center + np.angle(np.einsum("...k,...ktd->...td", w, np.exp(1j * (values - center))))[..., None, :, :]
            )
            mean[..., angles] = center[..., 0, :, :] + np.einsum("...k,...ktd->...td", w, wrap(values - center))
        for part, columns in self._rotations():
            with _naming(part):
                heaviest = np.take_along_axis(actions[..., columns], best, axis=-3)[..., 0, :, :].astype(np.float64)
                if self.rotation_mean == "chordal":
                    # Read as rows in either convention: of columns these are the transposes, and so is their mean.
                    matrices = rotation_6d_to_matrix(actions[..., columns].astype(np.float64))
                    nearest, unknown = nearest_rotation(np.einsum("...k,...ktij->...tij", w, matrices))
                    averaged = nearest[..., :2, :].reshape(heaviest.shape)
                else:
                    averaged = mean[..., columns]
                    unknown = degenerate_6d(averaged)
                mean[..., columns] = orthogonalize_6d(np.where(unknown[..., None], heaviest, averaged))
        return mean.astype(actions.dtype)

    def orthogonalize(self, actions: NDArray[F]) -> NDArray[F]:
        """(..., D) actions, such as a network's output, with every rotation orthonormal (Gram-Schmidt)."""
        self.check(actions)
        out = actions.copy()
        for part, columns in self._rotations():
            with _naming(part):
                out[..., columns] = orthogonalize_6d(actions[..., columns])
        return out

    def _rotations(self) -> list[tuple[Part, slice]]:
        return [(part, columns) for part, columns in self.layout() if part.kind == "rotation_6d"]


ACTION_SPACES: dict[str, Callable[[], ActionSpace]] = {
    "point": ActionSpace.points,
    "pose": ActionSpace.pose,
    "two-arm-pose": lambda: ActionSpace.pose("left", "right"),
    "joints-6": lambda: ActionSpace.joints(6),
    "joints-7": lambda: ActionSpace.joints(7),
    "aloha": lambda: ActionSpace.joints(6, "left", "right"),
    "two-arm-joints-7": lambda: ActionSpace.joints(7, "left", "right"),
}
"""The field's layouts by name, for command lines and files."""

_UNAMBIGUOUS = ("point", "pose", "two-arm-pose")


def _parts(arms: tuple[str, ...], of_each: list[tuple[str, str, int]], gripper: int) -> tuple[Part, ...]:
    """(name, kind, size) of each arm's parts, and its gripper."""
    of_each = [*of_each, ("gripper", "gripper", gripper)][: None if gripper else -1]
    return tuple(
        Part(name if arm is None else f"{arm}_{name}", kind, size, arm)
        for arm in arms or (None,)
        for name, kind, size in of_each
    )


def wrap(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same angles (radians) in [-pi, pi)."""
    return (angles + np.pi) % (2 * np.pi) - np.pi


@contextmanager
def _naming(part: Part) -> Iterator[None]:
    """Name the part of an action whose rotations an error is about."""
    try:
        yield
    except DataError as error:
        raise DataError(f"action part {part.name!r}: {error}") from None
