"""One self-contained HTML page from the files of a run."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from classact.evaluation.rows import (
    ActionError,
    Consistency,
    EvaluationRow,
    IntermediateRow,
    measured_over,
    settings_difference,
)
from classact.pages import demonstrations, figures, headline, learning, novelty
from classact.pages.checks import Arrays
from classact.pages.heads import Head, stage_names
from classact.pages.plots import HERE, Plot, make_plot, write_page
from classact.pages.reasons import reasons, world_size
from classact.pages.similarity import distance_plots
from classact.pages.sources import Sources, read_sources
from classact.pages.style import BLUE, GREEN, GREY, ORANGE, PURPLE, TEAL, percent, styles
from classact.pages.table import (
    LABELS,
    Result,
    Row,
    augmentation_name,
    by_criterion,
    encoder_name,
    evaluations_of_maxima,
    plain,
    policy_name,
    row_label,
    row_parts,
    series,
)
from classact.run.folder import PRETRAIN, Run
from classact.utils.codec import to_json
from classact.utils.progress import duration
from classact.utils.storage import check_writable


def build_report(root: Path) -> Path:
    """Write ``report.html`` into a run's folder, from that folder's files alone, and return its path.

    Sections whose files are missing are left out, and the page says which and why.

    Raises:
        DataError: the folder does not exist, holds nothing to report, or a file is damaged (named).
        StorageError: the page cannot be written; an older page is left as it was.
    """
    sources = read_sources(root)
    path = Run(sources.root).report
    check_writable(path)
    content = context(sources)
    return write_page(path, HERE / "template.html", content, encoder_name=encoder_name, policy_name=policy_name)


def context(sources: Sources) -> dict[str, Any]:
    """Everything the template shows."""
    config, rows = sources.config, sources.summary
    data: Row = config["data"] if isinstance(config.get("data"), dict) else {}
    main = headline.main_row(rows, sources.own)
    return {
        "title": str(config.get("title") or data.get("name") or sources.root.resolve().name),
        "data": data,
        "created": _date(plain(config.get("created"))),
        "main": main,
        "main_policy": main.policy if main else "",
        "speed": sources.speed(main.policy) if main else 1.0,
        "main_shift": plain(main.shift) if main else "",
        "comparisons": headline.comparisons(main, rows),
        "head_results": headline.heads(main, rows),
        "actions": sorted(sources.actions, key=lambda one: one.l2.value),
        "actions_plot": _actions_plot(sources.actions),
        "best_actions": headline.best_actions(sources.actions),
        "references": headline.references(sources.actions),
        "measured_over": measured_over(sources.actions),
        "criteria": _table(rows),
        "maxima": evaluations_of_maxima(rows),
        "constants": _constants(rows),
        "success": _success_plot(rows),
        "coverage": _coverage_plots(sources),
        "metric": sources.evaluations[0].metric if sources.evaluations else "",
        "with_coverage": any("coverage" in row.metrics for row in rows),
        "with_parts": any("stage" in row.metrics for row in rows),
        "curves": _curve_plots(sources),
        "intermediate": _intermediate_plots(sources),
        "novelty": _novelty(sources),
        "novelty_meaning": novelty.meaning(sources.calibration),
        **_demonstrations(sources),
        "training": _training_plots("training", sources.training),
        "heads": [
            (head, _head_facts(head), _training_plots(head.name, head.training))
            for head in sources.heads
            if head.training
        ],
        "times": times(sources),
        "similarity": distance_plots("similarity", sources.similarity, "DTW distances between action sequences")
        if sources.similarity
        else [],
        "similarity_facts": sources.similarity,
        "videos": _videos(sources),
        "latent": _latent_plot(sources),
        "reasons": reasons(sources.neighbors, _head_chunks(sources, sources.neighbors), sources.numbers)
        if sources.neighbors
        else [],
        "world": world_size(sources.neighbors) if sources.neighbors else 0,
        "settings": settings(config, timings=not times(sources))
        + [(f"Head: {head.title}", flatten(to_json(head.settings))) for head in sources.heads],
        "absent": sources.absent,
    }


def _demonstrations(sources: Sources) -> dict[str, Any]:
    """Statistics, consistency, and videos of held-out ones."""
    statistics, found = sources.statistics, sources.consistency
    known = sources.numbers
    complete = statistics is not None and found is not None and len(found.episodes) <= len(known)
    return {
        "statistics": statistics,
        "data_facts": [] if statistics is None else demonstrations.facts(statistics),
        "spreads": [] if statistics is None else demonstrations.spreads(statistics),
        "films": demonstrations.films(Run(sources.root), sources.films),
        "consistency": found if complete else None,
        "consistency_plot": _consistency_plot(found, known) if complete and found else None,
        "inconsistent": demonstrations.inconsistent(found, sources.inconsistent, known)
        if complete and found and sources.inconsistent
        else [],
        "without": demonstrations.without(found, statistics, known)
        if complete and found and statistics and sources.of_one_set
        else "",
    }


def _consistency_plot(found: Consistency, known: list[int]) -> Plot:
    ranked = found.ranked
    words = (
        f"Errors of {len(ranked)} demonstrations, each from the actions that the others would take, the largest first: "
        f"from {ranked[0].error:.3g} (demonstration {known[ranked[0].episode]}) to {ranked[-1].error:.3g}."
    )
    return make_plot("consistency", figures.consistency_figure(found, known), words)


def _head_chunks(sources: Sources, queries: Arrays) -> dict[str, Any]:
    """What heads plan at the shown queries, by title; without those that were asked about others."""

    def asked(head: Arrays) -> bool:
        same = all(np.array_equal(head[name], queries[name]) for name in ("query_seed", "query_step"))
        return same and head["chunks"].shape[2] == queries["query_chunk"].shape[2]

    return {h.title: h.chunks["chunks"] for h in sources.heads if h.chunks is not None and asked(h.chunks)}


def _date(text: str) -> str:
    try:
        return f"{datetime.fromisoformat(text):%-d %B %Y, %H:%M}"
    except ValueError:
        return text


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, text) rows."""
    if isinstance(value, Mapping) and value:
        return [row for k, v in value.items() for row in flatten(v, f"{prefix}.{k}" if prefix else str(k))]
    return [(prefix, "none" if value is None else value if isinstance(value, str) else json.dumps(value, default=str))]


