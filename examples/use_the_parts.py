"""The pieces on their own: read demonstrations, measure action similarity, search neighbours of a timestep.

uv run python examples/use_the_parts.py
"""

import numpy as np

from classact.data.readers import read_demonstrations
from classact.policies import RetrievalConfig, RetrievalPolicy, StateLatents
from classact.similarity import ActionSimilarity, SimilarityConfig

data = read_demonstrations("pusht-expert")
print(f"{len(data)} demonstrations, {data.num_steps} steps")

similarity = ActionSimilarity(data, SimilarityConfig(quantile=0.015, pairs=500_000))
rows = np.random.default_rng(0).choice(data.num_steps, 160, replace=False)
weights = similarity.weights(rows)
print(
    f"positives are closer than {similarity.distribution.threshold:.3f}; {np.mean(weights > 0):.1%} of a batch's pairs"
)

policy = RetrievalPolicy.build(StateLatents(256, 256, angles=(4,)), data, RetrievalConfig(k=5, temperature=0.001))
neighbors = policy.search(policy.bank[:1])
print("nearest timesteps of the first:", neighbors.rows[0].tolist(), "cosine:", neighbors.cosine[0].round(4).tolist())
