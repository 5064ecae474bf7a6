"""Behaviour cloning from an encoder (paper sections 4.3 and C.2): encoder and head are trained together.

As in :mod:`classact.training`, every random draw is a function of (seed, step), so a run that was killed and resumed
ends with the same bits as one that was not.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from classact.augment import AugmentConfig, augment
from classact.batches import epoch_batches
from classact.checkpoints import (
    TrainingState,
    list_checkpoints,
    load_checkpoint,
    load_latest,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)
from classact.encoders import EncoderConfig, ImageEncoder, encoder_config_from_json
from classact.errors import CheckpointError, ClassactError, ConfigError, TrainingInterrupted, choose
from classact.heads import DiffusionConfig, HeadConfig, head_config_to_json, head_name, load_head_weights, make_head
from classact.images import sample_digest
from classact.interruptions import interruptible
from classact.normalize import MinMax
from classact.optim import OptimizerConfig, ema_decay, learning_rate, update_ema
from classact.policies.parametric import ParametricConfig, ParametricPolicy
from classact.storage import append_jsonl, write_json
from classact.training import PRECISIONS, encoder_images, step_generator, use_bfloat16
from classact.types import Demonstrations, IntArray
from classact.windows import window_indices

WEIGHTS = ("average", "last")
LOG = "train.jsonl"
DIVERGED = "diverged.json"

TABLE_9: Mapping[str, tuple[int, int]] = {
    "square": (500, 100),
    "three-stack": (100, 20),
    "aloha-transfer": (500, 400),
    "libero-object": (500, 100),
    "pusht": (500, 250),
    "two-stack": (500, 100),
    "mug-hang": (500, 100),
    "toaster-load": (500, 100),
}
"""Epochs of the paper's table 9 by task: (trained from scratch, fine-tuned after CLASS pre-training)."""


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW with a rate for the head and a lower one for the encoder. The defaults are the paper's (C.2, table 7).

    Attributes:
        head_rate: peak rate of the head.
        encoder_rate: peak rate of the encoder, lower to preserve what was pre-trained.
        betas: table 7: (0.9, 0.99); the released code leaves PyTorch's (0.9, 0.999).
        weight_decay: on tensors of two or more dimensions.
        warmup_steps: linear warm-up, then half a cosine to zero; at most a tenth of all steps.
        clip_norm: largest norm of the whole gradient of encoder and head, applied after backward. (The released code
            clips to 1.0 before backward, which has no effect.)
        ema_power: weight average decay 1 - (1 + step) ** -power.
    """

    head_rate: float = 1e-4
    encoder_rate: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-6
    warmup_steps: int = 500
    clip_norm: float = 0.5
    ema_power: float = 0.75

    def __post_init__(self) -> None:
        if not min(self.head_rate, self.encoder_rate) > 0:
            raise ConfigError(
                f"expected head_rate > 0 and encoder_rate > 0, got {self.head_rate} and {self.encoder_rate}. To leave "
                f"the encoder as it is, set frozen."
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"expected two betas of at least 0 and below 1, got {self.betas}.")
        # The limits of what is shared are checked where they are used.
        self.schedule()

    def schedule(self) -> OptimizerConfig:
        """The shared settings, with a peak rate of 1: rates of groups are multiples of it."""
        return OptimizerConfig(
            name="adamw",
            learning_rate=1.0,
            weight_decay=self.weight_decay,
            warmup_steps=self.warmup_steps,
            clip_norm=self.clip_norm,
            ema_power=self.ema_power,
        )


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything that decides the result of a fine-tuning, given the data and the encoder it starts from.

    Attributes:
        head: settings of the policy head.
        encoder: architecture and image transform where training starts from scratch; a pre-trained encoder brings its
            own.
        weights: of a pre-training's checkpoint: "average" (EMA; what ``encoder/`` of a run holds) or "last" (the
            released code starts from these).
        frozen: train the head only.
        augment: random views, as in pre-training; None takes the centre crop. With a frozen encoder and None, features
            are computed once, which makes training much faster.
        optimizer: rates, schedule, averaging.
        epochs: passes over all steps; steps of training = ceil(N epochs / batch_size). Table 9 has 250 for Push-T
            after pre-training; see :data:`TABLE_9`.
        batch_size: decisions per step (table 7: 64).
        horizon: T_p, actions of a predicted chunk (table 7: 16).
        history: T_o, observations of a decision (table 7: 1); before an episode's start its first one is repeated.
        chunk_length: T_a, actions the trained policy executes per decision (table 7: 12).
        seed: of initial weights, batches, views and noise.
        precision: of the trunk's convolutions, see :class:`classact.training.PretrainConfig`. The head computes in
            float32.
        evaluations: at how many points, evenly over training, ``milestone`` is called (the paper: 10).
        log_every: steps between rows of train.jsonl.
        checkpoint_every: steps between checkpoints.
    """

    head: HeadConfig = field(default_factory=DiffusionConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    weights: str = "average"
    frozen: bool = False
    augment: AugmentConfig | None = field(default_factory=AugmentConfig)
    optimizer: AdamWConfig = field(default_factory=AdamWConfig)
    epochs: float = 250.0
    batch_size: int = 64
    horizon: int = 16
    history: int = 1
    chunk_length: int = 12
    seed: int = 0
    precision: str = "auto"
    evaluations: int = 10
    log_every: int = 20
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(choose("precision", self.precision, PRECISIONS))
        if self.weights not in WEIGHTS:
            raise ConfigError(choose("weights", self.weights, WEIGHTS))
        head_name(self.head)
        if not self.epochs > 0 or self.batch_size < 1 or min(self.log_every, self.checkpoint_every) < 1:
            raise ConfigError(
                f"expected epochs > 0, batch_size >= 1, log_every >= 1 and checkpoint_every >= 1, got epochs "
                f"{self.epochs}, batch_size {self.batch_size}, log_every {self.log_every}, checkpoint_every "
                f"{self.checkpoint_every}."
            )
        if not 1 <= self.chunk_length <= self.horizon or self.history < 1:
            raise ConfigError(
                f"expected 1 <= chunk_length <= horizon and history >= 1, got chunk_length {self.chunk_length}, "
                f"horizon {self.horizon}, history {self.history}."
            )
        if self.seed < 0 or self.evaluations < 0:
            raise ConfigError(
                f"expected seed >= 0 and evaluations >= 0, got seed {self.seed}, evaluations {self.evaluations}."
            )

    def steps(self, n: int) -> int:
        """Updates for a data set of ``n`` steps."""
        return int(np.ceil(n * self.epochs / min(self.batch_size, n)))

    def milestones(self, steps: int) -> list[int]:
        """After which updates a training of ``steps`` is to be evaluated: 10 %, 20 %, ... 100 % of it."""
        return sorted({-(-steps * i // self.evaluations) for i in range(1, self.evaluations + 1)})


def load_encoder(path: Path, weights: str = "average") -> ImageEncoder:
    """The encoder to start from.

    Args:
        path: an encoder's folder (or hub id), a folder of pre-training checkpoints, or one of these checkpoints.
        weights: "average" or "last"; a finished encoder's folder holds the averaged ones only.

    Raises:
        CheckpointError: damaged, or without the weights that were asked for.
    """
    path = Path(path)
    folder = path.parent if path.name.startswith("step-") else path
    found = [p for _, p in list_checkpoints(folder) if path in (folder, p)]
    if not found:
        if weights == "last":
            raise CheckpointError(
                f"{path} is no folder of training checkpoints, and only these hold the last, not averaged, weights. "
                f"Name the pre-training's checkpoints folder, or start from weights 'average'."
            )
        return ImageEncoder.from_pretrained(path)
    state = load_latest(folder) if path == folder else load_checkpoint(path)
    assert state is not None
    settings = state.meta.get("identity", {}).get("config", {}).get("encoder")
    encoder = ImageEncoder(encoder_config_from_json(settings, found[-1]), load_init=False)
    encoder.load_weights(state.part("ema." if weights == "average" else "model."), found[-1])
    return encoder


def history_indices(episode_ends: IntArray, history: int) -> IntArray:
    """(N, T_o) flat step indices of the last T_o observations of every step, oldest first, clamped to its episode."""
    lengths = np.diff(episode_ends, prepend=0)
    first = np.repeat(episode_ends - lengths, lengths)
    step = np.arange(int(episode_ends[-1]), dtype=np.int64)
    return np.maximum(step[:, None] + np.arange(1 - history, 1), first[:, None])


@dataclass(eq=False)
class FineTuner:
    """One fine-tuning, or one training from scratch.

    Args:
        demonstrations: actions, proprioception, and images (N, S, S, 3) of the encoder's camera and image size.
        config: settings.
        folder: where checkpoints and train.jsonl go; None keeps nothing.
        encoder_folder: pre-trained encoder to start from, see :func:`load_encoder`; None starts from scratch, with
            ``config.encoder`` and the initial weights that it names.
        device: "cpu" or "cuda".

    Attributes:
        encoder, head: the networks that are trained.
        average_encoder, average_head: their averaged (EMA) weights, which act.
        step, steps: updates done and in all.
    """

    demonstrations: Demonstrations
    config: FinetuneConfig
    folder: Path | None = None
    encoder_folder: Path | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        data, config = self.demonstrations, self.config
        if self.encoder_folder is None:
            self.encoder = ImageEncoder(config.encoder, seed=config.seed)
        else:
            self.encoder = load_encoder(self.encoder_folder, config.weights)
        self._started_from = _digest(self.encoder)
        self.images = encoder_images(data, self.encoder.config)
        device = torch.device(self.device)
        self.bf16 = use_bfloat16(config.precision, device)
        self.action_range, self.proprioception_range = MinMax.fit(data.actions), MinMax.fit(data.proprioception)
        self._actions = torch.from_numpy(self.action_range.apply(data.actions)).to(device)
        self._proprioception = torch.from_numpy(self.proprioception_range.apply(data.proprioception)).to(device)
        self._windows = torch.from_numpy(window_indices(data.episode_ends, config.horizon))
        self._histories = history_indices(data.episode_ends, config.history)
        features = config.history * (self.encoder.feature_dim + data.proprioception.shape[1])
        self.head = make_head(config.head, features, data.actions.shape[1], config.horizon, seed=config.seed).to(device)
        self.encoder = self.encoder.to(device).requires_grad_(not config.frozen)
        self.average_head = copy.deepcopy(self.head).requires_grad_(False)
        self.average_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.optimizer = self._optimizer()
        self._schedule = config.optimizer.schedule()
        self._fixed_features: Tensor | None = None
        self.steps = config.steps(data.num_steps)
        self.step = 0
        self.seconds = 0.0

    def _optimizer(self) -> torch.optim.AdamW:
        config = self.config.optimizer
        groups: list[dict[str, Any]] = []
        for network, rate in ((self.encoder, config.encoder_rate), (self.head, config.head_rate)):
            trained = [p for p in network.parameters() if p.requires_grad]
            for group, decay in (
                ([p for p in trained if p.ndim > 1], config.weight_decay),
                ([p for p in trained if p.ndim <= 1], 0.0),
            ):
                if group:
                    groups.append({"params": group, "weight_decay": decay, "peak": rate})
        # One kernel for all tensors: a head of 80 million parameters is otherwise limited by memory.
        return torch.optim.AdamW(groups, lr=config.head_rate, betas=config.betas, fused=True)

    # -- one step ---------------------------------------------------------------------------------------------------

    def features(self, rows: IntArray, generator: torch.Generator) -> Tensor:
        """(B, T_o (F + D_p)) features of decisions at ``rows`` (B,): of each observation image, then proprioception."""
        config = self.config
        moments = self._histories[rows].ravel()
        if config.frozen and config.augment is None:
            image = self._all_features()[torch.from_numpy(moments)].to(self.device)
        else:
            with torch.set_grad_enabled(not config.frozen and torch.is_grad_enabled()):
                pixels = self._views(moments, generator)
                image = self.encoder(self.encoder.normalize(pixels), bf16=self.bf16)
        if config.augment is not None and config.augment.feature_noise:
            noise = torch.randn(image.shape, generator=generator, device=image.device)
            image = image + config.augment.feature_noise * noise
        proprioception = self._proprioception[torch.from_numpy(moments).to(self.device)]
        return torch.cat([image, proprioception], dim=1).reshape(len(rows), -1)

    def _views(self, moments: IntArray, generator: torch.Generator) -> Tensor:
        # Histories overlap and begin with repeated steps: each image is read once.
        unique, inverse = np.unique(moments, return_inverse=True)
        images = torch.from_numpy(np.ascontiguousarray(self.images[unique]))[torch.from_numpy(inverse)].to(self.device)
        crop = self.encoder.config.crop_size
        if self.config.augment is not None:
            return augment(images, crop, self.config.augment, generator)
        edge = (images.shape[1] - crop) // 2
        centre = images[:, edge : edge + crop, edge : edge + crop]
        return centre.permute(0, 3, 1, 2).float().contiguous()

    def _all_features(self) -> Tensor:
        # The encoder as it is at run time, once for all steps.
        if self._fixed_features is None:
            self._fixed_features = torch.from_numpy(self.encoder.encode(self.images, bf16=self.bf16))
        return self._fixed_features

    def train_step(self, rows: IntArray) -> dict[str, float]:
        """One update on decisions at the steps ``rows`` (B,). Returns what is logged."""
        rows = np.sort(rows)  # neighbours in the file: fewer page faults, and the loss does not care
        generator = step_generator(self.config.seed, self.step, torch.device(self.device))
        features = self.features(rows, generator)
        actions = self._actions[self._windows[torch.from_numpy(rows)].to(self.device)]
        loss = self.head.loss(features, actions, generator)
        factor = learning_rate(self._schedule, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, self._schedule.clip_norm)
        self.optimizer.step()
        self.step += 1
        decay = ema_decay(self.step, self._schedule.ema_power)
        for average, network in ((self.average_encoder, self.encoder), (self.average_head, self.head)):
            if any(p.requires_grad for p in network.parameters()):
                update_ema(list(average.parameters()), list(network.parameters()), decay)
        return {
            "loss": float(loss.detach()),
            "lr": self.config.optimizer.head_rate * factor,
            "encoder_lr": 0.0 if self.config.frozen else self.config.optimizer.encoder_rate * factor,
            "grad_norm": float(norm),
        }

    # -- the run ----------------------------------------------------------------------------------------------------

    def fit(
        self,
        progress: Callable[[int, int, str], None] | None = None,
        milestone: Callable[[FineTuner], None] | None = None,
    ) -> ParametricPolicy:
        """Train to the end, from the newest intact checkpoint in ``folder`` if there is one.

        Args:
            progress: called with (steps done, steps in all, a short status) after each step.
            milestone: called at ``config.milestones``, after the checkpoint of that step is written: to evaluate
                :meth:`policy` and ``average_encoder``. A run that goes on from such a step calls it for that step
                again, with the same weights, because it may have been stopped before or in it.

        Returns:
            The policy with averaged (EMA) weights.

        Raises:
            TrainingInterrupted: Ctrl-C or SIGTERM; the state was saved.
            CheckpointError: the checkpoint belongs to other settings, data or initial weights.
            ClassactError: the loss became NaN or infinite, or memory ran out; the last checkpoint is from before.
        """
        self.resume()
        batches: Iterator[IntArray] = epoch_batches(
            self.demonstrations.num_steps, self.config.batch_size, self.config.seed, self.step
        )
        milestones = set(self.config.milestones(self.steps)) if milestone is not None else set()
        begin, spent = time.perf_counter(), self.seconds
        mark, window = self.step, begin
        with interruptible() as interrupted:
            while True:
                if milestone is not None and self.step in milestones:
                    paused = time.perf_counter()
                    milestone(self)
                    paused = time.perf_counter() - paused  # evaluation is no training time
                    begin, window = begin + paused, window + paused
                if self.step >= self.steps:
                    break
                rows = next(batches)
                stats = self._guarded_step(rows)
                now = time.perf_counter()
                self.seconds = spent + now - begin
                if progress is not None:
                    progress(self.step, self.steps, f"loss {stats['loss']:.4f}")
                if self.step % self.config.log_every == 0 or self.step == self.steps:
                    speed = (self.step - mark) * len(rows) / max(now - window, 1e-9)
                    mark, window = self.step, now
                    self._log(stats, speed)
                if interrupted():
                    self.save()
                    what = f"saved in {self.folder}; training goes on from there" if self.folder else "lost: no folder"
                    raise TrainingInterrupted(f"stopped at step {self.step} of {self.steps}; the state is {what}.")
                due = self.step % self.config.checkpoint_every == 0 or self.step == self.steps
                if due or self.step in milestones:
                    self.save()
        return self.policy()

    def _guarded_step(self, rows: IntArray) -> dict[str, float]:
        try:
            stats = self.train_step(rows)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise ClassactError(
                    f"out of memory at step {self.step + 1} of {self.steps}. Lower batch_size (now "
                    f"{self.config.batch_size}), the head's widths (now {self.config.head.unet.widths}) or the "
                    f"encoder's crop_size (now {self.encoder.config.crop_size})."
                ) from error
            raise
        if not np.isfinite([stats["loss"], stats["grad_norm"]]).all():
            where = ""
            if self.folder is not None:
                write_json(self.folder / DIVERGED, {"step": self.step, **_texts(stats), "rows": np.sort(rows)})
                where = f" The steps of its batch are in {self.folder / DIVERGED}."
            raise ClassactError(
                f"the loss became {stats['loss']} and its gradient's norm {stats['grad_norm']} at step {self.step} of "
                f"{self.steps}.{where} Lower the learning rates (now {self.config.optimizer.head_rate} and "
                f"{self.config.optimizer.encoder_rate}); the last checkpoint is from before that."
            )
        return stats

    def _log(self, stats: dict[str, float], speed: float) -> None:
        if self.folder is None:
            return
        n = self.demonstrations.num_steps
        row = {
            "step": self.step,
            "steps": self.steps,
            "epoch": self.step * min(self.config.batch_size, n) / n,
            **stats,
            "images_per_second": speed * self.config.history,
            "seconds": self.seconds,
        }
        append_jsonl(self.folder / LOG, row)

    def policy(self) -> ParametricPolicy:
        """The policy with the present averaged (EMA) weights, which it shares: they change as training goes on."""
        config = self.config
        acting = ParametricConfig(config.chunk_length, config.history, config.seed, self.bf16)
        return ParametricPolicy(
            self.average_encoder,
            self.average_head,
            self.action_range,
            self.proprioception_range,
            acting,
            {"step": self.step, "steps": self.steps, **self.labels(), "data": self.demonstrations.fingerprint()},
        )

    def labels(self) -> dict[str, bool | str]:
        """How the policy was trained, for tables: what kind of head, and what happened to the encoder."""
        return {
            "head": head_name(self.config.head),
            "pretrained": self.encoder_folder is not None,
            "frozen": self.config.frozen,
            "augmented": self.config.augment is not None,
            "color_augmented": self.config.augment is not None and self.config.augment.color != "none",
        }

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be continued."""
        config = asdict(self.config)
        for key in ("log_every", "checkpoint_every", "evaluations", "chunk_length", "weights"):
            del config[key]
        return {
            "config": config | {"head": head_config_to_json(self.config.head), "encoder": asdict(self.encoder.config)},
            "encoder_weights": self._started_from,
            "data": self.demonstrations.fingerprint(),
            "images": sample_digest(self.images),
            "bfloat16": self.bf16,
        }

    def save(self) -> None:
        """Write a checkpoint of the present state. A frozen encoder is no part of it: it is as it was."""
        if self.folder is None:
            return
        tensors = optimizer_tensors(self.optimizer)
        for prefix, network in self._networks().items():
            tensors |= {f"{prefix}{name}": value for name, value in network.state_dict().items()}
        meta = {"identity": self.identity(), "seconds": self.seconds}
        save_checkpoint(self.folder / "checkpoints", TrainingState(self.step, tensors, meta))

    def resume(self) -> bool:
        """Load the newest intact checkpoint of ``folder``; False where there is none.

        Raises:
            CheckpointError: it belongs to other settings, other data or another encoder.
        """
        state = load_latest(self.folder / "checkpoints") if self.folder else None
        if state is None:
            return False
        where = Path(f"{self.folder}/checkpoints/step-{state.step:08d}")
        state.check_identity(self.identity(), where)
        for prefix, network in self._networks().items():
            if isinstance(network, ImageEncoder):
                network.load_weights(state.part(prefix), where)
            else:
                load_head_weights(network, state.part(prefix), where)
        load_optimizer_tensors(self.optimizer, state.tensors)
        self.step, self.seconds = state.step, float(state.meta["seconds"])
        return True

    def _networks(self) -> dict[str, Any]:
        networks: dict[str, Any] = {"model.head.": self.head, "ema.head.": self.average_head}
        if not self.config.frozen:
            networks |= {"model.encoder.": self.encoder, "ema.encoder.": self.average_encoder}
        return networks


def _digest(module: nn.Module) -> str:
    """SHA-256 of a network's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _texts(stats: dict[str, float]) -> dict[str, str]:
    # JSON knows no NaN.
    return {name: repr(value) for name, value in stats.items()}
