"""Allowed values of settings: the names that their types list, and ranges of numbers."""

from __future__ import annotations

import operator
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from classact.errors import ConfigError, UnknownNameError, choose


def check_names(config: Any, **called: str) -> None:
    """Refuse a dataclass with a field of type ``Literal[...]``, or a tuple of such, that has another value.

    ``called`` is what the UnknownNameError calls a field whose own name is not clear enough.
    """
    cls: Any = type(config)
    for name, known in _listed(cls).items():
        value = getattr(config, name)
        for one in value if isinstance(value, tuple) else (value,):
            if one not in known:
                raise UnknownNameError(choose(called.get(name, name), one, known))


@cache
def _listed(cls: Any) -> dict[str, tuple[Any, ...]]:
    found = {}
    for name, kind in get_type_hints(cls).items():
        one = get_args(kind)[0] if get_origin(kind) is tuple else kind
        if get_origin(one) is Literal:
            found[name] = get_args(one)
    return found


def check_range(
    config: Any,
    *names: str,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> None:
    """Refuse a dataclass with a number outside of the range that ``names`` share; None is in every one, NaN in none.

    Numbers are > ``above`` or >= ``least``, < ``below`` or <= ``most``; the ConfigError names field, range and value.
    """
    left = ((above, "<", operator.gt), (least, "<=", operator.ge))
    right = ((below, "<", operator.lt), (most, "<=", operator.le))
    for name in names:
        value = getattr(config, name)
        if value is not None and not all(limit is None or holds(value, limit) for limit, _, holds in (*left, *right)):
            lower = [f"{limit:g} {sign} " for limit, sign, _ in left if limit is not None]
            upper = [f" {sign} {limit:g}" for limit, sign, _ in right if limit is not None]
            if not upper:
                lower, upper = [], [f" {'>' if above is not None else '>='} {above if least is None else least:g}"]
            raise ConfigError(f"expected {''.join([*lower, name, *upper])}, got {value}.")
