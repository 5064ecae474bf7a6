"""Simulator processes that go wrong. Imports little, for processes start from here."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from classact.data.types import FloatArray
from classact.errors import SimulatorError
from classact.sims.pool import Simulators
from classact.sims.pusht import PushT
from classact.sims.rendering import _worker


def die(*_: Any) -> None:
    """A rendering task whose process is gone at once."""
    os._exit(3)


class Flawed(Simulators):
    """Simulators of which one goes wrong at its ``steps``-th step, the first one to get there."""

    def __init__(self, kind: str, steps: int, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.kind, self.steps, self.count, self.broken = kind, steps, 0, False

    def __call__(self, command: str, *payload: Any) -> Any:
        if not self.broken:
            self.break_()
        return super().__call__(command, *payload)

    def break_(self) -> None:
        marker, right, reset, self.broken = Path(os.environ["FLAW"]), PushT.step, PushT.reset, True

        def step(sim: PushT, action: FloatArray) -> Mapping[str, float]:
            self.count += 1
            if self.count == self.steps:
                with suppress(FileExistsError):
                    marker.touch(exist_ok=self.kind == "raise always")
                    if self.kind.startswith("raise"):
                        raise SimulatorError("GL shows nothing")
                    os._exit(7)
            return right(sim, action)

        def elsewhere(sim: PushT, seed: int) -> None:
            reset(sim, seed)
            if marker.exists() and self.kind == "wander":
                sim.set_state(sim.get_state() + np.eye(5)[2] / 2)

        PushT.step, PushT.reset = step, elsewhere  # type: ignore[method-assign]


class Dying(Simulators):
    """Gone at once."""

    def __call__(self, *_: Any) -> Any:
        os._exit(3)


def render(kind: str, marker: str, *arguments: Any) -> Any:
    """A rendering task; the first one that is not the first of all kills its process, or hangs."""
    if arguments[-2][0][0] > 0:
        with suppress(FileExistsError):
            Path(marker).touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
    return _worker(*arguments)
