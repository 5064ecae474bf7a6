"""The tables of policies: pooled over seeds, tested on the same initial states, the paper's numbers beside ours."""

from __future__ import annotations

from typing import Any

import pytest
from scipy.stats import binomtest

import policies_table
from policies_table import CRITERIA, page_lines, pooled, readme_lines


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
        "class/mlp/rand/seed0": row([1, 0] * 10, chunk_length=8),
    }
    monkeypatch.setattr(policies_table, "read", lambda name: {"rows": rows} if name == "pusht_policies" else {"act": 1})
    monkeypatch.setattr(policies_table, "latency_lines", lambda _: ["latencies"])


def test_the_short_table() -> None:
    lines = readme_lines()
    assert lines[2:-1] == [
        "| retrieval, BYOL | 0.25 [0.11, 0.47] | 0.00 | 0.25 | – | 0.01 | 1 |",
        "| retrieval, CLASS | 0.85 [0.71, 0.93] | 0.85 | 0.85 | – | 0.66 | 2 |",
        "| MLP head, CLASS | – | 0.89 | – | 0.50 [0.30, 0.70] | 0.64 | 1 |",
    ]
    assert len({line.count("|") for line in lines}) == 1
    assert pooled([], CRITERIA[0]) == ""


def test_the_whole_table() -> None:
    lines = page_lines()
    ours = next(line for line in lines if line.startswith("| retrieval, CLASS | fixed"))
    assert ours.endswith("| 0.93 | k = 8, tau = 0.004, T_a = 12 | 10.0 | 2 |")
    assert next(line for line in lines if line.startswith("| MLP")).endswith("| 0.75 | T_a = 8 | 10.5 | 1 |")
    assert binomtest(14, 15, 0.5).pvalue < 0.001  # of the first seeds; a single test is not corrected
    assert "| retrieval, fixed: CLASS against BYOL | 14 | 1 | < 0.001 |" in lines
    assert lines[-1] == "latencies"
