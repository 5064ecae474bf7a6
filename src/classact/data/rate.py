"""Demonstrations at fewer steps per second than they were recorded at, so that T steps mean the same behaviour."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from classact.data.types import Demonstrations, IntArray
from classact.errors import ConfigError

_TOLERANCE = 1e-3
COSTLY = 48
"""Steps of a window beyond which its cost is pointed out."""

SHORTEST = 0.5
"""Seconds below which windows of actions hold little behaviour: nearly all are alike, moving on in one direction."""


def at_rate(data: Demonstrations, fps: float) -> Demonstrations:
    """Every k-th step of each episode, k = recorded fps / ``fps``; images stay views.

    The action of a kept step is that of the last step before the next kept one, whose target is reached then: actions
    are absolute. Velocities are the mean over the k steps.

    Raises:
        ConfigError: the recorded rate is not known, lower, or no multiple of ``fps``.
    """
    where, recorded = f"{data.name} ({data.source})", data.schema.fps
    if not fps > 0:
        raise ConfigError(f"expected more than 0 steps per second, got {fps:g}.")
    if recorded is None:
        raise ConfigError(
            f"{where}: at how many steps per second it was recorded is not known, so {fps:g} cannot be made."
        )
    every = round(recorded / fps)
    if every < 1 or abs(recorded / fps - every) > _TOLERANCE:
        rates = ", ".join(f"{recorded / k:g}" for k in (1, 2, 3, 4, 5, 10))
        raise ConfigError(
            f"{where} has {recorded:g} steps per second, which {fps:g} does not divide; possible are {rates}."
        )
    if every == 1:
        return data
    rows = np.concatenate([np.arange(start, end, every) for start, end in map(data.bounds, range(len(data)))])
    ends = np.cumsum([-(-length // every) for length in data.lengths.tolist()], dtype=np.int64)
    kept = data.select(rows, ends, slice(None))
    last = np.repeat(data.episode_ends - 1, np.diff(ends, prepend=0))
    actions = data.actions[np.minimum(rows + every - 1, last)].copy()
    space = data.schema.actions
    if space is not None and (moving := space.dimensions("velocity")).any():
        spans: IntArray = np.minimum(rows[:, None] + np.arange(every), last[:, None])
        actions[:, moving] = data.actions[spans][:, :, moving].mean(axis=1)
    return replace(kept, actions=actions, schema=replace(data.schema, fps=recorded / every))


@dataclass(frozen=True)
class Seconds:
    """A length of time, where steps of data are asked for: so many as it takes at their rate."""

    seconds: float

    def __str__(self) -> str:
        return f"{self.seconds:g} s"


Span = int | Seconds
"""Steps, or the time that they take."""

STEPS = {"unit": "steps"}
"""Metadata of a setting that counts steps of the data, and may be given as :class:`Seconds`."""


def read_span(text: str) -> Span:
    """ "16" as steps, "0.8s" as seconds; a ValueError where it is neither, or no time at all."""
    if not text.endswith("s"):
        return int(text)
    seconds = float(text[:-1])
    if not 0 < seconds < math.inf:
        raise ValueError(text)
    return Seconds(seconds)


def in_steps(span: Span | str, fps: float | None, name: str, where: str) -> int:
    """So many steps of data at ``fps``, rounded; at least one.

    Args:
        span: steps, or seconds; text as of :func:`read_span`.
        fps: steps per second; None where it is not known.
        name: of the setting, for messages.
        where: names the data.

    Raises:
        ConfigError: seconds of data of unknown rate, or of less than half a step; text that is neither.
    """
    if isinstance(span, str):
        try:
            span = read_span(span)
        except ValueError:
            raise ConfigError(f"{name}: expected steps, or seconds as in '0.8s', got {span!r}.") from None
    if isinstance(span, int):
        return span
    if fps is None:
        raise ConfigError(
            f"{name} {span}: at how many steps per second {where} was recorded is not known, so seconds are no number "
            f"of steps. Give it in steps."
        )
    steps = round(span.seconds * fps)
    if steps < 1:
        raise ConfigError(f"{name} {span} is less than half a step of {where}, which has {fps:g} steps per second.")
    return steps


def spoken(name: str, steps: int, fps: float) -> str:
    """Both numbers of a window: ``horizon 16 steps = 0.8 s``."""
    return f"{name} {steps} step{'' if steps == 1 else 's'} = {steps / fps:.3g} s"


USUAL = 10.0
"""Steps per second of Push-T and of much robot data: 16 of them are 1.6 s, the paper's windows."""


def near_rate(fps: float, wanted: float = USUAL) -> float:
    """The rate nearest to ``wanted`` that data recorded at ``fps`` can be subsampled to."""
    return min((fps / every for every in range(1, max(2, math.ceil(2 * fps / wanted)))), key=lambda r: abs(r - wanted))


def short_windows(data: Demonstrations, horizon: int, fps: float | None = None) -> str:
    """What is to be said of windows of ``horizon`` actions that span little time; empty where they do not.

    ``fps`` are their steps per second; None: as data declare.
    """
    fps = fps or data.schema.fps
    if fps is None or horizon / fps >= SHORTEST:
        return ""
    better = near_rate(fps)
    possible = data.schema.fps is not None and horizon / better >= SHORTEST
    subsample = f"Subsample (--fps {better:g}), or choose" if possible else "Choose"
    return (
        f"{data.name}: windows of {horizon} steps are {horizon / fps:.2g} s at {fps:g} steps per second. In so little "
        f"time most demonstrations do alike: positives then say where the robot is going, not what it is about. "
        f"{subsample} a longer window (--horizon 1.6s)."
    )


def stride_of(fps: float) -> int:
    """Steps of data recorded at ``fps`` that are averaged to one of about :data:`USUAL` a second."""
    return max(1, round(fps / USUAL))


def costly_windows(data: Demonstrations, horizon: int, stride: int = 1) -> str:
    """What is to be said of windows of so many actions that comparing them takes long; empty where it does not."""
    fps, compared = data.schema.fps, -(-horizon // stride)
    if fps is None or compared <= COSTLY or (better := stride_of(fps)) <= stride:
        return ""
    fewer = -(-horizon // better)
    return (
        f"{data.name}: comparing windows of {horizon} steps, {horizon / fps:.3g} s at {fps:g} steps per second, takes "
        f"about {(compared / fewer) ** 2:.0f} times as long as of the {fewer} means of {better} steps each: --stride "
        f"{better}."
    )
