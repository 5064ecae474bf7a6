"""The command line: parse, call, print."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from classact.errors import ClassactError, TrainingInterrupted

PROGRAM = "classact"
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False, markup=False)  # names of files may hold brackets


# -- demo and pretrain -----------------------------------------------------------------------------


@dataclass(frozen=True)
class RunArguments:
    """Settings that demo and pretrain share."""

    out: Annotated[Path, tyro.conf.arg(help="Folder of the run. The same command continues what lies there.")]
    data: Annotated[
        str,
        tyro.conf.arg(help="Demonstrations: a path in a known format, or 'pusht-expert', which comes with classact."),
    ] = "pusht-expert"
    preset: Annotated[
        str | None,
        tyro.conf.arg(
            help="Named settings; see 'classact presets'. Other flags change them. Default: pusht-demo for the "
            "embedded data, pusht-cpu for others, pusht-rand-whiten under rand-color."
        ),
    ] = None
    shift: Annotated[
        str, tyro.conf.arg(help="Visual shift of demonstrations and evaluation: fixed-color or rand-color.")
    ] = "fixed-color"
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
    epochs: Annotated[float | None, tyro.conf.arg(help="Passes over the data. Default: the preset's.")] = None
    batch_size: Annotated[int | None, tyro.conf.arg(help="Images per step. Default: the preset's.")] = None
    learning_rate: Annotated[float | None, tyro.conf.arg(help="Peak learning rate. Default: the preset's.")] = None
    quantile: Annotated[
        float | None,
        tyro.conf.arg(help="K: share of all pairs that are positives, 0.015 for 1.5 %%. Default: preset's."),
    ] = None
    cost: Annotated[
        str | None,
        tyro.conf.arg(help="DTW step cost: sqeuclidean (released code) or euclidean (the paper's text)."),
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
    device: Annotated[str, tyro.conf.arg(help="auto (a GPU if there is one), cpu or cuda. For training.")] = "auto"
    episodes: Annotated[int | None, tyro.conf.arg(help="Use only the first so many demonstrations.")] = None
    seed: Annotated[int, tyro.conf.arg(help="Seed of weights, batches and augmentations.")] = 0
    workers: Annotated[int, tyro.conf.arg(help="Simulator processes; 0: one per core. Changes no result.")] = 0
    quiet: Annotated[bool, tyro.conf.arg(help="No progress bars.")] = False


@dataclass(frozen=True)
class Demo(RunArguments):
    """Learn a representation from demonstrations, act by retrieval, and show it: DIR/report.html."""

    test_episodes: Annotated[int, tyro.conf.arg(help="Unseen starts per policy.")] = 50
    baselines: Annotated[
        bool, tyro.conf.arg(help="Also roll out an untrained encoder and the true state as latent.")
    ] = True


@dataclass(frozen=True)
class Pretrain(RunArguments):
    """Learn a representation and build the retrieval policy; no rollouts."""


def run_config(arguments: RunArguments) -> Any:
    """The run's settings: the preset, changed by the flags that were given."""
    from classact.pipeline import from_preset
    from classact.presets import default_preset

    preset = arguments.preset or default_preset(arguments.data, arguments.shift)
    config = from_preset(preset, shift=arguments.shift, data=arguments.data, episodes=arguments.episodes)

    def changed(value: Any, **changes: Any) -> Any:
        return replace(value, **{k: v for k, v in changes.items() if v is not None})

    pretrain = config.pretrain
    pretrain = changed(
        pretrain,
        encoder=changed(pretrain.encoder, color=arguments.color, init=arguments.init, init_path=arguments.init_path),
        augment=changed(pretrain.augment, color=arguments.color_augmentation),
        objective=changed(pretrain.objective, pairs=arguments.pairs),
        similarity=changed(pretrain.similarity, quantile=arguments.quantile, cost=arguments.cost),
        optimizer=changed(pretrain.optimizer, learning_rate=arguments.learning_rate),
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        precision=arguments.precision,
        seed=arguments.seed,
    )
    evaluation = replace(config.evaluation, workers=arguments.workers)
    baselines = False
    if isinstance(arguments, Demo):
        evaluation = replace(evaluation, episodes=arguments.test_episodes)
        baselines = arguments.baselines
    return replace(
        config,
        pretrain=pretrain,
        retrieval=changed(
            config.retrieval, k=arguments.k, temperature=arguments.temperature, min_actions=arguments.min_actions
        ),
        frames=replace(config.frames, workers=arguments.workers),
        evaluation=evaluation,
        baselines=baselines,
    )


def _pipeline(arguments: RunArguments) -> Any:
    from classact.pipeline import Pipeline
    from classact.runs import Run

    return Pipeline(Run(arguments.out), run_config(arguments), quiet=arguments.quiet, device=arguments.device)


