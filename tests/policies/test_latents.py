from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fakes
from classact.data.images import resize_images
from classact.data.lowdim import LowDim
from classact.data.normalize import MinMax
from classact.data.schema import Schema
from classact.data.types import Demonstrations, Observation
from classact.errors import DataError
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.policies import ImageLatents, RetrievalConfig, RetrievalPolicy, SceneLatents, StateLatents
from classact.policies.latents import Latents, LatentSettings, load_latents, unit
from classact.utils.codec import from_json, to_json

STATES = np.array([[100.0, 200, 300, 150, 1.0], [100, 200, 300, 150, 2.0], [101, 200, 300, 150, 1.0]])


def seen(state: np.ndarray) -> Observation:
    return Observation({}, state[:2].astype(np.float32), state)


def image_latents() -> ImageLatents:
    data = fakes.demonstrations()
    encoder = ImageEncoder(EncoderConfig(width=0.25, image_size=32, crop_size=28))
    return ImageLatents(encoder, LowDim.fit(data))


def test_unit() -> None:
    assert_array_equal(unit(np.float32([[3, 4], [0, 0]])), np.float32([[0.6, 0.8], [0, 0]]))


def test_state_latents_of_equal_states_are_equal_and_of_others_are_not() -> None:
    latents = StateLatents(256.0, 256.0, (4,))
    z = latents.observations([seen(state) for state in STATES])
    assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-6)
    similarity = z @ z.T
    assert_allclose(np.diag(similarity), 1, atol=1e-6)
    # A pixel of the agent is nearer than a radian of the block.
    assert similarity[0, 1] < similarity[0, 2] < 1


def test_state_latents_know_that_angles_wrap_around() -> None:
    latents = StateLatents(256.0, 256.0, (4,))
    turned = np.repeat(STATES[:1], 3, axis=0)
    turned[:, 4] = [1e-3, 2 * np.pi - 1e-3, np.pi]
    z = latents.observations([seen(state) for state in turned]).astype(np.float64)
    assert z[0] @ z[1] > 1 - 1e-5 > z[0] @ z[2]
    turned[1, 4] = turned[0, 4] + 2 * np.pi
    z = latents.observations([seen(state) for state in turned])
    assert_allclose(z[0], z[1], atol=1e-6)


def test_latents_of_a_recording_are_those_of_living_through_it() -> None:
    data = fakes.demonstrations()
    assert data.states is not None
    living = [
        Observation({"top": i}, p, s)
        for i, p, s in zip(data.images["top"], data.proprioception, data.states, strict=True)
    ]
    for latents in (image_latents(), StateLatents(256.0, 256.0, (4,))):
        assert_array_equal(latents.demonstrations(data), latents.observations(living))


def test_image_latents_resize_as_recordings_are_resized() -> None:
    data, latents = fakes.demonstrations(size=96, lengths=(6,)), image_latents()
    small = data.with_images({"top": resize_images(data.images["top"], 32)})
    assert_array_equal(latents.demonstrations(data), latents.demonstrations(small))


def test_two_views_and_an_instruction_end_to_end(tmp_path: Path) -> None:
    data = fakes.two_views(fakes.demonstrations(), language=3)
    assert data.language is not None
    both = EncoderConfig(width=0.25, image_size=32, crop_size=28, cameras=("top", "wrist"))
    latents = ImageLatents(ImageEncoder(both), LowDim.fit(data))
    z = latents.demonstrations(data)
    own = MinMax.fit(data.proprioception).apply(data.proprioception)
    images = latents.encoder.encode(data.images)
    assert_array_equal(z, unit(np.concatenate([images, own, data.language[data.episode_index()]], axis=1)))
    seen = fakes.observations(data, range(data.num_steps))
    assert_array_equal(latents.observations(seen), z)
    policy = RetrievalPolicy.build(latents, data, RetrievalConfig(k=1, chunk_length=4))
    rows = np.array([0, 29, 60, 100])
    chunk = policy.decide([seen[row] for row in rows]).chunk
    assert_allclose(chunk[:, 0], data.actions[rows], rtol=1e-5)  # what was done at these timesteps
    policy.save(tmp_path / "policy")
    loaded = RetrievalPolicy.load(tmp_path / "policy")
    assert_array_equal(loaded.decide([seen[row] for row in rows]).chunk, chunk)
    assert isinstance(loaded.latents, ImageLatents)
    assert loaded.latents.schema == data.schema
    # All that is seen counts.
    here = seen[29]
    changed = [
        replace(here, images=dict(here.images) | {"wrist": np.zeros_like(here.images["wrist"])}),
        replace(here, language=-np.asarray(here.language)),
        replace(here, proprioception=here.proprioception + 50),
    ]
    assert (loaded.latents.observations(changed) @ z[29] < 0.999).all()
    for bad, message in (
        (replace(here, images={"top": here.images["top"]}), r"lacks camera 'wrist'; there are \['top'\]"),
        (replace(here, language=None), r"lacks the instruction's embedding \(3 numbers\)"),
    ):
        with pytest.raises(DataError, match=f"observation 1 of 2: {message}"):
            loaded.decide([here, bad])
    plain = fakes.demonstrations()
    with pytest.raises(DataError, match=r"encoder reads camera 'wrist', available are \['top'\]"):
        latents.demonstrations(plain)
    with pytest.raises(DataError, match="of another schema: language embedding of size 3 here, 0 there"):
        latents.demonstrations(replace(data, language=None, schema=Schema()))


