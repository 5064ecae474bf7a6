from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import fakes
from classact.data.actions import ActionSpace
from classact.data.lowdim import LowDim
from classact.data.normalize import MinMax
from classact.data.schema import Schema
from classact.data.types import Observation
from classact.errors import CheckpointError, ConfigError, DataError
from classact.evaluation.config import EvaluationConfig
from classact.evaluation.rollout import evaluate
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.models.heads import DiffusionConfig, HeadConfig, MLPConfig, UNetConfig, make_head
from classact.policies import Policy, parametric
from classact.policies.parametric import ParametricConfig, ParametricPolicy
from classact.utils.storage import sha256_file, write_json

TINY = UNetConfig(widths=(8, 16), kernel_size=3, groups=4, step_dim=8)
DIFFUSION, DDPM, MLP = DiffusionConfig(TINY), DiffusionConfig(TINY, scheduler="ddpm"), MLPConfig(TINY)
HEADS = pytest.mark.parametrize("head", [DIFFUSION, DDPM, MLP], ids=["ddim", "ddpm", "mlp"])


def policy(head: HeadConfig = DIFFUSION, **config: Any) -> ParametricPolicy:
    data = fakes.demonstrations()
    encoder = ImageEncoder(EncoderConfig(width=0.25, image_size=32, crop_size=28))
    settings = ParametricConfig(**({"chunk_length": 5} | config))
    features = settings.history * (encoder.feature_dim + 2)
    made = make_head(head, features, 2, 8)
    return ParametricPolicy(encoder, made, MinMax.fit(data.actions), LowDim.fit(data), settings, {"frozen": True})


def observations(count: int = 6, seed: int = 5) -> list[Observation]:
    data = fakes.demonstrations(seed)
    rows = np.linspace(0, data.num_steps - 1, count).astype(int)
    return [Observation({"top": data.images["top"][r]}, data.proprioception[r]) for r in rows]


@HEADS
def test_acts_in_the_units_of_the_data(head: HeadConfig) -> None:
    acting: Policy = policy(head)
    made = policy(head)
    seen = observations()
    chunk = acting.decide(seen).chunk
    assert chunk.shape == (6, 5, 2)
    assert chunk.dtype == np.float32
    assert (acting.spec.name, acting.spec.cameras, acting.spec.chunk_length) == (head.name, ("top",), 5)
    # Word by word: encode, normalise, sample with each decision's own generator, first T_a steps, back to units.
    image = made.encoder.encode(np.stack([o.images["top"] for o in seen]))
    own = made.lowdim.range.apply(np.stack([o.proprioception for o in seen]))
    features = torch.from_numpy(np.concatenate([image, own], axis=1))
    normal = made.head.sample(features, [made._generator([o]) for o in seen])[:, :5].numpy()
    low, high = made.actions.low, made.actions.high
    assert_allclose(chunk, (normal + 1) / 2 * (high - low) + low, rtol=1e-5)
    assert chunk.std() > 1


@HEADS
def test_decisions_depend_on_what_is_seen_and_on_the_seed_only(head: HeadConfig) -> None:
    acting, seen = policy(head), observations()
    first = acting.decide(seen).chunk
    assert_array_equal(acting.decide(seen).chunk, first)  # no state between calls
    assert_allclose(acting.decide(seen[::-1]).chunk[::-1], first, rtol=1e-4)  # whatever the order
    for row in range(6):
        assert_allclose(acting.decide(seen[row : row + 1]).chunk[0], first[row], rtol=1e-4)  # or the batch
    other = policy(head, seed=1).decide(seen).chunk
    assert np.array_equal(other, first) == isinstance(head, MLPConfig)
    before = torch.random.get_rng_state()
    acting.decide(seen)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert acting.decide([]).chunk.shape == (0, 5, 2)


def test_the_smallest_change_of_an_observation_changes_the_noise() -> None:
    acting = policy()
    seen = observations(1)[0]
    image = np.array(seen.images["top"])
    image[0, 0, 0] ^= 1
    variants = [seen, replace(seen, images={"top": image}), replace(seen, proprioception=seen.proprioception + 1e-4)]
    variants += [replace(seen, language=np.zeros(2, np.float32)), replace(seen, language=np.ones(2, np.float32))]
    draws = {tuple(torch.randn(3, generator=acting._generator([v])).tolist()) for v in variants}
    assert len(draws) == 5
    with_more = replace(seen, state=np.zeros(5), images={**seen.images, "wrist": image})  # which the policy ignores
    assert_array_equal(acting.decide([with_more]).chunk, acting.decide([seen]).chunk)


