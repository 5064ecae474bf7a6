"""Flags from dataclasses, on toys; and what holds for the flags of every command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from classact.cli import COMMANDS
from classact.cli.flags import Given, Settings, UsageError, Word, below, changed, flag, name_of, parse, settings
from classact.errors import ConfigError, UnknownNameError, choose
from classact.utils.lazy import resolve


@dataclass(frozen=True)
class Net:
    """A network.

    Attributes:
        kind: "a" or "b", see :class:`somewhere.Kind`.
        low, high: limits of ``x``, of which
            there are two.
        widths: of layers.
        mean: of channels.
        shared: one for all.
    """

    kind: Literal["a", "b"] = "a"
    low: int = 0
    high: int | None = 9
    widths: tuple[int, ...] = (1, 2)
    mean: tuple[float, float] = (0.5, 1.0)
    shared: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("a", "b"):
            raise UnknownNameError(choose("kind", self.kind, ("a", "b")))
        if self.high is not None and self.low > self.high:
            raise ConfigError(f"expected low <= high, got {self.low} and {self.high}")


@dataclass(frozen=True)
class Training:
    net: Net = field(default_factory=Net)
    views: Net | None = None
    epochs: float = 2.0
    folder: Path | None = None


@dataclass(frozen=True)
class Whole:
    training: Training = field(default_factory=Training)
    secret: Mapping[str, int] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Toy:
    """Do something.

    Attributes:
        run: Folder.
        name: Of what is made.
        loud: Say more.
    """

    run: Path = flag(positional=True)
    out: Path
    name: str | None = flag(None, choices=lambda: ["one", "two"])
    loud: bool = False
    whole: Given = settings(
        Settings(Whole, inline=("training",), hidden=("secret",), short={"net.low": "low", "net.shared": "shared-net"})
    )

    @staticmethod
    def shown(word: Word) -> Mapping[str, Any]:
        return {"whole": Whole(Training(epochs=7.0, net=Net(low=int(word("preset") or 3))))}


def given(*words: str) -> Given:
    return parse(Toy, ["RUN", "--out", "o", *words], "toy").whole


def test_only_what_was_given_is_kept() -> None:
    made = parse(Toy, ["RUN", "--out=o"], "toy")
    assert made == Toy(run=Path("RUN"), out=Path("o"))
    assert made.whole == {}
    # The value that holds anyway was given all the same.
    assert given("--epochs", "2", "--net.no-shared") == {"training.epochs": 2.0, "training.net.shared": False}
    assert parse(Toy, ["--loud", "--out", "o", "--name", "x", "RUN"], "toy").loud
    assert parse(Toy, ["--out", "o", "--", "--odd"], "toy").run == Path("--odd")


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (("--net.kind", "b"), {"training.net.kind": "b"}),
        (("--low", "-4"), {"training.net.low": -4}),
        (("--net.low", "4"), {"training.net.low": 4}),
        (("--net.high", "none"), {"training.net.high": None}),
        (("--net.high=3",), {"training.net.high": 3}),
        (("--net.widths", "3", "4", "5"), {"training.net.widths": (3, 4, 5)}),
        (("--net.widths",), {"training.net.widths": ()}),
        (("--net.mean", "1", "2e-3"), {"training.net.mean": (1.0, 0.002)}),
        (("--shared-net",), {"training.net.shared": True}),
        (("--shared_net",), {"training.net.shared": True}),
        (("--no-shared-net",), {"training.net.shared": False}),
        (("--views.kind", "a"), {"training.views.kind": "a"}),
        (("--folder", "f g"), {"training.folder": Path("f g")}),
        (("--note", "a=b"), {"note": "a=b"}),
        (("--folder", "none"), {"training.folder": Path("none")}),
        (("--folder", "None"), {"training.folder": None}),
    ],
)
def test_every_type_is_read(words: tuple[str, ...], value: dict[str, Any]) -> None:
    assert given(*words) == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--epocs", "3"), r"unknown flag --epocs \(did you mean --epochs\?\)\."),
        (("--net.lowe=3",), r"unknown flag --net.lowe \(did you mean --net.low\?\)\."),
        (("--secret", "3"), r"unknown flag --secret\."),
        (("--training.epochs", "3"), r"unknown flag --training.epochs \(did you mean --epochs\?\)"),
        (("--epochs", "three"), "--epochs: expected a number, got 'three'"),
        (("--net.high", "2.5"), "--net.high: expected a whole number or none, got '2.5'"),
        (("--net.widths", "1", "x"), "--net.widths: expected several of a whole number, got '1 x'"),
        (("--epochs",), "--epochs needs a value: NUMBER"),
        (("--net.mean", "1"), "--net.mean needs a value: NUMBER NUMBER"),
        (("--loud=no",), "--loud takes no value"),
        (("--epochs", "--low", "3"), "--epochs needs a value: NUMBER"),
        (("extra",), "'extra' is neither a flag nor the value of one"),
    ],
)
def test_what_cannot_be_read_is_one_line(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        given(*words)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UsageError, match="RUN is missing: Folder"):
        parse(Toy, ["--out", "o"], "toy")
    with pytest.raises(UsageError, match="--out is missing"):
        parse(Toy, ["RUN"], "toy")


def test_changes_are_checked_together() -> None:
    start = Whole(Training(net=Net(low=8)))
    made = changed(start, {"training.net.high": 3, "training.net.low": 1, "training.epochs": 5.0, "note": "n"})
    assert made == Whole(Training(net=Net(low=1, high=3), epochs=5.0), note="n")
    with pytest.raises(ConfigError, match="expected low <= high, got 8 and 3"):
        changed(start, {"training.net.high": 3})
    # What was none starts from its defaults.
    assert changed(start, {"training.views.low": 1}).training.views == Net(low=1)
    with pytest.raises(UnknownNameError, match=r"unknown kind 'aa': available are 'a', 'b'"):
        changed(start, given("--net.kind", "aa"))


def test_names_and_parts() -> None:
    of = Toy.__dataclass_fields__["whole"].metadata[Settings]
    assert name_of(of, "training.net.low") == "--low"
    assert name_of(of, "training.net.high") == "--net.high"
    assert below({"a.b": 1, "a.c.d": 2, "ab.c": 3}, "a") == {"b": 1, "c.d": 2}


def test_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as left:
        parse(Toy, ["--preset", "5", "--help"], "classact toy")
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    flat = " ".join(printed.split())
    for words in (
        "Do something.",
        "RUN Folder. (required)",
        "--out PATH (required)",
        "--name TEXT Of what is made. Known: one, two.",
        "--epochs NUMBER (default: 7)",  # of what is shown, not of the class
        "net options",
        '--net.kind {a,b} "a" or "b", see Kind. (default: a)',
        "--low, --net.low INT Limits of x, of which there are two. (default: 5)",
        "--net.high INT Limits of x, of which there are two. (default: 9)",
        "--net.mean NUMBER NUMBER Of channels. (default: 0.5 1)",
        "--net.widths INT ... Of layers. (default: 1 2)",
        "--shared-net, --net.shared, --no-shared-net One for all.",
        "views options",
    ):
        assert words in flat, words
    assert "secret" not in printed


@dataclass(frozen=True)
class Plain:
    steps: int = 3


@dataclass(frozen=True)
class Other:
    width: int = 4


@dataclass(frozen=True)
class Several:
    part: Plain | Other = field(default_factory=Plain)


def test_a_field_of_several_classes_has_the_flags_of_the_one_that_is_asked_for() -> None:
    of = {"plain": Plain, "other": Other}

    @dataclass(frozen=True)
    class Command:
        kind: str = "plain"
        several: Given = settings(
            Settings(Several, short={"part.steps": "steps"}, kinds={"part": lambda word: of[word("kind") or "plain"]})
        )

    assert parse(Command, ["--steps", "4"], "x").several == {"part.steps": 4}
    assert parse(Command, ["--kind", "other", "--part.width", "4"], "x").several == {"part.width": 4}
    with pytest.raises(UsageError, match=r"unknown flag --part\.width"):
        parse(Command, ["--part.width", "4"], "x")
    with pytest.raises(UsageError, match="unknown flag --steps"):
        parse(Command, ["--kind=other", "--steps", "4"], "x")


def test_a_type_that_no_flag_can_be_made_of_is_a_fault_of_the_code() -> None:
    @dataclass(frozen=True)
    class Odd:
        whole: Given = settings(Settings(Whole))

    with pytest.raises(TypeError, match="no flag can be made of"):
        parse(Odd, ["--note", "x"], "odd")


# All commands


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_is_quick_to_make_and_fits_a_terminal(name: str) -> None:
    """Nothing heavy is imported for it, every flag is explained, and lines are kept."""
    heavy = ("torch", "numba", "zarr", "h5py", "scipy", "cv2", "plotly", "rich", "gymnasium", "mujoco", "accelerate")
    program = f"""import sys
from classact.cli.main import main
try: main({[*name.split(), "--help"]!r})
except SystemExit as left: assert left.code == 0
print("LOADED", *[name for name in {heavy!r} if name in sys.modules])"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "80"}
    )
    printed, _, loaded = run.stdout.rpartition("LOADED")
    assert loaded.split() == []
    assert printed.startswith(f"usage: classact {name} ")
    assert max(map(len, printed.splitlines())) <= 80


def test_every_flag_is_explained_and_no_name_is_taken_twice() -> None:
    from classact.cli import flags

    for place in COMMANDS.values():
        found = list(flags._flags(resolve(place), lambda _: None, {}))
        names = [name for one in found for name in one.forms]
        assert sorted(names) == sorted(set(names)), place
        assert [one.name for one in found if not one.about] == [], place
