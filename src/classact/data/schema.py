"""What an observation holds and what an action means: declared once, with the data, and checked wherever it is used.

A schema travels from the reader into the policy's folder, so that a policy refuses observations that it was not trained
on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.data.actions import ActionSpace
from classact.errors import ConfigError, DataError, UnknownNameError, choose
from classact.utils.codec import ADDED

PROPRIOCEPTION = "proprioception"  # the only key where data declare none


@dataclass(frozen=True)
class Schema:
    """Names and sizes of an observation's parts, and the meaning of an action's dimensions.

    Attributes:
        cameras: recorded or renderable views; images are (H, W, 3) uint8 RGB.
        proprioception: (key, size) in the order in which they are concatenated to (D_p,) float32.
        language: D_l, size of an instruction's embedding; 0 for none.
        actions: what the D_a dimensions of an action mean; None where neither declared nor evident: each dimension is
            then a number by itself.
        fps: steps per second; None where it is not known.
        assumption: what was assumed rather than declared, in words. It is neither compared nor saved.
    """

    cameras: tuple[str, ...] = ()
    proprioception: tuple[tuple[str, int], ...] = ()
    language: int = 0
    actions: ActionSpace | None = None
    fps: float | None = field(default=None, metadata=ADDED)
    assumption: str = field(default="", compare=False, metadata={"json": False})

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", tuple(self.cameras))
        object.__setattr__(self, "proprioception", tuple((str(key), int(size)) for key, size in self.proprioception))
        for kind, names in (("camera", self.cameras), ("proprioception key", self.keys)):
            for name in names:
                if names.count(name) > 1:
                    raise ConfigError(f"{kind} {name!r} is declared {names.count(name)} times, expected once.")
        for key, size in self.proprioception:
            if size < 1:
                raise ConfigError(f"proprioception key {key!r}: expected a size of at least 1, got {size}.")
        if self.language < 0:
            raise ConfigError(f"expected a language embedding of size >= 0, got {self.language}.")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ConfigError(f"expected more than 0 steps per second (fps), got {self.fps}.")

    @staticmethod
    def assumed(cameras: Sequence[str], proprioception: int, actions: int, *, values: Any = None) -> Schema:
        """The schema of data that declare none: one proprioception key of D_p, and an action space where D_a suggests
        one.

        With ``values`` (N, D_a), the actions, ten numbers whose six are no rotation are not taken for a pose.
        """
        keys = ((PROPRIOCEPTION, proprioception),) if proprioception else ()
        space: ActionSpace | None = None
        if not actions:
            return Schema(tuple(cameras), keys)
        try:
            space, assumption = ActionSpace.guess(actions)
            if space.has_rotations and values is not None:
                space.check_rotations(values)
        except ConfigError as problem:
            assumption = f"no action space is assumed: {problem}"
        except DataError as problem:
            assumption = f"no action space is assumed, although {actions} dimensions can be poses: {problem}"
            space = None
        return Schema(tuple(cameras), keys, actions=space, assumption=assumption)

    @property
    def keys(self) -> tuple[str, ...]:
        """Proprioception keys, in order."""
        return tuple(key for key, _ in self.proprioception)

    @property
    def proprioception_dim(self) -> int:
        """D_p, the sizes of all keys together."""
        return sum(size for _, size in self.proprioception)

    def columns(self, keys: Sequence[str] | None = None) -> NDArray[np.int64]:
        """Dimensions of (D_p,) proprioception that ``keys`` occupy, in their order; all where None."""
        ends = np.cumsum([size for _, size in self.proprioception], dtype=np.int64)
        where = {key: np.arange(end - size, end) for (key, size), end in zip(self.proprioception, ends, strict=True)}
        parts = [np.zeros(0, np.int64)]
        for key in self.keys if keys is None else keys:
            if key not in where:
                raise UnknownNameError(choose("proprioception key", key, where))
            parts.append(where[key])
        return np.concatenate(parts)

    def join(self, values: Mapping[str, Any]) -> NDArray[np.float32]:
        """(D_p,) float32 of values by key.

        Raises:
            DataError: a declared key is missing, an undeclared one is there, or sizes differ.
        """
        if missing := [key for key in self.keys if key not in values]:
            raise DataError(
                f"observation: lacks proprioception {missing[0]!r}; there are {sorted(values) or 'none'}, declared are "
                f"{list(self.keys)}. Pass all declared keys."
            )
        if extra := sorted(set(values) - set(self.keys)):
            raise DataError(
                f"observation: proprioception {extra[0]!r} is not declared; declared are {list(self.keys)}. Leave it "
                f"out, or train with it."
            )
        parts = [np.zeros(0, np.float32)]
        for key, size in self.proprioception:
            try:
                value = np.asarray(values[key], np.float32).reshape(-1)
            except (TypeError, ValueError):
                raise DataError(
                    f"observation: proprioception {key!r} is {values[key]!r}, expected {size} numbers."
                ) from None
            if len(value) != size:
                raise DataError(f"observation: proprioception {key!r} has {len(value)} numbers, declared are {size}.")
            parts.append(value)
        return np.concatenate(parts)

    def check(
        self,
        images: Mapping[str, Any],
        proprioception: Any,
        language: Any = None,
        *,
        cameras: Sequence[str] = (),
        where: str = "observation",
    ) -> None:
        """Refuse an observation that is not of this schema or lacks one of ``cameras``.

        Raises:
            DataError: a missing camera or language; a wrong shape, dtype or channel order; NaN or infinite numbers.
        """
        for camera in cameras:
            if camera not in images:
                raise DataError(
                    f"{where}: lacks camera {camera!r}; there are {sorted(images) or 'no images'}, needed are "
                    f"{list(cameras)}. Observe with rendering, in a simulator or on a robot that has this camera."
                )
            _check_pixels(images[camera], (), f"{where}: camera {camera!r}")
        _check_vector(proprioception, self.proprioception_dim, f"{where}: proprioception {list(self.keys)}")
        if language is not None and not self.language:
            raise DataError(
                f"{where}: holds an instruction's embedding, but the schema declares none. Leave it out, or train with "
                f"one."
            )
        if self.language:
            if language is None:
                raise DataError(
                    f"{where}: lacks the instruction's embedding ({self.language} numbers), which this data's schema "
                    f"declares. Pass the embedding of the task's instruction as language."
                )
            _check_vector(language, self.language, f"{where}: language")

    def difference(self, other: Schema) -> str:
        """What ``other`` declares otherwise, in words; empty where both accept the same observations and actions.

        Cameras of only one of them do not count: an encoder declares those it needs. Nor do parts that only one
        declares, as long as sizes agree.
        """
        pairs: tuple[tuple[str, Any, Any], ...] = (
            ("proprioception", list(self.proprioception), list(other.proprioception)),
            ("language embedding of size", self.language, other.language),
            ("actions", _describe(self.actions), _describe(other.actions)),
        )
        if (PROPRIOCEPTION,) in (self.keys, other.keys) and self.proprioception_dim == other.proprioception_dim:
            pairs = pairs[1:]
        if self.actions is None or other.actions is None:
            pairs = pairs[:-1]
        return next((f"{what} {own} here, {found} there" for what, own, found in pairs if own != found), "")


def check_images(images: Any, where: str, count: int | None = None) -> None:
    """Refuse anything but (N, H, W, 3) uint8 RGB images of at least one pixel each (N = ``count`` where given).

    The DataError has shape or dtype and, for channels first, how to transpose them.
    """
    _check_pixels(images, ("N" if count is None else count,), where)


def _check_pixels(images: Any, lead: tuple[str | int, ...], where: str) -> None:
    shape = getattr(images, "shape", None)
    expected = f"({', '.join(map(str, (*lead, 'H', 'W', 3)))})"
    what = f"images of shape {expected}, one RGB frame per step" if lead else f"an image of shape {expected}"
    if shape is None:
        raise DataError(f"{where}: expected {what}, got {type(images).__name__}.")
    right = len(shape) == len(lead) + 3
    if not right or shape[-1] != 3 or (lead not in ((), ("N",)) and shape[:1] != lead):
        turn = ""
        if right and shape[-1] != 3 and shape[-3] == 3:
            turn = f" Channels are first: transpose to {expected}."
        elif right and shape[-1] in (1, 4):
            turn = f" It has {shape[-1]} channels: convert to RGB."
        raise DataError(f"{where}: expected {what}, got {tuple(shape)}.{turn}")
    if 0 in shape[-3:]:
        raise DataError(f"{where}: expected {what} with H >= 1 and W >= 1, got {tuple(shape)}, which has no pixels.")
    if images.dtype != np.uint8:
        raise DataError(
            f"{where}: expected uint8 values 0..255, got {images.dtype}. If they are 0..1, multiply by 255, round and "
            f"convert."
        )


def _check_vector(value: Any, size: int, where: str) -> None:
    shape = getattr(value, "shape", None)
    if shape != (size,):
        found = type(value).__name__ if shape is None else tuple(shape)
        raise DataError(f"{where}: expected {size} numbers, shape ({size},), got {found}.")
    finite = np.isfinite(value)
    if not finite.all():
        at = int(np.argmin(finite))
        raise DataError(f"{where}: number {at} is {value[at]}, expected finite numbers.")


def _describe(actions: ActionSpace | None) -> str:
    return "undeclared" if actions is None else actions.describe()
