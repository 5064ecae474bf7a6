"""Commands that make, evaluate and show a run: demo, pretrain, evaluate, report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from classact.cli.console import print_actions, print_summary, print_timings, say
from classact.cli.data import sources
from classact.cli.engine import ENGINE, training_ranks
from classact.cli.flags import (
    Device,
    Given,
    Settings,
    Word,
    below,
    changed,
    counted,
    flag,
    from_file,
    given_flags,
    name_of,
    settings,
)
from classact.data.readers.hub import is_hub_name
from classact.errors import ConfigError
from classact.evaluation.config import EvaluationConfig
from classact.models.encoders import BACKBONES, POOLINGS
from classact.models.heads import HEADS
from classact.objectives import OBJECTIVES, ObjectiveConfig, objective_config
from classact.policies import ParametricConfig, RetrievalConfig
from classact.policies.speed import reach
from classact.run.config import HeadRunConfig, RunConfig
from classact.run.presets import (
    PRESETS,
    configure,
    configure_head,
    data_rate,
    default_preset,
    from_preset,
    with_backbone,
    with_objective,
)
from classact.run.stand_ins import known
from classact.similarity.config import SimilarityConfig
from classact.sims import NO_SIMULATOR, SIMULATORS
from classact.sims.shifts import SHIFTS
from classact.train.config import EngineConfig
from classact.utils.progress import teller

RUN = Settings(
    RunConfig,
    inline=("pretrain",),
    hidden=("objective", "encoder.aspect"),  # that is what the data have
    short={
        **{f"encoder.{name}": name for name in ("backbone", "pooling", "cameras", "color", "init", "init-path")},
        "encoder.shared": "shared-encoder",
        "augment.crop": "crop",
        "augment.color": "color-augmentation",
        **{
            f"similarity.{name}": name
            for name in ("quantile", "horizon", "stride", "metric", "cost", "band", "estimate")
        },
        "optimizer.learning-rate": "learning-rate",
        **{
            f"retrieval.{name}": name for name in ("k", "temperature", "chunk-length", "speed", "min-actions", "search")
        },
        "retrieval.proprioception-weight": "proprioception-weight",
        "retrieval.revisit": "revisit",
        "evaluation.episodes": "test-episodes",
        **{f"evaluation.{name}": name for name in ("execute", "ensemble")},
        "frames.source": "frames",
        "frames.simulator": "simulator",
        "novelty.alpha": "alarm-level",
    },
    about={
        "data": "Demonstrations; several data sets are learned from together.",
        "evaluations": "Evaluate at so many points of the training (the paper: 10); 0: at its end only. Default: as "
        "the run was started with.",
        "epochs": "Passes over the data, as anchors; adapted to the objective.",
        "frames.simulator": "What renders and evaluates. Default: what the data declare, else none: recorded images "
        "are seen, and held-out demonstrations tell how good a policy is.",
    },
    choices={
        "data": sources,
        "frames.simulator": lambda: (NO_SIMULATOR, *SIMULATORS),
        "encoder.backbone": lambda: (*BACKBONES, "timm/NAME"),
        "encoder.pooling": lambda: POOLINGS,
        "learn-from": known,
    },
)


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Flags of what trains runs.

    Attributes:
        out: Folder of the run. The same command continues what lies there.
        preset: Named settings, which other flags change; see 'classact presets'. Default: what is made for the data,
            their simulator and the shift.
        config: Settings to start from instead of a preset, which other flags change: DIR/config.json of a run.
        shift: Visual shift of demonstrations and evaluation, as in 'dynamic(radius=1.2)'. Default: none.
        objective: What is learned, or a sum such as class+0.1*inverse-dynamics. Default: class, which is the paper's.
        options: Settings of the objective, as in weighting=hard pairs=cross-episode; see 'classact presets'. In a sum
            with its name: byol.decay=0.99.
        workers: Simulator processes; 0: one per core. Changes no result.
        device: Where the encoder is trained; auto: on a GPU if there is one.
        quiet: No progress bars.
    """

    out: Path
    preset: str | None = flag(None, choices=lambda: PRESETS)
    config: Path | None = None
    shift: str | None = flag(None, choices=lambda: SHIFTS)
    objective: str | None = flag(None, choices=lambda: OBJECTIVES)
    options: tuple[str, ...] = ()
    workers: int = 0
    device: Device = "auto"
    quiet: bool = False
    run: Given = settings(RUN)
    engine: Given = settings(ENGINE)

    baselines: ClassVar[bool | None] = None  # default where no flag is given; None: as the run was started, else not

    @staticmethod
    def shown(word: Word) -> Mapping[str, Any]:
        """The settings that the help shows as defaults."""
        if (file := word("config")) is not None:
            config = from_file(RunConfig, Path(file))
        else:
            named: dict[str, Any] = {name: word(name) for name in ("preset", "objective", "simulator", "shift")}
            data = word("data") or RunConfig.data
            sets = [data] if isinstance(data, str) else data
            if any(map(is_hub_name, sets)):  # nothing is downloaded for a help text
                config = from_preset(named["preset"] or "real-cpu", simulator=named["simulator"] or NO_SIMULATOR)
            else:
                config = configure(data, **named)
        return {"run": replace(config, intermediate_retrieval=config.intermediate_retrieval or config.retrieval)}


