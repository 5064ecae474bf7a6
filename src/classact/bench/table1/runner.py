"""All cells of a table, in order: each is kept in the results file as soon as it is done.

Killed anywhere and started again with the same command, it goes on with the cell, and within it with the training, that
it was at. Another protocol is refused: a table has one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from classact.bench.table1.cells import Bench, blank, head_cell, headline, representation, tune, why_missing
from classact.bench.table1.grid import Cell, Protocol, head_config, run_config, shift_of
from classact.encoders import EncoderConfig
from classact.engine import EngineConfig
from classact.errors import ConfigError, DataError, MissingDependencyError
from classact.machine import choose_device, hardware, versions
from classact.pipeline import RunData, from_preset
from classact.presets import paper_task
from classact.readers import first_episodes
from classact.storage import first_difference, plain_json, read_json, without, write_json
from classact.types import Demonstrations

FORMAT = "classact-table1-1"
RESULTS = "results.json"

FREE = ("evaluations", "evaluation_starts", "probe")
"""Parts of the protocol that decide nothing about success, and may differ between calls."""


class Table:
    """The results file. What is added goes into what the file holds then, so that several processes may compute
    different cells.

    Args:
        path: of the file.
        new: its content where there is none.
    """

    def __init__(self, path: Path, new: Mapping[str, Any]) -> None:
        self.path, self._new = path, dict(new)

    def read(self) -> dict[str, Any]:
        """Its content now."""
        return dict(read_json(self.path)) if self.path.exists() else self._new

    def status(self, cell: Cell) -> str:
        """Of a cell; empty where the table does not have it."""
        return str(self.read()["cells"].get(cell.name, {}).get("status", ""))

    def plan(self, cells: Sequence[Cell]) -> None:
        """Add cells that are to come."""
        results = self.read()
        for cell in cells:
            results["cells"].setdefault(cell.name, blank(cell, "planned"))
        write_json(self.path, results)

    def keep(self, cell: Cell, record: Mapping[str, Any]) -> None:
        """Put a cell's record into the place of what was there."""
        results = self.read()
        results["cells"][cell.name] = plain_json(record)
        if record["status"] == "done":
            results["protocol"]["criteria"] = list(record["success"])
            results["protocol"]["criterion"] = next(iter(record["success"]))
        write_json(self.path, results)

    def tried(self, method: str) -> list[dict[str, Any]]:
        """Learning rates that were tried for a method."""
        return [row for row in self.read()["tuning"] if row["method"] == method]

    def keep_tried(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add learning rates that were tried."""
        results = self.read()
        results["tuning"] += plain_json(list(rows))
        write_json(self.path, results)


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

    A cell whose weights or packages are not here is "missing", with the reason, and is tried again by the next call.

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
        ConfigError: the results file is of another protocol or other data; a method's settings do not fit.
        DataError: the results file is none of a table.
        TrainingInterrupted: Ctrl-C; the same command goes on.
    """
    path = results_path or folder / RESULTS
    data = _data(protocol, quiet=quiet)
    table = Table(path, _new(protocol, data.card(), data.encoder))
    _check_same(table, protocol, data.card())
    steps = _steps(data.recorded(), protocol.heldout, {None, *(cell.demonstrations for cell in cells)})
    _check_cells(cells, protocol, steps)
    bench = Bench(folder, protocol, steps, path.parent, choose_device(device), engine, workers, quiet)
    folder.mkdir(parents=True, exist_ok=True)
    table.plan(cells)
    waiting = [cell for cell in cells if table.status(cell) != "done"]
    for number, cell in enumerate(waiting):
        if table.status(cell) == "done":  # by another process
            continue
        left = describe_left(waiting[number:], table.read(), protocol)
        say(f"{cell.name} ({len(cells) - len(waiting) + number + 1} of {len(cells)}{left})")
        begin = time.perf_counter()
        record = _record(bench, cell, table, say)
        table.keep(cell, record)
        if record["status"] == "done":
            say(f"  {headline(record)} in {timedelta(seconds=round(time.perf_counter() - begin))}")
        else:
            say(f"  missing: {record['reason']}")
    return table.read()


def _record(bench: Bench, cell: Cell, table: Table, say: Callable[[str], None]) -> dict[str, Any]:
    if reason := why_missing(cell, bench.protocol):
        return blank(cell, "missing", reason)
    try:
        rate = _rate(bench, cell, table, say)
        return (representation if cell.head == "rep" else head_cell)(bench, cell, rate)
    except MissingDependencyError as error:
        return blank(cell, "missing", str(error))


def _data(protocol: Protocol, *, quiet: bool) -> RunData:
    """The demonstrations, as the preset's encoder sees them in the column without a shift."""
    made = from_preset(protocol.preset, shift=shift_of(protocol.task, "fixed"), simulator=protocol.task)
    return RunData(
        protocol.data,
        None,
        protocol.heldout,
        made.frames,
        made.pretrain.encoder,
        layout=protocol.layout,
        quiet=quiet,
    )


def _settings(protocol: Protocol, data: Mapping[str, Any]) -> Any:
    # The data by name: where they lie decides nothing, and what they hold is compared by itself.
    return plain_json(protocol.to_json() | {"data": data["name"]})


def _check_same(table: Table, protocol: Protocol, data: Mapping[str, Any]) -> None:
    """Refuse a results file of another protocol, or of other data."""
    results = table.read()
    if results.get("format") != FORMAT:
        raise DataError(
            f"{table.path} is no results file of a table: its format is {results.get('format')!r}, expected {FORMAT!r}."
        )
    difference = first_difference(
        without(results["protocol"]["settings"], *FREE), without(_settings(protocol, data), *FREE), "protocol"
    ) or first_difference(results["data"]["fingerprint"], data["fingerprint"], "data.fingerprint")
    if difference:
        raise ConfigError(
            f"{table.path} was measured under another protocol: {difference}. Choose another --out, or ask for the "
            f"same."
        )


def _new(protocol: Protocol, data: Mapping[str, Any], encoder: EncoderConfig) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "task": paper_task(protocol.task),
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
            "settings": _settings(protocol, data),
        },
        "hardware": hardware(),
        "versions": versions(),
        "cells": {},
        "tuning": [],
    }


