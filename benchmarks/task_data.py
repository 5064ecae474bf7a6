"""Demonstrations of the paper's amounts, rendered once under each shift: what they take, and how they vary.

For each task: attempts of its expert (stored one by one), pictures of training size under each shift in classact's
image store, how far apart positives of early timesteps have things by the length of windows (``classact similarity``),
and how differently people, scripts of other chance, act from equal initial states.

Kill it anywhere and start it again: what is there is kept. Where the machine does other work meanwhile, say ``--busy``:
times are not kept then.

    uv run python benchmarks/task_data.py                                   everything
    uv run python benchmarks/task_data.py --tasks square --columns fixed    one task, one view
    UV_PROJECT_ENVIRONMENT=.venv-libero uv run --extra libero python benchmarks/task_data.py --tasks libero-object
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from classact.data.images import ImageStore
from classact.data.readers import read_demonstrations
from classact.data.types import Demonstrations
from classact.run.config import FramesConfig
from classact.run.frames import prepare_frames
from classact.run.presets import PRESETS
from classact.similarity.apart import early_rows, objects_apart
from classact.similarity.distribution import DistanceDistribution
from classact.similarity.model import window_stream
from classact.similarity.pairwise import sample_pairs, stream_pairs
from classact.sims import SIMULATORS, make_simulator, simulator_spec
from classact.sims.experts.base import GiveUpError
from classact.sims.experts.generate import generate_demonstrations
from classact.utils.lazy import resolve
from classact.utils.machine import cores, hardware
from classact.utils.progress import progress_bar, tell
from common import RESULTS, command, keep, kept


@dataclass(frozen=True)
class Task:
    """One of the paper's tasks.

    Attributes:
        simulator: registry name.
        demonstrations: of each of its tasks, as in the paper.
        shifts: column -> visual shift.
        baselines: demonstrations of rows other than CLASS; None: as many.
    """

    simulator: str
    demonstrations: int
    shifts: dict[str, str]
    baselines: int | None = None

    @property
    def preset(self) -> str:
        """Of its pre-trainings."""
        return str(SIMULATORS[self.simulator].preset)


ARM = {"fixed": "fixed", "dynamic": "dynamic", "dynamic-paper": "dynamic-paper"}
TASKS = {
    "square": Task("square", 200, ARM),
    "three-stack": Task("three-stack-d0", 1000, ARM, baselines=400),
    "aloha": Task("aloha-transfer", 100, {"fixed": "fixed", "rotation": "rotation"}),
    "aloha-50": Task("aloha-transfer", 50, {"fixed": "fixed", "rotation": "rotation"}),
    "libero-object": Task("libero-object", 50, ARM),
}

SECONDS = (0.3, 0.8, 1.6, 2.0, 2.4)
"""Lengths of windows that are compared."""

PAIRS, COMPARED = 200_000, 100
"""Pairs that a threshold is taken from, and demonstrations that windows are compared on."""


@dataclass
class Flags:
    """Demonstrations of the paper's amounts.

    Attributes:
        json: where the results go.
        folder: of the demonstrations.
        tasks: of the table.
        columns: views that are rendered.
        demonstrations: fewer than the paper's; None: as many.
        size: side of the rendered pictures in pixels.
        starts: initial states from which several people act.
        people: how many.
        workers: processes; 0: one per core.
        busy: the machine does other work as well: no times are kept.
    """

    json: Path = RESULTS / "task_data.json"
    folder: Path = Path("runs/demonstrations")
    tasks: tuple[str, ...] = ("square", "three-stack", "aloha", "libero-object")
    columns: tuple[str, ...] = ("fixed", "dynamic", "dynamic-paper", "rotation")
    demonstrations: int | None = None
    size: int = 96
    starts: int = 20
    people: int = 5
    workers: int = 0
    busy: bool = False


def demonstrations_file(task: Task, folder: Path, count: int | None = None) -> Path:
    """Where they are, or will be."""
    return folder / f"{task.simulator}-{count or task.demonstrations}.npz"


def generated(task: Task, folder: Path, *, count: int | None = None, workers: int = 0) -> Path:
    """The task's demonstrations, generated where they are not there yet."""
    out = demonstrations_file(task, folder, count)
    if not out.exists():
        folder.mkdir(parents=True, exist_ok=True)
        generate_demonstrations(
            task.simulator,
            episodes=count or task.demonstrations,
            out=out,
            workers=workers or cores(),
            stage=progress_bar,
        )
    return out


def main(flags: Flags) -> None:
    """Measure what the results file does not hold."""
    for name in flags.tasks:
        task, count = TASKS[name], flags.demonstrations
        label = f"{task.simulator}/{count or task.demonstrations}"
        begin, there = time.perf_counter(), _begun(demonstrations_file(task, flags.folder, count))
        out = generated(task, flags.folder, count=count, workers=flags.workers)
        spent = None if there or flags.busy else round(time.perf_counter() - begin, 1)
        data = read_demonstrations(out)
        if label not in kept(flags.json, "demonstrations"):
            keep(flags.json, "demonstrations", label, _amounts(data, out, spent, flags.workers or cores()))
        if label not in kept(flags.json, "windows"):
            keep(flags.json, "windows", label, windows(task, data))
        people = f"{task.simulator}/{flags.starts} x {flags.people}"
        if people not in kept(flags.json, "people"):
            keep(flags.json, "people", people, variation(task, data, flags.starts, flags.people))
        for column in flags.columns:
            if column not in task.shifts or f"{label}/{column}/{flags.size}" in kept(flags.json, "pictures"):
                continue
            found = pictures(task, data, column, flags)
            keep(flags.json, "pictures", f"{label}/{column}/{flags.size}", found)
            tell(f"{label}, {column}: {found['mebibytes']} MiB")


