from __future__ import annotations

import math
import multiprocessing as mp
import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import table1_runner
from hypothesis import given
from hypothesis import strategies as st

import fakes
from classact.errors import (
    ClassactError,
    ConfigError,
    DataError,
    MissingDependencyError,
    StorageError,
    TrainingInterrupted,
)
from classact.evaluation.config import EvaluationConfig
from classact.objectives import OBJECTIVES
from classact.run.folder import Run
from classact.run.presets import PRESETS
from classact.train.representation import Trainer
from classact.utils.locks import BusyError, lock_of, locked
from classact.utils.storage import append_jsonl, read_json, read_jsonl, write_json
from common import command
from table1 import (
    METHODS,
    Cell,
    Protocol,
    cells,
    grid,
    parse_method,
    plan,
    records,
    run_table,
    runner,
    trainings,
    with_random,
)
from table1.command import Flags, main
from table1.grid import (
    HEADS,
    SHIFTS,
    head_config,
    images_per_step,
    parse_budget,
    rates_of,
    run_config,
    searched,
    shift_of,
)
from table1.methods import UNTRAINED
from table1.report import comparison_markdown, read_results

DEBUG = PRESETS["debug"]
BASELINES = tuple(name for name in METHODS if name not in UNTRAINED)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.write_zarr(tmp_path_factory.mktemp("data") / "tiny.zarr", fakes.demonstrations(0, 96, fakes.LENGTHS))


def protocol(data: Path | str = "pusht-expert", **changes: Any) -> Protocol:
    settings: dict[str, Any] = {"images": 1000, "head_images": 300, "tuning_images": 100, "heldout": 2, "starts": 2}
    settings |= {"rates": (1e-3, 2e-3), "taus": (0.0, 0.01), "tuning_starts": 2}
    return Protocol("pusht", str(data), "debug", **settings | changes)


# Methods


@pytest.mark.parametrize(
    ("written", "where", "value"),
    [
        ("class[weighting=hard]", "objective.weighting", "hard"),
        ("class[metric=l2]", "similarity.metric", "l2"),
        ("class[cost=euclidean]", "similarity.cost", "euclidean"),
        ("class[quantile=0.03]", "similarity.quantile", 0.03),
        ("class[crop=batch]", "augment.crop", "batch"),
        ("class[color=whiten]", "encoder.color", "whiten"),
        ("class[color_augmentation=hsv]", "augment.color", "hsv"),
        ("byol[batch_size=8]", "batch_size", 8),
        # An objective's own option comes before that of the similarity, which it does not look at.
        ("inverse-dynamics[horizon=4]", "objective.horizon", 4),
        *((f"class[horizon={t}]", "similarity.horizon", t) for t in (1, 2, 4, 8, 16, 32)),
    ],
)
def test_brackets_change_one_setting(written: str, where: str, value: Any) -> None:
    method = parse_method(written)
    plain = parse_method(method.name).config(DEBUG.pretrain)
    made = method.config(DEBUG.pretrain)
    *parts, field = where.split(".")
    owner, before = made, plain
    for part in parts:
        owner, before = getattr(owner, part), getattr(before, part)
    assert getattr(owner, field) == value != (getattr(before, field) if value != 16 else None)
    # Nothing else is different.
    undone: Any = replace(owner, **{field: getattr(before, field)})
    assert (replace(made, **{parts[0]: undone}) if parts else undone) == plain
    assert method.retrieval_config(DEBUG.retrieval) == DEBUG.retrieval


def test_brackets_of_retrieval() -> None:
    method = parse_method("random[k=3, min_actions=4]")
    assert method.written == "random[k=3 min_actions=4]"
    assert method.retrieval_config(DEBUG.retrieval) == replace(DEBUG.retrieval, k=3, min_actions=4)
    config = run_config(Cell(method), protocol(), 100, None)
    assert (config.retrieval.k, config.retrieval.min_actions) == (3, 4)


def test_an_untrained_encoder_may_see_other_images() -> None:
    method = parse_method("random[color=whiten]")
    plain = parse_method("random").config(DEBUG.pretrain)
    assert method.config(DEBUG.pretrain) == replace(plain, encoder=replace(plain.encoder, color="whiten"))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("clas", r"unknown method 'clas': .*'class'.*Sums of objectives are written 'class\+0.1\*byol'"),
        ("none", "unknown method 'none'"),
        ("", r"expected a method like 'class' or 'class\[views=2 metric=l2\]', got ''"),
        ("class[views=2", r"expected a method like .*, got 'class\[views=2'"),
        ("class[foo=1]", "unknown setting of 'class' 'foo': .*'horizon'.*'weighting'"),
        ("class[horizon]", "expected a whole number for 'horizon', as in 'horizon=...', got 'horizon'"),
        ("class[quantile=much]", "expected a number for 'quantile', .* got 'quantile=much'"),
        ("class[crop=]", "expected a value for 'crop', .* got 'crop='"),
        ("class[views=x]", "expected a value like 1 for option 'views' of objective 'class', got 'x'"),
        ("class[weighting=medium]", "unknown weighting 'medium'"),
        ("class[metric=l2 metric=dtw]", "sets 'metric' 2 times"),
        ("byol[metric=l2]", "'metric=l2' is of the similarity of actions, which 'byol' does not look at"),
        ("random[metric=l2]", "'random' learns nothing before the head, so 'metric=l2' would change nothing"),
        (
            "random[color_augmentation=hsv]",
            r"so 'color_augmentation=hsv' would change nothing\. It takes \['chunk.*'color",
        ),
        ("class+byol[decay=0.9]", r"unknown setting of 'class\+byol' 'decay': .*'byol.decay'"),
        ("class+bol", "unknown objective 'bol'"),
        ("class+none", r"'class\+none' adds 'none'"),
    ],
)
def test_what_is_no_method_says_why(written: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_method(written)


def test_sums_take_options_by_name() -> None:
    method = parse_method("class+0.1*byol[byol.decay=0.9 metric=l2]")
    assert method.objective.parts[1].decay == 0.9
    assert method.config(DEBUG.pretrain).similarity.metric == "l2"
    assert method.variant == "byol.decay=0.9 metric=l2"


def test_which_rates_are_tuned() -> None:
    tuned = {name for name in METHODS if parse_method(name).tuned}
    assert tuned == set(BASELINES) - {"class"}
    assert parse_method("tcn+byol").tuned


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("0.1*byol+class", "class+0.1*byol"),
        ("0.10 * byol + 1*class", "class+0.1*byol"),
        ("dynamo+byol", "byol+dynamo"),
        ("class[temperature=0.050]", "class[temperature=0.05]"),
        ("class[metric=l2, k=+3]", "class[k=3 metric=l2]"),
        ("class[k=3   metric=l2]", "class[k=3 metric=l2]"),
        ("byol+class[byol.decay=9.9e-1]", "class+byol[byol.decay=0.99]"),
        ("class[learned_temperature=true]", "class[learned_temperature=true]"),
    ],
)
def test_methods_that_mean_the_same_are_the_same(written: str, canonical: str) -> None:
    method = parse_method(written)
    assert method.written == canonical
    assert method == parse_method(canonical)
    assert Cell(method).run_name == Cell(parse_method(canonical)).run_name


