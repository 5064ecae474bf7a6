"""What a training step costs beside the encoder itself.

The bare encoder's forward and backward pass on tensors that lie ready, against the whole step: gathering images from
the memory map, DTW and soft weights, augmentation, loss, clipping, optimiser, weight average. Both in one process, in
turns.

    uv run python benchmarks/training_throughput.py
"""

from __future__ import annotations

import statistics

import numpy as np
import torch

from classact.batches import epoch_batches
from classact.frames import prepare_frames
from classact.pipeline import from_preset
from classact.readers import read_demonstrations
from classact.training import Trainer
from common import parser, peak_mebibytes, save, seconds


def main() -> None:
    arguments = parser(__doc__ or "", "training_throughput")
    arguments.add_argument("--data", default="pusht-expert")
    arguments.add_argument("--preset", default="pusht-cpu")
    arguments.add_argument("--repeats", type=int, default=30)
    options = arguments.parse_args()
    config = from_preset(options.preset)
    encoder = config.pretrain.encoder
    data = prepare_frames(read_demonstrations(options.data), encoder.camera, encoder.image_size, config.frames)
    trainer = Trainer(data, config.pretrain)
    batches = epoch_batches(data.num_steps, config.pretrain.batch_size, 0, 0)
    inputs = torch.randn(config.pretrain.batch_size, 3, encoder.crop_size, encoder.crop_size)
    target = torch.randn(config.pretrain.batch_size, trainer.encoder.feature_dim)

    def bare() -> None:
        trainer.encoder.zero_grad(set_to_none=True)
        (trainer.encoder(inputs, bf16=trainer.bf16) * target).sum().backward()

    def step() -> None:
        trainer.train_step(next(batches))

    def weights() -> None:
        trainer.similarity.weights(np.sort(next(batches)))

    times: dict[str, list[float]] = {"bare": [], "step": [], "weights": []}
    for function in (bare, step, weights) * 3:
        function()
    for _ in range(options.repeats):
        for name, function in (("bare", bare), ("step", step), ("weights", weights)):
            times[name].append(seconds(function))
    median = {name: statistics.median(values) for name, values in times.items()}
    save(
        options.json,
        {
            "preset": options.preset,
            "batch_size": config.pretrain.batch_size,
            "bfloat16": trainer.bf16,
            "threads": torch.get_num_threads(),
            "repeats": options.repeats,
            "bare_ms": 1e3 * median["bare"],
            "step_ms": 1e3 * median["step"],
            "similarity_ms": 1e3 * median["weights"],
            "ratio": statistics.median(s / b for s, b in zip(times["step"], times["bare"], strict=True)),
            "images_per_second": config.pretrain.batch_size / median["step"],
            "peak_memory_mib": peak_mebibytes(),
        },
    )


if __name__ == "__main__":
    main()
