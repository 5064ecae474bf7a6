"""The comparison for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from classact.report.comparison.results import Results
from classact.report.comparison.sheets import Sheet, sheets

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


def comparison_text(results: Results) -> Group:
    """All tables for rich; of the comparisons, those with CLASS."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Table | Text] = []
    for sheet in sheets(results, every_pair=False):
        parts.append(sheet_table(sheet))
        parts += [Text(note) for note in sheet.notes]
        parts.append(Text(""))
    notes = results.protocol.get("notes") or []
    return Group(*parts, *(Text(f"- {note}") for note in notes))


def sheet_table(sheet: Sheet) -> Table:
    """One table; headings of groups are rows of their own."""
    from rich.table import Table
    from rich.text import Text

    # Text, not markup: brackets of intervals and of notes are no tags.
    table = Table(title=Text(sheet.title, style="bold"), title_justify="left")
    for i, name in enumerate(sheet.columns):
        number = i >= sheet.names
        table.add_column(
            Text(name), justify="right" if number else "left", no_wrap=number, min_width=0 if number else 8
        )
    for heading, rows in sheet.groups:
        if heading:
            table.add_section()
            table.add_row(Text(heading, style="bold"))
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
    return table