@pytest.mark.parametrize("written", ["class+0.1*byol", "byol+class", "0.5*tcn+byol+class"])
def test_sums_with_class_are_trained_as_class(written: str) -> None:
    method, plain = parse_method(written), parse_method("class").config(PRESETS["pusht-cpu"].pretrain)
    made = method.config(PRESETS["pusht-cpu"].pretrain)
    assert not method.tuned
    assert (made.optimizer, made.batch_size) == (plain.optimizer, plain.batch_size)


# Grid


written = st.one_of(
    st.sampled_from(sorted(METHODS)),
    st.builds(
        lambda name, options: f"{name}[{' '.join(options)}]",
        st.sampled_from(["class", "class+0.1*byol", "class+byol", "0.1*byol+class"]),
        st.lists(st.sampled_from(["metric=l2", "horizon=8", "quantile=0.1", "k=1", "crop=batch"]), unique=True),
    ),
)


@given(
    st.lists(written, min_size=1, max_size=4),
    st.lists(st.sampled_from(HEADS), min_size=1, unique=True),
    st.lists(st.sampled_from(["none", "hsv"]), min_size=1, unique=True),
    st.lists(st.sampled_from([None, 1, 25]), min_size=1, unique=True),
    st.sampled_from([1.0, 4.0, 0.5]),
)
def test_names_are_unique_and_fit_file_systems(
    methods: list[str], heads: list[str], augmentations: list[str], counts: list[int | None], factor: float
) -> None:
    found = plan(methods, heads=heads, augmentations=augmentations, seeds=2, factor=factor, demonstrations=counts)
    names = [cell.name for cell in found]
    assert len({name.casefold() for name in names}) == len(names)
    assert len(set(found)) == len(found)
    for cell in found:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", cell.name)
        # Heads lie in the folder of their representation.
        assert cell.name == cell.run_name + ("" if cell.head == "rep" else f"-{cell.head}")
    places = [HEADS.index(cell.head) for cell in found if cell.seed == 0]
    assert places == sorted(places)
    assert [cell.seed for cell in found] == sorted(cell.seed for cell in found)
    assert all(cell.head in ("dp", "dp-rep") for cell in found if cell.method.name == "equivar")


def test_the_names_of_plain_cells_stay() -> None:
    assert [cell.name for cell in plan(["class", "random"], heads=("dp",))] == [
        *("class-fixed-none-seed0-dp", "random-fixed-none-seed0-dp"),
        *("class-rand-none-seed0-dp", "random-rand-none-seed0-dp"),
    ]
    (cell,) = plan(["class[weighting=hard]"], columns=["rand"], factor=4, demonstrations=[25], augmentations=["hsv"])
    assert cell.name == "class-weighting-hard--rand-hsv-seed0-4x-25demos"
    assert cell.variant == "weighting=hard, 4x budget"


def test_cells_of_one_name_are_refused() -> None:
    # Both are written with a dash for what folders cannot hold.
    one, other = parse_method("class+byol"), replace(parse_method("class+byol"), written="class byol")
    with pytest.raises(ConfigError, match=r"methods 'class\+byol' and 'class byol' would both lie"):
        grid._named([Cell(one), Cell(other)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": ("map",)}, "unknown head 'map'"),
        ({"columns": ("rand", "both")}, "unknown column 'both'"),
        ({"seeds": [-1]}, "seed >= 0, got 1.0 and -1"),
        ({"factor": 0.0}, "factor > 0 .* got 0.0"),
        ({"demonstrations": [0]}, "at least 1 demonstration, got 0"),
    ],
)
def test_impossible_grids_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(["class"], **arguments)


def test_random_weights_are_in_every_table() -> None:
    asked = plan(["class", "byol"], heads=("rep", "dp"), augmentations=("hsv",), seeds=2, factor=4.0)
    found = with_random(asked)
    assert found[: len(asked)] == asked
    added = {(cell.head, cell.column, cell.augmentation, cell.seed, cell.factor) for cell in found[len(asked) :]}
    assert added == {(h, c, "hsv", s, 1.0) for h in ("rep", "dp") for c in SHIFTS for s in (0, 1)}
    assert {cell.method.name for cell in found[len(asked) :]} == {"random"}
    assert with_random(plan(["random", "class"])) == plan(["random", "class"])


