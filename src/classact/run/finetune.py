"""From a run's encoder to an evaluated head: fine-tuning as a stage of a run (paper 4.3, C.2).

A head's folder lies in its run's and is laid out like one; its evaluations join the run's, so that one page shows
retrieval and heads side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from classact.data.types import RolloutResult
from classact.errors import CheckpointError, ConfigError, UnknownNameError, choose
from classact.evaluation.rollout import EvaluationConfig
from classact.models.encoders import EncoderConfig, pretrained_config
from classact.models.heads import make_head
from classact.policies.parametric import ParametricPolicy
from classact.policies.watched import watched
from classact.run.data import RunData, run_settings, whole_path
from classact.run.evaluate import check_rollouts, encoder_label, row_labels
from classact.run.folder import Run
from classact.run.load import run_watcher
from classact.run.recording import (
    evaluate_milestone,
    evaluation_name,
    new_card,
    roll_out,
    timed,
    timed_fit,
)
from classact.train.checkpoints import list_checkpoints
from classact.train.config import INCIDENTAL, EngineConfig, FinetuneConfig
from classact.train.engine import check_engine, precision_flags, spelled_out
from classact.train.head import FineTuner, load_encoder
from classact.utils.codec import from_json, to_json
from classact.utils.labels import learned_label
from classact.utils.locks import Hold, own
from classact.utils.machine import choose_device
from classact.utils.progress import teller
from classact.utils.ranks import Ranks
from classact.utils.storage import check_name, first_difference, plain_json, sha256_file, slug, without

RESERVED = ("retrieval",)
"""Names that the run's own evaluations have."""

OWN = ("run", "scratch")
"""What a head's training starts from, besides folders of other encoders."""


@dataclass(frozen=True)
class HeadRunConfig:
    """All settings of a head of a run.

    Attributes:
        finetune: training.
        start: the encoder to start from: "run" (the run's own), "scratch" (the paper's behaviour cloning baseline: the
            run's architecture with its initial weights), or the folder of another encoder.
        evaluation: rollouts; what is None is as in the run's settings.
        milestone_episodes: unseen starts per evaluation during training.
    """

    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    start: str = "run"
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    milestone_episodes: int = 50

    def __post_init__(self) -> None:
        if self.milestone_episodes < 1:
            raise ConfigError(f"expected milestone_episodes >= 1, got {self.milestone_episodes}.")
        if self.start == "scratch" and (self.finetune.frozen or self.finetune.weights == "last"):
            other = "frozen trains no encoder" if self.finetune.frozen else "weights 'last' are of a pre-training"
            raise ConfigError(f"training from scratch starts from initial weights, but {other}. Choose one of the two.")
        if self.start not in OWN:
            object.__setattr__(self, "start", whole_path(self.start))
        for name in self.evaluation:
            if name not in EvaluationConfig.__dataclass_fields__:
                raise UnknownNameError(choose("evaluation setting", name, EvaluationConfig.__dataclass_fields__))

    @property
    def name(self) -> str:
        """Of the head's folder: ``diffusion``, ``mlp-frozen``, ``diffusion-scratch``, ``mlp-hsv``."""
        parts = [self.finetune.head.name]
        if self.start != "run":
            parts.append("scratch" if self.start == "scratch" else slug(encoder_label(self.start, "")))
        if self.finetune.frozen:
            parts.append("frozen")
        augment = self.finetune.augment
        if augment is not None and augment.color != "none":
            parts.append(augment.color)
        return "-".join(parts)


