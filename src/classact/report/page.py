"""One self-contained HTML page from the files of a run."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from classact.report import figures, headline, learning
from classact.report.plots import Plot, duration, environment, make_plot
from classact.report.reasons import reasons, world_size
from classact.report.sources import Row, Sources, encoder_name, plain, read_sources, row_label
from classact.report.style import BLUE, GREY, PURPLE, TEAL, percent, styles
from classact.runs import Run
from classact.storage import write_text


def build_report(root: Path) -> Path:
    """Write ``report.html`` into a run's folder, from that folder's files alone.

    The page needs no network: plotly.js, images and videos are inside, and a content security policy forbids the
    browser to load anything. Sections whose files are absent are left out, and the page says which and why.

    Returns:
        The page's path.

    Raises:
        DataError: the folder does not exist, holds nothing to report, or one of its files is damaged (named).
        StorageError: the page cannot be written; an older page is left as it was.
    """
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    sources = read_sources(root)
    templates = environment()
    templates.filters["encoder_name"] = encoder_name
    path = Run(sources.root).report
    page = templates.get_template("template.html").render(context(sources), plotly_js=Markup(get_plotlyjs()))
    write_text(path, page)
    return path


def context(sources: Sources) -> dict[str, Any]:
    """Everything the template shows."""
    config, rows = sources.config, sources.summary
    data = config.get("data") if isinstance(config.get("data"), dict) else {}
    main = headline.main_row(rows)
    return {
        "title": str(config.get("title") or (data or {}).get("name") or sources.root.resolve().name),
        "data": data or {},
        "created": _date(plain(config.get("created"))),
        "main": main,
        "main_policy": plain(main.get("policy")) if main else "",
        "main_shift": plain(main.get("shift")) if main else "",
        "comparisons": headline.comparisons(rows),
        "criteria": _table(rows),
        "constants": _constants(rows),
        "success": _success_plot(rows),
        "coverage": _coverage_plots(sources),
        "curves": _curve_plots(sources),
        "training": _training_plots(sources.training),
        "similarity": _similarity_plots(sources.similarity),
        "similarity_facts": sources.similarity,
        "videos": _videos(sources),
        "latent": _latent_plot(sources),
        "reasons": reasons(sources.neighbors) if sources.neighbors else [],
        "world": world_size(sources.neighbors) if sources.neighbors else 0,
        "settings": settings(config),
        "absent": sources.absent,
    }


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


def settings(config: Row) -> list[tuple[str, list[tuple[str, str]]]]:
    """The configuration as titled tables; timings are written as durations."""
    names = {"pretrain": "Pre-training", "data": "Data", "versions": "Versions", "hardware": "Hardware"}
    groups = []
    for key, title in names.items():
        if config.get(key):
            groups.append((title, flatten(config[key], "" if isinstance(config[key], dict) else key)))
    timings = config.get("timings")
    if isinstance(timings, dict) and timings:
        rows = [(str(k), duration(v) if isinstance(v, int | float) else str(v)) for k, v in timings.items()]
        groups.append(("Timings", rows))
    rest = {k: v for k, v in config.items() if k not in names and k not in ("title", "timings", "created")}
    if rest:
        groups.append(("Other settings", flatten(rest)))
    return groups


def _table(rows: list[Row]) -> list[tuple[str, list[tuple[str, Row]]]]:
    criteria = dict.fromkeys(str(row["criterion"]) for row in rows)
    return [(c, [(row_label(r, rows), r) for r in rows if str(r["criterion"]) == c]) for c in criteria]


def _constants(rows: list[Row]) -> str:
    same = [(k, {plain(row.get(k)) for row in rows}) for k in ("policy", "simulator", "shift")]
    return ", ".join(f"{k} {next(iter(v))}" for k, v in same if len(v) == 1 and v != {""})


def _success_plot(rows: list[Row]) -> Plot | None:
    if not rows:
        return None
    words = "; ".join(
        f"{row_label(row, rows)} by {row['criterion']}: {percent(row['success'])}, "
        f"interval {percent(row['low'])} to {percent(row['high'])}"
        for row in rows
    )
    return make_plot("success", figures.success_figure(rows), f"Success rates with 95% intervals. {words}.")


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
    look = styles([e.encoder for e in sources.evaluations])
    return [
        make_plot(
            f"curve-{i}",
            figures.curves_figure(e, look[e.encoder][0]),
            f"{e.metric} over steps for {e.label}: mean of {len(e.curves)} episodes over one thin line per episode; "
            f"the mean ends at {figures.held_mean(e.curves)[-1]:.3f}.",
            f"{len(e.curves)} episodes; the mean ends at {figures.held_mean(e.curves)[-1]:.3f}.",
            e.label,
        )
        for i, e in enumerate(sources.evaluations)
        if e.curves
    ]


def _training_plots(rows: list[Row]) -> list[Plot]:
    wanted = (
        ("loss", "loss", "Loss", BLUE),
        ("lr", "learning rate", "Learning rate", GREY),
        ("positives", "positives per anchor", "Positives per anchor, mean over the batch", TEAL),
        ("grad_norm", "gradient norm", "Gradient norm", PURPLE),
    )
    plots = []
    for key, axis, title, colour in wanted:
        values = [float(row[key]) for row in rows if row.get(key) is not None]
        if values:
            alt = f"{title} over training steps, from {values[0]:.4g} to {values[-1]:.4g}."
            figure = learning.training_figure(rows, key, axis, colour)
            plots.append(make_plot(f"training-{key}", figure, alt, title=title))
    return plots


def _similarity_plots(similarity: Row | None) -> list[Plot]:
    if not similarity:
        return []
    alt = f"Distribution of DTW distances between action sequences; threshold at {float(similarity['threshold']):.4g}."
    return [
        make_plot(f"similarity-{name}", learning.similarity_figure(similarity, zoom), alt, title=title)
        for name, zoom, title in (("all", False, "All pairs, logarithmic axis"), ("kept", True, "Around the threshold"))
    ]


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
        name = str(row["file"])
        still = name.endswith(".webp")
        content = base64.b64encode((folder / name).read_bytes()).decode("ascii")
        evaluation = str(row.get("evaluation", ""))
        result.append(
            {
                "still": still,
                "uri": f"data:{'image/webp' if still else 'video/mp4'};base64,{content}",
                "label": str(row.get("label", name)),
                "evaluation": labels.get(evaluation, evaluation),
                "seed": row.get("seed"),
                "coverage": row.get("coverage"),
                "success": row.get("success"),
            }
        )
    return result
