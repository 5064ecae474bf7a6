"""MuJoCo's software rendering, fast and checked; one GL context per process and model.

Whatever draws with MuJoCo imports the package ``mujoco`` from here, where GL is prepared first.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib.util
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from classact.data.types import ImageArray, StateArray
from classact.errors import SimulatorError

_GL_HELP = (
    "On Debian or Ubuntu install libegl1, libegl-mesa0, libgl1 and libgl1-mesa-dri for MUJOCO_GL=egl (no screen "
    "needed), or libosmesa6 for MUJOCO_GL=osmesa; 'classact doctor' tries it."
)


def gl_problem(error: BaseException) -> str:
    """The message for GL that does not start."""
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    late = " The package mujoco was imported before and chose its GL then; set MUJOCO_GL before that." if _LATE else ""
    return f"GL cannot start with MUJOCO_GL={os.environ.get('MUJOCO_GL')}: {reason}.{late} {_GL_HELP}"


def _load_triton_first() -> None:
    """Triton and Mesa's software GL each bring an LLVM.

    Mesa's is global: loaded first, it captures Triton's symbols and torch's compiler crashes the process at its import,
    long after the last image. Loading Triton's library alone takes a tenth of a second.
    """
    found = importlib.util.find_spec("triton")
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        for library in Path(folder, "_C").glob("libtriton*.so"):
            with contextlib.suppress(OSError):  # then nothing can load it
                ctypes.CDLL(str(library))


_load_triton_first()
_LATE = "mujoco" in sys.modules and "MUJOCO_GL" not in os.environ
if sys.platform == "linux":  # MuJoCo chooses at its import, and would look for a screen
    os.environ.setdefault("MUJOCO_GL", "egl")

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mujoco as mujoco  # the tasks take it from here, where MUJOCO_GL is set
except ModuleNotFoundError:
    raise  # the extra is not installed
except Exception as error:  # an unknown MUJOCO_GL, or its libraries are not there
    raise SimulatorError(gl_problem(error)) from error


@dataclass(frozen=True)
class Quality:
    """What an image costs: software GL spends most of its time on these."""

    samples: int = 0  # per pixel, against jagged edges
    shadows: int = 1024  # side of the shadow map in pixels; 0: no shadows
    reflections: bool = False  # whether shiny floors mirror the scene


@dataclass(frozen=True)
class Pose:
    """A camera that looks from a place at a target, the world's z axis up."""

    place: tuple[float, ...]
    target: tuple[float, ...]
    fovy: float


FROZEN_MOTION = 0.05  # motion of a joint or of the camera (radians, metres) that must change an image

TILES, MIN_TILE = 4, 16
"""Tiles per side, of at least so many pixels, in which roughness is measured: undrawn memory may be a part of a frame,
but smaller tiles of real scenes are as rough."""

MAX_ROUGHNESS = 65.0  # mean absolute difference of neighbouring pixels (0..255) of uninitialised memory
AWAY = 5.0
"""Distance from the world's origin, metres, at which free objects are out of sight: tasks park unused ones there."""

CONTEXTS = 3  # number of new GL contexts in which a doubtful image is drawn before giving up


