"""A simulator: a dot in the plane is to reach a square. With a script that shows how."""

import numpy as np

from classact.data.actions import ActionSpace
from classact.data.schema import Schema
from classact.data.types import Criterion, Observation
from classact.sims import SIMULATORS, Entry, SimulatorSpec
from classact.sims.shifts import check_shift

SPEC = SimulatorSpec(
    name="reach",
    cameras=("front",),
    image_size=64,
    action_dim=2,
    proprioception_dim=2,
    state_dim=4,
    max_steps=40,
    control_hz=10.0,
    criteria=(Criterion("reached", "closeness", 0.95),),
    shifts=("fixed",),
    world=(0.0, 1.0),
    schema=Schema(("front",), (("position", 2),), actions=ActionSpace.points()),
    action_limits=((0.0, 0.0), (1.0, 1.0)),
)
SPEED = 0.04


class Reach:
    """State (4,): where dot and square are, within 0..1. Action (2,): where the dot goes, at most SPEED in a step."""

    spec = SPEC

    def __init__(self, size):
        self.size, self.state = size, np.full(4, 0.5)

    def reset(self, seed):
        self.state = np.random.default_rng(seed).uniform(0.1, 0.9, 4)

    def set_appearance(self, seed):
        """It always looks the same."""

    def get_state(self):
        return self.state.copy()

    def set_state(self, state, *, step=0):
        self.state = self.spec.check_state(state).copy()

    def step(self, action):
        way = self.spec.check_action(action) - self.state[:2]
        self.state[:2] += way * min(1.0, SPEED / max(np.linalg.norm(way), 1e-9))
        return {"closeness": 1.0 - float(np.linalg.norm(self.state[2:] - self.state[:2]))}

    def observe(self, *, render=True):
        images = {"front": self.draw()} if render else {}
        return Observation(images, self.state[:2].astype(np.float32), self.state.copy())

    def draw(self):
        y, x = (np.mgrid[: self.size, : self.size] + 0.5) / self.size
        image = np.full((self.size, self.size, 3), 230, np.uint8)
        image[np.maximum(abs(x - self.state[2]), abs(y - self.state[3])) < 0.08] = (40, 160, 60)
        image[np.hypot(x - self.state[0], y - self.state[1]) < 0.06] = (60, 60, 200)
        return image

    def close(self):
        """Nothing is held."""


def make(*, image_size, shift, cameras=None):
    check_shift(SPEC.name, shift, SPEC.shifts)
    return Reach(image_size or SPEC.image_size)


def script(sim, rng):
    """Walk to the square, by an arm's length ahead that differs between episodes."""
    reach = rng.uniform(0.03, 0.08)
    while True:
        dot, square = sim.get_state()[:2], sim.get_state()[2:]
        way = square - dot
        yield (dot + way * min(1.0, reach / max(np.linalg.norm(way), 1e-9))).astype(np.float32)


SIMULATORS.register("reach", Entry("toy_simulator:make", "Reach", spec=SPEC, expert="toy_simulator:script"))
