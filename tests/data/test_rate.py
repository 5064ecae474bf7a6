"""Demonstrations at fewer steps per second."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import fakes
from classact.data.actions import ActionSpace, Part
from classact.data.rate import at_rate, costly_windows, in_steps, near_rate, short_windows
from classact.data.types import Demonstrations
from classact.errors import ConfigError


def recorded(lengths: tuple[int, ...] = (7, 1, 6), fps: float | None = 30.0) -> Demonstrations:
    data = fakes.demonstrations(0, 8, lengths)
    return replace(data, schema=replace(data.schema, fps=fps))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 6))
def test_every_kth_step_and_the_target_that_leads_to_the_next(lengths: list[int], every: int) -> None:
    data = recorded(tuple(lengths), fps=12.0)
    made = at_rate(data, 12.0 / every)
    assert len(made) == len(data)
    assert made.schema.fps == pytest.approx(12.0 / every)
    for episode in range(len(data)):
        start, end = data.bounds(episode)
        first, last = made.bounds(episode)
        rows = list(range(start, end, every))
        assert_array_equal(made.proprioception[first:last], data.proprioception[rows])
        assert made.states is not None
        assert data.states is not None
        assert_array_equal(made.states[first:last], data.states[rows])
        assert_array_equal(np.asarray(made.images["top"])[first:last], np.asarray(data.images["top"])[rows])
        reached = [min(row + every - 1, end - 1) for row in rows]
        assert_array_equal(made.actions[first:last], data.actions[reached])


def test_velocities_are_means() -> None:
    data = recorded((5, 4))
    space = ActionSpace((Part("joint", "joint", 1), Part("base", "velocity", 1)))
    data = replace(data, schema=replace(data.schema, actions=space))
    made = at_rate(data, 15.0)
    assert_array_equal(made.actions[:, 0], data.actions[[1, 3, 4, 6, 8], 0])
    v = data.actions[:, 1]
    expected = [(v[0] + v[1]) / 2, (v[2] + v[3]) / 2, v[4], (v[5] + v[6]) / 2, (v[7] + v[8]) / 2]
    assert_allclose(made.actions[:, 1], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("data", "fps", "said"),
    [
        (recorded(fps=None), 10.0, "at how many steps per second it was recorded is not known, so 10 cannot be made"),
        (recorded(), 20.0, r"has 30 steps per second, which 20 does not divide; possible are 30, 15, 10, 7\.5, 6, 3"),
        (recorded(), 60.0, "which 60 does not divide"),
        (recorded(), 0.0, "expected more than 0 steps per second, got 0"),
    ],
)
def test_rates_that_are_refused(data: Demonstrations, fps: float, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        at_rate(data, fps)


def test_the_recorded_rate_changes_nothing() -> None:
    data = recorded()
    assert at_rate(data, 30.0) is data


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 2000), st.sampled_from((3.0, 10.0, 14.7, 29.97, 30.0, 50.0, 240.0)))
def test_seconds_are_as_many_steps_as_they_take(steps: int, fps: float) -> None:
    assert in_steps(f"{steps / fps!r}s", fps, "horizon", "data") == steps
    assert in_steps(str(steps), None, "horizon", "data") == in_steps(steps, None, "horizon", "data") == steps


@pytest.mark.parametrize(
    ("span", "fps", "said"),
    [
        ("0.8s", None, r"horizon 0\.8 s: at how many steps per second the arm was recorded is not known.*in steps"),
        ("0.01s", 30.0, r"horizon 0\.01 s is less than half a step of the arm, which has 30 steps per second"),
        *(
            (text, 30.0, "horizon: expected steps, or seconds as in '0.8s', got")
            for text in ("s", "0.8", "-1s", "infs")
        ),
    ],
)
def test_spans_that_are_refused(span: str, fps: float | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        in_steps(span, fps, "horizon", "the arm")


@pytest.mark.parametrize("fps", [3.0, 10.0, 15.0, 24.0, 25.0, 29.97, 30.0, 50.0, 60.0, 200.0])
def test_rates_that_are_proposed_are_possible(fps: float) -> None:
    data = recorded(fps=fps)
    assert at_rate(data, float(f"{near_rate(fps):g}")).schema.fps == pytest.approx(near_rate(fps))
    assert 5 <= near_rate(fps) <= 15 or fps < 10
    if "--fps" in (said := short_windows(data, 2)):
        at_rate(data, float(said.partition("--fps ")[2].split(" ")[0].rstrip("),")))


def test_long_windows_are_pointed_out_with_what_they_cost() -> None:
    assert costly_windows(recorded(fps=50.0), 48) == costly_windows(recorded(fps=None), 80) == ""
    assert costly_windows(recorded(fps=10.0), 80) == ""  # there is nothing to subsample to
    said = costly_windows(recorded(fps=50.0), 80)
    assert "80 steps, 1.6 s at 50 steps per second, takes about 25 times as long as of the 16 means of 5" in said
    assert said.endswith("--stride 5.")
    assert costly_windows(recorded(fps=50.0), 80, 5) == ""


def test_windows_of_little_time_are_pointed_out() -> None:
    assert short_windows(recorded(fps=None), 16) == ""
    assert short_windows(recorded(fps=30.0), 16) == ""
    said = short_windows(recorded(fps=50.0), 16)
    assert "windows of 16 steps are 0.32 s at 50 steps per second" in said
    assert "Subsample (--fps 10), or choose a longer window (--horizon 1.6s)." in said
    assert "about. Choose a longer window (--horizon 1.6s)." in short_windows(recorded(fps=10.0), 3)
    # A simulator's rate: its policies act at it, so there is nothing to subsample.
    assert "about. Choose a longer window" in short_windows(recorded(fps=None), 16, 50.0)
