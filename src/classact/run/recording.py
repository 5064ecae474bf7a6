"""What is written into a run's folder while it is made: times of stages, and results of rollouts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from classact.data.types import RolloutResult
from classact.evaluation.config import EvaluationConfig
from classact.evaluation.rollout import evaluation_settings, run_evaluation
from classact.evaluation.rows import EvaluationRow, settings_difference
from classact.policies import Policy
from classact.run.folder import PRETRAIN, Run, RunInfo, stage_of
from classact.utils.codec import to_json, without
from classact.utils.machine import hardware, versions
from classact.utils.progress import progress_bar
from classact.utils.storage import slug

logger = logging.getLogger(__name__)


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
    title: str,
    quiet: bool,
    head: str | None = None,
    maximum: bool = False,
) -> tuple[list[RolloutResult], list[EvaluationRow]]:
    """Roll out a policy with its last weights, write the episodes, and add the rows to the run's table.

    ``labels`` and ``encoder`` are those of the rows, ``name`` the evaluation's, whose settings name the ``head``. With
    ``maximum`` that of the evaluations during its training is added to the table as well.
    """
    simulator, config = evaluation
    run.check_writable()
    with progress_bar(f"roll out: {title}", quiet=quiet) as bar:
        folder = run.evaluation(name)
        how: dict[str, Any] = {"encoder": encoder, "labels": labels, "about": {"head": head}}
        results, rows = run_evaluation(policy, simulator, config, folder, progress=bar, **how)
    if maximum:
        rows = rows + maximum_rows(run, stage_of(head), rows, evaluation_settings(simulator, config, policy.spec))
    run.add_summary(rows)
    return results, rows


def maximum_rows(
    run: Run, stage: str, last: Sequence[EvaluationRow], settings: Mapping[str, Any]
) -> list[EvaluationRow]:
    """The largest success over the evaluations during a training, by criterion, as in the paper's table 1.

    It is biased upwards, increasingly with the number of evaluations, which the rows state; they are named as those of
    the evaluation with the last weights. Evaluations of other ``settings`` than that one's are left out, apart from how
    many episodes they have, and from how a run says that they act (``intermediate_retrieval``).
    """
    own = run.settings().intermediate_retrieval if stage == PRETRAIN else None
    wanted = without(dict(settings), "episodes")
    if own is not None:
        wanted |= {"chunk_length": own.chunk_length, "speed": own.speed, "acting": own.acting_settings()}
    rows = [row for row in run.read_intermediate() if row.stage == stage]
    alike = [row for row in rows if settings_difference(row.settings, wanted) is None]
    alike = [row for row in alike if (row.steps, row.episodes) == (alike[-1].steps, alike[-1].episodes)]
    steps, counted = ({row.step for row in some} for some in (rows, alike))
    if steps > counted:
        others = [settings_difference(row.settings, wanted) for row in rows if row.step not in counted]
        logger.warning(
            "%s: %d of %d evaluations during %s are no part of a maximum beside the last weights, for they were made "
            "otherwise: %s.",
            *(run.intermediates, len(steps - counted), len(steps), stage),
            next(filter(None, others), None) or "with another number of episodes",
        )
    if unknown := {row.step for row in alike if not row.settings}:
        logger.warning(
            "%s: %d of %d evaluations during %s do not say how they were made (an earlier version wrote them): the "
            "maximum takes it that they were made as the last one.",
            *(run.intermediates, len(unknown), len(steps), stage),
        )
    out = []
    for row in last:
        found = [m for m in alike if (m.criterion, m.shift) == (row.criterion, row.shift)]
        if len(found) > 1:
            best = max(found, key=lambda m: m.success)
            kept = {entry.name: getattr(best, entry.name) for entry in fields(EvaluationRow)}
            out.append(EvaluationRow(**kept | {"evaluation": row.evaluation, "maximum_of": len(found)}))
    return out
