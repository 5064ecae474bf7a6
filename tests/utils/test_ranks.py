"""One process, and two that talk. Sweeps of several are in similarity/test_job.py."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from classact.errors import ConfigError
from classact.similarity.job import check_ranks
from classact.utils import ranks as module
from classact.utils.ranks import Ranks


def test_one_process_without_torchrun() -> None:
    ranks = Ranks.from_environment()
    assert ranks == Ranks(0, 1, 0)
    assert ranks.first
    assert ranks.broadcast_object("a") == "a"
    ranks.barrier()
    assert ranks.on_first(lambda: 3) == 3
    with pytest.raises(ConfigError, match="no"):
        ranks.on_first(lambda: fail(ConfigError("no")))
    with pytest.raises(ZeroDivisionError):
        ranks.on_first(lambda: 1 // 0)
    ranks.close()
    assert "torch" not in sys.modules or not sys.modules["torch"].distributed.is_initialized()


def fail(error: Exception) -> None:
    raise error


def test_a_world_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, RANK="0", WORLD_SIZE="1")
    assert Ranks.from_environment() == Ranks()


def launched(monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    """As a launcher starts this process; without ``environment`` as nobody does."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_alone_a_rank_waits_for_nobody() -> None:
    alone = Ranks(3, 4, 1).alone()
    assert alone == Ranks(3, 1, 1)
    assert (alone.first, Ranks(0, 4).alone().first) == (False, True)
    assert (alone.broadcast_object("own"), alone.any(True), alone.part(7)) == ("own", True, slice(0, 7))
    assert alone.share([4, 5, 6]) == Ranks().share([4, 5, 6]) == [4, 5, 6]
    alone.barrier()


def test_shares_are_dealt_in_turn() -> None:
    assert [Ranks(rank, 3).share([1, 2, 3, 5, 8]) for rank in range(3)] == [[1, 5], [2, 8], [3]]


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"RANK": "0"}, "RANK = '0' and WORLD_SIZE = None"),
        ({"WORLD_SIZE": "2"}, "RANK = None and WORLD_SIZE = '2'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK = '2' and WORLD_SIZE = '2'"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK = '-1' and WORLD_SIZE = '2'"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK = 'one' and WORLD_SIZE = '2'"),
    ],
)
def test_environments_that_make_no_sense(
    environment: dict[str, str], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(monkeypatch, **environment)
    with pytest.raises(ConfigError, match=f"0 <= RANK < WORLD_SIZE, got {found}. torchrun sets both"):
        Ranks.from_environment()


def test_unknown_backend() -> None:
    with pytest.raises(ConfigError, match="unknown backend 'mpi': available are 'gloo', 'nccl'"):
        Ranks.from_environment("mpi")


def test_ranks_of_different_data() -> None:
    class Second(Ranks):
        def broadcast_object(self, value: Any) -> Any:
            return {"identity": value["identity"] | {"data": "walk"}}

    check_ranks(Second(1, 2), {"identity": {"data": "walk"}})
    message = "rank 1 was started with other data or settings than rank 0: identity.data = 'walk', now it is 'talk'"
    with pytest.raises(ConfigError, match=message):
        check_ranks(Second(1, 2), {"identity": {"data": "talk"}})


def test_one_process_exchanges_nothing() -> None:
    ranks, tensor = Ranks(), torch.arange(6.0, requires_grad=True).reshape(3, 2)
    gathered = ranks.gather(tensor)
    assert torch.equal(gathered, tensor)
    assert not gathered.requires_grad
    assert gathered.data_ptr() == tensor.data_ptr()
    before = tensor.detach().clone()
    ranks.sum_([tensor])
    assert torch.equal(tensor, before)
    assert (ranks.any(True), ranks.any(False)) == (True, False)
    assert ranks.part(7) == slice(0, 7)
    with pytest.raises(ConfigError, match=r"shape \(n, ...\) to gather, got a single number: give it as \(1,\)"):
        ranks.gather(torch.tensor(1.0))
    assert "accelerate" not in loaded("from classact.utils.ranks import Ranks; Ranks.from_environment()")


def loaded(code: str) -> list[str]:
    program = f"import sys; {code}; print(*(name for name in ('accelerate', 'torch') if name in sys.modules))"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()


@given(count=st.integers(0, 1000), world=st.integers(1, 17))
def test_parts_follow_each_other_and_are_even(count: int, world: int) -> None:
    parts = [Ranks(rank, world).part(count) for rank in range(world)]
    assert [row for part in parts for row in range(count)[part]] == list(range(count))
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) - min(lengths) <= 1


