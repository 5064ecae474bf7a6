from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from classact.data.readers.generated import EMBEDDED, STATE_UNITS, load_embedded, read, read_header
from classact.data.types import Demonstrations
from classact.errors import DataError
from classact.sims.experts import pusht_model as model
from classact.sims.experts.generate import generate_demonstrations
from classact.sims.experts.pusht import (
    MAX_LENGTH,
    MIN_LENGTH,
    QUANTUM,
    ExpertConfig,
    PlanRecorder,
    Solution,
    solve,
)
from classact.sims.pusht import PushT, coverage
from classact.sims.rendering import appearance_seed

EASY_SEED = 0


@pytest.fixture(scope="module")
def embedded() -> Demonstrations:
    return load_embedded()


def test_planning_model_follows_pymunk() -> None:
    simulator = PushT()
    scratch = np.zeros((model.MAX_CONTACTS, 8))
    rng = np.random.default_rng(0)
    errors, moved = [], []
    for seed in range(60):
        simulator.reset(seed)
        before = simulator.get_state()
        simulator.set_state(before)
        planned = model.planning_state(before, (0.0, 0.0), (0.0, 0.0, 0.0))
        target, goal = before[:2], before[2:4] + rng.normal(0, 30, 2)
        for _ in range(30):
            step = goal - target
            target = target + step / max(1.0, float(np.linalg.norm(step)) / 14)
            simulator.step(target)
            model.advance(planned, target[0], target[1], scratch)
        after = simulator.get_state()
        moved.append(np.abs(after - before)[2:4].max())
        x, y = planned[4] + model.COG * np.sin(planned[6]), planned[5] - model.COG * np.cos(planned[6])
        errors.append(max(abs(x - after[2]), abs(y - after[3]), *np.abs(planned[:2] - after[:2])))
    assert np.median(moved) > 10
    # Contacts with two boxes or a wall at once are solved a little differently; free pushing is not.
    assert np.median(errors) < 1e-5
    assert np.mean(np.array(errors) < 1.0) > 0.9


def test_model_constants_are_pymunks() -> None:
    block = PushT()._world.block
    assert pytest.approx(1 / block.moment) == model.INV_MOMENT
    assert pytest.approx(1 / block.mass) == model.INV_MASS
    assert block.center_of_gravity.y == model.COG


def test_embedded_data(embedded: Demonstrations) -> None:
    assert (embedded.name, embedded.simulator) == ("pusht-expert", "pusht")
    assert embedded.versions["pymunk"]
    assert embedded.fingerprint()[:16] == "92f616f6246cee23"  # runs that were made with it remember this
    assert len(embedded) >= 200
    header_lengths = read_header(EMBEDDED)["lengths"]
    assert header_lengths == [MIN_LENGTH, MAX_LENGTH]
    assert embedded.lengths.min() >= header_lengths[0]
    assert embedded.lengths.max() <= header_lengths[1]
    assert EMBEDDED.stat().st_size < 2_000_000
    header = read_header(EMBEDDED)
    assert header["simulator"] == "pusht"
    assert len(header["seeds"]) == len(embedded)
    assert max(header["seeds"]) < 100_000  # evaluation starts at 100000
    assert header["packages"]["pymunk"]
    assert embedded.states is not None
    assert np.array_equal(embedded.actions, np.round(embedded.actions / QUANTUM) * QUANTUM)
    assert np.abs(embedded.actions - 256).max() <= 256


def test_embedded_episodes_end_held(embedded: Demonstrations) -> None:
    for episode in embedded:
        assert episode.states is not None
        for state in episode.states[-9:]:
            assert coverage(*state[2:5]) >= 0.95
        assert np.abs(np.diff(episode.states[-5:, :4], axis=0)).max() < 1.0  # at rest
        assert np.abs(np.diff(episode.actions[-9:], axis=0)).max() == 0.0


