"""Whether recorded states and instructions match what is installed."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from classact.data.language import BERT
from classact.data.layout import ACCEPTED
from classact.data.readers.hdf5 import UNKNOWN, is_hdf5_name
from classact.data.types import Demonstrations
from classact.errors import ConfigError
from classact.sims.base import SimulatorSpec

STRICT = ("gym-aloha", "robosuite")
"""Packages that define scenes and controllers: across minor versions the same states and actions mean others."""


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Package -> installed version, without those not installed."""
    found = {}
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def check_versions(data: Demonstrations, spec: SimulatorSpec, *, rendered: bool) -> str:
    """Compare the versions that recorded the states with the installed ones, of ``spec.packages``.

    Returns a warning that names the packages that differ, or are unknown; empty where none is. A ConfigError if states
    are to be ``rendered``, and a package of :data:`STRICT` differs in its major or minor version.
    """
    installed = installed_versions(spec.packages)
    different = []
    for package in spec.packages:
        recorded, now = data.versions.get(package), installed.get(package, "none")
        if recorded is None or recorded == now:
            continue
        known = recorded != UNKNOWN
        if rendered and known and package in STRICT and recorded.split(".")[:2] != now.split(".")[:2]:
            raise ConfigError(
                f"{data.name} ({data.source}) was recorded with {package} {recorded}, but installed is {now}, whose "
                f"scenes and controllers for {spec.name!r} are others: its states cannot be rendered. "
                f"{_remedy(data, spec, package)}"
            )
        different.append(f"{package} {recorded}, installed is {now}")
    if not different:
        return ""
    shown = "States are rendered as recorded" if rendered else "Its images are used as recorded"
    return (
        f"{data.name} ({data.source}) was recorded with {'; '.join(different)}. {shown}, but the same actions may lead "
        f"elsewhere."
    )


def _remedy(data: Demonstrations, spec: SimulatorSpec, package: str) -> str:
    """What helps. Installing the recorded version does not: a simulator runs only on the versions it is made for."""
    ways = [f"generate demonstrations with what is installed: classact data generate {spec.name}"]
    if data.images:
        ways.append("use the images that were recorded: --frames recorded")
    source = Path(data.source)
    if package in ACCEPTED and (is_hdf5_name(source) or (source.is_dir() and any(map(is_hdf5_name, source.iterdir())))):
        ways.append(
            f'where you have seen that its states look right in the simulator, say so in a --layout file: {{"accept": '
            f'["{package}"]}}'
        )
    text = ways[0] if len(ways) == 1 else f"{'; '.join(ways[:-1])}; or {ways[-1]}"
    return f"{text[0].upper()}{text[1:]}."


def check_language(recorded: str, spec: SimulatorSpec, what: str) -> None:
    """Refuse a simulator that embeds instructions otherwise than the data: no policy understands both embeddings.

    ``recorded`` is what embedded the data's, empty where it is not known
    (:func:`classact.data.language.recorded_source`); ``what`` names data, run or policy in messages.
    """
    now, name = spec.language_source, spec.name
    if not now or recorded in ("", now):
        return
    remedy = f"generate the demonstrations again (classact data generate {name}) and train on them"
    if recorded == BERT:
        remedy = f"install transformers and get the weights (hf download {BERT}), or {remedy}"
    raise ConfigError(
        f"{what}: instructions were embedded by {recorded!r}, but simulator {name!r} now embeds them by {now!r}, which "
        f"means nothing to a policy trained with the former. {remedy[0].upper()}{remedy[1:]}."
    )
