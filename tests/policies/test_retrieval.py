from __future__ import annotations

import json
import logging
import math
import re
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
from classact.data.rotations import axis_angle_to_matrix, matrix_to_rotation_6d
from classact.data.types import Demonstrations, Observation, RolloutResult
from classact.errors import CheckpointError, ConfigError, DataError
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.policies import ImageLatents, RetrievalConfig, RetrievalPolicy, StateLatents
from classact.policies.base import decide
from classact.policies.folder import read_metadata
from classact.policies.load import load_policy
from classact.policies.novelty import NoveltyConfig, distance, episode_maxima
from classact.policies.retrieval import PARTLY, RetrievalMetadata
from classact.policies.search import ExactSearch, FaissSearch
from classact.utils.storage import sha256_file

CONFIG = RetrievalConfig(k=6, temperature=0.01, chunk_length=5, horizon=16)


def image_latents(data: Demonstrations, seed: int = 0) -> ImageLatents:
    encoder = ImageEncoder(EncoderConfig(width=0.25, image_size=32, crop_size=28), seed=seed)
    return ImageLatents(encoder, LowDim.fit(data))


def state_latents() -> StateLatents:
    return StateLatents(256.0, 256.0, (4,))


def policy(kind: str, config: RetrievalConfig = CONFIG) -> RetrievalPolicy:
    data = fakes.demonstrations()
    return RetrievalPolicy.build(image_latents(data) if kind == "image" else state_latents(), data, config)


def observations(count: int = 7, seed: int = 5) -> list[Observation]:
    data = fakes.demonstrations(seed)
    assert data.states is not None
    rows = np.linspace(0, data.num_steps - 1, count).astype(int)
    return [Observation({"top": data.images["top"][r]}, data.proprioception[r], data.states[r]) for r in rows]


def transcription(z: np.ndarray, data: Demonstrations, bank: np.ndarray, config: RetrievalConfig) -> np.ndarray:
    """Section 4.4, word by word, in float64: for one latent z, the chunk (T_a, D)."""
    z, bank = z.astype(np.float64), bank.astype(np.float64)
    cosine = np.array([z @ b / np.linalg.norm(z) / np.linalg.norm(b) for b in bank])
    nearest = sorted(range(len(bank)), key=lambda i: -cosine[i])[: config.k]
    episode = data.episode_index()
    numerator, denominator = np.zeros((config.chunk_length, data.actions.shape[1])), 0.0
    for i in nearest:
        last = int(data.episode_ends[episode[i]]) - 1
        sequence = np.array([data.actions[min(i + t, last)] for t in range(config.horizon)], np.float64)
        # exp(c) itself overflows; the quotient is the same with every c lowered by the largest.
        weight = np.exp((cosine[i] - cosine[nearest[0]]) / config.temperature)
        numerator += weight * sequence[: config.chunk_length]
        denominator += weight
    return numerator / denominator


@pytest.mark.parametrize("kind", ["image", "state"])
@pytest.mark.parametrize(("k", "temperature", "chunk"), [(1, 0.01, 16), (6, 0.01, 5), (64, 0.001, 16), (120, 1.0, 1)])
def test_agrees_with_the_equation(kind: str, k: int, temperature: float, chunk: int) -> None:
    config = RetrievalConfig(k=k, temperature=temperature, chunk_length=chunk)
    data, made = fakes.demonstrations(), policy(kind, config)
    z = made.latents.observations(observations())
    actions = made.decide(observations()).chunk
    assert actions.shape == (7, chunk, 2)
    assert actions.dtype == np.float32
    expected = np.stack([transcription(row, data, made.bank, config) for row in z])
    # Cosines are float32: an error of 1e-7 is divided by the temperature, and actions are of the order of 500.
    assert_allclose(actions, expected, rtol=0, atol=500 * 4e-7 / temperature + 1e-3)


