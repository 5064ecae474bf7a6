"""Latent actions from states: continuous or discrete, decoder learned jointly or later, and baselines.

Tasks are MetaWorld's, and two gaits (half-cheetah, hopper), whose results are returns.

Each task has a buffer of mixed quality, by its scripted expert with a share of random actions that is drawn for each
episode, from none to all; some are labelled, whether they succeed or not. Expert demonstrations have observations
alone, but for the privileged row. All rows have the same policy (a residual MLP that sees the state, behaviour cloning
on the expert demonstrations or on what is labelled), the same updates, and the same initial states.

Kill it anywhere and start it again: finished rows are kept. ``--sweep`` varies one number on the first task;
``--camera`` shows images of 64 pixels instead of the state.

    uv run --extra metaworld python benchmarks/clam.py
    uv run --extra metaworld python benchmarks/clam.py --tasks assembly --seeds 0 --rows clam bc-expert
    uv run --extra locomotion python benchmarks/clam.py --tasks hopper half-cheetah --labelled 5
    uv run --extra metaworld python benchmarks/clam.py --tasks assembly --seeds 0 --sweep latent-dim
    uv run --extra metaworld python benchmarks/clam.py --tasks shelf-place --seeds 0 --camera corner2 --mixed 150 \\
        --experts 50 --updates 10000 --policy-updates 3000 --latent-dim 16 --beta 0.01 --batch 64
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clam_baselines import FEATURES, LAOM, LinearInverse, StateFeatures, continued, decoded
from classact.data.types import Demonstrations, FloatArray
from classact.errors import ConfigError
from classact.evaluation.config import EvaluationConfig
from classact.evaluation.rollout import evaluate
from classact.models.encoders import EncoderConfig
from classact.models.heads import MLPConfig
from classact.models.heads.config import ResidualConfig
from classact.models.latent_actions import ActionDecoder, LatentActionConfig, LatentActionModel
from classact.models.latent_actions.model import transitions
from classact.policies.base import Policy
from classact.policies.parametric import ParametricPolicy
from classact.run.latent_actions import measure
from classact.run.presets import LATENT_ACTION_PRESETS
from classact.sims import SIMULATORS, make_simulator
from classact.train.config import AdamWConfig, FinetuneConfig, LatentActionTrainingConfig
from classact.train.head import FineTuner
from classact.train.latent_actions import LatentActionTraining
from classact.utils.machine import hardware
from classact.utils.progress import progress_bar, tell
from common import RESULTS, command, keep, kept

IMAGE_SIZE = 64

ROWS: dict[str, dict[str, Any]] = {
    "bc-expert": {},  # privileged: has the expert's actions
    "bc-labelled": {},
    "linear": {},  # inverse dynamics in the place of VPT's
    "vpt": {"supervision": "alone"},
    "clam": {"supervision": "joint"},
    "clam, decoded": {"supervision": "joint"},
    "continuous, after": {"supervision": "after"},
    "discrete, joint": {"supervision": "joint", "codes": 128},
    "lapo": {"supervision": "after", "codes": 128},
    "lapa": {"supervision": "after", "codes": 128},
    "laom": {},
    "dynamo": {},
}
"""Row -> settings of its latent actions."""

SWEEPS: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
    "latent-dim": ((2, 4, 8, 16), ("clam",)),
    "labelled": ((5, 10, 20, 50), ("clam", "vpt", "linear", "bc-labelled")),
    "mixed": ((100, 300, 1000), ("clam",)),
}
"""Number that is varied -> its values, and the rows that depend on it."""

POLICY = replace(MLPConfig.preset("small"), residual=ResidualConfig(width=256, blocks=2))
"""Of all rows: 0.8 million parameters, as many as the released code's policy on states has."""

FIRST_MIXED, FIRST_EXPERT, FIRST_TESTED = 0, 10_000, 100_000
"""First seeds of initial states."""


@dataclass
class Flags:
    """CLAM on MetaWorld and locomotion from states.

    Attributes:
        json: where the results go.
        tasks: of MetaWorld without its name, or gaits.
        rows: of the table.
        seeds: of all trainings.
        sweep: vary one of these numbers on the first task, instead of ``rows``.
        mixed: episodes of mixed quality.
        labelled: of them with actions.
        pool: those that may be labelled: the "poor" half by their return, all that "failed", or "any".
        experts: demonstrations.
        episodes: of each evaluation.
        updates: of latent actions.
        policy_updates: of policies.
        latent_dim: of z.
        standardize: scale observations.
        changes: of latent action models, see :class:`LatentActionConfig`.
        camera: images of 64 pixels are seen, by latent actions and policies; empty: the state.
        beta: factor of the action loss.
        batch: transitions of an update, of latent actions.
        busy: the machine does other work as well: no times are kept.
    """

    json: Path = RESULTS / "clam.json"
    tasks: tuple[str, ...] = ("assembly", "peg-insert-side", "shelf-place", "bin-picking")
    rows: tuple[str, ...] = tuple(ROWS)
    seeds: tuple[int, ...] = (0, 1, 2)
    sweep: Literal["", "latent-dim", "labelled", "mixed"] = ""
    mixed: int = 300
    labelled: int = 50
    pool: Literal["poor", "failed", "any"] = "any"
    experts: int = 20
    episodes: int = 50
    updates: int = 30_000
    policy_updates: int = 6_000
    latent_dim: int = 8
    standardize: bool = True
    changes: bool = True
    camera: str = ""
    beta: float = 1.0
    batch: int = 128
    busy: bool = False


