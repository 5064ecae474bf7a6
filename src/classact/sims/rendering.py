"""Rendering recorded states again: the same demonstrations under another appearance, size or simulator version."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np

from classact.data.images import resize_images
from classact.data.types import ImageArray, IntArray, StateArray
from classact.errors import ConfigError, DataError, SimulatorError, UnknownNameError, choose
from classact.sims import make_simulator, simulator_spec
from classact.sims.processes import FaultError, run_tasks

EPISODES_PER_TASK = 4  # small enough to balance the load, large enough to amortise sending the states

TRIES = 3  # processes that may be lost with one task
TIMEOUT = 1200.0  # seconds after which a task counts as hung; it takes a minute or two
Settings = tuple[str, int, str, int, str]  # simulator, image size, shift, seed of appearances, camera
Bounds = list[tuple[int, int, int]]  # consecutive episodes: (number, first row, row after the last)
Progress = Callable[[int, int], None]  # called with (steps rendered, steps in all)


def appearance_seed(seed: int, episode: int) -> int:
    """The seed, 0..2^32-1, of the appearance of ``episode`` in a data set rendered with ``seed``.

    A pure function (NumPy's ``SeedSequence``, stable across versions and platforms), so that images depend neither on
    the number of workers nor on which episodes are rendered together.
    """
    return int(np.random.SeedSequence([seed, episode]).generate_state(1, np.uint32)[0])


def render_states(
    simulator_name: str,
    states: StateArray,
    episode_ends: IntArray,
    *,
    image_size: int,
    shift: str,
    seed: int,
    out: ImageArray,
    camera: str | None = None,
    workers: int = 1,
    progress: Progress | None = None,
    done: Path | None = None,
) -> None:
    """Render one camera's view of every step of a set of demonstrations into ``out``.

    Args:
        states: (N, D_s) float64 simulator states.
        episode_ends: (E,) cumulative steps.
        image_size: side of the images in pixels.
        shift: the visual shift; episode e is drawn with :func:`appearance_seed` (seed, e).
        out: (N, S, S, 3) uint8; where S differs from ``image_size`` frames are resized as observations are
            (:func:`classact.data.images.resize_images`). Several workers write to the file of a ``numpy.memmap``
            themselves; other arrays are filled from what they send back.
        camera: which view; None for the simulator's first.
        workers: processes; 1 renders here. The bytes are the same for any number.
        progress: called from this process as episodes finish.
        done: file in which finished episodes are noted, a line "first last" of each few; those that it names are taken
            to be in ``out`` already. None: all are rendered.

    Raises:
        DataError: ``states`` or ``out`` of the wrong shape.
        ConfigError: unknown simulator, camera, shift or image size.
        SimulatorError: worker processes died or hung repeatedly, or the simulator failed.
    """
    if workers < 1:
        raise ConfigError(f"expected at least 1 rendering worker, got {workers}.")
    spec = simulator_spec(simulator_name)
    camera = spec.cameras[0] if camera is None else camera
    if camera not in spec.cameras:
        raise UnknownNameError(choose("camera", camera, spec.cameras) + f" in simulator {simulator_name!r}.")
    total = int(episode_ends[-1])
    if states.shape != (total, spec.state_dim):
        raise DataError(
            f"{simulator_name}: expected states of shape ({total}, {spec.state_dim}) to render, got {states.shape}."
        )
    if out.ndim != 4 or out.shape[0] != total or out.shape[1] != out.shape[2] or out.shape[3] != 3:
        raise DataError(f"{simulator_name}: expected an output of shape ({total}, S, S, 3), got {out.shape}.")
    if out.dtype != np.uint8:
        raise DataError(f"{simulator_name}: expected an output of dtype uint8, got {out.dtype}.")
    starts = np.concatenate([[0], episode_ends[:-1]])
    tasks: list[Bounds] = []
    for first in range(0, len(episode_ends), EPISODES_PER_TASK):
        last = min(first + EPISODES_PER_TASK, len(episode_ends))
        tasks.append([(e, int(starts[e]), int(episode_ends[e])) for e in range(first, last)])
    settings = (simulator_name, image_size, shift, seed, camera)
    noted = _noted(done)
    there = sum(task[-1][2] - task[0][1] for task in tasks if _name(task) in noted)
    tasks = [task for task in tasks if _name(task) not in noted]

    def rows(bounds: Bounds) -> slice:
        return slice(bounds[0][1], bounds[-1][2])

    def finished(bounds: Bounds, frames: ImageArray | None) -> None:
        nonlocal there
        if frames is not None:
            out[rows(bounds)] = frames
        there += bounds[-1][2] - bounds[0][1]
        if done is not None:
            if isinstance(out, np.memmap):
                out.flush()  # noted only once it is written
            with done.open("a", encoding="utf-8") as file:
                file.write(f"{_name(bounds)}\n")
        if progress is not None:
            progress(there, total)

    if progress is not None and there:
        progress(there, total)

    if workers == 1:
        for bounds in tasks:
            _render(settings, bounds, states[rows(bounds)], out[rows(bounds)])
            finished(bounds, None)
        return
    todo = dict(enumerate(tasks))
    rendered = run_tasks(
        partial(_worker, settings, _memmap_target(out), out.shape),
        lambda pending: next((task for task in todo if task not in pending), None),
        workers=workers,
        timeout=TIMEOUT,
        request=lambda task: (todo[task], np.asarray(states[rows(todo[task])])),
    )
    with closing(rendered):
        for task, frames in rendered:
            if not isinstance(frames, FaultError):
                finished(todo.pop(task), frames)
            elif frames.error is not None:
                raise frames.error from frames
            elif frames.losses == TRIES:
                raise SimulatorError(
                    f"{simulator_name}: {TRIES} rendering processes were lost with the same frames, the last one: it "
                    f"{frames}; {there} of {total} frames are done. If it was killed for memory, start it again with "
                    f"fewer workers than {workers}; 'classact doctor' tries the simulator."
                )


def _name(bounds: Bounds) -> str:
    """The episodes of a task, in the file that notes finished ones."""
    return f"{bounds[0][0]} {bounds[-1][0]}"


def _noted(done: Path | None) -> set[str]:
    """Names of finished tasks; a line that was not written to its end names none."""
    if done is None or not done.exists():
        return set()
    return {
        line.rstrip("\n") for line in done.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1] == "\n"
    }


def _memmap_target(out: ImageArray) -> tuple[str, int] | None:
    """(file, byte offset) that workers can map themselves, None for arrays in memory and for views."""
    if isinstance(out, np.memmap) and out.filename is not None and out.mode in ("r+", "w+") and out.flags.c_contiguous:
        root = out
        while isinstance(root.base, np.memmap):
            root = root.base
        if root.shape == out.shape:
            out.flush()
            return str(Path(out.filename).resolve()), int(out.offset)
    return None


def _worker(
    settings: Settings, target: tuple[str, int] | None, shape: tuple[int, ...], bounds: Bounds, states: StateArray
) -> ImageArray | None:
    """Render into the file ``target``, where there is one; else return the frames."""
    if target is None:
        frames = np.empty((len(states), *shape[1:]), dtype=np.uint8)
        _render(settings, bounds, states, frames)
        return frames
    mapped = np.memmap(target[0], dtype=np.uint8, mode="r+", offset=target[1], shape=shape)
    _render(settings, bounds, states, mapped[bounds[0][1] : bounds[-1][2]])
    mapped.flush()
    return None


def _render(settings: Settings, bounds: Bounds, states: StateArray, out: ImageArray) -> None:
    """Render consecutive episodes; ``states`` and ``out`` start at the first of them."""
    name, image_size, shift, seed, camera = settings
    simulator = make_simulator(name, image_size=image_size, shift=shift, cameras=(camera,))
    first = bounds[0][1]
    try:
        for episode, begin, end in bounds:
            simulator.set_appearance(appearance_seed(seed, episode))
            for row in range(begin - first, end - first):
                simulator.set_state(states[row], step=row + first - begin)
                out[row] = resize_images(simulator.observe().images[camera][None], out.shape[1])[0]
    except SimulatorError as error:
        raise SimulatorError(f"{name}: rendering episodes {bounds[0][0]}..{bounds[-1][0]} failed: {error}") from error
    finally:
        simulator.close()
