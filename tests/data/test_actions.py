from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.transform import Rotation

from classact.data.actions import ACTION_SPACES, KINDS, ROTATION_MEANS, ActionSpace, Part
from classact.data.rotations import CONVENTIONS, axis_angle_to_matrix, geodesic_distance
from classact.data.rotations import matrix_to_rotation_6d as to_6d
from classact.data.rotations import rotation_6d_to_matrix as from_6d
from classact.data.schema import Schema
from classact.data.types import Demonstrations
from classact.errors import CheckpointError, ConfigError, DataError
from classact.utils.codec import from_json, to_json

POSE = ActionSpace.pose()
TWO = ActionSpace.pose("left", "right", convention="columns", gripper=2)
# Everything at once, out of the usual order; one arm has a rotation without position, one a position without rotation.
MIXED = ActionSpace(
    (
        Part("grip", "gripper", 1, "a"),
        Part("aim", "rotation_6d", arm="a"),
        Part("lift", "joint", 2),
        Part("at", "position", arm="b"),
        Part("turn", "rotation_6d", arm="c"),
        Part("hand", "position", arm="c"),
        Part("target", "point_2d"),
    )
)
SPACES = {name: ActionSpace.named(name) for name in ACTION_SPACES} | {"two": TWO, "mixed": MIXED}
SEEDS = st.integers(0, 2**32 - 1)


def actions(space: ActionSpace, seed: int, *shape: int, spread: float | None = None, dtype: Any = np.float64) -> Any:
    """Random actions (*shape, D); rotations uniform, or ``spread`` radians about one."""
    rng = np.random.default_rng(seed)
    out = rng.normal(size=(*shape, space.dim))
    count = int(np.prod(shape))
    for part, columns in space.layout():
        if part.kind == "rotation_6d":
            turns = Rotation.random(count, random_state=rng)
            if spread is not None:
                turns = turns[:1] * Rotation.from_rotvec(rng.normal(size=(count, 3)) * spread)
            out[..., columns] = to_6d(turns.as_matrix(), space.convention).reshape(*shape, 6)
    return out.astype(dtype)


# The declaration


def test_the_fields_layouts() -> None:
    assert {name: space.dim for name, space in SPACES.items() if name in ACTION_SPACES} == {
        "point": 2,
        "pose": 10,
        "two-arm-pose": 20,
        "joints-6": 7,
        "joints-7": 8,
        "aloha": 14,
        "two-arm-joints-7": 16,
    }
    assert POSE.describe() == "0:3 position, 3:9 rotation (rotation_6d, rows), 9:10 gripper"
    assert ActionSpace.named("two-arm-pose") == ActionSpace.pose("left", "right")
    columns = {part.name: (where.start, where.stop) for part, where in ActionSpace.pose("left", "right").layout()}
    assert columns["right_rotation"] == (13, 19)
    assert ActionSpace.named("aloha").describe().startswith("0:6 left_joints (joint), 6:7 left_gripper (gripper), 7:13")
    assert [part.name for part in ActionSpace.points(2).parts] == ["point_0", "point_1"]
    assert ActionSpace.pose(gripper=0).dim == 9
    assert ActionSpace.joints(7, gripper=0).dim == 7
    assert [name for name, space in SPACES.items() if space.has_rotations] == ["pose", "two-arm-pose", "two", "mixed"]


def test_dimensions_of_a_kind() -> None:
    assert_array_equal(np.flatnonzero(POSE.dimensions("rotation_6d")), np.arange(3, 9))
    assert_array_equal(sum(MIXED.dimensions(kind).astype(int) for kind in KINDS), np.ones(MIXED.dim))
    with pytest.raises(ConfigError, match="unknown kind 'rotation': available are 'effort', 'gripper', 'joint'"):
        POSE.dimensions("rotation")


@pytest.mark.parametrize("name", SPACES)
def test_json(name: str) -> None:
    space = SPACES[name]
    assert from_json(ActionSpace, json.loads(json.dumps(to_json(space))), "file") == space
    assert hash(space) == hash(from_json(ActionSpace, to_json(space), "file"))