def test_observations_of_one_batch_have_images_of_one_size() -> None:
    data, latents = fakes.demonstrations(lengths=(6,)), image_latents()
    small, large = (Observation({"top": np.zeros((n, n, 3), np.uint8)}, data.proprioception[0]) for n in (32, 64))
    with pytest.raises(
        DataError, match=r"camera 'top': observations of one batch have images of sizes \[\(32, 32, 3\)"
    ):
        latents.observations([small, large])


def test_what_is_not_there_is_named() -> None:
    data = fakes.demonstrations()
    blind = Observation({}, data.proprioception[0], None)
    with pytest.raises(DataError, match=r"observation: lacks camera 'top'; there are no images, needed are \['top'\]"):
        image_latents().observations([blind])
    with pytest.raises(DataError, match=r"lacks camera 'top'; there are \['wrist'\], needed are \['top'\]"):
        image_latents().observations([replace(blind, images={"wrist": data.images["top"][0]})])
    with pytest.raises(DataError, match=r"an observation has no simulator state.*Use image latents"):
        StateLatents(256.0, 256.0, (4,)).observations([blind])
    with pytest.raises(DataError, match=r"walks \(memory\): has no simulator states"):
        StateLatents(256.0, 256.0, (4,)).demonstrations(replace(data, states=None))
    with pytest.raises(DataError, match=r"walks \(memory\): the encoder reads camera 'top', available are no cameras"):
        image_latents().demonstrations(data.with_images({}))
    with pytest.raises(
        DataError, match=r"proprioception \['proprioception'\]: expected 2 numbers, shape \(2,\), got \(3,\)"
    ):
        image_latents().observations([Observation({"top": data.images["top"][0]}, np.zeros(3, np.float32))])


def through_json(latents: Latents, folder: Path, **changes: Any) -> Latents:
    value = json.loads(json.dumps(to_json(latents.settings))) | changes
    return load_latents(from_json(LatentSettings, value, "policy.json"), folder)


def test_settings_make_the_same_latents(tmp_path: Path) -> None:
    latents = StateLatents(200.0, 100.0, (4,), angle_scale=0.3)
    again = through_json(latents, tmp_path)
    assert again == latents
    assert_array_equal(again.observations([seen(STATES[0])]), latents.observations([seen(STATES[0])]))
    with pytest.raises(DataError, match=r"policy.json: unknown kind of latents 'text': available are 'image', "):
        through_json(latents, tmp_path, kind="text")


def test_missing_statistics_are_an_error(tmp_path: Path) -> None:
    latents = image_latents()
    latents.encoder.save_pretrained(tmp_path / "encoder")
    for lowdim, message in (
        ({}, r"policy\.json\.lowdim: field 'schema' is missing"),
        (None, r"policy\.json\.lowdim: expected an object with the fields of LowDim, got None"),
        ({**to_json(latents.lowdim), "range": None}, r"lowdim\.range: expected an object with the fields of MinMax"),
    ):
        with pytest.raises(DataError, match=message):
            through_json(latents, tmp_path, lowdim=lowdim)
    with pytest.raises(DataError, match=r"policy.json: field 'lowdim' is missing"):
        from_json(LatentSettings, {"kind": "image", "bfloat16": False}, "policy.json")


def scene() -> tuple[SceneLatents, Demonstrations]:
    """Three steps of a task with one object, whose position and quaternion start at index 1 of the state."""
    states = np.zeros((3, 9))
    states[:, 1:4] = [[0.0, 0.2, 0.8], [0.4, 0.2, 0.8], [0.4, -0.2, 0.9]]
    states[:, 4] = 1  # w
    proprioception = np.float32([[0.0, 1.0], [0.5, 1.0], [1.0, 2.0]])
    data = Demonstrations("arm", np.array([3]), np.zeros((3, 2), np.float32), proprioception, states)
    return SceneLatents.fit(data, [("cube", 1)]), data


def test_scene_latents_see_where_objects_are_and_how_they_are_turned() -> None:
    latents, data = scene()
    assert data.states is not None
    live = [Observation({}, p, s) for p, s in zip(data.proprioception, data.states, strict=True)]
    z = latents.observations(live)
    assert_allclose(z, latents.demonstrations(data), atol=1e-6)
    similarity = z @ z.T
    assert (similarity[~np.eye(3, dtype=bool)] < 0.99).all()
    turned = data.states[0].copy()
    turned[4:8] = [np.cos(0.5), 0, 0, np.sin(0.5)]
    opposite = turned.copy()
    opposite[4:8] *= -1  # the same rotation
    first, second, third = latents.observations(
        [Observation({}, data.proprioception[0], s) for s in (data.states[0], turned, opposite)]
    )
    assert_allclose(second, third, atol=1e-6)
    assert first @ second < 0.99


def test_scene_latents_scale_all_positions_alike() -> None:
    latents, _ = scene()
    assert_allclose(latents.range.high - latents.range.low, 0.4, atol=1e-6)


def test_scene_latents_survive_their_settings(tmp_path: Path) -> None:
    latents, data = scene()
    again = through_json(latents, tmp_path)
    assert_array_equal(again.demonstrations(data), latents.demonstrations(data))


def test_scene_latents_need_states() -> None:
    latents, data = scene()
    with pytest.raises(DataError, match=r"arm \(memory\): has no simulator states, which state latents compare"):
        latents.demonstrations(replace(data, states=None))
    with pytest.raises(DataError, match="an observation has no simulator state"):
        latents.observations([Observation({}, data.proprioception[0])])