def run_config(flags: RunFlags) -> RunConfig:
    """The run's settings: the preset or the file, changed by the given flags.

    Without flags, evaluation settings stay as in the folder, where later commands read them.
    """
    from classact.run.folder import Run
    from classact.run.stages import started

    given = {"frames.workers": flags.workers, "evaluation.workers": flags.workers, **flags.run}
    if flags.config is not None:
        config = _from_file(flags)
        if flags.shift is not None:
            given = {"frames.shift": flags.shift, "evaluation.shift": flags.shift, **given}
    else:
        config = configure(
            given.get("data", RunConfig.data),
            preset=flags.preset,
            objective=flags.objective,
            options=flags.options,
            simulator=given.get("frames.simulator"),
            shift=flags.shift,
            baselines=bool(flags.baselines),
            cameras=given.get("pretrain.encoder.cameras") if len(sources_of(given)) > 1 else None,
            **{name: given[name] for name in ("layout", "episodes", "fps", "keys", "data_weights") if name in given},
        )
        run = Run(flags.out)
        if started(run):
            known = run.settings()
            config = replace(
                config,
                evaluation=known.evaluation,
                intermediate_episodes=known.intermediate_episodes,
                baselines=known.baselines if flags.baselines is None else flags.baselines,
                retrieval=replace(config.retrieval, search=known.retrieval.search),
                pretrain=replace(config.pretrain, evaluations=known.pretrain.evaluations),
            )
    pretrain = config.pretrain
    for path in idle(given, pretrain.objective):
        learns = "no actions" if path in STANDING else "no action similarity" if path.startswith(SIMILARITY) else ""
        reads = f"learns from {learns}" if learns else "trains nothing"
        name = pretrain.objective.written
        raise ConfigError(f"objective {name!r} {reads}, so {name_of(RUN, path)} would change nothing.")
    if "pretrain.encoder.backbone" in given:
        pretrain = replace(pretrain, encoder=with_backbone(pretrain.encoder, given["pretrain.encoder.backbone"]))
    if given.get("similarity") is not None:
        from classact.run.similarity import NUMBERS

        pretrain = replace(pretrain, similarity=from_file(SimilarityConfig, Path(given["similarity"]) / NUMBERS))
    chosen: Given = {
        path: given[path] for path in ("data", "data_weights", "episodes", "layout", "fps") if path in given
    }
    simulator = given.get("frames.simulator", config.frames.simulator)
    rate = partial(data_rate, changed(config, chosen), simulator)
    given = dict(counted(RUN, given, rate, teller(quiet=flags.quiet)))
    if "retrieval.horizon" not in given:  # which chunks are cut from
        given |= long_enough(config.retrieval, given)
    # Evaluations during training act as the run does, apart from their own flags.
    acting = below(given, "intermediate_retrieval")
    others = {path: value for path, value in given.items() if not path.startswith("intermediate_retrieval.")}
    config = changed(replace(config, pretrain=pretrain), others)
    during = config.intermediate_retrieval or config.retrieval
    return replace(config, intermediate_retrieval=changed(during, acting)) if acting else config


def sources_of(given: Given) -> tuple[str, ...]:
    """The data sets that were named."""
    data: str | tuple[str, ...] = given.get("data", ())
    return (data,) if isinstance(data, str) else data


def long_enough(retrieval: RetrievalConfig, given: Given) -> Given:
    """A horizon of retrieval in which the chunks that were asked for have room; empty where they have."""
    asked = below(given, "retrieval")
    length, least = (asked.get(name, getattr(retrieval, name)) for name in ("chunk_length", "min_actions"))
    speed = asked.get("speed", retrieval.speed)
    if not (length >= 1 and 0 < speed < math.inf):  # which the configuration refuses
        return {}
    needed = max(least, reach(length, speed))
    return {"retrieval.horizon": needed} if needed > retrieval.horizon else {}


