from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from classact.errors import ConfigError, UnknownNameError
from classact.utils.limits import check_names, check_range


@dataclass(frozen=True)
class Settings:
    name: Literal["a", "b"] = "a"
    several: tuple[Literal["x", "y"], ...] = ()
    free: str = "anything"
    number: float = 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "c"}, "unknown kind 'c': available are 'a', 'b'"),
        ({"several": ("x", "z")}, "unknown several 'z': available are 'x', 'y'"),
    ],
)
def test_names_are_those_that_types_list(change: dict[str, Any], message: str) -> None:
    check_names(Settings("b", ("y", "x")))
    with pytest.raises(UnknownNameError, match=message):
        check_names(Settings(**change), name="kind")


@pytest.mark.parametrize(
    ("limits", "good", "bad", "message"),
    [
        ({"above": 0}, 0.1, 0, "expected number > 0, got 0"),
        ({"least": 1}, 1, 0, "expected number >= 1, got 0"),
        ({"least": 0, "below": 1}, 0, 1.0, r"expected 0 <= number < 1, got 1\.0"),
        ({"above": 0, "most": 1}, 1, 0.0, r"expected 0 < number <= 1, got 0\.0"),
        ({"above": 0, "below": math.inf}, 9, math.inf, "expected 0 < number < inf, got inf"),
        ({"above": 0}, 1, math.nan, "expected number > 0, got nan"),
        ({"most": 1}, 1, 2, "expected number <= 1, got 2"),
    ],
)
def test_ranges(limits: dict[str, float], good: float, bad: float, message: str) -> None:
    check_range(Settings(number=good), "number", **limits)
    with pytest.raises(ConfigError, match=message):
        check_range(Settings(number=bad), "number", **limits)
