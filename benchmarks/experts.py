"""Demonstrations of every task from its scripted expert: how often it succeeds, and what 50 of them take.

Writes the demonstrations into a folder and adds to the results file what can be measured in this environment (LIBERO
needs one of its own). Start it again after a kill: finished tasks are kept, attempts of the task under way, too (its
time is then left out).

    uv run python benchmarks/experts.py
    UV_PROJECT_ENVIRONMENT=.venv-libero uv run --extra libero python benchmarks/experts.py libero-object
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from classact.data.readers import generated
from classact.errors import ClassactError
from classact.sims import make_simulator
from classact.sims.experts.generate import generate_demonstrations
from classact.utils.machine import cores, hardware
from classact.utils.progress import progress_bar
from classact.utils.statistics import wilson_interval
from common import parser, save

TASKS = ("aloha-transfer", "square", "three-stack-d0", "three-stack-d1", "libero-object")
SEEDS = 50
"""Starts that success is counted over, of each task of a simulator."""


def counted(kept: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Successes among the first SEEDS starts, with an interval, from the seeds of all that were kept."""
    successes = int((kept < SEEDS).sum())
    low, high = wilson_interval(successes, SEEDS)
    return {"starts": SEEDS, "successes": successes, "success": successes / SEEDS, "low": low, "high": high}


def measure(name: str, folder: Path, workers: int) -> dict[str, Any]:
    """Generate SEEDS demonstrations of each task, unless they are there, and count."""
    out = folder / f"{name}.npz"
    before = out.exists() or out.with_name(out.name + ".work").exists()
    begin = time.perf_counter()
    if not out.exists():
        generate_demonstrations(name, episodes=SEEDS, out=out, workers=workers, stage=progress_bar)
    seconds = None if before else time.perf_counter() - begin
    data, header = generated.read(out), generated.read_header(out)
    sim = make_simulator(name)
    spec = sim.spec
    sim.close()
    seeds = np.asarray(header["seeds"])
    rows = []
    for task in range(spec.tasks):
        own = seeds % spec.tasks == task
        row = counted(seeds[own] // spec.tasks)
        row |= {"mean_steps": float(data.lengths[own].mean()), "max_steps": int(data.lengths[own].max())}
        if header.get("instructions"):
            row["instruction"] = np.asarray(header["instructions"])[own][0]
        rows.append(row)
    return {
        "tasks": rows,
        "demonstrations": len(data),
        "attempts": header["attempts"],
        "not_kept": header["not_kept"],
        "packages": {name: data.versions[name] for name in spec.packages},
        "made": None if seconds is None else {"seconds": seconds, "workers": workers, "hardware": hardware()},
    }


def main() -> None:
    arguments = parser(__doc__ or "", "experts")
    arguments.add_argument("tasks", nargs="*", default=list(TASKS))
    arguments.add_argument("--folder", type=Path, default=Path("runs/demonstrations"))
    arguments.add_argument("--workers", type=int, default=cores())
    options = arguments.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    result = json.loads(options.json.read_text())["simulators"] if options.json.exists() else {}
    for name in options.tasks:
        try:
            found = measure(name, options.folder, options.workers)
        except ClassactError as problem:
            print(f"{name}: not measured: {problem}")
            continue
        if found["made"] is None and name in result:
            found["made"] = result[name]["made"]  # how long it took when they were made
        result[name] = found
        save(options.json, {"simulators": result})


if __name__ == "__main__":
    main()
