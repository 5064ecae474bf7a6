"""The paper's simulated tasks learned within minutes on two cores: task x view x what is learned x policy x seed.

Every row of a task and view sees the same pictures (``benchmarks/task_data.py`` makes them), as many images in its
pre-training or its training from scratch, as many updates in its kind of head, and is judged by the same initial states
(from seed 400,000). What is chosen is chosen for each row from one grid, on others (from 300,000): k and tau of
retrieval, then how long chunks are executed, and the learning rate of objectives other than CLASS, at a quarter of the
images.

References see the simulator's states: retrieval by the whole scene, by what matters next, and behaviour cloning.
"scratch" trains its encoder with its head: regression of chunks on pictures, as ACT does.

Kill it anywhere and start it again: finished rows are kept, the one under way continues from its checkpoint. Where the
machine does other work meanwhile, say ``--busy``: times are not kept then.

    uv run python benchmarks/tasks.py                                     everything
    uv run python benchmarks/tasks.py --list                              the names of all rows
    uv run python benchmarks/tasks.py --only square/fixed/class/mlp/0     one of them
    UV_PROJECT_ENVIRONMENT=.venv-libero uv run --extra libero python benchmarks/tasks.py --tasks libero-object
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from classact.data.readers import read_demonstrations
from classact.data.types import Demonstrations, RolloutResult
from classact.errors import UnknownNameError, choose
from classact.evaluation.config import EvaluationConfig
from classact.evaluation.rollout import evaluate
from classact.evaluation.scene import OnScene, Scene, scene_retrieval
from classact.models.encoders import EncoderConfig
from classact.policies import RetrievalConfig, RetrievalPolicy
from classact.policies.base import Policy
from classact.policies.parametric import ParametricPolicy
from classact.run.config import HeadRunConfig, RunConfig
from classact.run.finetune import HeadPipeline
from classact.run.folder import Run
from classact.run.presets import HEAD_PRESETS, HEAD_STEPS, configure, configure_head
from classact.run.pretrain import Pipeline, state_policy
from classact.sims import simulator_spec
from classact.train.head import FineTuner
from classact.utils.machine import hardware
from classact.utils.progress import progress_bar, tell
from common import RESULTS, command, keep, kept
from pusht_policies import Choice, best, tuned
from task_data import TASKS, Task, generated


@dataclass(frozen=True)
class Method:
    """What a row learns.

    Attributes:
        objective: of the pre-training; "none": an untrained encoder, or none at all.
        policies: that act by it.
        options: of the objective.
        renderings: of the demonstrations, each batch having its states in all of them.
        sees: "pictures", or numbers of the state: "scene" (cosines), "whole" or "next" (:class:`Scene`).
    """

    objective: str
    policies: tuple[str, ...] = ("retrieval", "mlp", "diffusion")
    options: tuple[str, ...] = ()
    renderings: int = 1
    sees: str = "pictures"


METHODS = {
    "untrained": Method("none", ("retrieval",)),
    "scratch": Method("none", ("mlp", "diffusion")),
    "byol": Method("byol"),
    "tcn": Method("tcn"),
    "class": Method("class"),  # the paper's
    "class-ours": Method("class", options=("queue=1280",)),
    "class-views": Method("class", options=("queue=1280",), renderings=4),
    "state": Method("none", ("retrieval",), sees="scene"),
    "next": Method("none", ("retrieval",), sees="next"),
    "clone": Method("none", ("mlp", "diffusion"), sees="whole"),
}

TUNING, TABLE = 300_000, 400_000
"""First seeds of the initial states on which settings are chosen, and of the table's."""

AVERAGES: tuple[Choice, ...] = tuple(
    {"k": k, "temperature": tau} for k, tau in ((1, 0.004), (8, 0.001), (8, 0.01), (32, 0.01))
)
"""Of retrieval, each with the first of :data:`EXECUTED`."""

EXECUTED = (0.4, 0.2, 0.8, 1.6)
"""Seconds of a chunk that are executed, of every policy, retrieval with the best of :data:`AVERAGES`."""

SHARPER = {"scene": 20.0, "next": 200.0}
"""Numbers of states differ less in direction than features do: temperatures are divided by so much."""

RATES = (5e-4, 1e-3, 2e-3)
"""Of objectives other than CLASS, whose rate is the preset's."""

VIEWS = 300_000
"""Pictures whose features a head on a frozen encoder computes at most, all random views of them together."""


