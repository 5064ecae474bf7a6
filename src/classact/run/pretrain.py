"""From demonstrations to an evaluated policy: the stages of a run.

The :class:`RunConfig` decides what is learned. The folder remembers it and refuses another one. A learned encoder and
its policy are not made again; rollouts and images are, with the same result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from classact.data.lowdim import LowDim
from classact.data.named_layouts import is_layout_name
from classact.data.rate import costly_windows, short_windows, spoken
from classact.data.readers import last_episodes
from classact.data.types import Demonstrations, RolloutResult
from classact.errors import MissingDependencyError, UnknownNameError, choose
from classact.evaluation.rows import ActionError
from classact.models.encoders import ImageEncoder
from classact.policies import ImageLatents, RetrievalConfig, RetrievalPolicy, SceneLatents, retrievable
from classact.policies.retrieval import no_alarm
from classact.policies.search import check_search
from classact.run import analysis
from classact.run.config import KEPT_FIELDS, NON_IDENTITY_FIELDS, RANDOM, RunConfig, whole_path, whole_source
from classact.run.data import (
    STATE_RETRIEVAL,
    RunData,
    check_models,
    lie_beside,
    model_digests,
    other_data,
    state_latents,
)
from classact.run.folder import Run
from classact.run.frames import needs_rendering
from classact.run.held_out import RETRIEVAL, compare_actions
from classact.run.novelty import write_novelty_videos
from classact.run.presets import rate_of
from classact.run.recording import evaluation_name
from classact.run.stages import Stage, Work, started
from classact.sims import NO_SIMULATOR, make_simulator, simulator_spec
from classact.train.config import EngineConfig, PretrainConfig
from classact.train.engine import check_engine, precision_flags, spelled_out
from classact.train.representation import Trainer, check_training
from classact.utils.codec import first_difference, from_json, to_json, without
from classact.utils.progress import progress_bar, teller
from classact.utils.ranks import Ranks

logger = logging.getLogger(__name__)


class Pipeline(Work):
    """The stages of one run.

    Raises:
        ConfigError: the folder belongs to other settings, or the simulator does not know the shift.
        BusyError: another process trains into the folder.
        StorageError: the folder cannot be written.
    """

    advice = "Choose another --out, or remove that folder."

    def __init__(
        self,
        run: Run,
        config: RunConfig,
        *,
        quiet: bool = False,
        device: str = "auto",
        engine: EngineConfig | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__(run, run, ranks or Ranks(), quiet=quiet, device=device, engine=engine)
        self.config = config = self.ranks.on_first(lambda: resumed(run, config))
        check_models(config)
        self.label, self.labels = config.label, config.labels
        self.simulator, self.evaluation = config.frames.simulator, config.evaluation
        self.intermediate_episodes = config.intermediate_episodes
        self.stages = (*pretraining(config), *rollouts(config), *comparisons(config), *pictures(config))
        config.evaluation.control.check(config.retrieval.chunk_length, "retrieval")
        # Wrong settings fail now, not after an hour of training.
        self.check_evaluations(config.pretrain.evaluations)
        frames, evaluation = config.frames, config.evaluation
        if self.simulates:
            for shift, size in ((frames.shift, frames.render_size), (evaluation.shift, evaluation.image_size)):
                make_simulator(self.simulator, image_size=size, shift=shift).close()
        self.source = RunData(config, quiet=self.quiet)
        self.data_metadata: dict[str, Any] = {}  # what the data are; empty before they are read
        self.ranks.on_first(self._check_folder)

    def _check_folder(self) -> None:
        self.run.check_writable()
        if started(self.run):
            self.check_same()
            # Data at another path are read again: what counts is their content.
            if self._known().data != self.config.data:
                self.data_metadata = self.source.metadata()
            self.claim_folder()
            analysis.remove_leftovers(self.run)

    def _known(self) -> RunConfig:
        return from_json(RunConfig, self.run.read_config().get("settings"), f"{self.run.config}: settings")

    def difference(self) -> str | None:
        """What of the settings, or of the data, differs from those the run was started with."""
        known, flags = self._known(), precision_flags(self.run.checkpoints)
        data, models = self.run.read_config()["data"], model_digests(self.config)
        # As they were when the run was started: they may lie elsewhere now.
        before = {name: data.get(name, digest) or None for name, digest in model_digests(known).items()}
        return (
            other_objective(known, self.config)
            or first_difference(identity(known, flags, before), identity(self.config, flags, models), "settings")
            or other_data(data, self.data_metadata)
        )

    def claim_folder(self) -> None:
        """Write settings and data into the folder, or compare them with those that it was started with."""
        settings, data = self.config, self.data_metadata
        if started(self.run):
            known, data = self._known(), data or self.run.read_config()["data"]
            kept = {name: getattr(known, name) for name in KEPT_FIELDS if getattr(settings, name) is None}
            settings = replace(settings, **kept)
        made = {"data": data, "settings": to_json(settings)}
        self.claim(settings.pretrain.objective.describe(), made | {"beside": lie_beside(self.run, settings)})

    # -- what is called ----------------------------------------------------------------------------

    def pretrain(self) -> None:
        """Learn the encoder, and build the policy, where missing.

        This ends the ranks' common work; all but the first are done.
        """
        self.make("policy")
        self.part()

    @property
    def policy(self) -> RetrievalPolicy:
        """Retrieval with the learned encoder."""
        policy: RetrievalPolicy = self["policy"]
        return policy

    def evaluate(self) -> dict[str, list[RolloutResult]]:
        """Roll out every policy of the run; write episodes and summary. Returns results by encoder, its own first.

        Without a simulator, held-out actions are compared instead, and nothing is returned.
        """
        if not self.simulates:
            self._again(comparisons(self.config))
            return {}
        self.check_rollouts()
        found = {name.removeprefix("rollouts of "): self.left.get(name) for name in self._again(rollouts(self.config))}
        return {name: results for name, results in found.items() if results is not None}

    def analyze(self) -> None:
        """Latent map, neighbours and videos of the learned policy."""
        self._again(pictures(self.config))

    def _again(self, stages: Sequence[Stage]) -> list[str]:
        """Do stages even if done; returns the names of their results."""
        names = [stage.leaves for stage in stages]
        for name in names:
            self.left.pop(name, None)
        self.make(*names)
        return names

    def check_rollouts(self) -> None:
        """Also refuses a simulator that lacks a camera of the encoder. Without any there is nothing to refuse."""
        if not self.simulates:
            if not started(self.run):
                self.make("demonstrations")
            return
        known = simulator_spec(self.simulator).cameras
        for camera in self.config.pretrain.encoder.cameras:
            if camera not in known:
                raise UnknownNameError(f"{choose('camera', camera, known)} in simulator {self.simulator!r}.")
        if not started(self.run):
            self.make("demonstrations")  # which writes their metadata into the folder
        super().check_rollouts()

    def retrieval_with(self, encoder: ImageEncoder, config: RetrievalConfig | None = None) -> RetrievalPolicy:
        """Retrieval with an encoder, by the run's settings or others; nothing is saved, and novelty not calibrated."""
        self.make("frames")
        return retrieval(self, encoder, config)

    def draw_neighbors(self, policy: RetrievalPolicy, results: Sequence[RolloutResult]) -> None:
        """Neighbours of some timesteps of a policy's rollouts: :func:`classact.run.analysis.write_neighbors`."""
        self.make("frames")
        frames, camera = self.config.frames, self.config.pretrain.encoder.cameras[0]
        drawn = frames if needs_rendering(self.source.recorded, camera, frames) else None
        analysis.write_neighbors(self.run, policy, self["frames"], drawn, results, self.simulator, self.evaluation)