def _steps(data: Demonstrations, heldout: int, counts: set[int | None]) -> dict[int | None, int]:
    """N of the demonstrations that are learned from, for each number of them that a cell asks for; None: all."""
    most, out = len(data) - heldout, {}
    for count in counts:
        if (count or 1) > most:
            raise ConfigError(
                f"{count} demonstrations are to be learned from, but {data.name} has {len(data)}, of which {heldout} "
                f"are held out. Ask for at most {most}."
            )
        out[count] = first_episodes(data, count or most).num_steps
    return out


def _check_cells(cells: Sequence[Cell], protocol: Protocol, steps: Mapping[int | None, int]) -> None:
    """Refuse now what would be refused when its turn comes, hours later."""
    for cell in cells:
        try:
            run_config(cell, protocol, steps[cell.demonstrations], None, 1)
            if cell.head != "rep":
                head_config(cell, protocol, steps[cell.demonstrations])
        except ConfigError as error:
            raise ConfigError(f"cell {cell.name}: {error}") from None


def _rate(bench: Bench, cell: Cell, table: Table, say: Callable[[str], None]) -> float | None:
    """The learning rate that a cell is trained with: tuned once for each baseline; None: the preset's."""
    if not cell.method.tuned:
        return None
    if not table.tried(cell.method.written):
        table.keep_tried(tune(bench, cell, say))
    return next(float(row["learning_rate"]) for row in table.tried(cell.method.written) if row["chosen"])


def describe_left(waiting: Sequence[Cell], results: Mapping[str, Any], protocol: Protocol) -> str:
    """ ", some 2:10:00 left" from what cells of the same kind took; empty before there are any.

    Args:
        waiting: cells that are to come.
        results: content of the results file.
        protocol: says how long the search for a learning rate is beside a training.
    """
    done = [card for card in results["cells"].values() if card["status"] == "done"]
    tried = {row["method"] for row in results["tuning"]}
    seconds = 0.0
    for cell in waiting:
        learns = cell.method.pretrained or cell.head != "rep"
        trainings = [card for card in done if card["images"]]
        same = [card for card in done if card["head"] == cell.head and bool(card["images"]) == learns] or trainings
        if not same:
            return ""
        # Of results that older versions wrote, a head's time may hold that of its representation.
        took = [card.get("own_seconds", card["total_seconds"]) / card.get("factor", 1) for card in same]
        mean = sum(took) / len(took)
        seconds += cell.factor * mean
        if cell.method.tuned and cell.method.written not in tried:
            tried.add(cell.method.written)
            images = sum(card["images"] / card.get("factor", 1) for card in same) / len(same)
            seconds += len(protocol.rates) * mean * min(1.0, protocol.tuning_images / max(images, 1))
    return f", some {timedelta(seconds=round(seconds))} left"
