"""Episodes that return to an observation: which demonstration is followed instead of the average."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fakes
from classact.data.types import FloatArray, Observation
from classact.errors import ConfigError
from classact.policies import MonitoredPolicy, RetrievalConfig, RetrievalPolicy, StateLatents
from classact.policies.base import decide
from classact.policies.control import MEMORY, Controller
from classact.policies.monitored import monitored

CONFIG = RetrievalConfig(k=6, temperature=0.01, chunk_length=5, horizon=16, min_actions=3, revisit=0.999)
ROWS = [5, 40, 60]


def policy(config: RetrievalConfig = CONFIG) -> RetrievalPolicy:
    return RetrievalPolicy.build(StateLatents(256.0, 256.0, (4,)), fakes.demonstrations(), config)


def seen(rows: list[int]) -> list[Observation]:
    data = fakes.demonstrations(3)
    assert data.states is not None
    made = zip(rows, fakes.observations(data, rows), strict=True)
    return [replace(one, state=data.states[row]) for row, one in made]


def nearest_of_episodes(made: RetrievalPolicy, z: FloatArray) -> list[int]:
    """Bank rows with at least 3 actions left, the nearest of each episode, nearest episode first: by exhaustion."""
    best: dict[int, tuple[float, int]] = {}
    starts = np.concatenate([[0], made.episode_ends[:-1]])
    for episode, (start, end) in enumerate(zip(starts, made.episode_ends, strict=True)):
        best[episode] = max((float(made.bank[row] @ z), -row) for row in range(start, end - 2))
    return [-row for _, row in sorted(best.values(), reverse=True)]


@pytest.mark.parametrize("times", [1, 2, 3, 7])
def test_the_nth_return_follows_the_nth_nearest_demonstration(times: int) -> None:
    made, now = policy(), seen(ROWS)
    z = made.latents.observations(now)
    ranked = [nearest_of_episodes(made, row) for row in z]
    elsewhere = -z[1:2]
    decision = made.decide(now, [np.repeat(z[:1], times, axis=0), elsewhere, np.concatenate([elsewhere, z[2:]])])
    assert decision.visits is not None
    assert decision.neighbors is not None
    assert_array_equal(decision.visits, [times, 0, 1])
    followed = ranked[0][(times - 1) % len(ranked[0])]
    windows = [[made.actions[min(row + t, _last(made, row))] for t in range(5)] for row in (followed, ranked[2][0])]
    assert_array_equal(decision.chunk[[0, 2]], np.asarray(windows, np.float32))
    assert_array_equal(decision.chunk[1], made.decide(now).chunk[1])
    weights, rows = decision.neighbors.weights, decision.neighbors.rows
    assert_array_equal(np.sort(weights[0]), [0, 0, 0, 0, 0, 1])
    assert rows[0, weights[0].argmax()] == followed
    assert set(ranked[0]) <= set(rows[0])  # the others are shown, too: 3 episodes, 6 neighbours
    assert len(set(rows[0])) == 6
    assert (np.diff(decision.neighbors.cosine, axis=1) <= 0).all()


def _last(made: RetrievalPolicy, row: int) -> int:
    return int(made.episode_ends[np.searchsorted(made.episode_ends, row, side="right")]) - 1


def test_nothing_is_remembered_unless_it_is_asked_for() -> None:
    plain, now = policy(replace(CONFIG, revisit=None)), seen(ROWS)
    assert not plain.spec.remembers
    memory = [plain.latents.observations(now)] * 3
    assert_array_equal(decide(plain, now, memory).chunk, plain.decide(now).chunk)
    assert plain.decide(now).latents is None
    assert policy().spec.remembers
    assert_array_equal(policy().decide(now).chunk, plain.decide(now).chunk)


def test_the_controller_remembers_until_it_is_reset() -> None:
    made, now = policy(), seen([5])
    controller = Controller(made)
    controller.reset(1)
    chunks = [controller.act([now * (1 if i == 0 else 5)]).chunk for i in range(3)]
    z = made.latents.observations(now)
    for n, chunk in enumerate(chunks):
        assert_array_equal(chunk, made.decide(now, [np.repeat(z, n, axis=0)]).chunk)
    assert not np.array_equal(chunks[1], chunks[2])
    controller.reset(1)
    assert_array_equal(controller.act([now]).chunk, chunks[0])
    assert controller._memory[0].maxlen == MEMORY


def test_a_refused_observation_is_not_remembered() -> None:
    made, now = policy(), seen([5])
    controller = Controller(made)
    controller.reset(1)
    first = controller.act([now]).chunk
    with pytest.raises(ValueError, match="state"):
        controller.act([[replace(now[0], state=None)] * 5])
    again = controller.act([now * 5])
    assert_array_equal(again.visits, [1])
    assert not np.array_equal(again.chunk, first)


def test_a_head_follows_its_monitor_where_it_returns() -> None:
    bank, acting, now = policy(), fakes.ChasePolicy(), seen(ROWS)
    assert bank.calibration is None  # remembering is reason enough for a monitor
    made = monitored(acting, bank)
    assert isinstance(made, MonitoredPolicy)
    assert made.spec.remembers
    z = bank.latents.observations(now)
    nothing = np.zeros((0, z.shape[1]), np.float32)
    decision = decide(made, now, [nothing, z[1:2], nothing])
    own = acting.decide(now).chunk
    assert_array_equal(decision.chunk[[0, 2]], own[[0, 2]])
    row = nearest_of_episodes(bank, z[1])[0]
    length = own.shape[1]
    assert length > bank.config.chunk_length  # the demonstration is followed as long as the head's chunk is
    expected = [bank.actions[min(row + t, _last(bank, row))] for t in range(length)]
    assert_array_equal(decision.chunk[1], np.asarray(expected, np.float32))
    assert decision.neighbors is not None
    assert decision.novelty is None


def test_a_head_with_chunks_longer_than_demonstrations_are_followed() -> None:
    bank = policy(replace(CONFIG, horizon=6))
    message = r"monitoring policy: chunk_length 8 .* takes 8 actions of a chunk, expected at most its horizon of 6"
    with pytest.raises(ConfigError, match=message):
        MonitoredPolicy(fakes.ChasePolicy(), bank)


def test_an_impossible_cosine() -> None:
    with pytest.raises(ConfigError, match="expected -1 < revisit < 1, got 1"):
        replace(CONFIG, revisit=1.0)