def settings(config: Row, *, timings: bool = True) -> list[tuple[str, list[tuple[str, str]]]]:
    """The configuration as titled tables; timings are written as durations, or left out."""
    names = {"pretrain": "Pre-training", "data": "Data", "versions": "Versions", "hardware": "Hardware"}
    groups = [
        (title, flatten(config[key], "" if isinstance(config[key], dict) else key))
        for key, title in names.items()
        if config.get(key)
    ]
    spent = config.get("timings")
    if timings and isinstance(spent, dict) and spent:
        rows = [(str(k), duration(v) if isinstance(v, int | float) else str(v)) for k, v in spent.items()]
        groups.append(("Timings", rows))
    rest = {k: v for k, v in config.items() if k not in names and k not in ("title", "timings", "created")}
    if rest:
        groups.append(("Other settings", flatten(rest)))
    return groups


def times(sources: Sources) -> list[tuple[str, list[tuple[str, float, float]]]]:
    """Duration of each stage of the run and of its heads: titled rows of (stage, seconds, share of all).

    Empty without times of heads: the run's own are then among its settings.
    """
    if not any(head.timings for head in sources.heads):
        return []
    own = sources.config.get("timings")
    run = {k: v for k, v in own.items() if isinstance(v, int | float)} if isinstance(own, dict) else {}
    groups = [("The run", run), *((head.title, head.timings) for head in sources.heads)]
    total = sum(sum(group.values()) for _, group in groups) or 1.0
    return [(t, [(str(k), float(v), float(v) / total) for k, v in group.items()]) for t, group in groups if group]


def _table(rows: list[EvaluationRow]) -> list[tuple[str, list[tuple[str, str, Result]]]]:
    return [(criterion, [(*row_parts(r.row, rows), r) for r in results]) for criterion, results in by_criterion(rows)]


def _constants(rows: list[EvaluationRow]) -> str:
    parts = []
    for key in LABELS:
        if key == "encoder":
            continue
        known = rows
        if key in ("training", "augmentation"):
            known = [row for row in rows if plain(row.training)]
        texts = {getattr(row, key) for row in known}
        names = {augmentation_name(text) if key == "augmentation" else plain(text) for text in texts}
        if len(names) == 1 and names != {""}:
            name = next(iter(names))
            parts.append(name if key in ("training", "augmentation") else f"{key} {name}")
    return ", ".join(parts)


