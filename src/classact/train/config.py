"""Settings of trainings. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from classact.data.rate import STEPS
from classact.errors import ConfigError
from classact.models.encoders import EncoderConfig
from classact.models.heads import DiffusionConfig, HeadConfig, head_entry
from classact.models.latent_actions.config import LatentActionConfig
from classact.objectives import ObjectiveConfig, SoftInfoNCEConfig
from classact.policies.speed import check_reach
from classact.similarity import SimilarityConfig
from classact.utils.codec import ADDED
from classact.utils.limits import check_names, check_range


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of the optimiser.

    Attributes:
        name: "lars" (the paper) or "adamw" (better for small networks and few steps).
        learning_rate: peak rate (table 4: 0.5 for LARS).
        momentum: of LARS.
        weight_decay: on tensors of two or more dimensions.
        warmup_steps: linear warm-up (table 3: 500); at most a tenth of all steps.
        clip_norm: largest norm of the whole gradient, applied after backward (table 3: 0.5).
        ema_power: weight average decay 1 - (1 + step) ** -power (table 3: 0.75).
        decay: what follows the warm-up: half a "cosine" to zero, or "none".
    """

    name: Literal["lars", "adamw"] = "lars"
    learning_rate: float = 0.5
    momentum: float = 0.9
    weight_decay: float = 1e-6
    warmup_steps: int = 500
    clip_norm: float = 0.5
    ema_power: float = 0.75
    decay: Literal["cosine", "none"] = field(default="cosine", metadata=ADDED)

    def __post_init__(self) -> None:
        check_names(self, name="optimizer")
        check_range(self, "learning_rate", "clip_norm", above=0)
        check_range(self, "ema_power", above=0, most=1)
        check_range(self, "momentum", least=0, below=1)
        check_range(self, "warmup_steps", "weight_decay", least=0)


ColorAugmentation = Literal["none", "hsv", "rotate", "affine"]


@dataclass(frozen=True)
class AugmentConfig:
    """Settings of the random views.

    Attributes:
        crop: "image": an offset of its own for each image (the paper's intent); "batch": one offset for the whole
            batch (what the released code does).
        noise_std: standard deviation of Gaussian noise on 0..255 pixels, clamped to that range (to -94..349
            under "rotate" and "affine").
        feature_noise: standard deviation of Gaussian noise on the features (released code: 0.001; paper: none).
        color: "none" (the paper); "hsv": random hue, saturation and brightness (F.2); "rotate": a random rotation or
            reflection of RGB space about mid-grey; "affine": a random affine map of RGB space, which can turn any
            palette of four colours into any other.
        hue: largest hue rotation in turns (0.5 is all hues).
        saturation: factor drawn from [1 - saturation, 1 + saturation].
        brightness: offset drawn from [-brightness, brightness] on 0..255.
    """

    crop: Literal["image", "batch"] = "image"
    noise_std: float = 5.0
    feature_noise: float = 0.0
    color: ColorAugmentation = "none"
    hue: float = 0.5
    saturation: float = 0.5
    brightness: float = 40.0

    def __post_init__(self) -> None:
        check_names(self)
        check_range(self, "noise_std", "feature_noise", "hue", "saturation", "brightness", least=0)


def describe(config: AugmentConfig | None) -> str:
    """Random views in a few words, for tables: ``crop, noise, hsv``; ``none`` for the centre crop alone."""
    if config is None:
        return "none"
    parts = ["crop"] + (["noise"] if config.noise_std else []) + ([config.color] if config.color != "none" else [])
    return ", ".join(parts)


Loader = Literal["auto", "prefetch", "resident"]
TrackerName = Literal["tensorboard", "wandb"]
Precision = Literal["auto", "float32", "bfloat16"]
Choice = Literal["auto", "yes", "no"]

ACTING = ("chunk_length", "speed")
"""Settings of every head's training that only say how the trained policy acts."""

INCIDENTAL = ("log_every", "checkpoint_every", "evaluations", "evaluations_from")
"""Settings of all trainings that do not decide what is learned."""


