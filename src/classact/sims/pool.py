"""Simulator processes of the evaluator that may die or hang without the result changing.

A process that is gone is started again, and its episodes are brought back to where they were: reset from their seeds,
then the actions executed so far. Then it gets the request that it owes the answer to. Simulators are deterministic, so
what comes back is what an undisturbed process would have answered; that the replayed episodes stand where they stood is
checked.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from classact.data.types import FloatArray, StateArray
from classact.errors import SimulatorError
from classact.sims.worker import serve

TIMEOUT = 300.0
"""Seconds without any sign of life after which a worker counts as hung; it gives one after each of its episodes."""

RESTARTS = 3
"""How often a worker is started again for one and the same request."""


class _Fault(Exception):  # noqa: N818 (never leaves this module)
    """What happened to a process.

    Attributes:
        raised: the simulator raised an exception, rather than the process ending or hanging.
    """

    def __init__(self, text: str, *, raised: bool = False) -> None:
        super().__init__(text)
        self.raised = raised

    @property
    def brief(self) -> str:
        """What happened on one line, for the list of faults."""
        return f"raised {str(self).strip().splitlines()[-1]}" if self.raised else str(self)


class Worker:
    """A simulator process and what is needed to replace it.

    Args:
        context: of multiprocessing.
        arguments: (name, image_size, shift, cameras) as :func:`classact.sims.worker.serve` takes them.
        faults: what went wrong and was put right is appended.
    """

    def __init__(self, context: Any, arguments: tuple[Any, ...], faults: list[str]) -> None:
        self._context, self._arguments, self._faults = context, arguments, faults
        self._timeout = TIMEOUT
        self._seeds: Sequence[int] = ()
        self._done: list[FloatArray] = []  # executed since the reset, each (episodes, T, D_a)
        self._last: list[StateArray] = []  # the episodes' states after that
        self._pending: tuple[str, Any] = ("", None)
        self._start()

    def _start(self) -> None:
        self.pipe, child = self._context.Pipe()
        self.process = self._context.Process(target=serve, args=(child, *self._arguments), daemon=True)
        self.process.start()
        child.close()

    def reset(self, seeds: Sequence[int], render: bool) -> None:
        """Ask to start the episodes of some seeds; the answer is one observation for each."""
        self._seeds, self._done, self._last = seeds, [], []
        self._ask("reset", (seeds, render))

    def step(self, chunks: FloatArray, render: bool, history: int) -> None:
        """Ask to execute a chunk (T, D_a) in each episode; the answers are those of ``run_chunk``."""
        self._ask("step", (chunks, render, history))

    def _ask(self, command: str, payload: Any) -> None:
        self._pending = (command, payload)
        with suppress(_Fault):  # noticed again when it does not answer
            self._send(command, payload)

    def answer(self) -> list[Any]:
        """The answer to what was asked last, from a new process where the old one is gone.

        Raises:
            SimulatorError: no process gave one.
        """
        happened: list[_Fault] = []
        while True:
            try:
                if happened:
                    self._recover()
                value = self._receive()
                break
            except _Fault as fault:
                happened.append(fault)
                raised = sum(f.raised for f in happened)
                if raised > 1 or len(happened) > RESTARTS:
                    raise self._hopeless(happened) from None
                self._faults.append(f"{self._where()} {fault.brief}")
        command, payload = self._pending
        if command == "step":
            self._done.append(payload[0])
            self._last = [visited[-1] for _, _, visited in value]
        else:
            self._last = [observation.state for observation in value]
        return value

    def _send(self, command: str, payload: Any) -> None:
        failed: list[Exception] = []

        def send(pipe: Any = self.pipe) -> None:
            try:
                pipe.send((command, payload))
            except Exception as error:
                failed.append(error)

        # A process that hangs does not read, and what is more than the pipe holds would wait for it for ever.
        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        thread.join(self._timeout)
        if thread.is_alive():
            raise self._hung()
        if failed:
            raise self._dead() if isinstance(failed[0], OSError) else failed[0]

    def _hung(self) -> _Fault:
        return _Fault(f"gave no sign of life for {self._timeout:g} s and was ended")

    def _dead(self) -> _Fault:
        self.process.join(1)
        return _Fault(f"died (exit code {self.process.exitcode})")

    def _receive(self) -> list[Any]:
        try:
            while True:
                if not self.pipe.poll(self._timeout):
                    raise self._hung()
                status, value = self.pipe.recv()
                if status == "ok":
                    return list(value)
                if status == "error":
                    raise _Fault(str(value), raised=True)
        except (EOFError, OSError):
            raise self._dead() from None

    def _recover(self) -> None:
        self._end()
        self._start()
        command, payload = self._pending
        if command == "step":
            self._send("reset", (self._seeds, False))
            stand = [observation.state for observation in self._receive()]
            if self._done:
                self._send("step", (np.concatenate(self._done, axis=1), False, 0))
                stand = [visited[-1] for _, _, visited in self._receive()]
            for seed, now, before in zip(self._seeds, stand, self._last, strict=True):
                if now is not None and not np.array_equal(now, before, equal_nan=True):
                    raise SimulatorError(
                        f"{self._where()} was lost, and running the episode of seed {seed} again led to another state "
                        f"than before (they differ by up to {np.abs(now - before).max():.3g}): this simulator is not "
                        f"deterministic here. Evaluate again from the start, and take its results with care."
                    )
        self._send(command, payload)

    def _where(self) -> str:
        step = sum(chunks.shape[1] for chunks in self._done)
        seeds = f"seeds {min(self._seeds)} to {max(self._seeds)}"
        return f"the simulator process of {len(self._seeds)} episodes ({seeds}) at step {step}"

    def _hopeless(self, happened: Sequence[_Fault]) -> SimulatorError:
        last = happened[-1]
        if last.raised:
            return SimulatorError(f"{self._where()} failed, in a new process too:\n{last}")
        return SimulatorError(
            f"{self._where()} {last}. So did {len(happened) - 1} others that were started in its place. Was it killed "
            f"for memory? Evaluate with fewer workers if so; 'classact doctor' tries the simulator."
        )

    def _end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):
            self.pipe.send(("close", None))
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()
