"""Settings of runs and heads, as their folders keep them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from classact.errors import DataError
from classact.objectives import OBJECTIVES, objective_config
from classact.run.config import HeadRunConfig, RunConfig
from classact.run.folder import Run
from classact.run.presets import HEAD_PRESETS, PRESETS, from_preset, with_objective
from classact.run.recording import add_time, new_metadata
from classact.utils.codec import from_json, to_json
from classact.utils.storage import write_json


def through_text(config: Any) -> Any:
    """What is read back of what a folder keeps."""
    return from_json(type(config), json.loads(json.dumps(to_json(config), allow_nan=False)), "settings")


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_of_a_run_come_back(preset: str) -> None:
    config = from_preset(preset, keys=("a", "b"), layout="layout.json")
    assert through_text(config) == config
    assert through_text(replace(config, intermediate_retrieval=config.retrieval, keys=None)) != config


@pytest.mark.parametrize("objective", [*OBJECTIVES, "class+0.1*byol"])
def test_settings_of_every_objective_come_back(objective: str) -> None:
    config = from_preset("debug")
    config = replace(config, pretrain=with_objective(config.pretrain, objective_config(objective)))
    assert through_text(config) == config
    assert config.pretrain.objective.written == objective


@pytest.mark.parametrize("preset", HEAD_PRESETS)
@pytest.mark.parametrize("head", ["diffusion", "mlp"])
def test_settings_of_a_head_come_back(preset: str, head: str) -> None:
    for frozen in (False, True):
        config = HeadRunConfig(HEAD_PRESETS[preset].config(head, frozen=frozen), evaluation=RunConfig().evaluation)
        assert through_text(config) == config
        assert through_text(config) != replace(config, evaluation=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrain": {"epochs": "9"}}, r"config\.json: settings\.pretrain\.epochs: expected a number, got '9'"),
        ({"frames": {"simulater": "pusht"}}, r"settings\.frames: unknown field 'simulater': .*'simulator'"),
        ({"frames": None}, r"settings\.frames: expected an object with the fields of FramesConfig, got None"),
        ({"retrieval": {"k": 0}}, r"settings\.retrieval: expected k >= 1"),
    ],
)
def test_what_is_wrong_in_a_folder_is_named_by_its_path(tmp_path: Path, changes: Any, message: str) -> None:
    run, settings = Run(tmp_path), to_json(from_preset("debug"))
    for name, change in changes.items():
        settings[name] = settings[name] | change if isinstance(change, dict) else change
    write_json(run.config, {"settings": settings})
    with pytest.raises(DataError, match=message):
        run.settings()


def test_a_field_that_a_folder_lacks_is_named(tmp_path: Path) -> None:
    run, settings = Run(tmp_path), to_json(from_preset("debug"))
    del settings["pretrain"]["optimizer"]["momentum"]
    write_json(run.config, {"settings": settings})
    with pytest.raises(DataError, match=r"settings\.pretrain\.optimizer: field 'momentum' is missing"):
        run.settings()


def test_labels_say_what_was_learned() -> None:
    config = from_preset("debug")
    assert (config.label, config.labels["training"]) == ("class", "representation only")
    none = replace(config, pretrain=with_objective(config.pretrain, objective_config("none")))
    assert (none.label, none.labels) == ("random", {"training": "none", "augmentation": "none"})
    imagenet = replace(none, pretrain=replace(none.pretrain, encoder=replace(none.pretrain.encoder, init="imagenet")))
    assert imagenet.label == "imagenet"
    assert HeadRunConfig(start="run").label("tcn") == "tcn"
    assert HeadRunConfig(start="scratch").labels["training"] == "from scratch"
    assert HeadRunConfig(start="/a/b/encoder").label("tcn") == "other: b/encoder"


def test_settings_are_read_without_torch() -> None:
    code = "import sys, classact.run.config, classact.run.presets, classact.run.folder; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_what_a_folder_says_beside_settings_comes_back(tmp_path: Path) -> None:
    run = Run(tmp_path)
    card = new_metadata("Mine")
    write_json(run.config, card | {"settings": {}, "note": "what others wrote"})
    add_time(run, "training", 1.5)
    info = run.info()
    assert (info.title, info.timings, info.created) == ("Mine", {"training": 1.5}, card["created"])
    write_json(run.config, card | {"timings": {"training": "long"}})
    with pytest.raises(DataError, match=r"config\.json\.timings\.training: expected a number, got 'long'"):
        run.info()
