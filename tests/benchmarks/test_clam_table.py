"""The page of latent actions: what is missing is said, tests pair the same initial states, proxies are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clam_table import COURSE, GAITS, SWEPT, page_lines


def row(successes: int, error: float | None = None, of: int = 20) -> dict[str, Any]:
    found: dict[str, Any] = {"success": [1] * successes + [0] * (of - successes)}
    if error is None:
        return found
    measures = {"action_error_others": error, "reconstruction": 1 - error, "copy": 2.0, "probe": 0.5}
    return found | {"measures": measures, "expert action error": error}


def write(path: Path, rows: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"rows": rows}))
    return path


def test_the_page(tmp_path: Path) -> None:
    rows = {
        "assembly/clam/seed0": row(15, 0.1),
        "assembly/clam/seed1": row(17, 0.05),
        "assembly/vpt/seed0": row(5, 0.3),
        "assembly/bc-labelled/seed0": row(0),
        "assembly/bc-expert/seed0": row(18),
        "reach/clam/seed0": row(20, 0.2),
        "assembly/clam/seed0/latent_dim=2": row(3, 0.4),
        "assembly/clam/seed0/latent_dim=4": row(6, 0.4),
    }
    text = "\n".join(page_lines(write(tmp_path / "clam.json", rows)))
    assert "| success from states | assembly | reach | mean | seeds |" in text
    clam = "| CLAM: continuous, joint decoder | 0.80 [0.65, 0.90] | 1.00 [0.84, 1.00] | 0.90 | 2, 1 | 0.83 | 0.74 |"
    assert clam in text
    assert "| DynaMo | – | – | – | – | 0.13 |  |" in text
    assert "Not measured yet: assembly/bc-expert/seed1, " in text
    # Seed 0 alone has both: 10 states won, none lost; two tests.
    assert "| VPT | 0.75 | 0.25 | 10 | 0 | 0.002 |" in text
    assert "| BC on what is labelled | 0.75 | 0.00 | 15 | 0 | < 0.001 |" in text
    assert (
        "Beside the best of them, VPT: 0.75 to 0.25, 3.0 times (paper: 3.0). Behind BC on expert actions by 15 points"
        in text
    )
    # Errors .1 .05 .3 .2 .4 .4, success .75 .85 .25 1 .15 .3: as scipy has it.
    assert "| error of decoded actions, the expert's | -0.72 |" in text
    assert "| linear probe of z (R2) | – | – | 6 |" in text
    assert "assembly, by latent_dim: 2: 0.15 [0.05, 0.36], 4: 0.30 [0.15, 0.52], 8: 0.80 [0.65, 0.90]." in text


def test_gaits_are_told_by_their_returns(tmp_path: Path) -> None:
    expert = float(np.mean(json.loads(GAITS.read_text())["hopper"]["tested"]))
    rows = {
        "assembly/clam/seed0": row(15),
        "hopper/clam/seed0": row(0) | {"return": [0.5 * expert] * 20},
        "hopper/clam/seed1": row(0) | {"return": [0.7 * expert] * 20},
        "hopper/vpt/seed0/labelled=5": row(0) | {"return": [0.25 * expert] * 20},
    }
    text = "\n".join(page_lines(write(tmp_path / "clam.json", rows)))
    assert "| success from states | assembly | mean |" in text
    assert "; the defaults of `benchmarks/clam.py`.\n\n| return from states | hopper | seeds | paper, hopper |" in text
    assert "| CLAM: continuous, joint decoder | 0.60 [0.57, 0.63] | 2 | 0.81 |" in text
    assert "; labelled=5." in text
    assert "| VPT | 0.25 [0.25, 0.25] | 1 |  |" in text


def test_errors_along_the_episodes_are_averaged_over_seeds(tmp_path: Path) -> None:
    first = [[0.0, 0.1 * tenth] for tenth in range(10)]
    second = [[0.0, 0.3 * tenth] for tenth in range(10)]
    rows = {
        "assembly/clam/seed0": row(5),
        "assembly/clam/seed1": row(10) | {COURSE: first},
        "assembly/clam/seed2": row(20) | {COURSE: second},
        "assembly/clam/seed0/labelled=5": row(0) | {COURSE: first},
    }
    text = "\n".join(page_lines(write(tmp_path / "clam.json", rows)))
    assert "| assembly: CLAM: continuous, joint decoder | 0.00, 0.00 | 0.10, 0.20 |" in text
    assert "| 0.90, 1.80 | 0.75 | 2 |" in text
    assert "| assembly: CLAM: continuous, joint decoder, labelled=5 | 0.00, 0.00 | 0.05, 0.10 |" in text


def test_other_settings_show_what_was_measured_with_them(tmp_path: Path) -> None:
    other = {f"reach/{name}/seed0/pool=failed": row(3) for name in ("clam", "vpt", "lapo")}
    text = "\n".join(page_lines(write(tmp_path / "clam.json", {"reach/clam/seed0": row(9), **other})))
    default, failed = text.split("Settings: pool=failed.")
    assert "| DynaMo | – |" in default
    assert "Not measured yet" in default
    assert "| VPT | 0.15 [0.05, 0.36] |" in failed
    assert "DynaMo" not in failed
    assert "Not measured yet" not in failed


def test_the_defaults_are_those_of_the_benchmark() -> None:
    pytest.importorskip("metaworld")
    from clam import Flags

    assert {name: getattr(Flags(), name) for name in SWEPT} == SWEPT


def test_nothing_measured_and_little(tmp_path: Path) -> None:
    assert page_lines(tmp_path / "none.json") == ["Nothing was measured yet."]
    lines = page_lines(write(tmp_path / "clam.json", {"assembly/bc-expert/seed0": row(3)}))
    assert any("so nothing is tested" in line for line in lines)
