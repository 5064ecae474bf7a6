"""Objectives of representation learning: one file each, and one line of :data:`OBJECTIVES`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from classact.errors import ConfigError, UnknownNameError, choose
from classact.objectives.config import (
    BYOLConfig,
    CombinedConfig,
    DynaMoConfig,
    InverseDynamicsConfig,
    NoneConfig,
    ObjectiveConfig,
    Recipe,
    SoftInfoNCEConfig,
    TCNConfig,
    TimeContrastiveConfig,
)
from classact.utils.lazy import resolve
from classact.utils.registry import Registry

if TYPE_CHECKING:
    from classact.objectives.base import Material, Objective


@dataclass(frozen=True)
class Entry:
    """One objective.

    Attributes:
        config: class of its settings.
        make: the :class:`~classact.objectives.base.Objective`, called with settings and material, or "module:class" of
            it, imported when trained; None: nothing is trained.
    """

    config: type[ObjectiveConfig]
    make: Any


OBJECTIVES: Registry[Entry] = Registry(
    "objective",
    {
        "class": Entry(SoftInfoNCEConfig, "classact.objectives.soft_infonce:SoftInfoNCE"),
        "tcn": Entry(TCNConfig, "classact.objectives.tcn:TCN"),
        "byol": Entry(BYOLConfig, "classact.objectives.byol:BYOL"),
        "dynamo": Entry(DynaMoConfig, "classact.objectives.dynamo:DynaMo"),
        "inverse-dynamics": Entry(InverseDynamicsConfig, "classact.objectives.inverse_dynamics:InverseDynamics"),
        "time-contrastive": Entry(TimeContrastiveConfig, "classact.objectives.time_contrastive:TimeContrastive"),
        "none": Entry(NoneConfig, None),
    },
)
"""Name -> objective. Sums of them are written ``class+0.1*inverse-dynamics``; see :func:`objective_config`."""


def objective_config(name: str, options: Sequence[str] = (), start: ObjectiveConfig | None = None) -> ObjectiveConfig:
    """Settings of an objective by name, changed by ``key=value`` options.

    Args:
        name: a key of :data:`OBJECTIVES`, or a sum such as ``class+0.1*byol``.
        options: such as ``weighting=hard``; in a sum with the objective's name before it: ``byol.decay=0.99``.
        start: settings to change (of a preset), used if they are of this objective; else its defaults are.

    Raises:
        ConfigError: an unknown name or key, or a value of another type than the setting's.
    """
    if "+" in name:
        return _sum(name, options, start)
    if "*" in name:
        raise ConfigError(f"a factor needs a sum: expected objectives like 'class+0.1*byol', got {name!r}.")
    if name not in OBJECTIVES:
        raise UnknownNameError(f"{choose('objective', name, OBJECTIVES)}. Sums are written 'class+0.1*byol'.")
    config = next((part for part in start.terms if part.name == name), None) if start else None
    config = config or OBJECTIVES[name].config()
    known = {field.name: getattr(config, field.name) for field in fields(config)}
    changes: dict[str, Any] = {}
    if options and not known:
        raise ConfigError(f"objective {name!r} has no options, got {options[0]!r}.")
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            raise ConfigError(f"expected options like 'key=value', got {option!r}. {name!r} has {sorted(known)}.")
        if key in changes:
            raise ConfigError(f"option {key!r} of objective {name!r} is given twice; give it once.")
        if key not in known:
            raise UnknownNameError(choose(f"option of objective {name!r}", key, known))
        changes[key] = _parse(text, known[key], f"option {key!r} of objective {name!r}")
    return replace(config, **changes)


def split_sum(text: str) -> list[tuple[str | None, str]]:
    """Factor and name of each objective of a sum such as ``class+0.1*byol``; None where no factor is written."""
    found = [term.rpartition("*") for term in text.split("+")]
    return [(factor.strip() if star else None, name.strip()) for factor, star, name in found]


def _sum(text: str, options: Sequence[str], start: ObjectiveConfig | None) -> CombinedConfig:
    terms = split_sum(text)
    names = [name for _, name in terms]
    for option in options:
        if option.partition(".")[0] not in names:
            raise ConfigError(f"expected options of {text!r} like '{names[0]}.key=value', got {option!r}.")
    parts, weights = [], []
    for factor, name in terms:
        try:
            weights.append(1.0 if factor is None else float(factor))
        except ValueError:
            raise ConfigError(f"expected objectives like 'class+0.1*byol', got {factor!r} as a factor.") from None
        own = [option.partition(".")[2] for option in options if option.partition(".")[0] == name]
        parts.append(objective_config(name, own, start))
    return CombinedConfig(tuple(parts), tuple(weights))


def _parse(text: str, present: Any, what: str) -> Any:
    if isinstance(present, bool):
        if text not in ("true", "false"):
            raise ConfigError(f"expected true or false for {what}, got {text!r}.")
        return text == "true"
    try:
        return type(present)(text)
    except ValueError:
        raise ConfigError(f"expected a value like {present!r} for {what}, got {text!r}.") from None


def make_objective(config: ObjectiveConfig, material: Material) -> Objective:
    """The objective with its own networks, if it has any."""
    if isinstance(config, CombinedConfig):
        from classact.objectives.combined import Combined

        return Combined(config, [make_objective(part, material) for part in config.parts])
    make = resolve(OBJECTIVES[config.name].make)
    if make is None:
        raise ConfigError(f"objective {config.name!r} leaves the encoder's initial weights: there is nothing to train.")
    made: Objective = make(config, material)
    return made


__all__ = [
    "OBJECTIVES",
    "CombinedConfig",
    "Entry",
    "NoneConfig",
    "ObjectiveConfig",
    "Recipe",
    "SoftInfoNCEConfig",
    "make_objective",
    "objective_config",
    "split_sum",
]