@dataclass
class Flags:
    """The paper's simulated tasks, learned within minutes.

    Attributes:
        json: where the results go.
        runs: folder of the trainings.
        data: folder of the demonstrations.
        tasks: of the table.
        columns: views of the table.
        methods: rows of the table.
        policies: of the table.
        seeds: of all trainings.
        images: that each pre-training, and each training from scratch, sees.
        updates: of each head on a frozen encoder or on numbers; times what the preset gives its kind.
        episodes: of each evaluation.
        tuning: episodes of each choice.
        demonstrations: fewer than the paper's; None: as many.
        size: side of the pictures in pixels, when the network is the preset's 96.
        only: names of rows, instead of all that the other flags say.
        list: print the rows' names, and do nothing.
        preset: of the pre-training; None: the task's.
        workers: simulator processes; 0: one per core.
        busy: the machine does other work as well: no times are kept.
    """

    json: Path = RESULTS / "tasks.json"
    runs: Path = Path("runs/tasks")
    data: Path = Path("runs/demonstrations")
    tasks: tuple[str, ...] = ("square", "three-stack", "aloha", "libero-object")
    columns: tuple[str, ...] = ("fixed", "dynamic", "dynamic-paper", "rotation")
    methods: tuple[str, ...] = tuple(METHODS)
    policies: tuple[str, ...] = ("retrieval", "mlp", "diffusion")
    seeds: tuple[int, ...] = (0, 1)
    images: int = 300_000
    updates: int = 6_000
    episodes: int = 200
    tuning: int = 50
    demonstrations: int | None = None
    size: int = 96
    only: tuple[str, ...] = ()
    list: bool = False
    preset: str | None = None
    workers: int = 0
    busy: bool = False


@dataclass(frozen=True)
class Row:
    """A row of the table for one seed."""

    task: str
    column: str
    method: str
    policy: str
    seed: int

    @property
    def name(self) -> str:
        """Its name in the results file, and on the command line."""
        return f"{self.task}/{self.column}/{self.method}/{self.policy}/{self.seed}"

    @property
    def known(self) -> Task:
        """Its task."""
        return TASKS[self.task]

    @property
    def learned(self) -> Method:
        """Its method."""
        return METHODS[self.method]

    @property
    def shift(self) -> str:
        """The visual shift of its demonstrations and episodes."""
        return self.known.shifts[self.column]


def rows(flags: Flags) -> list[Row]:
    """The rows that are asked for, all of a seed before the next."""
    every = [
        Row(task, column, method, policy, seed)
        for seed in flags.seeds
        for task in flags.tasks
        for column in flags.columns
        if column in TASKS[task].shifts
        for method in flags.methods
        for policy in METHODS[method].policies
        if policy in flags.policies
        # States look alike under every view, and retrieval by them has no seed.
        and (METHODS[method].sees == "pictures" or column == "fixed")
        and not (METHODS[method].renderings > 1 and column == "fixed")  # all of them alike
        and not (METHODS[method].sees in SHARPER and seed != flags.seeds[0])
    ]
    if not flags.only:
        return every
    named = {row.name: row for row in every}
    for name in flags.only:
        if name not in named:
            raise UnknownNameError(choose("row", name, named))
    return [named[name] for name in flags.only]


def main(flags: Flags) -> None:
    """Train and evaluate what the results file does not hold."""
    asked = rows(flags)
    if flags.list:
        print("\n".join(row.name for row in asked))
        return
    for row in asked:
        if row.name not in kept(flags.json, "rows"):
            measure(flags, row)


def measure(flags: Flags, row: Row) -> None:
    """Train, choose, evaluate and keep one row."""
    count = demonstrations(flags, row)
    path = generated(row.known, flags.data, count=flags.demonstrations, workers=flags.workers)
    data = read_demonstrations(path, episodes=count)
    policy_with, averages, seconds = learned(flags, row, path, data)
    spec = simulator_spec(row.known.simulator)
    plays = tuple({"chunk_length": round(each * spec.control_hz)} for each in EXECUTED)

    def measured(choice: Choice) -> float:
        return rate(rollouts(flags, row, policy_with(choice), tuning=True))

    tries = tuned(averages, plays, measured)
    choice = best(tries)
    results = rollouts(flags, row, policy_with(choice))
    criteria = [criterion.name for criterion in spec.criteria]
    keep(
        flags.json,
        "rows",
        row.name,
        {
            "demonstrations": len(data),
            "steps": data.num_steps,
            "images": flags.images if row.learned.objective != "none" or row.method == "scratch" else 0,
            "updates": updates(flags, row),
            "size": flags.size,
            "chosen": choice,
            "tries": [{**one, "success": value} for one, value in tries],
            "first_seed": results[0].seed,
            "success": {name: [int(result.success[name]) for result in results] for name in criteria},
            "seconds": {} if flags.busy else {name: round(value, 1) for name, value in seconds.items()},
            "hardware": hardware(),
        },
    )
    tell(f"{row.name}: {choice}: {', '.join(f'{name} {rate(results, name):.3f}' for name in criteria)}")


