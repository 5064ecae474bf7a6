"""What retrieval compares: observations as unit vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from classact.data.images import Images
from classact.data.lowdim import LowDim
from classact.data.normalize import MinMax
from classact.data.rotations import quaternion_to_matrix
from classact.data.schema import Schema
from classact.data.types import Demonstrations, FloatArray, ImageArray, Observation, StateArray
from classact.errors import DataError, choose
from classact.models.encoders.image import ImageEncoder
from classact.utils.codec import fields_from_json, fields_to_json


def unit(rows: FloatArray) -> FloatArray:
    """(N, d) rows scaled to Euclidean length 1; a zero row stays zero."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(length, 1e-12), np.float32)


class Latents(ABC):
    """Turns demonstrations and observations into L2-normalised latents z.

    Attributes:
        kind: "image", "state", "scene" or "numbers".
        encoder: of images; None where none are read.
        bf16: run it in bfloat16.
        schema: of the demonstrations, and so of accepted observations; None: any that hold what is read.
        language_source: of :class:`classact.policies.base.PolicySpec`.
    """

    kind: ClassVar[str]
    encoder: ImageEncoder | None = None
    bf16: bool = False
    schema: Schema | None = None
    language_source: str = ""

    @property
    def cameras(self) -> tuple[str, ...]:
        """The views that are read."""
        return () if self.encoder is None else self.encoder.config.cameras

    @abstractmethod
    def demonstrations(self, data: Demonstrations) -> FloatArray:
        """(N, d) latents of every step; images may be at any resolution."""

    @abstractmethod
    def observations(self, observations: Sequence[Observation]) -> FloatArray:
        """(B, d) latents of live observations; a DataError for another schema, or a missing camera or state."""

    @property
    @abstractmethod
    def settings(self) -> LatentSettings:
        """From which :func:`load_latents` makes an equal object; an encoder has its own folder."""


class LatentSettings:
    """A policy's metadata of its latents, one of :data:`SETTINGS`."""

    kind: ClassVar[str]

    @property
    def settings(self) -> LatentSettings:
        """Of latents that are their own settings."""
        return self

    def to_json(self) -> dict[str, Any]:
        """The fields, behind the kind."""
        return {"kind": self.kind, **fields_to_json(self)}

    @classmethod
    def from_json(cls, value: Any, where: str) -> LatentSettings:
        """Inverse of :meth:`to_json`, for any kind."""
        kind = str(value.get("kind") if isinstance(value, dict) else value)
        if kind not in SETTINGS:
            raise DataError(f"{where}: {choose('kind of latents', kind, SETTINGS)}.")
        return fields_from_json(SETTINGS[kind], {k: v for k, v in value.items() if k != "kind"}, where)


@dataclass(frozen=True)
class ImageSettings(LatentSettings):
    """Of :class:`ImageLatents`, without the encoder."""

    kind = "image"

    lowdim: LowDim
    bfloat16: bool


class ImageLatents(Latents):
    """Image features of all views concatenated with normalised proprioception (and the instruction's embedding, if
    any), jointly L2-normalised (paper section 4.4).
    """

    kind = "image"

    def __init__(self, encoder: ImageEncoder, lowdim: LowDim, *, bf16: bool = False) -> None:
        self.encoder: ImageEncoder = encoder.eval()
        self.lowdim, self.bf16 = lowdim, bf16
        self.schema, self.language_source = lowdim.schema, lowdim.language_source

    def _join(self, images: Mapping[str, Images], lowdim: FloatArray) -> FloatArray:
        features = self.encoder.encode(images, bf16=self.bf16, count=len(lowdim))
        return unit(np.concatenate([features, lowdim], axis=1))

    def demonstrations(self, data: Demonstrations) -> FloatArray:
        """(N, d) latents of every step."""
        for camera in self.encoder.config.cameras:
            if camera not in data.images:
                raise DataError(
                    f"{data.name} ({data.source}): the encoder reads camera {camera!r}, available are "
                    f"{sorted(data.images) or 'no cameras'}. Prepare images with classact.run.frames, or train an "
                    f"encoder for a camera that is there."
                )
        return self._join(data.images, self.lowdim.demonstrations(data))

    def observations(self, observations: Sequence[Observation]) -> FloatArray:
        """(B, d) latents of live observations."""
        cameras = self.encoder.config.cameras
        self.lowdim.check(observations, cameras)
        return self._join(stack_images(observations, cameras), self.lowdim.observations(observations))

    @property
    def settings(self) -> ImageSettings:
        """Normalisation and precision."""
        return ImageSettings(self.lowdim, self.bf16)


def stack_images(observations: Sequence[Observation], cameras: Sequence[str]) -> dict[str, ImageArray]:
    """camera -> (B, H, W, 3) of B observations of one size."""
    stacked = {}
    for camera in cameras:
        sizes = {observation.images[camera].shape for observation in observations}
        if len(sizes) > 1:
            raise DataError(f"camera {camera!r}: observations of one batch have images of sizes {sorted(sizes)}.")
        stacked[camera] = np.stack([observation.images[camera] for observation in observations])
    return stacked


def warm_up(encoder: ImageEncoder, batch: int, *, bf16: bool = False) -> None:
    """Encode black images, so that kernels are chosen and memory is allocated before the first decision."""
    size = encoder.config.image_size
    black = np.zeros((batch, size, size, 3), np.uint8)
    encoder.encode(dict.fromkeys(encoder.config.cameras, black), bf16=bf16)


