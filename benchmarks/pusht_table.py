"""The Push-T results of the README: train and roll out each cell of a grid, one run folder per cell.

Kill it anywhere and start it again: finished cells are kept, the cell under way continues from its checkpoint.

    uv run python benchmarks/pusht_table.py --human PATH/pusht_human.zarr            everything (about two hours)
    uv run python benchmarks/pusht_table.py --human PATH --only human-fixed-seed0    one cell
    uv run python benchmarks/pusht_table.py --list                                   the cells
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from classact.pipeline import Pipeline, RunConfig, from_preset, hardware, versions
from classact.runs import Run
from classact.storage import write_json
from common import RESULTS


@dataclass(frozen=True)
class Cell:
    """One training with its rollouts.

    Attributes:
        name: also the run's folder.
        data: "expert" or "human".
        preset: named settings.
        shift: visual shift.
        seed: of the training.
        baselines: untrained encoder and true state, too.
    """

    name: str
    data: str
    preset: str
    shift: str = "fixed-color"
    seed: int = 0
    baselines: bool = False


CELLS = [
    Cell("expert-fixed", "expert", "pusht-demo", baselines=True),
    *(Cell(f"human-fixed-seed{s}", "human", "pusht-cpu", seed=s, baselines=s == 0) for s in range(3)),
    *(
        Cell(f"{data}-rand-{label}", data, f"pusht-rand-{label}", shift="rand-color")
        for label in ("whiten", "paper", "hsv")
        for data in ("human", "expert")
    ),
]


def settings(cell: Cell, human: Path) -> RunConfig:
    """The cell's run."""
    data = "pusht-expert" if cell.data == "expert" else str(human)
    config = from_preset(cell.preset, shift=cell.shift, data=data, baselines=cell.baselines)
    return replace(config, pretrain=replace(config.pretrain, seed=cell.seed))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--human", type=Path, help="Diffusion Policy's human demonstrations (Zarr)")
    arguments.add_argument("--runs", type=Path, default=Path("runs/pusht"), help="folder of the run folders")
    arguments.add_argument("--json", type=Path, default=RESULTS / "pusht.json")
    arguments.add_argument("--only", nargs="*", help="names of cells")
    arguments.add_argument("--list", action="store_true")
    options = arguments.parse_args()
    if options.list:
        print("\n".join(cell.name for cell in CELLS))
        return
    results: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    for cell in CELLS:
        if cell.name in results or (options.only and cell.name not in options.only):
            continue
        if cell.data == "human" and options.human is None:
            print(f"{cell.name}: left out, no --human given")
            continue
        print(f"{cell.name} ...", flush=True)
        begin = time.perf_counter()
        run = Run(options.runs / cell.name)
        pipeline = Pipeline(run, settings(cell, options.human), quiet=False)
        pipeline.evaluate()
        card = run.read_config()
        keys = ("encoder", "shift", "criterion", "episodes", "successes", "success", "low", "high", "mean_max_coverage")
        results[cell.name] = {
            "data": card["data"]["name"],
            "preset": cell.preset,
            "shift": cell.shift,
            "seed": cell.seed,
            "epochs": pipeline.config.pretrain.epochs,
            "images": int(pipeline.config.pretrain.epochs * card["data"]["steps"]),
            "rows": [{key: row[key] for key in keys} for row in run.read_summary()],
            "timings": card["timings"],
            "seconds": round(time.perf_counter() - begin, 1),
            "hardware": hardware(),
            "versions": versions(),
        }
        write_json(options.json, results)
        for row in results[cell.name]["rows"]:
            print(f"  {row['encoder']:<10} {row['criterion']:<14} {row['successes']}/{row['episodes']}", flush=True)


if __name__ == "__main__":
    main()