def demo(arguments: Demo) -> None:
    """Run all stages and print the success table."""
    from classact.pipeline import LEARNED
    from classact.report import build_report

    pipeline = _pipeline(arguments)
    results = pipeline.evaluate()
    pipeline.analyze(results[LEARNED])
    page = build_report(arguments.out)
    print_summary(pipeline.run.read_summary())
    _print_timings(pipeline.run.read_config()["timings"])
    print(f"Report: {page}")


def pretrain(arguments: Pretrain) -> None:
    """Train, save encoder and policy."""
    pipeline = _pipeline(arguments)
    pipeline.policy()
    _print_timings(pipeline.run.read_config()["timings"])
    print(f"Encoder: {pipeline.run.encoder}\nPolicy:  {pipeline.run.policy}")


# -- evaluate, report ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluate:
    """Roll out the policy of a run on unseen starts; adds rows to RUN/summary.json."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="Folder of a run with a policy.")]
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
    name: Annotated[
        str | None, tyro.conf.arg(help="Name of the evaluation. Default: made of policy, shift and what differs.")
    ] = None
    workers: Annotated[int, tyro.conf.arg(help="Simulator processes; 0: one per core. Changes no result.")] = 0
    quiet: Annotated[bool, tyro.conf.arg(help="No progress bar.")] = False


def evaluate(arguments: Evaluate) -> None:
    """Load, roll out, add to the run's table, print."""
    from classact.pipeline import evaluate_run
    from classact.runs import Run

    overrides = {"k": arguments.k, "temperature": arguments.temperature, "chunk_length": arguments.chunk_length}
    rows = evaluate_run(
        Run(arguments.run),
        simulator=arguments.simulator,
        shift=arguments.shift,
        episodes=arguments.episodes,
        first_seed=arguments.first_seed,
        max_steps=arguments.max_steps,
        workers=arguments.workers,
        name=arguments.name,
        overrides={key: value for key, value in overrides.items() if value is not None},
        quiet=arguments.quiet,
    )
    print_summary(rows)


@dataclass(frozen=True)
class Report:
    """Draw RUN/report.html again from the files of a run."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="Folder of a run.")]
    picture: Annotated[Path | None, tyro.conf.arg(help="Also draw one picture (PNG) of the run to this file.")] = None


def report(arguments: Report) -> None:
    """Draw."""
    from classact.report import build_report, hero_image

    print(f"Report: {build_report(arguments.run)}")
    if arguments.picture is not None:
        hero_image(arguments.run, arguments.picture)
        print(f"Picture: {arguments.picture}")


# -- data ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataInfo:
    """Read demonstrations, check them and say what they hold."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help="A path, or 'pusht-expert'.")]


def data_info(arguments: DataInfo) -> None:
    """Print a table."""
    import numpy as np
    from rich.table import Table

    from classact.progress import progress_bar
    from classact.readers import read_demonstrations

    with progress_bar("read demonstrations") as bar:
        data = read_demonstrations(arguments.source, progress=bar)
    table = Table(title=f"{data.name} ({data.source})", show_header=False, title_justify="left")
    lengths = data.lengths
    table.add_row("episodes", f"{len(data):,}")
    table.add_row(
        "steps", f"{data.num_steps:,} ({lengths.min()} to {lengths.max()} each, median {np.median(lengths):.0f})"
    )
    for label, array in (("actions", data.actions), ("proprioception", data.proprioception), ("states", data.states)):
        if array is None:
            table.add_row(label, "none")
            continue
        ranges = ", ".join(f"{a:.3g}..{b:.3g}" for a, b in zip(array.min(0), array.max(0), strict=True))
        table.add_row(label, f"{array.shape[1]} dimensions: {ranges}")
    for camera, images in data.images.items():
        size = images.nbytes / 2**20
        table.add_row(f"camera {camera}", f"{images.shape[2]} x {images.shape[1]} pixels, {size:,.0f} MiB on disk")
    if not data.images:
        table.add_row("cameras", "none recorded; rendered on demand from states")
    table.add_row("fingerprint", data.fingerprint()[:16])
    _console().print(table)