def _success_plot(rows: list[EvaluationRow]) -> Plot | None:
    if not rows:
        return None
    words = "; ".join(
        f"{row_label(row, rows)} by {row.criterion}{'' if row.maximum_of is None else ', maximum'}: "
        f"{percent(row.success)}, interval {percent(row.low)} to {percent(row.high)}"
        for _, results in by_criterion(rows)
        for result in results
        for row in (result.last, result.maximum)
        if row
    )
    return make_plot("success", figures.success_figure(rows), f"Success rates with 95% intervals. {words}.")


def _actions_plot(errors: list[ActionError]) -> Plot | None:
    if not errors:
        return None
    words = "; ".join(f"{policy_name(one.policy)} {one.l2.value:.3g}" for one in errors)
    return make_plot("actions", figures.actions_figure(errors), f"L2 error of held-out actions: {words}.")


def _coverage_plots(sources: Sources) -> list[Plot]:
    evaluations = sources.evaluations
    if not evaluations:
        return []
    metric = evaluations[0].metric
    same = [e for e in evaluations if e.metric == metric]
    return [
        make_plot(
            "reached",
            figures.reached_figure(same),
            f"Share of episodes whose largest {metric} is at least a value, one curve per evaluation.",
            "Read upwards from any threshold: the height is the success rate that this threshold would give.",
            f"How far episodes get: largest {metric}",
        ),
        make_plot(
            "strip",
            figures.strip_figure(same),
            f"Largest {metric} of every episode, one row per evaluation, with medians.",
            "Each point is one episode; the upright line is the median.",
            "Episode by episode",
        ),
    ]


def _curve_plots(sources: Sources) -> list[Plot]:
    look = styles([e.series for e in sources.evaluations])
    plots = []
    for i, e in enumerate(sources.evaluations):
        if e.curves:
            count, end = len(e.curves), f"the mean ends at {figures.held_mean(e.curves)[-1]:.3f}."
            alt = f"{e.metric} over steps for {e.label}: mean of {count} episodes over one thin line per episode; {end}"
            figure = figures.curves_figure(e, look[e.series][0])
            plots.append(make_plot(f"curve-{i}", figure, alt, f"{count} episodes; {end}", e.label))
    return plots


def _training_plots(name: str, rows: list[Row]) -> list[Plot]:
    plots = []
    for key, axis, title, colour in (
        ("loss", "loss", "Loss", BLUE),
        ("kl", "nats", "Divergence of latent from action similarity (Proposition 1)", GREEN),
        ("lr", "learning rate", "Learning rate", GREY),
        ("positives", "positives per anchor", "Positives per anchor, mean over the batch", TEAL),
        ("grad_norm", "gradient norm", "Gradient norm", PURPLE),
    ):
        values = [float(row[key]) for row in rows if row.get(key) is not None]
        if not values:
            continue
        if key == "lr" and "encoder_lr" in rows[-1]:  # of a head
            figure = learning.rates_figure(rows)
            alt = f"Learning rate over training steps of {' and '.join(trace.name for trace in figure.data)}."
        else:
            figure = learning.training_figure(rows, key, axis, colour)
            alt = f"{title} over training steps, from {values[0]:.4g} to {values[-1]:.4g}."
        plots.append(make_plot(f"{name}-{key}", figure, alt, title=title))
    return plots


def _head_facts(head: Head) -> str:
    last = head.training[-1]
    steps = f"{last['step']:,} of {last['steps']:,} steps" if "steps" in last else f"{last['step']:,} steps"
    facts = [head.notes, steps]
    if last.get("loss") is not None:
        facts.append(f"loss {last['loss']:.3g}")
    if last.get("seconds") is not None:
        facts.append(duration(last["seconds"]))
    return ", ".join(filter(None, facts))


def _intermediate_plots(sources: Sources) -> list[Plot]:
    rows = sources.intermediates
    stages = list(dict.fromkeys(row.stage for row in rows))
    names = stage_names(sources.heads, stages)
    kinds = {stage: series(next(row for row in rows if row.stage == stage)) for stage in stages}
    look = styles([*(series(row) for row in sources.summary), *kinds.values()])
    looks = {stage: look[kind] for stage, kind in kinds.items()}
    plots = []
    for key, title, chosen in (
        ("intermediates-pretrain", "Retrieval during pre-training", [s for s in stages if s == PRETRAIN]),
        ("intermediates-heads", "Heads during their training", [s for s in stages if s != PRETRAIN]),
    ):
        part = [row for row in rows if row.stage in chosen]
        if part:
            words, otherwise = _intermediate_words(part, names), _otherwise(part, names)
            figure = learning.intermediate_figure(part, names, looks)
            # For several heads the sentence would be too long; the table above has the same numbers.
            caption = " ".join(filter(None, (words if len(chosen) == 1 else "", otherwise)))
            plots.append(make_plot(key, figure, f"Success over training steps. {words}", caption, title))
    return plots


