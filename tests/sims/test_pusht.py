from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from classact.errors import ConfigError, DataError, SimulatorError
from classact.sims import make_simulator
from classact.sims.base import Simulator
from classact.sims.pusht import CANVAS, PushT, coverage, draw, start_state
from classact.sims.rendering import appearance_seed, render_states
from classact.sims.shifts import (
    FIXED_COLORS,
    MAX_BACKGROUND_REDNESS,
    MIN_COLOR_DISTANCE,
    appearance_rng,
    redness,
    sample_colors,
    smallest_distance,
)

Human = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def human(human_zarr: Path) -> Human:
    store = zarr.open_group(str(human_zarr), mode="r")
    return {
        "states": np.asarray(store["data/state"][:], dtype=np.float64),
        "actions": np.asarray(store["data/action"][:], dtype=np.float32),
        "ends": np.asarray(store["meta/episode_ends"][:], dtype=np.int64),
    }


def bounds(human: Human, episode: int) -> tuple[int, int]:
    return (0 if episode == 0 else int(human["ends"][episode - 1])), int(human["ends"][episode])


def run(simulator: Simulator, seed: int, steps: int = 40) -> tuple[np.ndarray, np.ndarray]:
    simulator.reset(seed)
    rng = np.random.default_rng(seed)
    states = [simulator.get_state()]
    for _ in range(steps):
        simulator.step(rng.uniform(50, 450, 2).astype(np.float32))
        states.append(simulator.get_state())
    return np.stack(states), simulator.observe().images["top"]


@pytest.mark.parametrize("shift", ["fixed-color", "rand-color"])
def test_same_seed_is_the_same_episode(shift: str) -> None:
    used = PushT(shift=shift)
    run(used, seed=11)  # what happened before must not matter
    states, image = run(used, seed=5)
    again, image_again = run(PushT(shift=shift), seed=5)
    assert np.array_equal(states, again)
    assert np.array_equal(image, image_again)


@pytest.mark.parametrize("seed", [0, 1, 42, 100_000, 100_049])
def test_start_is_diffusion_policys(seed: int) -> None:
    rs = np.random.RandomState(seed)
    expected = [rs.randint(50, 450), rs.randint(50, 450), rs.randint(100, 400), rs.randint(100, 400)]
    angle = rs.randn() * 2 * np.pi - np.pi
    assert start_state(seed).tolist() == [*expected, angle]
    simulator = PushT()
    simulator.reset(seed)
    state = simulator.get_state()
    assert state[:2].tolist() == expected[:2]
    # Legacy order: the block turns about its centre of mass, 45 px down its own axis, after it was placed.
    moved = np.array(expected[2:]) + 45 * np.array([np.sin(angle), 1 - np.cos(angle)])
    if not touching(state):
        np.testing.assert_allclose(state[2:4], moved, atol=1e-9)
        assert state[4] == pytest.approx(angle % (2 * np.pi), abs=1e-12)


def touching(state: np.ndarray) -> bool:
    return bool(np.hypot(*(state[:2] - state[2:4])) < 140) or bool((np.abs(state[2:4] - 256) > 120).any())


def test_set_state_round_trip() -> None:
    simulator = PushT()
    rng = np.random.default_rng(0)
    for _ in range(200):
        state = np.array([*rng.uniform(50, 450, 4), rng.uniform(0, 2 * np.pi)])
        simulator.set_state(state)
        np.testing.assert_allclose(simulator.get_state(), state, rtol=0, atol=1e-12)


def test_what_follows_set_state_depends_on_the_state_alone() -> None:
    state = np.array([230.0, 300.0, 256.0, 256.0, 0.7])
    action = np.array([260.0, 256.0], dtype=np.float32)
    fresh, used = PushT(), PushT()
    run(used, seed=9)
    results = []
    for simulator in (fresh, used):
        simulator.set_state(state)
        for _ in range(5):
            simulator.step(action)
        results.append(simulator.get_state())
    assert np.array_equal(results[0], results[1])


def test_stepping_equals_gym_pusht() -> None:
    from gym_pusht.envs.pusht import PushTEnv

    env, simulator = PushTEnv(obs_type="state"), PushT()
    env.reset(options={"reset_to_state": start_state(7)})
    simulator.reset(7)
    rng = np.random.default_rng(7)
    for _ in range(100):
        action = rng.uniform(100, 400, 2).astype(np.float32)
        observation, _, _, _, info = env.step(action)
        metrics = simulator.step(action)
        assert np.array_equal(observation, simulator.get_state())
        assert metrics["coverage"] == pytest.approx(info["coverage"], abs=1e-9)


