"""What a policy must offer. One file per policy; nothing here knows a simulator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from classact.types import FloatArray, Observation


class Policy(Protocol):
    """Maps observations to chunks of actions, batched over environments. Holds no state between calls."""

    @property
    def name(self) -> str:
        """Short name for tables: ``retrieval``."""

    @property
    def needs_images(self) -> bool:
        """False where only proprioception and state are read: the evaluator then skips rendering."""

    @property
    def chunk_length(self) -> int:
        """T_a: how many actions of a chunk are executed before the next call."""

    def act(self, observations: Sequence[Observation]) -> FloatArray:
        """(B observations) -> (B, T_a, D) unnormalised actions, to be executed open-loop."""
