"""CLASS pre-training (paper sections 4.2, 4.3, C.1): the loop, and nothing else.

Every random draw is a function of (seed, step). So a run that was killed and resumed ends with the same bits as one
that was not, and there is no generator state to save.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from classact.augment import AugmentConfig, augment
from classact.batches import epoch_batches, positive_batches
from classact.checkpoints import (
    TrainingState,
    load_latest,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)
from classact.encoders import EncoderConfig, ImageEncoder
from classact.errors import ClassactError, ConfigError, DataError, TrainingInterrupted, choose
from classact.images import sample_digest
from classact.interruptions import interruptible
from classact.objectives import SoftInfoNCEConfig, soft_infonce
from classact.optim import OptimizerConfig, ema_decay, learning_rate, make_optimizer, update_ema
from classact.similarity import ActionSimilarity, SimilarityConfig, similarity_identity, window_stream
from classact.similarity.distribution import read_distribution
from classact.similarity.graph import SimilarityGraph
from classact.similarity.model import naming
from classact.storage import append_jsonl
from classact.types import Demonstrations, ImageArray, IntArray

PRECISIONS = ("auto", "float32", "bfloat16")
POSITIVES = ("online", "graph")


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides the result of a pre-training, given the data.

    Attributes:
        epochs: passes over all steps; steps of training = ceil(N epochs / batch_size).
        batch_size: images per step, drawn without replacement within an epoch (table 4: 160).
        seed: of initial weights, batches and augmentations.
        positives: where a batch's weights come from: "online": its B x B distances are computed when it is used (the
            paper's appendix B); "graph": looked up in the graph that ``classact similarity --graph`` wrote. Both give
            the same weights, unless the graph is capped.
        positives_per_anchor: with "graph", draw for each anchor of a batch so many of its positives into the batch; 0
            draws all steps alike.
        precision: of the trunk's convolutions: "float32", "bfloat16", or "auto": bfloat16 where the processor computes
            in it natively.
        log_every: steps between rows of train.jsonl.
        checkpoint_every: steps between checkpoints.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    similarity: SimilarityConfig = field(default_factory=SimilarityConfig)
    objective: SoftInfoNCEConfig = field(default_factory=SoftInfoNCEConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: float = 100.0
    batch_size: int = 160
    seed: int = 0
    positives: str = "online"
    positives_per_anchor: int = 0
    precision: str = "auto"
    log_every: int = 20
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(choose("precision", self.precision, PRECISIONS))
        if self.positives not in POSITIVES:
            raise ConfigError(choose("source of positives", self.positives, POSITIVES))
        if self.positives_per_anchor < 0 or (self.positives_per_anchor and self.positives != "graph"):
            raise ConfigError(
                f"expected positives_per_anchor >= 0, and 0 unless positives come from a graph; got "
                f"{self.positives_per_anchor} with positives {self.positives!r}."
            )
        if self.epochs <= 0 or self.batch_size < 2 or self.log_every < 1 or self.checkpoint_every < 1:
            raise ConfigError(
                f"expected epochs > 0, batch_size >= 2, log_every >= 1 and checkpoint_every >= 1, got epochs "
                f"{self.epochs}, batch_size {self.batch_size}, log_every {self.log_every}, checkpoint_every "
                f"{self.checkpoint_every}."
            )

    def steps(self, n: int) -> int:
        """Updates for a data set of ``n`` steps."""
        return int(np.ceil(n * self.epochs / min(self.batch_size, n)))


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether the trunk runs in bfloat16 on this machine."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    # Without the instructions bfloat16 is emulated and slower than float32.
    return "avx512_bf16" in _cpu_flags() or "amx_bf16" in _cpu_flags()


def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The generator of one step's augmentations."""
    entropy = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(entropy >> np.uint64(1)))


def encoder_images(demonstrations: Demonstrations, config: EncoderConfig) -> ImageArray:
    """(N, S, S, 3) uint8: the images that an encoder is trained on.

    Raises:
        DataError: the data have no such camera, or images of another size.
    """
    camera, size = config.camera, config.image_size
    if camera not in demonstrations.images:
        raise DataError(choose("camera", camera, demonstrations.images) + f" in {demonstrations.name}.")
    images = demonstrations.images[camera]
    if images.shape[1:3] != (size, size):
        raise DataError(
            f"{demonstrations.name}: expected images of {size} x {size} pixels for this encoder, got "
            f"{images.shape[1]} x {images.shape[2]}; prepare them with classact.frames."
        )
    return images


