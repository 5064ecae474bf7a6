"""Objectives compared on the user's data: one run per objective and training seed, or existing evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from classact.errors import ConfigError, DataError
from classact.evaluation.rollout import SETTINGS, evaluation_settings
from classact.evaluation.rows import EvaluationRow
from classact.run.config import NON_IDENTITY_FIELDS
from classact.run.data import MODELS
from classact.run.folder import Run
from classact.run.pretrain import Pipeline
from classact.run.probe import flat_metrics, probe_file, probe_run, write_probe
from classact.run.recording import evaluation_name
from classact.sims import NO_SIMULATOR
from classact.utils.codec import to_json, without
from classact.utils.statistics import (
    Estimate,
    difference_over_seeds,
    holm,
    permutation_p,
    success_over_seeds,
)
from classact.utils.storage import read_json, read_jsonl


@dataclass(frozen=True)
class Outcomes:
    """What one run reached.

    Attributes:
        name: of what is compared, shared by runs that differ by their training seed alone.
        run, seed: folder, and seed of the training.
        simulator, shift, max_steps, initial_states: of the evaluation (the last are seeds); empty where there was none.
        success: criterion -> 0 or 1 per episode.
        probe: metric without rollouts -> value, low and high (:func:`classact.run.probe.flat_metrics`).
    """

    name: str
    run: str
    seed: int
    simulator: str = ""
    shift: str = ""
    max_steps: int | None = None
    initial_states: tuple[int, ...] = ()
    success: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    probe: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """Success of one objective by one criterion, and its difference from the first objective's.

    Attributes:
        success: mean over seeds, with Wilson's interval, or for several seeds a bootstrap's over initial states.
        by_seed: success of each training, with Wilson's interval.
        difference: from the first objective; None for that one, as all below.
        won, lost: initial states from which this one succeeds more often, and less often, than the first.
        p: of McNemar's exact test, or for several seeds the permutation test's; adjusted: by Holm's procedure.
    """

    name: str
    criterion: str
    success: Estimate
    by_seed: tuple[Estimate, ...]
    difference: Estimate | None = None
    won: int | None = None
    lost: int | None = None
    p: float | None = None
    adjusted: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What is printed and written: success by criterion and objective, each run's results, and notes."""

    lines: tuple[Line, ...]
    runs: tuple[Outcomes, ...]
    notes: tuple[str, ...] = ()

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics without rollouts."""
        return list(dict.fromkeys(metric for run in self.runs for metric in run.probe))


def train_and_evaluate(
    runs: Mapping[tuple[str, int], Callable[[], Pipeline]], *, first: bool, rollouts: bool, quiet: bool
) -> list[Outcomes]:
    """Train each run, roll it out and probe it, unless its folder has the results.

    ``runs`` makes the pipeline of each name and training seed. Processes other than the ``first`` only train.
    """
    for make in runs.values():
        make()  # mismatched settings and folders are refused before anything is trained
    for make in runs.values():
        make().pretrain()
    return [_measured(name, make(), rollouts, quiet) for (name, _), make in runs.items() if first]


def _measured(name: str, pipeline: Pipeline, rollouts: bool, quiet: bool) -> Outcomes:
    run, evaluation = pipeline.run, pipeline.config.evaluation
    asked = tuple(range(evaluation.first_seed, evaluation.first_seed + evaluation.episodes))
    name_of = evaluation_name("retrieval", pipeline.label, evaluation.shift)
    done, said = _known(run, name_of)[1], _said(run, name_of)
    wanted = evaluation_settings(pipeline.simulator, evaluation, pipeline.policy.spec) if rollouts else None
    if rollouts and (_states(done) != asked or (said is not None and said != wanted)):
        pipeline.evaluate()
    if not probe_file(run).exists() and pipeline.source.recorded.carries_actions().all():  # which a probe compares
        write_probe(run, probe_run(run, device=pipeline.device, quiet=quiet))
    return read_outcomes(run.root, name, rollouts=rollouts)


def _known(run: Run, evaluation: str) -> tuple[list[EvaluationRow], list[dict[str, Any]]]:
    """Rows of an evaluation, and its episodes; both empty where it is missing."""
    rows = [row for row in run.read_summary() if row.evaluation == evaluation]
    return rows, read_jsonl(run.evaluation(evaluation) / "episodes.jsonl") if rows else []


def _said(run: Run, evaluation: str) -> dict[str, Any] | None:
    """What decided an evaluation's episodes; None where it is of before that was written."""
    file = run.evaluation(evaluation) / SETTINGS
    return dict(read_json(file)) if file.exists() else None


