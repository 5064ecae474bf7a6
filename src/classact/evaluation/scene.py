"""References: policies that see numbers of a simulator's state in the place of images.

``whole`` is all that pictures could tell: proprioception, and where all things are, also as seen from the hands.
``next`` is what matters now: the hand, and the thing that it goes to next, or with a thing in the hand the place where
that goes. Retrieval by either, and behaviour cloning on the former, tell what images, data and heads could reach.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from classact.data.rotations import quaternion_to_matrix
from classact.data.schema import Schema
from classact.data.types import Demonstrations, FloatArray, Observation, StateArray
from classact.errors import ConfigError, DataError
from classact.policies.base import Decision, Policy, PolicySpec, Timestep
from classact.policies.config import RetrievalConfig
from classact.policies.latents import NumberLatents
from classact.policies.retrieval import RetrievalPolicy
from classact.sims import SimulatorSpec, simulator_spec

KEY = "scene"
"""The one key of proprioception of data that hold these numbers."""

ROTATION, GRIP, PHASE = 0.05, 0.03, 1.0
"""Weights of what is compared by distance beside metres: entries of rotations, a hand's opening (0..1), the phase."""

HELD = 0.05
"""Metres from the hand to a thing in it, at most; nuts are held by their handle, 0.07 from their middle."""
HANDLE = 0.10
OPENED = 0.9
"""Opening of a hand, of all that it has, from which on it holds nothing."""

GOALS = {
    "three-stack-d0": (("cubeA", "cubeB"), ("cubeC", "cubeA")),
    "three-stack-d1": (("cubeA", "cubeB"), ("cubeC", "cubeA")),
    "libero-object": (("target", "basket"),),
    "square": (("nut", None),),  # the peg never moves
    "aloha-transfer": (("cube", None),),
}
"""Things in the order in which they are dealt with, and where they go."""

STACKED = 0.03
"""Metres along x and y, at most, from a cube to the one that it lies on."""


@dataclass(frozen=True)
class Scene:
    """Numbers of states of one task.

    Attributes:
        simulator: registry name.
        kind: "whole" or "next".
    """

    simulator: str
    kind: str = "whole"

    def __post_init__(self) -> None:
        if self.kind not in ("whole", "next"):
            raise ConfigError(f"expected numbers of the 'whole' scene, or of what is 'next', got {self.kind!r}.")
        if not self.spec.objects or (self.kind == "next" and self.simulator not in GOALS):
            raise ConfigError(f"simulator {self.simulator!r} names no things whose places could be compared.")

    @property
    def spec(self) -> SimulatorSpec:
        """Of the simulator."""
        return simulator_spec(self.simulator)

    def numbers(self, states: StateArray, proprioception: FloatArray) -> FloatArray:
        """(N, d) of (N, D_s) states and (N, D_p) proprioception."""
        hands = hands_of(self.simulator, proprioception)
        things = {name: (states[:, i : i + 3], _rotation(states, i)) for name, i in self.spec.objects}
        parts: list[StateArray] = []
        if self.kind == "whole":
            parts.append(proprioception.astype(np.float64))
            for place, rotation in things.values():
                parts += [place, rotation, *(place - hand.place for hand in hands)]
        else:
            parts += [hand.place for hand in hands] + [GRIP * hand.opening[:, None] for hand in hands]
            parts += _next(GOALS[self.simulator], things, hands)
            parts += [ROTATION * hand.rotation for hand in hands if hand.rotation is not None]
        return np.concatenate(parts, axis=1).astype(np.float32)

    def seen(self, data: Demonstrations) -> Demonstrations:
        """Demonstrations whose proprioception are these numbers, without images.

        Raises:
            DataError: they hold no states.
        """
        if data.states is None or data.states.shape[1] != self.spec.state_dim:
            raise DataError(
                f"{data.name} ({data.source}): has no states of {self.simulator!r}, of which numbers are made."
            )
        numbers = self.numbers(data.states, data.proprioception)
        schema = Schema((), ((KEY, numbers.shape[1]),), data.schema.language, data.schema.actions, data.schema.fps)
        return replace(data, proprioception=numbers, images={}, schema=schema)


@dataclass(frozen=True)
class Hand:
    """One hand at N timesteps.

    Attributes:
        place: (N, 3) of the fingertips, metres.
        opening: (N,) 0 to 1.
        rotation: (N, 6), the first rows of its rotation matrix; None where joints imply it.
    """

    place: StateArray
    opening: StateArray
    rotation: StateArray | None = None


