"""Lines of docs/comparison.md from pusht_comparison.json and pusht_tries.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from classact.utils.statistics import wilson_interval
from common import RESULTS, mcnemar_p
from table1.report import Results, comparison_markdown, read_results
from table1.report.markdown import plain
from table1.report.pairs import p_text
from table1.report.results import Cell

FILE = RESULTS / "pusht_comparison.json"
TRIES = RESULTS / "pusht_tries.json"


def page_lines() -> list[str]:
    """All tables, and what other ways to act gave."""
    results = read_results(FILE)
    return [*comparison_markdown(results).splitlines()[2:], *tries_lines(results)]


def tries_lines(results: Results) -> list[str]:
    """Other ways to act with the encoders of cells, on the same starts."""
    if not TRIES.exists():
        return []
    cells = {cell.name: cell for cell in results.cells}
    lines = ["", "## Other ways to act with the same representation", ""]
    lines += ["| cell | its own way | way | success | won : lost | p |", "|---|---:|---|---:|---:|---:|"]
    for name, ways in json.loads(TRIES.read_text(encoding="utf-8")).items():
        cell = cells[name]
        usual = dict(zip(cell.starts, cell.success[results.criterion], strict=True))
        own = _own_way(cell, cells)
        for way, row in ways.items():
            reached = dict(zip(row["starts"], row["success"][results.criterion], strict=True))
            shared = [start for start in reached if start in usual]
            won = sum(reached[start] > usual[start] for start in shared)
            lost = sum(reached[start] < usual[start] for start in shared)
            before, after = (_rate([of[start] for start in shared]) for of in (usual, reached))
            p = plain(p_text(mcnemar_p(won, lost)))
            lines.append(f"| {name} | {before} ({own}) | {way} | {after} | {won} : {lost} | {p} |")
    lines += [
        "",
        "Won and lost against the cell's own way, on the same starts; p of McNemar's exact test, not corrected.",
    ]
    return lines


def _own_way(cell: Cell, cells: Mapping[str, Cell]) -> str:
    if cell.k is None:
        beneath = cells[cell.name.removesuffix(f"-{cell.head}")]
        return f"{(cell.images or 0) - (beneath.images or 0):,} images of fine-tuning"
    return "nearest" if cell.tau == 0 else f"k = {cell.k}, τ = {cell.tau:g}"


def _rate(outcomes: Sequence[int]) -> str:
    low, high = wilson_interval(sum(outcomes), len(outcomes))
    return f"{sum(outcomes) / len(outcomes):.2f} [{low:.2f}, {high:.2f}]"
