from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal

from classact.errors import ConfigError, DataError, MissingDependencyError
from classact.policies import search as module
from classact.policies.config import is_exact
from classact.policies.search import ExactSearch, FaissSearch, Search, make_search


def needs_faiss() -> None:
    pytest.importorskip("faiss", reason="the extra faiss is not installed")


def unit_rows(seed: int, rows: int, width: int) -> np.ndarray:
    out = np.random.default_rng(seed).normal(size=(rows, width))
    return (out / np.linalg.norm(out, axis=1, keepdims=True)).astype(np.float32)


def whole_rows(seed: int, rows: int, width: int = 4) -> np.ndarray:
    """Small whole numbers: products are exact in any order of summation, and many tie."""
    return np.random.default_rng(seed).integers(-2, 3, (rows, width)).astype(np.float32)


def reference(
    bank: np.ndarray, queries: np.ndarray, k: int, without: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The contract, one query at a time, in float64."""
    rows, cosine = [], []
    for number, query in enumerate(queries.astype(np.float64)):
        low, high = (0, 0) if without is None else without[number]
        products = [(-float(row @ query), i) for i, row in enumerate(bank.astype(np.float64)) if not low <= i < high]
        nearest = sorted(products)[:k]
        rows.append([i for _, i in nearest])
        cosine.append([-product for product, _ in nearest])
    return np.array(rows, np.int64).reshape(len(queries), k), np.array(cosine).reshape(len(queries), k)


def make_faiss(bank: np.ndarray) -> Search:
    needs_faiss()
    return FaissSearch(bank)


SEARCHES: dict[str, Callable[[np.ndarray], Search]] = {
    "torch-cpu": ExactSearch,
    "torch-cuda": lambda bank: ExactSearch(bank, device="cuda"),
    "torch-blocked": lambda bank: ExactSearch(bank, max_bytes=200),
    "faiss": make_faiss,
}
EACH = [pytest.param(name, marks=pytest.mark.gpu) if name == "torch-cuda" else name for name in SEARCHES]


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("k", [1, 2, 7, 40, 59, 60])
def test_ties_come_in_the_order_of_their_rows(name: str, k: int) -> None:
    bank, queries = whole_rows(1, 60), whole_rows(2, 25)
    rows, cosine = SEARCHES[name](bank).search(queries, k)
    expected_rows, expected = reference(bank, queries, k)
    assert (np.diff(expected, axis=1) == 0).any() or k == 1
    assert rows.dtype == np.int64
    assert cosine.dtype == np.float32
    assert_array_equal(rows, expected_rows)
    assert_array_equal(cosine, expected)


@pytest.mark.parametrize("name", EACH)
def test_a_bank_of_one_row_many_times(name: str) -> None:
    bank = np.tile(unit_rows(0, 1, 3), (50, 1))
    rows, _ = SEARCHES[name](bank).search(bank[:2], 6)
    assert_array_equal(rows, [[0, 1, 2, 3, 4, 5]] * 2)


@pytest.mark.parametrize("name", EACH)
def test_finds_the_nearest_of_unit_rows(name: str) -> None:
    bank, queries = unit_rows(3, 500, 17), unit_rows(4, 9, 17)
    rows, cosine = SEARCHES[name](bank).search(queries, 20)
    expected_rows, expected = reference(bank, queries, 20)
    assert np.diff(expected, axis=1).max() < -1e-6  # no two so close that rounding could swap them
    assert_array_equal(rows, expected_rows)
    assert_allclose(cosine, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", EACH)
def test_no_queries(name: str) -> None:
    rows, cosine = SEARCHES[name](unit_rows(0, 5, 3)).search(np.zeros((0, 3), np.float32), 2)
    assert rows.shape == cosine.shape == (0, 2)


@given(
    bank=arrays(np.float32, st.tuples(st.integers(1, 30), st.just(3)), elements=st.integers(-3, 3).map(float)),
    queries=arrays(np.float32, st.tuples(st.integers(0, 8), st.just(3)), elements=st.integers(-3, 3).map(float)),
    cells=st.integers(1, 60),
    data=st.data(),
)
def test_blocks_of_any_size_find_the_same(
    bank: np.ndarray, queries: np.ndarray, cells: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(bank)))
    hidden = data.draw(st.integers(0, len(bank) - k))
    low = data.draw(arrays(np.int64, len(queries), elements=st.integers(0, len(bank) - hidden)))
    without = np.stack([low, low + hidden], axis=1)
    rows, cosine = ExactSearch(bank, max_bytes=4 * cells).search(queries, k, without)
    expected_rows, expected = reference(bank, queries, k, without)
    assert_array_equal(rows, expected_rows)
    assert_array_equal(cosine, expected)


@pytest.mark.parametrize(("queries", "max_bytes"), [(300, 4 * 5000), (1, 4 * 100), (2, 4)])
def test_no_more_cosines_are_held_than_stated(queries: int, max_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, seen = unit_rows(0, 400, 5), []
    largest = module._largest

    def watch(cosine: torch.Tensor, *rest: object) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(cosine.numel())
        return largest(cosine, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_largest", watch)
    chosen = unit_rows(1, queries, 5)
    rows, _ = ExactSearch(bank, max_bytes=max_bytes).search(chosen, 3)
    assert max(seen) * 4 <= max_bytes
    assert sum(seen) == len(chosen) * len(bank)
    assert_array_equal(rows, reference(bank, chosen, 3)[0])


@pytest.mark.parametrize(("rows", "batch", "k"), [(3000, 50, 32), (3000, 1, 64), (20_000, 1, 8), (90, 7, 90)])
@pytest.mark.parametrize("width", [6, 66, 264])
def test_ties_any_keeps_the_bits_of_topk(rows: int, batch: int, k: int, width: int) -> None:
    """Published results were made so: one product, torch's own order of ties."""
    bank = np.repeat(unit_rows(0, rows // 2, width), 2, axis=0)
    queries = unit_rows(1, batch, width)
    cosine, nearest = torch.topk(torch.from_numpy(queries) @ torch.from_numpy(bank).clone().T, k, dim=1)
    found, value = ExactSearch(bank, ties="any").search(queries, k)
    assert found.tobytes() == nearest.numpy().tobytes()
    assert value.tobytes() == cosine.numpy().tobytes()


def test_products_are_taken_in_full_precision() -> None:
    before = torch.get_float32_matmul_precision()
    search, seen = ExactSearch(unit_rows(0, 9, 3)), []
    largest = module._largest
    try:
        torch.set_float32_matmul_precision("medium")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                module, "_largest", lambda *a: seen.append(torch.get_float32_matmul_precision()) or largest(*a)
            )
            search.search(unit_rows(1, 2, 3), 2)
        assert seen == ["highest"]
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_bank_is_copied_and_may_be_read_only() -> None:
    bank = unit_rows(0, 20, 3)
    search = ExactSearch(bank)
    before = search.search(bank[:4], 3)
    bank[:] = 0
    assert_array_equal(search.search(unit_rows(0, 20, 3)[:4], 3)[0], before[0])
    bank.flags.writeable = False
    ExactSearch(bank)


# faiss


def test_an_approximate_index_that_looks_everywhere_is_exact() -> None:
    needs_faiss()
    bank, queries = whole_rows(1, 2000, 6), whole_rows(2, 30, 6)
    rows, cosine = FaissSearch(bank, factory="IVF8,Flat", nprobe=8).search(queries, 12)
    expected_rows, expected = reference(bank, queries, 12)
    assert_array_equal(rows, expected_rows)
    assert_array_equal(cosine, expected)


def test_an_approximate_index_finds_most_and_the_same_every_time() -> None:
    needs_faiss()
    bank, queries = unit_rows(1, 4000, 8), unit_rows(2, 50, 8)
    exact = ExactSearch(bank).search(queries, 10)[0]
    first, again = (FaissSearch(bank, factory="IVF32,Flat", nprobe=8).search(queries, 10) for _ in range(2))
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1].tobytes() == again[1].tobytes()
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(first[0], exact, strict=True)])
    assert 0.6 < recall < 1


