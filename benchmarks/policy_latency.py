"""How long one decision of the retrieval policy takes: encoding, search, averaging; p50 and p95.

    uv run python benchmarks/policy_latency.py [--policy RUN/policy]

Without --policy an untrained encoder and the embedded demonstrations are used: latency does not depend on the weights.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from classact.encoders import ImageEncoder
from classact.normalize import MinMax
from classact.pipeline import from_preset
from classact.policies import ImageLatents, RetrievalPolicy
from classact.readers import read_demonstrations
from classact.sims import make_simulator
from common import parser, save


def build() -> RetrievalPolicy:
    """A policy over the embedded demonstrations with random latents of the right shape in its bank."""
    config = from_preset("pusht-cpu")
    data = read_demonstrations("pusht-expert")
    latents = ImageLatents(ImageEncoder(config.pretrain.encoder), MinMax.fit(data.proprioception))
    bank = np.random.default_rng(0).normal(size=(data.num_steps, latents.encoder.feature_dim + 2)).astype(np.float32)
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    return RetrievalPolicy(latents, bank, data.actions, data.episode_ends, config.retrieval)


def main() -> None:
    arguments = parser(__doc__ or "", "policy_latency")
    arguments.add_argument("--policy", type=Path, default=None)
    arguments.add_argument("--repeats", type=int, default=300)
    options = arguments.parse_args()
    policy = RetrievalPolicy.load(options.policy) if options.policy else build()
    sim = make_simulator("pusht")
    result = {}
    for batch in (1, 50):
        observations = []
        for seed in range(batch):
            sim.reset(seed)
            observations.append(sim.observe())
        times: dict[str, list[float]] = {"encode": [], "search": [], "average": [], "whole": []}
        repeats = options.repeats if batch == 1 else max(30, options.repeats // 10)
        for number in range(repeats + 5):
            begin = time.perf_counter()
            z = policy.latents.observations(observations)
            encoded = time.perf_counter()
            neighbors = policy.search(z)
            searched = time.perf_counter()
            np.einsum("bk,bktd->btd", neighbors.weights, policy.chunks(neighbors.rows))
            end = time.perf_counter()
            if number >= 5:  # the first calls compile and warm up
                for name, span in zip(
                    times, (encoded - begin, searched - encoded, end - searched, end - begin), strict=True
                ):
                    times[name].append(1e3 * span)
        result[f"batch_{batch}"] = {
            name: {"p50_ms": float(np.percentile(v, 50)), "p95_ms": float(np.percentile(v, 95))}
            for name, v in times.items()
        }
    sim.close()
    save(options.json, {"bank": len(policy.bank), "k": policy.config.k, "repeats": options.repeats, "latency": result})


if __name__ == "__main__":
    main()
