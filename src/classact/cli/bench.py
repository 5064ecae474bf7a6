"""``classact bench``: what things cost, beside what else does the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from classact.cli.console import console
from classact.cli.flags import Again, Layout, ResultsFile


@dataclass(frozen=True)
class BenchSimilarity:
    """Action similarity: pairs per second beside aeon, dtaidistance and tslearn, exact thresholds, memory, training."""

    json: ResultsFile = None
    sections: Annotated[
        tuple[str, ...], tyro.conf.arg(help="Which: contenders, horizons, data, memory, training, gpu. Default: all.")
    ] = ()
    data: Annotated[str, tyro.conf.arg(help="Demonstrations of the section 'data': a path, or 'pusht-expert'.")] = (
        "pusht-expert"
    )
    again: Again = False


def bench_similarity(arguments: BenchSimilarity) -> None:
    """Measure and print."""
    from classact.bench.similarity import SECTIONS, run

    out = console()
    results = run(
        arguments.sections or SECTIONS,
        source=arguments.data,
        path=arguments.json,
        again=arguments.again,
        say=lambda text: out.print(text),
    )
    for name in arguments.sections or SECTIONS:
        print_section(name, results[name])


@dataclass(frozen=True)
class BenchLatency:
    """What a decision costs, p50 and p95 by stage: encode, search, denoise, and whole policies beside the paper's."""

    json: ResultsFile = None
    sections: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help="Which: encode, search, denoise, mlp, act, run. Default: all but run; with --run, run."),
    ] = ()
    run: Annotated[
        Path | None, tyro.conf.arg(help="Folder of a run: measure its policies instead of untrained ones.")
    ] = None
    device: Annotated[str, tyro.conf.arg(help="auto (a GPU if there is one), cpu or cuda.")] = "auto"
    calls: Annotated[int | None, tyro.conf.arg(help="Timed calls of a row. Default: 1000 on a GPU, 100 on a CPU.")] = (
        None
    )
    seconds: Annotated[float, tyro.conf.arg(help="Of a row, at most: slower ones get fewer calls, at least 5.")] = 60.0
    compiled: Annotated[bool, tyro.conf.arg(help="Also measure what torch.compile makes, a minute for each.")] = True
    again: Again = False


def bench_latency(arguments: BenchLatency) -> None:
    """Measure and print."""
    from classact.bench.latency import LatencyConfig, run

    out = console()
    config = LatencyConfig(
        arguments.device, arguments.calls, arguments.seconds, compiled=arguments.compiled, run=arguments.run
    )
    results = run(
        arguments.sections, config, path=arguments.json, again=arguments.again, say=lambda text: out.print(text)
    )
    for name, found in results.items():
        print_latency(name, found)


def print_latency(name: str, found: Mapping[str, Any]) -> None:
    """One section as a table, with the machine it was measured on and, where it has one, the paper's figure."""
    from rich.table import Table

    machine = found["hardware"]
    on = machine["gpu"] if found["setting"]["device"] == "cuda" else f"{machine['cpu']}, {machine['cores']} cores"
    table = Table(title=f"{name} ({on}): {found['about']}", title_justify="left")
    paper = any("paper_ms" in row for row in found["rows"])
    for k, title in enumerate(
        ("", "", "batch", "p50 ms", "p95 ms", "calls", *(["paper, mean of tasks, A40"] if paper else []))
    ):
        # Names and the last heading may be broken, numbers may not.
        wide: dict[str, Any] = {"min_width": 18} if k == 0 else {"max_width": 10} if k == 6 else {}
        table.add_column(title, justify="right" if k > 1 else "left", no_wrap=0 < k < 6, **wide)
    for row in found["rows"]:
        cells = [row["name"], row["stage"], str(row["batch"]), *(_ms(row[key]) for key in ("p50_ms", "p95_ms"))]
        beside = [f"{row['paper_ms']:g}" if "paper_ms" in row else ""] if paper else []
        table.add_row(*cells, f"{row['calls']:,}", *beside)
    console().print(table)
    for line in found["notes"]:
        console().print(line)