@pytest.mark.parametrize("kind", ["image", "state"])
def test_neighbours_are_sorted_and_weighted(kind: str) -> None:
    made = policy(kind)
    decision = made.decide(observations())
    found = decision.neighbors
    assert found is not None
    assert decision.novelty is None
    assert made.spec.alarm is None
    assert found.rows.shape == found.cosine.shape == found.weights.shape == (7, 6)
    assert (np.diff(found.cosine, axis=1) <= 0).all()
    assert (np.diff(found.weights, axis=1) <= 0).all()
    assert_allclose(found.weights.sum(axis=1), 1, atol=1e-6)
    assert_allclose(np.linalg.norm(made.bank, axis=1), 1, atol=1e-6)
    assert_array_equal(made.chunks(found.rows[0]).shape, (6, 5, 2))
    assert_array_equal(decision.chunk, made.decide(observations()).chunk)


@pytest.mark.parametrize("kind", ["image", "state"])
def test_a_demonstrated_moment_is_its_own_nearest(kind: str) -> None:
    made = policy(kind, RetrievalConfig(k=3, temperature=1e-5))
    data = fakes.demonstrations()
    assert data.states is not None
    rows = [0, 40, 60, 119]
    seen = [Observation({"top": data.images["top"][r]}, data.proprioception[r], data.states[r]) for r in rows]
    decision = made.decide(seen)
    chunk, found = decision.chunk, decision.neighbors
    assert found is not None
    assert_array_equal(found.rows[:, 0], rows)
    assert_allclose(found.cosine[:, 0], 1, atol=1e-6)
    assert_allclose(chunk[3], np.repeat(data.actions[119:], 16, axis=0), atol=0.5)


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_proprioception_is_weighted_before_latents_are_scaled_to_length_1(weight: float, tmp_path: Path) -> None:
    data, plain = fakes.demonstrations(), policy("image")
    plain.save(tmp_path / "policy")
    made = RetrievalPolicy.load(tmp_path / "policy", proprioception_weight=weight)
    assert isinstance(plain.latents, ImageLatents)
    encoder, lowdim = plain.latents.encoder, plain.latents.lowdim

    def weighted(features: np.ndarray, rest: np.ndarray) -> np.ndarray:
        joined = np.concatenate([features, weight * rest], axis=1)
        return joined / np.linalg.norm(joined, axis=1, keepdims=True)

    seen = observations()
    bank = weighted(encoder.encode(data.images["top"]), lowdim.demonstrations(data))
    z = weighted(encoder.encode(np.stack([o.images["top"] for o in seen])), lowdim.observations(seen))
    found = made.decide(seen).neighbors
    assert found is not None
    expected = -np.sort(-(z @ bank.T), axis=1)[:, :6]
    assert_allclose(found.cosine, expected, atol=1e-5)
    assert_allclose(made.search(plain.latents.observations(seen)).cosine, expected, atol=1e-5)
    assert_array_equal(made.bank, plain.bank)  # what is saved stays the paper's
    left = made.calibrate().maxima
    assert not np.allclose(left, plain.calibrate().maxima)


@pytest.mark.parametrize("weight", [0.0, 3.0])
@pytest.mark.parametrize("language", [0, 4])
@pytest.mark.parametrize("keys", [None, ()])
def test_an_instruction_is_not_weighted(weight: float, language: int, keys: Any) -> None:
    data = fakes.two_views(fakes.demonstrations(), language)
    config = EncoderConfig(width=0.25, image_size=32, crop_size=28, cameras=("top", "wrist"))
    encoder, lowdim = ImageEncoder(config), LowDim.fit(data, keys)
    made = RetrievalPolicy.build(ImageLatents(encoder, lowdim), data, replace(CONFIG, proprioception_weight=weight))
    rows, own, rest = [0, 33, 61, 119], 0 if keys == () else 2, lowdim.demonstrations(data)
    said = rest[:, :0] if data.language is None else data.language[data.episode_index()]
    assert rest.shape == (data.num_steps, own + language)
    joined = np.concatenate([encoder.encode(data.images), weight * rest[:, :own], said], axis=1)
    unit = joined / np.linalg.norm(joined, axis=1, keepdims=True)
    found = made.decide(fakes.observations(data, rows)).neighbors
    assert found is not None
    assert_allclose(found.cosine, -np.sort(-(unit[rows] @ unit.T), axis=1)[:, :6], atol=1e-5)