def main(flags: Flags) -> None:
    """Train and evaluate what the results file does not hold."""
    for own, task, rows in jobs(flags):
        left = [
            (row, seed)
            for seed in own.seeds
            for row in rows
            if name_of(own, task, row, seed) not in kept(own.json, "rows")
        ]
        if not left:
            continue
        mixed = record(task, own.mixed, FIRST_MIXED, own.camera, shares=True)
        expert = record(task, own.experts, FIRST_EXPERT, own.camera, shares=False)
        for row, seed in left:
            measure_row(own, task, row, seed, mixed, expert.data)


def jobs(flags: Flags) -> Iterator[tuple[Flags, str, tuple[str, ...]]]:
    """(settings, task, rows) of what is asked for."""
    if not flags.sweep:
        yield from ((flags, task, flags.rows) for task in flags.tasks)
        return
    values, rows = SWEEPS[flags.sweep]
    for value in values:
        changed: dict[str, Any] = {flags.sweep.replace("-", "_"): value}
        yield replace(flags, **changed), flags.tasks[0], rows


def name_of(flags: Flags, task: str, row: str, seed: int) -> str:
    """Of a row in the results file; what differs from the defaults is named."""
    names = ("mixed", "labelled", "experts", "updates", "policy_updates", "latent_dim", "standardize")
    names += ("pool", "changes", "camera", "beta", "batch")
    changed = [f"{n}={getattr(flags, n)}" for n in names if getattr(flags, n) != getattr(Flags(), n)]
    return "/".join([task, row, f"seed{seed}", *changed])


def simulator_of(task: str) -> str:
    """Its name: tasks of MetaWorld are named without it."""
    return task if task in SIMULATORS else f"metaworld-{task}"


def expert_of(task: str) -> Any:
    """The module of its expert, which has ``noisy`` and ``MOST_NOISE``."""
    return importlib.import_module(SIMULATORS[simulator_of(task)].expert.partition(":")[0])


@dataclass(frozen=True)
class Recorded:
    """Episodes, with the mean reward of a step of each, and whether it succeeded."""

    data: Demonstrations
    returns: NDArray[np.float64]
    succeeded: NDArray[np.bool_]


@lru_cache(maxsize=2)
def record(task: str, count: int, first: int, camera: str, *, shares: bool) -> Recorded:
    """Episodes to success and ten steps on, a fall, or the end; ``shares``: with a share of random actions for each."""
    sim = make_simulator(simulator_of(task), image_size=IMAGE_SIZE, cameras=(camera,) if camera else None)
    expert, criterion = expert_of(task), sim.spec.criteria[0]
    seen: list[Any] = []
    done: list[Any] = []
    shown: list[Any] = []
    lengths, returns, succeeded = [], [], []
    with progress_bar(f"{task}: {count} episodes") as bar:
        seed = first
        while len(lengths) < count:
            rng = np.random.default_rng([seed, 1])
            share = float(rng.uniform()) if shares else 0.0
            sim.reset(seed)
            script = expert.noisy(sim, rng, float(rng.uniform(0, expert.MOST_NOISE)), share)
            own: list[tuple[Any, Any]] = []
            total, reached = 0.0, None
            for step in range(sim.spec.max_steps):
                observation = sim.observe(render=bool(camera))
                action = next(script)
                own.append((observation, action))
                metrics = sim.step(action)
                total += metrics["reward"]
                reached = step if reached is None and criterion.met(metrics[criterion.metric]) else reached
                if (reached is not None and step >= reached + 10) or metrics.get("fallen"):
                    break
            seed += 1
            if not shares and reached is None:
                continue  # an expert's demonstration succeeds
            seen += [one.proprioception for one, _ in own]
            shown += [one.images[camera] for one, _ in own] if camera else []
            done += [one for _, one in own]
            succeeded.append(reached is not None)
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
        images={camera: np.array(shown, np.uint8)} if camera else {},
        schema=replace(spec.schema, cameras=(camera,) if camera else ()),
        simulator=spec.name,
    )
    return Recorded(data, np.array(returns), np.array(succeeded))


