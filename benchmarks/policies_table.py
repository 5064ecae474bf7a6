"""The main table of README.md and the measured part of docs/policies.md, from pusht_policies.json and latency.json."""

from __future__ import annotations

import json
from statistics import median
from typing import Any

from classact.utils.statistics import holm, wilson_interval
from common import RESULTS, mcnemar_p
from table1.report.paper import paper_cell

Rows = dict[str, dict[str, Any]]

METHODS = {
    "state": "the true state",
    "untrained": "an untrained encoder",
    "byol": "BYOL",
    "scratch": "behaviour cloning from scratch",
    "class": "CLASS",
}
POLICIES = {"retrieval": "retrieval", "mlp": "MLP head", "flow": "flow head", "diffusion": "Diffusion Policy head"}
PAPER_HEADS = {"retrieval": "rep", "mlp": "mlp", "diffusion": "dp"}
PAPER_METHODS = {"byol": "byol", "class": "class", "scratch": "random"}
COLUMNS = ("fixed", "rand")
SLOW = " as demonstrated"
"""Behind the name of what a row of pusht_policies.py reaches at speed 1."""
COLOURS = {"fixed": "fixed", "rand": "random"}
CRITERIA = ("iou>0.90", "coverage>0.90", "cov>=0.95@300")


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def seeds(rows: Rows, method: str, policy: str, column: str, *, slow: bool = False) -> list[dict[str, Any]]:
    """What was measured of one cell, a row for each seed; ``slow``: at the demonstrations' speed."""
    start = f"{method}/{policy}/{column}/seed"
    return [row for name, row in sorted(rows.items()) if name.startswith(start) and name.endswith(SLOW) == slow]


def pooled(cell: list[dict[str, Any]], criterion: str) -> str:
    """Rate and Wilson interval over all seeds; empty where nothing was measured."""
    outcomes = [one for row in cell for one in row["success"][criterion]]
    if not outcomes:
        return ""
    low, high = wilson_interval(sum(outcomes), len(outcomes))
    return f"{sum(outcomes) / len(outcomes):.2f} [{low:.2f}, {high:.2f}]"


def rate(cell: list[dict[str, Any]], criterion: str) -> str:
    """The rate alone."""
    return pooled(cell, criterion).partition(" [")[0]


def cells(rows: Rows) -> list[tuple[str, str]]:
    """(method, policy) that were measured, in the order of the table."""
    return [
        (method, policy)
        for policy in POLICIES
        for method in METHODS
        if any(seeds(rows, method, policy, column) for column in COLUMNS)
    ]


