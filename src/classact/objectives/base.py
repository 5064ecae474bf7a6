"""What an objective defines: the steps of a batch's rows, and a loss on their features.

One file per objective: its loss as a pure function of features, and a subclass of :class:`Objective`;
:data:`classact.objectives.OBJECTIVES` lists them with their settings. The training
(:class:`classact.train.representation.Trainer`) does the rest: images, random views, encoder, ranks, target network,
checkpoints.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from classact.data.types import IntArray
from classact.errors import ConfigError

Stats = dict[str, Tensor]  # scalars that are logged, still on the device
Loss = tuple[Tensor, Stats]


@dataclass(frozen=True, eq=False)
class Material:
    """What objectives are made from.

    Attributes:
        feature_dim: F of the encoder.
        episode_ends: (E,) end (exclusive) of each episode in the flat order of steps.
        actions: (N, A) float32 on ``device``, each dimension scaled to [-1, 1].
        seed: of initial weights.
        device: where losses are computed.
        weights: steps (C,) and B -> (B, C) soft positive weights of the first B of them on ``device``, zero on the
            diagonal; a step that occurs twice is its own positive of weight 1. None without action similarity.
    """

    feature_dim: int
    episode_ends: IntArray
    actions: Tensor
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    weights: Callable[[IntArray, int], Tensor] | None = None

    def episodes(self) -> IntArray:
        """(N,) number of each step's episode."""
        return np.repeat(np.arange(len(self.episode_ends)), np.diff(self.episode_ends, prepend=0))

    def bounds(self, steps: IntArray) -> tuple[IntArray, IntArray]:
        """First step and end (exclusive) of the episodes of ``steps``: two arrays of their shape."""
        episode = np.searchsorted(self.episode_ends, steps, side="right")
        starts = np.concatenate([[0], self.episode_ends[:-1]])
        return starts[episode], np.asarray(self.episode_ends)[episode]

    def check_episodes(self, least: int, what: str) -> None:
        """Refuse data in which no episode has the steps that ``what`` needs: a loss would mask every row."""
        longest = int(np.diff(self.episode_ends, prepend=0).max())
        if longest < least:
            raise ConfigError(
                f"{what} needs an episode of at least {least} steps, but the longest of {len(self.episode_ends)} has "
                f"{longest}. Learn from longer episodes, or with another objective."
            )


class Objective(nn.Module, ABC):
    """A loss on the features of a batch of anchors and their context frames.

    A row of a batch is an anchor, a step of the data, and the steps that :meth:`draw` adds; the settings say how many,
    and in how many random views each image is seen. Modules of an objective (a projector, a dynamics model) are trained
    with the encoder, and discarded afterwards.
    """

    config: Any

    def draw(self, anchors: IntArray, rng: np.random.Generator) -> IntArray:
        """Context frames (B, companions) of the anchors (B,), as steps."""
        return np.empty((len(anchors), 0), np.int64)

    @abstractmethod
    def loss(self, z: Tensor, rows: IntArray, *, target: Tensor | None, generator: torch.Generator) -> Loss:
        """The loss of a whole batch, and what is logged beside it.

        Args:
            z: (B, M, R, F) float32 features, not normalised.
            rows: (B, M) steps of the data; the anchors are column 0.
            target: (B, M, R, F) features of the target network, without gradient; None where there is none.
            generator: of random draws in the loss; seeded by (seed, step).

        Returns a scalar with a gradient to ``z`` and to this module's parameters, and further scalars.
        """

    def after_step(self) -> None:
        """Called once after each update, for target copies of own modules."""


def masked_mean(values: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of the values under a mask of their shape (None: all); zero, with zero gradient, where it is empty."""
    if valid is None:
        return values.mean()
    return torch.where(valid, values, torch.zeros_like(values)).sum() / valid.sum().clamp_min(1)
