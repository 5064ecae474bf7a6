"""Action similarity: which observations lead to similar future actions (paper section 4.1, appendix B)."""

from classact.similarity.cpu import dtw_pairs, dtw_pairwise
from classact.similarity.distribution import DistanceDistribution
from classact.similarity.model import ActionSimilarity, SimilarityConfig
from classact.similarity.reference import COSTS, dtw

__all__ = [
    "COSTS",
    "ActionSimilarity",
    "DistanceDistribution",
    "SimilarityConfig",
    "dtw",
    "dtw_pairs",
    "dtw_pairwise",
]
