"""From latents and actions to metrics: perfect, shuffled and random representations, and a brute-force loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from classact.data.actions import ACTION_SPACES
from classact.data.windows import window_indices
from classact.errors import ConfigError, DataError
from classact.evaluation.probe import Encoded, ProbeConfig, probe_latents
from classact.evaluation.probe import latents as module
from classact.evaluation.probe.latents import choose_queries
from classact.policies.latents import unit
from classact.similarity import DistanceDistribution, SimilarityConfig, dtw

T = 6
SIMILARITY = SimilarityConfig(horizon=T, quantile=0.1, pairs=20_000)
CONFIG = ProbeConfig(temperature=0.05, similarity=SIMILARITY, queries=25, pairs=3000, steps=60)


def encoded(seed: int, lengths: tuple[int, ...], d: int = 5) -> Encoded:
    """Smooth actions, and latents that know a little of them."""
    generator = np.random.default_rng(seed)
    steps = sum(lengths)
    actions = generator.normal(0, 0.3, (steps, 2)).cumsum(axis=0).astype(np.float32)
    z = generator.normal(size=(steps, d)).astype(np.float32)
    z[:, :2] += actions
    return Encoded({"mine": z}, actions, np.cumsum(lengths))


TRAINING, HELDOUT = encoded(0, (30, 25, 7, 33)), encoded(1, (20, 22))


def plateaus(values: np.ndarray, length: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Episodes that repeat one action each, and the ends: distances of windows are those of their actions."""
    return np.repeat(values, length).astype(np.float32)[:, None], np.cumsum(np.full(len(values), length))


def on_an_arc(actions: np.ndarray) -> np.ndarray:
    """Unit vectors whose cosine falls with the distance of actions in [0, 1]."""
    angle = actions[:, 0].astype(np.float64) * 2
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


@pytest.fixture(scope="module", params=["held-out", "leave-one-out"])
def arcs(request: pytest.FixtureRequest) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    actions, ends = plateaus(generator.random(60))
    shuffled = generator.permutation(len(actions))

    def names(actions: np.ndarray, order: Any) -> dict[str, np.ndarray]:
        return {"perfect": on_an_arc(actions), "shuffled": on_an_arc(actions)[order]}

    training, heldout = Encoded(names(actions, shuffled), actions, ends), None
    if request.param == "held-out":
        actions, ends = plateaus(generator.random(30))
        heldout = Encoded(names(actions, generator.permutation(len(actions))), actions, ends)
    config = replace(CONFIG, queries=200, pairs=5000, steps=300, temperature=0.001)
    result = probe_latents(training, heldout, config=config)
    assert result["queries"]["kind"] == request.param
    return result


def test_perfect_latents(arcs: dict[str, Any]) -> None:
    metrics = arcs["representations"]["perfect"]
    assert metrics["ndcg@16"]["value"] == pytest.approx(1, abs=1e-6)
    assert metrics["rank_correlation"]["value"] > 0.999
    one = metrics["action_error"][0]
    assert one["k"] == 1
    for name in ("dtw", "l2"):
        assert one[name]["value"] == pytest.approx(arcs["anchors"]["nearest"][name]["value"], rel=1e-3)
        assert arcs["anchors"]["nearest"][name]["value"] < 0.2 * arcs["anchors"]["mean"][name]["value"]
        assert arcs["anchors"]["mean"][name]["value"] < arcs["anchors"]["random"][name]["value"]
    assert metrics["alignment"]["value"] < 0.1 * metrics["alignment_chance"]["value"]
    assert metrics["effective_rank"]["value"] <= 2


def test_shuffled_latents(arcs: dict[str, Any]) -> None:
    metrics, perfect = arcs["representations"]["shuffled"], arcs["representations"]["perfect"]
    assert abs(metrics["rank_correlation"]["value"]) < 0.1
    assert metrics["rank_correlation"]["low"] < 0 < metrics["rank_correlation"]["high"]
    assert metrics["ndcg@16"]["value"] < 0.3
    one, random = metrics["action_error"][0]["dtw"], arcs["anchors"]["random"]["dtw"]["value"]
    assert one["low"] < random < one["high"]
    assert metrics["alignment"]["value"] == pytest.approx(metrics["alignment_chance"]["value"], rel=0.2)
    # The same points in another order.
    assert metrics["effective_rank"]["value"] == pytest.approx(perfect["effective_rank"]["value"])


def test_latents_of_length_1_are_not_copied() -> None:
    z = unit(np.random.default_rng(0).normal(size=(95, 5)).astype(np.float32))
    made = replace(TRAINING, latents={"unit": z, "long": 3 * z, "wide": z.astype(np.float64)})
    assert made.latents["unit"] is z
    for name in ("long", "wide"):
        np.testing.assert_allclose(made.latents[name], z, atol=1e-6)
        assert made.latents[name].dtype == np.float32


