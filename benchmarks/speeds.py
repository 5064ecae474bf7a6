"""What playing demonstrations faster gains: success of retrieval on Push-T by control steps, at several speeds.

Acts with the representation that ``pusht_policies.py`` trained, by the preset's settings but for speed and T_a (12
demonstrated steps), for twice the usual time limit, from 200 initial states (from 700,000).

    uv run python benchmarks/speeds.py --runs runs/pusht-policies
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from classact.evaluation.config import EvaluationConfig
from classact.evaluation.rollout import evaluate
from classact.policies import RetrievalPolicy
from classact.run.folder import Run
from classact.run.presets import PRESETS
from classact.utils.machine import hardware
from classact.utils.progress import progress_bar
from common import RESULTS, command, keep, kept

SPEEDS, STEPS = (1.0, 2.0, 3.0), (150, 250, 300, 500, 1000)
FIRST_SEED, EPISODES, CRITERION = 700_000, 200, "iou>0.90"
DEMONSTRATED = 12
"""Demonstrated steps that a chunk takes."""


@dataclass
class Flags:
    """Success of retrieval by control steps, at several speeds.

    Attributes:
        runs: folder of the trainings of pusht_policies.py.
        json: where the results go.
    """

    runs: Path = Path("runs/pusht-policies")
    json: Path = RESULTS / "speeds.json"


def main(flags: Flags) -> None:
    """Measure the speeds that the results file has not."""
    preset = PRESETS["pusht-plus"].retrieval
    for speed in SPEEDS:
        if f"{speed:g}" in kept(flags.json, "rows"):
            continue
        acting = {"k": preset.k, "temperature": preset.temperature, "revisit": preset.revisit}
        acting |= {"speed": speed, "chunk_length": int(DEMONSTRATED / speed)}
        policy = RetrievalPolicy.load(Run(flags.runs / "class-fixed-seed0").policy, **acting)
        config = EvaluationConfig(episodes=EPISODES, first_seed=FIRST_SEED, max_steps=STEPS[-1])
        with progress_bar(f"speed {speed:g}") as bar:
            reached = [one.first_success[CRITERION] for one in evaluate(policy, "pusht", config, bar)]
        row = {
            **acting,
            "reached": {str(limit): sum(at is not None and at <= limit for at in reached) for limit in STEPS},
        }
        print(row, flush=True)
        keep(flags.json, "rows", f"{speed:g}", row, episodes=EPISODES, hardware=hardware())


if __name__ == "__main__":
    raise SystemExit(command(Flags, main))
