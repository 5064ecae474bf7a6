"""InfoNCE across time: the time-contrastive term of R3M (Nair et al., arXiv 2203.12601, section 3.1).

Of three timesteps i < j < k of an episode, j shall be more similar to i than k is, and more similar to k than i is; and
both more than timesteps of other episodes. The defaults are those of facebookresearch/r3m (r3m/trainer.py).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from classact.data.types import IntArray
from classact.errors import ConfigError
from classact.objectives.base import Loss, Material, Objective, masked_mean
from classact.objectives.config import TimeContrastiveConfig


def time_similarity(x: Tensor, y: Tensor, similarity: Literal["l2", "cosine"] = "l2") -> Tensor:
    """S (B, B), S[a, b] of features x[a] and y[b], (B, F) each: -||x - y||, or the cosine."""
    if similarity == "cosine":
        return torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(y, dim=1).T
    # The faster matrix product loses the digits of distances that are small against the features.
    return -torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def draw_negatives(candidates: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` of the (B, B) bool candidates of each row, uniformly and without repetition, drawn on the generator's
    device; all where there are fewer, or ``count`` is 0.
    """
    if count == 0:
        return candidates
    keys = torch.rand(candidates.shape, generator=generator, device=generator.device).to(candidates.device)
    chosen = keys.masked_fill(~candidates, -1.0).topk(min(count, candidates.shape[1]), dim=1).indices
    return torch.zeros_like(candidates).scatter_(1, chosen, True) & candidates


def time_contrastive_loss(
    z: Tensor,
    negatives: tuple[Tensor, Tensor],
    *,
    valid: Tensor | None = None,
    similarity: Literal["l2", "cosine"] = "l2",
    temperature: float = 1.0,
) -> Tensor:
    """Mean of the two terms, over the valid rows.

    With s = S / temperature and sums over the negatives n of the row::

        L_i = -log e^s(i, j) / (e^s(i, j) + e^s(i, k) + sum_n e^s(i, i_n))
        L_k = -log e^s(j, k) / (e^s(j, k) + e^s(i, k) + sum_n e^s(k, k_n))
        L = mean((L_i + L_k) / 2)

    R3M adds 1e-8 within the logarithm, which bounds L by 18.4 and removes the gradient of the worst rows; here the
    logarithm is computed in one piece.

    Args:
        z: (B, 3, F) features at i, j, k. Computed in float32, or in float64 if z is.
        negatives: two (B, B) bool: rows whose i is contrasted with the row's i, rows whose k with its k.
        valid: (B,) bool; None: all. Invalid rows may be negatives of others. Without a valid row, loss and gradient are
            zero.
        similarity, temperature: see :class:`TimeContrastiveConfig`.
    """
    TimeContrastiveConfig(similarity=similarity, temperature=temperature)
    if z.ndim != 3 or z.shape[1] != 3:
        raise ConfigError(f"expected z of shape (B, 3, F): the timesteps i, j, k; got {tuple(z.shape)}.")
    for which, mask in zip("ik", negatives, strict=True):
        if mask.shape != (len(z), len(z)):
            raise ConfigError(
                f"expected negatives of {which} of shape {(len(z), len(z))} for {len(z)} rows, got {tuple(mask.shape)}."
            )
    first, middle, last = z.to(torch.promote_types(z.dtype, torch.float32)).unbind(dim=1)
    apart = _pairs(first, last, similarity) / temperature
    terms = []
    for end, mask in zip((first, last), negatives, strict=True):
        near = _pairs(end, middle, similarity) / temperature
        S = (time_similarity(end, end, similarity) / temperature).masked_fill(~mask, -torch.inf)
        terms.append(torch.logsumexp(torch.cat([near[:, None], apart[:, None], S], dim=1), dim=1) - near)
    return masked_mean((terms[0] + terms[1]) / 2, valid)


def _pairs(x: Tensor, y: Tensor, similarity: Literal["l2", "cosine"]) -> Tensor:
    """(B,) similarity of row b of x with row b of y."""
    if similarity == "cosine":
        return (torch.nn.functional.normalize(x, dim=1) * torch.nn.functional.normalize(y, dim=1)).sum(dim=1)
    return -torch.linalg.vector_norm(x - y, dim=1)


class TimeContrastive(Objective):
    """Three timesteps of an episode, and timesteps of others.

    The anchor is i. For an episode's last two steps j and k are the anchor itself, and their rows are masked, though
    other rows are contrasted with them. Both occur as j and k, as in R3M.
    """

    def __init__(self, config: TimeContrastiveConfig, material: Material) -> None:
        super().__init__()
        material.check_episodes(3, "a triple of timesteps")
        self.config, self.material = config, material

    def draw(self, anchors: IntArray, rng: np.random.Generator) -> IntArray:
        """j and k of each anchor i: two later steps of its episode within the window, uniform over all pairs.

        R3M draws j first, and i and k from what it leaves on both sides; k may be j there, but not here.
        """
        anchors = np.asarray(anchors, np.int64)
        later = self.material.bounds(anchors)[1] - 1 - anchors
        if self.config.window:
            later = np.minimum(later, self.config.window)
        one = rng.integers(0, np.maximum(later, 2))
        other = rng.integers(0, np.maximum(later - 1, 1))
        other += other >= one
        pairs = anchors[:, None] + 1 + np.sort(np.stack([one, other], axis=1), axis=1)
        return np.where(later[:, None] >= 2, pairs, anchors[:, None])

    def loss(self, z: Tensor, rows: IntArray, *, target: Tensor | None, generator: torch.Generator) -> Loss:
        """Logs the shares of valid rows, and of those whose three timesteps are in order."""
        config, timesteps = self.config, z[:, :, 0]
        episodes = torch.from_numpy(self.material.bounds(rows[:, 0])[0]).to(z.device)
        candidates = episodes[:, None] != episodes[None, :]
        negatives_i = draw_negatives(candidates, config.negatives, generator)
        negatives_k = draw_negatives(candidates, config.negatives, generator)
        valid = torch.from_numpy(rows[:, 1] < rows[:, 2]).to(z.device)
        loss = time_contrastive_loss(
            timesteps,
            (negatives_i, negatives_k),
            valid=valid,
            similarity=config.similarity,
            temperature=config.temperature,
        )
        first, middle, last = timesteps.detach().unbind(dim=1)
        early, late, apart = (
            _pairs(x, y, config.similarity) for x, y in ((first, middle), (middle, last), (first, last))
        )
        aligned = ((early > apart) & (late > apart)).to(z.dtype)
        return loss, {"aligned": masked_mean(aligned, valid), "anchors": valid.to(z.dtype).mean()}
