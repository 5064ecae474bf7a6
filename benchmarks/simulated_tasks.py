"""Retrieval on the simulated tasks after a small pre-training on two CPU cores: fixed and shifted views.

Each cell is a run folder: the learned encoder beside an untrained one and the true state as latent. Kill it anywhere
and start it again: finished cells are kept, the cell under way continues from its checkpoint.

    uv run python benchmarks/simulated_tasks.py            all cells
    uv run python benchmarks/simulated_tasks.py --list     their names
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from classact.pages import build_report
from classact.run.config import RunConfig
from classact.run.folder import Run
from classact.run.presets import from_preset
from classact.run.pretrain import Pipeline
from classact.sims.experts.generate import generate_demonstrations
from classact.utils.codec import to_json
from classact.utils.machine import hardware, versions
from classact.utils.progress import progress_bar
from classact.utils.storage import write_json
from common import RESULTS


@dataclass(frozen=True)
class Cell:
    """One training with its rollouts.

    Attributes:
        simulator, shift, preset: see :func:`classact.run.presets.from_preset`.
        demonstrations: of the task's expert.
        starts: unseen ones that policies are evaluated on.
    """

    simulator: str
    shift: str
    preset: str
    demonstrations: int
    starts: int = 50

    @property
    def name(self) -> str:
        """Also the run's folder."""
        return f"{self.simulator}-{self.shift}"


CELLS = (
    Cell("aloha-transfer", "fixed", "aloha-transfer-cpu", 100),
    Cell("aloha-transfer", "rotation", "aloha-transfer-cpu", 100),
    Cell("three-stack-d0", "fixed", "three-stack-cpu", 50, starts=25),
    Cell("three-stack-d0", "dynamic", "three-stack-cpu", 50, starts=25),
)


def settings(cell: Cell, data: Path) -> RunConfig:
    """The cell's run."""
    config = from_preset(cell.preset, shift=cell.shift, simulator=cell.simulator, data=str(data), baselines=True)
    return replace(config, evaluation=replace(config.evaluation, episodes=cell.starts))


def demonstrations(cell: Cell, folder: Path) -> Path:
    """The cell's demonstrations, generated where they are not there yet."""
    out = folder / f"{cell.simulator}-{cell.demonstrations}.npz"
    if not out.exists():
        generate_demonstrations(cell.simulator, episodes=cell.demonstrations, out=out, workers=2, stage=progress_bar)
    return out


def run(cell: Cell, folder: Path, data: Path) -> dict[str, Any]:
    """Train, roll out, write the report; the rows of the results file."""
    pipeline = Pipeline(Run(folder / cell.name), settings(cell, data))
    pipeline.evaluate()
    pipeline.analyze()
    build_report(pipeline.run.root)
    card = pipeline.run.read_config()
    pretrain = pipeline.config.pretrain
    return {
        "cell": vars(cell),
        "preset": cell.preset,
        "images_seen": round(card["data"]["steps"] * pretrain.epochs),
        "steps": card["data"]["steps"],
        "timings": card["timings"],
        "rows": to_json(pipeline.run.read_summary()),
        "hardware": hardware(),
        "versions": versions(),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--only", nargs="*", choices=[cell.name for cell in CELLS], default=[cell.name for cell in CELLS]
    )
    arguments.add_argument("--folder", type=Path, default=Path("runs/simulated"))
    arguments.add_argument("--demonstrations", type=Path, default=Path("runs/demonstrations"))
    arguments.add_argument("--json", type=Path, default=RESULTS / "simulated_tasks.json")
    arguments.add_argument("--again", action="store_true", help="measure finished cells again")
    arguments.add_argument("--list", action="store_true")
    options = arguments.parse_args()
    if options.list:
        print("\n".join(cell.name for cell in CELLS))
        return
    options.demonstrations.mkdir(parents=True, exist_ok=True)
    cells = json.loads(options.json.read_text())["cells"] if options.json.exists() else {}
    for cell in CELLS:
        if cell.name not in options.only or (cell.name in cells and not options.again):
            continue
        data = demonstrations(cell, options.demonstrations)
        cells[cell.name] = run(cell, options.folder, data)
        write_json(options.json, {"cells": cells})
        print(f"{cell.name}: written to {options.json}")


if __name__ == "__main__":
    main()
