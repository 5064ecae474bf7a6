"""Policies on Push-T by three criteria: what is learned x retrieval and heads x fixed and random colours.

Every row sees the same 206 human demonstrations and is judged by the same 500 initial states (from seed 400,000). What
is chosen is chosen for each row from one grid, on 200 others (from 300,000), once, with seed 0: k and tau of
retrieval, then T_a and speed of every policy, and the learning rate of objectives other than CLASS, at a quarter of
their images. What was best at the demonstrations' own speed, the paper's, is measured as well. All policies, those from
scratch included, leave circles in the same way (``revisit``), each by a bank of its own encoder.

Kill it anywhere and start it again: finished rows are kept, the one under way continues from its checkpoint. Where the
machine does other work meanwhile, say ``--busy``: times are not kept then.

    uv run python benchmarks/pusht_policies.py --data pusht_human.zarr                  everything
    uv run python benchmarks/pusht_policies.py --data pusht_human.zarr --columns fixed --methods class --policies mlp
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from classact.data.types import RolloutResult
from classact.evaluation.config import EvaluationConfig
from classact.evaluation.rollout import evaluate
from classact.models.encoders import ImageEncoder
from classact.policies import RetrievalPolicy
from classact.policies.base import Policy
from classact.policies.monitored import monitored
from classact.policies.parametric import ParametricPolicy
from classact.run.config import RunConfig
from classact.run.finetune import HeadPipeline
from classact.run.folder import Run
from classact.run.presets import configure, configure_head
from classact.run.pretrain import Pipeline, state_policy
from classact.utils.machine import hardware
from classact.utils.progress import progress_bar
from common import RESULTS, command, keep, kept
from policies_table import SLOW

COLUMNS = {"fixed": ("pusht-plus", None), "rand": ("pusht-rand-plus", "rand-color")}
"""Column -> preset, shift."""

METHODS = {
    "class": "class",
    "byol": "byol",
    "untrained": "none",
    "scratch": "none",
    "state": "none",
}
"""Row -> objective; heads of "scratch" train their encoder, "state" is retrieval by the true state."""

TUNING, TABLE = 300_000, 400_000
"""First seeds of the initial states on which settings are chosen, and of the table's."""

CRITERION = "iou>0.90"

CHOOSING = 0
"""Seed of the trainings with which settings are chosen."""

Choice = Mapping[str, Any]

AVERAGES: tuple[Choice, ...] = tuple(
    {"k": k, "temperature": tau} for k, tau in ((32, 0.004), (8, 0.004), (1, 0.004), (64, 0.016))
)
"""Of retrieval, each with the first of :data:`PLAYS`."""

PLAYS: tuple[Choice, ...] = tuple(
    {"chunk_length": length, "speed": speed}
    for length, speed in ((8, 1.5), (6, 1.5), (6, 2), (4, 2), (6, 1), (8, 1), (12, 1))
)
"""Of every policy, retrieval with the best of :data:`AVERAGES`."""

RATES = (5e-4, 1e-3, 2e-3)
"""Of objectives other than CLASS, whose rate is the preset's."""


@dataclass
class Flags:
    """Policies on Push-T by three criteria.

    Attributes:
        data: the human demonstrations.
        runs: folder of the trainings.
        json: where the results go.
        columns: of the table.
        methods: of the table.
        policies: of the table; retrieval with an encoder "from scratch" is of the first head's.
        seeds: of all trainings; settings are chosen with that of :data:`CHOOSING`.
        episodes: of each evaluation.
        tuning: episodes of each choice.
        curves: rollouts during each training, evenly over it (the paper's figure 10); 0: none.
        busy: the machine does other work as well: no times are kept.
    """

    data: str
    runs: Path = Path("runs/pusht-policies")
    json: Path = RESULTS / "pusht_policies.json"
    columns: tuple[Literal["fixed", "rand"], ...] = ("fixed", "rand")
    methods: tuple[str, ...] = tuple(METHODS)
    policies: tuple[str, ...] = ("retrieval", "mlp", "flow", "diffusion")
    seeds: tuple[int, ...] = (0, 1, 2)
    episodes: int = 500
    tuning: int = 200
    curves: int = 0
    busy: bool = False


@dataclass(frozen=True)
class Row:
    """A row of the table for one column and seed."""

    method: str
    policy: str
    column: str
    seed: int

    @property
    def name(self) -> str:
        """Its name in the results file."""
        return f"{self.method}/{self.policy}/{self.column}/seed{self.seed}"


