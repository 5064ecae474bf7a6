"""The contents of a run's folder for the report: read, checked, or missing with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from classact.data.statistics import Statistics
from classact.errors import DataError
from classact.evaluation.rows import (
    ActionError,
    Consistency,
    EvaluationRow,
    IntermediateRow,
    NoveltyVideo,
    VideoRow,
)
from classact.pages.checks import Arrays, mapping, need, shapes
from classact.pages.heads import Head, read_heads, read_log
from classact.pages.novelty import EpisodeNovelty, read_calibration, read_novelty
from classact.pages.table import Row, row_label, series
from classact.policies.novelty import Novelty
from classact.run.config import RunConfig
from classact.run.folder import Run
from classact.sims import NO_SIMULATOR
from classact.utils.codec import from_json
from classact.utils.storage import read_arrays, read_json, read_jsonl

R = TypeVar("R")
V = TypeVar("V", VideoRow, NoveltyVideo)


@dataclass(frozen=True)
class Evaluation:
    """One folder under ``evaluations/``: its episodes, and per episode the trace of ``metric`` where stored."""

    name: str
    series: str
    label: str
    metric: str
    maxima: NDArray[np.float64]
    curves: list[NDArray[np.float32]] | None
    novelty: EpisodeNovelty | None = None


@dataclass(frozen=True)
class Sources:
    """Everything the report draws; None or empty where files are missing, with the reason in ``absent``.

    ``settings`` are those of the run, where ``config`` holds any.
    """

    root: Path
    config: Row
    settings: RunConfig | None
    training: list[Row]
    summary: list[EvaluationRow]
    evaluations: list[Evaluation]
    similarity: Row | None
    latent_map: Arrays | None
    neighbors: Arrays | None
    videos: list[VideoRow]
    absent: dict[str, str] = field(default_factory=dict)
    heads: list[Head] = field(default_factory=list)
    intermediates: list[IntermediateRow] = field(default_factory=list)
    calibration: Novelty | None = None
    actions: list[ActionError] = field(default_factory=list)
    statistics: Statistics | None = None
    consistency: Consistency | None = None
    inconsistent: Arrays | None = None
    films: list[NoveltyVideo] = field(default_factory=list)

    @property
    def numbers(self) -> list[int]:
        """Of each of the run's demonstrations its number in the data set; empty where no statistics are there."""
        count = 0 if self.statistics is None else self.statistics.demonstrations
        return list(range(count)) if self.settings is None else self.settings.numbers(count)

    @property
    def of_one_set(self) -> bool:
        """Whether the run's demonstrations are of one data set, so that ``--episodes`` can choose some by number."""
        return self.settings is None or len(self.settings.sources) == 1

    @property
    def own(self) -> str:
        """The name of the run's encoder in rows."""
        return self.settings.label if self.settings else ""

    def speed(self, policy: str) -> float:
        """Demonstrated steps per executed one of a policy of the run, by its name in rows."""
        speeds = {head.name: head.settings.finetune.speed for head in self.heads}
        return speeds.get(policy, self.settings.retrieval.speed if self.settings else 1.0)


