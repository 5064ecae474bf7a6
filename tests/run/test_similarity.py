from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fakes
from classact.cli.flags import from_file
from classact.errors import ConfigError
from classact.run.similarity import (
    DISTRIBUTION,
    NUMBERS,
    POSITIVES,
    analyze_similarity,
    compared_columns,
    current_setting,
    notes,
    timestep_frames,
    warnings,
)
from classact.similarity import ActionSimilarity
from classact.similarity.config import SimilarityAnalysisConfig, SimilarityConfig
from classact.similarity.distribution import read_distribution
from classact.similarity.model import similarity_identity, window_stream
from classact.utils.storage import read_arrays, read_json, write_json

CONFIG = SimilarityAnalysisConfig(SimilarityConfig(horizon=8, quantile=0.05, pairs=5000), batch_size=16, device="cpu")
DATA = fakes.demonstrations()


@pytest.fixture(scope="module")
def analyzed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("similarity") / "out"
    return folder, analyze_similarity(DATA, CONFIG, folder, quiet=True)


def test_numbers_are_those_of_the_similarity_that_training_uses(analyzed: tuple[Path, dict[str, Any]]) -> None:
    folder, numbers = analyzed
    similarity = ActionSimilarity(DATA, CONFIG.similarity)
    n = DATA.num_steps
    weights = similarity.weights(np.arange(n))
    assert numbers["threshold"] == similarity.distribution.threshold
    assert numbers["kept"] == similarity.distribution.kept
    positive = similarity.distances(np.arange(n)) <= np.float32(numbers["threshold"])
    np.fill_diagonal(positive, False)
    assert (weights > 0).sum() <= positive.sum() == 2 * numbers["kept"]
    found = read_arrays(folder / POSITIVES)
    assert found["positives"].tolist() == positive.sum(1).tolist()
    episode = DATA.episode_index()
    assert found["same_episode"].tolist() == (positive & (episode[:, None] == episode)).sum(1).tolist()
    assert numbers["positives"]["median"] == np.median(positive.sum(1))
    assert numbers["batch"]["positives"] == pytest.approx(15 / (n - 1) * positive.sum(1).mean())
    identity = similarity_identity(window_stream(DATA, CONFIG.similarity), CONFIG.similarity)
    kept = read_distribution(folder / DISTRIBUTION, identity)
    assert np.array_equal(kept.weight, similarity.distribution.weight)
    assert from_file(SimilarityConfig, folder / NUMBERS) == CONFIG.similarity


def test_line_of_the_k_in_use_agrees_with_the_whole(analyzed: tuple[Path, dict[str, Any]]) -> None:
    _, numbers = analyzed  # all windows are among the sampled anchors here
    (line,) = [row for row in numbers["sensitivity"]["quantile"]["rows"] if row["quantile"] == 0.05]
    for key in ("least", "median", "none"):
        assert line[key] == numbers["positives"][key]
    assert line["batch"] == pytest.approx(numbers["batch"])
    thresholds = [row["threshold"] for row in numbers["sensitivity"]["quantile"]["rows"]]
    assert thresholds == sorted(thresholds)
    for table in ("horizon", "metric"):
        (current,) = [row for row in numbers["sensitivity"][table]["rows"] if row["current"]]
        assert current["jaccard"] == 1.0
    # None longer than every episode.
    assert [row["name"] for row in numbers["sensitivity"]["horizon"]["rows"]][-1] == "32 steps"


def test_a_batch_larger_than_the_data_is_all_of_it(analyzed: tuple[Path, dict[str, Any]]) -> None:
    folder, numbers = analyzed
    found = analyze_similarity(DATA, replace(CONFIG, batch_size=5000), folder, quiet=True)
    assert found["batch"]["batch_size"] == DATA.num_steps
    assert found["batch"]["positives"] == pytest.approx(numbers["positives"]["mean"])
    assert found["batch"]["none"] == pytest.approx(numbers["positives"]["none"])
    again = analyze_similarity(DATA, CONFIG, folder, quiet=True)
    assert again == numbers == read_json(folder / NUMBERS)


@pytest.mark.parametrize("metric", ["dtw", "l2"])
def test_data_without_anything_to_see(metric: str, tmp_path: Path) -> None:
    blind = replace(DATA, images={}, states=None)
    config = replace(CONFIG, similarity=replace(CONFIG.similarity, metric=metric, band=2 if metric == "dtw" else None))
    numbers = analyze_similarity(blind, config, tmp_path, quiet=True)
    assert set(read_arrays(tmp_path / "examples.safetensors")) == {"windows"}
    rows = numbers["sensitivity"]["metric"]["rows"]
    assert [row["name"] for row in rows if row["current"]] == [current_setting(config.similarity).name]
    assert len(rows) == (4 if metric == "dtw" else 3)


def test_frames_are_recorded_else_drawn_else_none(caplog: pytest.LogCaptureFixture) -> None:
    rows = np.array([5, 0, 60])
    recorded = timestep_frames(DATA, rows)
    assert recorded is not None
    assert recorded.shape == (3, 160, 160, 3)
    drawn = timestep_frames(replace(DATA, images={}), rows)
    assert drawn is not None
    assert drawn.shape == (3, 160, 160, 3)
    assert not np.array_equal(drawn, recorded)
    unknown = replace(DATA, images={}, simulator="kitchen")
    assert timestep_frames(unknown, rows) is None
    assert "examples are shown without pictures: unknown simulator 'kitchen'" in caplog.text
    assert timestep_frames(replace(DATA, images={}, states=None), rows) is None
    assert DATA.states is not None
    assert timestep_frames(replace(DATA, images={}, states=DATA.states[:, :3]), rows) is None  # of another simulator


