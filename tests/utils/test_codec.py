from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from typing_extensions import TypeAliasType

from classact.errors import CheckpointError, ConfigError, DataError
from classact.utils.codec import ADDED, from_json, to_json


@dataclass(frozen=True)
class Inner:
    kind: str = field(default="inner", init=False)
    size: int = 3
    rate: float = 0.5
    mode: Literal["fast", "exact"] = "fast"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"expected size >= 1, got {self.size}.")


@dataclass(frozen=True)
class Other:
    kind: str = field(default="other", init=False)
    depth: int = 1


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner | Other = field(default_factory=Inner)
    widths: tuple[int, ...] = (1, 2)
    span: tuple[float, float] = (0.0, 1.0)
    folder: Path | None = None
    extra: Mapping[str, float] = field(default_factory=dict)
    anything: Any = None
    flag: bool = False


VALUES = st.builds(
    Outer,
    st.text(),
    st.one_of(
        st.builds(Inner, st.integers(1), st.floats(allow_nan=False), st.sampled_from(["fast", "exact"])),
        st.builds(Other, st.integers()),
    ),
    st.lists(st.integers()).map(tuple),
    st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)),
    st.one_of(st.none(), st.just(Path("a/b"))),
    st.dictionaries(st.text(), st.floats(allow_nan=False)),
    st.one_of(st.none(), st.integers(), st.lists(st.text())),
    st.booleans(),
)


@given(VALUES)
def test_what_was_written_comes_back(value: Outer) -> None:
    import json

    assert from_json(Outer, json.loads(json.dumps(to_json(value))), "file") == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widht": 1}, r"file: unknown field 'widht'.*: available are 'anything', .*'widths'"),
        ({"inner": {"kind": "inner", "size": 1, "rate": 1.0}}, r"file\.inner: field 'mode' is missing"),
        ({"widths": [1, "two"]}, r"file\.widths\[1\]: expected a whole number, got 'two'"),
        ({"widths": [1, True]}, r"file\.widths\[1\]: expected a whole number, got True"),
        ({"span": [1.0]}, r"file\.span: expected a list of 2 values, got \[1.0\]"),
        ({"flag": 1}, r"file\.flag: expected true or false, got 1"),
        ({"name": None}, r"file\.name: expected text, got None"),
        ({"extra": {"a": "b"}}, r"file\.extra\.a: expected a number, got 'b'"),
        (
            {"inner": {"kind": "inner", "size": 0, "rate": 1.0, "mode": "fast"}},
            r"file\.inner: expected size >= 1, got 0\.",
        ),
        (
            {"inner": {"kind": "inner", "size": 1, "rate": 1.0, "mode": "fats"}},
            r"file\.inner\.mode: unknown value 'fats': available are 'exact', 'fast' \(did you mean 'fast'\?\)",
        ),
        ({"inner": {"kind": "new", "depth": 1}}, r"file\.inner\.kind: expected 'other', got 'new'"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_json(Outer, to_json(Outer("a")) | change, "file")


def test_the_class_of_errors_is_the_callers() -> None:
    with pytest.raises(CheckpointError, match="card: expected an object with the fields of Outer, got 3"):
        from_json(Outer, 3, "card", error=CheckpointError)


def test_defaults_fill_what_is_not_there_only_where_asked() -> None:
    assert from_json(Outer, {"name": "a"}, "file", partial=True) == Outer("a")
    with pytest.raises(DataError, match="field 'name' is missing"):
        from_json(Outer, {}, "file", partial=True)
    with pytest.raises(DataError, match="field 'inner' is missing"):
        from_json(Outer, {"name": "a"}, "file")


def test_what_was_added_later_has_its_default_in_files_of_before() -> None:
    @dataclass(frozen=True)
    class Grown:
        size: int
        speed: float = field(default=1.0, metadata=ADDED)

    assert from_json(Grown, {"size": 2}, "file") == Grown(2)
    assert from_json(Grown, {"size": 2, "speed": 2.0}, "file") == Grown(2, 2.0)


def test_classes_may_have_a_form_of_their_own() -> None:
    @dataclass(frozen=True)
    class Celsius:
        degrees: float

        def to_json(self) -> str:
            return f"{self.degrees} C"

        @classmethod
        def from_json(cls, value: Any, where: str) -> Celsius:
            assert where == "file.oven"
            return cls(float(value.removesuffix(" C")))

    @dataclass(frozen=True)
    class Kitchen:
        oven: Any

    Kitchen.__annotations__["oven"] = Celsius
    assert to_json(Kitchen(Celsius(180.0))) == {"oven": "180.0 C"}
    assert from_json(Kitchen, {"oven": "180.0 C"}, "file") == Kitchen(Celsius(180.0))


def test_what_json_has_no_form_for_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot write set as JSON"):
        to_json({"a": {1}})


Scalar = TypeVar("Scalar", bound=np.generic)
Alias = TypeAliasType("Alias", np.ndarray[Any, np.dtype[Scalar]], type_params=(Scalar,))  # NumPy 2.5's NDArray is one


@dataclass(frozen=True)
class Ranged:
    low: Alias[np.float32]


def test_an_array_is_read_through_an_alias_of_its_type() -> None:
    low = from_json(Ranged, {"low": [1, 2.5]}, "file").low
    assert_array_equal(low, np.array([1, 2.5], np.float32), strict=True)
    with pytest.raises(DataError, match=r"^file\.low: expected a list of numbers, got 'x'"):
        from_json(Ranged, {"low": "x"}, "file")
