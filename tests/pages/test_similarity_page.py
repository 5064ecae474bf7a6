from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fakes
from classact.cli.similarity import apart_facts
from classact.errors import DataError
from classact.pages import build_similarity_page
from classact.pages.similarity import amount, anchors_figure, curves, share, widest
from classact.run.similarity import EXAMPLES, NUMBERS, analyze_similarity
from classact.similarity.config import SimilarityAnalysisConfig, SimilarityConfig
from classact.utils.storage import read_arrays, read_json, write_arrays, write_json
from html_pages import Page, check_alone, check_words

SECTIONS = {"distances", "positives", "objects", "examples", "k", "agreement", "settings"}
CONFIG = SimilarityAnalysisConfig(
    SimilarityConfig(horizon=8, quantile=0.05, pairs=5000), batch_size=16, device="cpu", columns=("states[2:4]",)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command leaves; tests only read it."""
    path = tmp_path_factory.mktemp("similarity") / "out"
    analyze_similarity(fakes.demonstrations(), CONFIG, path, quiet=True)
    return path


@pytest.fixture(scope="module")
def numbers(folder: Path) -> dict[str, Any]:
    return dict(read_json(folder / NUMBERS))


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(build_similarity_page(folder).read_text(encoding="utf-8"))


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A folder to change."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def rebuilt(folder: Path) -> Page:
    return Page(build_similarity_page(folder).read_text(encoding="utf-8"))


def test_page_is_one_file_whose_sections_are_linked_and_have_words(page: Page) -> None:
    check_alone(page)
    check_words(page, SECTIONS)
    assert all(drawing.get("aria-label") for drawing in page.of("svg"))
    assert len(page.figures) == 3


def test_things_of_positives_are_shown_as_measured(page: Page, numbers: dict[str, Any]) -> None:
    (row,) = numbers["apart"]["rows"]
    assert "states[2:4]" in page.text
    for value in (row["random"], row["positives"]):
        assert f"{value:.3g}" in page.text
    (said,) = apart_facts(numbers["apart"]).values()
    assert f"{row['positives']:.3g} apart in positives in the first 10 %, {row['random']:.3g} in any two" in said
    assert ("by horizon" in said) == (len(numbers["apart"]["horizons"]) > 1)


def test_numbers_are_those_of_the_file(page: Page, numbers: dict[str, Any]) -> None:
    values = {float(str(a["value"])) for a in page.of("data")}
    wanted = {numbers["threshold"], numbers["positives"]["median"], numbers["batch"]["positives"]}
    wanted |= {row["none"] for row in numbers["batches"]}
    wanted |= {row["jaccard"] for name in ("horizon", "metric") for row in numbers["sensitivity"][name]["rows"]}
    wanted |= {pair["distance"] for example in numbers["examples"] for pair in example["pairs"]}
    assert wanted <= values
    assert f"All {numbers['pairs']:,} pairs of windows were measured" in page.text
    assert "L2, no warping" in page.text
    assert "batch of 16" in page.text


def test_current_settings_are_marked_once_per_table(page: Page) -> None:
    assert sum(row.get("class") == "current" for row in page.of("tr")) == 4


def test_examples_show_frames_and_curves(page: Page, numbers: dict[str, Any]) -> None:
    anchors = len(numbers["examples"])
    assert anchors == 4
    assert len(page.of("img")) == anchors * 4
    assert len(page.of("svg")) == anchors * 3 * 2  # two action dimensions
    links = sum(len(pair["path"]) for example in numbers["examples"] for pair in example["pairs"])
    assert len(page.of("line")) == 2 * links


def test_histogram_of_positives_shows_anchors_with_none_apart() -> None:
    positives = {"edges": [0, 2, 4, 6], "counts": [5, 3, 2], "none": 0.3, "median": 2.5}
    some, none = anchors_figure(positives).data[:2]
    assert list(some.x) == [0.5, 2.5, 4.5]
    assert list(some.y) == pytest.approx([0.2, 0.3, 0.2])
    assert (list(none.x), list(none.y)) == ([0.5], [0.3])
    assert list(some.customdata) == ["0 to 1", "2 to 3", "4 to 5"]
    assert len(anchors_figure(positives | {"none": 0}).data) == 1


def test_warnings_are_shown_and_names_cannot_break_the_page(copied: Path, numbers: dict[str, Any]) -> None:
    changed = copy.deepcopy(numbers)
    changed["data"]["name"] = "<script>alert(1)</script>"
    changed["warnings"] = ["Many anchors & no positives."]
    write_json(copied / NUMBERS, changed)
    page = rebuilt(copied)
    assert "<script>alert(1)</script>" in page.text
    assert "Many anchors & no positives." in page.text
    assert not any("alert(1)" in script for script in page.scripts)


def test_without_examples_or_frames(copied: Path) -> None:
    arrays = read_arrays(copied / EXAMPLES)
    write_arrays(copied / EXAMPLES, {"windows": arrays["windows"]})
    page = rebuilt(copied)
    assert not page.of("img")
    assert page.of("svg")
    (copied / EXAMPLES).unlink()
    assert rebuilt(copied).sections() == SECTIONS - {"examples"}


def test_sampled_distributions_state_their_error(copied: Path, numbers: dict[str, Any]) -> None:
    write_json(copied / NUMBERS, numbers | {"exact": False, "epsilon": 0.00123, "anchors": 64})
    text = rebuilt(copied).text
    assert "right to within 0.12 percentage points with a probability of 99.9%" in text
    assert "Measured on 64 sampled anchors against all windows." in text


def test_bad_folders_are_one_clear_error(copied: Path, tmp_path: Path, numbers: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"similarity\.json does not exist"):
        build_similarity_page(tmp_path / "nowhere")
    write_json(copied / NUMBERS, {key: numbers[key] for key in numbers if key not in ("batch", "kept")})
    with pytest.raises(DataError, match="lacks kept, batch: it was not written by 'classact similarity'"):
        build_similarity_page(copied)
    (copied / NUMBERS).write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="not valid JSON"):
        build_similarity_page(copied)


def test_page_is_the_same_every_time(folder: Path, page: Page) -> None:
    assert json.dumps(rebuilt(folder).figures) == json.dumps(page.figures)


def test_curves_share_one_scale() -> None:
    windows = np.zeros((3, 4, 2), np.float32)
    windows[2, :, 0] = 10
    windows[:, :, 1] = 5  # never changes
    near, flat = curves(windows, 1, [(0, 0), (1, 0)], [0, 1])
    (far, _) = curves(windows, 2, [(0, 3)], [0, 1])
    assert near["anchor"] == near["other"] == far["anchor"]
    assert far["other"] != far["anchor"]
    assert near["links"][1][0] > near["links"][1][2]
    assert {point.split(",")[1] for point in flat["anchor"].split()} == {"44.0"}
    assert widest(windows, 1) == [0]
    assert len(curves(windows[:, :1], 1, [(0, 0)], [0])[0]["anchor"].split()) == 1


def test_words_for_numbers() -> None:
    assert [share(v) for v in (0.0, 0.00253, 0.015, 0.5, 1.0)] == ["0%", "0.25%", "1.5%", "50.0%", "100.0%"]
    assert [amount(v) for v in (1234567.0, 3.75, 0.123, 0)] == ["1,234,567", "3.8", "0.12", "0"]
