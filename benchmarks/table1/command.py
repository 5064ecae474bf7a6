"""The command line of the paper's table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from classact.cli.console import console
from classact.errors import ConfigError
from classact.run.presets import default_preset
from classact.sims import SIMULATORS
from classact.train.config import Choice, EngineConfig
from classact.utils.storage import write_text
from common import ResultsFile
from table1.grid import Protocol, parse_budget, plan, with_random
from table1.report import build_comparison, comparison_markdown, read_results
from table1.runner import RESULTS, run_table


@dataclass(frozen=True)
class Flags:
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
    layout: Annotated[Path | None, tyro.conf.arg(help="JSON file that says which array of the data is what.")] = None
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
    starts: Annotated[
        int, tyro.conf.arg(help="Unseen initial states of each cell; if raised, done cells catch up.")
    ] = 100
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
        int, tyro.conf.arg(help="Rollouts during each training, evenly over it, for curves; 0: none.")
    ] = 0
    probe: Annotated[bool, tyro.conf.arg(help="Measure representations without rollouts, too.")] = True
    workers: Annotated[int, tyro.conf.arg(help="Simulator processes; 0: one per core. Changes no result.")] = 0
    device: Annotated[str, tyro.conf.arg(help="auto (a GPU if there is one), cpu or cuda.")] = "auto"
    compile: Annotated[
        Choice,
        tyro.conf.arg(help="Run encoders through torch.compile: yes, no or auto (on GPUs). Changes speed alone."),
    ] = "auto"
    page_only: Annotated[bool, tyro.conf.arg(help="Compute nothing; draw table and page of what is there.")] = False
    quiet: Annotated[bool, tyro.conf.arg(help="No progress bars.")] = False
    json: ResultsFile = None


def main(arguments: Flags) -> None:
    """Compute what is missing, print the table, write table and page."""
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
            protocol(arguments),
            results_path=path,
            device=arguments.device,
            engine=EngineConfig(compile=arguments.compile),
            workers=arguments.workers,
            quiet=arguments.quiet,
            say=lambda text: out.print(text, soft_wrap=True),
        )
    results = read_results(path)
    text = comparison_markdown(results)
    out.print(text, soft_wrap=True)
    write_text(arguments.out / "table1.md", text)
    page = build_comparison(path, arguments.out / "table1.html")
    out.print(f"Results: {path}\nPage:    {page}", soft_wrap=True)  # paths stay whole


def protocol(arguments: Flags) -> Protocol:
    """What all cells share, from the flags."""
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
        or _preset(arguments.task, default_preset(data, arguments.task, SIMULATORS[arguments.task].plain)),
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


def _preset(task: str, default: str) -> str:
    """One preset for all data of a task: the demonstrations that come with classact have one of their own."""
    return "pusht-cpu" if task == "pusht" else default
