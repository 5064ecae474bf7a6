"""What the benchmark scripts share: their command lines, results files, medians, memory."""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from classact.errors import ClassactError, TrainingInterrupted
from classact.utils.locks import update_json
from classact.utils.machine import hardware, versions
from classact.utils.storage import read_json, write_json

RESULTS = Path(__file__).parent / "results"

ResultsFile = Annotated[
    Path | None,
    tyro.conf.arg(help="Results file; sections that it holds are kept, so the command can be stopped and continued."),
]
Again = Annotated[bool, tyro.conf.arg(help="Measure sections again that the results file holds.")]

Flags = TypeVar("Flags")


def command(flags: type[Flags], function: Callable[[Flags], None], arguments: Sequence[str] | None = None) -> int:
    """Parse the flags, call the function, say what went wrong; returns the exit status.

    Args:
        flags: dataclass of them.
        function: takes one.
        arguments: of the command line; None: those of this process.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    parsed = tyro.cli(flags, args=given, description=flags.__doc__)
    try:
        function(parsed)
    except (KeyboardInterrupt, TrainingInterrupted) as stop:
        again = shlex.join(["python", sys.argv[0], *given])
        print(f"{str(stop) or 'stopped'}\nContinue with: {again}", file=sys.stderr)
        return 130
    except ClassactError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


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


def mcnemar_p(won: int, lost: int) -> float:
    """Exact two-sided McNemar test: do two policies succeed equally often from the same initial states?

    States where both succeed or both fail say nothing; of the others, half should be won. Without any, p is 1.

    Args:
        won: initial states from which only the first policy succeeds.
        lost: those from which only the second one does.
    """
    from scipy.stats import binomtest

    n = won + lost
    return min(1.0, float(binomtest(won, n, 0.5).pvalue)) if n else 1.0


def kept(path: Path, part: str) -> dict[str, Any]:
    """What a part of a results file holds, by name; nothing where there is no file."""
    return dict(read_json(path).get(part, {})) if path.exists() else {}


def keep(path: Path, part: str, name: str, value: Any, **facts: Any) -> None:
    """Add to a part of a results file, beside the versions and other facts."""

    def added(before: dict[str, Any]) -> dict[str, Any]:
        return before | {part: before.get(part, {}) | {name: value}, "versions": versions(), **facts}

    update_json(path, added, {})
