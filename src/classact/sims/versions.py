"""Whether recorded states come from the versions of the packages that are installed now."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

from classact.errors import ConfigError
from classact.sims.base import SimulatorSpec
from classact.types import Demonstrations

STRICT = ("gym-aloha", "robosuite")
"""Packages that define scenes and controllers: from one minor version to the next the same states are other scenes
(bodies, joints and their order), and the same actions other motions."""

UNKNOWN = "unknown"
"""What readers give for a version that a file should say, and does not."""


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Package -> installed version; packages that are not installed are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def check_versions(data: Demonstrations, spec: SimulatorSpec) -> str:
    """Compare the versions that recorded the states with those that are installed.

    Args:
        data: demonstrations; where they declare no versions, nothing is compared; an unknown one is a warning.
        spec: of the simulator that is to show them; its ``packages`` decide trajectories.

    Returns:
        A warning: which packages differ, although states can be rendered; empty where none does.

    Raises:
        ConfigError: a package of :data:`STRICT` differs in its major or minor version.
    """
    installed = installed_versions(spec.packages)
    different = []
    for package in spec.packages:
        recorded, now = data.versions.get(package), installed.get(package, "none")
        if recorded is None or recorded == now:
            continue
        known = recorded != UNKNOWN
        if known and package in STRICT and recorded.split(".")[:2] != now.split(".")[:2]:
            raise ConfigError(
                f"{data.name} ({data.source}) was recorded with {package} {recorded}, but installed is {now}, whose "
                f"scenes and controllers for {spec.name!r} are others. Install {package}=={recorded}, or record the "
                f"demonstrations again with what is installed: classact data generate {spec.name}. Where you know "
                f'that the difference does no harm, a --layout file with {{"accept": ["{package}"]}} says so for '
                f"HDF5 files."
            )
        different.append(f"{package} {recorded}, installed is {now}")
    if not different:
        return ""
    return (
        f"{data.name} ({data.source}) was recorded with {'; '.join(different)}. States are rendered as recorded, but "
        f"the same actions may lead elsewhere."
    )
