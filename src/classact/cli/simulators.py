"""Commands on simulators: gallery."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Gallery:
    """Draw every installed task under its visual shifts into one picture."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="Folder for gallery.png and one strip per task.")]
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(help="Only these simulators.")] = ()


def gallery(arguments: Gallery) -> None:
    """Draw; say what is missing and how to get it."""
    import sys

    from classact.cli.gallery import make_gallery
    from classact.utils.progress import progress_bar

    with progress_bar("draw tasks") as bar:
        picture, missing = make_gallery(arguments.out, arguments.tasks, bar)
    for name, reason in missing.items():
        print(f"{name}: not drawn now: {reason}", file=sys.stderr)
    print(f"Picture: {picture}")