def test_constant_dimensions_are_noted() -> None:
    actions = np.concatenate([DATA.actions, np.full((DATA.num_steps, 1), 7, np.float32)], axis=1)
    wider = replace(DATA, actions=actions, schema=replace(DATA.schema, actions=None))
    assert notes(wider) == ["Constant action dimensions (2) add nothing to any distance."]
    assert notes(DATA) == []


def test_nothing_to_warn_of_and_every_warning(analyzed: tuple[Path, dict[str, Any]]) -> None:
    good = copy.deepcopy(analyzed[1])
    good["positives"] |= {"none": 0.0, "same_episode": 0.1}
    good["batch"] |= {"none": 0.1}
    assert warnings(good) == []

    def warned(**changes: Any) -> str:
        row = copy.deepcopy(good)
        for key, value in changes.items():
            row[key] = row[key] | value if isinstance(value, dict) else value
        (sentence,) = warnings(row)
        return sentence

    assert "12.0 % of the anchors have no positive in the whole data set" in warned(positives={"none": 0.12})
    assert "In a batch of 16, 60.0 % of the anchors find no positive" in warned(batch={"none": 0.6})
    assert "70.0 % of the positive pairs lie within one episode" in warned(positives={"same_episode": 0.7})
    assert "because many distances equal the threshold" in warned(kept=good["pairs"] // 5)
    assert "calls 90 % of all pairs positive" in warned(kept=round(0.9 * good["pairs"]), settings={"quantile": 0.9})


def test_unusable_folders_and_settings(analyzed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, numbers = analyzed
    other = replace(CONFIG, similarity=replace(CONFIG.similarity, band=3))
    with pytest.raises(ConfigError, match=r"was made with settings.band = None, now it is 3. Choose another --out"):
        analyze_similarity(DATA, other, folder, quiet=True)
    with pytest.raises(ConfigError, match="was made with other data, walks of 120 steps"):
        analyze_similarity(fakes.demonstrations(1), CONFIG, folder, quiet=True)
    write_json(tmp_path / NUMBERS, {"settings": numbers["settings"] | {"colour": 3}})
    with pytest.raises(ConfigError, match=r"similarity.json: settings: unknown field 'colour'"):
        from_file(SimilarityConfig, tmp_path / NUMBERS)
    with pytest.raises(ConfigError, match="batch size of at least 2, got 1"):
        replace(CONFIG, batch_size=1)


@pytest.mark.parametrize("damage", ["distribution", "positives", "gone"])
def test_what_is_damaged_is_measured_again(
    analyzed: tuple[Path, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(analyzed[0], folder)
    if damage == "gone":
        shutil.rmtree(folder / DISTRIBUTION)
    else:
        file = folder / POSITIVES if damage == "positives" else folder / DISTRIBUTION / "distribution.safetensors"
        file.write_bytes(file.read_bytes()[:-8])
    (folder / f".{DISTRIBUTION}.1.abc.tmp").mkdir()  # of a launch that was killed while it wrote
    again = analyze_similarity(DATA, CONFIG, folder, quiet=True)
    assert "measured again" in caplog.text
    for key in ("threshold", "kept", "positives", "batches"):
        assert again[key] == analyzed[1][key]
    identity = similarity_identity(window_stream(DATA, CONFIG.similarity), CONFIG.similarity)
    assert read_distribution(folder / DISTRIBUTION, identity).threshold == again["threshold"]
    assert not list(folder.glob(".*.tmp"))


def test_things_of_positives_are_compared_and_asked_again_by_columns(tmp_path: Path) -> None:
    numbers = analyze_similarity(DATA, replace(CONFIG, columns=("states[2:4]",)), tmp_path, quiet=True)
    (row,) = numbers["apart"]["rows"]
    assert row["name"] == "states[2:4]"
    horizons = {one["horizon"]: one["rows"][0] for one in numbers["apart"]["horizons"]}
    assert horizons[8] == row
    assert any("Positives do not tell where states[2:4] is" in said for said in numbers["warnings"]) == (
        row["ratio"] >= 0.9
    )
    key = DATA.schema.keys[0]
    other = analyze_similarity(DATA, replace(CONFIG, columns=(key,), early=0.3), tmp_path, quiet=True)
    assert [one["name"] for one in other["apart"]["rows"]] == [key]
    assert other["apart"]["early"] == 0.3
    assert {**other, "apart": 0, "warnings": 0} == {**numbers, "apart": 0, "warnings": 0}
    assert DATA.states is not None
    have = DATA.states.shape[1]
    with pytest.raises(ConfigError, match=rf"columns states\[2:99\]: .* has states of {have} columns"):
        compared_columns(DATA, ["states[2:99]"])
    with pytest.raises(ConfigError, match="unknown columns 'cube'"):
        compared_columns(DATA, ["cube"])
    assert compared_columns(replace(DATA, states=None)) == {}
