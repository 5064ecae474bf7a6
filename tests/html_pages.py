"""A page, taken apart: its tags, words, styles and figures."""

import json
import re
from html.parser import HTMLParser

ADDRESSES = ("src", "href", "srcset", "poster", "action", "data", "background", "xlink:href")
"""Attributes that a browser loads from."""


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.figures: list[dict] = []
        self.words: list[str] = []
        self.styles: list[str] = []
        self.scripts: list[str] = []
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._open.pop()

    def handle_data(self, data):
        if not self._open:
            self.words.append(data)
        elif self._open[-1][0] == "style":
            self.styles.append(data)
        elif self._open[-1][1].get("type") == "application/json":
            self.figures.append(json.loads(data))
        else:
            self.scripts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def sections(self) -> set[str | None]:
        return {section["id"] for section in self.of("section")}


def check_alone(page: Page) -> None:
    """It is one file that needs no network."""
    addresses = [str(a[name]) for _, a in page.tags for name in ADDRESSES if a.get(name)]
    assert {address.split(":")[0] if ":" in address else address[0] for address in addresses} == {"data", "#"}
    assert not re.search(r"@import|url\s*\(", " ".join(page.styles))
    policy = next(str(a["content"]) for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert sum("plotly.js v" in script for script in page.scripts) == 1


def check_words(page: Page, sections: set[str]) -> None:
    """These sections are there and linked; every picture and chart has words."""
    assert page.sections() == sections
    assert {a["href"] for a in page.of("a")} == {f"#{name}" for name in sections}
    assert all(image.get("alt") for image in page.of("img"))
    charts = [a for a in page.of("div") if a.get("role") == "img"]
    assert len(charts) == len(page.figures)
    assert all(chart["aria-label"] for chart in charts)
