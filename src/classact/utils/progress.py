"""Progress bars with time left, for people; plain lines where the output is not a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Callback = Callable[..., None]
"""Called with (done, total) or (done, total, status)."""

_LINE_SECONDS = 15.0


@contextmanager
def progress_bar(title: str, *, quiet: bool = False) -> Iterator[Callback]:
    """Show how far a stage is: bar, time spent and time left.

    Args:
        title: what is being done.
        quiet: show nothing.
    """
    if quiet:
        yield lambda *_: None
        return
    if not sys.stderr.isatty():
        yield _line_printer(title)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, status="")

        def update(done: int, total: int, status: str = "") -> None:
            bar.update(task, completed=done, total=total, status=status)

        yield update


def teller(*, quiet: bool = False) -> Callable[[str], None] | None:
    """Prints single lines of news beside the bars; None where nothing is to be shown."""
    return None if quiet else lambda line: print(line, file=sys.stderr)


def _line_printer(title: str) -> Callback:
    begin = last = time.monotonic()
    first: int | None = None

    def update(done: int, total: int, status: str = "") -> None:
        nonlocal last, first
        now = time.monotonic()
        if first is None:
            first = max(0, done - 1)  # a resumed training starts far in; what was done before took no time now
        if now - last < _LINE_SECONDS and done < total:
            return
        last = now
        left = (now - begin) / max(done - first, 1) * (total - done)
        print(f"{title}: {done:,} of {total:,}, {now - begin:.0f} s, {left:.0f} s left  {status}", file=sys.stderr)

    return update
