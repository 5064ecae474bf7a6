"""What pages are made of: figures with words, and the environment of their templates."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from classact.pages.style import percent

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class Plot:
    """A figure for the page: its JSON, what a screen reader says, and the sentence beneath."""

    key: str
    figure: dict[str, Any]
    alt: str
    caption: str = ""
    title: str = ""
    views: list[str] = field(default_factory=list)


def make_plot(key: str, figure: go.Figure, alt: str, caption: str = "", title: str = "") -> Plot:
    """A figure with its words; the views that its ``meta`` names become buttons."""
    value = json.loads(figure.to_json())
    views = (value["layout"].get("meta") or {}).get("views", {})
    return Plot(key, value, alt, caption, title, list(views))


def duration(seconds: float) -> str:
    """``5400`` as ``1 h 30 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def environment(folder: Path | None = None) -> Environment:
    """Templates of this package, and of a folder: escaped, and strict about names that are not there."""
    from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined

    own = PackageLoader("classact.pages", ".")

    templates = Environment(
        loader=own if folder is None else ChoiceLoader([FileSystemLoader(folder), own]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"percent": percent, "duration": duration}
    return templates
