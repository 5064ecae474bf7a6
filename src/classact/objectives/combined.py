"""Several objectives at once: the weighted sum of their losses on the same anchors.

The parts share anchors, encoder and random views. The context frames of each are appended to the row, and each sees the
anchor and its own context frames only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from classact.data.types import IntArray
from classact.objectives.base import Loss, Objective, Stats
from classact.objectives.config import CombinedConfig


class Combined(Objective):
    """The weighted sum of the objectives of ``config.parts``, in their order."""

    def __init__(self, config: CombinedConfig, parts: Sequence[Objective]) -> None:
        super().__init__()
        self.config = config
        self.parts = nn.ModuleList(parts)
        self._parts = list(parts)

    def draw(self, anchors: IntArray, rng: np.random.Generator) -> IntArray:
        """The context frames of all parts, side by side."""
        return np.concatenate([part.draw(anchors, rng) for part in self._parts], axis=1)

    def loss(self, z: Tensor, rows: IntArray, *, target: Tensor | None, generator: torch.Generator) -> Loss:
        """Each part's loss on its own columns and views, logged as NAME_loss; other figures by their names, or as
        NAME_FIGURE where an earlier part has that name, too.
        """
        total, column = z.new_zeros(()), 1
        stats: Stats = {}
        for part, weight in zip(self._parts, self.config.weights, strict=True):
            columns = [0, *range(column, column + part.config.companions)]
            column += part.config.companions
            seen = z[:, columns, : part.config.views]
            own = None
            if target is not None and part.config.target_decay is not None:
                own = target[:, columns, : part.config.views]
            loss, found = part.loss(seen, rows[:, columns], target=own, generator=generator)
            total = total + weight * loss
            prefix = part.config.name.replace("-", "_")
            stats |= {f"{prefix}_{key}" if key in stats else key: value for key, value in found.items()}
            stats[f"{prefix}_loss"] = loss.detach()
        return total, stats

    def after_step(self) -> None:
        """Of each part."""
        for part in self._parts:
            part.after_step()