@dataclass(frozen=True)
class DataGenerate:
    """Make the Push-T demonstrations that come with classact again, from seeds (about half an hour)."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="File to write (.npz).")]
    simulator: Annotated[str, tyro.conf.arg(help="Simulator by name.")] = "pusht"
    episodes: Annotated[int, tyro.conf.arg(help="Successful episodes to keep.")] = 300
    seed: Annotated[int, tyro.conf.arg(help="Seed of the first start.")] = 0
    workers: Annotated[int, tyro.conf.arg(help="Processes; 0: one per core. Changes no result.")] = 0


def data_generate(arguments: DataGenerate) -> None:
    """Run the expert; resumable."""
    import multiprocessing

    from classact.progress import progress_bar
    from classact.sims.experts.generate import generate_demonstrations

    with progress_bar("expert demonstrations") as bar:
        generate_demonstrations(
            arguments.simulator,
            episodes=arguments.episodes,
            seed=arguments.seed,
            workers=arguments.workers or multiprocessing.cpu_count(),
            out=arguments.out,
            progress=bar,
        )
    print(f"Demonstrations: {arguments.out}")


# -- doctor, presets -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Doctor:
    """Try what is installed: kernel, simulators, decoder, GPU; say what to do about what fails."""


def doctor(_: Doctor) -> int:
    """Print the table; 1 where something that the main job needs fails."""
    from rich.table import Table
    from rich.text import Text

    from classact.doctor import examine

    checks = examine()
    table = Table("", "what")
    for title in ("found", "remedy"):
        table.add_column(title, overflow="fold")  # a path or address is of use only whole
    for check in checks:
        mark = ("ok", "green") if check.works else ("FAIL", "red") if check.required else ("no", "yellow")
        table.add_row(Text(*mark), check.name, check.detail, check.remedy)
    _console().print(table)
    return int(any(check.required and not check.works for check in checks))


@dataclass(frozen=True)
class Presets:
    """List the named settings."""


def presets(_: Presets) -> None:
    """Print a table."""
    from rich.table import Table

    from classact.presets import PRESETS

    table = Table("preset", "settings", show_lines=True)
    for name, preset in PRESETS.items():
        p, r = preset.pretrain, preset.retrieval
        table.add_row(
            name,
            f"{preset.about}\n"
            f"{p.encoder.trunk} from {p.encoder.init}, images {p.encoder.image_size}, crops {p.encoder.crop_size}\n"
            f"{p.optimizer.name} {p.optimizer.learning_rate:g}, {p.epochs:g} epochs of batches of {p.batch_size}\n"
            f"K {100 * p.similarity.quantile:g} %, k_nn {r.k}, tau_nn {r.temperature:g}"
            f" (shifted {preset.tau_shifted:g})",
        )
    _console().print(table)


# -- printing --------------------------------------------------------------------------------------


def print_summary(rows: Sequence[dict[str, Any]]) -> None:
    """The success table with its intervals; what is the same in all rows stands above it."""
    from rich.table import Table

    def constant(key: str) -> bool:
        return len({row[key] for row in rows}) == 1

    def both(row: dict[str, Any], keys: Sequence[str], join: str) -> str:
        return join.join(row[key] for key in keys)

    where = [key for key in ("simulator", "shift") if constant(key)]
    title = (rows[0]["policy"] if constant("policy") else "success") + (" on " if where else "")
    varying = [key for key in ("policy", "simulator", "shift") if not constant(key)]
    table = Table(title=title + both(rows[0], where, ", "), title_justify="left")
    for name in ("encoder", "criterion", "success", "95 % interval", "mean max.\ncoverage"):
        table.add_column(name, no_wrap=name != "encoder")  # numbers stay whole where the line is short
    for row in rows:
        table.add_row(
            both(row, ["encoder", *varying], ", "),
            row["criterion"],
            f"{100 * row['success']:.0f} % ({row['successes']} of {row['episodes']})",
            f"{100 * row['low']:.0f} to {100 * row['high']:.0f} %",
            f"{row['mean_max_coverage']:.3f}" if "mean_max_coverage" in row else "",
        )
    _console().print(table)


def _print_timings(timings: dict[str, float]) -> None:
    total = sum(timings.values())
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in timings.items())
    _console().print(f"Time: {total:.0f} s in all ({parts})")


COMMANDS: dict[str, tuple[type[Any], Callable[[Any], int | None]]] = {
    "demo": (Demo, demo),
    "pretrain": (Pretrain, pretrain),
    "evaluate": (Evaluate, evaluate),
    "report": (Report, report),
    "data info": (DataInfo, data_info),
    "data generate": (DataGenerate, data_generate),
    "presets": (Presets, presets),
    "doctor": (Doctor, doctor),
}


def _usage() -> str:
    lines = [f"usage: {PROGRAM} COMMAND [flags]; {PROGRAM} COMMAND --help", "", "commands:"]
    lines += [f"  {name:<14} {(cls.__doc__ or '').strip().splitlines()[0]}" for name, (cls, _) in COMMANDS.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the ``classact`` command.

    Returns:
        Exit status: 0, 1 for errors raised on purpose (their message is printed), 2 for wrong usage, 130 after Ctrl-C.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--version"]:
        from classact import __version__

        print(__version__)
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "data" and (not arguments[1:] or arguments[1] in ("-h", "--help")):
        print(_usage())
        return 0 if arguments[1:] else 2
    words = 2 if arguments[0] == "data" else 1
    name = " ".join(arguments[:words])
    if name not in COMMANDS:
        print(f"{PROGRAM}: unknown command {name!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    parser, command = COMMANDS[name]
    parsed = tyro.cli(parser, args=arguments[words:], prog=f"{PROGRAM} {name}", description=parser.__doc__)
    again = f"Continue with: {shlex.join([PROGRAM, *arguments])}"
    try:
        return command(parsed) or 0
    except TrainingInterrupted as stop:
        print(f"{PROGRAM}: {stop}\n{again}", file=sys.stderr)
        return INTERRUPTED
    except ClassactError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped. {again}", file=sys.stderr)
        return INTERRUPTED
