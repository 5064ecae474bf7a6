"""What a simulator must offer; the registry is in ``sims/__init__.py``."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from classact.data.schema import Schema
from classact.data.types import Criterion, FloatArray, Observation, StateArray
from classact.errors import ActionError, ConfigError, SimulatorError, UnknownNameError, choose

ROUNDING = 1e-6  # float32 rounding of an action at its limit is not beyond it
GROUP = 50  # default number of episodes evaluated side by side
OPEN, CLOSED = -1.0, 1.0  # gripper commands of pose actions

APART = ("libero", "robosuite")  # extras that need different versions of one package, and so different environments


def install_advice(extra: str) -> str:
    """How to install an extra without breaking what is installed."""
    place = " into an environment of its own" if extra in APART else ""
    before = "UV_PROJECT_ENVIRONMENT=.venv-libero before and " if extra == "libero" else ""
    text = f"Install it{place}: pip install 'classact[{extra}]', or put {before}--extra {extra} after 'uv run'."
    if extra in APART:
        (other,) = (name for name in APART if name != extra)
        text += f" Extras {extra!r} and {other!r} exclude each other: they share no version of robosuite."
    return text


def check_installed(
    task: str, extra: str, ranges: Mapping[str, tuple[str, str]], installed: Mapping[str, str] | None = None
) -> None:
    """Refuse versions that a task does not run on; the ConfigError names all versions, and ``extra`` to install.

    ``ranges`` are package -> (first version, first later one that does not work), as "3.1"; ``installed`` are versions
    by package, by default those here. A missing package is a ModuleNotFoundError.
    """
    found = {package: importlib.metadata.version(package) for package in ranges} if installed is None else installed
    for package, (low, high) in ranges.items():
        if not _numbers(low) <= _numbers(found[package]) < _numbers(high):
            needed = " and ".join(f"{name} from {first} to before {end}" for name, (first, end) in ranges.items())
            have = " and ".join(f"{name} {found[name]}" for name in ranges)
            raise ConfigError(
                f"{task} needs {needed}; installed are {have}, and {package} {found[package]} is none that it runs "
                f"on. The extra {extra!r} brings those. {install_advice(extra)}"
            )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


@dataclass(frozen=True)
class SimulatorSpec:
    """Facts about a simulated task (paper Table 10).

    Attributes:
        name: registry name (``pusht``).
        cameras: names of the views that can be rendered, the global one first.
        image_size, image_sizes: side of the square images in pixels; least and greatest side that can be drawn.
        action_dim, proprioception_dim, state_dim: vector sizes.
        max_steps: time limit of an episode in control steps.
        control_hz: control steps per simulated second.
        criteria: of success, the one that counts first; then, for tasks of several parts, how far an episode came
            (:func:`classact.sims.specs.with_parts`).
        shifts: names of the visual shifts that this simulator draws, the plain appearance first; those of the finished
            image need no entry.
        world: extent (low, high) of positions in states and actions, in the simulator's units; None where they have no
            common one.
        state_angles: which state dimensions are angles (radians), the others being positions. For tasks in the plane.
        objects: (name, first index in the state of its position and quaternion, 7 numbers x y z w x y z) of the task's
            objects.
        schema: names and sizes of what is observed, and what actions mean.
        action_limits: (low, high), each (D_a,), or () for none. Actions beyond are passed on, not clipped, and reported
            by the metric ``excess`` (except Push-T); the task's own actuators may clamp them (Aloha-Transfer's do).
        packages: distributions whose versions decide trajectories; recorded with data.
        group: episodes evaluated side by side, each in its own simulator. Independent of the machine, because it
            decides the policy's batches and so the last bits of a result.
        tasks: number of tasks behind this name; ``reset(seed)`` starts task ``seed % tasks``.
        language_source: what embeds instructions, see :mod:`classact.data.language`; empty where there are none.
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
    language_source: str = ""
    image_sizes: tuple[int, int] = (32, 1024)

    def check_state(self, state: StateArray) -> StateArray:
        """``state`` as (D_s,) float64; a SimulatorError for other shapes or non-finite numbers."""
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
            ActionError: another shape, non-finite numbers, or farther beyond a limit than the limits are apart: an
                action of another space, not an imprecise one.
        """
        values = np.asarray(action, np.float64)
        # Python floats: several times faster than arrays for a few values, and Push-T's steps take microseconds.
        if values.shape == (self.action_dim,) and all(
            low <= value <= high for value, (low, high) in zip(values.tolist(), self._executed, strict=True)
        ):
            return values
        space = self.schema.actions if self.schema is not None else None
        meaning = f" ({space.describe()})" if space is not None else ""
        if values.shape != (self.action_dim,) or not np.isfinite(values).all():
            raise ActionError(
                f"{self.name}: expected a finite action of shape ({self.action_dim},){meaning}, got {values.shape}: "
                f"{values}."
            )
        if self.action_limits and (beyond := self._beyond(values)).max() > 1:
            i = int(beyond.argmax())
            raise ActionError(
                f"{self.name}: dimension {i} of the action is {values[i]:.4g}, {beyond[i]:.1f} times the width of its "
                f"limits {self.action_limits[0][i]:.4g} to {self.action_limits[1][i]:.4g} beyond them. Is this "
                f"action{meaning}, or of another space, or still normalised?"
            )
        return values

    @cached_property
    def _executed(self) -> list[tuple[float, float]]:
        """(low, high) of each dimension beyond which an action is refused; infinite without limits."""
        if not self.action_limits:
            return [(-sys.float_info.max, sys.float_info.max)] * self.action_dim
        return [(2 * low - high, 2 * high - low) for low, high in zip(*self.action_limits, strict=True)]

    def _beyond(self, action: StateArray) -> StateArray:
        low, high = (np.asarray(limit) for limit in self.action_limits)
        return np.maximum(low - action, action - high) / (high - low)

    def held(self, actions: FloatArray) -> FloatArray:
        """(..., D_a) actions, none farther beyond its limits than :meth:`check_action` accepts."""
        if not self.action_limits:
            return actions
        low, high = (np.asarray(limit) for limit in self.action_limits)
        width = (1 - ROUNDING) * (high - low)
        return np.asarray(np.clip(actions, low - width, high + width), np.float32)

    def excess(self, action: StateArray) -> float:
        """How far (D_a,) an action is beyond the limits, in widths of them, in the worst dimension; 0 within."""
        if not self.action_limits:
            return 0.0
        beyond = float(self._beyond(action).max())
        return beyond if beyond > ROUNDING else 0.0


def sized(spec: SimulatorSpec, image_size: int | None) -> SimulatorSpec:
    """The spec with another image size; the task's own where None."""
    return spec if image_size is None else replace(spec, image_size=image_size)