def _ms(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


@dataclass(frozen=True)
class BenchTable1:
    """Every representation under one protocol: the paper's table 1, cell by cell, resumable; OUT/table1.html."""

    out: Annotated[
        Path,
        tyro.conf.arg(
            help="Folder of the table. The same command continues what lies there, and may run several times at once, "
            "such as once per GPU: each training is computed by one of them."
        ),
    ]
    task: Annotated[str, tyro.conf.arg(help="Simulator: pusht, square, three-stack-d0, ...")] = "pusht"
    data: Annotated[
        str | None,
        tyro.conf.arg(
            help="Demonstrations: a path in a known format. Default: those of Push-T that come with classact."
        ),
    ] = None
    layout: Layout = None
    methods: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            help="Rows: random imagenet r3m tcn byol dynamo inverse-dynamics time-contrastive equivar class, sums "
            "such as 'class+0.1*byol', and settings in brackets: 'class[weighting=hard]', 'class[metric=l2]', "
            "'class[min_actions=4]'. The encoder of random weights, 'random', is always added: what it reaches is what "
            "was not learned."
        ),
    ] = ("random", "imagenet", "r3m", "tcn", "byol", "dynamo", "inverse-dynamics", "time-contrastive", "class")
    heads: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            help="rep: retrieval without a head; mlp; dp: Diffusion Policy; mlp-rep, dp-rep: retrieval with the "
            "encoder that was trained beneath the head (the paper's first number of two)."
        ),
    ] = ("rep",)
    shifts: Annotated[tuple[str, ...], tyro.conf.arg(help="Columns: fixed, rand (the task's own shift).")] = (
        "fixed",
        "rand",
    )
    augmentations: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help="Of colours, in all trainings: none (the paper), hsv (F.2), rotate, affine."),
    ] = ("none",)
    seeds: Annotated[int, tyro.conf.arg(help="Trainings of each cell, with seeds 0, 1, ...")] = 1
    budget: Annotated[
        str, tyro.conf.arg(help="Of each pre-training: images (500k, 2M) or time on this machine (10min, 1h).")
    ] = "500k"
    factor: Annotated[float, tyro.conf.arg(help="Of the budget, for these cells: 4 sees four times as much.")] = 1.0
    head_budget: Annotated[
        str,
        tyro.conf.arg(
            help="Images that a head's training sees after pre-training; without any, it sees --budget on top."
        ),
    ] = "100k"
    demonstrations: Annotated[
        tuple[int, ...],
        tyro.conf.arg(
            help="Learn from so many only (fig. 11); such cells are not probed. Default: all but those held out."
        ),
    ] = ()
    preset: Annotated[str | None, tyro.conf.arg(help="Of encoder and retrieval. Default: TASK-cpu.")] = None
    heldout: Annotated[int, tyro.conf.arg(help="Last demonstrations that nobody learns from, for probes.")] = 20
    starts: Annotated[int, tyro.conf.arg(help="Unseen starts of each cell; if raised, done cells catch up.")] = 100
    rates: Annotated[
        tuple[float, ...],
        tyro.conf.arg(
            help="Learning rates tried for each baseline on held-out starts, once, under the fixed appearance; all its "
            "cells take the best one. CLASS keeps its preset's. Heads without pre-trained weights try two rates of "
            "their encoder in the same way."
        ),
    ] = (3e-4, 1e-3, 3e-3)
    tuning_budget: Annotated[str, tyro.conf.arg(help="Images of each of these tries.")] = "60k"
    taus: Annotated[
        tuple[float, ...],
        tyro.conf.arg(
            help="Temperatures of retrieval that each cell chooses among on held-out starts; 0: nearest alone."
        ),
    ] = (0.0, 0.004, 0.04)
    k: Annotated[
        int | None,
        tyro.conf.arg(help="Neighbours at temperatures above 0. Default: the preset's, 16 where that is 1."),
    ] = None
    evaluations: Annotated[
        int, tyro.conf.arg(help="Roll-outs during each training, evenly over it, for curves; 0: none.")
    ] = 0
    probe: Annotated[bool, tyro.conf.arg(help="Measure representations without rollouts, too.")] = True
    workers: Annotated[int, tyro.conf.arg(help="Simulator processes; 0: one per core. Changes no result.")] = 0
    device: Annotated[str, tyro.conf.arg(help="auto (a GPU if there is one), cpu or cuda.")] = "auto"
    compile: Annotated[
        str, tyro.conf.arg(help="Run encoders through torch.compile: yes, no or auto (on GPUs). Changes speed alone.")
    ] = "auto"
    page_only: Annotated[bool, tyro.conf.arg(help="Compute nothing; draw table and page of what is there.")] = False
    quiet: Annotated[bool, tyro.conf.arg(help="No progress bars.")] = False
    json: ResultsFile = None


def bench_table1(arguments: BenchTable1) -> None:
    """Compute what is missing, print the table, write table and page."""
    from classact.bench.table1 import plan, run_table, with_random
    from classact.bench.table1.runner import RESULTS
    from classact.report.comparison import build_comparison, comparison_markdown, comparison_text, read_results
    from classact.train.engine import EngineConfig
    from classact.utils.storage import write_text

    out, path = console(), arguments.json or arguments.out / RESULTS
    if not arguments.page_only:
        cells = plan(
            arguments.methods,
            heads=arguments.heads,
            columns=arguments.shifts,
            augmentations=arguments.augmentations,
            seeds=arguments.seeds,
            factor=arguments.factor,
            demonstrations=arguments.demonstrations or (None,),
        )
        run_table(
            arguments.out,
            with_random(cells),
            table1_protocol(arguments),
            results_path=path,
            device=arguments.device,
            engine=EngineConfig(compile=arguments.compile),
            workers=arguments.workers,
            quiet=arguments.quiet,
            say=lambda text: out.print(text, soft_wrap=True),
        )
    results = read_results(path)
    out.print(comparison_text(results))
    write_text(arguments.out / "table1.md", comparison_markdown(results))
    page = build_comparison(path, arguments.out / "table1.html")
    out.print(f"Results: {path}\nPage:    {page}", soft_wrap=True)  # paths stay whole


