from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fakes
from classact.data.actions import ActionSpace
from classact.data.schema import PROPRIOCEPTION, Schema, check_images
from classact.data.types import Demonstrations, Observation
from classact.errors import CheckpointError, ConfigError, DataError
from classact.utils.codec import from_json, to_json

POSE = ActionSpace.pose()
SCHEMA = Schema(("front", "wrist"), (("arm", 3), ("gripper", 1)), language=4, actions=POSE)
IMAGE = np.zeros((6, 8, 3), np.uint8)
IMAGES = {"front": IMAGE, "wrist": IMAGE}
PARTS: dict[str, Any] = {"gripper": 0.5, "arm": [1, 2, 3]}  # any order, any kind of numbers
WORDS = np.arange(4, dtype=np.float32)


# The declaration


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cameras": ("a", "b", "a")}, r"camera 'a' is declared 2 times, expected once"),
        ({"proprioception": (("q", 1), ("q", 2))}, r"proprioception key 'q' is declared 2 times"),
        ({"proprioception": (("q", 0),)}, r"proprioception key 'q': expected a size of at least 1, got 0"),
        ({"language": -1}, r"expected a language embedding of size >= 0, got -1"),
    ],
)
def test_what_cannot_be_declared(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Schema(**options)


def test_columns_are_those_of_the_keys_in_the_order_asked() -> None:
    schema = Schema(proprioception=(("arm", 3), ("gripper", 1), ("force", 2)))
    assert (schema.keys, schema.proprioception_dim) == (("arm", "gripper", "force"), 6)
    assert schema.columns().tolist() == [0, 1, 2, 3, 4, 5]
    assert schema.columns(("force", "arm")).tolist() == [4, 5, 0, 1, 2]
    assert schema.columns(()).tolist() == Schema().columns().tolist() == []
    assert schema.columns(()).dtype == np.int64
    with pytest.raises(
        ConfigError, match=r"unknown proprioception key 'torque': available are 'arm', 'force', 'gripper'"
    ):
        schema.columns(("arm", "torque"))


def test_through_json() -> None:
    for schema in (SCHEMA, Schema(), Schema(("top",), actions=ActionSpace.pose("l", "r", convention="columns"))):
        assert from_json(Schema, json.loads(json.dumps(to_json(schema))), "file") == schema


@pytest.mark.parametrize(
    "change",
    [
        lambda card: card.pop("cameras"),
        lambda card: card.pop("actions"),
        lambda card: card.update(language="many"),
        lambda card: card.update(language=-2),
        lambda card: card.update(proprioception=[["arm"]]),
        lambda card: card.update(proprioception=[["arm", 0]]),
    ],
)
def test_what_json_refuses(change: Any) -> None:
    card = to_json(SCHEMA)
    change(card)
    with pytest.raises(CheckpointError, match=r"some/policy[^ ]*: .*(expected|missing)"):
        from_json(Schema, card, "some/policy", error=CheckpointError)


def test_a_damaged_action_space_names_the_file() -> None:
    card = to_json(SCHEMA) | {"actions": {"parts": []}}
    with pytest.raises(CheckpointError, match=r"some/policy\.actions: "):
        from_json(Schema, card, "some/policy", error=CheckpointError)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"proprioception": (("arm", 3),)}, r"proprioception .*\('gripper', 1\)\] here, \[\('arm', 3\)\] there"),
        ({"proprioception": (("gripper", 1), ("arm", 3))}, r"proprioception .* here"),
        ({"language": 0}, r"language embedding of size 4 here, 0 there"),
        ({"actions": ActionSpace.joints(9)}, r"actions .* here, .*joint.* there"),
    ],
)
def test_difference_in_words(change: dict[str, Any], words: str) -> None:
    other = replace(SCHEMA, **change)
    assert re.search(words, SCHEMA.difference(other))
    assert other.difference(SCHEMA)


def test_what_one_does_not_declare_is_no_difference() -> None:
    for change in ({"actions": None}, {"proprioception": ((PROPRIOCEPTION, SCHEMA.proprioception_dim),)}):
        other = replace(SCHEMA, **change)
        assert (SCHEMA.difference(other), other.difference(SCHEMA)) == ("", "")
    larger = replace(SCHEMA, proprioception=((PROPRIOCEPTION, SCHEMA.proprioception_dim + 1),))
    assert "proprioception" in SCHEMA.difference(larger)


def test_other_cameras_are_no_difference() -> None:
    assert SCHEMA.difference(replace(SCHEMA, cameras=("side",))) == ""


# What data assume


def rows(D: int, steps: int = 5) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(steps, D)).astype(np.float32)


def data(actions: np.ndarray, **options: Any) -> Demonstrations:
    return Demonstrations("d", np.array([2, len(actions)]), actions, rows(3), **options)


def pose_actions() -> np.ndarray:
    return POSE.orthogonalize(rows(10))


