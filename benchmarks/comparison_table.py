"""Lines of README.md and docs/comparison.md from pusht_comparison.json and pusht_tries.json."""

from __future__ import annotations

import json

from classact.report.comparison import Results, comparison_markdown, read_results
from classact.report.comparison.markdown import sheet_markdown
from classact.report.comparison.sheets import success_sheet
from classact.statistics import mcnemar_p, wilson_interval
from common import RESULTS

FILE = RESULTS / "pusht_comparison.json"
TRIES = RESULTS / "pusht_tries.json"


def readme_lines() -> list[str]:
    """The table of success alone."""
    table = sheet_markdown(success_sheet(read_results(FILE), between=" ")).splitlines()
    return table[2:]  # without its heading: the README has one


def page_lines() -> list[str]:
    """All tables, and what other ways to retrieve gave."""
    results = read_results(FILE)
    return [*comparison_markdown(results).splitlines()[2:], *tries_lines(results)]


def tries_lines(results: Results) -> list[str]:
    """Other ways to retrieve with the encoders of the plain CLASS cells, on the same starts."""
    if not TRIES.exists():
        return []
    found = json.loads(TRIES.read_text(encoding="utf-8"))
    lines = ["", "## Other ways to retrieve with the same encoder", ""]
    lines += ["| condition | way | success | won : lost against the cell | p |", "|---|---|---:|---:|---:|"]
    for condition, rows in found.items():
        column, augmentation = condition.split(", ")
        cell = next(
            cell
            for cell in results.cells
            if (cell.method, cell.head, cell.shift, cell.augmentation, cell.seed, cell.variant)
            == ("class", "rep", column, augmentation, 0, "")
        )
        plain = dict(zip(cell.starts, cell.success[results.criterion], strict=True))
        for name, row in rows.items():
            reached = dict(zip(row["starts"], row["success"][results.criterion], strict=True))
            shared = [start for start in reached if start in plain]
            won = sum(reached[start] > plain[start] for start in shared)
            lost = sum(reached[start] < plain[start] for start in shared)
            low, high = wilson_interval(sum(reached.values()), len(reached))
            rate = f"{sum(reached.values()) / len(reached):.2f} [{low:.2f}, {high:.2f}]"
            lines.append(f"| {condition} | {name} | {rate} | {won} : {lost} | {mcnemar_p(won, lost):.2f} |")
    lines += ["", "p is of McNemar's exact test, not corrected for the number of ways."]
    return lines
