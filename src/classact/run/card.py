"""The model card of a run's policy: what it was learned from, how, and how well it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from classact.data.readers import EMBEDDED
from classact.data.readers.hub import is_hub_name
from classact.evaluation.rows import ActionError, EvaluationRow, Value, measured_over
from classact.policies.published import Published, policy_facts, policy_usage
from classact.run.folder import Run
from classact.run.recording import evaluation_name
from classact.run.stand_ins import ACTIONS
from classact.similarity.config import SimilarityConfig
from classact.sims import NO_SIMULATOR
from classact.train.config import describe
from classact.utils.hub import model_card


def run_card(
    run: Run,
    policy: Published,
    name: str,
    *,
    head: str | None = None,
    usage: str | None = None,
    page: str | None = None,
    library: str = "classact",
) -> str:
    """The card of a policy of a run.

    Args:
        run: where it was trained and evaluated.
        policy: loaded from there.
        name: its name on the hub, or its folder's: what is loaded in ``usage``.
        head: of the run's heads; None: retrieval.
        usage: Python that loads it; None: classact's.
        page: name of the run's page, which lies beside the card; None: there is none.
        library: that loads it.

    Raises:
        DataError: a damaged table of the run.
    """
    settings, data = run.settings(), run.read_config().get("data") or {}
    pretrain, source = settings.pretrain, ", ".join(settings.sources)
    published = source.partition("@")[0] if len(settings.sources) == 1 and is_hub_name(source) else None
    encoder = settings.label if head is None else run.head_settings(head).label(settings.label)
    rows = [row for row in run.read_summary() if row.maximum_of is None and row.encoder == encoder]
    rows = [row for row in rows if row.evaluation == evaluation_name(head or "retrieval", encoder, row.shift)]
    errors = run.read_actions()
    own = next((error for error in errors if error.policy == (head or "retrieval")), None)
    last = run.read_train_log()[-1:]
    per_step = pretrain.batch_size * pretrain.objective.images_per_anchor * len(pretrain.encoder.cameras)
    similarity = pretrain.similarity if pretrain.objective.needs_similarity else None
    facts: dict[str, object] = {
        "Data": source if published or source in EMBEDDED else data.get("name"),
        "Demonstrations": _demonstrations(data),
        "Steps per second": (data.get("schema") or {}).get("fps") or "not known",
        "Simulator": None if settings.frames.simulator == NO_SIMULATOR else settings.frames.simulator,
        "Objective": pretrain.objective.describe(),
        "Quantile K of similar action sequences": None if similarity is None else f"{100 * similarity.quantile:g} %",
        "Horizon of compared actions": None if similarity is None else _compared(similarity),
        "In the place of actions it learned from": None if settings.learns_from == ACTIONS else settings.learns_from,
        "Random views": describe(pretrain.augment),
        "Images seen in training": f"{int(row['step']) * per_step:,}" if (row := next(iter(last), None)) else "none",
        **policy_facts(policy),
    }
    if head is not None:
        facts["Training of the head"] = run.head_settings(head).labels["training"]
    sections = {"Success": _success(rows)} if rows else {}
    if own is not None:
        sections["Actions of held-out demonstrations"] = _actions(own, errors)
    if not sections:
        sections["Success"] = "It was not evaluated."
    if page is not None:
        sections["Page"] = f"Figures, reasons of decisions and learning curves: [{page}]({page})."
    title = name.rpartition("/")[2]
    about = (
        f"A policy learned from demonstrations ({'retrieval' if head is None else f'head {head}'}): camera images and "
        f"proprioception in, a chunk of actions out."
    )
    return model_card(
        title,
        about,
        facts,
        policy_usage(policy, name) if usage is None else usage,
        dataset=published,
        results=_results(rows, own, str(published or data.get("name") or "demonstrations")),
        sections=sections,
        library=library,
    )


def _compared(similarity: SimilarityConfig) -> str:
    means = f" as means of {similarity.stride}" if similarity.stride > 1 else ""
    return f"{similarity.horizon} steps{means}"


def _demonstrations(data: dict[str, Any]) -> str | None:
    if "episodes" not in data:
        return None
    held = data.get("heldout") or 0
    return f"{data['episodes']} ({data['steps']:,} steps){f', of which {held} were held out' if held else ''}"


def _success(rows: Sequence[EvaluationRow]) -> str:
    table = ["| simulator | shift | criterion | success | 95 % interval | episodes |", "|---|---|---|---|---|---|"]
    for row in rows:
        interval = f"{100 * row.low:.1f} to {100 * row.high:.1f} %"
        cells = (row.simulator, row.shift, row.criterion, f"{100 * row.success:.1f} %", interval, row.episodes)
        table.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(table)


def _actions(own: ActionError, errors: Sequence[ActionError]) -> str:
    table = ["| policy | L2 | DTW |", "|---|---|---|"]
    shown = (own, *(one for one in errors if one.policy in ("nearest by pixels", "random", "mean")))
    table += [f"| {error.policy} | {_value(error.l2)} | {_value(error.dtw)} |" for error in shown]
    count = len(own.by_episode)
    return (
        f"Distance of chunks {measured_over(shown)} from what was done in {count} held-out demonstrations, actions "
        f"scaled to [-1, 1], with 95 % intervals over demonstrations.\n\n" + "\n".join(table)
    )


def _value(value: Value) -> str:
    return f"{value.value:.3g}" + ("" if value.low is None else f" ({value.low:.3g} to {value.high:.3g})")


def _results(rows: Sequence[EvaluationRow], own: ActionError | None, data: str) -> list[Any]:
    from huggingface_hub import EvalResult

    shared: dict[str, Any] = {"task_type": "robotics", "task_name": "Robot control"}
    results = [
        EvalResult(
            **shared,
            dataset_type=row.simulator,
            dataset_name=f"{row.simulator}, {row.shift}",
            metric_type="success-rate",
            metric_name=f"Success ({row.criterion}), {row.episodes} episodes, 95 % {row.low:.3f} to {row.high:.3f}",
            metric_value=round(row.success, 4),
        )
        for row in rows
    ]
    if own is not None:
        name = f"L2 error of actions on {len(own.by_episode)} held-out demonstrations"
        measured: dict[str, Any] = {
            "metric_type": "action-error",
            "metric_name": name,
            "metric_value": round(own.l2.value, 4),
        }
        results.append(EvalResult(**shared, dataset_type=data, dataset_name=data, **measured))
    return results