def test_histories() -> None:
    acting = policy(history=2)
    seen = observations()
    pairs = [[seen[i], seen[i + 1]] for i in range(5)]
    assert acting.spec.history == 2
    assert acting.decide(pairs).chunk.shape == (5, 5, 2)
    assert not np.allclose(acting.decide([pairs[0]]).chunk, acting.decide([pairs[0][::-1]]).chunk)
    features = acting.features([seen[0], seen[1]]).reshape(1, -1)  # oldest first, one behind the other
    normal = acting.head.sample(torch.from_numpy(features), [acting._generator(pairs[0])])[:, :5].numpy()
    assert_allclose(acting.decide([pairs[0]]).chunk, acting.actions.invert(normal), rtol=1e-4)
    for short in (seen, [[seen[0]]], [seen[:3]]):
        with pytest.raises(DataError, match=r"timestep 0 of \d holds [13] observations, expected the last 2 \(T_o\)"):
            acting.decide(short)
    assert_array_equal(policy().decide([[o] for o in seen]).chunk, policy().decide(seen).chunk)
    with pytest.raises(DataError, match=r"timestep 0 of 5 holds 2 observations, expected the last 1 "):
        policy().decide(pairs)


def posing() -> tuple[ParametricPolicy, list[Observation]]:
    """A policy of a gripper that turns, from two views and an instruction; untrained."""
    data = fakes.two_views(fakes.demonstrations(), language=3)
    space = ActionSpace.pose()
    poses = np.random.default_rng(0).normal(size=(data.num_steps, 10)).astype(np.float32)
    data = replace(data, actions=space.orthogonalize(poses), schema=Schema())
    assert data.schema.actions == space
    encoder = ImageEncoder(EncoderConfig(width=0.25, image_size=32, crop_size=28, cameras=("wrist", "top")))
    lowdim = LowDim.fit(data)
    head = make_head(MLP, encoder.feature_dim + lowdim.dim, 10, 8)
    acting = ParametricPolicy(encoder, head, MinMax.fit(data.actions), lowdim, ParametricConfig(5))
    return acting, fakes.observations(data, [0, 40, 90, 119])


def test_rotations_that_leave_the_policy_are_rotations(tmp_path: Path) -> None:
    acting, seen = posing()
    chunk = acting.decide(seen).chunk
    ActionSpace.pose().check_rotations(chunk)
    features = torch.from_numpy(acting.features(seen))
    normal = acting.head.sample(features, [torch.Generator()] * 4)[:, :5].numpy()
    raw = acting.actions.invert(normal)
    with pytest.raises(DataError, match="no 6-D rotation"):
        ActionSpace.pose().check_rotations(raw)
    rest = [0, 1, 2, 9]
    assert_array_equal(chunk[..., rest], raw[..., rest])
    assert_array_equal(chunk, ActionSpace.pose().orthogonalize(raw))
    acting.save(tmp_path / "p")
    loaded = ParametricPolicy.load(tmp_path / "p")
    assert_array_equal(loaded.decide(seen).chunk, chunk)
    assert loaded.spec.schema == acting.lowdim.schema
    assert (loaded.encoder.config.cameras, loaded.lowdim.schema.language) == (("wrist", "top"), 3)


def test_actions_beyond_those_demonstrated_are_passed_on_and_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parametric, "_said", set())
    acting, seen = policy(MLP), observations(2)
    chunks = torch.zeros(2, 8, 2)
    monkeypatch.setattr(acting.head, "sample", lambda *_: chunks)
    with caplog.at_level(logging.WARNING):
        chunks[0, 0, 0] = 1.04  # networks overshoot a little
        chunks[1, 7, 1] = 9.0  # never executed: the chunk ends after 5
        acting.decide(seen)
        assert caplog.text == ""
        chunks[1, 2, 1] = -1.5
        low, high = float(acting.actions.low[1]), float(acting.actions.high[1])
        given = acting.decide(seen).chunk
        assert_allclose(given[1, 2, 1], low - 0.25 * (high - low), rtol=1e-5)
        acting.decide(seen)
        again = policy(MLP)  # of a later step of its training
        monkeypatch.setattr(again.head, "sample", lambda *_: chunks)
        again.decide(seen)
    (record,) = caplog.records
    said = record.getMessage()
    assert f"'mlp' gave actions outside those demonstrated: dimension 1 from {given[1, 2, 1]:.4g} to" in said
    assert f"demonstrated were {low:.4g} to {high:.4g}" in said


