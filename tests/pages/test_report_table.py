from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classact.cli.console import print_summary
from classact.errors import DataError
from classact.evaluation.rows import Alarms, EvaluationRow, IntermediateRow
from classact.objectives import objective_config
from classact.pages import headline
from classact.pages.novelty import meaning
from classact.pages.sources import read_sources
from classact.pages.style import wrapped
from classact.pages.table import (
    augmentation_name,
    evaluations_of_maxima,
    results,
    row_label,
    row_parts,
    series,
    training_name,
)
from classact.policies.config import NoveltyConfig
from classact.policies.novelty import HELD_OUT, LEFT_OUT, Novelty
from classact.run.folder import Run
from classact.run.presets import from_preset
from classact.utils.codec import to_json
from classact.utils.storage import write_json

BASE = EvaluationRow("", "", "pusht", "none", "", "c", 50, 0, 0.0, 0.8, 0.97)


def row(policy: str, encoder: str, training: str, successes: int, **more: Any) -> EvaluationRow:
    name = {"evaluation": f"{policy}-{encoder}-{training}"}
    made = {"policy": policy, "encoder": encoder, "training": training, "successes": successes}
    return replace(BASE, **name | made | {"success": successes / 50} | more)


RETRIEVAL = row("retrieval", "class", "representation only", 40, augmentation="crop, noise")
STATE = row("retrieval", "state", "none", 45)
TUNED = row("diffusion", "class", "fine-tuned", 46, augmentation="crop, noise")
FROZEN = row("mlp", "class", "frozen", 30)
SCRATCH = row("diffusion", "scratch", "from scratch", 20, augmentation="crop, noise")
TUNED_BEST = replace(TUNED, successes=49, success=0.98, maximum_of=10)
ROWS = [TUNED_BEST, RETRIEVAL, STATE, TUNED, FROZEN, SCRATCH]


def test_labels_say_policy_encoder_training_and_augmentation() -> None:
    assert [row_parts(r, ROWS) for r in ROWS[1:]] == [
        ("Retrieval, CLASS (learned)", "representation only, crop + noise"),
        ("Retrieval, true state as latent", ""),
        ("Diffusion Policy, CLASS (learned)", "fine-tuned, crop + noise"),
        ("MLP, CLASS (learned)", "frozen, no augmentation"),
        ("Diffusion Policy, encoder from scratch", "crop + noise"),
    ]
    assert row_label(TUNED, [TUNED, FROZEN]) == "Diffusion Policy, CLASS (learned), fine-tuned, crop + noise"
    assert row_label(TUNED, [TUNED, replace(TUNED, augmentation="crop, noise, hsv")]) == "CLASS (learned), crop + noise"
    assert row_label(RETRIEVAL, [RETRIEVAL, STATE]) == "CLASS (learned)"
    assert (augmentation_name("none"), training_name(STATE)) == ("no augmentation", "")


def test_evaluations_with_the_same_labels_are_told_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (replace(TUNED, evaluation=name, successes=n) for name, n in (("seed-1", 46), ("seed-2", 40)))
    best = replace(TUNED_BEST, evaluation="seed-1")
    frozen = replace(FROZEN, evaluation="mlp-frozen")
    rows = [one, replace(one, criterion="d"), two, best, frozen]
    assert [row_parts(r, rows)[1] for r in rows] == [
        *["fine-tuned, crop + noise, seed-1"] * 2,
        "fine-tuned, crop + noise, seed-2",
        "fine-tuned, crop + noise",  # the only maximum
        "frozen, no augmentation",
    ]
    assert row_label(one, [one, two]) == "CLASS (learned), seed-1"
    monkeypatch.setenv("COLUMNS", "200")
    print_summary(rows)
    printed = capsys.readouterr().out
    assert "crop + noise, seed-1" in printed
    assert "crop + noise, seed-2" in printed
    assert "mlp-frozen" not in printed


def test_baselines_were_not_trained() -> None:
    untrained = row("retrieval", "untrained", "none", 5, augmentation="none")
    learned = replace(RETRIEVAL, augmentation="crop, noise")
    both = replace(STATE, training="none", augmentation="none")
    assert [row_label(r, [learned, untrained, both]) for r in (learned, untrained, both)] == [
        "CLASS (learned)",
        "untrained encoder",
        "true state as latent",
    ]
    rows = [learned, untrained, both, FROZEN]
    assert row_parts(untrained, rows) == ("Retrieval, untrained encoder", "")
    assert row_parts(learned, rows) == ("Retrieval, CLASS (learned)", "representation only, crop + noise")
    assert row_parts(FROZEN, rows)[1] == "frozen, no augmentation"