def _from_file(flags: RunFlags) -> RunConfig:
    """The settings of --config; with another objective, trained by that one's defaults."""
    if flags.preset is not None:
        raise ConfigError("--preset and --config both say what to start from. Give one of the two.")
    config = from_file(RunConfig, Path(str(flags.config)))
    pretrain, known = config.pretrain, config.pretrain.objective
    name = flags.objective or known.written
    objective = objective_config(name, flags.options, known)
    if objective.written != known.written:
        pretrain = with_objective(pretrain, objective)
    return replace(config, pretrain=replace(pretrain, objective=objective))


SIMILARITY = ("similarity", "pretrain.similarity.")
STANDING = ("learn_from", "features")
TRAINING = (
    *("pretrain.epochs", "pretrain.batch_size", "pretrain.optimizer.", "pretrain.augment.", "pretrain.evaluations"),
)


def idle(given: Given, objective: ObjectiveConfig) -> list[str]:
    """The given settings that the objective does not read."""
    unread: tuple[str, ...] = () if objective.needs_similarity else SIMILARITY
    unread += () if objective.needs_actions else STANDING
    unread += TRAINING if objective.written == "none" else ()
    return [path for path, value in given.items() if path.startswith(unread) and (path, value) != (TRAINING[-1], 0)]


def pipeline(flags: RunFlags, config: RunConfig, ranks: Any) -> Any:
    """The pipeline of a run."""
    from classact.run.folder import Run
    from classact.run.pretrain import Pipeline

    return Pipeline(
        Run(flags.out),
        config,
        quiet=flags.quiet,
        device=flags.device,
        engine=changed(EngineConfig(), flags.engine),
        ranks=ranks,
    )


@dataclass(frozen=True, kw_only=True)
class Demo(RunFlags):
    """Learn a representation from demonstrations, act by retrieval and by a head, and show it: DIR/report.html.

    Attributes:
        head: The policy head that is trained on the representation as well, with the defaults of finetune; none: no
            head.
    """

    head: str = flag("mlp", choices=lambda: ("none", *HEADS))

    baselines: ClassVar[bool | None] = True

    def main(self) -> None:
        from classact.pages import build_report

        with training_ranks(self.device) as ranks:
            made = pipeline(self, run_config(self), ranks)
            made.check_rollouts()
            preset = self._head_preset(made.config)
            config = None if self.head == "none" else configure_head(made.config, self.head, preset=preset)
            made.pretrain()
            head = None if config is None else self._trained(made, config, ranks)
            if not ranks.first:
                return
            made.evaluate()
            made.analyze()
            if head is not None:
                head.evaluate()
            page = build_report(self.out)
        print_summary(made.run.read_summary())
        print_actions(made.run.read_actions())
        print_timings(made.run.info().timings)
        say(f"Report: {page}")

    def _head_preset(self, config: RunConfig) -> str | None:
        """The preset of a head that goes with the run's; None: by encoder and task."""
        if self.config is not None:
            return None
        frames = config.frames
        return PRESETS[self.preset or default_preset(config.data, frames.simulator, frames.shift)].head

    def _trained(self, made: Any, config: HeadRunConfig, ranks: Any) -> Any:
        """The head's pipeline, trained by all ranks together; without evaluations on the way."""
        from classact.run.finetune import HeadPipeline

        config = replace(config, finetune=replace(config.finetune, evaluations=0), evaluation=made.evaluation)
        engine = changed(EngineConfig(), self.engine)
        head = HeadPipeline(made.run, config, quiet=self.quiet, device=self.device, engine=engine, ranks=ranks)
        head.train()
        return head


@dataclass(frozen=True, kw_only=True)
class Pretrain(RunFlags):
    """Learn a representation and build the retrieval policy; rollouts with --evaluations only."""

    def main(self) -> None:
        with training_ranks(self.device) as ranks:
            made = pipeline(self, run_config(self), ranks)
            made.pretrain()
            if not ranks.first:
                return
        print_timings(made.run.info().timings)
        say(f"Encoder: {made.run.encoder}\nPolicy:  {made.run.policy}")


def _acting() -> Iterable[tuple[type[Any], Iterable[str]]]:
    """Settings of acting that can be changed for a saved policy: of retrieval, and of any head."""
    yield RetrievalConfig, [entry.name for entry in fields(RetrievalConfig)]
    yield ParametricConfig, ("seed", "bf16")
    yield from ((entry.config, entry.config.acting) for entry in HEADS.values())


