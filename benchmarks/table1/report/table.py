"""The cells as a table in the paper's layout: heads, methods, conditions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from classact.objectives import split_sum
from classact.utils.progress import duration
from classact.utils.statistics import Estimate, success_over_seeds
from table1.report.paper import METHODS, SHIFTS, TASKS, paper_cell, paper_methods, shift_name
from table1.report.results import Cell, Results

SEED = 0  # of every bootstrap, so that the same file gives the same page

HEAD_NAMES = {"rep": "Rep-Only", "mlp": "MLP", "mlp-rep": "MLP, retrieval", "dp": "DP", "dp-rep": "DP, retrieval"}
METHOD_NAMES = {
    "random": "Random",
    "imagenet": "ImageNet",
    "r3m": "R3M",
    "tcn": "TCN",
    "byol": "VINN (BYOL)",
    "dynamo": "DynaMo",
    "equivar": "EquiVar",
    "inverse-dynamics": "Inverse dynamics",
    "time-contrastive": "Time-contrastive",
    "class": "CLASS",
}
TASK_NAMES = {
    "square": "Square",
    "three-stack": "Three-Stack",
    "aloha-transfer": "Aloha-Transfer",
    "libero-object": "LIBERO-Object",
    "pusht": "Push-T",
}


class Who(NamedTuple):
    """A row: what acted."""

    head: str
    method: str
    variant: str = ""

    @property
    def plain(self) -> bool:
        """Whether it is of the grid itself: no ablation, no other budget, and no sum with CLASS."""
        return not self.variant and (self.method == "class" or not holds_class(self.method))


class Column(NamedTuple):
    """A column: under which shift, trained with which augmentation."""

    shift: str
    augmentation: str = "none"


Key = tuple[Who, Column]


@dataclass(frozen=True)
class Entry:
    """One cell of the table.

    Attributes:
        estimate: mean success over seeds with its interval; None where nothing is done.
        seeds: trainings behind it.
        asked: trainings that the grid has.
        successes, trials: over all of them.
        starts: how many different ones.
        reason: why there is no estimate.
        paper: the paper's number.
        best: whether no other plain row (:attr:`Who.plain`) of the head and column has a higher estimate.
    """

    estimate: Estimate | None = None
    seeds: int = 0
    asked: int = 0
    successes: int = 0
    trials: int = 0
    starts: int = 0
    reason: str = ""
    paper: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Group:
    """The rows of one head."""

    head: str
    rows: list[tuple[Who, list[Entry]]]


@dataclass(frozen=True)
class Layout:
    """The whole table.

    Attributes:
        columns: in order.
        groups: in order.
        notes: reasons of missing cells; a cell refers to its own by number, from 1.
        seeds: trainings per cell where all have the same number, else None.
    """

    columns: list[Column]
    groups: list[Group]
    notes: list[str]
    seeds: int | None

    @property
    def paper(self) -> list[bool]:
        """Whether a column has numbers of the paper."""
        return [
            any(entries[i].paper is not None for group in self.groups for _, entries in group.rows)
            for i in range(len(self.columns))
        ]

    @property
    def measured(self) -> Layout:
        """The rows that have a number of ours, without reasons of missing cells."""
        groups = [
            Group(group.head, rows)
            for group in self.groups
            if (rows := [row for row in group.rows if any(entry.estimate for entry in row[1])])
        ]
        return replace(self, groups=groups, notes=[])

    def mark(self, entry: Entry) -> str:
        """Number of the note of a missing cell, as ``[1]``; empty where the table has no such note."""
        return f"[{self.notes.index(entry.reason) + 1}]" if entry.reason in self.notes else ""


def head_name(head: str) -> str:
    """How a head is written."""
    return HEAD_NAMES.get(head, head)


def holds_class(method: str) -> bool:
    """Whether a method is CLASS, or a combination with it."""
    return any(name == "class" for _, name in split_sum(method))


def method_name(method: str) -> str:
    """How a method is written; parts of a combination are joined by "+"."""
    return " + ".join(" ".join(filter(None, (f, METHOD_NAMES.get(name, name)))) for f, name in split_sum(method))


def who_name(who: Who, *, head: bool = True) -> str:
    """A row's name: method, variant, and the head unless the table says it."""
    return ", ".join(filter(None, (method_name(who.method), who.variant, head_name(who.head) if head else "")))


def task_name(task: str) -> str:
    """How a task is written."""
    return TASK_NAMES.get(task, task)


