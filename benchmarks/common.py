"""What the benchmark scripts share: results files, medians, memory."""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from classact.utils.machine import hardware, versions
from classact.utils.storage import write_json

RESULTS = Path(__file__).parent / "results"


def parser(about: str, name: str) -> argparse.ArgumentParser:
    """A parser with --json, whose default is the committed results file."""
    out = argparse.ArgumentParser(description=about)
    out.add_argument("--json", type=Path, default=RESULTS / f"{name}.json", help="where the results go")
    return out


def save(path: Path, result: dict[str, Any]) -> None:
    """Write the results with the machine and the versions they were measured on."""
    stamp = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(path, {**result, "hardware": hardware(), "versions": versions(), "measured": stamp})
    print(json.dumps(result, indent=2))
    print(f"written to {path}")


def seconds(function: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def peak_mebibytes() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
