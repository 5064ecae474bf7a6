"""From demonstrations to an evaluated policy: the stages of a run.

What was learned is decided by the :class:`RunConfig`. The folder remembers it; another one is refused, never mixed in.
A learned encoder and its policy are not made again; rollouts and pictures are, with the same result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from classact import analysis
from classact.augment import AugmentConfig, describe
from classact.checkpoints import list_checkpoints
from classact.encoders import EncoderConfig, ImageEncoder
from classact.engine import INCIDENTAL, EngineConfig
from classact.errors import CheckpointError, ConfigError, DataError, choose
from classact.frames import FramesConfig, aspect, needs_rendering, prepare_frames
from classact.images import sample_digest
from classact.labels import RANDOM, learned_label, written_name
from classact.lowdim import LowDim
from classact.machine import choose_device
from classact.objectives import NoneConfig, describe_objective, needs_similarity
from classact.policies import (
    ImageLatents,
    NoveltyConfig,
    ParametricPolicy,
    Policy,
    RetrievalConfig,
    RetrievalPolicy,
    SceneLatents,
    StateLatents,
    retrievable,
)
from classact.policies.search import is_exact
from classact.policies.watched import watched
from classact.presets import Preset, get_preset
from classact.progress import progress_bar, teller
from classact.ranks import Ranks
from classact.readers import first_episodes, last_episodes, read_demonstrations
from classact.recording import (
    evaluate_milestone,
    evaluation_name,
    new_card,
    roll_out,
    timed,
    timed_fit,
)
from classact.rollout import EvaluationConfig
from classact.runs import Run
from classact.schema import Schema
from classact.similarity.graph import CARD
from classact.sims import SIMULATORS, SimulatorSpec, make_simulator, plain_shift
from classact.sims.shifts import is_plain
from classact.sims.versions import check_language, check_versions
from classact.storage import first_difference, plain_json, read_json, without, write_json
from classact.training import PretrainConfig, Trainer
from classact.types import Demonstrations, RolloutResult

logger = logging.getLogger(__name__)

NO_LABELS = {"training": "none", "augmentation": "none"}
"""Of what was not trained."""

FREE = (
    *("evaluation", "baselines", "similarity", "milestone_episodes", "layout", "frames.workers", "retrieval.search"),
    *(f"pretrain.{name}" for name in INCIDENTAL),
)
"""Settings that do not decide what is learned: how it is evaluated, on how many processes. Where a layout lies decides
nothing; what it says shows in what :data:`SAME` compares."""

SAME = ("fingerprint", "schema", "images")
"""What a run's card says of its data that must stay as it is."""

