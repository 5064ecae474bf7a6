from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

import fakes
from classact.data.lowdim import LowDim
from classact.data.schema import Schema
from classact.data.types import Demonstrations
from classact.errors import CheckpointError, ConfigError
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.models.heads import MLPConfig, make_head
from classact.policies import (
    ImageLatents,
    MonitoredPolicy,
    NoveltyConfig,
    RetrievalConfig,
    RetrievalPolicy,
    load_policy,
)
from classact.policies.base import PolicySpec, decide
from classact.policies.config import ParametricConfig
from classact.policies.control import Runner
from classact.policies.monitored import monitored
from classact.policies.parametric import ParametricPolicy


def monitor(data: Demonstrations | None = None, *, calibrated: bool = True) -> RetrievalPolicy:
    data = data or fakes.demonstrations()
    encoder = ImageEncoder(EncoderConfig(width=0.25, image_size=32, crop_size=28))
    made = RetrievalPolicy.build(ImageLatents(encoder, LowDim.fit(data)), data, RetrievalConfig(k=6))
    if calibrated:
        made.calibrate(config=NoveltyConfig(m=2, alpha=0.3))
    return made


class Acting(fakes.WatchfulPolicy):
    """Also has a schema, and remembers what it was prepared for."""

    name = "acting"

    def __init__(self, schema: Schema | None) -> None:
        super().__init__()
        self.schema, self.prepared = schema, list[int]()

    def prepare(self, batch: int = 1) -> None:
        self.prepared.append(batch)


def test_the_policy_acts_and_the_newest_observation_is_scored() -> None:
    data, bank = fakes.demonstrations(), monitor()
    assert data.states is not None
    seen = [
        replace(one, state=data.states[row])
        for row, one in zip([3, 9, 60], fakes.observations(data, [3, 9, 60]), strict=True)
    ]
    policy = MonitoredPolicy(Acting(data.schema), bank)
    decision = policy.decide([seen[:2], seen[1:]])
    assert_array_equal(decision.chunk, Acting(None).decide([seen[:2], seen[1:]]).chunk)
    assert_array_equal(decision.novelty, decide(bank, seen[1:]).novelty)
    alarm = bank.spec.alarm
    assert alarm is not None
    assert policy.spec == PolicySpec("acting", 8, cameras=("top",), history=2, schema=data.schema, alarm=alarm)


def test_watched_where_the_watcher_is_calibrated() -> None:
    policy, bank = Acting(None), monitor()
    assert monitored(policy, None) is policy
    assert monitored(policy, monitor(calibrated=False)) is policy
    made = monitored(policy, bank)
    assert isinstance(made, MonitoredPolicy)
    assert (made.policy, made.monitor) == (policy, bank)
    with pytest.raises(ConfigError, match="the monitoring policy has no calibrated novelty score: call its calibrate"):
        MonitoredPolicy(policy, monitor(calibrated=False))


def test_a_bank_of_another_task_is_refused() -> None:
    data, bank = fakes.demonstrations(), monitor()
    other = replace(data, schema=Schema(("top",), (("arm", 1), ("gripper", 1)), actions=data.schema.actions))
    with pytest.raises(
        ConfigError, match=r"policy 'acting' was trained on other .* than the bank .*: language embedding"
    ):
        MonitoredPolicy(Acting(replace(data.schema, language=4)), bank)
    with pytest.raises(
        ConfigError, match=r"'acting' was trained on other .*: proprioception .*'agent', 2.*'gripper', 1"
    ):
        MonitoredPolicy(Acting(Schema(("top",), (("agent", 2),))), monitor(other))
    MonitoredPolicy(Acting(other.schema), bank)  # one that declares no keys has as many dimensions


def test_both_are_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, bank = Acting(None), monitor()
    asked: list[Any] = []
    monkeypatch.setattr(bank, "prepare", asked.append)
    Runner(MonitoredPolicy(policy, bank))
    MonitoredPolicy(fakes.WatchfulPolicy(), bank).prepare(3)  # has nothing to prepare
    assert (policy.prepared, asked) == ([1], [1, 3])


