"""A table of two cells, from demonstrations to the page; the whole one is computed in test_table1_whole.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import table1_runner

import fakes
from classact.train.representation import Trainer
from table1 import plan
from table1.report import build_comparison, comparison_markdown, read_results


def test_a_small_table_from_demonstrations_to_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = fakes.write_zarr(tmp_path / "tiny.zarr", fakes.demonstrations(0, 96, fakes.LENGTHS))
    cells = plan(("class", "random"), columns=("fixed",))
    table1_runner.table(tmp_path / "table", data, wanted=cells, evaluations=0)
    found = read_results(tmp_path / "table" / "results.json")
    assert [(cell.method, cell.status, cell.starts) for cell in found.cells] == [
        ("class", "done", (300_000, 300_001)),
        ("random", "done", (300_000, 300_001)),
    ]
    assert [cell.images for cell in found.cells] == [13 * 32, 0]
    assert all(cell.latency_ms and cell.probe and cell.tau in (0.0, 0.01) for cell in found.cells)
    assert "| CLASS – Random | not distinguishable |" in comparison_markdown(found)
    page = build_comparison(found.path, tmp_path / "table1.html").read_text(encoding="utf-8")
    assert "Latent trajectories" in page or "map-0-0" in page
    # The same command has nothing left to do.
    monkeypatch.setattr(Trainer, "train_step", lambda *_: pytest.fail("trained again"))
    said: list[str] = []
    table1_runner.table(tmp_path / "table", data, said.append, wanted=cells, evaluations=0)
    assert not any("failed" in line for line in said)
    assert read_results(found.path).cells == found.cells
