from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fakes
from classact.data.actions import ActionSpace
from classact.data.readers.selection import chosen_episodes, written_episodes
from classact.data.schema import Schema
from classact.data.statistics import BINS, Spread, Statistics
from classact.utils.codec import from_json, to_json


def test_what_demonstrations_hold() -> None:
    data = fakes.demonstrations()
    actions = data.actions.copy()
    actions[:, 1] = 7
    schema = replace(data.schema, fps=20.0)
    data = replace(data, actions=actions, schema=schema, instructions=("push", "push", "pull", "push", ""))
    found = Statistics.of(data, 2)
    assert (found.demonstrations, found.heldout, found.steps, found.median, found.fps) == (5, 2, 120, 25, 20)
    assert (found.lengths.low, found.lengths.high, sum(found.lengths.counts)) == (7, 33, 5)
    assert (found.tasks[0], found.all_tasks) == (("push", 3), 3)
    assert [(view.name, view.width, view.height) for view in found.cameras] == [("top", 32, 32)]
    assert [(one.name, one.constant) for one in found.actions] == [("point x", False), ("point y", True)]
    assert found.actions[0].low == actions[:, 0].min()
    assert from_json(Statistics, to_json(found), "data.json") == found


def test_ranges_are_of_all_steps_and_counts_of_some() -> None:
    values = np.zeros(1_000_001, np.float32)
    values[777_777] = 5
    found = Spread.of("x", values)
    assert (found.low, found.high, len(found.counts)) == (0, 5, BINS)
    assert 0 < sum(found.counts) <= 200_000


@pytest.mark.parametrize("value", [0.0, 1e30, -3.4e38])
def test_numbers_that_never_change_have_a_spread(value: float) -> None:
    found = Spread.of("x", np.full(9, value, np.float32))
    assert (found.low, found.high, sum(found.counts)) == (np.float32(value), np.float32(value), 9)


@pytest.mark.parametrize(
    ("space", "names"),
    [
        (ActionSpace.joints(2, "left"), ["left_joints[0]", "left_joints[1]", "left_gripper"]),
        (
            ActionSpace.pose(),
            ["position x", "position y", "position z", *(f"rotation[{i}]" for i in range(6)), "gripper"],
        ),
    ],
)
def test_dimensions_have_names(space: ActionSpace, names: list[str]) -> None:
    assert space.names() == names


def test_dimensions_without_a_meaning_have_numbers() -> None:
    data = fakes.demonstrations()
    unknown = Schema(("top",), (("proprioception", 2),))
    assert [one.name for one in Statistics.of(replace(data, schema=unknown)).actions] == ["action[0]", "action[1]"]


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(0, 40), min_size=1))
def test_selections_are_read_as_they_are_written(numbers: set[int]) -> None:
    kept = sorted(numbers)
    assert chosen_episodes(written_episodes(kept), 41, "data") == kept
