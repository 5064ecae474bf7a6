"""Tables of docs/simulators.md on what was learned (tasks.json) and from which demonstrations (task_data.json)."""

from __future__ import annotations

from statistics import median
from typing import Any

from classact.sims import SIMULATORS, simulator_spec
from classact.utils.statistics import holm, wilson_interval
from common import mcnemar_p
from table1.report.paper import paper_cell
from task_data import TASKS

Rows = dict[str, dict[str, Any]]

METHODS = {
    "state": "the whole state",
    "next": "the state of what is next",
    "clone": "behaviour cloning on states",
    "untrained": "an untrained encoder",
    "scratch": "behaviour cloning from scratch",
    "byol": "BYOL",
    "tcn": "TCN",
    "class": "CLASS",
    "class-ours": "CLASS (ours)",
    "class-views": "CLASS (ours), four views of each state",
}
POLICIES = {"retrieval": "retrieval", "mlp": "MLP head", "diffusion": "Diffusion Policy head"}
PAPER_HEADS = {"retrieval": "rep", "mlp": "mlp", "diffusion": "dp"}
PAPER_METHODS = {
    "class": "class",
    "class-ours": "class",
    "class-views": "class",
    "byol": "byol",
    "tcn": "tcn",
    "scratch": "random",
}
OURS = ("class", "class-ours", "class-views")
REFERENCES = ("state", "next", "clone")


def cells(rows: Rows) -> dict[tuple[str, str, str, str], list[dict[str, Any]]]:
    """(task, column, method, policy) -> what was measured, a row for each seed, in the order of the table."""
    found: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    for name in sorted(rows, key=lambda one: int(one.rpartition("/")[2])):
        task, column, method, policy, _ = name.split("/")
        found.setdefault((task, column, method, policy), []).append(rows[name])

    def place(key: tuple[str, str, str, str]) -> tuple[int, ...]:
        task, column, method, policy = key
        known = TASKS[task]
        orders: tuple[list[str], ...] = (list(TASKS), list(known.shifts), list(POLICIES), list(METHODS))
        return tuple(order.index(one) for order, one in zip(orders, (task, column, policy, method), strict=True))

    return {key: found[key] for key in sorted(found, key=place)}


def pooled(cell: list[dict[str, Any]], criterion: str) -> str:
    """Rate and Wilson interval over all seeds."""
    outcomes = [one for row in cell for one in row["success"][criterion]]
    low, high = wilson_interval(sum(outcomes), len(outcomes))
    return f"{sum(outcomes) / len(outcomes):.2f} [{low:.2f}, {high:.2f}]"


