"""The folder of a run: where everything lies. Nothing else in classact knows file names of a run.

DIR/config.json                     what was run: every setting, data, seeds, versions, hardware
DIR/train.jsonl                     one row per logged training step
DIR/checkpoints/step-00001200/      complete training state, sealed with checksums (the last two are kept)
DIR/encoder/                        the trained (EMA) encoder: config.json, model.safetensors
DIR/policy/                         the retrieval policy: encoder, bank, settings
DIR/evaluations/NAME/               episodes.jsonl, rollouts.safetensors (states and actions)
DIR/summary.json                    one row per evaluation and criterion
DIR/analysis/                       numbers behind the report's pictures
DIR/report.html                     the report
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classact.storage import read_json, read_jsonl, write_json


@dataclass(frozen=True)
class Run:
    """Paths inside a run's folder, and its small tables."""

    root: Path

    @property
    def config(self) -> Path:
        """Settings, data, versions, hardware (JSON)."""
        return self.root / "config.json"

    @property
    def train_log(self) -> Path:
        """One row per logged step (JSONL)."""
        return self.root / "train.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of training checkpoints."""
        return self.root / "checkpoints"

    @property
    def encoder(self) -> Path:
        """The trained encoder's folder."""
        return self.root / "encoder"

    @property
    def policy(self) -> Path:
        """The retrieval policy's folder."""
        return self.root / "policy"

    @property
    def summary(self) -> Path:
        """Success table (JSON list of rows)."""
        return self.root / "summary.json"

    @property
    def analysis(self) -> Path:
        """Numbers behind the report's pictures."""
        return self.root / "analysis"

    @property
    def report(self) -> Path:
        """The page."""
        return self.root / "report.html"

    def evaluation(self, name: str) -> Path:
        """Folder of one evaluation's episodes and trajectories."""
        return self.root / "evaluations" / name

    def read_config(self) -> dict[str, Any]:
        """The run's settings."""
        value = read_json(self.config)
        return dict(value)

    def read_summary(self) -> list[dict[str, Any]]:
        """Rows of the success table, empty before the first evaluation."""
        return list(read_json(self.summary)) if self.summary.exists() else []

    def read_train_log(self) -> list[dict[str, Any]]:
        """Logged steps; where a resumed run wrote a step again, the later row counts."""
        rows = {int(row["step"]): row for row in read_jsonl(self.train_log)}
        return [rows[step] for step in sorted(rows)]

    def add_summary(self, rows: list[dict[str, Any]]) -> None:
        """Add the rows of evaluations, replacing all rows of evaluations of the same names.

        The name is the evaluation's folder: its episodes were overwritten, so no older row may stay beside them.
        """
        new = {row["evaluation"] for row in rows}
        write_json(self.summary, [row for row in self.read_summary() if row.get("evaluation") not in new] + rows)
