import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from classact.errors import ClassactError, DataError
from classact.pages.page import build_report, flatten, settings
from classact.run.folder import Run
from classact.utils.codec import to_json
from classact.utils.storage import read_arrays, read_json, write_arrays, write_json
from html_pages import Page, check_alone, check_words

SECTIONS = {"success", "intermediate", "reasons", "videos", "coverage", "novelty", "latent", "similarity"}
SECTIONS |= {"training", "times", "settings", "data", "consistency"}
NEW = {"intermediate", "novelty", "times", "data", "consistency"}
"""Sections that only runs with heads have."""

PICTURES = 2 * (1 + 5) + 8 * 2  # of queries with their neighbours, and of demonstrations that differ


def build(run: Run) -> Page:
    return Page(build_report(run.root).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(whole_run):
    return build(whole_run)


def test_page_is_one_file_whose_sections_are_linked_and_have_words(page):
    check_alone(page)
    check_words(page, SECTIONS)
    assert all(video.get("aria-label") and "controls" in video for video in page.of("video"))
    assert len(page.of("video")) == 3
    assert len(page.of("img")) == PICTURES


def test_numbers_equal_the_rows(page, whole_run):
    rows = whole_run.read_summary()
    values = {float(a["value"]) for a in page.of("data")}
    for row in rows:
        if row.maximum_of is not None:
            continue  # these have a column of their own
        assert {row.success, row.low, row.high, row.metrics["coverage"]} <= values
        assert f"{row.successes} of {row.episodes}" in page.text
        assert row.criterion in page.text
    own = [row for row in rows if (row.encoder, row.shift, row.maximum_of) == ("class", "none", None)]
    main = max((row for row in own if row.criterion == rows[0].criterion), key=lambda row: row.success)
    wanted = f"The policy succeeds in {100 * main.success:.1f}% of 12 episodes (95% interval {100 * main.low:.1f}%"
    assert wanted in page.text
    weights = read_arrays(whole_run.analysis / "neighbors.safetensors")["weights"].astype(float)
    for share in (weights / weights.sum(axis=1, keepdims=True)).ravel():
        assert any(abs(share - value) < 1e-6 for value in values)


def test_a_heads_plan_stands_beside_the_reasons(page, whole_run):
    arrays = read_arrays(whole_run.neighbors)
    away = np.hypot(30, 30)
    nearest = np.linalg.norm(arrays["neighbor_chunks"] - (arrays["query_chunk"] + 30)[:, None], axis=3).mean(axis=2)
    for q in range(len(nearest)):
        said = f"MLP, frozen: {away:.3g} from the retrieved actions, {nearest[q].min():.3g} from the nearest demonst"
        assert said in page.text
    assert "The path of MLP, frozen at the same observation is green" in page.text
    assert page.text.count("The episode had been here once before: nearest demonstrations are passed over") == 1


def test_the_headline_says_how_fast_the_policy_plays_what_was_demonstrated(page, whole_run, tmp_path):
    assert "times its speed" not in page.text
    shutil.copytree(whole_run.root, tmp_path / "run")
    run = Run(tmp_path / "run")
    rows = [replace(row, policy="retrieval") for row in run.read_summary()]
    write_json(run.summary, to_json(rows))
    run.update_config(lambda config: _at_speed(config, 1.5))
    assert "It plays what was demonstrated at 1.5 times its speed." in build(run).text


def _at_speed(config, speed):
    config["settings"]["retrieval"] |= {"speed": speed, "chunk_length": 6}
    return config


def test_settings_are_shown(page):
    for word in ("objective.temperature", "0.05", "resnet18", "1 h 30 min", "Intel Xeon", "2.9.0"):
        assert word in page.text


def test_figures_match_the_evaluations(page, whole_run):
    traces = [trace for figure in page.figures for trace in figure["data"]]
    rates = {trace["x"][0] for trace in traces if len(trace.get("x", ())) == 1 and isinstance(trace["x"], list)}
    assert {row.success for row in whole_run.read_summary()} <= rates


@pytest.mark.parametrize(
    ("path", "section", "left_out"),
    [
        ("summary.json", "success", "Success"),
        ("train.jsonl", "training", "Training"),
        ("config.json", "settings", "Settings"),
        ("evaluations", "coverage", "Coverage"),
        ("analysis/similarity.json", "similarity", "Action similarity"),
        ("analysis/latent_map.safetensors", "latent", "Latent map"),
        ("analysis/neighbors.safetensors", "reasons", "Reasons"),
        ("analysis/videos", "videos", "Videos"),
    ],
)
def test_absent_files_leave_their_section_out_and_say_so(old_copy, path, section, left_out):
    target = old_copy.root / path
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    page = build(old_copy)
    assert page.sections() == SECTIONS - NEW - {section} | {"absent"}
    assert re.search(rf"{left_out} : [^.]*{re.escape(path.split('/')[-1])}", page.text)


def test_a_run_with_only_a_config_still_makes_a_page(tmp_path):
    write_json(tmp_path / "config.json", {"data": {"name": "tiny"}})
    page = build(Run(tmp_path))
    assert page.sections() == {"settings", "absent"}
    assert "has not been evaluated yet" in page.text


def test_metrics_and_traces_may_be_absent(run_copy):
    write_json(run_copy.summary, to_json([replace(row, metrics={}) for row in run_copy.read_summary()[:1]]))
    videos = run_copy.analysis / "videos" / "videos.json"
    write_json(videos, [row | {"coverage": None} for row in read_json(videos)[:1]])
    for folder in (run_copy.root / "evaluations").iterdir():
        (folder / "rollouts.safetensors").unlink()
    page = build(run_copy)
    assert page.sections() == SECTIONS - {"novelty"} | {"absent"}
    assert "Coverage over steps" in page.text


def test_chunks_of_other_action_spaces_are_not_drawn_and_the_world_scales(run_copy):
    run_copy.consistency.unlink()  # has curves of its own
    run_copy.statistics.unlink()
    path = run_copy.analysis / "neighbors.safetensors"
    arrays = read_arrays(path)
    write_arrays(path, arrays | {"world": np.array(2.0)})
    assert {a["viewbox"] for a in build(run_copy).of("svg")} == {"0 0 2.0 2.0"}
    wide = {name: np.repeat(arrays[name], 2, axis=-1) for name in ("query_chunk", "neighbor_chunks")}
    write_arrays(path, arrays | wide)
    assert not build(run_copy).of("polyline")


def test_hostile_names_stay_text(run_copy):
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'</title>"
    config = run_copy.read_config() | {"title": hostile, hostile: {hostile: hostile}}
    config["data"]["name"] = hostile
    write_json(run_copy.config, config)
    rows = [
        replace(row, encoder=hostile if row.encoder == "class" else row.encoder, criterion=row.criterion + hostile)
        for row in run_copy.read_summary()
    ]
    write_json(run_copy.summary, to_json(rows))
    videos = run_copy.analysis / "videos" / "videos.json"
    write_json(videos, [row | {"label": hostile, "evaluation": hostile} for row in read_json(videos)])
    page = build(run_copy)
    assert "alert(1)" not in " ".join(page.scripts)
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert len(page.of("img")) == PICTURES
    assert hostile in " ".join(page.words)
    labels = json.dumps([figure["layout"] for figure in page.figures])
    assert "<script" not in labels
    assert "&lt;script" in labels


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("summary.json", b"{}"),
        ("summary.json", b'[{"encoder": "class"}]'),
        ("summary.json", b'[{"encoder": "class", "criterion": "c", "episodes": 5, "successes": 6}]'),
        ("train.jsonl", b'{"loss": 1}\n'),
        ("evaluations/retrieval-class-none/episodes.jsonl", b'{"seed": 1}\n'),
        ("evaluations/retrieval-class-none/rollouts.safetensors", b"damaged"),
        ("analysis/similarity.json", b'{"threshold": 1, "histogram": {"edges": [0], "counts": [1]}}'),
        ("analysis/latent_map.safetensors", b"damaged"),
        ("analysis/neighbors.safetensors", b"damaged"),
        ("analysis/videos/videos.json", b'[{"label": "best"}]'),
    ],
)
def test_damaged_files_are_named_and_an_older_page_stays(run_copy, path, content):
    run_copy.report.write_text("older")
    (run_copy.root / path).write_bytes(content)
    with pytest.raises(ClassactError, match=re.escape(path.split("/")[-1])):
        build_report(run_copy.root)
    assert run_copy.report.read_text() == "older"