class HeadPipeline:
    """The stages of one head of a run.

    Args:
        run: a folder with settings and, unless training starts elsewhere, an encoder.
        config: settings; must be those that the head's folder was started with.
        name: of the head's folder; None makes it of the settings.
        quiet: no progress bars.
        device: "cpu", "cuda" or "auto".
        engine: how training is computed.
        ranks: this process among those that share the training; all but the first only train.

    Raises:
        DataError: the folder is none of a run.
        ConfigError: the head's folder belongs to other settings.
        CheckpointError: the run has no encoder yet.
        BusyError: another process trains the head.
        StorageError: the folder cannot be written.
    """

    def __init__(
        self,
        run: Run,
        config: HeadRunConfig,
        *,
        name: str | None = None,
        quiet: bool = False,
        device: str = "auto",
        engine: EngineConfig | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
        self.run, self.config, self.quiet = run, config, quiet or not self.ranks.first
        self.name = name or config.name
        check_name(self.name, "a head")
        if self.name in RESERVED:
            raise ConfigError(f"{self.name!r} cannot be the name of a head: the run's own evaluations have it.")
        self.folder = Run(run.head(self.name))
        self._hold: Hold | None = None
        # A missing package shall show now, not after an hour of rendering.
        make_head(config.finetune.head, 1, 1, config.finetune.horizon)
        self.device, self.engine = choose_device(device), engine or EngineConfig()
        settings = run_settings(run)
        # What an earlier call said of the head's evaluations holds until another one says something else.
        usual = (head_settings(run, self.name) or settings)["evaluation"]
        self.evaluation = replace(EvaluationConfig(**usual), **config.evaluation)
        self.evaluation.control.check(config.finetune.chunk_length, self.name)
        self.simulator = str(settings["frames"]["simulator"])
        self.encoder_config = self._encoder_config(settings)
        self.label = encoder_label(config.start, learned_label(settings))
        keys = settings.get("keys")
        finetune = replace(config.finetune, encoder=self.encoder_config)
        if finetune.keys is None and keys is not None:
            finetune = replace(finetune, keys=tuple(keys))
        self.finetune = finetune
        self._data = RunData.of_run(settings, self.encoder_config, quiet=self.quiet)
        self.ranks.on_first(self._claim)

    def _encoder_config(self, settings: Mapping[str, Any]) -> EncoderConfig:
        if self.config.start == "scratch":
            if self.run.encoder.is_dir():
                return pretrained_config(self.run.encoder)
            where = f"{self.run.config}: settings.pretrain.encoder"
            return from_json(EncoderConfig, settings["pretrain"]["encoder"], where)
        return pretrained_config(self._encoder_folder())

    def _encoder_folder(self) -> Path:
        folder = self.run.encoder if self.config.start == "run" else Path(self.config.start)
        if self.config.start == "run" and not folder.is_dir():
            raise CheckpointError(
                f"{self.run.root} has no encoder yet: run 'classact pretrain' with this --out first, or train from "
                f"scratch."
            )
        return folder

    def _started_from(self) -> Path | None:
        if self.config.start == "scratch":
            return None
        if self.finetune.weights == "last" and self.config.start == "run":
            return self.run.checkpoints
        return self._encoder_folder()

    def _claim(self) -> None:
        self.run.check_writable()
        if not self.folder.policy.is_dir():
            # Until all is learned, or this object is gone: another training would write into the same files.
            self._hold = own(self.folder.root)
        settings = plain_json(
            {
                "finetune": to_json(self.finetune),
                "start": self.config.start,
                "started_from": self._digest(),
                "evaluation": asdict(self.evaluation),
                "milestone_episodes": self.config.milestone_episodes,
            }
        )
        card: dict[str, Any] = {}
        free = ["evaluation", "milestone_episodes", *(f"finetune.{n}" for n in (*INCIDENTAL, *self.finetune.acting))]
        if known := head_settings(self.run, self.name):
            flags = precision_flags(self.folder.checkpoints)
            found, asked = (
                # Which other encoder it started from is told by its weights, wherever they lie.
                without(value, *free)
                | {"start": value.get("start") if value.get("start") in OWN else "other"}
                | {"finetune": spelled_out(without(value, *free)["finetune"], flags)}
                for value in (known, settings)
            )
            if difference := first_difference(found, asked, "settings"):
                raise ConfigError(
                    f"{self.folder.root} was started with {difference}. Give the head another --name, or remove that "
                    f"folder."
                )
        else:
            # Of an attempt that ended before its first checkpoint, or of a training whose files were removed.
            self.folder.train_log.unlink(missing_ok=True)
            self.run.drop_milestones(f"heads/{self.name}")
            card = new_card(self.name) | {"labels": {}}
        self.folder.update_config(lambda now: (card or now) | {"settings": settings})

    def _digest(self) -> str | None:
        """Which weights training starts from: a run whose encoder was learned again has other ones."""
        folder = self._started_from()
        if folder is None:
            return None
        file = folder / "model.safetensors"
        return sha256_file(file) if file.exists() else folder.name

    def _prepare(self) -> None:
        """Make the images that are not in the store yet, of the data that the encoder was learned on.

        Raises:
            ConfigError: the data under the run's path are others now.
        """
        self._data.check_unchanged(self.run)
        # What else would be refused when these are made.
        data, start = self._data.states(), self._started_from()
        check_engine(self.engine, self.ranks, self.finetune.batch_size, data.num_steps)
        data.schema.columns(self.finetune.keys)
        if start is not None:
            load_encoder(start, self.finetune.weights)
        self._data.prepare()

    def train(self) -> ParametricPolicy:
        """The policy, trained now or read from the folder. The last thing that ranks do together."""
        policy = self._train()
        self._hold = None
        self.ranks = self.ranks.alone()
        return policy

    def _train(self) -> ParametricPolicy:
        if self.ranks.on_first(self.folder.policy.is_dir):
            return self._load()
        if self.finetune.evaluations:
            self.check_rollouts()
        # One rank makes the images; the others find them there.
        self.ranks.on_first(self._prepare)
        config, frames = self.finetune, self._data.frames()
        if self.config.start == "scratch":
            config = replace(config, encoder=self._data.encoder_config())
        tuner = FineTuner(
            frames,
            config,
            self.folder.root,
            self._started_from(),
            self.device,
            engine=self.engine,
            ranks=self.ranks,
            say=teller(quiet=self.quiet),
        )
        if self.ranks.first:
            self.folder.update_config(lambda card: card | {"labels": tuner.labels()})

        def milestone(at: FineTuner) -> None:
            config = replace(self.evaluation, episodes=self.config.milestone_episodes)
            evaluate_milestone(
                self.run,
                at.policy(),
                self.label,
                f"heads/{self.name}",
                (at.step, at.steps),
                (self.simulator, config),
                row_labels(at.labels()),
            )

        trained = timed_fit(
            self.folder,
            "training",
            tuner.fit,
            milestone if self.finetune.evaluations else None,
            keep=self.ranks.first,
            title=f"train {self.name}",
            quiet=self.quiet,
        )
        if self.ranks.first:
            trained.save(self.folder.policy)
        self.ranks.barrier()
        return self._load()

    def check_rollouts(self) -> None:
        """Refuse now what could not be rolled out after the training: :func:`classact.run.evaluate.check_rollouts`."""
        check_rollouts(self.run, self.simulator)

    def _load(self) -> ParametricPolicy:
        # What acting is asked to be now, not what it was when training began.
        config = self.finetune
        acting = {"chunk_length": config.chunk_length, **config.head.acting_settings()}
        return ParametricPolicy.load(self.folder.policy, device=self.device, **acting)

    def evaluate(self) -> list[RolloutResult]:
        """Roll out the trained policy; write episodes, and rows of the run's table: last weights, and the maximum.

        Raises:
            ConfigError: as :func:`classact.run.evaluate.check_rollouts`, before anything is learned.
        """
        self.check_rollouts()
        policy = watched(self.train(), run_watcher(self.run, self.config.start, self.device))
        with timed(self.folder, "evaluation", again=True):
            results, _ = roll_out(
                self.run,
                evaluation_name(self.name, self.label, self.evaluation.shift),
                policy,
                self.label,
                (self.simulator, self.evaluation),
                row_labels(self.folder.read_config()["labels"]),
                stage=f"heads/{self.name}",
                title=self.name,
                quiet=self.quiet,
            )
        return results


def head_settings(run: Run, name: str) -> dict[str, Any]:
    """The settings that a head of a run was started with; empty where nothing was learned under any."""
    folder = Run(run.head(name))
    if not folder.config.exists() or not (folder.policy.is_dir() or list_checkpoints(folder.checkpoints)):
        return {}
    return dict(folder.read_config().get("settings") or {})
