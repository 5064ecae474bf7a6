"""One file is all that an objective, a reader, a simulator, a shift or a head of one's own takes (CONTRIBUTING.md).

The files are those of tests/toys: each registers its member from outside the package, and the command line does the
rest, in an interpreter that knows nothing but the plugin's name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classact.utils.registry import VARIABLE

TOYS = Path(__file__).parents[1] / "toys"
TINY = "--preset debug --workers 1 --quiet"
HEAD = "--preset head-debug --evaluations 0 --test-episodes 3 --workers 1 --quiet"

ONE_AFTER_ANOTHER = """
import runpy, shlex, sys
if __name__ == "__main__":
    for line in sys.argv[1:]:
        print("$", line, flush=True)
        command, sys.argv = sys.argv, ["classact", *shlex.split(line)]
        try:
            runpy.run_module("classact", run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            if stop.code:
                raise
        sys.argv = command
"""
"""``python -m classact`` for each line, in one process, for importing torch takes longest."""


def classact(folder: Path, plugins: str, *lines: str) -> str:
    """What the commands print, in one line.

    Args:
        folder: where they run.
        plugins: names of toys.
        lines: what follows ``classact``.
    """
    paths = [str(TOYS), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_ANOTHER, *lines],
        cwd=folder,
        env={**os.environ, VARIABLE: plugins, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "COLUMNS": "160"},
        capture_output=True,
        encoding="utf-8",
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return " ".join(done.stdout.split())


def rows(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def reach(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations of the toy simulator by its script, and a run on them."""
    folder = tmp_path_factory.mktemp("reach")
    said = classact(
        folder,
        "toy_simulator",
        "data generate reach --episodes 10 --out reach.npz --workers 1",
        "data info reach.npz",
        f"pretrain --data reach.npz --out run --objective tcn {TINY}",
    )
    assert "simulator │ reach │" in said
    return folder


def test_a_simulator(reach: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(reach, tmp_path / "all"))
    classact(
        folder,
        "toy_simulator",
        "evaluate run --episodes 4 --workers 1 --quiet",
        f"finetune run --head mlp {HEAD}",
        "report run",
    )
    assert {(row["simulator"], row["criterion"]) for row in rows(folder / "run")} == {("reach", "reached")}
    assert {row["episodes"] for row in rows(folder / "run")} == {4, 3}
    assert "reached" in (folder / "run" / "report.html").read_text(encoding="utf-8")


def test_an_objective(reach: Path, tmp_path: Path) -> None:
    shutil.copy(reach / "reach.npz", tmp_path)
    said = classact(
        tmp_path,
        "toy_objective,toy_simulator",
        "presets",
        f"pretrain --data reach.npz --out run --objective slowness --options spread=0.5 {TINY}",
        "evaluate run --episodes 3 --workers 1 --quiet",
        f"finetune run --head mlp --frozen {HEAD}",
        "report run",
        f"compare --data reach.npz --out table --objectives 'slowness[spread=2]' slowness+0.1*tcn --test-episodes 3 "
        f"--heldout 2 {TINY}",
    )
    assert "features change slowly along an episode" in said
    written = (tmp_path / "run" / "config.json").read_text(encoding="utf-8")
    assert '"spread": 0.5' in written
    assert {row["encoder"] for row in rows(tmp_path / "run")} == {"slowness-episodes3", "slowness"}
    assert "Slowness" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    compared = json.loads((tmp_path / "table" / "comparison.json").read_text(encoding="utf-8"))
    names = ["slowness[spread=2]", "slowness+0.1*tcn"]
    assert [(line["name"], line["criterion"]) for line in compared["lines"]] == [(name, "reached") for name in names]


def test_a_head(reach: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(reach, tmp_path / "all"))
    said = classact(
        folder,
        "toy_head,toy_simulator",
        f"finetune run --head plain --head.hidden 64 {HEAD}",
        "evaluate run --head plain --episodes 4 --workers 1 --quiet",
        "report run",
    )
    assert "plain" in said
    assert {(row["policy"], row["episodes"]) for row in rows(folder / "run")} == {("plain", 3), ("plain", 4)}
    assert "plain" in (folder / "run" / "report.html").read_text(encoding="utf-8")
    assert '"hidden": 64' in (folder / "run" / "heads" / "plain" / "config.json").read_text(encoding="utf-8")


def test_a_shift(reach: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(reach, tmp_path / "all"))
    classact(
        folder,
        "toy_shift,toy_simulator",
        "evaluate run --shift 'negative(rate=0)' --episodes 3 --workers 1 --quiet",  # of a run that never saw it
        f"pretrain --data reach.npz --out dark --shift negative --objective tcn {TINY}",
        "evaluate dark --episodes 3 --workers 1 --quiet",
        f"finetune dark --head mlp {HEAD}",
        "probe dark --quiet",
        "report dark",
        f"demo --out pusht --shift negative --objective tcn --episodes 12 --test-episodes 1 --evaluations 0 {TINY}",
    )
    assert {row["shift"] for row in rows(folder / "run")} == {"negative(rate=0)"}
    assert (
        {row["shift"] for row in rows(folder / "dark")} == {"negative"} == {r["shift"] for r in rows(folder / "pusht")}
    )
    probed = json.loads((folder / "dark" / "probe.json").read_text(encoding="utf-8"))
    assert probed["views"]["shift"] == "negative"
    assert "negative" in (folder / "dark" / "report.html").read_text(encoding="utf-8")


def test_a_reader_of_data_without_a_simulator(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    rng = np.random.default_rng(0)
    for number in range(10):
        position = np.cumsum(rng.normal(0, 0.05, (24, 2)), axis=0)
        images = rng.integers(0, 255, (24, 32, 32, 3), np.uint8)
        file = tmp_path / "mine" / f"episode_{number}.npz"
        np.savez(file, actions=position + 0.05, position=position, images=images)
    said = classact(
        tmp_path,
        "toy_reader",
        "data info mine",
        f"pretrain --data mine --out run --cameras front --heldout 2 {TINY}",
        "probe run --quiet",
        "report run",
        f"compare --data mine --out table --cameras front --objectives tcn none --heldout 2 {TINY}",
    )
    assert "episodes │ 10 │" in said
    assert "No rollouts, representations are probed only" in said
    assert json.loads((tmp_path / "run" / "probe.json").read_text(encoding="utf-8"))
    assert (tmp_path / "run" / "report.html").exists()


def test_what_readers_of_ones_own_refuse_is_said_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    np.savez(tmp_path / "mine" / "episode_0.npz", actions=np.zeros((3, 2)))
    with pytest.raises(AssertionError, match=r"classact: error: .*episode_0\.npz lacks \['images', 'position'\]; it"):
        classact(tmp_path, "toy_reader", "data info mine")


def test_doctor_names_plugins_and_tries_their_simulators(tmp_path: Path) -> None:
    said = classact(tmp_path, "toy_simulator,toy_shift", "doctor")
    assert "ok │ plugin toy_shift │ shift 'negative'" in said
    assert "ok │ plugin toy_simulator │ simulator 'reach'" in said
    assert re.search(r"ok │ simulator reach │ [^│]* ms a step, [^│]* ms a frame of 64 x 64", said)


def test_contributing_shows_these_files() -> None:
    text = (TOYS.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\(tests/toys/(\w+)\.py\)", text)) == {path.stem for path in TOYS.glob("*.py")}