def read_sources(root: Path) -> Sources:
    """Read a run's folder; a DataError if it does not exist, holds nothing to report, or a file is damaged (named)."""
    run = Run(Path(root))
    if not run.root.is_dir():
        raise DataError(f"{run.root} does not exist or is not a folder. Expected a run's folder written by classact.")
    absent: dict[str, str] = {}

    def present(section: str, path: Path) -> bool:
        if not path.exists():
            absent[section] = f"{path.relative_to(run.root)} is not there"
        return path.exists()

    config = mapping(run.config) if present("Settings", run.config) else {}
    training = read_log(run) if present("Training", run.train_log) else []
    if run.train_log.exists() and not training:
        absent["Training"] = f"{run.train_log.name} holds no row yet"
    simulated = "settings" not in config or run.settings().frames.simulator != NO_SIMULATOR
    rolled = present("Success", run.summary) if simulated else run.summary.exists()
    summary = run.read_summary() if rolled else []
    if run.summary.exists() and not summary:
        absent["Success"] = f"{run.summary.name} holds no row yet"
    evaluations = _evaluations(run, summary)
    if not simulated and not summary:
        absent["Success"] = "there is no simulator to roll out in; held-out actions are compared instead"
    elif not evaluations:
        absent["Coverage"] = "no evaluations/NAME/episodes.jsonl is there"
    elif all(e.curves is None for e in evaluations):
        absent["Coverage over steps"] = f"no evaluations/NAME/rollouts.safetensors holds {evaluations[0].metric} traces"
    heads, intermediates = read_heads(run), run.read_intermediate()
    absent |= {f"Training of {h.title}": f"{h.stage}/train.jsonl holds no row yet" for h in heads if not h.training}
    for section, there, reason in (
        ("Heads", heads, "no heads/NAME/config.json is there"),
        ("Success during training", intermediates, f"{run.intermediates.name} is not there or holds no row"),
        ("Novelty", any(e.novelty for e in evaluations), "no evaluations/NAME/rollouts.safetensors holds novelty"),
    ):
        if not there and (simulated or section == "Heads"):
            absent[section] = reason
    similarity_path = run.analysis / "similarity.json"
    map_path, neighbors_path = run.analysis / "latent_map.safetensors", run.neighbors
    videos_path, films_path = run.analysis / "videos" / "videos.json", run.novelty / "videos.json"
    shows_films = not simulated and not summary and present("Novelty", films_path)
    sources = Sources(
        root=run.root,
        config=config,
        settings=run.settings() if "settings" in config else None,
        training=training,
        summary=summary,
        evaluations=evaluations,
        similarity=_similarity(similarity_path) if present("Action similarity", similarity_path) else None,
        latent_map=read_latent_map(map_path) if present("Latent map", map_path) else None,
        neighbors=read_neighbors(neighbors_path) if present("Reasons", neighbors_path) else None,
        videos=_videos(videos_path, VideoRow) if (simulated or summary) and present("Videos", videos_path) else [],
        absent=absent,
        heads=heads,
        intermediates=intermediates,
        calibration=read_calibration(run),
        actions=run.read_actions(),
        statistics=_record(Statistics, run.statistics) if present("Data", run.statistics) else None,
        consistency=_record(Consistency, run.consistency) if present("Consistency", run.consistency) else None,
        inconsistent=_inconsistent(run.inconsistent) if run.consistency.exists() else None,
        films=_videos(films_path, NoveltyVideo) if shows_films else [],
    )
    if videos_path.exists() and not sources.videos:
        absent["Videos"] = "analysis/videos/videos.json lists no video"
    drawn = (config, training, summary, evaluations, sources.similarity, sources.latent_map, sources.neighbors)
    if not any(drawn) and not any((sources.videos, heads, intermediates, sources.actions)):
        raise DataError(f"{run.root} holds nothing to report: {'; '.join(absent.values())}. Train or evaluate first.")
    return sources


def _evaluations(run: Run, summary: list[EvaluationRow]) -> list[Evaluation]:
    first: dict[str, EvaluationRow] = {}
    # A maximum names the folder of the last checkpoint's evaluation, whose row that is.
    for row in sorted(summary, key=lambda row: row.maximum_of is not None):
        first.setdefault(row.evaluation, row)
    folder = run.evaluation("x").parent
    found = sorted(path.parent.name for path in folder.glob("[!.]*/episodes.jsonl"))
    order = [name for name in first if name in found] + [name for name in found if name not in first]
    rows = list(first.values())
    result = []
    for name in order:
        path = run.evaluation(name) / "episodes.jsonl"
        episodes = read_jsonl(path)
        for number, episode in enumerate(episodes, 1):
            need(path, episode, ("seed", "maxima"), f"row {number}")
        if not episodes or not episodes[0]["maxima"]:
            continue
        metrics = episodes[0]["maxima"]
        metric = next(m for m in ("coverage", "success", *metrics) if m in metrics)
        known = first.get(name)
        rollouts = run.evaluation(name) / "rollouts.safetensors"
        arrays = read_arrays(rollouts) if rollouts.exists() else {}
        result.append(
            Evaluation(
                name=name,
                series=series(known) if known else name,
                label=_label(known, rows) if known else name,
                metric=metric,
                maxima=np.array([episode["maxima"].get(metric, np.nan) for episode in episodes], dtype=np.float64),
                curves=_curves(rollouts, arrays, metric),
                novelty=read_novelty(path, rollouts, episodes, arrays, known.criterion if known else None),
            )
        )
    return result


