"""CLASS where few demonstrations carry actions: what stands for them, on Push-T with 1, 5 or 10 % of episodes labelled.

Every row learns a representation from all 206 human demonstrations, seen by the same number of images, and acts by the
same few labels: retrieval from the labelled episodes, retrieval from all with the actions that latent ones are decoded
to (of the row's own model, or of the one that sees proprioception), and an MLP head that is trained on the labelled
episodes, on frozen features. Rows differ in what the representation is learned from: true actions of all (privileged)
or of the labelled episodes alone, latent actions of CLAM that sees proprioception or images, proprioception, changes of
a BYOL encoder's features, or no actions at all.

k and tau of retrieval, then T_a and speed, are chosen on initial states (from 300,000) that no table uses; the table's
are from 400,000. Which episodes are labelled follows from the seed, and fewer are among more.

VILA (arXiv 2601.02994) is no row: it aligns latent actions of one motion seen by several cameras at once, which Push-T
does not have. "clam unwarped" is what a weighted contrast on action sequences without DTW comes to here.

``agreement`` needs no training: of the pairs of windows that a stand-in calls alike, the share that true actions call
alike, too.

Kill it anywhere and start it again: finished rows are kept, the one under way continues from its checkpoint.

    uv run python benchmarks/bridge.py --data pusht_human.zarr
    uv run python benchmarks/bridge.py --data pusht_human.zarr --rows actions clam byol --labelled 20 --seeds 0
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from classact.data.readers.selection import written_episodes
from classact.data.types import RolloutResult
from classact.evaluation.config import EvaluationConfig
from classact.evaluation.rollout import evaluate
from classact.models.encoders import ImageEncoder
from classact.models.latent_actions import LatentActionConfig
from classact.policies import RetrievalPolicy
from classact.policies.base import Policy
from classact.policies.monitored import monitored
from classact.policies.parametric import ParametricPolicy
from classact.run.config import RunConfig
from classact.run.data import RunData
from classact.run.finetune import HeadPipeline
from classact.run.folder import Run
from classact.run.latent_actions import MODEL, learn_latent_actions
from classact.run.presets import configure, configure_head
from classact.run.pretrain import Pipeline
from classact.similarity.model import sample_distances, window_stream
from classact.train.config import LatentActionTrainingConfig
from classact.utils.machine import hardware
from classact.utils.progress import progress_bar
from common import RESULTS, command, keep, kept
from pusht_policies import CRITERION, TABLE, TUNING, Choice, best, rate, tuned

COLUMNS = {"fixed": ("pusht-cpu", None), "rand": ("pusht-rand-whiten", "rand-color")}
"""Column -> preset of 64-pixel images, shift."""


@dataclass(frozen=True)
class Learned:
    """How a row's representation is learned.

    Attributes:
        objective: its name.
        learn_from: what stands for actions; "few": they are the labelled episodes' own, and no others are seen.
        model: of latent actions, see :data:`MODELS`.
        similarity: changes of the settings of action similarity.
    """

    objective: str = "class"
    learn_from: str | None = None
    model: str = ""
    similarity: Mapping[str, Any] = field(default_factory=dict)


ROWS: dict[str, Learned] = {
    "actions": Learned(learn_from="actions"),
    "clam": Learned(learn_from="latent-actions", model="clam"),
    "next-proprioception": Learned(learn_from="next-proprioception"),
    "byol": Learned("byol"),
    "untrained": Learned("none"),
    "clam decoded": Learned(learn_from="decoded-actions", model="clam"),
    "proprioception-change": Learned(learn_from="proprioception-change"),
    "clam-image decoded": Learned(learn_from="decoded-actions", model="clam-image"),
    "clam-image": Learned(learn_from="latent-actions", model="clam-image"),
    "few actions": Learned(learn_from="few"),
    "feature-change": Learned(learn_from="feature-change"),
    "clam unwarped": Learned(learn_from="latent-actions", model="clam", similarity={"metric": "l2"}),
    "tcn": Learned("tcn"),
    "dynamo": Learned("dynamo"),
}
"""Row -> how; "actions" is privileged."""

MODELS: dict[str, tuple[LatentActionConfig, dict[str, Any]]] = {
    "clam": (LatentActionConfig(width=0.25), {}),
    "clam-image": (
        LatentActionConfig("cnn", "top", latent_dim=16, width=0.25),
        {"beta": 0.01, "batch_size": 64},
    ),
}
"""Latent action models: what they see, and what differs from the defaults of their training (the released code's)."""

FEATURES = "byol"
"""The row whose encoder's features change."""

Acting = Literal["labelled", "decoded", "mlp"]

AVERAGES: tuple[Choice, ...] = tuple({"k": k, "temperature": tau} for k, tau in ((1, 0.004), (8, 0.004), (32, 0.004)))
"""Of retrieval, each with the first of :data:`PLAYS`."""

PLAYS: tuple[Choice, ...] = tuple(
    {"chunk_length": length, "speed": speed} for length, speed in ((6, 2), (6, 1.5), (8, 1))
)
"""Of every policy, retrieval with the best of :data:`AVERAGES`."""


@dataclass
class Flags:
    """CLASS where few demonstrations of Push-T carry actions.

    Attributes:
        data: the human demonstrations.
        runs: folder of the trainings.
        json: where the results go.
        rows: of the table.
        acting: of the table.
        labelled: numbers of episodes that carry actions.
        columns: colours of demonstrations and evaluation.
        seeds: of all trainings, and of the choice of episodes.
        images: that each representation sees.
        updates: of latent actions from proprioception.
        image_updates: of latent actions from images.
        head_updates: of the head.
        episodes: of each evaluation.
        tuning: episodes of each choice.
        busy: the machine does other work as well: no times are kept.
    """

    data: str
    runs: Path = Path("runs/bridge")
    json: Path = RESULTS / "bridge.json"
    rows: tuple[str, ...] = tuple(ROWS)
    acting: tuple[Acting, ...] = ("labelled", "decoded", "mlp")
    labelled: tuple[int, ...] = (20, 10, 2)
    columns: tuple[Literal["fixed", "rand"], ...] = ("fixed",)
    seeds: tuple[int, ...] = (0, 1, 2)
    images: int = 131_072
    updates: int = 20_000
    image_updates: int = 4_000
    head_updates: int = 4_000
    episodes: int = 200
    tuning: int = 50
    busy: bool = False


@dataclass(frozen=True)
class Cell:
    """What a row is measured under."""

    labelled: int
    column: str
    seed: int

    @property
    def name(self) -> str:
        """In names of results and folders."""
        return f"{self.labelled}/{self.column}/seed{self.seed}"

    @property
    def folder(self) -> str:
        return self.name.replace("/", "-")


def main(flags: Flags) -> None:
    """Train and evaluate what the results file does not hold: all rows of a cell before the next."""
    for seed in flags.seeds:
        for column in flags.columns:
            for labelled in flags.labelled:
                cell = Cell(labelled, column, seed)
                for row in flags.rows:
                    for acting in flags.acting:
                        if f"{row}/{acting}/{cell.name}" not in kept(flags.json, "rows"):
                            Bench(flags, cell).measure(row, acting)


@cache
def episodes_of(data: str) -> int:
    """How many episodes the data set has."""
    return len(RunData(configure(data, preset="pusht-cpu", objective="none"), quiet=True).recorded)


def labelled_episodes(count: int, total: int, seed: int) -> str:
    """Numbers of ``count`` of ``total`` episodes; those of a smaller count are among those of a larger one."""
    return written_episodes(sorted(np.random.default_rng([seed, total]).permutation(total)[:count].tolist()))


class Bench:
    """The trainings of one cell, each made when it is needed."""

    def __init__(self, flags: Flags, cell: Cell) -> None:
        self.flags, self.cell = flags, cell
        self.labelled = labelled_episodes(cell.labelled, episodes_of(flags.data), cell.seed)

    def base(self, objective: str = "none", **changes: Any) -> RunConfig:
        """Settings of a run of the column with its seed."""
        preset, shift = COLUMNS[self.cell.column]
        options = ["queue=1280"] if objective == "class" else []
        made = configure(
            self.flags.data,
            preset=preset,
            shift=shift,
            objective=objective,
            options=options,
            baselines=False,
            **changes,
        )
        return replace(made, pretrain=replace(made.pretrain, seed=self.cell.seed))

    # -- what is learned ---------------------------------------------------------------------------

    def model(self, name: str) -> Path:
        """A latent action model, learned from all demonstrations and these labels."""
        out = self.flags.runs / f"model-{name}-{self.cell.folder}"
        if not (out / MODEL).is_dir():
            config, changes = MODELS[name]
            updates = self.flags.updates if config.camera is None else self.flags.image_updates
            training = LatentActionTrainingConfig(config, updates=updates, seed=self.cell.seed, **changes)
            data = RunData(self.base()).frames()  # with all actions, so that those of the others can be compared
            numbers = [e for part in self.labelled.split(",") for e in _numbers(part)]
            found = learn_latent_actions(data, training, out, labelled=numbers)
            keep(self.flags.json, "models", f"{name}/{self.cell.name}", {"measures": found["measures"]})
        return out / MODEL

    def learned(self, row: str) -> Pipeline:
        """A row's representation, trained. Those that no label changes are the same for any number of labels."""
        how, flags = ROWS[row], self.flags
        changes: dict[str, Any] = {}
        if how.learn_from == "few":
            changes["episodes"] = self.labelled
        elif how.learn_from not in (None, "actions"):
            changes["learn_from"] = how.learn_from
        if how.model:
            model = str(self.model(how.model))
            changes |= {"labelled": self.labelled, "act_from": "labelled", "latent_actions": model}
        if how.learn_from == "feature-change":
            changes["features"] = str(self.learned(FEATURES).run.encoder)
        labels = how.learn_from == "few" or bool(how.model)
        made = self.base(how.objective, **changes)
        data = RunData(made, quiet=True)
        pretrain = replace(made.pretrain, similarity=replace(made.pretrain.similarity, **how.similarity))
        if how.objective != "none":
            epochs = flags.images / pretrain.objective.images_per_anchor / data.recorded.num_steps
            batch = min(pretrain.batch_size, data.recorded.num_steps)
            pretrain = replace(pretrain, epochs=epochs, batch_size=batch)
        cell = self.cell.folder if labels else f"{self.cell.column}-seed{self.cell.seed}"
        pipeline = Pipeline(Run(flags.runs / f"{row.replace(' ', '-')}-{cell}"), replace(made, pretrain=pretrain))
        made_ready(pipeline)
        name = f"{row}/{self.cell.name}"
        if how.objective == "class" and how.learn_from != "few" and name not in kept(flags.json, "agreement"):
            keep(flags.json, "agreement", name, self.agreement(pipeline))
        return pipeline

    def agreement(self, pipeline: Pipeline) -> float:
        """Of the sampled pairs that are alike to the representation's training, the share that true actions call so."""
        config = replace(pipeline.config.pretrain.similarity, pairs=1_000_000)
        data = pipeline.source.states()
        near = []
        for one in (pipeline.source.learned(data), RunData(self.base(), quiet=True).states()):
            distances = sample_distances(window_stream(one, config), config)
            near.append(distances <= np.quantile(distances, config.quantile))
        return round(float((near[0] & near[1]).sum() / near[0].sum()), 4)

    # -- how it acts -------------------------------------------------------------------------------

    def acting(self, model: str = "") -> Pipeline:
        """A run that learns nothing, whose demonstrations policies act from: the labelled ones, or decoded ones."""
        changes = {"latent_actions": str(self.model(model)), "act_from": "decoded"} if model else {}
        made = self.base(labelled=self.labelled, **changes)
        name = f"decoded-by-{model}" if model else "labelled"
        pipeline = Pipeline(Run(self.flags.runs / f"acting-{name}-{self.cell.folder}"), made)
        made_ready(pipeline)
        return pipeline

    def policy(self, row: str, acting: Acting) -> Callable[[Choice], Policy]:
        """By the choice of how it acts."""
        learned = self.learned(row)
        encoder = ImageEncoder.from_pretrained(learned.run.encoder)
        decoded = acting == "decoded"
        acts = self.acting(ROWS[row].model or "clam" if decoded else "")
        bank = acts.retrieval_with(encoder, replace(acts.config.retrieval, k=1))
        acts.hold = None

        def retrieval(choice: Choice) -> RetrievalPolicy:
            return bank.with_config(replace(acts.config.retrieval, **choice))

        if acting != "mlp":
            return retrieval
        config = configure_head(acts.config, "mlp", start=str(learned.run.encoder))
        steps = acts.source.states().with_actions().num_steps
        batch = min(config.finetune.batch_size, steps)
        finetune = replace(
            config.finetune,
            seed=self.cell.seed,
            evaluations=0,
            batch_size=batch,
            epochs=self.flags.head_updates * batch / steps,
        )
        head = HeadPipeline(acts.run, replace(config, finetune=finetune), name=f"mlp-{row.replace(' ', '-')}")
        head.train()
        monitor = bank.with_config(replace(acts.config.retrieval, k=1))
        return lambda choice: monitored(ParametricPolicy.load(head.folder.policy, **choice), monitor)

    def measure(self, row: str, acting: Acting) -> None:
        """Train, choose, evaluate and keep."""
        begin = time.perf_counter()
        policy_with = self.policy(row, acting)
        averages = ({},) if acting == "mlp" else AVERAGES

        def measured(choice: Choice) -> float:
            return self.score(self.rollouts(policy_with(choice), row, tuning=True))

        tries = tuned(averages, PLAYS, measured)
        choice = best(tries)
        results = self.rollouts(policy_with(choice), row)
        found = {
            "chosen": choice,
            "tries": [{**one, "score": round(value, 4)} for one, value in tries],
            "settings": {k: v for k, v in asdict(self.flags).items() if k in ("images", "updates", "image_updates")},
            "first_seed": results[0].seed,
            "success": {name: [int(result.success[name]) for result in results] for name in results[0].success},
            "max_coverage": [round(result.maxima["coverage"], 4) for result in results],
            "seconds": None if self.flags.busy else round(time.perf_counter() - begin, 1),
            "hardware": hardware(),
        }
        keep(self.flags.json, "rows", f"{row}/{acting}/{self.cell.name}", found)
        rates = ", ".join(f"{name} {rate(results, name):.3f}" for name in results[0].success)
        coverage = np.mean([result.maxima["coverage"] for result in results])
        print(f"{row}/{acting}/{self.cell.name}: {choice}: {rates}, coverage {coverage:.3f}", flush=True)

    def rollouts(self, policy: Policy, row: str, *, tuning: bool = False) -> list[RolloutResult]:
        """Episodes of the table, or those that settings are chosen on."""
        flags = self.flags
        count, first = (flags.tuning, TUNING) if tuning else (flags.episodes, TABLE)
        shift = self.base().evaluation.shift
        with progress_bar(f"{row}, {self.cell.name}: {'choose' if tuning else 'evaluate'}") as bar:
            return evaluate(policy, "pusht", EvaluationConfig(episodes=count, first_seed=first, shift=shift), bar)

    @staticmethod
    def score(results: list[RolloutResult]) -> float:
        """What settings are chosen by: success; where hardly any succeeds, coverage tells them apart."""
        return rate(results, CRITERION) + 0.01 * float(np.mean([result.maxima["coverage"] for result in results]))


def made_ready(pipeline: Pipeline) -> None:
    """The encoder, learned; the run's own policy, which calibrates novelty, is not needed."""
    pipeline.make("encoder")
    pipeline.hold = None


def _numbers(part: str) -> range:
    """Of one part of a written selection of episodes."""
    first, _, end = part.partition(":")
    return range(int(first), int(end) if end else int(first) + 1)


if __name__ == "__main__":
    raise SystemExit(command(Flags, main))
