"""Settings of the documentation site: ``uv run --group docs sphinx-build -W docs docs/_build``."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import classact

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "classact"
author = copyright = PROJECT["authors"][0]["name"]  # noqa: A001
version = release = classact.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"classact {version}"
html_theme_options = {
    "source_repository": PROJECT["urls"]["Repository"],
    "source_branch": "main",
    "source_directory": "docs/",
}


def lead_into_the_repository(_app: Any, _name: str, text: list[str]) -> None:
    """Links to files outside ``docs/`` work in the repository; on the site they lead there."""
    target = f"]({PROJECT['urls']['Repository']}/blob/main/"
    text[0] = re.sub(r"\]\(\.\./", target, text[0])


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", lead_into_the_repository)
