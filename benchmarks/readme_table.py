"""Write the numbers of README.md and of pages in docs/ from their results files.

uv run python benchmarks/readme_table.py            rewrites them
uv run python benchmarks/readme_table.py --check    exits 1 where one does not agree with the results
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import bridge_table
import clam_table
import comparison_table
import policies_table
import similarity_table
import simulators_table
from common import RESULTS

README = Path(__file__).parent.parent / "README.md"
SIMILARITY = Path(__file__).parent.parent / "docs" / "similarity.md"
POLICIES = Path(__file__).parent.parent / "docs" / "policies.md"
SIMULATORS = Path(__file__).parent.parent / "docs" / "simulators.md"
RESULTS_PAGE = Path(__file__).parent.parent / "docs" / "results.md"
COMPARISON = Path(__file__).parent.parent / "docs" / "comparison.md"
DATA = Path(__file__).parent.parent / "docs" / "data.md"
LATENT_ACTIONS = Path(__file__).parent.parent / "docs" / "latent-actions.md"


def demo_rates(rows: list[dict[str, Any]]) -> str:
    """What the demo's policies reach by each criterion."""
    found: dict[str, list[str]] = {}
    for row in rows:
        who = row["policy"] if row["encoder"] == "class" else f"{row['policy']} with encoder {row['encoder']!r}"
        found.setdefault(who, []).append(f"{row['successes']} by {row['criterion']}")
    return "; ".join(f"{who} {', '.join(rates)}" for who, rates in found.items())


def block() -> str:
    """The generated part of docs/results.md."""
    parts: list[str] = []
    demo = json.loads((RESULTS / "demo.json").read_text(encoding="utf-8"))
    machine = demo["hardware"]
    parts.append(
        f"The first command of the README took {demo['seconds_in_all'] / 60:.1f} minutes in all on a fresh clone "
        f"({machine['cores']} cores, {machine['cpu']}); its policies, successes from {demo['rows'][0]['episodes']} "
        f"unseen initial states: {demo_rates(demo['rows'])}."
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


def decoding_line() -> str:
    """Frames per second beside LeRobot's loader, opening a set that is in the store, and training from it."""
    found = json.loads((RESULTS / "lerobot_decoding.json").read_text(encoding="utf-8"))
    rate, machine = found["frames per second"], found["hardware"]
    opening, training = found["opening"], found["training"]
    images = training["images per second"]
    return (
        f"{found['frames']:,} AV1 frames of {found['pixels']} pixels, {machine['cores']} cores, {machine['cpu']}, in "
        f"one process: decoded once into the store at {rate['decode once']:,.0f} frames/s, read from it in random "
        f"order at {rate['mapped']:,.0f}; LeRobot's own loader (PyAV), which decodes anew and makes float tensors of "
        f"all features, gives {rate['lerobot pyav']:,.0f} in random order. A store that is there is opened "
        f"in {1000 * found['seconds to open the store again']:.0f} ms (`benchmarks/lerobot_decoding.py`).\n\n"
        f"A LeRobot data set of {opening['frames']:,} frames in {opening['episodes']} episodes, all in the store, "
        f"is read and opened in {opening['seconds']:.2f} s. Pre-training on frames that were videos runs at "
        f"{training['video to zarr']:.2f} times the rate of the same frames from Zarr (median of "
        f"{training['steps']} steps in turns, half of them between {training['range of the middle half'][0]:.2f} and "
        f"{training['range of the middle half'][1]:.2f}; {images['video']:.0f} and {images['zarr']:.0f} images/s): "
        f"both are mapped from the store.{_busy(opening, training)}\n"
    )


def install_line() -> str:
    """What installing takes, and from there to a page of one's own data."""
    found = json.loads((RESULTS / "install.json").read_text(encoding="utf-8"))
    wheel = found["wheel"]
    return (
        f"The installed environment has {wheel['installed_mib'] / 1024:.1f} GiB, "
        f"{wheel['of_which_gpu_mib'] / 1024:.1f} of them PyTorch's libraries for GPUs. From the wheel in a bare "
        f"environment to the page of a LeRobot folder (`{found['data']}`): {wheel['demo_seconds'] / 60:.1f} minutes "
        f"for `classact demo --data`, beside the download of {wheel['packages']} packages (`benchmarks/install.py`).\n"
    )


def _busy(*found: dict[str, Any]) -> str:
    """What else the machine did meanwhile."""
    loads = [f"{one['load before']:.0f}" for one in found if one["load before"] > 1]
    if not loads:
        return ""
    return f" Measured on a busy machine (load {' and '.join(loads)} on {found[0]['hardware']['cores']} cores)."


def lerobot_eval_line() -> str:
    """Success by LeRobot's own evaluation beside classact's."""
    lines = []
    for name, row in json.loads((RESULTS / "lerobot_eval.json").read_text(encoding="utf-8"))["policies"].items():
        n, same, own, d = (row[key] for key in ("episodes", "same initial states", "own initial states", "difference"))
        lines.append(
            f"{name}: {row['lerobot-eval']} of {n} by `lerobot-eval`, {same['successes']} by classact from the same "
            f"initial states (95 % interval {100 * same['low']:.0f} to {100 * same['high']:.0f} %; {d['won']} : "
            f"{d['lost']} episodes differ, McNemar's p = {d['p']:.2g}), {own['successes']} from its own ones "
            f"({100 * own['low']:.0f} to {100 * own['high']:.0f} %)"
        )
        if f := row.get("further"):
            lines[-1] += (
                f"; from {f['episodes']} more states {f['gym-pusht']} in gym-pusht itself and {f['classact']} in "
                f"classact ({f['won']} : {f['lost']}, p = {f['p']:.2g})"
            )
    return (
        f"Push-T, coverage of 0.95 within 300 steps: {'; '.join(lines)}. Both simulate the same physics, and both show "
        f"96 pixels (the 384 that LeRobot declares are those of its videos); a pixel or two of a frame differ by "
        f"rounding (`benchmarks/lerobot_eval.py`).\n"
    )


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
        (README, "install", install_line()),
        (README, "results", "\n".join(policies_table.readme_lines()) + "\n"),
        (RESULTS_PAGE, "results", block()),
        (COMPARISON, "short", "\n".join(comparison_table.short_lines()) + "\n"),
        (COMPARISON, "comparison", "\n".join(comparison_table.page_lines()) + "\n"),
        (SIMILARITY, "measured", "\n".join(similarity_table.page_lines()) + "\n"),
        (POLICIES, "heads", "\n".join(policies_table.page_lines()) + "\n"),
        (DATA, "decoding", decoding_line()),
        (LATENT_ACTIONS, "bridge", "\n".join(bridge_table.page_lines()) + "\n"),
        (DATA, "lerobot-eval", lerobot_eval_line()),
        (SIMULATORS, "measured", "\n".join(simulators_table.page_lines()) + "\n"),
        (LATENT_ACTIONS, "clam", "\n".join(clam_table.page_lines()) + "\n"),
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
