"""Snippets of docs/integrations.md by name: the word behind "python"."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs/integrations.md"


def snippet(name: str) -> str:
    (code,) = re.findall(rf"```python {name}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(code)
