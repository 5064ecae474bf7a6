"""Durations in words, and progress bars with time left: plain lines where standard error cannot redraw a line.

Work goes on where standard error is closed, or its reader gone.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Callback = Callable[..., None]  # called with (done, total) or (done, total, status)
_LINE_SECONDS = 15.0
_BAR_COLUMNS = 60


def duration(seconds: float) -> str:
    """``5400`` as ``1 h 30 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def progress_bar(title: str, *, quiet: bool = False) -> Iterator[Callback]:
    """Show a stage's progress: bar, elapsed and remaining time; nothing where ``quiet``."""
    if quiet:
        yield lambda *_: None
        return
    if not _can_redraw():
        yield _line_printer(title)
        return
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description:<34}"),
        rich.BarColumn(bar_width=30),
        rich.TaskProgressColumn(),
        rich.TimeElapsedColumn(),
        rich.TextColumn("left"),
        rich.TimeRemainingColumn(),
        rich.TextColumn("{task.fields[status]}"),
    )
    with rich.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, status="")

        def update(done: int, total: int, status: str = "") -> None:
            bar.update(task, completed=done, total=total, status=status)

        yield update


def teller(*, quiet: bool = False) -> Callable[[str], None] | None:
    """Prints single lines beside the bars; None where ``quiet``."""
    return None if quiet else tell


def tell(line: str) -> None:
    """Print a line to standard error, if there is one."""
    if sys.stderr is None:  # print would take standard output instead
        return
    with suppress(OSError, ValueError):  # no longer open, or nobody reads it
        print(line, file=sys.stderr, flush=True)


def _can_redraw() -> bool:
    try:
        terminal = sys.stderr is not None and sys.stderr.isatty()
        wide = terminal and (os.get_terminal_size(sys.stderr.fileno()).columns or 80) >= _BAR_COLUMNS
    except (OSError, ValueError):
        return False
    return wide and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def _line_printer(title: str) -> Callback:
    begin = last = time.monotonic()
    started: tuple[int, float] | None = None  # what was done when the work that is timed began, and when that was

    def update(done: int, total: int, status: str = "") -> None:
        nonlocal last, started
        now = time.monotonic()
        if started is None and done == 1:
            started = 0, begin
        elif started is None or done == 0:
            # A resumed training starts far in; and preparations say nothing about how long the rest takes.
            started = done, now
        if now - last < _LINE_SECONDS and done < total:
            return
        last = now
        before, since = started
        left = f", {(now - since) / (done - before) * (total - done):.0f} s left" if done > before else ""
        tell(f"{title}: {done:,} of {total:,}, {now - begin:.0f} s{left}  {status}")

    return update
