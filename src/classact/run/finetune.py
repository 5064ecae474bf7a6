"""From a run's encoder to an evaluated head: fine-tuning as a stage of a run (paper 4.3, C.2).

A head's folder lies in its run's and is laid out like one; its evaluations join the run's, so that one page shows
retrieval and heads side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from classact.data.types import Demonstrations, RolloutResult
from classact.errors import CheckpointError, ConfigError
from classact.evaluation.config import EvaluationConfig
from classact.evaluation.rows import REFERENCES
from classact.models.encoders import EncoderConfig, pretrained_config
from classact.models.heads import make_head
from classact.policies.base import Policy
from classact.policies.monitored import monitored
from classact.policies.parametric import ParametricPolicy
from classact.policies.speed import check_reach
from classact.run import analysis
from classact.run.config import OWN_STARTS, HeadRunConfig, RunConfig
from classact.run.data import RunData
from classact.run.folder import Run
from classact.run.held_out import compare_actions
from classact.run.load import run_monitor
from classact.run.stages import Stage, Work, started
from classact.train.config import ACTING, INCIDENTAL, EngineConfig
from classact.train.engine import check_engine, precision_flags, spelled_out
from classact.train.head import FineTuner, load_encoder
from classact.utils.codec import first_difference, to_json, without
from classact.utils.hub import model_folder
from classact.utils.progress import teller
from classact.utils.ranks import Ranks
from classact.utils.storage import check_name, sha256_file

RESERVED = ("retrieval", *REFERENCES)
"""Names that the run's own evaluations have, and what heads are compared with on held-out demonstrations."""


class HeadPipeline(Work):
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

    advice = "Give the head another --name, or remove that folder."

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
        self.name = name or config.name
        check_name(self.name, "a head")
        if self.name in RESERVED:
            raise ConfigError(
                f"{self.name!r} cannot be the name of a head: in the run's tables it stands for something else. Choose "
                f"another --name."
            )
        folder = Run(run.head(self.name))
        # A missing package shall show now, not after an hour of rendering.
        make_head(config.finetune.head, 1, 1, config.finetune.horizon)
        super().__init__(run, folder, ranks or Ranks(), quiet=quiet, device=device, engine=engine)
        self.head, self.stages = self.name, FINETUNING
        settings = run.settings()
        self.evaluation = config.evaluation or usual_evaluation(run, self.name)
        self.evaluation.control.check(config.finetune.chunk_length, self.name)
        if config.start == "run" and settings.retrieval.revisit is not None:  # retrieval's chunks are played, too
            where = f"head {self.name!r}, whose run leaves circles by retrieval (revisit): "
            check_reach(config.finetune.chunk_length, config.finetune.speed, settings.retrieval.horizon, where)
        self.intermediate_episodes = config.intermediate_episodes
        self.simulator = settings.frames.simulator
        self.check_evaluations(config.finetune.evaluations)
        self.encoder_config = encoder_config(run, config, settings)
        keys = settings.keys if config.finetune.keys is None else config.finetune.keys
        self.finetune = replace(config.finetune, encoder=self.encoder_config, keys=keys)
        self.config = replace(config, finetune=self.finetune, evaluation=self.evaluation)
        self.label, self.labels = config.label(settings.label), config.labels
        self.source = RunData(settings, self.encoder_config, quiet=self.quiet)
        self.ranks.on_first(self._claim_folder)

    def _claim_folder(self) -> None:
        self.run.check_writable()
        self.claim(self.name, {"settings": to_json(self.config), "started_from": weights_digest(self)})

    def difference(self) -> str | None:
        """What of the settings, or of the weights that training starts from, is not as the head was started with."""
        before, flags = self.folder.read_config().get("started_from"), precision_flags(self.folder.checkpoints)
        known = identity(self.run.head_settings(self.name), before, flags)
        return first_difference(known, identity(self.config, weights_digest(self), flags), "settings")

    def train(self) -> None:
        """Train the policy, where it is not there. The last thing that ranks do together."""
        self.make("policy")
        self.hold = None
        self.part()

    @property
    def policy(self) -> ParametricPolicy:
        """What :meth:`train` has left."""
        policy: ParametricPolicy = self["policy"]
        return policy

    def evaluate(self) -> list[RolloutResult]:
        """Roll out the trained policy; write episodes, and rows of the run's table: last weights, and the maximum.

        Raises:
            ConfigError: as :func:`classact.run.evaluate.check_rollouts`, before anything is learned.
        """
        self.check_rollouts()
        self.left.pop("rollouts", None)
        self.make("rollouts")
        results: list[RolloutResult] = self["rollouts"]
        return results


# -- stages ----------------------------------------------------------------------------------------


def read(work: HeadPipeline) -> Demonstrations:
    """The demonstrations that the encoder was learned on, and whatever would be refused when they are learned from.

    Raises:
        ConfigError: the data under the run's path are others now.
    """
    if work.finetune.evaluations:
        work.check_rollouts()

    def check() -> None:
        work.source.check_unchanged(work.run)
        data, start = work.source.states(), starts_from(work)
        check_engine(work.engine, work.ranks, work.finetune.batch_size, data.num_steps)
        data.schema.columns(work.finetune.keys)
        if start is not None:
            load_encoder(start, work.finetune.weights)

    work.ranks.on_first(check)
    return work.source.states()


