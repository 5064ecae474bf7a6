"""The measured part of docs/simulators.md: what is learned, demonstrations, experts, rendering."""

from __future__ import annotations

import json
from typing import Any

import tasks_table
from classact.sims import SIMULATORS
from common import RESULTS

ORDER = ("square", "three-stack-d0", "three-stack-d1", "aloha-transfer", "libero-object")


def read(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def rate(row: dict[str, Any], of: str = "starts") -> str:
    return f"{row['successes']}/{row[of]} ({100 * row['low']:.0f} to {100 * row['high']:.0f} %)"


def machine(hardware: dict[str, Any]) -> str:
    return hardware["gpu"] or f"{hardware['cores']} cores, {hardware['cpu']}"


def expert_lines(results: dict[str, Any]) -> list[str]:
    """One line per task: successes on its first starts, steps, and the time that the demonstrations took."""
    lines = [
        "| task | expert succeeds, first 50 initial states | steps, mean (max) | demonstrations | minutes |",
        "|---|---|---|---|---|",
    ]
    for name in (name for name in ORDER if name in results):
        found = results[name]
        several = len(found["tasks"]) > 1
        spent = "" if found["made"] is None else f"{found['made']['seconds'] / 60:.1f}"
        for number, row in enumerate(found["tasks"]):
            title = f"{SIMULATORS[name].title}: {row['instruction']}" if several else SIMULATORS[name].title
            first = number == 0
            columns = [title, rate(row), f"{row['mean_steps']:.0f} ({row['max_steps']})"]
            columns += [str(found["demonstrations"]) if first else "", spent if first else ""]
            lines.append("| " + " | ".join(columns) + " |")
    return lines


def rendering_lines(tasks: dict[str, Any]) -> list[str]:
    """One line per task: frames a second of both settings."""
    lines = [
        "| task | frames/s, MuJoCo's settings | frames/s here | ratio | mean difference of 255 |",
        "|---|---|---|---|---|",
    ]
    for name in (name for name in ORDER if name in tasks):
        row = tasks[name]
        columns = [SIMULATORS[name].title, f"{row['shipped_frames_per_second']:.0f}"]
        columns += [f"{row['chosen_frames_per_second']:.0f}", f"{row['ratio']:.1f}"]
        columns.append(f"{row['mean_absolute_difference']:.1f}")
        lines.append("| " + " | ".join(columns) + " |")
    return lines


def page_lines() -> list[str]:
    """All of docs/simulators.md that is measured."""
    experts, rendering = read("experts"), read("rendering")
    lines = tasks_table.page_lines(read("tasks"), read("task_data"))
    if experts:
        found = experts["simulators"]
        made = next(row["made"] for row in found.values() if row["made"])
        lines += [
            f"Scripted experts, 95 % Wilson intervals; minutes to generate the demonstrations with {made['workers']} "
            f"processes ({machine(made['hardware'])}); LIBERO-Object on assets of which three are stand-ins; "
            f"`benchmarks/experts.py`:",
            "",
            *expert_lines(found),
            "",
        ]
    if rendering:
        lines += [
            f"Rendering at {rendering['image_size']} pixels in one process, both settings in turns "
            f"({machine(rendering['hardware'])}); `benchmarks/rendering.py`:",
            "",
            *rendering_lines(rendering["tasks"]),
            "",
        ]
    return lines
