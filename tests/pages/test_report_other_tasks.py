"""The page of a task whose actions are no points of the plane and that knows only success and failure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from classact.pages.page import build_report
from classact.run.folder import Run
from classact.utils.storage import read_arrays, read_json, read_jsonl, write_arrays, write_json, write_jsonl
from hero import hero_image


@pytest.fixture
def arm_run(run_copy: Run) -> Run:
    """A Push-T run rewritten as that of an arm with 10-D poses."""
    path = run_copy.analysis / "neighbors.safetensors"
    arrays = {name: value for name, value in read_arrays(path).items() if name != "world"}
    for name in ("query_chunk", "neighbor_chunks"):
        arrays[name] = np.concatenate([arrays[name]] * 5, axis=-1)
    assert arrays["query_chunk"].shape[-1] == 10
    write_arrays(path, arrays)
    for folder in (run_copy.root / "evaluations").iterdir():
        rows = read_jsonl(folder / "episodes.jsonl")
        for row in rows:
            row["maxima"] = {"excess": 0.25, "success": float(row["success"]["coverage > 0.95"])}
        write_jsonl(folder / "episodes.jsonl", rows)
        traces = read_arrays(folder / "rollouts.safetensors")
        traces["success"] = (traces.pop("coverage") > 0.95).astype(np.float32)
        write_arrays(folder / "rollouts.safetensors", traces)
    rows = read_json(run_copy.summary)
    for row in rows:
        row["metrics"] = {"success": row["success"]}
    write_json(run_copy.summary, rows)
    videos = read_json(run_copy.analysis / "videos" / "videos.json")
    write_json(run_copy.analysis / "videos" / "videos.json", [row | {"coverage": None} for row in videos])
    return run_copy


def test_nothing_is_drawn_or_named_that_is_not_there(arm_run: Run, tmp_path: Path) -> None:
    text = build_report(arm_run.root).read_text(encoding="utf-8")
    drawn = ('class="casing"', 'class="thread"')  # chunks on the pictures; others are curves over time
    for absent in ("Mean max coverage", "max coverage", ">Coverage<", "excess", "planned in", *drawn):
        assert absent not in text
    for present in ("Success over time", "largest success", "Actions are no points of the plane here"):
        assert present in text
    assert hero_image(arm_run.root, tmp_path / "hero.png").stat().st_size > 10_000