def test_columns_are_shifts_of_the_task() -> None:
    assert [shift_of("pusht", column) for column in SHIFTS] == ["fixed-color", "rand-color"]
    assert shift_of("square", "rand") == "dynamic"
    assert shift_of("aloha-transfer", "rand") == "rotation"


# Budgets


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("500k", (500_000, None)),
        ("2M", (2_000_000, None)),
        ("0.5m", (500_000, None)),
        (" 1234 ", (1234, None)),
        ("10min", (None, 600.0)),
        ("1.5 h", (None, 5400.0)),
    ],
)
def test_budgets_are_images_or_seconds(text: str, budget: tuple[int | None, float | None]) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "0", "0k", "-5", "much", "10s", "5kk", "1e5", "k"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="such as 500k, 2M, 10min or 1h, got"):
        parse_budget(text)


@given(st.integers(1, 3_000_000), st.sampled_from(["", "k", "K", "m", "M"]))
def test_budgets_in_images_are_exact(number: int, unit: str) -> None:
    assert parse_budget(f"{number}{unit}") == (number * {"": 1, "k": 1000, "m": 10**6}[unit.lower()], None)


@pytest.mark.parametrize("name", [*BASELINES, "class+0.1*byol", "class[views=2]", "dynamo[context=4]"])
@given(images=st.integers(1, 10**6), steps=st.integers(2, 40_000), factor=st.sampled_from([1.0, 4.0]))
def test_a_training_sees_its_budget_to_within_one_batch(name: str, images: int, steps: int, factor: float) -> None:
    cell = Cell(parse_method(name), factor=factor)
    config = run_config(cell, protocol(images=images), steps, None)
    per_step = images_per_step(config, steps)
    seen = config.pretrain.steps(steps) * per_step
    assert round(images * factor) <= seen < round(images * factor) + per_step
    # A number of images that is given counts instead.
    other = run_config(cell, protocol(images=images), steps, 3e-4, 777)
    assert 777 <= other.pretrain.steps(steps) * per_step < 777 + per_step
    assert other.pretrain.optimizer.learning_rate == 3e-4


def test_roll_outs_on_the_way_are_spread_over_a_training_and_favour_no_temperature() -> None:
    cell = Cell(parse_method("class"))
    made = run_config(cell, protocol(images=1000, evaluations=5, evaluation_starts=7), 500, None)
    assert made.pretrain.intermediates(1000) == [200, 400, 600, 800, 1000]
    assert made.intermediate_episodes == 7
    assert made.intermediate_retrieval == replace(made.retrieval, k=1)
    assert run_config(cell, protocol(images=1000), 500, None).pretrain.intermediates(1000) == []


@pytest.mark.parametrize("name", [*(name for name in OBJECTIVES if name != "none"), "class+byol", "class[views=2]"])
def test_images_are_counted_as_the_encoder_sees_them(name: str, tmp_path: Path) -> None:
    demonstrations = fakes.demonstrations()
    n = demonstrations.num_steps
    config = run_config(Cell(parse_method(name)), protocol(images=100), n, None)
    trainer = Trainer(demonstrations, config.pretrain, tmp_path)
    rows = next(trainer.batches(0))
    assert images_per_step(config, n) == len(rows) * trainer.images_per_row()
    assert trainer.steps == config.pretrain.steps(n)
    assert 100 <= trainer.steps * images_per_step(config, n) < 100 + images_per_step(config, n)


@pytest.mark.parametrize("head", ["mlp", "dp"])
@pytest.mark.parametrize(
    ("method", "images", "start"),
    [
        *[("class", 300, "run"), ("byol", 300, "run")],
        *[("random", 2300, "scratch"), ("imagenet", 2300, "run"), ("equivar", 2300, "scratch")],
    ],
)
def test_heads_of_what_is_not_pre_trained_see_the_whole_budget(head: str, method: str, images: int, start: str) -> None:
    cell = Cell(parse_method(method), head, augmentation="hsv", seed=3, factor=2.0)
    made, found = head_config(cell, protocol(), 5000)
    seen = made.steps(5000) * made.batch_size
    assert images <= seen < images + made.batch_size
    assert (found, made.seed) == (start, 3)
    assert made.augment is not None
    assert made.augment.color == "hsv"


def test_heads_of_one_table_are_of_one_size() -> None:
    heads = [head_config(Cell(parse_method(m), "dp"), replace(protocol(), preset="pusht-cpu"), 500)[0] for m in METHODS]
    assert len({str(made.head) for made in heads}) == 1


# Protocol


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seconds": 5.0}, "one of the two, got images 1000 and seconds 5.0"),
        ({"images": None}, "one of the two, got images None and seconds None"),
        ({"starts": 0}, "starts, .* >= 1"),
        ({"heldout": -1}, "heldout and evaluations >= 0"),
        ({"rates": ()}, "at least one rate and tau"),
        ({"rates": (0.0,)}, r"rates > 0, taus >= 0 and k >= 1, got \(0.0,\)"),
        ({"taus": (-1.0,)}, r"rates > 0, taus >= 0 and k >= 1"),
        ({"k": 0}, r"k >= 1, got .* and 0"),
        ({"tuning_seed": 300_001}, "starts 300001..300002 are to choose settings with, and 300000..300001 to evaluate"),
        ({"first_seed": 199_999}, "they overlap"),
    ],
)
def test_impossible_protocols_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        protocol(**changes)


def test_unknown_presets_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'quick'"):
        replace(protocol(), preset="quick")


