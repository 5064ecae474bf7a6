"""Colours, markers and text that every figure shares.

The page sets colours that depend on light or dark mode (text, grid). Series colours are of middle lightness, with at
least 3:1 contrast on both backgrounds, from a palette that colour-blind readers can tell apart; every encoder also has
its own marker.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

PALETTE = BLUE, ORANGE, GREEN, PURPLE, OLIVE, TEAL = "#2B7CBF", "#CC6A11", "#12916B", "#B4589A", "#8C7B14", "#1E8E9E"
GREY = "#808893"
_ENCODERS = {"class": (BLUE, "circle"), "untrained": (ORANGE, "diamond"), "state": (GREEN, "square")}
_OTHERS = ((PURPLE, "triangle-up"), (OLIVE, "cross"), (TEAL, "star"), (GREY, "hexagon"))


def styles(series: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each series (an encoder, or a head with its training), the same in every figure."""
    others = [name for name in dict.fromkeys(series) if name not in _ENCODERS]
    return _ENCODERS | {name: _OTHERS[i % len(_OTHERS)] for i, name in enumerate(others)}


def veil(colour: str, opacity: float) -> str:
    """A hex colour as a see-through fill."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def percent(value: float) -> str:
    """``0.8642`` as ``86.4%``."""
    return f"{100 * value:.1f}%"


def figure_base(height: int, **layout: Any) -> go.Figure:
    """An empty figure with the margins and style of all others."""
    base: dict[str, Any] = {
        "template": "none",
        "height": height,
        "margin": {"l": 56, "r": 16, "t": 12, "b": 44},
        "showlegend": False,
        "hovermode": "closest",
    }
    return go.Figure(layout=base | layout)


def mark(figure: go.Figure, x: float, text: str, *, log: bool = False) -> None:
    """A dashed vertical line with a text above it; on a logarithmic axis plotly places texts by exponent."""
    figure.add_vline(x=x, line={"color": ORANGE, "width": 2, "dash": "dash"})
    at = float(np.log10(x)) if log else x
    figure.add_annotation(x=at, y=1.01, yref="paper", yanchor="bottom", text=text, showarrow=False)


def label(value: object) -> str:
    """A name as plotly text."""
    # Plotly reads a small HTML dialect, links included, in every label: names must not be able to use it.
    return html.escape(str(value), quote=False)


def wrapped(text: str, width: int = 24) -> str:
    """A label of comma-separated parts, broken between parts, as page.js does where a page is narrow."""
    lines: list[str] = []
    for part in text.split(", "):
        if lines and len(f"{lines[-1]}, {part}") <= width:
            lines[-1] += f", {part}"
        else:
            lines.append(part)
    return ",<br>".join(lines)


def thin(n: int, most: int) -> NDArray[np.int64]:
    """At most ``most`` of the indices 0..n-1, evenly spaced, both ends included."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))
