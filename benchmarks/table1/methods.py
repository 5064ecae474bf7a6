"""What can stand in a row of the table: an objective with its options, or initial weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from classact.errors import ConfigError, choose
from classact.objectives import (
    OBJECTIVES,
    ObjectiveConfig,
    objective_config,
    split_sum,
)
from classact.policies import RetrievalConfig
from classact.run.presets import with_backbone, with_objective
from classact.train.config import PretrainConfig

METHODS: Mapping[str, str] = {
    "random": "an encoder of random weights",
    "imagenet": "ResNet-18 with ImageNet-1K weights",
    "r3m": "ResNet-18 with R3M's weights",
    "tcn": OBJECTIVES["tcn"].config.about,
    "byol": OBJECTIVES["byol"].config.about,
    "dynamo": OBJECTIVES["dynamo"].config.about,
    "inverse-dynamics": OBJECTIVES["inverse-dynamics"].config.about,
    "time-contrastive": OBJECTIVES["time-contrastive"].config.about,
    "equivar": "C8-equivariant encoder, trained with the policy head (Diffusion Policy only)",
    "class": OBJECTIVES["class"].config.about,
}
"""Rows of the table in its order; any sum of objectives may be added, with settings in brackets."""

UNTRAINED = ("random", "imagenet", "r3m", "equivar")
"""Methods without pre-training: with a policy head, all images of the budget are the head's."""

_WRITTEN = re.compile(r"(?P<name>[^\[\]]+)(\[(?P<settings>[^\[\]]*)\])?")


@dataclass(frozen=True)
class Setting:
    """What may stand in brackets beside the objective's own options.

    Attributes:
        part: of the pre-training's settings that it is in; "" for the pre-training itself.
        field: of that part.
        kind: of its value.
    """

    part: str
    field: str
    kind: Callable[[str], Any]

    def change(self, config: PretrainConfig, value: Any) -> PretrainConfig:
        """The settings with this one changed."""
        if not self.part:
            return replace(config, **{self.field: value})
        part = replace(getattr(config, self.part), **{self.field: value})
        return replace(config, **{self.part: part})


SETTINGS: Mapping[str, Setting] = {
    "batch_size": Setting("", "batch_size", int),
    "crop": Setting("augment", "crop", str),
    "color": Setting("encoder", "color", str),
    "color_augmentation": Setting("augment", "color", str),
    "horizon": Setting("similarity", "horizon", int),
    "metric": Setting("similarity", "metric", str),
    "cost": Setting("similarity", "cost", str),
    "quantile": Setting("similarity", "quantile", float),
}
"""Settings of the pre-training: ablations (fig. 4) and extensions."""

RETRIEVAL: Mapping[str, Callable[[str], Any]] = {
    "k": int,
    "min_actions": int,
    "chunk_length": int,
    "speed": float,
    "proprioception_weight": float,
    "revisit": float,
}
"""Settings of acting by retrieval, see :class:`classact.policies.RetrievalConfig`."""


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        written: in one form for all that mean the same: CLASS first in a sum, settings sorted, values as short as they
            can be: ``class``, ``class[metric=l2 views=2]``, ``class+0.1*byol``.
        name: without what stands in brackets.
        objective: settings of what is learned.
        settings: (key, value) of :data:`SETTINGS`.
        retrieval: (key, value) of :data:`RETRIEVAL`.
    """

    written: str
    name: str
    objective: ObjectiveConfig
    settings: tuple[tuple[str, Any], ...] = ()
    retrieval: tuple[tuple[str, Any], ...] = ()

    @property
    def pretrained(self) -> bool:
        """Whether anything is learned before the head."""
        return self.name not in UNTRAINED

    @property
    def scratch(self) -> bool:
        """Whether a head on it starts from an encoder of random weights."""
        return self.name in ("random", "equivar")

    @property
    def variant(self) -> str:
        """What stands in brackets."""
        return self.written.removeprefix(self.name).strip("[]")

    @property
    def tuned(self) -> bool:
        """Whether its learning rate is tuned: of all that is pre-trained without CLASS, whose rate is the preset's."""
        return self.pretrained and all(part.name != "class" for part in self.objective.terms)

    def config(self, preset: PretrainConfig) -> PretrainConfig:
        """The preset's pre-training, changed to this method.

        Raises:
            ConfigError: a setting that does not fit.
        """
        config = with_objective(preset, self.objective)
        inits: dict[str, Any] = {"imagenet": "imagenet", "r3m": "r3m", "random": "scratch"}
        if self.name in inits:
            config = replace(config, encoder=replace(config.encoder, init=inits[self.name]))
        elif self.name == "equivar":
            config = replace(config, encoder=with_backbone(config.encoder, "equivariant"))
        for key, value in self.settings:
            config = SETTINGS[key].change(config, value)
        return config

    def retrieval_config(self, preset: RetrievalConfig) -> RetrievalConfig:
        """The preset's retrieval, as the paper's in what it looks at and how it acts, changed to this method's.

        Raises:
            ConfigError: a setting that does not fit.
        """
        paper = {"proprioception_weight": 1.0, "revisit": None, "speed": 1.0, "chunk_length": 16}
        return replace(preset, **paper | dict(self.retrieval))


