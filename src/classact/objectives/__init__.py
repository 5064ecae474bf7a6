"""Objectives of representation learning; one file each, and one line of :data:`OBJECTIVES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from classact.errors import ConfigError, UnknownNameError, choose
from classact.objectives.base import Material, Objective
from classact.objectives.byol import BYOL, BYOLConfig
from classact.objectives.combined import Combined, CombinedConfig, parse_sum
from classact.objectives.dynamo import DynaMo, DynaMoConfig
from classact.objectives.inverse_dynamics import InverseDynamics, InverseDynamicsConfig
from classact.objectives.none import NoneConfig
from classact.objectives.soft_infonce import (
    PAIRS,
    REDUCTIONS,
    WEIGHTINGS,
    SoftInfoNCE,
    SoftInfoNCEConfig,
    soft_infonce,
)
from classact.objectives.tcn import TCN, TCNConfig
from classact.objectives.time_contrastive import TimeContrastive, TimeContrastiveConfig
from classact.utils.labels import split_sum, written_name

ObjectiveConfig = (
    SoftInfoNCEConfig
    | TCNConfig
    | BYOLConfig
    | DynaMoConfig
    | InverseDynamicsConfig
    | TimeContrastiveConfig
    | NoneConfig
    | CombinedConfig
)


@dataclass(frozen=True)
class Recipe:
    """How an objective is trained in the paper (C.1), where nothing else is said.

    Attributes:
        batch_size: anchors per step.
        epochs: passes over all steps as anchors.
        learning_rate: peak rate of AdamW; None: the preset's optimiser is the objective's own (CLASS: LARS).
    """

    batch_size: int
    epochs: float
    learning_rate: float | None


@dataclass(frozen=True)
class Entry:
    """One objective.

    Attributes:
        config: class of its settings.
        make: called with settings and material; None: nothing is trained.
        recipe: the paper's training.
        label: for tables.
        about: one line.
    """

    config: type[Any]
    make: Callable[[Any, Material], Objective] | None
    recipe: Recipe
    label: str
    about: str


OBJECTIVES: Mapping[str, Entry] = {
    "class": Entry(
        SoftInfoNCEConfig,
        SoftInfoNCE,
        Recipe(160, 100, None),
        "CLASS",
        "soft InfoNCE: what leads to similar action sequences lies close (eq. 1)",
    ),
    "tcn": Entry(
        TCNConfig,
        TCN,
        Recipe(64, 200, 1e-4),
        "TCN",
        "triplets within an episode: near in time against far (1704.06888)",
    ),
    "byol": Entry(
        BYOLConfig, BYOL, Recipe(64, 200, 1e-4), "VINN", "two views of an image predict each other (VINN, 2112.01511)"
    ),
    "dynamo": Entry(
        DynaMoConfig,
        DynaMo,
        Recipe(64, 40, 1e-4),
        "DynaMo",
        "inverse and forward dynamics of features in short contexts (2409.12192)",
    ),
    "inverse-dynamics": Entry(
        InverseDynamicsConfig,
        InverseDynamics,
        Recipe(64, 40, 1e-4),
        "Inverse dynamics",
        "predict the actions between two images",
    ),
    "time-contrastive": Entry(
        TimeContrastiveConfig,
        TimeContrastive,
        Recipe(64, 40, 1e-4),
        "Time-contrastive",
        "InfoNCE across time within and between episodes (R3M's core term, 2203.12601)",
    ),
    "none": Entry(
        NoneConfig, None, Recipe(160, 0, None), "Initial weights", "no training: those of the encoder's init"
    ),
}
"""Name -> objective. Sums of them are written ``class+0.1*inverse-dynamics``; see :func:`objective_config`."""


def objective_config(name: str, options: Sequence[str] = (), start: ObjectiveConfig | None = None) -> ObjectiveConfig:
    """Settings of an objective by name, changed by ``key=value`` options.

    Args:
        name: a key of :data:`OBJECTIVES`, or a sum such as ``class+0.1*byol``.
        options: such as ``weighting=hard``; in a sum with the objective's name before it: ``byol.decay=0.99``.
        start: settings that are changed, where they are of this objective (of a preset); else its defaults are.

    Raises:
        ConfigError: an unknown name or key, or a value of another type than the setting's.
    """
    if "+" in name:
        return parse_sum(name, lambda part: objective_config(part, _belonging(part, name, options), start))
    if "*" in name:
        raise ConfigError(f"a factor needs a sum: expected objectives like 'class+0.1*byol', got {name!r}.")
    if name not in OBJECTIVES:
        raise UnknownNameError(
            choose("objective", name, OBJECTIVES).rstrip(".") + ". Sums are written 'class+0.1*byol'."
        )
    config = next((part for part in objective_parts(start) if part.name == name), None) if start else None
    config = config or OBJECTIVES[name].config()
    known = {field.name: getattr(config, field.name) for field in fields(config) if field.init}
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
    made: ObjectiveConfig = replace(config, **changes)
    return made


def _belonging(part: str, name: str, options: Sequence[str]) -> list[str]:
    names = [term for _, term in split_sum(name)]
    for option in options:
        if option.partition(".")[0] not in names:
            raise ConfigError(f"expected options of {name!r} like '{names[0]}.key=value', got {option!r}.")
    return [option.partition(".")[2] for option in options if option.partition(".")[0] == part]


def _parse(text: str, present: Any, what: str) -> Any:
    if isinstance(present, bool):
        if text not in ("true", "false"):
            raise ConfigError(f"expected true or false for {what}, got {text!r}.")
        return text == "true"
    kind = type(present)
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"expected a value like {present!r} for {what}, got {text!r}.") from None


def objective_parts(config: ObjectiveConfig) -> tuple[Any, ...]:
    """Settings of the single objectives of a sum, or the one itself."""
    return config.parts if isinstance(config, CombinedConfig) else (config,)


def objective_name(config: ObjectiveConfig) -> str:
    """How an objective is written: ``class``, or ``class+0.1*byol``."""
    return written_name(asdict(config))


def needs_similarity(config: ObjectiveConfig) -> bool:
    """Whether action similarity must be measured for it."""
    return any(getattr(OBJECTIVES[part.name].make, "needs_similarity", False) for part in objective_parts(config))


def images_per_anchor(config: ObjectiveConfig) -> int:
    """Views that the encoder sees for each anchor of a batch: what a budget in images counts.

    An objective class says how many; where settings decide, its settings have ``companions`` or ``views`` themselves.
    In a sum every image is seen in as many views as the part with most needs.
    """
    companions, views = 0, 1
    for part in objective_parts(config):
        made = OBJECTIVES[part.name].make
        companions += getattr(part, "companions", getattr(made, "companions", 0))
        views = max(views, getattr(part, "views", getattr(made, "views", 1)))
    return (1 + companions) * views


def describe_objective(config: ObjectiveConfig) -> str:
    """An objective with what differs from its defaults, for titles: ``CLASS (weighting=hard)``."""
    words = []
    for part in objective_parts(config):
        usual, entry = OBJECTIVES[part.name].config(), OBJECTIVES[part.name]
        names = [f.name for f in fields(part) if f.init and getattr(part, f.name) != getattr(usual, f.name)]
        changed = ", ".join(f"{name}={getattr(part, name)}" for name in names)
        words.append(f"{entry.label} ({changed})" if changed else entry.label)
    return " + ".join(words)


def recipe(config: ObjectiveConfig) -> Recipe:
    """The paper's training: of a sum that of its first objective."""
    return OBJECTIVES[objective_parts(config)[0].name].recipe


def make_objective(config: ObjectiveConfig, material: Material) -> Objective:
    """The objective with its own networks, if it has any.

    Raises:
        ConfigError: settings that do not fit together, or there is nothing to train.
    """
    if isinstance(config, CombinedConfig):
        return Combined(config, [make_objective(part, material) for part in config.parts])
    make = OBJECTIVES[config.name].make
    if make is None:
        raise ConfigError(f"objective {config.name!r} leaves the encoder's initial weights: there is nothing to train.")
    return make(config, material)


__all__ = [
    "OBJECTIVES",
    "PAIRS",
    "REDUCTIONS",
    "WEIGHTINGS",
    "CombinedConfig",
    "Entry",
    "Material",
    "NoneConfig",
    "Objective",
    "ObjectiveConfig",
    "Recipe",
    "SoftInfoNCEConfig",
    "describe_objective",
    "images_per_anchor",
    "make_objective",
    "needs_similarity",
    "objective_config",
    "objective_name",
    "objective_parts",
    "recipe",
    "soft_infonce",
]
