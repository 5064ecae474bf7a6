from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from classact.data.normalize import MinMax
from classact.data.readers.diffusion_policy import read
from classact.data.windows import window_indices
from classact.errors import ConfigError, DataError
from classact.similarity import COSTS, DistanceCounts, WindowStream, dtw, dtw_pairwise, make_sweep
from classact.similarity.cpu import CpuSweep
from classact.similarity.stream import Sweep

LENGTHS = (1, 7, 1, 1, 40, 3, 18)
BANDS = (None, 0, 1, 2, 14)


def stream_of(lengths: tuple[int, ...], T: int, D: int, seed: int = 0, scale: float = 1) -> WindowStream:
    actions = np.random.default_rng(seed).uniform(-1, 1, (sum(lengths), D)) * scale
    return WindowStream.build(actions.astype(np.float32), np.cumsum(lengths), T)


def matrix(sweep: Sweep, n: int, **options: Any) -> np.ndarray:
    """(n, n) distances as handed out; NaN where a pair was not."""
    out = np.full((n, n), np.nan, np.float32)
    for block in sweep.pairs(0, n, **options):
        assert np.isnan(out[block.left, block.right]).all()  # no pair twice
        out[block.left, block.right] = block.distances
    return out


def reference(windows: np.ndarray, cost: str, band: int | None) -> np.ndarray:
    return np.array([[dtw(a, b, cost, band) for b in windows] for a in windows])


def test_a_stream_holds_the_windows() -> None:
    actions = np.random.default_rng(0).normal(size=(sum(LENGTHS), 3)).astype(np.float32)
    for T in (1, 2, 16, 33):
        stream = WindowStream.build(actions, np.cumsum(LENGTHS), T)
        assert_array_equal(stream.windows(np.arange(len(actions))), actions[window_indices(np.cumsum(LENGTHS), T)])


