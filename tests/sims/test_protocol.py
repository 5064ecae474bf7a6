"""What every simulator of the registry promises, under each of its shifts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest

from classact.cli.doctor import hold_action
from classact.data.types import FloatArray, ImageArray, StateArray
from classact.errors import ActionError, ConfigError
from classact.sims import SIMULATORS, Simulator, make_simulator, simulator_spec
from classact.sims.shifts import SHIFTS, Appearance, Shift
from simulators import REQUIRED, absent, need

SIZES = {"pusht": 96}  # its smallest; that of the others, 32, shows too little of small objects
SIZE = 64
STEPS = 3


@contextmanager
def made(name: str, shift: str | None = None, cameras: Sequence[str] | None = None) -> Iterator[Simulator]:
    need(name)
    simulator = make_simulator(name, image_size=SIZES.get(name, SIZE), shift=shift, cameras=cameras)
    try:
        yield simulator
    finally:
        simulator.close()
        simulator.close()  # harmless


def actions(simulator: Simulator, seed: int) -> FloatArray:
    """(STEPS, D_a) about where it is, so that every task can follow."""
    spec = simulator.spec
    hold = hold_action(simulator)
    spread = 60.0 if spec.world is not None else 0.02
    return hold + np.random.default_rng(seed).uniform(-spread, spread, (STEPS, spec.action_dim)).astype(np.float32)


def run(simulator: Simulator, seed: int) -> tuple[list[StateArray], list[dict[str, ImageArray]]]:
    """States and pictures of a short episode."""
    simulator.reset(seed)
    states, pictures = [simulator.get_state()], [dict(simulator.observe().images)]
    for action in actions(simulator, seed):
        simulator.step(action)
        states.append(simulator.get_state())
        pictures.append(dict(simulator.observe().images))
    return states, pictures


def assert_same_pictures(one: dict[str, ImageArray], two: dict[str, ImageArray], what: str) -> None:
    assert one.keys() == two.keys()
    for camera, image in one.items():
        assert np.array_equal(image, two[camera]), f"{what}: camera {camera} shows another picture"


def test_a_simulator_that_must_be_here_fails_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name in SIMULATORS if absent(name)]
    assert "pusht" not in names
    for name in names:  # robosuite's or LIBERO's, at least: one environment cannot hold both
        monkeypatch.setenv(REQUIRED, "")
        with pytest.raises(pytest.skip.Exception, match=name):
            need(name)
        monkeypatch.setenv(REQUIRED, f"other {SIMULATORS[name].extra}")
        with pytest.raises(pytest.fail.Exception, match=f"asks for simulator '{name}'"):
            need(name)


@pytest.mark.parametrize("name", SIMULATORS)
def test_shapes_and_types(name: str) -> None:
    with made(name) as simulator:
        spec = simulator.spec
        assert spec.name == name
        assert SIMULATORS[name].plain == spec.shifts[0]
        simulator.reset(3)
        assert set(simulator.observe().images) == {spec.cameras[0]}
    with made(name, cameras=spec.cameras) as simulator:
        assert simulator.spec == spec == replace(simulator_spec(name), image_size=spec.image_size)
        simulator.reset(3)
        state, seen = simulator.get_state(), simulator.observe()
        assert (state.shape, state.dtype) == ((spec.state_dim,), np.float64)
        assert (seen.proprioception.shape, seen.proprioception.dtype) == ((spec.proprioception_dim,), np.float32)
        assert tuple(seen.images) == spec.cameras
        for image in seen.images.values():
            assert (image.shape, image.dtype) == ((spec.image_size, spec.image_size, 3), np.uint8)
            assert image.std() > 1
        for index, camera in enumerate(spec.cameras):
            for other in spec.cameras[:index]:
                assert not np.array_equal(seen.images[camera], seen.images[other])
        assert seen.state is not None
        assert np.array_equal(seen.state, state)
        assert simulator.observe(render=False).images == {}
        # What is declared, and nothing else, is observed.
        assert spec.schema is not None
        assert spec.schema.cameras == spec.cameras
        assert sum(size for _, size in spec.schema.proprioception) == spec.proprioception_dim
        assert spec.schema.actions is not None
        assert spec.schema.actions.dim == spec.action_dim
        assert (0 if seen.language is None else len(seen.language)) == spec.schema.language
        metrics = simulator.step(hold_action(simulator))
        assert {criterion.metric for criterion in spec.criteria} <= set(metrics)
        assert all(isinstance(value, float) for value in metrics.values())
        # No task is solved by standing still.
        assert not any(metrics[criterion.metric] > criterion.threshold for criterion in spec.criteria)
        assert metrics.get("excess", 0) == 0
        low, high = (np.array(limit) for limit in spec.action_limits)
        assert low.shape == high.shape == (spec.action_dim,)
        with pytest.raises(ActionError, match=rf"{name}: dimension \d+ of the action is .* beyond them"):
            simulator.step((high + 1.1 * (high - low)).astype(np.float32))
        for object_name, first in spec.objects:
            length = float(np.linalg.norm(state[first + 3 : first + 7]))
            assert abs(length - 1) < 1e-6, f"{object_name}: no quaternion at {first + 3} of the state"


@pytest.mark.parametrize("name", SIMULATORS)
def test_an_episode_is_its_seed_and_a_state_is_its_picture(name: str) -> None:
    starts = []
    with made(name) as probe:
        spec = probe.spec
        fresh, _ = run(probe, 3)
    for shift in spec.shifts:
        with made(name, shift, spec.cameras[:2]) as simulator:
            run(simulator, 8)  # what happened before must not matter
            states, pictures = run(simulator, 3)
            starts.append(states[0])
            assert np.array_equal(states, fresh), f"{shift}: seed 3 leads to other states than in a fresh simulator"
            assert not np.array_equal(states[0], states[-1])
            # Re-rendering equals live rendering; the step says where a moving camera is.
            run(simulator, 8)
            simulator.set_appearance(3)
            for step, (state, picture) in enumerate(zip(states, pictures, strict=True)):
                simulator.set_state(state, step=step)
                np.testing.assert_allclose(simulator.get_state(), state, rtol=0, atol=1e-12)
                assert_same_pictures(dict(simulator.observe().images), picture, f"{shift}, step {step}")
            # The appearance comes from its seed alone, and leaves the state as it is.
            simulator.set_state(states[1])
            shown = []
            for seed in (4, 5, 4):
                simulator.set_appearance(seed)
                shown.append(simulator.observe().images[spec.cameras[0]])
                np.testing.assert_allclose(simulator.get_state(), states[1], rtol=0, atol=1e-12)
            assert np.array_equal(shown[0], shown[2])
            assert np.array_equal(shown[0], shown[1]) is (shift == spec.shifts[0]), shift
    assert all(np.array_equal(start, starts[0]) for start in starts)
    with made(name) as simulator:
        simulator.reset(4)
        assert not np.array_equal(simulator.get_state(), starts[0])


@pytest.mark.parametrize("name", SIMULATORS)
def test_moving_shifts_move_with_the_step(name: str) -> None:
    with made(name) as probe:
        shifts = [shift for shift in probe.spec.shifts if shift in ("dynamic", "rotation")]
    for shift in shifts:
        with made(name, shift) as simulator:
            simulator.reset(3)
            state, shown = simulator.get_state(), []
            for step in (0, 100, 0):
                simulator.set_state(state, step=step)
                shown.append(next(iter(simulator.observe().images.values())))
            assert np.array_equal(shown[0], shown[2])
            assert not np.array_equal(shown[0], shown[1])


@dataclass(frozen=True)
class Darker(Shift, Appearance):
    """A shift of which no simulator has heard, and its appearance: darker with each step."""

    def draw(self, rng: np.random.Generator, target: Sequence[float] = (0.0, 0.0, 0.0)) -> Appearance:  # noqa: ARG002
        return self

    def image(self, image: ImageArray, step: int) -> ImageArray:
        return image // (2 + step)


@pytest.mark.parametrize("name", SIMULATORS)
def test_a_shift_of_the_picture_works_with_every_simulator(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHIFTS._entries, "darker", Darker())
    with made(name) as probe:
        cameras = probe.spec.cameras[:2]
    with made(name, cameras=cameras) as plain, made(name, "darker", cameras) as simulator:
        assert simulator.spec == plain.spec
        (states, seen), (expected, pictures) = run(simulator, 3), run(plain, 3)
        assert np.array_equal(states, expected)
        for step, (shown, picture) in enumerate(zip(seen, pictures, strict=True)):
            first, *others = cameras
            assert np.array_equal(shown[first], picture[first] // (2 + step))
            assert all(np.array_equal(shown[camera], picture[camera]) for camera in others)
        simulator.set_state(states[1], step=5)
        plain.set_state(states[1], step=5)
        assert np.array_equal(simulator.observe().images[first], plain.observe().images[first] // 7)
        assert simulator.observe(render=False).images == {}
        if hasattr(plain, "render"):
            assert np.array_equal(simulator.render(100), plain.render(100) // 7)  # type: ignore[attr-defined]
        if hasattr(plain, "look"):
            assert simulator.look == {**plain.look, "shift": {"kind": "Darker"}}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", SIMULATORS)
def test_bad_input(name: str) -> None:
    with made(name) as simulator:
        spec = simulator.spec
        with pytest.raises(ConfigError, match=r"expected a seed in 0\.\.4294967295, got -1"):
            simulator.reset(-1)
    for settings, message in (
        ({"image_size": 7}, "expected image_size in .* pixels, got 7"),
        ({"shift": "wobble"}, f"unknown shift 'wobble': available are .*'{spec.shifts[0]}'"),
        ({"cameras": ("behind",)}, f"unknown camera 'behind': available are .*'{spec.cameras[0]}'"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_simulator(name, **settings)  # type: ignore[arg-type]
