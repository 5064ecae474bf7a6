"""All cells of a table, in order: each is kept in the results file as soon as it is done.

Killed anywhere and started again with the same command, it goes on with the cell, and within it with the training, that
it was at. Another protocol is refused: a table has one. Several processes may compute one table: each training is
claimed by one of them (:mod:`classact.utils.locks`), the others go on with another one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from classact.data.readers import first_episodes
from classact.data.types import Demonstrations
from classact.errors import (
    ClassactError,
    ConfigError,
    DataError,
    MissingDependencyError,
    StorageError,
    TrainingInterrupted,
)
from classact.models.encoders import EncoderConfig
from classact.run.data import RunData
from classact.run.presets import PRESETS, from_preset
from classact.sims import SIMULATORS
from classact.train.config import EngineConfig
from classact.utils.codec import first_difference, to_json, without
from classact.utils.locks import BusyError, lock_of, locked
from classact.utils.machine import choose_device, hardware, versions
from classact.utils.storage import check_writable, read_json, write_json
from table1.cells import head_cell, head_retrieval, on_more_starts, representation, try_rate
from table1.grid import Cell, Protocol, head_config, rates_of, run_config, searched, shift_of
from table1.records import best_of, blank, finite, headline
from table1.trainings import Bench, why_missing

FORMAT = "classact-table1-1"
RESULTS = "results.json"

FREE = ("evaluations", "evaluation_starts", "probe", "data", "layout")
"""Parts of the protocol that decide nothing about success, and may differ between calls. Where data and layout lie, and
what they are called, decides nothing: what they hold is compared by itself."""

GROWS = "starts"
"""The part of the protocol that a later call may raise."""


class Table:
    """The results file. Each change is of what the file holds then, and of one process at a time.

    Args:
        path: of the file.
        new: its content where there is none.
    """

    def __init__(self, path: Path, new: Mapping[str, Any]) -> None:
        self.path, self._new = path, dict(new)

    def read(self) -> dict[str, Any]:
        """Its content now."""
        return dict(read_json(self.path)) if self.path.exists() else self._new

    @contextmanager
    def _changed(self) -> Iterator[dict[str, Any]]:
        with locked(lock_of(self.path)):
            results = self.read()
            yield results
            write_json(self.path, results)

    def record(self, cell: Cell) -> dict[str, Any]:
        """Of a cell that is planned."""
        return dict(self.read()["cells"][cell.name])

    def plan(self, cells: Sequence[Cell]) -> None:
        """Add cells that are to come.

        Raises:
            ConfigError: another method has the name.
        """
        with self._changed() as results:
            for cell in cells:
                known = results["cells"].setdefault(cell.name, blank(cell, "planned"))
                if known.setdefault("written", cell.method.written) != cell.method.written:
                    raise ConfigError(
                        f"cell {cell.name} of {self.path} is of method {known['written']!r}, now it would be of "
                        f"{cell.method.written!r}. Choose another --out for one of them."
                    )

    def keep(self, cell: Cell, record: Mapping[str, Any]) -> None:
        """Put a cell's record, with where and when it was made, into the place of what was there."""
        created = datetime.now(UTC).isoformat()
        made = {"hardware": hardware(), "versions": versions(), "created": created}
        with self._changed() as results:
            results["cells"][cell.name] = finite({**record, **made})
            if record["status"] == "done":
                results["protocol"]["criteria"] = list(record["success"])
                results["protocol"]["criterion"] = next(iter(record["success"]))
                results["protocol"]["metric"] = record["metric"]

    def ask(self, starts: int) -> None:
        """Have cells tried on so many starts from now on.

        Raises:
            ConfigError: they are to be tried on more already.
        """
        with self._changed() as results:
            settings = results["protocol"]["settings"]
            if starts < settings["starts"]:
                raise ConfigError(
                    f"{self.path} has {settings['starts']} initial states for each cell, and {starts} were asked for. "
                    f"Ask for at least as many: further ones are added to cells that are done."
                )
            results["protocol"]["episodes"] = settings["starts"] = starts

    def tried(self, cell: Cell) -> list[dict[str, Any]]:
        """Learning rates that were tried for a cell of :func:`table1.grid.searched`."""
        return _tried(self.read(), cell)

    def keep_tried(self, cell: Cell, row: Mapping[str, Any], rates: int) -> None:
        """Add a learning rate that was tried; once there are all, one of those that did not diverge is chosen."""
        with self._changed() as results:
            results["tuning"].append(finite(row) | {"chosen": False})
            rows = [row for row in _tried(results, cell) if not row["diverged"]]
            if rows and len(_tried(results, cell)) == rates:
                rows[best_of(rows)]["chosen"] = True


