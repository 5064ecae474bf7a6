"""Demonstrations that contradict the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fakes
from classact.data.copies import first_copies
from classact.data.types import Demonstrations
from classact.errors import ConfigError
from classact.evaluation.consistency import consistency, left_out, timesteps
from classact.evaluation.rows import Consistency, EpisodeError
from classact.policies import RetrievalConfig, RetrievalPolicy, StateLatents


def policy(data: Demonstrations, **settings: object) -> RetrievalPolicy:
    config = RetrievalConfig(**{"k": 5, "temperature": 0.01, "chunk_length": 4, **settings})  # type: ignore[arg-type]
    return RetrievalPolicy.build(StateLatents(256.0, 256.0, (4,)), data, config)


@pytest.mark.parametrize(("order", "settings"), [((0, 1, 2, 3, 4), {}), ((0, 1, 0, 3, 1, 4), {"min_actions": 3})])
def test_neighbours_are_the_nearest_of_other_demonstrations(order: tuple[int, ...], settings: dict[str, int]) -> None:
    """Beside a search through everything, with and without copies of demonstrations."""
    data = fakes.demonstrations().subset(order)
    made = policy(data, **settings)
    rows = timesteps(data, 60)
    decision = made.decide_left_out(rows)
    assert decision.neighbors is not None
    group = first_copies(data.actions, data.episode_ends)[data.episode_index()]
    left = np.repeat(data.episode_ends, data.lengths) - np.arange(data.num_steps)
    may = left >= made.config.min_actions
    for q, row in enumerate(rows):
        cosine = np.where(may & (group != group[row]), made.bank @ made.bank[row], -2)
        nearest = np.argsort(-cosine, kind="stable")[:5]
        assert_allclose(decision.neighbors.cosine[q], cosine[nearest], atol=1e-5)
        assert not (group[decision.neighbors.rows[q]] == group[row]).any()
        weights = np.exp((cosine[nearest] - cosine.max()) / 0.01)
        chunk = np.einsum("k,ktd->td", weights / weights.sum(), made.chunks(nearest))
        assert_allclose(decision.chunk[q], chunk, atol=2)


def test_a_demonstration_that_does_the_opposite_stands_out() -> None:
    rng = np.random.default_rng(0)
    data = fakes.demonstrations(lengths=(20,) * 12)
    assert data.states is not None
    line = np.linspace(100, 400, 20)
    states, actions = data.states.copy(), data.actions.copy()
    for e in range(12):
        rows = slice(*data.bounds(e))
        states[rows] = rng.normal(0, 1, (20, 5)) + np.stack([line, line, line * 0, line * 0, line * 0], axis=1)
        actions[rows] = line[:, None] + 30 + rng.normal(0, 3, (20, 2))
    actions[slice(*data.bounds(7))] = 500 - actions[slice(*data.bounds(7))]
    data = replace(data, states=states, actions=actions)
    found = consistency(data, left_out(policy(data), data), 4)
    assert [one.episode for one in found.outliers] == [7]
    assert (found.queries, found.timesteps, len(found.episodes)) == (240, 240, 12)
    worst = found.ranked[0]
    assert worst.worst_error >= worst.error > 2 * found.ranked[1].error


def test_a_demonstration_alone_has_nothing_to_be_compared_with() -> None:
    data = fakes.demonstrations().subset([1, 1])
    with pytest.raises(ConfigError, match="at least 2 episodes, the bank has 1, not counting 1 of the same actions"):
        left_out(policy(data), data)


def test_every_demonstration_is_asked_about_however_many_there_are() -> None:
    data = fakes.demonstrations(lengths=(3, 50, 1, 40))
    rows = timesteps(data, 20)
    assert np.bincount(data.episode_index()[rows]).tolist() == [3, 5, 1, 5]
    assert_array_equal(timesteps(data, 94), np.arange(94))


def test_of_few_demonstrations_none_stands_out() -> None:
    episodes = tuple(EpisodeError(e, 10, 10.0**e, 0, 1.0) for e in range(7))
    assert Consistency(4, 70, 70, episodes).outliers == []