@HEADS
def test_preparing_changes_no_decision(head: HeadConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    acting, seen = policy(head), observations(3)
    expected = policy(head).decide(seen).chunk
    passes: list[int] = []
    encode = ImageEncoder.encode
    monkeypatch.setattr(
        ImageEncoder,
        "encode",
        lambda self, views, **rest: passes.append(len(views["top"])) or encode(self, views, **rest),
    )
    sizes: list[int] = []
    sample = acting.head.sample
    monkeypatch.setattr(acting.head, "sample", lambda f, g: sizes.append(len(f)) or sample(f, g))
    acting.prepare(3)
    assert (passes, sizes) == ([3], [3])
    monkeypatch.undo()
    acting.prepare()
    assert acting.decide(seen).chunk.tobytes() == expected.tobytes()


@pytest.mark.gpu
@HEADS
def test_a_prepared_policy_decides_alike_on_a_gpu(head: HeadConfig) -> None:
    plain, prepared = policy(head).to("cuda"), policy(head).to("cuda")
    prepared.prepare(3)
    for seen in (observations(3), observations(5)):
        assert_allclose(prepared.decide(seen).chunk, plain.decide(seen).chunk, atol=0.5)  # pixels


def test_devices_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device 'cuda' was asked for, but torch sees no GPU"):
        policy(MLP).to("cuda")
    with pytest.raises(ConfigError, match="device 'cuda' was asked for, but torch sees no GPU"):
        ParametricPolicy.load(tmp_path / "none", device="cuda")
    with pytest.raises(ConfigError, match="unknown device 'gpu'"):
        policy(MLP).to("gpu")


def test_rollouts_are_the_same_for_any_number_of_workers() -> None:
    acting = policy(DDPM)
    schema = replace(acting.lowdim.schema, proprioception=(("agent_pos", 2),))  # as the simulator calls it
    acting = replace(acting, lowdim=replace(acting.lowdim, schema=schema, keys=("agent_pos",)))
    one, two = (
        evaluate(acting, "pusht", EvaluationConfig(episodes=3, max_steps=8, workers=workers)) for workers in (1, 2)
    )
    for a, b in zip(one, two, strict=True):
        assert_array_equal(a.actions, b.actions)
        assert_array_equal(a.states, b.states)
    assert not np.array_equal(one[0].actions, one[1].actions)


# Files


@HEADS
def test_a_saved_policy_acts_with_the_same_bits(head: HeadConfig, tmp_path: Path) -> None:
    acting = policy(head)
    acting.save(tmp_path / "policy")
    loaded = ParametricPolicy.load(tmp_path / "policy")
    assert_array_equal(loaded.decide(observations()).chunk, acting.decide(observations()).chunk)
    assert (loaded.config, loaded.head.config, loaded.training) == (acting.config, head, {"frozen": True})
    files = {p.relative_to(tmp_path / "policy").as_posix() for p in (tmp_path / "policy").rglob("*") if p.is_file()}
    assert files == {
        *("checksums.json", "policy.json", "head.safetensors"),
        *("encoder/checksums.json", "encoder/config.json", "encoder/model.safetensors"),
    }


def test_what_training_does_not_depend_on_can_be_changed(tmp_path: Path) -> None:
    policy(DIFFUSION).save(tmp_path / "dp")
    seen = observations()
    as_saved = ParametricPolicy.load(tmp_path / "dp").decide(seen).chunk
    assert_array_equal(ParametricPolicy.load(tmp_path / "dp", chunk_length=3).decide(seen).chunk, as_saved[:, :3])
    ddpm = ParametricPolicy.load(tmp_path / "dp", scheduler="ddpm")
    assert_array_equal(ddpm.decide(seen).chunk, policy(DDPM).decide(seen).chunk)
    for change in ({"seed": 3}, {"inference_steps": 4}, {"scheduler": "ddpm"}):
        assert not np.array_equal(ParametricPolicy.load(tmp_path / "dp", **change).decide(seen).chunk, as_saved)
    with pytest.raises(ConfigError, match=r"unknown policy setting 'k': available are 'bf16', .*'scheduler', 'seed'"):
        ParametricPolicy.load(tmp_path / "dp", k=3)
    with pytest.raises(ConfigError, match=r"at most the head's horizon T_p = 8, got 12"):
        ParametricPolicy.load(tmp_path / "dp", chunk_length=12)
    policy(MLP).save(tmp_path / "mlp")
    with pytest.raises(ConfigError, match=r"unknown policy setting 'scheduler': available are"):
        ParametricPolicy.load(tmp_path / "mlp", scheduler="ddpm")


@pytest.mark.parametrize(
    "name", ["head.safetensors", "policy.json", "encoder/model.safetensors", "encoder/config.json"]
)
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    policy().save(tmp_path / "p")
    file = tmp_path / "p" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} has SHA-256 .*damaged"):
        ParametricPolicy.load(tmp_path / "p")
    file.unlink()
    with pytest.raises(CheckpointError, match=rf"{name} is missing"):
        ParametricPolicy.load(tmp_path / "p")
    with pytest.raises(CheckpointError, match="does not exist"):
        ParametricPolicy.load(tmp_path / "q")


