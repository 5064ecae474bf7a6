"""The tables as rows of text, for every way to show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from classact.utils.progress import duration
from classact.utils.statistics import wilson_interval
from table1.report.costs import Budget, Tuning, budgets, tuning
from table1.report.pairs import Pair, compare, how_compared, of_class, p_text
from table1.report.paper import PROTOCOL
from table1.report.results import Results, Tried
from table1.report.table import (
    Layout,
    budget_text,
    column_name,
    entry_text,
    head_line,
    head_name,
    layout,
    task_name,
    who_name,
)
from table1.report.trends import Curve, curves_by_column, scaling_by_column

PAPER = "paper"
"""Heading of columns with the paper's numbers."""


@dataclass(frozen=True)
class Sheet:
    """A table of text.

    Attributes:
        title: of the table.
        columns: headings; the first ``names`` of them stand over names, the others over numbers.
        groups: headed rows of cells; an empty heading has no row of its own. Cells may hold line breaks.
        names: how many columns hold names.
        notes: sentences beneath.
    """

    title: str
    columns: list[str]
    groups: list[tuple[str, list[list[str]]]]
    names: int = 1
    notes: list[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether there is no row."""
        return not any(rows for _, rows in self.groups)


def sheets(results: Results, *, every_pair: bool = True, more: Sequence[Sheet] = ()) -> list[Sheet]:
    """All tables that have rows: success, comparisons with CLASS, fewer demonstrations, success during training,
    budgets, tuning, all other comparisons.

    Args:
        results: of a grid.
        every_pair: the last of these, too.
        more: tables that stand before it, for it is long.
    """
    pairs = compare(results)
    main, others = of_class(pairs), [pair for pair in pairs if not pair.primary]
    found = [success_sheet(results), pairs_sheet(results, main, "CLASS against each method", how_compared(pairs))]
    found += [scaling_sheet(results), curves_sheet(results)]
    found += [budgets_sheet(results, budgets(results)), tuning_sheet(results, tuning(results)), *more]
    if every_pair:
        found.append(pairs_sheet(results, others, "All other pairs", "" if main else how_compared(pairs)))
    return [sheet for sheet in found if not sheet.empty]


def paper_note() -> str:
    """What the paper's numbers are."""
    return (
        f"“{PAPER}” is Table 1 of arXiv 2508.01600 ({PROTOCOL}): other budgets, starts and perhaps criteria, so a "
        f"difference to it says little. “MLP, retrieval” and “DP, retrieval” act without the head that their encoder "
        f"was trained beneath."
    )


def success_sheet(
    results: Results, criterion: str | None = None, *, between: str = "\n", measured: bool = False
) -> Sheet:
    """The table in the paper's layout.

    Args:
        results: of a grid.
        criterion: of success; None: the headline one.
        between: what stands between a number, its interval and its seeds.
        measured: only rows that have a number of ours, and no reasons why others are missing.
    """
    table = layout(results, criterion)
    if measured:
        table = table.measured
    columns = ["method"]
    for column, known in zip(table.columns, table.paper, strict=True):
        columns += [column_name(results.task, column), *([PAPER] if known else [])]
    groups = []
    for group in table.groups:
        rows = []
        for who, entries in group.rows:
            cells = [who_name(who, head=False)]
            for entry, known in zip(entries, table.paper, strict=True):
                cells.append(entry_text(entry, table, between=between))
                if known:
                    cells.append("" if entry.paper is None else f"{entry.paper:.2f}")
            rows.append(cells)
        groups.append((head_name(group.head), rows))
    notes = success_notes(results, table)
    title = f"Success on {task_name(results.task)}" + (f" by {criterion}" if criterion else "")
    return Sheet(title, columns, groups, notes=notes)


def success_notes(results: Results, table: Layout) -> list[str]:
    """What the numbers are, and why some are missing."""
    line = head_line(results)
    several = table.seeds is None or table.seeds > 1
    interval = "95% Wilson intervals" + (
        ", with several seeds bootstrap intervals over starts, which say nothing about other seeds" if several else ""
    )
    notes = [f"{line[0].upper()}{line[1:]}. {interval}."]
    if any(table.paper):
        notes.append(paper_note())
    return notes + [f"[{i}] {reason[0].upper()}{reason[1:].rstrip('.')}." for i, reason in enumerate(table.notes, 1)]


def pairs_sheet(results: Results, pairs: Sequence[Pair], title: str, how: str) -> Sheet:
    """Comparisons by condition and head."""
    groups = []
    for (column, head), found in groupby(pairs, key=lambda pair: (pair.column, pair.first.head)):
        rows = [
            [
                f"{who_name(pair.first, head=False)} – {who_name(pair.second, head=False)}",
                pair.verdict,
                difference_text(pair),
                f"{pair.won} : {pair.lost}",
                str(pair.starts),
                p_text(pair.p),
                p_text(pair.adjusted),
            ]
            for pair in found
        ]
        groups.append((f"{head_name(head)}, {column_name(results.task, column)}", rows))
    columns = ["first – second", "the first is", "difference", "won : lost", "starts", "p", "p (Holm)"]
    return Sheet(title, columns, groups, names=2, notes=[how] if how else [])


def difference_text(pair: Pair) -> str:
    """``+0.31 [+0.20, +0.42]``."""
    d = pair.difference
    return f"{d.value:+.2f} [{d.low:+.2f}, {d.high:+.2f}]"


def scaling_sheet(results: Results) -> Sheet:
    """Success by the number of demonstrations (paper, H)."""
    found = scaling_by_column(results)
    counts = sorted({count for _, series in found for row in series for count, *_ in row.points})
    groups = []
    for column, series in found:
        rows = []
        for row in series:
            known = {count: f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]" for count, e, *_ in row.points}
            rows.append([who_name(row.who), *(known.get(count, "") for count in counts)])
        groups.append((column_name(results.task, column), rows))
    notes = ["The same training with fewer demonstrations; 95% intervals."]
    columns = ["method", *(f"{count:,}" for count in counts)]
    return Sheet("Success by the number of demonstrations", columns, groups, notes=notes)


def curves_sheet(results: Results) -> Sheet:
    """Success during training (paper, G)."""
    found = curves_by_column(results)
    marks = sorted({_share(row[0], curve) for _, drawn in found for curve in drawn for row in curve.rows})
    groups, episodes = [], set()
    for column, drawn in found:
        rows, times = [], Counter(curve.who for curve in drawn)
        for curve in drawn:
            known = {_share(row[0], curve): f"{row[2] / row[3]:.2f}" for row in curve.rows}
            episodes |= {row[3] for row in curve.rows}
            name = who_name(curve.who) + (f" ({curve.words})" if times[curve.who] > 1 else "")
            rows.append([name, *(known.get(mark, "") for mark in marks)])
        groups.append((column_name(results.task, column), rows))
    starts = " to ".join(str(n) for n in sorted({min(episodes), max(episodes)})) if episodes else ""
    notes = [
        f"Columns are shares of a training's images; each number is of {starts} starts. Retrieval follows the nearest "
        f"neighbour alone here; the first table has the τ that suits each cell best, and more starts."
    ]
    columns = ["method", *(f"{mark}%" for mark in marks)]
    return Sheet("Success during training", columns, groups, notes=notes)


def _share(images: float, curve: Curve) -> int:
    return round(100 * images / curve.rows[-1][0])


def budgets_sheet(results: Results, rows: Sequence[Budget]) -> Sheet:
    """What each number cost."""
    groups = []
    for (column, head), found in groupby(rows, key=lambda row: (row.column, row.who.head)):
        groups.append((f"{head_name(head)}, {column_name(results.task, column)}", [_budget(row) for row in found]))
    columns = ["method", "images", "training", "in all", "rate", "τ", "k", "median ms", "p95 ms", "mean score"]
    notes = ["Means over seeds."] if any(row.seeds > 1 for row in rows) else []
    if budget := budget_text(results):
        share = "; where it is another, its share is said" if results.protocol.get("budget_images") else ""
        notes.append(f"The budget of a training is {budget}{share}.")
    notes.append("“In all” is with preparation and evaluation; milliseconds are of one decision.")
    if any(row.sessions for row in rows):
        notes.append("* The last of several calls alone: the training was longer, and begun in an earlier one.")
    if any("/" in row.rate for row in rows):
        notes.append("Rates of heads: of the head / of the encoder beneath.")
    if any(row.score is not None for row in rows):
        notes.append(score_note(results))
    kept = [i for i in range(len(columns)) if i == 0 or any(row[i] for _, group in groups for row in group)]
    return Sheet(
        "What it cost",
        [columns[i] for i in kept],
        [(heading, [[row[i] for i in kept] for row in group]) for heading, group in groups],
        notes=[" ".join(notes)],
    )


def _budget(row: Budget) -> list[str]:
    images = "" if row.images is None else f"{row.images:,.0f}" if row.images else "none"
    if row.share and abs(row.share - 1) > 0.005:
        images += f" ({100 * row.share:.0f}%)"
    return [
        who_name(row.who, head=False),
        images,
        "" if row.seconds is None else duration(row.seconds),
        "" if row.total is None else f"{duration(row.total)}{'*' if row.sessions else ''}",
        row.rate,
        row.tau,
        row.k,
        "" if row.latency is None else f"{row.latency:.3g}",
        "" if row.p95 is None else f"{row.p95:.3g}",
        "" if row.score is None else f"{row.score:.2f}",
    ]


def tuning_sheet(results: Results, found: Sequence[Tuning]) -> Sheet:
    """The search for learning rates."""
    groups = []
    for search in found:
        rows = [
            [
                "none" if row.learning_rate is None else f"{row.learning_rate:g}",
                _choice(row, search.edge),
                "" if row.images is None else f"{row.images:,}",
                "–" if row.diverged else f"{row.successes} of {row.starts}",
                "" if row.diverged else "[{:.2f}, {:.2f}]".format(*wilson_interval(row.successes, row.starts)),
                "" if row.score is None else f"{row.score:.3f}",
            ]
            for row in search.tried
        ]
        groups.append((f"{who_name(search.who)}, {column_name(results.task, search.column)}", rows))
    columns = ["learning rate", "", "images", "success", "95%", "mean score"]
    notes = [_grid_note(results)] if groups else []
    return Sheet("How learning rates were chosen", columns, groups, names=2, notes=notes)


def _choice(row: Tried, edge: str) -> str:
    if row.diverged:
        return "diverged"
    return (f"chosen, the {edge} tried" if edge else "chosen") if row.chosen else ""


def score_note(results: Results) -> str:
    """What the score of a start is."""
    metric = results.protocol.get("metric") or "value of the simulator's first metric"
    return f"The score of a start is the largest {metric} that was reached."


def _grid_note(results: Results) -> str:
    found, text = results.protocol.get("grid") or {}, "Each rate was tried"
    if found.get("images"):
        text += f" with {int(found['images']):,} images"
    if found.get("starts") and found.get("first_seed") is not None:
        text += f", on {found['starts']} starts from seed {found['first_seed']} on"
        if (first := results.protocol.get("first_seed")) is not None:
            text += f" (those of the table begin at {first})"
    return (
        f"{text}, under the fixed appearance without colour augmentation and with one seed; the rate chosen is used in "
        f"all cells of the method. Of heads on random weights it is the encoder's rate: that of the preset for "
        f"pre-trained encoders, or that of the head. CLASS has its preset's rate. Where the lowest or the highest rate "
        f"was chosen, a better one may lie beyond."
    )
