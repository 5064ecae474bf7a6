"""Table 1 on the human Push-T demonstrations, on two CPU cores: stage by stage, each of cells of benchmarks/table1.

Kill it anywhere and start it again: finished cells are kept, the training under way goes on. One stage after the other,
or named ones; several processes may share the folder, and each training is computed by one of them.

    uv run python benchmarks/pusht_comparison.py --data PATH/pusht_human.zarr              everything (over ten hours)
    uv run python benchmarks/pusht_comparison.py --data PATH --stages fixed rand           two stages
    uv run python benchmarks/pusht_comparison.py --list                                    stages and their cells
    uv run python benchmarks/pusht_comparison.py --page                                    only draw what is there
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from classact.data.readers import first_episodes, read_demonstrations
from classact.run.evaluate import evaluate_run
from classact.utils.locks import lock_of, locked
from classact.utils.storage import read_json, write_json, write_text
from common import RESULTS
from table1 import METHODS, Cell, Protocol, plan, run_table
from table1.cells import CHOSEN, head_rolled_out, retrieval_settings
from table1.grid import head_config
from table1.records import episodes_of
from table1.report import build_comparison, comparison_markdown, read_results
from table1.trainings import Bench, head_pipeline

FILE = RESULTS / "pusht_comparison.json"
TRIES = RESULTS / "pusht_tries.json"

RIVAL = "byol"
"""The strongest baseline at the plain budget (docs/comparison.md): it gets the larger budget and the heads, too."""

REPRESENTATIONS = tuple(name for name in METHODS if name != "equivar")

BASELINES = ("byol", "tcn", "time-contrastive", "dynamo", "inverse-dynamics")
"""That learn, the strongest first: trained with another seed and tried on the way, too."""

IDEAS = (
    "class[views=2]",
    "class[queue=1280]",
    "class[learned_temperature=true]",
    "class[batch_size=480]",
    "class+inverse-dynamics",
)
"""Extensions of CLASS that train differently, at the same budget."""

WHITENING = "color=whiten color_augmentation=rotate"
"""Colour invariance built into the encoder's input, where colours change; baselines are tried with it, too."""

QUEUE = "class[queue=1280]"
"""The idea that helped most: it is tried with another seed and size and under random colours, too."""

BOTH = f"class[queue=1280 {WHITENING}]"

ABLATIONS = (
    "class[weighting=hard]",
    "class[metric=l2]",
    "class[horizon=1]",
    "class[horizon=4]",
    "class[horizon=32]",
    "class[quantile=0.005]",
    "class[quantile=0.05]",
    "class[crop=batch]",
    "class[cost=euclidean]",
)
"""Figure 4, the crop of the released code, and the DTW cost that the paper writes."""

WAYS: dict[str, dict[str, Any]] = {
    "all timesteps may be retrieved (the paper)": {"overrides": {"min_actions": 1}},
    "k = 64 (the paper)": {"overrides": {"k": 64}},
    "proprioception ignored": {"overrides": {"proprioception_weight": 0.0}},
    "proprioception weighted 3": {"overrides": {"proprioception_weight": 3.0}},
    "proprioception weighted 10": {"overrides": {"proprioception_weight": 10.0}},
    "proprioception weighted 30": {"overrides": {"proprioception_weight": 30.0}},
    "8 of 16 actions executed": {"execute": 8},
}
"""Ideas that leave training as it is: other ways to retrieve and act with the encoder of a cell."""

SHARED: dict[str, dict[str, Any]] = {
    "the nearest alone": {"overrides": {"k": 1}},
    "k = 32, τ = 0.004 (CLASS here)": {"overrides": {"k": 32, "temperature": 0.004}},
    "k = 64, τ = 0.001 (the paper)": {"overrides": {"k": 64, "temperature": 0.001, "min_actions": 1}},
}
"""One retrieval for all methods instead of the one chosen for each: why baselines reach more here than in the paper."""

HELPED = "proprioception weighted 10"
"""The way that helped CLASS under random colours most: with it, too, baselines are compared."""

LONGER = 600_000
"""Images that a head's training sees on a representation, where it is to see as many as one from random weights: says
whether heads of the table are short of training or of representation."""


CURVES: dict[str, dict[str, Any]] = {"curves": {"evaluations": 10, "evaluation_starts": 50}}
"""Rollouts during the trainings of a stage (appendix G). Others have none: they take longer than the last ones."""


def stages() -> dict[str, list[Cell]]:
    """Name -> cells, the most telling first."""
    return {
        "fixed": plan(REPRESENTATIONS, columns=("fixed",)),
        "rand": plan(REPRESENTATIONS, columns=("rand",)),
        "rand-hsv": plan(REPRESENTATIONS, columns=("rand",), augmentations=("hsv",)),
        "fixed-hsv": plan(REPRESENTATIONS, columns=("fixed",), augmentations=("hsv",)),
        "seeds": plan(("class",), augmentations=("none", "hsv"), seeds=[1]),
        "curves": [*plan(("class",), columns=("fixed",), seeds=[2]), *plan(BASELINES, columns=("fixed",), seeds=[1])],
        "ideas": plan(IDEAS, columns=("fixed",)),
        "queue": [
            *plan((QUEUE,), columns=("rand",), augmentations=("hsv",)),
            *plan((BOTH,), columns=("rand",)),
            *plan(("class[queue=5120]",), columns=("fixed",)),
            *plan((QUEUE,), columns=("fixed",), seeds=[1]),
        ],
        "whitened": plan(
            ["random[color=whiten]", *(f"{name}[{WHITENING}]" for name in ("class", RIVAL, "tcn"))], columns=("rand",)
        ),
        "heads": plan(("class", "random", RIVAL), heads=("mlp", "mlp-rep", "dp", "dp-rep")),
        "budget": plan(("class", RIVAL), factor=4.0),
        "scaling": plan(("class",), columns=("fixed",), demonstrations=[20, 50, 100]),
        "ablations": plan(ABLATIONS, columns=("fixed",)),
    }


