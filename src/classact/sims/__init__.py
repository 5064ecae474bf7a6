"""Simulators by name. Adding one is a file and a line in :data:`SIMULATORS`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from classact.errors import ConfigError, UnknownNameError, choose
from classact.sims.base import Simulator, SimulatorSpec, install_advice

__all__ = ["SIMULATORS", "Entry", "Simulator", "SimulatorSpec", "make_simulator", "plain_shift"]


@dataclass(frozen=True)
class Entry:
    """Where a simulator is found.

    Attributes:
        factory: "module:function", called with keywords image_size (None: the simulator's own), shift and cameras
            (None: the first). Imported only when a simulator is made.
        title: as the paper writes it.
        extra: what installs it, None where classact itself does.
        plain: name of the appearance without a shift.
        expert: "module:function" of the script that makes demonstrations, see :mod:`classact.sims.experts.base`;
            None: another way, or none.
        tail: control steps of the script that are recorded after success, which can come before the task is done.
    """

    factory: str
    title: str
    extra: str | None
    plain: str = "fixed"
    expert: str | None = None
    tail: int = 8


SIMULATORS: Mapping[str, Entry] = {
    "pusht": Entry("classact.sims.pusht:make", "Push-T", None, "fixed-color"),
    "square": Entry(
        "classact.sims.robosuite_tasks:square", "Square", "robosuite", expert="classact.sims.experts.square:script"
    ),
    "three-stack-d0": Entry(
        "classact.sims.robosuite_tasks:three_stack_d0",
        "Three-Stack D0",
        "robosuite",
        expert="classact.sims.experts.three_stack:script",
    ),
    "three-stack-d1": Entry(
        "classact.sims.robosuite_tasks:three_stack_d1",
        "Three-Stack D1",
        "robosuite",
        expert="classact.sims.experts.three_stack:script",
    ),
    "aloha-transfer": Entry(
        "classact.sims.aloha:make",
        "Aloha-Transfer",
        "aloha",
        expert="classact.sims.experts.aloha:script",
        tail=100,  # the left hand's first touch counts as success; then it closes, and the right one lets go
    ),
    "libero-object": Entry(
        "classact.sims.libero:make", "LIBERO-Object", "libero", expert="classact.sims.experts.libero:script"
    ),
}
"""Name -> where it is."""


def make_simulator(
    name: str, *, image_size: int | None = None, shift: str | None = None, cameras: Sequence[str] | None = None
) -> Simulator:
    """A simulator by name.

    Args:
        name: a key of :data:`SIMULATORS`.
        image_size: side of the square images in pixels; None: the simulator's own.
        shift: the visual shift that appearances are drawn from, see :func:`classact.sims.shifts.parse_shift`; None:
            none.
        cameras: which views observations hold (``SimulatorSpec.cameras``); None: the first.

    Raises:
        ConfigError: unknown name, shift or camera, an image size that the simulator does not draw, or an extra that is
            not installed.
        SimulatorError: the simulator is installed and does not start.
    """
    entry = find(name)
    factory = _load(entry.factory, name, entry.extra)
    shift = entry.plain if shift is None else shift
    return cast(Simulator, factory(image_size=image_size, shift=shift, cameras=cameras))


def find(name: str) -> Entry:
    """The entry of a simulator.

    Raises:
        ConfigError: unknown name.
    """
    if name not in SIMULATORS:
        raise UnknownNameError(choose("simulator", name, SIMULATORS))
    return SIMULATORS[name]


def plain_shift(name: str) -> str:
    """What the appearance without a shift is called in a simulator."""
    return find(name).plain


def _load(reference: str, name: str, extra: str | None) -> Any:
    module, _, attribute = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if extra is None or (error.name or "").startswith("classact"):
            raise
        raise ConfigError(
            f"simulator {name!r} needs the extra {extra!r}, which is not installed (no module {error.name!r}). "
            f"{install_advice(extra)}"
        ) from None
