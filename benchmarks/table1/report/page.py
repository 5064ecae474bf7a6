"""One self-contained HTML page from the results of benchmarks/table1 and the run folders beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from classact.pages.page import flatten
from classact.pages.plots import Plot, make_plot, write_page
from classact.pages.style import percent
from classact.pages.table import Row
from table1.report import figures
from table1.report.costs import Budget, budgets, tuning
from table1.report.latents import MOST_EPISODES, read_seen
from table1.report.pairs import Pair, compare, how_compared, of_class
from table1.report.probes import correlations, probe_plots
from table1.report.results import Cell, Results, read_results
from table1.report.sheets import (
    PAPER,
    Sheet,
    budgets_sheet,
    pairs_sheet,
    success_notes,
    success_sheet,
    tuning_sheet,
)
from table1.report.table import (
    Who,
    by_column,
    column_name,
    column_of,
    grid,
    head_name,
    layout,
    ordered,
    seeds_text,
    task_name,
    who_name,
    who_of,
)
from table1.report.trends import curves_by_column, done_cells, scaling_by_column

SHOWN = 6
"""Metrics that are drawn in the open; the figures of others are folded away."""


@dataclass(frozen=True)
class Block:
    """What is drawn for one condition, and why the rest is not.

    Attributes:
        title: of the condition.
        plots: of it.
        key: colours of methods in these.
        strips: names with neighbours of some timesteps.
        absent: sentences.
    """

    title: str
    plots: list[Plot] = field(default_factory=list)
    key: list[figures.KeyEntry] = field(default_factory=list)
    strips: list[tuple[str, list[Row]]] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


def build_comparison(results_path: Path, page_path: Path) -> Path:
    """Write the page of a results file; pictures come from the run folders that it names, where they are.

    The page needs no network: everything is inside, and a content security policy forbids the browser to load
    anything. Sections whose numbers are not there say why.

    Returns:
        The page's path.

    Raises:
        DataError: the results file is not there, or damaged.
        StorageError: the page cannot be written; an older page is left as it was.
    """
    content, template = context(read_results(results_path)), Path(__file__).parent / "comparison.html"
    return write_page(Path(page_path), template, content, seeds_text=seeds_text, head_name=head_name)


def context(results: Results) -> Row:
    """Everything the template shows."""
    table = layout(results)
    pairs = compare(results)
    main = of_class(pairs)
    return {
        "r": results,
        "task": task_name(results.task),
        "paper": PAPER,
        "headline": headline(results),
        "table": table,
        "columns": [column_name(results.task, column) for column in table.columns],
        "row_name": lambda who: who_name(who, head=False),
        "notes": success_notes(results, table),
        "other_criteria": _other_criteria(results),
        "budgets": budgets_sheet(results, budgets(results)),
        "curves": curve_blocks(results),
        "losses": loss_plots(results),
        "scaling": scaling_blocks(results),
        "latency": latency_plot(results),
        "seen": seen_blocks(results),
        "episodes": MOST_EPISODES,
        "how": how_compared(pairs) if pairs else "",
        "count": _counts(main),
        "class_pairs": pairs_sheet(results, main, "CLASS against each method", ""),
        "other_pairs": pairs_sheet(results, [p for p in pairs if not p.primary], "All other pairs", ""),
        "probes": probe_plots(results),
        "shown": SHOWN,
        "correlations": correlations(results),
        "probe_key": figures.key((c.method for c in results.done if c.probe), figures.looks(results)),
        "symbols": figures.symbols_text(),
        "tuning": tuning_sheet(results, tuning(results)),
        "settings": [
            (title, flatten(value))
            for title, value in (
                ("Data", results.data),
                ("Protocol", {key: value for key, value in results.protocol.items() if key != "notes"}),
                ("Hardware", results.hardware),
                ("Versions", results.versions),
            )
            if value
        ],
    }


def headline(results: Results) -> Row:
    """What is said first: CLASS without a head by column, and the best other representation in each."""
    table = layout(results)
    group = next((g for g in table.groups if g.head == "rep"), table.groups[0] if table.groups else None)
    found: Row = {"head": group.head if group else "", "results": []}
    for i, column in enumerate(table.columns if group else []):
        if column.augmentation != "none" or group is None:
            continue
        own = next((e[i] for who, e in group.rows if who == Who(group.head, "class")), None)
        others = [(e[i], who) for who, e in group.rows if who.plain and who.method != "class" and e[i].estimate]
        if own is None or own.estimate is None:
            continue
        best = max(others, key=lambda pair: pair[0].estimate.value, default=None)  # type: ignore[union-attr]
        found["results"].append(
            {
                "column": column_name(results.task, column),
                "own": own.estimate,
                "best": best and {"name": who_name(best[1], head=False), "estimate": best[0].estimate},
            }
        )
    return found


def _other_criteria(results: Results) -> list[Sheet]:
    known = [c for c in results.criteria[1:] if any(c in cell.success for cell in results.done)]
    return [success_sheet(results, criterion, between=" ") for criterion in known]


def _counts(pairs: Sequence[Pair]) -> dict[str, int]:
    return {verdict: sum(p.verdict == verdict for p in pairs) for verdict in ("better", "worse", "not distinguishable")}


def curve_blocks(results: Results) -> list[Block]:
    """Success during training by condition, over images and over seconds (paper, G)."""
    look = figures.looks(results)
    blocks = []
    for i, (column, drawn) in enumerate(curves_by_column(results)):
        title = column_name(results.task, column)
        ends = [(curve, curve.rows[-1]) for curve in drawn]
        words = "; ".join(f"{who_name(curve.who)} ends at {percent(row[2] / row[3])}" for curve, row in ends)
        plots = [
            make_plot(
                f"curves-{i}-{axis}",
                figures.curves_figure(drawn, axis, look),
                f"Success over {axis} of training, {title}. {words}.",
                title=f"Over {axis}",
            )
            for axis in ("images", "seconds")
        ]
        blocks.append(Block(title, plots, figures.key((curve.who.method for curve in drawn), look)))
    return blocks


def loss_plots(results: Results) -> list[Plot]:
    """Losses, one figure per method, head and variant: losses of different methods cannot be compared."""
    found: dict[Who, list[Cell]] = {}
    for cell in done_cells(results):
        if cell.loss:
            found.setdefault(who_of(cell), []).append(cell)
    plots = []
    for i, (who, cells) in enumerate(found.items()):
        names = [column_name(results.task, column_of(cell)) for cell in cells]
        alt = f"Loss of {who_name(who)} over images: " + "; ".join(
            f"{name} from {cell.loss[0][2]:.3g} to {cell.loss[-1][2]:.3g}"
            for name, cell in zip(names, cells, strict=True)
        )
        plots.append(make_plot(f"loss-{i}", figures.loss_figure(cells, names), f"{alt}.", title=who_name(who)))
    return plots


def scaling_blocks(results: Results) -> list[Block]:
    """Success over the number of demonstrations, for rows that learned from several (paper, H)."""
    look = figures.looks(results)
    blocks = []
    for i, (column, series) in enumerate(scaling_by_column(results)):
        alt = "; ".join(
            f"{who_name(row.who)}: " + ", ".join(f"{percent(e.value)} from {count}" for count, e, *_ in row.points)
            for row in series
        )
        title = column_name(results.task, column)
        figure = figures.scaling_figure(series, look)
        plot = make_plot(f"scaling-{i}", figure, f"Success over demonstrations. {alt}.", title=title)
        blocks.append(Block(title, [plot], figures.key((row.who.method for row in series), look)))
    return blocks


def latency_plot(results: Results) -> Plot | None:
    """How long a decision takes by row (paper, I); columns of a row cost the same: the first stands for all."""
    rows: dict[Who, Budget] = {}
    for row in budgets(results):
        if row.latency is not None:
            rows.setdefault(row.who, row)
    if not rows:
        return None
    named = [(who_name(who), row) for who, row in rows.items()]
    words = "; ".join(f"{name} {row.latency:.3g} ms" for name, row in named)
    return make_plot(
        "latency",
        figures.latency_figure(named, figures.looks(results)),
        f"Milliseconds per decision, median. {words}.",
        "Markers are medians on the machine of these results, lines reach to the 95th percentile.",
    )


def seen_blocks(results: Results) -> list[Block]:
    """Latent maps and neighbours by condition, of the first training of each row (paper, J)."""
    cells = grid(results)
    first = [next((cell for cell in cells[key] if cell.done), None) for key in ordered(cells)]
    blocks = []
    for i, (column, some) in enumerate(by_column([cell for cell in first if cell])):
        title = column_name(results.task, column)
        block = Block(title)
        reasons: dict[str, list[str]] = {}
        for k, cell in enumerate(some):
            name, seen = who_name(who_of(cell)), read_seen(results, cell)
            if cell.head != "rep" and seen.map is None and not seen.neighbors:
                continue  # a head's representation has a map of its own, in the row without a head
            if seen.map is not None:
                alt = f"Two-dimensional t-SNE map of the latents of {name}, {title}, one line per demonstration."
                block.plots.append(make_plot(f"map-{i}-{k}", seen.map, alt, title=name))
            if seen.neighbors:
                block.strips.append((name, seen.neighbors))
            if seen.no_map == seen.no_neighbors != "":
                reasons.setdefault(f"No map and no neighbours, for {seen.no_map}", []).append(name)
                continue
            for what, reason in (("map", seen.no_map), ("neighbours", seen.no_neighbors)):
                if reason:
                    reasons.setdefault(f"No {what}, for {reason}", []).append(name)
        block.absent.extend(f"{reason.rstrip('.')}: {'; '.join(names)}." for reason, names in reasons.items())
        blocks.append(block)
    return blocks
