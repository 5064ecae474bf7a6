from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_comparison import HEADS, cell, results, write_fake_comparison
from hypothesis import given
from hypothesis import strategies as st

from classact.utils.statistics import (
    holm,
    paired_difference,
    permutation_p,
    success_over_seeds,
    wilson_interval,
)
from classact.utils.storage import write_json
from common import mcnemar_p
from table1.report import Results, comparison_markdown, read_results
from table1.report.costs import budgets, tuning
from table1.report.page import headline
from table1.report.pairs import compare, how_compared, of_class, p_text
from table1.report.sheets import sheets, success_sheet
from table1.report.table import (
    Column,
    Entry,
    Who,
    column_name,
    column_order,
    entry_text,
    layout,
    method_name,
    method_order,
    ordered,
)

FIXED, RAND = Column("fixed"), Column("rand")


def read(tmp_path: Path, value: dict[str, Any]) -> Results:
    write_json(tmp_path / "r.json", value)
    return read_results(tmp_path / "r.json")


def of(*cells: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A results file of these cells."""
    return results() | {"cells": {f"c{i}": row for i, row in enumerate(cells)}, "tuning": []} | changes


def won(row: dict[str, Any], outcomes: list[int], starts: list[int] | None = None, **changes: Any) -> dict[str, Any]:
    """A cell with these outcomes."""
    starts = starts or list(range(len(outcomes)))
    return row | {"starts": starts, "success": {"coverage>0.90": outcomes}, "score": [], **changes}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return read_results(write_fake_comparison(tmp_path_factory.mktemp("whole"), folders=False))


def entry_of(found: Results, who: Who, column: Column) -> Entry:
    table = layout(found)
    group = next(g for g in table.groups if g.head == who.head)
    return dict(group.rows)[who][table.columns.index(column)]


def test_layout_is_the_papers(whole: Results) -> None:
    table = layout(whole)
    assert [group.head for group in table.groups] == ["rep", "mlp", "mlp-rep", "dp"]
    assert table.columns == [FIXED, RAND, Column("rand", "hsv")]
    assert table.paper == [True, True, False]
    rows = [(who.method, who.variant) for who, _ in table.groups[0].rows]
    assert rows == [
        *[("random", ""), ("imagenet", ""), ("r3m", ""), ("tcn", ""), ("tcn", "4x budget"), ("byol", "")],
        *[("dynamo", ""), ("inverse-dynamics", ""), ("class", ""), ("class+0.1*byol", "")],
    ]
    assert [who.method for who, _ in table.groups[2].rows][-1] == "class"


def test_rates_intervals_and_paper_stand_side_by_side(whole: Results) -> None:
    entry = entry_of(whole, Who("rep", "class"), FIXED)
    row = next(c for c in whole.cells if (c.method, c.head, c.shift) == ("class", "rep", "fixed"))
    wins = sum(row.success["coverage>0.90"])
    assert entry.estimate is not None
    assert (entry.estimate.low, entry.estimate.high) == wilson_interval(wins, 100)
    assert (entry.successes, entry.trials, entry.seeds, entry.starts) == (wins, 100, 1, 100)
    assert entry.paper == 0.85
    assert entry_of(whole, Who("dp", "class"), RAND).paper == 0.70
    assert entry_of(whole, Who("mlp-rep", "class"), RAND).paper == 0.69
    assert entry_of(whole, Who("dp", "class"), Column("rand", "hsv")).paper is None
    assert entry_of(whole, Who("rep", "tcn", "4x budget"), RAND).paper is None


def test_missing_cells_say_why(whole: Results) -> None:
    assert entry_of(whole, Who("rep", "r3m"), FIXED).reason == "the weights cannot be downloaded without a network"
    assert entry_of(whole, Who("dp", "equivar"), FIXED).reason == "not run yet"
    assert entry_of(whole, Who("dp", "byol"), FIXED).reason == "not measured"  # a row of the paper alone
    table = layout(whole)
    assert len(table.notes) == 3
    assert entry_text(entry_of(whole, Who("rep", "r3m"), FIXED), table) == "– [2]"


def test_the_highest_of_a_head_and_column_is_marked(whole: Results) -> None:
    table = layout(whole)
    for group, i in itertools.product(table.groups, range(len(table.columns))):
        values = {
            who: e[i].estimate.value  # type: ignore[union-attr]
            for who, e in group.rows
            if e[i].estimate and who.variant == "" and "+" not in who.method
        }
        best = {who for who, e in group.rows if e[i].best}
        assert best == {who for who, value in values.items() if value == max(values.values())}


def test_ideas_and_other_budgets_are_neither_bold_nor_in_the_headline(tmp_path: Path) -> None:
    ahead = [1] * 20
    rows = [won(cell("class", "rep", "fixed"), [1] * 10 + [0] * 10), won(cell("tcn", "rep", "fixed"), [1] + [0] * 19)]
    rows += [won(cell("tcn", "rep", "fixed", variant="4x budget"), ahead)]
    rows += [won(cell("class", "rep", "fixed", variant="views=2"), ahead)]
    rows += [won(cell("class+0.1*byol", "rep", "fixed"), ahead)]
    found = read(tmp_path, of(*rows))
    best = [who for g in layout(found).groups for who, e in g.rows if e[0].best]
    assert best == [Who("rep", "class")]
    (item,) = headline(found)["results"]
    assert (item["own"].value, item["best"]["name"]) == (0.5, "TCN")
    pairs = compare(found)
    assert [(p.first, p.second) for p in of_class(pairs)] == [(Who("rep", "class"), Who("rep", "tcn"))]
    assert of_class(pairs)[0].adjusted == of_class(pairs)[0].p
    assert len(pairs) == 10


def test_fewer_demonstrations_are_not_of_the_table(tmp_path: Path) -> None:
    many, few = cell("class", "rep", "fixed"), cell("class", "rep", "fixed", demonstrations=25)
    assert entry_of(read(tmp_path, of(few, many)), Who("rep", "class"), FIXED).seeds == 1


def test_seeds_share_their_starts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    outcomes = (rng.random((3, 40)) < 0.5).astype(int)
    rows = [won(cell("class", "rep", "fixed", seed=s), o.tolist()) for s, o in enumerate(outcomes)]
    found = read(tmp_path, of(*rows))
    entry = entry_of(found, Who("rep", "class"), FIXED)
    assert entry.estimate == success_over_seeds(outcomes, np.random.default_rng(0))
    assert (entry.seeds, entry.starts, entry.trials) == (3, 40, 120)
    assert layout(found).seeds == 3
    # Of other starts, only the shared ones count.
    shifted = won(rows[2], outcomes[2].tolist(), starts=list(range(30, 70)))
    assert entry_of(read(tmp_path, of(*rows[:2], shifted)), Who("rep", "class"), FIXED).starts == 10
    apart = won(rows[2], outcomes[2].tolist(), starts=list(range(40, 80)))
    entry = entry_of(read(tmp_path, of(*rows[:2], apart)), Who("rep", "class"), FIXED)
    assert (entry.estimate, entry.reason) == (None, "its trainings were not tried on the same starts")


def test_seeds_are_said_where_they_differ(tmp_path: Path) -> None:
    rows = [cell("class", "rep", "fixed", seed=s) for s in range(3)] + [cell("tcn", "rep", "fixed")]
    found = read(tmp_path, of(*rows))
    text = comparison_markdown(found)
    assert "] 3 seeds" in text.replace("\\", "")
    assert "] 1 seed " in text.replace("\\", "")


def test_pairs_are_mcnemar_on_shared_starts(tmp_path: Path) -> None:
    a = won(cell("class", "rep", "fixed"), [1] * 12 + [0] * 4 + [1] * 4)
    b = won(cell("tcn", "rep", "fixed"), [0] * 12 + [1] * 2 + [0] * 2 + [1] * 4)
    longer = won(cell("byol", "rep", "fixed"), [0] * 30)
    pairs = compare(read(tmp_path, of(b, a, longer)))
    names = [(p.first.method, p.second.method) for p in pairs]
    assert names == [("tcn", "byol"), ("class", "tcn"), ("class", "byol")]
    pair = pairs[1]
    assert (pair.won, pair.lost, pair.starts) == (12, 2, 20)
    assert pair.p == mcnemar_p(12, 2)
    assert pair.difference == paired_difference(12, 2, 20)
    assert pair.verdict == "better"


def test_pairs_are_within_columns_and_corrected_by_family(whole: Results) -> None:
    pairs = compare(whole)
    table = layout(whole)
    expected = 0
    for group, i in itertools.product(table.groups, range(len(table.columns))):
        n = sum(e[i].estimate is not None for _, e in group.rows)
        expected += n * (n - 1) // 2
    assert len(pairs) == expected
    assert all(p.first.head == p.second.head and p.first != p.second for p in pairs)
    plain = [p for p in pairs if is_class(p.first) and not p.second.variant and "class" not in p.second.method]
    families = [[p for p in plain if p.column == column] for column in table.columns]
    families.append([p for p in pairs if p not in plain])
    assert [len(family) for family in families] == [10, 10, 1, len(pairs) - 21]
    for family in families:
        assert [p.adjusted for p in family] == pytest.approx(holm([p.p for p in family]))
    for p in pairs:
        side = "better" if p.difference.value > 0 else "worse"
        assert p.verdict == (side if p.adjusted < 0.05 else "not distinguishable")
    main = of_class(pairs)
    assert {(p.second.method, p.column) for p in main if p.first.head == "dp"} >= {("tcn", FIXED), ("random", RAND)}
    assert not any(p.second == Who(p.second.head, "class") for p in pairs)
    text = how_compared(pairs)
    assert "plain CLASS with other plain methods in the same column (10, 10 and 1 pairs; the primary family)" in text
    assert f"among all {len(pairs) - 21} further pairs of the table, those with ablations, sums" in text


def is_class(who: Who) -> bool:
    return (who.method, who.variant) == ("class", "")


def test_pairs_of_baselines_cost_class_nothing(tmp_path: Path) -> None:
    own = won(cell("class", "rep", "fixed"), [1] * 9 + [0] * 3)
    other = won(cell("tcn", "rep", "fixed"), [0] * 8 + [1] + [0] * 3)
    (alone,) = compare(read(tmp_path, of(own, other)))
    assert alone.adjusted == alone.p == mcnemar_p(8, 0)
    # Another column and its pairs do not count, nor does the same method with other settings.
    variant = won(cell("tcn", "rep", "fixed", variant="4x budget"), [0] * 8 + [1] + [0] * 3)
    elsewhere = [won(cell(m, "rep", "rand"), [1, 0]) for m in ("class", "tcn", "byol")]
    pairs = {(p.first, p.second, p.column): p for p in compare(read(tmp_path, of(own, other, variant, *elsewhere)))}
    assert pairs[Who("rep", "class"), Who("rep", "tcn"), FIXED].adjusted == alone.p
    further = [p for p in pairs.values() if not p.primary]
    names = [(p.first.method, p.second.method, p.second.variant) for p in further]
    assert names == [("tcn", "tcn", "4x budget"), ("class", "tcn", "4x budget"), ("tcn", "byol", "")]
    only = how_compared(further)
    assert "primary family" not in only
    assert "among all 3 further pairs" in only
    assert "second family" not in how_compared([alone])


def test_pairs_of_several_seeds_use_the_permutation_test(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.random((3, 30)) < 0.8).astype(int), (rng.random((2, 30)) < 0.5).astype(int)
    rows = [won(cell("class", "dp", "rand", seed=s), o.tolist()) for s, o in enumerate(a)]
    rows += [won(cell("random", "dp", "rand", seed=s), o.tolist()) for s, o in enumerate(b)]
    (pair,) = compare(read(tmp_path, of(*rows)))
    ahead = 2 * a.sum(axis=0) - 3 * b.sum(axis=0)
    assert pair.p == permutation_p(a, b)
    assert (pair.won, pair.lost) == (int((ahead > 0).sum()), int((ahead < 0).sum()))
    assert pair.difference.value == pytest.approx(a.mean() - b.mean())
    assert pair.seeds == (3, 2)
    assert "exact permutation test that generalises it" in how_compared([pair])


def test_without_shared_starts_there_is_no_pair(tmp_path: Path) -> None:
    a = won(cell("class", "rep", "fixed"), [1, 0], starts=[1, 2])
    b = won(cell("tcn", "rep", "fixed"), [1, 0], starts=[3, 4])
    assert compare(read(tmp_path, of(a, b))) == []


def test_budgets(whole: Results) -> None:
    rows = {(row.who, row.column): row for row in budgets(whole)}
    done = sum(e.estimate is not None for g in layout(whole).groups for _, row in g.rows for e in row)
    assert len(rows) == done
    more = rows[Who("rep", "tcn", "4x budget"), RAND]
    assert (more.images, more.share) == (2_000_000, 4.0)
    assert (more.rate, more.tau, more.k) == ("0.0001", "0.001", "64")
    none = rows[Who("rep", "random"), FIXED]
    assert (none.images, none.rate) == (0, "")
    assert rows[Who("dp", "class"), FIXED].latency == 38.0
    text = comparison_markdown(whole)
    assert "2,000,000 (400%)" in text


def test_budgets_are_means_over_seeds(tmp_path: Path) -> None:
    rows = [cell("class", "rep", "fixed", seed=s) | {"training_seconds": 100.0 * (s + 1), "tau": s} for s in (0, 1)]
    (row,) = budgets(read(tmp_path, of(*rows)))
    assert (row.seconds, row.tau, row.seeds, row.latency) == (150.0, "0 or 1", 2, 4.2)


def test_tuning_says_where_the_best_is_at_the_edge(whole: Results) -> None:
    found = {search.who.method: search for search in tuning(whole)}
    assert list(found) == ["tcn", "class"]
    assert (found["tcn"].edge, found["class"].edge) == ("highest", "")
    chosen = next(row for row in found["class"].tried if row.chosen)
    assert (chosen.learning_rate, chosen.successes, chosen.starts) == (1e-4, 30, 50)
    low, high = wilson_interval(30, 50)
    assert f"[{low:.2f}, {high:.2f}]" in comparison_markdown(whole).replace("\\", "")
    assert "chosen, the highest tried" in comparison_markdown(whole)


def test_tuning_names_rows_as_elsewhere_and_says_what_diverged(tmp_path: Path) -> None:
    base = results()["tuning"][0]
    rows = [
        base | {"method": "byol", "written": "byol[views=2]", "variant": "views=2", "head": "rep", "chosen": True},
        base | {"method": "random", "variant": "", "head": "dp", "learning_rate": 1e-4, "chosen": True},
        base
        | {"method": "random", "variant": "", "head": "dp", "learning_rate": 1e-3, "chosen": False}
        | {"diverged": True, "successes": 0, "score": None},
    ]
    sheet = next(s for s in sheets(read(tmp_path, of(tuning=rows))) if s.title.startswith("How learning rates"))
    assert [heading for heading, _ in sheet.groups] == [
        *("VINN (BYOL), views=2, Rep-Only, Fixed-Color", "Random, DP, Fixed-Color")
    ]
    assert sheet.groups[1][1][1] == ["0.001", "diverged", "100,000", "–", "", ""]
    for words in ("under the fixed appearance", "all cells of the method", "CLASS has its preset's rate"):
        assert words in sheet.notes[0]


def test_costs_say_what_is_not_comparable(tmp_path: Path) -> None:
    rows = [
        cell("class", "rep", "fixed") | {"training_seconds": 600.0, "total_seconds": 100.0},
        cell("tcn", "rep", "fixed") | {"training_seconds": 600.0, "total_seconds": 700.0},
        cell("class", "dp", "fixed"),
    ]
    found = read(tmp_path, of(*rows))
    assert [(row.who.method, row.sessions) for row in budgets(found)] == [
        *(("tcn", False), ("class", True), ("class", False))
    ]
    text = comparison_markdown(found).replace("\\", "")
    assert "| 2 min* |" in text
    assert "| 12 min |" in text
    assert "* The last of several calls alone" in text
    assert "| 0.0001 / 1e-05 |" in text
    assert "The score of a start is the largest coverage that was reached." in text
    other = of(*rows[1:2])
    other["protocol"]["metric"] = "height"
    text = comparison_markdown(read(tmp_path, other))
    assert "largest height that was reached" in text
    assert "several calls" not in text


def test_a_budget_in_time_is_said(tmp_path: Path) -> None:
    value = of(cell("class", "rep", "fixed"))
    value["protocol"] |= {"budget_images": None, "budget_seconds": 600.0}
    text = comparison_markdown(read(tmp_path, value))
    assert "a budget of 10 min per training" in text
    assert "The budget of a training is 10 min." in text


def test_markdown_tables_are_rectangular_and_hold_the_numbers(whole: Results) -> None:
    text = comparison_markdown(whole)
    width = None
    for line in text.splitlines():
        if not line.startswith("|"):
            width = None
            continue
        cells = line.replace("\\|", "").count("|")
        assert width in (None, cells)
        width = cells
    entry = entry_of(whole, Who("rep", "class"), FIXED)
    assert entry.estimate is not None
    e = entry.estimate
    assert f"| CLASS | {e.value:.2f} [{e.low:.2f}, {e.high:.2f}] | 0.85 |" in text
    assert "**Rep-Only**" in text
    assert "ResNet-18" in text
    assert "(Holm)" in text
    for title in ("Success on Push-T", "CLASS against each method", "What it cost", "How learning rates were chosen"):
        assert f"## {title}" in text
    assert "Encoders start from random weights" in text


def test_markdown_shows_names_as_they_are(tmp_path: Path) -> None:
    rows = [cell("class", "rep", "fixed"), cell("tcn", "rep", "fixed") | {"method": "a|b<script>*"}]
    text = comparison_markdown(read(tmp_path, of(*rows)))
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert "a\\|b\\<script\\>" in text


def test_other_criteria_have_tables_of_their_own(whole: Results) -> None:
    sheet = success_sheet(whole, "iou>0.90", between=" ")
    assert sheet.title == "Success on Push-T by iou>0.90"
    own = next(c for c in whole.cells if (c.method, c.head, c.shift) == ("tcn", "rep", "fixed"))
    rate = sum(own.success["iou>0.90"]) / 100
    assert any(row[0] == "TCN" and row[1].startswith(f"{rate:.2f} [") for _, rows in sheet.groups for row in rows)


def test_rows_may_be_those_that_are_measured(whole: Results) -> None:
    every, sheet = success_sheet(whole, between=" "), success_sheet(whole, between=" ", measured=True)
    assert sheet.columns == every.columns
    ours = [i for i, name in enumerate(every.columns) if i and name != "paper"]
    wanted = [(head, [row for row in rows if any(row[i][0] != "–" for i in ours)]) for head, rows in every.groups]
    bare = [(head, [[c if c[:1] != "–" else "–" for c in row] for row in rows]) for head, rows in wanted if rows]
    assert sheet.groups == bare
    assert sum(len(rows) for _, rows in sheet.groups) < sum(len(rows) for _, rows in every.groups)
    assert not any(note.startswith("[") for note in sheet.notes)


def test_fewer_demonstrations_stand_in_a_table(whole: Results) -> None:
    (sheet,) = (s for s in sheets(whole) if s.title == "Success by the number of demonstrations")
    assert sheet.columns == ["method", "25", "50", "100", "186"]
    (heading, rows) = sheet.groups[0]
    assert heading == "Fixed-Color"
    own = next(row for row in rows if row[0] == "CLASS, Rep-Only")
    for text, count in zip(own[1:], (25, 50, 100, 186), strict=True):
        found = [c for c in whole.done if (c.method, c.head, c.shift) == ("class", "rep", "fixed")]
        (one,) = (c for c in found if c.demonstrations == count)
        e = wilson_interval(sum(one.success[whole.criterion]), len(one.starts))
        assert text == f"{np.mean(one.success[whole.criterion]):.2f} [{e[0]:.2f}, {e[1]:.2f}]"


def test_success_during_training_stands_in_a_table(whole: Results, tmp_path: Path) -> None:
    (sheet,) = (s for s in sheets(whole) if s.title == "Success during training")
    own = next(c for c in whole.done if (c.method, c.head, c.shift) == ("class", "dp", "fixed") and c.curve)
    row = next(row for row in sheet.groups[0][1] if row[0] == "CLASS, DP")
    shares = [f"{round(100 * images / own.curve[-1][0])}%" for images, *_ in own.curve]
    assert shares[-1] == "100%"
    found = dict(zip(sheet.columns, row, strict=True))
    assert [found[share] for share in shares] == [f"{k / n:.2f}" for *_, k, n in own.curve]
    assert f"each number is of {own.curve[0][3]} starts" in sheet.notes[0]
    # Seeds that were tried at other points have rows of their own, with blanks where they were not.
    cells = [cell("class", "rep", "fixed", seed=s) for s in (0, 1)]
    cells[1]["curve"] = cells[1]["curve"][1:]
    (sheet,) = (s for s in sheets(read(tmp_path, of(*cells))) if s.title == "Success during training")
    (_, rows) = sheet.groups[0]
    assert [row[0] for row in rows] == ["CLASS, Rep-Only (seed 0)", "CLASS, Rep-Only (seed 1)"]
    assert rows[0][1] != ""
    assert rows[1][1] == ""


def test_nothing_is_done_yet(tmp_path: Path) -> None:
    rows = [cell(m, h, "fixed") | {"status": "planned"} for h, ms in HEADS.items() for m in ms]
    found = read(tmp_path, of(*rows))
    titles = [sheet.title for sheet in sheets(found)]
    assert titles == ["Success on Push-T"]
    assert "not run yet" in comparison_markdown(found).lower()
    assert comparison_markdown(read(tmp_path, of())).startswith("# Table 1 on Push-T")


def test_other_tasks_have_no_numbers_of_the_paper(tmp_path: Path) -> None:
    rows = [cell("class", "rep", "fixed"), cell("class", "rep", "rand") | {"shift": "fog"}]
    found = read(tmp_path, of(*rows, task="my-task"))
    table = layout(found)
    assert table.paper == [False, False]
    assert [column_name("my-task", c) for c in table.columns] == ["Fixed", "fog"]
    assert "arXiv 2508.01600" not in comparison_markdown(found)


def test_names_and_orders() -> None:
    assert method_name("class+0.1*byol") == "CLASS + 0.1 VINN (BYOL)"
    assert method_name("new-one") == "new-one"
    assert method_order(["class+tcn", "class", "new", "dynamo", "random"]) == [
        *("random", "dynamo", "new", "class", "class+tcn")
    ]
    assert column_order([Column("rand", "hsv"), RAND, Column("fixed", "hsv"), FIXED]) == [
        *(FIXED, RAND, Column("fixed", "hsv"), Column("rand", "hsv"))
    ]
    assert [p_text(p) for p in (0.0001, 0.0123, 0.25, 1.0)] == ["< 0.001", "0.012", "0.25", "1.00"]


whos = st.builds(
    Who, st.sampled_from(["dp", "rep", "x"]), st.sampled_from(["class", "tcn", "q"]), st.sampled_from(["", "v"])
)
columns = st.builds(Column, st.sampled_from(["rand", "fixed", "fog"]), st.sampled_from(["none", "hsv"]))


@given(st.sets(st.tuples(whos, columns)), st.booleans())
def test_order_keeps_all_and_keeps_groups_together(keys: set[tuple[Who, Column]], by_column: bool) -> None:
    found = ordered(sorted(keys), by_column=by_column)
    assert sorted(found) == sorted(keys)
    groups = [(who.head, column if by_column else who) for who, column in found]
    assert len(set(groups)) == len(list(itertools.groupby(groups)))
