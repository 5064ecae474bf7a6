"""From a run's encoder to an evaluated head: fine-tuning as a stage of a run (paper 4.3, C.2).

A head's folder lies in its run's and is laid out like one; its evaluations join the run's, so that one page shows
retrieval and heads side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from classact.data.types import RolloutResult
from classact.errors import CheckpointError, ConfigError
from classact.evaluation.config import EvaluationConfig
from classact.models.encoders import EncoderConfig, pretrained_config
from classact.models.heads import make_head
from classact.policies.parametric import ParametricPolicy
from classact.policies.watched import watched
from classact.run.config import OWN_STARTS, HeadRunConfig, RunConfig
from classact.run.data import RunData
from classact.run.evaluate import check_rollouts
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
from classact.train.config import INCIDENTAL, EngineConfig
from classact.train.engine import check_engine, precision_flags, spelled_out
from classact.train.head import FineTuner, load_encoder
from classact.utils.codec import to_json
from classact.utils.locks import Hold, own
from classact.utils.machine import choose_device
from classact.utils.progress import teller
from classact.utils.ranks import Ranks
from classact.utils.storage import check_name, first_difference, sha256_file, without

RESERVED = ("retrieval",)
"""Names that the run's own evaluations have."""


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
        settings = run.settings()
        self.evaluation = config.evaluation or usual_evaluation(run, self.name)
        self.evaluation.control.check(config.finetune.chunk_length, self.name)
        self.simulator = settings.frames.simulator
        self.encoder_config = self._encoder_config(settings)
        self.label = config.label(settings.label)
        keys = settings.keys if config.finetune.keys is None else config.finetune.keys
        self.finetune = replace(config.finetune, encoder=self.encoder_config, keys=keys)
        self.config = replace(config, finetune=self.finetune, evaluation=self.evaluation)
        self._data = RunData.of_run(settings, self.encoder_config, quiet=self.quiet)
        self.ranks.on_first(self._claim)

    def _encoder_config(self, settings: RunConfig) -> EncoderConfig:
        if self.config.start == "scratch":
            if self.run.encoder.is_dir():
                return pretrained_config(self.run.encoder)
            return settings.pretrain.encoder
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
        card: dict[str, Any] = {}
        digest = self._digest()
        if known := head_settings(self.run, self.name):
            flags, before = precision_flags(self.folder.checkpoints), self.folder.read_config().get("started_from")
            found, asked = self._identity(known, before, flags), self._identity(self.config, digest, flags)
            if difference := first_difference(found, asked, "settings"):
                raise ConfigError(
                    f"{self.folder.root} was started with {difference}. Give the head another --name, or remove that "
                    f"folder."
                )
        else:
            # Of an attempt that ended before its first checkpoint, or of a training whose files were removed.
            self.folder.train_log.unlink(missing_ok=True)
            self.run.drop_milestones(f"heads/{self.name}")
            card = new_card(self.name)
        made = {"settings": to_json(self.config), "started_from": digest}
        self.folder.update_config(lambda now: (card or now) | made)

    def _identity(self, config: HeadRunConfig, digest: str | None, flags: Mapping[str, bool]) -> dict[str, Any]:
        """What two calls that continue each other agree in."""
        free = (f"finetune.{name}" for name in (*INCIDENTAL, *config.finetune.acting))
        value = without(to_json(config), "evaluation", "milestone_episodes", *free)
        # Which other encoder it started from is told by its weights, wherever they lie.
        start = config.start if config.start in OWN_STARTS else "other"
        return value | {
            "start": start,
            "finetune": spelled_out(value["finetune"], flags),
            "started_from": digest,
        }

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

        def milestone(at: FineTuner) -> None:
            config = replace(self.evaluation, episodes=self.config.milestone_episodes)
            evaluate_milestone(
                self.run,
                at.policy(),
                self.label,
                f"heads/{self.name}",
                (at.step, at.steps),
                (self.simulator, config),
                self.config.labels,
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
                self.config.labels,
                stage=f"heads/{self.name}",
                title=self.name,
                quiet=self.quiet,
            )
        return results


def head_settings(run: Run, name: str) -> HeadRunConfig | None:
    """The settings that a head of a run was started with; None where nothing was learned under any."""
    folder = Run(run.head(name))
    if not folder.config.exists() or not (folder.policy.is_dir() or list_checkpoints(folder.checkpoints)):
        return None
    return run.head_settings(name)


def usual_evaluation(run: Run, name: str) -> EvaluationConfig:
    """How a head of a run is evaluated where nothing else is said: as the last call said, else as the run is."""
    known = head_settings(run, name)
    return run.settings().evaluation if known is None or known.evaluation is None else known.evaluation