def parse_method(written: str) -> Method:
    """A method as it is written on the command line.

    Args:
        written: a name of :data:`METHODS`, or a sum of objectives, with options of the objective, :data:`SETTINGS` and
            :data:`RETRIEVAL` in brackets. Where an objective has an option of the same name, that one is meant.

    Raises:
        ConfigError: it is none of these.
    """
    found = _WRITTEN.fullmatch(written.strip())
    if found is None:
        raise ConfigError(f"expected a method like 'class' or 'class[views=2 metric=l2]', got {written!r}.")
    name = _ordered(found["name"].strip())
    pairs = sorted(part for part in re.split(r"[\s,]+", found["settings"] or "") if part)
    keys = [pair.partition("=")[0] for pair in pairs]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ConfigError(f"method {written!r} sets {twice[0]!r} {keys.count(twice[0])} times.")
    if name not in METHODS and "+" not in name:
        raise ConfigError(f"{choose('method', name, METHODS)} Sums of objectives are written 'class+0.1*byol'.")
    trained = name not in UNTRAINED
    options = _options(name) if trained else ()
    own = [pair for pair, key in zip(pairs, keys, strict=True) if key in options or "." in key]
    rest = [pair for pair in pairs if pair not in own]
    settings = _values(rest, {key: setting.kind for key, setting in SETTINGS.items()})
    retrieval = _values(rest, RETRIEVAL)
    takes = {*RETRIEVAL, *(key for key, setting in SETTINGS.items() if setting.part == "encoder")}
    if not trained and (idle := [pair for pair in pairs if pair.partition("=")[0] not in takes]):
        raise ConfigError(
            f"method {name!r} learns nothing before the head, so {idle[0]!r} would change nothing. It takes "
            f"{sorted(takes)}."
        )
    if unknown := [pair for pair in rest if pair.partition("=")[0] not in (*SETTINGS, *RETRIEVAL)]:
        raise ConfigError(
            choose(f"setting of {name!r}", unknown[0].partition("=")[0], (*options, *SETTINGS, *RETRIEVAL))
        )
    objective = objective_config(name, own) if trained else objective_config("none")
    if trained and not objective.needs_similarity:
        for key, value in settings:
            if SETTINGS[key].part == "similarity":
                raise ConfigError(
                    f"'{key}={value}' is of the similarity of actions, which {name!r} does not look at: it would "
                    f"change nothing."
                )
    if "+" in name:
        name = objective.written
    values = dict(settings) | dict(retrieval)
    values |= {key: _option(objective, key) for key in (pair.partition("=")[0] for pair in own)}
    inside = " ".join(f"{key}={_text(values[key])}" for key in sorted(values))
    return Method(f"{name}[{inside}]" if inside else name, name, objective, settings, retrieval)


def _ordered(name: str) -> str:
    """A sum with CLASS first, whose recipe the sum then has, and the others as :data:`OBJECTIVES` lists them."""
    known = ["class", *OBJECTIVES]
    terms = sorted(split_sum(name), key=lambda term: known.index(term[1]) if term[1] in known else len(known))
    return "+".join(term if factor is None else f"{factor}*{term}" for factor, term in terms)


def _option(objective: ObjectiveConfig, key: str) -> Any:
    """The value of an objective's option; of a part of a sum by its dotted name."""
    name, _, field = key.rpartition(".")
    part = next(part for part in objective.terms if not name or part.name == name)
    return getattr(part, field)


def _text(value: Any) -> str:
    """A value in one form: 0.050 and 5e-2 as 0.05."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)


def _options(name: str) -> tuple[str, ...]:
    """Options of an objective; those of the parts of a sum have their names before a dot."""
    terms = [term for _, term in split_sum(name)]
    if "none" in terms:
        raise ConfigError(f"method {name!r} adds 'none', which is no training that could be added.")
    known = [term for term in terms if term in OBJECTIVES]
    own = {term: [key for key in OBJECTIVES[term].config.__dataclass_fields__ if key != "name"] for term in known}
    if "+" not in name:
        return tuple(own[name])
    return tuple(f"{term}.{key}" for term, keys in own.items() for key in keys)


def _values(pairs: Sequence[str], kinds: Mapping[str, Callable[[str], Any]]) -> tuple[tuple[str, Any], ...]:
    out = []
    for pair in pairs:
        key, _, text = pair.partition("=")
        if key not in kinds:
            continue
        try:
            if not text:
                raise ValueError
            out.append((key, kinds[key](text)))
        except ValueError:
            kind = {int: "a whole number", float: "a number"}.get(kinds[key], "a value")  # type: ignore[call-overload]
            raise ConfigError(f"expected {kind} for {key!r}, as in '{key}=...', got {pair!r}.") from None
    return tuple(out)