def test_coverage_and_iou() -> None:
    simulator = PushT()
    simulator.set_state(np.array([100.0, 100.0, 256.0, 256.0, np.pi / 4]))
    metrics = simulator.step(np.array([100.0, 100.0], dtype=np.float32))
    assert metrics == pytest.approx({"coverage": 1.0, "iou": 1.0}, abs=1e-9)
    rng = np.random.default_rng(1)
    for _ in range(20):
        simulator.set_state(np.array([100, 100, *(256 + rng.uniform(-40, 40, 2)), rng.uniform(0, 2 * np.pi)]))
        metrics = simulator.step(np.array([100.0, 100.0], dtype=np.float32))
        assert metrics["iou"] == pytest.approx(metrics["coverage"] / (2 - metrics["coverage"]), abs=1e-12)
        assert 0 <= metrics["iou"] <= metrics["coverage"] <= 1
    assert coverage(50.0, 450.0, 0.0) == 0.0


@pytest.mark.parametrize("shift", ["rand-color", " rand-color "])
def test_colours_are_random_however_the_shift_is_spelled(shift: str) -> None:
    simulator = PushT(shift=shift)
    simulator.reset(3)
    assert simulator.colors == sample_colors(appearance_rng(3))


def test_actions_outside_the_workspace_are_not_clipped() -> None:
    simulator = PushT()
    simulator.set_state(np.array([480.0, 256.0, 150.0, 256.0, 0.0]))
    for _ in range(20):
        simulator.step(np.array([600.0, 256.0], dtype=np.float32))
    assert simulator.get_state()[0] == pytest.approx(600, abs=1)


@pytest.mark.parametrize("episode", [0, 42, 99, 150, 204])
def test_human_frames_are_reproduced(human: Human, human_zarr: Path, episode: int) -> None:
    begin, end = bounds(human, episode)
    recorded = np.asarray(zarr.open_group(str(human_zarr), mode="r")["data/img"][begin:end], dtype=np.float64)
    drawn = np.stack([draw(state, FIXED_COLORS, 96) for state in human["states"][begin:end]])
    assert np.abs(drawn - recorded).mean() < 0.5
    assert np.abs(drawn - recorded).mean(axis=(1, 2, 3)).max() < 0.5


@pytest.mark.parametrize("episode", [0, 42, 99, 150, 204])
def test_human_episodes_replay(human: Human, episode: int) -> None:
    # About one recording in nine starts with the agent already moving, which a state does not hold; these do not.
    begin, end = bounds(human, episode)
    simulator = PushT()
    simulator.set_state(human["states"][begin])
    for row in range(begin, end - 1):
        simulator.step(human["actions"][row])
        error = np.abs(simulator.get_state() - human["states"][row + 1])
        error[4] = min(error[4], 2 * np.pi - error[4])
        assert error.max() < 1e-3, f"step {row - begin}"


def test_colour_rules_hold() -> None:
    drawn = [sample_colors(np.random.default_rng(seed)) for seed in range(200)]
    for colors in drawn:
        assert smallest_distance(colors) >= MIN_COLOR_DISTANCE
        assert redness(colors.background) <= MAX_BACKGROUND_REDNESS
    assert len(set(drawn)) == 200
    assert smallest_distance(FIXED_COLORS) < MIN_COLOR_DISTANCE  # gym-pusht's own colours are closer than that


def test_colours_stay_within_an_episode_and_change_between() -> None:
    simulator = PushT(shift="rand-color")
    run(simulator, seed=3, steps=0)
    colors = simulator.colors
    for _ in range(5):
        simulator.step(np.array([200.0, 200.0], dtype=np.float32))
        simulator.observe()
    assert simulator.colors == colors
    state = simulator.get_state()
    simulator.set_appearance(4)
    assert simulator.colors != colors
    assert np.array_equal(simulator.get_state(), state)
    simulator.reset(3)
    assert simulator.colors == colors


