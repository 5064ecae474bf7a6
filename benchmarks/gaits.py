"""Gaits of the locomotion tasks: linear policies by augmented random search (arXiv 1803.07055, V2-t).

They are the experts of classact's locomotion simulators, whose file in the package this writes (``--out``), beside the
course of the search. Kill it anywhere and start it again: the search goes on from its last step.

    uv run --extra locomotion python benchmarks/gaits.py
    uv run --extra locomotion python benchmarks/gaits.py --tasks hopper --steps 100
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from classact.sims.experts.locomotion import GAITS
from classact.utils.machine import hardware
from classact.utils.progress import progress_bar, tell
from classact.utils.storage import read_json, write_json
from common import RESULTS, command


@dataclass(frozen=True)
class Search:
    """Settings of the search for a task.

    Attributes:
        environment: of Gymnasium.
        steps: of the search.
        horizon: steps of an episode in it.
        directions, best: tried in a step, and those of them that move the policy.
        rate, noise: how far it moves, and how far directions are tried.
        alive: reward of a step for not having fallen, which the search leaves out.
    """

    environment: str
    steps: int
    horizon: int
    directions: int
    best: int
    rate: float
    noise: float
    alive: float = 0.0


SEARCHES = {
    "half-cheetah": Search("HalfCheetah-v5", 150, 500, 32, 16, 0.02, 0.03),
    "hopper": Search("Hopper-v5", 202, 1000, 8, 4, 0.01, 0.025, alive=1.0),
}
"""Task -> settings: those of the paper's table 9; for the cheetah, episodes of half the length, for its gait repeats
itself, and four times as many directions that are followed: with 4 it often fell onto its back."""

TESTED, FIRST_TESTED = 20, 1_000_000
"""Episodes of 1000 steps that say how good a gait is, and the seed of the first."""


@dataclass
class Flags:
    """Search for the gaits of the locomotion tasks.

    Attributes:
        json: where the course of the search goes.
        out: where the gaits go.
        tasks: all or some of them.
        steps: of the search; 0: as many as the task's settings say.
        seed: of the search.
    """

    json: Path = RESULTS / "gaits.json"
    out: Path = GAITS
    tasks: tuple[str, ...] = tuple(SEARCHES)
    steps: int = 0
    seed: int = 0


class Moments:
    """Mean and standard deviation of what was observed so far."""

    def __init__(self, size: int, before: dict[str, Any] | None = None) -> None:
        before = before or {"count": 0, "sum": [0.0] * size, "squares": [0.0] * size}
        self.count = int(before["count"])
        self.sum, self.squares = np.array(before["sum"]), np.array(before["squares"])

    def add(self, seen: NDArray[Any]) -> None:
        self.count += len(seen)
        self.sum += seen.sum(axis=0)
        self.squares += (seen**2).sum(axis=0)

    def scale(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Mean and standard deviation; 0 and 1 before anything was seen."""
        if not self.count:
            return np.zeros_like(self.sum), np.ones_like(self.sum)
        mean = self.sum / self.count
        spread = np.sqrt(np.maximum(self.squares / self.count - mean**2, 0))
        return mean, np.where(spread > 1e-6, spread, np.inf)  # what never changes is not looked at

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, "sum": self.sum.tolist(), "squares": self.squares.tolist()}


def episode(env: Any, weights: NDArray[Any], offset: NDArray[Any], seed: int, steps: int) -> tuple[float, NDArray[Any]]:
    """The return of a policy ``weights @ observation - offset``, and what it observed."""
    observation, _ = env.reset(seed=seed)
    total, seen = 0.0, []
    for _ in range(steps):
        seen.append(observation)
        observation, reward, fallen, _, _ = env.step(np.clip(weights @ observation - offset, -1, 1))
        total += reward
        if fallen:
            break
    return total, np.array(seen)


def main(flags: Flags) -> None:
    """Search, from the last step that the results file holds."""
    for task in flags.tasks:
        search = SEARCHES[task]
        env = gymnasium.make(search.environment).unwrapped
        D, A = env.observation_space.shape[0], env.action_space.shape[0]
        known = (read_json(flags.json) if flags.json.exists() else {}).get(task, {})
        policy = np.array(known.get("policy", np.zeros((A, D))))
        moments = Moments(D, known.get("moments"))
        done, returns = int(known.get("steps", 0)), list(known.get("returns", []))
        with progress_bar(task) as bar:
            for step in range(done, flags.steps or search.steps):
                rng = np.random.default_rng([flags.seed, step])
                deltas = rng.standard_normal((search.directions, A, D))
                mean, spread = moments.scale()
                found = np.zeros((search.directions, 2))
                for d, delta in enumerate(deltas):
                    for s, sign in enumerate((1, -1)):
                        weights = (policy + sign * search.noise * delta) / spread
                        total, seen = episode(env, weights, weights @ mean, int(rng.integers(2**31)), search.horizon)
                        found[d, s] = total - search.alive * len(seen)
                        moments.add(seen)
                top = np.argsort(-found.max(axis=1))[: search.best]
                gain = (found[top, 0] - found[top, 1])[:, None, None] * deltas[top]
                policy = policy + search.rate / (search.best * (found[top].std() + 1e-6)) * gain.sum(axis=0)
                mean, spread = moments.scale()
                bar(step + 1, flags.steps or search.steps, f"best {found.max():.0f}, mean {found.mean():.0f}")
                returns.append(round(float(found.mean()), 1))
                kept = {"policy": policy.tolist(), "moments": moments.to_json(), "steps": step + 1, "returns": returns}
                save(flags.json, task, kept)
        mean, spread = moments.scale()
        weights = policy / spread
        tested = [episode(env, weights, weights @ mean, FIRST_TESTED + i, 1000)[0] for i in range(TESTED)]
        save(flags.json, task, {"tested": [round(one, 1) for one in tested], "hardware": hardware()})
        save(flags.out, task, {"weights": weights.round(6).tolist(), "offset": (-weights @ mean).round(6).tolist()})
        tell(f"{task}: {np.mean(tested):.0f} over 1000 steps, {min(tested):.0f} to {max(tested):.0f}")


def save(path: Path, task: str, values: dict[str, Any]) -> None:
    """Into a file, beside what it holds."""
    found = read_json(path) if path.exists() else {}
    versions = {name: version(name) for name in ("gymnasium", "mujoco")}
    write_json(path, found | {task: found.get(task, {}) | values, "versions": versions})


if __name__ == "__main__":
    raise SystemExit(command(Flags, main))
