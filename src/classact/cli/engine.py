"""Flags of everything that trains: how it is computed, by how many processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from classact.cli.flags import Settings
from classact.train.config import EngineConfig

_NAMES = [entry.name.replace("_", "-") for entry in fields(EngineConfig)]
ENGINE = Settings(EngineConfig, prefix="engine", short={f"engine.{name}": name for name in _NAMES})
"""Under torchrun all ranks share the training."""


@contextmanager
def training_ranks(device: str) -> Iterator[Any]:
    """This process among those that torchrun started; alone without it."""
    from classact.utils.machine import choose_device
    from classact.utils.ranks import Ranks

    ranks = Ranks.from_environment("nccl" if choose_device(device) == "cuda" else "gloo")
    # An error of this rank alone ends it at once: leaving the group would wait for the others.
    yield ranks
    ranks.close()