@pytest.mark.parametrize(("horizon", "stride"), [(1, 1), (4, 2), (5, 2), (16, 5), (7, 7), (33, 3)])
def test_a_stride_compares_means(horizon: int, stride: int) -> None:
    n, ends = sum(LENGTHS), np.cumsum(LENGTHS)
    actions = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    stream = WindowStream.build(actions, ends, horizon, stride)
    whole = -(-horizon // stride) * stride
    expected = actions[window_indices(ends, whole)].reshape(n, -1, stride, 3).mean(axis=2)
    windows = stream.windows(np.arange(n))
    assert_allclose(windows, expected, atol=1e-6)
    assert sorted(set(stream.starts.tolist())) == sorted(stream.starts.tolist())
    sweep = make_sweep(stream, device="cpu")
    found = matrix(sweep, n)
    above = np.triu(np.ones((n, n), bool), 1)
    assert_array_equal(found[above], dtw_pairwise(windows)[above])  # by the windows' own numbers
    assert_array_equal(~np.isnan(found), above)
    counts, limit = DistanceCounts(2.5), 2.5
    sweep.count(0, n, limit, counts)
    sweep.settle()
    values, times = np.unique(found[above][found[above] <= limit], return_counts=True)
    assert_array_equal(counts.items(), (values, times))


@pytest.mark.parametrize("stride", [0, 6])
def test_a_stride_beyond_the_window_is_refused(stride: int) -> None:
    with pytest.raises(ConfigError, match=rf"expected a stride of 1 to 5, the horizon, got {stride}\."):
        WindowStream.build(np.zeros((9, 1), np.float32), np.array([9]), 5, stride)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("D", [1, 2, 10, 14])
@pytest.mark.parametrize("T", [1, 2, 5, 16, 33])
def test_equals_the_reference(T: int, D: int, cost: str) -> None:
    lengths = (1, 7, 1, 12)
    stream = stream_of(lengths, T, D)
    n = len(stream)
    windows = stream.windows(np.arange(n))
    for band in BANDS:
        expected = reference(windows, cost, band)
        found = matrix(CpuSweep(stream, cost=cost, band=band), n)
        above = np.triu(np.ones((n, n), bool), 1)
        assert_array_equal(~np.isnan(found), above)
        assert_allclose(found[above], expected[above], rtol=3e-6)
        pairwise = dtw_pairwise(windows, cost=cost, band=band)
        assert_array_equal(pairwise[above], found[above])  # to the last bit: the threshold is that of a batch's weights
        assert_array_equal(pairwise, pairwise.T)
        assert_array_equal(pairwise.diagonal(), 0)


@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize("T", [2, 5, 16, 25, 33, 64])
def test_a_limit_keeps_exactly_the_pairs_below_it(T: int, band: int | None) -> None:
    stream = stream_of(LENGTHS, T, 2)
    n = len(stream)
    sweep = CpuSweep(stream, band=band)
    every = matrix(sweep, n)
    assert_array_equal(~np.isnan(every), np.triu(np.ones((n, n), bool), 1))
    for quantile in (0.0, 0.02, 0.3, 1.0):
        limit = float(np.nanquantile(every, quantile))
        for prune in (True, False):
            found = matrix(sweep, n, limit=limit, prune=prune)
            assert_array_equal(found, np.where(every <= np.float32(limit), every, np.nan))


def test_anchors_may_be_cut_anywhere() -> None:
    stream = stream_of((300, 1, 2, 290), 16, 2)
    n = len(stream)
    sweep = CpuSweep(stream)
    whole = matrix(sweep, n)
    parts = np.full((n, n), np.nan, np.float32)
    for first, last in ((0, 1), (1, 299), (299, 300), (300, 300), (300, 303), (303, n)):
        for block in sweep.pairs(first, last):
            assert ((first <= block.left) & (block.left < last)).all()
            parts[block.left, block.right] = block.distances
    assert_array_equal(parts, whole)


def test_count_is_the_multiset_of_all_distances() -> None:
    stream = stream_of(LENGTHS, 5, 1, seed=1)
    n = len(stream)
    sweep = CpuSweep(stream)
    every = matrix(sweep, n)[np.triu_indices(n, 1)]
    counts = DistanceCounts(1.5)
    sweep.count(0, 20, 1.5, counts)
    sweep.count(20, n, 1.5, counts)
    values, times = np.unique(every[every <= 1.5], return_counts=True)
    assert_array_equal(counts.items(), (values, times))


episodes = st.lists(st.integers(1, 30), min_size=1, max_size=8).map(tuple)


@settings(deadline=None, max_examples=60)
@given(
    lengths=episodes,
    T=st.sampled_from([1, 2, 3, 16, 26]),
    D=st.integers(1, 4),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1e-18, 1e-6, 1.0, 1e6, 1e17]),
    band=st.sampled_from([None, 3]),
    cost=st.sampled_from(COSTS),
    still=st.booleans(),
)
def test_any_episodes(
    lengths: tuple[int, ...], T: int, D: int, seed: int, scale: float, band: int | None, cost: str, still: bool
) -> None:
    stream = stream_of(lengths, T, D, seed, 0 if still else scale)
    n = len(stream)
    found = matrix(CpuSweep(stream, cost=cost, band=band), n)
    above = np.triu(np.ones((n, n), bool), 1)
    assert_array_equal(~np.isnan(found), above)
    pairwise = dtw_pairwise(stream.windows(np.arange(n)), cost=cost, band=band)
    assert_array_equal(found[above], pairwise[above])
    assert_array_equal(found[above], pairwise.T[above])
    some = np.random.default_rng(seed).integers(0, n, (4, 2))
    for i, j in some[some[:, 0] < some[:, 1]]:
        expected = dtw(*stream.windows(np.array([i, j])), cost, band)
        assert_allclose(found[i, j], expected, rtol=3e-6, atol=1e-42)
    limit = float(np.median(found[above])) if n > 1 else 0.0
    pruned = matrix(CpuSweep(stream, cost=cost, band=band), n, limit=limit)
    assert_array_equal(pruned, np.where(found <= limit, found, np.nan))


def test_squares_beyond_float32_are_infinitely_far() -> None:
    actions = np.array([[1e30], [-1e30], [1e30], [0.0]], np.float32)
    stream = WindowStream.build(actions, np.array([1, 2, 3, 4]), 3)
    found = matrix(CpuSweep(stream), 4)
    assert found[0, 2] == 0
    assert_array_equal(found[[0, 0, 1], [1, 3, 2]], np.inf)
    assert_array_equal(matrix(CpuSweep(stream), 4, limit=1e30)[0], [np.nan, np.nan, 0, np.nan])


def test_human_demonstrations(human_zarr: Path) -> None:
    data = read(human_zarr, episodes=8)
    actions = MinMax.fit(data.actions).apply(data.actions)
    stream = WindowStream.build(actions, data.episode_ends, 16)
    n = len(stream)
    sweep = CpuSweep(stream)
    pairwise = dtw_pairwise(stream.windows(np.arange(n)))
    above = np.triu_indices(n, 1)
    assert_array_equal(matrix(sweep, n)[above], pairwise[above])
    limit = float(np.quantile(pairwise[above], 0.015))
    few = np.random.default_rng(0).integers(0, n, (50, 2))
    for i, j in few:
        assert_allclose(pairwise[i, j], dtw(*stream.windows(np.array([i, j]))), rtol=3e-6)
    kept = matrix(sweep, n, limit=limit)
    assert_array_equal(kept[above], np.where(pairwise[above] <= np.float32(limit), pairwise[above], np.nan))