def test_a_weight_needs_proprioception_and_another_calibration(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match=r"expected 0 <= proprioception_weight < inf, got -1\.0"):
        replace(CONFIG, proprioception_weight=-1.0)
    with pytest.raises(ConfigError, match=r"kind 'state'\. Leave it at 1"):
        policy("state", replace(CONFIG, proprioception_weight=2.0))
    made = policy("image")
    made.calibrate()
    made.save(tmp_path / "policy")
    with caplog.at_level(logging.WARNING):
        assert RetrievalPolicy.load(tmp_path / "policy", proprioception_weight=2.0).calibration is None
    assert "calibrated with proprioception_weight 1.0" in caplog.text


def test_chunks_of_short_episodes_repeat_their_last_action() -> None:
    data = fakes.demonstrations(lengths=(3, 1, 20))
    made = RetrievalPolicy.build(state_latents(), data, RetrievalConfig(k=2, chunk_length=4))
    assert_array_equal(made.chunks(np.array([1])), data.actions[[[1, 2, 2, 2]]])
    assert_array_equal(made.chunks(np.array([3])), data.actions[[[3, 3, 3, 3]]])


def test_k_larger_than_the_bank() -> None:
    data = fakes.demonstrations(lengths=(4, 3))
    message = r"k = 8 neighbours asked of a bank of 7 timesteps. Lower k to at most 7, or add demonstrations"
    with pytest.raises(ConfigError, match=r"walks \(memory\): " + message):
        RetrievalPolicy.build(state_latents(), data, RetrievalConfig(k=8))
    RetrievalPolicy.build(state_latents(), data, RetrievalConfig(k=7))
    with pytest.raises(ConfigError, match=message):
        RetrievalPolicy(
            state_latents(), np.ones((7, 6), np.float32), data.actions, data.episode_ends, RetrievalConfig(8)
        )


def test_only_demonstrations_with_actions_are_retrieved(tmp_path: Path) -> None:
    data = fakes.demonstrations()
    few, own = data.only_labelled([0, 3]), data.subset([0, 3])
    made, alone = (RetrievalPolicy.build(state_latents(), one, CONFIG) for one in (few, own))
    decision, expected = made.decide(observations()), alone.decide(observations())
    assert decision.neighbors is not None
    assert expected.neighbors is not None
    assert_array_equal(decision.chunk, expected.chunk)
    rows = np.concatenate([np.arange(*data.bounds(e)) for e in (0, 3)])
    assert_array_equal(decision.neighbors.rows, rows[expected.neighbors.rows])  # numbered as in all demonstrations
    # Those without actions are new to the bank, as held-out ones are; their zeros are no copies of each other.
    made.calibrate()
    assert made.calibration is not None
    assert made.calibration.episodes == len(data)
    alone.calibrate(data.subset([1, 4]))
    made.calibrate(few.subset([1, 4]))
    assert_array_equal(made.novelty(made.bank), alone.novelty(made.bank))
    made.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert_array_equal(loaded.decide(observations()).chunk, expected.chunk)
    assert read_metadata(RetrievalMetadata, tmp_path / "policy", PARTLY).bank == data.num_steps
    with pytest.raises(ConfigError, match=r"of a bank of \d+ timesteps in the 2 of 5 episodes that carry actions"):
        RetrievalPolicy.build(state_latents(), few, replace(CONFIG, k=own.num_steps + 1))


def test_bank_of_other_data() -> None:
    data = fakes.demonstrations(lengths=(4, 3))
    with pytest.raises(DataError, match=r"a bank of 6 timesteps, 7 actions and episodes of 7 steps"):
        RetrievalPolicy(
            state_latents(), np.ones((6, 6), np.float32), data.actions, data.episode_ends, RetrievalConfig(2)
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 0}, "expected k >= 1, got 0"),
        ({"temperature": 0.0}, r"expected temperature > 0, got 0\.0"),
        ({"chunk_length": 17}, "chunk_length 17, horizon 16"),
        ({"chunk_length": 0}, "chunk_length 0"),
    ],
)
def test_config_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RetrievalConfig(**changes)


