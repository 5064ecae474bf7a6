"""The report of a run with heads, success during training and novelty; and of one from before there were any."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report_page import NEW, SECTIONS, build

from classact.errors import DataError
from classact.evaluation.rows import IntermediateRow
from classact.models.heads import MLPConfig
from classact.pages import build_report, figures, learning
from classact.pages.heads import Head, read_heads, stage_names
from classact.pages.novelty import EpisodeNovelty
from classact.pages.page import settings, times
from classact.pages.sources import read_sources
from classact.run.config import HeadRunConfig
from classact.run.folder import Run
from classact.train.config import FinetuneConfig
from classact.utils.codec import to_json
from classact.utils.storage import (
    append_jsonl,
    read_arrays,
    read_json,
    read_jsonl,
    write_arrays,
    write_json,
    write_jsonl,
)
from fake_run import HEADS

NEAR = "evaluations/retrieval-class-none"


@pytest.fixture(scope="module")
def page(whole_run):
    return build(whole_run)


ROW = ("retrieval", "class", "pusht", "none", "retrieval-class-none")
"""The labels of a row."""

# Run


def test_later_intermediates_win_and_stages_keep_their_order(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.read_intermediate() == []
    rows = [
        IntermediateRow(*ROW, c, 10, 1, 0.1, 0.0, 0.2, stage=stage, step=step, steps=20)
        for stage in ("pretrain", "heads/mlp")
        for step in (20, 10)
        for c in ("b", "a")
    ]
    run.add_intermediate(rows)
    run.add_intermediate([replace(rows[0], success=0.7)])
    found = run.read_intermediate()
    assert [(r.stage, r.step, r.criterion) for r in found] == [
        (stage, step, c) for stage in ("pretrain", "heads/mlp") for step in (10, 20) for c in ("b", "a")
    ]
    assert [r.success for r in found] == [0.1, 0.1, 0.7] + [0.1] * 5
    assert run.head("mlp") == tmp_path / "heads" / "mlp"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"policy": None}, r"\.policy: expected text, got None"),
        ({"step": "x"}, r"\.step: expected a whole number, got 'x'"),
        ([1], r": expected an object with the fields of IntermediateRow, got \[1\]"),
    ],
)
def test_damaged_intermediates_are_named(tmp_path: Path, change: Any, found: str) -> None:
    run = Run(tmp_path)
    row = IntermediateRow(*ROW, "c", 10, 1, 0.1, 0.0, 0.2, stage="s", step=1, steps=20)
    run.add_intermediate([row])
    append_jsonl(run.intermediates, to_json(row) | change if isinstance(change, dict) else change)
    with pytest.raises(DataError, match=rf"intermediate\.jsonl, row 2{found}"):
        run.read_intermediate()


# Page


def test_a_run_without_heads_says_what_is_not_there(old_run: Run) -> None:
    page = build(old_run)
    assert page.sections() == SECTIONS - NEW | {"absent"}
    assert "Representation Success Rate" in page.text
    for word in ("Maximum", "Trained heads", "Retrieval,"):
        assert word not in page.text
    assert "Heads : no heads/NAME/config.json is there" in page.text
    assert "Timings" in page.text
    assert settings(old_run.read_config()) != settings(old_run.read_config(), timings=False)


def test_table_has_last_and_maximum_side_by_side_and_says_that_it_is_biased(page, whole_run: Run) -> None:
    best = [row for row in whole_run.read_summary() if row.maximum_of == 10]
    assert len(best) == 2 * 5
    values = {float(a["value"]) for a in page.of("data")}
    for row in best:
        assert {row.success, row.low, row.high} <= values
    assert "Maximum of 10" in page.text
    assert re.search(r"The largest success over 10 evaluations during one training.*biased upwards", page.text)
    for words in ("Diffusion Policy, CLASS (learned) fine-tuned, crop + noise", "frozen, no augmentation, no shift"):
        assert words in page.text
    last = [row for row in whole_run.read_summary() if row.maximum_of is None]
    assert len([a for a in page.of("th") if a.get("scope") == "row"]) >= len(last)
    assert sum((a.get("class") or "") == "main" for a in page.of("tr")) == 1
    assert "Also learned, at their last checkpoint: " in page.text


def test_maxima_are_hollow_marks_without_whiskers(whole_run: Run) -> None:
    rows = read_sources(whole_run.root).summary
    traces = figures.success_figure(rows).data
    hollow = [t for t in traces if t.mode == "markers" and t.marker.symbol.endswith("-open")]
    best = [row for row in rows if row.maximum_of == 10]
    assert sorted(t.x[0] for t in hollow) == sorted(row.success for row in best)
    assert len([t for t in traces if t.mode == "lines"]) == len(rows) - len(best)
    assert all("biased upwards" in t.hovertext for t in hollow)


def test_success_during_training_is_drawn_as_it_was_measured(whole_run: Run) -> None:
    rows = read_sources(whole_run.root).intermediates
    assert len(rows) == 2 * 10 * (1 + len(HEADS))
    stages = list(dict.fromkeys(row.stage for row in rows))
    looks = dict.fromkeys(stages, ("#123456", "circle"))
    figure = learning.intermediate_figure(rows, {s: s for s in stages}, looks)
    lines = [t for t in figure.data if t.mode == "lines+markers"]
    bands = [t for t in figure.data if t.fill == "toself"]
    assert len(lines) == len(bands) == 2 * len(stages)
    for line, band in zip(lines, bands, strict=True):
        own = [r for r in rows if r.stage == line.name and (r.criterion == "coverage > 0.95") == line.visible]
        assert list(line.x) == [r.step for r in own]
        assert list(line.y) == pytest.approx([r.success for r in own], abs=1e-5)
        assert list(band.y) == [r.high for r in own] + [r.low for r in own][::-1]
    views = figure.layout.meta["views"]
    assert list(views) == ["coverage > 0.95", "coverage > 0.90"]
    assert views["coverage > 0.95"] == [t.visible for t in figure.data]
    assert [a != b for a, b in zip(*views.values(), strict=True)] == [True] * len(figure.data)


def test_one_intermediate_has_a_whisker(whole_run: Run) -> None:
    row = read_sources(whole_run.root).intermediates[0]
    whisker, dot = learning.intermediate_figure([row], {"pretrain": "x"}, {"pretrain": ("#123456", "circle")}).data
    assert tuple(whisker.y) == (row.low, row.high)
    assert whisker.fill is None
    assert list(dot.x) == [row.step]


def test_panels_of_pretraining_and_heads_say_last_and_largest(page, whole_run: Run) -> None:
    rows = [r for r in whole_run.read_intermediate() if r.stage == "pretrain" and r.criterion == "coverage > 0.95"]
    best, last = max(rows, key=lambda r: r.success), rows[-1]
    assert (
        f"Retrieval: {100 * last.success:.1f}% ({last.successes} of 12) at step 4,000, the last; the largest of "
        f"10 is {100 * best.success:.1f}%, at {best.step:,}"
    ) in page.text
    assert "Heads during their training" in page.text


def test_heads_have_curves_in_boxes_times_and_settings(page, whole_run: Run) -> None:
    drawn = {a["id"] for a in page.of("div") if a.get("role") == "img"}
    for name in HEADS:
        assert {f"plot-{name}-loss", f"plot-{name}-lr", f"plot-{name}-grad_norm"} <= drawn
    assert "3,000 of 3,000 steps, loss" in page.text
    assert "Head: MLP, frozen" in page.text
    groups = times(read_sources(whole_run.root))
    assert [title for title, _ in groups] == ["The run", *(h.title for h in read_sources(whole_run.root).heads)]
    assert sum(share for _, rows in groups for _, _, share in rows) == pytest.approx(1)
    assert groups[0][1][1][:2] == ("pretraining", 5400.0)
    assert "Timings" not in page.text


def test_a_frozen_encoder_has_no_rate(whole_run: Run) -> None:
    heads = {head.name: head for head in read_heads(whole_run)}
    assert [t.name for t in learning.rates_figure(heads["mlp"].training).data] == ["head", "encoder"]
    assert [t.name for t in learning.rates_figure(heads["mlp-frozen"].training).data] == ["head"]
    assert not learning.rates_figure([{"step": 1}]).data


def test_stage_names_are_never_alike() -> None:
    heads = [Head(name, "MLP", "", HeadRunConfig(), {}, []) for name in ("a", "b")]
    assert stage_names(heads, ["pretrain", "heads/a", "heads/b", "heads/c"]) == {
        "pretrain": "Retrieval",
        "heads/a": "MLP (a)",
        "heads/b": "MLP (b)",
        "heads/c": "c",
    }


def test_notes_of_heads_say_what_their_titles_do_not(tmp_path: Path) -> None:
    run = Run(tmp_path)
    settings = to_json(HeadRunConfig(FinetuneConfig(MLPConfig(), frozen=True, augment=None)))
    for name, title in (("x", "MLP, frozen"), ("y", "Mine, frozen, no augmentation")):
        write_json(run.head(name) / "config.json", {"title": title, "settings": settings, "timings": {}})
    write_json(run.heads / ".z.1.tmp" / "config.json", {})
    assert [(h.title, h.notes) for h in read_heads(run)] == [
        ("MLP, frozen", "no augmentation"),
        ("Mine, frozen, no augmentation", ""),
    ]
    page = build(run)
    assert "Training of Mine, frozen, no augmentation : heads/y/train.jsonl holds no row yet" in page.text
    assert page.sections() == {"absent", "settings"}


# Novelty


def novelty(alarmed: list[bool] | None) -> EpisodeNovelty:
    steps = [np.array([0, 8, 16]), np.array([0, 8]), np.array([], int)]
    scores = [np.array([0.1, 0.95, 0.99]), np.array([0.9, 0.2]), np.array([])]
    success, until = np.array([False, True, True]), np.array([17, 9, 1])
    return EpisodeNovelty(steps, scores, success, until, None if alarmed is None else np.array(alarmed), "c")


def test_novelty_figure_has_a_line_per_episode_first_alarms_and_the_level() -> None:
    given = novelty([True, False, False])
    lines, dots = figures.novelty_figure(given, False, "#123456", 0.9, 16).data
    assert (lines.x, lines.y) == ((0, 8, 16, None), (0.1, 0.95, 0.99, None))
    assert (list(dots.x), list(dots.y)) == ([8], [0.95])
    figure = figures.novelty_figure(given, True, "#123456", 0.9, 16)
    assert len(figure.data) == 1  # 0.9 does not exceed the level
    assert figure.layout.shapes[0].y0 == 0.9
    assert "0.90" in figure.layout.annotations[0].text
    bare = figures.novelty_figure(given, False, "#123456", None, 16)
    assert (len(bare.data), len(bare.layout.shapes)) == (1, 0)
    assert (given.alarms(True), given.alarms(False), novelty(None).alarms(True)) == (0, 1, None)


def test_what_comes_after_success_is_lighter_and_raises_no_alarm() -> None:
    steps = [np.array([0, 8, 16, 24])] * 2
    scores = [np.array([0.1, 0.2, 0.95, 0.3]), np.array([0.95, 0.2, 0.3, 0.4])]
    given = EpisodeNovelty(steps, scores, np.array([True, True]), np.array([16, 30]), np.array([False, True]), "c")
    before, after, dots = figures.novelty_figure(given, True, "#123456", 0.9, 24).data
    assert before.x == (0, 8, None, 0, 8, 16, 24, None)
    assert (after.x, after.y) == ((8, 16, 24, None), (0.2, 0.95, 0.3, None))
    assert after.opacity < before.opacity
    assert (list(dots.x), list(dots.y)) == ([0], [0.95])


def test_alarms_of_successes_and_failures_are_counted(page, whole_run: Run) -> None:
    rows = read_jsonl(whole_run.root / NEAR / "episodes.jsonl")
    for success in (True, False):
        part = [row for row in rows if row["success"]["coverage > 0.95"] == success]
        ends = [row["first_success"]["coverage > 0.95"] or np.inf for row in part]
        rang = [np.inf if row["first_alarm"] is None else row["first_alarm"] for row in part]
        alarms = sum(step < end for step, end in zip(rang, ends, strict=True))
        assert f"{alarms} of {len(part)}" in page.text
    assert "it is drawn lighter, and no alarm counts there" in page.text
    assert "share of the 20 held-out demonstrations" in page.text
    assert "success is coverage > 0.95" in page.text
    assert sum((a.get("id") or "").startswith("plot-novelty") for a in page.of("div")) == 4


def test_without_an_alarm_level_none_are_counted(run_copy: Run) -> None:
    path = run_copy.root / NEAR / "episodes.jsonl"
    rows = read_jsonl(path)
    write_jsonl(path, [{k: v for k, v in row.items() if "alarm" not in k} for row in rows])
    (run_copy.policy / "policy.json").unlink()
    assert "no alarm level" in build(run_copy).text


def test_without_novelty_the_page_says_why(run_copy: Run) -> None:
    for path in run_copy.root.glob("evaluations/*/rollouts.safetensors"):
        write_arrays(path, {k: v for k, v in read_arrays(path).items() if k != "novelty"})
    shutil.rmtree(run_copy.heads)
    run_copy.intermediates.unlink()
    page = build(run_copy)
    assert page.sections() == SECTIONS - {"intermediate", "novelty", "times"} | {"absent"}
    assert "Novelty : no evaluations/NAME/rollouts.safetensors holds novelty" in page.text
    assert "Heads : no heads/NAME/config.json is there" in page.text
    assert "Success during training : intermediate.jsonl is not there" in page.text


@pytest.mark.parametrize(
    ("path", "gone"), [("evaluations", {"coverage", "novelty"}), ("train.jsonl", set()), ("config.json", set())]
)
def test_heads_stand_where_other_files_are_absent(run_copy: Run, path: str, gone: set[str]) -> None:
    target = run_copy.root / path
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    page = build(run_copy)
    assert page.sections() == SECTIONS - gone | {"absent"}
    assert f"{path} is not there" in page.text or path == "evaluations"


# Damage


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("heads/mlp/config.json", "[]", r"mlp/config\.json: expected a JSON object, got list"),
        ("heads/mlp/config.json", '{"title": "x"}', r"config\.json, top level: lacks \['settings', 'timings'\]"),
        (
            "heads/mlp/config.json",
            '{"title": "x", "settings": 3, "timings": {}}',
            r"config\.json: settings: expected an object with the fields of",
        ),
        ("heads/mlp/train.jsonl", '{"loss": 1}', r"mlp/train\.jsonl, row 1: lacks \['step'\]"),
        (
            "intermediate.jsonl",
            '{"stage": "pretrain", "step": 1}',
            r"intermediate\.jsonl, row 1: field 'policy' is missing",
        ),
        ("policy/policy.json", '{"novelty": {"alarm": 2}}', r"policy\.json: novelty: field 'episodes' is missing"),
        ("policy/policy.json", '{"novelty": []}', r"policy\.json: novelty: expected an object with the fields of"),
    ],
)
def test_damaged_files_are_named(run_copy: Run, path: str, content: str, message: str) -> None:
    (run_copy.root / path).write_text(content + "\n")
    with pytest.raises(DataError, match=message):
        build_report(run_copy.root)


def test_points_that_were_evaluated_otherwise_are_said(run_copy: Run) -> None:
    assert "Not all points were evaluated as the last" not in build_report(run_copy.root).read_text(encoding="utf-8")
    first, *rest = [replace(row, settings={"speed": 1.0}) for row in run_copy.read_intermediate()]
    write_jsonl(run_copy.intermediates, to_json([replace(first, settings={"speed": 2.0}), *rest]))
    page = build_report(run_copy.root).read_text(encoding="utf-8")
    assert "Not all points were evaluated as the last." in page
    assert f"at step {first.step:,} speed = 2.0, now it is 1.0." in page


def test_more_successes_than_episodes_are_refused_with_the_row(run_copy: Run) -> None:
    rows = run_copy.read_intermediate()
    write_jsonl(run_copy.intermediates, [to_json(rows[0]), to_json(rows[1]) | {"successes": 99}])
    with pytest.raises(DataError, match=r"intermediate\.jsonl, row 2: 99 successes of 12 episodes"):
        build_report(run_copy.root)


def test_damaged_novelty_is_named(run_copy: Run) -> None:
    path = run_copy.root / NEAR / "rollouts.safetensors"
    arrays = read_arrays(path)
    ends = arrays["decision_ends"]
    for change, message in (
        ({"novelty": arrays["novelty"] * 3}, r"expected novelty in \[0, 1\], got 0\.\d+ to \d"),
        ({"novelty": arrays["novelty"] * np.nan}, "novelty holds NaN"),
        ({"decisions": arrays["decisions"][1:]}, r"expected decisions of shape \(\d+\), got \(\d+,\)"),
        ({"decision_ends": ends[1:]}, r"expected decision_ends of shape \(12\), got \(11,\)"),
        ({"decision_ends": ends + 1}, rf"number of novelty scores, {ends[-1]}; it ends at {ends[-1] + 1}"),
    ):
        write_arrays(path, arrays | change)
        with pytest.raises(DataError, match=message):
            build_report(run_copy.root)
    write_arrays(path, arrays)
    episodes = run_copy.root / NEAR / "episodes.jsonl"
    rows = read_jsonl(episodes)
    write_jsonl(episodes, [rows[0] | {"success": True}, *rows[1:]])
    with pytest.raises(DataError, match=r"episodes\.jsonl, row 1: expected success by criterion, got True"):
        build_report(run_copy.root)


def test_hostile_names_of_heads_stay_text(run_copy: Run) -> None:
    hostile = "<img src=x onerror=alert(2)><script>alert(1)</script>"
    path = run_copy.head("mlp") / "config.json"
    card = read_json(path)
    settings = card["settings"] | {"finetune": card["settings"]["finetune"] | {"keys": [hostile]}}
    write_json(path, card | {"title": hostile, "settings": settings, "timings": {hostile: 1.0}})
    run_copy.head("mlp").rename(run_copy.heads / '"onclick=x')
    rows = run_copy.read_summary()
    changed = {"policy": hostile, "training": hostile, "augmentation": hostile}
    write_json(run_copy.summary, to_json([replace(r, **changed) if r.policy == "mlp" else r for r in rows]))
    run_copy.add_intermediate([replace(run_copy.read_intermediate()[0], stage=f"heads/{hostile}")])
    page = build(run_copy)
    assert "alert(1)" not in " ".join(page.scripts)
    assert not any("onerror" in attributes or "onclick" in attributes for _, attributes in page.tags)
    assert "<script" not in json.dumps(page.figures)
