from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import fakes
from classact.data.lowdim import LowDim
from classact.data.normalize import MinMax
from classact.data.schema import Schema
from classact.data.types import Demonstrations, Observation
from classact.errors import CheckpointError, ConfigError, DataError
from classact.utils.codec import from_json, to_json

SCHEMA = Schema((), (("arm", 3), ("gripper", 1), ("force", 2)))
IMAGE = np.zeros((8, 8, 3), np.uint8)


def demonstrations(language: int = 0) -> Demonstrations:
    """Two episodes, of 3 and 5 steps."""
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(8, 6)) * [1, 2, 3, 40, 500, 6] + 7).astype(np.float32)
    return Demonstrations(
        "d",
        np.array([3, 8]),
        rng.normal(size=(8, 2)).astype(np.float32),
        values,
        schema=replace(SCHEMA, language=language),
        language=rng.normal(size=(2, language)).astype(np.float32) if language else None,
    )


def living(data: Demonstrations) -> list[Observation]:
    episodes = data.episode_index()
    return [
        Observation({"top": IMAGE}, own, language=None if data.language is None else data.language[episodes[row]])
        for row, own in enumerate(data.proprioception)
    ]


@pytest.mark.parametrize("keys", [None, ("gripper",), ("force", "arm"), ()])
@pytest.mark.parametrize("language", [0, 4])
def test_rows_are_the_chosen_keys_scaled_and_then_the_instruction(keys: Any, language: int) -> None:
    data = demonstrations(language)
    lowdim = LowDim.fit(data, keys)
    columns = {None: [0, 1, 2, 3, 4, 5], ("gripper",): [3], ("force", "arm"): [4, 5, 0, 1, 2], (): []}[keys]
    values = data.proprioception[:, columns]
    found = lowdim.demonstrations(data)
    assert found.shape == (8, lowdim.dim) == (8, len(columns) + language)
    assert found.dtype == np.float32
    low, high = data.proprioception.min(0)[columns], data.proprioception.max(0)[columns]
    assert_allclose(found[:, : len(columns)], 2 * (values - low) / (high - low) - 1, atol=1e-5)
    if data.language is not None:
        assert_array_equal(found[:, len(columns) :], data.language[[0, 0, 0, 1, 1, 1, 1, 1]])
    assert_array_equal(lowdim.observations(living(data)), found)
    some = np.array([7, 2, 3, 0])
    assert_array_equal(lowdim.demonstrations(data, some), found[some])


def test_no_proprioception_at_all() -> None:
    data = replace(demonstrations(4), proprioception=np.zeros((8, 0), np.float32), schema=Schema())
    lowdim = LowDim.fit(data)
    assert (lowdim.keys, lowdim.dim) == ((), 4)
    assert lowdim.demonstrations(data).shape == (8, 4)
    blind = replace(data, language=None, schema=Schema())
    assert LowDim.fit(blind).demonstrations(blind).shape == (8, 0)


def test_unknown_keys() -> None:
    with pytest.raises(ConfigError, match="unknown proprioception key 'torque': available are 'arm', 'force', 'grippe"):
        LowDim.fit(demonstrations(), ("arm", "torque"))


@pytest.mark.parametrize("language", [0, 4])
def test_through_json(language: int) -> None:
    data = demonstrations(language)
    lowdim = LowDim.fit(data, ("force", "gripper"))
    again = from_json(LowDim, json.loads(json.dumps(to_json(lowdim))), "file")
    assert (again.schema, again.keys) == (data.schema, ("force", "gripper"))
    assert_array_equal(again.demonstrations(data), lowdim.demonstrations(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.pop("range"), "some/policy: field 'range' is missing"),
        (lambda card: card.pop("keys"), "some/policy: field 'keys' is missing"),
        (lambda card: card.pop("schema"), "some/policy: field 'schema' is missing"),
        (
            lambda card: card.update(range=None),
            r"some/policy\.range: expected an object with the fields of MinMax, got None",
        ),
        (lambda card: card["range"].pop("high"), r"some/policy\.range: field 'high' is missing"),
        (lambda card: card.update(range={"low": [0, 0], "high": [1, 1]}), r"\['arm', .*\] have 6 dimensions, .* on 2"),
        (lambda card: card.update(keys=["arm"]), r"\['arm'\] have 3 dimensions, their normalisation was fitted on 6"),
        (
            lambda card: card.update(schema=None),
            r"some/policy\.schema: expected an object with the fields of Schema, got None",
        ),
    ],
)
def test_missing_statistics_are_never_the_identity(change: Any, message: str) -> None:
    card = to_json(LowDim.fit(demonstrations()))
    change(card)
    with pytest.raises(CheckpointError, match=message):
        from_json(LowDim, card, "some/policy", error=CheckpointError)