def _tried(results: Mapping[str, Any], cell: Cell) -> list[dict[str, Any]]:
    return [
        row for row in results["tuning"] if (row.get("written"), row.get("head")) == (cell.method.written, cell.head)
    ]


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

    A cell whose weights or packages are not here is "missing", one whose training diverged is "failed", both with the
    reason; the next call tries them again.

    Args:
        folder: of the table: run folders of cells, and results.json.
        cells: which; see :func:`table1.grid.plan`.
        protocol: what all share; must be that of the results file, but for more ``starts``: cells that are done are
            tried on them, too.
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
    check_writable(path)
    check_writable(folder, folder=True)
    data = _data(protocol, quiet=quiet)
    table = Table(path, _new(protocol, data.metadata(), data.encoder))
    _check_same(table, protocol, data.metadata())
    steps = _steps(data.recorded, protocol.heldout, {None, *(cell.demonstrations for cell in cells)})
    _check_cells(cells, protocol, steps)
    bench = Bench(folder, protocol, steps, path.parent, choose_device(device), engine, workers, quiet)
    table.ask(protocol.starts)
    table.plan(cells)
    before = table.read()["cells"]
    waiting = [cell for cell in cells if not _complete(protocol, before[cell.name])]
    finished = len(cells) - len(waiting)
    while waiting:
        busy: list[tuple[Cell, BusyError]] = []
        for place, cell in enumerate(waiting):
            left = describe_left(waiting[place:], table.read(), protocol)
            say(f"{cell.name} ({finished + 1} of {len(cells)}{left})")
            try:
                with locked(lock_of(bench.run(cell).root), wait=False):
                    # What another process has computed since this call began is not computed again.
                    if table.record(cell) == before[cell.name]:
                        _compute(bench, cell, table, say)
                    else:
                        say("  another process has computed it")
                finished += 1
            except BusyError as other:
                say("  left for later: another process computes it, or what it stands on")
                busy.append((cell, other))
        if len(busy) == len(waiting):
            say(f"waiting for another process, which holds {busy[0][1].path}")
            with locked(busy[0][1].path):
                pass
        waiting = [cell for cell, _ in busy]
    return table.read()


def _complete(protocol: Protocol, record: Mapping[str, Any]) -> bool:
    return record["status"] == "done" and len(record["starts"]) >= protocol.starts


def _compute(bench: Bench, cell: Cell, table: Table, say: Callable[[str], None]) -> None:
    begin = time.perf_counter()
    try:
        record = table.record(cell)
        if _complete(bench.protocol, record):
            return
        if record["status"] != "done":
            record = _record(bench, cell, table, say)
        else:
            record = on_more_starts(bench, cell, _rate(bench, cell, table, say), record)
    except ConfigError as error:
        raise ConfigError(f"cell {cell.name}: {error}") from error
    except ValueError as error:
        raise DataError(f"cell {cell.name}: {error}") from error
    table.keep(cell, record)
    if record["status"] == "done":
        say(f"  {headline(record)} in {timedelta(seconds=round(time.perf_counter() - begin))}")
    else:
        say(f"  {record['status']}: {record['reason']}")


def _record(bench: Bench, cell: Cell, table: Table, say: Callable[[str], None]) -> dict[str, Any]:
    if reason := why_missing(cell, bench.protocol):
        return blank(cell, "missing", reason)
    try:
        rate = _rate(bench, cell, table, say)
        if cell.head == "rep":
            return representation(bench, cell, rate)
        return (head_cell if cell.head == cell.trained_head else head_retrieval)(bench, cell, rate)
    except MissingDependencyError as error:
        return blank(cell, "missing", str(error))
    except (ConfigError, StorageError, TrainingInterrupted):
        raise  # would be the same for other cells, or was asked for
    except ClassactError as error:
        return blank(cell, "failed", str(error).replace(f"{bench.folder}/", ""))


def _data(protocol: Protocol, *, quiet: bool) -> RunData:
    """The demonstrations, as the preset's encoder sees them in the column without a shift."""
    made = from_preset(
        protocol.preset,
        shift=shift_of(protocol.task, "fixed"),
        simulator=protocol.task,
        data=protocol.data,
        heldout=protocol.heldout,
        layout=protocol.layout,
    )
    return RunData(made, quiet=quiet)


EXPLORED = 100_000
"""First of the starts on which presets were explored."""


def _settings(protocol: Protocol, data: Mapping[str, Any]) -> Any:
    return to_json(protocol.to_json() | {"data": data["name"]})


def _check_same(table: Table, protocol: Protocol, data: Mapping[str, Any]) -> None:
    """Refuse a results file of another protocol, or of other data."""
    results = table.read()
    if results.get("format") != FORMAT:
        raise DataError(
            f"{table.path} is no results file of a table: its format is {results.get('format')!r}, expected {FORMAT!r}."
        )
    known, asked = (
        without(settings, *FREE, GROWS) for settings in (results["protocol"]["settings"], _settings(protocol, data))
    )
    difference = first_difference(known, asked, "protocol") or first_difference(
        results["data"]["fingerprint"], data["fingerprint"], "data.fingerprint"
    )
    if difference:
        raise ConfigError(
            f"{table.path} was measured under another protocol: {difference}. Choose another --out, or ask for the "
            f"same."
        )


