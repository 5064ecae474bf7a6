from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from parts import check_parts

from classact.data.rotations import geodesic_distance, rotation_6d_to_matrix
from classact.data.types import FloatArray
from classact.sims import make_simulator
from classact.sims.base import OPEN
from classact.sims.experts.arm import MAX_STEP, MAX_TURN
from classact.sims.experts.base import Attempt, GiveUpError, attempt

pytest.importorskip("robosuite", reason="Square needs the extra 'robosuite': pip install 'classact[robosuite]'")

from classact.sims.experts.square import script

SEEDS = (11, 21)


@pytest.fixture(scope="module")
def square() -> Iterator[Any]:
    simulator = make_simulator("square")
    yield simulator
    simulator.close()


@pytest.fixture(scope="module")
def attempts(square: Any) -> dict[int, Attempt]:
    return {seed: attempt(square, script, seed) for seed in SEEDS}


@pytest.mark.parametrize("seed", SEEDS)
def test_succeeds_by_the_simulators_own_rule(square: Any, attempts: dict[int, Attempt], seed: int) -> None:
    tried = attempts[seed]
    assert tried.success, tried.reason
    assert 100 < len(tried) < 350  # Table 10 allows 400
    assert all(square.spec.excess(action.astype(np.float64)) == 0 for action in tried.actions)


def test_its_actions_alone_do_it(square: Any, attempts: dict[int, Attempt]) -> None:
    tried = attempts[11]
    square.reset(11)
    metrics = [square.step(action) for action in tried.actions]
    check_parts(square.spec, metrics)
    reached = [one["success"] for one in metrics]
    assert reached.index(1.0) == len(tried) - 9  # and 8 steps of tail
    assert reached[-1] == 1.0
    nut, peg = square.object_pose("nut")[0], square.object_pose("peg")[0]
    assert np.abs(nut[:2] - peg[:2]).max() < 0.007  # the hole's clearance
    assert nut[2] < 0.87


@pytest.mark.parametrize("seed", SEEDS)
def test_commands_are_smooth(attempts: dict[int, Attempt], seed: int) -> None:
    actions = attempts[seed].actions
    assert np.linalg.norm(np.diff(actions[:, :3], axis=0), axis=1).max() < 1.5 * MAX_STEP
    rotations = rotation_6d_to_matrix(actions[:, 3:9])
    assert geodesic_distance(rotations[1:], rotations[:-1]).max() < 1.5 * MAX_TURN
    assert set(np.unique(actions[:, 9])) == {-1.0, 1.0}
    assert np.count_nonzero(np.diff(actions[:, 9])) <= 2  # one grasp, at most one release


def test_same_seed_same_attempt(square: Any, attempts: dict[int, Attempt]) -> None:
    again = attempt(square, script, 11)
    for name in ("states", "actions", "proprioception"):
        assert getattr(again, name).tobytes() == getattr(attempts[11], name).tobytes()


def test_one_start_two_people(square: Any) -> None:
    """From the same start, another generator gives other actions."""
    paths = []
    for person in (0, 1):
        square.reset(3)
        steps = script(square, np.random.default_rng(person))
        path = []
        for _ in range(60):
            path.append(next(steps))
            square.step(path[-1])
        paths.append(np.array(path))
    assert np.linalg.norm(paths[0][:, :3] - paths[1][:, :3], axis=1).max() > 0.01


def test_picks_up_again_what_it_drops(square: Any) -> None:
    square.reset(1)
    steps = script(square, np.random.default_rng(1))
    carried = 0
    dropped = success = False
    for _ in range(400):
        action: FloatArray = next(steps)
        carried += action[9] > 0
        if 30 <= carried < 45 and not dropped:
            action = np.append(action[:9], np.float32(OPEN))
            carried += 1
        dropped = dropped or carried >= 45
        success = square.step(action)["success"] > 0
        if success:
            break
    assert dropped
    assert success


def test_gives_up_where_the_hand_cannot_be_turned(square: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("classact.sims.experts.arm.JOINT_7_LIMIT", 0.0)
    tried = attempt(square, script, 0)
    assert not tried.success
    assert tried.reason == "no way to turn the hand to the handle and the handle to the peg"
    square.reset(0)
    with pytest.raises(GiveUpError, match="no way to turn the hand"):
        list(script(square, np.random.default_rng(0)))
