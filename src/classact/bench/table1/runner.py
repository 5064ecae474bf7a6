"""All cells of a table, in order: each is kept in the results file as soon as it is done.

Killed anywhere and started again with the same command, it goes on with the cell, and within it with the training, that
it was at. Another protocol is refused: a table has one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from classact.bench.table1.cells import Bench, blank, head_cell, headline, representation, tune
from classact.bench.table1.grid import Cell, Protocol, shift_of
from classact.engine import EngineConfig
from classact.errors import ConfigError, DataError, MissingDependencyError
from classact.machine import choose_device, hardware, versions
from classact.pipeline import RunData, from_preset
from classact.progress import progress_bar
from classact.readers import first_episodes, read_demonstrations
from classact.storage import first_difference, plain_json, read_json, write_json

FORMAT = "classact-table1-1"
RESULTS = "results.json"

FREE = ("evaluations", "evaluation_starts", "probe")
"""Parts of the protocol that decide nothing about success, and may differ between calls."""


def run_table(
    folder: Path,
    cells: Sequence[Cell],
    protocol: Protocol,
    *,
    results_path: Path | None = None,
    device: str = "auto",
    engine: EngineConfig | None = None,
    workers: int = 0,
    quiet: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Compute what is missing of a table.

    Args:
        folder: of the table: run folders of cells, and results.json.
        cells: which; see :func:`classact.bench.table1.grid.plan`.
        protocol: what all share; must be that of the results file.
        results_path: of the results file; None: in ``folder``.
        device, engine, workers, quiet: how.
        say: told what is done, and how long the rest will take.

    Returns:
        The content of the results file.

    Raises:
        ConfigError: the results file is of another protocol.
        TrainingInterrupted: Ctrl-C; the same command goes on.
    """
    path = results_path or folder / RESULTS
    results = _open(path, folder, protocol, workers=workers, quiet=quiet)
    bench = Bench(
        folder,
        protocol,
        _steps(protocol, {cell.demonstrations for cell in cells}, quiet=quiet),
        choose_device(device),
        engine,
        workers,
        quiet,
    )
    for cell in cells:
        if results["cells"].get(cell.name, {}).get("status") != "done":
            results["cells"][cell.name] = blank(cell, "planned")
    write_json(path, results)
    waiting = [cell for cell in cells if results["cells"][cell.name]["status"] != "done"]
    for number, cell in enumerate(waiting):
        left = describe_left(waiting[number:], results["cells"])
        say(f"{cell.name} ({len(cells) - len(waiting) + number + 1} of {len(cells)}{left})")
        begin = time.perf_counter()
        try:
            rate = _rate(bench, cell, results, path, say)
            record = (representation if cell.head == "rep" else head_cell)(bench, cell, rate)
        except MissingDependencyError as error:
            record = blank(cell, "missing", str(error))
        except ConfigError as error:
            if cell.method.name not in ("imagenet", "r3m"):
                raise
            record = blank(cell, "missing", str(error))  # these weights exist for the paper's encoder alone
        results["cells"][cell.name] = plain_json(record)
        if record["status"] == "done":
            results["protocol"]["criteria"] = list(record["success"])
            results["protocol"]["criterion"] = next(iter(record["success"]))
        write_json(path, results)
        if record["status"] == "done":
            took = timedelta(seconds=round(time.perf_counter() - begin))
            say(f"  {headline(record)} in {took}")
        else:
            say(f"  missing: {record['reason']}")
    return results


