"""Shifts of the finished image, applied to any simulator without its knowledge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from classact.data.types import FloatArray, ImageArray, Observation, StateArray
from classact.sims.base import Simulator
from classact.sims.shifts import Appearance, Shift, appearance_rng


class Shifted:
    """A plain simulator whose first camera's images are changed after they are drawn; everything else is the
    simulator's own.
    """

    def __init__(self, sim: Simulator, shift: Shift) -> None:
        self._sim, self.shift = sim, shift
        self._appearance, self._step = Appearance(), 0

    def __getattr__(self, name: str) -> Any:
        if name == "_sim":  # of a copy that is being made
            raise AttributeError(name)
        found = getattr(self._sim, name)
        if name == "render":  # an image for people, of another size
            return lambda size: self._shown(found(size))
        return found

    @property
    def look(self) -> dict[str, Any]:
        """What images depend on besides cameras, size and seed: the simulator's, with this shift."""
        return {**getattr(self._sim, "look", {}), "shift": self.shift.describe()}

    def reset(self, seed: int) -> None:
        self._sim.reset(seed)
        self._step = 0
        self._appearance = self.shift.draw(appearance_rng(seed))

    def set_appearance(self, seed: int) -> None:
        self._sim.set_appearance(seed)
        self._appearance = self.shift.draw(appearance_rng(seed))

    def set_state(self, state: StateArray, *, step: int = 0) -> None:
        self._sim.set_state(state, step=step)
        self._step = step

    def step(self, action: FloatArray) -> Mapping[str, float]:
        metrics = self._sim.step(action)
        self._step += 1
        return metrics

    def observe(self, *, render: bool = True) -> Observation:
        seen = self._sim.observe(render=render)
        first = self.spec.cameras[0]
        if first not in seen.images:
            return seen
        return replace(seen, images={**seen.images, first: self._shown(seen.images[first])})

    def _shown(self, image: ImageArray) -> ImageArray:
        return self._appearance.image(image, self._step)
