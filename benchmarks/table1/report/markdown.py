"""The comparison as Markdown."""

from __future__ import annotations

from table1.report.probes import correlations
from table1.report.results import Results
from table1.report.sheets import Sheet, sheets
from table1.report.table import task_name


def comparison_markdown(results: Results) -> str:
    """All tables as Markdown: success beside the paper's, comparisons, budgets, tuning, what probes predict."""
    tables = sheets(results, more=[correlations(results)])
    parts = [f"# Table 1 on {task_name(results.task)}", *(sheet_markdown(sheet) for sheet in tables)]
    if notes := results.protocol.get("notes"):
        parts.append("\n".join(["## Notes", "", *(f"- {plain(str(note))}" for note in notes)]))
    return "\n\n".join(parts) + "\n"


def sheet_markdown(sheet: Sheet) -> str:
    """One table with its heading; headings of groups are rows in bold."""
    lines = [f"## {plain(sheet.title)}", "", _row(sheet.columns)]
    lines.append(_row(["---" if i < sheet.names else "---:" for i in range(len(sheet.columns))], escape=False))
    for heading, rows in sheet.groups:
        if heading:
            lines.append(_row([f"**{plain(heading)}**", *[""] * (len(sheet.columns) - 1)], escape=False))
        lines += [_row(row) for row in rows]
    for note in sheet.notes:
        lines += ["", plain(note)]
    return "\n".join(lines)


def plain(text: str) -> str:
    """Text that Markdown shows as it is: reasons and names come from files."""
    for mark in "\\`*_<>|#":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def _row(cells: list[str], *, escape: bool = True) -> str:
    return "| " + " | ".join(plain(cell) if escape else cell for cell in cells) + " |"