# Action spaces

POSE = ActionSpace.pose("left", "right")


def one_arm(seven: np.ndarray) -> np.ndarray:
    """[position, axis-angle, gripper] as the ten numbers of a pose."""
    rotation = matrix_to_rotation_6d(axis_angle_to_matrix(seven[:, 3:6]))
    return np.concatenate([seven[:, :3], rotation, seven[:, 6:]], axis=1).astype(np.float32)


def pose_demonstrations() -> Demonstrations:
    """The walks, commanded as poses of two arms whose rotations differ widely between episodes."""
    data = fakes.demonstrations()
    rng = np.random.default_rng(3)
    seven = rng.normal(0, 0.15, (data.num_steps, 14)) + rng.normal(0, 0.8, (len(data), 14))[data.episode_index()]
    poses = np.concatenate([one_arm(seven[:, :7]), one_arm(seven[:, 7:])], axis=1)
    return replace(data, actions=poses, schema=replace(data.schema, actions=POSE))


def test_averaged_rotations_are_rotations() -> None:
    data, config = pose_demonstrations(), RetrievalConfig(k=20, temperature=1.0, chunk_length=5)
    plain = RetrievalPolicy.build(state_latents(), data, config)
    turning = RetrievalPolicy.build(state_latents(), data, config, action_space=POSE)
    expected, decision = plain.decide(observations()), turning.decide(observations())
    averaged, chunk = expected.chunk, decision.chunk
    assert expected.neighbors is not None
    assert decision.neighbors is not None
    with pytest.raises(DataError, match="is no 6-D rotation"):
        POSE.check_rotations(averaged)
    POSE.check_rotations(chunk)
    assert chunk.dtype == np.float32
    assert_allclose(chunk, POSE.orthogonalize(averaged), atol=1e-5)  # average, then orthogonalise: the released code
    rotations = POSE.dimensions("rotation_6d")
    assert_allclose(chunk[..., ~rotations], averaged[..., ~rotations], atol=1e-6)
    assert_array_equal(decision.neighbors.rows, expected.neighbors.rows)


@pytest.mark.parametrize("space", [None, ActionSpace.points()])
def test_without_rotations_the_average_is_the_plain_one_to_the_bit(space: ActionSpace | None, tmp_path: Path) -> None:
    made = RetrievalPolicy.build(state_latents(), fakes.demonstrations(), CONFIG, action_space=space)
    decision = made.decide(observations())
    chunk, found = decision.chunk, decision.neighbors
    assert found is not None
    plain = np.einsum("bk,bktd->btd", found.weights, made.chunks(found.rows)).astype(np.float32)
    assert chunk.tobytes() == plain.tobytes()
    made.save(tmp_path / "p")
    card = json.loads((tmp_path / "p" / "policy.json").read_text())
    assert set(card) == {"format", "config", "latents", "bank", "action_space", "novelty", "control"}
    assert (card["action_space"] is None) == (space is None)
    assert RetrievalPolicy.load(tmp_path / "p").action_space == space


def test_the_action_space_is_saved_with_the_policy(tmp_path: Path) -> None:
    space = ActionSpace.pose("left", "right", rotation_mean="chordal")
    data, config = pose_demonstrations(), RetrievalConfig(k=20, temperature=1.0)
    made = RetrievalPolicy.build(state_latents(), data, config, action_space=space)
    made.save(tmp_path / "p")
    loaded = RetrievalPolicy.load(tmp_path / "p")
    assert loaded.action_space == space
    assert loaded.decide(observations()).chunk.tobytes() == made.decide(observations()).chunk.tobytes()
    other = RetrievalPolicy.build(state_latents(), data, config, action_space=POSE)
    assert loaded.decide(observations()).chunk.tobytes() != other.decide(observations()).chunk.tobytes()


