"""How far a policy's actions are from those of demonstrations that it has not seen: for data without a simulator.

Errors are those of whole chunks, actions scaled to [-1, 1] over the training part: L2 (Euclidean, the mean over the T_a
steps) and DTW (summed along the alignment, as in training). They say how alike actions are, not whether a task would
succeed; other policies on the same data are what to compare them with, and so are three ways that learn nothing: the
demonstrated timestep whose picture is nearest, pixel by pixel, any timestep at random, and the mean chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from classact.data.images import resize_images
from classact.data.normalize import MinMax
from classact.data.types import Demonstrations, FloatArray, IntArray, Observation
from classact.data.windows import window_indices
from classact.errors import ConfigError
from classact.evaluation.probe.metrics import chunk_errors, episode_mean
from classact.evaluation.rows import ActionError, Value
from classact.policies.base import Policy, decide

PIXELS = 16
"""Side to which images are reduced before they are compared pixel by pixel."""

RANDOM_CHUNKS = 16
QUERIES = 1000
"""Timesteps at most that a policy is asked about, evenly over all."""

_BATCH = 64


@dataclass(frozen=True)
class HeldOut:
    """Timesteps of held-out demonstrations, and what was done from them on.

    Attributes:
        data: held-out demonstrations, with images.
        training: those that policies have learned from, with images.
        steps: T_a, length of the chunks.
        rows: (Q,) timesteps asked about.
        range: of each action dimension, to which errors are relative.
    """

    data: Demonstrations
    training: Demonstrations
    steps: int
    rows: IntArray
    range: MinMax

    @staticmethod
    def of(
        data: Demonstrations,
        training: Demonstrations,
        steps: int,
        queries: int = QUERIES,
        *,
        done: Demonstrations | None = None,
    ) -> HeldOut:
        """Every ``steps``-th timestep of the demonstrations that carry actions, or fewer where these are more than
        ``queries``; errors are relative to the range of actions in ``done``, None: in ``training``.
        """
        known = np.flatnonzero(data.carries_actions()).tolist()
        rows = np.concatenate([np.arange(*data.bounds(e))[::steps] for e in known] or [np.zeros(0, np.int64)])
        if len(rows) > queries:
            rows = rows[np.linspace(0, len(rows) - 1, queries).round().astype(np.int64)]
        return HeldOut(data, training, steps, rows, (training if done is None else done).action_range())

    def observations(self, rows: IntArray, history: int = 1) -> list[list[Observation]]:
        """The last ``history`` observations at each of some timesteps, oldest first."""
        data, episode = self.data, self.data.episode_index()
        first = data.episode_ends - data.lengths
        wanted = np.maximum(rows[:, None] - np.arange(history)[::-1], first[episode[rows]][:, None])
        images = {camera: np.asarray(array[wanted.ravel()]) for camera, array in data.images.items()}
        return [
            [
                Observation(
                    {camera: images[camera][i * history + h] for camera in images},
                    data.proprioception[row],
                    None if data.states is None else data.states[row],
                    None if data.language is None else data.language[episode[row]],
                )
                for h, row in enumerate(of_row.tolist())
            ]
            for i, of_row in enumerate(wanted)
        ]

    def chunks(self, data: Demonstrations, rows: IntArray) -> FloatArray:
        """(Q, T_a, D) what was done in some timesteps of ``data``, the last action repeated at the end."""
        return data.actions[window_indices(data.episode_ends, self.steps)[rows]]

    @cached_property
    def _done(self) -> FloatArray:
        return self.range.apply(self.chunks(self.data, self.rows))

    def errors(self, chunks: FloatArray) -> FloatArray:
        """(2, Q) L2 and DTW of (Q, T_a, D) chunks at all timesteps."""
        dtw, l2 = chunk_errors(self.range.apply(chunks), self._done)
        return np.stack([l2, dtw])

    def summary(self, policy: str, errors: FloatArray) -> ActionError:
        """Of :meth:`errors`."""
        episodes = self.data.episode_index()[self.rows]
        l2, dtw = errors

        def mean(values: FloatArray) -> Value:
            # The same resamples for all, so that policies do not differ by their intervals' random numbers.
            found = episode_mean(values, episodes, np.random.default_rng(0)).to_json()
            return Value(float(found["value"] or 0.0), found["low"], found["high"])

        each = tuple(float(l2[episodes == e].mean()) for e in np.unique(episodes))
        return ActionError(policy, mean(l2), mean(dtw), each, self.steps)


def action_error(
    policy: Policy, held: HeldOut, name: str, progress: Callable[[int, int, str], None] | None = None
) -> ActionError:
    """Of a policy that plays demonstrations at their own speed.

    Raises:
        ConfigError: another speed, or other lengths of chunks.
    """
    spec = policy.spec
    if spec.speed != 1 or spec.chunk_length != held.steps:
        raise ConfigError(
            f"policy {name!r} has T_a = {spec.chunk_length} at speed {spec.speed:g}, held-out actions are compared "
            f"over {held.steps} steps at speed 1."
        )
    found = []
    for start in range(0, len(held.rows), _BATCH):
        seen = held.observations(held.rows[start : start + _BATCH], spec.history)
        found.append(decide(policy, seen if spec.history > 1 else [one for (one,) in seen]).chunk)
        if progress is not None:
            progress(min(start + _BATCH, len(held.rows)), len(held.rows), name)
    return held.summary(name, held.errors(np.concatenate(found)))


def references(held: HeldOut, seed: int = 0) -> list[ActionError]:
    """Errors of three ways that learn nothing."""
    training, rng = held.training, np.random.default_rng(seed)
    mean = held.chunks(training, np.arange(training.num_steps)).mean(axis=0, dtype=np.float64).astype(np.float32)
    space = training.schema.actions
    if space is not None and space.has_rotations:
        mean = space.orthogonalize(mean)
    rows = rng.integers(0, training.num_steps, (RANDOM_CHUNKS, len(held.rows)))
    drawn = np.mean([held.errors(held.chunks(training, one)) for one in rows], axis=0)
    found = {"random": drawn, "mean": held.errors(np.repeat(mean[None], len(held.rows), axis=0))}
    if training.images:
        nearest = nearest_by_pixels(training, held.data, held.rows)
        found = {"nearest by pixels": held.errors(held.chunks(training, nearest)), **found}
    return [held.summary(name, errors) for name, errors in found.items()]


def nearest_by_pixels(training: Demonstrations, data: Demonstrations, rows: IntArray) -> IntArray:
    """(Q,) timesteps of ``training`` whose pictures are nearest to those of ``rows`` of ``data``."""
    bank = _thumbnails(training.images, np.arange(training.num_steps))
    asked = _thumbnails(data.images, rows)
    squares = (bank**2).sum(axis=1)
    # |a - b|^2 = |a|^2 - 2 a b + |b|^2, whose first part is the same for all b.
    return np.concatenate(
        [np.argmin(squares - 2 * asked[i : i + _BATCH] @ bank.T, axis=1) for i in range(0, len(asked), _BATCH)]
    )


def _thumbnails(images: Mapping[str, Any], rows: IntArray) -> FloatArray:
    """(n, V PIXELS PIXELS 3) all views, reduced."""
    parts = []
    for start in range(0, len(rows), 512):
        some = rows[start : start + 512]
        views = [resize_images(np.asarray(array[some]), PIXELS).reshape(len(some), -1) for array in images.values()]
        parts.append(np.concatenate(views, axis=1).astype(np.float32) / 255)
    return np.concatenate(parts)