def test_lists_are_added_until_there_are_k() -> None:
    needs_faiss()
    bank, queries = unit_rows(1, 400, 4), unit_rows(2, 12, 4)
    search = FaissSearch(bank, factory="IVF8,Flat", nprobe=1)
    rows, cosine = search.search(queries, 390)
    assert all(len(set(row)) == 390 for row in rows)
    assert (np.diff(cosine, axis=1) <= 0).all()
    assert_array_equal(search.search(queries, 400)[0], reference(bank, queries, 400)[0])


@pytest.mark.parametrize("k", [1, 3, 40, 150])
def test_an_answer_of_an_index_does_not_depend_on_the_other_queries(k: int) -> None:
    needs_faiss()
    bank = np.concatenate([whole_rows(1, 300, 4), np.tile(whole_rows(5, 1, 4), (60, 1))])  # lists of many sizes, ties
    queries = np.concatenate([whole_rows(2, 12, 4), unit_rows(3, 6, 4)])
    search = FaissSearch(bank, factory="IVF16,Flat", nprobe=1)
    rows, cosine = search.search(queries, k)
    for number in range(len(queries)):
        alone = search.search(queries[number : number + 1], k)
        assert_array_equal(alone[0][0], rows[number])
        assert_allclose(alone[1][0], cosine[number], rtol=0, atol=1e-6)


def test_errors_of_faiss() -> None:
    needs_faiss()
    bank = unit_rows(0, 30, 4)
    with pytest.raises(ConfigError, match=r"faiss cannot make the index 'Nonsense' of 30 rows of 4 \(.*Use 'Flat'"):
        FaissSearch(bank, factory="Nonsense")
    with pytest.raises(ConfigError, match=r"faiss cannot make the index 'IVF64,Flat' of 30 rows of 4 \("):
        FaissSearch(bank, factory="IVF64,Flat")


# The choice


