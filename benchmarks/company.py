"""What another busy process costs: a short ``classact demo`` alone and beside one, in turns.

uv run python benchmarks/company.py              some five minutes on two cores; goes on where it was stopped
uv run python benchmarks/company.py --again      measures everything again
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from classact.utils.storage import read_json
from common import parser, save, seconds

DEMO = ("--episodes", "40", "--epochs", "2", "--test-episodes", "10", "--no-baselines", "--quiet")
BUSY = "while True: pass"
GOAL = 2.2


@contextmanager
def company(processes: int) -> Iterator[None]:
    """So many busy processes, each of which would fill a core."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def measure(processes: int) -> dict[str, Any]:
    """Seconds of one demo in all and by stage, beside so many busy processes; nothing is cached before."""
    with tempfile.TemporaryDirectory() as folder, company(processes):
        out = Path(folder) / "demo"
        command = [sys.executable, "-m", "classact", "demo", "--out", str(out), *DEMO]
        environment = {**os.environ, "CLASSACT_CACHE": str(Path(folder) / "cache")}
        taken = seconds(lambda: subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL))
        timings = json.loads((out / "config.json").read_text(encoding="utf-8"))["timings"]
    return {"busy": processes, "seconds": round(taken, 2), "timings": timings}


def main() -> None:
    arguments = parser(__doc__ or "", "company")
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--again", action="store_true", help="measure again what the results file holds")
    options = arguments.parse_args()
    path: Path = options.json
    rows: list[dict[str, Any]] = read_json(path)["rows"] if path.exists() and not options.again else []
    measure(0)  # compiles what is compiled once
    for repeat in range(options.repeats):
        for busy in (0, 1):
            if sum(row["busy"] == busy for row in rows) <= repeat:
                rows.append(measure(busy))
                save(path, {"command": " ".join(("classact demo", *DEMO)), "goal": GOAL, **summary(rows), "rows": rows})


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians alone and beside one busy process, and how many times as long the latter is."""
    taken = {busy: [row["seconds"] for row in rows if row["busy"] == busy] for busy in (0, 1)}
    if not all(taken.values()):
        return {}
    alone, beside = (round(statistics.median(taken[busy]), 2) for busy in (0, 1))
    return {"alone_seconds": alone, "beside_seconds": beside, "times_as_long": round(beside / alone, 3)}


if __name__ == "__main__":
    main()
