"""What is written into a run's folder while it is made: times of stages, and results of rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from classact.data.types import RolloutResult
from classact.evaluation.config import EvaluationConfig
from classact.evaluation.rollout import run_evaluation
from classact.evaluation.rows import EvaluationRow
from classact.policies import Policy
from classact.run.folder import Run, RunInfo
from classact.utils.codec import to_json
from classact.utils.machine import hardware, versions
from classact.utils.progress import progress_bar
from classact.utils.storage import slug


def new_metadata(title: str) -> dict[str, Any]:
    """A run's or head's metadata beside settings: where and when it was made, how long it took."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    made: dict[str, Any] = to_json(RunInfo(title, versions(), hardware(), created, timings={}))
    return made


def add_time(run: Run, stage: str, seconds: float, *, again: bool = False) -> None:
    """Add seconds to those of earlier calls of a stage, or replace them where it is done again."""

    def change(metadata: dict[str, Any]) -> dict[str, Any]:
        before = 0.0 if again else metadata["timings"].get(stage, 0.0)
        metadata["timings"][stage] = round(before + seconds, 2)
        return metadata

    run.update_config(change)


def evaluation_name(policy: str, encoder: str, shift: str) -> str:
    """The name of an evaluation and of its folder, from the labels of its rows."""
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

    ``labels`` and ``encoder`` are those of the rows, ``name`` the evaluation's. The maximum of ``stage`` in
    intermediate.jsonl is added to the table as well.
    """
    simulator, config = evaluation
    run.check_writable()
    with progress_bar(f"roll out: {title}", quiet=quiet) as bar:
        folder = run.evaluation(name)
        results, rows = run_evaluation(policy, simulator, config, folder, encoder=encoder, labels=labels, progress=bar)
    if stage is not None:
        rows = rows + maximum_rows(run, stage, rows)
    run.add_summary(rows)
    return results, rows


def maximum_rows(run: Run, stage: str, last: Sequence[EvaluationRow]) -> list[EvaluationRow]:
    """The largest success over the evaluations during a training, by criterion, as in the paper's table 1.

    It is biased upwards, increasingly with the number of evaluations, which the rows state; they are named as those of
    the evaluation with the last weights.
    """
    out, rows = [], [m for m in run.read_intermediate() if m.stage == stage]
    for row in last:
        found = [m for m in rows if m.criterion == row.criterion]
        found = [m for m in found if (m.steps, m.shift) == (found[-1].steps, row.shift)]
        if len(found) > 1:
            best = max(found, key=lambda m: m.success)
            kept = {entry.name: getattr(best, entry.name) for entry in fields(EvaluationRow)}
            out.append(EvaluationRow(**kept | {"evaluation": row.evaluation, "maximum_of": len(found)}))
    return out
