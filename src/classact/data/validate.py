"""What is odd about demonstrations that can be read: things that training does not refuse, and suffers from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from classact.data.copies import first_copies
from classact.data.images import ImageSource, resize_images
from classact.data.normalize import constant_dimensions
from classact.data.types import Demonstrations, FloatArray, IntArray
from classact.errors import DataError

Progress = Callable[[int, int], None]

SATURATED = 0.2
"""Share of all steps at a dimension's lowest or highest value from which it counts as saturated. Grippers are."""

JUMP = 20.0
"""A step counts as a jump where it is so many times as long as 90 % of those that move, and longer than a tenth of the
range.
"""

LONG, SHORT = 4.0, 0.25
"""Of the median length: episodes beyond are named."""

LAGS = 10
"""Steps by which actions and proprioception are shifted against each other."""

DARK, FRAMES, STILL = 4.0, 400, 0.5
"""Mean pixel below which a frame is black; frames looked at of each camera; share of a camera's pairs of neighbouring
frames that may be equal while the robot moves."""

SMALL, FEWEST, CONTRAST, VOTERS, SURE = 24, 4, 0.5, 0.02, 0.8
"""Of the search for first frames that are upside down: side in pixels that they are compared at; episodes that it
needs; deviations of a frame by which a pixel changes at least when it is turned, to vote; share of pixels that must;
share of their votes that decides."""

TURNS: dict[str, Callable[[Any], Any]] = {
    "flipped upside down": lambda frames: frames[:, ::-1],
    "turned by 180 degrees": lambda frames: frames[:, ::-1, ::-1],
}
"""(n, H, W, 3) frames as cameras mounted otherwise, or other programs, give them."""


@dataclass(frozen=True)
class Finding:
    """One oddity.

    Attributes:
        kind: "problem", which will harm, or "note", which is worth knowing.
        check: what was looked at.
        where: episode, dimension or camera.
        what: the finding with its numbers, and what to do.
    """

    kind: Literal["problem", "note"]
    check: str
    where: str
    what: str


def validate(data: Demonstrations, progress: Progress | None = None) -> list[Finding]:
    """All findings: problems first.

    What cannot be read at all (NaN, missing frames, damaged files) is a DataError of reading, which the command shows
    as the only finding; frames that cannot be decoded are findings. What files hold beyond demonstrations is looked at
    by :func:`classact.data.readers.check_files`.
    """
    found, own = [*_lengths(data)], np.flatnonzero(data.carries_actions())
    acted = data if len(own) == len(data) else data.subset(own.tolist()) if len(own) else None
    if acted is not data:
        what = f"{len(data) - len(own)} of {len(data)} carry no actions: classact latent-actions learns latent ones."
        found.append(Finding("note", "actions", f"episodes {some(np.flatnonzero(~data.carries_actions()))}", what))
    if acted is not None:
        found += [*_copies(acted, own), *_lag(acted)]
    for name, of in (("action", acted), ("proprioception", data)):
        values = None if of is None else of.actions if name == "action" else of.proprioception
        if of is not None and values is not None and values.shape[1]:
            found += [*_constant(of, name, values), *_saturated(of, name, values), *_jumps(of, name, values)]
    found += _images(data, progress)
    return sorted(found, key=lambda one: one.kind != "problem")


def _lengths(data: Demonstrations) -> Iterator[Finding]:
    lengths, median = data.lengths, float(np.median(data.lengths))
    for word, chosen in (("short", lengths < SHORT * median), ("long", lengths > LONG * median)):
        if chosen.any():
            names = some(np.flatnonzero(chosen))
            what = f"{int(chosen.sum())} of {len(data)} are {word}: {lengths[chosen].min()} to {lengths[chosen].max()} "
            yield Finding("note", "lengths", f"episodes {names}", f"{what}steps, the median is {median:g}.")


def _copies(data: Demonstrations, numbers: IntArray) -> Iterator[Finding]:
    """``numbers`` are those of the episodes in the data set."""
    first = first_copies(data.actions, data.episode_ends)
    again = np.flatnonzero(first != np.arange(len(first)))
    if len(again):
        pair = (numbers[again[0]], numbers[first[again[0]]])
        what = f"{len(again)} have the actions of an earlier one (episode {pair[0]} those of {pair[1]})."
        again = numbers[again]
        yield Finding("problem", "equal episodes", f"episodes {some(again)}", f"{what} Remove the copies.")


def dimension_name(data: Demonstrations, name: str, d: int) -> str:
    """Of a dimension of "action" or "proprioception": its number, with its part, or its key with the number in it."""
    if name == "action":
        space = data.schema.actions
        parts = [] if space is None else space.layout()
        found = next(((part, where) for part, where in parts if where.start <= d < where.stop), None)
        if found is None:
            return f"action {d}"
        part, where = found
        return f"action {d} ({part.name}{f' {d - where.start}' if where.stop - where.start > 1 else ''})"
    ends = np.cumsum([size for _, size in data.schema.proprioception])
    at = int(np.searchsorted(ends, d, side="right"))
    key, size = data.schema.proprioception[at]
    return f"{key} {d - int(ends[at] - size)}"


