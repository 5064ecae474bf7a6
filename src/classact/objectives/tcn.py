"""Single-view time-contrastive network (Sermanet et al., arXiv 1704.06888): near in time is near in features.

What CLASS's paper (section 5.2, C.1) calls TCN is the repository kekeblom/tcn, whose triplets and loss are followed.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from classact.data.types import IntArray
from classact.errors import ConfigError
from classact.objectives.base import Loss, Material, Objective, masked_mean
from classact.objectives.config import TCNConfig


def tcn_distances(z: Tensor, *, scale: float = 10.0) -> tuple[Tensor, Tensor]:
    """Squared L2 distances d+ and d-, (B,) each, of embeddings of length ``scale``.

    ``z`` (B, 3, F) are features of anchor, positive, negative; L2-normalised here, in float32 or float64.
    """
    if z.ndim != 3 or z.shape[1] != 3:
        raise ConfigError(f"expected z of shape (B, 3, F): anchor, positive, negative; got {tuple(z.shape)}.")
    z = scale * torch.nn.functional.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=2)
    anchor, positive, negative = z.unbind(dim=1)
    return (anchor - positive).square().sum(dim=1), (anchor - negative).square().sum(dim=1)


class TCN(Objective):
    """Triplets of anchor, positive and negative in time.

    An anchor whose episode has no other step has no positive: it is drawn as its own, and the row is masked.
    """

    def __init__(self, config: TCNConfig, material: Material) -> None:
        super().__init__()
        material.check_episodes(2, "a positive that is not the anchor")
        self.config, self.material = config, material

    def draw(self, anchors: IntArray, rng: np.random.Generator) -> IntArray:
        """Positive and negative of each anchor, each uniform over the allowed steps.

        Positive: another step within ``positive_margin`` of the anchor in its episode. Negative: at least
        ``negative_margin`` away in its episode; where that is too short, a step of another episode (the repository
        fails there); where there is no other, the farthest step of the episode. The repository's bounds leave out the
        episode's last step, the one exactly ``positive_margin`` later and the one exactly ``negative_margin`` earlier.
        """
        anchors = np.asarray(anchors, np.int64)
        start, end = self.material.bounds(anchors)
        return np.stack([self._positives(anchors, start, end, rng), self._negatives(anchors, start, end, rng)], axis=1)

    def _positives(self, anchors: IntArray, start: IntArray, end: IntArray, rng: np.random.Generator) -> IntArray:
        first = np.maximum(start, anchors - self.config.positive_margin)
        last = np.minimum(end - 1, anchors + self.config.positive_margin)
        drawn = first + rng.integers(0, np.maximum(last - first, 1))
        return np.where(last > first, drawn + (drawn >= anchors), anchors)

    def _negatives(self, anchors: IntArray, start: IntArray, end: IntArray, rng: np.random.Generator) -> IntArray:
        margin = self.config.negative_margin
        before = np.maximum(anchors - margin + 1 - start, 0)
        after = np.maximum(end - margin - anchors, 0)
        place = rng.integers(0, np.maximum(before + after, 1))
        within = np.where(place < before, start + place, anchors + margin + place - before)
        others = int(self.material.episode_ends[-1]) - (end - start)
        place = rng.integers(0, np.maximum(others, 1))
        elsewhere = np.where(place < start, place, place + (end - start))
        farthest = np.where(anchors - start > end - 1 - anchors, start, end - 1)
        return np.where(before + after > 0, within, np.where(others > 0, elsewhere, farthest))

    def loss(self, z: Tensor, rows: IntArray, *, target: Tensor | None, generator: torch.Generator) -> Loss:
        """Logs mean distances and the share of triplets in the right order."""
        near, far = tcn_distances(z[:, :, 0], scale=self.config.scale)
        valid = torch.from_numpy(rows[:, 1] != rows[:, 0]).to(z.device)
        loss = masked_mean((self.config.margin + near - far).clamp_min(0.0), valid)
        return loss, {
            "distance_positive": masked_mean(near.detach(), valid),
            "distance_negative": masked_mean(far.detach(), valid),
            "ordered": masked_mean((near < far).to(near.dtype), valid),
        }
