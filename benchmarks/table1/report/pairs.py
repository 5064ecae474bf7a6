"""Which method is better than which: paired tests on the same starts, corrected for their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from classact.utils.statistics import Estimate, difference_over_seeds, holm, permutation_p
from common import mcnemar_p
from table1.report.results import Cell, Results
from table1.report.table import (
    SEED,
    Column,
    Who,
    grid,
    holds_class,
    measured,
    ordered,
    outcomes,
    shared_starts,
)

ALPHA = 0.05


@dataclass(frozen=True)
class Pair:
    """Two rows of a column, compared.

    Attributes:
        column: both are of.
        first, second: what acted.
        starts: both were tried on.
        won, lost: starts on which the first one did better, and worse; with several seeds, by the mean over them.
        difference: success of the first one minus that of the second one, with its interval.
        p: of the exact test, not corrected.
        adjusted: Holm's, over the pairs of its family.
        seeds: trainings of the first and of the second one.
    """

    column: Column
    first: Who
    second: Who
    starts: int
    won: int
    lost: int
    difference: Estimate
    p: float
    adjusted: float
    seeds: tuple[int, int]

    @property
    def primary(self) -> bool:
        """Whether it compares plain CLASS with another plain method, which is what the table is made to say."""
        return _is_class(self.first) and self.second.plain

    @property
    def family(self) -> Column | None:
        """What it is corrected with: the primary pairs of its column, of all heads; None: all further pairs."""
        return self.column if self.primary else None

    @property
    def verdict(self) -> str:
        """Of the first one: "better", "worse" or "not distinguishable"."""
        if self.adjusted >= ALPHA:
            return "not distinguishable"
        return "better" if self.difference.value > 0 else "worse"


def compare(results: Results, criterion: str | None = None) -> list[Pair]:
    """All pairs of rows with the same head within a column, CLASS first where it is one of them.

    One training each: exact McNemar test. Several seeds: the exact permutation test within starts that generalises it.
    Pairs without common starts are left out. Holm's correction is within families (:attr:`Pair.family`): pairs of
    baselines, and those with ablations and other budgets, take no power from the comparisons of plain CLASS.
    """
    wanted = criterion or results.criterion
    cells = {key: done for key, found in grid(results).items() if (done := measured(found, wanted))}
    pairs: list[Pair] = []
    for (who, column), (other, same) in combinations(ordered(cells, by_column=True), 2):
        if column != same or who.head != other.head:
            continue
        first, second = (other, who) if _first(other) > _first(who) else (who, other)
        if pair := _pair(column, first, second, cells[first, column], cells[second, column], wanted):
            pairs.append(pair)
    families: dict[Column | None, list[int]] = {}
    for i, pair in enumerate(pairs):
        families.setdefault(pair.family, []).append(i)
    for members in families.values():
        for i, p in zip(members, holm([pairs[i].p for i in members]), strict=True):
            pairs[i] = replace(pairs[i], adjusted=p)
    return pairs


def _is_class(who: Who) -> bool:
    return who.method == "class" and not who.variant


def _first(who: Who) -> tuple[bool, bool]:
    return _is_class(who), holds_class(who.method)


def _pair(column: Column, first: Who, second: Who, a: Sequence[Cell], b: Sequence[Cell], criterion: str) -> Pair | None:
    starts = shared_starts([*a, *b])
    if not starts:
        return None
    x, y = outcomes(a, criterion, starts), outcomes(b, criterion, starts)
    # In units that make the difference of means whole.
    ahead = x.sum(axis=0) * len(y) - y.sum(axis=0) * len(x)
    won, lost = int((ahead > 0).sum()), int((ahead < 0).sum())
    single = len(x) == len(y) == 1
    return Pair(
        column=column,
        first=first,
        second=second,
        starts=len(starts),
        won=won,
        lost=lost,
        difference=difference_over_seeds(x, y, np.random.default_rng(SEED)),
        p=mcnemar_p(won, lost) if single else permutation_p(x, y),
        adjusted=1.0,
        seeds=(len(x), len(y)),
    )


def of_class(pairs: Sequence[Pair]) -> list[Pair]:
    """Those of the primary families: plain CLASS against other plain methods."""
    return [pair for pair in pairs if pair.primary]


def p_text(p: float) -> str:
    """``0.03``, ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"


def how_compared(pairs: Sequence[Pair]) -> str:
    """What was tested, in a sentence or two."""
    several = any(max(pair.seeds) > 1 for pair in pairs)
    test = "exact McNemar test" + (
        ", or, where there are several training seeds, the exact permutation test that generalises it: on each start, "
        "the outcomes of all trainings could have gone to either method"
        if several
        else ""
    )
    main = of_class(pairs)
    corrected = []
    if main:
        counts = [sum(p.family == column for p in main) for column in dict.fromkeys(p.column for p in main)]
        corrected.append(
            f"among the comparisons of plain CLASS with other plain methods in the same column ({_sizes(counts)}; the "
            f"primary family)"
        )
    if further := len(pairs) - len(main):
        corrected.append(
            f"among all {further} further pairs of the table, those with ablations, sums with CLASS and other budgets "
            f"among them (the second family)"
        )
    return (
        f"Pairs are compared on the starts that both were tried on ({test}); p is corrected by Holm's procedure, "
        f"{', and '.join(corrected)}. Below {ALPHA:g} one method is called better. Intervals of differences are 95% "
        f"{'score intervals (Tango), or a bootstrap over starts' if several else 'score intervals (Tango)'}, not "
        f"corrected. This is about these trained networks: what other training seeds would give, only more seeds tell."
    )


def _sizes(counts: Sequence[int]) -> str:
    """``3 pairs``, or ``3 and 5 pairs`` of several columns."""
    *most, last = map(str, counts)
    return f"{', '.join(most)} and {last} pairs" if most else f"{last} pair{'s' if last != '1' else ''}"