def _open(path: Path, folder: Path, protocol: Protocol, *, workers: int, quiet: bool) -> dict[str, Any]:
    """The results file, new or one of the same protocol and data."""
    made = from_preset(
        protocol.preset,
        shift=shift_of(protocol.task, "fixed"),
        simulator=protocol.task,
        data=protocol.data,
        layout=protocol.layout,
        heldout=protocol.heldout,
    )
    frames = replace(made.frames, workers=workers)
    data = RunData(
        made.data, None, protocol.heldout, frames, made.pretrain.encoder, layout=made.layout, quiet=quiet
    ).card()
    encoder = made.pretrain.encoder
    settings = plain_json(protocol.to_json() | {"data": data["name"]})
    if path.exists():
        results = dict(read_json(path))
        if results.get("format") != FORMAT:
            raise DataError(f"{path} is no results file of a table: its format is {results.get('format')!r}.")
        # What was measured later tells where.
        for known, found, what in (
            (results["protocol"]["settings"], settings, "protocol"),
            (results["data"]["fingerprint"], data["fingerprint"], "data"),
        ):
            drop = FREE if what == "protocol" else ()
            before, now = (
                {key: value for key, value in card.items() if key not in drop} if isinstance(card, Mapping) else card
                for card in (known, found)
            )
            if difference := first_difference(before, now, what):
                raise ConfigError(
                    f"{path} was measured under another protocol: {difference}. Choose another --out, or ask for the "
                    f"same."
                )
        return results
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "format": FORMAT,
        "task": protocol.task,
        "data": {key: data[key] for key in ("name", "episodes", "steps", "heldout", "fingerprint")},
        "protocol": {
            "budget_images": protocol.images,
            "encoder": f"{encoder.trunk}, {encoder.image_size} px, from {encoder.init}",
            "episodes": protocol.starts,
            "first_seed": protocol.first_seed,
            "criterion": None,
            "criteria": [],
            "grid": {
                "rates": list(protocol.rates),
                "images": protocol.tuning_images,
                "starts": protocol.tuning_starts,
                "first_seed": protocol.tuning_seed,
                "taus": list(protocol.taus),
            },
            "notes": [],
            "settings": settings,
        },
        "hardware": hardware(),
        "versions": versions(),
        "cells": {},
        "tuning": [],
    }


def _steps(protocol: Protocol, counts: set[int | None], *, quiet: bool) -> dict[int | None, int]:
    """N of the demonstrations that are learned from, for each number of them that a cell asks for."""
    with progress_bar("read demonstrations", quiet=quiet) as bar:
        data = read_demonstrations(protocol.data, progress=bar, layout=protocol.layout)
    out: dict[int | None, int] = {}
    for count in counts:
        most = len(data) - protocol.heldout
        if (count or 1) > most:
            raise ConfigError(
                f"{count} demonstrations are to be learned from, but {data.name} has {len(data)}, of which "
                f"{protocol.heldout} are held out. Ask for at most {most}."
            )
        out[count] = first_episodes(data, count or most).num_steps
    return out


def _rate(bench: Bench, cell: Cell, results: dict[str, Any], path: Path, say: Callable[[str], None]) -> float | None:
    """The learning rate that a cell is trained with: tuned once for each baseline; None: the preset's."""
    if not cell.method.tuned:
        return None

    def found() -> list[dict[str, Any]]:
        return [row for row in results["tuning"] if row["method"] == cell.method.written]

    if not found():
        results["tuning"] += plain_json(tune(bench, cell, say))
        write_json(path, results)
    return next(float(row["learning_rate"]) for row in found() if row["chosen"])


def describe_left(waiting: Sequence[Cell], cells: Mapping[str, Any]) -> str:
    """ ", some 2:10:00 left" from what cells of the same kind took; empty before there are any.

    Args:
        waiting: cells that are to come.
        cells: records by name.
    """
    done = [card for card in cells.values() if card["status"] == "done"]
    seconds = 0.0
    for cell in waiting:
        trained = cell.method.pretrained or cell.head != "rep"
        same = [
            card["total_seconds"]
            for card in done
            if card["head"] == cell.head and bool(card["training_seconds"]) == trained
        ]
        if not same:
            same = [card["total_seconds"] for card in done if card["training_seconds"]]
        if not same:
            return ""
        seconds += cell.factor * sum(same) / len(same)
    return f", some {timedelta(seconds=round(seconds))} left"
