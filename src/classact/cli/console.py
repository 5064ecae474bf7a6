"""Output of commands: results are printed as well as standard output allows, and work goes on."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classact.errors import ClassactError
from classact.evaluation.rows import ActionError, EvaluationRow, Value, measured_over

if TYPE_CHECKING:
    from classact.data.cache import Cached
    from classact.data.validate import Finding
    from classact.evaluation.lerobot import LerobotDifference, LerobotRow
    from classact.utils.statistics import Estimate

_PLAIN = dict(zip("↓↑▲▁▂▃▄▅▆▇█–“”τ", 'v^^..::||##-""t', strict=True))
_NAME_COLUMNS = 16  # names in tables are folded to no less


def _replace(error: UnicodeError) -> tuple[str, int]:
    """Similar characters for those that an encoding lacks; question marks for the rest."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(c, "?") for c in error.object[error.start : error.end]), error.end


codecs.register_error("classact", _replace)


def prepare_streams() -> None:
    """Make standard streams printable, closed or not, in any encoding; for the process of a command."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # otherwise the next opened file would get what other libraries print
            os.open(os.devnull, os.O_RDWR)
        stream = getattr(sys, name)
        if getattr(stream, "closed", True):
            setattr(sys, name, Path(os.devnull).open("w" if number else "r", encoding="utf-8"))  # noqa: SIM115
    _make_lenient()


def _make_lenient() -> None:
    stream: Any = sys.stdout
    if not hasattr(stream, "reconfigure") or stream.closed:  # None, or what tests put there
        return
    unicode = str(stream.encoding).lower().startswith("utf")
    if stream.errors == "strict" or (stream.errors == "surrogateescape" and not unicode):
        stream.reconfigure(errors="classact")


def forget_output() -> None:
    """Discard further output: standard output has no reader any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str = "") -> None:
    """Print lines to standard output as they are; without any, flush it."""
    _make_lenient()
    try:
        print(text, end="\n" if text else "", flush=True)
    except BrokenPipeError:
        forget_output()
    except OSError as error:
        raise _unwritten(error) from None


def _unwritten(error: OSError) -> ClassactError:
    forget_output()
    return ClassactError(f"standard output cannot be written: {error.strerror}. Free some space, or send it elsewhere.")


def console() -> Any:
    """A terminal for tables, without markup, because file names may hold brackets.

    Tables fold names in narrow columns and keep numbers whole, in lines longer than the terminal's if need be.
    """
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    class Printer(Console):
        def print(self, *objects: Any, **settings: Any) -> None:
            for table in objects:
                if isinstance(table, Table):
                    self.width = max(Console(highlight=False).width, self._least(table))
            try:
                super().print(*objects, **settings)
            except OSError as error:
                raise _unwritten(error) from None

        def _least(self, table: Table) -> int:
            widths = [column.max_width for column in table.columns]
            for column in table.columns:
                column.overflow = "fold"
                if not column.no_wrap:
                    column.max_width = min(column.max_width or _NAME_COLUMNS, _NAME_COLUMNS)
            least = Measurement.get(self, self.options.update_width(10_000), table).maximum
            for column, width in zip(table.columns, widths, strict=True):
                column.max_width = width
            return least

        def on_broken_pipe(self) -> None:
            forget_output()

    _make_lenient()
    return Printer(highlight=False, markup=False)


def print_facts(title: str, facts: Iterable[tuple[str, str] | None]) -> None:
    """A table of names and their descriptions; None stands between groups."""
    from rich.table import Table

    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column()
    for fact in facts:
        if fact is None:
            table.add_section()
        else:
            table.add_row(*fact)
    console().print(table)


def print_notes(notes: Iterable[str]) -> None:
    """A line for each, however long."""
    for note in notes:
        say(f"Note: {note}")


def print_summary(rows: Sequence[EvaluationRow]) -> None:
    """The success table with its intervals; what all rows share stands above it.

    A maximum over training is beside the last checkpoint of the same training, with a note that it is biased.
    """
    if not rows:
        return
    from rich.table import Table

    from classact.pages.table import evaluations_of_maxima, results, row_label

    same = {key: getattr(rows[0], key) for key in ("policy", "simulator", "shift") if _are_same(rows, key)}
    where = ", ".join(same[key] for key in ("simulator", "shift") if key in same)
    title = same.get("policy", "success") + (f" on {where}" if where else "")
    maxima = evaluations_of_maxima(rows)
    table = Table(title=title, title_justify="left")
    rates = ("last checkpoint", f"maximum\nof {maxima} *") if maxima else ("success", "95 % interval")
    with_coverage = any("coverage" in row.metrics for row in rows)
    last = ("mean max.\ncoverage",) if with_coverage else ()
    for column in ("encoder" if "policy" in same else "policy", "criterion", *rates, *last):
        table.add_column(column, no_wrap=column not in ("encoder", "policy"))  # numbers stay whole in a short line

    before = ""
    for result in results(rows):
        row = result.row
        label = row_label(row, rows)
        if maxima:
            cells = [_cell(result.last, counts=True), _cell(result.maximum, counts=False)]
        else:
            cells = [_rate(row), _interval(row)]
        if with_coverage:
            cells.append(f"{row.metrics['coverage']:.3f}" if "coverage" in row.metrics else "")
        if maxima and before and label != before:
            table.add_section()
        # Cells of two lines under one name, which need not be repeated.
        table.add_row("" if maxima and label == before else label, row.criterion, *cells)
        before = label
    console().print(table)
    if maxima:
        console().print(f"* the largest of {maxima} evaluations during a training, chosen afterwards: biased upwards")
    if excess := max((row.metrics.get("excess", 0.0) for row in rows), default=0.0):
        console().print(
            f"Actions went beyond their limits and were executed as they are; the largest of an episode by "
            f"{100 * excess:.2g} % of the limits' width, on average"
        )


