"""Latents in the plane: t-SNE as in the paper's appendix J.1."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from classact.errors import ConfigError, DataError

# For fewer points a perplexity is meaningless, and the two principal components are drawn instead.
SMALLEST = 8


def clipped_perplexity(n: int, perplexity: float) -> float:
    """The perplexity for n points: at most (n - 1) / 3, since 3 x perplexity neighbours are considered."""
    return min(float(perplexity), (n - 1) / 3)


def latent_map(latents: NDArray[np.float32], seed: int, perplexity: float = 100) -> NDArray[np.float32]:
    """(n, 2) float32 t-SNE, centred at the origin, of finite latents (n, d) under cosine distance, as in retrieval.

    The same latents and seed give the same map on the same machine. The perplexity, which must be positive, is clipped
    by :func:`clipped_perplexity`; fewer than 8 points are placed by their two principal components.
    """
    latents = np.asarray(latents, dtype=np.float32)
    if latents.ndim != 2 or 0 in latents.shape:
        raise DataError(f"expected latents of shape (n, d) with n, d >= 1, got {latents.shape}.")
    if not np.isfinite(latents).all():
        row = int(np.argwhere(~np.isfinite(latents))[0, 0])
        raise DataError(f"latents hold NaN or infinite values, first in row {row} of {len(latents)}.")
    if perplexity <= 0:
        raise ConfigError(f"expected a perplexity above 0, got {perplexity}.")
    n = len(latents)
    start = _principal_components(latents)
    if n < SMALLEST:
        return start.astype(np.float32)
    from openTSNE import TSNE

    # Principal components as initial positions keep the global layout and leave nothing to chance; scaled down as
    # openTSNE advises, so that early forces are small.
    spread = float(start[:, 0].std())
    if spread == 0:
        start = np.random.default_rng(seed).normal(size=(n, 2))
        spread = 1.0
    embedding = TSNE(
        perplexity=clipped_perplexity(n, perplexity),
        initialization=start / spread * 1e-4,
        metric="cosine",
        neighbors="exact",
        random_state=seed,
        n_jobs=1,  # leaves the other cores to training
    ).fit(latents.astype(np.float64))
    xy = np.asarray(embedding, dtype=np.float64)
    centred: NDArray[np.float32] = (xy - xy.mean(axis=0)).astype(np.float32)
    return centred


def _principal_components(latents: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n, 2) scores on the first two principal components, zeros where there are fewer; signs are fixed."""
    centred = latents.astype(np.float64) - latents.mean(axis=0, dtype=np.float64)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    scores = u[:, :2] * s[:2]
    for column in scores.T:
        column *= 1.0 if column[np.argmax(np.abs(column))] >= 0 else -1.0
    return np.pad(scores, ((0, 0), (0, 2 - scores.shape[1])))
