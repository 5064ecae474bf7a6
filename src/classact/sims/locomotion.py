"""Gymnasium's HalfCheetah and Hopper (version 5) as :class:`~classact.sims.base.Simulator`: run, and do not fall.

As in CLAM's experiments (arXiv 2505.04999). Physics, initial states and rewards are Gymnasium's own. What is learned is
a gait, so success is a return: nine tenths of that of the task's expert (:mod:`classact.sims.experts.locomotion`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from classact.data.types import FloatArray, StateArray
from classact.sims import specs
from classact.sims.base import SimulatorSpec, check_installed, sized
from classact.sims.mujoco import MujocoSimulator
from classact.sims.renderer import Quality, mujoco

check_installed("Locomotion", "locomotion", {"gymnasium": ("1.0", "2.0"), "mujoco": ("3.1", "3.9")})


def hold(sim: Any) -> FloatArray:
    """No torques."""
    return np.zeros(sim.spec.action_dim, np.float32)


class Locomotion(MujocoSimulator):
    """One of the tasks.

    State (1 + nq + nv + 2,) float64: time, qpos, qvel, the return so far, and 1 once it has fallen. Actions in [-1, 1]:
    torques, relative to the greatest. Proprioception: positions but the one along the track, then velocities.

    Metrics of a step: ``return``, the sum of rewards since the start, ``reward``, ``distance`` in metres, and
    ``fallen``, from when on nothing is rewarded any more.
    """

    views = {name: name for name in specs.LOCOMOTION_CAMERAS}  # noqa: RUF012 (a mapping that nobody changes)
    quality = Quality(samples=0, shadows=0)
    task: SimulatorSpec
    environment: str

    def __init__(
        self, *, image_size: int | None = None, shift: str = "fixed", cameras: Sequence[str] | None = None
    ) -> None:
        super().__init__(sized(self.task, image_size), shift, cameras)
        self.env: Any = gymnasium.make(self.environment).unwrapped
        self._return, self._fallen = 0.0, False

    @property
    def model(self) -> Any:
        return self.env.model

    @property
    def data(self) -> Any:
        return self.env.data

    def _start(self, seed: int) -> None:
        self.env.reset(seed=seed)
        self._return, self._fallen = 0.0, False

    def get_state(self) -> StateArray:
        return np.concatenate([super().get_state(), [self._return, self._fallen]])

    def set_state(self, state: StateArray, *, step: int = 0) -> None:
        """Also the return so far, and whether it has fallen."""
        super().set_state(state, step=step)
        self._return, self._fallen = float(state[-2]), bool(state[-1])

    def _advance(self, action: StateArray) -> dict[str, float]:
        _, reward, fallen, _, _ = self.env.step(np.clip(action, -1, 1))
        for follow in (mujoco.mj_kinematics, mujoco.mj_comPos, mujoco.mj_camlight):
            follow(self.model, self.data)  # a step leaves what is drawn a fraction of it behind the positions
        reward = 0.0 if self._fallen else float(reward)
        self._fallen |= bool(fallen)
        self._return += reward
        distance = float(self.data.qpos[0])
        return {"return": self._return, "reward": reward, "distance": distance, "fallen": float(self._fallen)}

    def _proprioception(self) -> FloatArray:
        return np.asarray(self.env._get_obs(), np.float32)

    def close(self) -> None:
        super().close()
        self.env.close()


class HalfCheetah(Locomotion):
    """A cheetah of two legs, in the plane."""

    task, environment = specs.HALF_CHEETAH, "HalfCheetah-v5"


class Hopper(Locomotion):
    """One leg, which may fall."""

    task, environment = specs.HOPPER, "Hopper-v5"