def _intermediate_words(rows: list[IntermediateRow], names: Mapping[str, str]) -> str:
    criterion = rows[0].criterion
    words = []
    for stage in dict.fromkeys(row.stage for row in rows):
        part = [row for row in rows if row.stage == stage and row.criterion == criterion]
        if not part:
            continue
        last, best = part[-1], max(part, key=lambda row: row.success)
        words.append(
            f"{names[stage]}: {percent(last.success)} ({last.successes} of {last.episodes}) at step "
            f"{last.step:,}, the last; the largest of {len(part)} is {percent(best.success)}, at {best.step:,}"
        )
    return f"By {criterion}. {'. '.join(words)}."


def _otherwise(rows: list[IntermediateRow], names: Mapping[str, str]) -> str:
    """Which evaluations during trainings were made otherwise than the last of the same training; empty: none."""
    last = {row.stage: row for row in rows}
    found: dict[str, str] = {}
    for row in rows:
        if difference := settings_difference(row.settings, last[row.stage].settings):
            found.setdefault(row.stage, f"{names[row.stage]}: at step {row.step:,} {difference}.")
    return f"Not all points were evaluated as the last. {' '.join(found.values())}" if found else ""


def _novelty(sources: Sources) -> list[Row]:
    found: list[Row] = []
    for evaluation in sources.evaluations:
        if (given := evaluation.novelty) is not None:
            plots = _novelty_plots(f"novelty-{len(found)}", given, novelty.alarm_level(sources.calibration))
            counts = [(given.alarms(success), len(given.episodes(success))) for success in (True, False)]
            found.append({"label": evaluation.label, "criterion": given.criterion, "counts": counts, "plots": plots})
    return found


def _novelty_plots(key: str, given: novelty.EpisodeNovelty, alarm: float | None) -> list[Plot]:
    longest = max((int(steps[-1]) for steps in given.steps if len(steps)), default=1)
    plots = []
    for success, one, many, colour in ((True, "success", "successes", GREEN), (False, "failure", "failures", ORANGE)):
        count, alarms = len(given.episodes(success)), given.alarms(success)
        if not count:
            continue
        name = f"{count} {one if count == 1 else many}"
        words = "" if alarms is None else f"; {alarms} of them raised an alarm{' before success' if success else ''}"
        figure = figures.novelty_figure(given, success, colour, alarm, longest)
        alt = f"Novelty over the steps of {name}, one line per episode{words}."
        plots.append(make_plot(f"{key}-{many}", figure, alt, title=name))
    return plots


def _latent_plot(sources: Sources) -> Plot | None:
    if not sources.latent_map:
        return None
    xy, episode, progress = (sources.latent_map[k] for k in ("xy", "episode", "progress"))
    count = len(set(episode.tolist()))
    drawn = min(count, learning.MAX_EPISODES)
    some = f"{drawn} of the {count} mapped episodes are drawn" if drawn < count else f"{count} episodes"
    return make_plot(
        "latent",
        learning.latent_figure(xy, episode, progress),
        f"Two-dimensional t-SNE map of {len(xy)} latents from {count} episodes, one spline per episode.",
        f"t-SNE of {len(xy):,} latents, {some}. Splines are smoothed over neighbouring steps and end in a dot; "
        f"points are the positions themselves. Where splines of different episodes run together, the encoder "
        f"sees the same situation.",
    )


def _videos(sources: Sources) -> list[Row]:
    labels = {e.name: e.label for e in sources.evaluations}
    folder = Run(sources.root).analysis / "videos"
    result = []
    for row in sources.videos:
        content = base64.b64encode((folder / row.file).read_bytes()).decode("ascii")
        shown = {"uri": f"data:video/mp4;base64,{content}", "evaluation": labels.get(row.evaluation, row.evaluation)}
        result.append(vars(row) | shown)
    return result
