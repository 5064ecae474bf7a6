"""The layout of a run's folder. Nothing else in classact knows its file names.

DIR/config.json                     what was run: every setting, data, seeds, versions, hardware
DIR/train.jsonl                     one row per logged training step
DIR/checkpoints/step-00001200/      complete training state, checksummed (the last two are kept)
DIR/encoder/                        the trained (EMA) encoder: config.json, model.safetensors
DIR/policy/                         the retrieval policy: encoder, bank, settings, calibration of its novelty score
DIR/heads/NAME/                     a head trained on the encoder, or from scratch; laid out like a run: config.json
                                    (title, settings, timings), train.jsonl, checkpoints/, policy/
DIR/evaluations/NAME/               episodes.jsonl, rollouts.safetensors (states, actions, novelty of decisions),
                                    settings.json (simulator, episodes, limits, control, how the policy acted),
                                    alarm.json (what one said)
DIR/summary.json                    one row (:mod:`classact.evaluation.rows`) per evaluation and criterion
DIR/intermediate.jsonl              such rows, of evaluations during training: also stage ("pretrain" or
                                    "heads/NAME"), step and steps, and the settings of each
DIR/intermediate/STAGE/step-00001200/ episodes of these evaluations, as in evaluations/
DIR/analysis/                       data of the report's figures; neighbors.safetensors: decisions with their reasons;
                                    actions.json: errors on held-out demonstrations, where there is no simulator;
                                    data.json: what the demonstrations hold; consistency.json, .safetensors: how far
                                    each is from the others; novelty/: videos of held-out ones;
                                    in a head's folder chunks.safetensors: what it plans at the same observations
DIR/report.html                     the report
DIR/.lock, DIR/heads/NAME/.lock     which process trains there (:mod:`classact.utils.locks`)
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from classact.data.readers import EMBEDDED
from classact.errors import DataError
from classact.evaluation.rows import ActionError, EvaluationRow, IntermediateRow
from classact.run.config import HeadRunConfig, RunConfig, whole_path
from classact.utils.codec import from_json, to_json
from classact.utils.inputs import reading
from classact.utils.locks import lock_of, locked, update_json
from classact.utils.storage import append_jsonl, check_name, check_writable, read_json, read_jsonl, write_jsonl

PRETRAIN = "pretrain"


def stage_of(head: str | None) -> str:
    """The stage in ``intermediate.jsonl`` of a head's training, by the name of its folder; None: of the run's own."""
    return PRETRAIN if head is None else f"heads/{head}"


@dataclass(frozen=True)
class RunInfo:
    """A run's or head's metadata beside settings: ``created`` is in UTC, ``timings`` are seconds by stage."""

    title: str
    versions: Mapping[str, str]
    hardware: Mapping[str, Any]
    created: str
    timings: Mapping[str, float]


class _Place:
    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: Run, _: type[Run]) -> Path:
        return run.root / self.name


@dataclass(frozen=True)
class Run:
    """Paths inside a run's folder, and its small tables."""

    root: Path

    config = _Place("config.json")
    train_log = _Place("train.jsonl")
    checkpoints = _Place("checkpoints")
    encoder = _Place("encoder")
    policy = _Place("policy")
    heads = _Place("heads")
    summary = _Place("summary.json")
    intermediates = _Place("intermediate.jsonl")
    analysis = _Place("analysis")
    neighbors = _Place("analysis/neighbors.safetensors")
    chunks = _Place("analysis/chunks.safetensors")
    actions = _Place("analysis/actions.json")
    statistics = _Place("analysis/data.json")
    consistency = _Place("analysis/consistency.json")
    inconsistent = _Place("analysis/consistency.safetensors")
    novelty = _Place("analysis/novelty")
    report = _Place("report.html")

    def evaluation(self, name: str) -> Path:
        """Folder of one evaluation's episodes and trajectories."""
        return self.root / "evaluations" / check_name(name, "an evaluation")

    def intermediate(self, stage: str, step: int) -> Path:
        """Folder of one evaluation during training, laid out like :meth:`evaluation`."""
        return self.root / "intermediate" / stage / f"step-{step:08d}"

    def head(self, name: str) -> Path:
        """Folder of one head; ``Run(run.head(name))`` has its config, train log, checkpoints and policy."""
        return self.heads / check_name(name, "a head")

    def read_actions(self) -> list[ActionError]:
        """Errors on held-out demonstrations; () where none were compared.

        Raises:
            DataError: a damaged file.
        """
        if not self.actions.exists():
            return []
        value = read_json(self.actions)
        if not isinstance(value, dict):
            raise DataError(f"{self.actions}: expected errors by policy. Compare again: run the same command.")
        return [from_json(ActionError, one, f"{self.actions}: {name}") for name, one in value.items()]

    def check_writable(self) -> None:
        """Raise a StorageError now if the folder, its log or its tables cannot be written."""
        for path in (self.summary, self.config, self.report):
            check_writable(path)
        for path in (self.intermediates, self.train_log):
            check_writable(path, appended=True)

    def read_config(self) -> dict[str, Any]:
        """The run's settings."""
        return dict(read_json(self.config))

    def settings(self) -> RunConfig:
        """The settings that the run was started with.

        Data and layout that are gone are looked for beside the run's folder: they may have been moved together. A
        folder that is no run's, or of another version, is a DataError.
        """
        with reading(self.config):
            there = self.config.exists()
        expected = "Expected a folder written by 'classact pretrain'."
        if not there:
            raise DataError(f"{self.config} does not exist. {expected}")
        metadata = self.read_config()
        if not isinstance(metadata.get("settings"), dict):
            raise DataError(f"{self.config} holds no settings of a run. {expected}")
        settings = from_json(RunConfig, metadata["settings"], f"{self.config}: settings")
        moved: dict[str, Any] = {}
        for name, beside in (metadata.get("beside") or {}).items():
            field, _, number = name.partition(" ")  # "data 1" of several data sets
            path, now = getattr(settings, field), self.root / beside
            path = path[int(number)] if number else path
            if path and path not in EMBEDDED and not Path(path).exists() and now.exists():
                found = whole_path(str(now))
                several = list(moved.get(field, settings.sources)) if number else []
                if number:
                    several[int(number)] = found
                moved[field] = tuple(several) if number else found
        return replace(settings, **moved)

    def info(self) -> RunInfo:
        """Where and when it was made, and how long its stages took."""
        metadata = self.read_config()
        known = {field.name: metadata[field.name] for field in fields(RunInfo) if field.name in metadata}
        return from_json(RunInfo, known, str(self.config))

    def head_settings(self, name: str) -> HeadRunConfig:
        """The settings that a head was started with; a DataError where there are none, or of another version."""
        return head_settings(Run(self.head(name)))

    def update_config(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Change the run's settings file, created if missing, under a lock."""
        update_json(self.config, change, {})

    def read_summary(self) -> list[EvaluationRow]:
        """Rows of the success table, empty before the first evaluation; a damaged one is a DataError that names it."""
        rows = read_json(self.summary) if self.summary.exists() else []
        if not isinstance(rows, list):
            raise DataError(f"{self.summary}: expected a JSON list, got {type(rows).__name__}. Regenerate the file.")
        return [from_json(EvaluationRow, row, f"{self.summary}, row {i}") for i, row in enumerate(rows, 1)]

    def read_train_log(self) -> list[dict[str, Any]]:
        """Logged steps; of a step that a resumed run wrote again, the later row."""
        rows = {int(row["step"]): row for row in read_jsonl(self.train_log)}
        return [rows[step] for step in sorted(rows)]

    def add_summary(self, rows: Sequence[EvaluationRow]) -> None:
        """Add the rows of evaluations, replacing all rows of evaluations of the same names, whose episodes are
        overwritten.
        """
        new, made = {row.evaluation for row in rows}, to_json(rows)
        update_json(self.summary, lambda old: [row for row in old if row["evaluation"] not in new] + made, [])

    def read_intermediate(self) -> list[IntermediateRow]:
        """Success during training by stage (in the order of their first rows) and step, empty where there is none.

        Of a step that a resumed run evaluated again, the later row of the same stage and criterion counts.
        """
        rows: dict[tuple[str, int, str], IntermediateRow] = {}
        for number, value in enumerate(read_jsonl(self.intermediates), 1):
            row = from_json(IntermediateRow, value, f"{self.intermediates}, row {number}")
            rows[row.stage, row.step, row.criterion] = row
        stages = list(dict.fromkeys(stage for stage, _, _ in rows))
        return [rows[key] for key in sorted(rows, key=lambda key: (stages.index(key[0]), key[1]))]

    def drop_intermediate(self, stage: str) -> None:
        """Delete a training's evaluations: they would be taken for those of a new one with other settings."""
        if self.intermediates.exists():
            with locked(lock_of(self.intermediates)):
                kept = [row for row in self.read_intermediate() if row.stage != stage]
                write_jsonl(self.intermediates, to_json(kept))
        shutil.rmtree(self.root / "intermediate" / stage, ignore_errors=True)

    def add_intermediate(self, rows: Iterable[IntermediateRow]) -> None:
        """Append the rows of one evaluation during training."""
        with locked(lock_of(self.intermediates)):  # heads of one run may be trained side by side
            for row in rows:
                append_jsonl(self.intermediates, to_json(row))


def head_settings(folder: Run) -> HeadRunConfig:
    """The settings in a head's folder: :meth:`Run.head_settings`."""
    return from_json(HeadRunConfig, folder.read_config().get("settings"), f"{folder.config}: settings")