def learned_lines(rows: Rows) -> list[str]:
    """A line for each task, view, policy and what it acts by: success, how far episodes came, the paper's number."""
    lines = [
        "| task | view | policy | demonstrations | images | success | parts reached before | paper | minutes | seeds |",
        "|---|---|---|---:|---:|---:|---|---:|---:|---:|",
    ]
    for (task, column, method, policy), cell in cells(rows).items():
        simulator = TASKS[task].simulator
        parts = [one.name for one in simulator_spec(simulator).criteria[1:]]
        reached = ", ".join(f"{part} {pooled(cell, part).partition(' ')[0]}" for part in parts)
        minutes = median(sum(row["seconds"].values()) for row in cell) / 60
        columns = [
            SIMULATORS[simulator].title,
            column,
            f"{POLICIES[policy]}, {METHODS[method]}",
            str(cell[0]["demonstrations"]),
            f"{cell[0]['images'] / 1000:.0f}k" if cell[0]["images"] else "",
            pooled(cell, "success"),
            reached,
            paper(task, column, method, policy),
            f"{minutes:.0f}" if minutes else "",
            str(len(cell)),
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return lines


def paper(task: str, column: str, method: str, policy: str) -> str:
    """The paper's number, of what it has."""
    if method not in PAPER_METHODS:
        return ""
    shift = "fixed" if column == "fixed" else "rand"
    found = paper_cell(str(SIMULATORS[TASKS[task].simulator].paper), shift, PAPER_METHODS[method], PAPER_HEADS[policy])
    return "" if found is None else f"{found:.2f}"


def test_lines(rows: Rows) -> list[str]:
    """The better CLASS against every other row of the same task, view and policy, from the same initial states."""
    measured, tests = cells(rows), []
    for (task, column, method, policy), cell in measured.items():
        ours = [measured[key] for one in OURS if (key := (task, column, one, policy)) in measured]
        if method in (*OURS, *REFERENCES) or not ours:
            continue
        best = max(ours, key=lambda one: sum(one[0]["success"]["success"]))
        pairs = list(zip(best[0]["success"]["success"], cell[0]["success"]["success"], strict=True))
        won, lost = pairs.count((1, 0)), pairs.count((0, 1))
        tests.append((f"{task}, {column}, {POLICIES[policy]}: CLASS against {METHODS[method]}", won, lost))
    if not tests:
        return []
    adjusted = holm([mcnemar_p(won, lost) for _, won, lost in tests])
    return [
        "McNemar's exact test on the same initial states, first seeds, corrected by Holm:",
        "",
        "| | won | lost | p |",
        "|---|---:|---:|---:|",
        *(
            f"| {name} | {won} | {lost} | {'< 0.001' if p < 0.001 else f'{p:.3f}'} |"
            for (name, won, lost), p in zip(tests, adjusted, strict=True)
        ),
    ]


def data_lines(found: dict[str, Any]) -> list[str]:
    """What the demonstrations of each task take, with their pictures."""
    lines = [
        "| task | demonstrations | steps | file, MiB | minutes | pictures | MiB | minutes |",
        "|---|---:|---:|---:|---:|---|---:|---:|",
    ]
    for label, row in found.get("demonstrations", {}).items():
        own = {name: one for name, one in found.get("pictures", {}).items() if name.startswith(f"{label}/")}
        for number, (name, one) in enumerate(own.items() or [("", None)]):
            first = [SIMULATORS[label.partition("/")[0]].title, str(row["demonstrations"]), f"{row['steps']:,}"]
            first += [f"{row['mebibytes']:.0f}", _minutes(row["seconds"])]
            shown = ["", "", ""]
            if one is not None:
                view = f"{name.split('/')[2]}, {one['size']} px"
                shown = [view, f"{one['mebibytes']:,.0f}", _minutes(one["seconds"])]
            lines.append(f"| {' | '.join([*(first if number == 0 else [''] * 5), *shown])} |")
    return lines


def _minutes(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds / 60:.1f}"


def window_lines(found: dict[str, Any]) -> list[str]:
    """Ratio of distances of things in positives of early timesteps to those in any two, by the length of windows."""
    windows = found.get("windows", {})
    lengths = sorted({one["seconds"] for rows in windows.values() for one in rows})
    lines = [f"| task | thing | {' | '.join(f'{one:g} s' for one in lengths)} |", f"|---|---|{'---:|' * len(lengths)}"]
    for label, rows in windows.items():
        for name in dict.fromkeys(one["name"] for one in rows):
            ratios = {one["seconds"]: one["ratio"] for one in rows if one["name"] == name}
            shown = ["" if ratios.get(one) is None else f"{ratios[one]:.2f}" for one in lengths]
            if any(shown):
                lines.append(f"| {SIMULATORS[label.partition('/')[0]].title} | {name} | {' | '.join(shown)} |")
    return lines


def people_lines(found: dict[str, Any]) -> list[str]:
    """How differently people act from equal initial states."""
    lines = [
        "| task | initial states x people | at the first step | after 10, 50, 90 % of the way | spread of lengths |",
        "|---|---|---:|---:|---:|",
    ]
    for label, row in found.get("people", {}).items():
        later = ", ".join(f"{row['later'][at]:.3f}" for at in (0, 4, 8))
        columns = [f"{row['starts']} x {row['people']}", f"{row['first']:.3f}", later, f"{row['length_spread']:.1%}"]
        lines.append(f"| {SIMULATORS[label.partition('/')[0]].title} | {' | '.join(columns)} |")
    return lines


def page_lines(tasks: dict[str, Any], data: dict[str, Any]) -> list[str]:
    """All of docs/simulators.md that both scripts measure; nothing of what was not measured."""
    lines: list[str] = []
    if rows := tasks.get("rows"):
        lines += [
            "Learned within minutes (`benchmarks/tasks.py`): rates with 95 % Wilson intervals over all seeds, settings "
            "chosen for each row on other initial states, as many images for every row, as many updates for every "
            "head of a kind:",
            "",
            *learned_lines(rows),
            "",
        ]
        tests = test_lines(rows)
        lines += [*tests, ""] if tests else []
    if data.get("demonstrations"):
        lines += ["Demonstrations and their pictures (`benchmarks/task_data.py`):", "", *data_lines(data), ""]
    if data.get("windows"):
        lines += [
            "How far apart things are in positives of the first tenth of demonstrations, as a share of any two, by the "
            "length of windows (1: positives do not tell where it is):",
            "",
            *window_lines(data),
            "",
        ]
    if data.get("people"):
        lines += [
            "Root mean square of normalised actions of several people (scripts of other chance) about their mean, from "
            "equal initial states, each at shares of its own way:",
            "",
            *people_lines(data),
            "",
        ]
    return lines