def test_colours_belong_to_encoders_and_to_heads_with_their_training() -> None:
    assert series(RETRIEVAL) == series(replace(RETRIEVAL, shift="camera")) == "class"
    assert len({series(r) for r in (RETRIEVAL, TUNED, FROZEN, SCRATCH)}) == 4
    assert series(TUNED) == series(TUNED_BEST)


def test_a_maximum_stands_beside_the_last_checkpoint_of_the_same_evaluation_only() -> None:
    found = results(ROWS)
    assert [(r.last, r.maximum, r.of) for r in found] == [
        (TUNED, TUNED_BEST, 10),
        *((row, None, None) for row in (RETRIEVAL, STATE, FROZEN, SCRATCH)),
    ]
    one, two, three = (replace(TUNED, evaluation=name) for name in ("a", "b", "c"))
    maxima = [replace(TUNED_BEST, evaluation=name) for name in ("b", "a", "d")]
    found = results([one, two, three, *maxima])
    assert [(r.last, r.maximum) for r in found] == [
        *((one, maxima[1]), (two, maxima[0]), (three, None)),
        (None, maxima[2]),
    ]
    other = replace(maxima[1], criterion="d")
    assert [(r.last, r.maximum) for r in results([one, other])] == [(one, None), (None, other)]


def test_counts_of_maxima_in_words() -> None:
    best = [replace(TUNED_BEST, maximum_of=n) for n in (10, 8, 10)]
    assert evaluations_of_maxima(best) == "8 or 10"
    assert evaluations_of_maxima(best[:1]) == "10"
    assert evaluations_of_maxima([TUNED]) == ""


def test_headline_is_about_the_best_policy_at_the_last_checkpoint_and_others_stand_beside() -> None:
    best = replace(RETRIEVAL, maximum_of=10, successes=50, success=1.0)
    shifted = replace(FROZEN, shift="camera", successes=50, success=1.0)
    rows = [FROZEN, best, TUNED, RETRIEVAL, STATE, TUNED_BEST, SCRATCH, shifted]
    main = headline.main_row(rows, "class")
    assert main is TUNED
    assert headline.main_row([best], "class") is None
    assert headline.comparisons(main, rows) == ["retrieval with the true state as latent reaches 90.0% (45 of 50)"]
    assert headline.heads(main, rows) == [
        "MLP, frozen, no augmentation, 60.0% (30 of 50)",
        f"Retrieval {RETRIEVAL.success:.1%} ({RETRIEVAL.successes} of 50)",
        "Diffusion Policy, from scratch, crop + noise, 40.0% (20 of 50)",
    ]
    assert headline.main_row([FROZEN, TUNED], "class") is TUNED
    assert headline.main_row([FROZEN, replace(RETRIEVAL, successes=30, success=0.6)], "class") is FROZEN
    few = replace(RETRIEVAL, episodes=3, successes=1, success=1 / 3)
    assert headline.main_row([few, TUNED], "class") is few  # of other episodes, so not compared
    assert headline.heads(FROZEN, [FROZEN, TUNED]) == ["Diffusion Policy, fine-tuned, crop + noise, 92.0% (46 of 50)"]


