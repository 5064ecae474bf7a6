"""Several data sets as one: what they must agree in, their order, and how often each is drawn.

Episodes follow one another, those to train on first, then those to hold out, of each data set the last ones in
proportion to its number. Images stay where they are (:class:`classact.data.images.JoinedImages`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.data.images import JoinedImages
from classact.data.language import embed_instruction
from classact.data.schema import Schema
from classact.data.types import Demonstrations, FloatArray, IntArray, Origin
from classact.errors import ConfigError, DataError

SAME_ASPECT = 0.02  # by which width / height of one camera's images may differ

logger = logging.getLogger(__name__)


def shares(weights: NDArray[np.float64], total: int) -> IntArray:
    """``total`` shared out in whole numbers, as nearly in proportion to ``weights`` as possible: largest remainders."""
    exact = weights / weights.sum() * total
    counts = np.floor(exact + 1e-9).astype(np.int64)
    rest = np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]
    counts[rest] += 1
    return np.asarray(counts, np.int64)


def check_weights(weights: Sequence[float], count: int) -> None:
    """Refuse weights that are not one above 0 for each of ``count`` data sets; () is fine.

    Raises:
        ConfigError: says what is wrong.
    """
    if weights and len(weights) != count:
        raise ConfigError(
            f"{len(weights)} weights were given for {count} data sets. Give one for each, in their order: --data A B "
            f"--data-weights 1 0.5."
        )
    if wrong := [weight for weight in weights if not 0 < weight < math.inf]:
        raise ConfigError(f"expected weights of data sets above 0, got {wrong[0]:g}. Leave a data set out instead.")


def join(
    sets: Sequence[Demonstrations],
    *,
    weights: Sequence[float] = (),
    heldout: int = 0,
    cameras: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    chosen: int | str | None = None,
) -> Demonstrations:
    """One set of demonstrations.

    Args:
        sets: at least one; they agree in actions, proprioception, steps per second and cameras.
        weights: see :class:`~classact.data.types.Origin`; () for all alike.
        heldout: so many episodes come last, of each set in proportion.
        cameras: those that are kept; None: all, which must be the same.
        keys: proprioception that is kept, in this order; None: all.
        chosen: which episodes were asked for, to be kept with the result.

    Raises:
        DataError: what does not agree, with both values and what to choose.
        ConfigError: weights, or more held out than there are.
    """
    check_weights(weights, len(sets))
    sets = _as_wide([_with_keys(data, keys) for data in sets])
    first, *others = sets
    for other in others:
        _check_alike(first, other)
    fps = next((one.schema.fps for one in sets if one.schema.fps is not None), None)
    for one in sets:
        if one.schema.fps is None and fps is not None:
            logger.warning(
                "%s: its steps per second are not known, assumed are %g, as of the others.", _named(one), fps
            )
    states = _states(sets)
    simulators = {one.simulator for one in sets} - {""}  # of some stores it is not known, which are assumed to be alike
    simulator = simulators.pop() if len(simulators) == 1 else ""
    recorded_with = {name: version for one in sets for name, version in one.versions.items() if name != "language"}
    kept = _cameras(sets, cameras, renderable=states is not None and simulator != "")
    order = _Order.of(sets, heldout)
    language, instructions, versions = _language(sets)
    origins = [
        Origin(one.name, one.source, len(one), one.num_steps, one.fingerprint(), chosen, float(weight))
        for one, weight in zip(sets, weights or [1.0] * len(sets), strict=True)
    ]
    assumption = "; ".join(dict.fromkeys(one.schema.assumption for one in sets if one.schema.assumption))
    schema = replace(
        first.schema,
        cameras=kept,
        actions=next((one.schema.actions for one in sets if one.schema.actions is not None), None),
        fps=fps,
        language=0 if language is None else language.shape[1],
        assumption=assumption,
    )
    return Demonstrations(
        name=" + ".join(one.name for one in sets),
        episode_ends=order.ends,
        actions=order.steps([one.actions for one in sets]),
        proprioception=order.steps([one.proprioception for one in sets]),
        states=None if states is None else order.steps(states),
        images={camera: JoinedImages([one.images[camera] for one in sets], order.pieces) for camera in kept},
        source=", ".join(one.source for one in sets),
        schema=schema,
        language=None if language is None else order.episodes(language),
        simulator=simulator,
        versions=(recorded_with if states is not None else {}) | versions,
        images_shift=first.images_shift,
        instructions=tuple(order.episodes(np.array(instructions, object))) if any(instructions) else (),
        unread=tuple(dict.fromkeys(name for one in sets for name in one.unread)),
        labelled=None
        if all(one.labelled is None for one in sets)
        else order.episodes(np.concatenate([one.carries_actions() for one in sets])),
        origins=tuple(origins),
        origin=order.episodes(np.repeat(np.arange(len(sets)), [len(one) for one in sets])),
    )


@dataclass(frozen=True)
class _Order:
    """Episodes and steps of several sets, as they follow one another.

    ``pieces`` are (set, first step, last step + 1), in order.
    """

    lengths: list[IntArray]
    held: IntArray
    pieces: list[tuple[int, int, int]]

    @staticmethod
    def of(sets: Sequence[Demonstrations], heldout: int) -> _Order:
        counts = np.array([len(one) for one in sets])
        if heldout > counts.sum() - len(sets):
            raise ConfigError(
                f"{heldout} of {int(counts.sum())} demonstrations are to be held out; of {len(sets)} data sets hold "
                f"out at most {int(counts.sum()) - len(sets)}, so that one of each is left."
            )
        # One of each is never held out.
        held = shares(counts - 1.0, heldout) if heldout else np.zeros(len(sets), np.int64)
        cuts = [int(one.lengths[: len(one) - h].sum()) for one, h in zip(sets, held.tolist(), strict=True)]
        train = [(i, 0, cut) for i, cut in enumerate(cuts)]
        out = [(i, cut, one.num_steps) for i, (one, cut) in enumerate(zip(sets, cuts, strict=True))]
        return _Order([one.lengths for one in sets], held, [piece for piece in train + out if piece[1] < piece[2]])

    @property
    def ends(self) -> IntArray:
        return np.cumsum(self.episodes(np.concatenate(self.lengths)), dtype=np.int64)

    def episodes(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values of all episodes, set by set, in this order."""
        own = np.split(values, np.cumsum([len(lengths) for lengths in self.lengths])[:-1])
        cut = [len(one) - h for one, h in zip(own, self.held.tolist(), strict=True)]
        return np.concatenate(
            [one[:c] for one, c in zip(own, cut, strict=True)] + [one[c:] for one, c in zip(own, cut, strict=True)]
        )

    def steps(self, each: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Rows of each set in this order."""
        return np.concatenate([each[number][start:stop] for number, start, stop in self.pieces])


def _named(data: Demonstrations) -> str:
    return f"{data.name} ({data.source})"


def _with_keys(data: Demonstrations, keys: Sequence[str] | None) -> Demonstrations:
    if keys is None or tuple(keys) == data.schema.keys:
        return data
    columns, sizes = data.schema.columns(keys), dict(data.schema.proprioception)
    schema = replace(data.schema, proprioception=tuple((key, sizes[key]) for key in keys))
    return replace(data, proprioception=data.proprioception[:, columns], schema=schema)


def _as_wide(sets: Sequence[Demonstrations]) -> list[Demonstrations]:
    """Sets without any actions have as many dimensions of them as the others, of zeros that mean nothing."""
    acted = next((one for one in sets if one.actions.shape[1]), None)
    if acted is None:
        return list(sets)
    return [
        one
        if one.actions.shape[1]
        else replace(
            one,
            actions=np.zeros((one.num_steps, acted.actions.shape[1]), np.float32),
            schema=replace(one.schema, actions=acted.schema.actions),
        )
        for one in sets
    ]


def _check_alike(one: Demonstrations, other: Demonstrations) -> None:
    where = f"{_named(one)} and {_named(other)} cannot be learned from together"
    a, b = one.schema, other.schema
    if one.actions.shape[1] != other.actions.shape[1] or (
        a.actions is not None and b.actions is not None and a.actions != b.actions
    ):
        said = [f"{_space(data.schema)}, {data.actions.shape[1]} dimensions" for data in (one, other)]
        raise DataError(
            f"{where}: actions are {said[0]} in one, {said[1]} in the other. Expected the same parts: declare them "
            f"alike in layouts, or convert one of the data sets."
        )
    if a.proprioception != b.proprioception:
        said = [", ".join(f"{key} {size}" for key, size in s.proprioception) or "nothing" for s in (a, b)]
        common = [key for key in a.keys if (key, dict(a.proprioception)[key]) in b.proprioception]
        advice = (
            f"see the common keys alone (--keys {' '.join(common)})"
            if common
            else "see none of it (--keys without a name)"
        )
        raise DataError(f"{where}: proprioception is {said[0]} in one, {said[1]} in the other; {advice}.")
    if a.fps is not None and b.fps is not None and abs(a.fps / b.fps - 1) > 1e-3:
        common_rates = [
            a.fps / k for k in range(1, 101) if abs(b.fps / (a.fps / k) - round(b.fps / (a.fps / k))) < 1e-3
        ]
        common_rates = [rate for rate in common_rates if rate <= min(a.fps, b.fps) * 1.001]
        advice = (
            f"--fps {common_rates[0]:g}"
            if common_rates
            else "record or convert one of them anew: no --fps divides both"
        )
        raise DataError(
            f"{where}: one has {a.fps:g} steps per second, the other {b.fps:g}, so that a window of actions would not "
            f"mean the same. Take every so manyth step: {advice}."
        )
    if one.images and other.images and one.images_shift != other.images_shift:
        shown = [data.images_shift or "the plain appearance" for data in (one, other)]
        raise DataError(f"{where}: images show {shown[0]} in one, {shown[1]} in the other. Render them alike.")


def _space(schema: Schema) -> str:
    return "undeclared" if schema.actions is None else schema.actions.describe()


def _cameras(sets: Sequence[Demonstrations], asked: Sequence[str] | None, *, renderable: bool) -> tuple[str, ...]:
    """The cameras that all sets have, of those asked for; others can be rendered where there are states."""
    every = dict.fromkeys(camera for one in sets for camera in one.images)
    common = tuple(camera for camera in every if all(camera in one.images for one in sets))
    for camera in every if asked is None else asked:
        lacks = next((one for one in sets if camera not in one.images), None)
        if camera in every and lacks is not None and not renderable:
            has = next(one for one in sets if camera in one.images)
            choice = f"--cameras {' '.join(common)}" if common else "name the same view alike in layouts"
            raise DataError(
                f"{_named(has)} and {_named(lacks)} cannot be learned from together: camera {camera!r} is in the one, "
                f"not in the other, which has {', '.join(lacks.images) or 'no cameras'}. Choose common ones: {choice}."
            )
    chosen = tuple(camera for camera in (common if asked is None else asked) if camera in common)
    for camera in chosen:
        aspects = [one.images[camera].shape[2] / one.images[camera].shape[1] for one in sets]
        if max(aspects) > (1 + SAME_ASPECT) * min(aspects):
            sizes = ", ".join("{2} x {1}".format(*one.images[camera].shape) for one in sets)
            raise DataError(
                f"camera {camera!r} has images of different proportions, {sizes} pixels (of "
                f"{', '.join(map(_named, sets))}): resized to squares they would be distorted differently. Choose "
                f"other cameras (--cameras), or crop the recordings alike."
            )
    return chosen


def _language(sets: Sequence[Demonstrations]) -> tuple[FloatArray | None, list[str], dict[str, str]]:
    """Embeddings of all episodes' instructions, where there are several; the words; what embedded them."""
    words = [text for one in sets for text in (one.instructions or ("",) * len(one))]
    if any(one.language is not None and not one.instructions for one in sets):  # embedded elsewhere, without words
        sizes = [0 if one.language is None else one.language.shape[1] for one in sets]
        if len(set(sizes)) > 1:
            raise DataError(
                f"embeddings of instructions have sizes {sizes} in {', '.join(map(_named, sets))}, and not all data "
                f"sets have the words. Declare embeddings of one kind, or instructions, in all of them."
            )
        made = {one.versions.get("language", "") for one in sets} - {""}
        found = [one.language for one in sets if one.language is not None]
        return np.concatenate(found), words, {"language": made.pop()} if len(made) == 1 else {}
    if len(set(words)) < 2:
        return None, words, {}
    embedded = {text: embed_instruction(text or "no instruction") for text in dict.fromkeys(words)}
    vectors = np.stack([embedded[text][0] for text in words])
    return vectors, words, {"language": next(iter(embedded.values()))[1]}


def _states(sets: Sequence[Demonstrations]) -> list[NDArray[np.float64]] | None:
    """Of all sets where they are of one simulator; else None."""
    found = [one.states for one in sets if one.states is not None]
    if len(found) < len(sets):
        return None
    versions: dict[str, set[str]] = {}
    for one in sets:
        for name, version in one.versions.items():
            versions.setdefault(name, set()).add(version)
    versions.pop("language", None)
    same = len({states.shape[1] for states in found}) == 1 and len({one.simulator for one in sets} - {""}) < 2
    if not same or any(len(known) > 1 for known in versions.values()):
        logger.warning(
            "states are left out: those of %s are of different simulators, or of versions of one.",
            ", ".join(map(_named, sets)),
        )
        return None
    return found