def train(work: HeadPipeline) -> ParametricPolicy:
    """The trained policy, saved, as its folder gives it; with rollouts on the way where they are asked for."""
    config = work.finetune
    if work.config.start == "scratch":
        config = replace(config, encoder=work.source.encoder_config())
    cloned, decoder = work.source.cloned(work["frames"])
    tuner = FineTuner(
        cloned,
        config,
        work.folder.root,
        work.device,
        work.engine,
        work.ranks,
        teller(quiet=work.quiet),
        encoder_folder=starts_from(work),
        decoder=decoder,
    )
    # Evaluated as it will be once it is trained: watched, and led out of circles, by the run's own policy.
    monitor = run_monitor(work.run, work.config.start, work.device) if config.evaluations and work.ranks.first else None

    def policy(at: FineTuner) -> Policy:
        return monitored(at.policy(), monitor)

    trained = work.fit("training", f"train {work.name}", tuner.fit, policy if config.evaluations else None)
    if work.ranks.first:
        trained.save(work.folder.policy)
    work.ranks.barrier()
    work.hold = None
    return load_policy(work)


def roll_out(work: HeadPipeline) -> list[RolloutResult]:
    """Rollouts of the trained policy, monitored by the run's own where it started from the run's encoder.

    Without a simulator its actions are compared with those of held-out demonstrations instead.
    """
    if not work.simulates:
        if work.source.held:
            compare_actions(work.run, work.name, work.source, work.device, quiet=work.quiet)
            analysis.write_head_chunks(work.run, work.folder, work.policy)
        return []
    policy = monitored(work.policy, run_monitor(work.run, work.config.start, work.device))
    results = work.roll_out(policy, work.name)
    analysis.write_head_chunks(work.run, work.folder, work.policy)
    return results


def load_policy(work: HeadPipeline) -> ParametricPolicy:
    """The policy, acting as it is asked to now, not as when training began."""
    return ParametricPolicy.load(work.folder.policy, device=work.device, **work.finetune.acting_settings())


FINETUNING: tuple[Stage, ...] = (
    Stage("read demonstrations", (), "demonstrations", read, time="own"),
    Stage("images", ("demonstrations",), "frames", lambda work: work.source.frames(work.ranks), time="own"),
    Stage("training", ("frames",), "policy", train, attrgetter("policy"), load_policy, time="own"),
    Stage("evaluation", ("policy",), "rollouts", roll_out, time="repeated", together=False),
)
"""The stages of a head, in their order."""


# -- settings --------------------------------------------------------------------------------------


def encoder_config(run: Run, config: HeadRunConfig, settings: RunConfig) -> EncoderConfig:
    """Architecture and image transform of the encoder that a head is trained on.

    Raises:
        CheckpointError: there is no encoder to start from.
    """
    if config.start != "scratch":
        return pretrained_config(encoder_folder(run, config))
    return pretrained_config(run.encoder) if run.encoder.is_dir() else settings.pretrain.encoder


def encoder_folder(run: Run, config: HeadRunConfig) -> Path:
    """The folder of the encoder that training starts from.

    Raises:
        CheckpointError: the run has none yet.
    """
    folder = run.encoder if config.start == "run" else model_folder(config.start)
    if config.start == "run" and not folder.is_dir():
        raise CheckpointError(
            f"{run.root} has no encoder yet: run 'classact pretrain' with this --out first, or train from scratch."
        )
    return folder


def starts_from(work: HeadPipeline) -> Path | None:
    """Where the weights are that training starts from; None: it starts from initial ones."""
    if work.config.start == "scratch":
        return None
    if work.finetune.weights == "last" and work.config.start == "run":
        return work.run.checkpoints
    return encoder_folder(work.run, work.config)


def weights_digest(work: HeadPipeline) -> str | None:
    """Which weights training starts from: a run whose encoder was learned again has other ones."""
    folder = starts_from(work)
    if folder is None:
        return None
    file = folder / "model.safetensors"
    return sha256_file(file) if file.exists() else folder.name


def identity(config: HeadRunConfig, digest: str | None, flags: Mapping[str, bool]) -> dict[str, Any]:
    """What two calls that continue each other agree in.

    Args:
        config: settings.
        digest: of the weights that training starts from.
        flags: what "auto" precision came to.
    """
    free = (f"finetune.{name}" for name in (*INCIDENTAL, *config.finetune.acting))
    value = without(to_json(config), "evaluation", "intermediate_episodes", *free)
    # Which other encoder it started from is told by its weights, wherever they lie.
    start = config.start if config.start in OWN_STARTS else "other"
    return value | {"start": start, "finetune": spelled_out(value["finetune"], flags), "started_from": digest}


def head_settings(run: Run, name: str) -> HeadRunConfig | None:
    """The settings that a head of a run was started with; None where nothing was learned under any."""
    return run.head_settings(name) if started(Run(run.head(name))) else None


def as_before(made: HeadRunConfig, known: HeadRunConfig | None) -> HeadRunConfig:
    """These settings, acting and evaluated during training as a head of the same name was started with, if one was."""
    if known is None:
        return made
    finetune, before = made.finetune, known.finetune
    head = finetune.head
    if head.name == before.head.name:
        head = replace(head, **before.head.acting_settings())
    stays = {name: getattr(before, name) for name in (*ACTING, "evaluations")}
    return replace(
        made, finetune=replace(finetune, head=head, **stays), intermediate_episodes=known.intermediate_episodes
    )


def usual_evaluation(run: Run, name: str) -> EvaluationConfig:
    """How a head of a run is evaluated where nothing else is said: as the last call said, else as the run is."""
    known = head_settings(run, name)
    return run.settings().evaluation if known is None or known.evaluation is None else known.evaluation
