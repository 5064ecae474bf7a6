"""Which episodes of a data set are read: the first so many, or some by number."""

from __future__ import annotations

import re
from pathlib import Path

from classact.errors import ConfigError

_RANGE = re.compile(r"(\d+)(?::(\d+))?")


def chosen_episodes(episodes: int | str | None, count: int, path: Path | str) -> list[int]:
    """Numbers of episodes among ``count``, increasing.

    Args:
        episodes: how many, from the first; or numbers and ranges as in "0:50,60", whose end is not in them; None: all.
        count: how many there are.
        path: of the data, for messages.

    Raises:
        ConfigError: none, numbers that are not there or twice, or text that is no selection.
    """
    if episodes is None:
        return list(range(count))
    if isinstance(episodes, int) or episodes.strip().isdecimal():
        number = int(episodes)
        if not 1 <= number <= count:
            raise ConfigError(f"asked for the first {number} episodes, but {path} has {count}. Ask for 1 to {count}.")
        return list(range(number))
    chosen: list[int] = []
    for part in episodes.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise ConfigError(
                f"episodes {episodes!r}: expected numbers and ranges, as in 0:50,60, got {part.strip()!r}."
            )
        first = int(match[1])
        last = int(match[2]) if match[2] else first + 1
        if not first < last <= count:
            raise ConfigError(
                f"episodes {episodes!r}: {part.strip()} is not among the {count} of {path}, 0 to {count - 1}."
            )
        chosen += range(first, last)
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"episodes {episodes!r}: some are named twice.")
    return sorted(chosen)


def written_episodes(numbers: list[int]) -> str:
    """Increasing numbers as :func:`chosen_episodes` reads them: "0:50,60"."""
    starts = [n for i, n in enumerate(numbers) if i == 0 or numbers[i - 1] != n - 1]
    stops = [n + 1 for i, n in enumerate(numbers) if i == len(numbers) - 1 or numbers[i + 1] != n + 1]
    # A single number by itself would mean the first so many.
    whole = len(starts) == 1
    return ",".join(str(a) if b == a + 1 and not whole else f"{a}:{b}" for a, b in zip(starts, stops, strict=True))
