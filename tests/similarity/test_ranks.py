"""One process; several of them are in test_job.py, which starts them anyway."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from classact.errors import ConfigError
from classact.similarity.job import check_ranks
from classact.similarity.ranks import Ranks


def test_one_process_without_torchrun() -> None:
    ranks = Ranks.from_environment(environment={})
    assert ranks == Ranks(0, 1, 0)
    assert ranks.first
    assert ranks.share([4, 5, 6]) == [4, 5, 6]
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


def test_a_world_of_one() -> None:
    assert Ranks.from_environment(environment={"RANK": "0", "WORLD_SIZE": "1"}) == Ranks()


def test_shares_are_dealt_in_turn() -> None:
    assert [Ranks(rank, 3).share([1, 2, 3, 5, 8]) for rank in range(3)] == [[1, 5], [2, 8], [3]]
    assert not Ranks(1, 3).first


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
def test_environments_that_make_no_sense(environment: dict[str, str], found: str) -> None:
    with pytest.raises(ConfigError, match=f"0 <= RANK < WORLD_SIZE, got {found}. torchrun sets both"):
        Ranks.from_environment(environment=environment)


def test_unknown_backend() -> None:
    with pytest.raises(ConfigError, match="unknown backend 'mpi': available are 'gloo', 'nccl'"):
        Ranks.from_environment("mpi", {})


def test_ranks_of_different_data() -> None:
    class Second(Ranks):
        def broadcast_object(self, value: Any) -> Any:
            return {"identity": value["identity"] | {"data": "walk"}}

    check_ranks(Second(1, 2), {"identity": {"data": "walk"}})
    message = "rank 1 was started with other data or settings than rank 0: identity.data = 'walk', now it is 'talk'"
    with pytest.raises(ConfigError, match=message):
        check_ranks(Second(1, 2), {"identity": {"data": "talk"}})
