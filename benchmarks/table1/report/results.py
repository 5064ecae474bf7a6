"""The results file of benchmarks/table1: read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from classact.errors import DataError
from classact.pages.checks import mapping, need
from classact.pages.table import Row
from classact.utils.codec import from_json

FORMAT = "classact-table1-1"

T = TypeVar("T")


@dataclass(frozen=True)
class Latency:
    """Of a decision, in milliseconds."""

    median: float
    p95: float | None = None


@dataclass(frozen=True)
class Metric:
    """Of a representation, without rollouts; with its interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Tried:
    """A learning rate that was tried for a method in a condition."""

    method: str
    learning_rate: float | None
    successes: int
    starts: int
    head: str = ""
    variant: str = ""
    shift: str = ""
    augmentation: str = "none"
    images: int | None = None
    score: float | None = None
    chosen: bool = False
    diverged: bool = False


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
        learning_rate, encoder_lr, tau, k: chosen settings, None where a method has none; of heads' trainings, the
            rates of the head and of the encoder beneath.
        images: seen in training, in all.
        steps: of training.
        training_seconds, total_seconds: of the training alone, and with preparation and evaluation.
        starts: seeds of the episodes' starts.
        success: criterion -> 0 or 1 per start.
        score: largest value of the simulator's first metric per start.
        loss: rows of images, seconds, loss.
        curve: rows of images, seconds, successes, episodes.
        folder: of the run, relative to the results file.
    """

    name: str
    method: str
    head: str
    shift: str
    status: str
    augmentation: str = "none"
    seed: int = 0
    variant: str = ""
    demonstrations: int | None = None
    reason: str = ""
    learning_rate: float | None = None
    encoder_lr: float | None = None
    tau: float | None = None
    k: int | None = None
    images: int | None = None
    steps: int | None = None
    training_seconds: float | None = None
    total_seconds: float | None = None
    starts: tuple[int, ...] = ()
    success: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    score: tuple[float | None, ...] = ()
    loss: tuple[tuple[float, float, float], ...] = ()
    curve: tuple[tuple[float, float, int, int], ...] = ()
    latency_ms: Latency | None = None
    probe: Mapping[str, Metric] = field(default_factory=dict)
    folder: str = ""

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
    tuning: tuple[Tried, ...]
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
    protocol, cells = _inner(path, value, "protocol"), _inner(path, value, "cells")
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
        data=_inner(path, value, "data"),
        protocol=protocol,
        hardware=_inner(path, value, "hardware"),
        versions=_inner(path, value, "versions"),
    )


def _inner(path: Path, card: Row, key: str) -> Row:
    """The JSON object under a key, empty where the key is absent or null."""
    value = card.get(key)
    if value is not None and not isinstance(value, dict):
        raise DataError(f"{path}, {key}: expected a JSON object, got {type(value).__name__}. Regenerate the file.")
    return dict(value or {})


def _criterion(protocol: Row, cells: Row) -> str:
    """The headline criterion; before anything is done, the protocol may not know it yet."""
    if protocol["criterion"] is not None:
        return str(protocol["criterion"])
    done = (cell for cell in cells.values() if isinstance(cell, dict) and cell.get("status") == "done")
    return next((str(name) for cell in done for name in cell.get("success") or ()), "")


def _cell(path: Path, name: str, value: Any, criterion: str) -> Cell:
    where = f"cell {name!r}"
    need(path, value, ("method", "head", "shift", "status"), where)
    if value["status"] != "done":
        value = {key: item for key, item in value.items() if key not in ("starts", "success", "score")}
    else:
        need(path, value, ("starts", "success"), where)
        _check_success(path, where, value, criterion)
    cell = _read(Cell, {"name": name, **value, **_finite(value)}, f"{path}, {where}")
    if len(cell.score) not in (0, len(cell.starts)):
        raise DataError(
            f"{path}, {where}: {len(cell.score)} scores for {len(cell.starts)} initial states. Evaluate the cell again."
        )
    for _, _, k, n in cell.curve:
        if not 0 <= k <= n or n < 1:
            raise DataError(f"{path}, {where}: a row of curve has {k} successes of {n} episodes. Evaluate again.")
    return cell


def _finite(value: Row) -> Row:
    """Curves, latency and metrics without what was not a number, which JSON has as null."""
    latency = value.get("latency_ms")
    return {
        "loss": [row for row in value.get("loss") or () if None not in row],
        "curve": [row for row in value.get("curve") or () if None not in row],
        "latency_ms": None if latency is None or latency.get("median", 0) is None else latency,
        "probe": {
            name: found for name, found in (value.get("probe") or {}).items() if found.get("value", 0) is not None
        },
    }


def _read(cls: type[T], value: Any, where: str) -> T:
    """The dataclass of a row; what else the row says is of no use here, and null stands for a default."""
    known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    return from_json(cls, {k: v for k, v in value.items() if k in known and v is not None}, where, partial=True)


def _check_success(path: Path, where: str, value: Row, criterion: str) -> None:
    success, starts = value["success"], value["starts"]
    need(path, success, (criterion,), f"{where}, success")
    if not starts or len(set(starts)) != len(starts):
        raise DataError(
            f"{path}, {where}: expected distinct starts, got {len(set(starts))} distinct ones of {len(starts)}. "
            f"Evaluate the cell again."
        )
    for name, outcomes in success.items():
        if len(outcomes) != len(starts):
            raise DataError(
                f"{path}, {where}: {len(outcomes)} outcomes by {name!r} for {len(starts)} initial states. Evaluate the "
                f"cell again."
            )
        if other := [outcome for outcome in outcomes if outcome not in (0, 1)]:
            raise DataError(f"{path}, {where}: expected outcomes 0 or 1 by {name!r}, got {other[0]!r}.")


def _tuning(path: Path, row: Any, number: int) -> Tried:
    where = f"tuning, row {number}"
    need(path, row, ("method", "learning_rate", "successes", "starts"), where)
    tried = _read(Tried, row, f"{path}, {where}")
    if not 0 <= tried.successes <= tried.starts or tried.starts < 1:
        raise DataError(f"{path}, {where}: {tried.successes} successes of {tried.starts} initial states. Tune again.")
    return tried
