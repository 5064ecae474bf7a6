"""Parts of pages: figures with words, and templates."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from classact.pages.style import percent
from classact.utils.progress import duration
from classact.utils.storage import write_text

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Plot:
    """A figure for the page: its JSON, alternative text, and caption."""

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


def write_page(path: Path, template: Path, content: Mapping[str, Any], **filters: Callable[[Any], str]) -> Path:
    """Render a template of this folder with ``content`` to ``path``, and return it.

    The page needs no network: plotly.js, images and videos are inside, and a content security policy forbids the
    browser to load anything. Templates are escaped and strict about unknown names. A StorageError leaves an older page
    unchanged.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    templates = Environment(
        loader=FileSystemLoader([template.parent, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"percent": percent, "duration": duration, **filters}
    write_text(path, templates.get_template(template.name).render(content, plotly_js=Markup(get_plotlyjs())))
    return path
