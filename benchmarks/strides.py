"""What a stride costs and keeps: windows of fast data compared by means of several steps.

On demonstrations of a simulated task, for several strides: CPU time of a batch, agreement of the positives with those
at full rate, and how far apart things are in positives among early timesteps, as a share of any two of them.

    uv run --extra aloha python benchmarks/strides.py --data runs/demonstrations/aloha-transfer-50.npz
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from classact.data.readers import read_demonstrations
from classact.run.presets import PRESETS
from classact.run.similarity import compared_columns
from classact.similarity.apart import early_rows, objects_apart
from classact.similarity.diagnostics import jaccard
from classact.similarity.distribution import DistanceDistribution
from classact.similarity.model import ActionSimilarity, window_stream
from classact.similarity.pairwise import sample_pairs, stream_pairs
from classact.utils.machine import hardware
from common import RESULTS, command, keep

ANCHORS, OTHERS = 160, 1440
"""Of a batch with a queue."""


@dataclass
class Flags:
    """What a stride costs and keeps.

    Attributes:
        data: demonstrations with states.
        json: where the results go.
        preset: of the similarity.
        strides: that are compared with the first.
        pairs: sample that thresholds and agreement are of.
        repeats: batches that are timed; the least CPU time counts.
        seed: of the sample.
    """

    data: Path
    json: Path = RESULTS / "strides.json"
    preset: str = "aloha-transfer-cpu"
    strides: tuple[int, ...] = (1, 2, 5, 10)
    pairs: int = 60_000
    repeats: int = 5
    seed: int = 0


def main(flags: Flags) -> None:
    """Measure and write all strides."""
    data = read_demonstrations(flags.data)
    settings = PRESETS[flags.preset].pretrain.similarity
    columns, early = compared_columns(data), early_rows(data.episode_ends, 0.1)
    pairs = sample_pairs(data.num_steps, flags.pairs, flags.seed)
    batch = np.random.default_rng(flags.seed).choice(data.num_steps, OTHERS, replace=False)
    first = None
    for stride in flags.strides:
        config = replace(settings, stride=stride)
        stream = window_stream(data, config)
        distances = stream_pairs(stream, *pairs, cost=config.cost, band=config.alignment_band)
        distribution = DistanceDistribution.fit(distances, config.quantile)
        positives = distances <= distribution.threshold
        first = positives if first is None else first
        similarity = ActionSimilarity(data, config, distribution=distribution)
        apart = objects_apart(stream, data.episode_index(), columns, distribution, early)
        row = {
            "horizon": config.horizon,
            "compared": stream.horizon,
            "batch_cpu_seconds": round(cpu_seconds(similarity, batch, flags.repeats), 4),
            "jaccard": round(jaccard(positives, first), 4),
            "apart": [asdict(one) for one in apart],
            "hardware": hardware(),
        }
        keep(flags.json, data.name, str(stride), row)
        print(stride, row, flush=True)


def cpu_seconds(similarity: ActionSimilarity, batch: np.ndarray, repeats: int) -> float:
    """The least CPU time of the weights of a batch, all threads together."""
    similarity.weights(batch, ANCHORS)  # compiled
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        similarity.weights(batch, ANCHORS)
        times.append(time.process_time() - begin)
    return min(times)


if __name__ == "__main__":
    raise SystemExit(command(Flags, main))