@pytest.mark.parametrize("heldout", [HELDOUT, None])
@pytest.mark.parametrize("min_actions", [1, 4])
def test_retrieval_and_ranking_as_a_loop_says(heldout: Encoded | None, min_actions: int) -> None:
    config = replace(CONFIG, ks=(1, 3, 10_000), min_actions=min_actions)
    result = probe_latents(TRAINING, heldout, config=config)
    asked = heldout or TRAINING
    queries = choose_queries(TRAINING.episode_ends, None if heldout is None else heldout.episode_ends, config)
    low, high = TRAINING.actions.min(axis=0), TRAINING.actions.max(axis=0)

    def windows(steps: Encoded) -> np.ndarray:
        return ((steps.actions - low) / (high - low) * 2 - 1)[window_indices(steps.episode_ends, T)]

    bank, truth = windows(TRAINING), windows(asked)
    episode, own = TRAINING.episodes(), asked.episodes()
    left = np.concatenate([np.arange(length, 0, -1) for length in np.diff(TRAINING.episode_ends, prepend=0)])
    weights = _distribution(config)
    errors: dict[int, list[float]] = {}
    gains, nearest = [], []
    fewest = min(_rows(q, left, min_actions, episode, own, heldout).size for q in queries.steps)
    ks = sorted({1, 3, fewest})
    for q in queries.steps:
        rows = _rows(q, left, min_actions, episode, own, heldout)
        cosine = TRAINING.latents["mine"][rows].astype(float) @ asked.latents["mine"][q].astype(float)
        order = np.argsort(-cosine, kind="stable")
        d = np.array([dtw(bank[r], truth[q]) for r in rows])
        nearest.append(d.min())
        for k in ks:
            c = cosine[order[:k]]
            w = np.exp((c - c.max()) / config.temperature)
            chunk = np.einsum("k,ktd->td", w / w.sum(), bank[rows[order[:k]]])
            errors.setdefault(k, []).append(dtw(chunk, truth[q]))
        relevance = weights(d.astype(np.float32)[None])[0]
        discount = 1 / np.log2(np.arange(2, 18))
        best = np.sort(relevance)[::-1][:16] @ discount
        gains.append(relevance[order[:16]] @ discount / best if best else np.nan)
    found = result["representations"]["mine"]
    assert [row["k"] for row in found["action_error"]] == ks
    for row in found["action_error"]:
        assert row["dtw"]["value"] == pytest.approx(np.mean(errors[row["k"]]), rel=1e-4)
    assert result["anchors"]["nearest"]["dtw"]["value"] == pytest.approx(np.mean(nearest), rel=1e-4)
    # The CDF is a staircase: a distance that is rounded otherwise may stand one step, of hundreds, lower.
    assert found["ndcg@16"]["value"] == pytest.approx(np.nanmean(gains), rel=2e-3)
    assert result["queries"]["with_positives"] == pytest.approx(np.isfinite(gains).mean())
    assert result["queries"]["bank"] == int((left >= min_actions).sum())


def _rows(q: int, left: Any, min_actions: int, episode: Any, own: Any, heldout: Encoded | None) -> np.ndarray:
    return np.flatnonzero((left >= min_actions) & (True if heldout is not None else episode != own[q]))


def _distribution(config: ProbeConfig) -> Any:
    """Weights by the threshold and CDF of the same sample."""
    from classact.data.types import Demonstrations
    from classact.similarity.model import sample_distances, window_stream

    data = Demonstrations("mine", TRAINING.episode_ends, TRAINING.actions, TRAINING.actions)
    similarity = replace(config.similarity, estimate="sampled")
    distances = sample_distances(window_stream(data, similarity), similarity)
    return DistanceDistribution.fit(distances, similarity.quantile).weights


@pytest.mark.parametrize("heldout", [HELDOUT, None])
def test_turned_and_scaled_latents_are_the_same(heldout: Encoded | None) -> None:
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(5, 5)))[0].astype(np.float32)

    def turned(steps: Encoded) -> Encoded:
        return replace(steps, latents={"mine": 3 * steps.latents["mine"] @ turn})

    one = probe_latents(TRAINING, heldout, config=CONFIG)
    two = probe_latents(turned(TRAINING), None if heldout is None else turned(heldout), config=CONFIG)
    _nearly_equal(one["representations"], two["representations"])
    assert one["anchors"] == two["anchors"]