def test_auto(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "AUTO_ROWS", 10)
    assert isinstance(make_search(unit_rows(0, 10, 3)), ExactSearch)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "faiss", None)
        with caplog.at_level(logging.WARNING):
            found = make_search(unit_rows(0, 11, 3), ties="any")
    assert isinstance(found, ExactSearch)
    assert found.ties == "any"
    assert "the bank has 11 rows, beyond 10; it is searched with torch, for searching with faiss needs" in caplog.text
    needs_faiss()
    assert isinstance(make_search(unit_rows(0, 11, 3)), FaissSearch)
    assert isinstance(make_search(unit_rows(0, 11, 3), "torch"), ExactSearch)


def test_a_named_index() -> None:
    needs_faiss()
    bank = unit_rows(0, 400, 4)
    approximate = make_search(bank, "faiss:IVF4,Flat@4")
    assert isinstance(approximate, FaissSearch)
    assert approximate.nprobe == 4
    counted = make_search(bank, "faiss:IVF4,Flat@2")
    assert isinstance(counted, FaissSearch)
    assert counted.nprobe == 2
    exact = make_search(bank, "faiss")
    assert_array_equal(approximate.search(bank[:5], 7)[0], exact.search(bank[:5], 7)[0])


def test_faiss_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingDependencyError, match=r"needs the package faiss-cpu .*pip install 'classact\[faiss\]'"):
        make_search(unit_rows(0, 3, 2), "faiss")


@pytest.mark.parametrize(
    "backend",
    ["scann", "torch:Flat", "faiss:", "auto:x", "", "faiss:Flat@", "faiss:IVF4,Flat@0", "faiss:@3", "faiss@3", "auto@"],
)
def test_unknown_backends(backend: str) -> None:
    with pytest.raises(
        ConfigError, match=f"unknown search '{backend}': available are 'auto', 'faiss', 'faiss:FACTORY'"
    ):
        make_search(unit_rows(0, 3, 2), backend)


def test_which_backends_are_exact() -> None:
    assert all(map(is_exact, ("auto", "torch", "faiss", "faiss:Flat")))
    assert not any(map(is_exact, ("faiss:IVF4,Flat", "faiss:IVF4,Flat@4", "faiss:SQ8")))


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 50])
@pytest.mark.parametrize("max_bytes", [module.MAX_BYTES, 4 * 700])  # one block, several
def test_a_gpu_finds_what_the_cpu_finds(batch: int, max_bytes: int) -> None:
    bank, queries = whole_rows(1, 5000, 8), whole_rows(2, batch, 8)
    for k in (1, 64):
        expected_rows, expected = ExactSearch(bank).search(queries, k)
        rows, cosine = ExactSearch(bank, device="cuda", max_bytes=max_bytes).search(queries, k)
        assert_array_equal(rows, expected_rows)
        assert_allclose(cosine, expected, rtol=0, atol=1e-6)
        assert k == 1 or (np.diff(cosine, axis=1) == 0).any()
    bank, queries = unit_rows(1, 5000, 264), unit_rows(2, batch, 264)
    cosine = ExactSearch(bank, device="cuda", max_bytes=max_bytes).search(queries, 64)[1]
    assert_allclose(cosine, ExactSearch(bank).search(queries, 64)[1], rtol=0, atol=1e-6)


# Bad input


@pytest.mark.parametrize("name", EACH)
def test_bad_queries(name: str) -> None:
    bank = unit_rows(0, 30, 4)
    search = SEARCHES[name](bank)
    with pytest.raises(DataError, match=r"expected queries of shape \(B, 4\) as the bank's rows, got \(2, 5\)"):
        search.search(unit_rows(0, 2, 5), 3)
    with pytest.raises(DataError, match=r"expected queries of shape \(B, 4\) as the bank's rows, got \(4,\)"):
        search.search(bank[0], 3)
    for k in (0, 31):
        with pytest.raises(ConfigError, match=f"k = {k} neighbours asked of a bank of 30 rows. Expected 1 <= k <= 30"):
            search.search(bank, k)
    queries = bank[:3].copy()
    queries[1, 2] = np.nan
    with pytest.raises(DataError, match="1 of 3 latents of observations are NaN or infinite, the first in row 1"):
        search.search(queries, 3)


@pytest.mark.parametrize("name", EACH)
def test_bad_banks(name: str) -> None:
    with pytest.raises(DataError, match=r"expected a bank of shape \(N, d\) with N, d >= 1, got \(0, 4\)"):
        SEARCHES[name](np.zeros((0, 4), np.float32))
    bank = unit_rows(0, 30, 4)
    bank[7, 1], bank[9, 0] = np.inf, np.nan
    with pytest.raises(DataError, match="2 of the bank's 30 latents are NaN or infinite, the first in row 7"):
        SEARCHES[name](bank)


def test_more_neighbours_than_may_be_found() -> None:
    bank = unit_rows(0, 30, 4)
    with pytest.raises(ConfigError, match="5 neighbours asked of 4 rows: of 30, 26 may not be found"):
        ExactSearch(bank).search(bank[:2], 5, np.array([[0, 3], [1, 27]]))
