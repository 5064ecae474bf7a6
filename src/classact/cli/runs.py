"""Commands that make, evaluate and show a run: demo, pretrain, evaluate, report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from classact.cli.console import print_summary, print_timings, say
from classact.cli.engine import EngineArguments, engine_config, training_ranks
from classact.cli.flags import Ensemble, Execute, Layout


@dataclass(frozen=True, kw_only=True)
class RunArguments(EngineArguments):
    """Settings that demo and pretrain share."""

    out: Annotated[Path, tyro.conf.arg(help="Folder of the run. The same command continues what lies there.")]
    data: Annotated[
        str,
        tyro.conf.arg(help="Demonstrations: a path in a known format, or 'pusht-expert', which comes with classact."),
    ] = "pusht-expert"
    layout: Layout = None
    preset: Annotated[
        str | None,
        tyro.conf.arg(
            help="Named settings; see 'classact presets'. Other flags change them. Default: pusht-demo for the "
            "embedded data, pusht-cpu for other Push-T, pusht-rand-whiten under rand-color, TASK-cpu for other tasks "
            "(three-stack-cpu for both ranges)."
        ),
    ] = None
    simulator: Annotated[
        str | None,
        tyro.conf.arg(help="Task that renders and evaluates. Default: what the data declare, else the preset's."),
    ] = None
    shift: Annotated[
        str | None,
        tyro.conf.arg(
            help="Visual shift of demonstrations and evaluation: rand-color for Push-T; random-static or dynamic for "
            "arms, as in 'dynamic(radius=1.2)'; rotation for Aloha-Transfer. Default: none."
        ),
    ] = None
    frames: Annotated[
        str,
        tyro.conf.arg(
            help="Images: recorded, rendered from states, or auto: recorded where they show the shift, and were not "
            "drawn by a simulator at another size than evaluations draw at."
        ),
    ] = "auto"
    objective: Annotated[
        str,
        tyro.conf.arg(
            help="What is learned: class (the paper), tcn, byol (VINN), dynamo, inverse-dynamics, time-contrastive, "
            "none (initial weights), or a sum such as class+0.1*inverse-dynamics."
        ),
    ] = "class"
    options: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            help="Settings of the objective, as in weighting=hard views=2 (class) or target=ema (dynamo); see "
            "'classact presets'. In a sum with its name: byol.decay=0.99."
        ),
    ] = ()
    crop: Annotated[
        str | None,
        tyro.conf.arg(help="Offset of random crops: image, or batch (released code). Default: the preset's."),
    ] = None
    color_augmentation: Annotated[
        str | None,
        tyro.conf.arg(help="none (the paper), hsv (F.2), rotate or affine; see AugmentConfig. Default: the preset's."),
    ] = None
    pairs: Annotated[
        str | None,
        tyro.conf.arg(help="all (the paper) or cross-episode: contrast only between episodes. Default: the preset's."),
    ] = None
    color: Annotated[
        str | None, tyro.conf.arg(help="Encoder input: rgb, or whiten each image's colours. Default: the preset's.")
    ] = None
    epochs: Annotated[
        float | None,
        tyro.conf.arg(help="Passes over the data, as anchors. Default: the preset's, adapted to the objective."),
    ] = None
    batch_size: Annotated[
        int | None, tyro.conf.arg(help="Anchors per step. Default: the preset's, or the objective's own.")
    ] = None
    learning_rate: Annotated[
        float | None, tyro.conf.arg(help="Peak learning rate. Default: the preset's, or the objective's own.")
    ] = None
    quantile: Annotated[
        float | None,
        tyro.conf.arg(help="K: share of all pairs that are positives, 0.015 for 1.5 %. Default: preset's."),
    ] = None
    horizon: Annotated[
        int | None, tyro.conf.arg(help="T_p: actions of a window whose similarity is learned from. Default: preset's.")
    ] = None
    cost: Annotated[
        str | None,
        tyro.conf.arg(help="DTW step cost: sqeuclidean (released code) or euclidean (the paper's text)."),
    ] = None
    metric: Annotated[str | None, tyro.conf.arg(help="dtw, or l2: no warping. Default: the preset's.")] = None
    band: Annotated[int | None, tyro.conf.arg(help="Sakoe-Chiba band of DTW in steps. Default: the preset's.")] = None
    estimate: Annotated[
        str | None,
        tyro.conf.arg(help="Of the threshold: exact (all pairs), sampled, or auto. Default: the preset's."),
    ] = None
    similarity: Annotated[
        Path | None,
        tyro.conf.arg(help="Folder of 'classact similarity': its settings, threshold and graph are used."),
    ] = None
    positives: Annotated[
        str | None, tyro.conf.arg(help="online (computed per batch), or graph: looked up in that of --similarity.")
    ] = None
    positives_per_anchor: Annotated[
        int | None,
        tyro.conf.arg(help="With graph: draw so many positives of each anchor into its batch. Default: the preset's."),
    ] = None
    trunk: Annotated[
        str | None,
        tyro.conf.arg(help="Encoder's network: small, resnet18, or equivariant (EquiVar). Default: the preset's."),
    ] = None
    init: Annotated[
        str | None, tyro.conf.arg(help="Initial weights: scratch, imagenet or r3m. Default: the preset's.")
    ] = None
    init_path: Annotated[str | None, tyro.conf.arg(help="R3M checkpoint on disk, for --init r3m.")] = None
    precision: Annotated[
        str | None, tyro.conf.arg(help="auto, float32 or bfloat16 (the encoder's convolutions). Default: auto.")
    ] = None
    k: Annotated[int | None, tyro.conf.arg(help="Neighbours averaged (k_nn). Default: the preset's.")] = None
    temperature: Annotated[
        float | None, tyro.conf.arg(help="Temperature of the neighbours' weights (tau_nn). Default: the preset's.")
    ] = None
    min_actions: Annotated[
        int | None,
        tyro.conf.arg(help="Retrieve no moment with fewer demonstrated actions left (1: all). Default: the preset's."),
    ] = None
    proprioception_weight: Annotated[
        float | None,
        tyro.conf.arg(help="Of proprioception beside image features (1: the paper). Default: the preset's."),
    ] = None
    cameras: Annotated[
        tuple[str, ...] | None, tyro.conf.arg(help="Views that the encoder reads. Default: the preset's.")
    ] = None
    shared_encoder: Annotated[bool, tyro.conf.arg(help="One network for all views instead of one each.")] = False
    keys: Annotated[
        tuple[str, ...] | None, tyro.conf.arg(help="Proprioception keys that the policy sees. Default: all declared.")
    ] = None
    heldout: Annotated[
        int,
        tyro.conf.arg(
            help="Learn nothing from the last so many demonstrations of the file (shuffle it if it is sorted); the "
            "novelty alarm is calibrated on them. 0: each is left out of the bank in turn, which is approximate."
        ),
    ] = 0
    alarm_level: Annotated[
        float, tyro.conf.arg(help="alpha: largest chance that the novelty alarm rings in a usual episode.")
    ] = 0.1
    search: Annotated[
        str | None,
        tyro.conf.arg(
            help="Nearest neighbours: auto, torch (exact) or faiss, as in faiss:IVF1024,Flat. Default: auto."
        ),
    ] = None
    evaluations: Annotated[
        int | None,
        tyro.conf.arg(
            help="Roll out at so many points from 55 % of training on (the paper: 10); 0: at the end only. Default: as "
            "the run was started with, else 0."
        ),
    ] = None
    milestone_episodes: Annotated[
        int | None,
        tyro.conf.arg(help="Unseen starts of each of these. Default: as the run was started with, else 50."),
    ] = None
    episodes: Annotated[int | None, tyro.conf.arg(help="Use only the first so many demonstrations.")] = None
    seed: Annotated[int, tyro.conf.arg(help="Seed of weights, batches and augmentations.")] = 0
    workers: Annotated[int, tyro.conf.arg(help="Simulator processes; 0: one per core. Changes no result.")] = 0
    quiet: Annotated[bool, tyro.conf.arg(help="No progress bars.")] = False


@dataclass(frozen=True, kw_only=True)
class Demo(RunArguments):
    """Learn a representation from demonstrations, act by retrieval, and show it: DIR/report.html."""

    test_episodes: Annotated[
        int | None, tyro.conf.arg(help="Unseen starts per policy. Default: as the run was started with, else 50.")
    ] = None
    baselines: Annotated[
        bool, tyro.conf.arg(help="Also roll out an untrained encoder and the true state as latent.")
    ] = True


@dataclass(frozen=True, kw_only=True)
class Pretrain(RunArguments):
    """Learn a representation and build the retrieval policy; rollouts with --evaluations only."""


def run_config(arguments: RunArguments) -> Any:
    """The run's settings: the preset, changed by the flags that were given.

    How it is evaluated stays as the folder says it, where no flag says it now: later commands read it there.
    """
    from classact.data.readers import declared_simulator
    from classact.run.folder import Run
    from classact.run.presets import default_preset, from_preset, get_preset, with_objective, with_trunk
    from classact.run.pretrain import started
    from classact.sims import plain_shift

    run = Run(arguments.out)
    known = run.settings() if started(run) else None
    simulator = arguments.simulator or declared_simulator(arguments.data)
    if not simulator:
        simulator = "pusht" if arguments.preset is None else get_preset(arguments.preset).simulator
    shift = arguments.shift or plain_shift(simulator)
    preset = arguments.preset or default_preset(arguments.data, simulator, shift)
    config = from_preset(preset, shift=shift, simulator=simulator, data=arguments.data, episodes=arguments.episodes)

    def changed(value: Any, **changes: Any) -> Any:
        return replace(value, **{k: v for k, v in changes.items() if v is not None})

    pretrain = with_objective(config.pretrain, _objective(arguments, config.pretrain.objective))
    similarity = pretrain.similarity
    if arguments.similarity is not None:
        from classact.run.survey import measured_config

        similarity = measured_config(arguments.similarity)
    pretrain = changed(
        pretrain,
        encoder=changed(
            with_trunk(pretrain.encoder, arguments.trunk or pretrain.encoder.trunk),
            color=arguments.color,
            init=arguments.init,
            init_path=arguments.init_path,
            cameras=arguments.cameras,
            shared=arguments.shared_encoder,
        ),
        augment=changed(pretrain.augment, color=arguments.color_augmentation, crop=arguments.crop),
        similarity=changed(
            similarity,
            quantile=arguments.quantile,
            horizon=arguments.horizon,
            cost=arguments.cost,
            metric=arguments.metric,
            band=arguments.band,
            estimate=arguments.estimate,
        ),
        positives=arguments.positives,
        positives_per_anchor=arguments.positives_per_anchor,
        optimizer=changed(pretrain.optimizer, learning_rate=arguments.learning_rate),
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        precision=arguments.precision,
        evaluations=known.pretrain.evaluations if known is not None and arguments.evaluations is None else None,
        seed=arguments.seed,
    )
    pretrain = changed(pretrain, evaluations=arguments.evaluations)
    evaluation = replace(config.evaluation if known is None else known.evaluation, workers=arguments.workers)
    baselines = known is not None and known.baselines
    if isinstance(arguments, Demo):
        evaluation = changed(evaluation, episodes=arguments.test_episodes)
        baselines = arguments.baselines
    usual = 50 if known is None else known.milestone_episodes
    return replace(
        config,
        pretrain=pretrain,
        retrieval=changed(
            config.retrieval,
            k=arguments.k,
            temperature=arguments.temperature,
            min_actions=arguments.min_actions,
            proprioception_weight=arguments.proprioception_weight,
            search=arguments.search or (None if known is None else known.retrieval.search),
        ),
        frames=replace(config.frames, source=arguments.frames, workers=arguments.workers),
        evaluation=evaluation,
        baselines=baselines,
        similarity=None if arguments.similarity is None else str(arguments.similarity),
        layout=None if arguments.layout is None else str(arguments.layout.absolute()),
        keys=arguments.keys,
        heldout=arguments.heldout,
        milestone_episodes=usual if arguments.milestone_episodes is None else arguments.milestone_episodes,
        novelty=replace(config.novelty, alpha=arguments.alarm_level),
    )


SIMILARITY_FLAGS = (
    *("quantile", "horizon", "cost", "metric", "band", "estimate", "similarity", "positives", "positives_per_anchor"),
)
TRAINING_FLAGS = ("epochs", "batch_size", "learning_rate", "crop", "color_augmentation", "evaluations")


def _objective(arguments: RunArguments, preset: Any) -> Any:
    """Settings of the objective; flags that would change nothing are refused.

    Raises:
        ConfigError: an unknown objective or option, or a flag that it does not read.
    """
    from classact.errors import ConfigError
    from classact.objectives import objective_config, split_sum

    name, options = arguments.objective, arguments.options
    terms = [term for _, term in split_sum(name)]
    if arguments.pairs is not None:
        if "class" not in terms:
            raise ConfigError(f"--pairs is a setting of objective 'class', but --objective is {name!r}. Leave it out.")
        options = (*options, f"{'class.' if len(terms) > 1 else ''}pairs={arguments.pairs}")
    for flag in idle_flags(arguments):
        if getattr(arguments, flag) not in (None, 0 if flag == "evaluations" else None):
            reads = "learns from no action similarity" if flag in SIMILARITY_FLAGS else "trains nothing"
            raise ConfigError(f"objective {name!r} {reads}, so --{flag.replace('_', '-')} would change nothing.")
    return objective_config(name, options, preset)


def idle_flags(arguments: RunArguments) -> list[str]:
    """Flags of training that the objective does not read."""
    from classact.objectives import objective_config

    idle = [] if objective_config(arguments.objective).needs_similarity else list(SIMILARITY_FLAGS)
    return idle + (list(TRAINING_FLAGS) if arguments.objective == "none" else [])


def _pipeline(arguments: RunArguments, ranks: Any) -> Any:
    from classact.run.folder import Run
    from classact.run.pretrain import Pipeline

    return Pipeline(
        Run(arguments.out),
        run_config(arguments),
        quiet=arguments.quiet,
        device=arguments.device,
        engine=engine_config(arguments),
        ranks=ranks,
    )


def demo(arguments: Demo) -> None:
    """Run all stages and print the success table."""
    from classact.pages import build_report

    with training_ranks(arguments) as ranks:
        pipeline = _pipeline(arguments, ranks)
        pipeline.check_rollouts()
        pipeline.pretrain()
        if not ranks.first:
            return
        results = pipeline.evaluate()
        pipeline.analyze(results[pipeline.learned])
        page = build_report(arguments.out)
    print_summary(pipeline.run.read_summary())
    print_timings(pipeline.run.read_config()["timings"])
    say(f"Report: {page}")


def pretrain(arguments: Pretrain) -> None:
    """Train, save encoder and policy."""
    with training_ranks(arguments) as ranks:
        pipeline = _pipeline(arguments, ranks)
        pipeline.pretrain()
        if not ranks.first:
            return
        pipeline.policy()
    print_timings(pipeline.run.read_config()["timings"])
    say(f"Encoder: {pipeline.run.encoder}\nPolicy:  {pipeline.run.policy}")


@dataclass(frozen=True)
class Evaluate:
    """Roll out a policy of a run on unseen starts; adds rows to RUN/summary.json."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="Folder of a run with a policy.")]
    head: Annotated[
        str | None, tyro.conf.arg(help="A head of the run, by the name of its folder in RUN/heads. Default: retrieval.")
    ] = None
    simulator: Annotated[str | None, tyro.conf.arg(help="Simulator by name. Default: that of the run.")] = None
    shift: Annotated[str | None, tyro.conf.arg(help="Visual shift. Default: that of the run.")] = None
    episodes: Annotated[int | None, tyro.conf.arg(help="Unseen starts. Default: as many as in the run.")] = None
    first_seed: Annotated[
        int | None, tyro.conf.arg(help="Seed of the first start; the others follow. Default: that of the run.")
    ] = None
    max_steps: Annotated[int | None, tyro.conf.arg(help="Time limit in control steps. Default: the task's.")] = None
    k: Annotated[int | None, tyro.conf.arg(help="Neighbours averaged. Default: as saved.")] = None
    temperature: Annotated[float | None, tyro.conf.arg(help="tau_nn. Default: as saved.")] = None
    chunk_length: Annotated[int | None, tyro.conf.arg(help="T_a. Default: as saved.")] = None
    proprioception_weight: Annotated[
        float | None, tyro.conf.arg(help="Of proprioception beside image features. Default: as saved.")
    ] = None
    scheduler: Annotated[
        str | None, tyro.conf.arg(help="Sampler of a diffusion head: ddim or ddpm. Default: as saved.")
    ] = None
    inference_steps: Annotated[
        int | None, tyro.conf.arg(help="Denoising steps of a diffusion head. Default: as saved.")
    ] = None
    execute: Execute = None
    ensemble: Ensemble = None
    device: Annotated[str, tyro.conf.arg(help="Where the policy computes: auto, cpu or cuda.")] = "auto"
    name: Annotated[
        str | None, tyro.conf.arg(help="Name of the evaluation. Default: made of policy, shift and what differs.")
    ] = None
    workers: Annotated[int, tyro.conf.arg(help="Simulator processes; 0: one per core. Changes no result.")] = 0
    quiet: Annotated[bool, tyro.conf.arg(help="No progress bar.")] = False


def evaluate(arguments: Evaluate) -> None:
    """Load, roll out, add to the run's table, print."""
    from classact.run.evaluate import evaluate_run
    from classact.run.folder import Run

    names = ("k", "temperature", "chunk_length", "proprioception_weight", "scheduler", "inference_steps")
    overrides = {name: getattr(arguments, name) for name in names}
    rows = evaluate_run(
        Run(arguments.run),
        simulator=arguments.simulator,
        shift=arguments.shift,
        episodes=arguments.episodes,
        first_seed=arguments.first_seed,
        max_steps=arguments.max_steps,
        workers=arguments.workers,
        execute=arguments.execute,
        ensemble=arguments.ensemble,
        head=arguments.head,
        device=arguments.device,
        name=arguments.name,
        overrides={key: value for key, value in overrides.items() if value is not None},
        quiet=arguments.quiet,
    )
    print_summary(rows)


@dataclass(frozen=True)
class Report:
    """Draw RUN/report.html again from the files of a run."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="Folder of a run.")]


def report(arguments: Report) -> None:
    """Draw."""
    from classact.pages import build_report

    say(f"Report: {build_report(arguments.run)}")
