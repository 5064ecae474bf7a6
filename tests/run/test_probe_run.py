"""A run from its folder to RUN/probe.json and the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fakes
from classact.cli.probe import Probe, probe_rows
from classact.data.lowdim import LowDim
from classact.errors import CheckpointError, ConfigError, DataError
from classact.evaluation.probe.views import Drawing, draw_rows, reason_against, representations
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.policies import ImageLatents, RetrievalPolicy
from classact.run.folder import Run
from classact.run.presets import from_preset
from classact.run.pretrain import Pipeline
from classact.run.probe import flat_metrics, probe_file, probe_run, write_probe
from classact.sims import make_simulator
from classact.sims.rendering import render_states
from classact.utils.storage import read_json, write_json

SMALL: dict[str, Any] = {"queries": 60, "pairs": 500}


def trained(root: Path, *, shift: str | None, heldout: int) -> Run:
    made = from_preset("debug", shift=shift, data="pusht-expert", episodes=6, heldout=heldout)
    pretrain = replace(made.pretrain, epochs=0.2, similarity=replace(made.pretrain.similarity, pairs=5000))
    frames = replace(made.frames, workers=1)
    pipeline = Pipeline(Run(root), replace(made, pretrain=pretrain, frames=frames), quiet=True, device="cpu")
    pipeline.pretrain()
    return pipeline.run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """On embedded demonstrations of random colours, the last two held out."""
    return trained(tmp_path_factory.mktemp("held"), shift="rand-color", heldout=2)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("plain"), shift=None, heldout=0)


def test_a_run_is_probed_and_printed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
    Probe(run.root, heldout_sample=60, pairs=500, device="cpu", quiet=True).main()
    result = read_json(run.root / "probe.json")
    assert {path: path.read_bytes() for path in before} == before
    policy = RetrievalPolicy.load(run.policy)
    assert (result["encoder"], result["queries"]["kind"]) == ("learned", "held-out")
    assert (result["queries"]["steps"], result["queries"]["episodes"]) == (60, 2)
    assert result["queries"]["bank_episodes"] == 4
    assert result["settings"]["temperature"] == policy.config.temperature
    assert result["settings"]["similarity"]["quantile"] == 0.05
    assert [note[:22] for note in result["notes"]] == ["Intervals come from 2 "]
    assert list(result["representations"]) == ["latents", "image features"]
    features = policy.latents.encoder.feature_dim  # type: ignore[union-attr]
    sizes = [result["representations"][name]["dimensions"] for name in result["representations"]]
    assert sizes == [features + 2, features]
    assert {"hardware", "versions", "created", "seconds", "device"} <= result.keys()
    views = result["views"]
    assert (views["shift"], views["tolerance"]) == ("rand-color", 2)
    for metrics in views["representations"].values():
        assert metrics["margin"]["value"] == pytest.approx(
            metrics["cosine_same"]["value"] - metrics["cosine_different"]["value"]
        )
        assert 0 <= metrics["same_state"]["value"] <= metrics["nearly_same_state"]["value"] <= 1
    flat = flat_metrics(result, "image features")
    assert flat["dtw_error@64"] == result["representations"]["image features"]["action_error"][-1]["dtw"]
    assert flat["same_state"] == views["representations"]["image features"]["same_state"]
    assert all(metric.keys() == {"value", "low", "high"} for metric in flat.values())
    assert not any("chance" in name for name in flat)
    with pytest.raises(ConfigError, match="unknown representation 'pixels': available are 'image features', 'latents'"):
        flat_metrics(result, "pixels")
    shown = capsys.readouterr().out
    for text in (
        "60 steps of 2 episodes (held-out)",
        "image features",
        "best there is",
        "same state found",
        "probe.json",
    ):
        assert text in shown
    rows = [row for row in probe_rows(result) if row is not None]
    assert {len(row) for row in rows} == {4}
    assert max(map(len, shown[shown.index("┏") : shown.rindex("┘")].splitlines())) <= 80
    assert ("DTW error, k = 64", "↓") in [row[:2] for row in rows]


def test_the_same_probe_twice_and_other_encoders(run: Run) -> None:
    once, twice = (probe_run(run, device="cpu", **SMALL) for _ in range(2))
    for key in ("representations", "anchors", "queries", "positives"):
        assert once[key] == twice[key]
    policy = RetrievalPolicy.load(run.policy).config
    other = probe_run(run, device="cpu", k=5, temperature=10 * policy.temperature, **SMALL)
    assert (other["settings"]["ks"], other["settings"]["temperature"]) == ([1, 4, 5, 16, 64], 10 * policy.temperature)
    errors = [{row["k"]: row for row in r["representations"]["latents"]["action_error"]} for r in (once, other)]
    assert errors[1][1] == errors[0][1]
    assert errors[1][16] != errors[0][16]
    untrained = probe_run(run, encoder="untrained", device="cpu", **SMALL)
    assert untrained["anchors"] == once["anchors"]
    assert untrained["representations"] != once["representations"]
    state = probe_run(run, encoder="state", device="cpu", **SMALL)
    assert list(state["representations"]) == ["latents"]
    assert state["anchors"] == once["anchors"]
    assert state["views"]["skipped"] == "these latents read no images"
    assert write_probe(run, state) == probe_file(run, "state") == run.root / "probe-state.json"
    assert not any(row is not None and "found" in row[0] for row in probe_rows(state))


def test_without_held_out_episodes_each_is_left_out(
    plain: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Probe(plain.root, heldout_sample=50, pairs=400, json=tmp_path / "a.json", device="cpu", quiet=True).main()
    result = read_json(tmp_path / "a.json")
    assert not (plain.root / "probe.json").exists()
    assert result["queries"]["kind"] == "leave-one-out"
    assert result["notes"][0].endswith("left out of the bank in turn, and the encoder has seen them.")
    assert result["views"]["skipped"].startswith("shift 'fixed-color' draws every state alike")
    assert "View invariance was not measured: shift 'fixed-color'" in capsys.readouterr().out
    untrained = probe_run(plain, encoder="untrained", device="cpu", shift="rand-color", **SMALL)
    assert untrained["notes"][0].endswith("left out of the bank in turn.")
    assert untrained["views"]["states"] == 500


def test_what_a_run_lacks_is_said(run: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config.json does not exist"):
        probe_run(Run(tmp_path))
    with pytest.raises(ConfigError, match="unknown encoder to probe 'class': available are 'learned', 'state'"):
        probe_run(run, encoder="class")
    with pytest.raises(ConfigError, match="unknown shift 'sepia'"):
        probe_run(run, shift="sepia")
    card = run.read_config()
    write_json(tmp_path / "config.json", card)
    with pytest.raises(CheckpointError, match="has no policy yet: run 'classact pretrain'"):
        probe_run(Run(tmp_path))
    (tmp_path / "policy").symlink_to(run.policy)
    card["settings"]["heldout"] = 1
    write_json(tmp_path / "config.json", card)
    with pytest.raises(ConfigError, match=r"the bank of .* holds \d+ timesteps, the data .* have \d+ to learn from"):
        probe_run(Run(tmp_path))
    card["settings"]["episodes"] = 5
    write_json(tmp_path / "config.json", card)
    with pytest.raises(ConfigError, match=r"have changed since its encoder was learned: it was data\.fingerprint = "):
        probe_run(Run(tmp_path))


# Drawing states


def test_states_are_drawn_as_the_data_are() -> None:
    data = fakes.demonstrations(lengths=(5, 4))
    rows = np.array([1, 4, 6])
    drawing = Drawing("pusht", "rand-color", 96)
    found = draw_rows(data, rows, ("top",), 48, drawing, seed=7)["top"]
    expected = np.empty((9, 48, 48, 3), np.uint8)
    assert data.states is not None
    render_states("pusht", data.states, data.episode_ends, image_size=96, shift="rand-color", seed=7, out=expected)
    np.testing.assert_array_equal(found, expected[rows])
    other = draw_rows(data, rows, ("top",), 48, drawing, seed=8)["top"]
    assert not np.array_equal(found, other)


def test_image_features_are_those_of_the_encoder() -> None:
    data = fakes.demonstrations(lengths=(5, 4))
    encoder = ImageEncoder(EncoderConfig(width=0.25, image_size=32, crop_size=28))
    latents = ImageLatents(encoder, LowDim.fit(data))
    found = representations(latents, latents.demonstrations(data))["image features"]
    features = encoder.encode(dict(data.images))
    np.testing.assert_allclose(found, features / np.linalg.norm(features, axis=1, keepdims=True), atol=1e-5)


def test_why_states_cannot_be_drawn() -> None:
    data = fakes.demonstrations(lengths=(5, 4))

    def why(data: Any = data, simulator: str = "pusht", shift: str = "rand-color", **changes: Any) -> str | None:
        config = EncoderConfig(width=0.25, image_size=32, crop_size=28, **changes)
        return reason_against(data, ImageLatents(ImageEncoder(config), LowDim.fit(data)), Drawing(simulator, shift, 96))

    assert why() is None
    assert "holds no simulator states" in str(why(replace(data, states=None)))
    assert "draws every state alike; name one" in str(why(shift="fixed-color"))
    assert "unknown camera 'wrist'" in str(why(cameras=("wrist",)))
    assert "unknown simulator 'chess'" in str(why(simulator="chess"))
    assert "unknown shift 'dynamic'" in str(why(shift="dynamic"))
    assert "width / height 1.33, and simulators draw squares" in str(why(aspect=4 / 3))
    assert data.states is not None
    wide = replace(data, states=np.concatenate([data.states, data.states], axis=1))
    expected = (
        f"the states of walks have 10 dimensions, those of simulator 'pusht' {make_simulator('pusht').spec.state_dim}"
    )
    assert why(wide) == expected
