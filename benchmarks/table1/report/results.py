"""The results file of benchmarks/table1: read and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classact.errors import DataError
from classact.report.checks import inner, mapping, need
from classact.report.table import Row

FORMAT = "classact-table1-1"


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation, or why there is none.

    Attributes:
        name: in the results file.
        method: what taught the representation.
        head: "rep" (nearest neighbours in the representation), "mlp", "dp"; "mlp-rep" and "dp-rep": nearest neighbours
            with the encoder that was trained beneath one.
        shift: "fixed" or "rand".
        augmentation: of images in training; "none" for what the paper's Table 1 uses.
        seed: of the training.
        variant: what else is different, empty for the grid itself.
        demonstrations: it learned from.
        status: "done", or why there are no numbers: "missing", "failed", "planned".
        reason: in words.
        learning_rate, encoder_rate, tau, k: chosen settings, None where a method has none; of heads' trainings, the
            rates of the head and of the encoder beneath.
        images: seen in training, in all.
        steps: of training.
        training_seconds, total_seconds: of the training alone, and with preparation and evaluation.
        starts: seeds of the episodes' starts.
        success: criterion -> 0 or 1 per start.
        score: largest value of the simulator's first metric per start.
        loss: rows of images, seconds, loss.
        curve: rows of images, seconds, successes, episodes.
        latency: median and p95 of a decision in milliseconds.
        probe: metric -> value, low, high.
        folder: of the run, relative to the results file.
    """

    name: str
    method: str
    head: str
    shift: str
    augmentation: str
    seed: int
    variant: str
    demonstrations: int | None
    status: str
    reason: str
    learning_rate: float | None
    encoder_rate: float | None
    tau: float | None
    k: int | None
    images: int | None
    steps: int | None
    training_seconds: float | None
    total_seconds: float | None
    starts: tuple[int, ...]
    success: Mapping[str, tuple[int, ...]]
    score: tuple[float | None, ...]
    loss: Sequence[tuple[float, float, float]]
    curve: Sequence[tuple[float, float, int, int]]
    latency: Mapping[str, float] | None
    probe: Mapping[str, Mapping[str, float | None]]
    folder: str

    @property
    def done(self) -> bool:
        """Whether it has numbers."""
        return self.status == "done"

    @property
    def why(self) -> str:
        """Why it has no numbers."""
        words = {"planned": "not run yet"}.get(self.status, self.status)
        return f"{words}: {self.reason}" if self.reason and self.status == "failed" else self.reason or words

    @property
    def mean_score(self) -> float | None:
        """Mean over starts of their scores; None where no start has one."""
        known = [value for value in self.score if value is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class Results:
    """A results file.

    Attributes:
        path: it was read from.
        task: of :data:`table1.report.paper.TASKS`, or another one.
        criterion: what counts as success; empty where nothing is done and nobody said.
        criteria: all that were measured, the first one is ``criterion``.
        cells: in the order of the file.
        tuning: rows of the search for learning rates.
        data, protocol, hardware, versions: as written.
    """

    path: Path
    task: str
    criterion: str
    criteria: tuple[str, ...]
    cells: tuple[Cell, ...]
    tuning: tuple[Row, ...]
    data: Row
    protocol: Row
    hardware: Row
    versions: Row

    @property
    def done(self) -> list[Cell]:
        """Cells with numbers."""
        return [cell for cell in self.cells if cell.done]

    @property
    def demonstrations(self) -> int | None:
        """How many demonstrations the grid learns from: those of the data that are not held out."""
        known = [cell.demonstrations for cell in self.cells if cell.demonstrations]
        episodes, heldout = self.data.get("episodes"), self.data.get("heldout")
        if isinstance(episodes, int) and isinstance(heldout, int):
            known.append(episodes - heldout)
        return max(known, default=None)


def read_results(path: Path) -> Results:
    """Read a results file.

    Raises:
        DataError: it is not there, damaged, of another format, or says something impossible (cell and place named).
    """
    path = Path(path)
    value = mapping(path)
    if value.get("format") != FORMAT:
        raise DataError(
            f"{path}: expected the format {FORMAT!r}, got {value.get('format')!r}. Expected a results file of "
            f"benchmarks/table1."
        )
    need(path, value, ("task", "protocol", "cells"), "top level")
    protocol, cells = inner(path, value, "protocol"), inner(path, value, "cells")
    need(path, protocol, ("criterion",), "protocol")
    criterion = _criterion(protocol, cells)
    tuning = value.get("tuning") or []
    if not isinstance(tuning, list):
        raise DataError(f"{path}, tuning: expected a JSON list, got {type(tuning).__name__}. Regenerate the file.")
    return Results(
        path=path,
        task=str(value["task"]),
        criterion=criterion,
        criteria=tuple(dict.fromkeys(filter(None, (criterion, *map(str, protocol.get("criteria") or ()))))),
        cells=tuple(_cell(path, name, cell, criterion) for name, cell in cells.items()),
        tuning=tuple(_tuning(path, row, number) for number, row in enumerate(tuning, 1)),
        data=inner(path, value, "data"),
        protocol=protocol,
        hardware=inner(path, value, "hardware"),
        versions=inner(path, value, "versions"),
    )


def _criterion(protocol: Row, cells: Row) -> str:
    """The headline criterion; before anything is done, the protocol may not know it yet."""
    if protocol["criterion"] is not None:
        return str(protocol["criterion"])
    done = (cell for cell in cells.values() if isinstance(cell, dict) and cell.get("status") == "done")
    return next((str(name) for cell in done for name in cell.get("success") or ()), "")


def _cell(path: Path, name: str, value: Any, criterion: str) -> Cell:
    where = f"cell {name!r}"
    need(path, value, ("method", "head", "shift", "status"), where)
    done = value["status"] == "done"
    if done:
        need(path, value, ("starts", "success"), where)
    starts = tuple(int(seed) for seed in value.get("starts") or ()) if done else ()
    success = _success(path, where, value["success"], starts, criterion) if done else {}
    score = tuple(value.get("score") or ()) if done else ()
    if len(score) not in (0, len(starts)):
        raise DataError(f"{path}, {where}: {len(score)} scores for {len(starts)} starts. Evaluate the cell again.")
    return Cell(
        name=name,
        method=str(value["method"]),
        head=str(value["head"]),
        shift=str(value["shift"]),
        augmentation=str(value.get("augmentation") or "none"),
        seed=int(value.get("seed") or 0),
        variant=str(value.get("variant") or ""),
        demonstrations=_whole(value.get("demonstrations")),
        status=str(value["status"]),
        reason=str(value.get("reason") or ""),
        learning_rate=_number(path, where, value, "learning_rate"),
        encoder_rate=_number(path, where, value, "encoder_rate"),
        tau=_number(path, where, value, "tau"),
        k=_whole(value.get("k")),
        images=_whole(value.get("images")),
        steps=_whole(value.get("steps")),
        training_seconds=_number(path, where, value, "training_seconds"),
        total_seconds=_number(path, where, value, "total_seconds"),
        starts=starts,
        success=success,
        score=tuple(None if number is None else float(number) for number in score),
        loss=[(float(i), float(s), float(v)) for i, s, v in _rows(path, where, value, "loss", 3)],
        curve=[(float(i), float(s), int(k), int(n)) for i, s, k, n in _curve(path, where, value)],
        latency=_latency(path, where, value),
        probe=_probe(path, where, value),
        folder=str(value.get("folder") or ""),
    )


def _success(path: Path, where: str, value: Any, starts: tuple[int, ...], criterion: str) -> dict[str, tuple[int, ...]]:
    need(path, value, (criterion,), f"{where}, success")
    if not starts or len(set(starts)) != len(starts):
        raise DataError(
            f"{path}, {where}: expected distinct starts, got {len(set(starts))} distinct ones of {len(starts)}. "
            f"Evaluate the cell again."
        )
    found = {}
    for name, outcomes in value.items():
        if not isinstance(outcomes, list) or len(outcomes) != len(starts):
            count = len(outcomes) if isinstance(outcomes, list) else type(outcomes).__name__
            raise DataError(
                f"{path}, {where}: {count} outcomes by {name!r} for {len(starts)} starts. Evaluate the cell again."
            )
        if other := [outcome for outcome in outcomes if outcome not in (0, 1)]:
            raise DataError(f"{path}, {where}: expected outcomes 0 or 1 by {name!r}, got {other[0]!r}.")
        found[str(name)] = tuple(int(outcome) for outcome in outcomes)
    return found


def _number(path: Path, where: str, value: Row, key: str) -> float | None:
    number = value.get(key)
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise DataError(f"{path}, {where}: expected {key} to be a number or null, got {number!r}.")
    return float(number)


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _rows(path: Path, where: str, value: Row, key: str, width: int) -> list[Sequence[Any]]:
    rows = value.get(key) or []
    if not isinstance(rows, list) or any(not isinstance(row, list) or len(row) != width for row in rows):
        raise DataError(f"{path}, {where}: expected {key} to be rows of {width} numbers. Regenerate the file.")
    return [row for row in rows if all(isinstance(v, int | float) and math.isfinite(v) for v in row)]


def _curve(path: Path, where: str, value: Row) -> list[Sequence[Any]]:
    rows = _rows(path, where, value, "curve", 4)
    for _, _, k, n in rows:
        if not 0 <= k <= n or n < 1:
            raise DataError(f"{path}, {where}: a row of curve has {k} successes of {n} episodes. Evaluate again.")
    return rows


def _latency(path: Path, where: str, value: Row) -> dict[str, float] | None:
    latency = value.get("latency_ms")
    if latency is None:
        return None
    need(path, latency, ("median",), f"{where}, latency_ms")
    known = {key: float(number) for key, number in latency.items() if isinstance(number, int | float)}
    return known if "median" in known else None


def _probe(path: Path, where: str, value: Row) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    for metric, row in (value.get("probe") or {}).items():
        need(path, row, ("value",), f"{where}, probe {metric!r}")
        numbers = {key: _number(path, f"{where}, probe {metric!r}", row, key) for key in ("value", "low", "high")}
        if numbers["value"] is not None:
            found[str(metric)] = numbers
    return found


def _tuning(path: Path, row: Any, number: int) -> Row:
    need(path, row, ("method", "learning_rate", "successes", "starts"), f"tuning, row {number}")
    # The seeds of the starts, or how many there were.
    starts = len(row["starts"]) if isinstance(row["starts"], list) else int(row["starts"])
    successes = sum(row["successes"]) if isinstance(row["successes"], list) else int(row["successes"])
    if not 0 <= successes <= starts or starts < 1:
        raise DataError(f"{path}, tuning, row {number}: {successes} successes of {starts} starts. Tune again.")
    defaults: Row = {"head": "", "variant": "", "shift": "", "augmentation": "none", "images": None, "score": None}
    defaults |= {"chosen": False, "diverged": False}
    return defaults | row | {"successes": successes, "starts": starts}
