"""Vector quantisation with a codebook that follows the vectors (VQ-VAE, arXiv 1711.00937, appendix A.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DECAY = 0.99
EPSILON = 1e-5


class Quantizer(nn.Module):
    """Replaces vectors by the nearest of K entries, whose moving averages they are.

    Attributes:
        codebook: (K, Z) entries.
        counts: (K,) moving average of how many vectors each entry stood for.
        sums: (K, Z) moving average of their sums.
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        entries = torch.randn(codes, dim)
        self.register_buffer("codebook", entries)
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", entries.clone())

    def nearest(self, vectors: Tensor) -> Tensor:
        """(B,) numbers of the nearest entries."""
        return torch.cdist(vectors.detach(), self.codebook).argmin(dim=1)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors (B, Z) -> entries (B, Z) with the vectors' gradient, the commitment loss, numbers (B,)."""
        numbers = self.nearest(vectors)
        entries = self.codebook[numbers]
        return vectors + (entries - vectors).detach(), nn.functional.mse_loss(vectors, entries), numbers

    @torch.no_grad()
    def tally(self, vectors: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """How many of a batch each entry stands for (K,), and their sums (K, Z)."""
        chosen = nn.functional.one_hot(numbers, len(self.codebook)).to(vectors.dtype)
        return chosen.sum(0), chosen.T @ vectors

    @torch.no_grad()
    def follow(self, counts: Tensor, sums: Tensor) -> None:
        """Move the entries towards what :meth:`tally` found in a whole batch."""
        self.counts.lerp_(counts, 1 - DECAY)
        self.sums.lerp_(sums, 1 - DECAY)
        total = self.counts.sum()
        smoothed = (self.counts + EPSILON) / (total + len(self.counts) * EPSILON) * total
        self.codebook.copy_(self.sums / smoothed[:, None])
