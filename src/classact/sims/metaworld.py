"""MetaWorld's tasks (version 3) as :class:`~classact.sims.base.Simulator`: a Sawyer arm moved by displacements.

As in CLAM's experiments (arXiv 2505.04999): the goal is observed, each action is executed twice, 100 decisions.
Physics, initial states and success are MetaWorld's own.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from classact.data.types import FloatArray, StateArray
from classact.sims import specs
from classact.sims.base import SimulatorSpec, check_installed, sized
from classact.sims.mujoco import MujocoSimulator
from classact.sims.renderer import Quality, mujoco

RANGES = {"metaworld": ("3.0", "4.0"), "mujoco": ("3.1", "3.9")}

check_installed("MetaWorld", "metaworld", RANGES)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

REPEAT = 2
OBSERVED, NOW = 39, 18  # numbers of an observation, of which the first are of this step, then come those of the last
NEAR = (0.75, 0.075, 0.7)
"""Where camera ``corner2`` is, metres: so near that the task fills the image, as in LeRobot's environment."""
UPRIGHT = ("corner2", "corner3")
"""Cameras that MetaWorld's scene has upside down; turned here."""
DRAWN = 6  # numbers that a task draws at a reset: where object and goal are


def own_name(spec: SimulatorSpec) -> str:
    """What MetaWorld calls a task."""
    return f"{spec.name.removeprefix('metaworld-')}-v3"


def hold(sim: Any) -> FloatArray:  # noqa: ARG001
    """The action that moves nothing, and leaves the gripper open."""
    return np.array([0, 0, 0, -1], np.float32)


class MetaWorld(MujocoSimulator):
    """One of MetaWorld's tasks.

    State (80,) float64: time, qpos (16), qvel (15), the place that the hand is drawn to (3), what was drawn at the
    reset (6), and the observation (39), which holds that of the step before. Actions (4,) in [-1, 1]: the hand's
    displacement in centimetres, and the gripper's effort. Proprioception (39,): hand and gripper (4), objects (14),
    both at the step before (18), the goal (3).

    Metrics of a step: ``success``, and MetaWorld's ``reward`` 0..10.
    """

    views = {name: name for name in specs.METAWORLD_CAMERAS}  # noqa: RUF012 (a mapping that nobody changes)
    quality = Quality(samples=0, shadows=0)
    task: SimulatorSpec

    def __init__(
        self, *, image_size: int | None = None, shift: str = "fixed", cameras: Sequence[str] | None = None
    ) -> None:
        super().__init__(sized(self.task, image_size), shift, cameras)
        self.env: Any = ALL_V3_ENVIRONMENTS[own_name(self.task)]()
        self.env._partially_observable = False  # what hides the goal
        self.env.__dict__.pop("sawyer_observation_space", None)  # computed before, with a hidden goal
        self.env._set_task_called = self.env.seeded_rand_vec = True
        self._seen = np.zeros(OBSERVED)
        self.model.camera("corner2").pos = NEAR
        for name in UPRIGHT:
            w, x, y, z = self.model.camera(name).quat
            self.model.camera(name).quat = (-z, y, -x, w)  # turned by 180 degrees about the line of sight

    @property
    def look(self) -> dict[str, Any]:
        """Also where cameras are."""
        return {**super().look, "near": list(NEAR), "upright": list(UPRIGHT)}

    @property
    def model(self) -> Any:
        return self.env.model

    @property
    def data(self) -> Any:
        return self.env.data

    def model_key(self) -> str:
        """A reset moves things of the model itself, so no two simulators share one."""
        return f"{self.spec.name}-{id(self)}"

    def _start(self, seed: int) -> None:
        self.env._freeze_rand_vec = False
        self.env.seed(seed)
        self.env.reset()
        self._restart(np.array(self.env._last_rand_vec))  # else the first episode of a process would differ

    def _restart(self, drawn: StateArray) -> None:
        self.env._freeze_rand_vec, self.env._last_rand_vec = True, drawn
        self._seen = np.asarray(self.env.reset()[0], np.float64)

    def get_state(self) -> StateArray:
        data = self.data
        parts = [[data.time], data.qpos, data.qvel, data.mocap_pos[0], self.env._last_rand_vec, self._seen]
        return np.concatenate(parts).astype(np.float64)

    def set_state(self, state: StateArray, *, step: int = 0) -> None:
        """Also where things are that a reset draws."""
        state = self.spec.check_state(state)
        _, place, drawn, seen = np.split(state, np.cumsum([1 + self.model.nq + self.model.nv, 3, DRAWN]))
        if not np.array_equal(drawn, self.env._last_rand_vec):
            self._restart(drawn.copy())
        data = self.data
        self._move(state)
        data.mocap_pos[0] = place
        mujoco.mj_forward(self.model, data)
        self._seen, self.steps = seen.copy(), step
        self.env._prev_obs = seen[:NOW].copy()

    def _advance(self, action: StateArray) -> dict[str, float]:
        success, reward = False, 0.0
        for _ in range(REPEAT):
            self.env.curr_path_length = 0  # the time limit is ours
            seen, reward, _, _, info = self.env.step(np.clip(action, -1, 1).astype(np.float32))
            success |= bool(info["success"])
        self._seen = np.asarray(seen, np.float64)
        return {"success": float(success), "reward": float(reward)}

    def _proprioception(self) -> FloatArray:
        return self._seen.astype(np.float32)


class Assembly(MetaWorld):
    """Put a ring onto a peg."""

    task = specs.METAWORLD_ASSEMBLY


class BinPicking(MetaWorld):
    """Move a thing from one bin to the other."""

    task = specs.METAWORLD_BIN_PICKING


class PegInsertSide(MetaWorld):
    """Put a peg into a hole from the side."""

    task = specs.METAWORLD_PEG_INSERT_SIDE


class Reach(MetaWorld):
    """Move the hand to the goal."""

    task = specs.METAWORLD_REACH


class ShelfPlace(MetaWorld):
    """Put a thing onto a shelf."""

    task = specs.METAWORLD_SHELF_PLACE
