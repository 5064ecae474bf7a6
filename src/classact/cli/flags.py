"""Flags from dataclasses; argparse reads them and prints the help.

A command is a frozen dataclass. Its fields are flags, and :func:`settings` makes flags of every field of a
configuration: ``--encoder.backbone`` is ``backbone`` of ``encoder``, with the docstring's line as its help and
optionally a short name. Given values are kept by path, so that a preset, a file, or the settings of a run's folder
supply the others.
"""

from __future__ import annotations

import argparse
import difflib
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

from classact.data.rate import Seconds, Span, in_steps, read_span
from classact.errors import ClassactError, ConfigError
from classact.utils.codec import from_json
from classact.utils.storage import read_json

T = TypeVar("T")
Given = Mapping[str, Any]  # dotted path of a configuration's field -> the value that a flag gave it
Word = Callable[[str], str | None]
"""Name of a flag -> its value on the command line, before parsing; None where it is missing."""

Device = Literal["auto", "cpu", "cuda"]


class UsageError(ClassactError):
    """A command line that cannot be read."""


@dataclass(frozen=True)
class Settings:
    """How the fields of a configuration become flags. Keys are the flags' names without dashes.

    Attributes:
        kind: class of the configuration, or what gives, when needed, which fields of several are flags.
        prefix: of the names of all flags.
        inline: paths of fields whose own name is left out: with "pretrain", ``pretrain.encoder.backbone`` is
            ``--encoder.backbone``.
        hidden: fields that are no flags, nor those below them.
        short: further names of flags.
        about: help where the docstring's is not for the command line.
        choices: names to choose from, listed in the help.
        kinds: class of a field that has several, chosen by another flag.
        defaults: whether the help shows them.
    """

    kind: type[Any] | Callable[[], Iterable[tuple[type[Any], Iterable[str]]]]
    prefix: str = ""
    inline: Sequence[str] = ()
    hidden: Sequence[str] = ()
    short: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, Callable[[], Iterable[str]]] = field(default_factory=dict)
    kinds: Mapping[str, Callable[[Word], type[Any]]] = field(default_factory=dict)
    defaults: bool = True


def settings(of: Settings) -> Any:
    """A command's field that holds what is :data:`Given` of a configuration."""
    return field(default_factory=dict, metadata={Settings: of})


def flag(
    default: Any = MISSING,
    *,
    positional: bool = False,
    choices: Callable[[], Iterable[str]] | None = None,
    hidden: bool = False,
) -> Any:
    """A command's field that is positional, is chosen from names that the help lists, or is no flag."""
    return field(default=default, metadata={"positional": positional, "choices": choices, "hidden": hidden})


def given_flags(command: Any, *besides: str) -> list[str]:
    """Flags of a command, besides some, that are not as they are where none is given."""
    found: list[str] = []
    for entry in fields(command):
        value = getattr(command, entry.name)
        if entry.name not in besides:
            found += list(value) if isinstance(value, Mapping) else [entry.name] * (value != entry.default)
    return found


def changed(config: T, given: Given) -> T:
    """A configuration with what was given; its checks see all changes at once. None starts from defaults."""
    own: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for path, value in given.items():
        name, _, rest = path.partition(".")
        if rest:
            nested.setdefault(name, {})[rest] = value
        else:
            own[name] = value
    for name, inner in nested.items():
        present = getattr(config, name)
        if present is None:
            present = _configuration(typing.get_type_hints(type(config))[name])()
        own[name] = changed(present, inner)
    return replace(config, **own)  # type: ignore[type-var]


def from_file(kind: type[T], path: Path) -> T:
    """The configuration in a JSON file of the settings alone, or that has them under "settings".

    An unknown, missing or mistyped field is a ConfigError with its path.
    """
    value = read_json(path)
    nested = isinstance(value, dict) and "settings" in value
    return from_json(kind, value["settings"] if nested else value, f"{path}: settings", error=ConfigError)


def name_of(of: Settings, path: str) -> str:
    """How the flag for a field is written: ``--quantile``; of a plugin's own, by its path."""
    found = (one.names[0] for one in _settings(of, "", lambda _: None, None) if one.path == path)
    return next(found, f"--{path.replace('_', '-')}")


