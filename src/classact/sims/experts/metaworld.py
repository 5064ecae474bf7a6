"""MetaWorld's own scripted policies, which look at the observation alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from classact.data.types import FloatArray, StateArray
from classact.sims.experts.base import perturbed
from classact.sims.metaworld import MetaWorld, own_name

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from metaworld.policies import ENV_POLICY_MAP

MOST_NOISE = 0.1  # standard deviation of what is added to actions; each demonstration has its own, up to this


def script(sim: MetaWorld, rng: np.random.Generator) -> Iterator[FloatArray]:
    """The task's policy, with a little noise, so that no two demonstrations of one state are alike."""
    yield from noisy(sim, rng, float(rng.uniform(0, MOST_NOISE)), 0.0)


def noisy(sim: MetaWorld, rng: np.random.Generator, spread: float, random: float) -> Iterator[FloatArray]:
    """The task's policy with Gaussian noise of ``spread``; a share ``random`` of the actions is drawn evenly."""
    make: Any = ENV_POLICY_MAP[own_name(sim.spec)]
    policy = make()

    def act() -> StateArray:
        seen = np.asarray(sim.observe(render=False).proprioception, np.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that actions are clipped
            return np.asarray(policy.get_action(seen), np.float64)

    yield from perturbed(act, rng, spread, random)