def test_parts_that_do_not_fit() -> None:
    with pytest.raises(DataError, match=r"\['arm'\] have 3 dimensions, their normalisation was fitted on 6"):
        LowDim(SCHEMA, ("arm",), MinMax.fit(demonstrations().proprioception))


def test_data_of_another_schema_are_refused() -> None:
    data, lowdim = demonstrations(4), LowDim.fit(demonstrations(4), ("arm",))
    others = [
        (replace(data, schema=replace(data.schema, proprioception=(("arm", 6),))), r"proprioception \[\('arm', 3\)"),
        (demonstrations(), "language embedding of size 4 here, 0 there"),
        (fakes.demonstrations(lengths=(5, 3)), "proprioception"),
    ]
    for other, message in others:
        with pytest.raises(DataError, match=rf"\(memory\) is of another schema: {message}.*Train on these data"):
            lowdim.demonstrations(other)
    with_camera = data.with_images({"top": np.zeros((8, 4, 4, 3), np.uint8)})  # no difference
    assert_array_equal(lowdim.demonstrations(with_camera), lowdim.demonstrations(data))


def test_observations_are_checked_by_number() -> None:
    seen = living(demonstrations(4))
    lowdim = LowDim.fit(demonstrations(4))
    lowdim.check(seen, ("top",))
    for bad, message in (
        (replace(seen[1], language=None), "lacks the instruction's embedding"),
        (replace(seen[1], images={}), "lacks camera 'top'; there are no images"),
        (replace(seen[1], proprioception=np.full(6, np.nan, np.float32)), "number 0 is nan"),
        (replace(seen[1], images={"top": IMAGE / 255}), "expected uint8 values"),
    ):
        with pytest.raises(DataError, match=f"observation 1 of 8: .*{message}"):
            lowdim.check([seen[0], bad, *seen[2:]], ("top",))
        with pytest.raises(DataError, match=f"^observation: .*{message}"):
            lowdim.check([bad], ("top",))


@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0.01, 0.3]))
def test_the_sign_of_a_quaternion_changes_nothing(seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    center = rng.normal(size=4)
    quaternion = center / np.linalg.norm(center) + rng.normal(0, spread, (40, 4))
    quaternion /= np.linalg.norm(quaternion, axis=1, keepdims=True)
    values = np.hstack([rng.normal(size=(40, 3)), quaternion]).astype(np.float32)
    flipped = values.copy()
    flipped[:, 3:] *= rng.choice([-1, 1], (40, 1)).astype(np.float32)
    schema = Schema((), (("position", 3), ("turned", 4)))

    def made(proprioception: np.ndarray) -> Demonstrations:
        return Demonstrations("d", np.array([40]), np.zeros((40, 2), np.float32), proprioception, schema=schema)

    plain, other = LowDim.fit(made(values)), LowDim.fit(made(flipped))
    rows = plain.demonstrations(made(values))
    assert_array_equal(plain.demonstrations(made(flipped)), rows)
    turned = other.demonstrations(made(flipped))
    assert_array_equal(other.demonstrations(made(values)), turned)
    # Rotations that are close stay close: the range is that of the motion.
    assert (other.range.high[3:] - other.range.low[3:] <= plain.range.high[3:] - plain.range.low[3:] + 1e-6).all()
    again = from_json(LowDim, json.loads(json.dumps(to_json(other))), "file")
    assert_array_equal(again.demonstrations(made(values)), turned)
    only = LowDim.fit(made(flipped), ["turned"])
    assert_array_equal(only.demonstrations(made(values)), only.demonstrations(made(flipped)))


def test_quaternions_on_one_side_are_left_as_they_are() -> None:
    values = np.array([[0.6, 0.8, 0, 0], [0.8, 0.6, 0, 0], [1, 0, 0, 0]], np.float32)
    data = Demonstrations("d", np.array([3]), np.zeros((3, 2), np.float32), values, schema=Schema((), (("task", 4),)))
    assert_array_equal(LowDim.fit(data).demonstrations(data), MinMax.fit(values).apply(values))


def test_what_embedded_the_instructions_stays_known() -> None:
    data = demonstrations(4)
    known = LowDim.fit(replace(data, versions={"language": "stand-in"}))
    assert from_json(LowDim, to_json(known), "x").language_source == known.language_source == "stand-in"
    for other in (data, replace(data, versions={"language": "unknown"})):
        assert LowDim.fit(other).language_source == ""
    assert LowDim.fit(replace(demonstrations(), versions={"language": "stand-in"})).language_source == ""
    before = to_json(known)  # as it was written before this was kept
    del before["language_source"]
    assert from_json(LowDim, before, "x").language_source == ""
