"""All that a GPU is wanted for, in one run of under eight minutes: the first thing to start where one is at hand.

In the order of their value: the tests that need a GPU, all pairs of action windows, training, whole decisions,
denoising alone. Each section runs in a process of its own, is ended when its time is up, and is written as soon as it
is done, to a file that is named after the GPU. The same command measures what is missing there.

    uv run python benchmarks/gpu.py                                       what is missing in results/gpu-NAME.json
    uv run python benchmarks/gpu.py --sections similarity --again         one section, anew
    uv run python benchmarks/gpu.py --dry-run --json FILE                 tiny sizes on the CPU: does the script work

Exit status: 0 all sections asked for are there; 1 there is no GPU; 2 one failed, was ended or is still to be done.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests"

SECONDS = {"tests": 150, "similarity": 60, "training": 110, "act": 80, "denoise": 80}
"""Sections by value, and what each may take of eight minutes; with other --minutes, in proportion."""

GOALS = {"pairs_per_second": 16e9, "exact_seconds": 3.0}
"""Of all pairs of 254,000 windows at T = 16, D = 10, on an H200."""

MARK = re.compile(r"mark\.gpu\b")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="results file; default: results/gpu-NAME.json beside this script")
    parser.add_argument("--sections", nargs="+", choices=SECONDS, default=list(SECONDS), help="default: all")
    parser.add_argument("--again", action="store_true", help="measure sections anew that the file holds")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all sections together")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU; needs --json")
    parser.add_argument("--measure", choices=SECONDS, help=argparse.SUPPRESS)  # in the process of a section
    options = parser.parse_args()
    if options.dry_run and options.json is None:
        parser.error("--dry-run needs --json FILE: its numbers are no results.")
    if options.measure:
        measure(options.measure, options.json, dry=options.dry_run)
        return 0
    path = options.json
    if not options.dry_run:
        name = gpu_name()
        if name is None:
            return 1
        path = path or HERE / "results" / f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    return run_all(options.sections, path, again=options.again, seconds=60 * options.minutes, dry=options.dry_run)


def gpu_name() -> str | None:
    """Of the first CUDA device; None, with what to do on stderr, where there is none."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    print(
        f"gpu.py needs a CUDA GPU, and torch {torch.__version__} finds none. Start it on a machine with one, or try "
        f"the script itself with --dry-run --json FILE.",
        file=sys.stderr,
    )
    return None


def run_all(sections: list[str], path: Path, *, again: bool, seconds: float, dry: bool) -> int:
    """Measure what is missing while there is time, say what came of each section, and return the exit status."""
    end, outcomes = time.monotonic() + seconds, {}
    for name in sections:
        if not again and passed(path, name):
            outcomes[name] = f"kept from {path}"
            continue
        left, budget = end - time.monotonic(), SECONDS[name] * seconds / sum(SECONDS.values())
        if left < budget / 2:
            outcomes[name] = f"NOT STARTED: {max(left, 0):.0f} s are left of {seconds:.0f}; the same command continues"
            continue
        print(f"{name} ...", flush=True)
        begin, limit = time.monotonic(), min(budget, left)
        status = in_a_process(name, path, limit, dry=dry)
        spent = f"{time.monotonic() - begin:.0f} s"
        if status is None:
            outcomes[name] = f"ENDED after its {limit:.0f} s"
        elif status or not passed(path, name):
            outcomes[name] = f"FAILED after {spent} (exit status {status}), see above"
        else:
            outcomes[name] = f"done in {spent}"
    print(f"\n{path}")
    for name, outcome in outcomes.items():
        print(f"  {name}: {outcome}")
    return 2 if any(outcome[0].isupper() for outcome in outcomes.values()) else 0


def passed(path: Path, name: str) -> bool:
    """Whether a results file holds a section; that of the tests without failures."""
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return name in held and not held[name].get("failed")


