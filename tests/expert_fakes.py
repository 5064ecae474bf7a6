"""A task without physics, its expert, and faults: importable by worker processes, and without torch."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from classact.data.actions import ActionSpace
from classact.data.schema import Schema
from classact.data.types import Criterion, FloatArray, Observation, StateArray
from classact.errors import ConfigError, SimulatorError
from classact.sims import SIMULATORS, Entry
from classact.sims.base import SimulatorSpec
from classact.sims.experts.base import GiveUpError

FAULTS = "CLASSACT_TEST_FAULTS"
"""Environment variable with a folder. A file "SEED" in it says what goes wrong with that seed: once if it says "once
KIND", always otherwise; kinds are die, hang, raise, beyond (an action far beyond its limits) and start (the simulator
does not)."""

PAUSE = "CLASSACT_TEST_PAUSE"
"""Environment variable: seconds that an attempt takes at least."""


class Walk:
    """Walk from 0 to beyond 1. State (3,): position, seed, task; three tasks have an instruction each."""

    def __init__(self, image_size: int | None, shift: str, cameras: Sequence[str] | None, tasks: int) -> None:
        self.cameras = tuple(cameras or ("front",))
        self.shift, self.tasks, self.appearance = shift, tasks, 0
        words = 2 if tasks > 1 else 0
        self.spec = SimulatorSpec(
            name="walk",
            cameras=("front", "side"),
            image_size=image_size or 8,
            action_dim=2,
            proprioception_dim=1,
            state_dim=3,
            max_steps=12,
            control_hz=10.0,
            criteria=(Criterion("there", "position", 1.0),),
            shifts=("fixed", "dynamic"),
            schema=Schema(("front", "side"), (("position", 1),), words, ActionSpace.points()),
            action_limits=((-1.0, -1.0), (1.0, 200_000.0)),
            packages=("pymunk",),
            tasks=tasks,
            language_source="invented" if tasks > 1 else "",
        )

    @property
    def instruction(self) -> str:
        return f"walk number {int(self.state[2])}" if self.tasks > 1 else ""

    def reset(self, seed: int) -> None:
        if _fault(seed, "start"):
            raise SimulatorError("GL cannot start")
        self.state = np.array([0.0, seed, seed % self.tasks])
        self.set_appearance(seed)

    def set_appearance(self, seed: int) -> None:
        self.appearance = seed % 97 if self.shift == "dynamic" else 0

    def get_state(self) -> StateArray:
        return self.state.copy()

    def set_state(self, state: StateArray, *, step: int = 0) -> None:  # noqa: ARG002
        self.state = np.array(state)

    def step(self, action: FloatArray) -> Mapping[str, float]:
        self.spec.check_action(action)
        self.state[0] += float(action[0])
        return {"position": float(self.state[0])}

    def observe(self, *, render: bool = True) -> Observation:
        size = self.spec.image_size
        images = {}
        for camera in self.cameras if render else ():
            images[camera] = np.full((size, size, 3), self.appearance + 100 * (camera == "side"), np.uint8)
            images[camera][..., 0] = int(50 * self.state[0])
        words = np.array([1.0, self.state[2]], np.float32) if self.tasks > 1 else None
        return Observation(images, self.state[:1].astype(np.float32), self.get_state(), words)

    def close(self) -> None:
        pass


def walk(*, image_size: int | None, shift: str, cameras: Sequence[str] | None = None) -> Walk:
    return Walk(image_size, shift, cameras, 1)


def three_walks(*, image_size: int | None, shift: str, cameras: Sequence[str] | None = None) -> Walk:
    return Walk(image_size, shift, cameras, 3)


def lacking(**_: object) -> Walk:
    raise ConfigError("install it")


def script(sim: Walk, rng: np.random.Generator) -> Iterator[FloatArray]:
    """Gives up where seed % 4 is 1, walks too slowly where it is 2."""
    seed = int(sim.state[1])
    time.sleep(float(os.environ.get(PAUSE, "0")))
    yield np.zeros(2, np.float32)
    if _fault(seed, "die"):
        os.kill(os.getpid(), signal.SIGKILL)
    if _fault(seed, "hang"):
        time.sleep(600)
    if _fault(seed, "raise"):
        raise ValueError("a bug in the script")
    if _fault(seed, "beyond"):
        yield np.array([10, 0], np.float32)
    if seed % 4 == 1:
        raise GiveUpError("no way")
    while True:
        yield np.array([rng.uniform(0.2, 0.5) if seed % 4 != 2 else 0.01, seed], np.float32)


def never(sim: Walk, rng: np.random.Generator) -> Iterator[FloatArray]:  # noqa: ARG001
    yield np.zeros(2, np.float32)
    raise GiveUpError("never")


def _fault(seed: int, kind: str) -> bool:
    if FAULTS not in os.environ or not (file := Path(os.environ[FAULTS]) / str(seed)).exists():
        return False
    how = file.read_text()
    if how.removeprefix("once ") != kind:
        return False
    if how.startswith("once "):
        file.unlink()
    return True


ENTRIES = {
    "walk": Entry("expert_fakes:walk", "Walk", None, expert="expert_fakes:script"),
    "walks": Entry("expert_fakes:three_walks", "Walks", None, expert="expert_fakes:script"),
    "hopeless": Entry("expert_fakes:walk", "Walk", None, expert="expert_fakes:never"),
    "unscripted": Entry("expert_fakes:walk", "Walk", None),
}


def main() -> None:
    """Generate in a process of its own, to be killed: NAME EPISODES OUT WORKERS."""
    from classact.sims.experts.generate import generate_demonstrations

    name, episodes, out, workers = sys.argv[1:]
    for key, entry in ENTRIES.items():
        SIMULATORS.register(key, entry)
    generate_demonstrations(name, episodes=int(episodes), out=Path(out), workers=int(workers))


if __name__ == "__main__":
    main()