def hands_of(simulator: str, proprioception: FloatArray) -> list[Hand]:
    """A task's hands, by (N, D_p) proprioception."""
    return HANDS.get(simulator, _panda)(np.asarray(proprioception, np.float64))


def _panda(values: StateArray) -> list[Hand]:
    return [Hand(values[:, :3], np.abs(values[:, -2:]).mean(axis=1) / 0.04, values[:, 3:9])]


def _two_arms(values: StateArray) -> list[Hand]:
    from classact.sims.experts.aloha import LEFT, RIGHT, fingertips

    return [
        Hand(
            np.array([fingertips(side, row) for row in values[:, 7 * side : 7 * side + 6]]).reshape(-1, 3),
            values[:, 7 * side + 6],
        )
        for side in (LEFT, RIGHT)
    ]


HANDS: dict[str, Callable[[StateArray], list[Hand]]] = {"aloha-transfer": _two_arms}
"""How to find the hands of tasks without one Panda arm."""


def _rotation(states: StateArray, first: int) -> StateArray:
    matrix = quaternion_to_matrix(states[:, first + 3 : first + 7], order="wxyz")
    return np.asarray(matrix[:, :2], np.float64).reshape(len(states), 6)


def _next(
    goals: Sequence[tuple[str, str | None]],
    things: dict[str, tuple[StateArray, StateArray]],
    hands: list[Hand],
) -> list[StateArray]:
    """What the hands deal with now: seen from each hand, its rotation, which phase it is; the goal where it is held."""
    # A thing is done that lies on its goal; where goals do not tell, there is only one.
    first = hands[0].place
    stage = np.zeros(len(first), np.int64)
    for number, (name, goal) in enumerate(goals[:-1]):
        assert goal is not None
        off = things[name][0] - things[goal][0]
        done = (np.abs(off[:, :2]).max(axis=1) < STACKED) & (off[:, 2] > 0) & (stage == number)
        done &= np.linalg.norm(things[name][0] - first, axis=1) > HELD
        stage += done
    place, rotation, target = np.zeros_like(first), np.zeros((len(stage), 6)), np.zeros_like(first)
    for number, (name, goal) in enumerate(goals):
        own = stage == number
        place[own], rotation[own] = things[name][0][own], things[name][1][own]
        target[own] = 0.0 if goal is None else things[goal][0][own]
    near = HANDLE if goals[0][0] == "nut" else HELD
    parts = []
    for hand in hands:
        held = (np.linalg.norm(place - hand.place, axis=1) < near) & (hand.opening < OPENED)
        # Where it goes matters once it is held; until then nothing but the thing does.
        parts += [place - hand.place, np.where(held[:, None], target, 0.0), PHASE * held[:, None]]
    return [*parts, ROTATION * rotation, PHASE * (stage[:, None] == np.arange(len(goals)))]


@dataclass(frozen=True)
class OnScene:
    """A policy of data that :meth:`Scene.seen` made, given observations of the simulator."""

    scene: Scene
    policy: Policy

    @property
    def spec(self) -> PolicySpec:
        """Of the policy; any observation that holds a state will do."""
        return replace(self.policy.spec, schema=None)

    def decide(self, observations: Sequence[Timestep]) -> Decision:
        """Of the policy, given the numbers."""
        histories = [[one] if isinstance(one, Observation) else list(one) for one in observations]
        seen = [one for history in histories for one in history]
        if any(one.state is None for one in seen):
            raise DataError("an observation has no simulator state (on a real robot there is none).")
        numbers = iter(
            self.scene.numbers(
                np.stack([np.asarray(one.state) for one in seen]), np.stack([one.proprioception for one in seen])
            )
            if seen
            else ()
        )
        return self.policy.decide(
            [[Observation({}, next(numbers), None, one.language) for one in h] for h in histories]
        )

    def prepare(self, batch: int = 1) -> None:
        """Of the policy."""
        self.policy.prepare(batch)


def scene_retrieval(data: Demonstrations, scene: Scene, config: RetrievalConfig) -> OnScene:
    """Retrieval by the distance of these numbers.

    Args:
        data: demonstrations with states.
        scene: which numbers.
        config: k, tau and chunks; tau is of half the squared distance, as a share of the farthest demonstration's.
    """
    seen = scene.seen(data)
    policy = RetrievalPolicy.build(NumberLatents.fit(seen), seen, config, action_space=seen.schema.actions)
    return OnScene(scene, policy)