def counted(
    of: Settings, given: Given, rate: Callable[[], tuple[float | None, str]], say: Callable[[str], None] | None = None
) -> Given:
    """What was given, with lengths of time as steps of data.

    Args:
        of: what it is given of.
        given: by path.
        rate: how many steps per second the data have, and their name; asked only where there are seconds.
        say: told both numbers of each.

    Raises:
        ConfigError: as :func:`classact.data.rate.in_steps`.
    """
    if not any(isinstance(value, Seconds) for value in given.values()):
        return given
    fps, where = rate()
    found = dict(given)
    for path, value in given.items():
        if isinstance(value, Seconds):
            found[path] = steps = in_steps(value, fps, name_of(of, path), where)
            if say is not None and fps is not None:
                off = "" if abs(steps / fps - value.seconds) < 0.01 * value.seconds else f", {steps / fps:.3g} s,"
                say(f"{name_of(of, path)} {value} = {steps} steps{off} at {fps:g} steps per second")
    return found


def below(given: Given, name: str) -> Given:
    """What was given of one field, by the paths within it."""
    return {path.removeprefix(f"{name}."): value for path, value in given.items() if path.startswith(f"{name}.")}


# -- parsing -----------------------------------------------------------------------------------------------------------


def parse(command: type[T], words: Sequence[str], prog: str) -> T:
    """A command's flags from the words behind its name, which is the last of ``prog``.

    A static method ``shown(word)`` of the command may say which configurations the help shows as defaults, by field.

    Raises:
        UsageError: an unknown or missing flag, or one without a value or with one that cannot be read.
        SystemExit: the help was requested and printed.
    """
    asks = any(word in ("-h", "--help") for word in words)
    word = _words(words)
    defaults: Any = getattr(command, "shown", None)
    found = list(_flags(command, word, defaults(word) if asks and defaults is not None else {}))
    parser = _parser(found, prog, (command.__doc__ or "").strip().partition("\n")[0], asks)
    if asks:
        parser.print_help()
        raise SystemExit(0)
    known = {form: one for one in found for form in one.forms}
    try:
        parsed, rest = parser.parse_known_args([_spelled(word) for word in words])
    except argparse.ArgumentError as problem:  # of how many words its value has
        name = str(problem.argument_name).partition("/")[0]
        what = _reader(known[name].kind).metavar
        raise UsageError(f"{name} needs a value: {what}." if what else f"{name} takes no value.") from None
    if rest:
        raise UsageError(_unknown(rest[0], known))
    return _made(command, found, vars(parsed))


def _unknown(word: str, known: Iterable[str]) -> str:
    if not word.startswith("--"):
        return f"{word!r} is neither a flag nor the value of one."
    name = word.partition("=")[0]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    near = near or [form for form in known if _last(form) == _last(name)]  # as its path in a run's file
    return f"unknown flag {name}{f' (did you mean {near[0]}?)' if near else ''}."


def _words(words: Sequence[str]) -> Word:
    def word(name: str) -> str | None:
        found = None
        for text, after in zip_longest(words, words[1:]):
            key, equals, value = text.partition("=")
            if key == f"--{name}":
                found = value if equals else after
        return found

    return word


@dataclass(frozen=True)
class _Flag:
    """One flag: ``path`` is within the configuration in the command's ``field``, empty for the command's own.

    ``name`` is without dashes; the part before the first dot is the group in the help.
    """

    field: str
    path: str
    name: str
    short: str
    kind: Any
    default: Any
    about: str
    choices: Callable[[], Iterable[str]] | None
    positional: bool = False

    @property
    def names(self) -> list[str]:
        """With dashes, the usual one first."""
        return [f"--{name}" for name in (self.short, self.name) if name]

    @property
    def called(self) -> str:
        return self.name.upper() if self.positional else self.names[0]

    @property
    def group(self) -> str:
        return self.name.rpartition(".")[0].partition(".")[0]

    @property
    def forms(self) -> list[str]:
        """All words that name it, including those that turn a switch off."""
        if self.kind is not bool:
            return self.names
        off = [re.sub(r"([^.]*)$", r"no-\1", name[2:], count=1) for name in self.names]
        return [*self.names, *(f"--{name}" for name in off)]


def _flags(command: type[Any], word: Word, shown: Mapping[str, Any]) -> Iterator[_Flag]:
    texts, hints = about(command), typing.get_type_hints(command)
    for entry in fields(command):
        name, own = entry.name, entry.metadata
        if Settings in own:
            yield from _settings(own[Settings], name, word, shown.get(name))
        elif not own.get("hidden"):
            rest = hints[name], _default(entry), texts.get(name, ""), own.get("choices"), own.get("positional", False)
            yield _Flag(name, "", _dashed(name), "", *rest)


def _settings(of: Settings, home: str, word: Word, shown: Any) -> Iterator[_Flag]:
    if isinstance(of.kind, type):
        return _of_configuration(of, home, of.kind, "", of.prefix, word, shown)
    found: dict[str, _Flag] = {}
    for kind, names in of.kind():
        flags = {one.path: one for one in _of_configuration(of, home, kind, "", of.prefix, word, shown)}
        found |= {name: flags[name] for name in names if name not in found}
    return iter(found.values())