def table1_protocol(arguments: BenchTable1) -> Any:
    """What all cells share, from the flags."""
    from classact.bench.table1 import Protocol
    from classact.bench.table1.grid import parse_budget
    from classact.errors import ConfigError
    from classact.run.presets import default_preset
    from classact.sims import plain_shift

    if arguments.data is None and arguments.task != "pusht":
        raise ConfigError(
            f"demonstrations of {arguments.task!r} do not come with classact: name them with --data, or make some with "
            f"'classact data generate {arguments.task}'."
        )
    data = arguments.data or "pusht-expert"
    images, seconds = parse_budget(arguments.budget)
    counts = {}
    for name, text in (("head_images", arguments.head_budget), ("tuning_images", arguments.tuning_budget)):
        count, _ = parse_budget(text)
        if count is None:
            raise ConfigError(f"expected {name} in images, such as 100k, got {text!r}.")
        counts[name] = count
    return Protocol(
        task=arguments.task,
        data=data,
        preset=arguments.preset
        or _table1_preset(arguments.task, default_preset(data, arguments.task, plain_shift(arguments.task))),
        images=images,
        seconds=seconds,
        heldout=arguments.heldout,
        starts=arguments.starts,
        rates=arguments.rates,
        taus=arguments.taus,
        k=arguments.k,
        evaluations=arguments.evaluations,
        probe=arguments.probe,
        layout=None if arguments.layout is None else str(arguments.layout.absolute()),
        **counts,
    )


def _table1_preset(task: str, default: str) -> str:
    """One preset for all data of a task: the demonstrations that come with classact have one of their own."""
    return "pusht-cpu" if task == "pusht" else default


def print_section(name: str, found: Mapping[str, Any]) -> None:
    """One section as a table, with the machine it was measured on."""
    from rich.table import Table

    machine = found["hardware"]
    table = Table(title=f"{name} ({machine['cpu']}, {machine['cores']} cores)", title_justify="left")

    def columns(*titles: str) -> None:
        for k, title in enumerate(titles):
            table.add_column(title, justify="right" if k else "left")

    if name == "contenders":
        ratios = found["ratios"]
        columns(f"T = {found['horizon']}, D = {found['dimensions']}", "million pairs/s", "classact is faster by")
        for row in found["rows"]:
            ratio = ratios.get(row["name"])
            table.add_row(row["name"], f"{row['pairs_per_second'] / 1e6:.3g}", f"{ratio:.0f} x" if ratio else "")
    elif name == "horizons":
        columns("T", "D", "cost", "band", "million pairs/s")
        for row in found["rows"]:
            band = "" if row["band"] is None else str(row["band"])
            rate = f"{row['pairs_per_second'] / 1e6:.3g}"
            table.add_row(str(row["horizon"]), str(row["dimensions"]), row["cost"], band, rate)
    elif name == "data":
        columns(f"{found['data']}: {found['windows']:,} windows, {found['pairs']:,} pairs", "seconds")
        for label, seconds in found["seconds"].items():
            table.add_row(f"threshold and CDF, {label.replace('_', ' ')}", f"{seconds:.2f}")
    elif name == "memory":
        columns("windows", "pairs", "seconds", "million pairs/s", "peak MiB beyond data")
        for row in found["rows"]:
            rate = f"{row['pairs'] / row['seconds'] / 1e6:.3g}"
            peak = f"{row['peak_beyond_data_mib']:.0f}"
            table.add_row(f"{row['windows']:,}", f"{row['pairs']:,}", f"{row['seconds']:.1f}", rate, peak)
    elif name == "training":
        columns(f"on {found['device']}", "batch", "step ms", "weights ms", "share")
        for row in found["rows"]:
            times = f"{row['step_ms']:.0f}", f"{row['weights_ms']:.2f}", f"{100 * row['share']:.2f} %"
            table.add_row(f"D = {row['dimensions']}", f"{row['batch_size']:,}", *times)
    elif found["available"]:
        columns(f"{machine['gpu']}: {found['windows']:,} windows", "seconds")
        for label, seconds in found["seconds"].items():
            table.add_row(label.replace("_", " "), f"{seconds:.2f}")
        limit = found["pairs_per_second"] / found["physical_limit_pairs_per_second"]
        table.add_row(f"{found['pairs_per_second'] / 1e9:.2f} billion pairs/s", f"{100 * limit:.0f} % of the limit")
    else:
        console().print("gpu: none here")
        return
    console().print(table)
    for line in found.get("missing", ()):
        console().print(line)
