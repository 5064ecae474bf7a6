"""Heads on numbers alone: an encoder without cameras."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

import fakes
from classact.data.types import Observation
from classact.errors import ConfigError
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.models.heads import MLPConfig, ResidualConfig
from classact.policies.parametric import ParametricPolicy
from classact.run.presets import from_preset
from classact.train.config import AdamWConfig, FinetuneConfig
from classact.train.head import FineTuner

BLIND = EncoderConfig(cameras=())


@pytest.mark.parametrize("frozen", [True, False])
def test_a_head_learns_from_numbers_alone(frozen: bool, tmp_path: Path) -> None:
    data = replace(fakes.demonstrations(), images={}, schema=type(fakes.demonstrations().schema)())
    config = FinetuneConfig(
        head=MLPConfig(network="residual", residual=ResidualConfig(64, 2, 16)),
        encoder=BLIND,
        frozen=frozen,
        views=1 if frozen else 0,
        standardize=True,
        optimizer=AdamWConfig(head_lr=5e-3, warmup_steps=5),
        epochs=40,
        batch_size=32,
        horizon=4,
        chunk_length=4,
    )
    torch.set_num_threads(1)
    policy = FineTuner(data, config, tmp_path).fit()
    policy.save(tmp_path / "policy")
    read = ParametricPolicy.load(tmp_path / "policy")
    some = range(0, data.num_steps, 9)
    chunks = read.decide([Observation({}, data.proprioception[i]) for i in some]).chunk
    assert_array_equal(chunks, policy.decide([Observation({}, data.proprioception[i]) for i in some]).chunk)
    error = np.abs(chunks[:, 0] - data.actions[some]).mean()
    assert error < 0.3 * np.abs(data.actions - data.actions.mean(0)).mean()
    assert read.spec.cameras == ()
    read.prepare()


def test_nothing_is_encoded() -> None:
    encoder = ImageEncoder(BLIND)
    assert encoder.feature_dim == 0
    assert encoder.encode({}, count=3).shape == (3, 0)
    preset = from_preset("debug")
    blind = replace(preset.pretrain, encoder=replace(preset.pretrain.encoder, cameras=()))
    with pytest.raises(ConfigError, match=r"objective 'class' learns what images mean, but no camera"):
        replace(preset, pretrain=blind)
