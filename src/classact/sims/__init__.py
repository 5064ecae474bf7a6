"""Simulators by name. A new one is a file and a line that registers it in :data:`SIMULATORS`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from classact.errors import ConfigError
from classact.sims.base import Simulator, SimulatorSpec, install_advice
from classact.utils.lazy import resolve
from classact.utils.registry import Registry

__all__ = ["NO_SIMULATOR", "SIMULATORS", "Entry", "Simulator", "SimulatorSpec", "make_simulator", "simulator_spec"]


@dataclass(frozen=True)
class Entry:
    """What others know of a simulator without starting it.

    References are callables, or "module:attribute" of them, imported when called.

    Attributes:
        factory: called with keywords image_size (None: the simulator's own), shift and cameras (None: the first).
        title: as the paper writes it.
        extra: what installs it, None where classact itself does.
        plain: name of the appearance without a shift.
        spec: the :class:`SimulatorSpec` with the simulator's own image size, or a function that returns it; None: a
            simulator is started to ask it.
        expert: the script that makes demonstrations, see :mod:`classact.sims.experts.base`; None: another way, or none.
        tail: control steps of the script recorded after success, which can come before the task is done.
        hold: called with a simulator, the (D_a,) action that changes little or nothing; None: what
            :func:`classact.cli.doctor.hold_action` finds.
        paper: the paper's name of the task; empty: none.
        preset, shifted_preset: names of the default presets without and with a shift (None: the same); "cpu" is for
            tasks without their own.
    """

    factory: Any
    title: str
    extra: str | None = None
    plain: str = "fixed"
    spec: Any = None
    expert: Any = None
    tail: int = 8
    hold: Any = None
    paper: str = ""
    preset: str = "cpu"
    shifted_preset: str | None = None


_SPECS, _ROBOSUITE, _EXPERTS = "classact.sims.specs:", "classact.sims.robosuite_tasks:", "classact.sims.experts."

_THREE_STACK = Entry(
    _ROBOSUITE + "ThreeStackD0",
    "Three-Stack D0",
    "robosuite",
    spec=_SPECS + "THREE_STACK_D0",
    expert=_EXPERTS + "three_stack:script",
    paper="three-stack",
    preset="three-stack-cpu",
)


SIMULATORS: Registry[Entry] = Registry(
    "simulator",
    {
        "pusht": Entry(
            "classact.sims.pusht:PushT",
            "Push-T",
            "pusht",
            plain="fixed-color",
            spec=_SPECS + "PUSHT",
            paper="pusht",
            preset="pusht-cpu",
            shifted_preset="pusht-rand-whiten",
        ),
        "square": Entry(
            _ROBOSUITE + "Square",
            "Square",
            "robosuite",
            spec=_SPECS + "SQUARE",
            expert=_EXPERTS + "square:script",
            paper="square",
            preset="square-cpu",
        ),
        "three-stack-d0": _THREE_STACK,
        "three-stack-d1": replace(
            _THREE_STACK, factory=_ROBOSUITE + "ThreeStackD1", title="Three-Stack D1", spec=_SPECS + "THREE_STACK_D1"
        ),
        "aloha-transfer": Entry(
            "classact.sims.aloha:AlohaTransfer",
            "Aloha-Transfer",
            "aloha",
            spec=_SPECS + "ALOHA_TRANSFER",
            expert=_EXPERTS + "aloha:script",
            tail=100,  # the left hand's first touch counts as success; then it closes, and the right one lets go
            paper="aloha-transfer",
            preset="aloha-transfer-cpu",
        ),
        "libero-object": Entry(
            "classact.sims.libero:LiberoObject",
            "LIBERO-Object",
            "libero",
            spec=_SPECS + "libero_object",
            expert=_EXPERTS + "libero:script",
            paper="libero-object",
            preset="libero-object-cpu",
        ),
        **{
            f"metaworld-{name}": Entry(
                f"classact.sims.metaworld:{title.replace(' ', '')}",
                f"MetaWorld {title}",
                "metaworld",
                spec=f"{_SPECS}METAWORLD_{name.replace('-', '_').upper()}",
                expert=_EXPERTS + "metaworld:script",
                hold="classact.sims.metaworld:hold",
            )
            for name, title in (
                ("assembly", "Assembly"),
                ("bin-picking", "Bin Picking"),
                ("peg-insert-side", "Peg Insert Side"),
                ("reach", "Reach"),
                ("shelf-place", "Shelf Place"),
            )
        },
        **{
            name: Entry(
                f"classact.sims.locomotion:{title}",
                title,
                "locomotion",
                spec=f"{_SPECS}{name.replace('-', '_').upper()}",
                expert=_EXPERTS + "locomotion:script",
                hold="classact.sims.locomotion:hold",
            )
            for name, title in (("half-cheetah", "HalfCheetah"), ("hopper", "Hopper"))
        },
    },
)
"""Name -> simulator."""


NO_SIMULATOR = "none"
"""In the place of a name: there is none, as for demonstrations of a robot. Recorded images are all there is, and
held-out demonstrations tell how good a policy is."""


def plain_shift(simulator: str) -> str:
    """The name of a simulator's appearance without a shift."""
    return Entry.plain if simulator == NO_SIMULATOR else SIMULATORS[simulator].plain


def make_simulator(
    name: str, *, image_size: int | None = None, shift: str | None = None, cameras: Sequence[str] | None = None
) -> Simulator:
    """A simulator by its name in :data:`SIMULATORS`.

    Args:
        image_size: side of the square images in pixels; None: the simulator's own.
        shift: of the appearances, see :func:`classact.sims.shifts.parse_shift`; one that changes the finished image
            works with every simulator.
        cameras: which views observations hold (``SimulatorSpec.cameras``); None: the first.

    Raises:
        ConfigError: unknown name, shift, camera or image size, or an extra that is not installed.
        SimulatorError: the simulator is installed and does not start.
    """
    from classact.sims.shifted import Shifted
    from classact.sims.shifts import changes_image, parse_shift

    entry = SIMULATORS[name]
    factory = _load(entry.factory, name, entry.extra)
    shift = entry.plain if shift is None else shift
    over = parse_shift(shift) if changes_image(shift) else None
    made = factory(image_size=image_size, shift=entry.plain if over else shift, cameras=cameras)
    return cast(Simulator, Shifted(made, over) if over else made)


def simulator_spec(name: str) -> SimulatorSpec:
    """Facts about a simulator with its own image size; it is started only if its entry holds none."""
    entry = SIMULATORS[name]
    if entry.spec is None:
        made = make_simulator(name)
        made.close()
        return made.spec
    found = _load(entry.spec, name, entry.extra)
    return cast(SimulatorSpec, found if isinstance(found, SimulatorSpec) else found())


def _load(reference: Any, name: str, extra: str | None) -> Any:
    try:
        return resolve(reference)
    except ModuleNotFoundError as error:
        if extra is None or (error.name or "").startswith("classact"):
            raise
        raise ConfigError(
            f"simulator {name!r} needs the extra {extra!r}, which is not installed (no module {error.name!r}). "
            f"{install_advice(extra)}"
        ) from None
