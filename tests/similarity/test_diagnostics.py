from __future__ import annotations

import itertools
import math
import signal
from pathlib import Path

import numpy as np
import pytest
from fake_sweep import MatrixSweep
from numpy.typing import NDArray

import fakes
from classact.errors import ConfigError, TrainingInterrupted
from classact.similarity import dtw, dtw_pairwise
from classact.similarity.diagnostics import (
    Setting,
    agreement,
    anchor_positives,
    horizon_settings,
    jaccard,
    metric_settings,
    positives_per_anchor,
    positives_per_batch,
    quantile_row,
    quantile_threshold,
    same_episode_share,
    setting_distances,
)
from classact.similarity.examples import choose_examples
from classact.similarity.job import cut_units
from classact.similarity.pairwise import sample_pairs
from classact.similarity.positives import Positives, count_positives
from classact.similarity.stream import WindowStream

LENGTHS = (40, 25, 7, 33, 25)
T = 8


def walks(seed: int = 0) -> tuple[WindowStream, NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Stream, actions, ends, and episode of each window."""
    data = fakes.demonstrations(seed, 8, LENGTHS)
    actions = data.actions / np.float32(256) - 1
    return WindowStream.build(actions, data.episode_ends, T), actions, data.episode_ends, data.episode_index()


STREAM, ACTIONS, ENDS, EPISODE = walks()
N = len(EPISODE)
MATRIX = dtw_pairwise(STREAM.windows(np.arange(N)))
UPPER = np.triu_indices(N, 1)
THRESHOLD = quantile_threshold(MATRIX[UPPER], 0.1)


def brute_force(threshold: float = THRESHOLD) -> tuple[list[int], list[int]]:
    positives, same = [0] * N, [0] * N
    for i in range(N):
        for j in range(N):
            if i != j and MATRIX[i, j] <= np.float32(threshold):
                positives[i] += 1
                same[i] += int(EPISODE[i] == EPISODE[j])
    return positives, same


# Positives


def test_positives_equal_brute_force() -> None:
    found = count_positives(MatrixSweep(MATRIX), THRESHOLD, EPISODE)
    positives, same = brute_force()
    assert found.total.tolist() == positives
    assert found.same_episode.tolist() == same
    assert found.pairs == (MATRIX[UPPER] <= np.float32(THRESHOLD)).sum()


def test_positives_continue_where_they_were_stopped(tmp_path: Path) -> None:
    identity = {"data": "walks"}
    sweep = MatrixSweep(MATRIX)
    seen: list[int] = []

    def stop(done: int, *_: object) -> None:
        seen.append(done)
        if len(seen) == 30:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(TrainingInterrupted, match=r"what was counted is saved in .*, and the same"):
        count_positives(sweep, THRESHOLD, EPISODE, tmp_path, identity, progress=stop)
    with pytest.raises(ConfigError, match=r"was made with identity.data = 'walks', now it is 'others'"):
        count_positives(sweep, THRESHOLD, EPISODE, tmp_path, {"data": "others"})
    with pytest.raises(ConfigError, match="threshold"):
        count_positives(sweep, THRESHOLD * 2, EPISODE, tmp_path, identity)
    assert sweep.calls == 30
    found = count_positives(sweep, THRESHOLD, EPISODE, tmp_path, identity)
    assert sweep.calls == len(cut_units(N)) - 1
    assert (found.total.tolist(), found.same_episode.tolist()) == brute_force()


def test_ctrl_c_without_a_folder_is_ctrl_c() -> None:
    def stop(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        count_positives(MatrixSweep(MATRIX), THRESHOLD, EPISODE, progress=stop)


def test_sampled_anchors_have_their_exact_positives() -> None:
    anchors = np.array([3, 40, 70, 71, 129])
    thresholds = [0.0, THRESHOLD, 3 * THRESHOLD]
    for threshold, found in zip(thresholds, anchor_positives(STREAM, EPISODE, thresholds, anchors), strict=True):
        positives, same = brute_force(threshold)
        assert found.total.tolist() == [positives[a] for a in anchors]
        assert found.same_episode.tolist() == [same[a] for a in anchors]
    row = quantile_row(0.1, THRESHOLD, found)
    assert (row.least, row.median) == (found.total.min(), np.median(found.total))


# summaries


def test_positives_per_anchor() -> None:
    positives, same = (np.array(values) for values in brute_force())
    found = positives_per_anchor(Positives(positives, same), bins=10)
    assert (found.least, found.most) == (positives.min(), positives.max())
    assert found.median == np.median(positives)
    assert found.mean == pytest.approx(positives.mean())
    assert found.none == np.mean(positives == 0)
    assert found.same_episode == pytest.approx(same.sum() / positives.sum())
    assert sum(found.counts) == N
    assert len(found.counts) <= 10
    widths = np.diff(found.edges)
    assert (widths == widths[0]).all()
    assert widths[0] == round(widths[0])
    for a, b, count in zip(found.edges[:-1], found.edges[1:], found.counts, strict=True):
        assert count == ((positives >= a) & (positives < b)).sum()


def test_no_positives_at_all() -> None:
    found = positives_per_anchor(Positives(np.zeros(5, np.int64), np.zeros(5, np.int64)))
    assert (found.least, found.median, found.most, found.none, found.same_episode) == (0, 0.0, 0, 1.0, 0.0)
    assert positives_per_batch(np.zeros(5, np.int64), 3).none == 1.0


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 7, 20])
def test_positives_per_batch_equal_all_batches(batch_size: int) -> None:
    adjacent = np.array([[0, 1, 1, 0, 0, 1, 0], [1, 0, 1, 0, 0, 1, 0], [1, 1, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0]])
    adjacent = np.vstack([adjacent, np.zeros((3, 7), int)]) | np.vstack([adjacent, np.zeros((3, 7), int)]).T
    n, size = 7, min(batch_size, 7)
    positives, none = [], []
    for batch in itertools.combinations(range(n), size):
        for anchor in batch:
            count = sum(adjacent[anchor, other] for other in batch)
            positives.append(count)
            none.append(count == 0)
    found = positives_per_batch(adjacent.sum(1), batch_size)
    assert found.batch_size == size
    assert found.positives == pytest.approx(np.mean(positives))
    assert found.none == pytest.approx(np.mean(none))


def test_positives_per_batch_of_many_windows() -> None:
    d = np.array([0, 1, 1000, 10**6])
    n, size = 10**8, 2048
    found = positives_per_batch(d, size, n)
    share = (size - 1) / (n - 1)
    assert found.positives == pytest.approx(share * d.mean())
    # So few are drawn that the draws are nearly independent of each other.
    assert found.none == pytest.approx(np.mean(np.exp((size - 1) * np.log1p(-d / (n - 1)))), rel=1e-5)
    with pytest.raises(ConfigError, match="at least 2 windows and a batch size of at least 1, got 1 and 4"):
        positives_per_batch(np.array([0]), 4)


def test_same_episode_share() -> None:
    assert same_episode_share(ENDS) == pytest.approx((EPISODE[UPPER[0]] == EPISODE[UPPER[1]]).mean())
    assert same_episode_share(np.array([1])) == 0.0


# samples and agreement


def test_sampled_pairs_are_distinct_uniform_and_seeded() -> None:
    left, right = sample_pairs(6, 60_000, 3)
    assert (left != right).all()
    assert np.array_equal(sample_pairs(6, 60_000, 3)[1], right)
    counts = np.bincount(np.minimum(left, right) * 6 + np.maximum(left, right), minlength=36)
    counts = counts[counts > 0]
    assert len(counts) == 15
    assert abs(counts - 4000).max() < 300
    with pytest.raises(ConfigError, match="at least 2 windows"):
        sample_pairs(1, 5, 0)


def test_quantile_threshold_keeps_ties_and_at_least_one() -> None:
    d = np.array([3, 1, 2, 2, 2, 9, 8, 7, 6, 5], np.float32)
    assert quantile_threshold(d, 0.2) == 2
    assert quantile_threshold(d, 0.001) == 1
    assert (d <= quantile_threshold(d, 0.2)).sum() == 4


def test_jaccard() -> None:
    a, b = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert jaccard(a, b) == pytest.approx(1 / 3)
    assert jaccard(a & ~a, b & ~b) == 1.0


def test_distances_under_a_setting_are_those_of_the_definition() -> None:
    left, right = sample_pairs(N, 40, 0)
    for setting in (Setting("a", 5, "euclidean", None), Setting("b", 12, "sqeuclidean", 0)):
        windows = WindowStream.build(ACTIONS, ENDS, setting.horizon).windows
        found = setting_distances(ACTIONS, ENDS, setting, left, right)
        for k in range(len(left)):
            a, b = windows(np.array([left[k], right[k]]))
            assert found[k] == pytest.approx(dtw(a, b, setting.cost, setting.band), rel=1e-5, abs=1e-6)


def test_agreement_equals_brute_force() -> None:
    left, right = sample_pairs(N, 3000, 1)
    same = EPISODE[left] == EPISODE[right]
    current = Setting("now", T, "sqeuclidean", None)
    settings = [*horizon_settings(current, (1, 4)), *metric_settings(current)]
    assert [s.horizon for s in settings] == [1, 4, T, T, T, T]
    rows = agreement(settings, current, lambda s: setting_distances(ACTIONS, ENDS, s, left, right), 0.05, same)

    def positives(s: Setting) -> set[int]:
        windows = WindowStream.build(ACTIONS, ENDS, s.horizon).windows(np.arange(N))
        d = [float(dtw_pairwise(windows[i : i + 1], windows[j : j + 1], cost=s.cost, band=s.band)[0, 0])
             for i, j in zip(left, right, strict=True)]  # fmt: skip
        limit = sorted(d)[int(0.05 * len(d)) - 1]
        return {k for k, value in enumerate(d) if value <= limit}

    reference = positives(current)
    for setting, row in zip(settings, rows, strict=True):
        own = positives(setting)
        assert row.jaccard == pytest.approx(len(own & reference) / len(own | reference), abs=0.02)
        assert row.same_episode == pytest.approx(np.mean([same[k] for k in own]), abs=0.02)
        assert row.current == (setting in (settings[2], settings[3]))
        assert (row.jaccard == 1.0) == row.current
    assert rows[0].jaccard < rows[1].jaccard < 1


def test_the_setting_in_use_is_always_in_the_table() -> None:
    banded = Setting("DTW, band 3", 7, "euclidean", 3)
    assert metric_settings(banded)[0] == banded
    assert [s.horizon for s in horizon_settings(banded, (1, 16))] == [1, 7, 16]
    assert all((s.cost, s.band) == ("euclidean", 3) for s in horizon_settings(banded))


# examples


def test_examples_are_near_at_the_threshold_and_far() -> None:
    examples = choose_examples(STREAM, EPISODE, THRESHOLD, count=3)
    assert len(examples) == 3
    assert len({EPISODE[e.row] for e in examples}) == 3
    for example in examples:
        elsewhere = EPISODE[example.row] != EPISODE
        d = MATRIX[example.row][elsewhere]
        near, threshold, far = example.pairs
        assert near.distance == d.min() <= THRESHOLD
        assert abs(threshold.distance - THRESHOLD) == pytest.approx(abs(d - np.float32(THRESHOLD)).min(), rel=1e-4)
        assert near.distance <= threshold.distance <= far.distance
        assert abs((d <= far.distance).mean() - 0.9) < 0.02
        for pair in example.pairs:
            assert elsewhere[pair.row]
            a, b = STREAM.windows(np.array([example.row, pair.row])).astype(float)
            assert (pair.path[0], pair.path[-1]) == ((0, 0), (T - 1, T - 1))
            assert sum(((a[p] - b[q]) ** 2).sum() for p, q in pair.path) == pytest.approx(pair.distance, rel=1e-4)


def test_borderline_examples_of_anchors_without_a_positive_elsewhere() -> None:
    line = np.concatenate([np.linspace(0, 1, 40), np.linspace(100, 101, 40)]).astype(np.float32)[:, None]
    stream = WindowStream.build(line, np.array([40, 80]), 4)
    episode = np.repeat(np.arange(2), 40)
    for example in choose_examples(stream, episode, 0.01):
        near, threshold, far = example.pairs
        assert near.distance > 1000
        assert 0.001 < threshold.distance < 0.1
        assert [episode[pair.row] == episode[example.row] for pair in (near, threshold, far)] == [False, True, False]


@pytest.mark.parametrize("n", [2, 5, 30])
def test_examples_of_one_episode(n: int) -> None:
    actions = np.linspace(0, 1, n, dtype=np.float32)[:, None]
    stream = WindowStream.build(actions, np.array([n]), 4)
    examples = choose_examples(stream, np.zeros(n, np.int64), 0.01)
    assert 1 <= len(examples) <= min(n, 4)
    for example in examples:
        assert all(pair.row != example.row for pair in example.pairs)
        assert n < 30 or abs(example.pairs[0].row - example.row) >= 4
        assert all(math.isfinite(pair.distance) for pair in example.pairs)
