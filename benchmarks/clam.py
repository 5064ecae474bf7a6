"""Latent actions on MetaWorld from states: continuous or discrete, decoder learned jointly or later, and baselines.

Each task has a buffer of mixed quality, by its scripted expert with a share of random actions that is drawn for each
episode, from none to all; of its least successful episodes some are labelled. Expert demonstrations have observations
alone, but for the privileged row. All rows have the same policy (a residual MLP that sees the state, behaviour cloning
on the expert demonstrations or on what is labelled), the same updates, and the same initial states.

Kill it anywhere and start it again: finished rows are kept.

    uv run --extra metaworld python benchmarks/clam.py
    uv run --extra metaworld python benchmarks/clam.py --tasks assembly --seeds 0 --rows clam bc-expert
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from classact.data.types import Demonstrations
from classact.evaluation.config import EvaluationConfig
from classact.evaluation.rollout import evaluate
from classact.models.encoders import EncoderConfig
from classact.models.heads import MLPConfig
from classact.models.heads.config import ResidualConfig
from classact.models.latent_actions import LatentActionConfig, LatentActionModel
from classact.policies.parametric import ParametricPolicy
from classact.run.latent_actions import measure
from classact.run.presets import LATENT_ACTION_PRESETS
from classact.sims import make_simulator
from classact.sims.experts.metaworld import MOST_NOISE, noisy
from classact.train.config import AdamWConfig, FinetuneConfig
from classact.train.head import FineTuner
from classact.train.latent_actions import LatentActionTraining
from classact.utils.machine import hardware
from classact.utils.progress import progress_bar, tell
from common import RESULTS, command, keep, kept

ROWS: dict[str, dict[str, Any]] = {
    "bc-expert": {},  # privileged: has the expert's actions
    "bc-labelled": {},
    "vpt": {"supervision": "alone"},
    "clam": {"supervision": "joint"},
    "continuous, after": {"supervision": "after"},
    "discrete, joint": {"supervision": "joint", "codes": 128},
    "lapo": {"supervision": "after", "codes": 128},
}
"""Row -> settings of its latent actions."""

POLICY = replace(MLPConfig.preset("small"), residual=ResidualConfig(width=256, blocks=2))
"""Of all rows: 0.8 million parameters, as many as the released code's policy on states has."""

FIRST_MIXED, FIRST_EXPERT, FIRST_TESTED = 0, 10_000, 100_000
"""First seeds of initial states."""


@dataclass
class Flags:
    """CLAM on MetaWorld from states.

    Attributes:
        json: where the results go.
        tasks: of MetaWorld.
        rows: of the table.
        seeds: of all trainings.
        mixed: episodes of mixed quality.
        labelled: of them with actions.
        experts: demonstrations.
        episodes: of each evaluation.
        updates: of latent actions.
        policy_updates: of policies.
        latent_dim: of z.
        standardize: scale observations.
        busy: the machine does other work as well: no times are kept.
    """

    json: Path = RESULTS / "clam.json"
    tasks: tuple[str, ...] = ("assembly", "peg-insert-side", "shelf-place", "bin-picking")
    rows: tuple[str, ...] = tuple(ROWS)
    seeds: tuple[int, ...] = (0, 1, 2)
    mixed: int = 300
    labelled: int = 20
    experts: int = 20
    episodes: int = 50
    updates: int = 20_000
    policy_updates: int = 10_000
    latent_dim: int = 8
    standardize: bool = True
    busy: bool = False


def main(flags: Flags) -> None:
    """Train and evaluate what the results file does not hold."""
    for task in flags.tasks:
        left = [
            (row, seed)
            for seed in flags.seeds
            for row in flags.rows
            if name_of(flags, task, row, seed) not in kept(flags.json, "rows")
        ]
        if not left:
            continue
        mixed, returns = record(task, flags.mixed, FIRST_MIXED, shares=True)
        expert, _ = record(task, flags.experts, FIRST_EXPERT, shares=False)
        for row, seed in left:
            measure_row(flags, task, row, seed, mixed, returns, expert)


def name_of(flags: Flags, task: str, row: str, seed: int) -> str:
    """Of a row in the results file; what differs from the defaults is named."""
    names = ("mixed", "labelled", "experts", "updates", "policy_updates", "latent_dim", "standardize")
    changed = [f"{n}={getattr(flags, n)}" for n in names if getattr(flags, n) != getattr(Flags(), n)]
    return "/".join([task, row, f"seed{seed}", *changed])


