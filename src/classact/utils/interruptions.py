"""Ctrl-C and SIGTERM between two pieces of work, so that what is done can be saved."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

AGAIN_SECONDS = 1.0  # a signal so much later than the first is another one


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn SIGINT and SIGTERM into a flag to check between pieces of work; a second signal, somewhat later, acts at
    once.

    For one Ctrl-C the terminal and ``torchrun`` each send a signal, hence the delay.
    """
    caught: list[float] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # signals belong to the main thread
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handler(number: int, _: Any) -> None:
        caught.append(time.monotonic())
        if caught[-1] - caught[0] > AGAIN_SECONDS:
            signal.signal(number, before[signal.Signals(number)])
            raise KeyboardInterrupt

    for number in before:
        signal.signal(number, handler)
    try:
        yield lambda: bool(caught)
    finally:
        for number, old in before.items():
            signal.signal(number, old)
