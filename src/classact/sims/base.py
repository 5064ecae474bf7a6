"""What a simulator must offer. One file per simulator implements it; the registry is in ``sims/__init__.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from classact.schema import Schema
from classact.types import Criterion, FloatArray, Observation, StateArray


@dataclass(frozen=True)
class SimulatorSpec:
    """Facts about a simulated task (paper Table 10).

    Attributes:
        name: registry name (``pusht``).
        cameras: names of the camera images in an observation.
        image_size: side of the square images in pixels.
        action_dim, proprioception_dim, state_dim: vector sizes.
        max_steps: time limit of an episode in control steps.
        control_hz: control steps per simulated second.
        criteria: the success rules that are reported, by name.
        shifts: names of the visual shifts that this simulator knows, the plain appearance first.
        world: extent (low, high) of positions in states and actions, in the simulator's units.
        state_angles: which state dimensions are angles (radians); the others are positions.
        schema: names and sizes of what is observed, and what actions mean.
    """

    name: str
    cameras: tuple[str, ...]
    image_size: int
    action_dim: int
    proprioception_dim: int
    state_dim: int
    max_steps: int
    control_hz: float
    criteria: tuple[Criterion, ...]
    shifts: tuple[str, ...]
    world: tuple[float, float]
    state_angles: tuple[int, ...] = ()
    schema: Schema | None = None


class Simulator(Protocol):
    """A task with exact states. Not thread-safe; one instance per episode being run."""

    @property
    def spec(self) -> SimulatorSpec: ...

    def reset(self, seed: int) -> None:
        """Draw start state and appearance from ``seed`` alone: the same seed is the same episode, always."""

    def set_appearance(self, seed: int) -> None:
        """Draw only the appearance (colours, camera) from ``seed``; the physical state stays."""

    def get_state(self) -> StateArray:
        """(D_s,) float64."""

    def set_state(self, state: StateArray) -> None:
        """Put the simulator into ``state`` exactly: ``get_state`` returns it and rendering shows it."""

    def step(self, action: FloatArray) -> Mapping[str, float]:
        """Advance one control step with an unnormalised (D_a,) action; returns the metrics after it."""

    def observe(self, *, render: bool = True) -> Observation:
        """Images (left out where ``render`` is false), proprioception and state at this moment."""

    def close(self) -> None:
        """Free what the simulator holds. Safe to call twice."""