def _of_configuration(
    of: Settings, home: str, kind: type[Any], path: str, name: str, word: Word, shown: Any
) -> Iterator[_Flag]:
    texts, hints = about(kind), typing.get_type_hints(kind)
    for entry in fields(kind):
        if not entry.init:
            continue
        inner = f"{path}.{entry.name}".lstrip(".")
        called = name if inner in of.inline else f"{name}.{_dashed(entry.name)}".lstrip(".")
        if called in of.hidden:
            continue
        value = _default(entry) if shown is None else getattr(shown, entry.name)
        nested = of.kinds[called](word) if called in of.kinds else _configuration(hints[entry.name])
        if nested is None:
            text = of.about.get(called, texts.get(entry.name, ""))
            short, choices = of.short.get(called, ""), of.choices.get(called)
            kind = _spanned(hints[entry.name]) if entry.metadata.get("unit") == "steps" else hints[entry.name]
            yield _Flag(home, inner, called, short, kind, value if of.defaults else ..., text, choices)
        else:
            # Where another kind was chosen than the default's, its own defaults are shown.
            yield from _of_configuration(
                of, home, nested, inner, called, word, value if isinstance(value, nested) else None
            )


def _spanned(kind: Any) -> Any:
    """The type of a flag that takes steps or seconds."""
    return Span | None if type(None) in typing.get_args(kind) else Span


def _spelled(word: str) -> str:
    """Flags may be written with underscores, too."""
    name, equals, value = word.partition("=")
    return f"{_dashed(name)}{equals}{value}" if name.startswith("--") else word


class _Help(argparse.HelpFormatter):
    def _format_action_invocation(self, action: argparse.Action) -> str:
        words: Sequence[str] = action.option_strings
        if isinstance(action, _Switch):
            words = words[: len(action.const) + 1]  # there are as many that turn it off, of which one is enough
        return " ".join([", ".join(words), str(action.metavar or "")]).strip()

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)  # names stay whole


class _Switch(argparse.Action):
    """``const`` holds the words that turn it on."""

    def __call__(self, _: Any, namespace: Any, __: Any, word: str | None = None) -> None:
        setattr(namespace, self.dest, word in self.const)


def _parser(found: Sequence[_Flag], prog: str, about: str, asks: bool) -> argparse.ArgumentParser:
    """Reads the words of every given flag, under its index in ``found``.

    Choices are listed only where the help is asked for: to list some imports every plugin.
    """
    parser: Any = argparse.ArgumentParser(
        prog=prog,
        usage=" ".join(["%(prog)s", *(_metavar(one) for one in found if one.positional), "[flags]"]),
        description=about,
        formatter_class=_Help,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        exit_on_error=False,
    )
    groups = {name: parser.add_argument_group(f"{name} options") for name in dict.fromkeys(one.group for one in found)}
    groups[""] = parser
    for at, one in enumerate(found):
        reader = _reader(one.kind)
        known = f"Known: {', '.join(one.choices())}." if asks and one.choices is not None else ""
        text = " ".join(filter(None, (one.about, known, _hint(one)))).replace("%", "%%")
        add = groups[one.group].add_argument
        if one.positional:
            add(str(at), nargs="?" if reader.nargs == 1 else "*", metavar=_metavar(one), help=text)
        elif one.kind is bool:
            add(*one.forms, dest=str(at), action=_Switch, nargs=0, const=one.names, help=text)
        else:
            add(*one.names, dest=str(at), nargs=reader.nargs, metavar=reader.metavar, help=text)
    return parser


def _metavar(one: _Flag) -> str:
    return one.called if _reader(one.kind).nargs == 1 else f"[{one.called} ...]"


def _hint(one: _Flag) -> str:
    if one.default is MISSING:
        return "(required)"
    if one.default is ... or (not one.path and one.default in (None, (), False)):  # the command's help says what holds
        return ""
    return f"(default: {_written(one.default)})"


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(map(_written, value)) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _made(command: type[T], found: Sequence[_Flag], parsed: Mapping[str, Any]) -> T:
    arguments: dict[str, Any] = {one.field: {} for one in found if one.path}
    for at, one in enumerate(found):
        if str(at) not in parsed:
            if one.default is MISSING and not one.path:
                raise UsageError(f"{one.called} is missing: {one.about}")
            continue
        value = parsed[str(at)]
        if one.kind is not bool:
            words, reader = [value] if isinstance(value, str) else value, _reader(one.kind)
            try:
                value = reader.read(words)
            except ValueError:
                raise UsageError(f"{one.called}: expected {reader.what}, got {' '.join(words)!r}.") from None
        if one.path:
            arguments[one.field][one.path] = value
        else:
            arguments[one.field] = value
    return command(**arguments)


