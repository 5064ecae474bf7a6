"""From demonstrations to an evaluated policy: the stages of a run.

What was learned is decided by the :class:`RunConfig`. The folder remembers it; another one is refused, never mixed in.
A learned encoder and its policy are not made again; rollouts and pictures are, with the same result.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from classact import analysis
from classact.checkpoints import list_checkpoints
from classact.encoders import EncoderConfig, ImageEncoder
from classact.errors import CheckpointError, ConfigError, DataError, choose
from classact.frames import FramesConfig, needs_rendering, prepare_frames
from classact.machine import choose_device, hardware, versions
from classact.normalize import MinMax
from classact.policies import ImageLatents, RetrievalConfig, RetrievalPolicy, StateLatents, retrievable
from classact.presets import Preset, get_preset
from classact.progress import progress_bar
from classact.readers import read_demonstrations
from classact.rollout import EvaluationConfig, run_evaluation
from classact.runs import Run
from classact.similarity.graph import CARD
from classact.sims import make_simulator
from classact.storage import first_difference, read_json, write_json
from classact.training import PretrainConfig, Trainer
from classact.types import Demonstrations, RolloutResult

LEARNED = "class"
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
    """

    data: str = "pusht-expert"
    episodes: int | None = None
    frames: FramesConfig = field(default_factory=FramesConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    baselines: bool = True
    similarity: str | None = None


def from_preset(name: str, *, shift: str = "fixed-color", **changes: Any) -> RunConfig:
    """A run with the settings of a preset; the shift applies to demonstrations and to evaluation.

    Args:
        name: a key of :data:`classact.presets.PRESETS`.
        shift: visual shift.
        changes: other fields of :class:`RunConfig`.
    """
    preset: Preset = get_preset(name)
    retrieval = preset.retrieval
    if shift != "fixed-color":
        retrieval = replace(retrieval, temperature=preset.tau_shifted)
    return RunConfig(
        pretrain=preset.pretrain,
        retrieval=retrieval,
        frames=FramesConfig(shift=shift),
        evaluation=EvaluationConfig(shift=shift),
        **changes,
    )


class Pipeline:
    """The stages of one run.

    Args:
        run: the folder.
        config: settings; must be those that the folder was started with.
        quiet: no progress bars.
        device: where the encoder is trained: "cpu", "cuda", or "auto" for a GPU if there is one.

    Raises:
        ConfigError: the folder belongs to other settings, or the simulator does not know the shift.
    """

    def __init__(self, run: Run, config: RunConfig, *, quiet: bool = False, device: str = "auto") -> None:
        self.run, self.config, self.quiet = run, config, quiet
        self.device = choose_device(device)
        # What is wrong with the settings shall show now, not after an hour of training.
        for shift, size in (
            (config.frames.shift, config.frames.render_size),
            (config.evaluation.shift, config.evaluation.image_size),
        ):
            make_simulator(config.frames.simulator, image_size=size, shift=shift).close()
        if self._started():
            self._claim({})
            analysis.remove_leftovers(run)
        self._data: Demonstrations | None = None
        self._frames: Demonstrations | None = None

    def _started(self) -> bool:
        """Whether the folder holds anything that was learned under the settings it was started with."""
        made = (self.run.encoder, self.run.policy, self.run.summary)
        learned = any(path.exists() for path in made) or bool(list_checkpoints(self.run.checkpoints))
        return learned and self.run.config.exists()

    def _claim(self, data: dict[str, Any]) -> None:
        """Write settings and data into the folder, or compare them with those that it was started with."""
        settings = json.loads(json.dumps(asdict(self.config)))  # as they come back from the file: lists, not tuples
        if self.config.pretrain.positives == "graph" and self.config.similarity is not None:
            # Where the graph lies does not matter, what it leaves out does.
            card = read_json(Path(self.config.similarity) / "graph" / CARD, CheckpointError)
            settings["max_neighbors"] = card["cap"]
        started = self._started()
        if started:
            card = self.run.read_config()
            difference = first_difference(_deciding(card.get("settings")), _deciding(settings), "settings")
            if not difference and data and card["data"]:
                difference = first_difference(card["data"]["fingerprint"], data["fingerprint"], "data.fingerprint")
            if difference:
                raise ConfigError(
                    f"{self.run.root} was started with {difference}. Choose another --out, or remove that folder."
                )
        else:
            card = {
                "title": "CLASS",
                "data": {},
                "settings": {},
                "versions": versions(),
                "hardware": hardware(),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "timings": {},
            }
        write_json(self.run.config, card | {"data": data or card["data"], "settings": settings})
        if not started:
            self.run.train_log.unlink(missing_ok=True)  # of an attempt that ended before its first checkpoint

    @contextmanager
    def _timed(self, stage: str, *, again: bool = False) -> Iterator[None]:
        """Add the time of a stage to what earlier calls spent on it, or replace that where it is done ``again``."""
        begin = time.perf_counter()
        yield
        card = self.run.read_config()
        before = 0.0 if again else card["timings"].get(stage, 0.0)
        card["timings"][stage] = round(before + time.perf_counter() - begin, 2)
        write_json(self.run.config, card)

    def data(self) -> Demonstrations:
        """Demonstrations as recorded."""
        if self._data is None:
            with progress_bar("read demonstrations", quiet=self.quiet) as bar:
                data = read_demonstrations(self.config.data, episodes=self.config.episodes, progress=bar)
            encoder = self.config.pretrain.encoder
            retrievable(data.episode_ends, self.config.retrieval, f"{data.name} ({data.source})")
            needs_rendering(data, encoder.camera, self.config.frames)
            self._claim(
                {
                    "name": data.name,
                    "source": data.source,
                    "episodes": len(data),
                    "steps": data.num_steps,
                    "image_size": encoder.image_size,
                    "fingerprint": data.fingerprint(),
                }
            )
            self._data = data
        return self._data

    def frames(self) -> Demonstrations:
        """Demonstrations with the images that the encoder trains on."""
        if self._frames is None:
            data = self.data()
            encoder = self.config.pretrain.encoder
            with self._timed("images"), progress_bar("prepare images", quiet=self.quiet) as bar:
                self._frames = prepare_frames(data, encoder.camera, encoder.image_size, self.config.frames, bar)
        return self._frames

    def pretrain(self) -> ImageEncoder:
        """The learned encoder, trained now or read from the folder."""
        if self.run.encoder.is_dir():
            return ImageEncoder.from_pretrained(self.run.encoder)
        frames = self.frames()
        with self._timed("action similarity"), progress_bar("action similarity", quiet=self.quiet) as bar:
            folder = self.config.similarity
            trainer = Trainer(
                frames,
                self.config.pretrain,
                self.run.root,
                self.device,
                None if folder is None else Path(folder),
                bar,
            )
            analysis.write_similarity(self.run, trainer.similarity)
        with self._timed("pre-training"), progress_bar("learn the representation", quiet=self.quiet) as bar:
            encoder = trainer.fit(bar)
        encoder.save_pretrained(self.run.encoder)
        return ImageEncoder.from_pretrained(self.run.encoder)

    def policy(self) -> RetrievalPolicy:
        """Retrieval with the learned encoder, saved in the folder."""
        encoder = self.pretrain()
        if self.run.policy.is_dir():
            return RetrievalPolicy.load(self.run.policy)
        with self._timed("encode demonstrations"):
            policy = self._retrieval(encoder)
            policy.save(self.run.policy)
        return policy

    def _retrieval(self, encoder: ImageEncoder) -> RetrievalPolicy:
        frames = self.frames()
        latents = ImageLatents(encoder, MinMax.fit(frames.proprioception))
        return RetrievalPolicy.build(latents, frames, self.config.retrieval)

    def untrained_policy(self) -> RetrievalPolicy:
        """The same retrieval with an encoder of random weights."""
        config: EncoderConfig = replace(self.config.pretrain.encoder, init="scratch", init_path=None)
        return self._retrieval(ImageEncoder(config, seed=self.config.pretrain.seed))

    def state_policy(self) -> RetrievalPolicy:
        """Retrieval with the true simulator state as latent."""
        data = self.data()
        sim = make_simulator(self.config.frames.simulator)
        low, high = sim.spec.world
        latents = StateLatents((low + high) / 2, (high - low) / 2, sim.spec.state_angles)
        sim.close()
        config = replace(STATE_RETRIEVAL, k=min(STATE_RETRIEVAL.k, data.num_steps))
        return RetrievalPolicy.build(latents, data, config)

    def evaluate(self) -> dict[str, list[RolloutResult]]:
        """Roll out every policy of the run; write episodes and summary. Returns results by encoder.

        Raises:
            ConfigError: the simulator has no camera that the encoder reads.
        """
        simulator = make_simulator(self.config.frames.simulator)
        cameras = simulator.spec.cameras
        simulator.close()
        if (camera := self.config.pretrain.encoder.camera) not in cameras:
            raise ConfigError(choose("camera", camera, cameras) + f" in simulator {self.config.frames.simulator!r}.")
        policies: dict[str, Callable[[], RetrievalPolicy]] = {LEARNED: self.policy}
        if self.config.baselines:
            policies["untrained"] = self.untrained_policy
            if self.data().states is not None:
                policies["state"] = self.state_policy
        out = {}
        for encoder, make in policies.items():
            out[encoder] = self._evaluate(make(), encoder)
        return out

    def _evaluate(self, policy: RetrievalPolicy, encoder: str) -> list[RolloutResult]:
        folder = self.run.evaluation(f"{policy.name}-{encoder}-{self.config.evaluation.shift}")
        with (
            self._timed(f"evaluate {encoder}", again=True),
            progress_bar(f"roll out: {encoder}", quiet=self.quiet) as bar,
        ):
            results, rows = run_evaluation(
                policy, self.config.frames.simulator, self.config.evaluation, folder, encoder=encoder, progress=bar
            )
        self.run.add_summary(rows)
        return results

    def analyze(self, results: list[RolloutResult]) -> None:
        """Latent map, neighbours and videos of the learned policy."""
        policy = self.policy()
        criterion = next(iter(results[0].success))
        simulator, evaluation = self.config.frames.simulator, self.config.evaluation
        with self._timed("latent map", again=True):
            analysis.write_latent_map(self.run, policy, self.config.pretrain.seed)
        with self._timed("pictures and videos", again=True):
            analysis.write_neighbors(
                self.run, policy, self.frames(), self.config.frames, results, simulator, evaluation
            )
            name = f"{policy.name}-{LEARNED}-{evaluation.shift}"
            analysis.write_videos(self.run, results, name, criterion, simulator, evaluation)


def _deciding(settings: Any) -> Any:
    """The settings that decide what is learned: not how it is evaluated, nor on how many processes."""
    if not isinstance(settings, dict):
        return settings
    kept = {key: value for key, value in settings.items() if key not in ("evaluation", "baselines", "similarity")}
    if isinstance(kept.get("frames"), dict):
        kept["frames"] = {key: value for key, value in kept["frames"].items() if key != "workers"}
    if isinstance(kept.get("pretrain"), dict):
        kept["pretrain"] = {k: v for k, v in kept["pretrain"].items() if k not in ("log_every", "checkpoint_every")}
    return kept


def evaluate_run(
    run: Run,
    *,
    simulator: str | None = None,
    shift: str | None = None,
    episodes: int | None = None,
    first_seed: int | None = None,
    max_steps: int | None = None,
    workers: int = 0,
    name: str | None = None,
    overrides: dict[str, Any] | None = None,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Roll out the saved policy of a run and add the result to its table.

    Args:
        run: a folder with a policy.
        simulator: registry name; None, here and below: as in the run's settings.
        shift: visual shift.
        episodes, first_seed, max_steps, workers: see :class:`classact.rollout.EvaluationConfig`.
        name: of the evaluation's folder. By default made of policy, encoder, shift and whatever differs from the run's
            settings, so that no evaluation replaces another one.
        overrides: fields of :class:`classact.policies.RetrievalConfig` to change.
        quiet: no progress bar.

    Returns:
        The new rows of the summary.

    Raises:
        CheckpointError: no policy there, or a damaged one.
        DataError: the folder is none of a run.
    """
    settings = run.read_config().get("settings")
    if not isinstance(settings, dict) or not {"evaluation", "frames"} <= settings.keys():
        raise DataError(f"{run.config} holds no settings of a run. Expected a folder written by 'classact pretrain'.")
    usual, standard = EvaluationConfig(**settings["evaluation"]), settings["frames"]["simulator"]
    asked: dict[str, Any] = {"shift": shift, "episodes": episodes, "first_seed": first_seed, "max_steps": max_steps}
    config = replace(usual, workers=workers, **{key: value for key, value in asked.items() if value is not None})
    policy = RetrievalPolicy.load(run.policy, **(overrides or {}))
    simulator = simulator or standard
    differing: dict[str, Any] = {} if simulator == standard else {"simulator": simulator}
    for key in ("episodes", "first_seed", "max_steps"):
        if getattr(config, key) != getattr(usual, key):
            differing[key] = getattr(config, key)
    changed = "".join(f"-{key}{value}" for key, value in sorted((differing | (overrides or {})).items()))
    folder = run.evaluation(name or f"{policy.name}-{LEARNED}-{config.shift}{changed}")
    label = f"{LEARNED}{changed}"
    with progress_bar(f"roll out: {label}", quiet=quiet) as bar:
        _, rows = run_evaluation(policy, simulator, config, folder, encoder=label, progress=bar)
    run.add_summary(rows)
    return rows