def _begun(out: Path) -> bool:
    return out.exists() or out.with_name(out.name + ".work").exists()


def _amounts(data: Demonstrations, out: Path, seconds: float | None, workers: int) -> dict[str, Any]:
    lengths = data.lengths
    return {
        "demonstrations": len(data),
        "steps": data.num_steps,
        "mean_steps": round(float(lengths.mean()), 1),
        "max_steps": int(lengths.max()),
        "mebibytes": round(out.stat().st_size / 2**20, 1),
        "seconds": seconds,
        "workers": workers,
        "hardware": hardware(),
    }


def pictures(task: Task, data: Demonstrations, column: str, flags: Flags) -> dict[str, Any]:
    """Render all demonstrations under a column's shift into the store, which keeps them."""
    spec, begin = simulator_spec(task.simulator), time.perf_counter()
    camera = PRESETS[task.preset].pretrain.encoder.cameras[0]
    camera = camera if camera in spec.cameras else spec.cameras[0]
    config = FramesConfig(
        simulator=task.simulator, shift=task.shifts[column], render_size=flags.size, workers=flags.workers
    )
    drawn = False

    with progress_bar(f"{data.name}: pictures, {column}") as bar:

        def report(done: int, total: int) -> None:
            nonlocal drawn
            drawn = True
            bar(done, total)

        made = prepare_frames(data, (camera,), flags.size, config, report, ImageStore())
    spent = round(time.perf_counter() - begin, 1)
    return {
        "camera": camera,
        "shift": task.shifts[column],
        "pictures": len(made.images[camera]),
        "size": flags.size,
        "mebibytes": round(np.prod(made.images[camera].shape) / 2**20, 1),
        "seconds": spent if drawn and not flags.busy else None,
        "hardware": hardware(),
    }


def windows(task: Task, data: Demonstrations) -> list[dict[str, Any]]:
    """How far apart positives of early timesteps have things, by the length of windows."""
    spec, settings = simulator_spec(task.simulator), PRESETS[task.preset].pretrain.similarity
    data = data.subset(list(range(0, len(data), -(-len(data) // COMPARED))))
    assert data.states is not None
    columns = {name: data.states[:, first : first + 3] for name, first in spec.objects}
    rows = early_rows(data.episode_ends)
    lines = []
    with progress_bar(f"{data.name}: windows") as bar:
        for number, seconds in enumerate(SECONDS):
            bar(number, len(SECONDS), f"{seconds:g} s")
            horizon = round(seconds * spec.control_hz)
            stream = window_stream(data, replace(settings, horizon=horizon))
            pairs = sample_pairs(len(stream), PAIRS, 0)
            found = DistanceDistribution.fit(stream_pairs(stream, *pairs), settings.quantile)
            apart = objects_apart(stream, data.episode_index(), columns, found, rows)
            lines += [{"seconds": seconds, "horizon": horizon, **vars(one)} for one in apart]
    return lines


def variation(task: Task, data: Demonstrations, starts: int, people: int) -> dict[str, Any]:
    """How differently an expert acts from equal initial states, with other chance: of normalised actions.

    ``first``: at the initial state itself; ``later``: after a tenth, ..., nine tenths of each own demonstration, where
    paths, speeds and grasps have drifted apart; both are root mean squares about the people's mean, a dimension. A
    demonstrator without variation has 0.
    """
    sim = make_simulator(task.simulator)
    script, scale = resolve(SIMULATORS[task.simulator].expert), data.action_range()
    first, later, lengths = [], [], []
    try:
        with progress_bar(f"{data.name}: people") as bar:
            for start in range(starts):
                paths = []
                for person in range(people):
                    sim.reset(start)
                    steps = _played(sim, script(sim, np.random.default_rng([start, person])), sim.spec.max_steps)
                    paths.append(scale.apply(np.array(steps, np.float32)))
                    bar(start * people + person, starts * people)
                shares = np.array(
                    [[path[int(at * (len(path) - 1))] for at in np.linspace(0, 0.9, 10)] for path in paths]
                )
                spread = np.sqrt(((shares - shares.mean(0)) ** 2).mean(0).mean(1))  # (10,)
                first.append(spread[0])
                later.append(spread[1:])
                lengths.append([len(path) for path in paths])
    finally:
        sim.close()
    steps = np.array(lengths, np.float64)
    return {
        "starts": starts,
        "people": people,
        "first": round(float(np.mean(first)), 4),
        "later": [round(float(one), 4) for one in np.mean(later, axis=0)],
        "length_spread": round(float((steps.std(axis=1) / steps.mean(axis=1)).mean()), 4),
    }


def _played(sim: Any, script: Any, most: int) -> list[Any]:
    """Actions of a script to the task's success."""
    criterion, done = sim.spec.criteria[0], []
    with contextlib.suppress(GiveUpError):
        for action in islice(script, most):
            done.append(np.asarray(action, np.float32))
            if criterion.met(sim.step(action)[criterion.metric]):
                break
    return done


if __name__ == "__main__":
    raise SystemExit(command(Flags, main))