@pytest.mark.parametrize("episode", [0, 57, 113, 199])
def test_embedded_episodes_replay(embedded: Demonstrations, episode: int) -> None:
    recorded = embedded[episode]
    assert recorded.states is not None
    simulator = PushT()
    simulator.reset(read_header(EMBEDDED)["seeds"][episode])
    covered = []
    for state, action in zip(recorded.states, recorded.actions, strict=True):
        error = np.abs(simulator.get_state() - state)
        error[4] = min(error[4], 2 * np.pi - error[4])
        assert (error <= 0.51 / STATE_UNITS).all()
        covered.append(simulator.step(action)["coverage"])
    assert min(covered[-10:]) >= 0.95


def test_embedded_motions_are_smooth(embedded: Demonstrations) -> None:
    changes = np.concatenate([np.linalg.norm(np.diff(e.actions, n=2, axis=0), axis=1) for e in embedded])
    assert changes.mean() < 5.4  # px per step^2: the mean of the 206 human demonstrations
    speeds = np.concatenate([np.linalg.norm(np.diff(e.actions, axis=0), axis=1) for e in embedded])
    assert np.percentile(speeds, 99) < 40.4  # px per step: that of the human demonstrations
    assert speeds.max() < 60


@pytest.mark.slow
def test_expert_solves_an_easy_start_and_repeats_itself() -> None:
    first = solve(PushT(), EASY_SEED)
    assert first.placed
    assert first.coverage[-10:].min() >= 0.95
    again = solve(PushT(), EASY_SEED)
    for name in ("states", "actions", "coverage"):
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()


QUICK = ExpertConfig(broad=60, population=30, knots=6, spreads=(10.0,), max_steps=12)


class KeepAllButOne(PlanRecorder):
    """Push-T's planner whose settings are too quick for success: any attempt is kept but that of seed 1."""

    def refuse(self, solution: Solution) -> str:
        return "it is the first" if solution.seed == 1 else ""


@pytest.fixture
def keep_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("classact.sims.experts.generate.PlanRecorder", KeepAllButOne)


@pytest.mark.usefixtures("keep_all")
def test_generation_writes_the_format_of_the_embedded(tmp_path: Path) -> None:
    data = generate_demonstrations("pusht", episodes=2, out=tmp_path / "x.npz", config=QUICK)
    header, shipped = read_header(tmp_path / "x.npz"), read_header(EMBEDDED)
    assert list(header) == list(shipped)
    assert header["seeds"] == [0, 2]
    assert (header["attempts"], header["not_kept"]) == (3, 1)
    assert (len(data), data.num_steps, data.simulator) == (2, 24, "pusht")
    solution = solve(PushT(), 2, QUICK)
    assert np.array_equal(data[1].actions, solution.actions)
    assert data.states is not None
    assert np.abs(data[1].states - solution.states).max() <= 0.51 / 1024


@pytest.mark.usefixtures("keep_all")
def test_generation_with_images(tmp_path: Path) -> None:
    out = tmp_path / "pusht-rand-color"
    data = generate_demonstrations("pusht", episodes=1, out=out, config=QUICK, shift="rand-color", image_size=96)
    assert (data.simulator, data.images_shift) == ("pusht", "rand-color")
    assert data.images["top"].shape == (12, 96, 96, 3)
    assert data.states is not None
    simulator = PushT(shift="rand-color")
    simulator.set_appearance(appearance_seed(0, 0))
    simulator.set_state(data.states[5])
    assert np.array_equal(simulator.observe().images["top"], data.images["top"][5])


def test_which_attempts_are_demonstrations() -> None:
    recorder = PlanRecorder(QUICK)
    solution = solve(PushT(), EASY_SEED, QUICK)
    assert recorder.refuse(solution) == "not placed"
    assert recorder.refuse(replace(solution, placed=True)) == "not 100 to 300 steps long"
    enough = np.zeros((MIN_LENGTH, 2))
    assert recorder.refuse(replace(solution, placed=True, actions=enough)) == ""


def test_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.npz cannot be read"):
        read(tmp_path / "none.npz")
    (tmp_path / "cut.npz").write_bytes(EMBEDDED.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"cut\.npz cannot be read"):
        read(tmp_path / "cut.npz")
