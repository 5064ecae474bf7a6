"""How far an episode came, by the criteria of its task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from classact.sims.base import SimulatorSpec


def check_parts(spec: SimulatorSpec, metrics: Sequence[Mapping[str, float]]) -> None:
    """A successful episode reaches every part of its task before, in order; only success is the last stage."""
    success, *parts = spec.criteria
    assert len(parts) >= 2
    reached = {one.name: one.first([step[one.metric] for step in metrics]) for one in (*parts, success)}
    assert None not in reached.values(), reached
    assert list(reached.values()) == sorted(set(reached.values())), reached
    for step in metrics:
        fulfilled = [part.met(step["stage"]) for part in parts]
        assert fulfilled == sorted(fulfilled, reverse=True)
        assert (step["stage"] == len(spec.criteria)) == success.met(step["success"])
    assert metrics[0]["stage"] == 0
