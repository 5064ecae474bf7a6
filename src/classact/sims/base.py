"""What a simulator must offer. One file per simulator implements it; the registry is in ``sims/__init__.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from classact.errors import SimulatorError
from classact.schema import Schema
from classact.types import Criterion, FloatArray, Observation, StateArray

GROUP = 50
"""Episodes that are evaluated side by side where a simulator does not say otherwise."""


@dataclass(frozen=True)
class SimulatorSpec:
    """Facts about a simulated task (paper Table 10).

    Attributes:
        name: registry name (``pusht``).
        cameras: names of the views that can be rendered, the global one first.
        image_size: side of the square images in pixels.
        action_dim, proprioception_dim, state_dim: vector sizes.
        max_steps: time limit of an episode in control steps.
        control_hz: control steps per simulated second.
        criteria: the success rules that are reported, by name.
        shifts: names of the visual shifts that this simulator knows, the plain appearance first.
        world: extent (low, high) of positions in states and actions, in the simulator's units; None where they have
            no common one.
        state_angles: which state dimensions are angles (radians); the others are positions. For tasks in the plane.
        objects: (name, first index in the state of its position and quaternion, x y z w x y z in all 7) of the things
            that the task is about.
        schema: names and sizes of what is observed, and what actions mean.
        action_limits: (low, high), each (D_a,): actions beyond are executed, never clipped, and reported by the metric
            ``excess``; () where there are none.
        packages: distributions whose versions decide trajectories; recorded with data.
        group: episodes that are evaluated side by side, each in a simulator of its own. A fact of the task, not of the
            machine, for it decides the policy's batches and so the last bits of a result.
        tasks: how many tasks there are behind this name; ``reset(seed)`` starts task ``seed % tasks``.
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
    world: tuple[float, float] | None = None
    state_angles: tuple[int, ...] = ()
    objects: tuple[tuple[str, int], ...] = ()
    schema: Schema | None = None
    action_limits: tuple[tuple[float, ...], ...] = ()
    packages: tuple[str, ...] = ()
    group: int = GROUP
    tasks: int = 1

    def check_state(self, state: StateArray) -> StateArray:
        """``state`` as (D_s,) float64.

        Raises:
            SimulatorError: another shape, or numbers that are not finite.
        """
        state = np.asarray(state, np.float64)
        if state.shape != (self.state_dim,) or not np.isfinite(state).all():
            raise SimulatorError(
                f"{self.name}: expected a finite state of shape ({self.state_dim},), got {state.shape}: {state}. "
                f"Was it recorded from another task or version?"
            )
        return state

    def check_action(self, action: FloatArray) -> StateArray:
        """``action`` as (D_a,) float64.

        Raises:
            SimulatorError: another shape, numbers that are not finite, or farther beyond a limit than the limits are
                apart: an action of another space, not an imprecise one.
        """
        values = np.asarray(action, np.float64)
        if values.shape != (self.action_dim,) or not np.isfinite(values).all():
            raise SimulatorError(
                f"{self.name}: expected a finite action of shape ({self.action_dim},){self._meaning()}, got "
                f"{values.shape}: {values}."
            )
        if self.action_limits and (excess := self.excess(values)) > 1:
            low, high = (np.asarray(limit) for limit in self.action_limits)
            beyond = np.maximum(low - values, values - high) / (high - low)
            i = int(beyond.argmax())
            raise SimulatorError(
                f"{self.name}: dimension {i} of the action is {values[i]:.4g}, {excess:.1f} times the width of its "
                f"limits {low[i]:.4g} to {high[i]:.4g} beyond them. Is this action{self._meaning()}, or of "
                f"another space, or still normalised?"
            )
        return values

    def _meaning(self) -> str:
        return "" if self.schema is None or self.schema.actions is None else f" ({self.schema.actions.describe()})"

    def excess(self, action: StateArray) -> float:
        """How far (D_a,) an action is beyond the limits, in widths of them, in the worst dimension; 0 within."""
        if not self.action_limits:
            return 0.0
        low, high = (np.asarray(limit) for limit in self.action_limits)
        return max(0.0, float((np.maximum(low - action, action - high) / (high - low)).max()))


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

    def set_state(self, state: StateArray, *, step: int = 0) -> None:
        """Put the simulator into ``state`` exactly: ``get_state`` returns it and rendering shows it.

        Args:
            state: (D_s,) float64.
            step: control steps since the start of the episode, which decide where a moving camera is.
        """

    def step(self, action: FloatArray) -> Mapping[str, float]:
        """Advance one control step with an unnormalised (D_a,) action; returns the metrics after it."""

    def observe(self, *, render: bool = True) -> Observation:
        """Images (left out where ``render`` is false), proprioception and state at this moment."""

    def close(self) -> None:
        """Free what the simulator holds. Safe to call twice."""
