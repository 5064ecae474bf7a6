"""Policies on CLASS on Push-T by three criteria: retrieval and heads, fixed and random colours, 500 episodes each.

Kill it anywhere and start it again: finished rows are kept, the one under way continues from its checkpoint. Run it
alone on the machine: its times are kept as well. Settings were chosen on episodes from seed 300,000 on; those of the
table begin at 400,000.

    uv run python benchmarks/pusht_policies.py --data pusht_human.zarr                  everything
    uv run python benchmarks/pusht_policies.py --data pusht_human.zarr --columns fixed --heads mlp
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from classact.data.types import RolloutResult
from classact.run.finetune import HeadPipeline
from classact.run.folder import Run
from classact.run.presets import configure, configure_head
from classact.run.pretrain import Pipeline
from classact.utils.machine import hardware, versions
from classact.utils.storage import read_json, write_json
from common import RESULTS, command

COLUMNS = {"fixed": ("pusht-plus", None), "rand": ("pusht-rand-plus", "rand-color")}
"""Column -> preset, shift."""

FIRST_SEED = 400_000


@dataclass
class Flags:
    """Policies on CLASS on Push-T by three criteria.

    Attributes:
        data: the human demonstrations.
        runs: folder of the trainings.
        json: where the results go.
        columns: of the table.
        seeds: of pre-training and heads.
        heads: beside retrieval.
        scratch: the same heads from initial weights, too.
        episodes: of each evaluation.
    """

    data: str
    runs: Path = Path("runs/pusht-policies")
    json: Path = RESULTS / "pusht_policies.json"
    columns: tuple[Literal["fixed", "rand"], ...] = ("fixed", "rand")
    seeds: tuple[int, ...] = (0, 1, 2)
    heads: tuple[str, ...] = ("mlp", "flow", "diffusion")
    scratch: bool = False
    episodes: int = 500


def main(flags: Flags) -> None:
    """Train and evaluate what the results file does not hold."""
    for seed in flags.seeds:
        for column in flags.columns:
            preset, shift = COLUMNS[column]
            made = configure(flags.data, preset=preset, shift=shift, baselines=False)
            evaluation = replace(made.evaluation, episodes=flags.episodes, first_seed=FIRST_SEED)
            made = replace(made, pretrain=replace(made.pretrain, seed=seed), evaluation=evaluation)
            run = Run(flags.runs / f"{column}-seed{seed}")
            rows = ["retrieval", *flags.heads, *(f"{head}-scratch" for head in flags.heads if flags.scratch)]
            for name in rows:
                key = f"{name}/{column}/seed{seed}"
                if key in kept(flags.json):
                    continue
                if name == "retrieval":
                    pipeline = Pipeline(run, made)
                    results, timings = pipeline.evaluate()[pipeline.label], pipeline.run.info().timings
                else:
                    head, _, start = name.partition("-")
                    config = configure_head(made, head, start=start or "run")
                    config = replace(config, finetune=replace(config.finetune, seed=seed, evaluations=0))
                    pipeline_of_head = HeadPipeline(run, replace(config, evaluation=evaluation), name=name)
                    results, timings = pipeline_of_head.evaluate(), pipeline_of_head.folder.info().timings
                keep(flags.json, key, results, timings)


def kept(path: Path) -> dict[str, Any]:
    """Rows that were measured."""
    return dict(read_json(path)["rows"]) if path.exists() else {}


def keep(path: Path, key: str, results: list[RolloutResult], timings: Any) -> None:
    """Add a row: outcomes of each episode by each criterion, 0 or 1, in the order of their seeds."""
    row = {
        "first_seed": results[0].seed,
        "success": {name: [int(result.success[name]) for result in results] for name in results[0].success},
        "max_coverage": [round(result.maxima["coverage"], 4) for result in results],
        "seconds": {name: round(value, 1) for name, value in timings.items()},
    }
    write_json(path, {"rows": kept(path) | {key: row}, "hardware": hardware(), "versions": versions()})
    rates = ", ".join(f"{name} {sum(row['success'][name]) / len(results):.3f}" for name in row["success"])
    print(f"{key}: {rates}", flush=True)


if __name__ == "__main__":
    raise SystemExit(command(Flags, main))