def test_actions_of_another_space() -> None:
    class Unused:
        """Demonstrations must be refused before they are encoded, which takes minutes."""

        kind = "state"

        def demonstrations(self, _: Demonstrations) -> np.ndarray:
            raise AssertionError

    with pytest.raises(DataError, match=r"walks \(memory\): expected actions of shape \(..., 20\), got \(120, 2\)"):
        RetrievalPolicy.build(Unused(), fakes.demonstrations(), CONFIG, action_space=POSE)  # type: ignore[arg-type]
    data = pose_demonstrations()
    undeclared = replace(data.schema, actions=None)  # what is declared, the demonstrations check themselves
    shifted = replace(data, actions=np.roll(data.actions, 1, axis=1), schema=undeclared)
    with pytest.raises(DataError, match=r"walks \(memory\): left_rotation \(dimensions 3:9\) at index \[0\] is no 6-D"):
        RetrievalPolicy.build(Unused(), shifted, CONFIG, action_space=POSE)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="the demonstrated actions: left_rotation"):
        RetrievalPolicy(
            state_latents(),
            np.ones((120, 6), np.float32),
            shifted.actions,
            data.episode_ends,
            CONFIG,
            action_space=POSE,
        )


# Search and devices


def test_the_search_is_a_computing_choice(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="the extra faiss is not installed")
    made, other = policy("image"), policy("image", replace(CONFIG, search="faiss"))
    assert isinstance(made._search, ExactSearch)
    assert isinstance(other._search, FaissSearch)
    one, two = made.decide(observations()), other.decide(observations())
    assert one.neighbors is not None
    assert two.neighbors is not None
    assert_array_equal(two.neighbors.rows, one.neighbors.rows)
    assert_allclose(two.neighbors.cosine, one.neighbors.cosine, atol=1e-6)
    assert_allclose(two.chunk, one.chunk, atol=0.5)
    other.save(tmp_path / "p")
    assert isinstance(RetrievalPolicy.load(tmp_path / "p", search="torch")._search, ExactSearch)
    with pytest.raises(ConfigError, match="unknown search 'scann'"):
        RetrievalPolicy.load(tmp_path / "p", search="scann")


@pytest.mark.parametrize("k", [1, 6, 100])
def test_decisions_keep_the_bits_of_one_product_and_topk(k: int) -> None:
    """Published results were made so."""
    made = policy("state", replace(CONFIG, k=k, min_actions=3))
    z = made.latents.observations(observations())
    rows = torch.from_numpy(made._rows)
    cosine, nearest = torch.topk(torch.from_numpy(z) @ torch.from_numpy(made.bank)[rows].T, k, dim=1)
    weights = torch.softmax(cosine / CONFIG.temperature, dim=1).numpy()
    for found in (made.search(z), made.decide(observations()).neighbors):
        assert found is not None
        assert found.rows.tobytes() == rows[nearest].numpy().tobytes()
        assert found.cosine.tobytes() == cosine.numpy().tobytes()
        assert found.weights.tobytes() == weights.tobytes()


def test_moments_of_one_observation() -> None:
    made = policy("state")
    seen = observations()
    assert made.spec.history == 1
    assert made.decide([[one] for one in seen]).chunk.tobytes() == made.decide(seen).chunk.tobytes()
    with pytest.raises(DataError, match="timestep 0 of 1 holds 2 observations, expected the last 1"):
        made.decide([seen[:2]])


@pytest.mark.parametrize("kind", ["image", "state"])
def test_moving(kind: str) -> None:
    made = policy(kind)
    expected = made.decide(observations()).chunk
    assert made.to("cpu") is made
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device 'cuda:0' was asked for, but torch sees no GPU"):
            made.to("cuda:0")
    with pytest.raises(ConfigError, match="unknown device 'gpu': available are 'cpu'"):
        made.to("gpu")
    assert made.decide(observations()).chunk.tobytes() == expected.tobytes()
    # A device without memory shows that bank and encoder go where they are sent.
    made.to("meta")
    assert isinstance(made._search, ExactSearch)
    assert made._search.bank.device.type == "meta"
    if isinstance(made.latents, ImageLatents):
        assert {parameter.device.type for parameter in made.latents.encoder.parameters()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["image", "state"])
