"""Flags of everything that trains: how it is computed, by how many processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from classact.train.config import Choice, Loader, TrackerName


@dataclass(frozen=True, kw_only=True)
class EngineArguments:
    """How training is computed: none of it changes a result beyond rounding. Under torchrun all ranks share it."""

    device: Annotated[str, tyro.conf.arg(help="auto (a GPU if there is one), cpu or cuda. For training.")] = "auto"
    accumulate: Annotated[
        int,
        tyro.conf.arg(
            help="Micro-batches per step and process: less memory, the same gradient. Should divide a process's part "
            "of the batch, else they are of two sizes, and the encoder is compiled for each."
        ),
    ] = 1
    compile: Annotated[
        Choice, tyro.conf.arg(help="torch.compile of the encoder: auto (on GPUs where it works), yes or no.")
    ] = "auto"
    channels_last: Annotated[Choice, tyro.conf.arg(help="Channels-last images: auto (on GPUs), yes or no.")] = "auto"
    loader: Annotated[
        Loader,
        tyro.conf.arg(
            help="Where images lie while training: auto, resident (on the device) or prefetch (read ahead from disk)."
        ),
    ] = "auto"
    deterministic: Annotated[
        bool, tyro.conf.arg(help="The same bits in each run on GPUs, slower. CPUs always give them.")
    ] = False
    trackers: Annotated[
        tuple[TrackerName, ...],
        tyro.conf.arg(help="Beside train.jsonl: tensorboard, wandb (offline unless WANDB_MODE says else)."),
    ] = ()


def engine_config(arguments: EngineArguments) -> Any:
    """The engine's settings."""
    from classact.train.config import EngineConfig

    return EngineConfig(
        accumulate=arguments.accumulate,
        compile=arguments.compile,
        channels_last=arguments.channels_last,
        loader=arguments.loader,
        deterministic=arguments.deterministic,
        trackers=arguments.trackers,
    )


@contextmanager
def training_ranks(arguments: EngineArguments) -> Iterator[Any]:
    """This process among those that torchrun started; alone without it."""
    from classact.utils.machine import choose_device
    from classact.utils.ranks import Ranks

    ranks = Ranks.from_environment("nccl" if choose_device(arguments.device) == "cuda" else "gloo")
    # An error of this rank alone ends it at once: to leave the group it would have to wait for the others.
    yield ranks
    ranks.close()
