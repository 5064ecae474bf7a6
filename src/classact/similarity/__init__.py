"""Action similarity: which observations lead to similar future actions (paper section 4.1, appendix B)."""

from typing import TYPE_CHECKING

from classact.similarity.config import SimilarityConfig as SimilarityConfig
from classact.utils.lazy import attach

if TYPE_CHECKING:
    from classact.similarity.counts import DistanceCounts as DistanceCounts
    from classact.similarity.distribution import DistanceDistribution as DistanceDistribution
    from classact.similarity.model import ActionSimilarity as ActionSimilarity
    from classact.similarity.model import fit_distribution as fit_distribution
    from classact.similarity.model import similarity_identity as similarity_identity
    from classact.similarity.model import window_stream as window_stream
    from classact.similarity.pairwise import dtw_pairs as dtw_pairs
    from classact.similarity.pairwise import dtw_pairwise as dtw_pairwise
    from classact.similarity.reference import COSTS as COSTS
    from classact.similarity.reference import alignment as alignment
    from classact.similarity.reference import dtw as dtw
    from classact.similarity.stream import Pairs as Pairs
    from classact.similarity.stream import Sweep as Sweep
    from classact.similarity.stream import WindowStream as WindowStream
    from classact.similarity.sweep import make_sweep as make_sweep

__getattr__, __dir__ = attach(__name__, __file__)
