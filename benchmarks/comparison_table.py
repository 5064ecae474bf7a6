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
from table1.report.sheets import PAPER, success_sheet

FILE = RESULTS / "pusht_comparison.json"
TRIES = RESULTS / "pusht_tries.json"


SHORT = {
    "Rep-Only": {
        "Random": "untrained encoder",
        "TCN": "TCN",
        "VINN (BYOL)": "BYOL (VINN)",
        "DynaMo": "DynaMo",
        "CLASS": "CLASS",
        "CLASS, queue=1280": "CLASS with a queue",
        "Random, color=whiten": "untrained encoder, whitened colours",
        "VINN (BYOL), color=whiten color_augmentation=rotate": "BYOL, whitened colours",
        "CLASS, color=whiten color_augmentation=rotate": "CLASS, whitened colours",
        "CLASS, color=whiten color_augmentation=rotate queue=1280": "the same with a queue",
    },
    "MLP": {"Random": "behaviour cloning from scratch (MLP head)"},
}
"""Rows of the short table by group of the whole one: their names there and here."""


def short_lines() -> list[str]:
    """Few rows by both criteria, the paper's numbers beside its own."""
    results = read_results(FILE)
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    for criterion in ("iou>0.90", "coverage>0.90"):
        sheet = success_sheet(results, criterion, between=" ", measured=True)
        for group, rows in sheet.groups:
            for row in rows:
                cells = found.setdefault((group, row[0], criterion), {})
                for i, cell in enumerate(row[1:], 1):
                    shift = sheet.columns[i]
                    cells[f"{sheet.columns[i - 1]} {PAPER}" if shift == PAPER else shift] = cell
    lines = [
        "| | Fixed: IoU > 0.90 | paper | coverage > 0.90 | Random colours: IoU > 0.90 | paper | coverage > 0.90 "
        "| seeds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for group, names in SHORT.items():
        for name, title in names.items():
            iou, coverage = (found[group, name, criterion] for criterion in ("iou>0.90", "coverage>0.90"))
            columns, seeds = [title], []
            for shift in ("Fixed-Color", "Rand-Color"):
                rate, _, times = iou[shift].partition("] ")
                columns += [f"{rate}]" if times else rate, iou.get(f"{shift} {PAPER}", "")]
                columns.append(coverage[shift].partition(" [")[0])
                seeds += [times.split()[0]] if times else []
            lines.append(f"| {' | '.join([*columns, ', '.join(seeds)])} |")
    return lines


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
