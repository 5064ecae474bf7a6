from __future__ import annotations

from typing import Any

import pytest

from classact.cli.console import print_summary
from classact.pages import headline
from classact.pages.novelty import Calibration, meaning
from classact.pages.sources import read_sources
from classact.pages.style import wrapped
from classact.pages.table import (
    augmentation_name,
    evaluations_of_maxima,
    maximum_of,
    results,
    row_label,
    row_parts,
    series,
    training_name,
)
from classact.run.folder import Run
from classact.utils.storage import write_json

Row = dict[str, Any]
BASE: Row = {"criterion": "c", "simulator": "pusht", "shift": "none", "episodes": 50, "low": 0.8, "high": 0.97}


def row(policy: str, encoder: str, training: str | None, successes: int, **more: Any) -> Row:
    labels = {"policy": policy, "encoder": encoder} | ({"training": training} if training else {})
    return BASE | labels | {"successes": successes, "success": successes / 50} | more


RETRIEVAL = row("retrieval", "class", "representation only", 40)
STATE = row("retrieval", "state", "representation only", 45)
TUNED = row("diffusion", "class", "fine-tuned", 46, augmentation="crop, noise", checkpoint="last")
FROZEN = row("mlp", "class", "frozen", 30, augmentation="none", checkpoint="last")
SCRATCH = row("diffusion", "scratch", "from scratch", 20, augmentation="crop, noise", checkpoint="last")
TUNED_BEST = TUNED | {"successes": 49, "success": 0.98, "checkpoint": "maximum of 10"}
ROWS = [TUNED_BEST, RETRIEVAL, STATE, TUNED, FROZEN, SCRATCH]


def test_labels_say_policy_encoder_training_and_augmentation() -> None:
    assert [row_parts(r, ROWS) for r in ROWS[1:]] == [
        ("Retrieval, CLASS (learned)", "representation only"),
        ("Retrieval, true state as latent", ""),
        ("Diffusion Policy, CLASS (learned)", "fine-tuned, crop + noise"),
        ("MLP, CLASS (learned)", "frozen, no augmentation"),
        ("Diffusion Policy, encoder from scratch", "crop + noise"),
    ]
    assert row_label(TUNED, [TUNED, FROZEN]) == "Diffusion Policy, CLASS (learned), fine-tuned, crop + noise"
    assert row_label(TUNED, [TUNED, TUNED | {"augmentation": "crop, noise, hsv"}]) == "CLASS (learned), crop + noise"
    assert row_label(RETRIEVAL, [RETRIEVAL, STATE]) == "CLASS (learned)"
    assert row_label(TUNED | {"checkpoint": "step 300"}, [TUNED]) == "CLASS (learned), step 300"
    assert (augmentation_name(None), augmentation_name("none"), training_name(STATE)) == ("", "no augmentation", "")


def test_evaluations_with_the_same_labels_are_told_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (TUNED | {"evaluation": name, "successes": n} for name, n in (("seed-1", 46), ("seed-2", 40)))
    best = TUNED_BEST | {"evaluation": "seed-1-maximum"}
    frozen = FROZEN | {"evaluation": "mlp-frozen"}
    rows = [one, one | {"criterion": "d"}, two, best, frozen]
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
    learned = RETRIEVAL | {"augmentation": "crop, noise"}
    both = STATE | {"training": "none", "augmentation": "none"}
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
    assert series(RETRIEVAL) == series(RETRIEVAL | {"shift": "camera"}) == "class"
    assert len({series(r) for r in (RETRIEVAL, TUNED, FROZEN, SCRATCH)}) == 4
    assert series(TUNED) == series(TUNED_BEST)


def test_a_maximum_stands_beside_the_last_checkpoint_of_the_same_training_only() -> None:
    found = results(ROWS)
    assert [r.row for r in found] == ROWS[1:]
    assert [r.maximum for r in found] == [None, None, TUNED_BEST, None, None]
    assert found[2].of == 10
    for change in ({"training": "frozen"}, {"augmentation": "none"}, {"shift": "camera"}, {"criterion": "d"}):
        last, alone = results([TUNED, TUNED_BEST | change])
        assert (last.maximum, alone.last, alone.maximum) == (None, None, TUNED_BEST | change)
    # Two last rows that nothing tells apart stay two, and one maximum does not serve both.
    assert [r.maximum for r in results([TUNED, TUNED, TUNED_BEST])] == [TUNED_BEST, None]
    # Of trainings with the same labels, each has the maximum that is named after it.
    one, two, three = (TUNED | {"evaluation": name} for name in ("a", "b", "c"))
    maxima = [TUNED_BEST | {"evaluation": f"{name}-maximum"} for name in ("b", "a", "d")]
    found = results([one, two, three, *maxima])
    assert [(r.last, r.maximum) for r in found] == [
        *((one, maxima[1]), (two, maxima[0]), (three, None)),
        (None, maxima[2]),
    ]
    other = maxima[1] | {"criterion": "d"}
    assert [r.maximum for r in results([one, other])] == [None, other]
    # A name goes before labels, also of a row without one.
    assert [r.maximum for r in results([TUNED, two, maxima[0]])] == [None, maxima[0]]
    assert [r.maximum for r in results([TUNED, maxima[0]])] == [maxima[0]]
    step = TUNED | {"checkpoint": "step 300"}
    assert [r.maximum for r in results([step, TUNED_BEST])] == [None, TUNED_BEST]


@pytest.mark.parametrize(
    ("checkpoint", "count"), [("maximum of 10", 10), ("maximum", 0), ("last", None), (None, None), ("step 9", None)]
)
def test_over_how_many_evaluations_a_maximum_is(checkpoint: str | None, count: int | None) -> None:
    assert maximum_of({"checkpoint": checkpoint}) == count