def rows(flags: Flags) -> list[Row]:
    """The rows that are asked for, all of a seed before the next."""
    return [
        Row(method, policy, column, seed)
        for seed in flags.seeds
        for method in flags.methods
        for column in flags.columns
        for policy in flags.policies
        if not (method == "state" and (policy, column, seed) != ("retrieval", "fixed", 0))
        and not (method == "untrained" and policy != "retrieval")  # an untrained encoder carries no head
    ]


def main(flags: Flags) -> None:
    """Train and evaluate what the results file does not hold."""
    for row in rows(flags):
        if row.name + SLOW not in kept(flags.json, "rows"):  # the last that is written
            measure(flags, row)


def measure(flags: Flags, row: Row) -> None:
    """Train, choose, evaluate and keep one row."""
    pipeline = trained(flags, row)
    seconds = dict(pipeline.run.info().timings)
    averages = AVERAGES if row.policy == "retrieval" else ({},)
    head: HeadPipeline | None = None
    if row.method == "state":
        state = state_policy(pipeline.source.states(), "pusht")
        # The few dimensions of a state differ less in direction than features do.
        policy_with = partial(_retrieval, state, min_actions=pipeline.config.retrieval.min_actions, revisit=0.9999)
        averages = tuple({**choice, "temperature": choice["temperature"] / 20} for choice in AVERAGES)
    elif row.policy == "retrieval" and row.method != "scratch":
        policy_with = partial(_retrieval, pipeline.policy)
    else:
        head, bank = trained_head(flags, row, pipeline)
        seconds |= {f"head: {name}": value for name, value in head.folder.info().timings.items()}
        if row.policy == "retrieval":
            policy_with = partial(_retrieval, bank)
        else:
            policy_with = partial(_head, head.folder.policy, bank)
    shift = pipeline.config.evaluation.shift

    def measured(choice: Choice) -> float:
        return rate(rollouts(flags, row, policy_with(choice), shift, tuning=True))

    chosen, tries = choices(flags, row, averages, measured)
    for suffix, choice in chosen.items():
        results = rollouts(flags, row, policy_with(choice), shift)
        keep(
            flags.json,
            "rows",
            row.name + suffix,
            {
                "chosen": choice,
                "tries": tries,
                "first_seed": results[0].seed,
                "success": {name: [int(result.success[name]) for result in results] for name in results[0].success},
                "max_coverage": [round(result.maxima["coverage"], 4) for result in results],
                "curve": curve(pipeline, head),
                "seconds": {} if flags.busy else {name: round(value, 1) for name, value in seconds.items()},
                "hardware": hardware(),
            },
        )
        found = ", ".join(f"{name} {rate(results, name):.3f}" for name in results[0].success)
        print(f"{row.name}{suffix}: {choice}: {found}", flush=True)


def choices(
    flags: Flags, row: Row, averages: Sequence[Choice], measured: Callable[[Choice], float]
) -> tuple[dict[str, Choice], list[dict[str, Any]]]:
    """What a row acts by, best at all and best at speed 1, by suffix of its name; and what was tried for it.

    Other seeds act by what was chosen with :data:`CHOOSING`, where that is there, and try nothing.
    """
    first, done = replace(row, seed=CHOOSING), kept(flags.json, "rows")
    if row != first and all(first.name + suffix in done for suffix in ("", SLOW)):
        return {suffix: done[first.name + suffix]["chosen"] for suffix in ("", SLOW)}, []
    tries = tuned(averages, PLAYS, measured)
    chosen = {"": best(tries), SLOW: best([one for one in tries if one[0]["speed"] == 1])}
    return chosen, [{**choice, CRITERION: value} for choice, value in tries]


def tuned(
    averages: Sequence[Choice], plays: Sequence[Choice], measured: Callable[[Choice], float]
) -> list[tuple[Choice, float]]:
    """What was tried, and its rate: all ``averages`` with the first of ``plays``, then the best with the others."""
    tries = [(choice, measured(choice)) for choice in ({**average, **plays[0]} for average in averages)]
    average = {name: best(tries)[name] for name in averages[0]}
    return tries + [(choice, measured(choice)) for choice in ({**average, **play} for play in plays[1:])]


def best(tries: Sequence[tuple[Choice, float]]) -> Choice:
    """The choice of the highest rate, of equals the first."""
    return max(tries, key=lambda one: one[1])[0]


def _retrieval(policy: RetrievalPolicy, choice: Choice, **changes: Any) -> Policy:
    return policy.with_config(replace(policy.config, **choice, **changes))


def _head(folder: Path, bank: RetrievalPolicy, choice: Choice) -> Policy:
    return monitored(ParametricPolicy.load(folder, **choice), bank)


# -- trainings -------------------------------------------------------------------------------------


