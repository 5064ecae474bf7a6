"""What each number of the table cost, so that nobody's starvation is hidden: budgets, and how settings were chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from table1.report.results import Results, Tried
from table1.report.table import Column, Who, grid, ordered


@dataclass(frozen=True)
class Budget:
    """What a row of the table cost in one column: means over its seeds; None where it is not known.

    Attributes:
        sessions: whether ``total`` is of the last of several calls alone: it is shorter than the training.
    """

    who: Who
    column: Column
    seeds: int
    images: float | None
    share: float | None
    seconds: float | None
    total: float | None
    rate: str
    tau: str
    k: str
    latency: float | None
    p95: float | None
    score: float | None
    sessions: bool


def budgets(results: Results) -> list[Budget]:
    """One row per method, head and column that is done, by head and column."""
    cells = grid(results)
    whole = results.protocol.get("budget_images")
    rows = []
    for who, column in ordered(cells, by_column=True):
        done = [cell for cell in cells[who, column] if cell.done]
        if not done:
            continue
        images = _mean(cell.images for cell in done)
        latency = [cell.latency_ms for cell in done if cell.latency_ms]
        rows.append(
            Budget(
                who=who,
                column=column,
                seeds=len(done),
                images=images,
                share=images / float(whole) if whole and images is not None else None,
                seconds=_mean(cell.training_seconds for cell in done),
                total=_mean(cell.total_seconds for cell in done),
                rate=" / ".join(
                    filter(None, (_values(cell.learning_rate for cell in done), _values(c.encoder_lr for c in done)))
                ),
                tau=_values(cell.tau for cell in done),
                k=_values(cell.k for cell in done),
                latency=_mean(found.median for found in latency),
                p95=_mean(found.p95 for found in latency),
                score=_mean(cell.mean_score for cell in done),
                sessions=any((cell.total_seconds or math.inf) < (cell.training_seconds or 0) for cell in done),
            )
        )
    return rows


def _mean(values: Iterable[float | int | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _values(values: Iterable[float | int | None]) -> str:
    return " or ".join(dict.fromkeys(f"{value:g}" for value in values if value is not None))


@dataclass(frozen=True)
class Tuning:
    """What was tried for a method in a condition, by learning rate."""

    who: Who
    column: Column
    tried: list[Tried] = field(default_factory=list)

    @property
    def edge(self) -> str:
        """ "lowest" or "highest" where that of several rates was chosen: a better one may lie beyond."""
        rates = [row.learning_rate for row in self.tried]
        chosen = [i for i, row in enumerate(self.tried) if row.chosen]
        if len(set(rates)) < 2 or len(chosen) != 1:
            return ""
        return {0: "lowest", len(rates) - 1: "highest"}.get(chosen[0], "")


def tuning(results: Results) -> list[Tuning]:
    """The search for learning rates, by method and condition."""
    found: dict[tuple[Who, Column], list[Tried]] = {}
    for row in results.tuning:
        key = Who(row.head, row.method, row.variant), Column(row.shift, row.augmentation)
        found.setdefault(key, []).append(row)
    return [Tuning(*key, sorted(found[key], key=lambda row: row.learning_rate or 0.0)) for key in ordered(found)]