# -- stages ----------------------------------------------------------------------------------------


def read(work: Pipeline) -> Demonstrations:
    """The demonstrations that are learned from, as recorded; the folder is locked to them from then on."""
    config, data, states = work.config, work.source.recorded, work.source.states()
    where = f"{data.name} ({data.source})"
    if config.pretrain.evaluations and config.intermediate_retrieval is not None:
        retrievable(states.episode_ends, config.intermediate_retrieval, where, states.labelled)
    rows = retrievable(states.episode_ends, config.retrieval, where, states.labelled)
    work.left["no alarm"] = ""
    if not work.run.policy.is_dir():
        held = last_episodes(data, work.source.held) if work.source.held else None
        work.left["no alarm"] = reason = no_alarm(states, held, rows, config.novelty.m)
        if reason and work.ranks.first:
            logger.warning("%s: the policy will have no novelty alarm: %s", where, reason)
    data.schema.columns(config.keys)

    def claim() -> None:
        work.data_metadata = work.source.metadata()
        work.claim_folder()
        analysis.write_statistics(work.run, data, work.source.held)

    work.ranks.on_first(claim)
    return states


def check(work: Pipeline) -> bool:
    """Refuse what would only fail once images are prepared, or the encoder is trained."""
    if work.config.pretrain.evaluations:
        work.check_rollouts()
    data, config = work["demonstrations"], training_config(work)
    if work.ranks.first:
        tell_windows(work, data, config)
    folder = None if work.config.similarity is None else Path(work.config.similarity)
    width = check_training(data, config, folder) + data.schema.language
    width += len(data.schema.columns(work.config.keys))
    check_engine(work.engine, work.ranks, config.batch_size, data.num_steps)
    for retrieval in (work.config.retrieval, work.config.intermediate_retrieval or work.config.retrieval):
        check_search(retrieval.search, len(retrievable(data.episode_ends, retrieval, data.name)), width)
    return True


