"""Policy heads by name. Adding one is a file and a line in :data:`HEADS`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from classact.errors import CheckpointError, ConfigError, choose
from classact.models.heads.base import Generators, Head, standard_normal
from classact.models.heads.diffusion import DiffusionConfig, DiffusionHead
from classact.models.heads.fast import FastSampler
from classact.models.heads.mlp import MLPConfig, MLPHead
from classact.models.heads.unet1d import ConditionalUNet1d, UNetConfig

__all__ = [
    "HEADS",
    "ConditionalUNet1d",
    "DiffusionConfig",
    "DiffusionHead",
    "FastSampler",
    "Generators",
    "Head",
    "HeadConfig",
    "HeadKind",
    "MLPConfig",
    "MLPHead",
    "UNetConfig",
    "head_config_from_json",
    "head_config_to_json",
    "head_name",
    "load_head_weights",
    "make_head",
    "standard_normal",
]

HeadConfig = DiffusionConfig | MLPConfig


@dataclass(frozen=True)
class HeadKind:
    """A registered head: its settings, and the module made of (settings, feature_dim, action_dim, horizon)."""

    config: type[Any]
    module: type[Any]


HEADS: Mapping[str, HeadKind] = {
    "diffusion": HeadKind(DiffusionConfig, DiffusionHead),
    "mlp": HeadKind(MLPConfig, MLPHead),
}


def head_name(config: HeadConfig) -> str:
    """The name of a head's settings in :data:`HEADS`.

    Raises:
        ConfigError: settings of no registered head.
    """
    for name, kind in HEADS.items():
        if type(config) is kind.config:
            return name
    known = ", ".join(f"{kind.config.__name__} ({name})" for name, kind in HEADS.items())
    raise ConfigError(f"expected the settings of a head: {known}; got {type(config).__name__}.")


def make_head(config: HeadConfig, feature_dim: int, action_dim: int, horizon: int, *, seed: int = 0) -> Head:
    """A head with initial weights drawn from ``seed``; global generators are left as they were.

    Raises:
        ConfigError: a horizon that the architecture cannot make.
        MissingDependencyError: the head needs a package that is not installed.
    """
    kind = HEADS[head_name(config)]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        head: Head = kind.module(config, feature_dim, action_dim, horizon)
    return head


def head_config_to_json(config: HeadConfig) -> dict[str, Any]:
    """Plain JSON: the settings, and the head's name under "name"."""
    return {"name": head_name(config), **asdict(config)}


def head_config_from_json(value: Any, where: Path) -> HeadConfig:
    """Inverse of :func:`head_config_to_json`.

    Raises:
        CheckpointError: an unknown head, unknown or missing settings, or settings out of range.
    """
    if not isinstance(value, dict) or value.get("name") not in HEADS:
        name = value.get("name") if isinstance(value, dict) else value
        raise CheckpointError(f"{where}: {choose('head', str(name), HEADS)}: another version wrote it.")
    plain = {key: item for key, item in value.items() if key != "name"}
    try:
        config: HeadConfig = _build(HEADS[value["name"]].config, plain, where)
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from None
    return config


def _build(kind: type[Any], value: Any, where: Path) -> Any:
    known = {f.name: f for f in fields(kind)}
    if not isinstance(value, dict) or set(value) != set(known):
        got = sorted(value) if isinstance(value, dict) else value
        raise CheckpointError(
            f"{where}: expected the settings {sorted(known)} of {kind.__name__}, got {got}: another version wrote it."
        )
    plain: dict[str, Any] = {}
    for name, item in value.items():
        factory: Any = known[name].default_factory
        nested = isinstance(factory, type) and is_dataclass(factory)
        plain[name] = _build(factory, item, where) if nested else tuple(item) if isinstance(item, list) else item
    return kind(**plain)


def load_head_weights(head: Head, state: Mapping[str, Tensor], source: Path) -> None:
    """Copy weights in; names and shapes must match exactly.

    Raises:
        CheckpointError: naming the first difference.
    """
    own = head.state_dict()
    for name in sorted(own.keys() | state.keys()):
        if name not in state or name not in own:
            raise CheckpointError(
                f"{source} {'lacks' if name in own else 'holds'} {name}, which this head "
                f"{'needs' if name in own else 'does not have'}: the checkpoint is of another architecture."
            )
        if state[name].shape != own[name].shape:
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(state[name].shape)}, expected {tuple(own[name].shape)}. The "
                f"checkpoint is of another architecture."
            )
    head.load_state_dict(dict(state))
