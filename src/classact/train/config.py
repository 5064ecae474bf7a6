"""Settings of trainings. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from classact.errors import ConfigError, UnknownNameError, choose
from classact.models.encoders import EncoderConfig
from classact.objectives import ObjectiveConfig, SoftInfoNCEConfig
from classact.similarity import SimilarityConfig

OPTIMIZERS = ("lars", "adamw")


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
    """

    name: Literal["lars", "adamw"] = "lars"
    learning_rate: float = 0.5
    momentum: float = 0.9
    weight_decay: float = 1e-6
    warmup_steps: int = 500
    clip_norm: float = 0.5
    ema_power: float = 0.75

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise UnknownNameError(choose("optimizer", self.name, OPTIMIZERS))
        positive = self.learning_rate > 0 and self.clip_norm > 0
        if not positive or not 0 < self.ema_power <= 1 or self.warmup_steps < 0:
            raise ConfigError(
                f"expected learning_rate > 0, clip_norm > 0, 0 < ema_power <= 1 and warmup_steps >= 0, got {self}."
            )
        if not 0 <= self.momentum < 1 or not self.weight_decay >= 0:
            raise ConfigError(f"expected 0 <= momentum < 1 and weight_decay >= 0, got {self}.")


CROPS = ("image", "batch")


ColorAugmentation = Literal["none", "hsv", "rotate", "affine"]
COLOR_AUGMENTATIONS: tuple[str, ...] = get_args(ColorAugmentation)


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
        if self.crop not in CROPS:
            raise UnknownNameError(choose("crop", self.crop, CROPS))
        if self.color not in COLOR_AUGMENTATIONS:
            raise UnknownNameError(choose("color augmentation", self.color, COLOR_AUGMENTATIONS))
        if min(self.noise_std, self.feature_noise, self.hue, self.saturation, self.brightness) < 0:
            raise ConfigError(f"augmentation strengths cannot be negative: {self}.")


def describe(config: AugmentConfig | None) -> str:
    """Random views in a few words, for tables: ``crop, noise, hsv``; ``none`` for the centre crop alone."""
    if config is None:
        return "none"
    parts = ["crop"] + (["noise"] if config.noise_std else []) + ([config.color] if config.color != "none" else [])
    return ", ".join(parts)


Feed = Literal["auto", "disk", "ram", "resident"]
FEEDS: tuple[str, ...] = get_args(Feed)


TrackerName = Literal["tensorboard", "trackio", "wandb"]
TRACKERS: tuple[str, ...] = get_args(TrackerName)


Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


Choice = Literal["auto", "yes", "no"]
CHOICES: tuple[str, ...] = get_args(Choice)


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
        feed: where images lie while training; see :func:`classact.train.loader.make_feed`.
        deterministic: only deterministic kernels on GPUs (slower): the same bits in each run. CPUs always are.
        trackers: where logged rows go beside train.jsonl: "tensorboard", "wandb", "trackio".
    """

    accumulate: int = 1
    compile: Choice = "auto"
    channels_last: Choice = "auto"
    feed: Feed = "auto"
    deterministic: bool = False
    trackers: tuple[TrackerName, ...] = ()

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ConfigError(f"expected at least 1 micro-batch per step (accumulate), got {self.accumulate}.")
        for kind, value, known in (
            ("choice of compile", self.compile, CHOICES),
            ("choice of channels_last", self.channels_last, CHOICES),
            ("feed", self.feed, FEEDS),
        ):
            if value not in known:
                raise UnknownNameError(choose(kind, value, known))
        for name in self.trackers:
            if name not in TRACKERS:
                raise UnknownNameError(choose("tracker", name, TRACKERS))


POSITIVES = ("online", "graph")


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
        positives: where a batch's weights come from: "online": its B x B distances are computed when it is used (the
            paper's appendix B); "graph": looked up in the graph that ``classact similarity --graph`` wrote. Both give
            the same weights, unless the graph is capped.
        positives_per_anchor: with "graph", draw for each anchor of a batch so many of its positives into the batch; 0
            draws all steps alike.
        precision: of the trunk's convolutions: "float32", "bfloat16", or "auto": bfloat16 where the processor computes
            in it natively.
        evaluations: at how many points ``milestone`` of :meth:`Trainer.fit` is called, evenly from one point of the
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
    positives: Literal["online", "graph"] = "online"
    positives_per_anchor: int = 0
    precision: Precision = "auto"
    evaluations: int = 0
    evaluations_from: float = 0.55
    log_every: int = 20
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UnknownNameError(choose("precision", self.precision, PRECISIONS))
        if self.positives not in POSITIVES:
            raise UnknownNameError(choose("source of positives", self.positives, POSITIVES))
        if self.positives_per_anchor < 0 or (self.positives_per_anchor and self.positives != "graph"):
            raise ConfigError(
                f"expected positives_per_anchor >= 0, and 0 unless positives come from a graph; got "
                f"{self.positives_per_anchor} with positives {self.positives!r}."
            )
        if self.positives == "graph" and not self.objective.needs_similarity:
            raise ConfigError(
                f"objective {self.objective.written!r} learns from no action similarity, so positives from a "
                f"graph would change nothing. Leave positives at 'online'."
            )
        if self.evaluations < 0:
            raise ConfigError(f"expected evaluations >= 0, got {self.evaluations}.")
        if not 0 < self.evaluations_from <= 1:
            raise ConfigError(f"expected evaluations_from above 0 and at most 1, got {self.evaluations_from}.")
        if self.epochs <= 0 or self.batch_size < 2 or self.log_every < 1 or self.checkpoint_every < 1:
            raise ConfigError(
                f"expected epochs > 0, batch_size >= 2, log_every >= 1 and checkpoint_every >= 1, got epochs "
                f"{self.epochs}, batch_size {self.batch_size}, log_every {self.log_every}, checkpoint_every "
                f"{self.checkpoint_every}."
            )

    def steps(self, n: int) -> int:
        """Updates for a data set of ``n`` steps."""
        return updates(n, self.epochs, self.batch_size)

    def milestones(self, steps: int) -> list[int]:
        """After which updates a training of ``steps`` is to be evaluated: 55 %, 60 %, ... 100 % of it for ten from
        0.55 on."""
        if self.evaluations == 1:
            return [steps]
        shares = np.linspace(self.evaluations_from, 1.0, self.evaluations)
        return sorted({max(1, round(steps * share)) for share in shares})


def updates(n: int, epochs: float, batch_size: int) -> int:
    """Steps of a training: ceil(n epochs / min(batch_size, n))."""
    # Not one more because of a rounding error: 12 * 16 / 180 epochs of 180 steps are 12 batches of 16.
    return int(np.ceil(n * epochs / min(batch_size, n) - 1e-9))
