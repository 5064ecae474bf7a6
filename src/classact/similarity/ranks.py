"""Processes that share one sweep, as ``torchrun`` starts them. They exchange file names; the data go through files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from classact.errors import ClassactError, ConfigError, choose

BACKENDS = ("gloo", "nccl")
TIMEOUT = timedelta(days=30)
"""How long a rank waits for the slowest; a rank that died is noticed by its closed connection, not by this."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that do the same job.

    Attributes:
        rank: number of this process, 0 <= rank < world.
        world: number of processes.
        local_rank: number of this process on its machine, which is that of its GPU.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @staticmethod
    def from_environment(backend: str = "gloo", environment: Mapping[str, str] | None = None) -> Ranks:
        """The rank that ``torchrun`` gave to this process; a single one where there is no ``torchrun``.

        Args:
            backend: "gloo" suits sweeps on GPUs as well, for ranks tell each other nothing but names; "nccl" where
                nothing else is there.
            environment: variables RANK, WORLD_SIZE and LOCAL_RANK; None reads the process's own.

        Raises:
            ConfigError: an incomplete or contradictory environment, or an unknown backend.
        """
        if backend not in BACKENDS:
            raise ConfigError(choose("backend", backend, BACKENDS))
        environment = os.environ if environment is None else environment
        given = {name: environment.get(name) for name in ("RANK", "WORLD_SIZE")}
        if given["RANK"] is None and given["WORLD_SIZE"] is None:
            return Ranks()
        try:
            rank, world = int(given["RANK"] or ""), int(given["WORLD_SIZE"] or "")
            local = int(environment.get("LOCAL_RANK", "0"))
        except ValueError:
            rank, world, local = -1, 0, 0
        if not 0 <= rank < world:
            raise ConfigError(
                f"expected RANK and WORLD_SIZE with 0 <= RANK < WORLD_SIZE, got RANK = {given['RANK']!r} and "
                f"WORLD_SIZE = {given['WORLD_SIZE']!r}. torchrun sets both; unset them to run one process."
            )
        if world > 1:
            _connect(backend, rank, world, local)
        return Ranks(rank, world, local)

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which merges and prints."""
        return self.rank == 0

    def share(self, items: list[int]) -> list[int]:
        """This rank's part of ``items``, dealt in turn."""
        return items[self.rank :: self.world]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world > 1:
            import torch.distributed

            torch.distributed.barrier()

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's ``value`` on every rank."""
        if self.world == 1:
            return value
        import torch.distributed

        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def on_first(self, function: Callable[[], _T]) -> _T:
        """Run ``function`` on rank 0 and give its result to every rank.

        Raises:
            ClassactError: what rank 0 raised, on every rank, so that none waits for one that gave up.
        """
        outcome: tuple[_T | None, Exception | None] = (None, None)
        if self.first:
            try:
                outcome = (function(), None)
            except Exception as error:
                if not isinstance(error, ClassactError):
                    self.broadcast_object((None, ClassactError(f"rank 0 failed: {type(error).__name__}: {error}")))
                    raise
                outcome = (None, error)
        result, problem = self.broadcast_object(outcome)
        if problem is not None:
            raise problem
        return result

    def close(self) -> None:
        """Leave the group."""
        if self.world > 1:
            import torch.distributed

            torch.distributed.destroy_process_group()


def _connect(backend: str, rank: int, world: int, local: int) -> None:
    import torch.distributed

    if backend == "nccl":
        torch.cuda.set_device(local)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(backend, timeout=TIMEOUT, rank=rank, world_size=world)
