"""Gaits: linear policies that were found by augmented random search (``benchmarks/gaits.py``), of what is observed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from classact.data.types import FloatArray, StateArray
from classact.sims.experts.base import perturbed
from classact.sims.locomotion import Locomotion

GAITS = Path(__file__).with_name("gaits.json")
MOST_NOISE = 0.1  # standard deviation of what is added to actions; each demonstration has its own, up to this


@cache
def gait(task: str) -> tuple[StateArray, StateArray]:
    """(D_a, D_p) weights and (D_a,) offset of a task's policy: ``weights @ proprioception + offset``."""
    found = json.loads(GAITS.read_text())[task]
    return np.array(found["weights"]), np.array(found["offset"])


def script(sim: Locomotion, rng: np.random.Generator) -> Iterator[FloatArray]:
    """The task's gait, with a little noise."""
    yield from noisy(sim, rng, float(rng.uniform(0, MOST_NOISE)), 0.0)


def noisy(sim: Locomotion, rng: np.random.Generator, spread: float, random: float) -> Iterator[FloatArray]:
    """The task's gait with Gaussian noise of ``spread``; a share ``random`` of the actions is drawn evenly."""
    weights, offset = gait(sim.spec.name)

    def act() -> StateArray:
        return np.asarray(weights @ sim.observe(render=False).proprioception + offset)

    yield from perturbed(act, rng, spread, random)
