"""What stands for actions where a representation learns from them, and not every demonstration carries any.

CLASS compares sequences of actions, inverse dynamics predict them. A stand-in gives each step t something in the place
of a_t that leads from o_t to o_{t+1}, from what every demonstration has; it is used as actions are: each dimension
scaled to [-1, 1], DTW over windows of it. What policies execute is another matter: the actions of the demonstrations
that carry any, or what latent ones are decoded to (:attr:`classact.run.config.RunConfig.act_from`).

Another one is a function (N steps of all demonstrations -> (N, Z)) and an entry of :data:`STAND_INS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from classact.data.lowdim import LowDim
from classact.data.types import FloatArray, IntArray, StateArray
from classact.errors import DataError
from classact.utils.registry import Registry

if TYPE_CHECKING:
    from classact.run.data import RunData

ACTIONS = "actions"
"""Nothing stands for them: every demonstration that is learned from carries actions."""

COMPONENTS = 16
"""Principal components of changes of features: DTW over all of them would take as many times as long."""


@dataclass(frozen=True)
class StandIn:
    """One of them.

    Attributes:
        about: one line.
        make: (N, Z) of all demonstrations of a run.
        reads: the setting of the run that names the folder that it is made with; empty: none.
        actions: whether it is actions, of the decoder's space; else each dimension is a number by itself.
    """

    about: str
    make: Callable[[RunData], FloatArray]
    reads: str = ""
    actions: bool = False


def latent_actions(source: RunData) -> FloatArray:
    """(N, Z) what a latent action model infers."""
    z = source.latent_actions
    assert z is not None, "settings name a model"
    return z


def decoded_actions(source: RunData) -> FloatArray:
    """(N, D_a) what latent actions are decoded to."""
    assert source.latent is not None
    return source.latent.decoder.decode(latent_actions(source))


def next_proprioception(source: RunData) -> FloatArray:
    """(N, P) where the robot was one step on: close to actions that say where it is to go."""
    data = source.recorded
    return _moved(_proprioception(source), data.episode_ends)[1]


def proprioception_change(source: RunData) -> FloatArray:
    """(N, P) how the robot moved within one step: close to actions that say how fast it is to go."""
    before, after = _moved(_proprioception(source), source.recorded.episode_ends)
    return after - before


def feature_change(source: RunData) -> FloatArray:
    """(N, Z) how the features of a frozen encoder (``features``) changed, as their principal components."""
    before, after = _moved(source.features(), source.recorded.episode_ends)
    return principal(after - before, COMPONENTS)


STAND_INS: Registry[StandIn] = Registry(
    "stand-in for actions",
    {
        "latent-actions": StandIn("latent actions (--latent-actions)", latent_actions, "latent_actions"),
        "decoded-actions": StandIn("what these are decoded to", decoded_actions, "latent_actions", actions=True),
        "next-proprioception": StandIn("proprioception one step on", next_proprioception),
        "proprioception-change": StandIn("how proprioception changes", proprioception_change),
        "feature-change": StandIn(
            f"how a frozen encoder's features (--features) change, {COMPONENTS} principal components",
            feature_change,
            "features",
        ),
    },
)
"""Name, as in ``--learn-from`` -> what it is."""


def known() -> tuple[str, ...]:
    """All that can be learned from."""
    return (ACTIONS, *STAND_INS)


def _proprioception(source: RunData) -> FloatArray:
    """(N, P) that of the run's keys, as its encoder's policies see it: quaternions on one side."""
    data, keys = source.recorded, source.settings.keys
    if not len(data.schema.columns(keys)):
        raise DataError(
            f"{data.name} ({data.source}) has no proprioception that could stand for actions"
            f"{'' if keys is None else f' (keys {list(keys)})'}. Learn from latent actions, or from feature-change."
        )
    lowdim = LowDim.fit(data, keys)
    return lowdim.demonstrations(data)[:, : len(lowdim.range.low)]  # an instruction may follow


def _moved(values: FloatArray, episode_ends: IntArray) -> tuple[FloatArray, FloatArray]:
    """(N, Z) what is observed at t and at t + 1; at an episode's last step, which leads nowhere, as one step before."""
    before = np.arange(len(values))
    ends = np.asarray(episode_ends) - 1
    lengths = np.diff(episode_ends, prepend=0)
    before[ends[lengths > 1]] -= 1
    after = np.minimum(before + 1, np.repeat(ends, lengths))
    return values[before], values[after]


def principal(values: FloatArray, count: int) -> FloatArray:
    """(N, Z) -> (N, min(count, Z)): the directions of largest variance, largest first."""
    centred: StateArray = values - values.mean(axis=0, dtype=np.float64)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return np.asarray(centred @ vectors[:, ::-1][:, :count], np.float32)
