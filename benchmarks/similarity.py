"""Action similarity beside other packages, in one process on the same cores.

    uv run python benchmarks/similarity.py --json benchmarks/results/similarity.json

Each section is measured on its own and written as soon as it is done, so the command can be stopped and continued, and
a machine with a GPU can add its part to a file.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.table import Table

from classact.cli.console import console
from classact.data.readers import read_demonstrations
from classact.data.types import Demonstrations, FloatArray, IntArray
from classact.errors import ConfigError
from classact.similarity import (
    DistanceCounts,
    SimilarityConfig,
    WindowStream,
    dtw_pairwise,
    fit_distribution,
    window_stream,
)
from classact.similarity.cpu import CpuSweep
from classact.similarity.sweep import make_sweep
from classact.similarity.threads import start_threads
from common import Again, ResultsFile, command, seconds
from contenders import Contender, available
from sections import Row, run_sections

SECTIONS = ("contenders", "horizons", "data", "memory", "training", "gpu")
REPEATS = 5


def walks(n: int, D: int, *, length: int = 120, seed: int = 0) -> tuple[FloatArray, IntArray]:
    """(N, D) float32 smooth synthetic actions in [-1, 1] and (E,) ends of episodes of about ``length`` steps.

    Random walks with momentum, seeded: like robot actions they are smooth, and no two episodes are alike.
    """
    rng = np.random.default_rng(seed)
    velocity = rng.normal(size=(n, D)).astype(np.float32)
    kernel = np.exp(-np.arange(24) / 8)
    smooth = np.stack([np.convolve(velocity[:, d], kernel, "same") for d in range(D)], axis=1).cumsum(axis=0)
    lengths = rng.integers(length // 2, 3 * length // 2, 2 * n // length + 2).cumsum()
    ends = np.append(lengths[lengths < n], n).astype(np.int64)
    for first, last in zip(np.append(0, ends[:-1]), ends, strict=True):
        part = smooth[first:last]
        smooth[first:last] = part - part.mean(axis=0) + rng.uniform(-20, 20, D)
    return np.asarray(smooth / abs(smooth).max(axis=0), np.float32), ends


def medians(functions: dict[str, Callable[[], Any]], repeats: int = REPEATS) -> dict[str, float]:
    """Median seconds of each function, called in turns after one call that compiles."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(seconds(function))
    return {name: statistics.median(values) for name, values in times.items()}


def _consume(sweep: CpuSweep, first: int, last: int, **options: Any) -> int:
    return sum(len(block) for block in sweep.pairs(first, last, **options))


def _pairs(first: int, last: int, n: int) -> int:
    """Pairs i < j of anchors first <= i < last among n windows."""
    return (last - first) * n - (last * (last + 1) - first * (first + 1)) // 2


# -- sections ----------------------------------------------------------------------------------------------------------


def contenders(_: str | None) -> Row:
    """Pairs per second at T = 16, D = 10 of classact and of other packages, on windows cut from the same episodes."""
    import numba

    start_threads()
    cores = numba.get_num_threads()
    T, D, n = 16, 10, 16384
    actions, ends = walks(n, D)
    stream = WindowStream.build(actions, ends, T)
    sweep = CpuSweep(stream)
    anchors = 4096
    block = stream.windows(np.arange(1200))
    limit = float(np.quantile(dtw_pairwise(block)[np.triu_indices(1200, 1)], 0.015))
    found, missing = available(cores)
    mine: dict[str, Callable[[], Any]] = {
        "classact sweep, no pruning": lambda: _consume(sweep, 0, anchors, limit=limit, prune=False),
        "classact sweep, every distance handed out": lambda: _consume(sweep, 0, 1024),
        "classact sweep, pruned at K = 1.5 %": lambda: _consume(sweep, 0, anchors, limit=limit),
        "classact dtw_pairwise": lambda: dtw_pairwise(block),
    }
    counts = {
        "classact sweep, no pruning": _pairs(0, anchors, n),
        "classact sweep, every distance handed out": _pairs(0, 1024, n),
        "classact sweep, pruned at K = 1.5 %": _pairs(0, anchors, n),
        "classact dtw_pairwise": 1200 * 1199 // 2,
    }
    checks = {}
    for other in found:
        x = stream.windows(np.arange(other.windows))
        checks[other.name] = _agreement(other, x)
        mine[other.name] = _call(other, x)
        counts[other.name] = other.windows * (other.windows - 1) // 2
    times = medians(mine)
    rate = {name: counts[name] / times[name] for name in mine}
    rows = [
        {
            "name": name,
            "pairs": counts[name],
            "seconds": times[name],
            "pairs_per_second": rate[name],
            "largest_relative_difference": checks.get(name),
        }
        for name in mine
    ]
    ours = rate["classact sweep, no pruning"]
    ratios = {other.name: ours / rate[other.name] for other in found}
    packages = {other.package: metadata.version(other.package) for other in found}
    return {
        "horizon": T,
        "dimensions": D,
        "threads": cores,
        "rows": rows,
        "ratios": ratios,
        "packages": packages,
        "missing": missing,
    }