def _nearly_equal(one: Any, two: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            _nearly_equal(one[key], two[key])
    elif isinstance(one, list):
        for a, b in zip(one, two, strict=True):
            _nearly_equal(a, b)
    elif one is None or two is None:
        assert one is two
    else:
        assert one == pytest.approx(two, rel=1e-3, abs=1e-4)


def test_blocks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    one = probe_latents(TRAINING, config=CONFIG, progress=lambda done, total, _: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    monkeypatch.setattr(module, "_BYTES", 4 * 95 * 3)
    two = probe_latents(TRAINING, config=CONFIG)
    assert one | {"seconds": 0} == two | {"seconds": 0}


def test_all_encoders_are_asked_the_same() -> None:
    other = replace(TRAINING, latents={"other": np.random.default_rng(3).normal(size=(95, 2)).astype(np.float32)})
    one, two = (probe_latents(steps, config=CONFIG) for steps in (TRAINING, other))
    for key in ("queries", "positives", "anchors", "settings"):
        assert one[key] == two[key]
    another = probe_latents(TRAINING, config=replace(CONFIG, seed=1))
    assert another["anchors"] != one["anchors"]


def test_queries_never_find_their_own_episode() -> None:
    queries = choose_queries(TRAINING.episode_ends, None, replace(CONFIG, min_actions=5))
    episode = TRAINING.episodes()
    for step, own, (low, high) in zip(queries.steps, queries.episodes, queries.without, strict=True):
        assert episode[step] == own
        at = np.arange(len(queries.bank))
        np.testing.assert_array_equal(episode[queries.bank] == own, (at >= low) & (at < high))
    apart = choose_queries(TRAINING.episode_ends, HELDOUT.episode_ends, CONFIG)
    assert apart.available == len(apart.bank) == 95


def test_actions_with_rotations() -> None:
    space = ACTION_SPACES["pose"]()
    generator = np.random.default_rng(0)
    actions = generator.normal(size=(60, space.dim)).astype(np.float32)
    frames = np.linalg.qr(generator.normal(size=(60, 3, 3)))[0][:, :2]
    actions[:, space.dimensions("rotation_6d")] = frames.reshape(60, 6)
    steps = Encoded({"mine": generator.normal(size=(60, 3)).astype(np.float32)}, actions, np.array([20, 40, 60]))
    result = probe_latents(steps, config=CONFIG, action_space=space)
    plain = probe_latents(steps, config=CONFIG)
    one, two = (r["representations"]["mine"]["action_error"][-1]["dtw"]["value"] for r in (result, plain))
    assert one > 0
    assert one != two  # averaged as rotations, and scaled


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Encoded({}, TRAINING.actions, TRAINING.episode_ends), DataError, "at least one representation"),
        (
            lambda: Encoded({"z": np.ones((94, 2), np.float32)}, TRAINING.actions, TRAINING.episode_ends),
            DataError,
            r"latents 'z' of shape \(95, d\), one row per step, got \(94, 2\)",
        ),
        (
            lambda: Encoded({"z": np.full((95, 2), np.nan, np.float32)}, TRAINING.actions, TRAINING.episode_ends),
            DataError,
            "latents 'z': 95 of 95 are NaN or infinite, the first of step 0",
        ),
        (
            lambda: Encoded(TRAINING.latents, TRAINING.actions[:9], TRAINING.episode_ends),
            DataError,
            r"actions of shape \(95, D\), one row per step, got \(9, 2\)",
        ),
        (
            lambda: probe_latents(TRAINING, replace(HELDOUT, latents={"other": HELDOUT.latents["mine"]})),
            DataError,
            r"representations \['mine'\] and actions of 2 dimensions as the training steps, got \['other'\] and 2",
        ),
        (
            lambda: probe_latents(TRAINING, replace(HELDOUT, latents={"mine": HELDOUT.latents["mine"][:, :3]})),
            DataError,
            "latents 'mine' of training steps have 5 dimensions, those of held-out steps 3",
        ),
        (lambda: probe_latents(encoded(0, (40,)), config=CONFIG), ConfigError, "needs at least 2 episodes, there is 1"),
        (
            lambda: probe_latents(TRAINING, config=replace(CONFIG, min_actions=32)),
            ConfigError,
            "no timestep of another episode has at least 32 actions left",
        ),
        (lambda: ProbeConfig(ks=(0, 1)), ConfigError, r"expected ks >= 1, got \(0, 1\)"),
        (lambda: ProbeConfig(queries=0), ConfigError, "expected queries >= 1, got 0"),
        (lambda: ProbeConfig(min_actions=0), ConfigError, "expected min_actions >= 1, got 0"),
    ],
)
def test_what_cannot_be_probed(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_latents_are_scaled_to_length_one() -> None:
    np.testing.assert_allclose(TRAINING.latents["mine"], unit(TRAINING.latents["mine"]), atol=1e-6)
