"""A whole table, computed: of few short demonstrations, with two starts."""

from __future__ import annotations

import multiprocessing as mp
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import table1_runner
import torch

import fakes
from classact.errors import ConfigError
from classact.models.encoders import ImageEncoder
from classact.policies import RetrievalPolicy
from classact.run.folder import Run
from classact.train.head import FineTuner
from classact.train.representation import Trainer
from classact.utils.codec import first_difference
from classact.utils.storage import read_json
from table1 import cells, plan, trainings
from table1.report import build_comparison, read_results

pytestmark = pytest.mark.paper

TIMES = {"training_seconds", "total_seconds", "own_seconds", "latency_ms", "created"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.write_zarr(tmp_path_factory.mktemp("data") / "tiny.zarr", fakes.demonstrations(0, 96, fakes.LENGTHS))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, table1_runner.table(folder, data)


def without_times(results: Mapping[str, Any]) -> dict[str, Any]:
    """What must not depend on when a process was killed."""
    out: dict[str, Any] = {"tuning": results["tuning"], "protocol": results["protocol"], "cells": {}}
    for name, cell in results["cells"].items():
        kept = {key: value for key, value in cell.items() if key not in TIMES}
        for key in ("loss", "curve"):
            kept[key] = [[row[0], *row[2:]] for row in cell[key]]
        out["cells"][name] = kept
    return out


def test_a_table_is_whole(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, results = whole
    found = read_results(folder / "results.json")
    assert [(cell.method, cell.head, cell.status) for cell in found.cells] == [
        *[(method, "rep", "done") for method in table1_runner.METHODS],
        *[(method, head, "done") for head in ("mlp", "mlp-rep") for method in ("class", "random")],
    ]
    by = {(cell.method, cell.head): cell for cell in found.cells}
    for cell in found.cells:
        assert cell.starts == (300_000, 300_001)
        assert list(cell.success) == ["coverage>0.90", "iou>0.90"]
        assert all(0 <= value <= 1 for value in cell.score if value is not None)
        assert cell.demonstrations == 4
        assert cell.latency_ms is not None
        assert 0 < cell.latency_ms.median <= (cell.latency_ms.p95 or 0)
        assert cell.total_seconds is not None
        assert cell.training_seconds is not None
        assert cell.training_seconds <= cell.total_seconds + 0.1
    # 77 steps of four demonstrations; 400 images are 13 batches of 32, for BYOL 2 views of 32: 7 of 64.
    assert [by[m, "rep"].images for m in table1_runner.METHODS] == [0, 13 * 32, 7 * 64]
    assert [len(by[m, "rep"].curve) for m in table1_runner.METHODS] == [0, 1, 1]
    # The head of what was not pre-trained sees the whole budget: 530 images, 9 batches of 64; else 130, 3 batches.
    assert by["random", "mlp"].images == 9 * 64
    assert by["class", "mlp"].images == 13 * 32 + 3 * 64
    tries = [(row["method"], row["head"], row["learning_rate"]) for row in results["tuning"]]
    assert tries == [*(("byol", "rep", 1e-3), ("byol", "rep", 2e-3), ("random", "mlp", 1e-4), ("random", "mlp", 1e-3))]
    chosen = [row["learning_rate"] for row in results["tuning"] if row["chosen"]]
    assert [by["byol", "rep"].learning_rate, by["random", "mlp"].encoder_lr] == chosen
    assert by["class", "rep"].learning_rate == 2e-3
    assert (by["class", "mlp"].learning_rate, by["class", "mlp"].encoder_lr) == (1e-3, 1e-4)
    # Retrieval with a head's encoder has what the head's training cost, and no curves of its own.
    for method in ("class", "random"):
        head, retrieval = by[method, "mlp"], by[method, "mlp-rep"]
        for key in ("images", "steps", "learning_rate", "encoder_lr", "training_seconds"):
            assert getattr(retrieval, key) == getattr(head, key)
        assert (head.tau, head.k) == (None, None)
        assert (retrieval.tau, retrieval.k) in ((0.0, 1), (0.01, 8))
        assert not retrieval.loss
        assert not retrieval.curve
    # Heads go on from pre-training.
    for method, images in (("class", 13 * 32), ("random", 0)):
        assert [row[0] for row in by[method, "mlp"].loss][-1] == by[method, "mlp"].images
        assert by[method, "mlp"].curve[0][0] > images


def test_heads_retrieve_with_the_encoder_that_was_trained_beneath_them(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, results = whole
    for method in ("class", "random"):
        kept = Run(folder / results["cells"][f"{method}-fixed-none-seed0-mlp-rep"]["folder"])
        head = kept.root.parent
        assert head == Run(folder / "cells" / f"{method}-fixed-none-seed0").head("mlp")
        encoder = RetrievalPolicy.load(kept.policy).latents.encoder.state_dict()
        trained = ImageEncoder.from_pretrained(head / "policy" / "encoder").state_dict()
        before = ImageEncoder.from_pretrained(Run(head.parent.parent).encoder).state_dict()
        assert all(torch.equal(encoder[key], trained[key]) for key in trained)
        assert not all(torch.equal(encoder[key], before[key]) for key in before)


def test_settings_are_chosen_on_starts_that_no_cell_is_evaluated_on(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, results = whole
    evaluated = {start for cell in results["cells"].values() for start in cell["starts"]}
    choices = sorted(folder.glob("*/*/retrieval.json"))
    assert [path.parent.name for path in choices] == [
        *("byol-fixed-none-seed0", "class-fixed-none-seed0", "random-fixed-none-seed0"),
        *("byol-fixed-none-seed0-rate0.001", "byol-fixed-none-seed0-rate0.002"),
    ]
    for path in folder.glob("tuning/random-*/heads/mlp/config.json"):
        asked = read_json(path)["settings"]["evaluation"]
        assert (asked["first_seed"], asked["episodes"]) == (200_000, 2)
    within = sorted(folder.glob("cells/*/heads/mlp/retrieval/retrieval.json"))
    assert len(within) == 2
    for path in [*choices, *within]:
        choice = read_json(path)
        first = choice["asked"]["first_seed"]
        assert not evaluated & set(range(first, first + choice["asked"]["starts"]))
        assert [row["tau"] for row in choice["tries"]] == [0.0, 0.01]
        assert [row["k"] for row in choice["tries"]] == [1, 8]
        best = max(choice["tries"], key=lambda row: (row["successes"], row["score"]))
        assert {key: choice[key] for key in best} == best


def test_records_are_flat_and_probes_are_named(whole: tuple[Path, dict[str, Any]]) -> None:
    _, results = whole
    for cell in results["cells"].values():
        nested = {key for key, value in cell.items() if isinstance(value, dict)}
        assert nested <= {"success", "latency_ms", "probe", "choice", "hardware", "versions"}
        assert cell["metric"] == "coverage"
        if cell["head"] == "rep":
            assert any(name.startswith("latents: ") for name in cell["probe"])
            for row in cell["probe"].values():
                assert {"value"} <= row.keys() <= {"value", "low", "high"}


def test_probes_retrieve_as_the_cell_acts(whole: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = whole
    bench = trainings.Bench(folder, table1_runner.protocol(folder), {}, folder, "cpu", quiet=True)
    asked: list[dict[str, Any]] = []

    def probe(_: Run, **options: Any) -> dict[str, Any]:
        asked.append(options)
        return {"representations": {}}

    monkeypatch.setattr(cells, "probe_run", probe)
    for chosen in ({"tau": 0.0, "k": 1}, {"tau": 0.01, "k": 8}):
        cells.probed(bench, Run(folder), chosen)
    assert [(o["k"], o.get("temperature")) for o in asked] == [(1, None), (8, 0.01)]


def test_cells_with_fewer_demonstrations_say_why_they_are_not_probed(data: Path, tmp_path: Path) -> None:
    wanted = plan(("random",), columns=("fixed",), demonstrations=[2])
    results = table1_runner.table(tmp_path, data, lambda _: None, wanted)
    (cell,) = results["cells"].values()
    assert (cell["status"], cell["demonstrations"], cell["probe"]) == ("done", 2, None)
    assert "fewer demonstrations" in cell["not_probed"]


def test_the_page_shows_maps_and_neighbours_of_seed_0(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, results = whole
    for cell in results["cells"].values():
        if cell["head"] == "rep":
            analysis = Run(folder / cell["folder"]).analysis
            assert (analysis / "latent_map.safetensors").exists()
            assert (analysis / "neighbors.safetensors").exists()
    text = build_comparison(folder / "results.json", folder / "table1.html").read_text()
    assert "Nearest neighbours, Fixed-Color" in text
    assert "neighbors.safetensors is not there: CLASS, Rep-Only" not in text


def test_killed_in_a_training_it_goes_on_there(whole: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path) -> None:
    cell = "byol-fixed-none-seed0"
    process = mp.get_context("spawn").Process(
        target=table1_runner.die_in_training, args=(str(tmp_path), str(data), cell, 2)
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    kept = read_json(tmp_path / "results.json")
    assert [row["status"] for row in kept["cells"].values()] == ["done", "done", *5 * ["planned"]]
    before = Run(tmp_path / "cells" / cell).read_train_log()
    assert before[-1]["step"] == 4
    tries = {path: path.stat().st_mtime_ns for path in (tmp_path / "tuning").rglob("*") if path.is_file()}
    assert tries
    said: list[str] = []
    results = table1_runner.table(tmp_path, data, said.append)
    assert said[0].startswith(f"{cell} (3 of 7, some ")
    assert first_difference(without_times(results), without_times(whole[1]), "table") is None
    assert {name: results["cells"][name] for name in list(kept["cells"])[:2]} == dict(list(kept["cells"].items())[:2])
    # Neither the tries nor the first steps were computed again: times tell.
    assert {path: path.stat().st_mtime_ns for path in tries} == tries
    assert Run(tmp_path / "cells" / cell).read_train_log()[:4] == before
    assert results["cells"][cell]["training_seconds"] >= round(before[-1]["seconds"], 1)


def test_more_starts_are_added_to_what_is_done(
    whole: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("trained")

    folder = Path(shutil.copytree(whole[0], tmp_path / "table"))
    monkeypatch.setattr(Trainer, "train_step", never)
    monkeypatch.setattr(FineTuner, "train_step", never)
    said: list[str] = []
    results = table1_runner.table(folder, data, said.append, starts=3)
    assert len([line for line in said if "/3 (" in line]) == len(results["cells"])
    for name, cell in results["cells"].items():
        before = whole[1]["cells"][name]
        assert cell["starts"] == [*before["starts"], before["starts"][-1] + 1]
        assert cell["score"][:2] == before["score"]
        assert {key: found[:2] for key, found in cell["success"].items()} == before["success"]
        assert {key: cell[key] for key in ("training_seconds", "total_seconds", "probe")} == {
            key: before[key] for key in ("training_seconds", "total_seconds", "probe")
        }
    assert results["protocol"]["episodes"] == results["protocol"]["settings"]["starts"] == 3
    assert "3 initial states" in build_comparison(folder / "results.json", folder / "table1.html").read_text()
    again: list[str] = []
    assert table1_runner.table(folder, data, again.append, starts=3) == results
    assert not again
    with pytest.raises(ConfigError, match=r"has 3 initial states for each cell, and 2 were asked for\. Ask for"):
        table1_runner.table(folder, data)
