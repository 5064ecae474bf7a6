"""``classact finetune``: train a policy head on a run's encoder, evaluate it, and show it in the run's report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from classact.cli.console import print_actions, print_summary, print_timings, say
from classact.cli.engine import ENGINE, training_ranks
from classact.cli.flags import Device, Given, Settings, Word, below, changed, counted, flag, from_file, settings
from classact.errors import ConfigError
from classact.models.heads import HEADS, HeadConfig
from classact.run.config import HeadRunConfig, RunConfig
from classact.run.presets import HEAD_PRESETS, configure_head
from classact.train.config import AugmentConfig, Choice, EngineConfig
from classact.utils.progress import teller

HEAD = "mlp"


def _head(word: Word) -> type[HeadConfig]:
    """The class of the head's settings, by its name or by the file that settings start from."""
    name, file = word("head"), word("config")
    if name is None and file is not None:
        return type(from_file(HeadRunConfig, Path(file)).finetune.head)
    return HEADS[name or HEAD].config


TRAINING = Settings(
    HeadRunConfig,
    inline=("finetune",),
    hidden=("encoder", "start", "evaluation.workers"),
    short={
        "augment.color": "color-augmentation",
        "optimizer.head-lr": "head-lr",
        "optimizer.encoder-lr": "encoder-lr",
        "head.scheduler": "scheduler",
        "evaluation.episodes": "test-episodes",
        "evaluation.execute": "execute",
        "evaluation.ensemble": "ensemble",
    },
    about={
        "evaluations": "Evaluations during training; their maximum and the last are reported. 0: none. "
        "Default: as the head was started with.",
        "epochs": "Passes over the data; fewer for heads on CLASS than for others (table 9).",
        "augment.color": "none (the paper), hsv (F.2), rotate or affine.",
    },
    kinds={"head": _head},
)


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Train a policy head on the encoder of a run, roll it out, and add it to RUN/report.html.

    Attributes:
        run: Folder of a run, made by demo or pretrain.
        head: What is trained. Default: mlp, which leads on two cores and decides fastest, or what --config is of.
        preset: Named settings, which other flags change; see 'classact presets'. Default: head-cpu for a small encoder,
            else the paper's for the task.
        config: Settings to start from instead of a preset, which other flags change: RUN/heads/NAME/config.json.
        scratch: Start the encoder from its initial weights: behaviour cloning without pre-training.
        encoder: Start from another encoder instead: its folder, or its name on the hub.
        augment: Random views, as in pre-training: yes, no, or auto: yes, but not for a frozen encoder without --views.
        name: Of the head's folder. Default: made of the settings.
        workers: Simulator processes; 0: one per core. Changes no result.
        device: Where it is trained; auto: on a GPU if there is one.
        quiet: No progress bars.
    """

    run: Path = flag(positional=True)
    head: str | None = flag(None, choices=lambda: HEADS)
    preset: str | None = flag(None, choices=lambda: HEAD_PRESETS)
    config: Path | None = None
    scratch: bool = False
    encoder: str | None = None
    augment: Choice = "auto"
    name: str | None = None
    workers: int = 0
    device: Device = "auto"
    quiet: bool = False
    training: Given = settings(TRAINING)
    engine: Given = settings(ENGINE)

    @staticmethod
    def shown(word: Word) -> Mapping[str, Any]:
        """The settings that the help shows as defaults."""
        if (file := word("config")) is not None:
            return {"training": from_file(HeadRunConfig, Path(file))}
        return {"training": configure_head(RunConfig(), word("head") or HEAD, preset=word("preset"))}

    def main(self) -> None:
        from classact.pages import build_report
        from classact.run.finetune import HeadPipeline
        from classact.run.folder import Run

        with training_ranks(self.device) as ranks:
            pipeline = HeadPipeline(
                Run(self.run),
                head_config(self),
                name=self.name,
                quiet=self.quiet,
                device=self.device,
                engine=changed(EngineConfig(), self.engine),
                ranks=ranks,
            )
            pipeline.check_rollouts()
            pipeline.train()
            if not ranks.first:
                return
            pipeline.evaluate()
            page = build_report(self.run)
        print_summary(pipeline.run.read_summary())
        print_actions(pipeline.run.read_actions())
        print_timings(pipeline.folder.info().timings)
        say(f"Policy: {pipeline.folder.policy}\nReport: {page}")


def head_config(flags: Finetune) -> HeadRunConfig:
    """The head's settings: the preset or the file, changed by the flags that were given.

    How it acts and is evaluated stays as the head's folder says it, where no flag says it now.
    """
    from classact.run.data import run_rate
    from classact.run.finetune import as_before, head_settings, usual_evaluation
    from classact.run.folder import Run

    if flags.scratch and (flags.encoder is not None or flags.training.get("finetune.frozen")):
        other = "--encoder names what to start from" if flags.encoder is not None else "--frozen trains no encoder"
        raise ConfigError(f"--scratch trains the encoder from its initial weights, but {other}. Give one of the two.")
    run = Run(flags.run)
    given = dict(counted(TRAINING, flags.training, lambda: run_rate(run), teller(quiet=flags.quiet)))
    config = _start(flags, run)
    finetune = config.finetune
    colors = below(given, "finetune.augment")
    if flags.augment != "auto":
        finetune = replace(finetune, augment=(finetune.augment or AugmentConfig()) if flags.augment == "yes" else None)
    if finetune.augment is None and colors == {"color": "none"}:
        del given["finetune.augment.color"]
    elif flags.augment == "no" and colors:
        name, value = next(iter(colors.items()))
        asks = f"--color-augmentation asks for {value!r} ones" if name == "color" else f"--augment.{name} is of them"
        raise ConfigError(f"--augment no takes no random views, but {asks}.")
    made = replace(config, finetune=finetune, evaluation=None)
    training = {path: value for path, value in given.items() if not path.startswith("evaluation.")}
    name = flags.name or changed(made, training).name
    evaluation = config.evaluation or usual_evaluation(run, name)
    evaluation = changed(evaluation, {"workers": flags.workers, **below(given, "evaluation")})
    known = None if flags.config is not None else head_settings(run, name)
    return replace(changed(as_before(made, known), training), evaluation=evaluation)


def _start(flags: Finetune, run: Any) -> HeadRunConfig:
    """The settings of --config, or of the preset."""
    start = "scratch" if flags.scratch else "run" if flags.encoder is None else flags.encoder
    if flags.config is None:
        frozen = flags.training.get("finetune.frozen")
        return configure_head(run.settings(), flags.head or HEAD, preset=flags.preset, start=start, frozen=frozen)
    if flags.preset is not None:
        raise ConfigError("--preset and --config both say what to start from. Give one of the two.")
    config = from_file(HeadRunConfig, flags.config)
    if flags.head not in (None, name := config.finetune.head.name):
        raise ConfigError(f"--config is of a head {name!r}, but --head is {flags.head!r}. Leave out one of the two.")
    return config if start == "run" else replace(config, start=start)
