"""The measured part of docs/policies.md and a line of the README, from pusht_heads.json and latency.json."""

from __future__ import annotations

import json
from typing import Any

from classact.evaluation.rows import EvaluationRow
from classact.utils.codec import from_json
from classact.utils.statistics import wilson_interval
from common import RESULTS

NAMES = {"retrieval": "retrieval, no head", "mlp": "MLP", "diffusion": "Diffusion Policy"}
ENCODERS = {"untrained": "untrained encoder", "state": "true state as latent"}


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def read_rows(results: dict[str, Any]) -> list[EvaluationRow]:
    return [from_json(EvaluationRow, row, f"rows[{i}]") for i, row in enumerate(results["rows"])]


def rate(row: EvaluationRow) -> str:
    low, high = wilson_interval(row.successes, row.episodes)
    return f"{100 * row.successes / row.episodes:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def success_lines(results: dict[str, Any]) -> list[str]:
    """One line per policy: last checkpoint and maximum over the evaluations during training."""
    found: dict[tuple[str, str, str], dict[tuple[str, str], EvaluationRow]] = {}
    for row in read_rows(results):
        kind = "last" if row.maximum_of is None else "maximum"
        found.setdefault((row.policy, row.encoder, row.training), {})[kind, row.criterion] = row
    minutes = {
        (head["labels"]["head"], head["labels"]["training"]): head["timings"]["training"] / 60
        for head in results["heads"].values()
    }
    minutes["retrieval", "representation only"] = results["timings"]["pre-training"] / 60
    lines = [
        "| policy | encoder | coverage > 0.90, last | the same, maximum of 10 | IoU > 0.90, last "
        "| mean largest coverage | minutes of training |",
        "|---|---|---|---|---|---|---|",
    ]
    for (policy, encoder, training), rows in found.items():
        last, best = rows["last", "coverage>0.90"], rows.get(("maximum", "coverage>0.90"))
        label = ENCODERS.get(encoder, training if policy != "retrieval" else "CLASS")
        spent = minutes.get((policy, training)) if encoder not in ENCODERS else None
        columns = [
            NAMES[policy],
            label,
            rate(last),
            rate(best) if best else "",
            rate(rows["last", "iou>0.90"]),
            f"{last.metrics['coverage']:.2f}",
            "" if spent is None else f"{spent:.1f}",
        ]
        lines.append("| " + " | ".join(columns) + " |")
    return lines


def alarm_line(results: dict[str, Any]) -> str:
    """How often the alarm of the run's bank rang in the rollouts of the last checkpoints."""
    parts = []
    for row in read_rows(results):
        if row.criterion != "coverage>0.90" or row.maximum_of is not None or row.alarms is None:
            continue
        if row.encoder in ENCODERS:
            continue
        failures = row.episodes - row.successes
        name = NAMES[row.policy].split(",")[0]
        name += "" if row.policy == "retrieval" else f" ({row.training})"
        parts.append(
            f"{name} {row.alarms.failures} of {failures} failures and {row.alarms.successes} of "
            f"{row.successes} successes"
        )
    return "Episodes in which the novelty alarm (alpha = 0.1) rang: " + "; ".join(parts) + "." if parts else ""


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


def page_lines() -> list[str]:
    """All of docs/policies.md that is measured."""
    results = read("pusht_heads")
    data, machine = results["data"], results["hardware"]
    lines = [
        f"Push-T, {data['episodes']} embedded demonstrations ({data['steps']:,} steps), of which {data['heldout']} are "
        f"held out to calibrate the novelty alarm; 50 unseen initial states, 95 % Wilson intervals; settings "
        f"`pusht-demo` and `head-cpu`, one seed ({machine['cores']} cores, {machine['cpu']}). The heads' network "
        f"was a small U-Net then; `head-cpu` now has a residual MLP, which these rows do not tell of:",
        "",
        *success_lines(results),
        "",
    ]
    epochs = sorted({head["settings"]["epochs"] for head in results["heads"].values()})
    lines += [
        f"Heads were trained for {', '.join(f'{e:g}' for e in epochs)} epochs, what a few minutes allow; the paper "
        f"fine-tunes for 250 on Push-T (table 9). Diffusion Policy above all is far from the end of its training.",
        "",
    ]
    if line := alarm_line(results):
        lines += [line, ""]
    if (RESULTS / "latency.json").exists():
        lines += [*latency_lines(read("latency")), ""]
    lines.append(
        "`benchmarks/pusht_heads.py` and `benchmarks/latency.py --json benchmarks/results/latency.json` measure this; "
        "`benchmarks/readme_table.py` writes it here."
    )
    return lines