def demonstrations(flags: Flags, row: Row) -> int | None:
    """How many of the file's demonstrations a row sees; None: all."""
    fewer = row.known.baselines
    if flags.demonstrations is not None or fewer is None or row.method.startswith("class"):
        return None
    return fewer


def updates(flags: Flags, row: Row) -> int:
    """Of a row's head, where its encoder is not trained."""
    if row.policy == "retrieval":
        return 0
    return round(flags.updates * HEAD_PRESETS["head-cpu"].longer.get(row.policy, 1))


Acting = Callable[[Choice], Policy]


def learned(
    flags: Flags, row: Row, path: Path, data: Demonstrations
) -> tuple[Acting, tuple[Choice, ...], dict[str, float]]:
    """How a row acts under settings of its grid, these, and seconds of its trainings."""
    sees, simulator = row.learned.sees, row.known.simulator
    if sees in SHARPER:
        averages = tuple({**one, "temperature": one["temperature"] / SHARPER[sees]} for one in AVERAGES)
        if sees == "scene":
            return partial(with_settings, state_policy(data, simulator), window(simulator)), averages, {}
        return partial(by_distance, data, Scene(simulator, "next")), averages, {}
    if sees == "whole":
        scene = Scene(simulator, "whole")
        return partial(on_numbers, scene, cloned(flags, row, scene.seen(data))), ({},), {}
    pipeline = trained(flags, row, path)
    seconds = dict(pipeline.run.info().timings)
    if row.policy == "retrieval":
        return partial(with_settings, pipeline.policy, window(simulator)), AVERAGES, seconds
    head = trained_head(flags, row, pipeline)
    seconds |= {f"head: {name}": value for name, value in head.folder.info().timings.items()}
    return partial(with_chunk, head.folder.policy), ({},), seconds


