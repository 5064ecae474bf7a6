"""The measured part of docs/latent-actions.md, from clam.json: success beside the paper's, tests, proxies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from classact.utils.statistics import holm, wilson_interval
from classact.utils.storage import read_json
from common import RESULTS, kept, mcnemar_p
from table1.report.probes import spearman

Rows = dict[tuple[str, str, int], dict[str, Any]]
"""(task, row, seed) -> what was measured."""

NAMES = {
    "bc-expert": "BC on expert actions (privileged)",
    "clam": "CLAM: continuous, joint decoder",
    "clam, decoded": "CLAM, its policy of decoded actions (ours)",
    "continuous, after": "continuous, decoder later",
    "discrete, joint": "discrete, joint decoder",
    "lapo": "LAPO: discrete, decoder later",
    "laom": "LAOM",
    "vpt": "VPT",
    "linear": "as VPT, by a linear map",
    "lapa": "LAPA",
    "dynamo": "DynaMo",
    "bc-labelled": "BC on what is labelled",
}
TASKS = ("assembly", "peg-insert-side", "shelf-place", "bin-picking")
CLAM, PRIVILEGED = "clam", "bc-expert"
ABLATIONS = ("clam, decoded", "continuous, after", "discrete, joint")

PAPER = {
    "bc-expert": 0.87,
    "clam": 0.83,
    "vpt": 0.28,
    "bc-labelled": 0.24,
    "lapa": 0.21,
    "dynamo": 0.13,
    "lapo": 0.13,
}
"""Row -> mean over the paper's six tasks from states, by transformers; its MLP variant of CLAM: 0.63."""
PAPER_2X2 = {"clam": 0.74, "continuous, after": 0.23, "discrete, joint": 0.155, "lapo": 0.16}
"""Row -> mean over MetaWorld's four tasks in the paper's ablation."""

PAPER_IMAGES = {"clam": 0.76, "lapa": 0.2, "lapo": 0.09}
"""Row -> mean over MetaWorld's four tasks from images, by transformers."""

COLUMNS: dict[bool, tuple[str, dict[str, dict[str, float]]]] = {
    False: ("states", {"paper, six tasks": PAPER, "paper, 2 x 2 on MetaWorld": PAPER_2X2}),
    True: ("images", {"paper, images of MetaWorld": PAPER_IMAGES}),
}
"""Whether images are seen -> what is seen, and the paper's columns."""

PAPER_GAITS = {"bc-expert": {"half-cheetah": 0.68, "hopper": 0.76}, "clam": {"half-cheetah": 0.72, "hopper": 0.81}}
"""Row -> scores in the paper, which are relative to D4RL's experts, of its medium-expert data."""

PROXIES = {
    "error of decoded actions, others than labelled": lambda row: row["measures"]["action_error_others"],
    "error of decoded actions, the expert's": lambda row: row["expert action error"],
    "reconstruction / copy of the last observation": lambda row: (
        row["measures"]["reconstruction"] / row["measures"]["copy"]
    ),
    "linear probe of z (R2)": lambda row: row["measures"]["probe"],
}
"""Name -> value of a row; rows without it are left out."""
RESAMPLES = 10_000
GAITS = RESULTS / "gaits.json"
SWEPT = {"latent_dim": 8, "labelled": 50, "mixed": 300, "updates": 30_000}
"""Number that is varied -> its default in clam.py."""
COURSE = "expert action error by tenth"


def protocols(rows: Mapping[str, dict[str, Any]]) -> dict[str, Rows]:
    """What differs from the defaults, as in the rows' names -> its rows."""
    found: dict[str, Rows] = {}
    for name, row in rows.items():
        task, method, seed, *changed = name.split("/")
        found.setdefault(", ".join(changed), {})[task, method, int(seed.removeprefix("seed"))] = row
    return found


def page_lines(path: Path | None = None) -> list[str]:
    """All that is measured; says so where nothing is."""
    rows = kept(path or RESULTS / "clam.json", "rows")
    if not rows:
        return ["Nothing was measured yet."]
    gaits = {name: row for name, row in rows.items() if "return" in row}
    rows = {name: row for name, row in rows.items() if name not in gaits}
    lines: list[str] = []
    # The defaults first; others are sweeps and trials.
    every = sorted(protocols(rows).items(), key=lambda one: (one[0] != "", -len(one[1])))
    for number, (changed, own) in enumerate(every):
        methods = {method for _, method, _ in own}
        if number and len(methods) < 3:
            continue
        lines += [f"Settings: {changed or 'the defaults of `benchmarks/clam.py`'}.", ""]
        lines += [*success_lines(own, *COLUMNS["camera=" in changed], complete=not number), ""]
        lines += [*test_lines(own), ""]
    lines += [*proxy_lines(rows), *course_lines(rows)]
    lines += [*sweep_lines(rows), *return_lines(gaits)]
    return lines[:-1] if not lines[-1] else lines