@dataclass(frozen=True)
class StateLatents(LatentSettings, Latents):
    """The true simulator state as latent: a reference without cameras.

    Positions are divided by half the world's size about its centre; ``angles``, the state dimensions in radians, become
    scaled cosine and sine. An appended constant 1 makes directions, all that cosine similarity sees, determine the
    state.
    """

    kind = "state"

    center: float
    half: float
    angles: tuple[int, ...]
    angle_scale: float = 0.4

    def _embed(self, states: np.ndarray[Any, Any]) -> FloatArray:
        position = np.delete(states, self.angles, axis=1)
        angle = states[:, self.angles]
        turned = [self.angle_scale * np.cos(angle), self.angle_scale * np.sin(angle)]
        parts = [(position - self.center) / self.half, *turned, np.ones((len(states), 1))]
        return unit(np.concatenate(parts, axis=1).astype(np.float32))

    def demonstrations(self, data: Demonstrations) -> FloatArray:
        """(N, d) latents of every step."""
        return self._embed(_states(data))

    def observations(self, observations: Sequence[Observation]) -> FloatArray:
        """(B, d) latents of live observations."""
        return self._embed(_observed_states(observations))


@dataclass(frozen=True)
class SceneLatents(LatentSettings, Latents):
    """Proprioception and the true poses of a task's objects as latent: the best that images could tell, for arms.

    Proprioception is scaled to [-1, 1] over the demonstrations. So are positions, all by the same factor, or the height
    of what never leaves the table would count as much as where it is. Rotations are the first two rows of their matrix,
    weighted; a constant 1 is appended as in :class:`StateLatents`.

    ``objects``: first index in the state of each object's x y z and quaternion w x y z; ``range``: of their positions.
    """

    kind = "scene"

    lowdim: LowDim
    objects: tuple[int, ...]
    range: MinMax
    rotation_scale: float = 0.4

    @staticmethod
    def fit(data: Demonstrations, objects: Sequence[tuple[str, int]]) -> SceneLatents:
        """Fitted on demonstrations of a simulator with these ``SimulatorSpec.objects``."""
        indices = tuple(index for _, index in objects)
        each = MinMax.fit(_positions(_states(data), indices))
        center, half = (each.high + each.low) / 2, (each.high - each.low).max() / 2
        return SceneLatents(LowDim.fit(data), indices, MinMax(center - half, center + half))

    def _embed(self, lowdim: FloatArray, states: StateArray) -> FloatArray:
        parts = [lowdim, self.range.apply(_positions(states, self.objects))]
        for index in self.objects:
            rotation = quaternion_to_matrix(states[:, index + 3 : index + 7], order="wxyz")
            parts.append((self.rotation_scale * rotation[:, :2]).reshape(len(states), 6).astype(np.float32))
        return unit(np.concatenate([*parts, np.ones((len(states), 1))], axis=1).astype(np.float32))

    def demonstrations(self, data: Demonstrations) -> FloatArray:
        """(N, d) latents of every step."""
        return self._embed(self.lowdim.demonstrations(data), _states(data))

    def observations(self, observations: Sequence[Observation]) -> FloatArray:
        """(B, d) latents of live observations."""
        self.lowdim.check(observations, ())
        return self._embed(self.lowdim.observations(observations), _observed_states(observations))


@dataclass(frozen=True)
class NumberLatents(LatentSettings, Latents):
    """Proprioception as it is, compared by its Euclidean distance: rows are put onto a sphere so large that cosines
    fall with half the squared distance, in units of twice the largest distance from the demonstrations' mean.
    """

    kind = "numbers"

    center: tuple[float, ...]
    radius: float

    @staticmethod
    def fit(data: Demonstrations) -> NumberLatents:
        """Fitted on demonstrations."""
        values = data.proprioception.astype(np.float64)
        center = values.mean(axis=0)
        radius = float(np.linalg.norm(values - center, axis=1).max())
        return NumberLatents(tuple(center.tolist()), 2 * max(radius, 1e-9))

    def _embed(self, values: FloatArray) -> FloatArray:
        x = (values.astype(np.float64) - np.asarray(self.center)) / self.radius
        height = np.sqrt(np.maximum(1 - (x**2).sum(axis=1, keepdims=True), 0.0))
        return unit(np.concatenate([x, height], axis=1).astype(np.float32))

    def demonstrations(self, data: Demonstrations) -> FloatArray:
        """(N, d) latents of every step."""
        return self._embed(data.proprioception)

    def observations(self, observations: Sequence[Observation]) -> FloatArray:
        """(B, d) latents of live observations."""
        return self._embed(np.stack([one.proprioception for one in observations]))


def _positions(states: StateArray, objects: Sequence[int]) -> FloatArray:
    return np.concatenate([states[:, i : i + 3] for i in objects], axis=1).astype(np.float32)


def _states(data: Demonstrations) -> StateArray:
    if data.states is None:
        raise DataError(
            f"{data.name} ({data.source}): has no simulator states, which state latents compare. Use image latents, or "
            f"data with states."
        )
    return data.states


def _observed_states(observations: Sequence[Observation]) -> StateArray:
    states = [observation.state for observation in observations if observation.state is not None]
    if len(states) < len(observations):
        raise DataError(
            "an observation has no simulator state, which state latents compare (on a real robot there is none). Use "
            "image latents there."
        )
    return np.stack(states)


SETTINGS: dict[str, type[LatentSettings]] = {
    kind.kind: kind for kind in (ImageSettings, StateLatents, SceneLatents, NumberLatents)
}


def load_latents(settings: LatentSettings, folder: Path) -> Latents:
    """Inverse of :attr:`Latents.settings`; an image encoder is read from ``folder/encoder``."""
    if isinstance(settings, ImageSettings):
        encoder = ImageEncoder.from_pretrained(folder / "encoder")
        return ImageLatents(encoder, settings.lowdim, bf16=settings.bfloat16)
    assert isinstance(settings, Latents)
    return settings
