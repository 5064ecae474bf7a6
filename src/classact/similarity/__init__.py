"""Action similarity: which observations lead to similar future actions (paper section 4.1, appendix B)."""

from classact.similarity.counts import DistanceCounts
from classact.similarity.distribution import DistanceDistribution
from classact.similarity.model import (
    ActionSimilarity,
    SimilarityConfig,
    fit_distribution,
    similarity_identity,
    window_stream,
)
from classact.similarity.pairwise import dtw_pairs, dtw_pairwise
from classact.similarity.reference import COSTS, alignment, dtw
from classact.similarity.stream import Pairs, Sweep, WindowStream
from classact.similarity.sweep import make_sweep

__all__ = [
    "COSTS",
    "ActionSimilarity",
    "DistanceCounts",
    "DistanceDistribution",
    "Pairs",
    "SimilarityConfig",
    "Sweep",
    "WindowStream",
    "alignment",
    "dtw",
    "dtw_pairs",
    "dtw_pairwise",
    "fit_distribution",
    "make_sweep",
    "similarity_identity",
    "window_stream",
]