def check_views(spec: SimulatorSpec, cameras: Sequence[str] | None) -> tuple[str, ...]:
    """The chosen cameras, by default the first; a ConfigError for an unknown camera or image size."""
    for camera in cameras or ():
        if camera not in spec.cameras:
            raise UnknownNameError(f"{spec.name}: " + choose("camera", camera, spec.cameras))
    low, high = spec.image_sizes
    if not low <= spec.image_size <= high:
        raise ConfigError(
            f"{spec.name}: expected image_size in {low}..{high} pixels, got {spec.image_size}. Resize afterwards."
        )
    return tuple(cameras or spec.cameras[:1])


class Simulator(Protocol):
    """A task with exact states. Not thread-safe; one instance per running episode."""

    @property
    def spec(self) -> SimulatorSpec: ...

    def reset(self, seed: int) -> None:
        """Draw initial state and appearance from ``seed`` alone."""

    def set_appearance(self, seed: int) -> None:
        """Draw only the appearance (colours, camera) from ``seed``; the physical state stays."""

    def get_state(self) -> StateArray:
        """(D_s,) float64, all that :meth:`set_state` needs to come back here."""

    def set_state(self, state: StateArray, *, step: int = 0) -> None:
        """Put the simulator into ``state`` (D_s,) exactly: ``get_state`` returns it and rendering shows it.

        ``step`` is the number of control steps since the start of the episode, on which a moving camera depends.
        """

    def step(self, action: FloatArray) -> Mapping[str, float]:
        """Advance one control step with an unnormalised (D_a,) action; returns the metrics after it."""

    def observe(self, *, render: bool = True) -> Observation:
        """Images (unless ``render`` is false), proprioception and state at this timestep."""

    def close(self) -> None:
        """Free resources; safe to call twice."""