@dataclass
class Trainer:
    """One pre-training.

    Args:
        demonstrations: actions, and images (N, S, S, 3) of ``config.encoder.camera`` at ``config.encoder.image_size``.
        config: settings.
        folder: where checkpoints and train.jsonl go; None keeps nothing.
        device: "cpu" or "cuda".
        similarity_folder: written by ``classact similarity`` for the same data and settings: its threshold and CDF,
            and its graph, are used, not measured again.
        progress: called with (pairs done, pairs in all, status) while the similarity is measured.
    """

    demonstrations: Demonstrations
    config: PretrainConfig
    folder: Path | None = None
    device: str = "cpu"
    similarity_folder: Path | None = None
    progress: Callable[[int, int, str], None] | None = None

    def __post_init__(self) -> None:
        self.images = encoder_images(self.demonstrations, self.config.encoder)
        self.episodes = self.demonstrations.episode_index()
        self.steps = self.config.steps(self.demonstrations.num_steps)
        device = torch.device(self.device)
        self.bf16 = use_bfloat16(self.config.precision, device)
        self._measure_similarity()
        self.encoder = ImageEncoder(self.config.encoder, seed=self.config.seed).to(device)
        self.average = ImageEncoder(self.config.encoder, load_init=False).to(device)
        self.average.load_state_dict(self.encoder.state_dict())
        self.optimizer = make_optimizer(self.encoder.parameters(), self.config.optimizer)
        self.step = 0
        self.seconds = 0.0

    def _measure_similarity(self) -> None:
        config, folder = self.config.similarity, self.similarity_folder
        if self.config.positives == "graph" and folder is None:
            raise ConfigError(
                "positives are to come from a graph, but none is given: build one with 'classact similarity --graph' "
                "and name its folder."
            )
        distribution, self.graph = None, None
        with naming(self.demonstrations):
            if folder is not None:
                identity = similarity_identity(window_stream(self.demonstrations, config), config)
                distribution = read_distribution(folder / "distribution", identity)
                if self.config.positives == "graph":
                    self.graph = SimilarityGraph.open(folder / "graph", identity)
            self.similarity = ActionSimilarity(
                self.demonstrations, config, device=self.device, distribution=distribution, progress=self.progress
            )

    def _batches(self) -> Iterator[IntArray]:
        n, config = self.demonstrations.num_steps, self.config
        if self.graph is None or not config.positives_per_anchor:
            return epoch_batches(n, config.batch_size, config.seed, self.step)
        return positive_batches(
            n,
            config.batch_size,
            config.seed,
            self.step,
            self.graph,
            config.positives_per_anchor,
            weigh=self.similarity.distribution.weights,
        )

    def _weights(self, rows: IntArray) -> torch.Tensor:
        """(B, B) soft positive weights on the training device."""
        if self.graph is None:
            return self.similarity.weights_tensor(rows)
        return torch.from_numpy(self.graph.weights(rows, self.similarity.distribution)).to(self.device)

    # -- one step ---------------------------------------------------------------------------------------------------

    def train_step(self, rows: IntArray) -> dict[str, float]:
        """One update on the steps ``rows`` (B,). Returns what is logged."""
        config = self.config
        device = torch.device(self.device)
        rows = np.sort(rows)  # neighbours in the file: fewer page faults, and the loss does not care
        weights = self._weights(rows)
        ignore = None
        if config.objective.pairs == "cross-episode":
            ignore = torch.from_numpy(self.episodes[rows][:, None] == self.episodes[rows][None, :]).to(device)
            weights = weights.masked_fill(ignore, 0.0)
        generator = step_generator(config.seed, self.step, device)
        images = torch.from_numpy(np.ascontiguousarray(self.images[rows])).to(device)
        pixels = augment(images, config.encoder.crop_size, config.augment, generator)
        features = self.encoder(self.encoder.normalize(pixels), bf16=self.bf16)
        if config.augment.feature_noise:
            noise = torch.randn(features.shape, generator=generator, device=device)
            features = features + config.augment.feature_noise * noise
        loss = soft_infonce(
            features,
            weights,
            temperature=config.objective.temperature,
            reduction=config.objective.reduction,
            ignore=ignore,
        )
        rate = learning_rate(config.optimizer, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), config.optimizer.clip_norm)
        self.optimizer.step()
        self.step += 1
        update_ema(
            list(self.average.parameters()),
            list(self.encoder.parameters()),
            ema_decay(self.step, config.optimizer.ema_power),
        )
        positives = (weights > 0).sum(dim=1).double()
        return {
            "loss": float(loss.detach()),
            "lr": rate,
            "grad_norm": float(norm),
            "positives": float(positives.mean()),
            "anchors": float((positives > 0).double().mean()),
        }

    # -- the run ----------------------------------------------------------------------------------------------------

    def fit(self, progress: Callable[[int, int, str], None] | None = None) -> ImageEncoder:
        """Train to the end, from the newest intact checkpoint in ``folder`` if there is one.

        Args:
            progress: called with (steps done, steps in all, a short status) after each step.

        Returns:
            The encoder with averaged (EMA) weights.

        Raises:
            TrainingInterrupted: Ctrl-C or SIGTERM; the state was saved.
            CheckpointError: the checkpoint belongs to other settings or data.
            ClassactError: the loss became NaN or infinite; the last checkpoint is from before.
        """
        self.resume()
        rows = self._batches()
        begin, spent = time.perf_counter(), self.seconds
        mark, window = self.step, begin
        with interruptible() as interrupted:
            while self.step < self.steps:
                batch = next(rows)
                stats = self.train_step(batch)
                now = time.perf_counter()
                self.seconds = spent + now - begin
                if not np.isfinite([stats["loss"], stats["grad_norm"]]).all():
                    raise ClassactError(
                        f"the loss became {stats['loss']} and its gradient's norm {stats['grad_norm']} at step "
                        f"{self.step} of {self.steps}. Lower the learning rate (now "
                        f"{self.config.optimizer.learning_rate}); the last checkpoint is from before that."
                    )
                if progress is not None:
                    progress(self.step, self.steps, f"loss {stats['loss']:.3f}")
                if self.step % self.config.log_every == 0 or self.step == self.steps:
                    speed = (self.step - mark) * len(batch) / max(now - window, 1e-9)
                    mark, window = self.step, now
                    self._log(stats, speed)
                if interrupted():
                    self.save()
                    what = f"saved in {self.folder}; training goes on from there" if self.folder else "lost: no folder"
                    raise TrainingInterrupted(f"stopped at step {self.step} of {self.steps}; the state is {what}.")
                if self.step % self.config.checkpoint_every == 0 or self.step == self.steps:
                    self.save()
        return self.average

    def _log(self, stats: dict[str, float], speed: float) -> None:
        if self.folder is None:
            return
        n = self.demonstrations.num_steps
        row = {
            "step": self.step,
            "steps": self.steps,
            "epoch": self.step * min(self.config.batch_size, n) / n,
            **stats,
            "images_per_second": speed,
            "seconds": self.seconds,
        }
        append_jsonl(self.folder / "train.jsonl", row)

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be continued."""
        config = asdict(self.config)
        for key in ("log_every", "checkpoint_every"):
            del config[key]
        return {
            "config": config,
            "data": self.demonstrations.fingerprint(),
            "images": sample_digest(self.images),
            "max_neighbors": None if self.graph is None else self.graph.cap,
            "bfloat16": self.bf16,
        }

    def save(self) -> None:
        """Write a checkpoint of the present state."""
        if self.folder is None:
            return
        tensors = {f"model.{k}": v for k, v in self.encoder.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.average.state_dict().items()}
        tensors |= optimizer_tensors(self.optimizer)
        meta = {"identity": self.identity(), "seconds": self.seconds}
        save_checkpoint(self.folder / "checkpoints", TrainingState(self.step, tensors, meta))

    def resume(self) -> bool:
        """Load the newest intact checkpoint of ``folder``; False where there is none.

        Raises:
            CheckpointError: it belongs to other settings, other data or another architecture.
        """
        state = load_latest(self.folder / "checkpoints") if self.folder else None
        if state is None:
            return False
        where = Path(f"{self.folder}/checkpoints/step-{state.step:08d}")
        state.check_identity(self.identity(), where)
        self.encoder.load_weights(state.part("model."), where)
        self.average.load_weights(state.part("ema."), where)
        load_optimizer_tensors(self.optimizer, state.tensors)
        self.step, self.seconds = state.step, float(state.meta["seconds"])
        return True
