"""Heads beside retrieval on Push-T: pre-train, then fine-tune MLP and Diffusion Policy, evaluated at ten points each.

Kill it anywhere and start it again: finished heads are kept, the one under way continues from its checkpoint. Run it
alone on the machine: its times are kept as well.

    uv run python benchmarks/pusht_heads.py              everything (about an hour and a half)
    uv run python benchmarks/pusht_heads.py --only mlp   one head, and what it needs
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from classact.pages import build_report
from classact.run.config import HeadRunConfig
from classact.run.finetune import HeadPipeline
from classact.run.folder import Run
from classact.run.presets import HEAD_PRESETS, from_preset
from classact.run.pretrain import Pipeline
from classact.utils.codec import to_json
from classact.utils.machine import hardware, versions
from classact.utils.storage import write_json
from common import RESULTS

HEADS = {
    "mlp": ("mlp", "run", False),
    "diffusion": ("diffusion", "run", False),
    "mlp-frozen": ("mlp", "run", True),
    "diffusion-frozen": ("diffusion", "run", True),
    "mlp-scratch": ("mlp", "scratch", False),
    "diffusion-scratch": ("diffusion", "scratch", False),
}
"""Name -> head, where the encoder starts, frozen or not."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--run", type=Path, default=Path("runs/pusht-heads"), help="the run's folder")
    arguments.add_argument("--data", default="pusht-expert", help="a path, or pusht-expert")
    arguments.add_argument("--json", type=Path, default=RESULTS / "pusht_heads.json")
    arguments.add_argument("--only", nargs="*", choices=HEADS, default=list(HEADS), help="names of heads")
    options = arguments.parse_args()
    made = from_preset("pusht-demo", data=options.data)
    made = replace(made, pretrain=replace(made.pretrain, evaluations=10), heldout=30)
    run = Run(options.run)
    pipeline = Pipeline(run, made)
    pipeline.evaluate()
    pipeline.analyze()
    keep(run, options.json)
    for name in options.only:
        head, start, frozen = HEADS[name]
        config = HEAD_PRESETS["head-cpu"].config(
            head, encoder="scratch" if start == "scratch" else "class", frozen=frozen
        )
        HeadPipeline(run, HeadRunConfig(config, start), name=name).evaluate()
        keep(run, options.json)
    print(f"Report: {build_report(run.root)}")


def keep(run: Run, path: Path) -> None:
    """Write what is finished: rows of the table, intermediate evaluations, times."""
    card = run.read_config()
    heads: dict[str, Any] = {}
    for folder in sorted(run.heads.glob("*/policy")):
        found, settings = Run(folder.parent).read_config(), run.head_settings(folder.parent.name)
        log = Run(folder.parent).read_train_log()
        heads[folder.parent.name] = {
            "labels": {"head": settings.finetune.head.name, **settings.labels},
            "timings": found["timings"],
            "steps": log[-1]["steps"],
            "settings": found["settings"]["finetune"],
        }
    result = {
        "data": {key: card["data"][key] for key in ("name", "episodes", "steps", "heldout", "fingerprint")},
        "timings": card["timings"],
        "rows": to_json(run.read_summary()),
        "intermediate": [
            {key: getattr(row, key) for key in ("stage", "step", "steps", "criterion", "episodes", "successes")}
            for row in run.read_intermediate()
        ],
        "heads": heads,
        "hardware": hardware(),
        "versions": versions(),
    }
    write_json(path, result)
    print(f"written to {path}: {json.dumps(list(heads))}")


if __name__ == "__main__":
    main()