@given(sizes=st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=20), limit=st.integers(1, 64))
def test_buckets_hold_every_tensor_once_in_bounds(sizes: list[tuple[int, bool]], limit: int) -> None:
    tensors = [torch.zeros(n, dtype=torch.float64 if double else torch.float32) for n, double in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BUCKET_BYTES", limit)
        buckets = list(module._buckets(tensors))
    found = [id(tensor) for bucket in buckets for tensor in bucket]
    assert sorted(found) == sorted(id(tensor) for tensor in tensors if tensor.numel())
    for bucket in buckets:
        assert len({tensor.dtype for tensor in bucket}) == 1
        assert len(bucket) == 1 or sum(tensor.nbytes for tensor in bucket) <= limit


def test_a_rank_without_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    launched(monkeypatch, RANK="1", WORLD_SIZE="2", LOCAL_RANK="1")
    with pytest.raises(ConfigError, match="rank 1 needs GPU 1 of its machine, which has 1"):
        Ranks.from_environment("nccl")


# -- two processes -------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def two(omit: str) -> list[str]:
    """:func:`talk` on two ranks without a launcher, one of its variables left out; what each of them printed."""
    base = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    base |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": ""}
    processes = []
    for rank in range(2):
        environment = base | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        environment.pop(omit)
        command = [sys.executable, "-W", "error", __file__]
        processes.append(
            subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    return outputs


def rows_of(rank: int, count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(count, 2, 3), other numbers on each rank."""
    generator = torch.Generator().manual_seed(rank)
    return (torch.randn(count, 2, 3, generator=generator) * 50).to(dtype)


def check_gather(ranks: Ranks) -> None:
    for counts in ((3, 3), (4, 1), (0, 2), (2, 0), (0, 0)):
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool):
            own = rows_of(ranks.rank, counts[ranks.rank], dtype)
            expected = torch.cat([rows_of(rank, counts[rank], dtype) for rank in range(2)])
            found = ranks.gather(own)
            assert found.dtype == dtype
            assert torch.equal(found, expected), (counts, dtype)
    # Strided, and with a gradient that ends here.
    own = rows_of(ranks.rank, 4).requires_grad_()
    found = ranks.gather(own.transpose(1, 2)[::2])
    expected = torch.cat([rows_of(rank, 4).transpose(1, 2)[::2] for rank in range(2)])
    assert torch.equal(found, expected)
    assert not found.requires_grad
    whole = torch.arange(7)
    assert torch.equal(ranks.gather(whole[ranks.part(7)]), whole)
    message = rf"rank {ranks.rank} gathers rows of {12 + 4 * ranks.rank} bytes.*rows of \[12, 16\] bytes: give tensors"
    with pytest.raises(ConfigError, match=message):
        ranks.gather(torch.zeros(2, 3 + ranks.rank))


def check_sum(ranks: Ranks) -> None:
    def tensors(rank: int) -> list[torch.Tensor]:
        many = [rows_of(rank, n, dtype) for n in (0, 1, 2, 5) for dtype in (torch.float32, torch.float64, torch.int64)]
        strided, parameter = rows_of(rank, 4).transpose(0, 2), rows_of(rank, 3).requires_grad_()
        return [*many, strided, parameter, torch.tensor(1.5 + rank), rows_of(rank, 2, torch.bfloat16)]

    expected = [a.detach() + b.detach() for a, b in zip(tensors(0), tensors(1), strict=True)]
    for bucket_bytes in (1, 64, module.BUCKET_BYTES):
        found = tensors(ranks.rank)
        addresses = [tensor.data_ptr() for tensor in found]
        module.BUCKET_BYTES = bucket_bytes
        ranks.sum_(found)
        assert [tensor.data_ptr() for tensor in found] == addresses
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), bucket_bytes


def talk() -> None:
    threads = torch.get_num_threads()
    ranks = Ranks.from_environment()
    assert ranks == Ranks(int(os.environ["RANK"]), 2, 0)
    assert torch.get_num_threads() == threads
    assert "OMP_NUM_THREADS" not in os.environ
    assert torch.distributed.get_backend() == "gloo"
    check_gather(ranks)
    check_sum(ranks)
    assert [ranks.any(ranks.rank == which) for which in (0, 1, 2)] == [True, True, False]
    ranks.barrier()
    ranks.close()
    assert not torch.distributed.is_initialized()
    with pytest.raises(ConfigError, match=rf"rank {ranks.rank} of 2, but Accelerate .* connect it once"):
        Ranks.from_environment()
    print(f"rank {ranks.rank} talked")


def test_two_ranks_gather_sum_and_agree() -> None:
    # Without a local rank, as some launchers start processes; torchrun's are in similarity/test_job.py.
    assert [f"rank {rank} talked" in output for rank, output in enumerate(two("LOCAL_RANK"))] == [True, True]


if __name__ == "__main__":
    talk()