def tell_windows(work: Pipeline, data: Demonstrations, config: PretrainConfig) -> None:
    """Say how long windows and chunks are, and warn where that is too short or costly."""
    fps = rate_of(data, work.simulator)[0]
    say, used = teller(quiet=work.quiet), config.objective.needs_similarity
    horizon, stride = config.similarity.horizon, config.similarity.stride
    chunk = work.config.retrieval.chunk_length
    if fps is not None and say is not None:
        parts = [spoken("windows of", horizon, fps)] if used else []
        say(f"at {fps:g} steps per second: {', '.join([*parts, spoken('chunks of', chunk, fps)])}")
    if used:
        for said in filter(None, (short_windows(data, horizon, fps), costly_windows(data, horizon, stride))):
            logger.warning("%s", said)


def prepare_training(work: Pipeline) -> Trainer:
    """The training, with the similarity of actions measured where the objective needs it."""
    measured = work.config.pretrain.objective.needs_similarity
    folder = work.config.similarity
    similarity = None if folder is None else Path(folder)
    with progress_bar("action similarity", quiet=work.quiet or not measured) as bar:
        trainer = Trainer(
            work.source.learned(work["frames"]),
            training_config(work),
            work.run.root,
            work.device,
            work.engine,
            work.ranks,
            teller(quiet=work.quiet),
            similarity_folder=similarity,
            progress=bar,
            renderings=work.config.frames.renderings,
        )
        if work.ranks.first and trainer.similarity is not None:
            analysis.write_similarity(work.run, trainer.similarity, work.config.learns_from)
    return trainer


def train(work: Pipeline) -> ImageEncoder:
    """The learned encoder, with rollouts during training where configured."""
    trainer: Trainer = work.left.pop("training")  # its images and networks are no longer needed

    def policy(at: Trainer) -> RetrievalPolicy:
        return retrieval(work, at.average, work.config.intermediate_retrieval)

    evaluations = work.config.pretrain.evaluations
    title = "learn the representation"
    return saved(work, work.fit("pre-training", title, trainer.fit, policy if evaluations else None))


def build(work: Pipeline) -> RetrievalPolicy:
    """Retrieval with the learned encoder and its novelty alarm, saved; N^2 cosines where nothing was held out."""
    policy = retrieval(work, work["encoder"])
    with progress_bar("calibrate novelty", quiet=work.quiet) as bar:
        if not work.left["no alarm"]:
            policy.calibrate(work.source.heldout(), work.config.novelty, progress=bar)
        policy.save(work.run.policy)
    work.hold = None
    return policy


