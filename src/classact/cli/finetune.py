"""``classact finetune``: train a policy head on a run's encoder, evaluate it, and show it in the run's report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from classact.cli.console import print_summary, print_timings, say
from classact.cli.engine import EngineArguments, engine_config, training_ranks
from classact.cli.flags import Ensemble, Execute
from classact.train.config import ColorAugmentation


@dataclass(frozen=True, kw_only=True)
class Finetune(EngineArguments):
    """Train a policy head on the encoder of a run, roll it out, and add it to RUN/report.html."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="Folder of a run, made by demo or pretrain.")]
    head: Annotated[str, tyro.conf.arg(help="diffusion, mlp, or the name of a plugin's.")] = "diffusion"
    frozen: Annotated[bool, tyro.conf.arg(help="Leave the encoder as it is; train the head only.")] = False
    scratch: Annotated[
        bool, tyro.conf.arg(help="Start the encoder from its initial weights: behaviour cloning without pre-training.")
    ] = False
    encoder: Annotated[Path | None, tyro.conf.arg(help="Start from another encoder's folder instead.")] = None
    weights: Annotated[
        str, tyro.conf.arg(help="Of the run's pre-training: average (EMA), or last as the released code has it.")
    ] = "average"
    preset: Annotated[
        str | None,
        tyro.conf.arg(
            help="Named settings; see 'classact presets'. Other flags change them. Default: head-cpu for a small "
            "encoder, else the paper's for the task."
        ),
    ] = None
    augment: Annotated[
        str, tyro.conf.arg(help="Random crops and noise: yes, no, or auto: yes, but not for a frozen encoder.")
    ] = "auto"
    color_augmentation: Annotated[
        ColorAugmentation | None, tyro.conf.arg(help="none (the paper), hsv (F.2), rotate or affine. Default: none.")
    ] = None
    epochs: Annotated[
        float | None,
        tyro.conf.arg(
            help="Passes over the data. Default: the preset's, which has fewer for heads on CLASS (table 9)."
        ),
    ] = None
    batch_size: Annotated[int | None, tyro.conf.arg(help="Decisions per step. Default: 64 (table 7).")] = None
    head_rate: Annotated[float | None, tyro.conf.arg(help="Peak rate of the head. Default: the preset's.")] = None
    encoder_rate: Annotated[float | None, tyro.conf.arg(help="Peak rate of the encoder. Default: the preset's.")] = None
    history: Annotated[int | None, tyro.conf.arg(help="T_o, observations per decision. Default: 1 (table 7).")] = None
    chunk_length: Annotated[int | None, tyro.conf.arg(help="T_a, actions per decision. Default: 12 (table 7).")] = None
    scheduler: Annotated[
        str | None, tyro.conf.arg(help="Sampler of the diffusion head: ddim (table 8) or ddpm (released code).")
    ] = None
    keys: Annotated[
        tuple[str, ...] | None, tyro.conf.arg(help="Proprioception keys that the policy sees. Default: the run's.")
    ] = None
    evaluations: Annotated[
        int | None,
        tyro.conf.arg(
            help="Evaluations during training; their maximum and the last are reported. 0: none. Default: as the head "
            "was started with, else 10."
        ),
    ] = None
    milestone_episodes: Annotated[
        int | None,
        tyro.conf.arg(help="Unseen starts of each of these. Default: as the head was started with, else 50."),
    ] = None
    test_episodes: Annotated[int | None, tyro.conf.arg(help="Unseen starts at the end. Default: the run's.")] = None
    execute: Execute = None
    ensemble: Ensemble = None
    seed: Annotated[int, tyro.conf.arg(help="Seed of weights, batches, views and noise.")] = 0
    precision: Annotated[
        str | None, tyro.conf.arg(help="auto, float32 or bfloat16 (the encoder's convolutions). Default: auto.")
    ] = None
    head_precision: Annotated[
        str | None,
        tyro.conf.arg(
            help="Of the head in training: float32, bfloat16, or auto: bfloat16 on GPUs that have it. Default: float32."
        ),
    ] = None
    name: Annotated[str | None, tyro.conf.arg(help="Of the head's folder. Default: made of the settings.")] = None
    workers: Annotated[int, tyro.conf.arg(help="Simulator processes; 0: one per core. Changes no result.")] = 0
    quiet: Annotated[bool, tyro.conf.arg(help="No progress bars.")] = False