# -- types -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reader:
    """How values of ``nargs`` words are read, and what the help and messages call them."""

    nargs: int | Literal["*"]
    metavar: str
    what: str
    read: Callable[[list[str]], Any]


_PLAIN: dict[Any, _Reader] = {
    bool: _Reader(0, "", "nothing", bool),
    int: _Reader(1, "INT", "a whole number", lambda words: int(words[0])),
    float: _Reader(1, "NUMBER", "a number", lambda words: float(words[0])),
    str: _Reader(1, "TEXT", "text", lambda words: words[0]),
    Path: _Reader(1, "PATH", "a path", lambda words: Path(words[0])),
}


def _reader(kind: Any) -> _Reader:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _reader(inner[0])
    if origin is Literal:
        names = {str(value): value for value in inner}
        # The configuration refuses anything else: it knows its name and near matches.
        return _Reader(1, f"{{{','.join(names)}}}", "one of them", lambda words: names.get(words[0], words[0]))
    if set(inner) - {type(None)} == {int, Seconds}:
        reader = _Reader(1, "STEPS|1.6s", "steps, or seconds as in 1.6s", lambda words: read_span(words[0]))
        return _optional(reader) if type(None) in inner else reader
    if origin in (Union, types.UnionType) and type(None) in inner and len(inner) == 2:
        return _optional(_reader(next(one for one in inner if one is not type(None))))
    if origin in (Union, types.UnionType) and set(inner) - {type(None)} == {int, str}:
        return _optional(_Reader(1, "N|0:N", "a number, or numbers and ranges", _number_or_text))
    if origin in (Union, types.UnionType) and str in inner and any(typing.get_origin(one) is tuple for one in inner):
        return _Reader("*", "TEXT ...", "one or several", lambda words: words[0] if len(words) == 1 else tuple(words))
    if origin is tuple:  # of values of one type, so many or any number
        item, several = _reader(inner[0]), inner[1:] == (...,)
        return _Reader(
            "*" if several else len(inner),
            f"{item.metavar} ..." if several else " ".join([item.metavar] * len(inner)),
            f"{'several' if several else len(inner)} of {item.what}",
            lambda words: tuple(item.read([word]) for word in words),
        )
    if kind not in _PLAIN:
        raise TypeError(f"no flag can be made of {kind}: hide the field, or read it here")
    return _PLAIN[kind]


def _number_or_text(words: list[str]) -> int | str:
    return int(words[0]) if words[0].isdecimal() else words[0]


def _optional(reader: _Reader) -> _Reader:
    nothing = [["None"]] if reader.metavar in ("TEXT", "PATH") else [["None"], ["none"]]  # an objective is called none

    def read(words: list[str]) -> Any:
        return None if words in nothing else reader.read(words)

    return replace(reader, what=f"{reader.what} or none", read=read)


def _configuration(kind: Any) -> Any:
    """The dataclass that a field holds, with or without None; None where it holds something else."""
    found = [one for one in (kind, *typing.get_args(kind)) if isinstance(one, type) and is_dataclass(one)]
    plain = kind in found or typing.get_origin(kind) in (Union, types.UnionType)
    return found[0] if plain and len(found) == 1 else None


def _default(entry: Field[Any]) -> Any:
    return entry.default_factory() if entry.default_factory is not MISSING else entry.default


# -- words -------------------------------------------------------------------------------------------------------------


def about(kind: type[Any]) -> dict[str, str]:
    """Field -> its line under "Attributes:" in the docstring of its class or a base of it, without markup."""
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        _, _, text = (vars(cls).get("__doc__") or "").partition("Attributes:\n")
        for names, about in re.findall(r"^ {8}(\w[\w, ]*): (.*(?:\n {9,}.*)*)", text, re.MULTILINE):
            plain = re.sub(r":\w+:`~?([^`]*)`", lambda match: match[1].rpartition(".")[2], " ".join(about.split()))
            found |= dict.fromkeys(names.split(", "), plain.replace("``", ""))
    # Words begin with a capital, symbols such as k_nn stay as they are.
    return {name: re.sub(r"^[a-z]+(?=[ ,.:;-])", lambda m: m[0].capitalize(), text) for name, text in found.items()}


def _last(name: str) -> str:
    return name.lstrip("-").rpartition(".")[2]


def _dashed(name: str) -> str:
    return name.replace("_", "-")
