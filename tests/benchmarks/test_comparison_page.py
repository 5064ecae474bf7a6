from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_comparison import cell, results, write_fake_comparison
from scipy.stats import spearmanr

from classact.errors import DataError
from classact.run.folder import Run
from classact.utils.storage import read_arrays, write_arrays, write_json
from html_pages import Page, check_alone, check_words
from table1.report import Results, build_comparison, read_results
from table1.report.page import headline
from table1.report.probes import correlations
from table1.report.table import layout
from table1.report.trends import curves

SECTIONS = {"table", "costs", "curves", "scaling", "latency", "latents", "pairs", "probes", "tuning", "settings"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with run folders; tests only read it."""
    return write_fake_comparison(tmp_path_factory.mktemp("comparison")).parent


@pytest.fixture(scope="module")
def found(folder: Path) -> Results:
    return read_results(folder / "results.json")


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return built(folder / "results.json")


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A folder to change."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def built(path: Path) -> Page:
    return Page(build_comparison(path, path.parent / "page.html").read_text(encoding="utf-8"))


def figure_of(page: Page, key: str) -> dict[str, Any]:
    names = [str(a["data-for"]) for a in page.of("script") if a.get("data-for")]
    return page.figures[names.index(f"plot-{key}")]


def test_page_is_one_file_whose_sections_are_linked_and_have_words(page: Page) -> None:
    check_alone(page)
    check_words(page, SECTIONS)


def test_table_holds_the_estimates_and_the_papers(page: Page, found: Results) -> None:
    values = {float(str(a["value"])) for a in page.of("data")}
    for group in layout(found).groups:
        for _, entries in group.rows:
            for entry in entries:
                if entry.estimate:
                    assert {entry.estimate.value, entry.estimate.low, entry.estimate.high} <= values
                if entry.paper is not None:
                    assert f"{entry.paper:.2f}" in page.text
    assert "maximum over ten checkpoints" in page.text
    assert "The weights cannot be downloaded without a network." in page.text


def test_headline_says_class_and_the_best_other(found: Results) -> None:
    said = headline(found)
    assert (said["head"], [item["column"] for item in said["results"]]) == ("rep", ["Fixed-Color", "Rand-Color"])
    table = layout(found)
    for i, item in enumerate(said["results"]):
        others = [
            e[i].estimate.value  # type: ignore[union-attr]
            for who, e in table.groups[0].rows
            if "class" not in who.method and e[i].estimate
        ]
        assert item["best"]["estimate"].value == max(others)


def test_curves_are_those_of_the_cells(page: Page, found: Results) -> None:
    images, seconds = (figure_of(page, f"curves-0-{axis}") for axis in ("images", "seconds"))
    cells = [c for c in found.cells if c.shift == "fixed" and c.curve and c.demonstrations == 186]
    assert len(images["data"]) == len(cells) == len(seconds["data"])
    own = next(c for c in cells if (c.method, c.head) == ("class", "dp"))
    trace = next(t for t in seconds["data"] if t["name"] == "CLASS, DP")
    assert trace["x"] == [row[1] for row in own.curve]
    assert trace["y"] == pytest.approx([row[2] / row[3] for row in own.curve])
    buttons = [a["data-view"] for a in page.of("button") if a["data-plot"] == "curves-0-images"]
    assert buttons == ["All", "Rep-Only", "MLP", "DP"]
    assert sum(images["layout"]["meta"]["views"]["MLP"]) == 2


def test_curves_of_seeds_are_added_up_where_they_were_tried_at_the_same_points(tmp_path: Path) -> None:
    rows = [cell("class", "rep", "fixed", seed=s) for s in (0, 1)]
    write_json(tmp_path / "r.json", results() | {"cells": {str(i): row for i, row in enumerate(rows)}})
    cells = read_results(tmp_path / "r.json").done
    (one,) = curves(cells)
    assert one.rows[2][2:] == (cells[0].curve[2][2] + cells[1].curve[2][2], 100)
    rows[1]["curve"] = rows[1]["curve"][1:]
    write_json(tmp_path / "r.json", results() | {"cells": {str(i): row for i, row in enumerate(rows)}})
    assert [c.words for c in curves(read_results(tmp_path / "r.json").done)] == ["seed 0", "seed 1"]


def test_scaling_is_drawn_over_demonstrations(page: Page, found: Results) -> None:
    figure = figure_of(page, "scaling-0")
    assert figure["layout"]["xaxis"]["tickvals"] == [25, 50, 100, 186]
    trace = next(t for t in figure["data"] if t["name"] == "CLASS, Rep-Only")
    cells = [c for c in found.done if (c.method, c.head, c.shift) == ("class", "rep", "fixed")]
    wanted = [np.mean(c.success["coverage>0.90"]) for c in sorted(cells, key=lambda c: c.demonstrations or 0)]
    assert trace["y"] == pytest.approx(wanted)


def test_inference_time_stands_beside_the_papers(page: Page) -> None:
    figure = figure_of(page, "latency")
    paper = figure["data"][-1]
    assert set(paper["x"]) == {5.5, 7.3, 84.4}
    assert {t["x"][0] for t in figure["data"][:-1] if t["mode"] == "markers"} == {4.2, 5.1, 38.0}
    axis = figure["layout"]["xaxis"]
    low, high = (10**bound for bound in axis["range"])
    assert low < 4.2
    assert high > 84.4
    assert axis["tickvals"] == [5, 10, 20, 50, 100]
    assert axis["ticktext"] == ["5", "10", "20", "50", "100"]
    assert all(low <= tick <= high for tick in axis["tickvals"])


def test_latents_are_those_of_the_folders(page: Page, folder: Path, found: Results) -> None:
    maps = [f for f in page.figures if not f["layout"]["xaxis"].get("visible", True)]
    there = [c for c in found.done if (folder / c.folder).is_dir() and c.demonstrations == 186]
    assert len(maps) == len(there) == 7
    assert all(len(figure["data"]) == 20 + 1 for figure in maps)  # 20 of 24 episodes, and the dots at their ends
    neighbors = [c for c in there if c.method != "byol"]
    assert len(page.of("img")) == len(neighbors) * 2 * (1 + 8)
    assert "No neighbours, for analysis/neighbors.safetensors is not there: VINN (BYOL), Rep-Only." in page.text
    assert "No map and no neighbours, for the run folder is not here: Random, Rep-Only;" in page.text
    assert not any(f"{head}." in line or f"{head};" in line for head in ("MLP", "DP") for line in absent(page))


def absent(page: Page) -> list[str]:
    """What is said of maps and neighbours that are not there."""
    return [part.partition("Which differences")[0] for part in page.text.split("No map")[1:]]


def test_damaged_folders_are_reasons_not_errors(copied: Path) -> None:
    value = read_results(copied / "results.json")
    own = next(c for c in value.done if (c.method, c.head, c.shift, c.demonstrations) == ("class", "rep", "fixed", 186))
    path = Run(copied / own.folder).analysis / "latent_map.safetensors"
    arrays = read_arrays(path)
    write_arrays(path, arrays | {"xy": arrays["xy"][:, :1]})
    text = built(copied / "results.json").text
    assert "analysis/latent_map.safetensors: expected xy of shape" in text
    assert str(copied) not in text


def test_probes_are_correlated_with_success(page: Page, found: Results) -> None:
    sheet = correlations(found)
    assert [heading for heading, _ in sheet.groups] == ["Rep-Only, Fixed-Color", "Rep-Only, Rand-Color"]
    assert [
        f"{head}, {condition} (" in sheet.notes[1]
        for head in ("Rep-Only", "MLP", "DP")
        for condition in ("Fixed-Color", "Rand-Color")
    ] == [False, False, True, True, True, True]
    for heading, rows in sheet.groups:
        shift = "fixed" if "Fixed" in heading else "rand"
        some = [
            c for c in found.done if (c.head, c.shift, c.augmentation, c.demonstrations) == ("rep", shift, "none", 186)
        ]
        assert {row[0] for row in rows} == {"action R²", "episode leakage"}
        assert [abs(float(row[2])) for row in rows] == sorted((abs(float(row[2])) for row in rows), reverse=True)
        for metric, verdict, value, _, _, cells in rows:
            rate = [np.mean(c.success["coverage>0.90"]) for c in some]
            rho = spearmanr([c.probe[metric].value for c in some], rate).statistic
            assert (value, cells) == (f"{rho:+.2f}", str(len(some)))
            if shift == "fixed":
                assert verdict == ("yes, higher is better" if rho > 0 else "yes, lower is better")
    cells = [c for c in found.cells if c.demonstrations == 186 and c.done]
    figure = figure_of(page, "probe-0")
    assert len(figure["data"]) == len(cells)
    hollow = [t for t in figure["data"] if t["marker"]["symbol"].endswith("-open")]
    assert len(hollow) == sum(c.shift == "rand" for c in cells)


def test_metrics_are_corrected_for_their_number_and_never_pooled(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def rows(metrics: int) -> dict[str, Any]:
        found = {}
        for shift, level in (("fixed", 0.8), ("rand", 0.2)):
            for i in range(8):
                row = cell("class", "rep", shift) | {"method": f"m{i}"}
                wins = [1] * round(100 * level + i) + [0] * (100 - round(100 * level + i))
                noise = {f"noise {k}": {"value": level + rng.normal(0, 0.1)} for k in range(metrics)}
                good = {"good": {"value": float(i)}}
                found[f"{shift}{i}"] = row | {"success": {"coverage>0.90": wins}, "probe": good | noise}
        return found

    for metrics in (0, 30):
        write_json(tmp_path / "r.json", results() | {"cells": rows(metrics)})
        sheet = correlations(read_results(tmp_path / "r.json"))
        # All cells of both conditions together would agree with any metric that the condition moves.
        assert [heading for heading, _ in sheet.groups] == ["Rep-Only, Fixed-Color", "Rep-Only, Rand-Color"]
        for _, group in sheet.groups:
            assert group[0][:3] == ["good", "yes, higher is better", "+1.00"]
            assert float(group[0][3].removeprefix("< ")) <= 0.001
            assert float(group[0][4].removeprefix("< ")) <= 0.001 * (metrics + 1)
            assert len(group) == metrics + 1
            assert [row[1] for row in group[1:]] == ["not shown"] * metrics


def test_few_or_constant_probes_say_so(tmp_path: Path) -> None:
    def rows(n: int) -> dict[str, Any]:
        probe = {"flat": {"value": 1.0, "low": None, "high": None}}
        return {f"c{i}": cell("class", "rep", "fixed") | {"method": f"m{i}", "probe": probe} for i in range(n)}

    for n in (2, 7):
        write_json(tmp_path / "r.json", results() | {"cells": rows(n)})
        sheet = correlations(read_results(tmp_path / "r.json"))
        assert sheet.empty
        assert sheet.notes == [
            f"Fewer than 8 cells, which say nothing, are not correlated: Rep-Only, Fixed-Color ({n})."
        ]
    write_json(tmp_path / "r.json", results() | {"cells": rows(8)})
    sheet = correlations(read_results(tmp_path / "r.json"))
    assert sheet.groups == [("Rep-Only, Fixed-Color", [["flat", "does not vary", "–", "–", "–", "8"]])]


def test_many_metrics_are_folded_away(tmp_path: Path) -> None:
    probe = {f"metric {i}": {"value": float(i), "low": None, "high": None} for i in range(8)}
    row = cell("class", "rep", "fixed") | {"probe": probe, "loss": []}
    write_json(tmp_path / "r.json", results() | {"cells": {"one": row}})
    page = built(tmp_path / "r.json")
    assert "2 more metrics" in page.text
    assert sum(str(a.get("data-for")).startswith("plot-probe-") for a in page.of("script")) == 8


def test_a_file_of_a_grid_that_has_just_begun(tmp_path: Path) -> None:
    rows = [cell("class", "rep", "fixed") | {"status": "planned", "demonstrations": None}]
    value = results() | {"cells": {"one": rows[0]}, "tuning": []}
    write_json(tmp_path / "r.json", value | {"protocol": {"criterion": None, "criteria": []}})
    text = built(tmp_path / "r.json").text
    assert "Nothing is measured yet" in text
    assert "Not run yet." in text
    assert "success is" not in text


def test_pairs_and_their_verdicts_are_there(page: Page) -> None:
    assert "CLASS – TCN" in page.text
    assert "not distinguishable" in page.text
    assert "Holm" in page.text
    assert any(a.get("class") == "better" for a in page.of("td"))


def test_sections_without_numbers_say_why(tmp_path: Path) -> None:
    bare = ("method", "head", "shift", "status", "starts", "success")
    row = {key: value for key, value in cell("class", "rep", "fixed").items() if key in bare}
    value = {key: results()[key] for key in ("format", "task")}
    value |= {"protocol": {"criterion": "coverage>0.90"}, "cells": {"one": row}}
    write_json(tmp_path / "r.json", value)
    page = built(tmp_path / "r.json")
    assert page.sections() == SECTIONS
    assert page.figures == []
    for words in (
        "Success was not measured during training",
        "No cell has a log of its loss.",
        "learned from the same number of demonstrations",
        "The time of a decision was not measured",
        "the results name no run folder",
        "No two methods with the same head and condition",
        "No cell that is done has probe metrics.",
        "The results hold no search for learning rates.",
    ):
        assert words in page.text, words
    write_json(tmp_path / "r.json", value | {"cells": {}})
    empty = built(tmp_path / "r.json")
    assert "CLASS has not been measured yet." in empty.text
    assert "The results hold no cell yet." in empty.text


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    rows = [cell("class", "rep", "fixed"), cell("tcn", "rep", "fixed") | {"method": name, "variant": name}]
    write_json(tmp_path / "r.json", results() | {"cells": {name: rows[0], "b": rows[1]}, "task": name})
    page = built(tmp_path / "r.json")
    assert name in page.text
    assert not any("alert(1)" in script for script in page.scripts)
    assert "<script>" not in str(page.figures)


def test_page_is_the_same_every_time_and_wrong_files_are_errors(folder: Path, page: Page, tmp_path: Path) -> None:
    assert built(folder / "results.json").figures == page.figures
    with pytest.raises(DataError, match="does not exist"):
        build_comparison(tmp_path / "none.json", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
