from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal

from classact.data.types import FloatArray
from classact.data.windows import window_indices
from classact.errors import ConfigError, DataError
from classact.similarity import COSTS, alignment, dtw, dtw_pairs, dtw_pairwise

both_costs = pytest.mark.parametrize("cost", COSTS)


def draw(shape: tuple[int, ...], seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def reference(x: FloatArray, y: FloatArray, cost: str) -> np.ndarray:
    return np.array([[dtw(a, b, cost) for b in y] for a in x])


def test_example() -> None:
    """Worked by hand: the alignment (0, 0), (1, 0), (2, 1) costs 0 + 1 + 0; in two dimensions 3, 4, 5."""
    a, b = np.array([[0.0], [1], [3]]), np.array([[0.0], [3]])
    assert dtw(a, b, "sqeuclidean") == dtw(a, b, "euclidean") == 1
    c, d = np.zeros((2, 2)), np.full((2, 2), [3.0, 4.0])
    assert dtw(c, d, "euclidean") == 10
    assert dtw(c, d, "sqeuclidean") == 50


@both_costs
@pytest.mark.parametrize(("N", "M"), [(1, 1), (1, 65), (2, 64), (3, 63), (2, 130)])
def test_any_number_of_windows(N: int, M: int, cost: str) -> None:
    """The kernel works on 64 windows at a time: the last group may be short."""
    x, y = draw((N, 3, 2)), draw((M, 3, 2), 1)
    assert_allclose(dtw_pairwise(x, y, cost=cost), reference(x, y, cost), rtol=2e-6)


@both_costs
def test_one_set_with_itself(cost: str) -> None:
    x = draw((70, 16, 10))
    found = dtw_pairwise(x, cost=cost)
    assert_array_equal(found, dtw_pairwise(x, x.copy(), cost=cost))
    assert_array_equal(found, found.T)
    assert_array_equal(found.diagonal(), 0)
    assert (found[~np.eye(70, dtype=bool)] > 0).all()


@both_costs
def test_pairs_are_entries_of_the_matrix(cost: str) -> None:
    actions, ends = draw((40, 2)), np.array([3, 20, 40])
    windows = window_indices(ends, 16)
    left, right = np.random.default_rng(1).integers(0, 40, (2, 300))
    found = dtw_pairs(actions, windows, left, right, cost=cost)
    assert_array_equal(found, dtw_pairwise(actions[windows], cost=cost)[left, right])


@pytest.mark.filterwarnings("ignore:unsafe cast:Warning")  # aeon's, while it is compiled
def test_equals_aeon() -> None:
    """The package that the paper used (appendix B). It has the squared cost only."""
    from aeon.distances import dtw_pairwise_distance

    x = draw((40, 16, 10))
    expected = dtw_pairwise_distance(x.astype(np.float64).transpose(0, 2, 1))
    assert_allclose(dtw_pairwise(x), expected, rtol=3e-6)


def test_the_two_costs_rank_differently() -> None:
    """One large difference counts more when squared, four small ones more when not."""
    anchor = np.zeros((4, 1), np.float32)
    spike = np.array([[0], [0], [0], [2]], np.float32)
    offset = np.full((4, 1), 0.6, np.float32)
    pair = np.stack([spike, offset])
    squared, plain = (dtw_pairwise(anchor[None], pair, cost=cost)[0] for cost in ("sqeuclidean", "euclidean"))
    assert_allclose(squared, [4.0, 1.44], rtol=1e-6)
    assert_allclose(plain, [2.0, 2.4], rtol=1e-6)


THREADS = """
import sys
import numba, numpy as np
from classact.similarity.pairwise import dtw_pairs, dtw_pairwise
rng = np.random.default_rng(0)
x = rng.uniform(-1, 1, (150, 16, 2)).astype(np.float32)
pairs = rng.integers(0, 150, (2, 1000))
found = []
for threads in (1, 2, 3):
    numba.set_num_threads(threads)
    assert numba.get_num_threads() == threads
    chosen = dtw_pairs(x[:, 0], np.minimum(np.arange(150)[:, None] + np.arange(16), 149), *pairs)
    found.append((dtw_pairwise(x).tobytes(), dtw_pairwise(x, cost="euclidean").tobytes(), chosen.tobytes()))
sys.exit(0 if found[0] == found[1] == found[2] else "threads change the result")
"""


def test_parallel_equals_serial() -> None:
    """In a process of its own: the number of threads can only be lowered once numba runs."""
    environment = os.environ | {"NUMBA_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, "-c", THREADS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Properties

SCALES = (1e-25, 1e-6, 1.0, 1e6, 1e15)


def windows(scale: float, D: int) -> st.SearchStrategy[FloatArray]:
    values = st.floats(-1, 1, width=32)
    shape = st.tuples(st.integers(1, 4), st.integers(1, 5), st.just(D))
    constant = st.builds(np.full, shape, values, st.just(np.float32))
    varied = shape.flatmap(lambda s: arrays(np.float32, s, elements=values))
    return st.one_of(constant, varied).map(lambda x: x * np.float32(scale))


sets = st.tuples(st.sampled_from(SCALES), st.integers(1, 3)).flatmap(lambda c: st.tuples(windows(*c), windows(*c)))


@both_costs
@settings(max_examples=60)
@given(pair=sets)
def test_any_finite_windows(cost: str, pair: tuple[FloatArray, FloatArray]) -> None:
    """The reference's value up to rounding, from 1e-25 (whose square is 0 in float32) to 1e15."""
    x, y = pair
    found = dtw_pairwise(x, y, cost=cost)
    # What float32 cannot hold: squares below 1e-38, of which the Euclidean cost takes the root.
    assert_allclose(found, reference(x, y, cost), rtol=5e-6, atol={"sqeuclidean": 1e-36, "euclidean": 1e-17}[cost])
    assert_array_equal(found.T, dtw_pairwise(y, x, cost=cost))
    assert_array_equal(dtw_pairwise(x, cost=cost).diagonal(), 0)


@both_costs
@settings(max_examples=40)
@given(pair=sets, scale=st.sampled_from(SCALES))
def test_another_dimension_never_brings_windows_closer(
    cost: str, pair: tuple[FloatArray, FloatArray], scale: float
) -> None:
    x, y = pair
    more_x, more_y = (np.concatenate([v, draw((*v.shape[:2], 1), 5) * np.float32(scale)], axis=2) for v in (x, y))
    assert (dtw_pairwise(more_x, more_y, cost=cost) >= dtw_pairwise(x, y, cost=cost)).all()


@both_costs
def test_overflow_is_infinite_never_nan(cost: str) -> None:
    """Squares above 3e38 exceed float32. Normalised actions are 38 orders of magnitude away from that."""
    x = np.full((2, 3, 2), 1e25, np.float32)
    y = -x
    assert_array_equal(dtw_pairwise(x, y, cost=cost), np.inf)
    assert_array_equal(dtw_pairwise(x, cost=cost), 0)


# Messages


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("step", [0, 2])
def test_nan_is_refused(step: int, bad: float) -> None:
    """A path of smallest cost could walk around a NaN and return a plain number."""
    good = draw((3, 3, 2))
    x = good.copy()
    x[1, step, 0] = bad
    where = rf"\[1, {step}, 0\] is {bad}; 1 of 18 values"
    with pytest.raises(DataError, match="x" + where):
        dtw_pairwise(x, good)
    with pytest.raises(DataError, match="y" + where):
        dtw_pairwise(good, x)
    with pytest.raises(DataError, match=rf"b\[{step}, 0\] is {bad}"):
        dtw(good[0], x[1])
    with pytest.raises(DataError, match=rf"actions\[{step}, 0\] is {bad}; 1 of 6"):
        dtw_pairs(x[1], np.array([[0], [1]]), np.array([0]), np.array([1]))


def test_unknown_cost() -> None:
    x = draw((2, 3, 2))
    for call in (
        lambda: dtw(x[0], x[1], "l1"),
        lambda: dtw_pairwise(x, cost="l1"),
        lambda: dtw_pairs(x[0], np.array([[0]]), np.array([0]), np.array([0]), cost="l1"),
    ):
        with pytest.raises(ConfigError, match=r"unknown step cost 'l1': available are 'euclidean', 'sqeuclidean'"):
            call()


def test_shapes() -> None:
    x = draw((2, 3, 2))
    for y in (draw((2, 3, 1)), x[0], x[:0], x[:, :0]):
        with pytest.raises(ConfigError, match=r"expected windows of shapes \(N, T, D\)"):
            dtw_pairwise(x, y)
    for b in (draw((3, 1)), draw((3,)), draw((0, 2))):
        with pytest.raises(ConfigError, match=r"expected sequences of shapes \(T, D\)"):
            dtw(x[0], b)


def test_indices_out_of_range() -> None:
    """Compiled loops would read whatever lies in memory there."""
    actions, windows = draw((5, 2)), np.arange(4)[:, None]
    zero = np.zeros(1, np.int64)
    with pytest.raises(ConfigError, match=r"expected left within 0\.\.3, got 4\.\.4"):
        dtw_pairs(actions, windows, zero + 4, zero)
    with pytest.raises(ConfigError, match=r"expected right within 0\.\.3, got -1\.\.-1"):
        dtw_pairs(actions, windows, zero, zero - 1)
    with pytest.raises(ConfigError, match=r"expected windows within 0\.\.4, got 2\.\.5"):
        dtw_pairs(actions, windows + 2, zero, zero)
    with pytest.raises(ConfigError, match="as many left as right windows, got 2 and 1"):
        dtw_pairs(actions, windows, np.zeros(2, np.int64), zero)
    assert dtw_pairs(actions, windows, zero[:0], zero[:0]).shape == (0,)


# Bands, limits, tensors


@both_costs
@pytest.mark.parametrize("band", [None, 0, 1, 3, 8, 40])
@pytest.mark.parametrize(("T", "other"), [(5, 5), (16, 16), (5, 8), (8, 5), (33, 33), (30, 33)])
def test_bands_equal_the_reference(T: int, other: int, band: int | None, cost: str) -> None:
    x, y = draw((3, T, 2)), draw((18, other, 2), 1)
    expected = np.array([[dtw(a, b, cost, band) for b in y] for a in x])
    found = dtw_pairwise(x, y, cost=cost, band=band)
    assert found.dtype == np.float32
    assert_allclose(found, expected, rtol=3e-6)
    assert np.isinf(expected).all() == (band is not None and abs(T - other) > band)
    if other == T:
        actions = np.concatenate([x, y]).reshape(-1, 2)
        windows = np.arange(len(actions)).reshape(-1, T)
        left, right = (v.ravel() for v in np.meshgrid(np.arange(3), np.arange(3, 21), indexing="ij"))
        assert_array_equal(dtw_pairs(actions, windows, left, right, cost=cost, band=band), found.ravel())


def test_a_wider_band_is_never_farther() -> None:
    x = draw((40, 16, 2))
    found = [dtw_pairwise(x, band=band) for band in (0, 1, 2, 5, 15, None)]
    for narrow, wide in itertools.pairwise(found):
        assert (wide <= narrow).all()
    assert_array_equal(found[-2], found[-1])
    assert_allclose(found[0], ((x[:, None] - x[None]) ** 2).sum(axis=(2, 3)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("y_shape", [None, (50, 16, 2), (50, 9, 2)])
def test_a_limit_changes_nothing_below_it(y_shape: tuple[int, ...] | None) -> None:
    x = draw((70, 16, 2)).cumsum(axis=1)
    y = None if y_shape is None else draw(y_shape, 1).cumsum(axis=1)
    every = dtw_pairwise(x, y)
    limit = float(np.quantile(every, 0.05))
    found = dtw_pairwise(x, y, limit=limit)
    near = every <= limit
    assert_array_equal(found[near], every[near])
    assert (found[~near] > limit).all()
    assert np.isinf(found[~near]).any()  # some alignments were saved


def test_tensors_in_tensors_out() -> None:
    x, y = draw((5, 8, 2)), draw((3, 8, 2), 1)
    found = dtw_pairwise(torch.from_numpy(x).double().requires_grad_(), torch.from_numpy(y).double())
    assert isinstance(found, torch.Tensor)
    assert found.dtype == torch.float32
    assert_array_equal(found.numpy(), dtw_pairwise(x, y))
    assert_array_equal(dtw_pairwise(torch.from_numpy(x)).numpy(), dtw_pairwise(x))
    with pytest.raises(ConfigError, match="both sets as NumPy arrays or both as tensors"):
        dtw_pairwise(x, torch.from_numpy(y))  # type: ignore[type-var]


@pytest.mark.parametrize("D", [1, 3])
@pytest.mark.parametrize("band", [None, 2])
def test_equals_dtaidistance_and_tslearn(D: int, band: int | None) -> None:
    """Both take the root of the sum of squares; dtaidistance calls a band of b steps a window of b + 1."""
    from dtaidistance import dtw_ndim
    from tslearn.metrics import dtw as tslearn_dtw

    x = draw((6, 12, D)).astype(np.float64)
    found = dtw_pairwise(x, band=band)
    for i in range(6):
        for j in range(6):
            theirs = dtw_ndim.distance(x[i], x[j], window=None if band is None else band + 1)
            assert_allclose(found[i, j], theirs**2, rtol=3e-6, atol=1e-12)
            options = {} if band is None else {"global_constraint": "sakoe_chiba", "sakoe_chiba_radius": band}
            assert_allclose(found[i, j], tslearn_dtw(x[i], x[j], **options) ** 2, rtol=3e-6, atol=1e-12)


# The warping path


@both_costs
@settings(max_examples=30)
@given(T=st.integers(1, 9), other=st.integers(1, 9), seed=st.integers(0, 99), band=st.sampled_from([None, 3]))
def test_alignment_costs_the_distance(cost: str, T: int, other: int, seed: int, band: int | None) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 3, (T, 2)).astype(float), rng.integers(0, 3, (other, 2)).astype(float)
    if band is not None and abs(T - other) > band:
        with pytest.raises(ConfigError, match=f"a band of {band} aligns no sequences of {T} and {other} steps"):
            alignment(a, b, cost, band)
        return
    path = alignment(a, b, cost, band)
    assert path[0] == (0, 0)
    assert path[-1] == (T - 1, other - 1)
    for (p, q), (p2, q2) in itertools.pairwise(path):
        assert (p2 - p, q2 - q) in {(1, 0), (0, 1), (1, 1)}
    steps = np.array([np.linalg.norm(a[p] - b[q]) for p, q in path])
    assert_allclose((steps**2 if cost == "sqeuclidean" else steps).sum(), dtw(a, b, cost, band), atol=1e-9)
    if band is not None:
        assert max(abs(p - q) for p, q in path) <= band


def test_inputs_of_other_kinds() -> None:
    x = torch.from_numpy(draw((3, 4, 2)))
    assert_array_equal(dtw_pairwise(x.bfloat16()).numpy(), dtw_pairwise(x.bfloat16().float().numpy()))
    with pytest.raises(ConfigError, match="as a NumPy array or a tensor, got list"):
        dtw_pairwise([[[1.0]]])  # type: ignore[type-var]
    with pytest.raises(ConfigError, match="on one device, got cpu and meta"):
        dtw_pairwise(x, x.to("meta"))
    with pytest.raises(ConfigError, match=r"whole steps, or none, got 1\.5"):
        dtw_pairwise(x, band=1.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="limit of distances of at least 0, got nan"):
        dtw_pairwise(x, limit=float("nan"))