def test_moving_to_a_gpu(kind: str) -> None:
    made = policy(kind)
    expected = made.decide(observations()).chunk
    made.to("cuda")
    assert made.device.type == "cuda"
    assert_allclose(made.decide(observations()).chunk, expected, atol=1)
    assert made.to("cpu").decide(observations()).chunk.tobytes() == expected.tobytes()


# Novelty


def far_away() -> list[Observation]:
    """The block and the agent where no demonstration ever was."""
    return [replace(seen, state=np.array([-900.0, 2000, 3000, -700, 2])) for seen in observations(3)]


def test_a_far_observation_alarms_and_a_demonstrated_one_does_not(tmp_path: Path) -> None:
    made = RetrievalPolicy.build(state_latents(), fakes.demonstrations(0, lengths=[40] * 8), CONFIG)
    heldout = fakes.demonstrations(1, lengths=[20] * 12)
    found = made.calibrate(heldout, NoveltyConfig(m=3, alpha=0.2))
    assert (found.kind, found.episodes, found.timesteps) == ("held-out", 12, 320)
    assert made.spec.alarm == found.alarm
    z = made.latents.demonstrations(heldout)
    cosine = np.sort(z.astype(np.float64) @ made.bank.T.astype(np.float64), axis=1)[:, ::-1]
    maxima = episode_maxima(1 - cosine[:, :3].mean(axis=1), heldout.episode_ends)
    assert_allclose(found.maxima, np.sort(maxima), rtol=0, atol=1e-6)
    assert (made.novelty(z) > found.alarm).any()
    data = fakes.demonstrations(0, lengths=[40] * 8)
    assert data.states is not None
    known = [Observation({}, data.proprioception[r], data.states[r]) for r in (0, 77, 319)]
    decision = decide(made, [*known, *far_away()])
    assert decision.novelty is not None
    assert decision.novelty.dtype == np.float32
    assert_array_equal(decision.novelty > found.alarm, [False] * 3 + [True] * 3)
    assert_array_equal(decision.novelty, made.novelty(made.latents.observations([*known, *far_away()])))
    made.save(tmp_path / "p")
    loaded = RetrievalPolicy.load(tmp_path / "p")
    assert loaded.spec.alarm == made.spec.alarm
    again = decide(loaded, [*known, *far_away()])
    assert again.novelty is not None
    assert again.novelty.tobytes() == decision.novelty.tobytes()
    assert again.chunk.tobytes() == decision.chunk.tobytes()
    assert "nan" not in (tmp_path / "p" / "policy.json").read_text().lower()


@pytest.mark.parametrize("m", [1, 6, 30])
def test_the_score_changes_no_decision(m: int) -> None:
    made = policy("image")
    before = made.decide(observations())
    made.calibrate(config=NoveltyConfig(m=m, alpha=0.3))
    after = made.decide(observations())
    assert before.neighbors is not None
    assert after.neighbors is not None
    assert_array_equal(after.neighbors.rows, before.neighbors.rows)
    assert after.chunk.tobytes() == before.chunk.tobytes()
    assert after.novelty is not None


def test_leaving_each_episode_of_the_bank_out() -> None:
    data = fakes.demonstrations()
    config = replace(CONFIG, min_actions=4)
    found = RetrievalPolicy.build(state_latents(), data, config).calibrate(config=NoveltyConfig(m=2, alpha=0.3))
    assert (found.kind, found.episodes) == ("leave-one-out", 5)
    expected = []
    for left in range(5):
        others = RetrievalPolicy.build(state_latents(), data.subset([e for e in range(5) if e != left]), config)
        z = others.latents.demonstrations(data.subset([left]))
        expected.append(distance(ExactSearch(others.bank[others._rows]).search(z, 2)[1]).max())
    assert_allclose(found.maxima, np.sort(expected), rtol=0, atol=1e-6)


def test_leave_one_out_with_an_index() -> None:
    pytest.importorskip("faiss", reason="the extra faiss is not installed")
    config = NoveltyConfig(m=2, alpha=0.3)
    plain, made = policy("state").calibrate(config=config), policy("state", replace(CONFIG, search="faiss"))
    assert_allclose(made.calibrate(config=config).maxima, plain.maxima, rtol=0, atol=1e-6)


