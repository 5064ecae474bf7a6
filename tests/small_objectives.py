"""Objectives with networks that are quick to build, for tests that go over all of the registry."""

from __future__ import annotations

from collections.abc import Mapping

from classact.objectives import OBJECTIVES, ObjectiveConfig, objective_config, split_sum

TRAINED = [name for name, entry in OBJECTIVES.items() if entry.make is not None]
SMALL: Mapping[str, tuple[str, ...]] = {
    "byol": ("hidden=16", "projection=8"),
    "dynamo": ("context=3", "layers=1", "heads=2", "width=16", "latent_dim=4"),
    "inverse-dynamics": ("horizon=2", "hidden=16"),
}
"""What makes an objective's own networks small; those that are not named are tried as they are."""


def small(text: str, *options: str) -> ObjectiveConfig:
    """An objective, or a sum, whose options then name their part."""
    names = [name for _, name in split_sum(text)]
    prefix = "{}." if len(names) > 1 else ""
    own = [f"{prefix.format(name)}{option}" for name in names for option in SMALL.get(name, ())]
    return objective_config(text, [*own, *options])
