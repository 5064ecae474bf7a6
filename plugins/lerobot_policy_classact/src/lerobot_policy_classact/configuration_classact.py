"""Settings of a policy: of an exported one which files are in its weights, of a head how it is trained."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig, LRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from classact.errors import ConfigError, choose
from classact.models.heads import HEADS
from classact.run.presets import HEAD_PRESETS
from classact.train.config import FinetuneConfig

TRAINING = ("encoder", "head", "preset", "frozen", "horizon", "head_lr", "encoder_lr")
"""Settings that an exported policy does not have."""


@LRSchedulerConfig.register_subclass("classact")
@dataclass
class ClassactSchedulerConfig(LRSchedulerConfig):  # type: ignore[misc]
    """Linear warm-up, of a tenth of the training at most, then half a cosine to zero: classact's schedule."""

    num_warmup_steps: int = 500

    def build(self, optimizer: Optimizer, num_training_steps: int) -> LambdaLR:
        """The schedule of all groups, each about its own peak."""
        from classact.train.config import OptimizerConfig
        from classact.train.optim import learning_rate

        unit = OptimizerConfig(name="adamw", learning_rate=1.0, warmup_steps=self.num_warmup_steps)
        return LambdaLR(optimizer, lambda step: learning_rate(unit, step, num_training_steps))


@PreTrainedConfig.register_subclass("classact")
@dataclass
class ClassactConfig(PreTrainedConfig):  # type: ignore[misc]
    """Of a policy that ``classact export lerobot`` wrote, or of a head that ``lerobot-train`` trains.

    Attributes:
        encoder: what a head is trained on: folder of an encoder that classact pre-trained, of its run, or its name on
            the hub.
        head: mlp, diffusion, flow, or another registered head.
        preset: of :data:`classact.run.presets.HEAD_PRESETS`: sizes, rates, augmentation. Its epochs and batch size are
            LeRobot's here (steps, batch_size).
        frozen: train the head only; None: as the preset does.
        horizon: T_p, actions of a predicted chunk.
        n_action_steps: actions of a chunk that are executed before the next decision: T_a of a head that is trained
            here, at most T_a of an exported policy.
        n_obs_steps: T_o, observations of a decision.
        speed: demonstrated steps per executed one; None: 1, or that of an exported policy.
        head_lr, encoder_lr: peak rates; None: the preset's.
        cameras: camera of the encoder -> feature of the observation; {}: by their names.
        proprioception: key of the policy -> feature of the observation; {}: all numbers of the observation, but for the
            environment's state.
        files: of an exported policy: name of each of its files -> its bytes; their order is that of the buffers.
        trained: of a head: its settings and normalisation, written when it is made, and read when it is loaded.
    """

    encoder: str | None = None
    head: str = "diffusion"
    preset: str = "head-cpu"
    frozen: bool | None = None
    horizon: int = 16
    n_action_steps: int = 8
    speed: float | None = None
    head_lr: float | None = None
    encoder_lr: float | None = None
    cameras: dict[str, str] = field(default_factory=dict)
    proprioception: dict[str, str] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    trained: dict[str, Any] = field(default_factory=dict)
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ACTION", "ENV"), NormalizationMode.IDENTITY)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(mode is not NormalizationMode.IDENTITY for mode in self.normalization_mapping.values()):
            raise ConfigError(
                f"classact's policies normalise for themselves: normalization_mapping must stay IDENTITY, got "
                f"{ {name: mode.value for name, mode in self.normalization_mapping.items()} }."
            )
        if not self.files:
            self.finetune()

    def check_exported(self) -> None:
        """Refuse settings of a training, which an exported policy does not have.

        Not when it is made: LeRobot's command line does not pass on what is said there.

        Raises:
            ConfigError: one of them is set.
        """
        standard = {one.name: one.default for one in fields(self)}
        if changed := [name for name in TRAINING if getattr(self, name) != standard[name]]:
            raise ConfigError(
                f"--policy.{changed[0]} {getattr(self, changed[0])}: a policy that classact exported is trained "
                f"already. How it acts is set by n_action_steps and speed."
            )

    def finetune(self) -> FinetuneConfig:
        """classact's settings of the training.

        Raises:
            ConfigError: unknown names, or values out of range.
        """
        for kind, name, known in (("head", self.head, HEADS), ("preset of a head", self.preset, HEAD_PRESETS)):
            if name not in known:
                raise ConfigError(f"--policy.{kind.split()[0]}: {choose(kind, name, known)}.")
        made = HEAD_PRESETS[self.preset].config(self.head, frozen=self.frozen)
        rates = {"head_lr": self.head_lr, "encoder_lr": self.encoder_lr}
        given: dict[str, Any] = {name: rate for name, rate in rates.items() if rate is not None}
        return replace(
            made,
            views=0,  # fresh ones at each step
            optimizer=replace(made.optimizer, **given),
            horizon=self.horizon,
            history=self.n_obs_steps,
            chunk_length=self.n_action_steps,
            speed=1.0 if self.speed is None else self.speed,
        )

    @property
    def observation_delta_indices(self) -> list[int] | None:
        """The last T_o observations; None for one."""
        return list(range(1 - self.n_obs_steps, 1)) if self.n_obs_steps > 1 else None

    @property
    def action_delta_indices(self) -> list[int]:
        """The actions of a chunk, as it is predicted."""
        return list(range(self.horizon))

    @property
    def reward_delta_indices(self) -> None:
        """Rewards are not read."""
        return

    def get_optimizer_preset(self) -> AdamWConfig:
        """AdamW; :meth:`ClassactPolicy.get_optim_params` has the rates of head and encoder."""
        config = self._trainable().optimizer
        return AdamWConfig(
            lr=config.head_lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            grad_clip_norm=config.clip_norm,
        )

    def get_scheduler_preset(self) -> ClassactSchedulerConfig:
        """classact's schedule."""
        return ClassactSchedulerConfig(num_warmup_steps=self._trainable().optimizer.warmup_steps)

    def _trainable(self) -> FinetuneConfig:
        if self.files:
            raise ConfigError(
                "a policy that classact exported is not trained on: train a head on its encoder instead, "
                "--policy.type=classact --policy.encoder=RUN/encoder --policy.head=mlp."
            )
        return self.finetune()

    def validate_features(self) -> None:
        """What is missing is said when an observation or a data set lacks it, with what it holds."""
