"""What demonstrations hold, in numbers: how many, how long, which tasks and cameras, and the range of each action."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.data.normalize import constant_dimensions
from classact.data.types import Demonstrations
from classact.utils.codec import ADDED

BINS = 24
MOST_TASKS = 12
MOST_DIMENSIONS = 64
_STEPS = 200_000  # of more, evenly spaced ones are counted; ranges are of all


@dataclass(frozen=True)
class Spread:
    """How numbers are spread.

    Attributes:
        name: of a dimension.
        low, high: least and largest.
        counts: (BINS,) how many lie in equal parts of the range, from low to high.
        constant: they are all the same, up to rounding.
    """

    name: str
    low: float
    high: float
    counts: tuple[int, ...]
    constant: bool = False

    @staticmethod
    def of(name: str, values: NDArray[Any], *, constant: bool = False) -> Spread:
        """Of (n,) numbers, n >= 1."""
        some = values[:: -(-len(values) // _STEPS)].astype(np.float64)
        low, high = float(values.min()), float(values.max())
        place = (BINS * (some - low) / (high - low if high > low else 1)).astype(np.int64)
        counts = np.bincount(np.minimum(place, BINS - 1), minlength=BINS)
        return Spread(name, low, high, tuple(counts.tolist()), constant)


@dataclass(frozen=True)
class View:
    """A recorded camera, in pixels."""

    name: str
    width: int
    height: int


@dataclass(frozen=True)
class Statistics:
    """Of demonstrations.

    Attributes:
        demonstrations, heldout, steps: how many; ``heldout`` of them are not trained on.
        lengths: steps of each demonstration.
        median: of these.
        fps: steps per second; None where it is not known.
        tasks: the most frequent instructions with the number of their demonstrations.
        all_tasks: number of different instructions; 0 where there are none.
        cameras: recorded views.
        rendered: what draws the images that are not recorded, a simulator; empty where nothing does.
        actions: each dimension, at most :data:`MOST_DIMENSIONS`.
        all_actions: D, number of dimensions.
        labelled: how many of the demonstrations carry actions; None: all.
    """

    demonstrations: int
    heldout: int
    steps: int
    lengths: Spread
    median: float
    fps: float | None
    tasks: tuple[tuple[str, int], ...]
    all_tasks: int
    cameras: tuple[View, ...]
    rendered: str
    actions: tuple[Spread, ...]
    all_actions: int
    labelled: int | None = field(default=None, metadata=ADDED)

    @staticmethod
    def of(data: Demonstrations, heldout: int = 0) -> Statistics:
        """Of demonstrations as recorded; the last ``heldout`` are held out."""
        space, size = data.schema.actions, data.actions.shape[1]
        names = [f"action[{d}]" for d in range(size)] if space is None else space.names()
        known = data.carries_actions()
        actions = data.labelled_actions() if known.any() else data.actions
        constant = constant_dimensions(actions, 0.0 if space is None else space.magnitude())
        tasks = Counter(data.instructions)
        views = {camera: images.shape for camera, images in data.images.items()}
        return Statistics(
            demonstrations=len(data),
            heldout=heldout,
            steps=data.num_steps,
            lengths=Spread.of("steps", data.lengths),
            median=float(np.median(data.lengths)),
            fps=data.schema.fps,
            tasks=tuple(tasks.most_common(MOST_TASKS)),
            all_tasks=len(tasks),
            cameras=tuple(View(camera, shape[2], shape[1]) for camera, shape in views.items()),
            rendered=data.simulator if data.states is not None else "",
            actions=tuple(
                Spread.of(names[d], actions[:, d], constant=bool(constant[d]))
                for d in range(min(size, MOST_DIMENSIONS))
            ),
            all_actions=size,
            labelled=None if known.all() else int(known.sum()),
        )