def column_name(task: str, column: Column) -> str:
    """A column's name: the paper's for its conditions, and the augmentation where there is one."""
    shift = shift_name(task, column.shift) if column.shift in SHIFTS else column.shift
    return shift if column.augmentation == "none" else f"{shift}, {column.augmentation}"


def _order(values: Iterable[str], known: Sequence[str]) -> list[str]:
    found = list(dict.fromkeys(values))
    return [value for value in known if value in found] + [value for value in found if value not in known]


def method_order(methods: Iterable[str]) -> list[str]:
    """Methods as the paper orders them, CLASS and its combinations last, others before them."""
    found = list(dict.fromkeys(methods))

    def rank(method: str) -> tuple[int, int]:
        if method == "class":
            return 2, 0
        if holds_class(method):
            return 3, found.index(method)
        return (0, METHODS.index(method)) if method in METHODS else (1, found.index(method))

    return sorted(found, key=rank)


def head_order(heads: Iterable[str]) -> list[str]:
    """Heads as the paper orders them, others behind."""
    return _order(heads, tuple(HEAD_NAMES))


def column_order(columns: Iterable[Column]) -> list[Column]:
    """Columns by augmentation, without first, and within it Fixed before Rand."""
    found = list(dict.fromkeys(columns))
    augmentations = _order((c.augmentation for c in found), ("none",))
    shifts = _order((c.shift for c in found), SHIFTS)
    return sorted(found, key=lambda c: (augmentations.index(c.augmentation), shifts.index(c.shift)))


def by_column(cells: Sequence[Cell]) -> list[tuple[Column, list[Cell]]]:
    """Cells by condition."""
    columns = column_order(column_of(cell) for cell in cells)
    return [(column, [cell for cell in cells if column_of(cell) == column]) for column in columns]


def ordered(keys: Iterable[Key], *, by_column: bool = False) -> list[Key]:
    """Rows and columns in the table's order: head, method, variant, column; or head, column, method, variant."""
    found = list(keys)
    heads = head_order(who.head for who, _ in found)
    methods = method_order(who.method for who, _ in found)
    variants = _order((who.variant for who, _ in found), ("",))
    columns = column_order(column for _, column in found)

    def rank(key: Key) -> tuple[int, ...]:
        who, column = key
        row, place = (methods.index(who.method), variants.index(who.variant)), columns.index(column)
        return (heads.index(who.head), *((place, *row) if by_column else (*row, place)))

    return sorted(found, key=rank)


def who_of(cell: Cell) -> Who:
    """The row of a cell."""
    return Who(cell.head, cell.method, cell.variant)


def column_of(cell: Cell) -> Column:
    """The column of a cell."""
    return Column(cell.shift, cell.augmentation)


def grid(results: Results) -> dict[Key, list[Cell]]:
    """Cells of the table by row and column, one per seed; those with fewer demonstrations are not of the table."""
    found: dict[Key, list[Cell]] = {}
    for cell in results.cells:
        if cell.demonstrations in (None, results.demonstrations):
            found.setdefault((who_of(cell), column_of(cell)), []).append(cell)
    return found


def outcomes(cells: Sequence[Cell], criterion: str, starts: Sequence[int] | None = None) -> NDArray[np.int64]:
    """(S, N) successes of trainings on the starts that they share, or on given ones."""
    wanted = shared_starts(cells) if starts is None else starts
    rows = []
    for cell in cells:
        place = {start: i for i, start in enumerate(cell.starts)}
        rows.append([cell.success[criterion][place[start]] for start in wanted])
    return np.array(rows, dtype=np.int64).reshape(len(cells), len(wanted))


def mean_success(cells: Sequence[Cell], criterion: str, starts: Sequence[int]) -> Estimate:
    """Success over seeds on given starts, with its interval."""
    return success_over_seeds(outcomes(cells, criterion, starts), np.random.default_rng(SEED))


def shared_starts(cells: Sequence[Cell]) -> list[int]:
    """Starts on which all of the trainings were tried, in the order of the first one's."""
    common = set(cells[0].starts).intersection(*(cell.starts for cell in cells))
    return [start for start in cells[0].starts if start in common]


def measured(cells: Sequence[Cell], criterion: str) -> list[Cell]:
    """Cells that are done and judged by the criterion."""
    return [cell for cell in cells if cell.done and criterion in cell.success]


