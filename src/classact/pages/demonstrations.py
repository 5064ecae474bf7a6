"""What the demonstrations hold, how far each is from the others, and videos of held-out ones."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from classact.data.readers.selection import written_episodes
from classact.data.statistics import Spread, Statistics
from classact.evaluation.rows import Consistency, NoveltyVideo
from classact.pages.checks import Arrays
from classact.pages.reasons import curves, png_uri
from classact.pages.table import Row
from classact.run.folder import Run
from classact.utils.progress import duration


def facts(found: Statistics) -> list[tuple[str, str]]:
    """Rows of a table."""
    held = f", of which the last {found.heldout} are held out" if found.heldout else ""
    lengths = f"{found.lengths.low:.0f} to {found.lengths.high:.0f} each, median {found.median:.0f}"
    rows = [("Demonstrations", f"{found.demonstrations:,}{held}"), ("Steps", f"{found.steps:,} ({lengths})")]
    if found.labelled is not None:
        rows.append(("Actions", f"of {found.labelled:,} of them"))
    if found.fps is None:
        rows.append(("Duration", "not known: the data declare no steps per second"))
    else:
        each = duration(found.median / found.fps)
        whole = f"{duration(found.steps / found.fps)} at {found.fps:g} steps per second, median {each}"
        rows.append(("Duration", whole))
    views = ", ".join(f"{view.name} ({view.width} × {view.height})" for view in found.cameras)
    drawn = f"drawn from states by simulator {found.rendered}" if found.rendered else "none recorded"
    rows.append(("Cameras", views or drawn))
    if found.all_tasks:
        more = found.all_tasks - len(found.tasks)
        tasks = "; ".join(f"{task or 'no words'} ({count})" for task, count in found.tasks)
        rows.append(("Tasks", tasks + (f"; and {more} more" if more else "")))
    return rows


def spreads(found: Statistics) -> list[Row]:
    """Ranges of each action dimension, and of the demonstrations' lengths, ready to draw."""
    lengths = replace(found.lengths, name="length in steps")
    return [vars(one) | {"bars": bars(one)} for one in (*found.actions, lengths)]


def bars(spread: Spread) -> list[tuple[float, float, float]]:
    """(x, y, height) of the bars of a histogram in a box of 100 x 24."""
    most, width = max(spread.counts), 100 / len(spread.counts)
    found = []
    for place, count in enumerate(spread.counts):
        if count:
            height = max(1.0, 24 * count / most)
            found.append((round(place * width, 2), round(24 - height, 2), round(height, 2)))
    return found


def without(found: Consistency, statistics: Statistics, known: Sequence[int]) -> str:
    """Flags of a run without the demonstrations that stand out; empty where none does."""
    out = {known[one.episode] for one in found.outliers}
    kept = written_episodes([number for number in known if number not in out])
    held = f" --heldout {statistics.heldout}" if statistics.heldout else ""
    return f"--episodes {kept}{held}" if out else ""


def inconsistent(found: Consistency, arrays: Arrays, known: Sequence[int]) -> list[Row]:
    """The demonstrations that differ most from the others, ready to draw."""
    by_number = {one.episode: one for one in found.episodes}
    outliers = {one.episode for one in found.outliers}
    cards = []
    for i, episode in enumerate(arrays["episode"].tolist()):
        one = by_number[episode]
        done, others = arrays["done"][i], arrays["others"][i]
        seen = np.concatenate([done, others])
        low, high = seen.min(axis=0), seen.max(axis=0)
        cards.append(
            {
                "number": known[episode],
                "error": one.error,
                "worst": one.worst,
                "worst_error": one.worst_error,
                "steps": one.steps,
                "outlier": episode in outliers,
                "image": png_uri(arrays["images"][i]),
                "other_image": png_uri(arrays["other_images"][i]),
                "other": known[int(arrays["other_episode"][i])],
                "other_step": int(arrays["other_step"][i]),
                "done": curves(done, low, high),
                "others": curves(others, low, high),
            }
        )
    return cards


def films(run: Run, rows: Sequence[NoveltyVideo]) -> list[Row]:
    """Videos of held-out demonstrations, inside the page."""
    found = []
    for row in rows:
        content = base64.b64encode((run.novelty / row.file).read_bytes()).decode("ascii")
        found.append(vars(row) | {"uri": f"data:video/mp4;base64,{content}"})
    return found