def window(simulator: str) -> int:
    """Steps of a chunk: the longest that is executed, and what a U-Net can halve."""
    steps = round(max(EXECUTED) * simulator_spec(simulator).control_hz)
    return HEAD_STEPS * -(-steps // HEAD_STEPS)


def with_settings(policy: RetrievalPolicy, horizon: int, choice: Choice) -> Policy:
    """Retrieval with other settings, of steps with as many actions left as are executed."""
    config = replace(policy.config, horizon=horizon, min_actions=choice["chunk_length"], **choice)
    parts = (policy.latents, policy.bank, policy.actions, policy.episode_ends)
    return RetrievalPolicy(*parts, config, action_space=policy.action_space)


def by_distance(data: Demonstrations, scene: Scene, choice: Choice) -> Policy:
    """Retrieval by numbers of states."""
    config = RetrievalConfig(horizon=window(scene.simulator), min_actions=choice["chunk_length"], **choice)
    return scene_retrieval(data, scene, config)


def on_numbers(scene: Scene, folder: Path, choice: Choice) -> Policy:
    """A head on numbers of states."""
    return OnScene(scene, ParametricPolicy.load(folder, **choice))


def with_chunk(folder: Path, choice: Choice) -> Policy:
    """A head on pictures."""
    return ParametricPolicy.load(folder, **choice)


# -- trainings -------------------------------------------------------------------------------------


def settings(flags: Flags, row: Row, path: Path) -> RunConfig:
    """Of a row's pre-training."""
    method, count = row.learned, demonstrations(flags, row)
    made = configure(
        str(path),
        preset=flags.preset or row.known.preset,
        simulator=row.known.simulator,
        shift=row.shift,
        objective=method.objective,
        options=method.options,
        baselines=False,
        episodes=count,
    )
    steps = read_demonstrations(path, episodes=count).num_steps * method.renderings
    pretrain = replace(
        made.pretrain,
        epochs=flags.images / (steps * made.pretrain.objective.images_per_anchor),
        seed=row.seed,
        batch_size=min(made.pretrain.batch_size, steps),
    )
    frames = replace(made.frames, render_size=flags.size, workers=flags.workers, renderings=method.renderings)
    evaluation = replace(made.evaluation, image_size=flags.size, workers=flags.workers)
    return replace(made, pretrain=pretrain, frames=frames, evaluation=evaluation)


def trained(flags: Flags, row: Row, path: Path) -> Pipeline:
    """The row's pre-training, done; its learning rate chosen first where that is open."""
    made = settings(flags, row, path)
    if row.learned.objective not in ("class", "none"):
        made = replace(made, pretrain=with_rate(made, learning_rate(flags, row, path)))
    base = "untrained" if row.learned.objective == "none" else row.method
    pipeline = Pipeline(Run(flags.runs / f"{row.task}-{row.column}-{base}-{row.seed}"), made)
    pipeline.pretrain()
    return pipeline


def with_rate(made: RunConfig, rate: float) -> Any:
    """The run's pre-training at another rate."""
    return replace(made.pretrain, optimizer=replace(made.pretrain.optimizer, learning_rate=rate))


def learning_rate(flags: Flags, row: Row, path: Path) -> float:
    """The rate of a task, view and method whose retrieval is best after a quarter of the images; of the first seed."""
    name = f"{row.task}/{row.column}/{row.method}"
    if name not in kept(flags.json, "rates"):
        first = replace(row, seed=flags.seeds[0], policy="retrieval")
        made = settings(flags, first, path)
        made = replace(made, pretrain=replace(made.pretrain, epochs=made.pretrain.epochs / 4))
        found = {}
        for one in RATES:
            run = Run(flags.runs / f"{row.task}-{row.column}-{row.method}-rate{one:g}")
            pipeline = Pipeline(run, replace(made, pretrain=with_rate(made, one)))
            pipeline.pretrain()
            found[f"{one:g}"] = rate(rollouts(flags, first, pipeline.policy, tuning=True))
            tell(f"{name}: rate {one:g}: {found[f'{one:g}']:.3f}")
        keep(flags.json, "rates", name, found)
    tried = kept(flags.json, "rates")[name]
    return float(max(tried, key=lambda one: tried[one]))


def head_settings(flags: Flags, row: Row, run: RunConfig, steps: int) -> HeadRunConfig:
    """Of a row's head, whose encoder saw ``steps`` steps."""
    start = "scratch" if row.method == "scratch" else "run"
    made = configure_head(run, row.policy, start=start)
    finetune = replace(made.finetune, seed=row.seed, evaluations=0, horizon=window(row.known.simulator))
    batch = min(finetune.batch_size, steps)
    seen = flags.images if start == "scratch" else updates(flags, row) * batch
    finetune = replace(finetune, batch_size=batch, epochs=seen / steps)
    if finetune.views:
        finetune = replace(finetune, views=max(1, min(finetune.views, VIEWS // steps)))
    return replace(made, finetune=finetune)


def trained_head(flags: Flags, row: Row, pipeline: Pipeline) -> HeadPipeline:
    """A row's head on pictures, trained."""
    steps = pipeline.source.states().num_steps
    config = head_settings(flags, row, pipeline.config, steps)
    head = HeadPipeline(pipeline.run, config, name=f"{row.policy}-{config.start}")
    head.train()
    return head


def cloned(flags: Flags, row: Row, seen: Demonstrations) -> Path:
    """The folder of a head on numbers of states, trained."""
    folder = flags.runs / f"{row.task}-clone-{row.policy}-{row.seed}"
    if not (folder / "policy").is_dir():
        preset = HEAD_PRESETS["head-cpu"].config(row.policy, encoder="other", frozen=False)
        batch = min(preset.batch_size, seen.num_steps)
        config = replace(
            preset,
            encoder=EncoderConfig(cameras=()),
            seed=row.seed,
            augment=None,
            standardize=False,
            evaluations=0,
            horizon=window(row.known.simulator),
            batch_size=batch,
            epochs=updates(flags, row) * batch / seen.num_steps,
        )
        folder.mkdir(parents=True, exist_ok=True)
        tuner = FineTuner(seen, config, folder)
        with progress_bar(f"{row.name}: train") as bar:
            tuner.fit(bar).save(folder / "policy")
    return folder / "policy"


# -- results ---------------------------------------------------------------------------------------


def rollouts(flags: Flags, row: Row, policy: Policy, *, tuning: bool = False) -> list[RolloutResult]:
    """Episodes of the table, or those that settings are chosen on."""
    count, first = (flags.tuning, TUNING) if tuning else (flags.episodes, TABLE)
    config = EvaluationConfig(
        episodes=count, first_seed=first, shift=row.shift, image_size=flags.size, workers=flags.workers
    )
    with progress_bar(f"{row.name}: {'choose' if tuning else 'evaluate'}") as bar:
        return evaluate(policy, row.known.simulator, config, bar)


def rate(results: list[RolloutResult], criterion: str = "success") -> float:
    """Success rate."""
    return sum(result.success[criterion] for result in results) / len(results)


if __name__ == "__main__":
    raise SystemExit(command(Flags, main))