def head_config(arguments: Finetune) -> Any:
    """The head's settings: the preset, changed by the flags that were given."""
    from classact.errors import ConfigError, UnknownNameError, choose
    from classact.run.config import HeadRunConfig
    from classact.run.finetune import head_settings, usual_evaluation
    from classact.run.folder import Run
    from classact.run.presets import default_head_preset, get_head_preset
    from classact.train.config import CHOICES, AugmentConfig

    if arguments.scratch and (arguments.encoder is not None or arguments.frozen):
        other = "--encoder names what to start from" if arguments.encoder is not None else "--frozen trains no encoder"
        raise ConfigError(f"--scratch trains the encoder from its initial weights, but {other}. Give one of the two.")
    run = Run(arguments.run)
    settings = run.settings()
    trunk, simulator = settings.pretrain.encoder.trunk, settings.frames.simulator
    preset = get_head_preset(arguments.preset or default_head_preset(trunk, simulator))
    # Table 9 has fewer epochs for heads on CLASS's representation than for all others.
    objective = settings.pretrain.objective.written
    others = arguments.scratch or (arguments.encoder is None and "class" not in objective)
    config = preset.config(arguments.head, scratch=others, frozen=arguments.frozen)

    def changed(value: Any, **changes: Any) -> Any:
        return replace(value, **{k: v for k, v in changes.items() if v is not None})

    head = config.head
    if arguments.scheduler is not None:
        head = head.with_acting({"scheduler": arguments.scheduler})
    if arguments.augment not in CHOICES:
        raise UnknownNameError(choose("choice of augment", arguments.augment, CHOICES))
    augment, color = config.augment, arguments.color_augmentation
    if arguments.augment != "auto":
        augment = AugmentConfig() if arguments.augment == "yes" else None
    if color not in (None, "none") and arguments.augment == "no":
        raise ConfigError(f"--augment no takes no random views, but --color-augmentation asks for {color!r} ones.")
    if color is not None and (augment is not None or color != "none"):
        augment = replace(augment or AugmentConfig(), color=color)
    config = replace(
        changed(
            config,
            weights=arguments.weights,
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            history=arguments.history,
            chunk_length=arguments.chunk_length,
            keys=arguments.keys,
            precision=arguments.precision,
            head_precision=arguments.head_precision,
            optimizer=changed(config.optimizer, head_rate=arguments.head_rate, encoder_rate=arguments.encoder_rate),
        ),
        head=head,
        augment=augment,
        evaluations=10 if arguments.evaluations is None else arguments.evaluations,
        seed=arguments.seed,
    )
    made = HeadRunConfig(
        finetune=config,
        start="scratch" if arguments.scratch else "run" if arguments.encoder is None else str(arguments.encoder),
        milestone_episodes=50 if arguments.milestone_episodes is None else arguments.milestone_episodes,
    )
    # How it acts and is evaluated stays as the head's folder says it, where no flag says it now.
    name = arguments.name or made.name
    evaluation = changed(
        replace(usual_evaluation(run, name), workers=arguments.workers),
        episodes=arguments.test_episodes,
        execute=arguments.execute,
        ensemble=arguments.ensemble,
    )
    made = replace(made, evaluation=evaluation)
    known = head_settings(run, name)
    if known is None:
        return made
    before = known.finetune
    finetune = changed(
        made.finetune,
        chunk_length=before.chunk_length if arguments.chunk_length is None else None,
        evaluations=before.evaluations if arguments.evaluations is None else None,
    )
    if before.head.name == head.name:
        said = {"scheduler"} if arguments.scheduler is not None else set()
        kept = {name: value for name, value in before.head.acting_settings().items() if name not in said}
        finetune = replace(finetune, head=head.with_acting(kept))
    episodes = known.milestone_episodes if arguments.milestone_episodes is None else made.milestone_episodes
    return replace(made, finetune=finetune, milestone_episodes=episodes)


def finetune(arguments: Finetune) -> None:
    """Train, evaluate, draw the run's report again, print the run's table."""
    from classact.pages import build_report
    from classact.run.finetune import HeadPipeline
    from classact.run.folder import Run

    with training_ranks(arguments) as ranks:
        pipeline = HeadPipeline(
            Run(arguments.run),
            head_config(arguments),
            name=arguments.name,
            quiet=arguments.quiet,
            device=arguments.device,
            engine=engine_config(arguments),
            ranks=ranks,
        )
        pipeline.check_rollouts()
        pipeline.train()
        if not ranks.first:
            return
        pipeline.evaluate()
        page = build_report(arguments.run)
    print_summary(pipeline.run.read_summary())
    print_timings(pipeline.folder.read_config()["timings"])
    say(f"Policy: {pipeline.folder.policy}\nReport: {page}")