def _states(episodes: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    return tuple(int(row["seed"]) for row in episodes)


def read_outcomes(path: Path, name: str = "", *, rollouts: bool = True) -> Outcomes:
    """What a run reached with retrieval in its own simulator, or in a given evaluation.

    ``path`` is the folder of a run, or of one of its evaluations (RUN/evaluations/NAME); the name is by default the
    run's title, with the evaluation's if given. With ``rollouts`` a missing evaluation is a DataError.
    """
    named = path.parent.name == "evaluations"
    run = Run(path.parent.parent if named else path)
    settings = run.settings()
    title, usual = run.info().title, settings.evaluation
    probe = flat_metrics(read_json(probe_file(run))) if probe_file(run).exists() else {}
    made = Outcomes(name or title, str(run.root), settings.pretrain.seed, probe=probe)
    if not rollouts:
        return made
    evaluation = path.name if named else evaluation_name("retrieval", settings.label, usual.shift)
    rows, episodes = _known(run, evaluation)
    if not rows:
        there = ", ".join(sorted({row.evaluation for row in run.read_summary()})) or "none"
        raise DataError(
            f"{run.root} has no evaluation {evaluation!r}; there are: {there}. Make it with 'classact evaluate "
            f"{run.root}', or name another one: {run.root}/evaluations/NAME."
        )
    return replace(
        made,
        name=name or (f"{title}, {evaluation}" if named else title),
        simulator=rows[0].simulator,
        shift=rows[0].shift,
        max_steps=(to_json(usual) if (said := _said(run, evaluation)) is None else said)["max_steps"],
        initial_states=_states(episodes),
        success={key: tuple(int(row["success"][key]) for row in episodes) for key in episodes[0]["success"]},
    )


def _simulates(path: Path) -> bool:
    return Run(path).settings().frames.simulator != NO_SIMULATOR


def _kind(path: Path) -> dict[str, Any]:
    """What runs, or their evaluations, have in common that differ by their training seed alone."""
    named = path.parent.name == "evaluations"
    run = Run(path.parent.parent if named else path)
    data = run.read_config().get("data") or {}
    settings = run.settings()
    evaluation = path.name if named else evaluation_name("retrieval", settings.label, settings.evaluation.shift)
    heads = [head.name for head in run.heads.glob("*") if named and path.name.startswith(f"{head.name}-")]
    return {
        "settings": without(to_json(settings), *NON_IDENTITY_FIELDS, "pretrain.seed"),
        "data": {key: data.get(key) for key in ("fingerprint", *MODELS)},
        "evaluation": without(_said(run, evaluation) or {}, "episodes", "first_seed"),
        "heads": [without(to_json(run.head_settings(head)), "finetune.seed", "evaluation") for head in heads],
    }


def read_runs(paths: Sequence[Path]) -> list[Outcomes]:
    """What several runs reached, without rollouts where none has a simulator; those that differ by their training seed
    alone share a name.

    Two runs of the same settings and seed are a ConfigError.
    """
    found: list[tuple[Outcomes, Any]] = []
    rollouts = any(path.parent.name == "evaluations" or _simulates(path) for path in paths)
    for path in paths:
        one = read_outcomes(path, rollouts=rollouts)
        kind = one.name, _kind(path)
        alike = [other for other, known in found if known == kind]
        for other in alike:
            if other.seed == one.seed:
                raise ConfigError(
                    f"{other.run} and {one.run} have the same settings and training seed {one.seed}: they are one "
                    f"training. Leave one out."
                )
        if alike:
            one = replace(one, name=alike[0].name)
        elif any(other.name == one.name for other, _ in found):
            one = replace(one, name=f"{one.name} ({Path(one.run).name})")
        found.append((one, kind))
    return [one for one, _ in found]


def compare(runs: Sequence[Outcomes], notes: Sequence[str] = (), seed: int = 0) -> Comparison:
    """Success of each objective, and its difference from the first one's, on the same initial states.

    Raises:
        ConfigError: a single objective, or evaluations under other conditions (both runs and values are named).
    """
    groups: dict[str, list[Outcomes]] = {}
    for one in runs:
        check_comparable(runs[0], one)
        groups.setdefault(one.name, []).append(one)
    if len(groups) < 2:
        raise ConfigError(f"expected at least two objectives or runs to compare, got {', '.join(groups) or 'none'}.")
    lines = []
    for criterion in runs[0].success:
        rng = np.random.default_rng(seed)
        base, *others = reached = [np.array([one.success[criterion] for one in group]) for group in groups.values()]
        tests = [permutation_p(mine, base) for mine in others]
        for name, mine, p, adjusted in zip(groups, reached, [None, *tests], [None, *holm(tests)], strict=True):
            by_seed = tuple(success_over_seeds(row[None], rng) for row in mine)
            line = Line(name, criterion, success_over_seeds(mine, rng), by_seed, p=p, adjusted=adjusted)
            if p is not None:
                gain = len(base) * mine.sum(axis=0) - len(mine) * base.sum(axis=0)
                won, lost = int((gain > 0).sum()), int((gain < 0).sum())
                line = replace(line, difference=difference_over_seeds(mine, base, rng), won=won, lost=lost)
            lines.append(line)
    return Comparison(tuple(lines), tuple(runs), tuple(notes))


def check_comparable(first: Outcomes, other: Outcomes) -> None:
    """Refuse evaluations under other conditions; the ConfigError names both runs and the first difference."""
    for what, mine, theirs in (
        ("the simulator", first.simulator, other.simulator),
        ("the shift", first.shift, other.shift),
        ("the time limit", first.max_steps, other.max_steps),
        ("the criteria", list(first.success), list(other.success)),
        ("how many initial states", len(first.initial_states), len(other.initial_states)),
        ("the seeds of the initial states", first.initial_states, other.initial_states),
    ):
        if mine != theirs:
            raise ConfigError(
                f"{first.run} and {other.run} were not evaluated alike: {what}, {mine!r} and {theirs!r}. Evaluate them "
                f"under one simulator, shift and seeds ('classact evaluate'), and compare RUN/evaluations/NAME."
            )
