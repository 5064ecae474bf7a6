from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from classact.data.schema import Schema
from classact.data.types import Criterion, Demonstrations
from classact.errors import DataError

ENDS = (3, 4, 9)
N = ENDS[-1]


def demonstrations(**changed: Any) -> Demonstrations:
    rng = np.random.default_rng(0)
    content: dict[str, Any] = {
        "name": "tiny",
        "episode_ends": np.array(ENDS, np.int64),
        "actions": rng.normal(size=(N, 2)).astype(np.float32),
        "proprioception": rng.normal(size=(N, 3)).astype(np.float32),
        "states": rng.normal(size=(N, 5)),
        "images": {"top": rng.integers(0, 256, (N, 4, 6, 3)).astype(np.uint8)},
        "source": "some/file",
    }
    return Demonstrations(**{**content, **changed})


def test_counts_and_bounds() -> None:
    demos = demonstrations()
    assert len(demos) == 3
    assert demos.num_steps == 9
    assert_array_equal(demos.lengths, [3, 1, 5])
    assert [demos.bounds(e) for e in range(3)] == [(0, 3), (3, 4), (4, 9)]
    assert_array_equal(demos.episode_index(), [0, 0, 0, 1, 2, 2, 2, 2, 2])


def test_episodes_are_views() -> None:
    demos = demonstrations()
    episodes = list(demos)
    assert [len(episode) for episode in episodes] == [3, 1, 5]
    assert [episode.index for episode in episodes] == [0, 1, 2]
    assert_array_equal(np.concatenate([episode.actions for episode in episodes]), demos.actions)
    for array, whole in (
        (demos[2].actions, demos.actions),
        (demos[2].states, demos.states),
        (demos[2].images["top"], demos.images["top"]),
    ):
        assert array is not None
        assert whole is not None
        assert np.shares_memory(array, whole)
    assert demos[-1].index == 2
    assert_array_equal(demos[-3].actions, demos[0].actions)


@pytest.mark.parametrize("index", [3, -4, 100])
def test_episode_out_of_range(index: int) -> None:
    with pytest.raises(IndexError, match=f"episode {index} of 3"):
        demonstrations()[index]


def test_subset_keeps_the_order_given() -> None:
    demos = demonstrations()
    part = demos.subset([2, 0])
    assert_array_equal(part.episode_ends, [5, 8])
    assert_array_equal(part[0].actions, demos[2].actions)
    assert_array_equal(part[1].images["top"], demos[0].images["top"])
    assert demonstrations(states=None).subset([1]).states is None


def test_with_images() -> None:
    demos = demonstrations()
    seen = demos.with_images({"side": np.zeros((N, 2, 2, 3), np.uint8)})
    assert list(seen.images) == ["side"]
    assert seen.actions is demos.actions
    assert list(demos.images) == ["top"]
    with pytest.raises(DataError, match=r"camera 'side': expected images of shape \(9, H, W, 3\).* got \(8, 2, 2, 3\)"):
        demos.with_images({"side": np.zeros((N - 1, 2, 2, 3), np.uint8)})


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        demonstrations().name = "other"  # type: ignore[misc]


def test_fingerprint_says_which_data_this_is() -> None:
    demos = demonstrations()
    assert demos.fingerprint() == demonstrations(name="other", source="elsewhere", images={}).fingerprint()
    assert len(demos.fingerprint()) == 64
    nudged = demos.actions.copy()
    nudged[4, 1] = np.nextafter(nudged[4, 1], np.float32(np.inf))
    others = [
        replace(demos, actions=nudged),
        replace(demos, states=None),
        replace(demos, episode_ends=np.array([3, 5, 9], np.int64)),
        replace(demos, proprioception=demos.actions, actions=demos.proprioception, schema=Schema()),
        replace(demos, language=np.zeros((3, 2), np.float32), schema=Schema()),
        replace(demos, language=np.ones((3, 2), np.float32), schema=Schema()),
    ]
    assert len({demos.fingerprint(), *(other.fingerprint() for other in others)}) == 7


def bad_value(shape: tuple[int, ...], dtype: type, value: float) -> np.ndarray:
    array = np.zeros(shape, dtype)
    array[6, 1] = value
    return array


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"episode_ends": np.array([3, 4, 9], np.int32)}, r"episode_ends of shape \(E,\) and dtype int64 .* int32"),
        ({"episode_ends": np.zeros(0, np.int64)}, r"with E >= 1, got \(0,\)"),
        ({"episode_ends": np.array([[3, 9]], np.int64)}, r"got \(1, 2\)"),
        ({"episode_ends": np.array([4, 3, 9])}, r"episode 1 ends before it starts: it runs from step 4 to 3\. Repair"),
        ({"episode_ends": np.array([4, 4, 9])}, r"episode 1 has 0 steps: it runs from step 4 to 4\. Repair"),
        ({"episode_ends": np.array([0, 9])}, r"episode 0 has 0 steps: it runs from step 0 to 0"),
        ({"episode_ends": np.array([3, 12])}, r"episode_ends ends at 12 but there are 9 steps of actions"),
        ({"episode_ends": np.array([3, 8])}, r"episode_ends ends at 8 but there are 9 steps of actions"),
        ({"actions": np.zeros(N, np.float32)}, r"expected actions of shape \(9, D\), got \(9,\)"),
        ({"actions": np.zeros((N, 2))}, r"expected actions of dtype float32, got float64"),
        ({"actions": bad_value((N, 2), np.float32, np.nan)}, r"actions\[6, 1\] is nan; 1 of 9 steps hold NaN"),
        ({"actions": bad_value((N, 2), np.float32, -np.inf)}, r"actions\[6, 1\] is -inf; 1 of 9 .* Drop or repair"),
        ({"proprioception": np.zeros((8, 3), np.float32)}, r"proprioception of shape \(9, D\), got \(8, 3\)"),
        ({"proprioception": [[0.0]]}, r"proprioception of shape \(9, D\), got list"),
        ({"states": np.zeros((N, 5), np.float32)}, r"states of dtype float64, got float32"),
        ({"states": bad_value((N, 5), np.float64, np.inf)}, r"states\[6, 1\] is inf"),
        ({"images": {"top": np.zeros((8, 4, 6, 3), np.uint8)}}, r"'top': expected images of shape \(9, H.* got \(8, 4"),
        ({"images": {"top": np.zeros((N, 3, 4, 6), np.uint8)}}, r"got \(9, 3, 4, 6\)\. Channels are first: transpose"),
        ({"images": {"top": np.zeros((N, 4, 6, 3))}}, r"camera 'top': expected uint8 values 0\.\.255, got float64"),
        ({"images": {"top": np.zeros((N, 0, 6, 3), np.uint8)}}, r"camera 'top': .* which has no pixels"),
        ({"images": {"top": None}}, r"'top': expected images of shape \(9, H, W, 3\), .* got NoneType"),
    ],
)
def test_what_demonstrations_refuse(changed: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected) as caught:
        demonstrations(**changed)
    assert str(caught.value).startswith("tiny (some/file): ")


def test_criteria_say_when_they_were_first_met() -> None:
    values = [0.1, 0.95, 0.9, 0.96]
    assert Criterion("c", "coverage", 0.95).first(values) == 4
    assert Criterion("c", "coverage", 0.95, inclusive=True).first(values) == 2
    assert Criterion("c", "coverage", 0.95, steps=3).first(values) is None
    assert Criterion("c", "coverage", 0.95, steps=4).first(values) == 4
    assert Criterion("c", "coverage", 0.05).first(values) == 1
