"""Demonstrations from the expert: in parallel, resumable, the same for any number of workers; one compact file.

Start seeds are tried in order; the first ``episodes`` attempts that are kept make the data set, whichever process
finished first. Every attempt is stored beside the output as soon as it is over, so a run that was stopped continues.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import multiprocessing
import platform
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from classact.errors import ConfigError, SimulatorError, choose
from classact.readers.embedded import read_file, write_file
from classact.sims.experts.pusht import ExpertConfig, Solution, solve
from classact.sims.pusht import PushT
from classact.storage import atomic_path, read_json, write_json
from classact.types import Demonstrations

EXPERTS = ("pusht",)
MIN_LENGTH, MAX_LENGTH = 100, 300  # shorter ones started next to the goal, longer ones wandered
PACKAGES = ("classact", "gym-pusht", "numba", "numpy", "pymunk", "shapely")

Progress = Callable[..., None]
"""Called with (kept, wanted, status)."""


def kept(solution: Solution) -> bool:
    """Whether an attempt becomes a demonstration: placed, held, and of a usual length."""
    return solution.placed and MIN_LENGTH <= len(solution.actions) <= MAX_LENGTH


def generate_demonstrations(
    simulator: str = "pusht",
    *,
    episodes: int,
    out: Path,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
    config: ExpertConfig | None = None,
) -> Demonstrations:
    """Let the expert solve starts seed, seed + 1, ... until ``episodes`` are kept, and write them to ``out``.

    Args:
        simulator: whose expert; only Push-T has one.
        episodes: demonstrations to keep.
        out: the .npz file to write; attempts are kept in the folder ``<out>.work`` until it is complete.
        seed: first start seed.
        workers: processes. The file is the same for any number.
        progress: called with (kept, wanted, status) as attempts end.
        config: settings of the expert.

    Raises:
        ConfigError: no such expert, fewer than one episode, or a work folder of other settings.
        SimulatorError: a worker process died; run it again to continue.
    """
    if simulator not in EXPERTS:
        raise ConfigError(choose("expert", simulator, EXPERTS))
    if episodes < 1 or workers < 1:
        raise ConfigError(f"expected at least 1 episode and 1 worker, got {episodes} and {workers}.")
    cfg = config or ExpertConfig()
    header = _header(simulator, seed, cfg)
    work = out.with_name(out.name + ".work")
    _open_work(work, header)
    attempts: dict[int, bool] = {}  # start seed -> kept
    for file in work.glob("[0-9]*.npz"):
        attempts[int(file.stem)] = kept(_load_attempt(file))

    def chosen() -> list[int] | None:
        """The first ``episodes`` kept seeds, once every seed before the last of them was tried."""
        found: list[int] = []
        start = seed
        while start in attempts and len(found) < episodes:
            if attempts[start]:
                found.append(start)
            start += 1
        return found if len(found) == episodes else None

    def report() -> None:
        if progress is not None:
            good = sum(attempts.values())
            progress(min(good, episodes), episodes, f"{len(attempts) - good} not kept")

    if chosen() is None:
        if workers == 1:
            start = seed
            while chosen() is None:
                if start not in attempts:
                    attempts[start] = attempt(start, cfg, work)
                    report()
                start += 1
        else:
            _run_parallel(cfg, work, seed, workers, attempts, chosen, report)
    seeds = chosen()
    assert seeds is not None
    solutions = [_load_attempt(work / f"{s}.npz") for s in seeds]
    tried = seeds[-1] - seed + 1
    header |= {"episodes": episodes, "attempts": tried, "not_kept": tried - episodes}
    write_file(
        out,
        header,
        seeds=[s.seed for s in solutions],
        states=[s.states for s in solutions],
        actions=[s.actions for s in solutions],
    )
    for file in work.iterdir():
        file.unlink()
    work.rmdir()
    return read_file(out, name=f"{simulator}-expert")


def _header(simulator: str, seed: int, config: ExpertConfig) -> dict[str, Any]:
    return {
        "simulator": simulator,
        "first_seed": seed,
        "lengths": [MIN_LENGTH, MAX_LENGTH],
        "expert": dataclasses.asdict(config),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _open_work(work: Path, header: dict[str, Any]) -> None:
    settings = json.loads(json.dumps(header))
    file = work / "settings.json"
    if file.exists():
        found = read_json(file, ConfigError)
        different = sorted(key for key in settings.keys() | found.keys() if settings.get(key) != found.get(key))
        if different:
            raise ConfigError(
                f"{work} holds attempts made with other settings ({', '.join(different)}). Delete the folder, or "
                f"write to another file."
            )
        return
    work.mkdir(parents=True, exist_ok=True)
    write_json(file, settings)


def attempt(seed: int, config: ExpertConfig, work: Path) -> bool:
    """Solve one start and store the attempt; whether it is kept."""
    simulator = PushT()
    solution = solve(simulator, seed, config)
    simulator.close()
    with atomic_path(work / f"{seed}.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            seed=np.int64(seed),
            states=solution.states,
            actions=solution.actions,
            coverage=solution.coverage,
            placed=np.bool_(solution.placed),
        )
    return kept(solution)


def _load_attempt(file: Path) -> Solution:
    with np.load(file, allow_pickle=False) as data:
        return Solution(
            seed=int(data["seed"]),
            states=data["states"],
            actions=data["actions"],
            coverage=data["coverage"],
            placed=bool(data["placed"]),
        )


def _run_parallel(
    config: ExpertConfig,
    work: Path,
    seed: int,
    workers: int,
    attempts: dict[int, bool],
    chosen: Callable[[], list[int] | None],
    report: Callable[[], None],
) -> None:
    context = multiprocessing.get_context("spawn")
    pending: dict[Future[bool], int] = {}
    start = seed
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            while chosen() is None:
                while len(pending) < workers:
                    if start not in attempts:
                        pending[pool.submit(attempt, start, config, work)] = start
                    start += 1
                finished, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    attempts[pending.pop(future)] = future.result()
                    report()
        except BrokenProcessPool as error:
            raise SimulatorError(
                f"an expert process died after {len(attempts)} attempts (killed, or out of memory). Run it again: "
                f"it continues from {work}."
            ) from error
