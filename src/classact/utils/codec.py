"""Frozen dataclasses as JSON, and back: the one way that settings, rows and metadata are written and read.

The fields' types decide the format. A class whose JSON is not one entry per field has its own ``to_json(self)`` and
``from_json(cls, value, where)``; a field with the metadata ``{"json": False}`` is left out, and read as its default.
One with :data:`ADDED` was added after files had been written: where it is missing, its default is meant.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import numpy as np

from classact.errors import ClassactError, DataError, choose

T = TypeVar("T")

ADDED = {"added": True}
"""Metadata of a field whose default is how things were before there was such a field."""


def to_json(value: Any) -> Any:
    """A dataclass, or the value of a field of one, as JSON values; a TypeError where it has no such form."""
    if hasattr(value, "to_json") and not isinstance(value, type):
        return value.to_json()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return fields_to_json(value)
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def fields_to_json(value: Any) -> dict[str, Any]:
    """One entry per field of a dataclass, ignoring its own ``to_json``."""
    return {field.name: to_json(getattr(value, field.name)) for field in _written(type(value))}


def _written(cls: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(cls) if field.metadata.get("json", True)]


def from_json(
    cls: type[T], value: Any, where: str, *, error: type[ClassactError] = DataError, partial: bool = False
) -> T:
    """The dataclass that :func:`to_json` wrote.

    Args:
        cls: a dataclass.
        value: JSON that was read.
        where: names it in messages: a file, and the path within it.
        error: raised for an unknown, missing or mistyped field, with its path, or a value that the class itself
            refuses.
        partial: whether missing fields take their defaults rather than being errors.
    """
    return _Reader(error, partial).read(cls, value, where)


def fields_from_json(
    cls: type[T], value: Any, where: str, *, error: type[ClassactError] = DataError, partial: bool = False
) -> T:
    """Inverse of :func:`fields_to_json`; arguments and errors as of :func:`from_json`."""
    return _Reader(error, partial).fields(cls, value, where)


def without(value: Any, *paths: str) -> Any:
    """A JSON object without some entries, named by dotted paths such as "frames.workers"; other values unchanged."""
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, item in value.items():
        if key not in paths:
            kept[key] = without(item, *(path.removeprefix(f"{key}.") for path in paths if path.startswith(f"{key}.")))
    return kept


def first_difference(found: Any, expected: Any, name: str) -> str | None:
    """The first setting that differs between JSON that was read and the present one; None where all agree.

    ``name`` is that of the whole, before the first dot; "" names the keys alone.
    """
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted(found.keys() | expected.keys()):
            path = f"{name}.{key}" if name else key
            if difference := first_difference(found.get(key), expected.get(key), path):
                return difference
        return None
    return None if found == expected else f"{name} = {found!r}, now it is {expected!r}"


@dataclasses.dataclass(frozen=True)
class _Reader:
    error: type[ClassactError]
    partial: bool

    def read(self, kind: Any, value: Any, where: str) -> Any:
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if kind is Any:
            return value
        if origin is typing.Annotated:
            return self.read(arguments[0], value, where)
        if (alias := getattr(origin, "__value__", None)) is not None:  # NDArray of NumPy 2.5, on Python 3.12
            return self.read(alias[arguments], value, where)
        if origin in (Union, types.UnionType):
            return self._union(arguments, value, where)
        if origin is Literal:
            if value not in arguments:
                raise self.error(f"{where}: {choose('value', value, arguments)}.")
            return value
        if origin in (tuple, list, Sequence):
            return self._sequence(origin, arguments, value, where)
        if origin is np.ndarray:
            return self._array(typing.get_args(arguments[1])[0], value, where)
        if origin in (dict, Mapping):
            self._expect(isinstance(value, dict), "an object", value, where)
            return {key: self.read(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
        if isinstance(kind, type) and hasattr(kind, "from_json"):
            try:
                return kind.from_json(value, where)
            except ClassactError as problem:
                raise self.error(str(problem)) from None
        if dataclasses.is_dataclass(kind):
            return self.fields(kind, value, where)
        return self._plain(kind, value, where)

    def _plain(self, kind: Any, value: Any, where: str) -> Any:
        if kind in (None, type(None)):
            self._expect(value is None, "null", value, where)
            return None
        if kind is Path:
            self._expect(isinstance(value, str), "a path", value, where)
            return Path(value)
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "an object"}
        accepted = (int, float) if kind is float else kind
        good = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
        self._expect(good, names.get(kind, getattr(kind, "__name__", str(kind))), value, where)
        return float(value) if kind is float else value

    def _array(self, dtype: Any, value: Any, where: str) -> Any:
        self._expect(isinstance(value, list), "a list of numbers", value, where)
        try:
            return np.asarray(value, dtype)
        except (TypeError, ValueError):
            raise self.error(f"{where}: expected a list of numbers, got {value!r:.80}.") from None

    def _expect(self, good: bool, what: str, value: Any, where: str) -> None:
        if not good:
            raise self.error(f"{where}: expected {what}, got {value!r:.80}.")

    def _union(self, arguments: tuple[Any, ...], value: Any, where: str) -> Any:
        if value is None and type(None) in arguments:
            return None
        kinds = [kind for kind in arguments if kind is not type(None)]
        if len(kinds) == 1:
            return self.read(kinds[0], value, where)
        problems = []
        for kind in kinds:
            try:
                return self.read(kind, value, where)
            except self.error as problem:
                problems.append(str(problem))
        raise self.error(" Or: ".join(problems))

    def _sequence(self, origin: Any, arguments: tuple[Any, ...], value: Any, where: str) -> Any:
        self._expect(isinstance(value, (list, tuple)), "a list", value, where)
        if origin is not tuple or arguments[1:] == (...,):
            kinds: Sequence[Any] = [arguments[0]] * len(value)
        else:
            self._expect(len(value) == len(arguments), f"a list of {len(arguments)} values", value, where)
            kinds = arguments
        items = (
            self.read(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
        return list(items) if origin is list else tuple(items)

    def fields(self, cls: Any, value: Any, where: str) -> Any:
        self._expect(isinstance(value, dict), f"an object with the fields of {cls.__name__}", value, where)
        fields = {field.name: field for field in _written(cls)}
        whose = "" if self.partial else " Another version may have written it."  # partial JSON is written by people
        for name in value:
            if name not in fields:
                raise self.error(f"{where}: {choose('field', name, fields)}.{whose}")
        hints = typing.get_type_hints(cls, include_extras=True)
        arguments = {}
        for name, field in fields.items():
            if name not in value:
                default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
                if field.init and not (default and (self.partial or "added" in field.metadata)):
                    raise self.error(f"{where}: field {name!r} is missing.{whose}")
            elif field.init:
                arguments[name] = self.read(hints[name], value[name], f"{where}.{name}")
            elif value[name] != field.default:
                raise self.error(f"{where}.{name}: expected {field.default!r}, got {value[name]!r}.")
        try:
            return cls(**arguments)
        except ClassactError as problem:
            raise self.error(f"{where}: {problem}") from None
