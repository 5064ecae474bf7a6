"""What can stand in a row of the table: an objective with its options, or initial weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from classact.errors import ConfigError, choose
from classact.objectives import OBJECTIVES, ObjectiveConfig, objective_config, objective_parts
from classact.presets import with_objective
from classact.training import PretrainConfig

METHODS: Mapping[str, str] = {
    "random": "an encoder of random weights",
    "imagenet": "ResNet-18 with ImageNet-1K weights",
    "r3m": "ResNet-18 with R3M's weights",
    "tcn": OBJECTIVES["tcn"].about,
    "byol": OBJECTIVES["byol"].about,
    "dynamo": OBJECTIVES["dynamo"].about,
    "inverse-dynamics": OBJECTIVES["inverse-dynamics"].about,
    "time-contrastive": OBJECTIVES["time-contrastive"].about,
    "equivar": "C8-equivariant encoder, trained with the policy head (Diffusion Policy only)",
    "class": OBJECTIVES["class"].about,
}
"""Rows of the table in its order; any objective or sum of them may be added, with settings in brackets."""

UNTRAINED = ("random", "imagenet", "r3m", "equivar")
"""Methods without pre-training: with a policy head, all images of the budget are the head's."""

PAPER_METHODS = ("random", "imagenet", "r3m", "tcn", "byol", "dynamo", "equivar", "class")

_WRITTEN = re.compile(r"(?P<name>[^\[\]]+)(\[(?P<settings>[^\[\]]*)\])?")


def _encoder(name: str, kind: Callable[[str], Any]) -> Callable[[PretrainConfig, str], PretrainConfig]:
    return lambda config, text: replace(config, encoder=replace(config.encoder, **{name: kind(text)}))


def _augment(name: str, kind: Callable[[str], Any]) -> Callable[[PretrainConfig, str], PretrainConfig]:
    return lambda config, text: replace(config, augment=replace(config.augment, **{name: kind(text)}))


def _similarity(name: str, kind: Callable[[str], Any]) -> Callable[[PretrainConfig, str], PretrainConfig]:
    return lambda config, text: replace(config, similarity=replace(config.similarity, **{name: kind(text)}))


def _batch(config: PretrainConfig, text: str) -> PretrainConfig:
    return replace(config, batch_size=int(text))


SETTINGS: Mapping[str, Callable[[PretrainConfig, str], PretrainConfig]] = {
    "batch_size": _batch,
    "crop": _augment("crop", str),
    "color": _encoder("color", str),
    "color_augmentation": _augment("color", str),
    "horizon": _similarity("horizon", int),
    "metric": _similarity("metric", str),
    "cost": _similarity("cost", str),
    "quantile": _similarity("quantile", float),
}
"""Settings beside the objective's own that may stand in brackets: ablations (fig. 4) and extensions."""


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        written: as the user wrote it: ``class``, ``class[views=2 metric=l2]``, ``class+0.1*byol``.
        name: without what stands in brackets.
        objective: settings of what is learned.
        settings: (key, value) of :data:`SETTINGS`.
    """

    written: str
    name: str
    objective: ObjectiveConfig
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def pretrained(self) -> bool:
        """Whether anything is learned before the head."""
        return self.name not in UNTRAINED

    @property
    def tuned(self) -> bool:
        """Whether its learning rate is tuned: of all that is pre-trained but CLASS, whose rate is the preset's."""
        return self.pretrained and objective_parts(self.objective)[0].name != "class"

    def config(self, preset: PretrainConfig) -> PretrainConfig:
        """The preset's pre-training, changed to this method.

        Raises:
            ConfigError: a setting that does not exist or fit.
        """
        config = with_objective(preset, self.objective)
        if self.name in ("imagenet", "r3m"):
            config = replace(config, encoder=replace(config.encoder, init=self.name))
        elif self.name == "random":
            config = replace(config, encoder=replace(config.encoder, init="scratch"))
        elif self.name == "equivar":
            half = (127.5, 127.5, 127.5)  # its released code scales images to [-1, 1]
            encoder = replace(config.encoder, trunk="equivariant", init="scratch", mean=half, std=half)
            config = replace(config, encoder=encoder)
        for key, value in self.settings:
            config = SETTINGS[key](config, value)
        return config


def parse_method(written: str) -> Method:
    """A method as it is written on the command line.

    Args:
        written: a name of :data:`METHODS`, an objective, or a sum of them, with settings of the objective and of
            :data:`SETTINGS` in brackets.

    Raises:
        ConfigError: it is none of these.
    """
    found = _WRITTEN.fullmatch(written.strip())
    if found is None:
        raise ConfigError(f"expected a method like 'class' or 'class[views=2 metric=l2]', got {written!r}.")
    name = found["name"].strip()
    pairs = [part for part in re.split(r"[\s,]+", found["settings"] or "") if part]
    own = [part for part in pairs if part.partition("=")[0] not in SETTINGS]
    settings = tuple((part.partition("=")[0], part.partition("=")[2]) for part in pairs if part not in own)
    if name in UNTRAINED:
        if pairs:
            raise ConfigError(f"method {name!r} learns nothing before the head, so {pairs[0]!r} would change nothing.")
        return Method(name, name, objective_config("none"))
    if name not in METHODS and "+" not in name and name not in OBJECTIVES:
        raise ConfigError(choose("method", name, METHODS))
    text = f"{name}[{' '.join(pairs)}]" if pairs else name
    return Method(text, name, objective_config(name, own), settings)