def _label(row: EvaluationRow, rows: Sequence[EvaluationRow]) -> str:
    return row_label(row, rows) + ("" if row.maximum_of is None else f", maximum of {row.maximum_of}")


def _curves(path: Path, arrays: Arrays, metric: str) -> list[NDArray[np.float32]] | None:
    if metric not in arrays or "ends" not in arrays:
        return None
    trace, ends = arrays[metric], arrays["ends"]
    if trace.ndim != 1 or ends.ndim != 1 or not len(ends) or int(ends[-1]) != len(trace):
        raise DataError(
            f"{path}: ends {ends.shape} ends at {int(ends[-1]) if ends.size else 0}, {metric} has shape {trace.shape}; "
            f"the last end must equal the number of rows. Evaluate again."
        )
    return [part for part in np.split(trace.astype(np.float32), ends[:-1].astype(np.int64)) if len(part)]


def _similarity(path: Path) -> Row:
    value = mapping(path)
    need(path, value, ("threshold", "histogram"), "top level")
    need(path, value["histogram"], ("edges", "counts"), "histogram")
    edges, counts = value["histogram"]["edges"], value["histogram"]["counts"]
    if len(edges) != len(counts) + 1 or not counts:
        raise DataError(f"{path}: expected one more edge than counts, got {len(edges)} edges and {len(counts)} counts.")
    return value


def read_latent_map(path: Path) -> Arrays:
    """Points of a run's latent map; a DataError where it is missing, damaged, or empty."""
    arrays = read_arrays(path)
    n = len(arrays.get("xy", ()))
    shapes(path, arrays, {"xy": (n, 2), "episode": (n,), "progress": (n,)})
    if n == 0:
        raise DataError(f"{path}: xy holds 0 points, expected at least 1. Regenerate the file.")
    return arrays


def read_neighbors(path: Path) -> Arrays:
    """Timesteps of a run's rollouts, and the demonstrated ones that decisions came from.

    Missing or damaged files, and shapes that do not match, are DataErrors.
    """
    arrays = read_arrays(path)
    q, k = (*arrays["neighbor_images"].shape, 0, 0)[:2] if "neighbor_images" in arrays else (0, 0)
    wanted: dict[str, tuple[int | None, ...]] = {
        "neighbor_images": (None, None, None, None, 3),
        "query_images": (q, None, None, 3),
        "query_seed": (q,),
        "query_step": (q,),
        "visits": (q,),
        "query_chunk": (q, None, None),
        "neighbor_chunks": (q, k, None, None),
        **dict.fromkeys(("weights", "cosine", "episode", "step"), (q, k)),
    }
    shapes(path, arrays, wanted)
    weights = arrays["weights"]
    if k == 0 or q == 0 or (weights < 0).any() or not (weights.sum(axis=1) > 0).all():
        raise DataError(f"{path}: expected weights (Q, K) >= 0 with a positive sum per query, got {weights.shape}.")
    return arrays


def _record(kind: type[R], path: Path) -> R:
    return from_json(kind, read_json(path), str(path))


def _inconsistent(path: Path) -> Arrays:
    arrays = read_arrays(path)
    n = len(arrays.get("episode", ()))
    pictures, chunks = (n, None, None, 3), (n, None, None)
    wanted: dict[str, tuple[int | None, ...]] = {"images": pictures, "other_images": pictures, "done": chunks}
    wanted |= {"others": chunks, **dict.fromkeys(("episode", "other_episode", "other_step"), (n,))}
    shapes(path, arrays, wanted)
    return arrays


def _videos(path: Path, kind: type[V]) -> list[V]:
    value = read_json(path)
    if not isinstance(value, list):
        raise DataError(f"{path}: expected a JSON list, got {type(value).__name__}. Regenerate the file.")
    rows = [from_json(kind, row, f"{path}, row {number}") for number, row in enumerate(value, 1)]
    for name in (row.file for row in rows):
        if Path(name).name != name or Path(name).suffix != ".mp4":
            raise DataError(f"{path}: expected names of .mp4 files, got {name!r}.")
        if not (path.parent / name).is_file():
            raise DataError(f"{path.parent / name} is not there but {path.name} lists it. Regenerate the videos.")
    return rows
