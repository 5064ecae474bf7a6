"""Which sign announces a policy's failures on Push-T: doubt beside distance, variance and the clock.

Of the runs of ``pusht_policies.py``, by the settings chosen there. Every sign's level is calibrated alike: 5 % of the
successes among 300 episodes (from 500,000) pass it before they succeed; measured is what share of the failures among
500 others (from 600,000) has passed it so many steps before time is up, and what share of the successes. An alarm just
before the end is worth nothing: whoever has not succeeded after 450 of 500 steps hardly will, which the clock knows.

    uv run python benchmarks/alarms.py --runs runs/pusht-policies
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.data.types import RolloutResult
from classact.evaluation.config import EvaluationConfig
from classact.evaluation.rollout import evaluate
from classact.policies import DoubtAlarm, ParametricConfig, ParametricPolicy, Policy, PolicySpec, RetrievalPolicy
from classact.policies.base import Decision, Memory, Timestep, as_histories, decide
from classact.policies.monitored import monitored
from classact.run.folder import Run
from classact.utils.machine import hardware
from classact.utils.progress import progress_bar
from classact.utils.storage import read_json
from common import RESULTS, command, keep, kept

CALIBRATION, TABLE = (500_000, 300), (600_000, 500)
"""First seed and number of episodes."""

SHIFTS = {"fixed": "fixed-color", "rand": "rand-color"}
BEFORE = (0, 50, 100, 200)
"""Steps before time is up by which an alarm counts."""

ALPHA, SAMPLES = 0.05, 8
Signs = dict[str, NDArray[np.float64]]


@dataclass
class Flags:
    """Which sign announces failures.

    Attributes:
        runs: folder of the trainings of pusht_policies.py.
        policies: its results, where settings are chosen.
        json: where the results go.
        columns: fixed or random colours.
        acting: policies that are watched.
        criteria: of success.
    """

    runs: Path = Path("runs/pusht-policies")
    policies: Path = RESULTS / "pusht_policies.json"
    json: Path = RESULTS / "alarms.json"
    columns: tuple[str, ...] = ("rand", "fixed")
    acting: tuple[str, ...] = ("retrieval", "mlp")
    criteria: tuple[str, ...] = ("iou>0.90", "coverage>0.90")


class Watched:
    """A policy, and what could be a sign at each of its decisions.

    Args:
        policy: acts.
        bank: retrieval with the encoder of ``sampler``.
        sampler: a head whose chunks are drawn: their variance is a sign.
    """

    def __init__(self, policy: Policy, bank: RetrievalPolicy, sampler: ParametricPolicy | None) -> None:
        self.policy, self.bank, self.sampler = policy, bank, sampler
        self.seen: list[Signs] = []

    @property
    def spec(self) -> PolicySpec:
        return self.policy.spec

    def prepare(self, batch: int = 1) -> None:
        self.policy.prepare(batch)

    def decide(self, observations: Sequence[Timestep], memory: Memory = ()) -> Decision:
        decision = decide(self.policy, observations, memory)
        assert decision.latents is not None
        histories = as_histories(observations, 1)
        near = self.bank.search(self.bank.latents.observations([one for (one,) in histories]))
        signs = {"nearest distance (ALT)": 1 - near.cosine[:, 0]}
        if self.sampler is not None:
            features = self.sampler.features([one for (one,) in histories])
            draws = []
            for seed in range(SAMPLES):
                self.sampler.config = replace(self.sampler.config, seed=seed)
                draws.append(self.sampler.decide_from(features, histories).chunk)
            signs["variance of a generative head"] = deviation(np.stack(draws, axis=1))
        self.seen.append({name: np.asarray(value, np.float64) for name, value in signs.items()})
        return decision


def deviation(chunks: NDArray[Any]) -> NDArray[np.float64]:
    """(B, k, T, D) -> (B,) root mean square distance of k actions from their mean."""
    away = chunks.astype(np.float64) - chunks.mean(axis=1, keepdims=True, dtype=np.float64)
    return np.asarray(np.sqrt((away**2).sum(axis=-1).mean(axis=(1, 2))))


def main(flags: Flags) -> None:
    """Watch every policy that the results file has not."""
    for column in flags.columns:
        for acting in flags.acting:
            name = f"{acting}/{column}"
            if name not in kept(flags.json, "rows"):
                keep(flags.json, "rows", name, measured(flags, column, acting), hardware=hardware())


def measured(flags: Flags, column: str, acting: str) -> list[dict[str, Any]]:
    """A row for each criterion and sign."""
    run = Run(flags.runs / f"class-{column}-seed0")
    choice = read_json(flags.policies)["rows"][f"class/{acting}/{column}/seed0"]["chosen"]
    bank = RetrievalPolicy.load(run.policy, **(choice if acting == "retrieval" else {}))
    policy: Policy = bank
    if acting != "retrieval":
        policy = monitored(ParametricPolicy.load(run.root / "heads" / f"{acting}-run" / "policy", **choice), bank)
    folder = run.root / "heads" / "flow-run" / "policy"
    sampler = ParametricPolicy.load(folder, chunk_length=ParametricConfig().chunk_length) if folder.is_dir() else None
    calibration, first = watched(policy, bank, sampler, column, CALIBRATION)
    results, second = watched(policy, bank, sampler, column, TABLE)
    rows = []
    for criterion in flags.criteria:
        for sign in first[0]:
            before = [with_sign(one, signs[sign]) for one, signs in zip(calibration, first, strict=True)]
            level = DoubtAlarm.calibrate(before, policy.spec, criterion, ALPHA)
            now = [with_sign(one, signs[sign]) for one, signs in zip(results, second, strict=True)]
            raised = [level.raised(one) for one in now]
            failed = [at for at, one in zip(raised, now, strict=True) if not one.success[criterion]]
            false = [at is not None for at, one in zip(raised, now, strict=True) if one.success[criterion]]
            rows.append(
                {
                    "criterion": criterion,
                    "sign": sign,
                    "level": level.level,
                    "failures": len(failed),
                    "successes": len(false),
                    "false alarms": sum(false),
                    "announced": {
                        str(lead): sum(at is not None and at < results[0].steps - lead for at in failed)
                        for lead in BEFORE
                    },
                }
            )
        print(column, acting, *rows[-len(first[0]) :], sep="\n  ", flush=True)
    return rows


def watched(
    policy: Policy, bank: RetrievalPolicy, sampler: ParametricPolicy | None, column: str, episodes: tuple[int, int]
) -> tuple[list[RolloutResult], list[Signs]]:
    """Episodes, and of each the signs at its decisions."""
    watching, (first, count) = Watched(policy, bank, sampler), episodes
    config = EvaluationConfig(episodes=count, first_seed=first, shift=SHIFTS[column])
    with progress_bar(f"{policy.spec.name}, {column}") as bar:
        results = evaluate(watching, "pusht", config, bar)
    each: list[Signs] = []
    seen = iter(watching.seen)
    while len(each) < count:  # groups of episodes, each in lockstep
        decisions = results[len(each)].decisions
        assert decisions is not None
        group = [next(seen) for _ in decisions]
        made = {name: np.stack([one[name] for one in group], axis=1) for name in group[0]}
        each += [{name: value[b] for name, value in made.items()} for b in range(len(next(iter(made.values()))))]
    for result, signs in zip(results, each, strict=True):
        assert result.decisions is not None
        assert result.novelty is not None
        assert result.doubt is not None
        signs["novelty"] = result.novelty.astype(np.float64)
        signs["time passed"] = result.decisions.astype(np.float64)
        signs["doubt"] = result.doubt
    return results, each


def with_sign(result: RolloutResult, sign: NDArray[np.float64]) -> RolloutResult:
    """The episode with a sign in place of its doubt: its largest value so far, for one is enough to ring."""
    return replace(result, doubt=np.maximum.accumulate(sign))


if __name__ == "__main__":
    raise SystemExit(command(Flags, main))
