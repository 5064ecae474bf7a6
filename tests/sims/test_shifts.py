from __future__ import annotations

import math
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classact.errors import ConfigError
from classact.sims.shifts import (
    SHIFTS,
    CameraShift,
    Fixed,
    ImageRotation,
    Shift,
    appearance_rng,
    check_shift,
    is_plain,
    parse_shift,
)

CAMERAS = {name: shift for name, shift in SHIFTS.items() if isinstance(shift, CameraShift)}
TARGET = (0.1, -0.2, 0.85)
seeds = st.integers(0, 2**32 - 1)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


# Cameras


@pytest.mark.parametrize("name", CAMERAS)
@given(seed=seeds, step=st.integers(0, 800))
def test_the_camera_stays_on_the_sphere_and_moves_on_a_great_circle(name: str, seed: int, step: int) -> None:
    shift = CAMERAS[name]
    path = shift.draw(rng(seed), TARGET)
    target = np.array(shift.target or TARGET)
    np.testing.assert_array_equal(path.target, target)
    start = path.position(0) - target
    np.testing.assert_allclose(np.linalg.norm(start), shift.radius, rtol=1e-12)
    now, after = path.position(step) - target, path.position(step + 1) - target
    np.testing.assert_allclose(np.linalg.norm(now), shift.radius, rtol=1e-12)
    # One arc per step, and as many as steps since the start.
    np.testing.assert_allclose(angle(now, after), shift.arc, atol=1e-9)
    np.testing.assert_allclose(angle(start, now), shift.arc * step, atol=1e-9)
    # Always in one plane through the target.
    assert abs(np.dot(now, np.cross(path.start, path.direction))) < 1e-12


def angle(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.arctan2(np.linalg.norm(np.cross(a, b)), np.dot(a, b)))


@pytest.mark.parametrize("name", CAMERAS)
@given(seed=seeds)
def test_places_and_directions_are_within_their_bounds(name: str, seed: int) -> None:
    shift = CAMERAS[name]
    path = shift.draw(rng(seed), TARGET)
    u, place = path.start, path.position(0)
    assert shift.polar[0] - 1e-12 <= math.acos(u[2]) <= shift.polar[1] + 1e-12
    assert shift.azimuth[0] - 1e-12 <= math.atan2(u[1], u[0]) % (2 * math.pi) <= shift.azimuth[1] + 1e-12
    assert shift.min_x is None or place[0] >= shift.min_x
    assert shift.min_z is None or place[2] >= shift.min_z
    # The direction is tangent.
    np.testing.assert_allclose([np.linalg.norm(path.direction), path.direction @ u], [1, 0], atol=1e-12)


def test_the_draw_is_that_of_its_definition() -> None:
    shift = CameraShift()
    for seed in range(20):
        source = rng(seed)
        azimuth, polar = source.uniform(0, 2 * np.pi), source.uniform(np.pi / 3, 2 * np.pi / 3)
        x, y = source.uniform(-1, 1), source.uniform(-0.01, 0.3)
        u = np.array([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)])
        t1 = np.array([-np.sin(azimuth), np.cos(azimuth), 0])
        t2 = np.array([-np.cos(polar) * np.cos(azimuth), -np.cos(polar) * np.sin(azimuth), np.sin(polar)])
        d = x * t1 + y * t2
        path = shift.draw(rng(seed), TARGET)
        for step in (0, 1, 700):
            expected = TARGET + u * np.cos(1.5e-4 * step) + d / np.linalg.norm(d) * np.sin(1.5e-4 * step)
            np.testing.assert_allclose(path.position(step), expected, atol=1e-12)


def test_rejected_places_are_those_below_the_bounds() -> None:
    free = CameraShift(target=(0.0, 0.0, 1.0), radius=0.9)
    bound = CameraShift(target=(0.0, 0.0, 1.0), radius=0.9, min_x=0.4, min_z=1.1)
    places = np.array([free.draw(rng(seed), TARGET).position(0) for seed in range(300)])
    allowed = (places[:, 0] >= 0.4) & (places[:, 2] >= 1.1)
    assert 20 < allowed.sum() < 100
    for seed in np.flatnonzero(allowed):  # a place that is allowed is taken as it is
        np.testing.assert_array_equal(bound.draw(rng(int(seed)), TARGET).position(0), places[seed])
    kept = np.array([bound.draw(rng(seed), TARGET).position(0) for seed in range(300)])
    assert kept[:, 0].min() >= 0.4
    assert kept[:, 2].min() >= 1.1
    assert kept[:, 0].min() < 0.45
    assert kept[:, 2].min() < 1.15


