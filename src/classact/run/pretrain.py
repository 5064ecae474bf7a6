"""From demonstrations to an evaluated policy: the stages of a run.

What was learned is decided by the :class:`RunConfig`. The folder remembers it; another one is refused, never mixed in.
A learned encoder and its policy are not made again; rollouts and pictures are, with the same result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from classact.data.lowdim import LowDim
from classact.data.readers import last_episodes
from classact.data.types import Demonstrations, RolloutResult
from classact.errors import CheckpointError, ConfigError, UnknownNameError, choose
from classact.evaluation.config import EvaluationConfig
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.objectives import NoneConfig
from classact.policies import (
    ImageLatents,
    RetrievalConfig,
    RetrievalPolicy,
    SceneLatents,
    retrievable,
)
from classact.policies.retrieval import no_alarm
from classact.policies.search import check_search
from classact.run import analysis
from classact.run.config import KEPT_FIELDS, NON_IDENTITY_FIELDS, RANDOM, UNTRAINED, RunConfig, whole_path
from classact.run.data import STATE_RETRIEVAL, RunData, lie_beside, other_data, state_latents
from classact.run.evaluate import check_rollouts
from classact.run.folder import Run
from classact.run.frames import needs_rendering
from classact.run.recording import (
    evaluate_milestone,
    evaluation_name,
    new_card,
    roll_out,
    timed,
    timed_fit,
)
from classact.similarity.graph import CARD
from classact.sims import SimulatorSpec, make_simulator, simulator_spec
from classact.train.checkpoints import list_checkpoints
from classact.train.config import EngineConfig
from classact.train.engine import check_engine, precision_flags, spelled_out
from classact.train.representation import Trainer, check_training
from classact.utils.codec import from_json, to_json
from classact.utils.locks import Hold, own
from classact.utils.machine import choose_device
from classact.utils.progress import progress_bar, teller
from classact.utils.ranks import Ranks
from classact.utils.storage import first_difference, read_json, without

logger = logging.getLogger(__name__)


class Pipeline:
    """The stages of one run.

    Args:
        run: the folder.
        config: settings; must be those that the folder was started with.
        quiet: no progress bars.
        device: where the encoder is trained: "cpu", "cuda", or "auto" for a GPU if there is one.
        engine: how training is computed.
        ranks: this process among those that share the training; all but the first only train.

    Raises:
        ConfigError: the folder belongs to other settings, or the simulator does not know the shift.
        BusyError: another process trains into the folder.
        StorageError: the folder cannot be written.
    """

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
        self.ranks = ranks or Ranks()
        config = self.ranks.on_first(lambda: self._resumed(run, config))
        self.run, self.config, self.quiet = run, config, quiet or not self.ranks.first
        self.device, self.engine = choose_device(device), engine or EngineConfig()
        config.evaluation.control.check(config.retrieval.chunk_length, "retrieval")
        # What is wrong with the settings shall show now, not after an hour of training.
        for shift, size in (
            (config.frames.shift, config.frames.render_size),
            (config.evaluation.shift, config.evaluation.image_size),
        ):
            make_simulator(config.frames.simulator, image_size=size, shift=shift).close()
        self._hold: Hold | None = None
        self._claimed = False
        self._data = RunData.of_run(config, quiet=self.quiet)
        self._no_alarm = ""
        self.ranks.on_first(self._check_folder)

    @staticmethod
    def _resumed(run: Run, config: RunConfig) -> RunConfig:
        """The settings with whole paths, and with what was named when the run was started and is not named now."""
        known = run.settings() if started(run) else None
        if config.milestone_retrieval is None and known is not None:
            config = replace(config, milestone_retrieval=known.milestone_retrieval)

        def place(name: str) -> str | None:
            asked = getattr(config, name)
            path = getattr(known, name, None) if asked is None else asked
            if path is None or (asked is None and not Path(path).exists()):
                return None
            return whole_path(path)

        return replace(config, data=whole_path(config.data), similarity=place("similarity"), layout=place("layout"))

    def _check_folder(self) -> None:
        self.run.check_writable()
        if self._started():
            self._check_same({})
            # Data of another place are looked at: the place decides nothing, what they are does.
            self._claim({} if self._known().data == self.config.data else self._data.card())
            analysis.remove_leftovers(self.run)

    def _started(self) -> bool:
        return started(self.run)

    def _identity(self, config: RunConfig, max_neighbors: int | None, flags: Mapping[str, bool]) -> dict[str, Any]:
        """What two calls that continue each other agree in."""
        value = without(to_json(config), *NON_IDENTITY_FIELDS)
        return value | {"pretrain": spelled_out(value["pretrain"], flags), "max_neighbors": max_neighbors}

    def _max_neighbors(self) -> int | None:
        """What the graph leaves out, which decides what is learned; where it lies does not."""
        if self.config.pretrain.positives != "graph" or self.config.similarity is None:
            return None
        cap: int | None = read_json(Path(self.config.similarity) / "graph" / CARD, CheckpointError)["cap"]
        return cap

    def _known(self) -> RunConfig:
        return from_json(RunConfig, self.run.read_config().get("settings"), f"{self.run.config}: settings")

    def _check_same(self, data: Mapping[str, Any]) -> None:
        card, known, now = self.run.read_config(), self._known(), self.config
        flags = precision_flags(self.run.checkpoints)
        difference = other_objective(known, now)
        difference = difference or first_difference(
            self._identity(known, card.get("max_neighbors"), flags),
            self._identity(now, self._max_neighbors(), flags),
            "settings",
        )
        difference = difference or other_data(card["data"], data)
        if difference:
            raise ConfigError(
                f"{self.run.root} was started with {difference}. Choose another --out, or remove that folder."
            )

    def _claim(self, data: dict[str, Any]) -> None:
        """Write settings and data into the folder, or compare them with those that it was started with."""
        if not self.run.policy.is_dir():
            # Until all is learned, or this object is gone: another training would write into the same files.
            self._hold = own(self.run.root)
        settings = self.config
        if before := self._started():
            self._check_same(data)
            card, known = self.run.read_config(), self._known()
            kept = {name: getattr(known, name) for name in KEPT_FIELDS if getattr(settings, name) is None}
            settings = replace(settings, **kept)
        else:
            card = new_card(self.config.pretrain.objective.describe()) | {"data": {}}
        made = {
            "data": data or card["data"],
            "settings": to_json(settings),
            "max_neighbors": self._max_neighbors(),
            "beside": lie_beside(self.run, settings),
        }
        # What others have added in the meantime stays.
        self.run.update_config(lambda now: (now if before else card) | made)
        if not before:
            # Of an attempt that ended before its first checkpoint, or of a training whose files were removed.
            self.run.train_log.unlink(missing_ok=True)
            self.run.drop_milestones("pretrain")

    @contextmanager
    def _timed(self, stage: str, *, again: bool = False) -> Iterator[None]:
        with timed(self.run, stage, again=again, keep=self.ranks.first):
            yield

    def data(self) -> Demonstrations:
        """The demonstrations that are learned from, as recorded."""
        data = self._data.recorded()
        if not self._claimed:
            states = self._data.states()
            where = f"{data.name} ({data.source})"
            if self.config.pretrain.evaluations and self.config.milestone_retrieval is not None:
                retrievable(states.episode_ends, self.config.milestone_retrieval, where)
            rows = retrievable(states.episode_ends, self.config.retrieval, where)
            if not self.run.policy.is_dir():
                held = last_episodes(data, self._data.held) if self._data.held else None
                self._no_alarm = no_alarm(states, held, rows, self.config.novelty.m)
                if self._no_alarm and self.ranks.first:
                    logger.warning("%s: the policy will have no novelty alarm: %s", where, self._no_alarm)
            data.schema.columns(self.config.keys)
            self.ranks.on_first(lambda: self._claim(self._data.card()))
            self._claimed = True
        return self._data.states()

    def frames(self) -> Demonstrations:
        """The demonstrations that are learned from, with the images that the encoder trains on."""
        self.data()
        with self._timed("images"):
            # One rank makes what is not in the store yet; the others find it there.
            self.ranks.on_first(self._data.prepare)
            return self._data.frames()

    def pretrain(self) -> ImageEncoder:
        """The learned encoder, trained now or read from the folder.

        The last thing that ranks do together: afterwards each is by itself.
        """
        if self.ranks.on_first(self.run.encoder.is_dir):
            self.ranks = self.ranks.alone()
            return ImageEncoder.from_pretrained(self.run.encoder)
        if self.config.pretrain.evaluations:
            self.check_rollouts()
        self._check_training()
        frames = self.frames()
        if isinstance(self.config.pretrain.objective, NoneConfig):
            encoder = ImageEncoder(self._data.encoder_config(), seed=self.config.pretrain.seed)
        else:
            encoder = self._train(frames)
        if self.ranks.first:
            encoder.save_pretrained(self.run.encoder)
        self.ranks.barrier()
        self.ranks = self.ranks.alone()
        return ImageEncoder.from_pretrained(self.run.encoder)

    def _check_training(self) -> None:
        """Refuse what could only fail once images are prepared, or the encoder is trained."""
        data, config = self.data(), replace(self.config.pretrain, encoder=self._data.encoder_config())
        folder = None if self.config.similarity is None else Path(self.config.similarity)
        width = check_training(data, config, folder) + data.schema.language
        width += len(data.schema.columns(self.config.keys))
        check_engine(self.engine, self.ranks, config.batch_size, data.num_steps)
        for retrieval in (self.config.retrieval, self.config.milestone_retrieval or self.config.retrieval):
            check_search(retrieval.search, len(retrievable(data.episode_ends, retrieval, data.name)), width)

    def _train(self, frames: Demonstrations) -> ImageEncoder:
        objective = self.config.pretrain.objective
        timed_stage = self._timed("action similarity") if objective.needs_similarity else nullcontext()
        with timed_stage, progress_bar("action similarity", quiet=self.quiet or not objective.needs_similarity) as bar:
            folder = self.config.similarity
            trainer = Trainer(
                frames,
                replace(self.config.pretrain, encoder=self._data.encoder_config()),
                self.run.root,
                self.device,
                None if folder is None else Path(folder),
                bar,
                engine=self.engine,
                ranks=self.ranks,
                say=teller(quiet=self.quiet),
            )
            if self.ranks.first and trainer.similarity is not None:
                analysis.write_similarity(self.run, trainer.similarity)

        def milestone(at: Trainer) -> None:
            policy = self._retrieval(at.average, frames, self.config.milestone_retrieval)
            evaluate_milestone(
                self.run,
                policy,
                self.learned,
                "pretrain",
                (at.step, at.steps),
                self._milestone_config(),
                self.labels,
            )

        return timed_fit(
            self.run,
            "pre-training",
            trainer.fit,
            milestone if self.config.pretrain.evaluations else None,
            keep=self.ranks.first,
            title="learn the representation",
            quiet=self.quiet,
        )

    def _milestone_config(self) -> tuple[str, EvaluationConfig]:
        evaluation = replace(self.config.evaluation, episodes=self.config.milestone_episodes)
        return self.config.frames.simulator, evaluation

    @property
    def labels(self) -> dict[str, str]:
        """How tables label retrieval with the learned encoder."""
        return self.config.labels

    def policy(self) -> RetrievalPolicy:
        """Retrieval with the learned encoder, saved in the folder."""
        encoder = self.pretrain()
        if self.run.policy.is_dir():
            return RetrievalPolicy.load(self.run.policy, device=self.device)
        with self._timed("encode demonstrations"):
            policy = self._retrieval(encoder, self.frames())
        with self._timed("calibrate novelty"), progress_bar("calibrate novelty", quiet=self.quiet) as bar:
            # A stage of its own, for it takes N^2 cosines where nothing was held out.
            if not self._no_alarm:
                policy.calibrate(self._data.heldout(), self.config.novelty, progress=bar)
            policy.save(self.run.policy)
        self._hold = None
        return policy

    def _retrieval(
        self, encoder: ImageEncoder, frames: Demonstrations, config: RetrievalConfig | None = None
    ) -> RetrievalPolicy:
        latents = ImageLatents(encoder.to(self.device), LowDim.fit(frames, self.config.keys))
        space = frames.schema.actions
        config = config or self.config.retrieval
        return RetrievalPolicy.build(latents, frames, config, action_space=space).to(self.device)

    def retrieval_with(self, encoder: ImageEncoder) -> RetrievalPolicy:
        """The same retrieval with another encoder; nothing is saved, and novelty not calibrated."""
        return self._retrieval(encoder, self.frames())

    def untrained_policy(self) -> RetrievalPolicy:
        """The same retrieval with an encoder of random weights."""
        learned = self.pretrain().config
        config: EncoderConfig = replace(learned, init="scratch", init_path=None)
        return self.retrieval_with(ImageEncoder(config, seed=self.config.pretrain.seed))

    def state_policy(self) -> RetrievalPolicy:
        """Retrieval with the true simulator state as latent.

        Raises:
            ConfigError: the simulator says neither where objects are nor how far its world extends.
        """
        data = self.data()
        config = replace(STATE_RETRIEVAL, k=min(STATE_RETRIEVAL.k, data.num_steps))
        latents = state_latents(data, self._spec)
        # Where only the world's extent is known, actions are points.
        space = data.schema.actions if isinstance(latents, SceneLatents) else None
        return RetrievalPolicy.build(latents, data, config, action_space=space)

    def check_rollouts(self) -> None:
        """Refuse now what could not be rolled out after the training.

        Raises:
            ConfigError: the simulator has no camera that the encoder reads, is of another task than the data, or
                embeds instructions otherwise.
        """
        spec = self._spec
        for camera in self.config.pretrain.encoder.cameras:
            if camera not in spec.cameras:
                where = f" in simulator {self.config.frames.simulator!r}."
                raise UnknownNameError(choose("camera", camera, spec.cameras) + where)
        if not self._started():
            self.data()  # the folder then knows what they are
        check_rollouts(self.run, self.config.frames.simulator)

    def evaluate(self) -> dict[str, list[RolloutResult]]:
        """Roll out every policy of the run; write episodes and summary. Returns results by encoder, its own first.

        Raises:
            ConfigError: as :meth:`check_rollouts`, before anything is learned.
        """
        spec = self._spec
        self.check_rollouts()
        policies: dict[str, Callable[[], RetrievalPolicy]] = {self.learned: self.policy}
        if self.config.baselines:
            if self.learned != RANDOM:  # else it is the same
                policies["untrained"] = self.untrained_policy
            if self.data().states is not None and (spec.objects or spec.world is not None):
                policies["state"] = self.state_policy
        out = {}
        for encoder, make in policies.items():
            out[encoder] = self._evaluate(make(), encoder)
        return out

    @cached_property
    def learned(self) -> str:
        """How tables name the run's encoder."""
        return self.config.label

    @cached_property
    def _spec(self) -> SimulatorSpec:
        return simulator_spec(self.config.frames.simulator)

    def _evaluate(self, policy: RetrievalPolicy, encoder: str) -> list[RolloutResult]:
        learned = encoder == self.learned
        with self._timed(f"evaluate {encoder}", again=True):
            results, _ = roll_out(
                self.run,
                evaluation_name(policy.spec.name, encoder, self.config.evaluation.shift),
                policy,
                encoder,
                (self.config.frames.simulator, self.config.evaluation),
                self.labels if learned else UNTRAINED,
                stage="pretrain" if learned else None,
                title=encoder,
                quiet=self.quiet,
            )
        return results

    def analyze(self, results: list[RolloutResult]) -> None:
        """Latent map, neighbours and videos of the learned policy."""
        policy = self.policy()
        criterion = next(iter(results[0].success))
        with self._timed("latent map", again=True):
            analysis.write_latent_map(self.run, policy, self.config.pretrain.seed)
        with self._timed("pictures and videos", again=True):
            self.draw_neighbors(policy, results)
            simulator, evaluation = self.config.frames.simulator, self.config.evaluation
            name = evaluation_name(policy.spec.name, self.learned, evaluation.shift)
            analysis.write_videos(self.run, results, name, criterion, simulator, evaluation)

    def draw_neighbors(self, policy: RetrievalPolicy, results: Sequence[RolloutResult]) -> None:
        """Neighbours of some moments of roll-outs: :func:`classact.run.analysis.write_neighbors`.

        Args:
            policy: of this run, with its own settings or others.
            results: episodes to take moments from.
        """
        config = self.config
        rendered = needs_rendering(self._data.recorded(), config.pretrain.encoder.cameras[0], config.frames)
        analysis.write_neighbors(
            self.run,
            policy,
            self.frames(),
            config.frames,
            results,
            config.frames.simulator,
            config.evaluation,
            rendered=rendered,
        )


def started(run: Run) -> bool:
    """Whether a folder holds anything that was learned under the settings it was started with."""
    made = (run.encoder, run.policy, run.summary)
    return run.config.exists() and (any(path.exists() for path in made) or bool(list_checkpoints(run.checkpoints)))


def other_objective(known: RunConfig, asked: RunConfig) -> str | None:
    """Which objective a run was started with, and which is asked for; None where they agree."""
    before, now = known.pretrain.objective.written, asked.pretrain.objective.written
    return None if before == now else f"objective {before!r}, now it is {now!r}"
