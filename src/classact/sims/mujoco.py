"""What the MuJoCo tasks share: states, cameras, visual shifts.

A state is [time, qpos, qvel], as robomimic and LIBERO record it. Images are drawn from the simulation's model and data
by MuJoCo's own renderer (:mod:`classact.sims.renderer`), not by the task's package, so that all tasks have the same
settings and checked frames.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from classact.data.types import FloatArray, ImageArray, Observation, StateArray
from classact.errors import ConfigError
from classact.sims.base import SimulatorSpec, check_views
from classact.sims.renderer import Pose, Quality, Renderer, borrow_renderer, mujoco, return_renderer
from classact.sims.shifts import Appearance, Shift, appearance_rng, check_shift


class MujocoSimulator(ABC):
    """A task gives the physics (:meth:`_start`, :meth:`_advance`) and says what is observed."""

    quality = Quality()
    views: Mapping[str, str] = {}  # camera name -> camera of the model
    target: tuple[float, float, float] = (0.0, 0.0, 0.0)  # what moving cameras look at, metres

    @staticmethod
    def adapt(shift: Shift) -> Shift:
        """A shift adapted to the task's scene."""
        return shift

    def __init__(self, spec: SimulatorSpec, shift: str, cameras: Sequence[str] | None = None) -> None:
        self.spec = spec
        self.cameras = check_views(spec, cameras)
        self.shift = check_shift(spec.name, shift, spec.shifts, self.adapt)
        self.steps = 0  # since the start of the episode
        self._appearance = Appearance()
        self._drawing: Renderer | None = None

    @property
    @abstractmethod
    def model(self) -> Any:
        """The mujoco.MjModel."""

    @property
    @abstractmethod
    def data(self) -> Any:
        """The mujoco.MjData."""

    @abstractmethod
    def _start(self, seed: int) -> None:
        """Draw the initial state."""

    @abstractmethod
    def _advance(self, action: StateArray) -> dict[str, float]:
        """One control step; the metrics after it."""

    @abstractmethod
    def _proprioception(self) -> FloatArray:
        """(D_p,) float32."""

    def _restored(self) -> None:  # noqa: B027 (most tasks remember nothing)
        """Called after a state was set: bring controllers in line with it."""

    def _language(self) -> FloatArray | None:
        """(D_l,) float32 embedding of the instruction."""
        return None

    @property
    def look(self) -> dict[str, Any]:
        """What images of a state depend on besides cameras, size and seed, as plain values."""
        return {"quality": asdict(self.quality), "shift": self.shift.describe(), "target": list(self.target)}

    def model_key(self) -> str:
        """Names the model: simulators with the same key share a renderer."""
        return self.spec.name

    def reset(self, seed: int) -> None:
        if not 0 <= seed < 2**32:
            raise ConfigError(f"{self.spec.name}: expected a seed in 0..{2**32 - 1}, got {seed}.")
        self._start(seed)
        self.steps = 0
        self.set_appearance(seed)

    def set_appearance(self, seed: int) -> None:
        self._appearance = self.shift.draw(appearance_rng(seed), self.target)

    def get_state(self) -> StateArray:
        data = self.data
        return np.concatenate([[data.time], data.qpos, data.qvel])

    def set_state(self, state: StateArray, *, step: int = 0) -> None:
        """Time, qpos and qvel; actuators and controllers forget the past."""
        self._move(self.spec.check_state(state))
        mujoco.mj_forward(self.model, self.data)
        self.steps = step
        self._restored()

    def _move(self, state: StateArray) -> None:
        """To the time, qpos and qvel that a state begins with."""
        data, nq, nv = self.data, self.model.nq, self.model.nv
        data.time, data.qpos[:], data.qvel[:] = state[0], state[1 : 1 + nq], state[1 + nq : 1 + nq + nv]
        data.qacc_warmstart[:] = 0

    def step(self, action: FloatArray) -> Mapping[str, float]:
        """One control step; ``excess`` is how far the action was beyond its limits, see SimulatorSpec."""
        values = self.spec.check_action(action)
        metrics = self._advance(values)
        self.steps += 1
        return metrics | {"excess": self.spec.excess(values)}

    def observe(self, *, render: bool = True) -> Observation:
        images = {camera: self._image(camera) for camera in self.cameras} if render else {}
        return Observation(images, self._proprioception(), self.get_state(), self._language())

    def _image(self, camera: str) -> ImageArray:
        if camera != self.spec.cameras[0]:  # shifts change the global view only
            return self.renderer().draw(self.data, self.views[camera])
        view: str | Pose = self.views[camera]
        if (shown := self._appearance.camera(self.steps)) is not None:
            fovy = float(self.model.camera(view).fovy[0]) if shown.fovy is None else shown.fovy
            view = Pose(tuple(shown.position.tolist()), tuple(shown.target.tolist()), fovy)
        return self._appearance.image(self.renderer().draw(self.data, view), self.steps)

    def renderer(self) -> Renderer:
        """The process's renderer of this model."""
        key = (self.model_key(), self.spec.image_size, self.quality)
        if self._drawing is None or self._drawing.key != key:
            MujocoSimulator.close(self)
            self._drawing = borrow_renderer(key, self.model)
        return self._drawing

    def close(self) -> None:
        """Give the renderer back; tasks free their own."""
        if self._drawing is not None:
            return_renderer(self._drawing)
            self._drawing = None
