"""``classact bench``: what things cost, beside what else does the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from classact.commands.console import console
from classact.commands.flags import Again, ResultsFile


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
