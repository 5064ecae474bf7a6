"""What the GPU's kernels must do: run by test_gpu.py in a process of its own, on a GPU or in Triton's interpreter.

The interpreter has to be chosen before triton is imported, and then holds for the whole process. It takes some 0.1 ms
for each operation of a program, so that the shapes here are small.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from classact.data.types import FloatArray
from classact.errors import ConfigError, DataError
from classact.similarity import COSTS, dtw, gpu
from classact.similarity.counts import DistanceCounts
from classact.similarity.gpu import GpuSweep, dtw_pairwise_torch
from classact.similarity.stream import Pairs, WindowStream

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
ENDS = np.array([1, 2, 9, 14])
both_costs = pytest.mark.parametrize("cost", COSTS)
bands = pytest.mark.parametrize("band", [None, 0, 2])


def draw(shape: tuple[int, ...], seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def coarse(shape: tuple[int, ...], seed: int = 0) -> FloatArray:
    """Few different values: many distances are equal, some of them zero."""
    return np.random.default_rng(seed).integers(0, 3, shape).astype(np.float32) / 8


def exact(x: FloatArray, y: FloatArray, cost: str = "sqeuclidean", band: int | None = None) -> FloatArray:
    """The distances in float32, in the kernels' order of operations: equal bit for bit."""
    (n, T, D), (m, U, _) = x.shape, y.shape
    C = np.zeros((n, m, T, U), np.float32)
    for d in range(D):
        e = x[:, None, :, None, d] - y[None, :, None, :, d]
        C += e * e
    if cost == "euclidean":
        C = np.sqrt(C)
    G = np.full((n, m, T + 1, U + 1), np.inf, np.float32)
    G[..., 0, 0] = 0
    for p in range(T):
        for q in range(U):
            if band is None or abs(p - q) <= band:
                best = np.minimum(np.minimum(G[..., p, q], G[..., p, q + 1]), G[..., p + 1, q])
                G[..., p + 1, q + 1] = C[..., p, q] + best
    return G[..., T, U]


def sweep_of(
    stream: WindowStream, memory: int = 1 << 22, cost: str = "sqeuclidean", band: int | None = None
) -> GpuSweep:
    return GpuSweep(stream, cost=cost, band=band, device=DEVICE, memory=memory)


def joined(blocks: list[Pairs]) -> Pairs:
    empty = Pairs(np.empty(0, np.uint32), np.empty(0, np.uint32), np.empty(0, np.float32))
    blocks = [empty, *blocks]
    for block in blocks:
        assert block.left.dtype == block.right.dtype == np.uint32
        assert block.distances.dtype == np.float32
    left, right, d = (np.concatenate([getattr(b, k) for b in blocks]) for k in ("left", "right", "distances"))
    order = np.lexsort((right, left))
    return Pairs(left[order], right[order], d[order])


def assert_same(found: Pairs, expected: Pairs) -> None:
    assert_array_equal(found.left, expected.left)
    assert_array_equal(found.right, expected.right)
    assert_array_equal(found.distances, expected.distances)


def expected_pairs(stream: WindowStream, rows: range, *, limit: float = np.inf, cost: str = "sqeuclidean") -> Pairs:
    x = stream.windows(np.arange(len(stream)))
    d = exact(x, x, cost)
    kept = [(i, j) for i in rows for j in range(i + 1, len(x)) if float(d[i, j]) <= float(limit)]
    left, right = np.array(kept, np.uint32).reshape(-1, 2).T
    return Pairs(left, right, d[left, right])


@bands
@both_costs
@pytest.mark.parametrize("D", [1, 2, 10])
@pytest.mark.parametrize("T", [1, 2, 5, 16, 33])
def test_equals_the_reference(T: int, D: int, cost: str, band: int | None) -> None:
    stream = WindowStream.build(draw((14, D)), ENDS, T)
    rows = range(4, 9) if T < 16 else range(7, 8)
    found = joined(list(sweep_of(stream, cost=cost, band=band).pairs(rows.start, rows.stop)))
    x = stream.windows(np.arange(14))
    left, right = (k.astype(int) for k in (found.left, found.right))
    assert len(left) == sum(13 - i for i in rows)
    reference = [dtw(x[i], x[j], cost, band) for i, j in zip(left, right, strict=True)]
    assert_allclose(found.distances, reference, rtol=3e-6)
    assert_array_equal(found.distances, exact(x, x, cost, band)[left, right])


