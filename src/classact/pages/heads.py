"""Heads of a run and success during training: read from its folder and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from classact.pages.checks import Arrays, mapping, need, shapes
from classact.pages.table import Row, augmentation_name
from classact.run.config import HeadRunConfig
from classact.run.folder import PRETRAIN, Run, head_settings, stage_of
from classact.utils.storage import read_arrays, read_jsonl


@dataclass(frozen=True)
class Head:
    """One folder under ``heads/``; ``notes`` are training and augmentation, unless the title says them.

    ``chunks`` are what it plans where the run's reasons are shown.
    """

    name: str
    title: str
    notes: str
    settings: HeadRunConfig
    timings: dict[str, float]
    training: list[Row]
    chunks: Arrays | None = None

    @property
    def stage(self) -> str:
        """Its stage in ``intermediate.jsonl``."""
        return stage_of(self.name)


def read_log(run: Run) -> list[Row]:
    """Logged training steps of a run or a head, each with ``step``."""
    for number, row in enumerate(read_jsonl(run.train_log), 1):
        need(run.train_log, row, ("step",), f"row {number}")
    return run.read_train_log()


def read_heads(run: Run) -> list[Head]:
    """All heads that have a ``config.json``, by name; a damaged config or train log is a DataError that names it."""
    return [_head(Run(path.parent)) for path in sorted(run.heads.glob("[!.]*/config.json"))]


def _head(folder: Run) -> Head:
    path = folder.config
    metadata = mapping(path)
    need(path, metadata, ("title", "settings", "timings"), "top level")
    settings = head_settings(folder)
    training, augmentation = settings.labels["training"], augmentation_name(settings.labels["augmentation"])
    title = str(metadata["title"])
    notes = ", ".join(word for word in (training, augmentation) if word and word not in title)
    file = folder.chunks
    chunks = read_arrays(file) if file.exists() else None
    if chunks is not None:
        q = len(chunks.get("chunks", ()))
        shapes(file, chunks, {"chunks": (q, None, None), "query_seed": (q,), "query_step": (q,)})
    return Head(folder.root.name, title, notes, settings, dict(metadata["timings"]), read_log(folder), chunks)


def stage_names(heads: Sequence[Head], stages: Sequence[str]) -> dict[str, str]:
    """Names of the stages of ``intermediate.jsonl`` for people, no two alike."""
    titles = {head.stage: head.title for head in heads} | {PRETRAIN: "Retrieval"}
    names = {stage: titles.get(stage, stage.removeprefix("heads/")) for stage in stages}
    shown = list(names.values())
    return {
        stage: f"{name} ({stage.removeprefix('heads/')})" if shown.count(name) > 1 else name
        for stage, name in names.items()
    }
