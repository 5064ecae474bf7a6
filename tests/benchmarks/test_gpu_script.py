"""benchmarks/gpu.py without a GPU: its sections at tiny sizes, what it keeps, and what it does not start."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import latency

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("CASES", "BATCHES"):
        monkeypatch.setattr(latency, name, getattr(latency, name))  # small ones take their place
    import gpu

    assert list(FOUND) == list(gpu.SECONDS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other on a busy machine, and tiny sizes need no more
    yield gpu
    torch.set_num_threads(threads)


FOUND = {
    "tests": {"passed": 0, "failed": []},
    "similarity": {"windows": 400, "goals": {"pairs_per_second": 16e9, "exact_seconds": 3.0}},
    "training": {"preset": "pusht-cpu", "batch_size": 8},
    "act": {"notes": []},
    "denoise": {"notes": []},
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the tests of the first section would run")
@pytest.mark.parametrize("name", FOUND)
def test_a_section_is_added_to_the_file_with_its_machine(gpu: Any, name: str, tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    path.write_text('{"before": {}}', encoding="utf-8")
    gpu.measure(name, path, dry=True)
    held = json.loads(path.read_text(encoding="utf-8"))
    assert list(held) == ["before", name]
    section = held[name]
    assert section["hardware"].keys() == {"cpu", "cores", "gpu", "platform"}
    assert {"python", "torch"} <= section["versions"].keys()
    assert re.match(r"20\d\d-", section["measured"])
    assert section["dry_run"] is True
    assert section["seconds_in_all"] > 0
    assert FOUND[name].items() <= section.items()
    if name == "tests":
        assert section["skipped"]
    elif name == "similarity":
        assert section["seconds"].keys() == {"exact", "sweep_without_pruning", "sweep"}
        assert section["met"].keys() == section["goals"].keys()
    elif name == "training":
        assert section["step_ms"] > 0
        assert section["images_per_second"] > 0
    else:
        assert all(0 < row["p50_ms"] <= row["p95_ms"] for row in section["rows"])


def processes(gpu: Any, monkeypatch: pytest.MonkeyPatch, outcomes: dict[str, Any]) -> list[tuple[str, float]]:
    """Sections that end as told: with a row in the file, an exit status, or None where they had to be ended."""
    started: list[tuple[str, float]] = []

    def process(name: str, path: Path, seconds: float, *, dry: bool) -> int | None:
        assert not dry
        started.append((name, seconds))
        outcome = outcomes.get(name, {})
        if not isinstance(outcome, dict):
            return outcome
        held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps({**held, name: outcome}), encoding="utf-8")
        return 0

    monkeypatch.setattr(gpu, "in_a_process", process)
    return started


def test_a_second_run_measures_what_is_missing(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, names = tmp_path / "gpu.json", list(gpu.SECONDS)
    outcomes: dict[str, Any] = {"tests": {"failed": ["a.test_b"]}, "training": None, "act": 3}
    started = processes(gpu, monkeypatch, outcomes)
    assert gpu.run_all(names, path, again=False, seconds=480, dry=False) == 2
    said = capsys.readouterr().out
    assert [name for name, _ in started] == names
    assert all(seconds <= gpu.SECONDS[name] for name, seconds in started)
    assert re.search(r"tests: FAILED after 0 s \(exit status 0\)", said)
    assert re.search(r"similarity: done in 0 s", said)
    assert re.search(r"training: ENDED after its 110 s", said)
    assert re.search(r"act: FAILED after 0 s \(exit status 3\)", said)
    started.clear()
    outcomes.clear()
    assert gpu.run_all(names, path, again=False, seconds=480, dry=False) == 0
    assert [name for name, _ in started] == ["tests", "training", "act"]
    assert f"similarity: kept from {path}" in capsys.readouterr().out
    started.clear()
    assert gpu.run_all(names, path, again=False, seconds=480, dry=False) == 0
    assert started == []
    assert gpu.run_all(["act"], path, again=True, seconds=480, dry=False) == 0
    assert [name for name, _ in started] == ["act"]


def test_what_there_is_no_time_for_is_not_started(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = processes(gpu, monkeypatch, {})
    clock = iter([0.0, 0.0, 0.0, 450.0, 450.0])
    monkeypatch.setattr(gpu.time, "monotonic", lambda: next(clock))
    assert gpu.run_all(["tests", "training"], tmp_path / "gpu.json", again=False, seconds=480, dry=False) == 2
    assert started == [("tests", 150.0)]
    assert "training: NOT STARTED: 30 s are left of 480; the same command continues" in capsys.readouterr().out


def test_a_section_is_ended_when_its_time_is_up(gpu: Any, tmp_path: Path) -> None:
    assert gpu.in_a_process("similarity", tmp_path / "gpu.json", 0.1, dry=True) is None
    assert not (tmp_path / "gpu.json").exists()
    assert sum(gpu.SECONDS.values()) <= 480


def test_a_section_that_fails_says_so_by_its_status(gpu: Any, tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text("{", encoding="utf-8")
    assert gpu.in_a_process("tests", tmp_path / "gpu.json", 240, dry=True) == 1


def test_no_gpu_is_said_before_anything_is_loaded() -> None:
    code = (
        "import runpy, sys, torch\n"
        "torch.cuda.is_available = lambda: False\n"
        "sys.argv = ['gpu.py']\n"
        "try:\n    runpy.run_path('gpu.py', run_name='__main__')\n"
        "except SystemExit as end:\n    print(end.code, 'classact' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, timeout=240)
    assert done.stdout == "1 False\n"
    assert re.search(r"gpu.py needs a CUDA GPU, and torch \S+ finds none. .*--dry-run --json FILE", done.stderr)


def test_a_dry_run_is_not_written_among_the_results() -> None:
    command = [sys.executable, "gpu.py", "--dry-run"]
    done = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert "--dry-run needs --json FILE: its numbers are no results." in done.stderr
