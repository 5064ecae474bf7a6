"""LIBERO-Object's ten tasks in LIBERO's own code: names, initial states, and environments without their renderer.

Importing this imports LIBERO, after making sure that it asks nothing.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from classact.data.readers.libero import PRODUCTS, TASKS
from classact.data.types import StateArray
from classact.errors import SimulatorError
from classact.sims.base import check_installed
from classact.sims.libero_assets import ensure_config, find_assets, package_folder
from classact.sims.panda import silence_robosuite
from classact.sims.renderer import mujoco
from classact.sims.specs import CONTROL_HZ

PACKAGE = package_folder()
ensure_config(PACKAGE)

RANGES = {"robosuite": ("1.4", "1.5"), "mujoco": ("3.1", "3.9")}

check_installed("LIBERO-Object", "libero", RANGES)
silence_robosuite()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import libero.libero
    from libero.libero.envs import TASK_MAPPING
    from robosuite import load_controller_config
    from robosuite.utils.binding_utils import MjSim
    from robosuite.utils.errors import RandomizationError

START_STATES = 50  # that LIBERO ships per task
NQ, NV = 9 + 7 * 7, 9 + 7 * 6  # the arm, its fingers, and seven free objects


def task_instruction(task: int) -> str:
    """The instruction in words."""
    return TASKS[task].replace("_", " ")


@cache
def start_states(task: int) -> StateArray:
    """(50, 110) LIBERO's own initial states of a task: time, qpos, qvel."""
    path = PACKAGE / "init_files" / "libero_object" / f"{TASKS[task]}.pruned_init"
    # The file is torch's, but holds only a NumPy array, read without importing torch into simulator processes.
    with warnings.catch_warnings(), zipfile.ZipFile(path) as archive:
        warnings.simplefilter("ignore")  # NumPy 2 has moved what the pickle names
        states: StateArray = pickle.loads(archive.read("archive/data.pkl"))
    if states.shape != (START_STATES, 1 + NQ + NV):
        raise SimulatorError(
            f"libero-object: expected initial states {(START_STATES, 1 + NQ + NV)} in {path}, got {states.shape}: "
            f"another version of LIBERO?"
        )
    return states


@contextmanager
def legacy_seed(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, from which LIBERO's samplers draw, and restore it."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


_MODELS: dict[int, Any] = {}
_Floor: Any = TASK_MAPPING["libero_floor_manipulation"]  # the class's own name is bound to None, by its decorator


class _Task(_Floor):  # type: ignore[misc]
    """LIBERO's environment; its model, with 100 MB of textures and meshes, is compiled once per process."""

    classact_task: int

    def _assert_problem_name(self) -> None:
        """Not asserted: the name is the parent's."""

    def _initialize_sim(self, xml_string: str | None = None) -> None:
        if self.classact_task not in _MODELS:
            xml = xml_string or self.model.get_xml()
            _MODELS[self.classact_task] = mujoco.MjModel.from_xml_string(xml)
        self.sim = MjSim(_MODELS[self.classact_task])
        self.sim.forward()
        self.initialize_time(self.control_freq)


def assets_folder() -> Path:
    """Where LIBERO's meshes and textures are; a ConfigError where they are missing."""
    try:
        configured = str(libero.libero.get_libero_path("assets"))
    except (OSError, AssertionError):  # no settings, or none of this name
        configured = ""
    return find_assets(PACKAGE, configured)


def make_environment(task: int) -> Any:
    """LIBERO's environment of a task: absolute poses, no renderer, no observations."""
    libero.libero._assets_path_cache = str(assets_folder())  # otherwise LIBERO looks in its package only, and downloads
    config = load_controller_config(default_controller="OSC_POSE") | {"control_delta": False}
    kind = type("_Task", (_Task,), {"classact_task": task})
    with warnings.catch_warnings(), legacy_seed(0):
        warnings.simplefilter("ignore")
        env = kind(
            bddl_file_name=str(PACKAGE / "bddl_files" / "libero_object" / f"{TASKS[task]}.bddl"),
            robots=["Panda"],
            controller_configs=config,
            initialization_noise=None,
            use_camera_obs=False,
            use_object_obs=True,  # LIBERO's code needs it; nothing is computed, see below
            has_renderer=False,
            has_offscreen_renderer=False,
            hard_reset=False,
            ignore_done=True,
            control_freq=CONTROL_HZ,
        )
    env._observables = OrderedDict()
    # The controller asks for its own forward pass before each physics step, which has just been made.
    env.robots[0].controller.sim = SimpleNamespace(model=env.sim.model, data=env.sim.data, forward=lambda: None)
    return env


def draw_placements(env: Any, seed: int) -> list[tuple[str, StateArray]]:
    """Objects placed by a task's samplers: (joint, (7,) position and quaternion w x y z) of each."""
    with legacy_seed(seed):
        for _ in range(100):  # LIBERO's reset tries without end; the generator moves on
            with suppress(RandomizationError):
                placed = env.placement_initializer.sample()
                return [(item.joints[-1], np.concatenate([place, turn])) for place, turn, item in placed.values()]
    raise SimulatorError(f"libero-object: no room for the objects of {PRODUCTS[env.classact_task]} in 100 draws.")