@given(st.integers(0, 400), st.integers(1, 100), st.integers(0, 400), st.integers(1, 100))
def test_no_start_is_both_for_choosing_and_for_evaluating(first: int, starts: int, tuning: int, tries: int) -> None:
    apart = not set(range(first, first + starts)) & set(range(tuning, tuning + tries))
    settings = {"first_seed": first, "starts": starts, "tuning_seed": tuning, "tuning_starts": tries}
    if apart:
        protocol(**settings)
    else:
        with pytest.raises(ConfigError, match="overlap"):
            protocol(**settings)


def test_no_start_is_one_that_presets_were_explored_on() -> None:
    made = protocol(starts=100)
    assert EvaluationConfig().first_seed == runner.EXPLORED
    assert made.first_seed >= runner.EXPLORED + 100_000


@pytest.mark.parametrize(
    ("preset", "written", "changes", "expected"),
    [
        ("debug", "class", {}, [(1, None), (8, 0.01)]),
        ("square-cpu", "class", {}, [(1, None), (16, 0.01)]),  # whose k is 1
        ("square-cpu", "class", {"k": 5}, [(1, None), (5, 0.01)]),
        ("debug", "class[k=3]", {"k": 5}, [(1, None), (3, 0.01)]),
        ("debug", "class[k=1]", {}, [(1, None)]),
        ("debug", "class", {"taus": (0.0, 0.01, 0.0, 0.01)}, [(1, None), (8, 0.01)]),
    ],
)
def test_retrieval_is_chosen_among_settings_that_differ(
    preset: str, written: str, changes: dict[str, Any], expected: list[tuple[int, float | None]]
) -> None:
    found = replace(protocol(**changes), preset=preset).retrievals(parse_method(written))
    assert [(settings["k"], settings.get("temperature")) for settings in found] == expected


def test_which_rates_are_searched_with_which_cell() -> None:
    def search(name: str, head: str) -> tuple[str, list[float]] | None:
        found = searched(Cell(parse_method(name), head, "rand", "hsv", 3, 4.0))
        return found and (found.name, rates_of(found, made))

    made = replace(protocol(), preset="pusht-cpu")
    assert search("byol", "rep") == search("byol", "dp") == ("byol-fixed-none-seed0", [1e-3, 2e-3])
    # Random weights have nothing that a low rate would preserve.
    assert search("random", "mlp") == ("random-fixed-none-seed0-mlp", [1e-4, 1e-3])
    assert search("random", "mlp-rep") == search("random", "mlp")
    assert search("equivar", "dp-rep") == search("equivar", "dp") == ("equivar-fixed-none-seed0-dp", [1e-4, 1e-3])
    for name, head in (("random", "rep"), ("imagenet", "mlp"), ("r3m", "dp"), ("class", "dp"), ("class", "rep")):
        assert search(name, head) is None
    for rate in (1e-4, 1e-3):
        head = head_config(Cell(parse_method("random"), "mlp"), made, 500, rate)[0]
        assert (head.optimizer.encoder_lr, head.optimizer.head_lr) == (rate, 1e-3)


# The runner, with stubs of what takes long


class Killed(BaseException):
    """What no handler of errors sees, as SIGKILL."""


class Stubs:
    """Stand-ins of training and evaluation that record what was asked for, and die at a given call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.die_at: int | None = None
        self.error: Exception | None = None
        self.diverging: set[float] = set()
        monkeypatch.setattr(runner, "representation", self.compute)
        monkeypatch.setattr(runner, "head_cell", self.compute)
        monkeypatch.setattr(runner, "head_retrieval", self.compute)
        monkeypatch.setattr(runner, "try_rate", self.try_rate)
        monkeypatch.setattr(runner, "write_json", self.write)

    def event(self, name: str) -> None:
        self.calls.append(name)
        if self.die_at is not None and len(self.calls) == self.die_at:
            raise Killed

    def write(self, path: Path, value: Any) -> None:
        write_json(path, value)
        self.event("write")

    def compute(self, bench: trainings.Bench, cell: Cell, rate: float | None) -> dict[str, Any]:
        self.event(f"{cell.name} at {rate}")
        if self.error is not None:
            raise self.error
        return record(cell, rate) | {"folder": bench.address(bench.run(cell))}

    def try_rate(self, _: trainings.Bench, cell: Cell, rate: float) -> dict[str, Any]:
        self.event(f"try {cell.name} at {rate:g}")
        diverged = rate in self.diverging
        row = {"method": cell.method.name, "written": cell.method.written, "head": cell.head, "learning_rate": rate}
        found = {"successes": 0 if diverged else 1, "starts": 2, "score": None if diverged else rate}
        return row | found | {"diverged": diverged}

    @property
    def computed(self) -> list[str]:
        return [call for call in self.calls if call != "write"]


def record(cell: Cell, rate: float | None) -> dict[str, Any]:
    learns = cell.method.pretrained or cell.head != "rep"
    return records.blank(cell, "done") | {
        "starts": [300_000, 300_001],
        "metric": "coverage",
        "success": {"coverage>0.90": [1, 0], "iou>0.90": [0, 0]},
        "score": [0.95, 0.1],
        "learning_rate": rate,
        "images": 1000 if learns else 0,
        "training_seconds": 5.0 if learns else 0.0,
        "total_seconds": 10.0,
        "own_seconds": 10.0,
    }


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> Stubs:
    return Stubs(monkeypatch)


def undated(results: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on when it was computed."""
    cells = {name: {k: v for k, v in cell.items() if k != "created"} for name, cell in results["cells"].items()}
    return results | {"cells": cells}


def run(folder: Path, data: Path, methods: Sequence[str], **options: Any) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    changes = options.pop("changes", {})
    place = {key: options.pop(key) for key in ("results_path",) if key in options}
    grid = plan(methods, **{"columns": ("fixed",)} | options)
    return run_table(folder, grid, protocol(data, **changes), quiet=True, say=said.append, **place), said


