from __future__ import annotations

import numpy as np
import pytest

import latency
from classact.errors import ConfigError
from table1.report import paper
from table1.report.paper import HEADS, SHIFTS, TABLE_1, TASKS, paper_cell, paper_methods, shift_name


def test_every_row_and_column_is_there() -> None:
    rows = {
        "rep": ["imagenet", "r3m", "tcn", "byol", "dynamo", "class"],
        "mlp": ["imagenet", "class"],
        "dp": ["random", "imagenet", "r3m", "tcn", "byol", "dynamo", "equivar", "class"],
    }
    # Heads have two numbers: without the head, and with it.
    rows |= {f"{head}-rep": rows[head] for head in ("mlp", "dp")}
    empty = {(task, s, "equivar", h) for task in ("aloha-transfer", "pusht") for s in SHIFTS for h in ("dp", "dp-rep")}
    wanted = {(t, s, m, h) for h, methods in rows.items() for m in methods for t in TASKS for s in SHIFTS} - empty
    assert set(TABLE_1) == wanted
    assert len(TABLE_1) == (6 + 2 * 10) * 10 - 8
    assert set(HEADS) == set(rows)
    for head in HEADS:
        assert paper_methods("square", head) == rows[head]
    assert paper_methods("pusht", "dp") == [m for m in rows["dp"] if m != "equivar"]
    assert paper_methods("nowhere", "dp") == []


@pytest.mark.parametrize(
    ("key", "cell"),
    [
        (("pusht", "fixed", "class", "rep"), (0.85, None)),
        (("pusht", "rand", "class", "rep"), (0.66, None)),
        (("pusht", "rand", "class", "mlp"), (0.69, 0.64)),
        (("pusht", "fixed", "tcn", "dp"), (0.69, 0.96)),
        (("square", "rand", "class", "dp"), (0.64, 0.68)),
        (("three-stack", "fixed", "equivar", "dp"), (0.43, 0.95)),
        (("aloha-transfer", "rand", "dynamo", "dp"), (0.17, 0.23)),
        (("libero-object", "fixed", "byol", "rep"), (0.92, None)),
        (("libero-object", "rand", "random", "dp"), (0.57, 0.04)),
        (("three-stack", "rand", "imagenet", "mlp"), (0.05, 0.36)),
    ],
)
def test_cells_as_read_a_second_time(key: tuple[str, str, str, str], cell: tuple[float, float | None]) -> None:
    *task, head = key
    without, having = cell
    if having is None:
        assert paper_cell(*key) == without
    else:
        assert (paper_cell(*task, f"{head}-rep"), paper_cell(*key)) == (without, having)


@pytest.mark.parametrize(
    ("method", "head", "shifts", "mean"),
    [
        ("class", "rep", SHIFTS, 0.83),
        ("class", "dp", SHIFTS, 0.91),
        ("imagenet", "mlp", SHIFTS, 0.63),
        ("class", "mlp", ("rand",), 0.76),
        ("class", "dp", ("rand",), 0.85),
        ("imagenet", "mlp", ("rand",), 0.32),
        ("tcn", "dp", ("rand",), 0.57),
    ],
)
def test_means_that_the_paper_states(method: str, head: str, shifts: tuple[str, ...], mean: float) -> None:
    """Section 5.4 gives these means of whole rows; they would not come out with a cell misread."""
    values = [TABLE_1[task, shift, method, head] for task in TASKS for shift in shifts]
    assert np.mean(values) == pytest.approx(mean, abs=0.00501)


def test_numbers_are_rates() -> None:
    assert all(0 <= value <= 1 for value in TABLE_1.values())
    assert paper_cell("pusht", "rand", "equivar", "dp") is None


def test_inference_times_are_those_of_the_latency_benchmark() -> None:
    names = {"rep": "retrieval", "mlp": "mlp", "mlp-rep": "retrieval", "dp": "diffusion", "dp-rep": "retrieval"}
    assert {head: latency.PAPER[name] for head, name in names.items()} == paper.INFERENCE_MS
    assert set(names.values()) == set(latency.PAPER)


def test_names_of_columns() -> None:
    assert [shift_name("pusht", s) for s in SHIFTS] == ["Fixed-Color", "Rand-Color"]
    assert [shift_name("square", s) for s in SHIFTS] == ["Fixed-Cam", "Dyn-Cam"]
    assert shift_name("mine", "rand") == "Rand"
    with pytest.raises(ConfigError, match="unknown shift 'none': available are 'fixed', 'rand'"):
        shift_name("pusht", "none")