def test_arrays_of_wrong_shape_or_value_are_named(run_copy):
    path = run_copy.analysis / "neighbors.safetensors"
    arrays = read_arrays(path)
    for change, message in (
        ({"weights": arrays["weights"][:, :2]}, r"weights of shape \(2, 5\), got \(2, 2\)"),
        ({"weights": arrays["weights"] * 0}, "positive sum"),
        ({"query_chunk": arrays["query_chunk"] * np.nan}, "query_chunk holds NaN"),
    ):
        write_arrays(path, arrays | change)
        with pytest.raises(DataError, match=message):
            build_report(run_copy.root)
    del arrays["query_images"]
    write_arrays(path, arrays)
    with pytest.raises(DataError, match=r"neighbors.safetensors: lacks 'query_images'"):
        build_report(run_copy.root)


def test_missing_video_file_is_named(run_copy):
    videos = run_copy.analysis / "videos"
    rows = read_json(videos / "videos.json")
    write_json(videos / "videos.json", [rows[0] | {"file": "../../config.json"}])
    with pytest.raises(DataError, match=r"expected names of \.mp4 files, got '\.\./\.\./config\.json'"):
        build_report(run_copy.root)
    write_json(videos / "videos.json", rows)
    (videos / "retrieval-class-none-worst.mp4").unlink()
    with pytest.raises(DataError, match=r"worst\.mp4 is not there but videos\.json lists it"):
        build_report(run_copy.root)