def test_named_constants() -> None:
    released, paper = CAMERAS["dynamic"], CAMERAS["dynamic-paper"]
    assert (released.radius, released.arc, released.target, released.fovy) == (0.9, 1.5e-3, (0.0, 0.0, 1.0), 45.0)
    assert (paper.radius, paper.arc, paper.min_x, paper.min_z) == (1.0, 1.5e-4, None, None)
    for name in ("random-static", "random-static-paper"):
        path = CAMERAS[name].draw(rng(1), TARGET)
        np.testing.assert_array_equal(path.position(0), path.position(500))
    # Rand-Cam is where the moving camera starts.
    for suffix in ("", "-paper"):
        one, two = (SHIFTS[name + suffix].draw(rng(5), TARGET) for name in ("dynamic", "random-static"))  # type: ignore[union-attr]
        np.testing.assert_array_equal(one.position(0), two.position(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"polar": (0.0, 1.0)}, r"polar angles inside 0\.\.pi.* got radius 1\.0 and polar \(0\.0, 1\.0\)"),
        ({"polar": (1.0, math.pi)}, r"inside 0\.\.pi"),
        ({"radius": 0.0}, r"radius > 0 .*got radius 0\.0"),
        ({"radius": math.inf}, r"radius > 0 .*got radius inf"),
        ({"azimuth": (2.0, 1.0)}, r"expected azimuth as \(low, high\), got \(2\.0, 1\.0\)"),
        ({"x": (math.nan, 1.0)}, r"expected x as \(low, high\), got \(nan, 1\.0\)"),
        ({"arc": math.nan}, r"finite arc, got nan"),
        ({"fovy": 0.0}, r"fovy between 0 and 180 degrees, got 0\.0"),
        ({"fovy": 180.0}, r"fovy between 0 and 180 degrees, got 180\.0"),
        ({"fovy": math.nan}, r"fovy between 0 and 180 degrees, got nan"),
    ],
)
def test_unusable_cameras(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CameraShift(**settings)  # type: ignore[arg-type]


def test_no_place_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"of 10,000 places at 1\.0 m from \[.*\], none has x >= 2 and z >= None"):
        CameraShift(min_x=2).draw(rng(0), TARGET)


# Rotation


@given(seed=seeds, step=st.integers(0, 1000))
def test_the_image_turns_at_its_rate_in_either_sense(seed: int, step: int) -> None:
    path = ImageRotation().draw(rng(seed))
    assert 0 <= path.start < 360
    assert abs(path.rate) == 0.5
    assert path.angle(step) == pytest.approx(path.start + step * path.rate)


def test_both_senses_and_all_angles_occur() -> None:
    paths = [ImageRotation().draw(rng(seed)) for seed in range(400)]
    assert 150 < sum(path.rate > 0 for path in paths) < 250
    counts, _ = np.histogram([path.start for path in paths], bins=6, range=(0, 360))
    assert counts.min() > 40
    assert {SHIFTS["rotation-static"].draw(rng(seed)).rate for seed in range(9)} <= {0.0, -0.0}  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"start as \(low, high\) and a finite rate, got \(2\.0, 1\.0\) and 0\.5"):
        ImageRotation((2.0, 1.0))


# Names


@pytest.mark.parametrize("name", SHIFTS)
def test_names_are_read(name: str) -> None:
    assert parse_shift(name) is SHIFTS[name]
    assert is_plain(name) is name.startswith("fixed") is (SHIFTS[name] == Fixed())
    if isinstance(SHIFTS[name], CameraShift | ImageRotation):
        assert parse_shift(f"  {name} () ") == SHIFTS[name]