@pytest.mark.parametrize(
    "value", [None, [], {}, {"parts": []}, to_json(POSE) | {"convention": "cols"}, to_json(POSE) | {"parts": [{}]}]
)
def test_json_of_something_else(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"x\.json[^ ]*: .*(expected|missing|unknown 6-D)"):
        from_json(ActionSpace, value, "x.json", error=CheckpointError)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), "at least 1 part of an action, got 0"),
        ((Part("x", "joint", 1), Part("x", "gripper", 1)), "action part 'x': the name occurs 2 times"),
        (
            (Part("x", "position"), Part("y", "position")),
            "the only arm has 2 parts of kind position, expected at most 1",
        ),
        ((Part("x", "rotation_6d", arm="l"), Part("y", "rotation_6d", arm="l")), "arm 'l' has 2 parts of kind rot"),
    ],
)
def test_spaces_that_make_no_sense(parts: tuple[Part, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ActionSpace(parts)


def test_parts_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="action part 'r': expected 6 dimensions of a rotation_6d, got 4"):
        Part("r", "rotation_6d", 4)
    with pytest.raises(ConfigError, match="action part 'j': expected at least 1 dimensions of a joint, got 0"):
        Part("j", "joint")
    with pytest.raises(ConfigError, match="action part 'q': unknown kind 'quaternion': available are 'effort'"):
        Part("q", "quaternion", 4)
    with pytest.raises(ConfigError, match="unknown 6-D rotation convention 'column'"):
        ActionSpace.pose(convention="column")
    with pytest.raises(ConfigError, match="unknown mean of rotations 'svd': available are 'chordal', 'gram_schmidt'"):
        ActionSpace.pose(rotation_mean="svd")
    with pytest.raises(ConfigError, match="unknown action space 'poses': available are 'aloha'"):
        ActionSpace.named("poses")


@pytest.mark.parametrize(("dim", "name"), [(2, "point"), (10, "pose"), (20, "two-arm-pose")])
def test_guess(dim: int, name: str) -> None:
    space, assumed = ActionSpace.guess(dim)
    assert space == ActionSpace.named(name)
    assert assumed.startswith(f"assumed from D = {dim}: action space '{name}', 0:")
    assert ("first two rows" in assumed) == space.has_rotations


@pytest.mark.parametrize(
    ("dim", "named"), [(7, r" \(joints-6 or another\)"), (8, r" \(joints-7 or"), (14, r" \(aloha or"), (9, ""), (0, "")]
)
def test_guess_refuses_what_is_ambiguous(dim: int, named: str) -> None:
    with pytest.raises(ConfigError, match=f"{dim} action dimensions can mean several things{named}.*only 2, 10, 20"):
        ActionSpace.guess(dim)


def test_arguments_are_left_alone() -> None:
    a = actions(POSE, 13, 2, 4)
    a.setflags(write=False)
    POSE.average(a[None], np.ones((1, 2)))
    POSE.orthogonalize(a)


# Averages


def transcription(chunks: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The released code, word by word, for one (K, T, 10) chunk: average, then rotation_6d_to_matrix."""
    mean = sum(w * c for w, c in zip(weights, chunks, strict=True)) / sum(weights)
    for step in mean:
        b1 = step[3:6] / np.linalg.norm(step[3:6])
        b2 = step[6:9] - (b1 @ step[6:9]) * b1
        step[3:6], step[6:9] = b1, b2 / np.linalg.norm(b2)
    return mean


def test_average_as_the_released_code_has_it() -> None:
    chunks, weights = actions(POSE, 0, 3, 8, 5, spread=0.4), np.random.default_rng(1).random((3, 8))
    expected = np.stack([transcription(c, w) for c, w in zip(chunks, weights, strict=True)])
    assert_allclose(POSE.average(chunks, weights), expected, atol=1e-13)
    found = POSE.average(chunks.astype(np.float32), weights.astype(np.float32))
    assert found.dtype == np.float32
    assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("mean", ROTATION_MEANS)
@pytest.mark.parametrize("convention", CONVENTIONS)
@given(seed=SEEDS)
def test_averages_are_rotations_and_everything_else_is_the_mean(convention: str, mean: str, seed: int) -> None:
    space = ActionSpace(MIXED.parts, convention, mean)
    chunks = actions(space, seed, 2, 6, 3, dtype=np.float32)  # rotations all over the place
    weights = np.random.default_rng(seed).random((2, 6)).astype(np.float32)
    found = space.average(chunks, weights)
    space.check_rotations(found)
    plain = ~space.dimensions("rotation_6d")
    expected = np.stack([np.average(c, axis=0, weights=w) for c, w in zip(chunks, weights, strict=True)])
    assert_allclose(found[..., plain], expected[..., plain], atol=1e-6)


@pytest.mark.parametrize("mean", ROTATION_MEANS)
def test_average_of_one_or_of_equals_is_itself(mean: str) -> None:
    space = ActionSpace.pose("left", "right", rotation_mean=mean)
    chunk = actions(space, 2, 4)
    assert_allclose(space.average(chunk[None], np.ones(1)), chunk, atol=1e-14)
    assert_allclose(space.average(np.repeat(chunk[None], 7, 0), np.arange(7.0)), chunk, atol=1e-14)
    others = actions(space, 3, 3, 4)
    assert_allclose(space.average(others, np.array([0, 1.0, 0])), others[1], atol=1e-14)


@given(seed=SEEDS)
def test_the_chordal_mean_depends_on_no_axes(seed: int) -> None:
    space = ActionSpace.pose(rotation_mean="chordal")
    chunks, weights = actions(space, seed, 6, 2, spread=0.5), np.random.default_rng(seed).random(6)
    left, right = (Rotation.random(random_state=np.random.default_rng(seed + i)).as_matrix() for i in (1, 2))

    def turned(a: np.ndarray) -> np.ndarray:
        return np.concatenate([a[..., :3], to_6d(left @ from_6d(a[..., 3:9]) @ right), a[..., 9:]], axis=-1)

    assert_allclose(space.average(turned(chunks), weights), turned(space.average(chunks, weights)), atol=1e-10)


def test_both_means_agree_within_a_few_degrees_and_chordal_is_nearer_to_the_intrinsic_mean() -> None:
    off: dict[str, list[float]] = {mean: [] for mean in ROTATION_MEANS}
    for spread in (0.03, 0.35):  # radians, about one axis: 2 and 20 degrees
        for seed in range(100):
            rng = np.random.default_rng(seed)
            axis = rng.normal(size=3)
            turns = Rotation.random(random_state=rng) * Rotation.from_rotvec(
                rng.normal(size=(64, 1)) * spread * axis / np.linalg.norm(axis) + rng.normal(size=(64, 3)) * spread / 10
            )
            weights = rng.dirichlet(np.full(64, 0.3))
            chunks = np.zeros((64, 1, 10))
            chunks[:, 0, 3:9] = to_6d(turns.as_matrix())
            karcher = turns[0]
            for _ in range(50):
                karcher = karcher * Rotation.from_rotvec(weights @ (karcher.inv() * turns).as_rotvec())
            for mean in ROTATION_MEANS:
                found = from_6d(ActionSpace.pose(rotation_mean=mean).average(chunks, weights)[0, 3:9])
                off[mean].append(float(geodesic_distance(karcher.as_matrix(), found)))
    degrees = {mean: np.degrees(np.reshape(values, (2, 100)).mean(axis=1)) for mean, values in off.items()}
    assert degrees["gram_schmidt"][0] < 0.1
    assert (degrees["chordal"] < 0.25 * degrees["gram_schmidt"]).all()
    assert degrees["gram_schmidt"][1] > 0.5


@pytest.mark.parametrize("mean", ROTATION_MEANS)
def test_opposite_rotations_have_no_mean_so_the_heaviest_is_taken(mean: str) -> None:
    space = ActionSpace.pose(rotation_mean=mean)
    chunks = np.zeros((2, 3, 10), np.float32)
    half_turns = np.array([[0, 0, 0], [0, 0, np.pi]])
    chunks[:, :, 3:9] = to_6d(axis_angle_to_matrix(half_turns))[:, None]
    chunks[1, 0, 3:9] = chunks[0, 0, 3:9]  # in the first step they agree
    chunks[:, :, 0] = [[1], [3]]
    found = space.average(chunks, np.array([0.5, 0.5], np.float32))
    space.check_rotations(found)
    assert_allclose(found[:, 0], 2)
    assert_allclose(found[:, 3:9], chunks[0, :, 3:9], atol=1e-6)
    heavier = space.average(chunks, np.array([0.5, 0.5 + 1e-6]))
    assert_allclose(heavier[1, 3:9], chunks[1, 1, 3:9], atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "weights", "message"),
    [
        ((4, 3, 10), np.ones(3), r"\(..., K, T, 10\) and weights of shape \(..., K\), got \(4, 3, 10\) and \(3,\)"),
        ((3, 10), np.ones(3), r"got \(3, 10\) and \(3,\)"),
        ((4, 3, 10), [1, 1, 1, 1], r"got \(4, 3, 10\) and list"),
        ((4, 3, 9), np.ones(4), r"expected actions of shape \(..., 10\), got \(4, 3, 9\)"),
        ((4, 3, 10), np.array([1, -1, 1, 1]), r"weights of at least 0 .* values from -1 to 1 and sums from 2"),
        ((4, 3, 10), np.zeros(4), r"values from 0 to 0 and sums from 0"),
        ((4, 3, 10), np.array([1, np.nan, 1, 1]), r"expected finite weights"),
        ((4, 3, 10), np.array([1, 1, 1, 1]), r"action part 'rotation': 6-D rotation .*is degenerate"),
    ],
)
def test_average_refuses(shape: tuple[int, ...], weights: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        POSE.average(np.zeros(shape), weights)


def test_orthogonalize() -> None:
    a = actions(TWO, 0, 3, 4)
    noisy = a.copy()
    noisy[..., TWO.dimensions("rotation_6d")] *= 1.3
    assert_allclose(TWO.orthogonalize(noisy), a, atol=1e-14)
    noisy += np.random.default_rng(0).normal(size=a.shape) * 0.1
    found = TWO.orthogonalize(noisy.astype(np.float32))
    TWO.check_rotations(found)
    plain = ~TWO.dimensions("rotation_6d")
    assert_array_equal(found[..., plain], noisy.astype(np.float32)[..., plain])


# Checks of recorded actions


def test_recorded_rotations_are_checked() -> None:
    POSE.check_rotations(actions(POSE, 0, 50, dtype=np.float32))
    a = actions(TWO, 1, 4)
    a[2, 14] += 0.2
    with pytest.raises(
        DataError, match=r"walks: right_rotation \(dimensions 14:20\) at index \[2\] is no 6-D rotation"
    ):
        TWO.check_rotations(a, "walks")
    with pytest.raises(DataError, match=r"have lengths 0 and 0 and inner product 0, expected 1, 1 and 0"):
        POSE.check_rotations(np.zeros((3, 10)))
    with pytest.raises(
        DataError, match=r"walks: expected actions of shape \(..., 10\), got \(4, 7\). The action space is"
    ):
        POSE.check_rotations(np.zeros((4, 7)), "walks")
    with pytest.raises(DataError, match="expected an array of float32 or float64, got int64"):
        POSE.check(np.zeros((4, 10), int))
    with pytest.raises(DataError, match=r"got \(\)"):
        POSE.check(np.array(1.0))


ANGLES = ActionSpace((Part("arm", "joint", 1), Part("wrist", "wrapped_angle", 2)))
TURN = 2 * np.pi


def as_one(angles: Any, other: Any, atol: float = 1e-5) -> None:
    assert_allclose(np.exp(1j * np.asarray(angles, np.float64)), np.exp(1j * np.asarray(other, np.float64)), atol=atol)


@given(seed=SEEDS, center=st.floats(-10, 10), double=st.booleans())
def test_angles_are_averaged_across_the_wrap(seed: int, center: float, double: bool) -> None:
    rng = np.random.default_rng(seed)
    offsets = rng.uniform(-1.5, 1.5, (5, 3, 2))
    weights = rng.random(5)
    turns = rng.integers(-2, 3, offsets.shape) * TURN
    chunks = np.concatenate([rng.normal(size=(5, 3, 1)), center + offsets + turns], axis=-1)
    chunks = chunks if double else chunks.astype(np.float32)
    found = ANGLES.average(chunks, weights)
    assert found.dtype == chunks.dtype
    w = weights / weights.sum()
    as_one(found[..., 1:], center + np.einsum("k,ktd->td", w, offsets))
    assert_allclose(found[..., 0], np.einsum("k,kt->t", w, chunks[..., 0]), rtol=1e-5, atol=1e-6)
    ensemble = ANGLES.average(chunks[:, :1], weights)
    assert_allclose(ensemble, found[:1], atol=1e-5)


@given(seed=SEEDS, center=st.floats(-np.pi, np.pi))
def test_recorded_angles_do_not_jump(seed: int, center: float) -> None:
    """However they were wrapped: distances and ranges are those of the motion."""
    rng = np.random.default_rng(seed)
    motion = center + rng.uniform(-1, 1, (30, 3))
    recorded = motion.copy()
    recorded[:, 1:] += rng.integers(-1, 2, (30, 2)) * TURN
    made = Demonstrations(
        "d",
        np.array([30]),
        recorded.astype(np.float32),
        np.zeros((30, 0), np.float32),
        schema=Schema(actions=ANGLES),
    )
    as_one(made.actions[:, 1:], motion[:, 1:])
    assert_allclose(np.ptp(made.actions, axis=0), np.ptp(motion, axis=0), atol=1e-5)
    again = replace(made, name="again")
    assert_allclose(again.actions, made.actions, atol=1e-5)