def test_what_is_assumed_where_nothing_is_declared() -> None:
    plane = data(rows(2), images={"top": np.zeros((5, 4, 4, 3), np.uint8)}).schema
    assert plane == Schema(("top",), ((PROPRIOCEPTION, 3),), actions=ActionSpace.points())
    assert data(rows(7)).schema.actions is None  # seven numbers mean several things
    assert data(pose_actions()).schema.actions == POSE
    assert data(rows(10)).schema.actions is None  # ten numbers, of which six are no rotation
    spoken = data(rows(2), language=rows(6, 2))
    assert spoken.schema.language == 6
    assert Schema.assumed((), 0, 2).proprioception == ()


def test_what_was_assumed_is_said() -> None:
    assert plane_assumption() in data(rows(2)).schema.assumption
    assert "7 action dimensions can mean several things" in data(rows(7)).schema.assumption
    refused = data(rows(10)).schema.assumption
    assert re.search(r"although 10 dimensions can be poses: .* at index \[0\] is no 6-D rotation", refused)
    assert Schema.assumed((), 3, 10).actions == POSE  # without values their number has to do
    declared = data(rows(2), schema=Schema((), (("arm", 3),)))
    assert declared.schema.assumption == ""
    # It says where a schema comes from, not what it is.
    schema = data(rows(2)).schema
    assert schema == replace(schema, assumption="")
    assert "assumption" not in to_json(schema)
    assert data(rows(2)).with_images({"side": np.zeros((5, 4, 4, 3), np.uint8)}).schema.assumption == schema.assumption


def plane_assumption() -> str:
    return "assumed from D = 2: action space 'point', 0:2 point"


def test_declared_poses_are_checked_when_they_are_read() -> None:
    schema = Schema((), (("arm", 3),), actions=POSE)
    assert data(pose_actions(), schema=schema).schema == schema
    wrong = pose_actions()
    wrong[3, 3:9] *= 2
    with pytest.raises(DataError, match=r"d \(memory\): rotation \(dimensions 3:9\) at index \[3\] is no 6-D rotation"):
        data(wrong, schema=schema)


def test_what_is_declared_stays() -> None:
    declared = Schema((), (("arm", 2), ("gripper", 1)), actions=ActionSpace.joints(9))
    made = data(rows(10), schema=declared)
    assert made.schema == declared
    assert made.subset([1]).schema == declared
    seen = made.with_images({"side": np.zeros((5, 4, 4, 3), np.uint8)})
    assert seen.schema == replace(declared, cameras=("side",))  # a view that was rendered later joins the others
    assert seen.with_images({}).schema.cameras == ("side",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"schema": Schema((), (("arm", 4),))},
            r"d \(memory\): the schema declares 4 dimensions of proprioception \(arm 4\), the data have 3",
        ),
        ({"schema": Schema(("top",))}, r"declares 0 dimensions of proprioception \(none\), the data have 3"),
        (
            {"schema": Schema((), (("arm", 3),), language=5)},
            r"declares a language embedding of size 5, the data have one of 0",
        ),
        (
            {"schema": Schema((), (("arm", 3),)), "language": rows(5, 2)},
            r"declares a language embedding of size 0, the data have one of 5",
        ),
        (
            {"schema": Schema((), (("arm", 3),), actions=ActionSpace.joints(6))},
            r"declares actions of 7 dimensions \(.*\), the data have 2",
        ),
        ({"language": rows(5, 3)}, r"expected language of shape \(2, D\), got \(3, 5\)"),
        ({"language": rows(5, 2) * np.nan}, r"language\[0, 0\] is nan"),
    ],
)
def test_data_that_are_not_as_declared(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        data(rows(2), **options)


# Observations


def test_an_observation_from_values_by_key() -> None:
    seen = Observation.of(SCHEMA, IMAGES, PARTS, state=[1, 2], language=WORDS.tolist())
    assert_array_equal(seen.proprioception, np.float32([1, 2, 3, 0.5]))
    assert seen.proprioception.dtype == np.float32
    assert seen.state is not None
    assert seen.language is not None
    assert (seen.state.dtype, seen.language.dtype) == (np.float64, np.float32)
    assert seen.images is IMAGES
    SCHEMA.check(seen.images, seen.proprioception, seen.language, cameras=SCHEMA.cameras)
    assert Observation.of(Schema(), {}, {}).proprioception.shape == (0,)
    blind = Observation.of(SCHEMA, {}, PARTS, language=WORDS)  # which cameras are needed, the policy says
    with pytest.raises(DataError, match=r"lacks camera 'front'; there are no images, needed are \['front', 'wrist'\]"):
        SCHEMA.check(blind.images, blind.proprioception, blind.language, cameras=SCHEMA.cameras)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"arm": [1, 2, 3]}, r"lacks proprioception 'gripper'; there are \['arm'\], declared are \['arm', 'gripper'\]"),
        ({}, r"lacks proprioception 'arm'; there are none, declared"),
        (PARTS | {"force": 1}, r"proprioception 'force' is not declared; declared are \['arm', 'gripper'\]. Leave it"),
        (PARTS | {"arm": [1, 2]}, r"proprioception 'arm' has 2 numbers, declared are 3"),
        (PARTS | {"gripper": []}, r"proprioception 'gripper' has 0 numbers, declared are 1"),
        (PARTS | {"gripper": np.nan}, r"proprioception \['arm', 'gripper'\]: number 3 is nan, expected finite"),
        (PARTS | {"arm": [0, np.inf, 0]}, r"number 1 is inf"),
    ],
)
def test_proprioception_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Observation.of(SCHEMA, IMAGES, parts, language=WORDS)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 6, 8), np.uint8), r"got \(3, 6, 8\)\. Channels are first: transpose to \(H, W, 3\)"),
        (np.zeros((6, 8, 1), np.uint8), r"got \(6, 8, 1\)\. It has 1 channels: convert to RGB"),
        (np.zeros((6, 8, 4), np.uint8), r"got \(6, 8, 4\)\. It has 4 channels: convert to RGB"),
        (np.zeros((6, 8), np.uint8), r"got \(6, 8\)\.$"),
        (np.zeros((1, 6, 8, 3), np.uint8), r"got \(1, 6, 8, 3\)\.$"),
        ([[0]], r"got list"),
        (np.zeros((6, 8, 3), np.float32), r"uint8 values 0\.\.255, got float32\. If they are 0\.\.1, multiply"),
        (np.zeros((6, 8, 3), np.int64), r"got int64"),
        (np.zeros((0, 0, 3), np.uint8), r"with H >= 1 and W >= 1, got \(0, 0, 3\), which has no pixels"),
        (np.zeros((6, 0, 3), np.uint8), r"got \(6, 0, 3\), which has no pixels"),
    ],
)
def test_images_refused(image: Any, message: str) -> None:
    with pytest.raises(DataError, match=r"observation: camera 'wrist': expected.*" + message):
        Observation.of(SCHEMA, {"front": IMAGE, "wrist": image}, PARTS, language=WORDS)