@dataclass(frozen=True)
class EngineConfig:
    """How a training is computed. Nothing here changes its result beyond rounding.

    Attributes:
        accumulate: micro-batches per step and rank: less memory, the same gradient. Contrastive features are computed
            twice where it is above 1. It should divide each rank's part of a batch: else the micro-batches are of two
            shapes, and what is compiled is compiled for each.
        compile: run the encoder through torch.compile: "yes", "no", or "auto": on GPUs, and not where it fails.
        channels_last: keep images and convolutions channels-last: "yes", "no", or "auto": on GPUs.
        loader: where images lie while training: "resident" on the device, "prefetch" read ahead from disk, or "auto".
        deterministic: only deterministic kernels on GPUs (slower): the same bits in each run. CPUs always are.
        trackers: where logged rows go beside train.jsonl: "tensorboard", "wandb".
    """

    accumulate: int = 1
    compile: Choice = "auto"
    channels_last: Choice = "auto"
    loader: Loader = "auto"
    deterministic: bool = False
    trackers: tuple[TrackerName, ...] = ()

    def __post_init__(self) -> None:
        check_range(self, "accumulate", least=1)
        check_names(self)


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides the result of a pre-training, given the data.

    Attributes:
        encoder, augment, optimizer: architecture, random views, optimiser with its schedule.
        similarity: of actions; read by objectives that learn from it.
        objective: what features should be like, see :data:`classact.objectives.OBJECTIVES`.
        epochs: passes over all steps as anchors; steps of training = ceil(N epochs / batch_size).
        batch_size: anchors per step, drawn without replacement within an epoch (table 4: 160). Some objectives look at
            several images for each.
        seed: of initial weights, batches and augmentations.
        precision: of the backbone's convolutions: "float32", "bfloat16", or "auto": bfloat16 where the CPU computes
            in it natively.
        evaluations: at how many points ``intermediate`` of :meth:`Trainer.fit` is called, evenly from one point of the
            training to its end (the paper: 10).
        evaluations_from: share of the training at the first of these (the paper's table: 0.55).
        log_every: steps between rows of train.jsonl.
        checkpoint_every: steps between checkpoints.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    similarity: SimilarityConfig = field(default_factory=SimilarityConfig)
    objective: ObjectiveConfig = field(default_factory=SoftInfoNCEConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: float = 100.0
    batch_size: int = 160
    seed: int = 0
    precision: Precision = "auto"
    evaluations: int = 0
    evaluations_from: float = 0.55
    log_every: int = 20
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        check_names(self)
        check_range(self, "evaluations", least=0)
        check_range(self, "evaluations_from", above=0, most=1)
        check_range(self, "epochs", above=0)
        check_range(self, "batch_size", least=2)
        check_range(self, "log_every", "checkpoint_every", least=1)

    def steps(self, n: int) -> int:
        """Updates for a data set of ``n`` steps."""
        return updates(n, self.epochs, self.batch_size)

    def intermediates(self, steps: int) -> list[int]:
        """After which updates a training of ``steps`` is to be evaluated: 55 %, 60 %, ... 100 % of it for ten from
        0.55 on."""
        if self.evaluations == 1:
            return [steps]
        shares = np.linspace(self.evaluations_from, 1.0, self.evaluations)
        return sorted({max(1, round(steps * share)) for share in shares})


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
        head_lr: peak rate of the head.
        encoder_lr: peak rate of the encoder, lower to preserve what was pre-trained.
            To leave it as it is, set frozen.
        betas: table 7: (0.9, 0.99); the released code leaves PyTorch's (0.9, 0.999).
        weight_decay: on tensors of two or more dimensions.
        warmup_steps: linear warm-up, then half a cosine to zero; at most a tenth of all steps.
        clip_norm: largest norm of the whole gradient of encoder and head, applied after backward. (The released code
            clips to 1.0 before backward, which has no effect.)
        ema_power: weight average decay 1 - (1 + step) ** -power.
    """

    head_lr: float = 1e-4
    encoder_lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-6
    warmup_steps: int = 500
    clip_norm: float = 0.5
    ema_power: float = 0.75

    def __post_init__(self) -> None:
        check_range(self, "head_lr", "encoder_lr", above=0)
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
        augment: random views, as in pre-training; None takes the centre crop.
        views: of a frozen encoder: random views of every image, whose features are computed once; each decision of a
            batch draws one of them. 0: fresh views at each step, which takes many times as long. With augment None
            there is one view, computed once.
        standardize: scale each image feature to mean 0 and standard deviation 1 over the demonstrations, as the encoder
            gives them before training.
        noise: standard deviation of Gaussian noise on the image features of each decision, after they are standardised.
            An encoder's features of what it was trained on are cleaner than those of a new episode.
        samples: draws of noise, and of whatever a head draws, for each decision of a batch: they share its features.
        optimizer: rates, schedule, averaging.
        epochs: passes over all steps; steps of training = ceil(N epochs / batch_size). Table 9 has 250 for Push-T
            after pre-training; see :data:`TABLE_9`.
        batch_size: decisions per step (table 7: 64).
        horizon: T_p, actions of a predicted chunk (table 7: 16).
        history: T_o, observations of a decision (table 7: 1); before an episode's start its first one is repeated.
        chunk_length: T_a, actions the trained policy executes per decision (table 7: 12).
        speed: demonstrated steps per executed one: 2 plays chunks twice as fast (the paper: 1).
        keys: proprioception keys that the policy sees, of those that the data declare; None: all.
        seed: of initial weights, batches, views and noise.
        precision: of the backbone's convolutions: "float32", "bfloat16", or "auto": bfloat16 where it is native.
        head_precision: of the head in training: "float32", "bfloat16" (autocast: its weights, their updates and the
            loss stay float32), or "auto": bfloat16 on GPUs that compute in it natively. Trained heads act in float32.
        evaluations: at how many points, evenly over training, ``intermediate`` is called (the paper: 10).
        log_every: steps between rows of train.jsonl.
        checkpoint_every: steps between checkpoints.
    """

    head: HeadConfig = field(default_factory=DiffusionConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    weights: Literal["average", "last"] = "average"
    frozen: bool = False
    augment: AugmentConfig | None = field(default_factory=AugmentConfig)
    views: int = 0
    standardize: bool = False
    noise: float = 0.0
    samples: int = 1
    optimizer: AdamWConfig = field(default_factory=AdamWConfig)
    epochs: float = 250.0
    batch_size: int = 64
    horizon: int = field(default=16, metadata=STEPS)
    history: int = 1
    chunk_length: int = field(default=12, metadata=STEPS)
    speed: float = field(default=1.0, metadata=ADDED)
    keys: tuple[str, ...] | None = None
    seed: int = 0
    precision: Precision = "auto"
    head_precision: Precision = "float32"
    evaluations: int = 10
    log_every: int = 20
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        check_names(self)
        head_entry(self.head)
        check_range(self, "epochs", above=0)
        check_range(self, "batch_size", "log_every", "checkpoint_every", "history", "samples", least=1)
        check_range(self, "views", "noise", least=0)
        if self.augment is not None and self.augment.feature_noise:
            raise ConfigError(
                f"augment.feature_noise {self.augment.feature_noise:g} is of pre-training; heads have noise of their "
                f"own. Set noise instead."
            )
        if self.views and not self.frozen:
            raise ConfigError(
                f"features of {self.views} views are computed once only of a frozen encoder. Set frozen, or views 0."
            )
        check_range(self, "chunk_length", least=1, most=self.horizon)
        check_range(self, "speed", above=0, below=math.inf)
        check_reach(self.chunk_length, self.speed, self.horizon)
        check_range(self, "seed", "evaluations", least=0)

    def labels(self, *, scratch: bool) -> dict[str, str]:
        """How tables label a head that was trained with these settings.

        Args:
            scratch: the encoder started from its initial weights.
        """
        training = "frozen" if self.frozen else "from scratch" if scratch else "fine-tuned"
        return {"training": training, "augmentation": describe(self.augment)}

    @property
    def acting(self) -> tuple[str, ...]:
        """Dotted names of the settings that may be changed after training."""
        return (*ACTING, *(f"head.{name}" for name in self.head.acting))

    def acting_settings(self) -> dict[str, Any]:
        """Their values, as a policy is loaded with."""
        return {name: getattr(self, name) for name in ACTING} | self.head.acting_settings()

    def steps(self, n: int) -> int:
        """Updates for a data set of ``n`` steps."""
        return updates(n, self.epochs, self.batch_size)

    def intermediates(self, steps: int) -> list[int]:
        """After which updates a training of ``steps`` is to be evaluated: 10 %, 20 %, ... 100 % of it."""
        return sorted({-(-steps * i // self.evaluations) for i in range(1, self.evaluations + 1)})


COLLAPSED = 1.01
"""How many times the reconstruction error has to grow where each latent action is given to another transition; below,
predictions hardly depend on latent actions."""


@dataclass(frozen=True)
class LatentActionTrainingConfig:
    """Everything that decides the result of a latent action model's training, given the data. Defaults are the released
    code's, except for the number of updates, which it has at 200,000 to 500,000.

    Attributes:
        model: networks, and what they observe.
        supervision: what the labelled demonstrations teach: "joint": inverse dynamics and decoder, while the forward
            dynamics learn (CLAM); "after": the decoder alone, once all else is learned (LAPO); "alone": inverse
            dynamics and decoder, without forward dynamics (VPT's inverse dynamics).
        beta: factor of the action loss (of images 0.01 in the released code).
        every: K, one in so many updates has a labelled batch as well.
        updates: of inverse and forward dynamics.
        decoder_updates: of the decoder, where it learns after them.
        batch_size: transitions of all demonstrations, and as many of labelled ones.
        learning_rate, weight_decay: of the dynamics' AdamW.
        decoder_lr, decoder_weight_decay: of the decoder's.
        warmup: share of all updates in which rates rise linearly; they stay as they are then.
        clip_norm: largest norm of the gradient, of dynamics and decoder by themselves.
        commitment: factor of the loss that keeps z near its codebook's entries, where there is one (LAPO: 1).
        seed: of initial weights and batches.
        log_every: updates between rows of train.jsonl.
        checkpoint_every: updates between checkpoints.
    """

    model: LatentActionConfig = field(default_factory=LatentActionConfig)
    supervision: Literal["joint", "after", "alone"] = "joint"
    beta: float = 1.0
    every: int = 2
    updates: int = 30_000
    decoder_updates: int = 10_000
    batch_size: int = 128
    learning_rate: float = 3e-4
    weight_decay: float = 1e-3
    decoder_lr: float = 1e-3
    decoder_weight_decay: float = 1e-2
    warmup: float = 0.05
    clip_norm: float = 1.0
    commitment: float = 1.0
    seed: int = 0
    log_every: int = 100
    checkpoint_every: int = 2000

    def __post_init__(self) -> None:
        check_names(self)
        check_range(self, "beta", "commitment", "weight_decay", "decoder_weight_decay", "seed", least=0)
        check_range(self, "every", "updates", "decoder_updates", "log_every", "checkpoint_every", least=1)
        check_range(self, "batch_size", least=2)
        check_range(self, "learning_rate", "decoder_lr", "clip_norm", above=0)
        check_range(self, "warmup", least=0, most=0.1)

    def steps(self, n: int) -> int:  # noqa: ARG002
        """Updates in all, of data of any size."""
        return self.updates + (self.decoder_updates if self.supervision == "after" else 0)

    def schedule(self) -> OptimizerConfig:
        """Warm-up, then a constant rate; groups have peaks of their own."""
        warmup = round(self.warmup * self.updates)
        return OptimizerConfig(
            name="adamw", learning_rate=1.0, warmup_steps=warmup, clip_norm=self.clip_norm, decay="none"
        )


def updates(n: int, epochs: float, batch_size: int) -> int:
    """Steps of a training: ceil(n epochs / min(batch_size, n))."""
    # Not one more because of a rounding error: 12 * 16 / 180 epochs of 180 steps are 12 batches of 16.
    return int(np.ceil(n * epochs / min(batch_size, n) - 1e-9))
