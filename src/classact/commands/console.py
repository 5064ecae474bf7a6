"""What commands print with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def console() -> Any:
    """A terminal for tables; names of files may hold brackets, so there is no markup."""
    from rich.console import Console

    return Console(highlight=False, markup=False)


def print_summary(rows: Sequence[dict[str, Any]]) -> None:
    """The success table with its intervals; what is the same in all rows stands above it."""
    from rich.table import Table

    def constant(key: str) -> bool:
        return len({row[key] for row in rows}) == 1

    def both(row: dict[str, Any], keys: Sequence[str], join: str) -> str:
        return join.join(row[key] for key in keys)

    where = [key for key in ("simulator", "shift") if constant(key)]
    title = (rows[0]["policy"] if constant("policy") else "success") + (" on " if where else "")
    varying = [key for key in ("policy", "simulator", "shift") if not constant(key)]
    table = Table(title=title + both(rows[0], where, ", "), title_justify="left")
    for name in ("encoder", "criterion", "success", "95 % interval", "mean max.\ncoverage"):
        table.add_column(name, no_wrap=name != "encoder")  # numbers stay whole where the line is short
    for row in rows:
        table.add_row(
            both(row, ["encoder", *varying], ", "),
            row["criterion"],
            f"{100 * row['success']:.0f} % ({row['successes']} of {row['episodes']})",
            f"{100 * row['low']:.0f} to {100 * row['high']:.0f} %",
            f"{row['mean_max_coverage']:.3f}" if "mean_max_coverage" in row else "",
        )
    console().print(table)


def print_timings(timings: dict[str, float]) -> None:
    """Seconds by stage, and their sum."""
    total = sum(timings.values())
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in timings.items())
    console().print(f"Time: {total:.0f} s in all ({parts})")