def test_preparing_retrieval_changes_nothing() -> None:
    data, bank = fakes.demonstrations(), monitor()
    seen = fakes.observations(data, [3, 9])
    before = bank.decide(seen)
    passes: list[np.ndarray] = []
    search = bank._search.search
    bank._search.search = lambda z, k: passes.append(z) or search(z, k)  # type: ignore[method-assign,assignment,func-returns-value]
    bank.prepare(5)
    assert [z.shape for z in passes] == [(5, bank.bank.shape[1])]
    assert bank.decide(seen).chunk.tobytes() == before.chunk.tobytes()


@pytest.mark.parametrize("frozen", [True, False])
def test_one_pass_of_a_shared_encoder_serves_both(frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data, bank = fakes.demonstrations(), monitor()
    assert isinstance(bank.latents, ImageLatents)
    encoder = copy.deepcopy(bank.latents.encoder)
    if not frozen:
        with torch.no_grad():
            next(encoder.parameters()).add_(0.01)
    lowdim = LowDim.fit(data)
    head = make_head(MLPConfig(network="residual"), encoder.feature_dim + lowdim.dim, 2, 16, seed=0)
    acting = ParametricPolicy(encoder, head, data.action_range(), lowdim, ParametricConfig(chunk_length=8))
    seen = fakes.observations(data, [3, 9, 60])
    own, watched = acting.decide(seen), bank.decide(seen)
    passes: list[int] = []
    encode = ImageEncoder.encode
    monkeypatch.setattr(ImageEncoder, "encode", lambda *a, **k: (passes.append(1), encode(*a, **k))[1])
    decision = MonitoredPolicy(acting, bank).decide(seen)
    assert len(passes) == (1 if frozen else 2)
    assert_array_equal(decision.chunk, own.chunk)
    assert_array_equal(decision.novelty, watched.novelty)
    assert decision.neighbors is not None
    assert watched.neighbors is not None
    assert_array_equal(decision.neighbors.rows, watched.neighbors.rows)


def test_a_monitored_policy_is_a_folder(tmp_path: Path) -> None:
    data = fakes.demonstrations()
    bank = monitor(data)
    bank = RetrievalPolicy.build(bank.latents, data, replace(bank.config, revisit=0.999))
    bank.calibrate(config=NoveltyConfig(m=2, alpha=0.3))
    assert isinstance(bank.latents, ImageLatents)
    lowdim, encoder = LowDim.fit(data), copy.deepcopy(bank.latents.encoder)
    head = make_head(MLPConfig(network="residual"), encoder.feature_dim + lowdim.dim, 2, 16, seed=0)
    acting = ParametricPolicy(encoder, head, data.action_range(), lowdim, ParametricConfig(chunk_length=8))
    made = MonitoredPolicy(acting, bank)
    made.save_pretrained(tmp_path / "policy")
    read = load_policy(tmp_path / "policy", chunk_length=8)
    assert isinstance(read, MonitoredPolicy)
    runners = [Runner(one) for one in (made, read)]
    for one in fakes.observations(data, [3] * 20 + [60]):  # back where it was: the demonstration is followed
        first, second = (runner.step(one) for runner in runners)
        assert_array_equal(first, second)
    plain = Runner(acting)
    assert any((plain.step(one) != runners[1].step(one)).any() for one in fakes.observations(data, [3] * 20))
    assert runners[1].novelty == runners[0].novelty
    weights = tmp_path / "policy/monitor/encoder/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"monitor/encoder/model\.safetensors"):
        load_policy(tmp_path / "policy")
    with pytest.raises(ConfigError, match="'acting' cannot be saved"):
        MonitoredPolicy(Acting(data.schema), monitor(data)).save(tmp_path / "other")