def layout(results: Results, criterion: str | None = None) -> Layout:
    """The table by one criterion, the headline one unless another is named.

    All columns of the results, and all rows of the results and of the paper.
    """
    wanted = criterion or results.criterion
    cells = grid(results)
    columns = column_order(column for _, column in cells)
    if results.task in TASKS:
        columns = column_order([*(Column(shift) for shift in SHIFTS), *columns])
    heads = head_order(who.head for who, _ in cells)
    groups = []
    for head in heads:
        own = [who for who, _ in cells if who.head == head]
        methods = method_order([*(who.method for who in own), *paper_methods(results.task, head)])
        whos = [
            Who(head, method, variant)
            for method in methods
            for variant in _order([w.variant for w in own if w.method == method] or [""], ("",))
        ]
        groups.append(Group(head, _mark_best([(who, _entries(results, cells, who, columns, wanted)) for who in whos])))
    entries = [entry for group in groups for _, row in group.rows for entry in row]
    counts = {entry.seeds for entry in entries if entry.estimate}
    return Layout(
        columns=columns,
        groups=groups,
        notes=list(dict.fromkeys(entry.reason for entry in entries if entry.estimate is None)),
        seeds=counts.pop() if len(counts) == 1 else None,
    )


def _entries(
    results: Results, cells: Mapping[Key, list[Cell]], who: Who, columns: Sequence[Column], criterion: str
) -> list[Entry]:
    entries = []
    for column in columns:
        paper = None
        if column.augmentation == "none" and not who.variant:
            paper = paper_cell(results.task, column.shift, who.method, who.head)
        entries.append(_entry(cells.get((who, column), []), criterion, paper))
    return entries


def _entry(cells: Sequence[Cell], criterion: str, paper: float | None) -> Entry:
    done = measured(cells, criterion)
    starts = shared_starts(done) if done else []
    if not starts:
        reasons = [cell.why for cell in cells if not cell.done]
        reason = "; ".join(dict.fromkeys(reasons)) if reasons else "not measured"
        if done:
            reason = "its trainings were not tried on the same starts"
        elif cells and not reasons:
            reason = f"not judged by {criterion}"
        return Entry(asked=len(cells), reason=reason, paper=paper)
    found = outcomes(done, criterion, starts)
    return Entry(
        estimate=mean_success(done, criterion, starts),
        seeds=len(done),
        asked=len(cells),
        successes=int(found.sum()),
        trials=found.size,
        starts=len(starts),
        paper=paper,
    )


def _mark_best(rows: list[tuple[Who, list[Entry]]]) -> list[tuple[Who, list[Entry]]]:
    tops: dict[int, float] = {}
    for who, entries in rows:
        for i, entry in enumerate(entries):
            if who.plain and entry.estimate:
                tops[i] = max(tops.get(i, 0.0), entry.estimate.value)
    return [
        (
            who,
            [
                replace(e, best=bool(who.plain and e.estimate and 0 < e.estimate.value == tops[i]))
                for i, e in enumerate(entries)
            ],
        )
        for who, entries in rows
    ]


def estimate_text(estimate: Estimate) -> str:
    """``0.84 [0.72, 0.92]``."""
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def entry_text(entry: Entry, table: Layout, *, between: str = " ") -> str:
    """A cell as text: the estimate, with its seeds where cells differ in their number, or the mark of its note."""
    if entry.estimate is None:
        return f"– {table.mark(entry)}".rstrip()
    text = estimate_text(entry.estimate).replace(" [", f"{between}[", 1)
    return text if table.seeds is not None else f"{text}{between}{seeds_text(entry.seeds)}"


def seeds_text(seeds: int) -> str:
    """``3 seeds``."""
    return f"{seeds} seed{'s' if seeds != 1 else ''}"


def head_line(results: Results) -> str:
    """How the numbers of the table came about, in a sentence."""
    table = layout(results)
    parts = [f"success is {results.criterion}" if results.criterion else "nothing is measured yet"]
    tried = {frozenset(cell.starts) for found in grid(results).values() for cell in found if cell.done}
    if len(tried) == 1:
        parts.append(f"{len(next(iter(tried)))} starts, the same for all methods")
    elif tried:
        least, most = min(map(len, tried)), max(map(len, tried))
        parts.append(f"{least} to {most} starts, not the same for all methods")
    if table.seeds:
        parts.append(f"{seeds_text(table.seeds)} per cell")
    if encoder := results.protocol.get("encoder"):
        parts.append(f"encoder {encoder}")
    if budget := budget_text(results):
        parts.append(f"a budget of {budget} per training")
    return "; ".join(parts)


def budget_text(results: Results) -> str:
    """``500,000 images`` or ``10 min``; empty where the results do not say."""
    images, seconds = (results.protocol.get(f"budget_{unit}") for unit in ("images", "seconds"))
    if images:
        return f"{int(images):,} images"
    return duration(float(seconds)) if seconds else ""
