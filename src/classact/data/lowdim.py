"""What an observation holds beside images, normalised: proprioception by key, and the instruction's embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from classact.data.language import recorded_source
from classact.data.normalize import MinMax
from classact.data.schema import Schema
from classact.data.types import Demonstrations, FloatArray, IntArray, Observation
from classact.errors import ConfigError, DataError
from classact.utils.codec import ADDED

UNIT = 1e-3  # four numbers of length 1, but for this, at every step are a quaternion


@dataclass(frozen=True)
class LowDim:
    """Selected proprioception keys scaled to [-1, 1], then the instruction's embedding as it is.

    Attributes:
        schema: of the demonstrations; observations are checked against it.
        keys: proprioception keys in use, in this order.
        range: their normalisation, fitted on the demonstrations.
        quaternions: (first dimension, reference) of each key that holds unit quaternions: of q and -q, which are one
            rotation, the one on the reference's side is used.
        language_source: what embedded the demonstrations' instructions, and must embed those of observations; empty:
            it is not known, or there are none.
    """

    schema: Schema
    keys: tuple[str, ...]
    range: MinMax
    quaternions: tuple[tuple[int, tuple[float, ...]], ...] = ()
    language_source: str = field(default="", metadata=ADDED)

    def __post_init__(self) -> None:
        if repeated := [key for key in self.keys if self.keys.count(key) > 1]:
            raise ConfigError(f"proprioception key {repeated[0]!r} is chosen more than once; name each key once.")
        expected = len(self.schema.columns(self.keys))
        if len(self.range.low) != expected:
            raise DataError(
                f"the proprioception keys {list(self.keys)} have {expected} dimensions, their normalisation was fitted "
                f"on {len(self.range.low)}."
            )

    @staticmethod
    def fit(data: Demonstrations, keys: Sequence[str] | None = None) -> LowDim:
        """Fitted on demonstrations; all declared keys where None."""
        chosen = data.schema.keys if keys is None else tuple(keys)
        values = data.proprioception[:, data.schema.columns(chosen)]
        sizes = dict(data.schema.proprioception)
        starts = np.cumsum([0, *(sizes[key] for key in chosen)])
        quaternions = []
        for key, start in zip(chosen, starts, strict=False):
            block = values[:, start : start + 4].astype(np.float64)
            if sizes[key] == 4 and (np.abs(np.linalg.norm(block, axis=1) - 1) < UNIT).all():
                reference = np.linalg.eigh(block.T @ block)[1][:, -1]
                side = 1 if (block @ reference >= 0).mean() >= 0.5 else -1
                quaternions.append((int(start), tuple(float(v) for v in side * reference)))
        one_sided = _one_side(values, tuple(quaternions))
        source = recorded_source(data.versions) if data.schema.language else ""
        return LowDim(data.schema, chosen, MinMax.fit(one_sided), tuple(quaternions), source)

    @property
    def dim(self) -> int:
        """Dimensions of a row."""
        return len(self.range.low) + self.schema.language

    def demonstrations(self, data: Demonstrations, rows: IntArray | None = None) -> FloatArray:
        """(N, dim) of every step, or of the steps ``rows``; data of another schema are refused."""
        if difference := self.schema.difference(data.schema):
            raise DataError(f"{data.name} ({data.source}) is of another schema: {difference}. Train on these data.")
        language = None
        if data.language is not None:
            episode = data.episode_index() if rows is None else np.searchsorted(data.episode_ends, rows, side="right")
            language = data.language[episode]
        return self.rows(data.proprioception if rows is None else data.proprioception[rows], language)

    def observations(self, observations: Sequence[Observation]) -> FloatArray:
        """(B, dim) of live observations, which :meth:`check` has passed."""
        language = None
        if self.schema.language:
            language = np.stack([np.asarray(o.language, np.float32) for o in observations])
        return self.rows(np.stack([o.proprioception for o in observations]), language)

    def check(self, observations: Sequence[Observation], cameras: Sequence[str]) -> None:
        """Refuse observations that are not of the schema, or lack one of ``cameras``, as :meth:`Schema.check`."""
        for number, observation in enumerate(observations):
            where = "observation" if len(observations) == 1 else f"observation {number} of {len(observations)}"
            self.schema.check(
                observation.images, observation.proprioception, observation.language, cameras=cameras, where=where
            )

    def rows(self, proprioception: FloatArray, language: FloatArray | None) -> FloatArray:
        """(N, dim) of (N, D_p) proprioception in the schema's order, and (N, D_l) embeddings where there are any."""
        columns = self.schema.columns(self.keys)
        scaled = self.range.apply(_one_side(proprioception[:, columns], self.quaternions))
        return scaled if language is None else np.concatenate([scaled, language], axis=1)


def _one_side(values: FloatArray, quaternions: tuple[tuple[int, tuple[float, ...]], ...]) -> FloatArray:
    """(N, D) values with each quaternion on its reference's side."""
    if not quaternions:
        return values
    values = values.copy()
    for start, reference in quaternions:
        block = values[:, start : start + 4]
        block *= np.where(block @ np.asarray(reference, np.float32) < 0, -1, 1)[:, None].astype(np.float32)
    return values
