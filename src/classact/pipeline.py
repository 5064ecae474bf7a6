"""From demonstrations to an evaluated policy and its page: the stages of a run; finished ones are not done again.

A run is decided by its :class:`RunConfig`. The folder remembers it; another one is refused, never mixed in.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from classact import analysis
from classact.encoders import EncoderConfig, ImageEncoder
from classact.errors import ConfigError
from classact.frames import FramesConfig, prepare_frames
from classact.normalize import MinMax
from classact.policies import ImageLatents, RetrievalConfig, RetrievalPolicy, StateLatents
from classact.presets import Preset, get_preset
from classact.progress import progress_bar
from classact.readers import read_demonstrations
from classact.rollout import FIRST_SEED, EvaluationConfig, run_evaluation
from classact.runs import Run
from classact.sims import make_simulator
from classact.storage import write_json
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
    """

    data: str = "pusht-expert"
    episodes: int | None = None
    frames: FramesConfig = field(default_factory=FramesConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    baselines: bool = True


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
        resume_hint: the command that continues after Ctrl-C.

    Raises:
        ConfigError: the folder belongs to other settings.
    """

    def __init__(self, run: Run, config: RunConfig, *, quiet: bool = False, resume_hint: str = "") -> None:
        self.run, self.config, self.quiet, self.resume_hint = run, config, quiet, resume_hint
        self._claim()
        analysis.remove_leftovers(run)
        self._data: Demonstrations | None = None
        self._frames: Demonstrations | None = None

    def _claim(self) -> None:
        settings = json.loads(json.dumps(asdict(self.config)))  # as they come back from the file: lists, not tuples
        if not self.run.config.exists():
            card = {
                "title": "CLASS",
                "data": {},
                "settings": settings,
                "versions": versions(),
                "hardware": hardware(),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "timings": {},
            }
            write_json(self.run.config, card)
        elif difference := first_difference(self.run.read_config().get("settings"), settings, "settings"):
            raise ConfigError(
                f"{self.run.root} was started with {difference}. Choose another --out, or remove that folder."
            )

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        card = self.run.read_config()
        card["timings"][stage] = card["timings"].get(stage, 0.0) + round(time.perf_counter() - begin, 2)
        write_json(self.run.config, card)

    def data(self) -> Demonstrations:
        """Demonstrations as recorded."""
        if self._data is None:
            with progress_bar("read demonstrations", quiet=self.quiet) as bar:
                self._data = read_demonstrations(self.config.data, episodes=self.config.episodes, progress=bar)
            card = self.run.read_config()
            card["data"] = {
                "name": self._data.name,
                "source": self._data.source,
                "episodes": len(self._data),
                "steps": self._data.num_steps,
                "image_size": self.config.pretrain.encoder.image_size,
                "fingerprint": self._data.fingerprint(),
            }
            write_json(self.run.config, card)
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
        with self._timed("action similarity"):
            trainer = Trainer(frames, self.config.pretrain, self.run.root)
            analysis.write_similarity(self.run, trainer.similarity)
        with self._timed("pre-training"), progress_bar("learn the representation", quiet=self.quiet) as bar:
            encoder = trainer.fit(bar, resume_hint=self.resume_hint)
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
        """Roll out every policy of the run; write episodes and summary. Returns results by encoder."""
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
            self._timed(f"evaluate {encoder}"),
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
        with self._timed("latent map"):
            analysis.write_latent_map(self.run, policy, self.config.pretrain.seed)
        with self._timed("pictures and videos"):
            analysis.write_neighbors(
                self.run, policy, self.frames(), self.config.frames, results, simulator, evaluation
            )
            name = f"{policy.name}-{LEARNED}-{evaluation.shift}"
            analysis.write_videos(self.run, results, name, criterion, simulator, evaluation)


def first_difference(found: Any, expected: Any, name: str) -> str | None:
    """Names the first setting that differs, with both values; None where all agree."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted(found.keys() | expected.keys()):
            if difference := first_difference(found.get(key), expected.get(key), f"{name}.{key}"):
                return difference
        return None
    return None if found == expected else f"{name} = {found!r}, now it is {expected!r}"


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    names = ("classact", "torch", "torchvision", "numpy", "numba", "pymunk", "gym-pusht", "opencv-python")
    out = {"python": platform.python_version()}
    for name in names:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def hardware() -> dict[str, Any]:
    """Processor, cores and GPU of this machine."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:
        pass
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "cores": torch.get_num_threads(), "gpu": gpu, "platform": platform.platform()}


def set_deterministic() -> None:
    """Same seed, same bits: what torch needs for that on a CPU."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    np.seterr(all="warn")


def evaluate_run(
    run: Run,
    *,
    simulator: str = "pusht",
    shift: str | None = None,
    episodes: int = 50,
    first_seed: int = FIRST_SEED,
    max_steps: int | None = None,
    workers: int = 0,
    name: str | None = None,
    overrides: dict[str, Any] | None = None,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Roll out the saved policy of a run and add the result to its table.

    Args:
        run: a folder with a policy.
        simulator: registry name.
        shift: visual shift; None takes the one that the run was trained under.
        episodes, first_seed, max_steps, workers: see :class:`classact.rollout.EvaluationConfig`.
        name: of the evaluation's folder.
        overrides: fields of :class:`classact.policies.RetrievalConfig` to change.
        quiet: no progress bar.

    Returns:
        The new rows of the summary.

    Raises:
        CheckpointError: no policy there, or a damaged one.
    """
    if shift is None:
        shift = run.read_config()["settings"]["frames"]["shift"]
    policy = RetrievalPolicy.load(run.policy, **(overrides or {}))
    config = EvaluationConfig(
        episodes=episodes, first_seed=first_seed, shift=shift, max_steps=max_steps, workers=workers
    )
    changed = "".join(f"-{key}{value:g}" for key, value in sorted((overrides or {}).items()))
    folder = run.evaluation(name or f"{policy.name}-{LEARNED}-{shift}{changed}")
    label = LEARNED if not changed else f"{LEARNED}{changed}"
    with progress_bar(f"roll out: {label}", quiet=quiet) as bar:
        _, rows = run_evaluation(policy, simulator, config, folder, encoder=label, progress=bar)
    run.add_summary(rows)
    return rows