def readme_lines() -> list[str]:
    """The paper's criterion beside the paper's number, LeRobot's beside LeRobot's."""
    rows: Rows = read("pusht_policies")["rows"]
    lines = [
        "| | Fixed: IoU > 0.90 | at speed 1 | paper | coverage >= 0.95 in 300 steps | at speed 1 | Random colours: "
        "IoU > 0.90 | at speed 1 | paper | seeds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for method, policy in cells(rows):
        columns = [f"{POLICIES[policy]}, {METHODS[method]}"]
        for column in COLUMNS:
            cell = seeds(rows, method, policy, column)
            paper = None
            if policy in PAPER_HEADS and method in PAPER_METHODS:
                paper = paper_cell("pusht", column, PAPER_METHODS[method], PAPER_HEADS[policy])
            slow = seeds(rows, method, policy, column, slow=True)
            columns += [pooled(cell, CRITERIA[0]) or "–", rate(slow, CRITERIA[0]) or "–"]
            columns.append("" if paper is None else f"{paper:.2f}")
            if column == "fixed":
                columns += [rate(cell, CRITERIA[2]) or "–", rate(slow, CRITERIA[2]) or "–"]
        counts = [len(seeds(rows, method, policy, column)) for column in COLUMNS]
        lines.append(f"| {' | '.join([*columns, ', '.join(str(n) for n in counts if n)])} |")
    lines.append("| Diffusion Policy of LeRobot (7 hours of an RTX 3090) |  |  |  |  | 0.64 |  |  |  |  |")
    return lines


def page_lines() -> list[str]:
    """All of docs/policies.md that is measured."""
    rows: Rows = read("pusht_policies")["rows"]
    tests = test_lines(rows)
    lines = [*success_lines(rows), *(["", *tests] if tests else [])]
    lines += ["", *tries_lines(read("head_tries"))]
    curves = curve_lines(rows)
    lines += ["", *curves] if curves else []
    lines += ["", *speed_lines(read("speeds")), "", *alarm_lines(read("alarms")["rows"])]
    lines += ["", *neighbour_lines(read("neighbours"))]
    if (RESULTS / "latency.json").exists():
        lines += ["", *latency_lines(read("latency"))]
    return lines


def success_lines(rows: Rows) -> list[str]:
    """All criteria, what was chosen, and minutes."""
    lines = [
        "| policy | colours | IoU > 0.90 | coverage > 0.90 | coverage >= 0.95 in 300 steps | mean largest coverage "
        "| chosen on other initial states | minutes of training | seeds |",
        "|---|---|---:|---:|---:|---:|---|---:|---:|",
    ]
    every = [(column, *cell, slow) for column in COLUMNS for cell in cells(rows) for slow in (False, True)]
    for column, method, policy, slow in every:
        cell = seeds(rows, method, policy, column, slow=slow)
        # One whose best is at that speed is not listed twice.
        if not cell or (slow and cell == seeds(rows, method, policy, column)):
            continue
        largest = [value for row in cell for value in row["max_coverage"]]
        columns = [f"{POLICIES[policy]}, {METHODS[method]}", COLOURS[column]]
        columns += [pooled(cell, criterion) for criterion in CRITERIA]
        columns += [f"{sum(largest) / len(largest):.2f}", "; ".join(dict.fromkeys(map(chosen, cell)))]
        spent = [took for row in cell if (took := minutes(row)) >= 0.1]  # others ran beside other work
        columns += [f"{median(spent):.1f}" if spent else "", str(len(cell))]
        lines.append(f"| {' | '.join(columns)} |")
    return lines


def chosen(row: dict[str, Any]) -> str:
    """The settings that a row acts by."""
    names = {"k": "k", "temperature": "tau", "chunk_length": "T_a", "speed": "speed"}
    return ", ".join(f"{names[key]} = {value:g}" for key, value in row["chosen"].items())


def minutes(row: dict[str, Any]) -> float:
    """Pre-training and head."""
    return sum(row["seconds"].get(name, 0.0) for name in ("pre-training", "head: training")) / 60


def test_lines(rows: Rows) -> list[str]:
    """CLASS against every other method that acts in the same way, by the paper's criterion, on the same states."""
    found = []
    for column in COLUMNS:
        for method, policy in cells(rows):
            ours, others = (seeds(rows, name, policy, column)[:1] for name in ("class", method))
            if method == "class" or not ours or not others:
                continue
            pairs = list(zip(ours[0]["success"][CRITERIA[0]], others[0]["success"][CRITERIA[0]], strict=True))
            won, lost = (pairs.count(outcome) for outcome in ((1, 0), (0, 1)))
            found.append((f"{POLICIES[policy]}, {column}: CLASS against {METHODS[method]}", won, lost))
    if not found:
        return []
    adjusted = holm([mcnemar_p(won, lost) for _, won, lost in found])
    lines = [
        "McNemar's exact test by IoU > 0.90 on the same initial states, first seeds, corrected by Holm:",
        "",
        "| | won | lost | p |",
        "|---|---:|---:|---:|",
    ]
    for (name, won, lost), p in zip(found, adjusted, strict=True):
        lines.append(f"| {name} | {won} | {lost} | {'< 0.001' if p < 0.001 else f'{p:.3f}'} |")
    return lines


def curve_lines(rows: Rows) -> list[str]:
    """Success during the training of an encoder (the paper's figure 10), all seeds that were evaluated on the way."""
    found = []
    for column in COLUMNS:
        for method, policy in (("class", "retrieval"), ("scratch", "mlp")):
            curves = [row["curve"] for row in seeds(rows, method, policy, column) if row.get("curve")]
            if not curves:
                continue
            rates = [sum(at[1] for at in points) / sum(at[2] for at in points) for points in zip(*curves, strict=True)]
            images, _, episodes = curves[0][-1]
            columns = [f"{POLICIES[policy]}, {METHODS[method]}", COLOURS[column], *(f"{one:.2f}" for one in rates)]
            found.append(f"| {' | '.join([*columns, f'{images:,}', str(episodes), str(len(curves))])} |")
    if not found:
        return []
    shares = range(1, len(rates) + 1)
    return [
        "Success by IoU > 0.90 after so much of the training of the encoder (the paper's figure 10):",
        "",
        f"| | colours | {' | '.join(f'{at / len(shares):.0%}' for at in shares)} | images in all | episodes | seeds |",
        f"|---|---|{'---:|' * (len(shares) + 3)}",
        *found,
    ]


def tries_lines(results: dict[str, Any]) -> list[str]:
    """What of a generative head costs success."""
    play = results["play"]
    lines = [
        "Heads on the same frozen features of CLASS, fixed colours, with as many updates unless said, all at T_a = "
        f"{play['chunk_length']} and speed {play['speed']}, of the initial states that settings are chosen on:",
        "",
        f"| head | {' | '.join(CRITERIA)} | episodes |",
        f"|---|{'---:|' * (len(CRITERIA) + 1)}",
    ]
    for name, row in results["rows"].items():
        columns = [name, *(f"{row[criterion]:.2f}" for criterion in CRITERIA), str(row["episodes"])]
        lines.append(f"| {' | '.join(columns)} |")
    return lines


def speed_lines(results: dict[str, Any]) -> list[str]:
    """Share of episodes that have succeeded after so many control steps, at each speed."""
    steps = list(next(iter(results["rows"].values()))["reached"])
    lines = [
        f"Retrieval, fixed colours: share of {results['episodes']} episodes at IoU > 0.90 after so many steps:",
        "",
        f"| speed (T_a) | {' | '.join(steps)} |",
        f"|---|{'---:|' * len(steps)}",
    ]
    for speed, row in results["rows"].items():
        shares = [f"{row['reached'][limit] / results['episodes']:.2f}" for limit in steps]
        lines.append(f"| {speed} ({row['chunk_length']}) | {' | '.join(shares)} |")
    return lines


def alarm_lines(rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What share of failures each sign announces, and when."""
    lines = [
        "Failures announced, by levels that 5 % of the successes among 300 other episodes pass:",
        "",
        "| policy, colours | success by | sign | false alarms | 200 steps before the end | 100 | 50 | at all |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, signs in rows.items():
        policy, column = name.split("/")
        for row in signs:
            shares = [f"{row['announced'][lead] / row['failures']:.2f}" for lead in ("200", "100", "50", "0")]
            columns = [f"{POLICIES[policy]}, {COLOURS[column]}", row["criterion"], row["sign"]]
            columns.append(f"{row['false alarms'] / row['successes']:.3f}")
            lines.append(f"| {' | '.join([*columns, *shares])} |")
    return lines


def neighbour_lines(results: dict[str, Any]) -> list[str]:
    """What encoders take for alike under random colours."""
    lines = [
        f"The {results['k']} nearest timesteps of other demonstrations, of {results['queries']:,} timesteps under "
        f"random colours (the paper's figures 13 to 15; queries and latent maps: [neighbours.png](neighbours.png)): "
        f"how many have similar actions (positives by DTW), how far apart mean colours are (1: as of random "
        f"timesteps); and how many of the nearest are of the same demonstration where it is not left out:",
        "",
        "| | similar actions | colour distance | of the same demonstration |",
        "|---|---:|---:|---:|",
    ]
    names = {**METHODS, "random": "random timesteps"}
    for name, row in results["rows"].items():
        columns = (row["positives"], row["colour distance"], row["own demonstration"])
        lines.append(f"| {' | '.join([names[name], *(f'{value:.2f}' for value in columns)])} |")
    return lines


def latency_lines(results: dict[str, Any]) -> list[str]:
    """Milliseconds per decision, one observation at a time."""
    machine = results["act"]["hardware"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    lines = [
        f"Milliseconds of one decision, one observation at a time ({where}; p50, p95 in brackets):",
        "",
        "| policy | encode | search or sample | whole | paper, mean of tasks, A40 |",
        "|---|---|---|---|---|",
    ]
    by_name: dict[str, dict[str, dict[str, Any]]] = {}
    for row in results["act"]["rows"]:
        if row["batch"] == 1:
            by_name.setdefault(row["name"], {})[row["stage"]] = row
    for name, stages in by_name.items():
        middle = stages.get("search") or stages.get("sample")
        paper = stages["whole"].get("paper_ms")
        columns = [name, *(ms(stages.get("encode"))), *(ms(middle)), *(ms(stages["whole"]))]
        columns.append(f"{paper:g}" if paper else "")
        lines.append("| " + " | ".join(columns) + " |")
    return lines


def ms(row: dict[str, Any] | None) -> list[str]:
    return [""] if row is None else [f"{row['p50_ms']:.3g} ({row['p95_ms']:.3g})"]
