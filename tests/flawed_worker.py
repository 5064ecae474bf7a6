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
from classact.sims.pusht import PushT
from classact.sims.rendering import _worker
from classact.sims.worker import serve


def die(*_: Any) -> None:
    """A worker that is gone at once."""
    os._exit(3)


def flawed(kind: str, steps: int, *arguments: Any) -> None:
    """A worker whose simulator goes wrong at its ``steps``-th step, the first one to get there."""
    marker, right, reset, count = Path(os.environ["FLAW"]), PushT.step, PushT.reset, 0

    def step(self: PushT, action: FloatArray) -> Mapping[str, float]:
        nonlocal count
        count += 1
        if count == steps:
            with suppress(FileExistsError):
                marker.touch(exist_ok=kind == "raise always")
                if kind.startswith("raise"):
                    raise SimulatorError("GL shows nothing")
                os._exit(7)
        return right(self, action)

    def elsewhere(self: PushT, seed: int) -> None:
        reset(self, seed)
        if marker.exists() and kind == "wander":
            self.set_state(self.get_state() + np.eye(5)[2] / 2)

    PushT.step, PushT.reset = step, elsewhere  # type: ignore[method-assign]
    serve(*arguments)


def render(kind: str, marker: str, *arguments: Any) -> Any:
    """A rendering task; the first one that is not the first of all kills its process, or hangs."""
    if arguments[1][0][0] > 0:
        with suppress(FileExistsError):
            Path(marker).touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
    return _worker(*arguments)