class Renderer:
    """Draws a model's scenes as square images of ``size`` pixels a side, and checks them.

    Broken GL does not fail, it gives blank, frozen or uninitialised images. A frame of one colour, or that stays the
    same although scene or camera moved, or that is rougher than any scene, is drawn again in a new GL context, until
    one is plausible or equals the one before: what two contexts agree on is accepted. Because GL may also draw black in
    every context, an image of one colour (a moving camera below the floor) is accepted only where the same context
    shows something of the model from afar.
    """

    def __init__(self, model: Any, size: int, quality: Quality) -> None:
        self.model, self.size, self.quality = model, size, quality
        self.key: tuple[str, int, Quality] | None = None
        self.users = 0  # of a shared one
        self.repaired = 0  # frames that were wrong at first
        self._free = model.jnt_qposadr[model.jnt_type == mujoco.mjtJoint.mjJNT_FREE]
        self._last: dict[str, tuple[StateArray, str | Pose, ImageArray]] = {}
        self._renderer: Any = None
        self._open()

    def _open(self) -> None:
        model = self.model
        model.vis.quality.offsamples = self.quality.samples
        model.vis.quality.shadowsize = self.quality.shadows
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, self.size)
        model.vis.global_.offheight = max(model.vis.global_.offheight, self.size)
        self.close()
        try:
            self._renderer = mujoco.Renderer(model, self.size, self.size)
        except Exception as error:  # EGL, OSMesa and GLFW each fail in their own way
            raise SimulatorError(gl_problem(error)) from error

    def draw(self, data: Any, camera: str | Pose) -> ImageArray:
        """(size, size, 3) image of ``data`` from a camera of the model or from a pose.

        Raises:
            SimulatorError: GL shows nothing at all, or another image in each context.
        """
        image = self._draw(data, camera)
        doubt = self._doubt(image, data, camera)
        if doubt:
            image = self._settle(image, data, camera)
        slot = _slot(camera)
        if doubt or slot not in self._last or not np.array_equal(image, self._last[slot][2]):
            # Otherwise the first motion seen with it stays, so that slow motions add up.
            self._last[slot] = (np.array(data.qpos), camera, image)
        return image

    def _settle(self, image: ImageArray, data: Any, camera: str | Pose) -> ImageArray:
        for _ in range(CONTEXTS):
            self._open()
            again = self._draw(data, camera)
            if np.array_equal(image, again):
                afar = mujoco.MjvCamera()
                mujoco.mjv_defaultFreeCamera(self.model, afar)
                if uniform(image) and uniform(self._draw(data, afar)):
                    raise SimulatorError(
                        f"GL shows nothing but one colour, {image[0, 0].tolist()}, from camera {camera!r} and from "
                        f"afar, in two contexts (MUJOCO_GL={os.environ.get('MUJOCO_GL')}). {_GL_HELP}"
                    )
                return image
            self.repaired += 1
            if not self._doubt(again, data, camera):
                return again
            image = again
        raise SimulatorError(
            f"GL gives another implausible picture from camera {camera!r} in each of {CONTEXTS + 1} contexts "
            f"(MUJOCO_GL={os.environ.get('MUJOCO_GL')}). {_GL_HELP}"
        )

    def _draw(self, data: Any, camera: Any) -> ImageArray:
        renderer = self._renderer
        if isinstance(camera, Pose):
            # The free camera's field of view is the model's.
            self.model.vis.global_.fovy = camera.fovy
            camera = free_camera(camera)
        renderer.update_scene(data, camera)
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = self.quality.reflections
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = self.quality.shadows > 0
        image: ImageArray = renderer.render()
        return image

    def _doubt(self, image: ImageArray, data: Any, camera: str | Pose) -> bool:
        if uniform(image) or roughness(image) > MAX_ROUGHNESS:
            return True
        if _slot(camera) not in self._last:
            return False
        qpos, before, last = self._last[_slot(camera)]
        change = np.abs(data.qpos - qpos)
        for i in self._free:
            if min(np.linalg.norm(data.qpos[i : i + 3]), np.linalg.norm(qpos[i : i + 3])) > AWAY:
                change[i : i + 7] = 0
        moved = float(change.max(initial=0))
        if isinstance(camera, Pose) and isinstance(before, Pose):
            moved = max(moved, float(np.linalg.norm(np.subtract(camera.place, before.place))))
        return moved > FROZEN_MOTION and np.array_equal(image, last)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def _slot(camera: str | Pose) -> str:
    """One for all poses: a moving camera has a new one at each step."""
    return camera if isinstance(camera, str) else ""


def uniform(image: ImageArray) -> bool:
    """Whether a picture has one colour."""
    return bool((image == image[0, 0]).all())


def roughness(image: ImageArray) -> float:
    """Mean absolute difference of horizontally neighbouring pixels, 0..255, in the roughest tile; noise has 85."""
    steps = np.abs(np.diff(image.astype(np.int16), axis=1)).mean(axis=2)
    tiles = max(1, min(TILES, len(image) // MIN_TILE))
    edges = np.arange(tiles) * len(image) // tiles
    sums = np.add.reduceat(np.add.reduceat(steps, edges, axis=0), edges, axis=1)
    rows, columns = np.diff(edges, append=len(image)), np.diff(edges, append=steps.shape[1])
    return float((sums / np.outer(rows, columns)).max())


def free_camera(pose: Pose) -> Any:
    """MuJoCo's description of a pose."""
    offset = np.asarray(pose.target) - np.asarray(pose.place)  # the direction of view
    distance = float(np.linalg.norm(offset))
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat = np.asarray(pose.target)
    camera.distance = distance
    camera.azimuth = float(np.degrees(np.arctan2(offset[1], offset[0])))
    camera.elevation = float(np.degrees(np.arcsin(np.clip(offset[2] / distance, -1, 1))))
    return camera


_SHARED: dict[tuple[str, int, Quality], Renderer] = {}


def borrow_renderer(key: tuple[str, int, Quality], model: Any) -> Renderer:
    """The process's renderer of a model, made at first use; give it back with :func:`return_renderer`.

    The key is a name (simulators of one name have equal models) with the size and quality of :class:`Renderer`.
    """
    if key not in _SHARED:
        _SHARED[key] = Renderer(model, *key[1:])
        _SHARED[key].key = key
    atexit.unregister(_free_renderers)
    atexit.register(_free_renderers)  # registered last, called first: before the GL libraries end
    _SHARED[key].users += 1
    return _SHARED[key]


def return_renderer(renderer: Renderer) -> None:
    """Free the renderer if this was its last user."""
    renderer.users -= 1
    if not renderer.users and renderer.key is not None:
        del _SHARED[renderer.key]
        renderer.close()


def _free_renderers() -> None:
    for renderer in _SHARED.values():
        renderer.close()