def settings(flags: Flags, row: Row) -> RunConfig:
    """Of a row's pre-training."""
    preset, shift = COLUMNS[row.column]
    made = configure(flags.data, preset=preset, shift=shift, objective=METHODS[row.method], baselines=False)
    changed = replace(made.pretrain, seed=row.seed, evaluations=flags.curves, evaluations_from=1 / max(1, flags.curves))
    return replace(made, pretrain=changed)


def trained(flags: Flags, row: Row) -> Pipeline:
    """The row's pre-training, done; its learning rate chosen first where that is open."""
    made = settings(flags, row)
    if METHODS[row.method] not in ("class", "none"):
        chosen = learning_rate(flags, row)
        made = replace(made, pretrain=with_rate(made, chosen))
    base = "untrained" if METHODS[row.method] == "none" else row.method
    pipeline = Pipeline(Run(flags.runs / f"{base}-{row.column}-seed{row.seed}"), made)
    pipeline.pretrain()
    return pipeline


def with_rate(made: RunConfig, learning_rate: float) -> Any:
    """The run's pre-training at another rate."""
    return replace(made.pretrain, optimizer=replace(made.pretrain.optimizer, learning_rate=learning_rate))


def learning_rate(flags: Flags, row: Row) -> float:
    """The rate of a column's method whose retrieval is best after a quarter of the images."""
    name = f"{row.method}/{row.column}"
    if name not in kept(flags.json, "rates"):
        first = replace(row, seed=CHOOSING)
        made = settings(flags, first)
        made = replace(made, pretrain=replace(made.pretrain, epochs=made.pretrain.epochs / 4, evaluations=0))
        found = {}
        for one in RATES:
            run = Run(flags.runs / f"{row.method}-{row.column}-rate{one:g}")
            pipeline = Pipeline(run, replace(made, pretrain=with_rate(made, one)))
            pipeline.pretrain()
            results = rollouts(flags, first, pipeline.policy, made.evaluation.shift, tuning=True)
            found[f"{one:g}"] = rate(results)
            print(f"{name}: rate {one:g}: {found[f'{one:g}']:.3f}", flush=True)
        keep(flags.json, "rates", name, found)
    tried = kept(flags.json, "rates")[name]
    return float(max(tried, key=lambda one: tried[one]))


def trained_head(flags: Flags, row: Row, pipeline: Pipeline) -> tuple[HeadPipeline, RetrievalPolicy]:
    """A row's head, trained, and the bank of its encoder."""
    kind = "mlp" if row.policy == "retrieval" else row.policy
    start = "scratch" if row.method == "scratch" else "run"
    config = configure_head(pipeline.config, kind, start=start)
    config = replace(config, finetune=replace(config.finetune, seed=row.seed, evaluations=flags.curves))
    head = HeadPipeline(pipeline.run, config, name=f"{kind}-{start}")
    head.train()
    if start == "run":
        return head, pipeline.policy
    bank = head.folder.root / "retrieval"
    if not bank.is_dir():
        pipeline.retrieval_with(ImageEncoder.from_pretrained(head.folder.policy / "encoder")).save(bank)
    return head, RetrievalPolicy.load(bank)


# -- results ---------------------------------------------------------------------------------------


def rollouts(flags: Flags, row: Row, policy: Policy, shift: str, *, tuning: bool = False) -> list[RolloutResult]:
    """Episodes of the table, or those that settings are chosen on."""
    count, first = (flags.tuning, TUNING) if tuning else (flags.episodes, TABLE)
    with progress_bar(f"{row.name}: {'choose' if tuning else 'evaluate'}") as bar:
        return evaluate(policy, "pusht", EvaluationConfig(episodes=count, first_seed=first, shift=shift), bar)


def curve(pipeline: Pipeline, head: HeadPipeline | None) -> list[list[int]]:
    """[images, successes, episodes] of rollouts during the training of a row's encoder, by the paper's criterion.

    That is the head's training where its encoder starts from scratch, else pre-training.
    """
    stage, training = "pretrain", pipeline.config.pretrain
    images = training.batch_size * training.objective.images_per_anchor
    if head is not None and head.config.start == "scratch":
        stage, images = head.stage, head.config.finetune.batch_size
    found = [one for one in pipeline.run.read_intermediate() if one.stage == stage and one.criterion == CRITERION]
    return [[one.step * images, one.successes, one.episodes] for one in found]


def rate(results: list[RolloutResult], criterion: str = CRITERION) -> float:
    """Success rate."""
    return sum(result.success[criterion] for result in results) / len(results)


if __name__ == "__main__":
    raise SystemExit(command(Flags, main))