def _call(other: Contender, x: NDArray[Any]) -> Callable[[], Any]:
    return lambda: other.distances(x)


def _agreement(other: Contender, x: NDArray[Any]) -> float:
    """Largest relative difference from classact over all pairs, before any time is believed."""
    above = np.triu_indices(len(x), 1)
    mine, theirs = dtw_pairwise(x)[above].astype(np.float64), other.distances(x)[above]
    difference = float(np.max(abs(mine - theirs) / np.maximum(abs(theirs), 1e-12)))
    if difference > 1e-4:
        raise ConfigError(f"{other.name} computes another distance: they differ by up to {difference:.2g}.")
    return difference


def horizons(_: str | None) -> Row:
    """Pairs per second over T, D, bands and step costs, nothing pruned."""
    n, rows = 8192, []
    settings: list[tuple[int, int, str, int | None]] = [
        *((T, 10, "sqeuclidean", None) for T in (1, 2, 5, 8, 16, 24, 33, 64)),
        *((16, D, "sqeuclidean", None) for D in (1, 2, 14)),
        (16, 10, "euclidean", None),
        (16, 10, "sqeuclidean", 0),
        (16, 10, "sqeuclidean", 3),
        (64, 10, "sqeuclidean", 8),
    ]
    for T, D, cost, band in settings:
        actions, ends = walks(n, D)
        sweep = CpuSweep(WindowStream.build(actions, ends, T), cost=cost, band=band)
        time_ = medians({"sweep": _sweep_call(sweep, 1024)}, 3)["sweep"]
        rate = _pairs(0, 1024, n) / time_
        rows.append({"horizon": T, "dimensions": D, "cost": cost, "band": band, "pairs_per_second": rate})
    return {"rows": rows}


def _sweep_call(sweep: CpuSweep, anchors: int) -> Callable[[], Any]:
    return lambda: _consume(sweep, 0, anchors, limit=1e-6, prune=False)


def data(source: str | None) -> Row:
    """Threshold and CDF of all pairs of a real data set, exact, with and without pruning, and sampled."""
    demonstrations = read_demonstrations(source or "pusht-expert")
    config = SimilarityConfig(estimate="exact")
    stream = window_stream(demonstrations, config)
    sweep = CpuSweep(stream)
    n = len(stream)

    def unpruned(limit: float) -> DistanceCounts:
        counts = DistanceCounts(limit)
        sweep.count(0, n, limit, counts, prune=False)
        return counts

    times = medians(
        {
            "exact": lambda: fit_distribution(stream, sweep, config),
            "exact_without_pruning": lambda: fit_distribution(stream, sweep, config, unpruned),
            "sampled": lambda: fit_distribution(stream, sweep, SimilarityConfig(estimate="sampled")),
        },
        3,
    )
    exact = fit_distribution(stream, sweep, config)
    sampled = fit_distribution(stream, sweep, SimilarityConfig(estimate="sampled"))
    return {
        "data": demonstrations.name,
        "windows": n,
        "dimensions": stream.dim,
        "horizon": stream.horizon,
        "pairs": exact.pairs,
        "kept": exact.kept,
        "threshold": exact.threshold,
        "sampled_threshold": sampled.threshold,
        "sampled_pairs": sampled.pairs,
        "sampled_epsilon": sampled.epsilon,
        "seconds": times,
    }


