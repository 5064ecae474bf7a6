from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from classact.errors import ConfigError, DataError
from classact.readers.embedded import PATH, STATE_UNITS, load_embedded, read_file, read_header
from classact.sims.experts import pusht_model as model
from classact.sims.experts.generate import MAX_LENGTH, MIN_LENGTH, attempt, generate_demonstrations
from classact.sims.experts.pusht import QUANTUM, ExpertConfig, solve
from classact.sims.pusht import PushT, coverage
from classact.types import Demonstrations

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
    assert embedded.name == "pusht-expert"
    assert len(embedded) >= 200
    header_lengths = read_header()["lengths"]
    assert header_lengths == [MIN_LENGTH, MAX_LENGTH]
    assert embedded.lengths.min() >= header_lengths[0]
    assert embedded.lengths.max() <= header_lengths[1]
    assert PATH.stat().st_size < 2_000_000
    header = read_header()
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
    simulator.reset(read_header()["seeds"][episode])
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
    begin = time.monotonic()
    first = solve(PushT(), EASY_SEED)
    assert time.monotonic() - begin < 30  # 2 s, plus compiling the model once
    assert first.placed
    assert first.coverage[-10:].min() >= 0.95
    again = solve(PushT(), EASY_SEED)
    for name in ("states", "actions", "coverage"):
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()


QUICK = ExpertConfig(broad=60, population=30, knots=6, spreads=(10.0,), max_steps=12)


@pytest.fixture
def keep_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("classact.sims.experts.generate.kept", lambda solution: solution.seed != 1)


@pytest.mark.usefixtures("keep_all")
def test_generation_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole.npz", tmp_path / "resumed.npz"
    generate_demonstrations("pusht", episodes=3, out=whole, config=QUICK)

    class StopError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StopError

    with pytest.raises(StopError):
        generate_demonstrations("pusht", episodes=3, out=resumed, config=QUICK, progress=stop)
    assert not resumed.exists()
    work = resumed.with_name("resumed.npz.work")
    stored = {file.name: file.read_bytes() for file in work.glob("*.npz")}
    assert set(stored) == {"0.npz"}
    attempt(2, QUICK, work)  # another process got ahead
    seen: list[tuple[int, int]] = []
    data = generate_demonstrations(
        "pusht", episodes=3, out=resumed, config=QUICK, progress=lambda done, total, _: seen.append((done, total))
    )
    assert resumed.read_bytes() == whole.read_bytes()
    assert seen[-1] == (3, 3)
    assert not work.exists()
    header = read_header(resumed)
    assert header["seeds"] == [0, 2, 3]
    assert (header["attempts"], header["not_kept"]) == (4, 1)
    assert len(data) == 3
    assert data.num_steps == 36


@pytest.mark.slow
def test_generation_does_not_depend_on_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("classact.sims.experts.generate.kept", lambda _: True)
    monkeypatch.setattr("classact.sims.experts.generate.attempt", _attempt)
    for workers in (1, 2):
        generate_demonstrations("pusht", episodes=3, out=tmp_path / f"{workers}.npz", workers=workers, config=QUICK)
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()


def _attempt(seed: int, config: ExpertConfig, work: Path) -> bool:
    attempt(seed, config, work)
    return True


def test_generation_refuses(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown expert 'square': available are 'pusht'"):
        generate_demonstrations("square", episodes=1, out=tmp_path / "x.npz")
    with pytest.raises(ConfigError, match="at least 1 episode and 1 worker, got 0 and 1"):
        generate_demonstrations("pusht", episodes=0, out=tmp_path / "x.npz")
    work = tmp_path / "x.npz.work"
    work.mkdir()
    (work / "settings.json").write_text('{"simulator": "other"}')
    with pytest.raises(ConfigError, match=r"attempts made with other settings \(.*simulator.*\)"):
        generate_demonstrations("pusht", episodes=1, out=tmp_path / "x.npz")


def test_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_file(tmp_path / "none.npz", name="x")
    (tmp_path / "cut.npz").write_bytes(PATH.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"cut\.npz cannot be read"):
        read_file(tmp_path / "cut.npz", name="x")
