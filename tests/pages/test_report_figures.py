import numpy as np
import pytest

from classact.evaluation.rows import EvaluationRow
from classact.pages import figures, headline, learning
from classact.pages.reasons import chunk_path, reasons
from classact.pages.sources import Evaluation, read_sources, row_label
from classact.pages.style import GREY, ORANGE, PALETTE, percent, styles
from fake_run import latent_map, similarity, training_rows


def contrast(first: str, second: str) -> float:
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", [*PALETTE, GREY])
def test_series_colours_hold_contrast_on_both_grounds(colour):
    assert contrast(colour, "#fbfbf9") >= 3
    assert contrast(colour, "#16191d") >= 3


def evaluation(maxima, curves=None) -> Evaluation:
    return Evaluation("e", "class", "CLASS", "coverage", np.array(maxima, np.float64), curves)


@pytest.mark.parametrize("run", ["old_run", "whole_run"])
def test_success_figure_draws_each_row_once(run, request):
    rows = [r for r in request.getfixturevalue(run).read_summary() if r.maximum_of is None]
    traces = figures.success_figure(rows).data
    dots = [trace for trace in traces if trace.mode == "markers"]
    whiskers = [trace for trace in traces if trace.mode == "lines"]
    assert [dot.x[0] for dot in dots] == sorted_by_criterion(rows, "success")
    assert [tuple(line.x) for line in whiskers] == list(
        zip(sorted_by_criterion(rows, "low"), sorted_by_criterion(rows, "high"), strict=True)
    )
    assert [dot.y[0] for dot in dots] == [line.y[0] for line in whiskers]


def sorted_by_criterion(rows, key):
    criteria = list(dict.fromkeys(row.criterion for row in rows))
    return [getattr(row, key) for criterion in criteria for row in rows if row.criterion == criterion]


def test_reached_figure_is_the_success_rate_at_every_threshold():
    maxima = [0.2, 0.5, 0.5, 0.9]
    trace = figures.reached_figure([evaluation(maxima)]).data[0]
    assert trace.line.shape == "vh"
    x, share = np.array(trace.x), np.array(trace.y)
    for threshold in (0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.95):
        # A "vh" step moves to the height first: between two points the height is that of the right one.
        drawn = share[np.argmax(x >= threshold)]
        assert drawn == np.mean(np.array(maxima) >= threshold)


def test_held_mean_keeps_the_last_value_of_ended_episodes():
    mean = figures.held_mean([np.array([0.0, 1.0], np.float32), np.array([0.0, 0.2, 0.4], np.float32)])
    np.testing.assert_allclose(mean, [0.0, 0.6, 0.7], atol=1e-7)


def test_curves_figure_separates_episodes():
    curves = [np.linspace(0, 1, n, dtype=np.float32) for n in (5, 1, 400)]
    thin, mean = figures.curves_figure(evaluation([1, 1, 1], curves)).data
    assert list(thin.x).count(None) == 3
    assert max(x for x in thin.x if x is not None) == 400
    assert len(mean.x) == 300
    assert not figures.curves_figure(evaluation([1])).data


def test_training_figure_with_many_rows_and_with_one():
    rows = training_rows(np.random.default_rng(0))
    raw, smooth = learning.training_figure(rows, "loss", "loss").data
    assert list(raw.y) == [row["loss"] for row in rows]
    assert np.std(np.diff(smooth.y)) < np.std(np.diff(raw.y))
    (single,) = learning.training_figure(rows[:1], "loss", "loss").data
    assert single.mode == "markers"


@pytest.mark.parametrize("zoom", [False, True])
def test_similarity_figure_splits_at_the_threshold(zoom):
    value = similarity(np.random.default_rng(0))
    value["histogram"] = {name: list(v) for name, v in value["histogram"].items()}
    kept, other = learning.similarity_figure(value, zoom).data
    assert max(kept.x) == pytest.approx(value["threshold"])
    assert min(other.x) == pytest.approx(value["threshold"])


@pytest.mark.parametrize("threshold", [0.0, 2.5, 99.0])
def test_similarity_figure_of_odd_histograms(threshold):
    value = {"threshold": threshold, "histogram": {"edges": [0, 1, 2, 3], "counts": [0, 5, 5]}}
    for zoom in (False, True):
        assert len(learning.similarity_figure(value, zoom).data) == 2


def test_latent_figure_draws_a_spline_per_episode_and_has_two_views():
    arrays = latent_map(np.random.default_rng(0), episodes=50, steps=6)
    figure = learning.latent_figure(**arrays)
    splines = [trace for trace in figure.data if trace.line.shape == "spline"]
    assert len(splines) == learning.MAX_EPISODES
    views = figure.layout.meta["views"]
    assert list(views) == ["By episode", "By progress"]
    assert all(len(view) == len(figure.data) for view in views.values())
    assert [a != b for a, b in zip(*views.values(), strict=True)] == [True] * len(figure.data)


def test_encoders_keep_their_look_and_others_get_one():
    assert styles(["state", "class"])["class"] == styles(["class"])["class"]
    look = styles(["mine", "untrained", "yours"])
    assert look["mine"] != look["yours"]
    assert look["untrained"][0] == ORANGE


def test_labels_name_only_what_differs():
    rows = [
        EvaluationRow("retrieval", "class", "pusht", shift, shift, "c", 1, 0, 0.0, 0.0, 1.0)
        for shift in ("none", "camera")
    ]
    assert [row_label(row, rows) for row in rows] == ["CLASS (learned), no shift", "CLASS (learned), camera shift"]
    assert row_label(rows[1], rows[1:]) == "CLASS (learned)"


def test_headline_prefers_the_learned_encoder_without_shift(old_run):
    rows = old_run.read_summary()
    main = headline.main_row(rows[::-1], "class")
    assert (main.encoder, main.shift) == ("class", "none")
    assert headline.main_row([], "class") is None
    assert headline.main_row(rows[-1:], "class") == rows[-1]
    baseline = next(r for r in rows if r.encoder == "untrained")
    assert percent(baseline.success) in headline.comparisons(headline.main_row(rows, "class"), rows)[0]


def test_reasons_are_ordered_and_normalised(whole_run):
    arrays = dict(read_sources(whole_run.root).neighbors)
    arrays["weights"] = arrays["weights"][:, ::-1] * 3
    for reason in reasons(arrays):
        parts = [near["share"] for near in reason["neighbors"]]
        assert parts == sorted(parts, reverse=True)
        assert sum(parts) == pytest.approx(1)
        assert reason["neighbors"][0]["bar"] == 1
        assert reason["held"] == pytest.approx(1)


def test_chunk_path():
    chunk = chunk_path(np.array([[1, 2], [3.25, 4]]))
    assert chunk == {"points": "1.0,2.0 3.2,4.0", "start": (1.0, 2.0), "end": (3.2, 4.0)}
    assert chunk_path(np.zeros((4, 7))) is None
