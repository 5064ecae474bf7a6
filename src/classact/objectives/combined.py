"""Several objectives at once: the weighted sum of their losses on the same anchors.

The parts share anchors, encoder and random views. What each draws to go with an anchor is appended to its row, and each
sees the anchor and its own companions only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from classact.data.types import IntArray
from classact.errors import ConfigError
from classact.objectives.base import Objective, Stats
from classact.utils.labels import split_sum


@dataclass(frozen=True)
class CombinedConfig:
    """Settings of a sum of objectives.

    Attributes:
        parts: settings of each, of different kinds.
        weights: a factor for each.
    """

    name: str = field(default="combined", init=False)
    parts: tuple[Any, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if len(names) < 2 or len(set(names)) < len(names) or self.name in names:
            raise ConfigError(f"expected at least two different objectives to combine, got {names or 'none'}.")
        if "none" in names:
            raise ConfigError(f"objective 'none' learns nothing, so it cannot be part of a sum, got {names}.")
        if len(self.weights) != len(names) or not all(0 < weight < math.inf for weight in self.weights):
            raise ConfigError(f"expected {len(names)} weights above 0 for {names}, got {list(self.weights)}.")


class Combined(Objective):
    """The weighted sum of objectives.

    Args:
        config: settings.
        parts: made of ``config.parts``, in their order.

    Raises:
        ConfigError: their target networks follow at different rates.
    """

    def __init__(self, config: CombinedConfig, parts: Sequence[Objective]) -> None:
        super().__init__()
        self.config = config
        self.parts = nn.ModuleList(parts)
        self._parts = list(parts)
        self.companions = sum(part.companions for part in parts)
        self.views = max(part.views for part in parts)
        self.together = any(part.together for part in parts)
        self.needs_similarity = any(part.needs_similarity for part in parts)
        decays = sorted({part.target_decay for part in parts if part.target_decay is not None})
        if len(decays) > 1:
            raise ConfigError(
                f"objectives that are combined share one target network, but these ask for decays of {decays}."
            )
        self.target_decay = decays[0] if decays else None

    def draw(self, anchors: IntArray, rng: np.random.Generator) -> IntArray:
        """The companions of all parts, side by side."""
        return np.concatenate([part.draw(anchors, rng) for part in self._parts], axis=1)

    def loss(
        self, z: Tensor, rows: IntArray, *, target: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Stats]:
        """Each part's loss on its own columns and views; it is logged as NAME_loss, other figures by their names, or as
        NAME_FIGURE where a part before has that name, too."""
        total, column = z.new_zeros(()), 1
        stats: Stats = {}
        for part, weight, name in zip(self._parts, self.config.weights, self.names, strict=True):
            columns = [0, *range(column, column + part.companions)]
            column += part.companions
            own = None if target is None or part.target_decay is None else target[:, columns, : part.views]
            loss, found = part.loss(z[:, columns, : part.views], rows[:, columns], target=own, generator=generator)
            total = total + weight * loss
            prefix = name.replace("-", "_")
            stats |= {f"{prefix}_{key}" if key in stats else key: value for key, value in found.items()}
            stats[f"{prefix}_loss"] = loss.detach()
        return total, stats

    @property
    def names(self) -> list[str]:
        """Of the parts."""
        return [part.name for part in self.config.parts]

    def after_step(self) -> None:
        """Of each part."""
        for part in self._parts:
            part.after_step()


def parse_sum(text: str, single: Callable[[str], Any]) -> CombinedConfig:
    """Settings of a sum as written on the command line: ``class+inverse-dynamics``, ``class+0.1*byol``.

    Args:
        text: names joined by "+", each after an optional factor.
        single: settings of one objective by name.

    Raises:
        ConfigError: not of that form, or unknown names.
    """
    parts, weights = [], []
    for factor, name in split_sum(text):
        try:
            weights.append(1.0 if factor is None else float(factor))
        except ValueError:
            raise ConfigError(f"expected objectives like 'class+0.1*byol', got {factor!r} as a factor.") from None
        parts.append(single(name))
    return CombinedConfig(tuple(parts), tuple(weights))