STATE_RETRIEVAL = RetrievalConfig(k=8, temperature=0.0002)
"""For the true state as latent: few neighbours, sharply weighted, found best on the human demonstrations."""


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run.

    Attributes:
        data: a path in a known format, or "pusht-expert" for the demonstrations that come with classact.
        episodes: only the first so many demonstrations.
        frames: which images.
        pretrain: representation learning.
        retrieval: acting.
        evaluation: rollouts.
        baselines: evaluate retrieval with an untrained encoder and with the true state as latent, too.
        similarity: folder written by ``classact similarity`` for these data and settings, whose threshold, CDF and
            graph are used instead of being measured again.
        keys: proprioception keys that the policy sees, of those that the data declare; None: all.
        heldout: the last so many demonstrations of the file are not learned from; the novelty score is calibrated on
            them. Its bound holds for episodes like them: shuffle files that are sorted by task, operator or day. 0:
            each is left out of the bank in turn, which is approximate, for the encoder has seen them all.
        milestone_episodes: unseen starts per evaluation during training (``pretrain.evaluations`` of them).
        novelty: of the score that decisions carry.
        layout: JSON file that says which array of the data is what; None: what lies with the data, or Push-T's.
    """

    data: str = "pusht-expert"
    episodes: int | None = None
    frames: FramesConfig = field(default_factory=FramesConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    baselines: bool = True
    similarity: str | None = None
    keys: tuple[str, ...] | None = None
    heldout: int = 0
    milestone_episodes: int = 50
    novelty: NoveltyConfig = field(default_factory=NoveltyConfig)
    layout: str | None = None

    def __post_init__(self) -> None:
        if self.heldout < 0 or self.milestone_episodes < 1:
            raise ConfigError(
                f"expected heldout >= 0 and milestone_episodes >= 1, got {self.heldout} and {self.milestone_episodes}."
            )
        if not self.heldout and not is_exact(self.retrieval.search):
            raise ConfigError(
                f"search {self.retrieval.search!r} is approximate, and leaving each demonstration out of the bank in "
                f"turn needs an exact one to calibrate novelty. Hold demonstrations out (heldout), or search exactly."
            )


def from_preset(name: str, *, shift: str | None = None, simulator: str | None = None, **changes: Any) -> RunConfig:
    """A run with the settings of a preset; the shift applies to demonstrations and to evaluation.

    Args:
        name: a key of :data:`classact.presets.PRESETS`.
        shift: visual shift, see :func:`classact.sims.shifts.parse_shift`; None: none.
        simulator: registry name; None: the preset's.
        changes: other fields of :class:`RunConfig`.
    """
    preset: Preset = get_preset(name)
    simulator = simulator or preset.simulator
    shift = shift or plain_shift(simulator)
    retrieval = preset.retrieval
    if not is_plain(shift):
        retrieval = replace(retrieval, temperature=preset.tau_shifted)
    size = preset.render_size
    return RunConfig(
        pretrain=preset.pretrain,
        retrieval=retrieval,
        frames=FramesConfig(simulator=simulator, shift=shift, render_size=size),
        evaluation=EvaluationConfig(shift=shift, image_size=size),
        **changes,
    )


class RunData:
    """The demonstrations of a run and the images that its encoder sees, read once.

    Args:
        source: a path in a known format, or an embedded name.
        episodes: only the first so many.
        heldout: the last so many of these are kept apart.
        frames: which images.
        encoder: whose cameras and image size are prepared.
        layout: see :class:`RunConfig`.
        quiet: no progress bars.
    """

    def __init__(
        self,
        source: str,
        episodes: int | None,
        heldout: int,
        frames: FramesConfig,
        encoder: EncoderConfig,
        *,
        layout: str | None = None,
        quiet: bool = False,
    ) -> None:
        self.layout = layout
        self.source, self.episodes, self.held, self.config = source, episodes, heldout, frames
        self.encoder, self.quiet = encoder, quiet
        self._recorded: Demonstrations | None = None
        self._seen: Demonstrations | None = None

    @staticmethod
    def of_run(settings: Mapping[str, Any], encoder: EncoderConfig, *, quiet: bool = False) -> RunData:
        """Those that a run was started with, from the settings in its folder, for an encoder."""
        return RunData(
            settings["data"],
            settings["episodes"],
            int(settings.get("heldout", 0)),
            FramesConfig(**settings["frames"]),
            encoder,
            layout=settings.get("layout"),
            quiet=quiet,
        )

    def check_unchanged(self, run: Run) -> None:
        """Refuse data that are others than those that a run's encoder was learned on.

        Raises:
            ConfigError: naming the first difference.
        """
        if difference := other_data(run.read_config().get("data") or {}, self.card()):
            raise ConfigError(
                f"the data of {run.root} have changed since its encoder was learned: it was {difference}. Bring "
                f"them back, or start another run."
            )

    def recorded(self) -> Demonstrations:
        """All of them as recorded.

        Raises:
            ConfigError: nothing would be left to learn from, the simulator cannot render the states, or embeds
                instructions otherwise.
        """
        if self._recorded is None:
            with progress_bar("read demonstrations", quiet=self.quiet) as bar:
                self._recorded = read_demonstrations(
                    self.source, episodes=self.episodes, progress=bar, layout=self.layout
                )
            if self.held >= len(self._recorded):
                raise ConfigError(
                    f"{self.held} of {len(self._recorded)} demonstrations are to be held out; hold out at most "
                    f"{len(self._recorded) - 1}."
                )
            self._check(self._recorded)
        return self._recorded

    def _check(self, data: Demonstrations) -> None:
        """Whether there are images for the encoder, and the simulator can draw those that it is to draw."""
        rendered = [camera for camera in self.encoder.cameras if needs_rendering(data, camera, self.config)]
        if not rendered and not data.versions:
            return
        simulator = make_simulator(self.config.simulator)
        simulator.close()
        spec = simulator.spec
        if rendered and data.states is not None and data.states.shape[1] != spec.state_dim:
            raise ConfigError(
                f"{data.name} ({data.source}) holds states of {data.states.shape[1]} dimensions"
                f"{f' of simulator {data.simulator!r}' if data.simulator else ''}, but simulator {spec.name!r}, which "
                f"is to render them, has states of {spec.state_dim}. {own_simulator(data.simulator, spec.name)}"
            )
        check_language(data.versions, simulator, f"{data.name} ({data.source})")
        if warning := check_versions(data, spec, rendered=bool(rendered)):
            logger.warning("%s", warning)

    def card(self) -> dict[str, Any]:
        """What a run's folder remembers of its data. The images are those recorded ones that the encoder sees."""
        data = self.recorded()
        used = [camera for camera in self.encoder.cameras if not needs_rendering(data, camera, self.config)]
        return {
            "name": data.name,
            "source": data.source,
            "episodes": len(data),
            "steps": data.num_steps,
            "heldout": self.held,
            "image_size": self.encoder.image_size,
            "schema": plain_json(data.schema.to_json()),
            "simulator": data.simulator,
            "versions": dict(data.versions),
            "fingerprint": data.fingerprint(),
            "images": {camera: sample_digest(data.images[camera]) for camera in used},
        }

    def encoder_config(self) -> EncoderConfig:
        """The encoder's settings, with the shape of the images that it learns from."""
        seen = aspect(self.recorded(), self.encoder.cameras, self.config)
        return replace(self.encoder, aspect=seen)

    def prepare(self) -> None:
        """Make the images that are not in the store yet."""
        self._all_frames()

    def _all_frames(self) -> Demonstrations:
        if self._seen is None:
            data, encoder = self.recorded(), self.encoder
            with progress_bar("prepare images", quiet=self.quiet) as bar:
                self._seen = prepare_frames(data, encoder.cameras, encoder.image_size, self.config, bar)
        return self._seen

    def states(self) -> Demonstrations:
        """Those that are learned from, as recorded."""
        data = self.recorded()
        return first_episodes(data, len(data) - self.held)

    def frames(self) -> Demonstrations:
        """Those that are learned from, with the images that the encoder trains on."""
        data = self._all_frames()
        return first_episodes(data, len(data) - self.held)

    def heldout(self) -> Demonstrations | None:
        """Those that are kept apart, with images; None where there are none."""
        if self.held == 0:
            return None
        return last_episodes(self._all_frames(), self.held)


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
        self.run, self.config, self.quiet = run, config, quiet or not self.ranks.first
        self.device, self.engine = choose_device(device), engine or EngineConfig()
        # What is wrong with the settings shall show now, not after an hour of training.
        for shift, size in (
            (config.frames.shift, config.frames.render_size),
            (config.evaluation.shift, config.evaluation.image_size),
        ):
            make_simulator(config.frames.simulator, image_size=size, shift=shift).close()
        self.ranks.on_first(self._check_folder)
        self._data = RunData(
            config.data,
            config.episodes,
            config.heldout,
            config.frames,
            config.pretrain.encoder,
            layout=config.layout,
            quiet=self.quiet,
        )
        self._claimed = False

    def _check_folder(self) -> None:
        if self._started():
            self._claim({})
            analysis.remove_leftovers(self.run)

    def _started(self) -> bool:
        """Whether the folder holds anything that was learned under the settings it was started with."""
        made = (self.run.encoder, self.run.policy, self.run.summary)
        learned = any(path.exists() for path in made) or bool(list_checkpoints(self.run.checkpoints))
        return learned and self.run.config.exists()

    def _claim(self, data: dict[str, Any]) -> None:
        """Write settings and data into the folder, or compare them with those that it was started with."""
        settings = plain_json(asdict(self.config))
        if self.config.pretrain.positives == "graph" and self.config.similarity is not None:
            # Where the graph lies does not matter, what it leaves out does.
            card = read_json(Path(self.config.similarity) / "graph" / CARD, CheckpointError)
            settings["max_neighbors"] = card["cap"]
        started = self._started()
        if started:
            card = self.run.read_config()
            difference = other_objective(card.get("settings"), settings)
            difference = difference or first_difference(
                without(card.get("settings"), *FREE), without(settings, *FREE), "settings"
            )
            difference = difference or other_data(card["data"], data)
            if difference:
                raise ConfigError(
                    f"{self.run.root} was started with {difference}. Choose another --out, or remove that folder."
                )
        else:
            card = new_card(describe_objective(self.config.pretrain.objective)) | {"data": {}}
        write_json(self.run.config, card | {"data": data or card["data"], "settings": settings})
        if not started:
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
            retrievable(states.episode_ends, self.config.retrieval, f"{data.name} ({data.source})")
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

    def _train(self, frames: Demonstrations) -> ImageEncoder:
        objective = self.config.pretrain.objective
        timed_stage = self._timed("action similarity") if needs_similarity(objective) else nullcontext()
        with timed_stage, progress_bar("action similarity", quiet=self.quiet or not needs_similarity(objective)) as bar:
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
            policy = self._retrieval(at.average, frames)
            evaluate_milestone(
                self.run,
                policy,
                self.learned,
                "pretrain",
                (at.step, at.steps),
                self._milestone_config(),
                self._labels(),
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

    def _labels(self) -> dict[str, str]:
        return retrieval_labels(plain_json(asdict(self.config)))

    def policy(self) -> RetrievalPolicy:
        """Retrieval with the learned encoder, saved in the folder."""
        encoder = self.pretrain()
        if self.run.policy.is_dir():
            return RetrievalPolicy.load(self.run.policy).to(self.device)
        with self._timed("encode demonstrations"):
            policy = self._retrieval(encoder, self.frames())
        with self._timed("calibrate novelty"), progress_bar("calibrate novelty", quiet=self.quiet) as bar:
            # A stage of its own, for it takes N^2 cosines where nothing was held out.
            policy.calibrate(self._data.heldout(), self.config.novelty, progress=bar)
            policy.save(self.run.policy)
        return policy

    def _retrieval(self, encoder: ImageEncoder, frames: Demonstrations) -> RetrievalPolicy:
        latents = ImageLatents(encoder.to(self.device), LowDim.fit(frames, self.config.keys))
        space = frames.schema.actions
        return RetrievalPolicy.build(latents, frames, self.config.retrieval, action_space=space).to(self.device)

    def untrained_policy(self) -> RetrievalPolicy:
        """The same retrieval with an encoder of random weights."""
        learned = self.pretrain().config
        config: EncoderConfig = replace(learned, init="scratch", init_path=None)
        return self._retrieval(ImageEncoder(config, seed=self.config.pretrain.seed), self.frames())

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
                raise ConfigError(choose("camera", camera, spec.cameras) + where)
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
        return learned_label(plain_json(asdict(self.config)))

    @cached_property
    def _spec(self) -> SimulatorSpec:
        simulator = make_simulator(self.config.frames.simulator)
        simulator.close()
        return simulator.spec

    def _evaluate(self, policy: RetrievalPolicy, encoder: str) -> list[RolloutResult]:
        learned = encoder == self.learned
        with self._timed(f"evaluate {encoder}", again=True):
            results, _ = roll_out(
                self.run,
                evaluation_name(policy.name, encoder, self.config.evaluation.shift),
                policy,
                encoder,
                (self.config.frames.simulator, self.config.evaluation),
                self._labels() if learned else NO_LABELS,
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
            name = evaluation_name(policy.name, self.learned, evaluation.shift)
            analysis.write_videos(self.run, results, name, criterion, simulator, evaluation)

    def draw_neighbors(self, policy: RetrievalPolicy, results: Sequence[RolloutResult]) -> None:
        """Neighbours of some moments of roll-outs: :func:`classact.analysis.write_neighbors`.

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


def evaluate_run(
    run: Run,
    *,
    simulator: str | None = None,
    shift: str | None = None,
    episodes: int | None = None,
    first_seed: int | None = None,
    max_steps: int | None = None,
    workers: int = 0,
    execute: int | None = None,
    ensemble: float | None = None,
    head: str | None = None,
    device: str = "auto",
    name: str | None = None,
    overrides: dict[str, Any] | None = None,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Roll out a saved policy of a run and add the result to its table.

    Args:
        run: a folder with a policy.
        simulator: registry name; None, here and below: as in the run's settings.
        shift: visual shift.
        episodes, first_seed, max_steps, workers: see :class:`classact.rollout.EvaluationConfig`.
        execute, ensemble: see :class:`classact.control.ControlConfig`.
        head: of the run's heads, by the name of its folder; None: retrieval.
        device: where the policy computes.
        name: of the evaluation's folder. By default made of policy, encoder, shift and whatever differs from the run's
            settings, so that no evaluation replaces another one.
        overrides: fields of :class:`classact.policies.RetrievalConfig` to change, or of a head what
            :meth:`classact.policies.ParametricPolicy.load` takes.
        quiet: no progress bar.

    Returns:
        The new rows of the summary.

    Raises:
        CheckpointError: no policy there, or a damaged one.
        DataError: the folder is none of a run.
        ConfigError: as :func:`check_rollouts`.
    """
    settings = run_settings(run)
    standard = settings["frames"]["simulator"]
    # A head has settings of its own: how much of a chunk is executed, for instance.
    card = {"settings": settings} if head is None else _head_card(run, head)
    usual = EvaluationConfig(**card["settings"]["evaluation"])
    asked: dict[str, Any] = {"shift": shift, "episodes": episodes, "first_seed": first_seed, "max_steps": max_steps}
    asked |= {"execute": execute, "ensemble": ensemble}
    config = replace(usual, workers=workers, **{key: value for key, value in asked.items() if value is not None})
    simulator = simulator or standard
    check_rollouts(run, simulator)
    policy, encoder, labels = _load_policy(run, head, card, overrides or {}, choose_device(device))
    differing: dict[str, Any] = {} if simulator == standard else {"simulator": simulator}
    for key in ("episodes", "first_seed", "max_steps", "execute", "ensemble"):
        if getattr(config, key) != getattr(usual, key):
            differing[key] = getattr(config, key)
    changed = "".join(f"-{key}{value}" for key, value in sorted((differing | (overrides or {})).items()))
    label = f"{encoder}{changed}"
    _, rows = roll_out(
        run,
        name or evaluation_name(head or policy.name, encoder, config.shift) + changed,
        policy,
        label,
        (simulator, config),
        labels,
        stage=None if changed or name is not None else "pretrain" if head is None else f"heads/{head}",
        title=head or label,
        quiet=quiet,
    )
    return rows


def state_latents(data: Demonstrations, spec: SimulatorSpec) -> SceneLatents | StateLatents:
    """The true simulator state as latent.

    Raises:
        ConfigError: the simulator says neither where objects are nor how far its world extends.
    """
    if spec.objects:
        return SceneLatents.fit(data, spec.objects)
    if spec.world is None:
        raise ConfigError(
            f"simulator {spec.name!r} names neither objects nor an extent of its world, one of which retrieval by "
            f"state needs. Use the learned encoder."
        )
    low, high = spec.world
    return StateLatents((low + high) / 2, (high - low) / 2, spec.state_angles)


def other_objective(known: Mapping[str, Any] | None, asked: Mapping[str, Any]) -> str | None:
    """Which objective a run was started with, and which is asked for; None where they agree."""
    before = (known or {}).get("pretrain", {}).get("objective")
    now = asked["pretrain"]["objective"]
    if not isinstance(before, Mapping) or written_name(before) == written_name(now):
        return None
    return f"objective {written_name(before)!r}, now it is {written_name(now)!r}"


def other_data(known: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """What of :data:`SAME` differs between two cards of data, with both values; None where nothing does, or one lacks
    it."""
    for key in SAME:
        if key in known and key in found:
            # Which other views there are decides nothing.
            before, now = (without(card[key], "cameras") for card in (known, found))
            if difference := first_difference(before, now, f"data.{key}"):
                return difference
    return None


def own_simulator(recorded: str, asked: str) -> str:
    """Advice: which --simulator goes with data that declare ``recorded``, where ``asked`` does not."""
    if recorded and recorded != asked:
        return f"Leave --simulator out, or name that one: --simulator {recorded}."
    return f"Name their own: --simulator NAME, one of {', '.join(SIMULATORS)}."


def check_rollouts(run: Run, simulator: str) -> None:
    """Refuse to roll out what was learned from a run's data in a simulator of another task.

    Args:
        run: its card says what the data are; nothing is compared where it does not.
        simulator: registry name.

    Raises:
        ConfigError: proprioception, language or actions differ, or the simulator embeds instructions otherwise.
    """
    data = run.read_config().get("data") or {}
    if "schema" not in data:
        return
    made = make_simulator(simulator)
    made.close()
    what = f"{data['name']} ({data['source']})"
    if made.spec.schema is not None:
        schema = Schema.from_json(data["schema"], f"{run.config}: data.schema")
        if difference := schema.difference(made.spec.schema):
            raise ConfigError(
                f"{what} is of another task than simulator {simulator!r}: {difference}. "
                f"{own_simulator(data.get('simulator', ''), simulator)}"
            )
    check_language(data.get("versions", {}), made, what)


def run_settings(run: Run) -> dict[str, Any]:
    """The settings that a run was started with.

    Raises:
        DataError: the folder is none of a run.
    """
    if not run.config.exists():
        raise DataError(f"{run.config} does not exist. Expected a folder written by 'classact pretrain'.")
    settings = run.read_config().get("settings")
    if not isinstance(settings, dict) or not {"evaluation", "frames", "pretrain", "data"} <= settings.keys():
        raise DataError(f"{run.config} holds no settings of a run. Expected a folder written by 'classact pretrain'.")
    return settings


def retrieval_labels(settings: Mapping[str, Any]) -> dict[str, str]:
    """How tables label retrieval with a run's encoder, from the settings in its folder."""
    pretrain = settings["pretrain"]
    if written_name(pretrain.get("objective", {})) == "none":
        return NO_LABELS
    return {"training": "representation only", "augmentation": describe(AugmentConfig(**pretrain["augment"]))}


def row_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Those labels of a head that the rows of its evaluations carry."""
    return {key: labels[key] for key in ("training", "augmentation") if key in labels}


def encoder_label(start: str, learned: str) -> str:
    """How tables name the encoder that a head's training started from: "run", whose encoder is called ``learned``,
    "scratch" or a folder."""
    path = Path(start)
    return {"run": learned, "scratch": "scratch"}.get(start, f"other: {path.parent.name}/{path.name}")


def run_watcher(run: Run, start: str, device: str) -> RetrievalPolicy | None:
    """The retrieval policy whose bank says how new things are to a head of the run; None where there is none.

    Only heads that started from the run's encoder are watched: its latents are what they began with.
    """
    return RetrievalPolicy.load(run.policy).to(device) if start == "run" and run.policy.is_dir() else None


def _head_card(run: Run, head: str) -> dict[str, Any]:
    folder = Run(run.head(head))
    if not folder.policy.is_dir():
        there = sorted(path.parent.name for path in run.heads.glob("*/policy")) or "none"
        raise CheckpointError(f"{run.root} has no trained head {head!r}; there are {there}.")
    return folder.read_config()


def _load_policy(
    run: Run, head: str | None, card: Mapping[str, Any], overrides: dict[str, Any], device: str
) -> tuple[Policy, str, dict[str, str]]:
    """A run's policy, how tables name its encoder, and further labels of its rows; the card is the head's or run's."""
    settings = card["settings"]
    if head is None:
        labels = retrieval_labels(settings)
        return RetrievalPolicy.load(run.policy, **overrides).to(device), learned_label(settings), labels
    policy = ParametricPolicy.load(Run(run.head(head)).policy, device=device, **overrides)
    watcher = run_watcher(run, settings["start"], device)
    label = encoder_label(settings["start"], learned_label(run_settings(run)))
    return watched(policy, watcher), label, row_labels(card["labels"])