def test_counts_of_maxima_in_words() -> None:
    best = [{"checkpoint": f"maximum of {n}"} for n in (10, 8, 10)]
    assert evaluations_of_maxima(best) == "8 or 10"
    assert evaluations_of_maxima(best[:1]) == "10"
    assert evaluations_of_maxima([*best, {"checkpoint": "maximum"}]) == "several"
    assert evaluations_of_maxima([TUNED]) == ""


def test_headline_is_about_retrieval_at_the_last_checkpoint_and_heads_stand_beside() -> None:
    best = RETRIEVAL | {"checkpoint": "maximum of 10", "successes": 50, "success": 1.0}
    rows = [TUNED, best, FROZEN, RETRIEVAL, STATE, TUNED_BEST, SCRATCH, FROZEN | {"shift": "camera"}]
    assert headline.main_row(rows) is RETRIEVAL
    assert headline.main_row([best]) is None
    assert headline.comparisons(rows) == ["the true state as latent reaches 90.0% (45 of 50)"]
    assert headline.heads(rows) == [
        "Diffusion Policy, fine-tuned, crop + noise, 92.0% (46 of 50)",
        "MLP, frozen, no augmentation, 60.0% (30 of 50)",
        "Diffusion Policy, from scratch, crop + noise, 40.0% (20 of 50)",
    ]
    assert headline.main_row([FROZEN, TUNED]) is FROZEN
    assert headline.heads([FROZEN, TUNED]) == ["Diffusion Policy, fine-tuned, crop + noise, 92.0% (46 of 50)"]


OBJECTIVES: dict[str, Row] = {
    "class": {"name": "class", "temperature": 0.05},
    "byol": {"name": "byol"},
    "class+0.1*byol": {"name": "combined", "parts": [{"name": "class"}, {"name": "byol"}], "weights": [1.0, 0.1]},
    "random": {"name": "none"},
}


@pytest.mark.parametrize("own", OBJECTIVES)
def test_headline_is_about_the_runs_own_encoder_with_its_own_settings(own: str, run_copy: Run) -> None:
    # The run's own rows stand last: as where they were evaluated again after the others.
    labels = (f"{own}-k5", "tcn", f"{own}-k5-temperature0.01", own, "untrained", "state")
    rows = [row("retrieval", label, "representation only", n, evaluation=label) for n, label in enumerate(labels)]
    head = TUNED | {"encoder": own, "evaluation": "head"}
    write_json(run_copy.summary, [head, *rows])
    settings = {"pretrain": {"objective": OBJECTIVES[own], "encoder": {"init": "scratch"}}}
    write_json(run_copy.config, {"title": "a run", "settings": settings})
    found = read_sources(run_copy.root).summary
    assert [r["encoder"] for r in found if r["own"]] == [own, own]
    assert all({key: r[key] for key in before} == before for r, before in zip(found, [head, *rows], strict=True))
    main = headline.main_row(found)
    assert main is not None
    assert (main["encoder"], main["policy"], main["successes"]) == (own, "retrieval", 3)
    only = [r for r in found if r["policy"] != "retrieval" or not r["own"]]
    assert headline.main_row(only) == found[0]  # before retrieval with other settings, a head on the own encoder


def test_runs_of_before_there_was_a_choice_are_about_class(old_copy: Run) -> None:
    before = old_copy.read_summary()
    other = before[0] | {"encoder": "class-k5", "evaluation": "retrieval-class-k5"}
    write_json(old_copy.summary, [other, *before])
    for card in ({"title": "a run"}, {"title": "a run", "settings": {"pretrain": {"encoder": {"init": "scratch"}}}}):
        write_json(old_copy.config, card)
        found = read_sources(old_copy.root).summary
        assert [r["own"] for r in found] == [r["encoder"] == "class" for r in found]
        assert headline.main_row(found) == before[0] | {"own": True}
    assert headline.main_row([other, *before]) == before[0]  # rows that come from no folder


def test_terminal_shows_the_same_in_100_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    print_summary([r | {"criterion": c, "mean_max_coverage": 0.9} for r in ROWS for c in ("coverage>0.90", "iou>0.90")])
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines()) <= 100
    assert printed.startswith("success on pusht, none")
    flat = " ".join(printed.replace("│", " ").split())
    for words in ("representation only", "fine-tuned, crop", "mlp, class, frozen", "diffusion, scratch"):
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
    assert "mlp, class, frozen" in printed
    assert "95 % interval" in printed


def test_labels_are_broken_between_parts() -> None:
    assert wrapped("CLASS (learned), no shift") == "CLASS (learned),<br>no shift"
    assert wrapped("MLP, CLASS (learned), fine-tuned, a + b") == "MLP, CLASS (learned),<br>fine-tuned, a + b"


def test_what_novelty_means_depends_on_what_the_card_says() -> None:
    whole = meaning(Calibration(0.9, 0.1, 20, True))
    assert "share of the 20 held-out demonstrations" in whole
    assert "Above 0.90 the policy raises an alarm; by conformal calibration" in whole
    assert "at most 10%" in whole
    assert "alarm" not in meaning(Calibration())
    assert "conformal calibration" not in meaning(Calibration(0.9))
    few = meaning(Calibration(None, 0.1, 5, True))
    assert "no alarm: for a probability of a false one of at most 10% it must be calibrated on at least 9" in few
    assert "there were 5, 4 too few" in few
    assert "raises an alarm" not in few
    unheld = meaning(Calibration(0.9, 0.1, 20, False))
    assert "without a conformal guarantee" in unheld
    assert "by conformal calibration" not in unheld
    assert "held-out" not in unheld
