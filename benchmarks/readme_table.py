"""Write the numbers of README.md and docs/{results,similarity,policies,simulators,comparison}.md from their files.

uv run python benchmarks/readme_table.py            rewrites them
uv run python benchmarks/readme_table.py --check    exits 1 where one does not agree with the results
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import comparison_table
import heads_table
import similarity_table
import simulators_table
from classact.utils.statistics import wilson_interval
from common import RESULTS

README = Path(__file__).parent.parent / "README.md"
SIMILARITY = Path(__file__).parent.parent / "docs" / "similarity.md"
POLICIES = Path(__file__).parent.parent / "docs" / "policies.md"
SIMULATORS = Path(__file__).parent.parent / "docs" / "simulators.md"
RESULTS_PAGE = Path(__file__).parent.parent / "docs" / "results.md"
COMPARISON = Path(__file__).parent.parent / "docs" / "comparison.md"
ENCODERS = {"class": "CLASS", "untrained": "untrained encoder", "state": "true state as latent"}
RECIPES = {
    "pusht-demo": "crop and noise (the paper's)",
    "pusht-cpu": "crop and noise (the paper's)",
    "pusht-rand-paper": "crop and noise (the paper's)",
    "pusht-rand-hsv": "hue, saturation, brightness (F.2)",
    "pusht-rand-whiten": "colours whitened, randomly rotated (ours)",
}


def success_table(results: dict[str, Any]) -> list[str]:
    """One line per data set, shift, recipe and encoder; seeds of one line are pooled."""
    pooled: dict[tuple[str, str, str, str], dict[str, Any]] = {}
    for cell in results.values():
        for row in cell["rows"]:
            key = (cell["data"], cell["shift"], RECIPES[cell["preset"]], row["encoder"])
            entry = pooled.setdefault(key, {"seeds": set(), "minutes": [], "images": cell["images"]})
            entry["seeds"].add(cell["seed"])
            entry["minutes"].append(cell["timings"]["pre-training"] / 60)
            done, all_ = entry.get(row["criterion"], (0, 0))
            entry[row["criterion"]] = (done + row["successes"], all_ + row["episodes"])
    lines = [
        "| demonstrations | appearance | augmentation | latent | images seen | coverage > 0.90 | IoU > 0.90 "
        "| starts x seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (data, shift, recipe, encoder), entry in pooled.items():
        seeds = len(entry["seeds"])
        learned = encoder == "class"
        columns = [data, shift, recipe if learned else "", ENCODERS[encoder]]
        columns.append(f"{entry['images'] / 1000:.0f}k" if learned else "")
        for criterion in ("coverage>0.90", "iou>0.90"):
            done, all_ = entry[criterion]
            low, high = wilson_interval(done, all_)
            columns.append(f"{100 * done / all_:.0f} % ({100 * low:.0f} to {100 * high:.0f})")
        columns.append(f"{entry['coverage>0.90'][1] // seeds} x {seeds}")
        lines.append("| " + " | ".join(columns) + " |")
    return lines


def block() -> str:
    """The generated part of docs/results.md."""
    parts: list[str] = []
    results = json.loads((RESULTS / "pusht.json").read_text(encoding="utf-8"))
    machine = next(iter(results.values()))["hardware"]
    parts += success_table(results)
    parts.append("")
    demo = json.loads((RESULTS / "demo.json").read_text(encoding="utf-8"))
    human = [sum(c["timings"].values()) / 60 for name, c in results.items() if name.startswith("human-fixed")]
    parts.append(
        f"The first command above took {demo['seconds_in_all'] / 60:.1f} minutes in all on a fresh clone, images, "
        f"training and rollouts on the human demonstrations {statistics.median(human):.1f} (median of {len(human)} "
        f"seeds; {machine['cores']} cores, {machine['cpu']}). Seeds share their starts and are pooled."
    )
    throughput = RESULTS / "training_throughput.json"
    if throughput.exists():
        t = json.loads(throughput.read_text(encoding="utf-8"))
        s = json.loads((RESULTS / "simulator_speed.json").read_text(encoding="utf-8"))["simulators"]["pusht"]
        rows = json.loads((RESULTS / "latency.json").read_text(encoding="utf-8"))["act"]["rows"]
        decision = [r for r in rows if (r["stage"], r["batch"]) == ("whole", 1) and r["name"].startswith("retrieval")]
        whole = next(r for r in decision if "small" in r["name"])
        parts.append(
            f"A training step takes {t['ratio']:.2f} times the bare encoder's forward and backward pass "
            f"({t['images_per_second']:.0f} images/s; DTW and weights {t['similarity_ms']:.1f} ms of "
            f"{t['step_ms']:.0f}); the simulator makes {s['steps_per_second']:,.0f} steps/s, "
            f"{s['steps_with_image_per_second']:,.0f} with an image, on one core; one decision ({whole['name']}) takes "
            f"{whole['p50_ms']:.1f} ms (p50), {whole['p95_ms']:.1f} ms (p95)."
        )
    parts.append("")
    parts += similarity_table.readme_lines()
    return "\n".join(parts) + "\n"


def between(text: str, name: str, new: str) -> str:
    """``text`` with what stands between the markers ``name`` replaced."""
    before, _, rest = text.partition(f"<!-- {name} -->\n")
    _, _, after = rest.partition(f"<!-- /{name} -->")
    return f"{before}<!-- {name} -->\n{new}<!-- /{name} -->{after}"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--check", action="store_true")
    options = arguments.parse_args()
    pages = [
        (README, "results", "\n".join(comparison_table.readme_lines()) + "\n"),
        (RESULTS_PAGE, "results", block()),
        (SIMULATORS, "tasks", "\n".join(simulators_table.readme_lines()) + "\n"),
        (COMPARISON, "comparison", "\n".join(comparison_table.page_lines()) + "\n"),
        (SIMILARITY, "measured", "\n".join(similarity_table.page_lines()) + "\n"),
        (POLICIES, "heads", "\n".join(heads_table.page_lines()) + "\n"),
        (SIMULATORS, "measured", "\n".join(simulators_table.page_lines()) + "\n"),
    ]
    for path, name, new in pages:
        text = path.read_text(encoding="utf-8")
        written = between(text, name, new)
        if not options.check:
            path.write_text(written, encoding="utf-8")
        elif written != text:
            print(f"{path} does not agree with benchmarks/results: run benchmarks/readme_table.py", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