def pretraining(config: RunConfig) -> tuple[Stage, ...]:
    """The stages of a pre-training, in their order."""
    objective, kept = config.pretrain.objective, (attrgetter("encoder"), load_encoder)
    timed: Literal["added", "own"] = "added" if objective.needs_similarity else "own"

    def initial(work: Pipeline) -> ImageEncoder:
        return saved(work, ImageEncoder(work.source.encoder_config(), seed=work.config.pretrain.seed))

    learn = [
        Stage("action similarity", ("frames", "checked"), "training", prepare_training, time=timed),
        Stage("pre-training", ("training", "frames"), "encoder", train, *kept, time="own"),
    ]
    if objective.written == "none":
        learn = [Stage("initial weights", ("frames", "checked"), "encoder", initial, *kept, time="own")]
    return (
        Stage("read demonstrations", (), "demonstrations", read, time="own"),
        Stage("check", ("demonstrations",), "checked", check, time="own"),
        Stage("images", ("demonstrations",), "frames", lambda work: work.source.frames(work.ranks)),
        *learn,
        Stage("policy", ("encoder", "frames"), "policy", build, attrgetter("policy"), load_policy, together=False),
    )


def comparisons(config: RunConfig) -> tuple[Stage, ...]:
    """Without a simulator: the stage that compares actions with those of held-out demonstrations, if there are any."""
    if config.frames.simulator != NO_SIMULATOR or not config.heldout:
        return ()

    def compare(work: Pipeline) -> list[ActionError]:
        compare_actions(work.run, RETRIEVAL, work.source, work.device, quiet=work.quiet)
        return work.run.read_actions()

    needs = ("policy", "frames")
    return (Stage("held-out actions", needs, "held-out actions", compare, time="repeated", together=False),)


def rollouts(config: RunConfig) -> tuple[Stage, ...]:
    """The stages that roll out the learned policy of a run, and baselines; none without a simulator."""
    if config.frames.simulator == NO_SIMULATOR:
        return ()

    def stage(encoder: str, needs: tuple[str, ...], do: Callable[[Pipeline], Any]) -> Stage:
        return Stage(f"evaluate {encoder}", needs, f"rollouts of {encoder}", do, time="repeated", together=False)

    stages = [stage(config.label, ("policy",), lambda work: work.roll_out(work.policy, "retrieval"))]
    if config.baselines and config.label != RANDOM:  # else it is the same
        stages.append(stage("untrained", ("encoder", "frames"), roll_out_untrained))
    if config.baselines:
        stages.append(stage("state", ("demonstrations",), roll_out_state))
    return tuple(stages)


def roll_out_untrained(work: Pipeline) -> list[RolloutResult]:
    """Rollouts of the same retrieval with an encoder of random weights."""
    config = replace(work["encoder"].config, init="scratch", init_path=None)
    encoder = ImageEncoder(config, seed=work.config.pretrain.seed)
    return work.roll_out(retrieval(work, encoder), "retrieval", "untrained")


def roll_out_state(work: Pipeline) -> list[RolloutResult] | None:
    """Rollouts of retrieval with the true simulator state as latent; None where there is none."""
    data, spec = work["demonstrations"], simulator_spec(work.simulator)
    if data.states is None or not (spec.objects or spec.world is not None):
        return None
    return work.roll_out(state_policy(data, work.simulator), "retrieval", "state")


def pictures(config: RunConfig) -> tuple[Stage, ...]:
    """The stages that show what a run has learned, and from what."""
    rolled = () if config.frames.simulator == NO_SIMULATOR else (f"rollouts of {config.label}",)
    needs = ("policy", "frames", *rolled)
    return (
        Stage("consistency", ("policy", "frames"), "consistency", contradict, time="repeated", together=False),
        Stage("pictures and videos", needs, "pictures", draw, time="repeated", together=False),
    )


def contradict(work: Pipeline) -> bool:
    """How far each demonstration is from what the others do."""
    with progress_bar("leave demonstrations out", quiet=work.quiet) as bar:
        analysis.write_consistency(work.run, work.policy, work["frames"], bar)
    return True


