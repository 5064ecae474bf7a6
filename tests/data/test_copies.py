from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import fakes
from classact.data.copies import describe_copies, first_copies, group_copies
from classact.data.types import Demonstrations
from classact.errors import ConfigError, DataError
from classact.evaluation.probe.latents import Encoded, ProbeConfig, probe_latents
from classact.policies import RetrievalConfig, RetrievalPolicy, StateLatents
from classact.policies.novelty import NoveltyConfig
from classact.similarity import SimilarityConfig

CONFIG = RetrievalConfig(k=4, temperature=0.01, chunk_length=4, horizon=8)
NOVELTY = NoveltyConfig(m=2, alpha=0.3)


def policy(data: Demonstrations) -> RetrievalPolicy:
    return RetrievalPolicy.build(StateLatents(256.0, 256.0, (4,)), data, CONFIG)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 9), st.sampled_from([0.0, 1e6]))
def test_copies_are_found_in_any_order_and_with_rounding(order: list[int], seed: int, offset: float) -> None:
    data = fakes.demonstrations(size=4)
    drawn = data.subset(order)
    rng = np.random.default_rng(seed)
    actions = drawn.actions + np.float32(offset)
    for _ in range(2):
        actions = np.nextafter(actions, np.float32(np.inf) * rng.choice([-1, 1], actions.shape).astype(np.float32))
    first = first_copies(actions, drawn.episode_ends)
    assert_array_equal(first, [order.index(e) for e in order])
    steps, ends = group_copies(first, drawn.episode_ends)
    groups = [set(drawn.episode_index()[part]) for part in np.split(steps, ends[:-1])]
    assert groups == [{i for i, e in enumerate(order) if e == one} for one in dict.fromkeys(order)]
    assert (len(set(order)) == len(order)) == (describe_copies(first, "data") == "")


def test_other_episodes_are_no_copies() -> None:
    """Of the same length, with the same start, and different in one action."""
    actions = np.zeros((3, 20, 2), np.float32)
    actions[:] = np.random.default_rng(0).random((20, 2))
    actions[1, 7, 0] += 1e-3
    actions[2, 19, 1] -= 1e-3
    assert_array_equal(first_copies(actions.reshape(-1, 2), np.array([20, 40, 60])), [0, 1, 2])


def test_copies_are_left_out_together(caplog: pytest.LogCaptureFixture) -> None:
    data = fakes.demonstrations(lengths=(30, 25, 7, 33, 25, 28))
    order = [0, 1, 2, 1, 3, 4, 5, 0]
    many = data.subset(order)
    assert many.states is not None
    # Another camera, and states that differ a little: only actions tell.
    many = replace(many, images={}, states=many.states + np.random.default_rng(0).normal(0, 0.1, many.states.shape))
    made = policy(many)
    with caplog.at_level(logging.WARNING):
        found = made.calibrate(config=NOVELTY)
    assert caplog.text.count("2 of 8 demonstrations have the same actions as an earlier one") == 1
    assert found.episodes == 6
    expected = []
    for one in dict.fromkeys(order):
        others = policy(many.subset([i for i, e in enumerate(order) if e != one]))
        mine = many.subset([i for i, e in enumerate(order) if e == one])
        expected.append(others.distances(made.latents.demonstrations(mine), NOVELTY.m).max())
    assert_allclose(found.maxima, sorted(expected), rtol=0, atol=1e-6)


def test_held_out_copies_of_each_other_count_once() -> None:
    made = policy(fakes.demonstrations())
    unseen = fakes.demonstrations(1)
    once = made.calibrate(unseen, NOVELTY)
    assert_array_equal(made.calibrate(unseen.subset([0, 1, 2, 3, 4, 1, 0]), NOVELTY).maxima, once.maxima)


def test_nothing_but_copies_cannot_be_left_out() -> None:
    data = fakes.demonstrations()
    with pytest.raises(
        ConfigError, match="needs at least 2 episodes, the bank has 1, not counting 2 of the same actions"
    ):
        policy(data.subset([1, 1, 1])).calibrate(config=NOVELTY)
    with pytest.raises(
        ConfigError,
        match="leaving episode 1 out of the bank leaves 7 timesteps of others to compare with, expected at ",
    ):
        policy(data.subset([2, 1])).calibrate(config=replace(NOVELTY, m=8))


def test_a_copy_with_rounding_cannot_be_held_out() -> None:
    data = fakes.demonstrations()
    unseen = replace(data.subset([3]), actions=np.nextafter(data.subset([3]).actions, np.float32(1e9)))
    with pytest.raises(DataError, match="episode 0 has the same 33 actions as episode 3 of the bank"):
        policy(data).calibrate(unseen, NOVELTY)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 0, 1, 2, 3]])
def test_the_probe_never_finds_a_copy(order: list[int]) -> None:
    data = fakes.demonstrations()
    twice = data.subset(order + order[::-1])
    similarity = SimilarityConfig(horizon=6, quantile=0.1, pairs=20_000)
    config = ProbeConfig(ks=(1,), similarity=similarity, queries=100, pairs=3000, steps=60)
    # Latents that know the step of their episode and nothing else: a copy would be found, with an error of 0.
    generator = np.random.default_rng(0)
    rows = np.concatenate([np.arange(*data.bounds(e)) for e in order + order[::-1]])
    z = generator.normal(size=(data.num_steps, 30)).astype(np.float32)[rows]
    result = probe_latents(Encoded({"mine": z}, twice.actions, twice.episode_ends), config=config)
    error = result["representations"]["mine"]["action_error"][0]["dtw"]["value"]
    assert error > result["anchors"]["random"]["dtw"]["value"] / 2
    assert result["anchors"]["nearest"]["dtw"]["value"] > 0
    assert result["queries"]["episodes"] == 5