def return_lines(rows: Mapping[str, dict[str, Any]]) -> list[str]:
    """Returns of gaits, relative to their experts'."""
    lines: list[str] = []
    for changed, own in sorted(protocols(rows).items()):
        tasks = sorted({task for task, _, _ in own})
        lines += [
            "Gaits: the return of 1000 steps, relative to our expert's (intervals over episodes; the paper's are of "
            f"other data, relative to D4RL's expert); {changed or 'the defaults of `benchmarks/clam.py`'}.",
            "",
            f"| return from states | {' | '.join(tasks)} | seeds | {' | '.join(f'paper, {task}' for task in tasks)} |",
            f"|---|{'---:|' * (2 * len(tasks) + 1)}",
        ]
        for method, words in NAMES.items():
            seeds = {seed for _, m, seed in own if m == method}
            found = [[row for (t, m, _), row in own.items() if (t, m) == (task, method)] for task in tasks]
            if seeds:
                cells = [relative(each, task) for each, task in zip(found, tasks, strict=True)]
                theirs = [PAPER_GAITS.get(method, {}).get(task, "") for task in tasks]
                lines.append(f"| {' | '.join([words, *cells, str(len(seeds)), *map(str, theirs)])} |")
        lines.append("")
    return lines


def relative(rows: list[dict[str, Any]], task: str) -> str:
    """Mean return relative to the expert's, with the interval that a bootstrap of episodes gives; a dash for none."""
    if not rows:
        return "–"
    expert = np.mean(read_json(GAITS)[task]["tested"])
    values = np.array([one for row in rows for one in row["return"]]) / expert
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"


def pooled(own: Rows, method: str, task: str) -> list[int]:
    """Outcomes of all seeds."""
    return [one for (t, m, _), row in sorted(own.items()) if (t, m) == (task, method) for one in row["success"]]


def interval(outcomes: list[int]) -> str:
    """Rate and Wilson's interval; a dash where nothing was measured."""
    if not outcomes:
        return "–"
    low, high = wilson_interval(sum(outcomes), len(outcomes))
    return f"{sum(outcomes) / len(outcomes):.2f} [{low:.2f}, {high:.2f}]"


def mean(own: Rows, method: str, tasks: list[str]) -> float | None:
    """Of the tasks' rates; None where one was not measured."""
    rates = [pooled(own, method, task) for task in tasks]
    return float(np.mean([np.mean(one) for one in rates])) if all(rates) else None


def measured_tasks(own: Rows) -> list[str]:
    """Those of any row, in the order of the table."""
    here = {task for task, _, _ in own}
    return [*(task for task in TASKS if task in here), *sorted(here - set(TASKS))]


def success_lines(own: Rows, seen: str, paper: Mapping[str, Mapping[str, float]], *, complete: bool) -> list[str]:
    """Success by task from what is ``seen``, the mean, seeds, and columns of the paper's numbers; if ``complete``, also
    what was not measured.
    """
    tasks = measured_tasks(own)
    lines = [
        f"| {' | '.join([f'success from {seen}', *tasks, 'mean', 'seeds', *paper])} |",
        f"|---|{'---:|' * (len(tasks) + 2 + len(paper))}",
    ]
    for method, words in NAMES.items():
        average = mean(own, method, tasks)
        seeds = sorted({seed for _, m, seed in own if m == method})
        if not seeds and not complete:
            continue
        columns = [words, *(interval(pooled(own, method, task)) for task in tasks)]
        by_task = [sum((task, method, seed) in own for seed in seeds) for task in tasks]
        counts = str(by_task[0]) if len(set(by_task)) == 1 else ", ".join(map(str, by_task))
        columns += ["–" if average is None else f"{average:.2f}", counts if seeds else "–"]
        columns += ["" if (of := table.get(method)) is None else f"{of:g}" for table in paper.values()]
        lines.append(f"| {' | '.join(columns)} |")
    if not complete:
        return lines
    seeds = sorted({seed for _, _, seed in own})
    missing = [
        f"{task}/{method}/seed{seed}"
        for task in tasks
        for method in NAMES
        for seed in seeds
        if (task, method, seed) not in own
    ]
    if missing:
        more = f" and {len(missing) - 6} more" if len(missing) > 6 else ""
        lines += ["", f"Not measured yet: {', '.join(missing[:6])}{more}."]
    return lines


def baselines(own: Rows) -> list[str]:
    """Rows that have the same data as CLAM and are no part of it."""
    return [m for m in NAMES if m not in (CLAM, PRIVILEGED, *ABLATIONS) and any(method == m for _, method, _ in own)]


def pairs(own: Rows, method: str) -> tuple[int, int, list[int], list[int]]:
    """Initial states from which only CLAM succeeds, only the other one does; outcomes of both, over common cells."""
    ours: list[int] = []
    theirs: list[int] = []
    for (task, m, seed), row in own.items():
        if m == method and (other := own.get((task, CLAM, seed))) is not None:
            ours += other["success"]
            theirs += row["success"]
    both = list(zip(ours, theirs, strict=True))
    return both.count((1, 0)), both.count((0, 1)), ours, theirs


