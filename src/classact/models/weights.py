"""Initial weights from a seed, and weights that were saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from classact.errors import CheckpointError


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw initial weights within from ``seed``, independently of earlier draws."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU as well
        yield


def load_weights(network: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Copy weights in; names and shapes must match exactly."""
    own = network.state_dict()
    what = f"this {type(network).__name__} ({network.extra_repr()})".replace(" ()", "")
    other = "The checkpoint is of another architecture."
    if missing := sorted(own.keys() - state.keys()):
        raise CheckpointError(
            f"{source} lacks {missing[0]} ({len(missing)} of {len(own)} tensors missing), which {what} needs. {other}"
        )
    if extra := sorted(state.keys() - own.keys()):
        raise CheckpointError(
            f"{source} holds {extra[0]} ({len(extra)} tensors unknown here), which {what} does not have. {other}"
        )
    for name, value in own.items():
        if value.shape != state[name].shape:
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(state[name].shape)}, expected {tuple(value.shape)} for {what}. "
                f"{other}"
            )
    network.load_state_dict(dict(state))
