"""The measured part of docs/latent-actions.md: CLASS where few demonstrations carry actions, from bridge.json."""

from __future__ import annotations

import json
from statistics import mean
from typing import Any

from classact.utils.statistics import holm, wilson_interval
from common import RESULTS, mcnemar_p

ROWS = {
    "actions": "CLASS, true actions of all (privileged)",
    "few actions": "CLASS, true actions, labelled episodes alone",
    "clam": "CLASS, latent actions from proprioception",
    "clam decoded": "CLASS, these decoded",
    "clam unwarped": "CLASS, these, step by step without warping",
    "clam-image": "CLASS, latent actions from images",
    "clam-image decoded": "CLASS, these decoded",
    "next-proprioception": "CLASS, proprioception one step on",
    "proprioception-change": "CLASS, changes of proprioception",
    "feature-change": "CLASS, changes of BYOL's features",
    "byol": "BYOL",
    "tcn": "TCN",
    "dynamo": "DynaMo",
    "untrained": "an untrained encoder",
}
ACTING = {
    "labelled": "Retrieval from the labelled episodes",
    "decoded": "Retrieval from all episodes, with decoded actions",
    "mlp": "An MLP head, trained on the labelled episodes",
}
CRITERIA = {"iou>0.90": "IoU > 0.90", "coverage>0.90": "coverage > 0.90", "cov>=0.95@300": "coverage >= 0.95 in 300"}
COLOURS = {"fixed": "fixed colours", "rand": "random colours"}
EPISODES = 206
NOT_YET = "It was not measured yet."

Rows = dict[str, dict[str, Any]]


def read() -> dict[str, Any]:
    """What bridge.py has measured so far; nothing where there is no file."""
    path = RESULTS / "bridge.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def page_lines() -> list[str]:
    """A table for each way of acting, and what is compared with the privileged row."""
    found = read()
    rows: Rows = found.get("rows", {})
    if not rows:
        return [NOT_YET]
    lines = []
    for column, colours in COLOURS.items():
        for acting, title in ACTING.items():
            part = table(rows, found.get("agreement", {}), column, acting)
            lines += [f"{title}, {colours}:", "", *part, ""] if part else []
    return [*lines, *comparison(rows, "actions"), "", *comparison(rows, "clam")]


def table(rows: Rows, agreement: dict[str, float], column: str, acting: str) -> list[str]:
    """Success and mean maximum coverage for each number of labelled episodes; empty where nothing was measured."""
    shares = sorted(
        {int(name.split("/")[2]) for name in rows if name.split("/")[1] == acting and f"/{column}/" in name}
    )
    if not shares:
        return []
    heads = ["learned from", "agrees with true actions"]
    for share in shares:
        heads += [f"{share} of {EPISODES} labelled: {label}" for label in CRITERIA.values()] + ["mean max coverage"]
    lines = [f"| {' | '.join(heads)} | seeds |", f"|---|{'---:|' * len(heads)}"]
    for row, label in ROWS.items():
        cells = {share: seeds(rows, row, acting, share, column) for share in shares}
        if not any(cells.values()):
            continue
        alike = [value for name, value in agreement.items() if name.startswith(f"{row}/") and f"/{column}/" in name]
        columns = [label, f"{mean(alike):.2f}" if alike else ""]
        for share in shares:
            columns += [pooled(cells[share], criterion) for criterion in CRITERIA]
            coverage = [one for cell in cells[share] for one in cell["max_coverage"]]
            columns.append(f"{mean(coverage):.2f}" if coverage else "")
        lines.append(f"| {' | '.join(columns)} | {max(map(len, cells.values()))} |")
    return lines


def seeds(rows: Rows, row: str, acting: str, share: int, column: str) -> list[dict[str, Any]]:
    """What was measured of one cell, one for each seed."""
    return [value for name, value in sorted(rows.items()) if name.startswith(f"{row}/{acting}/{share}/{column}/seed")]


def pooled(cell: list[dict[str, Any]], criterion: str) -> str:
    """Rate and Wilson interval over all seeds; empty where nothing was measured."""
    outcomes = [one for found in cell for one in found["success"][criterion]]
    if not outcomes:
        return ""
    low, high = wilson_interval(sum(outcomes), len(outcomes))
    return f"{sum(outcomes) / len(outcomes):.2f} [{low:.2f}, {high:.2f}]"


def comparison(rows: Rows, base: str) -> list[str]:
    """Each row but the privileged one against a ``base``, by McNemar's test on the same initial states."""
    criterion = "iou>0.90"
    found = []
    for name, row in sorted(rows.items()):
        row_name, acting, share, column, seed = name.split("/")
        other = rows.get(f"{base}/{acting}/{share}/{column}/{seed}")
        if row_name in ("actions", base) or other is None or row["first_seed"] != other["first_seed"]:
            continue
        pairs = list(zip(row["success"][criterion], other["success"][criterion], strict=False))
        won, lost = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
        ours, theirs = (sum(pair[side] for pair in pairs) for side in (0, 1))
        cell = (f"{share} labelled, {ACTING[acting].lower()}, {COLOURS[column]}, {seed}", ROWS[row_name])
        found.append((*cell, ours, theirs, won, lost, mcnemar_p(won, lost)))
    if not found:
        return []
    corrected = holm([one[-1] for one in found])
    lines = [
        f"IoU > 0.90 beside {ROWS[base]}, from the same initial states; McNemar's test, corrected by Holm:",
        "",
        "| | learned from | successes | of the other | won | lost | p |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for (cell, label, ours, theirs, won, lost, _), p in zip(found, corrected, strict=True):
        lines.append(
            f"| {cell} | {label} | {ours} | {theirs} | {won} | {lost} | {f'{p:.3f}' if p >= 0.001 else '< 0.001'} |"
        )
    return lines
