from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_comparison import cell, results, write_fake_comparison

from classact.errors import DataError
from classact.utils.storage import write_json
from table1.report import read_results

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def value() -> dict[str, Any]:
    """A small file to change: one cell that is done."""
    return results() | {"cells": {"one": cell("class", "rep", "fixed", starts=5)}}


def test_everything_is_read(tmp_path: Path) -> None:
    found = read_results(write_fake_comparison(tmp_path, folders=False))
    assert (found.task, found.criterion, found.criteria) == (
        "pusht",
        "coverage>0.90",
        ("coverage>0.90", "iou>0.90"),
    )
    assert len(found.done) == len(found.cells) - 5
    assert found.demonstrations == 186
    first = found.cells[0]
    assert (first.method, first.head, first.shift, len(first.starts)) == ("random", "rep", "fixed", 100)
    assert first.mean_score == pytest.approx(sum(s for s in first.score if s is not None) / 100)
    missing = [c for c in found.cells if not c.done]
    assert {c.why for c in missing} == {"the weights cannot be downloaded without a network", "not run yet"}
    assert len(found.tuning) == 6


def test_what_is_optional_may_be_absent(tmp_path: Path, value: dict[str, Any]) -> None:
    row = value["cells"]["one"]
    kept = {key: row[key] for key in ("method", "head", "shift", "status", "starts", "success")}
    kept["method"] = "a method of tomorrow"
    write_json(tmp_path / "r.json", {k: value[k] for k in ("format", "task", "protocol")} | {"cells": {"one": kept}})
    (only,) = read_results(tmp_path / "r.json").cells
    assert only.done
    assert (only.augmentation, only.variant, only.latency_ms, only.probe, only.curve) == ("none", "", None, {}, ())
    assert only.mean_score is None


def _cell(**changes: Any) -> Change:
    return lambda value: value["cells"]["one"].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(format="other-1"), "expected the format 'classact-table1-1', got 'other-1'"),
        (lambda v: v.pop("task"), r"top level: lacks \['task'\]"),
        (lambda v: v["protocol"].pop("criterion"), r"protocol: lacks \['criterion'\]"),
        (lambda v: v["cells"]["one"].pop("method"), r"cell 'one': lacks \['method'\]"),
        (_cell(success={"iou>0.90": [0] * 5}), r"cell 'one', success: lacks \['coverage>0.90'\]"),
        (_cell(success={"coverage>0.90": [0, 1]}), "cell 'one': 2 outcomes by 'coverage>0.90' for 5 initial states"),
        (_cell(success={"coverage>0.90": [0, 1, 2, 0, 1]}), "expected outcomes 0 or 1 by 'coverage>0.90', got 2"),
        (_cell(starts=[1, 1, 2, 3, 4]), "expected distinct starts, got 4 distinct ones of 5"),
        (_cell(score=[0.5]), "1 scores for 5 initial states"),
        (_cell(learning_rate="fast"), "learning_rate: expected a number, got 'fast'"),
        (_cell(curve=[[1, 2, 3]]), r"curve\[0\]: expected a list of 4 values"),
        (_cell(curve=[[1, 2, 9, 5]]), "a row of curve has 9 successes of 5 episodes"),
        (_cell(probe={"r2": {"low": 1}}), r"probe\.r2: field 'value' is missing"),
        (_cell(latency_ms={"p95": 1}), "latency_ms: field 'median' is missing"),
        (lambda v: v["tuning"][0].update(successes=51), "tuning, row 1: 51 successes of 50 initial states"),
        (lambda v: v.update(tuning={}, cells=[]), "cells: expected a JSON object, got list"),
    ],
)
def test_impossible_files_are_one_clear_error(
    tmp_path: Path, value: dict[str, Any], change: Change, message: str
) -> None:
    change(value)
    write_json(tmp_path / "r.json", value)
    with pytest.raises(DataError, match=message):
        read_results(tmp_path / "r.json")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_results(tmp_path / "none.json")


def test_before_anything_is_done_there_may_be_no_criterion(tmp_path: Path, value: dict[str, Any]) -> None:
    value["protocol"] |= {"criterion": None, "criteria": []}
    write_json(tmp_path / "r.json", value)
    assert read_results(tmp_path / "r.json").criterion == "coverage>0.90"
    value["cells"]["one"] |= {"status": "planned"}
    write_json(tmp_path / "r.json", value)
    found = read_results(tmp_path / "r.json")
    assert (found.criterion, found.criteria) == ("", ())


def test_the_grid_learns_from_all_that_is_not_held_out(tmp_path: Path, value: dict[str, Any]) -> None:
    """Cells with fewer demonstrations may be done before those with all are."""
    value["cells"] = {"few": cell("class", "rep", "fixed", demonstrations=50)}
    write_json(tmp_path / "r.json", value)
    assert read_results(tmp_path / "r.json").demonstrations == 186
    write_json(tmp_path / "r.json", value | {"data": {}})
    assert read_results(tmp_path / "r.json").demonstrations == 50
