import numpy as np
import pytest

from classact.errors import ConfigError, DataError
from classact.run.tsne import clipped_perplexity, latent_map


def clusters(seed: int = 0, each: int = 30, dim: int = 8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(3, dim)) * 5
    return np.concatenate([c + rng.normal(size=(each, dim)) for c in centres]).astype(np.float32)


def test_same_seed_gives_the_same_map_and_clusters_stay_together():
    latents = clusters()
    first, second = latent_map(latents, seed=3), latent_map(latents, seed=3)
    assert first.shape == (90, 2)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, second)
    centres = first.reshape(3, 30, 2).mean(axis=1)
    within = np.linalg.norm(first.reshape(3, 30, 2) - centres[:, None], axis=-1).mean()
    between = min(np.linalg.norm(centres[i] - centres[j]) for i, j in [(0, 1), (0, 2), (1, 2)])
    assert between > 2 * within


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 12])
def test_few_points_are_placed_too(n):
    xy = latent_map(clusters()[:n], seed=0)
    assert xy.shape == (n, 2)
    assert np.isfinite(xy).all()


def test_equal_and_one_dimensional_latents_do_not_fail():
    assert np.isfinite(latent_map(np.ones((20, 4), np.float32), seed=0)).all()
    assert latent_map(np.arange(1, 6, dtype=np.float32)[:, None], seed=0).shape == (5, 2)


def test_perplexity_rule():
    assert clipped_perplexity(1000, 100) == 100
    assert clipped_perplexity(61, 100) == 20


def test_what_cannot_be_mapped_is_named():
    with pytest.raises(DataError, match=r"\(n, d\).*\(4,\)"):
        latent_map(np.zeros(4, np.float32), seed=0)
    with pytest.raises(DataError, match="row 1 of 3"):
        latent_map(np.array([[0.0], [np.nan], [1.0]], np.float32), seed=0)
    with pytest.raises(ConfigError, match="perplexity above 0, got 0"):
        latent_map(np.zeros((4, 2), np.float32), seed=0, perplexity=0)