def print_actions(errors: Iterable[ActionError]) -> None:
    """Errors on held-out demonstrations, the smallest first."""
    from rich.table import Table

    errors = sorted(errors, key=lambda one: one.l2.value)
    table = Table(
        title=f"held-out actions {measured_over(errors)}, scaled to [-1, 1] (95 % intervals over demonstrations)",
        title_justify="left",
    )
    for column in ("policy", "L2, mean of steps", "DTW"):
        table.add_column(column, no_wrap=column != "policy")
    for error in errors:
        table.add_row(error.policy, *(_value(value) for value in (error.l2, error.dtw)))
    if table.row_count:
        console().print(table)


def print_ranges(ranges: Sequence[tuple[str, Sequence[float]]], quantiles: Iterable[str]) -> None:
    """A line for each dimension: its quantiles."""
    from rich.table import Table

    table = Table(title="ranges", title_justify="left")
    table.add_column("dimension", no_wrap=True)
    for name in quantiles:
        table.add_column(name, no_wrap=True, justify="right")
    for name, values in ranges:
        table.add_row(name, *(f"{value:.4g}" for value in values))
    if ranges:
        console().print(table)


def print_lerobot(rows: Sequence[LerobotRow], differences: Sequence[LerobotDifference]) -> None:
    """LeRobot's evaluations with 95 % intervals, then each beside the first."""
    from rich.table import Table

    table = Table(title="lerobot-eval (95 % intervals: Wilson; bootstrap over episodes)", title_justify="left")
    for column in ("evaluation", "task", "success", "", "max. reward", "sum of rewards"):
        table.add_column(column, no_wrap=column not in ("evaluation", "task"))
    for row in rows:
        rate = f"{100 * row.success.value:.0f} % ({row.successes} of {row.episodes})"
        interval = f"{100 * row.success.low:.0f} to {100 * row.success.high:.0f} %"
        table.add_row(row.name, row.task, rate, interval, _mean(row.max_reward), _mean(row.sum_reward))
    console().print(table)
    if not differences:
        return
    table = Table(title=f"success beside {rows[0].name}", title_justify="left")
    for column in ("evaluation", "difference", "initial states", "won : lost", "p", "p (Holm)"):
        table.add_column(column, no_wrap=column != "evaluation")
    for one in differences:
        d = one.difference
        points = f"{100 * d.value:+.0f} [{100 * d.low:+.0f}, {100 * d.high:+.0f}]"
        shared = (f"{one.states} shared", f"{one.won} : {one.lost}") if one.states else ("not known to be shared", "")
        table.add_row(one.name, points, *shared, f"{one.p:.2g}", f"{one.adjusted:.2g}")
    console().print(table)


def _mean(e: Estimate) -> str:
    return f"{e.value:.3g}" if e.high == float("inf") else f"{e.value:.3g} [{e.low:.3g}, {e.high:.3g}]"


def print_cache(entries: Sequence[tuple[Cached, str]]) -> None:
    """A line for each entry of the cache, and what became of it."""
    from datetime import datetime

    from rich.table import Table

    table = Table("kind", "what", "MiB", "used", "made for")
    table.columns[2].justify = "right"
    if any(became for _, became in entries):
        table.add_column("")
    for one, became in entries:
        used = datetime.fromtimestamp(one.used).strftime("%Y-%m-%d %H:%M")
        row = (one.kind, one.what, f"{one.nbytes / 2**20:,.1f}", used, "\n".join(one.sources) or "not known")
        table.add_row(*row, *([became] if became else []))
    if entries:
        console().print(table)


def print_findings(findings: Sequence[Finding]) -> None:
    """A line for each oddity of demonstrations."""
    from rich.table import Table

    table = Table("", "check", "where", "what")
    for one in findings:
        table.add_row(one.kind, one.check, one.where, one.what)
    if findings:
        console().print(table)


def _value(value: Value) -> str:
    interval = "" if value.low is None else f" [{value.low:.3g}, {value.high:.3g}]"
    return f"{value.value:.3g}{interval}"


def _are_same(rows: Sequence[EvaluationRow], key: str) -> bool:
    return len({getattr(row, key) for row in rows}) == 1


def _cell(row: EvaluationRow | None, *, counts: bool) -> str:
    return "" if row is None else f"{_rate(row, counts=counts)}\n{_interval(row)}"


def _rate(row: EvaluationRow, *, counts: bool = True) -> str:
    rate = f"{100 * row.success:.0f} %"
    return f"{rate} ({row.successes} of {row.episodes})" if counts else rate


def _interval(row: EvaluationRow) -> str:
    return f"{100 * row.low:.0f} to {100 * row.high:.0f} %"


def print_timings(timings: Mapping[str, float]) -> None:
    """Seconds by stage, and their sum."""
    total = sum(timings.values())
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in timings.items())
    console().print(f"Time: {total:.0f} s in all ({parts})")
