"""Simulator processes of the evaluator, which may die or hang without changing the result.

A lost process is restarted and its episodes are replayed: reset from their seeds, then the actions executed so far,
with a check that they arrive at the same state. Then it answers the pending request. Simulators are deterministic, so
the answer is that of an undisturbed process.

Imports neither torch nor policies, so that a spawned process is ready within a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from classact.data.types import FloatArray, Observation, StateArray
from classact.errors import SimulatorError
from classact.sims import Simulator, make_simulator
from classact.sims.processes import FaultError, Process

TIMEOUT = 300.0  # seconds without a sign of life, given after each episode, until a worker counts as hung
RESTARTS = 3  # how often a worker is restarted for one request


class Simulators:
    """As many simulators as there are seeds, held by a process."""

    def __init__(
        self, name: str, image_size: int | None, shift: str | None, cameras: Sequence[str] | None = None
    ) -> None:
        self._make = partial(make_simulator, name, image_size=image_size, shift=shift, cameras=cameras)
        self._sims: list[Simulator] = []

    def __call__(self, command: str, *payload: Any) -> Iterator[Any]:
        return getattr(self, command)(*payload)

    def reset(self, seeds: Sequence[int], render: bool) -> Iterator[Observation]:
        for index, seed in enumerate(seeds):
            if index == len(self._sims):
                self._sims.append(self._make())
            self._sims[index].reset(int(seed))
            yield self._sims[index].observe(render=render)

    def step(self, chunks: FloatArray, render: bool, history: int) -> Iterator[tuple[Any, ...]]:
        for sim, chunk in zip(self._sims, chunks, strict=False):
            yield run_chunk(sim, chunk, render, history)

    def close(self) -> None:
        for sim in self._sims:
            sim.close()


def run_chunk(
    sim: Simulator, chunk: FloatArray, render: bool, history: int = 1
) -> tuple[list[Observation], list[Mapping[str, float]], list[StateArray]]:
    """Execute (T, D_a) actions open-loop.

    Returns the observations after the last ``min(history, T)`` actions, oldest first (only these are made, and rendered
    if ``render``), and metrics and state after each action.
    """
    observations, metrics, states = [], [], []
    for left, action in zip(range(len(chunk) - 1, -1, -1), chunk, strict=True):
        metrics.append(sim.step(action))
        states.append(sim.get_state())
        if left < history:
            observations.append(sim.observe(render=render))
    return observations, metrics, states


class Worker:
    """A simulator process and what is needed to replace it; ``faults`` gets a message for each repaired fault."""

    def __init__(self, arguments: tuple[Any, ...], faults: list[str]) -> None:
        self._job, self._faults = Simulators(*arguments), faults
        self._seeds: Sequence[int] = ()
        self._done: list[FloatArray] = []  # executed since the reset, each (episodes, T, D_a)
        self._last: list[StateArray] = []  # the episodes' states after that
        self._pending: tuple[Any, ...] = ()
        self.process = Process(self._job, TIMEOUT)

    def reset(self, seeds: Sequence[int], render: bool) -> None:
        """Ask to start the episodes of some seeds; the answer is one observation each."""
        self._seeds, self._done, self._last = seeds, [], []
        self._ask("reset", seeds, render)

    def step(self, chunks: FloatArray, render: bool, history: int) -> None:
        """Ask to execute a chunk (T, D_a) in each episode; the answers are those of :func:`run_chunk`."""
        self._ask("step", chunks, render, history)

    def _ask(self, *request: Any) -> None:
        self._pending = request
        self.process.ask(*request)

    def answer(self) -> list[Any]:
        """The answer to the last request, from a new process if the old one is lost; a SimulatorError if none gives
        one.
        """
        happened: list[FaultError] = []
        while True:
            try:
                if happened:
                    self._recover()
                value: list[Any] = self.process.receive()
                break
            except FaultError as fault:
                happened.append(fault)
                if sum(f.error is not None for f in happened) > 1 or len(happened) > RESTARTS:
                    raise self._hopeless(happened) from None
                brief = f"raised {str(fault).strip().splitlines()[-1]}" if fault.error else str(fault)
                self._faults.append(f"{self._where()} {brief}")
        if self._pending[0] == "step":
            self._done.append(self._pending[1])
            self._last = [visited[-1] for _, _, visited in value]
        else:
            self._last = [observation.state for observation in value]
        return value

    def _recover(self) -> None:
        self.process.end()
        self.process = Process(self._job, TIMEOUT)
        if self._pending[0] == "step":
            self.process.ask("reset", self._seeds, False)
            stand = [observation.state for observation in self.process.receive()]
            if self._done:
                self.process.ask("step", np.concatenate(self._done, axis=1), False, 0)
                stand = [visited[-1] for _, _, visited in self.process.receive()]
            for seed, now, before in zip(self._seeds, stand, self._last, strict=True):
                if now is not None and not np.array_equal(now, before, equal_nan=True):
                    raise SimulatorError(
                        f"{self._where()} was lost, and running the episode of seed {seed} again led to another state "
                        f"than before (they differ by up to {np.abs(now - before).max():.3g}): this simulator is not "
                        f"deterministic here. Evaluate again from the start, and take its results with care."
                    )
        self.process.ask(*self._pending)

    def _where(self) -> str:
        step = sum(chunks.shape[1] for chunks in self._done)
        seeds = f"seeds {min(self._seeds)} to {max(self._seeds)}"
        return f"the simulator process of {len(self._seeds)} episodes ({seeds}) at step {step}"

    def _hopeless(self, happened: Sequence[FaultError]) -> SimulatorError:
        last = happened[-1]
        if last.error:
            return SimulatorError(f"{self._where()} failed, in a new process too:\n{last}")
        return SimulatorError(
            f"{self._where()} {last}. So did {len(happened) - 1} others that were started in its place. Was it killed "
            f"for memory? Evaluate with fewer workers if so; 'classact doctor' tries the simulator."
        )

    def close(self) -> None:
        self.process.end(patience=5)
