"""Tables of the simulated tasks from results made by hand; every row's name is one that the benchmark can measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tasks
import tasks_table
from classact.errors import UnknownNameError
from classact.sims import simulator_spec


def row(reached: list[int], **changes: Any) -> dict[str, Any]:
    criteria = [one.name for one in simulator_spec("square").criteria]
    success = dict.fromkeys(criteria, [1] * len(reached)) | {"success": reached}
    made = {"demonstrations": 200, "images": 300_000, "seconds": {"pre-training": 540.0}, "success": success}
    return made | changes


ROWS = {
    "square/fixed/class/retrieval/0": row([1] * 18 + [0] * 2),
    "square/fixed/class/retrieval/1": row([1] * 16 + [0] * 4),
    "square/fixed/byol/retrieval/0": row([1] * 4 + [0] * 16),
    "square/fixed/clone/mlp/0": row([1] * 20, images=0, seconds={}),
    "square/dynamic/class-ours/diffusion/0": row([0] * 20),
}


def test_tables_of_what_was_learned() -> None:
    known = {one.name for one in tasks.rows(tasks.Flags())}
    assert set(ROWS) <= known
    lines = tasks_table.learned_lines(ROWS)
    assert lines[2] == (
        "| Square | fixed | retrieval, BYOL | 200 | 300k | 0.20 [0.08, 0.42] | grasped 1.00, lifted 1.00, hung 1.00 "
        "| 0.13 | 9 | 1 |"
    )
    assert lines[3].split(" | ")[2:6] == ["retrieval, CLASS", "200", "300k", "0.85 [0.71, 0.93]"]
    assert lines[3].endswith("| 0.93 | 9 | 2 |")
    assert lines[4].split(" | ")[4:6] == ["", "1.00 [0.84, 1.00]"]
    assert lines[5].startswith("| Square | dynamic | Diffusion Policy head, CLASS (ours) |")
    assert lines[5].endswith("| 0.68 | 9 | 1 |")
    (test,) = tasks_table.test_lines(ROWS)[4:]
    assert test == "| square, fixed, retrieval: CLASS against BYOL | 14 | 0 | < 0.001 |"
    assert tasks_table.page_lines({}, {}) == []


def test_rows_are_measured_that_make_sense() -> None:
    names = {one.name for one in tasks.rows(tasks.Flags())}
    assert "aloha/rotation/class/mlp/1" in names
    assert "square/fixed/next/retrieval/0" in names
    for no in ("square/rotation/class/mlp/0", "square/fixed/next/retrieval/1", "square/dynamic/clone/mlp/0"):
        assert no not in names
    assert "square/fixed/untrained/mlp/0" not in names
    only = tasks.Flags(only=("aloha/fixed/clone/diffusion/1",))
    assert [one.name for one in tasks.rows(only)] == list(only.only)
    with pytest.raises(UnknownNameError, match="unknown row 'aloha/fixed/clone/diffusion/7'"):
        tasks.rows(tasks.Flags(only=("aloha/fixed/clone/diffusion/7",)))


def test_every_row_sees_as_many_images_and_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Steps:
        num_steps = 50_000

    monkeypatch.setattr(tasks, "read_demonstrations", lambda *_, **__: Steps)
    flags = tasks.Flags(data=tmp_path)
    for one in tasks.rows(flags):
        if one.learned.sees != "pictures":
            continue
        made = tasks.settings(flags, one, tmp_path / "a.npz")
        objective = made.pretrain.objective
        steps = 50_000 * one.learned.renderings
        assert made.pretrain.epochs * steps * objective.images_per_anchor == pytest.approx(flags.images)
        assert (made.frames.shift, made.evaluation.shift) == (one.shift, one.shift)
        if one.policy == "retrieval":
            continue
        finetune = tasks.head_settings(flags, one, made, steps).finetune
        if one.method == "scratch":
            assert (finetune.epochs * steps, finetune.frozen) == (pytest.approx(flags.images), False)
        else:
            assert (
                finetune.steps(steps) == tasks.updates(flags, one) == flags.updates * (1, 3)[one.policy == "diffusion"]
            )
            assert 1 <= finetune.views <= 6
        assert finetune.horizon / simulator_spec(one.known.simulator).control_hz >= 1.6
        assert finetune.horizon % 8 == 0