def memory(_: str | None) -> Row:
    """Peak memory beyond the data, and time, of exact threshold and CDF of all pairs, each size in its own process."""
    rows = []
    for n in (25_000, 100_000, 250_000):
        command = [sys.executable, str(Path(__file__).with_name("memory.py")), str(n), "16", "10", "0.015"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError(f"measuring {n:,} windows ended with {done.returncode}:\n{done.stderr[-2000:]}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return {"rows": rows}


def training(_: str | None) -> Row:
    """What the weights of a batch cost beside the whole training step, on the device that trains."""
    import torch

    from classact.run.presets import PRESETS
    from classact.train.representation import Trainer

    # Exact weights, whose table is the larger one.
    preset = PRESETS["pusht-cpu"].pretrain
    config = replace(preset, similarity=replace(preset.similarity, estimate="exact"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    n, size = 8192, config.encoder.image_size
    images = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8)
    rows = []
    for D in (2, 10):
        actions, ends = walks(n, D)
        demonstrations = Demonstrations(
            "walks", ends, actions, np.zeros((n, 1), np.float32), images={config.encoder.cameras[0]: images}
        )
        trainer = Trainer(demonstrations, config, device=device)
        assert trainer.similarity is not None
        for batch in (160, 2048):
            picked = np.sort(np.random.default_rng(1).permutation(n)[:batch])

            def synchronized(function: Callable[[IntArray], Any], picked: IntArray = picked) -> Callable[[], Any]:
                def call() -> None:
                    function(picked)
                    if device == "cuda":
                        torch.cuda.synchronize()

                return call

            times = medians(
                {
                    "step": synchronized(trainer.train_step),
                    "weights": synchronized(trainer.similarity.weights_tensor),
                },
                9 if batch < 1000 else 3,
            )
            rows.append(
                {
                    "dimensions": D,
                    "batch_size": batch,
                    "step_ms": 1e3 * times["step"],
                    "weights_ms": 1e3 * times["weights"],
                    "share": times["weights"] / times["step"],
                }
            )
    return {"device": device, "encoder": config.encoder.backbone, "image_size": size, "rows": rows}


def gpu(_: str | None) -> Row:
    """All pairs of 254,000 windows with exact threshold on a GPU, beside the physical limit; or that there is none."""
    import torch

    return all_pairs(254_000, "cuda") if torch.cuda.is_available() else {"available": False}


def all_pairs(n: int, device: str) -> Row:
    """Exact threshold and sweeps over all pairs of n windows at T = 16, D = 10, on "cuda" or "cpu"."""
    T, D = 16, 10
    actions, ends = walks(n, D)
    stream = WindowStream.build(actions, ends, T)
    sweep = make_sweep(stream, device=device)
    config = SimilarityConfig(estimate="exact")
    limit = float(fit_distribution(stream, sweep, config).threshold)
    times = medians(
        {
            "exact": lambda: fit_distribution(stream, sweep, config),
            "sweep_without_pruning": lambda: sweep.count(0, n, limit, DistanceCounts(limit), prune=False),
            "sweep": lambda: sweep.count(0, n, limit, DistanceCounts(limit)),
        },
        3,
    )
    pairs = n * (n - 1) // 2
    found = {
        "available": True,
        "windows": n,
        "horizon": T,
        "dimensions": D,
        "pairs": pairs,
        "seconds": times,
        "pairs_per_second": pairs / times["sweep_without_pruning"],
    }
    return found | _on_the_gpu(stream) if device == "cuda" else found


def _on_the_gpu(stream: WindowStream) -> Row:
    """What only a GPU has: its physical limit, its memory, and how far its distances are from the CPU's."""
    import torch

    from similarity_table import peak_pairs_per_second

    properties = torch.cuda.get_device_properties(0)
    clock = 1e3 * float(getattr(properties, "clock_rate", 1_980_000))
    return {
        "physical_limit_pairs_per_second": peak_pairs_per_second(
            properties.multi_processor_count, clock, stream.horizon
        ),
        "peak_device_memory_mib": torch.cuda.max_memory_allocated() / 2**20,
        "largest_relative_difference_from_cpu": _device_difference(stream, np.arange(2000)),
    }


def _device_difference(stream: WindowStream, rows: IntArray) -> float:
    import torch

    windows = stream.windows(rows)
    mine = dtw_pairwise(windows)
    theirs = dtw_pairwise(torch.from_numpy(windows).cuda()).cpu().numpy()
    return float(np.max(abs(mine - theirs) / np.maximum(mine, 1e-12)))


MEASURE: dict[str, Callable[[str | None], Row]] = {
    "contenders": contenders,
    "horizons": horizons,
    "data": data,
    "memory": memory,
    "training": training,
    "gpu": gpu,
}


def run(
    sections: Sequence[str] = SECTIONS,
    *,
    source: str | None = None,
    path: Path | None = None,
    again: bool = False,
    say: Callable[[str], None] = print,
) -> Row:
    """Measure sections, write each to ``path`` when it is done, return all.

    Args:
        sections: of :data:`SECTIONS`.
        source: demonstrations of the section "data"; None takes the embedded ones.
        path: results file (JSON); sections that it holds already are kept.
        again: measure those again, too.
        say: told what is going on.

    Raises:
        ConfigError: an unknown section.
    """
    return run_sections(sections, MEASURE, lambda name: MEASURE[name](source), path=path, again=again, say=say)


# -- the command -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flags:
    """Action similarity: pairs per second beside aeon, dtaidistance and tslearn, exact thresholds, memory, training."""

    json: ResultsFile = None
    sections: Annotated[
        tuple[str, ...], tyro.conf.arg(help="Which: contenders, horizons, data, memory, training, gpu. Default: all.")
    ] = ()
    data: Annotated[str, tyro.conf.arg(help="Demonstrations of the section 'data': a path, or 'pusht-expert'.")] = (
        "pusht-expert"
    )
    again: Again = False


def main(arguments: Flags) -> None:
    """Measure and print."""
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


def print_section(name: str, found: Mapping[str, Any]) -> None:
    """One section as a table, with the machine it was measured on."""
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


if __name__ == "__main__":
    sys.exit(command(Flags, main))