def test_image_shows_the_four_colours_and_no_action_cross() -> None:
    simulator = PushT(shift="rand-color")
    simulator.set_appearance(0)
    simulator.set_state(np.array([100.0, 100.0, 380.0, 350.0, 2.0]))
    for size in (96, 224, CANVAS, 640):
        assert simulator.render(size).shape == (size, size, 3)
    image = simulator.render(CANVAS)
    assert tuple(image[30, 250]) == simulator.colors.background
    assert tuple(image[256, 256]) == simulator.colors.goal
    assert tuple(image[100, 100 + 13]) == simulator.colors.agent
    before = simulator.observe().images["top"]
    simulator.step(np.array([100.0, 100.0], dtype=np.float32))
    assert np.array_equal(simulator.observe().images["top"], before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: make_simulator("push-t"),
            "unknown simulator 'push-t': available are 'aloha-transfer', 'half-cheetah', 'hopper', ",
        ),
        (lambda: make_simulator("pusht", image_size=64), "expected image_size in 96..256 pixels, got 64"),
        (lambda: make_simulator("pusht", image_size=257), "expected image_size in 96..256 pixels, got 257"),
    ],
)
def test_bad_settings(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        make()  # type: ignore[operator]


def test_bad_states_and_actions() -> None:
    simulator = PushT()
    with pytest.raises(SimulatorError, match=r"finite state of shape \(5,\), got \(4,\)"):
        simulator.set_state(np.zeros(4))
    with pytest.raises(SimulatorError, match=r"finite action of shape \(2,\)"):
        simulator.step(np.array([np.nan, 1], dtype=np.float32))
    with pytest.raises(SimulatorError, match=r"dimension 1 of the action is 1100, 1\.1 times .* 0 to 512 beyond"):
        simulator.step(np.array([3, 1100], dtype=np.float32))
    simulator.step(np.array([-500, 1000], dtype=np.float32))


def demonstrations() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    states = np.concatenate([rng.uniform(60, 440, (33, 4)), rng.uniform(0, 6, (33, 1))], axis=1)
    return states, np.array([3, 10, 12, 20, 21, 33], dtype=np.int64)


def test_rendering_does_not_depend_on_workers(tmp_path: Path) -> None:
    states, ends = demonstrations()
    seen: list[int] = []
    frames = []
    for name, workers in (("one", 1), ("two", 2)):
        out = np.memmap(tmp_path / name, dtype=np.uint8, mode="w+", shape=(33, 96, 96, 3))
        render_states(
            "pusht", states, ends, image_size=96, shift="rand-color", seed=7, out=out, workers=workers,
            progress=lambda done, _total: seen.append(done),
        )  # fmt: skip
        assert seen[-1] == 33
        out.flush()
        frames.append((tmp_path / name).read_bytes())
    assert frames[0] == frames[1]
    plain = np.empty((33, 96, 96, 3), dtype=np.uint8)
    render_states("pusht", states, ends, image_size=96, shift="rand-color", seed=7, out=plain, workers=2)
    assert plain.tobytes() == frames[0]


def test_rendered_appearance_is_the_episodes() -> None:
    states, ends = demonstrations()
    out = np.empty((33, 96, 96, 3), dtype=np.uint8)
    render_states("pusht", states, ends, image_size=96, shift="rand-color", seed=7, out=out)
    simulator = PushT(shift="rand-color")
    for episode, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        simulator.set_appearance(appearance_seed(7, episode))
        for row in range(begin, end):
            simulator.set_state(states[row])
            assert np.array_equal(simulator.observe().images["top"], out[row])


def test_appearance_seed_is_pinned() -> None:
    assert appearance_seed(0, 0) == int(np.random.SeedSequence([0, 0]).generate_state(1)[0])
    assert len({appearance_seed(s, e) for s in range(20) for e in range(50)}) == 1000


def test_rendering_refuses_wrong_shapes() -> None:
    states, ends = demonstrations()
    out = np.empty((32, 96, 96, 3), dtype=np.uint8)
    with pytest.raises(DataError, match=r"expected an output of shape \(33, "):
        render_states("pusht", states, ends, image_size=96, shift="fixed-color", seed=0, out=out)
    with pytest.raises(DataError, match=r"expected states of shape \(33, 5\) to render, got \(33, 4\)"):
        render_states("pusht", states[:, :4], ends, image_size=96, shift="fixed-color", seed=0, out=out)
