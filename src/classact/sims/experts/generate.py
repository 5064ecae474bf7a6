"""Demonstrations from an expert: in parallel, resumable, the same for any number of workers; one file or folder.

Seeds are tried in order; of each task, the first ``episodes`` attempts that are kept make the data set, whichever
process finished first. Every attempt is stored beside the output as soon as it is over, so an interrupted run can be
resumed.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from classact.data.language import UNKNOWN
from classact.data.readers import generated
from classact.data.schema import Schema
from classact.data.types import Demonstrations, ImageArray
from classact.errors import ConfigError
from classact.sims import SIMULATORS, Simulator, make_simulator
from classact.sims.experts import attempts
from classact.sims.experts.base import PLANNED, Attempt, Recorder, ScriptRecorder
from classact.sims.experts.pusht import MAX_LENGTH, MIN_LENGTH, ExpertConfig, PlanRecorder
from classact.sims.rendering import render_states
from classact.sims.versions import installed_versions
from classact.utils.locks import own
from classact.utils.progress import Callback, progress_bar
from classact.utils.storage import check_writable

PUSHT_PACKAGES = ("classact", "gym-pusht", "numba", "numpy", "pymunk", "shapely")
PACKAGES = ("classact", "numpy")  # whose versions are recorded, besides the simulator's own

Stage = Callable[[str], AbstractContextManager[Callback]]  # title -> a context that gives a progress callback


def no_bars(title: str) -> AbstractContextManager[Callback]:
    """A stage without a progress bar."""
    return progress_bar(title, quiet=True)


def generate_demonstrations(
    simulator: str,
    *,
    episodes: int,
    out: Path,
    seed: int = 0,
    workers: int = 1,
    shift: str | None = None,
    image_size: int | None = None,
    cameras: tuple[str, ...] | None = None,
    stage: Stage = no_bars,
    config: ExpertConfig | None = None,
) -> Demonstrations:
    """Let a task's expert act from the initial states of ``seed``, ``seed`` + 1, ... until there are enough
    demonstrations.

    Args:
        episodes: demonstrations to keep, of each of the simulator's tasks (``SimulatorSpec.tasks``).
        out: the .npz file, or with images the folder; attempts are kept in ``<out>.work`` until it is complete.
        seed: the first seed; with images also the seed of appearances.
        workers: processes. The result is the same for any number.
        shift: store images as well, under this visual shift; None: states only, which can be rendered at any time.
        image_size: side of these images in pixels; None: the simulator's.
        cameras: their views; None: the simulator's first.
        stage: makes the progress bar of a stage from its title (:func:`classact.utils.progress.progress_bar`).
        config: settings of Push-T's planner.

    Raises:
        ConfigError: no such simulator or expert, fewer than one episode, ``out`` exists or has the wrong ending, or a
            work folder of other settings.
        SimulatorError: the expert, its simulator or its processes failed; run it again to continue.
    """
    if episodes < 1 or workers < 1:
        raise ConfigError(f"expected at least 1 episode and 1 worker, got {episodes} and {workers}.")
    if not 0 <= seed < attempts.END_SEED:
        raise ConfigError(f"expected a first start seed in 0..{attempts.END_SEED - 1}, got {seed}.")
    planned = simulator == PLANNED
    recorder: Recorder = (
        PlanRecorder(config or ExpertConfig()) if planned else ScriptRecorder(simulator, SIMULATORS[simulator])
    )
    _check_out(out, shift is not None, image_size, cameras)
    check_writable(out, folder=shift is not None)
    sim = make_simulator(simulator, image_size=image_size, shift=shift, cameras=cameras)
    try:
        spec = sim.spec
        if shift is not None:
            sim.reset(seed)
            sim.observe()  # fails now rather than after hours of attempts where images cannot be drawn
        facts = _facts(simulator, sim, recorder, seed)
    finally:
        sim.close()
    work = out.with_name(out.name + ".work")
    hold = own(work)
    plan = attempts.Plan(seed, episodes, spec.tasks, attempts.open_work(work, facts))
    seconds = attempts.START_SECONDS + spec.max_steps * attempts.STEP_SECONDS
    with stage(f"expert of {simulator}") as bar:

        def report() -> None:
            bar(plan.kept, plan.wanted, f"{plan.failed} not kept")

        seeds = attempts.run_attempts(recorder, plan, work, workers=workers, seconds=seconds, report=report)
    kept = [attempts.load_attempt(work, number) for number in seeds]
    tried, reasons = plan.counts(seeds)
    if planned and shift is None:  # as the embedded demonstrations are stored
        header = facts | {"episodes": episodes, "attempts": tried, "not_kept": tried - episodes}
        actions = [a.actions.astype(np.float64) for a in kept]
        generated.write_pusht(out, header, seeds=seeds, states=[a.states for a in kept], actions=actions)
    else:
        data = _join(simulator, kept, facts.pop("packages"), spec.schema)
        facts |= {"episodes": episodes, "tasks": spec.tasks, "attempts": tried, "not_kept": reasons}
        instructions = [a.instruction for a in kept] if any(a.instruction for a in kept) else ()
        if shift is None:
            generated.write(out, data, seeds=seeds, instructions=instructions, facts=facts)
        else:
            with stage(f"images, {shift}") as bar:
                images = _images(data, shift, spec.image_size, seed, cameras or spec.cameras[:1], workers, bar)
                generated.write(out, data, seeds=seeds, instructions=instructions, facts=facts, images=images)
    attempts.delete_work(work)
    del hold
    return generated.read(out)


def _check_out(out: Path, folder: bool, image_size: int | None, cameras: tuple[str, ...] | None) -> None:
    if not folder and (image_size is not None or cameras):
        raise ConfigError("image size and cameras are those of stored images: they need a shift.")
    if folder == (out.suffix == ".npz"):
        expected = "a folder, named without .npz, for images lie beside the states" if folder else "a file named *.npz"
        raise ConfigError(f"{out}: expected {expected}. Write to another name.")
    if out.exists():
        raise ConfigError(f"{out} exists. Delete it, or write to another name.")


def _facts(name: str, sim: Simulator, recorder: Recorder, seed: int) -> dict[str, Any]:
    """What attempts depend on, for the header; a work folder must agree with it."""
    facts: dict[str, Any] = {"simulator": name, "first_seed": seed}
    if isinstance(recorder, PlanRecorder):
        facts |= {"lengths": [MIN_LENGTH, MAX_LENGTH], "expert": dataclasses.asdict(recorder.config)}
        versions = installed_versions(PUSHT_PACKAGES)
    else:
        facts["expert"] = SIMULATORS[name].expert
        versions = installed_versions((*PACKAGES, *sim.spec.packages))
        if sim.spec.schema is not None and sim.spec.schema.language:
            versions["language"] = sim.spec.language_source or UNKNOWN  # what embeds the instructions
    return facts | {"packages": versions, "python": platform.python_version(), "machine": platform.machine()}


def _join(name: str, kept: list[Attempt], versions: dict[str, str], schema: Schema | None) -> Demonstrations:
    language = [a.language for a in kept if a.language is not None]
    return Demonstrations(
        name=name,
        episode_ends=np.cumsum([len(a) for a in kept], dtype=np.int64),
        actions=np.concatenate([a.actions for a in kept]),
        proprioception=np.concatenate([a.proprioception for a in kept]),
        states=np.concatenate([a.states for a in kept]),
        source="expert",
        schema=schema or Schema(),
        language=np.stack(language) if language else None,
        simulator=name,
        versions=versions,
    )


def _images(
    data: Demonstrations, shift: str, size: int, seed: int, cameras: tuple[str, ...], workers: int, bar: Callback
) -> generated.Images:
    def draw(camera: str, frames: ImageArray) -> None:
        assert data.states is not None
        before = cameras.index(camera) * data.num_steps
        render_states(
            data.simulator,
            data.states,
            data.episode_ends,
            image_size=size,
            shift=shift,
            seed=seed,
            out=frames,
            camera=camera,
            workers=workers,
            progress=lambda done, total: bar(before + done, len(cameras) * total),
        )

    return generated.Images(shift, size, seed, cameras, draw)
