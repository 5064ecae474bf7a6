"""Graphs of ONNX decide as what they were made of: in onnxruntime, for batches of any size."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import fakes
from classact.data.actions import ActionSpace, Part
from classact.data.lowdim import LowDim
from classact.data.normalize import MinMax
from classact.data.schema import Schema
from classact.errors import ConfigError
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.models.heads import DiffusionConfig, MLPConfig, ResidualConfig, UNetConfig, make_head
from classact.models.latent_actions.decoder import ActionDecoder
from classact.policies import (
    ControlConfig,
    ImageLatents,
    MonitoredPolicy,
    NoveltyConfig,
    ParametricConfig,
    ParametricPolicy,
    RetrievalConfig,
    RetrievalPolicy,
)
from classact.policies.onnx_graphs import export_onnx
from classact.policies.speed import played, reach

ort = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

DATA = fakes.two_views(fakes.demonstrations(), language=3)
CAMERAS = tuple(DATA.images)
CONFIG = EncoderConfig(width=0.25, image_size=32, crop_size=28, cameras=CAMERAS)
MLP = MLPConfig(network="residual", residual=ResidualConfig(width=16, blocks=1))
TINY = UNetConfig(widths=(8, 16), kernel_size=3, groups=4, step_dim=8)


def run(file: Path, given: dict[str, Any]) -> list[Any]:
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == list(given)
    return list(session.run(None, given))


def observed(rows: list[int]) -> dict[str, Any]:
    given: dict[str, Any] = {camera: np.asarray(DATA.images[camera])[rows] for camera in CAMERAS}
    seen = fakes.observations(DATA, rows)
    given["proprioception"] = np.stack([one.proprioception for one in seen])
    given["language"] = np.stack([np.asarray(one.language, np.float32) for one in seen])
    return given


def parametric(head: Any, **settings: Any) -> ParametricPolicy:
    encoder = ImageEncoder(replace(CONFIG, shared=True), seed=2)
    lowdim = LowDim.fit(DATA)
    made = make_head(head, encoder.feature_dim + lowdim.dim, DATA.actions.shape[1], 8)
    made.center += torch.randn(made.center.shape, generator=torch.Generator().manual_seed(0))
    config = ParametricConfig(**{"chunk_length": 3, "speed": 1.5} | settings)
    return ParametricPolicy(encoder, made, MinMax.fit(DATA.actions), lowdim, config)


def retrieval(**settings: Any) -> RetrievalPolicy:
    latents = ImageLatents(ImageEncoder(CONFIG), LowDim.fit(DATA))
    config = RetrievalConfig(**{"k": 5, "temperature": 0.01, "chunk_length": 4, "horizon": 8, "speed": 2.0} | settings)
    return RetrievalPolicy.build(latents, DATA, config)


def test_an_encoder(tmp_path: Path) -> None:
    encoder = ImageEncoder(replace(CONFIG, cameras=("wrist",), pooling="average"), seed=1)
    file = export_onnx(encoder, tmp_path / "encoder.onnx")
    for rows in ([3], [0, 50, 90, 100, 119]):
        (features,) = run(file, given := {"wrist": DATA.images["wrist"][rows]})
        assert_allclose(features, encoder.encode(given), atol=2e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.onnx"]


def test_a_head(tmp_path: Path) -> None:
    acting = parametric(MLP)
    file = export_onnx(acting, tmp_path / "policy.onnx")
    rows = [3, 40, 90]
    (actions,) = run(file, observed(rows))
    assert actions.shape == (3, 3, DATA.actions.shape[1])
    span = float(np.ptp(DATA.actions))
    assert_allclose(actions, acting.decide(fakes.observations(DATA, rows)).chunk, atol=1e-4 * span)


def test_a_head_of_latent_actions_gives_decoded_ones(tmp_path: Path) -> None:
    torch.manual_seed(2)  # of the decoder's weights
    space = ActionSpace((Part("base", "velocity", 2), Part("gripper", "gripper", 1)))
    decoder = ActionDecoder(
        DATA.actions.shape[1], MinMax(np.full(3, -4, np.float32), np.full(3, 2, np.float32)), space, (8, 8)
    )
    acting = replace(parametric(MLP), decoder=decoder.eval())
    assert acting.spec.action_space == space
    file, rows = export_onnx(acting, tmp_path / "policy.onnx"), [3, 40, 90]
    (actions,) = run(file, observed(rows))
    assert actions.shape == (3, 3, 3)
    expected = acting.decide(fakes.observations(DATA, rows)).chunk
    assert_allclose(actions, expected, atol=1e-4)
    usual = replace(acting, config=replace(acting.config, speed=1.0, chunk_length=reach(3, 1.5)))
    chunks = usual.decide(fakes.observations(DATA, rows)).chunk
    assert_allclose(expected, played(chunks, 1.5, 3, space), rtol=1e-5)  # faster, where it says how fast
    assert np.abs(expected - played(chunks, 1.5, 3)).max() > 0.1  # which it would not be without its action space


def test_a_decision_of_retrieval(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    acting = retrieval(min_actions=3, proprioception_weight=2.0, revisit=0.99)
    with caplog.at_level(logging.WARNING):
        file = export_onnx(acting, tmp_path / "policy.onnx")
    assert "policy.onnx is the decision alone: it keeps no memory" in caplog.text
    rows = [0, 41, 90, 118]
    actions, neighbors, cosine, weights = run(file, observed(rows))
    expected = acting.decide(fakes.observations(DATA, rows))
    assert expected.neighbors is not None
    assert_array_equal(neighbors, expected.neighbors.rows)
    assert_allclose(cosine, expected.neighbors.cosine, atol=1e-5)
    assert_allclose(weights, expected.neighbors.weights, atol=1e-3)
    assert_allclose(actions, expected.chunk, atol=1e-3 * float(np.ptp(DATA.actions)))


def test_what_a_graph_leaves_out_is_said_and_stays_with_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    acting, file = parametric(MLP, speed=1.0), tmp_path / "policy.onnx"
    export_onnx(acting, file)
    assert not caplog.records
    bank = retrieval(revisit=0.99, speed=1.0)
    bank.calibrate(config=NoveltyConfig(m=2, alpha=0.5))
    acting.control = ControlConfig(execute=2, ensemble=0.1)
    export_onnx(MonitoredPolicy(acting, bank), file)
    said = [record.getMessage() for record in caplog.records if record.name.endswith("onnx_graphs")]
    assert said == [
        f"{file} is the decision alone: it keeps no memory, and decides as where an episode has not been before "
        "(revisit); it gives no novelty, and so neither alarm nor doubt; of T_a = 3 actions execute 2 before the next "
        "decision; average the actions that chunks propose for a step, the i-th oldest by exp(-0.1 i)"
    ]
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["classact"])
    assert about["left_out"] == said[0].partition(": ")[2].split("; ")
    assert about["proprioception"] == [["proprioception", 2]]
    assert about["speed"] == 1.0
    rows = [3, 40]
    (actions,) = run(file, observed(rows))
    expected = acting.decide(fakes.observations(DATA, rows)).chunk
    assert_allclose(actions, expected, atol=1e-4 * float(np.ptp(DATA.actions)))


def test_a_head_on_numbers_alone(tmp_path: Path) -> None:
    data = replace(DATA, images={}, language=None, schema=Schema())
    encoder, lowdim = ImageEncoder(EncoderConfig(cameras=())), LowDim.fit(data)
    head = make_head(MLP, encoder.feature_dim + lowdim.dim, data.actions.shape[1], 8)
    acting = ParametricPolicy(encoder, head, MinMax.fit(data.actions), lowdim, ParametricConfig(chunk_length=3))
    file, rows = export_onnx(acting, tmp_path / "policy.onnx"), [3, 40]
    (actions,) = run(file, {"proprioception": data.proprioception[rows]})
    expected = acting.decide(fakes.observations(data, rows)).chunk
    assert_allclose(actions, expected, atol=1e-4 * float(np.ptp(data.actions)))


def test_what_a_graph_cannot_compute(tmp_path: Path) -> None:
    file = tmp_path / "x.onnx"
    with pytest.raises(ConfigError, match="whitens each image's colours"):
        export_onnx(ImageEncoder(replace(CONFIG, color="whiten")), file)
    with pytest.raises(ConfigError, match="head 'diffusion' starts from noise"):
        export_onnx(parametric(DiffusionConfig(TINY)), file)
    one = parametric(MLP)
    head = make_head(MLP, 2 * one.head.feature_dim, one.head.action_dim, 8)
    two = ParametricPolicy(one.encoder, head, one.actions, one.lowdim, replace(one.config, history=2))
    with pytest.raises(ConfigError, match="decides from 2 observations, a graph from 1"):
        export_onnx(two, file)
    turning = retrieval()
    turning.action_space = _Turning()  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="these actions hold rotations or angles"):
        export_onnx(turning, file)
    assert not file.exists()


class _Turning:
    has_rotations = True