def test_long_windows() -> None:
    """One window per thread."""
    stream = WindowStream.build(draw((6, 1)), np.array([2, 6]), 45)
    found = joined(list(sweep_of(stream).pairs(4, 5)))
    assert_same(found, expected_pairs(stream, range(4, 5)))


@pytest.mark.parametrize("ends", [[9], [1, 2, 3, 4, 5, 6, 7, 8, 9], [4, 9], [8, 9]])
@pytest.mark.parametrize("T", [1, 3])
def test_any_lengths_of_episodes(T: int, ends: list[int]) -> None:
    stream = WindowStream.build(draw((9, 2)), np.array(ends), T)
    sweep = sweep_of(stream)
    assert_same(joined(list(sweep.pairs(0, 9))), expected_pairs(stream, range(9)))


def test_no_windows_and_one() -> None:
    for n in (0, 1):
        stream = WindowStream.build(draw((n, 2)), np.array([n] * n, np.int64), 4)
        sweep = sweep_of(stream)
        counts = DistanceCounts(1.0)
        sweep.count(0, n, 1.0, counts)
        assert joined(list(sweep.pairs(0, n))).left.size == counts.total == 0


@pytest.mark.parametrize("memory", [1, 1 << 15, 1 << 18])
@pytest.mark.parametrize("ends", [[150], [1, 2, 3, 90, 150]])
def test_blocks_change_nothing(ends: list[int], memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of any size, and ranges of anchors: the same pairs, each once, with the same bits."""
    stream = WindowStream.build(draw((150, 1)), np.array(ends), 2)
    monkeypatch.setattr(gpu, "BLOCK", 50)
    sweep = sweep_of(stream, memory)
    rows, middle = (range(86, 92), 89) if DEVICE == "cpu" else (range(150), 89)
    blocks = [*sweep.pairs(rows.start, middle), *sweep.pairs(middle, rows.stop)]
    assert max(len(block) for block in blocks) <= 50
    assert_same(joined(blocks), expected_pairs(stream, rows))


@both_costs
@pytest.mark.parametrize("prune", [True, False])
def test_limit(cost: str, prune: bool) -> None:
    """Distances equal to the limit are kept, those above left out, also where no float32 equals the limit."""
    stream = WindowStream.build(draw((40, 2)), np.array([1, 17, 40]), 3)
    rows = range(12, 16)
    sweep = sweep_of(stream, cost=cost)
    all_ = expected_pairs(stream, rows, cost=cost)
    at = float(np.sort(all_.distances)[len(all_) // 5])
    for limit in (at, np.nextafter(at, 0), np.nextafter(at, 1e9), 0.0, 1e300):
        expected = expected_pairs(stream, rows, limit=limit, cost=cost)
        assert_same(joined(list(sweep.pairs(rows.start, rows.stop, limit=limit, prune=prune))), expected)


def test_pruning_skips_work() -> None:
    """Anchors far from all windows of a program: nothing is aligned, nothing written."""
    actions = np.concatenate([np.zeros((40, 1)), np.full((10, 1), 5.0)]).astype(np.float32)
    sweep = sweep_of(WindowStream.build(actions, np.array([40, 50]), 3))
    found = joined(list(sweep.pairs(0, 3, limit=1.0)))
    assert (found.right < 40).all()
    assert len(found) == 39 + 38 + 37
    assert_array_equal(found.distances, 0)
    assert joined(list(sweep.pairs(39, 40, limit=1.0))).left.size == 0


def test_count_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ties and zeros; where the table is too short for the small distances; where counters are read out often."""
    stream = WindowStream.build(coarse((40, 1)), np.array([1, 17, 40]), 3)
    rows = range(8, 14)
    all_ = expected_pairs(stream, rows).distances
    assert (all_ == 0).any()
    for limit in (float(np.median(all_)), np.inf, 0.0):
        values, times = np.unique(all_[all_ <= np.float32(limit)], return_counts=True)
        for memory, counted, prune in ((1 << 28, 1 << 30, True), (1 << 24, 60, True), (1 << 12, 60, False)):
            monkeypatch.setattr(gpu, "COUNTED", counted)
            sweep = sweep_of(stream, memory)
            counts = DistanceCounts(limit)
            sweep.count(8, 10, limit, counts, prune=prune)
            sweep.count(10, 14, limit, counts, prune=prune)
            found = counts.items()
            assert_array_equal(found[0], values)
            assert_array_equal(found[1], times)
            assert counts.total == times.sum()


def test_counts_may_wait_on_the_device() -> None:
    stream = WindowStream.build(draw((14, 2)), ENDS, 3)
    sweep = sweep_of(stream, 1 << 29)
    first, second = DistanceCounts(0.5), DistanceCounts(0.5)
    sweep.count(0, 4, 0.5, first, defer=True)
    sweep.count(4, 9, 0.5, first, defer=True)
    assert first.total == 0
    sweep.count(0, 9, 0.5, second, defer=True)  # of others: the first are settled
    sweep.settle()
    sweep.settle()
    expected = expected_pairs(stream, range(9), limit=0.5).distances
    for counts in (first, second):
        assert_array_equal(np.repeat(*counts.items()), np.sort(expected))
    sweep.count(0, 14, 0.25, DistanceCounts(0.25))
    assert_array_equal(np.repeat(*first.items()), np.sort(expected))


@both_costs
def test_overflow_is_infinite_never_nan(cost: str) -> None:
    actions = np.array([[1e25], [1e25], [-1e25], [0], [3e38], [-3e38]], np.float32)
    stream = WindowStream.build(actions, np.array([1, 2, 3, 4, 5, 6]), 3)
    with np.errstate(over="ignore"):
        sweep = sweep_of(stream, 1 << 24, cost)
        found = joined(list(sweep.pairs(0, 6)))
        assert_array_equal(found.distances, [0, *[np.inf] * 14])
        counts = DistanceCounts(np.inf)
        sweep.count(0, 6, np.inf, counts)
        assert_array_equal(counts.items(), [[0, np.inf], [1, 14]])
        x = torch.from_numpy(actions).to(DEVICE)[:, None].expand(6, 3, 1)
        assert_array_equal(dtw_pairwise_torch(x, cost=cost).cpu()[0], [0, 0, *[np.inf] * 4])


def test_tiny_magnitudes() -> None:
    """Squares below the range of float32 are zero, or as the CPU's with fewer digits."""
    stream = WindowStream.build(draw((9, 1)) * np.float32(1e-21), np.array([9]), 3)
    found = joined(list(sweep_of(stream).pairs(0, 9)))
    assert_same(found, expected_pairs(stream, range(9)))
    assert (found.distances > 0).any()


# Batches


@bands
@both_costs
@pytest.mark.parametrize(("T", "U"), [(1, 1), (1, 3), (4, 4), (5, 3), (3, 6), (2, 1)])
def test_batch(T: int, U: int, cost: str, band: int | None) -> None:
    x, y = draw((3, T, 3)), draw((35, U, 3), 1)
    found = dtw_pairwise_torch(*(torch.from_numpy(v).to(DEVICE) for v in (x, y)), cost=cost, band=band)
    assert found.dtype == torch.float32
    assert found.device.type == DEVICE
    assert_array_equal(found.cpu(), exact(x, y, cost, band))
    assert_allclose(found[1, 33].item(), dtw(x[1], y[33], cost, band), rtol=3e-6)


def test_batch_of_the_usual_horizon() -> None:
    x, y = draw((1, 16, 10)), draw((5, 16, 10), 1)
    found = dtw_pairwise_torch(torch.from_numpy(x).to(DEVICE), torch.from_numpy(y).to(DEVICE))
    assert_array_equal(found.cpu(), exact(x, y))


def test_batch_with_itself() -> None:
    x = torch.from_numpy(draw((9, 4, 2))).to(DEVICE).requires_grad_()
    found = dtw_pairwise_torch(x).cpu()
    assert not found.requires_grad
    assert_array_equal(found, found.T)
    assert_array_equal(found.diagonal(), 0)


def test_batch_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw((5, 2, 1)), draw((70, 2, 1), 1)
    tensors = [torch.from_numpy(v).to(DEVICE) for v in (x, y)]
    for cells, grid in ((1, 1 << 15), (2 * 2 * 32 * 2, 1 << 15), (1 << 20, 6)):
        monkeypatch.setattr(gpu, "_BATCH_CELLS", cells)
        monkeypatch.setattr(gpu, "_GRID", grid)
        assert_array_equal(dtw_pairwise_torch(*tensors).cpu(), exact(x, y))
    monkeypatch.setattr(gpu, "_BATCH_CELLS", 1 << 11)
    assert_array_equal(dtw_pairwise_torch(tensors[1]).cpu(), exact(y, y))


def test_batch_with_a_limit() -> None:
    x, y = draw((3, 3, 2)), draw((33, 3, 2), 1)
    expected = exact(x, y)
    limit = float(np.median(expected))
    found = dtw_pairwise_torch(*(torch.from_numpy(v).to(DEVICE) for v in (x, y)), limit=limit).cpu()
    assert_array_equal(found, np.where(expected <= limit, expected, np.inf))


def test_batch_of_other_types() -> None:
    x = draw((3, 3, 2))
    tensor = torch.from_numpy(x).to(DEVICE)
    assert_array_equal(
        dtw_pairwise_torch(tensor.double().transpose(0, 1).contiguous().transpose(0, 1)).cpu(), exact(x, x)
    )


# Messages


def test_nan_is_refused() -> None:
    x = torch.from_numpy(draw((3, 3, 2))).to(DEVICE)
    bad = x.clone()
    bad[1, 2, 0] = torch.nan
    with pytest.raises(DataError, match=r"y\[1, 2, 0\] is nan; 1 of 18 values"):
        dtw_pairwise_torch(x, bad)
    with pytest.raises(DataError, match=r"x\[1, 2, 0\] is nan"):
        dtw_pairwise_torch(bad)
    with pytest.raises(ConfigError, match="limit of distances of at least 0, got nan"):
        dtw_pairwise_torch(x, limit=np.nan)


def test_shapes() -> None:
    x = torch.from_numpy(draw((3, 3, 2))).to(DEVICE)
    for y in (x[:, :, :1], x[0], x[:0], x[:, :0]):
        with pytest.raises(ConfigError, match=r"expected windows of shapes \(N, T, D\)"):
            dtw_pairwise_torch(x, y)
    with pytest.raises(ConfigError, match="unknown step cost 'l1'"):
        dtw_pairwise_torch(x, cost="l1")
    with pytest.raises(ConfigError, match="band of at least 0 whole steps"):
        dtw_pairwise_torch(x, band=-1)


def test_anchors_out_of_range() -> None:
    sweep = sweep_of(WindowStream.build(draw((14, 2)), ENDS, 3))
    for first, last in ((-1, 3), (0, 15), (4, 3)):
        with pytest.raises(ConfigError, match=rf"expected anchors within 0\.\.14, got {first}\.\.{last}"):
            list(sweep.pairs(first, last))
        with pytest.raises(ConfigError, match="expected anchors within"):
            sweep.count(first, last, 1.0, DistanceCounts(1.0))
    with pytest.raises(ConfigError, match="limit of distances of at least 0, got nan"):
        list(sweep.pairs(0, 3, limit=np.nan))


def test_windows_too_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = WindowStream.build(draw((14, 2)), ENDS, 5)
    monkeypatch.setattr(gpu, "WIDEST", 4)
    message = "windows of 5 steps with a band of {} need 5 registers.*has 4. Use shorter windows"
    with pytest.raises(ConfigError, match=message.format(None)):
        sweep_of(stream)
    with pytest.raises(ConfigError, match=message.format(2)):
        sweep_of(stream, band=2)
    with pytest.raises(ConfigError, match=message.format(None)):
        dtw_pairwise_torch(torch.zeros(2, 3, 1, device=DEVICE), torch.zeros(2, 5, 1, device=DEVICE))
    assert len(joined(list(sweep_of(stream, band=1).pairs(0, 1)))) == 13


def test_stream_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = WindowStream.build(draw((14, 2)), ENDS, 5)
    monkeypatch.setattr(gpu, "LONGEST_STREAM", 20)
    with pytest.raises(ConfigError, match=r"a stream of 40 steps, padding included, is longer than the 20"):
        sweep_of(stream)
