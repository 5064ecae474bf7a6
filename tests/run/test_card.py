"""The model card of a run, and the folders that it goes into."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from numpy.testing import assert_array_equal

import fake_run
import fakes
from classact.cli.export import ExportHub, ExportLerobot
from classact.data.lowdim import LowDim
from classact.data.schema import Schema
from classact.errors import ConfigError
from classact.evaluation.rows import ActionError, Value
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.policies import ControlConfig, ImageLatents, RetrievalConfig, RetrievalPolicy, Runner, load_policy
from classact.run.export import _usage, export_hub, export_lerobot
from classact.run.folder import Run
from classact.run.load import load_policy as load_run_policy
from classact.utils import hub
from classact.utils.codec import to_json
from classact.utils.storage import CARD, write_json, write_jsonl


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """With a page, a policy and an error on held-out actions."""
    run = Run(tmp_path_factory.mktemp("run") / "run")
    write_json(run.config, fake_run.config())
    write_jsonl(run.train_log, fake_run.training_rows(np.random.default_rng(0)))
    evaluated = {"evaluation": "retrieval-class-none", "encoder": "class", "shift": "none", "episodes": 50}
    rows = [fakes.row(**evaluated, criterion=one, successes=k, success=k / 50) for one, k in (("a", 31), ("b", 9))]
    # A baseline, and a maximum, are none of the policy's own.
    rows += [replace(rows[0], encoder="untrained", evaluation="retrieval-untrained-none")]
    run.add_summary([*rows, replace(rows[0], maximum_of=3)])
    data = fakes.demonstrations()
    encoder = ImageEncoder(EncoderConfig(width=0.25, image_size=32, crop_size=28))
    RetrievalPolicy.build(ImageLatents(encoder, LowDim.fit(data)), data, RetrievalConfig(k=5)).save(run.policy)
    run.report.write_text("<html></html>")
    config = run.read_config()
    config["data"] |= {"schema": {"fps": 10.0}, "heldout": 4}
    config["settings"]["data"] = "lerobot/pusht@v3.0"
    write_json(run.config, config)
    error = ActionError("retrieval", Value(0.25, 0.2, 0.3), Value(1.5, None, None), (0.2, 0.25, 0.3))
    write_json(run.actions, {"retrieval": to_json(error)})
    return run


def test_a_card_says_what_was_learned_from_and_how_well_it_acts(run: Run, tmp_path: Path) -> None:
    out = export_hub(run, tmp_path / "out", hub="user/push")
    assert isinstance(load_policy(out), RetrievalPolicy)
    card = ModelCard.load(out / CARD)
    assert card.data.to_dict()["datasets"] == ["lerobot/pusht"]
    rows = run.read_summary()[:2]
    found = [(result.metric_type, result.metric_value) for result in card.data.eval_results]
    assert found == [*(("success-rate", round(row.success, 4)) for row in rows), ("action-error", 0.25)]
    for row in rows:
        interval = f"{100 * row.low:.1f} to {100 * row.high:.1f} %"
        assert f"| {row.criterion} | {100 * row.success:.1f} % | {interval} | {row.episodes} |" in card.text
    settings, last = run.settings().pretrain, run.read_train_log()[-1]["step"]
    images = last * settings.batch_size * settings.objective.images_per_anchor
    for line in (
        f"| Images seen in training | {images:,} |",
        f"| Quantile K of similar action sequences | {100 * settings.similarity.quantile:g} % |",
        f"| Horizon of compared actions | {settings.similarity.horizon} steps |",
        "| Steps per second | 10.0 |",
        "| retrieval | 0.25 (0.2 to 0.3) | 1.5 |",
        "what was done in 3 held-out demonstrations",
        "[report.html](report.html)",
        'classact.load_policy("user/push")',
    ):
        assert line in card.text
    with pytest.raises(ConfigError, match="'push@v1' is no name on the hub: expected user/name"):
        export_hub(run, tmp_path / "other", hub="push@v1")
    assert not (tmp_path / "other").exists()
    with pytest.raises(ConfigError, match="out exists"):
        export_hub(run, out)


def test_a_policy_for_lerobot_has_the_card_as_well(run: Run, tmp_path: Path) -> None:
    out = export_lerobot(run, tmp_path / "out")
    card = ModelCard.load(out / CARD)
    assert card.data.to_dict()["library_name"] == "lerobot"
    assert "--policy.path=out" in card.text
    assert json.loads((out / "config.json").read_text())["type"] == "classact"


def test_exports_act_as_the_run_is_evaluated(run: Run, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(run.root, tmp_path / "run")))
    config = run.read_config()
    config["settings"]["evaluation"] |= {"execute": 3, "ensemble": 0.1}
    write_json(run.config, config)
    assert load_run_policy(run).spec.control == ControlConfig(3, 0.1)
    out = export_hub(run, tmp_path / "hub")
    policy = load_policy(out)
    assert policy.spec.control == ControlConfig(3, 0.1)
    (given,) = fakes.observations(fakes.demonstrations(), [3])
    runner, expected = Runner(policy), Runner(load_policy(run.policy), ControlConfig(3, 0.1))
    for _ in range(4):
        assert_array_equal(runner.step(given), expected.step(given))
    assert runner.decision is not None
    assert runner.decision.chunk.shape[1] == 3
    line = "| Executed before the next decision | 3 of a chunk, averaged over chunks (ensemble 0.1) |"
    assert line in ModelCard.load(out / CARD).text
    lerobot = json.loads((export_lerobot(run, tmp_path / "lerobot") / "config.json").read_text())
    assert (lerobot["n_action_steps"], lerobot["n_obs_steps"]) == (3, 1)


def test_how_lerobot_runs_it_is_on_the_card() -> None:
    assert "lerobot-eval --policy.path=user/a --env.type=pusht" in _usage("user/a", "pusht", Schema())
    told = _usage("user/a", "", Schema(("top",), (("q", 2),), language=768, fps=12.5))
    assert 'lerobot-rollout --policy.path=user/a --robot.type=... --fps=12.5 --task="..."' in told


@pytest.mark.parametrize("command", [ExportHub, ExportLerobot])
def test_who_sees_an_upload(run: Run, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[Any] = []
    monkeypatch.setattr(hub, "push_folder", lambda *args, **options: pushed.append((args[1], options)))
    command(run.root, tmp_path / "out", push="user/push", private=True).main()
    assert pushed == [("user/push", {"private": True})]
    with pytest.raises(ConfigError, match="--private says who sees what is uploaded, but nothing is: name it, --push"):
        command(run.root, tmp_path / "other", private=True).main()
    assert not (tmp_path / "other").exists()


def test_a_feature_without_a_name_is_refused(run: Run, tmp_path: Path) -> None:
    for wrong in ("top", "top=", "=observation.image"):
        with pytest.raises(ConfigError, match=f"--features {wrong}: expected KEY=FEATURE"):
            ExportLerobot(run.root, tmp_path / "out", features=(wrong,)).main()
