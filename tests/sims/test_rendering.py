from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

import flawed_worker
from classact.data.types import ImageArray
from classact.errors import ConfigError, SimulatorError
from classact.sims import make_simulator, rendering
from classact.sims.rendering import appearance_seed, render_states

ENDS = np.array([3, 10, 12, 20, 21, 33, 35, 36, 40], np.int64)  # three tasks


@pytest.fixture(scope="module")
def states() -> np.ndarray:
    rng = np.random.default_rng(2)
    return np.concatenate([rng.uniform(60, 440, (40, 4)), rng.uniform(0, 6, (40, 1))], axis=1)


def rendered(states: np.ndarray, out: ImageArray | None = None, workers: int = 2) -> ImageArray:
    out = np.zeros((40, 96, 96, 3), np.uint8) if out is None else out
    seen: list[int] = []
    render_states(
        "pusht",
        states,
        ENDS,
        image_size=96,
        shift="rand-color",
        seed=7,
        out=out,
        workers=workers,
        progress=lambda done, _: seen.append(done),
    )
    assert seen == sorted(seen)
    assert seen[-1] == 40
    return out


@pytest.fixture(scope="module")
def expected(states: np.ndarray) -> ImageArray:
    return rendered(states, workers=1)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_dead_process_is_replaced(
    mapped: bool, states: np.ndarray, expected: ImageArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "died"
    monkeypatch.setattr(rendering, "_worker", partial(flawed_worker.render, "kill", str(marker)))
    out = np.memmap(tmp_path / "out", np.uint8, "w+", shape=expected.shape) if mapped else None
    assert np.array_equal(rendered(states, out), expected)
    assert marker.exists()


def test_hung_processes_are_ended_and_replaced(
    states: np.ndarray, expected: ImageArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "hung"
    monkeypatch.setattr(rendering, "TIMEOUT", 15.0)  # in which a process also has to start
    monkeypatch.setattr(rendering, "_worker", partial(flawed_worker.render, "hang", str(marker)))
    assert np.array_equal(rendered(states), expected)
    assert marker.exists()


def test_processes_that_always_die_are_one_clear_error(states: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_worker", flawed_worker.die)
    with pytest.raises(
        SimulatorError,
        match=r"pusht: 3 rendering processes were lost with the same frames, the last one: it died \(exit code 3\); "
        r"0 of 40 frames are done\..* fewer workers than 2",
    ):
        rendered(states)


def test_steps_and_camera_reach_the_simulator(states: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    class Monitored:
        def __init__(self, _: str, **options: object) -> None:
            calls.append(options.get("cameras", "probe"))
            self.sim = make_simulator("pusht")
            self.spec, self.close, self.observe = self.sim.spec, self.sim.close, self.sim.observe

        def set_appearance(self, seed: int) -> None:
            calls.append(seed)

        def set_state(self, state: np.ndarray, *, step: int) -> None:
            calls.append(step)
            self.sim.set_state(state)

    monkeypatch.setattr(rendering, "make_simulator", Monitored)
    out = np.zeros((12, 96, 96, 3), np.uint8)
    render_states("pusht", states[:12], ENDS[:3], image_size=96, shift="fixed-color", seed=7, out=out)
    seeds = [appearance_seed(7, episode) for episode in range(3)]
    assert calls == [("top",), seeds[0], *range(3), seeds[1], *range(7), seeds[2], *range(2)]


def test_unusable_settings(states: np.ndarray) -> None:
    settings = {"image_size": 96, "shift": "fixed-color", "seed": 0, "out": np.zeros((40, 96, 96, 3), np.uint8)}
    with pytest.raises(ConfigError, match="at least 1 rendering worker, got 0"):
        render_states("pusht", states, ENDS, **settings, workers=0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown camera 'wrist': available are 'top' in simulator 'pusht'"):
        render_states("pusht", states, ENDS, **settings, camera="wrist")  # type: ignore[arg-type]
