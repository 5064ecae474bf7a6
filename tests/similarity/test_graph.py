from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_sweep
import numpy as np
import pytest
from fake_sweep import IDENTITY, QUANTILE, MatrixSweep, N
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import fakes
from classact.errors import CheckpointError, ConfigError, StorageError, TrainingInterrupted
from classact.similarity import ActionSimilarity, dtw_pairwise, graph, make_sweep, similarity_identity
from classact.similarity.graph import SimilarityGraph, build_graph, cut_shards, estimate_size, search_rows
from classact.similarity.stream import Pairs, Sweep
from classact.utils.storage import CHECKSUMS

MATRIX = fake_sweep.example_matrix()
THRESHOLD = fake_sweep.threshold(MATRIX)
FILES = [CHECKSUMS, "distances.npy", "graph.json", "indices.npy", "indptr.npy"]
SHARDS = 64


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def build(folder: Path, sweep: Sweep | None = None, **changes: Any) -> SimilarityGraph:
    given: dict[str, Any] = {"n": N, "threshold": THRESHOLD, "identity": IDENTITY, "quantile": QUANTILE}
    return build_graph(folder, sweep or MatrixSweep(MATRIX), **(given | changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph") / "whole"
    build(folder)
    return folder


@pytest.fixture(scope="module")
def example(whole: Path) -> SimilarityGraph:
    return SimilarityGraph.open(whole)


def row(matrix: np.ndarray, i: int, threshold: float, cap: int | None = None) -> np.ndarray:
    """The readable definition of a row: near, not itself, the ``cap`` nearest, ascending."""
    near = [j for j in range(len(matrix)) if j != i and matrix[i, j] <= np.float32(threshold)]
    return np.array(sorted(sorted(near, key=lambda j: (matrix[i, j], j))[:cap]), np.int64)


def check(
    found: SimilarityGraph, matrix: np.ndarray = MATRIX, threshold: float = THRESHOLD, cap: int | None = None
) -> None:
    for i in range(len(matrix)):
        indices, distances = found.neighbors(i)
        expected = row(matrix, i, threshold, cap)
        assert_array_equal(indices, expected)
        assert_array_equal(distances, matrix[i, expected])
        assert found.degrees()[i] == len(expected)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def interrupt_after(shards: int) -> Any:
    calls = 0

    def callback(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == shards:
            os.kill(os.getpid(), signal.SIGINT)

    return callback


# Content


def test_every_row(example: SimilarityGraph, whole: Path) -> None:
    check(example)
    assert sorted(path.name for path in whole.iterdir()) == FILES
    assert [path.name for path in whole.parent.iterdir()] == ["whole"]
    assert (example.indptr.dtype, example.indices.dtype, example.distances.dtype) == (np.int64, np.int32, np.float32)
    degrees = [len(row(MATRIX, i, THRESHOLD)) for i in range(N)]
    pairs = int((MATRIX[np.triu_indices(N, 1)] <= np.float32(THRESHOLD)).sum())
    assert example.card == {
        "identity": json.loads(json.dumps(IDENTITY)),
        "format": 1,
        "n": N,
        "quantile": QUANTILE,
        "threshold": float(np.float32(THRESHOLD)),
        "cap": None,
        "pairs": pairs,
        "entries": 2 * pairs,
        "stats": {
            "positives_per_anchor": {
                "min": min(degrees),
                "median": np.median(degrees),
                "mean": np.mean(degrees),
                "max": max(degrees),
                "without": degrees.count(0),
            }
        },
    }


@pytest.mark.parametrize("cap", [1, 3, 10, 1000])
@pytest.mark.parametrize("held", [20, 1 << 22])
def test_capped_to_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cap: int, held: int) -> None:
    monkeypatch.setattr(graph, "UNIT_ENTRIES", held)  # so few that rows are cut while they are still being found
    found = build(tmp_path / "graph", cap=cap)
    check(found, cap=cap)
    assert found.cap == cap
    assert found.card["stats"]["positives_per_anchor"]["max"] == max(len(row(MATRIX, i, THRESHOLD)) for i in range(N))


def test_rows_of_the_reference(tmp_path: Path) -> None:
    windows = fake_sweep.stream(n=30, horizon=4).windows(np.arange(30))
    matrix = fake_sweep.reference_matrix(windows)
    threshold = fake_sweep.threshold(matrix, 0.3)
    check(build(tmp_path / "graph", MatrixSweep(matrix), n=30, threshold=threshold), matrix, threshold)


@given(
    n=st.integers(2, 12),
    seed=st.integers(0, 1 << 30),
    cap=st.none() | st.integers(1, 5),
    threshold=st.integers(0, 4),
    block=st.integers(1, 40),
)
def test_rows_of_any_distances(n: int, seed: int, cap: int | None, threshold: int, block: int) -> None:
    matrix = np.random.default_rng(seed).integers(0, 5, (n, n)).astype(np.float32)
    matrix = np.maximum(matrix, matrix.T)
    matrix[matrix == 0] = -0.0
    for first in range(n):
        lengths, found, indices, distances = search_rows(MatrixSweep(matrix, block), first, n, n, threshold, cap)
        ends = np.cumsum(lengths)
        for i in range(first, n):
            expected = row(matrix, i, threshold, cap)
            part = slice(ends[i - first] - lengths[i - first], ends[i - first])
            assert_array_equal(indices[part], expected)
            assert_array_equal(distances[part], matrix[i, expected])
            assert found[i - first] == len(row(matrix, i, threshold))


def test_a_threshold_that_keeps_nothing(tmp_path: Path) -> None:
    matrix = np.ones((5, 5), np.float32)
    found = build(tmp_path / "graph", MatrixSweep(matrix), n=5, threshold=0.5)
    assert found.degrees().tolist() == [0] * 5
    assert found.neighbors(3)[0].shape == (0,)
    assert np.isinf(found.distances_of(np.array([0, 3]))).tolist() == [[False, True], [True, False]]


def test_scipy(example: SimilarityGraph) -> None:
    sparse = example.to_scipy()
    assert np.shares_memory(sparse.indices, example.indices)
    assert np.shares_memory(sparse.data, example.distances)
    assert (sparse.indptr == example.indptr).all()
    wanted = np.where((np.float32(THRESHOLD) >= MATRIX) & ~np.eye(N, dtype=bool), MATRIX, 0)
    assert_array_equal(sparse.toarray(), wanted)


def test_no_such_step(example: SimilarityGraph) -> None:
    with pytest.raises(ConfigError, match=r"expected steps within 0..149, got 150..150"):
        example.neighbors(150)
    with pytest.raises(ConfigError, match=r"expected steps within 0..149, got -1..7"):
        example.distances_of(np.array([7, -1]))


def test_a_sweep_that_gives_other_anchors() -> None:
    class Wrong(MatrixSweep):
        def pairs(self, first: int, last: int, **_: Any) -> Iterator[Pairs]:
            assert first < last
            one = np.array([last], np.uint32)
            yield Pairs(one, one, np.zeros(1, np.float32))

    with pytest.raises(RuntimeError, match=r"over the anchors 0..5 of 150 gave pairs beyond them"):
        search_rows(Wrong(MATRIX), 0, 5, N, 1.0, None)


# Distances and weights of a batch


@pytest.mark.parametrize("size", [1, 2, 8, 60, 400])  # shorter and longer than rows
def test_distances_of_a_batch(example: SimilarityGraph, size: int) -> None:
    rows = np.random.default_rng(size).integers(0, N, size)
    wanted = MATRIX[np.ix_(rows, rows)]
    wanted = np.where(wanted <= np.float32(THRESHOLD), wanted, np.inf)
    wanted[rows[:, None] == rows[None, :]] = 0
    found = example.distances_of(rows)
    assert found.dtype == np.float32
    assert_array_equal(found, wanted)
    assert example.distances_of(np.empty(0, np.int64)).shape == (0, 0)


def test_distances_of_a_capped_graph_are_symmetric(tmp_path: Path) -> None:
    found = build(tmp_path / "graph", cap=2)
    rows = np.arange(N)
    some = np.random.default_rng(0).integers(0, N, 70)
    assert_array_equal(found.distances_of(some, 9), found.distances_of(some)[:9])
    near = [set(row(MATRIX, i, THRESHOLD, 2).tolist()) for i in range(N)]
    distances = found.distances_of(rows)
    assert_array_equal(distances, distances.T)
    for i in range(N):
        for j in range(N):
            wanted = 0 if i == j else MATRIX[i, j] if j in near[i] or i in near[j] else np.inf
            assert distances[i, j] == wanted


@pytest.mark.parametrize("kind", ["matrix", "cpu"])
def test_weights_equal_online_weights(tmp_path: Path, kind: str) -> None:
    similarity = ActionSimilarity(fakes.demonstrations(), replace(fakes.pretrain_config().similarity, quantile=0.1))
    n, distribution = len(similarity.stream), similarity.distribution
    sweep = similarity.sweep
    if kind == "matrix":
        sweep = MatrixSweep(dtw_pairwise(similarity.stream.windows(np.arange(n))))
    identity = similarity_identity(similarity.stream, similarity.config)
    size = {"quantile": distribution.quantile, "kept": distribution.kept}
    found = build_graph(tmp_path / "graph", sweep, n, distribution.threshold, identity, **size)
    assert distribution.exact
    assert found.card["pairs"] == distribution.kept
    rng = np.random.default_rng(0)
    for size in (1, 16, 50, n):
        rows = rng.integers(0, n, size)
        weights = found.weights(rows, distribution)
        assert weights.dtype == np.float32
        assert_array_equal(weights, similarity.weights(rows))
        for anchors in (1, max(size // 2, 1), size):
            assert_array_equal(found.weights(rows, distribution, anchors), weights[:anchors])
    assert (weights > 0).any()


def test_shards_of_the_cpu_sweep_do_not_depend_on_where_they_are_cut(tmp_path: Path) -> None:
    stream = fake_sweep.stream()
    matrix = dtw_pairwise(stream.windows(np.arange(N)))
    threshold = fake_sweep.threshold(matrix)
    check(build(tmp_path / "graph", make_sweep(stream), threshold=threshold), matrix, threshold)


# Stopped and continued


def test_interrupted_and_continued(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "graph"
    with pytest.raises(TrainingInterrupted, match=rf"stopped with 9 of {SHARDS} shards in .*graph.shards; the same"):
        build(folder, progress=interrupt_after(10))  # the first call comes before the first shard
    assert not folder.exists()
    calls: list[tuple[int, int, str]] = []
    rest = MatrixSweep(MATRIX)
    check(build(folder, rest, progress=lambda *call: calls.append(call)))
    assert rest.calls == SHARDS - 9
    assert calls[-1][:2] == (N * (N - 1), N * (N - 1))
    assert calls[0][0] == N * (N - 1) * 9 // SHARDS
    assert bytes_of(folder) == bytes_of(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]


def test_a_finished_graph_is_opened(tmp_path: Path) -> None:
    build(tmp_path / "graph")
    (tmp_path / "graph.shards").mkdir()  # killed before they were removed
    sweep = MatrixSweep(MATRIX)
    check(build(tmp_path / "graph", sweep))
    assert sweep.calls == 0
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]
    with pytest.raises(ConfigError, match=r"graph.json was made with settings.horizon = 8, now it is 16"):
        build(tmp_path / "graph", identity={**IDENTITY, "settings": IDENTITY["settings"] | {"horizon": 16}})
    with pytest.raises(ConfigError, match=r"made with cap = None, now it is 5. Choose another folder"):
        build(tmp_path / "graph", cap=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identity": IDENTITY | {"data": "talk"}}, "00000.safetensors was made with data = 'walk', now it is 'talk'"),
        ({"threshold": 2 * THRESHOLD}, "made with threshold = .*, now it is .*remove .*graph.shards to start over"),
        ({"cap": 3}, "made with cap = None, now it is 3"),
    ],
)
def test_shards_of_other_data_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingInterrupted):
        build(tmp_path / "graph", progress=interrupt_after(3))
    before = bytes_of(tmp_path / "graph.shards")
    with pytest.raises(ConfigError, match=message):
        build(tmp_path / "graph", **changes)
    assert bytes_of(tmp_path / "graph.shards") == before


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_shards_are_searched_again(
    tmp_path: Path, whole: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    with pytest.raises(TrainingInterrupted):
        build(tmp_path / "graph", progress=interrupt_after(9))
    shard = tmp_path / "graph.shards" / "shard-00004.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] if damage == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    (tmp_path / "graph.shards" / ".shard-00005.safetensors.12.ab.tmp").write_text("half")
    with caplog.at_level(logging.WARNING, "classact"):
        build(tmp_path / "graph")
    assert "shard-00004" in caplog.text
    assert "Its pairs are searched again." in caplog.text
    assert bytes_of(tmp_path / "graph") == bytes_of(whole)


# Files that are not right


@pytest.mark.parametrize("name", ["indptr.npy", "indices.npy", "distances.npy", "graph.json"])
@pytest.mark.parametrize("verify", [True, False])
def test_truncated_graphs_are_refused(tmp_path: Path, whole: Path, name: str, verify: bool) -> None:
    shutil.copytree(whole, tmp_path / "graph")
    path = tmp_path / "graph" / name
    size = path.stat().st_size
    os.truncate(path, size - 4)
    message = rf"{name} has {size - 4:,} bytes, expected {size:,}: it was truncated.*build the graph again"
    with pytest.raises(CheckpointError, match=message):
        SimilarityGraph.open(tmp_path / "graph", IDENTITY, verify=verify)
    with pytest.raises(CheckpointError, match=message):
        build(tmp_path / "graph")


@pytest.mark.parametrize("name", ["indptr.npy", "indices.npy", "distances.npy"])
def test_changed_graphs_are_refused(tmp_path: Path, whole: Path, name: str) -> None:
    shutil.copytree(whole, tmp_path / "graph")
    path = tmp_path / "graph" / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 64
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} has SHA-256 \w+\.\.\., expected .*its content is damaged"):
        SimilarityGraph.open(tmp_path / "graph")


def test_missing_and_foreign_files(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist or is not a folder: build the similarity graph"):
        SimilarityGraph.open(tmp_path / "nowhere")
    folder = tmp_path / "graph"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"checksums.json does not exist"):
        SimilarityGraph.open(folder)
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    (folder / "indices.npy").unlink()
    with pytest.raises(CheckpointError, match=r"indices.npy is missing: the similarity graph is incomplete"):
        SimilarityGraph.open(folder)


def reseal(folder: Path) -> None:
    shutil.move(folder, folder.with_name("old"))

    def fill(new: Path) -> None:
        for path in folder.with_name("old").iterdir():
            if path.name != CHECKSUMS:
                shutil.copy(path, new)

    graph.write_folder(folder, fill)


def test_a_graph_of_another_kind(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "graph"
    shutil.copytree(whole, folder)
    np.save(folder / "indices.npy", np.zeros(3, np.int64))
    reseal(folder)
    with pytest.raises(CheckpointError, match=r"indices.npy holds int64 of shape \(3,\), expected int32 of shape"):
        SimilarityGraph.open(folder)
    card = json.loads((folder / "graph.json").read_text())
    (folder / "graph.json").write_text(json.dumps(card | {"format": 9}))
    shutil.rmtree(folder.with_name("old"))
    reseal(folder)
    with pytest.raises(CheckpointError, match=r"graph.json has format 9, this version of classact reads 1"):
        SimilarityGraph.open(folder)


def test_graphs_of_other_data_are_refused_by_name(whole: Path) -> None:
    other = {**IDENTITY, "settings": {**IDENTITY["settings"], "horizon": 16}}
    with pytest.raises(ConfigError, match=r"graph.json was made with settings.horizon = 8, now it is 16"):
        SimilarityGraph.open(whole, other)
    assert len(SimilarityGraph.open(whole, IDENTITY, verify=False)) == N


# Size


def test_sizes() -> None:
    size = estimate_size(254_000, 0.015)
    assert size.entries == round(0.015 * 254_000 * 253_999)
    assert size.bytes == 8 * size.entries + 8 * 254_001
    assert str(size) == f"{size.entries:,} edges, 7.7 GB on disk, 15.5 GB while it is built"
    assert estimate_size(254_000, 0.015, 100).entries == 25_400_000
    assert estimate_size(254_000, 0.015, 100, kept=5).entries == 10
    assert str(estimate_size(2, 0.5, kept=1)) == "2 edges, 40 bytes on disk, 96 bytes while it is built"
    with pytest.raises(ConfigError, match=r"expected a quantile K between 0 and 1 .* got 1.5"):
        estimate_size(10, 1.5)
    with pytest.raises(ConfigError, match="expected a cap of at least 1 neighbour per anchor, or none, got 0"):
        estimate_size(10, 0.5, 0)
    with pytest.raises(ConfigError, match=r"a graph names 2 to 2,147,483,647 windows, got 3,000,000,000. Train online"):
        estimate_size(3_000_000_000, 0.5)


def test_the_estimate_holds(whole: Path) -> None:
    pairs = int((MATRIX[np.triu_indices(N, 1)] <= np.float32(THRESHOLD)).sum())
    arrays = sum((whole / f"{name}.npy").stat().st_size - 128 for name in graph.ARRAYS)
    assert arrays == estimate_size(N, QUANTILE, kept=pairs).bytes
    assert arrays == pytest.approx(estimate_size(N, QUANTILE).bytes, rel=0.05)


@pytest.mark.parametrize("n", [2, 150, 254_000, 100_000_000])
def test_shards_are_cut_by_size(n: int) -> None:
    size = estimate_size(n, 0.015, 64)
    cut = cut_shards(n, size)
    assert (cut[0], cut[-1]) == (0, n)
    assert (np.diff(cut) > 0).all()
    assert len(cut) - 1 <= graph.MOST_UNITS
    assert size.entries / (len(cut) - 1) <= graph.UNIT_ENTRIES


def test_no_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    seen: list[Path] = []

    def disk(path: Path) -> Any:
        seen.append(path)
        return usage._replace(free=20_000)

    monkeypatch.setattr(shutil, "disk_usage", disk)
    sweep = MatrixSweep(MATRIX)
    message = (
        r"similarity graph in .*graph needs 39.4 kB \(2,235 edges, while it is built\), but 20.0 kB are free there. "
        r"Cap it to the 6 nearest neighbours per anchor or fewer, lower K from 0.1 to 0.04, choose a folder on another "
        r"disk, or train online"
    )
    with pytest.raises(StorageError, match=message):
        build(tmp_path / "new" / "graph", sweep)
    assert sweep.calls == 0
    assert seen == [tmp_path]
    assert list(tmp_path.iterdir()) == []
    check(build(tmp_path / "new" / "graph", sweep, cap=6), cap=6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=50))
    with pytest.raises(StorageError, match=r"but 50 bytes are free there. Free some space, choose a folder"):
        build(tmp_path / "other", sweep)


def test_what_is_written_already_needs_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingInterrupted):
        build(tmp_path / "graph", progress=interrupt_after(SHARDS - 2))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=30_000))
    check(build(tmp_path / "graph"))


def test_the_size_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "classact"):
        build(tmp_path / "graph")
    assert "similarity graph: about 2,235 edges, 19.1 kB on disk, 39.4 kB while it is built" in caplog.text


def test_graphs_are_values(example: SimilarityGraph) -> None:
    smaller = replace(example, indptr=example.indptr[:11])
    assert len(smaller) == 10
    assert smaller.threshold == np.float32(THRESHOLD)


def test_anchors_with_far_more_neighbours_than_average_are_searched_few_at_a_time(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = MatrixSweep(fake_sweep.example_matrix())
    threshold = SimilarityGraph.open(whole).threshold
    expected = search_rows(sweep, 0, N, N, threshold, None)
    calls = sweep.calls
    monkeypatch.setattr(graph, "UNIT_ENTRIES", len(expected[2]) // 10)
    found = search_rows(sweep, 0, N, N, threshold, None)
    for a, b in zip(found, expected, strict=True):
        assert_array_equal(a, b)
    assert sweep.calls - calls > 5


def test_leftovers_of_a_launch_killed_while_assembling_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".graph.99.abc.tmp").mkdir()
    (tmp_path / ".graph.99.abc.tmp" / "indices.npy").write_bytes(b"x")
    build(tmp_path / "graph")
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]