@given(
    radius=st.floats(0.1, 5),
    arc=st.floats(-0.1, 0.1),
    low=st.floats(0.1, 1.5),
    width=st.floats(0, 1.5),
    target=st.tuples(*[st.floats(-2, 2)] * 3),
)
def test_constants_in_brackets_are_read_exactly(
    radius: float, arc: float, low: float, width: float, target: tuple[float, float, float]
) -> None:
    text = f"dynamic(radius={radius!r}, arc={arc!r}, polar=({low!r}, {low + width!r}), target={target!r})"
    shift = parse_shift(text)
    assert isinstance(shift, CameraShift)
    assert (shift.radius, shift.arc, shift.polar, shift.target) == (radius, arc, (low, low + width), target)
    assert (shift.min_x, shift.min_z, shift.fovy) == (0.4, 1.1, 45.0)  # those of the name
    assert not is_plain(text)
    assert check_shift("square", text, ("fixed", "dynamic")) == shift


@given(st.text(max_size=40))
def test_any_text_is_a_shift_or_a_clear_error(text: str) -> None:
    for spelled in (text, f"dynamic({text}", f"dynamic({text})"):
        with suppress(ConfigError):  # and nothing else
            assert isinstance(parse_shift(spelled), Shift)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wobble", r"unknown shift 'wobble': available are 'dynamic', "),
        (
            "dynamic(radius=1",
            r"shift 'dynamic\(radius=1' cannot be read .* dynamic\(constant=number, \.\.\.\).*'radius'",
        ),
        ("dynamic(1.0)", r"cannot be read \(constants need names\)"),
        ("dynamic(radius=1)()", r"cannot be read \(something follows the bracket\)"),
        ("dynamic(radius=1) + 1", r"cannot be read \(something follows the bracket\)"),
        ("dynamic(radius=print)", r"cannot be read \(malformed"),
        ("dynamic(a={[]:1})", r"cannot be read \(.*unhashable.*"),
        ("dynamic(speed=1)", r"unknown constant of shift 'dynamic' 'speed': available are 'arc', "),
        ("fixed(radius=1)", r"shift 'fixed\(radius=1\)': 'fixed' has no constants\. Write it as fixed"),
        ("rand-color()", r"'rand-color' has no constants"),
        ("dynamic(radius='1')", r"expected radius as a number, got '1'"),
        ("dynamic(radius=True)", r"expected radius as a number, got True"),
        ("dynamic(radius=1e999)", r"expected radius as a number, got inf"),
        ("dynamic(radius=(1, 2))", r"expected radius as a number, got \(1, 2\)"),
        ("dynamic(polar=1)", r"expected polar as 2 numbers in brackets, got 1"),
        ("dynamic(target=(1, 2))", r"expected target as 3 numbers in brackets, got \(1, 2\)"),
        ("dynamic(radius=-1)", r"expected radius > 0 .* got radius -1"),
    ],
)
def test_unreadable_shifts(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_shift(text)


def test_a_simulator_knows_only_its_own_shifts() -> None:
    with pytest.raises(ConfigError, match=r"aloha: unknown shift 'dynamic\(arc=0\.0\)': available are 'fixed', 'rotat"):
        check_shift("aloha", "dynamic(arc=0.0)", ("fixed", "rotation"))


def test_constants_that_are_not_given_are_those_of_the_simulators_own_shift() -> None:
    own = CameraShift(target=(0, 0, 0.2), min_z=0.3)
    assert check_shift("floor", "dynamic", ("dynamic",), lambda _: own) is own
    shift = check_shift("floor", "dynamic(target=(0, 0, 1), arc=0)", ("dynamic",), lambda _: own)
    assert shift == CameraShift(target=(0, 0, 1), min_z=0.3, arc=0)


def test_spaces_about_a_plain_name_do_not_matter() -> None:
    assert is_plain(" fixed-color ")


def test_the_appearances_stream_is_none_of_the_seeds_own() -> None:
    assert appearance_rng(3).random() == appearance_rng(3).random()
    assert appearance_rng(3).random() not in (appearance_rng(4).random(), rng(3).random())
