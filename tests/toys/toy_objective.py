"""An objective: features of consecutive steps are alike, those of a batch are spread out (slow feature analysis)."""

from dataclasses import dataclass

import numpy as np
import torch

from classact.objectives import OBJECTIVES, Entry
from classact.objectives.base import Material, Objective
from classact.objectives.config import ObjectiveConfig


@dataclass(frozen=True)
class SlownessConfig(ObjectiveConfig):
    """Settings; ``spread`` weighs the term that keeps features apart."""

    name = "slowness"
    label = "Slowness"
    about = "features change slowly along an episode"
    companions = 1  # the next step

    spread: float = 1.0


class Slowness(Objective):
    """Squared change of a feature from one step to the next, minus how far features of a batch are apart."""

    def __init__(self, config: SlownessConfig, material: Material) -> None:
        super().__init__()
        self.config, self.material = config, material

    def draw(self, anchors, rng):
        """The next step of each anchor; at its episode's end the anchor itself."""
        _, ends = self.material.bounds(anchors)
        return np.minimum(anchors + 1, ends - 1)[:, None]

    def loss(self, z, rows, *, target, generator):
        """(B, 2, 1, F) features of anchors and next steps -> the loss, and what is logged."""
        now, after = torch.nn.functional.normalize(z[:, :, 0], dim=-1).unbind(1)
        change = (now - after).square().sum(1).mean()
        spread = now.var(0, unbiased=False).sum()
        return change - self.config.spread * spread, {"change": change.detach(), "spread": spread.detach()}


OBJECTIVES.register("slowness", Entry(SlownessConfig, Slowness))