def in_a_process(name: str, path: Path, seconds: float, *, dry: bool) -> int | None:
    """Exit status of the process that measured a section; None where it, and all that it started, had to be ended."""
    command = [sys.executable, str(HERE / "gpu.py"), "--measure", name, "--json", str(path.absolute())]
    process = subprocess.Popen(command + ["--dry-run"] * dry, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


# -- in the process of a section ---------------------------------------------------------------------------------------


def measure(name: str, path: Path, *, dry: bool) -> None:
    """Measure one section and add it to the results file, with hardware, versions and time."""
    from sections import run_sections

    begin = time.monotonic()
    how: Callable[[bool], dict[str, Any]] = {"tests": tests, "similarity": similarity, "training": training}.get(
        name, lambda dry: decisions(name, dry)
    )
    run_sections(
        [name],
        SECONDS,
        lambda _: {**how(dry), "dry_run": dry, "seconds_in_all": time.monotonic() - begin},
        path=path,
        again=True,
        say=lambda _: None,
    )


def tests(dry: bool) -> dict[str, Any]:
    """Tests that are marked as needing a GPU: how many passed and were skipped, and which failed."""
    files = sorted(str(file) for file in TESTS.rglob("test_*.py") if MARK.search(file.read_text(encoding="utf-8")))
    report = Path(f"gpu-tests-{os.getpid()}.xml").absolute()
    command = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short", f"--junitxml={report}"]
    try:
        done = subprocess.run([sys.executable, *command, *(files[:1] if dry else files)], cwd=TESTS.parent)
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    finally:
        report.unlink(missing_ok=True)

    def those(*kinds: str) -> list[str]:
        return [f"{c.get('classname')}.{c.get('name')}" for c in cases if any(c.find(k) is not None for k in kinds)]

    failed, skipped = those("failure", "error"), those("skipped")
    if done.returncode not in (0, 1) or not cases or (len(skipped) == len(cases) and not dry):
        raise SystemExit(f"pytest ended with {done.returncode}: {len(cases)} tests, {len(skipped)} of them skipped.")
    return {"passed": len(cases) - len(failed) - len(skipped), "skipped": skipped, "failed": failed}


def similarity(dry: bool) -> dict[str, Any]:
    """All pairs of 254,000 windows, beside the goals."""
    from similarity import all_pairs

    found = all_pairs(400, "cpu") if dry else all_pairs(254_000, "cuda")
    met = {
        "pairs_per_second": found["pairs_per_second"] >= GOALS["pairs_per_second"],
        "exact_seconds": found["seconds"]["exact"] <= GOALS["exact_seconds"],
    }
    return {**found, "goals": GOALS, "met": met}


def training(dry: bool) -> dict[str, Any]:
    """Images a second of the paper's encoder on random images, and what the step costs beside the bare encoder."""
    from dataclasses import replace

    import torch

    from classact.run.presets import PRESETS
    from training_throughput import measure, random_data

    preset = "pusht-cpu" if dry else "paper-pusht"
    config = PRESETS[preset].pretrain
    config = replace(config, encoder=replace(config.encoder, init="scratch"))
    if dry:
        small = replace(config.encoder, width=0.25, image_size=24, crop_size=20)
        config = replace(config, encoder=small, batch_size=8)
    data = random_data(config, 400 if dry else 8000)
    return {"preset": preset, **measure(data, config, torch.device("cpu" if dry else "cuda"), 1 if dry else 10)}


def decisions(name: str, dry: bool) -> dict[str, Any]:
    """Latency of whole decisions ("act") or of a head alone ("denoise")."""
    import latency
    from classact.models.encoders import EncoderConfig

    config = latency.LatencyConfig("cuda", calls=200, seconds=2.0)
    if dry:
        tiny = latency.Case("tiny", EncoderConfig(width=0.25, image_size=24, crop_size=20), 2, "debug", (200,))
        latency.CASES, latency.BATCHES = (tiny,), (1, 3)
        config = latency.LatencyConfig("cpu", calls=1, seconds=0.5, compiled=False)
    return latency.run((name,), config, say=lambda _: None)[name]


if __name__ == "__main__":
    sys.exit(main())