def _constant(data: Demonstrations, name: str, values: FloatArray) -> Iterator[Finding]:
    for d in np.flatnonzero(constant_dimensions(values)).tolist():
        yield Finding("note", "constant", dimension_name(data, name, d), f"always {values[0, d]:.4g}: it says nothing.")


def _saturated(data: Demonstrations, name: str, values: FloatArray) -> Iterator[Finding]:
    space = data.schema.actions
    grippers = np.zeros(values.shape[1], np.bool_)
    if name == "action" and space is not None:
        grippers = space.dimensions("gripper")
    low, high = values.min(axis=0), values.max(axis=0)
    for d in np.flatnonzero((high > low) & ~grippers).tolist():
        for word, limit in (("lowest", low[d]), ("highest", high[d])):
            share = float((values[:, d] == limit).mean())
            if share >= SATURATED and len(np.unique(values[:, d])) > 2:  # with two values it is a switch
                what = (
                    f"{100 * share:.0f} % of all steps are at the {word} value, {limit:.4g}: commands may be clipped."
                )
                yield Finding("note", "saturated", dimension_name(data, name, d), what)


def _jumps(data: Demonstrations, name: str, values: FloatArray) -> Iterator[Finding]:
    inside = np.ones(len(values) - 1, np.bool_)
    inside[data.episode_ends[:-1] - 1] = False
    steps = np.abs(np.diff(values.astype(np.float64), axis=0))
    episode = data.episode_index()
    spans = values.max(axis=0) - values.min(axis=0)
    for d in range(values.shape[1]):
        own = steps[inside, d]
        own = own[own > 0]
        if len(own) == 0:
            continue
        usual = float(np.quantile(own, 0.9))
        far = inside & (steps[:, d] > max(JUMP * usual, 0.1 * float(spans[d])))
        if far.any():
            row = int(np.flatnonzero(far)[0])
            step = row - data.bounds(int(episode[row]))[0]
            what = (
                f"{int(far.sum())} jumps; the first, {values[row, d]:.4g} to {values[row + 1, d]:.4g}, at step {step} "
                f"of episode {episode[row]}; 90 % of all moves are at most {usual:.3g}. Angles that wrap, lost "
                f"packets, or two demonstrations in one episode look so."
            )
            yield Finding("problem", "jumps", dimension_name(data, name, d), what)


def _lag(data: Demonstrations) -> Iterator[Finding]:
    """By how many steps proprioception follows actions of the same number of dimensions."""
    size = data.actions.shape[1]
    ends = np.cumsum([0, *(n for _, n in data.schema.proprioception)])
    for (key, n), start in zip(data.schema.proprioception, ends, strict=False):
        if n != size:
            continue
        scores = lag_scores(data.actions, data.proprioception[:, start : start + n], data)
        best = int(np.argmax(scores)) - LAGS
        if best < 0 and scores[best + LAGS] > 0.9:
            what = (
                f"{key} is ahead of the actions by {-best} steps (correlation of changes {scores[best + LAGS]:.2f}, "
                f"{scores[LAGS]:.2f} as recorded): an action should lead to what is observed after it. Shift one of "
                f"them."
            )
            yield Finding("problem", "lag", key, what)
        elif best > 0 and scores[best + LAGS] > 0.9:
            what = f"follows the actions by {best} steps (correlation of changes {scores[best + LAGS]:.2f})."
            yield Finding("note", "lag", key, what)


def lag_scores(actions: FloatArray, observed: FloatArray, data: Demonstrations) -> NDArray[np.float64]:
    """(2 LAGS + 1,) correlation of the changes of actions with those of proprioception so many steps later; 0 where
    either is constant.
    """
    episode = data.episode_index()
    scores = np.zeros(2 * LAGS + 1)
    rows = np.arange(len(actions) - 1)
    rows = rows[episode[rows] == episode[rows + 1]]
    change, follow = np.diff(actions.astype(np.float64), axis=0), np.diff(observed.astype(np.float64), axis=0)
    for lag in range(-LAGS, LAGS + 1):
        later = rows + lag
        inside = (later >= 0) & (later < len(actions) - 1)
        inside[inside] &= episode[later[inside]] == episode[rows[inside]]
        inside[inside] &= episode[np.minimum(later[inside] + 1, len(actions) - 1)] == episode[rows[inside]]
        a, b = change[rows[inside]], follow[later[inside]]
        if len(a) < 3:
            continue
        moved = (a.std(axis=0) > 0) & (b.std(axis=0) > 0)
        if moved.any():
            a, b = a[:, moved] - a[:, moved].mean(axis=0), b[:, moved] - b[:, moved].mean(axis=0)
            scores[lag + LAGS] = float(np.mean((a * b).mean(axis=0) / (a.std(axis=0) * b.std(axis=0))))
    return scores


