"""The comparison for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from table1.report.results import Results
from table1.report.sheets import Sheet, sheets

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, Group, RenderableType
    from rich.table import Table

BORDER = 3
"""Characters that a column takes beside its text."""


def comparison_text(results: Results) -> Group:
    """All tables for rich, in the width of the terminal; of the comparisons, those with CLASS."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for sheet in sheets(results, every_pair=False):
        parts.append(Fitted(sheet))
        parts += [Text(note) for note in sheet.notes]
        parts.append(Text(""))
    notes = results.protocol.get("notes") or []
    return Group(*parts, *(Text(f"- {note}") for note in notes))


@dataclass(frozen=True)
class Fitted:
    """A table that leaves columns out, and says which, where the terminal is too narrow: nothing is cut off."""

    sheet: Sheet

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """What rich prints."""
        from rich.text import Text

        kept, widths = fit(self.sheet, options.max_width)
        yield sheet_table(self.sheet, kept, widths)
        if left := [name for i, name in enumerate(self.sheet.columns) if i not in kept]:
            names = ", ".join(name for name in dict.fromkeys(left))
            yield Text(f"Left out for want of width: {names}. They are in the Markdown file and on the page.")


def fit(sheet: Sheet, width: int) -> tuple[list[int], list[int]]:
    """Which columns of a table are shown in ``width`` characters, and how wide each is.

    Names are broken between words, numbers never; what is in ``sheet.spare`` is left out, from the first on.
    """
    kept = list(range(len(sheet.columns)))
    ranges = [_range(sheet, i) for i in kept]

    def room(of: Sequence[int]) -> int:
        return width - 1 - sum(ranges[i][0] + BORDER for i in of)

    for name in sheet.spare:
        if room(kept) >= 0:
            break
        kept = [i for i in kept if sheet.columns[i] != name]
    left, widths = max(0, room(kept)), []
    for i in kept:
        least, most = ranges[i]
        widths.append(min(most, least + left))
        left -= widths[-1] - least
    return kept, widths


def _range(sheet: Sheet, i: int) -> tuple[int, int]:
    """Least and largest width of a column."""
    cells = [row[i] for _, rows in sheet.groups for row in rows]
    if i == 0:
        cells += [heading for heading, _ in sheet.groups]
    lines = [line for cell in cells for line in cell.splitlines()] or [""]
    breakable = [sheet.columns[i], *(lines if i < sheet.names else ())]
    words = [word for line in breakable for word in line.split()] or [""]
    whole = [] if i < sheet.names else lines
    return max(map(len, [*words, *whole])), max(map(len, [sheet.columns[i], *lines]))


def sheet_table(sheet: Sheet, kept: Sequence[int], widths: Sequence[int]) -> Table:
    """One table; headings of groups are rows of their own.

    Args:
        sheet: its text.
        kept: columns that are shown.
        widths: of these, in characters.
    """
    from rich.table import Table
    from rich.text import Text

    # Text, not markup: brackets of intervals and of notes are no tags.
    table = Table(title=Text(sheet.title, style="bold"), title_justify="left")
    for i, width in zip(kept, widths, strict=True):
        table.add_column(Text(sheet.columns[i]), justify="right" if i >= sheet.names else "left", width=width)
    for heading, rows in sheet.groups:
        if heading:
            table.add_section()
            table.add_row(Text(heading, style="bold"))
        for row in rows:
            table.add_row(*(Text(row[i]) for i in kept))
    return table
