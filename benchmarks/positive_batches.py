"""Do batches that are filled with positives from the stored graph beat the queue, at the same number of images?

Push-T, human demonstrations, the protocol of pusht_comparison.py: 500,000 images, 186 demonstrations, k and tau chosen
on the same tuning episodes, 400 evaluation episodes. Rows with plain batches and with the queue are those of
results/pusht_comparison.json; this script trains the ones with positive-aware batches. How many positives are drawn for
each anchor is chosen as the learning rates of baselines are: by short trainings on the tuning episodes.

    uv run python benchmarks/positive_batches.py --data PATH/pusht_human.zarr        everything, 10 to 15 minutes a row
    uv run python benchmarks/positive_batches.py --summarize                         only the statistics again

Stop it anywhere; the same command goes on. It needs ``classact pretrain --positives graph``, see "measured_with" in the
results for a commit that has it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from classact.bench.table1 import Cell, Protocol
from classact.bench.table1.cells import choose_temperature, retrieval_settings
from classact.bench.table1.grid import run_config
from classact.bench.table1.methods import parse_method
from classact.bench.table1.records import best_of, episodes_of
from classact.bench.table1.trainings import Bench
from classact.evaluation import evaluate_run
from classact.machine import hardware, versions
from classact.pipeline import Pipeline, RunConfig
from classact.presets import get_preset
from classact.readers import first_episodes, read_demonstrations
from classact.runs import Run
from classact.statistics import difference_over_seeds, mcnemar_p, permutation_p, success_over_seeds
from classact.storage import read_json, read_jsonl, write_json
from common import RESULTS
from pusht_comparison import BOTH, QUEUE, WHITENING, protocol
from pusht_comparison import FILE as COMPARISON

FILE = RESULTS / "positive_batches.json"

COLUMNS = {"fixed": ("class", QUEUE), "rand": (f"class[{WHITENING}]", BOTH)}
"""Column -> methods of the comparison with plain batches, and with the queue."""

TRIED = (1, 3)
"""Positives drawn for each anchor that are tried: of 160 images 80 or 40 are anchors."""

ROWS = (("fixed", 0), ("rand", 0), ("fixed", 1), ("rand", 1))

PLAIN, WITH_QUEUE, AWARE = "plain batches", "queue of 1,280", "positive-aware batches"


NOTES = (
    "Rows with plain batches and with the queue are those of pusht_comparison.json: the same protocol, budget, seeds, "
    "versions of packages and evaluation episodes, measured earlier on another machine of this kind, not again here.",
    "The number of positives drawn for each anchor is the one with most successes on the 20 tuning episodes after "
    "50,000 images under fixed colours, ties by mean coverage; both columns take it.",
    "Intervals and p-values are about evaluation episodes, not about training seeds; p-values are not corrected for "
    "their number.",
)


def measure_similarity(data: Path, made: Protocol, episodes: int, folder: Path) -> None:
    """Threshold and graph of the demonstrations that are learned from, by the settings of the preset."""
    similarity = get_preset(made.preset).pretrain.similarity
    flags = {"episodes": episodes, "quantile": similarity.quantile, "estimate": similarity.estimate}
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    command = ["-m", "classact", "similarity", str(data), "--out", str(folder), "--graph", "--no-html", "--quiet"]
    subprocess.run([sys.executable, *command, *words], check=True)


def with_graph(config: RunConfig, similarity: Path, positives: int) -> RunConfig:
    """A run of the comparison whose batches are filled with positives."""
    pretrain = replace(config.pretrain, positives="graph", positives_per_anchor=positives)
    return replace(config, pretrain=pretrain, similarity=str(similarity))


def train(bench: Bench, run: Run, cell: Cell, similarity: Path, positives: int, images: int | None) -> dict[str, Any]:
    """Train, and choose how to retrieve; returns what was chosen."""
    steps = bench.steps[None]
    config = with_graph(run_config(cell, bench.protocol, steps, None, images), similarity, positives)
    config = replace(config, evaluation=replace(config.evaluation, workers=bench.workers))
    pipeline = Pipeline(run, config, quiet=bench.quiet)
    pipeline.policy()
    return choose_temperature(bench, run, cell, config)


def choose_positives(bench: Bench, similarity: Path, results: dict[str, Any], save: Any) -> int:
    """How many positives each anchor gets: most successes on the tuning episodes, ties by the mean coverage."""
    cell = Cell(parse_method("class"))
    for positives in TRIED:
        if positives not in [row["positives_per_anchor"] for row in results["tuning"]]:
            run = Run(bench.folder / "tuning" / f"positives{positives}")
            chosen = train(bench, run, cell, similarity, positives, bench.protocol.tuning_images)
            row = {"positives_per_anchor": positives, "images": bench.protocol.tuning_images}
            results["tuning"].append(row | {key: chosen[key] for key in ("tau", "k", "successes", "score")})
            save()
            print(results["tuning"][-1], flush=True)
    return int(results["tuning"][best_of(results["tuning"])]["positives_per_anchor"])


def measure(bench: Bench, similarity: Path, column: str, seed: int, positives: int) -> dict[str, Any]:
    """A row with positive-aware batches."""
    cell = Cell(parse_method(COLUMNS[column][0]), column=column, seed=seed)
    run = Run(bench.folder / "rows" / f"{column}-seed{seed}")
    chosen = train(bench, run, cell, similarity, positives, None)
    evaluate_run(
        run,
        overrides=retrieval_settings(chosen["tau"], chosen["k"]),
        name="rows",
        workers=bench.workers,
        quiet=bench.quiet,
    )
    log = list(read_jsonl(run.train_log))
    return {
        "column": column,
        "batches": AWARE,
        "seed": seed,
        "positives_per_anchor": positives,
        "positives_in_batch": round(float(np.mean([row["positives"] for row in log])), 2),
        "anchors_with_positives": round(float(np.mean([row["anchors"] for row in log])), 4),
        "images": log[-1]["steps"] * 160,
        "training_seconds": round(log[-1]["seconds"], 1),
        **{key: chosen[key] for key in ("tau", "k")},
        **episodes_of(run.evaluation("rows")),
    }


def compared(column: str) -> list[dict[str, Any]]:
    """Rows of the comparison in a column: plain batches and the queue, of all seeds that are there."""
    cells = read_json(COMPARISON)["cells"]
    out = []
    for batches, method in zip((PLAIN, WITH_QUEUE), COLUMNS[column], strict=True):
        for seed in range(10):
            name = Cell(parse_method(method), column=column, seed=seed).name
            cell = cells.get(name)
            if cell is not None and cell["status"] == "done":
                out.append({"column": column, "batches": batches, "cell": name} | cell)
    return out


def summarize(results: dict[str, Any]) -> dict[str, Any]:
    """Success of each kind of batches with its interval, and differences with theirs and exact p-values."""
    rng = np.random.default_rng(0)
    out: dict[str, Any] = {"success": [], "differences": [], "of_one_seed": []}
    for column in COLUMNS:
        rows = [*compared(column), *(row for row in results["rows"] if row["column"] == column)]
        for criterion in ("iou>0.90", "coverage>0.90"):
            of = {
                kind: {row["seed"]: np.array(row["success"][criterion]) for row in rows if row["batches"] == kind}
                for kind in (PLAIN, WITH_QUEUE, AWARE)
            }
            where = {"column": column, "criterion": criterion}
            stacked = {kind: np.stack(list(found.values())) for kind, found in of.items() if found}
            for kind, outcomes in stacked.items():
                found = success_over_seeds(outcomes, rng)
                each = {str(seed): int(one.sum()) for seed, one in of[kind].items()}
                out["success"].append(where | {"batches": kind, "successes_by_seed": each} | rounded(found))
            for other in (WITH_QUEUE, PLAIN):
                if AWARE not in stacked or other not in stacked:
                    continue
                pair = where | {"first": AWARE, "second": other}
                first, second = stacked[AWARE], stacked[other]
                p = {"p": permutation_p(first, second), "trainings": [len(first), len(second)]}
                out["differences"].append(pair | rounded(difference_over_seeds(first, second, rng)) | p)
                for seed in of[AWARE].keys() & of[other].keys():
                    a, b = of[AWARE][seed], of[other][seed]
                    won, lost = int((a > b).sum()), int((a < b).sum())
                    out["of_one_seed"].append(
                        pair | {"seed": seed, "won": won, "lost": lost, "mcnemar_p": mcnemar_p(won, lost)}
                    )
    return out


def rounded(estimate: Any) -> dict[str, float]:
    """An estimate with its 95 % interval."""
    return {key: round(getattr(estimate, key), 4) for key in ("value", "low", "high")}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, help="Diffusion Policy's human demonstrations (Zarr)")
    arguments.add_argument("--runs", type=Path, default=Path("runs/positive-batches"), help="folder of the run folders")
    arguments.add_argument("--json", type=Path, default=FILE)
    arguments.add_argument("--rows", type=int, default=len(ROWS), help="only the first so many")
    arguments.add_argument("--commit", default="", help="that it is measured with, for the results")
    arguments.add_argument("--summarize", action="store_true", help="train nothing")
    options = arguments.parse_args()
    empty: dict[str, Any] = {"measured_with": options.commit, "settings": {}, "tuning": [], "rows": []}
    results = read_json(options.json) if options.json.exists() else empty

    def save() -> None:
        write_json(options.json, results | {"notes": list(NOTES), "summary": summarize(results)})

    if not options.summarize:
        if options.data is None:
            arguments.error("--data is needed, unless --summarize is given")
        made = replace(protocol(options.data), probe=False)
        data = read_demonstrations(made.data)
        episodes = len(data) - made.heldout
        similarity = options.runs / "similarity"
        measure_similarity(options.data, made, episodes, similarity)
        steps = first_episodes(data, episodes).num_steps
        bench = Bench(options.runs, made, {None: steps}, options.runs, device="cpu", workers=1, quiet=True)
        settings = made.to_json() | {"data": data.name, "demonstrations": episodes, "tried_positives": list(TRIED)}
        results |= {"settings": settings, "hardware": hardware(), "versions": versions()}
        positives = choose_positives(bench, similarity, results, save)
        for column, seed in ROWS[: options.rows]:
            if (column, seed) not in [(row["column"], row["seed"]) for row in results["rows"]]:
                results["rows"].append(measure(bench, similarity, column, seed, positives))
                save()
                row = results["rows"][-1]
                print(column, seed, {key: sum(found) for key, found in row["success"].items()}, flush=True)
    save()


if __name__ == "__main__":
    main()
