"""Whatever standard output is, commands print to it as well as it can, and end as they should."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fakes
from classact.cli.console import console, print_summary
from classact.cli.similarity import BARS

NAMES = [f"class-episodes100-{what}" for what in ("k16", "k64", "temperature0.01", "temperature0.02")]
ROW = fakes.row(episodes=100, successes=80, success=0.8, low=0.71, high=0.87, metrics={"coverage": 0.9})


@pytest.mark.parametrize("columns", [20, 60, 80, 200])
def test_names_are_folded_and_numbers_stay_whole(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    print_summary([replace(ROW, encoder=name, evaluation=f"retrieval-{name}") for name in NAMES])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert "".join(row[0] for row in cells) == "".join(NAMES)
    assert [row[2] for row in cells if row[2]] == ["80 % (80 of 100)"] * len(NAMES)
    assert columns < 80 or max(map(len, lines)) <= max(columns, 83)


def test_tables_of_long_names_are_no_longer_than_the_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.table import Table

    monkeypatch.setenv("COLUMNS", "50")
    table = Table("what", "where")
    table.add_row("n" * 100, "p" * 100)
    console().print(table)
    printed = capsys.readouterr().out
    assert (printed.count("n"), printed.count("p")) == (100, 100)
    assert max(map(len, printed.splitlines())) == 50


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_what_an_encoding_lacks_is_replaced(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    console().print(f"{BARS} ↑ better ↓ worse 漢")
    sys.stdout.flush()
    assert raw.getvalue().decode("ascii") == "..::||## ^ better v worse ?\n"


def run(command: str, **environment: str) -> tuple[int, str, str]:
    """Status, output and errors of a shell's command, in which "classact" is this one."""
    function = f'classact() {{ "{sys.executable}" -m classact "$@"; }}; {command}'
    done = subprocess.run(
        ["bash", "-c", function], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", ["presets", "presets --help", "--help"])
def test_a_reader_that_goes_away_is_no_error(arguments: str, unbuffered: str) -> None:
    code = f"classact {arguments} | true; exit ${{PIPESTATUS[0]}}"
    assert run(code, PYTHONUNBUFFERED=unbuffered) == (0, "", "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str) -> None:
    status, out, err = run(f"classact presets {closed}")
    assert (status, err) == (0, "")
    assert ("paper-pusht" in out) == (">&- 2" not in closed and closed != ">&-")
    assert run(f"classact nonsense {closed}")[0] == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
@pytest.mark.parametrize("arguments", ["presets", "--version"])
def test_output_that_cannot_be_written_is_an_error(arguments: str) -> None:
    status, _, err = run(f"classact {arguments} > /dev/full")
    assert status == 1
    assert err.startswith("classact: error: standard output cannot be written: No space left on device.")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"NO_COLOR": "1"}],
)
def test_tables_in_any_environment(environment: dict[str, Any]) -> None:
    status, out, err = run("classact presets", **{"TERM": "dumb", **environment})
    assert (status, err) == (0, "")
    assert "paper-pusht" in out
    assert "\x1b" not in out
