"""Simulators by name. Adding one is a file and a line in :data:`SIMULATORS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from classact.errors import ConfigError, choose
from classact.sims.base import Simulator, SimulatorSpec

__all__ = ["SIMULATORS", "Simulator", "SimulatorSpec", "make_simulator"]


def _pusht(image_size: int, shift: str) -> Simulator:
    from classact.sims.pusht import PushT, PushTConfig

    return PushT(PushTConfig(image_size=image_size, shift=shift))


SIMULATORS: Mapping[str, Callable[[int, str], Simulator]] = {"pusht": _pusht}
"""Name -> factory of (image_size, shift). Factories import late: a simulator is loaded only when it is made."""


def make_simulator(name: str, *, image_size: int = 96, shift: str = "fixed-color") -> Simulator:
    """A simulator by name.

    Args:
        name: a key of :data:`SIMULATORS`.
        image_size: side of the square images in pixels.
        shift: the visual shift that appearances are drawn from (``SimulatorSpec.shifts``).

    Raises:
        ConfigError: unknown name, unknown shift or an image size that the simulator does not draw.
    """
    if name not in SIMULATORS:
        raise ConfigError(choose("simulator", name, SIMULATORS))
    return SIMULATORS[name](image_size, shift)
