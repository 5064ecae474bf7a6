"""Objectives compared on the user's data: one run per objective and training seed, or existing evaluations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from classact.errors import ConfigError, DataError
from classact.evaluation.probe.latents import ProbeConfig
from classact.evaluation.rollout import SETTINGS, evaluation_settings
from classact.evaluation.rows import EvaluationRow, settings_difference
from classact.run.config import NON_IDENTITY_FIELDS
from classact.run.data import MODELS, folder_digest
from classact.run.folder import Run
from classact.run.held_out import RETRIEVAL
from classact.run.pretrain import Pipeline
from classact.run.probe import (
    ENCODERS,
    compared,
    flat_metrics,
    other_question,
    probe_file,
    probe_run,
    question,
    write_probe,
)
from classact.run.recording import evaluation_name
from classact.similarity import SimilarityConfig
from classact.sims import NO_SIMULATOR
from classact.utils.codec import first_difference, to_json, without
from classact.utils.statistics import (
    Estimate,
    difference_over_seeds,
    holm,
    permutation_p,
    success_over_seeds,
)
from classact.utils.storage import read_json, read_jsonl

logger = logging.getLogger(__name__)

ASKED = {"queries": ProbeConfig.queries, "pairs": ProbeConfig.pairs}
"""What runs are asked alike where a comparison probes them, besides the similarity of actions."""


@dataclass(frozen=True)
class Outcomes:
    """What one run reached.

    Attributes:
        name: of what is compared, shared by runs that differ by their training seed alone.
        run, seed: folder, and seed of the training.
        simulator, shift, max_steps, initial_states: of the evaluation (the last are seeds); empty where there was none.
        success: criterion -> 0 or 1 per episode.
        probe: metric without rollouts -> value, low and high (:func:`classact.run.probe.flat_metrics`).
        encoder: how the evaluation's rows name it, followed by what differs from the run's settings.
        settings: what decided the evaluation's episodes; what one of before it was written does not say is missing.
        asked: what the probe was asked (:func:`classact.run.probe.question`).
        notes: what is not known of these results.
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
    encoder: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


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
    # Mismatched settings and folders are refused before anything is trained.
    configs = [make().config.pretrain for make in runs.values()]
    # Of those that learn by it: runs of others have taken no flags of it, and shall be asked the same.
    similarity = next((one for one in configs if one.objective.needs_similarity), configs[0]).similarity
    for make in runs.values():
        make().pretrain()
    return [_measured(name, make(), similarity, rollouts, quiet) for (name, _), make in runs.items() if first]


def _measured(name: str, pipeline: Pipeline, similarity: SimilarityConfig, rollouts: bool, quiet: bool) -> Outcomes:
    run, evaluation = pipeline.run, pipeline.config.evaluation
    asked = tuple(range(evaluation.first_seed, evaluation.first_seed + evaluation.episodes))
    name_of = evaluation_name("retrieval", pipeline.label, evaluation.shift)
    if rollouts:
        rows, episodes = _known(run, name_of)
        wanted = evaluation_settings(pipeline.simulator, evaluation, pipeline.policy.spec)
        own = bool(rows) and rows[0].encoder == pipeline.label  # it may have been given the name of another one
        if not own or _states(episodes) != asked or settings_difference(_said(run, name_of), wanted):
            pipeline.evaluate()
    if pipeline.source.recorded.carries_actions().all():  # which a probe compares
        options: dict[str, Any] = {"similarity": similarity, **ASKED}
        there = probe_file(run).exists()
        difference = other_question(run, **options) if there else None
        if difference:
            logger.warning("%s is made again, for it was asked something else: %s.", probe_file(run), difference)
        if difference or not there:
            write_probe(run, probe_run(run, device=pipeline.device, quiet=quiet, **options))
    return read_outcomes(run.root, name, rollouts=rollouts)


