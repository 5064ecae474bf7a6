"""What makes one attempt from a start seed.

A recorder is sent to a worker process before its first use and opens its simulator there.
"""

from __future__ import annotations

from typing import Protocol

from classact.errors import UnknownNameError, choose
from classact.sims import SIMULATORS, Entry, Simulator
from classact.sims.experts.base import Attempt, attempt
from classact.utils.lazy import resolve

PLANNED = "pusht"
"""The task whose expert is no script but a planner (:mod:`classact.sims.experts.pusht_recorder`)."""


class Recorder(Protocol):
    """Makes attempts, the same one from the same seed."""

    def __call__(self, seed: int) -> Attempt:
        """One attempt from the start of ``seed``."""

    def close(self) -> None:
        """Free what is held. Safe to call twice, or before the first use."""


class ScriptRecorder:
    """The script of a simulator's registry entry.

    Args:
        name: of the simulator.
        entry: its entry with a script; handed over as a value, so that workers need no registry.
    """

    def __init__(self, name: str, entry: Entry) -> None:
        if entry.expert is None:
            raise UnknownNameError(choose("expert", name, with_experts()))
        self.name, self.expert = name, entry.expert
        self._factory, self._shift, self._tail = entry.factory, entry.plain, entry.tail
        self._simulator: Simulator | None = None

    def __call__(self, seed: int) -> Attempt:
        """One attempt from the start of ``seed``."""
        if self._simulator is None:
            make = resolve(self._factory)
            self._simulator = make(image_size=None, shift=self._shift, cameras=None)
            assert self._simulator is not None
        return attempt(self._simulator, resolve(self.expert), seed, tail=self._tail)

    def close(self) -> None:
        """Free the simulator."""
        if self._simulator is not None:
            self._simulator.close()
            self._simulator = None


def with_experts() -> list[str]:
    """Names of the simulators that have an expert."""
    return [name for name in SIMULATORS if name == PLANNED or SIMULATORS[name].expert is not None]