def test_no_folder_and_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        build_report(tmp_path / "none")
    with pytest.raises(DataError, match="nothing to report"):
        build_report(tmp_path)


def test_a_thousand_demonstrations_are_drawn_and_the_odd_one_is_named(page):
    assert "demonstration 999" in page.text
    assert "--episodes 0:999" in page.text
    assert "Measured at 10,000 of" in page.text
    assert "push <b>the</b> T (1000)" in page.text
    assert "median 17" in page.text
    assert len([one for one in page.of("svg") if one.get("class") == "spread"]) == 3


def test_a_damaged_file_of_consistency_is_named(run_copy):
    arrays = read_arrays(run_copy.inconsistent)
    write_arrays(run_copy.inconsistent, arrays | {"done": arrays["done"][:2]})
    with pytest.raises(
        DataError, match=r"consistency\.safetensors: expected done of shape \(8, \*, \*\), got \(2, 8, 2\)"
    ):
        build(run_copy)


def test_small_words():
    assert flatten({"a": {"b": 1, "c": None}, "d": [1, 2]}) == [("a.b", "1"), ("a.c", "none"), ("d", "[1, 2]")]
    assert settings({"versions": "1.0", "seed": 3}) == [
        ("Versions", [("versions", "1.0")]),
        ("Other settings", [("seed", "3")]),
    ]


def test_an_exact_similarity_says_so_and_a_sampled_one_how_far_it_may_be_off(run_copy):
    path = run_copy.analysis / "similarity.json"
    numbers = json.loads(path.read_text())
    for exact, said in ((False, "percentage points"), (True, "All 1,234,567 pairs were measured")):
        path.write_text(json.dumps(numbers | {"exact": exact, "pairs": 1234567}))
        text = build(run_copy).text
        assert said in text
        assert ("Estimated from" in text) != exact
