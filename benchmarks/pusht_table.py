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

from classact.run.config import RunConfig
from classact.run.folder import Run
from classact.run.presets import from_preset
from classact.run.pretrain import Pipeline
from classact.utils.machine import hardware, versions
from classact.utils.storage import write_json
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
        epochs, color, augmentation, pairs: changes to the preset.
    """

    name: str
    data: str
    preset: str
    shift: str = "fixed-color"
    seed: int = 0
    baselines: bool = False
    epochs: float | None = None
    color: str | None = None
    augmentation: str | None = None
    pairs: str | None = None


CELLS = [
    Cell("expert-fixed", "expert", "pusht-demo", baselines=True),
    *(Cell(f"human-fixed-seed{s}", "human", "pusht-cpu", seed=s, baselines=s == 0) for s in range(3)),
    *(Cell(f"human-rand-{r}", "human", f"pusht-rand-{r}", shift="rand-color") for r in ("whiten", "paper", "hsv")),
    # Longer demonstrations: half the epochs are about as many images.
    *(
        Cell(f"expert-rand-{r}", "expert", f"pusht-rand-{r}", shift="rand-color", epochs=6)
        for r in ("whiten", "paper", "hsv")
    ),
]

EXPLORATION = [
    Cell(f"explore-{name}", "human", "pusht-rand-paper", "rand-color", epochs=8, **changes)
    for name, changes in {
        "hsv": {"augmentation": "hsv"},
        "affine-cross": {"augmentation": "affine", "pairs": "cross-episode"},
        "whiten-rotate": {"color": "whiten", "augmentation": "rotate"},
        "whiten-rotate-cross": {"color": "whiten", "augmentation": "rotate", "pairs": "cross-episode"},
    }.items()
]
"""What was tried for Rand-Color, briefly trained (docs/rand-color.md)."""


def settings(cell: Cell, human: Path) -> RunConfig:
    """The cell's run."""
    data = "pusht-expert" if cell.data == "expert" else str(human)
    config = from_preset(cell.preset, shift=cell.shift, data=data, baselines=cell.baselines)
    p = config.pretrain
    pretrain = replace(
        p,
        seed=cell.seed,
        epochs=cell.epochs or p.epochs,
        encoder=replace(p.encoder, color=cell.color or p.encoder.color),
        augment=replace(p.augment, color=cell.augmentation or p.augment.color),
        objective=replace(p.objective, pairs=cell.pairs or p.objective.pairs),
    )
    return replace(config, pretrain=pretrain)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--human", type=Path, help="Diffusion Policy's human demonstrations (Zarr)")
    arguments.add_argument("--runs", type=Path, default=Path("runs/pusht"), help="folder of the run folders")
    arguments.add_argument("--json", type=Path, default=RESULTS / "pusht.json")
    arguments.add_argument("--only", nargs="*", help="names of cells")
    arguments.add_argument("--explore", action="store_true", help="the Rand-Color exploration instead")
    arguments.add_argument("--list", action="store_true")
    options = arguments.parse_args()
    cells = EXPLORATION if options.explore else CELLS
    if options.explore and options.json == RESULTS / "pusht.json":
        options.json = RESULTS / "rand_color_exploration.json"
    if options.list:
        print("\n".join(cell.name for cell in cells))
        return
    results: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    for cell in cells:
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
        keys = ("encoder", "shift", "criterion", "episodes", "successes", "success", "low", "high")
        results[cell.name] = {
            "data": card["data"]["name"],
            "preset": cell.preset,
            "shift": cell.shift,
            "seed": cell.seed,
            "epochs": pipeline.config.pretrain.epochs,
            "images": int(pipeline.config.pretrain.epochs * card["data"]["steps"]),
            "rows": [
                {key: getattr(row, key) for key in keys} | {"mean_max_coverage": row.metrics["coverage"]}
                for row in run.read_summary()
            ],
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