ACTING_FLAGS = Settings(_acting, defaults=False)


@dataclass(frozen=True)
class Evaluate:
    """Roll out a policy of a run, as it was saved but for what is given, on unseen initial states; RUN/summary.json.

    Or put intervals on LeRobot's own numbers: --from-lerobot, without a run.

    Attributes:
        run: Folder of a run with a policy.
        from_lerobot: Results of lerobot-eval, eval_info.json or its folder. Others are compared with the first: episode
            by episode where their seeds agree, else as independent ones.
        paired: The results of --from-lerobot are of the same --seed and number of episodes; recent files do not say.
        head: A head of the run, by the name of its folder in RUN/heads. Default: retrieval.
        simulator: Simulator by name. Default: that of the run.
        name: Name of the evaluation. Default: made of policy, shift and what differs.
        calibrate_alarm: File for an alarm that announces failures, calibrated on these episodes: 5 % of successes
            raise it. Take --first-seed and --episodes that nothing else uses.
        alarm: Such a file: say which of these episodes' failures the alarm announced.
        device: Where the policy computes.
        quiet: No progress bar.
    """

    run: Path | None = flag(None, positional=True)
    from_lerobot: tuple[Path, ...] = ()
    paired: bool = False
    head: str | None = None
    simulator: str | None = flag(None, choices=lambda: SIMULATORS)
    name: str | None = None
    calibrate_alarm: Path | None = None
    alarm: Path | None = None
    device: Device = "auto"
    quiet: bool = False
    evaluation: Given = settings(
        Settings(EvaluationConfig, hidden=("image-size",), choices={"shift": lambda: SHIFTS}, defaults=False)
    )
    acting: Given = settings(ACTING_FLAGS)

    def main(self) -> None:
        if self.from_lerobot:
            self._show_lerobot()
            return
        if self.run is None or self.paired:
            about = " --paired is about --from-lerobot." if self.paired else ""
            raise ConfigError(
                f"RUN is missing: Folder of a run with a policy. Or name LeRobot's results: --from-lerobot "
                f"eval_info.json.{about}"
            )
        from classact.run.data import run_rate
        from classact.run.evaluate import evaluate_run
        from classact.run.folder import Run

        run = Run(self.run)
        acting = counted(ACTING_FLAGS, self.acting, lambda: run_rate(run), teller(quiet=self.quiet))
        rows = evaluate_run(
            run,
            simulator=self.simulator,
            head=self.head,
            device=self.device,
            name=self.name,
            quiet=self.quiet,
            calibrate_alarm=self.calibrate_alarm,
            alarm=self.alarm,
            **self.evaluation,
            **acting,
        )
        print_summary(rows)
        if self.calibrate_alarm is not None:
            say(f"Alarm: {self.calibrate_alarm}")
        if (said := rows[0].announced) is not None:
            say(
                f"The alarm announced {said.announced} of {said.failures} failures; {said.false} of {said.successes} "
                f"successes raised it as well."
            )

    def _show_lerobot(self) -> None:
        """Rollouts that LeRobot ran: nothing of a run is read, and nothing is written."""
        from classact.cli.console import print_lerobot
        from classact.evaluation.lerobot import INFO, lerobot_differences, lerobot_rows, read_eval_info

        if other := given_flags(self, "from_lerobot", "paired", "device", "quiet"):
            name = "RUN" if other[0] == "run" else f"--{other[0].replace('_', '-')}"
            raise ConfigError(
                f"--from-lerobot shows what LeRobot has evaluated, {name} is not part of it: leave it out."
            )
        names = [path.parent.resolve().name if path.name == INFO else path.stem for path in self.from_lerobot]
        if len(set(names)) < len(names):
            names = [str(path) for path in self.from_lerobot]
        if len(set(names)) < len(names):
            raise ConfigError("--from-lerobot names a file twice. Name each once.")
        evaluations = {name: read_eval_info(path) for name, path in zip(names, self.from_lerobot, strict=True)}
        rows = [row for name, tasks in evaluations.items() for row in lerobot_rows(name, tasks)]
        print_lerobot(rows, lerobot_differences(evaluations, paired=self.paired))


@dataclass(frozen=True)
class Report:
    """Draw RUN/report.html again from the files of a run.

    Attributes:
        run: Folder of a run.
    """

    run: Path = flag(positional=True)

    def main(self) -> None:
        from classact.pages import build_report

        say(f"Report: {build_report(self.run)}")
