"""What a training step costs beside the encoder itself, and beside the released code's way of loading images.

In one process, in turns:

* the bare encoder's forward and backward pass, as training runs it (compiled and channels-last where that is the
  engine's choice), on normalised inputs that lie ready on the device;
* the whole step: gathering images, DTW and soft weights, augmentation, loss, clipping, optimiser, weight average;
* the same encoder in float32, not compiled, fed as the released code does: one image at a time in Python, converted to
  float32 on the host, stacked, and copied to the device; loss, optimiser and average as in the whole step.

    uv run python benchmarks/training_throughput.py                                    Push-T, the CPU preset
    uv run python benchmarks/training_throughput.py --preset paper-pusht --random 40000 --json FILE
                                                                                       ResNet-18 on random images
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from classact.data.readers import read_demonstrations
from classact.data.types import Demonstrations, IntArray
from classact.run.frames import prepare_frames
from classact.run.presets import from_preset
from classact.train.batches import epoch_batches
from classact.train.config import EngineConfig, PretrainConfig
from classact.train.engine import Batch, Stats
from classact.train.representation import Trainer, is_compiled, memory_format
from classact.utils.machine import choose_device
from common import parser, peak_mebibytes, save, seconds


def random_data(config: PretrainConfig, steps: int) -> Demonstrations:
    """Random images and random walks of actions."""
    rng = np.random.default_rng(0)
    size = config.encoder.image_size
    images = rng.integers(0, 256, (steps, size, size, 3), np.uint8)
    ends = np.append(np.arange(150, steps, 150), steps).astype(np.int64)
    actions = rng.standard_normal((steps, 2), np.float32).cumsum(axis=0)
    return Demonstrations("random", ends, actions, actions.copy(), images={config.encoder.cameras[0]: images})


class ReleasedLoading(Trainer):
    """Fed as the released code is; everything else as always."""

    def gradients(self, rows: IntArray, part: slice, images: Batch, generator: torch.Generator) -> Stats:  # noqa: ARG002
        (camera,) = self.config.encoder.cameras
        recorded = self.images[camera]
        frames = [torch.from_numpy(np.array(recorded[row])).permute(2, 0, 1).float() for row in rows[part]]
        batch = torch.stack(frames).to(self.device)
        return super().gradients(rows, part, {camera: batch.permute(0, 2, 3, 1)}, generator)


def measure(data: Demonstrations, config: PretrainConfig, device: torch.device, repeats: int) -> dict[str, Any]:
    """Milliseconds of encoder, whole step, its weights and the released code's loading; images per second."""
    lines: list[str] = []
    trainer = Trainer(data, config, device=device.type, say=lines.append)
    plain = ReleasedLoading(
        data,
        replace(config, precision="float32"),
        device=device.type,
        engine=EngineConfig(compile="no", channels_last="no", loader="prefetch"),
    )
    plain.loader = None
    B, encoder = config.batch_size, config.encoder
    batches = epoch_batches(data.num_steps, B, 0, 0)
    pixels = torch.rand(B, 1, 3, encoder.crop_size, encoder.crop_size, device=device) * 255
    inputs = trainer._encode.inputs(pixels)
    target = torch.randn(B, trainer.encoder.feature_dim, device=device)

    def bare() -> None:
        trainer.encoder.zero_grad(set_to_none=True)
        (trainer._encode.run(inputs, bf16=trainer.bf16) * target).sum().backward()

    def step() -> None:
        trainer.train_step(next(batches))

    def weights() -> None:
        trainer.similarity.weights_tensor(np.sort(next(batches)))

    def released() -> None:
        plain.train_step(next(batches))

    def timed(function: Callable[[], None]) -> Callable[[], None]:
        def call() -> None:
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()

        return call

    step()  # which compiles where that is wanted
    contenders = {"bare": timed(bare), "step": timed(step), "weights": timed(weights), "released": timed(released)}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for function in (*contenders.values(),) * 3:
        function()
    for _ in range(repeats):
        for name, function in contenders.items():
            times[name].append(seconds(function))
    median = {name: statistics.median(values) for name, values in times.items()}

    def ratio(one: str, two: str) -> float:
        return statistics.median(a / b for a, b in zip(times[one], times[two], strict=True))

    return {
        "data": data.name,
        "device": device.type,
        "batch_size": B,
        "bfloat16": trainer.bf16,
        "compiled": is_compiled(trainer.engine, device),
        "channels_last": memory_format(trainer.engine, device) == torch.channels_last,
        "loader": lines,
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "bare_ms": 1e3 * median["bare"],
        "step_ms": 1e3 * median["step"],
        "similarity_ms": 1e3 * median["weights"],
        "released_ms": 1e3 * median["released"],
        "ratio": ratio("step", "bare"),
        "released_ratio": ratio("released", "step"),
        "images_per_second": B / median["step"],
        "peak_memory_mib": peak_mebibytes(),
    }


def main() -> None:
    arguments = parser(__doc__ or "", "training_throughput")
    arguments.add_argument("--data", default="pusht-expert")
    arguments.add_argument("--preset", default="pusht-cpu")
    arguments.add_argument("--random", type=int, help="so many random images instead of data, initial weights random")
    arguments.add_argument("--device", default="auto")
    arguments.add_argument("--repeats", type=int, default=30)
    options = arguments.parse_args()
    run = from_preset(options.preset)
    config = replace(run.pretrain, encoder=replace(run.pretrain.encoder, init="scratch"))
    encoder, device = config.encoder, torch.device(choose_device(options.device))
    if options.random:
        data = random_data(config, options.random)
    else:
        data = prepare_frames(read_demonstrations(options.data), encoder.cameras, encoder.image_size, run.frames)
    save(options.json, {"preset": options.preset, **measure(data, config, device, options.repeats)})


if __name__ == "__main__":
    main()