@pytest.mark.parametrize(
    ("images", "count", "message"),
    [
        (np.zeros((2, 3, 6, 8), np.uint8), 2, r"got \(2, 3, 6, 8\)\. Channels are first: transpose to \(2, H, W, 3\)"),
        (np.zeros((2, 3, 6, 8), np.uint8), None, r"Channels are first: transpose to \(N, H, W, 3\)"),
        (np.zeros((2, 6, 8, 4), np.uint8), None, r"It has 4 channels: convert to RGB"),
        (
            np.zeros((6, 8, 3), np.uint8),
            None,
            r"expected images of shape \(N, H, W, 3\), one RGB frame .* got \(6, 8, 3\)",
        ),
        (np.zeros((2, 6, 8, 3), np.uint8), 3, r"expected images of shape \(3, H, W, 3\), .* got \(2, 6, 8, 3\)"),
        (np.zeros((2, 0, 8, 3), np.uint8), 2, r"got \(2, 0, 8, 3\), which has no pixels"),
        (np.zeros((2, 6, 8, 3)), 2, r"expected uint8 values 0\.\.255, got float64\. If they are 0\.\.1, multiply"),
        (None, 2, r"got NoneType"),
    ],
)
def test_recorded_images_refused(images: Any, count: int | None, message: str) -> None:
    with pytest.raises(DataError, match=r"here: .*" + message):
        check_images(images, "here", count)


def test_images_accepted() -> None:
    for count in (0, 1, 3):
        check_images(np.zeros((count, 1, 2, 3), np.uint8), "here")
        check_images(np.zeros((count, 1, 2, 3), np.uint8), "here", count)


@pytest.mark.parametrize(
    ("language", "message"),
    [
        (None, r"lacks the instruction's embedding \(4 numbers\), which this data's schema declares\. Pass"),
        (WORDS[:3], r"language: expected 4 numbers, shape \(4,\), got \(3,\)"),
        (WORDS[None], r"language: expected 4 numbers, shape \(4,\), got \(1, 4\)"),
        (WORDS * np.float32(np.nan), r"language: number 0 is nan"),
    ],
)
def test_language_refused(language: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Observation.of(SCHEMA, IMAGES, PARTS, language=language)


def test_a_vector_without_a_shape() -> None:
    with pytest.raises(DataError, match=r"here: proprioception .*: expected \d+ numbers, shape \(\d+,\), got list"):
        SCHEMA.check({}, [1.0, 2.0], WORDS, where="here")


def test_every_step_of_a_recording_is_an_observation_of_its_schema() -> None:
    recorded = fakes.demonstrations(lengths=(6, 4))
    for row in range(recorded.num_steps):
        images = {camera: array[row] for camera, array in recorded.images.items()}
        recorded.schema.check(images, recorded.proprioception[row], cameras=recorded.schema.cameras)