def draw(work: Pipeline) -> bool:
    """The latent map of the bank; neighbours and videos of the learned policy's rollouts."""
    analysis.write_latent_map(work.run, work.policy, work.config.pretrain.seed)
    if not work.simulates:
        if work.source.held:
            held = work.source.held_out(work.policy.config.chunk_length)
            analysis.write_recorded_neighbors(work.run, work.policy, work["frames"], held)
            with progress_bar("draw held-out demonstrations", quiet=work.quiet) as bar:
                numbers = work.config.numbers(len(work.source.recorded))
                try:
                    write_novelty_videos(work.run, work.policy, work["frames"], held.data, numbers, bar)
                except MissingDependencyError as problem:
                    logger.warning("held-out demonstrations are not shown as videos: %s", problem)
        return True
    results: list[RolloutResult] = work[f"rollouts of {work.label}"]
    work.draw_neighbors(work.policy, results)
    name, criterion = evaluation_name("retrieval", work.label, work.evaluation.shift), next(iter(results[0].success))
    analysis.write_videos(work.run, results, name, criterion, work.simulator, work.evaluation)
    return True


# -- what stages share -----------------------------------------------------------------------------


def retrieval(work: Pipeline, encoder: ImageEncoder, config: RetrievalConfig | None = None) -> RetrievalPolicy:
    """Retrieval with an encoder and the run's demonstrations, not calibrated."""
    frames: Demonstrations = work["frames"]
    latents = ImageLatents(encoder.to(work.device), LowDim.fit(frames, work.config.keys))
    config, space = config or work.config.retrieval, frames.schema.actions
    return RetrievalPolicy.build(latents, frames, config, action_space=space).to(work.device)


def state_policy(data: Demonstrations, simulator: str) -> RetrievalPolicy:
    """Retrieval with the true simulator state as latent: :func:`classact.run.data.state_latents`."""
    config = replace(STATE_RETRIEVAL, k=min(STATE_RETRIEVAL.k, data.num_steps))
    latents = state_latents(data, simulator_spec(simulator))
    # With only the world's extent known, actions are points.
    space = data.schema.actions if isinstance(latents, SceneLatents) else None
    return RetrievalPolicy.build(latents, data, config, action_space=space)


def saved(work: Pipeline, encoder: ImageEncoder) -> ImageEncoder:
    """The encoder as its folder has it, on every rank."""
    if work.ranks.first:
        encoder.save_pretrained(work.run.encoder)
    work.ranks.barrier()
    return load_encoder(work)


def load_encoder(work: Pipeline) -> ImageEncoder:
    """The learned encoder."""
    return ImageEncoder.from_pretrained(work.run.encoder)


def load_policy(work: Pipeline) -> RetrievalPolicy:
    """The run's policy."""
    return RetrievalPolicy.load(work.run.policy).to(work.device)


def training_config(work: Pipeline) -> PretrainConfig:
    """The settings of the training, with the shape of the images."""
    return replace(work.config.pretrain, encoder=work.source.encoder_config())


# -- settings --------------------------------------------------------------------------------------


def resumed(run: Run, config: RunConfig) -> RunConfig:
    """The settings with absolute paths, and with those of the run's first call where none are given now."""
    known = run.settings() if started(run) else None
    if config.intermediate_retrieval is None and known is not None:
        config = replace(config, intermediate_retrieval=known.intermediate_retrieval)

    def place(name: str) -> str | None:
        asked = getattr(config, name)
        path = getattr(known, name, None) if asked is None else asked
        if name == "layout" and is_layout_name(path):
            return path
        if path is None or (name == "similarity" and asked is None and not Path(path).exists()):
            return None  # a similarity that is gone is measured again
        return whole_path(path)

    return replace(
        config,
        data=whole_source(config.data),
        similarity=place("similarity"),
        layout=place("layout"),
        latent_actions=place("latent_actions"),
        features=place("features"),
    )


def identity(config: RunConfig, flags: Mapping[str, bool], models: Mapping[str, str | None]) -> dict[str, Any]:
    """What two calls that continue each other must agree on.

    Args:
        config: settings.
        flags: what "auto" precision came to.
        models: :func:`classact.run.data.model_digests`.
    """
    value = without(to_json(config), *NON_IDENTITY_FIELDS)
    return value | {
        "pretrain": spelled_out(value["pretrain"], flags),
        **models,
        "learn_from": config.learns_from,
        "act_from": config.acts_from,
    }


def other_objective(known: RunConfig, asked: RunConfig) -> str | None:
    """Which objective a run was started with, and which is requested; None where they agree."""
    before, now = known.pretrain.objective.written, asked.pretrain.objective.written
    return None if before == now else f"objective {before!r}, now it is {now!r}"