def change_card(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    card = json.loads((folder / "policy.json").read_text())
    change(card)
    write_json(folder / "policy.json", card)
    sums = json.loads((folder / "checksums.json").read_text())
    file = folder / "policy.json"
    sums["policy.json"] = [file.stat().st_size, sha256_file(file)]
    write_json(folder / "checksums.json", sums)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.update(format="classact-retrieval-1"), r"expected format 'classact-parametric-3', got"),
        (lambda card: card.pop("actions"), r"policy.json: field 'actions' is missing. Another version"),
        (
            lambda card: card.update(actions=None),
            r"policy.json.actions: expected an object with the fields of MinMax, got None",
        ),
        (
            lambda card: card.update(lowdim=None),
            r"policy.json.lowdim: expected an object with the fields of LowDim, got None",
        ),
        (lambda card: card["lowdim"].pop("range"), r"policy.json.lowdim: field 'range' is missing"),
        (lambda card: card["lowdim"].update(range=None), r"lowdim.range: expected an object with the fields of MinMax"),
        (lambda card: card["head"].pop("name"), r"policy.json.head: unknown head 'None'"),
        (lambda card: card["config"].pop("seed"), r"policy.json.config: field 'seed' is missing. Another version"),
        (lambda card: card["shape"].pop("horizon"), r"policy.json.shape: field 'horizon' is missing"),
        (
            lambda card: card["shape"].update(horizon="8"),
            r"shape.horizon: expected a whole number, got '8'",
        ),
        (lambda card: card["shape"].update(action_dim=3), r"has shape .*, expected .*another architecture"),
    ],
)
def test_cards_of_other_policies_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    policy().save(tmp_path / "p")
    change_card(tmp_path / "p", change)
    with pytest.raises(CheckpointError, match=message):
        ParametricPolicy.load(tmp_path / "p")


# Bad input


def test_parts_that_do_not_fit() -> None:
    made = policy()
    with pytest.raises(ConfigError, match=r"head takes 66 features, but 2 x \(64 of the image \+ 2 .*\) make 132"):
        replace(made, config=ParametricConfig(5, history=2))
    with pytest.raises(ConfigError, match=r"makes actions of 2 dimensions, their normalisation was fitted on 3"):
        replace(made, actions=MinMax.fit(np.eye(3)))
    for bad in ({"chunk_length": 0}, {"history": 0}, {"seed": -1}):
        with pytest.raises(ConfigError, match=r"expected (chunk_length >= 1|history >= 1|seed >= 0), got"):
            ParametricConfig(**bad)


def test_unusable_observations() -> None:
    seen = observations(1)[0]
    with pytest.raises(DataError, match=r"lacks camera 'top'; there are \['front'\], needed are \['top'\]"):
        policy().decide([replace(seen, images={"front": seen.images["top"]})])
    with pytest.raises(DataError, match=r"observation 1 of 2: lacks camera 'top'; there are no images"):
        policy().decide([seen, replace(seen, images={})])
    with pytest.raises(DataError, match=r"\['proprioception'\]: expected 2 numbers, shape \(2,\), got \(3,\)"):
        policy().decide([replace(seen, proprioception=np.zeros(3, np.float32))])
