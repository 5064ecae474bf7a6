"""Processes that do one job together, as ``torchrun`` or ``accelerate launch`` start them.

A sweep's ranks exchange file names, its data go through files; a training's ranks exchange features and gradients.
Hugging Face Accelerate, imported only where there are several, connects them. (On CPUs use ``torchrun``: ``accelerate
launch`` starts several processes on GPUs only.)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from classact.errors import ClassactError, ConfigError, UnknownNameError, choose

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BACKENDS = ("gloo", "nccl")
BUCKET_BYTES = 32 * 2**20  # sent by Ranks.sum_ at once: many small tensors cost little more than one
TIMEOUT = timedelta(days=30)
"""Of waiting for the slowest rank. Lost ranks are noticed otherwise: by gloo as a closed connection, on GPUs by the
launcher, which then ends the others."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Ranks:
    """This process, 0 <= ``rank`` < ``world``, among those that do the same job; ``local_rank`` is its number on its
    machine, and that of its GPU.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @staticmethod
    def from_environment(backend: str = "gloo") -> Ranks:
        """The rank that the launcher gave to this process; a single one without a launcher.

        Args:
            backend: "gloo" for CPUs, and for sweeps on GPUs, whose ranks exchange only names; "nccl" for training on
                GPUs: one GPU per rank, number LOCAL_RANK of its machine, which becomes the current one.

        Raises:
            ConfigError: an incomplete or contradictory environment, an unknown backend, or "nccl" without a GPU for
                this rank.
        """
        if backend not in BACKENDS:
            raise UnknownNameError(choose("backend", backend, BACKENDS))
        given = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
        if given == (None, None):
            return Ranks()
        try:
            rank, world, local = (int(text or "") for text in (*given, os.environ.get("LOCAL_RANK", "0")))
        except ValueError:
            rank, world, local = -1, 0, 0
        if not 0 <= rank < world:
            raise ConfigError(
                f"expected RANK and WORLD_SIZE with 0 <= RANK < WORLD_SIZE, got RANK = {given[0]!r} and "
                f"WORLD_SIZE = {given[1]!r}. torchrun sets both; unset them to run one process."
            )
        if world > 1:
            _connect(backend, rank, world, local)
        return Ranks(rank, world, local)

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which merges and prints."""
        return self.rank == 0

    def alone(self) -> Ranks:
        """This process without the others; :meth:`on_first` still runs nothing but on the first."""
        return Ranks(self.rank, 1, self.local_rank)

    def share(self, items: list[int]) -> list[int]:
        """This rank's part of ``items``, dealt in turn."""
        return items[self.rank % self.world :: self.world]

    def part(self, count: int) -> slice:
        """This rank's run of ``count`` rows: runs are consecutive, their lengths differ by at most 1."""
        each, more = divmod(count, self.world)
        number = self.rank % self.world  # but for a rank alone, its own
        start = number * each + min(number, more)
        return slice(start, start + each + (number < more))

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
        """Run ``function`` on rank 0 and give its result, or the error it raised, to every rank, so that none waits in
        vain.
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

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any rank; the same answer on every rank."""
        if self.world == 1:
            return bool(flag)
        import torch
        import torch.distributed

        box = torch.tensor([int(flag)], device=_carrier(torch.device("cpu")))
        torch.distributed.all_reduce(box, torch.distributed.ReduceOp.MAX)
        return bool(box.item())

    def gather(self, tensor: Tensor) -> Tensor:
        """The rows (sum of the ranks' n, ...) of all ranks, rank by rank; the same on every rank, without gradient.

        ``tensor`` (n, ...) may be of any dtype; n may differ between ranks and may be 0. In one process it is returned
        itself, detached. A tensor without rows, or, on every rank, rows of different size, are ConfigErrors.
        """
        import torch

        if tensor.ndim == 0:
            raise ConfigError("expected a tensor of shape (n, ...) to gather, got a single number: give it as (1,).")
        if self.world == 1:
            return tensor.detach()
        import torch.distributed

        with torch.no_grad():
            width = tensor.element_size() * math.prod(tensor.shape[1:])
            own = torch.tensor([len(tensor), width], device=_carrier(torch.device("cpu")))
            every = [torch.empty_like(own) for _ in range(self.world)]
            torch.distributed.all_gather(every, own)
            counts, widths = torch.stack(every).T.tolist()
            if any(other != width for other in widths):
                raise ConfigError(
                    f"rank {self.rank} gathers rows of {width} bytes, the ranks gather rows of {widths} bytes: give "
                    f"tensors of one dtype and shape (n, ...) on all ranks."
                )
            # As bytes, because not every backend has every dtype; of one length, because not all take several.
            sent = torch.zeros(max(counts) * width, dtype=torch.uint8, device=_carrier(tensor.device))
            sent[: tensor.nbytes].copy_(tensor.detach().reshape(-1).view(torch.uint8))
            received = [torch.empty_like(sent) for _ in range(self.world)]
            torch.distributed.all_gather(received, sent)
            whole = torch.cat([part[: count * width] for part, count in zip(received, counts, strict=True)])
            return whole.to(tensor.device).view(tensor.dtype).reshape(sum(counts), *tensor.shape[1:])

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, in place, with the same bits on every rank.

        Shapes, dtypes and order must be the same on every rank.
        """
        if self.world == 1:
            return
        import torch

        with torch.no_grad():
            for bucket in _buckets(tensors):
                _sum_bucket(bucket)

    def close(self) -> None:
        """Leave the group; not after an error, which other ranks may not share. A process joins once."""
        if self.world > 1:
            import torch.distributed

            torch.distributed.destroy_process_group()


def _carrier(device: torch.device) -> torch.device:
    """The device on which the ranks exchange a tensor of ``device``."""
    import torch
    import torch.distributed

    backends = str(torch.distributed.get_backend_config())  # such as "cpu:gloo,cuda:nccl"
    if device.type == "cuda":
        return device if "cuda:nccl" in backends else torch.device("cpu")  # gloo supports few operations on GPUs
    return device if "cpu:" in backends else torch.device("cuda", torch.cuda.current_device())


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in groups of one dtype and device of at most BUCKET_BYTES, unless a single one has more."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel():
            groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for members in groups.values():
        bucket: list[Tensor] = []
        size = 0
        for tensor in members:
            if bucket and size + tensor.nbytes > BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
            bucket.append(tensor)
            size += tensor.nbytes
        yield bucket


def _sum_bucket(bucket: list[Tensor]) -> None:
    import torch
    import torch.distributed

    device = bucket[0].device
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in bucket]).to(_carrier(device))
    torch.distributed.all_reduce(flat)
    parts = torch.split(flat.to(device), [tensor.numel() for tensor in bucket])
    for tensor, part in zip(bucket, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))


def _connect(backend: str, rank: int, world: int, local: int) -> None:
    import torch
    import torch.distributed
    from accelerate import PartialState

    if backend == "nccl" and local >= torch.cuda.device_count():
        raise ConfigError(
            f"rank {rank} needs GPU {local} of its machine, which has {torch.cuda.device_count()}. Start at most one "
            f"rank per GPU (torchrun --nproc-per-node), or train on the CPU."
        )
    with _launched(local):
        if backend == "gloo":
            state = PartialState(cpu=True, backend="gloo", timeout=TIMEOUT)
        else:
            # Beside NCCL, names and flags go through gloo, without synchronising with a GPU.
            both = "cpu:gloo,cuda:nccl" if torch.distributed.is_gloo_available() else "nccl"
            state = PartialState(backend=both, timeout=TIMEOUT)
    found = (state.process_index, state.num_processes)
    if not torch.distributed.is_initialized() or found != (rank, world):
        raise ConfigError(
            f"expected to become rank {rank} of {world}, but Accelerate connected rank {found[0]} of {found[1]}. Start "
            f"one process per rank with torchrun or accelerate launch, and connect it once."
        )


@contextmanager
def _launched(local: int) -> Iterator[None]:
    """Variables that Accelerate looks for; those that the launcher did not set are removed afterwards."""
    # Without a number of threads Accelerate chooses one and warns.
    added = {"LOCAL_RANK": str(local), "OMP_NUM_THREADS": "1"}
    added = {name: value for name, value in added.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
