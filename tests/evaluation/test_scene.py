"""What references see of a simulator's states, from states made by hand; no simulator is started."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classact.data.types import Demonstrations, Observation
from classact.errors import ConfigError, DataError
from classact.evaluation.scene import OnScene, Scene, scene_retrieval
from classact.policies import RetrievalConfig
from classact.policies.base import FunctionPolicy, PolicySpec
from classact.policies.latents import NumberLatents, load_latents
from classact.sims import simulator_spec

TASK = "three-stack-d0"
SPEC = simulator_spec(TASK)
A, B, C = (0.0, 0.0, 0.82), (0.1, 0.0, 0.825), (-0.1, 0.1, 0.82)


def state(**cubes: tuple[float, float, float]) -> Any:
    made = np.zeros(SPEC.state_dim)
    for name, first in SPEC.objects:
        made[first : first + 3] = cubes.get(name, {"cubeA": A, "cubeB": B, "cubeC": C}[name])
        made[first + 3] = 1.0  # not turned
    return made


def arm(place: tuple[float, float, float], opening: float = 0.04) -> Any:
    made = np.zeros(SPEC.proprioception_dim, np.float32)
    made[:3], made[3], made[7], made[-2:] = place, 1, 1, (opening, -opening)
    return made


def numbers(kind: str, hand: Any, **cubes: tuple[float, float, float]) -> Any:
    return Scene(TASK, kind).numbers(state(**cubes)[None], hand[None])[0]


def test_only_what_is_dealt_with_now_matters() -> None:
    free, elsewhere = arm((0.3, 0.3, 1.0)), {"cubeB": (0.2, 0.2, 0.825), "cubeC": (0.0, -0.1, 0.82)}
    assert np.array_equal(numbers("next", free), numbers("next", free, **elsewhere))
    assert not np.array_equal(numbers("whole", free), numbers("whole", free, **elsewhere))
    assert not np.array_equal(numbers("next", free), numbers("next", free, cubeA=(0.01, 0, 0.82)))
    # In the hand, where it goes matters, too.
    holding = arm((0.0, 0.0, 0.83), opening=0.02)
    assert not np.array_equal(numbers("next", holding), numbers("next", holding, cubeB=(0.2, 0.2, 0.825)))
    assert np.array_equal(numbers("next", holding), numbers("next", holding, cubeC=(0.0, -0.1, 0.82)))
    # A lies on B and the hand has left: now it is C.
    stacked = {"cubeA": (0.1, 0.0, 0.87)}
    assert not np.array_equal(numbers("next", free, **stacked), numbers("next", free, **stacked, cubeC=(0, 0, 0.82)))
    moved = {"cubeA": (0.2, 0.0, 0.87), "cubeB": (0.2, 0.0, 0.825)}
    assert np.array_equal(numbers("next", free, **stacked), numbers("next", free, **moved))


def test_numbers_of_the_whole_scene_show_things_from_the_hand() -> None:
    found = numbers("whole", arm((0.3, 0.3, 1.0)))
    assert len(found) == SPEC.proprioception_dim + 3 * (3 + 6 + 3)
    assert np.allclose(found[SPEC.proprioception_dim + 9 :][:3], np.subtract(A, (0.3, 0.3, 1.0)))
    with pytest.raises(ConfigError, match="'whole' scene, or of what is 'next', got 'all'"):
        Scene(TASK, "all")
    with pytest.raises(ConfigError, match="simulator 'pusht' names no things"):
        Scene("pusht")


def demonstrations() -> Demonstrations:
    hands = [arm((0.01 * step, 0.0, 0.9)) for step in range(12)]
    assert SPEC.schema is not None
    return Demonstrations(
        "stack",
        np.array([6, 12]),
        np.concatenate([np.arange(24).reshape(12, 2), np.zeros((12, 8))], axis=1).astype(np.float32),
        np.array(hands),
        np.array([state() for _ in hands]),
        simulator=TASK,
    )


def test_policies_on_numbers_are_given_observations_of_the_simulator() -> None:
    scene, seen = Scene(TASK), []

    def act(timesteps: Any) -> Any:
        seen.extend(one.proprioception for (one,) in timesteps)
        return np.zeros((len(timesteps), 1, 10), np.float32)

    policy = OnScene(scene, FunctionPolicy(PolicySpec("reference", 1), act))
    hand = arm((0.3, 0.3, 1.0))
    assert policy.decide([Observation({}, hand, state()), [Observation({}, hand, state())]]).chunk.shape == (2, 1, 10)
    assert all(np.array_equal(one, numbers("whole", hand)) for one in seen)
    with pytest.raises(DataError, match="has no simulator state"):
        policy.decide([Observation({}, hand)])
    data = demonstrations()
    assert data.states is not None
    assert np.array_equal(scene.seen(data).proprioception, scene.numbers(data.states, data.proprioception))
    nearest = scene_retrieval(data, Scene(TASK, "next"), RetrievalConfig(k=1, chunk_length=2, horizon=4))
    (chunk,) = nearest.decide([Observation({}, arm((0.0212, 0.001, 0.9)), state())]).chunk
    assert chunk[:, :2].tolist() == [[4, 5], [6, 7]]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_cosines_fall_with_half_the_squared_distance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(30, 4)).astype(np.float32)
    data = Demonstrations("numbers", np.array([30]), np.zeros((30, 1), np.float32), values)
    latents = NumberLatents.fit(data)
    near = values[0] + 0.01 * rng.normal(size=(2, 4)).astype(np.float32)
    z, (one, two) = latents.demonstrations(data), latents.observations([Observation({}, row) for row in near])
    assert np.allclose(np.linalg.norm(z, axis=1), 1, atol=1e-6)
    expected = 1 - ((near.astype(np.float64)[0] - near[1]) / latents.radius) @ (near[0] - near[1]) / latents.radius / 2
    assert float(one @ two) == pytest.approx(expected, abs=2e-5)
    order = np.argsort(np.linalg.norm(values - near[0], axis=1))
    assert np.argmax(z @ one) == order[0]
    again: Any = load_latents(type(latents).from_json(latents.to_json(), "latents"), None)  # type: ignore[arg-type]
    assert again == latents
