"""Exports of a package that are imported on first use, so that importing the package stays cheap."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` (PEP 562) of the package with these ``__name__`` and ``__file__``.

    They export the imports of its ``if TYPE_CHECKING:`` block (``from module import Name as Name``), so that exports
    are written once, where type checkers read them.
    """
    exports: dict[str, str] = {}
    for block in ast.parse(Path(file).read_text(encoding="utf-8")).body:
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING":
            for node in block.body:
                if isinstance(node, ast.ImportFrom):
                    exports |= {alias.name: str(node.module) for alias in node.names if alias.asname}

    def get(name: str) -> Any:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(exports[name]), name)

    def names() -> list[str]:
        return sorted({*exports, *vars(importlib.import_module(package))})

    return get, names


def resolve(reference: Any) -> Any:
    """The target of ``"module:attribute"``; anything but a string is returned unchanged."""
    if not isinstance(reference, str):
        return reference
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)
