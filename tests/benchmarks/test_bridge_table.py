"""The bridge's tests: each row beside the privileged one, and beside CLASS on latent actions."""

from __future__ import annotations

from typing import Any

from bridge_table import comparison


def row(successes: int, of: int = 20) -> dict[str, Any]:
    return {"first_seed": 400_000, "success": {"iou>0.90": [1] * successes + [0] * (of - successes)}}


def test_rows_are_compared_on_the_same_initial_states() -> None:
    rows = {
        "actions/labelled/20/fixed/seed0": row(18),
        "clam/labelled/20/fixed/seed0": row(17),
        "byol/labelled/20/fixed/seed0": row(3),
        "byol/decoded/20/fixed/seed0": row(20),  # nothing to compare it with
    }
    beside = "\n".join(comparison(rows, "actions"))
    assert "IoU > 0.90 beside CLASS, true actions of all (privileged)" in beside
    assert "| CLASS, latent actions from proprioception | 17 | 18 | 0 | 1 | 1.000 |" in beside
    assert "| BYOL | 3 | 18 | 0 | 15 | < 0.001 |" in beside
    ahead = "\n".join(comparison(rows, "clam"))
    assert "| BYOL | 3 | 17 | 0 | 14 | < 0.001 |" in ahead
    assert "| 17 | 18 |" not in ahead
    assert comparison({"byol/decoded/20/fixed/seed0": row(20)}, "clam") == []
