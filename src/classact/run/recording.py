"""What a run's folder is told while it is made: how long stages took, what rollouts gave, at the end and on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, TypeVar

from classact.data.types import RolloutResult
from classact.evaluation.config import EvaluationConfig
from classact.evaluation.rollout import run_evaluation
from classact.evaluation.rows import EvaluationRow, IntermediateRow
from classact.policies import Policy
from classact.run.folder import Run, RunInfo
from classact.utils.codec import to_json
from classact.utils.machine import hardware, versions
from classact.utils.progress import Callback, progress_bar
from classact.utils.storage import slug

Learner = TypeVar("Learner")
Learned = TypeVar("Learned")


def new_card(title: str) -> dict[str, Any]:
    """What the settings file of a run or a head says beside settings: where and when it was made, how long it took."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    made: dict[str, Any] = to_json(RunInfo(title, versions(), hardware(), created, timings={}))
    return made


def add_time(run: Run, stage: str, seconds: float, *, again: bool = False) -> None:
    """Add seconds to what earlier calls spent on a stage, or put them in the place of that where it is done again."""

    def change(card: dict[str, Any]) -> dict[str, Any]:
        before = 0.0 if again else card["timings"].get(stage, 0.0)
        card["timings"][stage] = round(before + seconds, 2)
        return card

    run.update_config(change)


@contextmanager
def timed(run: Run, stage: str, *, again: bool = False, keep: bool = True) -> Iterator[None]:
    """Measure a stage and write it into the run's settings, see :func:`add_time`."""
    begin = time.perf_counter()
    yield
    if keep:
        add_time(run, stage, time.perf_counter() - begin, again=again)


def timed_fit(
    run: Run,
    stage: str,
    fit: Callable[[Callback, Callable[[Learner], None] | None], Learned],
    evaluate: Callable[[Learner], None] | None,
    *,
    keep: bool,
    title: str,
    quiet: bool,
) -> Learned:
    """Train, and write into the run's settings how long the training took, and how long its evaluations did.

    Args:
        run: the folder.
        stage: what the training is called there; its evaluations are "evaluate during STAGE".
        fit: the training; takes a progress callback and what to call with itself at its intermediate evaluations.
        evaluate: called there; None: never.
        keep: write the times.
        title: of the progress bar.
        quiet: show none.

    Returns:
        What ``fit`` returns.
    """
    evaluating: list[float] = []

    def intermediate(at: Learner) -> None:
        begin = time.perf_counter()
        if evaluate is not None:
            evaluate(at)
        evaluating.append(time.perf_counter() - begin)

    begin = time.perf_counter()
    with progress_bar(title, quiet=quiet) as bar:
        trained = fit(bar, None if evaluate is None else intermediate)
    if keep:
        add_time(run, stage, time.perf_counter() - begin - sum(evaluating))
        if evaluating:
            add_time(run, f"evaluate during {stage}", sum(evaluating))
    return trained


def evaluation_name(policy: str, encoder: str, shift: str) -> str:
    """The name of an evaluation, which is that of its folder, from the labels of its rows."""
    return slug(f"{policy}-{encoder}-{shift}")


def roll_out(
    run: Run,
    name: str,
    policy: Policy,
    encoder: str,
    evaluation: tuple[str, EvaluationConfig],
    labels: Mapping[str, str],
    *,
    stage: str | None,
    title: str,
    quiet: bool,
) -> tuple[list[RolloutResult], list[EvaluationRow]]:
    """Roll out a policy with its last weights, write the episodes, and add the rows to the run's table.

    Args:
        run: the folder.
        name: of the evaluation.
        policy: what acts.
        encoder: label for tables.
        evaluation: simulator and settings.
        labels: further labels.
        stage: of intermediate.jsonl, whose maximum is added to the table as well; None: none is.
        title: of the progress bar.
        quiet: show none.

    Returns:
        Results, and the new rows.
    """
    simulator, config = evaluation
    run.check_writable()
    with progress_bar(f"roll out: {title}", quiet=quiet) as bar:
        results, rows = run_evaluation(
            policy,
            simulator,
            config,
            run.evaluation(name),
            encoder=encoder,
            labels=labels,
            progress=bar,
        )
    if stage is not None:
        rows = rows + maximum_rows(run, stage, rows)
    run.add_summary(rows)
    return results, rows


def evaluate_intermediate(
    run: Run,
    policy: Policy,
    encoder: str,
    stage: str,
    at: tuple[int, int],
    evaluation: tuple[str, EvaluationConfig],
    labels: Mapping[str, str],
) -> None:
    """Roll out a policy in the middle of its training and add the rows to intermediate.jsonl, unless they are there.

    Args:
        run: the folder.
        policy: with the weights of this timestep.
        encoder: label for tables.
        stage: "pretrain" or "heads/NAME".
        at: (step, steps) of the training.
        evaluation: simulator and settings.
        labels: further labels.
    """
    simulator, config = evaluation
    mark = (stage, *at, config.episodes, config.shift)
    if any((row.stage, row.step, row.steps, row.episodes, row.shift) == mark for row in run.read_intermediate()):
        return
    folder = run.intermediate(stage, at[0])
    _, rows = run_evaluation(policy, simulator, config, folder, encoder=encoder, labels=labels)
    run.add_intermediate([IntermediateRow(**vars(row), stage=stage, step=at[0], steps=at[1]) for row in rows])


def maximum_rows(run: Run, stage: str, last: Sequence[EvaluationRow]) -> list[EvaluationRow]:
    """The largest success over the evaluations during a training, by criterion: what the paper's table 1 reports.

    It is biased upwards, the more so the more evaluations there are; the rows say how many.

    Args:
        run: the folder.
        stage: of intermediate.jsonl.
        last: rows of the evaluation with the last weights, whose evaluation's name the rows extend.
    """
    out = []
    for row in last:
        found = [m for m in run.read_intermediate() if m.stage == stage and m.criterion == row.criterion]
        found = [m for m in found if (m.steps, m.shift) == (found[-1].steps, row.shift)]
        if len(found) > 1:
            best = max(found, key=lambda m: m.success)
            kept = {f.name: getattr(best, f.name) for f in fields(EvaluationRow)}
            changed = {"evaluation": row.evaluation, "maximum_of": len(found)}
            out.append(EvaluationRow(**kept | changed))
    return out