def together(one: Demonstrations, two: Demonstrations) -> Demonstrations:
    """The episodes of both."""
    return replace(
        one,
        episode_ends=np.concatenate([one.episode_ends, two.episode_ends + one.num_steps]),
        actions=np.concatenate([one.actions, two.actions]),
        proprioception=np.concatenate([one.proprioception, two.proprioception]),
        images={key: np.concatenate([np.asarray(own), np.asarray(two.images[key])]) for key, own in one.images.items()},
    )


def chosen(flags: Flags, mixed: Recorded, seed: int) -> list[int]:
    """The episodes that are labelled, drawn at random from the pool."""
    pools = {
        "poor": np.argsort(mixed.returns)[: len(mixed.data) // 2],
        "failed": np.flatnonzero(~mixed.succeeded),
        "any": np.arange(len(mixed.data)),
    }
    pool = pools[flags.pool]
    if len(pool) < flags.labelled:
        raise ConfigError(f"{flags.labelled} episodes are to be labelled, of {len(pool)}. Record more (--mixed).")
    return sorted(np.random.default_rng(seed).choice(pool, flags.labelled, replace=False).tolist())


def measure_row(flags: Flags, task: str, row: str, seed: int, mixed: Recorded, expert: Demonstrations) -> None:
    """Train and evaluate one row, and keep it."""
    begin = time.perf_counter()
    name = name_of(flags, task, row, seed)
    labelled = chosen(flags, mixed, seed)
    everyone = together(mixed.data, expert)
    with progress_bar(f"{name}: learn") as bar:
        policy, found = ROW_MAKERS.get(row, latent_row)(
            Work(flags, row, seed, name, everyone, mixed.data.subset(labelled), expert, labelled, bar)
        )
    with progress_bar(f"{name}: evaluate") as bar:
        tested = EvaluationConfig(
            episodes=flags.episodes, first_seed=FIRST_TESTED, shift="fixed", image_size=IMAGE_SIZE
        )
        results = evaluate(policy, simulator_of(task), tested, bar)
    success = [int(result.success["success"]) for result in results]
    metric = "return" if "return" in results[0].maxima else "reward"
    found = {"success": success, metric: [round(r.maxima[metric], 3) for r in results]} | found
    seconds = {} if flags.busy else {"seconds": round(time.perf_counter() - begin, 1)}
    keep(flags.json, "rows", name, {**found, **seconds, "hardware": hardware()})
    tell(f"{name}: {sum(success)} of {len(success)}")


@dataclass(frozen=True)
class Work:
    """What a row is made from: all demonstrations, those with actions, the expert's, and numbers of the labelled."""

    flags: Flags
    row: str
    seed: int
    name: str
    everyone: Demonstrations
    pool: Demonstrations
    expert: Demonstrations
    labelled: list[int]
    progress: Callable[[int, int, str], None]

    @property
    def seen(self) -> Demonstrations:
        """All demonstrations, of which the labelled ones alone have actions."""
        return self.everyone.only_labelled(self.labelled)

    def config(self, **settings: Any) -> LatentActionTrainingConfig:
        """Of latent actions."""
        flags = self.flags
        model = LatentActionConfig(
            network="cnn" if flags.camera else "mlp",
            camera=flags.camera or None,
            width=0.25,
            latent_dim=flags.latent_dim,
            codes=settings.pop("codes", 0),
            standardize=flags.standardize,
            changes=flags.changes,
        )
        preset = LATENT_ACTION_PRESETS["clam-cpu"]
        settings |= {"updates": flags.updates, "beta": flags.beta, "batch_size": flags.batch, "seed": self.seed}
        settings["decoder_updates"] = min(preset.decoder_updates, flags.updates)
        return replace(preset, model=model, log_every=500, **settings)

    def observing(self) -> LatentActionModel:
        """An untrained model, for what it observes and how it is scaled."""
        model = self.config().model
        decoder = ActionDecoder(model.latent_dim, self.pool.action_range(), None, (8,))
        return LatentActionModel.start(model, self.everyone, decoder)

    def learned(self) -> tuple[LatentActionModel, dict[str, Any]]:
        """The row's latent actions, and how good they are."""
        training = LatentActionTraining(self.seen, self.config(**ROWS[self.row]))
        model: LatentActionModel = training.fit(self.progress)
        of_expert = measure(model, self.expert, self.expert)
        found = {
            "measures": vars(measure(model, self.everyone, self.seen)),
            "expert action error": of_expert.action_error,
            "expert action error by tenth": self.course(model.decoder.decode(model.infer(self.expert))),
        }
        return model, found

    def course(self, decoded: FloatArray) -> list[list[float]]:
        """(10, A) mean squared errors of the expert's actions, dimension by dimension, by tenth of its episodes."""
        ends, scale = self.expert.episode_ends, self.pool.action_range()
        lengths = np.diff(ends, prepend=0)
        step = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        tenth = 10 * step // np.repeat(lengths, lengths)
        away = (scale.apply(decoded) - scale.apply(self.expert.actions)) ** 2
        return [[round(float(one), 4) for one in away[tenth == part].mean(axis=0)] for part in range(10)]

    def error(self, decoded: FloatArray) -> float:
        """Of the expert's actions, as :func:`measure` has it."""
        rows, scale = transitions(self.expert.episode_ends), self.pool.action_range()
        away = scale.apply(decoded[rows]) - scale.apply(self.expert.actions[rows])
        return float((away**2).mean())

    def tuner(self, data: Demonstrations, latent: LatentActionModel | None = None, share: float = 1.0) -> FineTuner:
        """Behaviour cloning; every row's policy is made here."""
        batch = min(128, data.num_steps)
        cameras = tuple(data.images)
        config = FinetuneConfig(
            head=POLICY,
            encoder=EncoderConfig(cameras=cameras, width=0.5),
            frozen=False,
            optimizer=AdamWConfig(head_lr=1e-3, encoder_lr=1e-3, weight_decay=1e-4, warmup_steps=500, clip_norm=1.0),
            epochs=share * self.flags.policy_updates * batch / data.num_steps,
            batch_size=batch,
            horizon=4,
            chunk_length=2,
            keys=() if cameras else None,
            evaluations=0,
            seed=self.seed,
            log_every=500,
        )
        return FineTuner(data, config, decoder=None if latent is None else latent.decoder)

    def cloned(self, data: Demonstrations, latent: LatentActionModel | None = None) -> ParametricPolicy:
        """A policy, of latent actions where ``latent`` decodes them."""
        return self.tuner(data, latent).fit(self.progress)


Made = tuple[Policy, dict[str, Any]]


def bc_expert(work: Work) -> Made:
    """Privileged: has the expert's actions."""
    return work.cloned(work.expert), {}


def bc_labelled(work: Work) -> Made:
    """From what is labelled alone."""
    return work.cloned(work.pool), {}


def pseudo_labels(work: Work) -> Made:
    """A policy of what the row's latent actions are decoded to; VPT's are those that the labelled pool alone taught."""
    model, found = work.learned()
    return work.cloned(replace(work.expert, actions=model.decoder.decode(model.infer(work.expert)))), found


def latent_row(work: Work) -> Made:
    """A policy of latent actions, decoded."""
    model, found = work.learned()
    return work.cloned(model.relabel(work.expert), model), found


def lapa(work: Work) -> Made:
    """A policy of all latent actions, whose head then learns the labelled pool's, for half as many updates."""
    model, found = work.learned()
    before = work.tuner(model.relabel(work.everyone))
    before.fit(work.progress)
    return continued(work.tuner(work.pool, share=0.5), before).fit(work.progress), found


def linear(work: Work) -> Made:
    """A policy of actions that a linear map, fitted to the labelled pool, makes of two observations."""
    decoded_actions = LinearInverse.fit(work.observing(), work.pool).decode(work.expert)
    found = {
        "expert action error": work.error(decoded_actions),
        "expert action error by tenth": work.course(decoded_actions),
    }
    return work.cloned(replace(work.expert, actions=decoded_actions)), found


def laom(work: Work) -> Made:
    """Latent actions of many dimensions, supervised while they are learned."""
    flags = work.flags
    made = LAOM.learn(work.observing(), work.seen, flags.updates, flags.batch, work.seed, work.progress)
    z = made.infer(work.expert)
    latent = replace(work.expert, actions=z, schema=replace(work.expert.schema, actions=None), labelled=None)
    return decoded(work.cloned(latent), made.decode), {"expert action error": work.error(made.decode(z))}


def dynamo(work: Work) -> Made:
    """Features by their dynamics, then behaviour cloning of the labelled pool on them."""
    flags = work.flags
    features = StateFeatures.learn(
        work.observing(), work.everyone, flags.updates, flags.batch, work.seed, work.progress
    )
    schema = replace(work.pool.schema, proprioception=(("features", FEATURES),))
    pool = replace(work.pool, proprioception=features.of(work.pool), schema=schema)
    return features.policy(work.cloned(pool)), {}


ROW_MAKERS: dict[str, Callable[[Work], Made]] = {
    "bc-expert": bc_expert,
    "bc-labelled": bc_labelled,
    "vpt": pseudo_labels,
    "clam, decoded": pseudo_labels,
    "linear": linear,
    "lapa": lapa,
    "laom": laom,
    "dynamo": dynamo,
}
"""Rows other than :func:`latent_row`."""


if __name__ == "__main__":
    raise SystemExit(command(Flags, main))