def retrievals() -> list[tuple[list[Cell], dict[str, dict[str, Any]]]]:
    """Cells, and the other ways to retrieve that are tried with them once they are trained."""
    of, of_class = stages(), plan(("class",), augmentations=("none", "hsv"))
    improved = [*plan((QUEUE,), columns=("fixed",)), *of["queue"], *of["whitened"]]
    return [(of["fixed"], SHARED), (of_class, WAYS), ([*of["rand-hsv"], *improved], {HELPED: WAYS[HELPED]})]


def protocol(data: Path) -> Protocol:
    """What all cells share: half a million images, three rates for each baseline, 400 unseen initial states."""
    return Protocol("pusht", str(data), "pusht-cpu", images=500_000, tuning_images=50_000, starts=400)


def tried(name: str, way: str, starts: int) -> bool:
    """Whether a cell was tried in another way, on so many starts."""
    results = read_json(TRIES) if TRIES.exists() else {}
    found = results.get(name, {}).get(way)
    return found is not None and len(found["starts"]) >= starts


def keep(name: str, way: str, found: dict[str, Any]) -> None:
    """Add what another way gave to what the file holds then: several processes may."""
    with locked(lock_of(TRIES)):
        results: dict[str, Any] = read_json(TRIES) if TRIES.exists() else {}
        results.setdefault(name, {})[way] = found
        write_json(TRIES, results)
    print(f"{name}: {way}: {sum(next(iter(found['success'].values())))}/{len(found['starts'])}", flush=True)


def try_retrievals(folder: Path, made: Protocol, workers: int) -> None:
    """Roll out finished cells with other ways to retrieve."""
    for cells, ways in retrievals():
        for cell in cells:
            run = Bench(folder, made, {}, folder).run(cell)
            if not (run.root / CHOSEN).exists():
                continue
            chosen = read_json(run.root / CHOSEN)
            settings = retrieval_settings(chosen["tau"], chosen["k"])
            for way, change in ways.items():
                if tried(cell.name, way, made.starts):
                    continue
                evaluate_run(
                    run,
                    episodes=made.starts,
                    first_seed=made.first_seed,
                    execute=change.get("execute"),
                    name="try",
                    workers=workers,
                    quiet=True,
                    **settings | change.get("overrides", {}),
                )
                keep(cell.name, way, episodes_of(run.evaluation("try")))


def train_longer(folder: Path, made: Protocol, workers: int) -> None:
    """Train heads of finished representations on :data:`LONGER` images, and roll them out."""
    data = read_demonstrations(made.data)
    steps = first_episodes(data, len(data) - made.heldout).num_steps
    bench = Bench(folder, made, {None: steps}, folder, workers=workers, quiet=True)
    way = f"{LONGER:,} images of fine-tuning"
    for cell in plan(("class",), heads=("mlp",), columns=("fixed",)):
        run = bench.run(cell)
        with locked(lock_of(run.root)):
            if run.policy.is_dir() and not tried(cell.name, way, made.starts):
                config = head_config(cell, made, steps, images=LONGER)
                head = head_pipeline(bench, run, cell, *config, name=f"{cell.head}-longer")
                keep(cell.name, way, head_rolled_out(head))


LAST = {"retrieval": try_retrievals, "longer": train_longer}
"""Stages that try something else with finished representations."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, help="Diffusion Policy's human demonstrations (Zarr)")
    arguments.add_argument("--runs", type=Path, default=Path("runs/pusht-comparison"), help="folder of the run folders")
    arguments.add_argument("--json", type=Path, default=FILE)
    arguments.add_argument("--stages", nargs="*", choices=[*stages(), *LAST], help="default: all")
    arguments.add_argument("--methods", nargs="*", help="only cells of these methods")
    arguments.add_argument("--workers", type=int, default=0, help="simulator processes; 0: one per core")
    arguments.add_argument("--list", action="store_true")
    arguments.add_argument("--page", action="store_true", help="compute nothing")
    options = arguments.parse_args()
    chosen = options.stages or [*stages(), *LAST]
    if options.list:
        for name, cells in stages().items():
            print(f"{name}: {', '.join(cell.name for cell in cells)}")
        return
    if not options.page:
        if options.data is None:
            arguments.error("--data is needed, unless --list or --page is given")
        made = protocol(options.data)
        for stage in chosen:
            if stage in LAST:
                LAST[stage](options.runs, made, options.workers)
                continue
            cells = [cell for cell in stages()[stage] if not options.methods or cell.method.written in options.methods]
            run_table(
                options.runs,
                cells,
                replace(made, **CURVES.get(stage, {})),
                results_path=options.json,
                workers=options.workers,
                quiet=True,
            )
    write_text(options.runs / "table1.md", comparison_markdown(read_results(options.json)))
    print(f"Page: {build_comparison(options.json, options.runs / 'table1.html')}")


if __name__ == "__main__":
    main()
