"""A simulator process of the evaluator: holds simulators, runs chunks of actions on request.

Imports neither torch nor policies, so that a spawned process is ready within a second.
"""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection

from classact.data.types import FloatArray, Observation, StateArray
from classact.sims import Simulator, make_simulator


def serve(
    pipe: Connection, name: str, image_size: int | None, shift: str, cameras: Sequence[str] | None = None
) -> None:
    """Answer requests until told to close, or until the other end is gone.

    Requests are ("reset", (seeds, render)), ("step", (chunks, render, history)) and ("close", None); chunk i goes to
    the simulator of seed i. Answers are ("ok", list) or ("error", traceback), after ("alive", None) as a sign of life
    for each episode.

    Args:
        pipe: to the evaluator.
        name, image_size, shift, cameras: of the simulators.
    """
    # Ctrl-C reaches every process of a terminal; the evaluator decides, and closes its workers.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sims: list[Simulator] = []
    try:
        while True:
            command, payload = pipe.recv()
            if command == "close":
                break
            if command == "reset":
                seeds, render = payload
                started = []
                for index, seed in enumerate(seeds):
                    if index == len(sims):
                        sims.append(make_simulator(name, image_size=image_size, shift=shift, cameras=cameras))
                    sims[index].reset(int(seed))
                    started.append(sims[index].observe(render=render))
                    pipe.send(("alive", None))
                pipe.send(("ok", started))
            else:
                chunks, *how = payload
                answers = []
                for sim, chunk in zip(sims, chunks, strict=False):
                    answers.append(run_chunk(sim, chunk, *how))
                    pipe.send(("alive", None))
                pipe.send(("ok", answers))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    except Exception:
        with suppress(OSError):
            pipe.send(("error", traceback.format_exc()))
    finally:
        for sim in sims:
            sim.close()


def run_chunk(
    sim: Simulator, chunk: FloatArray, render: bool, history: int = 1
) -> tuple[list[Observation], list[Mapping[str, float]], list[StateArray]]:
    """Execute (T, D_a) actions open-loop.

    Args:
        sim: stands where the chunk starts.
        chunk: the actions.
        render: whether observations hold images.
        history: how many observations are returned, if the chunk is that long; only these are made and rendered.

    Returns:
        The observations after the last ``min(history, T)`` actions, oldest first, and metrics and state after each.
    """
    observations, metrics, states = [], [], []
    for left, action in zip(range(len(chunk) - 1, -1, -1), chunk, strict=True):
        metrics.append(sim.step(action))
        states.append(sim.get_state())
        if left < history:
            observations.append(sim.observe(render=render))
    return observations, metrics, states