def test_too_few_episodes_are_said(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    made = policy("state")
    with caplog.at_level(logging.WARNING):
        made.calibrate(fakes.demonstrations(1), NoveltyConfig(m=3, alpha=0.1))
    assert "novelty: No alarm: calibrated on 5 held-out demonstrations" in caplog.text
    assert "at most 0.1 per episode needs 9" in caplog.text
    assert made.spec.alarm == math.inf
    decision = made.decide(far_away())
    assert decision.novelty is not None
    assert_allclose(decision.novelty, 5 / 6)
    made.save(tmp_path / "p")
    assert RetrievalPolicy.load(tmp_path / "p").spec.alarm == math.inf


def test_bad_calibrations() -> None:
    made = policy("state")
    with pytest.raises(ConfigError, match="has no calibrated novelty score: call calibrate first"):
        made.novelty(made.bank)
    with pytest.raises(ConfigError, match="m = 121 nearest timesteps asked of a bank of 120"):
        made.calibrate(config=NoveltyConfig(m=121))
    known, unknown = fakes.demonstrations(), fakes.demonstrations(1)
    actions = np.concatenate([unknown.actions[:30], known.actions[known.episode_index() == 3]])
    mixed = replace(
        unknown.subset([0, 3]),
        actions=actions,
    )
    with pytest.raises(
        DataError, match=r"walks \(memory\): episode 1 has the same 33 actions as episode 3 of the bank"
    ):
        made.calibrate(mixed)
    other = policy("state", replace(CONFIG, min_actions=5))
    found = made.calibrate(config=NoveltyConfig(m=2))
    with pytest.raises(ConfigError, match="calibrated on a bank of 120 timesteps, this one has 100"):
        RetrievalPolicy(made.latents, other.bank, other.actions, other.episode_ends, other.config, calibration=found)


def test_another_bank_on_loading_drops_the_score(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = policy("state")
    made.calibrate(config=NoveltyConfig(m=2, alpha=0.3))
    made.save(tmp_path / "p")
    assert RetrievalPolicy.load(tmp_path / "p", k=3, temperature=1.0).spec.alarm == made.spec.alarm
    assert not caplog.records
    assert RetrievalPolicy.load(tmp_path / "p", min_actions=2).spec.alarm is None
    assert "calibrated with min_actions 1 and is left out, for now it is 2" in caplog.text


def test_another_approximate_search_on_loading_drops_the_score(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("faiss", reason="the extra faiss is not installed")
    config, heldout = NoveltyConfig(m=2, alpha=0.3), fakes.demonstrations(1)
    exact, approximate = policy("state"), policy("state", replace(CONFIG, search="faiss:IVF2,Flat@1"))
    for name, made in (("exact", exact), ("approximate", approximate)):
        made.calibrate(heldout, config)
        made.save(tmp_path / name)
    for search in ("torch", "faiss", "faiss:Flat"):
        assert RetrievalPolicy.load(tmp_path / "exact", search=search).spec.alarm == exact.spec.alarm
    assert RetrievalPolicy.load(tmp_path / "approximate").spec.alarm == approximate.spec.alarm
    assert not caplog.records
    for name, search in (("exact", "faiss:IVF2,Flat"), ("approximate", "faiss:IVF2,Flat"), ("approximate", "auto")):
        assert RetrievalPolicy.load(tmp_path / name, search=search).spec.alarm is None
    assert "calibrated with search auto and is left out, for now it is faiss:IVF2,Flat" in caplog.messages[0]
    assert "calibrated with search faiss:IVF2,Flat@1 and is left out, for now it is auto" in caplog.messages[2]


def test_leaving_out_takes_an_exact_search() -> None:
    pytest.importorskip("faiss", reason="the extra faiss is not installed")
    made = policy("state", replace(CONFIG, search="faiss:IVF2,Flat"))
    with pytest.raises(
        ConfigError, match=r"'faiss:IVF2,Flat' may miss.* Hold demonstrations out and calibrate on them"
    ):
        made.calibrate(config=NoveltyConfig(m=2))
    assert made.calibration is None


# The folder


def test_the_example_of_the_documentation_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    data = fakes.demonstrations()
    data = replace(data, schema=replace(data.schema, proprioception=(("agent_pos", 2),)))
    made = RetrievalPolicy.build(image_latents(data), data, CONFIG)
    made.calibrate(fakes.demonstrations(1), NoveltyConfig(m=2, alpha=0.3))
    made.save(tmp_path / "run" / "policy")
    monkeypatch.chdir(tmp_path)
    stopped: list[bool] = []
    steps, nothing = np.arange(2) * CONFIG.chunk_length, np.zeros((0, 2), np.float32)
    known = RolloutResult(0, 2, {}, {"done": True}, {"done": 20}, nothing.astype(np.float64), nothing, {}, steps)
    given = {"frame": data.images["top"][7], "position": data.proprioception[7], "stop": lambda: stopped.append(True)}
    names: dict[str, Any] = {**given, "episodes": [replace(known, doubt=np.array([5.0, 9.0]))] * 19}
    exec(code, names)
    assert names["policy"].spec.schema == data.schema
    assert names["decision"].chunk.shape == (1, CONFIG.chunk_length, 2)
    assert names["decision"].novelty.shape == (1,)
    assert names["action"].shape == (2,)
    assert names["alarm"].level == 9
    assert not stopped


def test_state_latents_know_no_schema() -> None:
    assert policy("state").spec.schema is None
    assert policy("image").spec.schema == fakes.demonstrations().schema


@pytest.mark.parametrize("kind", ["image", "state"])
def test_loaded_acts_the_same_bits(kind: str, tmp_path: Path) -> None:
    made = policy(kind)
    made.save(tmp_path / "policy")
    loaded = RetrievalPolicy.load(tmp_path / "policy")
    assert loaded.config == CONFIG
    assert loaded.spec == made.spec
    assert bool(made.spec.cameras) == (kind == "image")
    assert loaded.decide(observations()).chunk.tobytes() == made.decide(observations()).chunk.tobytes()
    assert (tmp_path / "policy" / "encoder").exists() == (kind == "image")


def test_overrides(tmp_path: Path) -> None:
    policy("state").save(tmp_path / "p")
    changed = RetrievalPolicy.load(tmp_path / "p", k=2, chunk_length=9)
    assert changed.config == RetrievalConfig(k=2, temperature=0.01, chunk_length=9, horizon=16)
    assert changed.decide(observations()).chunk.shape == (7, 9, 2)
    with pytest.raises(ConfigError, match="chunk_length 17, horizon 16"):
        RetrievalPolicy.load(tmp_path / "p", chunk_length=17)
    with pytest.raises(ConfigError, match="k = 121 neighbours asked of a bank of 120"):
        RetrievalPolicy.load(tmp_path / "p", k=121)
    with pytest.raises(ConfigError, match=r"unknown retrieval setting 'tau': available are .*'temperature'"):
        RetrievalPolicy.load(tmp_path / "p", tau=1)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("policy.json", r"policy.json has [\d,]+ bytes, expected"),
        ("encoder/model.safetensors", r"encoder/model.safetensors has [\d,]+ bytes, expected"),
    ],
)
def test_truncated(tmp_path: Path, file: str, message: str) -> None:
    policy("image").save(tmp_path / "p")
    path = tmp_path / "p" / file
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=message):
        RetrievalPolicy.load(tmp_path / "p")


def test_another_format(tmp_path: Path) -> None:
    policy("state").save(tmp_path)
    card = json.loads((tmp_path / "policy.json").read_text())
    (tmp_path / "policy.json").write_text(json.dumps(card | {"format": "classact-retrieval-9"}))
    sums = json.loads((tmp_path / "checksums.json").read_text())
    file = tmp_path / "policy.json"
    sums["policy.json"] = [file.stat().st_size, sha256_file(file)]
    (tmp_path / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(
        CheckpointError, match=r"expected format 'classact-retrieval-3' or .*, got 'classact-retrieval-9'"
    ):
        RetrievalPolicy.load(tmp_path)