def record(task: str, count: int, first: int, *, shares: bool) -> tuple[Demonstrations, Any]:
    """Episodes of 100 steps, or to success and ten steps on; ``shares``: with a share of random actions for each."""
    sim = make_simulator(f"metaworld-{task}")
    seen: list[Any] = []
    done: list[Any] = []
    lengths, returns = [], []
    with progress_bar(f"{task}: {count} episodes") as bar:
        seed = first
        while len(lengths) < count:
            rng = np.random.default_rng([seed, 1])
            share = float(rng.uniform()) if shares else 0.0
            sim.reset(seed)
            script = noisy(sim, rng, float(rng.uniform(0, MOST_NOISE)), share)
            own: list[tuple[Any, Any]] = []
            total, reached = 0.0, None
            for step in range(sim.spec.max_steps):
                observation = sim.observe(render=False).proprioception
                action = next(script)
                own.append((observation, action))
                metrics = sim.step(action)
                total += metrics["reward"]
                reached = step if reached is None and metrics["success"] else reached
                if reached is not None and step >= reached + 10:
                    break
            seed += 1
            if not shares and reached is None:
                continue  # an expert's demonstration succeeds
            seen += [one for one, _ in own]
            done += [one for _, one in own]
            lengths.append(len(own))
            returns.append(total / len(own))
            bar(len(lengths), count)
    spec = sim.spec
    sim.close()
    assert spec.schema is not None
    data = Demonstrations(
        name=spec.name,
        episode_ends=np.cumsum(lengths, dtype=np.int64),
        actions=np.array(done, np.float32),
        proprioception=np.array(seen, np.float32),
        schema=replace(spec.schema, cameras=()),
        simulator=spec.name,
    )
    return data, np.array(returns)


def together(one: Demonstrations, two: Demonstrations) -> Demonstrations:
    """The episodes of both."""
    return replace(
        one,
        episode_ends=np.concatenate([one.episode_ends, two.episode_ends + one.num_steps]),
        actions=np.concatenate([one.actions, two.actions]),
        proprioception=np.concatenate([one.proprioception, two.proprioception]),
    )


def measure_row(
    flags: Flags, task: str, row: str, seed: int, mixed: Demonstrations, returns: Any, expert: Demonstrations
) -> None:
    """Train and evaluate one row, and keep it."""
    begin = time.perf_counter()
    # Not the best are labelled: drawn from the lower half by their return.
    poor = np.argsort(returns)[: len(mixed) // 2]
    labelled = np.sort(np.random.default_rng(seed).choice(poor, flags.labelled, replace=False))
    name, measures = name_of(flags, task, row, seed), None
    if row == "bc-expert":
        policy = cloned(flags, expert, seed, name)
    elif row == "bc-labelled":
        policy = cloned(flags, mixed.subset(labelled.tolist()), seed, name)
    else:
        settings = dict(ROWS[row])
        model = LatentActionConfig(
            width=0.25, latent_dim=flags.latent_dim, codes=settings.pop("codes", 0), standardize=flags.standardize
        )
        config = replace(
            LATENT_ACTION_PRESETS["clam-cpu"], model=model, updates=flags.updates, seed=seed, log_every=500, **settings
        )
        everyone = together(mixed, expert)
        training = LatentActionTraining(everyone.only_labelled(labelled.tolist()), config)
        with progress_bar(f"{name}: latent actions") as bar:
            learned: LatentActionModel = training.fit(bar)
        measures = measure(learned, everyone, everyone.only_labelled(labelled.tolist()))
        of_expert = measure(learned, expert, expert)
        z = learned.infer(expert)
        if row == "vpt":  # pseudo-labels
            policy = cloned(flags, replace(expert, actions=learned.decoder.decode(z)), seed, name)
        else:
            latent = replace(expert, actions=z, schema=replace(expert.schema, actions=None))
            policy = cloned(flags, latent, seed, name, learned)
    with progress_bar(f"{name}: evaluate") as bar:
        tested = EvaluationConfig(episodes=flags.episodes, first_seed=FIRST_TESTED, shift="fixed", image_size=64)
        results = evaluate(policy, f"metaworld-{task}", tested, bar)
    success = [int(result.success["success"]) for result in results]
    found: dict[str, Any] = {"success": success, "reward": [round(r.maxima["reward"], 3) for r in results]}
    if measures is not None:
        found |= {"measures": vars(measures), "expert action error": of_expert.action_error}
    seconds = {} if flags.busy else {"seconds": round(time.perf_counter() - begin, 1)}
    keep(flags.json, "rows", name, {**found, **seconds, "hardware": hardware()})
    tell(f"{name}: {sum(success)} of {len(success)}")


def cloned(
    flags: Flags, data: Demonstrations, seed: int, name: str, latent: LatentActionModel | None = None
) -> ParametricPolicy:
    """Behaviour cloning of numbers alone; every row's policy is made here."""
    batch = min(128, data.num_steps)
    config = FinetuneConfig(
        head=POLICY,
        encoder=EncoderConfig(cameras=()),
        frozen=False,
        optimizer=AdamWConfig(head_lr=1e-3, weight_decay=1e-4, warmup_steps=500, clip_norm=1.0),
        epochs=flags.policy_updates * batch / data.num_steps,
        batch_size=batch,
        horizon=4,
        chunk_length=2,
        evaluations=0,
        seed=seed,
        log_every=500,
    )
    tuner = FineTuner(data, config, decoder=None if latent is None else latent.decoder)
    with progress_bar(f"{name}: policy") as bar:
        return tuner.fit(bar)


if __name__ == "__main__":
    raise SystemExit(command(Flags, main))