def test_every_cell_once_and_tuned_once_for_each_baseline(tmp_path: Path, data: Path, stubs: Stubs) -> None:
    results, said = run(tmp_path, data, ["random", "byol", "class"], columns=SHIFTS, heads=("rep", "mlp"), seeds=2)
    tries = [call for call in stubs.computed if call.startswith("try")]
    assert tries == [
        *("try byol-fixed-none-seed0 at 0.001", "try byol-fixed-none-seed0 at 0.002"),
        *("try random-fixed-none-seed0-mlp at 0.0001", "try random-fixed-none-seed0-mlp at 0.001"),
    ]
    assert len(stubs.computed) == 3 * 2 * 2 * 2 + len(tries)
    rates = {"byol": {None: 0.002}, "random": {"mlp": 0.001}, "class": {}}
    for cell in results["cells"].values():
        known = rates[cell["method"]]
        assert cell["learning_rate"] == known.get(cell["head"], known.get(None))
        assert {"hardware", "versions", "created"} <= cell.keys()
    assert [(row["learning_rate"], row["chosen"]) for row in results["tuning"]] == [
        *((0.001, False), (0.002, True), (0.0001, False), (0.001, True))
    ]
    assert all(cell["status"] == "done" for cell in results["cells"].values())
    assert results["protocol"]["criteria"] == ["coverage>0.90", "iou>0.90"]
    assert results["protocol"]["criterion"] == "coverage>0.90"
    assert results["protocol"]["metric"] == "coverage"
    assert said[0] == "random-fixed-none-seed0 (1 of 24)"
    assert said[1].startswith("  1/2 (9 to 91 %) in 0:00:0")
    # One training took 10 s: 23 and 22 cells are to come.
    assert said[-2].endswith("(24 of 24, some 0:00:10 left)")
    calls = len(stubs.calls)
    again, said = run(tmp_path, data, ["random", "byol", "class"], columns=SHIFTS, heads=("rep", "mlp"), seeds=2)
    assert (again, said) == (results, [])
    assert set(stubs.calls[calls:]) == {"write"}


def test_killed_anywhere_it_goes_on(tmp_path: Path, data: Path, stubs: Stubs) -> None:
    methods = ["random", "byol", "class"]
    whole, _ = run(tmp_path / "whole", data, methods)
    events, number = list(stubs.calls), len(stubs.calls)
    for at in range(1, number + 1):
        folder = tmp_path / str(at)
        stubs.calls, stubs.die_at = [], at
        with pytest.raises(Killed):
            run(folder, data, methods)
        assert stubs.calls == events[:at]
        kept = read_json(folder / "results.json") if (folder / "results.json").exists() else {"cells": {}}
        done = {name for name, cell in kept["cells"].items() if cell["status"] == "done"}
        stubs.calls, stubs.die_at = [], None
        results, _ = run(folder, data, methods)
        assert undated(results) == undated(whole)
        # What was kept is not computed again.
        assert not {call.split(" at ")[0] for call in stubs.computed} & done
        tried = {f"try byol-fixed-none-seed0 at {row['learning_rate']:g}" for row in kept.get("tuning", ())}
        assert not tried & set(stubs.computed)


