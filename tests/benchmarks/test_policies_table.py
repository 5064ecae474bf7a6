"""The tables of policies: pooled over seeds, tested on the same initial states, the paper's numbers beside ours."""

from __future__ import annotations

from typing import Any

import pytest
from scipy.stats import binomtest

import policies_table
from policies_table import CRITERIA, curve_lines, page_lines, pooled, readme_lines


def row(outcomes: list[int], **chosen: float) -> dict[str, Any]:
    return {
        "chosen": chosen,
        "success": dict.fromkeys(CRITERIA, outcomes),
        "max_coverage": [0.5 + 0.5 * one for one in outcomes],
        "seconds": {"pre-training": 600.0, "head: training": 30.0 * ("k" not in chosen)},
    }


@pytest.fixture(autouse=True)
def results(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {
        "class/retrieval/fixed/seed0": row([1] * 18 + [0] * 2, k=8, temperature=0.004, chunk_length=12),
        "class/retrieval/fixed/seed1": row([1] * 16 + [0] * 4, k=8, temperature=0.004, chunk_length=12),
        "byol/retrieval/fixed/seed0": row([1] * 4 + [0] * 15 + [1], k=1, temperature=0.004, chunk_length=8),
        "class/mlp/rand/seed0": row([1, 0] * 10, chunk_length=4, speed=2),
        "class/mlp/rand/seed0 as demonstrated": row([1, 0, 0, 0] * 5, chunk_length=8, speed=1),
    }
    row_of_sign = {
        "failures": 20,
        "successes": 100,
        "false alarms": 4,
        "announced": {"200": 1, "100": 5, "50": 9, "0": 20},
    }
    alarms = {"mlp/rand": [{"criterion": "iou>0.90", "sign": "doubt", **row_of_sign}]}
    speeds = {"episodes": 20, "rows": {"2": {"chunk_length": 6, "reached": {"500": 9, "1000": 15}}}}
    tries = {
        "play": {"chunk_length": 4, "speed": 2},
        "rows": {"flow, L2": {"episodes": 20, **dict.fromkeys(CRITERIA, 0.85)}},
    }
    near = {"positives": 0.6, "colour distance": 1.0, "own demonstration": 0.7}
    results = {
        "pusht_policies": {"rows": rows},
        "head_tries": tries,
        "alarms": {"rows": alarms},
        "neighbours": {"k": 8, "queries": 20, "rows": {"class": near}},
        "latency": {"act": 1},
        "speeds": speeds,
    }
    monkeypatch.setattr(policies_table, "read", results.__getitem__)
    monkeypatch.setattr(policies_table, "latency_lines", lambda _: ["latencies"])


def test_the_short_table() -> None:
    lines = readme_lines()
    assert lines[2:-1] == [
        "| retrieval, BYOL | 0.25 [0.11, 0.47] | – | 0.00 | 0.25 | – | – | – | 0.01 | 1 |",
        "| retrieval, CLASS | 0.85 [0.71, 0.93] | – | 0.85 | 0.85 | – | – | – | 0.66 | 2 |",
        "| MLP head, CLASS | – | – | 0.89 | – | – | 0.50 [0.30, 0.70] | 0.25 | 0.64 | 1 |",
    ]
    assert len({line.count("|") for line in lines}) == 1
    assert pooled([], CRITERIA[0]) == ""


def test_the_whole_table() -> None:
    lines = page_lines()
    assert "| flow, L2 | 0.85 | 0.85 | 0.85 | 20 |" in lines
    assert "| CLASS | 0.60 | 1.00 | 0.70 |" in lines
    assert not any("figure 10" in line for line in lines)  # of no row there was a rollout during training
    ours = next(line for line in lines if line.startswith("| retrieval, CLASS | fixed"))
    assert ours.endswith("| 0.93 | k = 8, tau = 0.004, T_a = 12 | 10.0 | 2 |")
    fast, slow = [line for line in lines if line.startswith("| MLP head, CLASS | random")]
    assert fast.endswith("| 0.75 | T_a = 4, speed = 2 | 10.5 | 1 |")
    assert slow.endswith("| 0.62 | T_a = 8, speed = 1 | 10.5 | 1 |")
    assert "| MLP head, random | iou>0.90 | doubt | 0.040 | 0.05 | 0.25 | 0.45 | 1.00 |" in lines
    assert binomtest(14, 15, 0.5).pvalue < 0.001  # of the first seeds; a single test is not corrected
    assert "| retrieval, fixed: CLASS against BYOL | 14 | 1 | < 0.001 |" in lines
    assert "| 2 (6) | 0.45 | 0.75 |" in lines
    assert lines[-1] == "latencies"


def test_success_during_training_is_pooled_over_seeds() -> None:
    rows = {
        f"scratch/mlp/fixed/seed{seed}": row([1, 0]) | {"curve": [[100, seed, 10], [200, 4 + seed, 10]]}
        for seed in (1, 2)
    }
    *_, line = curve_lines(rows)
    assert line == "| MLP head, behaviour cloning from scratch | fixed | 0.15 | 0.55 | 200 | 10 | 2 |"