def _images(data: Demonstrations, progress: Progress | None) -> list[Finding]:
    found = []
    rows = _pairs(data)
    for number, (camera, images) in enumerate(data.images.items()):
        try:
            looked = np.asarray(images[rows.ravel()]).reshape(*rows.shape, -1)
        except DataError as error:
            found.append(Finding("problem", "frames", f"camera {camera}", str(error)))
            continue
        dark = looked[:, 0].mean(axis=1) < DARK
        if dark.any():
            at = int(rows[dark][0, 0])
            what = f"{int(dark.sum())} of {len(rows)} frames looked at are black; one is step {at} of all."
            found.append(Finding("problem", "black frames", f"camera {camera}", what))
        if len(looked) > 1 and (looked[:, 0] == looked[:1, 0]).all():
            found.append(Finding("problem", "frozen", f"camera {camera}", "all frames looked at are the same."))
        else:
            moves = (np.abs(np.diff(data.proprioception[rows], axis=1)) > 0).any(axis=(1, 2)) & ~dark
            still = (looked[:, 0] == looked[:, 1]).all(axis=1) & moves
            if moves.any() and still.sum() > STILL * moves.sum():
                what = f"{int(still.sum())} of {int(moves.sum())} frames equal the next one although the robot moves."
                found.append(Finding("problem", "frozen", f"camera {camera}", what))
        if finding := _turned(data, camera):
            found.append(finding)
        if progress is not None:
            progress(number + 1, len(data.images))
    return found


def _turned(data: Demonstrations, camera: str) -> Finding | None:
    """Episodes that a camera shows the other way up than the others, by their first frames."""
    images, first = data.images[camera], data.episode_ends - data.lengths
    try:
        if isinstance(images, ImageSource):
            frames = images.read(first, SMALL)
        else:
            frames = np.concatenate([resize_images(images[row : row + 1], SMALL) for row in first.tolist()])
    except DataError as error:
        return Finding("problem", "frames", f"camera {camera}", str(error))
    for word, turn in TURNS.items():
        if len(found := turned_frames(frames, turn)):
            what = (
                f"{len(found)} of {len(data)} look {word} beside the others. Turn their images, or leave them out."
                if 2 * len(found) < len(data)
                else f"these {len(found)} of {len(data)} look {word} beside the other half: one of both is wrong."
            )
            return Finding("problem", "upside down", f"camera {camera}, episodes {some(found)}", what)
    return None


def turned_frames(frames: NDArray[np.uint8], turn: Callable[[Any], Any]) -> NDArray[np.int64]:
    """Which of (E, H, W, 3) first frames fit to the others when turned, and not as they are; at most half of them.

    Pixels vote that are the same in most episodes and others once a frame is turned: what stays in place, such as a
    table, before a camera that does. Episodes are turned, the reference (the pixels' median) is taken anew, until
    nothing changes. Where the camera moves, scenes differ, or either way up looks alike, no pixel votes.
    """
    nobody = np.zeros(0, np.int64)
    if len(frames) < FEWEST:
        return nobody
    upright, turned = _standardized(frames), _standardized(turn(frames))
    odd = (upright - turned).reshape(len(frames), -1)
    direction = odd[np.argmax(np.linalg.norm(odd, axis=1))]
    for _ in range(30):  # power iterations: the first principal component of what changes
        direction = odd.T @ (odd @ direction)
        direction /= max(float(np.linalg.norm(direction)), 1e-9)
    away = odd @ direction < 0
    for _ in range(5):
        right = np.where(away[:, None, None, None], turned, upright)
        reference = np.median(right, axis=0)
        spread = np.quantile(np.abs(right - reference), 0.8, axis=0)
        other = turn(reference[None])[0]
        voters = np.abs(reference - other) > CONTRAST + 2 * (spread + turn(spread[None])[0])
        if voters.mean() < VOTERS:
            return nobody
        fits = (np.abs(upright - reference) < np.abs(upright - other))[:, voters].mean(axis=1)
        before, away = away, fits < 0.5
        if (before == away).all():
            break
    if 2 * away.sum() > len(away) or (2 * away.sum() == len(away) and away[0]):
        away, fits = ~away, 1 - fits
    if not away.any() or np.quantile(fits[~away], 0.1) < SURE:
        return nobody
    return np.flatnonzero(away & (fits < 1 - SURE))


def _standardized(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Each frame with mean 0 and deviation 1: light changes from day to day."""
    values = frames.astype(np.float64)
    values -= values.mean(axis=(1, 2, 3), keepdims=True)
    return np.asarray(values / np.maximum(values.std(axis=(1, 2, 3), keepdims=True), 1.0))


def _pairs(data: Demonstrations) -> NDArray[np.int64]:
    """(n, 2) neighbouring steps, evenly over all."""
    first = np.arange(data.num_steps - 1)
    episode = data.episode_index()
    first = first[episode[first] == episode[first + 1]]
    if len(first) > FRAMES:
        first = first[np.linspace(0, len(first) - 1, FRAMES).round().astype(np.int64)]
    return np.asarray(first[:, None] + np.arange(2), np.int64)


def some(numbers: NDArray[Any]) -> str:
    """The first few numbers, for messages."""
    more = ", ..." if len(numbers) > 6 else ""
    return ", ".join(str(int(n)) for n in numbers[:6]) + more