@pytest.mark.usefixtures("stubs")
def test_another_protocol_is_refused_with_both_values(tmp_path: Path, data: Path) -> None:
    run(tmp_path, data, ["class"])
    for changes, message in (
        ({"images": 2000}, "protocol.images = 1000, now it is 2000"),
        ({"rates": (1e-3,)}, r"protocol.rates = \[0.001, 0.002\], now it is \[0.001\]"),
        ({"starts": 1}, "has 2 initial states for each cell, and 1 were asked for. Ask for at least as many"),
        ({"heldout": 1}, "protocol.heldout = 2, now it is 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(tmp_path, data, ["class"], changes=changes)
    # What decides nothing about success may differ.
    run(tmp_path, data, ["class"], changes={"probe": False, "evaluations": 3})


@pytest.mark.usefixtures("stubs")
def test_other_data_are_refused_and_moved_ones_are_not(tmp_path: Path, data: Path) -> None:
    run(tmp_path, data, ["class"])
    before = read_json(tmp_path / "results.json")["data"]["fingerprint"]
    other = fakes.write_zarr(tmp_path / "other" / "tiny.zarr", fakes.demonstrations(1, 96, fakes.LENGTHS))
    with pytest.raises(ConfigError, match=f"data.fingerprint = '{before}', now it is '[0-9a-f]+'. Choose another"):
        run(tmp_path, other, ["class"])
    same = fakes.write_zarr(tmp_path / "moved" / "tiny.zarr", fakes.demonstrations(0, 96, fakes.LENGTHS))
    assert run(tmp_path, same, ["class"])[1] == []
    write_json(tmp_path / "results.json", {"format": "shopping-list"})
    with pytest.raises(DataError, match="its format is 'shopping-list', expected 'classact-table1-1'"):
        run(tmp_path, data, ["class"])


@pytest.mark.usefixtures("stubs")
def test_results_of_older_versions_are_continued(tmp_path: Path, data: Path) -> None:
    run(tmp_path, data, ["random", "class"])
    results = read_json(tmp_path / "results.json")
    for cell in results["cells"].values():
        del cell["factor"], cell["own_seconds"]
    write_json(tmp_path / "results.json", results)
    _, said = run(tmp_path, data, ["random", "class"], seeds=2)
    assert said[0] == "random-fixed-none-seed1 (3 of 4, some 0:00:20 left)"


@pytest.mark.parametrize("method", ["imagenet", "r3m"])
def test_weights_that_do_not_fit_are_missing_cells(tmp_path: Path, data: Path, stubs: Stubs, method: str) -> None:
    results, said = run(tmp_path, data, [method, "class"], heads=("rep", "dp"))
    missing = [cell for cell in results["cells"].values() if cell["method"] == method]
    assert [cell["status"] for cell in missing] == ["missing", "missing"]
    reason = f"init '{method}' exists for the encoder 'resnet18' only; use init 'scratch' here."
    assert {cell["reason"] for cell in missing} == {reason}
    assert f"  missing: {reason}" in said
    assert len([cell for cell in results["cells"].values() if cell["status"] == "done"]) == 2
    # Once the weights are there, the same command fills the gap.
    before = len(stubs.computed)
    run(tmp_path, data, [method, "class"], heads=("rep", "dp"))
    assert stubs.computed[before:] == []


def test_missing_packages_are_missing_cells_and_other_errors_are_not(tmp_path: Path, data: Path, stubs: Stubs) -> None:
    stubs.error = MissingDependencyError("the package diffusers is missing: install classact[heads].")
    results, _ = run(tmp_path, data, ["class"])
    assert results["cells"]["class-fixed-none-seed0"]["reason"] == str(stubs.error)
    stubs.error = ConfigError("nothing fits")
    with pytest.raises(ConfigError, match="cell class-fixed-none-seed0: nothing fits"):
        run(tmp_path, data, ["class"])
    stubs.error = ValueError("Out of range float values are not JSON compliant: nan")
    with pytest.raises(DataError, match="cell class-fixed-none-seed0: Out of range"):
        run(tmp_path, data, ["class"])
    assert read_json(tmp_path / "results.json")["cells"]["class-fixed-none-seed0"]["status"] == "missing"
    stubs.error = None
    results, _ = run(tmp_path, data, ["class"])
    assert results["cells"]["class-fixed-none-seed0"]["status"] == "done"


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        (["class", "class[horizon=0]"], {}, r"cell class-horizon-0--fixed-none-seed0: expected a horizon of at least"),
        (["class", "class[min_actions=99]"], {}, "1 <= min_actions <= horizon, got min_actions 99"),
        (["class"], {"augmentations": ("rainbow",)}, "rainbow"),
        (["class"], {"demonstrations": (5,)}, "5 demonstrations are to be learned from, but tiny has 6, of which 2"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(
    tmp_path: Path, data: Path, stubs: Stubs, methods: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, data, methods, **options)
    assert stubs.calls == []
    assert not (tmp_path / "results.json").exists()


def test_other_processes_cells_are_kept(tmp_path: Path, data: Path, stubs: Stubs, monkeypatch: Any) -> None:
    compute, deep = stubs.compute, False

    def interleaved(bench: trainings.Bench, cell: Cell, rate: float | None) -> dict[str, Any]:
        nonlocal deep
        if not deep:
            deep = True
            run(tmp_path, data, ["random"])  # another process, while this one computes CLASS
        return compute(bench, cell, rate)

    monkeypatch.setattr(runner, "representation", interleaved)
    results, _ = run(tmp_path, data, ["class", "random"])
    assert {cell["status"] for cell in results["cells"].values()} == {"done"}
    assert sorted(stubs.computed) == ["class-fixed-none-seed0 at None", "random-fixed-none-seed0 at None"]


def test_a_training_that_diverges_does_not_stop_the_table(tmp_path: Path, data: Path, stubs: Stubs) -> None:
    stubs.error = ClassactError(f"the loss became nan. The steps of its batch are in {tmp_path}/cells/x/diverged.json.")
    results, said = run(tmp_path, data, ["class", "random"])
    found = results["cells"]["class-fixed-none-seed0"]
    reason = "the loss became nan. The steps of its batch are in cells/x/diverged.json."
    assert (found["status"], found["reason"]) == ("failed", reason)
    assert f"  failed: {reason}" in said
    assert len(stubs.computed) == 2
    page = read_results(tmp_path / "results.json")
    assert page.cells[0].why == f"failed: {reason}"
    stubs.error = None
    results, _ = run(tmp_path, data, ["class", "random"])
    assert {cell["status"] for cell in results["cells"].values()} == {"done"}
    # What would be the same for other cells, or was asked for, stops it.
    for error in (StorageError("disk full"), TrainingInterrupted("stopped")):
        stubs.error = error
        with pytest.raises(type(error)):
            run(tmp_path, data, ["class[metric=l2]"])


def test_rates_that_diverge_are_not_chosen(tmp_path: Path, data: Path, stubs: Stubs) -> None:
    stubs.diverging = {0.002}
    results, _ = run(tmp_path, data, ["byol"])
    assert results["cells"]["byol-fixed-none-seed0"]["learning_rate"] == 0.001
    assert [(row["diverged"], row["chosen"]) for row in results["tuning"]] == [(False, True), (True, False)]
    assert "diverged" in comparison_markdown(read_results(tmp_path / "results.json"))
    stubs.diverging = {0.001, 0.002}
    results, _ = run(tmp_path, data, ["tcn", "class"])
    assert results["cells"]["class-fixed-none-seed0"]["status"] == "done"
    assert results["cells"]["tcn-fixed-none-seed0"]["reason"] == (
        "training diverged with all learning rates that were tried: 0.001, 0.002."
    )


def test_a_try_that_diverges_is_a_row(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = trainings.Bench(tmp_path, protocol(data), {None: 77}, tmp_path, quiet=True)
    cell = Cell(parse_method("byol"))

    def diverge(self: Any) -> None:
        write_json(self.run.root / "diverged.json", {"step": 3})
        raise ClassactError("the loss became nan")

    monkeypatch.setattr(trainings.Pipeline, "pretrain", diverge)
    row = cells.try_rate(bench, cell, 1e9)
    assert (row["diverged"], row["successes"], row["learning_rate"], row["head"]) == (True, 0, 1e9, "rep")
    # Neither Ctrl-C nor a lack of memory is a divergence, whatever an earlier call has left there.
    monkeypatch.setattr(trainings.Pipeline, "pretrain", lambda _: (_ for _ in ()).throw(TrainingInterrupted("stopped")))
    with pytest.raises(TrainingInterrupted):
        cells.try_rate(bench, cell, 1e9)
    monkeypatch.setattr(trainings.Pipeline, "pretrain", lambda _: (_ for _ in ()).throw(ClassactError("out of memory")))
    with pytest.raises(ClassactError, match="out of memory"):
        cells.try_rate(bench, cell, 2e9)


@pytest.mark.usefixtures("stubs")
def test_another_method_of_the_same_name_is_refused(tmp_path: Path, data: Path) -> None:
    results, _ = run(tmp_path, data, ["class+byol"])
    assert results["cells"]["class-byol-fixed-none-seed0"]["written"] == "class+byol"
    results["cells"]["class-byol-fixed-none-seed0"]["written"] = "class-byol"
    write_json(tmp_path / "results.json", results)
    with pytest.raises(
        ConfigError, match=r"is of method 'class-byol', now it would be of 'class\+byol'. Choose another"
    ):
        run(tmp_path, data, ["class+byol"])


@pytest.mark.usefixtures("stubs")
def test_tables_say_what_was_decided_before(tmp_path: Path, data: Path) -> None:
    results, _ = run(tmp_path, data, ["class"])
    preset, rates = results["protocol"]["notes"]
    for words in ("'debug'", "from seed 100,000 on", "from 300,000 on", "k = 8", "τ = 0.005", "learning rate 0.002"):
        assert words in preset
    for words in ("under the fixed appearance", "without colour augmentation", "100 images, 10% of the budget"):
        assert words in rates


@pytest.mark.usefixtures("stubs")
def test_what_is_not_a_number_is_null(tmp_path: Path, data: Path, monkeypatch: Any) -> None:
    def compute(_: Any, cell: Cell, rate: float | None) -> dict[str, Any]:
        nothing = {"score": [math.nan, 0.5], "loss": [[1, 2.0, math.inf]], "latency_ms": {"median": math.nan}}
        return record(cell, rate) | nothing | {"probe": {"x": {"value": math.nan, "low": None, "high": 1.0}}}

    monkeypatch.setattr(runner, "representation", compute)
    results, _ = run(tmp_path, data, ["class"])
    assert results["cells"]["class-fixed-none-seed0"]["score"] == [None, 0.5]
    (cell,) = read_results(tmp_path / "results.json").cells
    assert (cell.mean_score, cell.loss, cell.latency_ms, cell.probe) == (0.5, (), None, {})


def test_scores_that_are_not_numbers_are_worse_than_any() -> None:
    rows = [{"successes": 1, "score": None}, {"successes": 1, "score": -0.5}, {"successes": 0, "score": 9.0}]
    assert records.best_of(rows) == 1
    assert records.best_of(rows[::2]) == 0


# A forked process need not import torch again; it may use nothing that has threads.
FORKED = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


def _processes(start: str, target: Any, *arguments: tuple[Any, ...]) -> None:
    made = [mp.get_context(start).Process(target=target, args=some) for some in arguments]  # type: ignore[attr-defined]
    for process in made:
        process.start()
    for process in made:
        process.join(120)
    assert [process.exitcode for process in made] == [0] * len(made)


@FORKED
def test_no_process_loses_anothers_cells(tmp_path: Path) -> None:
    count = 40
    _processes("fork", table1_runner.keep_many, *((str(tmp_path / "r.json"), part, count) for part in range(3)))
    found = read_json(tmp_path / "r.json")
    assert len(found["cells"]) == 3 * count
    assert {cell["status"] for cell in found["cells"].values()} == {"done"}
    assert len(found["tuning"]) == 3 * count


@FORKED
def test_processes_share_a_table_and_compute_nothing_twice(tmp_path: Path, data: Path) -> None:
    asked = protocol(data)
    known = runner._data(asked, quiet=True)
    known.metadata()
    _processes("fork", table1_runner.share, *((str(tmp_path), asked, known, 1 + part) for part in range(3)))
    results = read_json(tmp_path / "results.json")
    assert {cell["status"] for cell in results["cells"].values()} == {"done"}
    calls = [row["what"] for row in read_jsonl(tmp_path / "calls.jsonl")]
    assert sorted(calls) == sorted(
        [
            *results["cells"],
            *(f"try {m}-fixed-none-seed0 at {rate:g}" for m in ("byol", "tcn") for rate in (1e-3, 2e-3)),
        ]
    )
    assert len({row["process"] for row in read_jsonl(tmp_path / "calls.jsonl")}) > 1


@FORKED
def test_claims_are_released_when_a_process_dies(tmp_path: Path) -> None:
    process = mp.get_context("fork").Process(target=table1_runner.die_with_a_claim, args=(str(tmp_path / "run"),))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    path = lock_of(tmp_path / "run")
    with locked(path, wait=False), pytest.raises(BusyError, match=r"\.run\.lock is locked"), locked(path, wait=False):
        pass


@pytest.mark.usefixtures("stubs")
def test_folders_are_found_from_the_results_file(tmp_path: Path, data: Path) -> None:
    elsewhere = tmp_path / "tables" / "mine.json"
    for folder, path in ((tmp_path / "a", None), (tmp_path / "b", elsewhere)):
        results, _ = run(folder, data, ["class"], results_path=path)
        found = read_results(path or folder / "results.json")
        (cell,) = found.cells
        assert (found.path.parent / cell.folder).resolve() == (folder / "cells" / cell.name).resolve()
    assert results["cells"]["class-fixed-none-seed0"]["folder"] == "../b/cells/class-fixed-none-seed0"
    assert read_json(tmp_path / "a" / "results.json")["cells"]["class-fixed-none-seed0"]["folder"] == (
        "cells/class-fixed-none-seed0"
    )


@pytest.mark.parametrize(
    "stop", [KeyboardInterrupt(), TrainingInterrupted("stopped at step 3 of 9; the state is saved")]
)
def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, data: Path, stubs: Stubs, stop: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    stubs.error = stop  # type: ignore[assignment]
    given = ["--out", str(tmp_path), "--data", str(data), "--preset", "debug", "--heldout", "2"]
    given += ["--methods", "class", "class[metric=l2]", "--shifts", "fixed", "--starts", "2", "--quiet"]
    assert command(Flags, main, given) == 130
    assert f" {' '.join(given)}".replace("class[metric=l2]", "'class[metric=l2]'") in (capsys.readouterr().err)
    stubs.error = None
    assert command(Flags, main, given) == 0
    printed = capsys.readouterr().out
    assert f"Page:    {tmp_path / 'table1.html'}" in printed
    assert "CLASS, metric=l2" in (tmp_path / "table1.md").read_text()


# A budget in time, with a stub of the training


class _Head:
    def __init__(self, run: Run, train: Callable[[Any], None]) -> None:
        self.folder, self._train = Run(run.head("mlp")), train

    def train(self) -> None:
        self._train(self)


def test_a_budget_in_time_becomes_images_once(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = [100, 400]  # steps per second; the second training would find the machine idle
    trained: list[str] = []

    def pretrain(self: Any) -> None:
        trained.append(self.run.root.name)
        speed = speeds.pop(0)
        for step in range(1, 11):
            # Compiling takes long at first.
            append_jsonl(self.run.train_log, {"step": step, "steps": 10, "seconds": 60 + step / speed})

    monkeypatch.setattr(trainings.Pipeline, "pretrain", pretrain)
    asked = protocol(data, images=None, seconds=30.0)
    bench = trainings.Bench(tmp_path, asked, {None: 500, 4: 90}, tmp_path, quiet=True)
    cell = Cell(parse_method("class"))
    per_step = images_per_step(run_config(cell, asked, 500, None, 1000), 500)
    assert trainings.budget(bench, cell) == 30 * 100 * per_step
    # All of its cells, in all later calls.
    assert trainings.budget(bench, replace(cell, column="rand", seed=2)) == 30 * 100 * per_step
    assert trainings.budget(bench, replace(cell, factor=4.0, demonstrations=4)) == 120 * 100 * per_step
    assert trained == ["class-fixed-none-seed0"]
    assert trainings.budget(bench, Cell(parse_method("byol"))) != trainings.budget(bench, cell)
    assert trained == ["class-fixed-none-seed0", "byol-fixed-none-seed0"]
    assert trainings.budget(bench, Cell(parse_method("random"))) is None
    # Of a head without pre-training, the head's speed counts.
    heads: list[str] = []

    def train(self: Any) -> None:
        heads.append(self.folder.root.name)
        for step in range(1, 11):
            append_jsonl(self.folder.train_log, {"step": step, "steps": 10, "seconds": step / 50})

    monkeypatch.setattr(trainings, "trained", lambda *_, **__: None)
    monkeypatch.setattr(trainings, "head_pipeline", lambda _, run, *__: _Head(run, train))
    head = Cell(parse_method("random"), "mlp")
    batch = head_config(head, asked, 500, images=1)[0].batch_size
    assert trainings.budget(bench, head) == trainings.budget(bench, replace(head, column="rand")) == 30 * 50 * batch
    assert heads == ["mlp"]
    assert trainings.budget(bench, replace(cell, head="mlp")) == trainings.budget(bench, cell)
    assert trainings.budget(replace(bench, protocol=protocol(data)), cell) is None


def test_seconds_count_earlier_calls(tmp_path: Path) -> None:
    assert records.spent(Run(tmp_path)) == 0.0
    for step in (1, 2):
        append_jsonl(tmp_path / "train.jsonl", {"step": step, "seconds": 7.5 * step})
    assert records.spent(Run(tmp_path)) == 15.0


def test_curves_are_short_and_without_duplicates(tmp_path: Path) -> None:
    log = Run(tmp_path)
    for count in (0, 1, 2, records.POINTS - 1, records.POINTS, 61, 119, 500):
        log.train_log.unlink(missing_ok=True)
        for step in range(1, count + 1):
            append_jsonl(log.train_log, {"step": step, "seconds": float(step), "loss": 1.0})
        rows = records.loss_curve(log, 10)
        images = [row[0] for row in rows]
        assert len(rows) == min(count, records.POINTS)
        assert images == sorted(set(images))
        assert images[:1] + images[-1:] == ([10, 10 * count] if count else [])


def test_curves_of_heads_go_on_from_pre_training(tmp_path: Path) -> None:
    log = Run(tmp_path)
    append_jsonl(log.train_log, {"step": 5, "seconds": 2.0, "loss": 1.0})
    log.add_intermediate([fakes.intermediate(stage="heads/mlp", step=5)])
    assert records.loss_curve(log, 10, (1000, 60.0)) == [[1050, 62.0, 1.0]]
    assert records.success_curve(log, "heads/mlp", 10, log, (1000, 60.0)) == [[1050, 62.0, 1, 2]]