SERIAL = """
import hashlib
import numpy as np
from classact.similarity import WindowStream
from classact.similarity.cpu import CpuSweep
rng = np.random.default_rng(0)
stream = WindowStream.build(rng.normal(size=(900, 3)).astype("f4").cumsum(0), np.array([300, 310, 900]), 16)
digest = hashlib.sha256()
for block in CpuSweep(stream).pairs(0, 900, limit=50):
    for part in (block.left, block.right, block.distances):
        digest.update(part.tobytes())
print(digest.hexdigest())
"""


def test_parallel_equals_serial() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", SERIAL],
            env=os.environ | {"NUMBA_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(found) == 1


def test_messages() -> None:
    stream = stream_of((5,), 2, 1)
    with pytest.raises(ConfigError, match=r"anchors within 0\.\.5, got 2 to 6"):
        list(CpuSweep(stream).pairs(2, 6))
    with pytest.raises(ConfigError, match="limit of distances of at least 0, got -1"):
        list(CpuSweep(stream).pairs(0, 5, limit=-1))
    with pytest.raises(ConfigError, match="band of at least 0 whole steps, or none, got -2"):
        CpuSweep(stream, band=-2)
    with pytest.raises(ConfigError, match="unknown step cost 'l1'"):
        make_sweep(stream, cost="l1", device="cpu")
    with pytest.raises(ConfigError, match="unknown device 'tpu'"):
        make_sweep(stream, device="tpu")
    with pytest.raises(ConfigError, match="horizon of at least 1 step, got 0"):
        WindowStream.build(np.zeros((2, 1), np.float32), np.array([2]), 0)
    with pytest.raises(DataError, match=r"actions\[1, 0\] is nan; 1 of 2 values"):
        WindowStream.build(np.array([[0], [np.nan]], np.float32), np.array([2]), 2)


def test_auto_falls_back_to_the_cpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where torch sees a GPU that the kernels cannot use; asked for by name it is an error."""
    stream = stream_of((5,), 2, 1)

    def unusable(*_: Any, **__: Any) -> None:
        raise ConfigError("no triton")

    monkeypatch.setattr("classact.similarity.sweep._has_gpu", lambda: True)
    monkeypatch.setattr("classact.similarity.gpu.GpuSweep", unusable)
    assert make_sweep(stream).device == "cpu"
    assert "the CPU sweeps over all pairs: no triton" in caplog.text
    with pytest.raises(ConfigError, match="no triton"):
        make_sweep(stream, device="cuda")


def test_compiled_code_depends_on_the_instructions_it_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba alone would reuse it after a change of lanes.py, for cpu.py did not change."""
    from numba.core.registry import cpu_target

    from classact.similarity import cpu, lanes, pairwise

    for function in (cpu._sweep, pairwise._cross, pairwise._pairs):
        key = function.__wrapped__._cache._index_key((), cpu_target.target_context.codegen())
        monkeypatch.setattr(lanes, "_DIGEST", "another")
        assert function.__wrapped__._cache._index_key((), cpu_target.target_context.codegen()) != key
        monkeypatch.undo()


def test_episodes_much_shorter_than_the_horizon() -> None:
    """They are compared without sharing steps: with the same distances, and in seconds, not minutes."""
    stream = stream_of((1,) * 300 + (70,), 64, 2)
    n = len(stream)
    sweep = CpuSweep(stream)
    assert sweep._sparse
    pairwise = dtw_pairwise(stream.windows(np.arange(n)))
    limit = float(np.quantile(pairwise, 0.1))
    keep = (pairwise <= np.float32(limit)) & np.triu(np.ones((n, n), bool), 1)
    assert_array_equal(matrix(sweep, n, limit=limit), np.where(keep, pairwise, np.nan))


@pytest.mark.parametrize("limit", [0.1, 1 / 3, 1.0, 0.7])
def test_a_limit_between_two_float32_values(limit: float) -> None:
    actions = np.zeros((2, 1), np.float32)
    actions[1] = np.sqrt(limit)
    stream = WindowStream.build(actions, np.array([1, 2]), 1)
    distance = float(dtw_pairwise(stream.windows(np.arange(2)))[0, 1])
    below = np.nextafter(np.float32(distance), np.float32(0))
    for bound, kept in ((distance, 1), ((distance + float(below)) / 2, 0)):
        assert sum(len(block) for block in CpuSweep(stream).pairs(0, 2, limit=bound)) == kept