@pytest.mark.parametrize("objective", ["class", "byol", "class+0.1*byol", "none"])
def test_headline_is_about_the_runs_own_encoder_with_its_own_settings(objective: str, run_copy: Run) -> None:
    config = from_preset("debug")
    config = replace(config, pretrain=replace(config.pretrain, objective=objective_config(objective)))
    own = config.label
    # The run's own rows stand last: as where they were evaluated again after the others.
    labels = (f"{own}-k5", "tcn", f"{own}-k5-temperature0.01", own, "untrained", "state")
    rows = [row("retrieval", label, "representation only", n, evaluation=label) for n, label in enumerate(labels)]
    head = replace(TUNED, encoder=own, evaluation="head")
    write_json(run_copy.summary, to_json([head, *rows]))
    write_json(run_copy.config, {"title": "a run", "settings": to_json(config)})
    found = read_sources(run_copy.root)
    assert found.own == own
    assert found.summary == [head, *rows]
    main = headline.main_row(found.summary, own)
    assert main is not None
    assert main == head
    only = [r for r in found.summary if r.policy == "retrieval"]
    main = headline.main_row(only, own)
    assert main is not None
    assert (main.encoder, main.successes) == (own, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"successes": 51}, r"summary\.json, row 2: 51 successes of 50 episodes"),
        ({"success": "0.5"}, r"summary\.json, row 2\.success: expected a number, got '0\.5'"),
        ({"maximum_of": "10"}, r"summary\.json, row 2\.maximum_of: expected a whole number, got '10'"),
        ({"alarms": {"failures": 1}}, r"summary\.json, row 2\.alarms: field 'successes' is missing"),
        ({"epsiodes": 3}, r"summary\.json, row 2: unknown field 'epsiodes'.*'episodes'"),
    ],
)
def test_a_damaged_row_is_named_by_file_number_and_field(tmp_path: Path, change: Any, message: str) -> None:
    run = Run(tmp_path)
    run.add_summary([RETRIEVAL, TUNED])
    assert run.read_summary() == [RETRIEVAL, TUNED]
    rows = to_json([RETRIEVAL, TUNED])
    write_json(run.summary, [rows[0], rows[1] | change])
    with pytest.raises(DataError, match=message):
        run.read_summary()


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    run = Run(tmp_path)
    rows = [
        replace(TUNED, alarms=Alarms(3, 1), metrics={"coverage": 0.5, "iou": 1.0}, faults=2),
        replace(TUNED_BEST, encoder="other: a/b"),
    ]
    run.add_summary(rows)
    assert run.read_summary() == rows
    again = [replace(TUNED, successes=1)]
    run.add_summary(again)  # of the same evaluation
    assert run.read_summary() == again
    intermediates = [IntermediateRow(**vars(row), stage="pretrain", step=n, steps=2) for n, row in enumerate(rows, 1)]
    run.add_intermediate(intermediates)
    assert run.read_intermediate() == intermediates


def test_terminal_shows_the_same_in_100_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    metrics = {"coverage": 0.9}
    print_summary([replace(r, criterion=c, metrics=metrics) for r in ROWS for c in ("coverage>0.90", "iou>0.90")])
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines()) <= 100
    assert printed.startswith("success on pusht, none")
    flat = " ".join(printed.replace("│", " ").split())
    for words in (
        "representation",
        "fine-tuned, crop",
        "MLP, CLASS (learned), frozen",
        "Diffusion Policy, encoder from",
    ):
        assert words in flat
    assert "of 10 *" in flat
    assert "* the largest of 10 evaluations during a training, chosen afterwards: biased upwards" in flat
    assert printed.count("92 % (46 of 50)") == 2
    assert printed.count("98 %") == 2
    assert "49 of 50" not in printed  # a maximum is not a row of its own
    assert printed.count("80 to 97 %") == 2 * 6


def test_terminal_without_maxima_has_none_of_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    print_summary([RETRIEVAL, FROZEN])
    printed = capsys.readouterr().out
    assert "maximum" not in printed
    assert "MLP, CLASS (learned), frozen" in printed
    assert "95 % interval" in printed


def test_labels_are_broken_between_parts() -> None:
    assert wrapped("CLASS (learned), no shift") == "CLASS (learned),<br>no shift"
    assert wrapped("MLP, CLASS (learned), fine-tuned, a + b") == "MLP, CLASS (learned),<br>fine-tuned, a + b"


def test_what_novelty_means_depends_on_the_calibration() -> None:
    def words(episodes: int, kind: str) -> str:
        return meaning(Novelty(np.arange(float(episodes)), 99, NoveltyConfig(alpha=0.1), kind))

    whole = words(20, HELD_OUT)
    assert "share of the 20 held-out demonstrations" in whole
    assert "Above 0.88 the policy raises an alarm; by conformal calibration" in whole
    assert "at most 10%" in whole
    assert "alarm" not in meaning(None)
    few = words(5, HELD_OUT)
    assert "no alarm: for a probability of a false one of at most 10% it must be calibrated on at least 9" in few
    assert "there were 5, 4 too few" in few
    assert "raises an alarm" not in few
    unheld = words(20, LEFT_OUT)
    assert "without a conformal guarantee" in unheld
    assert "by conformal calibration" not in unheld
    assert "held-out" not in unheld
