"""One page of a comparison of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from classact.evaluation.rows import EvaluationRow
from classact.pages import figures
from classact.pages.plots import HERE, make_plot, write_page
from classact.pages.style import percent

if TYPE_CHECKING:
    from classact.run.compare import Comparison


def build_comparison_page(comparison: Comparison, path: Path) -> Path:
    """Write a comparison as one self-contained page; returns its path."""
    first, rows = comparison.runs[0], list[EvaluationRow]()
    episodes = len(first.initial_states)
    for line in comparison.lines:
        e, trials = line.success, episodes * len(line.by_seed)
        rows.append(
            EvaluationRow(
                policy="retrieval",
                encoder=line.name,
                simulator=first.simulator,
                shift=first.shift,
                evaluation=line.name,
                criterion=line.criterion,
                episodes=trials,
                successes=round(e.value * trials),
                success=e.value,
                low=e.low,
                high=e.high,
            )
        )
    words = "; ".join(f"{row.encoder} by {row.criterion}: {percent(row.success)}" for row in rows)
    plot = make_plot("success", figures.success_figure(rows), f"Success with 95% intervals. {words}.") if rows else None
    return write_page(path, HERE / "compare.html", {"c": comparison, "plot_": plot, "episodes": episodes})