def _new(protocol: Protocol, data: Mapping[str, Any], encoder: EncoderConfig) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "task": SIMULATORS[protocol.task].paper or protocol.task,
        "data": {key: data[key] for key in ("name", "episodes", "steps", "heldout", "fingerprint")},
        "protocol": {
            "budget_images": protocol.images,
            "budget_seconds": protocol.seconds,
            "encoder": f"{encoder.backbone}, {encoder.image_size} px, from {encoder.init}",
            "episodes": protocol.starts,
            "first_seed": protocol.first_seed,
            "criterion": None,
            "criteria": [],
            "metric": None,
            "grid": {
                "rates": list(protocol.rates),
                "images": protocol.tuning_images,
                "starts": protocol.tuning_starts,
                "first_seed": protocol.tuning_seed,
                "taus": list(protocol.taus),
            },
            "notes": _notes(protocol),
            "settings": _settings(protocol, data),
        },
        "hardware": hardware(),
        "versions": versions(),
        "cells": {},
        "tuning": [],
    }


def _notes(protocol: Protocol) -> list[str]:
    """What was decided before the table was computed, and for whom."""
    preset = PRESETS[protocol.preset]
    share = "" if protocol.images is None else f", {100 * protocol.tuning_images / protocol.images:.0f}% of the budget"
    return [
        f"What is CLASS's of preset {protocol.preset!r} was chosen earlier, with CLASS and on other starts (from seed "
        f"{EXPLORED:,} on) than those of this table (from {protocol.first_seed:,} on): k = {preset.retrieval.k} of "
        f"retrieval, τ = {preset.retrieval.temperature:g}, and the learning rate "
        f"{preset.pretrain.optimizer.learning_rate:g}.",
        f"Learning rates of baselines were chosen with one training each, under the fixed appearance, without colour "
        f"augmentation, of {protocol.tuning_images:,} images{share}; all their cells are trained with them.",
    ]


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
                head_config(cell, protocol, steps[cell.demonstrations], images=1)
        except ConfigError as error:
            raise ConfigError(f"cell {cell.name}: {error}") from None


def _rate(bench: Bench, cell: Cell, table: Table, say: Callable[[str], None]) -> float | None:
    """The learning rate that a cell is trained with: tuned once for each :func:`searched`; None: the preset's.

    Raises:
        BusyError: another process tries one.
        ClassactError: training diverges with all of them.
    """
    tried = searched(cell)
    if tried is None:
        return None
    rates, busy = rates_of(tried, bench.protocol), None
    for rate in rates:
        try:
            with locked(lock_of(bench.tried(tried, rate).root), wait=False):
                if rate not in [row["learning_rate"] for row in table.tried(tried)]:
                    say(f"  {tried.name}: learning rate {rate:g}")
                    table.keep_tried(tried, try_rate(bench, tried, rate), len(rates))
        except BusyError as other:
            busy = other
    if busy is not None:
        raise busy
    chosen = [float(row["learning_rate"]) for row in table.tried(tried) if row["chosen"]]
    if not chosen:
        raise ClassactError(
            f"training diverged with all learning rates that were tried: {', '.join(f'{rate:g}' for rate in rates)}."
        )
    return chosen[0]


def describe_left(waiting: Sequence[Cell], results: Mapping[str, Any], protocol: Protocol) -> str:
    """ ", some 2:10:00 left" from what cells of the same kind took; empty before there are any.

    Args:
        waiting: cells that are to come.
        results: content of the results file.
        protocol: says how long the search for a learning rate is beside a training.
    """
    done = [card for card in results["cells"].values() if card["status"] == "done"]
    tried = {(row.get("written"), row.get("head")) for row in results["tuning"]}
    seconds = 0.0
    for cell in waiting:
        if results["cells"][cell.name]["status"] == "done":
            continue  # rolled out again, which is short beside a training
        learns = cell.method.pretrained or cell.head != "rep"
        trainings = [card for card in done if card["images"]]
        same = [card for card in done if card["head"] == cell.head and bool(card["images"]) == learns] or trainings
        if not same:
            return ""
        # Of results that older versions wrote, a head's time may hold that of its representation.
        took = [card.get("own_seconds", card["total_seconds"]) / card.get("factor", 1) for card in same]
        mean = sum(took) / len(took)
        seconds += cell.factor * mean
        search = searched(cell)
        if search is not None and (key := (search.method.written, search.head)) not in tried:
            tried.add(key)
            images = sum(card["images"] / card.get("factor", 1) for card in same) / len(same)
            share = min(1.0, protocol.tuning_images / max(images, 1))
            seconds += len(rates_of(search, protocol)) * mean * share
    return f", some {timedelta(seconds=round(seconds))} left"
