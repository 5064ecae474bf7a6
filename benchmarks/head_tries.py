"""Why Diffusion Policy lags behind on frozen features: loss and length of training, one by one.

On the encoder that ``pusht_policies.py`` learned with CLASS under fixed colours; every head sees the same features and
as many updates, but where it says otherwise, and acts by the same T_a and speed from the 200 initial states that
settings are chosen on (no table uses them). Kill it anywhere and start it again.

    uv run python benchmarks/head_tries.py --data pusht_human.zarr --runs runs/pusht-policies
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from classact.run.finetune import HeadPipeline
from classact.run.presets import configure_head
from classact.utils.machine import hardware
from classact.utils.storage import slug
from common import RESULTS, command, keep, kept
from pusht_policies import CRITERION, Row, _head, rate, rollouts, trained
from pusht_policies import Flags as Policies

TRIES: dict[str, tuple[str, dict[str, Any], float]] = {
    "mlp, L1": ("mlp", {}, 1),
    "mlp, L2": ("mlp", {"loss": "l2"}, 1),
    "flow, L1": ("flow", {}, 1),
    "flow, L2": ("flow", {"loss": "l2"}, 1),
    "diffusion of chunks": ("diffusion", {}, 1),
    "diffusion of chunks, three times as long": ("diffusion", {}, 3),
}
"""Name -> head, its settings, times as many updates as the MLP head has."""

PLAY = {"chunk_length": 4, "speed": 2}
"""What was best for MLP and flow."""


@dataclass
class Flags:
    """Heads on one encoder.

    Attributes:
        data: the human demonstrations.
        runs: folder of the runs of pusht_policies.py.
        json: where the results go.
        tries: which.
    """

    data: str
    runs: Path = Path("runs/pusht-policies")
    json: Path = RESULTS / "head_tries.json"
    tries: tuple[str, ...] = tuple(TRIES)


def main(flags: Flags) -> None:
    """Train and roll out what the results file does not hold."""
    row = Row("class", "", "fixed", 0)
    policies = Policies(flags.data, flags.runs)
    pipeline = trained(policies, row)
    for name in flags.tries:
        if name in kept(flags.json, "rows"):
            continue
        kind, settings, longer = TRIES[name]
        config, least = configure_head(pipeline.config, kind), configure_head(pipeline.config, "mlp").finetune.epochs
        finetune = replace(config.finetune, evaluations=0, head=replace(config.finetune.head, **settings))
        finetune = replace(finetune, epochs=longer * least)
        plain = finetune == replace(config.finetune, evaluations=0)
        head = HeadPipeline(
            pipeline.run, replace(config, finetune=finetune), name=f"{kind}-run" if plain else slug(f"try {name}")
        )
        head.train()
        policy = _head(head.folder.policy, pipeline.policy, PLAY)
        results = rollouts(policies, replace(row, policy=name), policy, pipeline.config.evaluation.shift, tuning=True)
        found = {criterion: rate(results, criterion) for criterion in results[0].success}
        keep(flags.json, "rows", name, {"episodes": len(results), **found}, hardware=hardware(), play=PLAY)
        print(f"{name}: {found[CRITERION]:.3f}", flush=True)


if __name__ == "__main__":
    raise SystemExit(command(Flags, main))
