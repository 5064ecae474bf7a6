"""Scripted experts: a script looks at a simulator and yields actions; the result is recorded as an attempt.

A recorder makes one attempt per seed. It is sent to a worker process before its first use and opens its simulator
there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from classact.data.types import FloatArray, StateArray
from classact.errors import ActionError, UnknownNameError, choose
from classact.sims import SIMULATORS, Entry, Simulator
from classact.utils.lazy import resolve

Script = Callable[[Any, np.random.Generator], Iterator[FloatArray]]
"""(simulator at its initial state, generator of the attempt's variation: speed, path, grasp, noise) -> actions (D_a,),
one per control step, between which the simulator may be read."""

_STYLE_STREAM = 0x65787074  # keeps the expert's choices independent of the initial state drawn from the same seed


PLANNED = "pusht"  # the task whose expert is no script but a planner (classact.sims.experts.pusht)


class GiveUpError(Exception):
    """A script sees that it cannot succeed; the message says why."""


@dataclass(frozen=True)
class Attempt:
    """One attempt of an expert, L control steps."""

    seed: int  # of the initial state and the expert's choices
    states: StateArray  # (L, D_s) float64, before each action
    actions: FloatArray  # (L, D_a) float32
    proprioception: FloatArray  # (L, D_p) float32, before each action
    success: bool  # whether the simulator's first criterion was reached
    reason: str = ""  # why not; empty where it was
    language: FloatArray | None = None  # (D_l,) float32 embedding of the instruction, None where the task has none
    instruction: str = ""  # in words; empty where the task has none

    def __len__(self) -> int:
        return len(self.actions)


def attempt(simulator: Simulator, script: Script, seed: int, *, tail: int = 8) -> Attempt:
    """Let a script act from the initial state of ``seed``, which also decides its choices; nothing is rendered.

    ``tail`` steps are recorded after success: a demonstration ends at rest, not in motion.

    Raises:
        ActionError: the script gave no action, or one that cannot be executed.
        SimulatorError: the simulator failed otherwise.
    """
    simulator.reset(seed)
    criterion = simulator.spec.criteria[0]
    rng = np.random.default_rng([seed, _STYLE_STREAM])
    states, actions, proprioception = [], [], []
    reached: int | None = None
    reason = "the script ended without success"
    script_steps = script(simulator, rng)
    language = None
    for step in range(simulator.spec.max_steps):
        if reached is not None and step >= reached + tail:
            break
        seen = simulator.observe(render=False)
        try:
            action = np.asarray(next(script_steps), np.float32)
        except StopIteration:
            break
        except GiveUpError as why:
            reason = str(why)
            break
        assert seen.state is not None
        language = seen.language
        states.append(seen.state)
        actions.append(action)
        proprioception.append(seen.proprioception)
        metrics = simulator.step(action)
        if reached is None and criterion.met(metrics[criterion.metric]):
            reached = step + 1
    else:
        reason = f"no success within {simulator.spec.max_steps} steps"
    if not actions:
        raise ActionError(f"{simulator.spec.name}: the expert gave no action from seed {seed}: {reason}.")
    return Attempt(
        seed=seed,
        states=np.stack(states),
        actions=np.stack(actions),
        proprioception=np.stack(proprioception),
        success=reached is not None,
        reason="" if reached is not None else reason,
        language=language,
        instruction=str(getattr(simulator, "instruction", "")),
    )


def perturbed(
    act: Callable[[], StateArray], rng: np.random.Generator, spread: float, random: float
) -> Iterator[FloatArray]:
    """Actions in [-1, 1] of ``act`` with Gaussian noise of ``spread``; a share ``random`` of them is drawn evenly."""
    while True:
        action = act()
        action = action + rng.normal(0, 1, len(action)) * spread
        drawn = rng.uniform(-1, 1, len(action))
        yield np.clip(drawn if rng.random() < random else action, -1, 1).astype(np.float32)


class Recorder(Protocol):
    """Makes attempts, the same one from the same seed. Closing is safe twice, or before the first use."""

    def __call__(self, seed: int) -> Attempt: ...
    def close(self) -> None: ...


class ScriptRecorder:
    """The script of a simulator's registry entry, passed as a value so that workers need no registry."""

    def __init__(self, name: str, entry: Entry) -> None:
        if entry.expert is None:
            known = [other for other in SIMULATORS if other == PLANNED or SIMULATORS[other].expert is not None]
            raise UnknownNameError(choose("expert", name, known))
        self._entry = entry
        self._simulator: Simulator | None = None

    def __call__(self, seed: int) -> Attempt:
        entry = self._entry
        if self._simulator is None:
            self._simulator = resolve(entry.factory)(image_size=None, shift=entry.plain, cameras=None)
        assert self._simulator is not None
        return attempt(self._simulator, resolve(entry.expert), seed, tail=entry.tail)

    def close(self) -> None:
        """Free the simulator."""
        if self._simulator is not None:
            self._simulator.close()
            self._simulator = None
