"""Processes that may die or hang without taking their caller with them.

Evaluation episodes, experts' attempts, rendering and ``classact doctor`` use :class:`Process`.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

Task = TypeVar("Task")


class FaultError(Exception):
    """What happened instead of an answer; the message is the traceback of a job's exception.

    Attributes:
        error: that exception; None where the process died or hung, and is gone.
        losses: processes that the same task has cost, see :func:`run_tasks`.
    """

    def __init__(self, text: str, error: Exception | None = None) -> None:
        super().__init__(text)
        self.error, self.losses = error, 0


class Process:
    """A job in its own process.

    Args:
        job: sent there, and called with each request. If it returns an iterator, the answer is the list of its items,
            and each is a sign of life. Its method ``close``, if it has one, is called at the end.
        timeout: seconds without a sign of life after which the process counts as hung.
    """

    def __init__(self, job: Callable[..., Any], timeout: float) -> None:
        context = multiprocessing.get_context("spawn")  # not fork: forked threads (OpenMP) deadlock
        self.timeout = timeout
        self.pipe, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(child, job), daemon=True)
        self._process.start()
        child.close()
        self.pid = self._process.pid or 0
        self._sender: threading.Thread | None = None

    def ask(self, *request: Any) -> None:
        """Send a request, to which one answer is due."""
        self.deadline = time.monotonic() + self.timeout
        self._send(request)

    def _send(self, message: Any) -> None:
        data = ForkingPickler.dumps(message)

        def send() -> None:
            with suppress(OSError):  # noticed when there is no answer
                self.pipe.send_bytes(data)

        # A hung process does not read, and a request larger than the pipe's buffer would wait for ever.
        self._sender = threading.Thread(target=send, daemon=True)
        self._sender.start()

    def receive(self) -> Any:
        """The answer to a request; a FaultError if the job raised an exception, or the process died or hung."""
        try:
            while True:
                if not self.pipe.poll(max(0.0, self.deadline - time.monotonic())):
                    self.end()
                    raise FaultError(f"gave no sign of life for {self.timeout:g} s and was ended")
                status, value = self.pipe.recv()
                self.deadline = time.monotonic() + self.timeout
                if status == "answer":
                    return value
                if status == "error":
                    raise FaultError(*value)
        except (EOFError, OSError):
            self._process.join(1)
            code = self._process.exitcode
            self.end()
            raise FaultError(f"died (exit code {code})") from None

    def end(self, patience: float = 0.0) -> None:
        """End the process; an idle one gets ``patience`` seconds to close its job. Safe to call twice."""
        if patience:
            self._send(None)
            self._process.join(patience)
        self._process.kill()
        self._process.join()
        if self._sender is not None:
            self._sender.join()
        self.pipe.close()


def _serve(pipe: Connection, job: Callable[..., Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the first one decides
    try:
        while (request := pipe.recv()) is not None:
            try:
                value = job(*request)
                if isinstance(value, Iterator):
                    items = []
                    for item in value:
                        items.append(item)
                        pipe.send(("alive", None))
                    value = items
                pipe.send(("answer", value))
            except Exception as error:
                pipe.send(("error", (traceback.format_exc(), _sendable(error))))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    finally:
        getattr(job, "close", lambda: None)()


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def run_tasks(
    job: Callable[..., Any],
    next_task: Callable[[Collection[Task]], Task | None],
    *,
    workers: int,
    timeout: float,
    request: Callable[[Task], tuple[Any, ...]] = lambda task: (task,),
) -> Generator[tuple[Task, Any], None, None]:
    """Do tasks in processes, one at a time in each, until there are no more; close the generator to end them earlier.

    Args:
        job: see :class:`Process`.
        next_task: called with the running tasks; None where there is no other. A task that was lost with its process is
            done again if it is given again.
        timeout: seconds that a task may take.
        request: what the job is called with.

    Yields (task, its answer or :class:`FaultError`), in the order in which they end.
    """
    idle: list[Process] = []
    busy: dict[Connection, tuple[Process, Task]] = {}
    lost: Counter[Task] = Counter()
    try:
        while True:
            while len(busy) < workers and (task := next_task([task for _, task in busy.values()])) is not None:
                process = idle.pop() if idle else Process(job, timeout)
                process.ask(*request(task))
                busy[process.pipe] = process, task
            if not busy:
                return
            first = min(process.deadline for process, _ in busy.values())
            ready = wait(list(busy), max(0.0, first - time.monotonic()))
            for pipe, (process, task) in list(busy.items()):
                if pipe not in ready and time.monotonic() < process.deadline:
                    continue
                del busy[pipe]
                try:
                    answer = process.receive()
                    idle.append(process)
                except FaultError as fault:
                    answer = fault
                    if fault.error is None:
                        lost[task] += 1
                        fault.losses = lost[task]
                    else:
                        idle.append(process)
                yield task, answer
    finally:
        for process in [*idle, *(process for process, _ in busy.values())]:
            process.end()
