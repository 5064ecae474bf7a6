"""Pictures behind a report of a task that is not Push-T: several cameras, a view that moves, actions not in a plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fakes
from classact.cli.doctor import hold_action
from classact.data.images import ImageStore, resize_images
from classact.data.lowdim import LowDim
from classact.data.types import Demonstrations, FloatArray
from classact.data.video import read_video
from classact.evaluation.config import EvaluationConfig
from classact.evaluation.rollout import evaluate
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.policies import ImageLatents, RetrievalConfig, RetrievalPolicy
from classact.run import analysis
from classact.run.config import FramesConfig
from classact.run.folder import Run
from classact.run.frames import needs_rendering, prepare_frames
from classact.sims import make_simulator
from classact.sims.rendering import appearance_seed
from classact.utils.storage import read_arrays, read_json
from simulators import need

CAMERAS = ("top", "angle")
LENGTHS = (6, 4)


@pytest.fixture(scope="module")
def demonstrations() -> Demonstrations:
    """Arms that wobble where they are, without pictures."""
    need("aloha-transfer")
    simulator = make_simulator("aloha-transfer", image_size=64)
    states, seen, actions = [], [], []
    for seed, length in enumerate(LENGTHS):
        simulator.reset(seed)
        rng = np.random.default_rng(seed)
        hold = hold_action(simulator)
        for _ in range(length):
            states.append(simulator.get_state())
            seen.append(simulator.observe(render=False).proprioception)
            actions.append((hold + rng.normal(0, 0.05, 14)).astype(np.float32))
            simulator.step(actions[-1])
    schema = simulator.spec.schema
    simulator.close()
    assert schema is not None
    return Demonstrations(
        name="wobble",
        episode_ends=np.cumsum(LENGTHS, dtype=np.int64),
        actions=np.stack(actions),
        proprioception=np.stack(seen),
        states=np.stack(states),
        images={},
        schema=replace(schema, cameras=CAMERAS),
    )


def same(shown: np.ndarray, expected: np.ndarray) -> bool:
    return np.array_equal(shown, resize_images(expected[None], analysis.PICTURE)[0])


def test_pictures_of_a_task_with_moving_views(demonstrations: Demonstrations, tmp_path: Path) -> None:
    frames = FramesConfig(simulator="aloha-transfer", shift="rotation", render_size=64, seed=3, workers=1)
    data = prepare_frames(demonstrations, CAMERAS, 32, frames, store=ImageStore(tmp_path / "store"))
    encoder = ImageEncoder(EncoderConfig(width=0.25, image_size=32, crop_size=28, cameras=CAMERAS))
    latents = ImageLatents(encoder, LowDim.fit(data))
    policy = RetrievalPolicy.build(latents, data, RetrievalConfig(k=4, chunk_length=2))
    config = EvaluationConfig(episodes=2, shift="rotation", image_size=64, max_steps=8, workers=1)
    results = evaluate(policy, "aloha-transfer", config)
    run = Run(tmp_path / "run")
    analysis.write_neighbors(run, policy, data, frames, results, "aloha-transfer", config, queries=2)
    arrays = read_arrays(run.analysis / "neighbors.safetensors")
    assert "world" not in arrays
    assert arrays["query_chunk"].shape == (2, 2, 14)

    def picture(seed: int, state: np.ndarray, step: int) -> np.ndarray:
        sim = make_simulator("aloha-transfer", image_size=64, shift="rotation", cameras=CAMERAS[:1])
        sim.set_appearance(seed)
        sim.set_state(state, step=step)
        image = sim.observe().images[CAMERAS[0]]
        sim.close()
        return image

    starts: Sequence[int] = (0, *data.episode_ends)
    assert data.states is not None
    for q in range(2):
        seed, step = int(arrays["query_seed"][q]), int(arrays["query_step"][q])
        (result,) = (r for r in results if r.seed == seed)
        assert same(arrays["query_images"][q], picture(seed, result.states[step], step))
        for k in range(4):
            episode, step = int(arrays["episode"][q, k]), int(arrays["step"][q, k])
            state = data.states[starts[episode] + step]
            assert same(arrays["neighbor_images"][q, k], picture(appearance_seed(3, episode), state, step))

    # Videos show the picture turn as it turned then.
    analysis.write_videos(run, results, "retrieval", "success", "aloha-transfer", config)
    rows = read_json(run.analysis / "videos" / "videos.json")
    assert [row["coverage"] for row in rows] == [None] * 3
    film = read_video(run.analysis / "videos" / rows[0]["file"])
    (result,) = (r for r in results if r.seed == rows[0]["seed"])
    assert len(film) == 5  # of 9 states every second one
    for index, shown in enumerate(film):
        expected = picture(result.seed, result.states[2 * index], 2 * index)
        other = picture(result.seed, result.states[2 * index], 2 * index + 60)
        near, far = (np.abs(shown.astype(int) - image).mean() for image in (expected, other))
        assert near < far / 2  # lossy


@pytest.mark.parametrize("revisit", [None, 0.5])
def test_reasons_are_those_of_the_rollout_and_heads_are_asked_the_same(tmp_path: Path, revisit: float | None) -> None:
    data = fakes.demonstrations()
    encoder = ImageEncoder(EncoderConfig(width=0.25, image_size=32, crop_size=28, cameras=("top",)))
    latents = ImageLatents(encoder, LowDim.fit(data))
    policy = RetrievalPolicy.build(
        latents, data, RetrievalConfig(k=3, temperature=1.0, chunk_length=2, revisit=revisit)
    )
    config = EvaluationConfig(episodes=2, max_steps=30, workers=1)
    results = evaluate(policy, "pusht", config)
    run, head = Run(tmp_path / "run"), Run(tmp_path / "run" / "heads" / "chase")
    recorded = FramesConfig(source="recorded", workers=1)
    assert not needs_rendering(data, "top", recorded)
    analysis.write_neighbors(run, policy, data, None, results, "pusht", config, queries=2)
    arrays = read_arrays(run.neighbors)
    for q in range(2):
        (result,) = (r for r in results if r.seed == int(arrays["query_seed"][q]))
        step = int(arrays["query_step"][q])
        # What was done, not a guess; rounded otherwise, for here there is one episode in a batch.
        assert_allclose(arrays["query_chunk"][q], result.actions[step : step + 2], rtol=1e-5)
        assert (arrays["weights"][q].max() == 1) == (revisit is not None)  # cosines of this encoder are all above 0.5
        assert (arrays["visits"][q] > 0) == (revisit is not None)

    asked: list[Any] = []

    class Asked(fakes.Acts):
        cameras = ("top",)

        def act(self, observations: Any) -> FloatArray:
            asked.extend(observations)
            return np.full((len(observations), 4, 2), 7, np.float32)

    analysis.write_head_chunks(run, head, Asked())
    assert_array_equal(read_arrays(head.chunks)["chunks"], np.full((2, 4, 2), 7))
    assert_array_equal(read_arrays(head.chunks)["query_step"], arrays["query_step"])
    shown = policy.latents.observations(asked)
    sim = make_simulator("pusht", image_size=config.image_size)
    for q, z in enumerate(shown):
        (result,) = (r for r in results if r.seed == int(arrays["query_seed"][q]))
        sim.reset(result.seed)
        sim.set_state(result.states[int(arrays["query_step"][q])])
        assert_allclose(policy.latents.observations([sim.observe()])[0], z, atol=1e-5)
    sim.close()
    other = Run(tmp_path / "run" / "heads" / "watchful")
    analysis.write_head_chunks(run, other, fakes.WatchfulPolicy())
    assert not other.chunks.exists()  # it decides from two observations, and one is kept
    analysis.write_head_chunks(Run(tmp_path / "none"), other, Asked())
    assert not other.chunks.exists()


def test_recorded_pictures_are_shown_as_the_encoder_saw_them(tmp_path: Path) -> None:
    """Data with states and images of another appearance: nothing is to be drawn again."""
    rng = np.random.default_rng(0)
    states = np.concatenate([rng.uniform(60, 440, (9, 4)), rng.uniform(0, 6, (9, 1))], axis=1)
    recorded = Demonstrations(
        name="pushes",
        episode_ends=np.array([5, 9]),
        actions=states[:, :2].astype(np.float32),
        proprioception=states[:, :2].astype(np.float32),
        states=states,
        images={"top": rng.integers(0, 256, (9, 96, 96, 3), dtype=np.uint8)},
    )
    frames = FramesConfig(source="recorded", shift="rand-color", seed=5, workers=1)
    data = prepare_frames(recorded, ("top",), 32, frames, store=ImageStore(tmp_path / "store"))
    encoder = ImageEncoder(EncoderConfig(width=0.25, image_size=32, crop_size=28, cameras=("top",)))
    policy = RetrievalPolicy.build(ImageLatents(encoder, LowDim.fit(data)), data, RetrievalConfig(k=3, chunk_length=2))
    config = EvaluationConfig(episodes=1, shift="rand-color", max_steps=4, workers=1)
    results = evaluate(policy, "pusht", config)
    run = Run(tmp_path / "run")
    assert not needs_rendering(recorded, "top", frames)
    analysis.write_neighbors(run, policy, data, None, results, "pusht", config, queries=1)
    arrays = read_arrays(run.analysis / "neighbors.safetensors")
    for k in range(3):
        row = (0, 5)[int(arrays["episode"][0, k])] + int(arrays["step"][0, k])
        assert same(arrays["neighbor_images"][0, k], np.asarray(data.images["top"][row]))
        assert np.array_equal(data.images["top"][row], resize_images(recorded.images["top"][[row]], 32)[0])