def test_lines(own: Rows) -> list[str]:
    """CLAM against every baseline with the same data, and the paper's two claims."""
    tested = [(method, *pairs(own, method)) for method in baselines(own)]
    tested = [one for one in tested if one[3]]
    if not tested:
        return ["CLAM and a baseline were not measured on the same task and seed yet, so nothing is tested."]
    lines = [
        "CLAM against what learns from the same data, on the same initial states and seeds (McNemar's exact test, "
        "corrected by Holm):",
        "",
        "| | CLAM | the other | won | lost | p |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    adjusted = holm([mcnemar_p(won, lost) for _, won, lost, _, _ in tested])
    for (method, won, lost, ours, theirs), p in zip(tested, adjusted, strict=True):
        columns = [NAMES[method], f"{np.mean(ours):.2f}", f"{np.mean(theirs):.2f}", str(won), str(lost)]
        lines.append(f"| {' | '.join([*columns, '< 0.001' if p < 0.001 else f'{p:.3f}'])} |")
    best = max(tested, key=lambda one: float(np.mean(one[4])))
    rates = float(np.mean(best[3])), float(np.mean(best[4]))
    times = f"{rates[0] / rates[1]:.1f} times" if rates[1] else "against none"
    lines += ["", f"Beside the best of them, {NAMES[best[0]]}: {rates[0]:.2f} to {rates[1]:.2f}, {times} (paper: 3.0)."]
    _, _, ours, expert = pairs(own, PRIVILEGED)
    if ours:
        away = 100 * (np.mean(expert) - np.mean(ours))
        lines[-1] += f" Behind BC on expert actions by {away:.0f} points (paper: 4; 24 for its MLP variant)."
    return lines


def proxy_lines(rows: Mapping[str, dict[str, Any]]) -> list[str]:
    """Rank correlation of each proxy with success over all cells that have it."""
    lines = [
        "Which measure of latent actions tells success? Spearman's rank correlation over cells (task, row, seed, and "
        "settings); p by permutation, not corrected, and cells of one task are alike in more than this:",
        "",
        "| | correlation with success | p | cells |",
        "|---|---:|---:|---:|",
    ]
    for name, value in PROXIES.items():
        cells = [(value(row), float(np.mean(row["success"]))) for row in rows.values() if _has(row, value)]
        found = spearman(*map(list, zip(*cells, strict=True)), np.random.default_rng(0), RESAMPLES) if cells else None
        shown = (
            ("–", "–") if found is None else (f"{found[0]:+.2f}", "< 0.001" if found[1] < 0.001 else f"{found[1]:.3f}")
        )
        lines.append(f"| {' | '.join([name, *shown, str(len(cells))])} |")
    return [*lines, ""]


def _has(row: dict[str, Any], value: Any) -> bool:
    try:
        return value(row) is not None
    except KeyError:
        return False


def course_lines(rows: Mapping[str, dict[str, Any]]) -> list[str]:
    """Where in the expert's episodes its decoded actions are wrong, over seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, row in rows.items():
        if COURSE in row:
            task, method, _, *changed = name.split("/")
            found.setdefault(", ".join([f"{task}: {NAMES[method]}", *changed]), []).append(row)
    if not found:
        return []
    lines = [
        "Where the expert's decoded actions are wrong: squared error by tenth of its episodes, the mean over "
        "dimensions and the largest of them, averaged over seeds:",
        "",
        f"| | {' | '.join(str(tenth) for tenth in range(1, 11))} | success | seeds |",
        f"|---|{'---:|' * 12}",
    ]
    for name, own in sorted(found.items()):
        courses = np.array([row[COURSE] for row in own])  # (seeds, tenths, dimensions)
        means, largest = courses.mean(axis=(0, 2)), courses.max(axis=2).mean(axis=0)
        cells = [f"{one:.2f}, {most:.2f}" for one, most in zip(means, largest, strict=True)]
        rate = np.mean([row["success"] for row in own])
        lines.append(f"| {' | '.join([name, *cells, f'{rate:.2f}', str(len(own))])} |")
    return [*lines, ""]


def sweep_lines(rows: Mapping[str, dict[str, Any]]) -> list[str]:
    """Success where one number alone differs from another protocol."""
    found: dict[tuple[str, str, str, str], dict[float, list[int]]] = {}
    for name, row in rows.items():
        task, method, _, *changed = name.split("/")
        values = dict(one.split("=") for one in changed)
        for key, usual in SWEPT.items():
            rest = ", ".join(one for one in changed if not one.startswith(f"{key}="))
            by_value = found.setdefault((task, method, key, rest), {})
            by_value.setdefault(float(values.get(key, usual)), []).extend(row["success"])
    lines = []
    for (task, method, key, rest), by_value in sorted(found.items()):
        if len(by_value) < 2:
            continue
        values = ", ".join(f"{value:g}: {interval(by_value[value])}" for value in sorted(by_value))
        lines.append(f"- {NAMES[method]}, {task}, by {key}{f' ({rest})' if rest else ''}: {values}.")
    return ["Success by one number, all else as above:", "", *lines, ""] if lines else []