def _known(run: Run, evaluation: str) -> tuple[list[EvaluationRow], list[dict[str, Any]]]:
    """Rows of an evaluation, and its episodes; both empty where it is missing."""
    rows = [row for row in run.read_summary() if row.evaluation == evaluation]
    return rows, read_jsonl(run.evaluation(evaluation) / "episodes.jsonl") if rows else []


def _said(run: Run, evaluation: str) -> dict[str, Any]:
    """What decided an evaluation's episodes; empty where it is of before that was written."""
    file = run.evaluation(evaluation) / SETTINGS
    return dict(read_json(file)) if file.exists() else {}


def _states(episodes: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    return tuple(int(row["seed"]) for row in episodes)


def _named(path: Path) -> tuple[Run, str | None]:
    """The run, and the name of its evaluation where ``path`` is RUN/evaluations/NAME, however it is written."""
    place = path if path.parent.name == "evaluations" else path.resolve()
    return (Run(place.parent.parent), place.name) if place.parent.name == "evaluations" else (Run(path), None)


def read_outcomes(path: Path, name: str = "", *, rollouts: bool = True) -> Outcomes:
    """What a run reached with retrieval in its own simulator, or in a given evaluation.

    ``path`` is the folder of a run, or of one of its evaluations (RUN/evaluations/NAME); the name is by default the
    run's title, with the evaluation's if given. With ``rollouts`` a missing evaluation is a DataError.
    """
    run, named = _named(path)
    settings = run.settings()
    title, usual = run.info().title, settings.evaluation
    made = Outcomes(name or title, str(run.root), settings.pretrain.seed)
    if not rollouts:
        return _probed(made, run, "learned")
    evaluation = named or evaluation_name("retrieval", settings.label, usual.shift)
    rows, episodes = _known(run, evaluation)
    if not rows:
        there = ", ".join(sorted({row.evaluation for row in run.read_summary()})) or "none"
        raise DataError(
            f"{run.root} has no evaluation {evaluation!r}; there are: {there}. Make it with 'classact evaluate "
            f"{run.root}', or name another one: {run.root}/evaluations/NAME."
        )
    if len(episodes) != rows[0].episodes:
        raise DataError(
            f"{run.evaluation(evaluation) / 'episodes.jsonl'} holds {len(episodes)} episodes, {run.summary} says "
            f"{rows[0].episodes}. Evaluate again."
        )
    said, row = _said(run, evaluation), rows[0]
    notes = () if "acting" in said else (_unsaid(run.evaluation(evaluation), said, row),)
    made = replace(
        made,
        name=name or (f"{title}, {evaluation}" if named else title),
        simulator=row.simulator,
        shift=row.shift,
        max_steps=said.get("max_steps", usual.max_steps),
        initial_states=_states(episodes),
        success={key: tuple(int(row["success"][key]) for row in episodes) for key in episodes[0]["success"]},
        encoder=row.encoder,
        settings=said,
        notes=notes,
    )
    if row.policy != RETRIEVAL:  # what a head does is not retrieved, and its encoder may be another one
        return made
    return _probed(made, run, row.encoder if row.encoder in ENCODERS else "learned")


def _unsaid(folder: Path, said: Mapping[str, Any], row: EvaluationRow) -> str:
    limit = "" if "max_steps" in said else ", its time limit from the settings of the run"
    return (
        f"{folder} does not say all of how it was made, for an earlier version wrote it: how the policy acted is taken "
        f"from its label, {row.encoder}{limit}."
    )


def _probed(made: Outcomes, run: Run, encoder: str) -> Outcomes:
    """With the metrics of a probe of the run's encoder, or of another one, if there is any of its present policy."""
    file = probe_file(run, encoder)
    if not file.exists():
        return made
    probe = read_json(file)
    asked = question(probe)
    if asked["policy"] not in (None, folder_digest(run.policy)):
        note = f"{file} is of an earlier policy of the run and left out. Probe again: classact probe {run.root}."
        return replace(made, notes=(*made.notes, note))
    return replace(made, probe=flat_metrics(probe), asked=asked)


def _kind(path: Path, one: Outcomes) -> dict[str, Any]:
    """What runs, or their evaluations, have in common that differ by their training seed alone."""
    run, named = _named(path)
    data = run.read_config().get("data") or {}
    return {
        "name": one.name,
        "settings": without(to_json(run.settings()), *NON_IDENTITY_FIELDS, "pretrain.seed"),
        "data": {key: data.get(key) for key in ("fingerprint", *MODELS)},
        "heads": _heads(run, one, named) if named else [],
    }


def _heads(run: Run, one: Outcomes, evaluation: str) -> list[Any]:
    """Settings of the head that acted; of all of this kind where the evaluation does not say which."""
    policy = next(row.policy for row in run.read_summary() if row.evaluation == evaluation)
    if policy == RETRIEVAL:
        return []
    names = sorted(card.parent.name for card in run.heads.glob("*/config.json"))
    heads = [run.head_settings(name) for name in names if one.settings.get("head", name) == name]
    other = ("finetune.seed", "finetune.evaluations", "evaluation", "intermediate_episodes")
    return [without(to_json(head), *other) for head in heads if head.finetune.head.name == policy]


def _acted_alike(one: Outcomes, other: Outcomes) -> bool:
    """Whether two evaluations were made in one way, from whatever initial states."""
    free = ("episodes", "first_seed", "head", "acting.seed")  # noise is as much by chance as initial states
    mine, theirs = (without(dict(each.settings), *free) for each in (one, other))
    # Labels tell it where settings do not.
    told = "acting" in mine and "acting" in theirs
    return settings_difference(mine, theirs) is None and (told or one.encoder == other.encoder)


def read_runs(paths: Sequence[Path]) -> list[Outcomes]:
    """What several runs reached, without rollouts where none has a simulator; those that differ by their training seed
    alone share a name.

    Two runs of the same settings and seed are a ConfigError.
    """
    found: list[tuple[Outcomes, Any]] = []
    places = [_named(path) for path in paths]
    rollouts = any(named or run.settings().frames.simulator != NO_SIMULATOR for run, named in places)
    for path in paths:
        one = read_outcomes(path, rollouts=rollouts)
        kind = _kind(path, one)
        alike = [other for other, known in found if known == kind and _acted_alike(other, one)]
        for other in alike:
            if other.seed == one.seed:
                raise ConfigError(
                    f"{other.run} and {one.run} have the same settings and training seed {one.seed}: they are one "
                    f"training. Leave one out."
                )
        taken = {other.name for other, _ in found}
        if alike:
            one = replace(one, name=alike[0].name)
        elif one.name in taken:
            longer = (f"{one.name} ({place})" for place in (Path(one.run).name, one.run, path))
            one = replace(one, name=next(name for name in longer if name not in taken))
        found.append((one, kind))
    return [one for one, _ in found]


def compare(runs: Sequence[Outcomes], notes: Sequence[str] = (), seed: int = 0) -> Comparison:
    """Success of each objective, and its difference from the first one's, on the same initial states; and metrics
    without rollouts of all that were asked what the first was asked.

    Raises:
        ConfigError: a single objective, or evaluations under other conditions (both runs and values are named).
    """
    groups: dict[str, list[Outcomes]] = {}
    runs = _asked_alike(runs)
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
    return Comparison(tuple(lines), tuple(runs), (*notes, *(note for one in runs for note in one.notes)))


def _asked_alike(runs: Sequence[Outcomes]) -> list[Outcomes]:
    """The same without the metrics of probes that were asked something else than the first one."""
    first = next((one for one in runs if one.asked), None)
    found = []
    for one in runs:
        # Which encoder was probed is what is compared.
        if first and one.asked and (difference := first_difference(compared(first.asked), compared(one.asked), "")):
            note = (
                f"The probe of {one.run} is left out, for that of {first.run} was asked something else: {difference}. "
                f"Probe both alike (classact probe)."
            )
            one = replace(one, probe={}, asked={}, notes=(*one.notes, note))
        found.append(one)
    return found


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
