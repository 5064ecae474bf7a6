from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import fakes
from classact.cli.compare import Compare, flags_of, objective_runs
from classact.cli.flags import changed, parse
from classact.cli.main import main
from classact.data.readers import read_demonstrations
from classact.errors import ConfigError, DataError
from classact.evaluation import rollout
from classact.run import compare as module
from classact.run.compare import Outcomes, compare, read_outcomes, read_runs
from classact.run.config import RunConfig
from classact.run.evaluate import evaluate_run
from classact.run.folder import Run
from classact.run.pretrain import Pipeline
from classact.run.probe import probe_file
from classact.similarity import SimilarityConfig
from classact.train.representation import Trainer
from classact.utils.codec import to_json, without
from classact.utils.ranks import Ranks
from classact.utils.statistics import wilson_interval
from classact.utils.storage import read_json, write_json
from html_pages import ADDRESSES, Page

WRITTEN = ("class", "class[queue=32]", "none")


def command(data: Path, out: Path, *more: str) -> list[str]:
    flags = ["compare", "--data", str(data), "--out", str(out), "--preset", "debug", "--heldout", "2", "--quiet"]
    return [*flags, "--epochs", "0.5", "--test-episodes", "3", "--workers", "1", "--objectives", *WRITTEN, *more]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "make_simulator", fakes.Short)
    monkeypatch.setattr(rollout, "Worker", fakes.Here)
    monkeypatch.setattr(module, "ASKED", {"queries": 20, "pairs": 200})
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.write_zarr(tmp_path_factory.mktemp("data") / "tiny.zarr", fakes.demonstrations(0, 96, fakes.LENGTHS))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "make_simulator", fakes.Short)
        patch.setattr(rollout, "Worker", fakes.Here)
        patch.setattr(module, "ASKED", {"queries": 20, "pairs": 200})
        assert main(command(data, out, "--seeds", "2")) == 0
    return out


def folders(out: Path) -> list[str]:
    return sorted(path.parent.name for path in out.glob("*/config.json"))


# Objectives on one's own data


def test_each_objective_and_seed_is_an_ordinary_run(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert folders(whole) == [f"{name}-seed{seed}" for name in ("class-queue-32", "class", "none") for seed in (0, 1)]
    found = read_json(whole / "comparison.json")
    assert [(run["name"], run["seed"]) for run in found["runs"]] == [(name, s) for s in (0, 1) for name in WRITTEN]
    for run in found["runs"]:
        settings = Run(Path(run["run"])).read_config()["settings"]
        assert settings["pretrain"]["seed"] == run["seed"]
        assert settings["pretrain"]["objective"].get("queue") == {"class": 0, WRITTEN[1]: 32, "none": None}[run["name"]]
        assert set(run["probe"]) == set(found["runs"][0]["probe"])
        assert len(run["initial_states"]) == 3
    assert [(line["name"], line["criterion"]) for line in found["lines"]] == [
        (name, criterion) for criterion in fakes.CRITERIA for name in WRITTEN
    ]
    assert [line["p"] is None for line in found["lines"]] == [True, False, False] * 3
    assert "none was tuned on these data" in found["notes"][0]
    assert main(["report", str(whole / "none-seed1")]) == 0
    assert "report.html" in capsys.readouterr().out


def test_the_page_needs_no_network_and_shows_every_number(whole: Path) -> None:
    page = Page((whole / "comparison.html").read_text(encoding="utf-8"))
    addresses = [a[name] for _, a in page.tags for name in ADDRESSES if a.get(name)]
    assert {address.split(":")[0] for address in addresses} <= {"data"}
    assert page.sections() == {"success", "trainings"}
    for line in read_json(whole / "comparison.json")["lines"]:
        assert line["name"] in page.text
        assert f"{100 * line['success']['high']:.1f}%" in page.text
    assert "dtw_error@1" in page.text


def test_stopped_anywhere_the_same_command_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], whole: Path
) -> None:
    trained: list[str] = []
    rolled_out: list[str] = []
    fit, evaluate = Trainer.fit, Pipeline.evaluate

    def fit_once(self: Trainer, *arguments: Any) -> Any:
        trained.append(Path(str(self.folder)).name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return fit(self, *arguments)

    def evaluate_once(self: Pipeline) -> Any:
        rolled_out.append(self.run.root.name)
        if len(rolled_out) == 2:
            raise KeyboardInterrupt
        return evaluate(self)

    monkeypatch.setattr(Trainer, "fit", fit_once)
    monkeypatch.setattr(Pipeline, "evaluate", evaluate_once)
    asked = command(data, tmp_path)
    for _ in range(2):
        assert main(asked) == 130
        assert "Continue with: classact compare" in capsys.readouterr().err
        assert not (tmp_path / "comparison.json").exists()
    assert main(asked) == 0
    assert trained == ["class-seed0", "class-queue-32-seed0", "class-queue-32-seed0"]
    assert rolled_out == ["class-seed0", "class-queue-32-seed0", "class-queue-32-seed0", "none-seed0"]
    # Nothing is computed again, and the result is that of a command that was not stopped.
    assert main(asked) == 0
    assert (len(trained), len(rolled_out)) == (3, 4)
    runs = [read_json(out / "comparison.json")["runs"] for out in (tmp_path, whole)]
    assert [run["success"] for run in runs[0]] == [run["success"] for run in runs[1] if run["seed"] == 0]
    assert [run["probe"] for run in runs[0]] == [run["probe"] for run in runs[1] if run["seed"] == 0]


def test_more_episodes_are_rolled_out_when_asked_for(data: Path, whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "copy"))
    arguments = command(data, out)
    arguments[arguments.index("--test-episodes") + 1] = "4"
    assert main(arguments) == 0
    assert {len(run["initial_states"]) for run in read_json(out / "comparison.json")["runs"]} == {4}


def test_runs_that_are_there_keep_how_they_are_evaluated_and_further_ones_are_evaluated_alike(
    data: Path, tmp_path: Path
) -> None:
    def asked(*more: str) -> dict[str, RunConfig]:
        flags = parse(Compare, ["--data", str(data), "--out", str(tmp_path), *more], "classact compare")
        made = objective_runs(flags, Ranks())
        return {name: make.args[1] for (name, _), make in made.items()}  # type: ignore[attr-defined]

    fresh = asked("--preset", "debug")
    assert {(one.heldout, one.evaluation.episodes) for one in fresh.values()} == {(10, 50)}
    card = tmp_path / "of-a-file.json"
    write_json(card, to_json(changed(fresh["class"], {"heldout": 3, "evaluation.episodes": 7})))
    found = asked("--config", str(card))
    assert {(one.heldout, one.evaluation.episodes) for one in found.values()} == {(3, 7)}
    was = changed(fresh["class"], {"heldout": 2, "evaluation.episodes": 3, "evaluation.max_steps": 9})
    run = Run(tmp_path / "class-seed0")
    write_json(run.config, {"settings": to_json(was)})
    write_json(run.summary, [])
    found = asked("--preset", "debug", "--objectives", "byol", "class")
    wanted = replace(was.evaluation, workers=0)
    assert {(one.heldout, one.evaluation) for one in found.values()} == {(2, wanted)}
    more = asked("--preset", "debug", "--test-episodes", "4")
    assert {one.evaluation for one in more.values()} == {replace(wanted, episodes=4)}


def test_flags_that_no_objective_reads_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["compare", "--data", str(data), "--out", str(tmp_path), "--preset", "debug", "--quantile", "0.1"]
    assert main([*flags, "--objectives", "byol", "none"]) == 1
    assert "no objective reads --quantile, of byol, none: leave it out." in capsys.readouterr().err


def test_representations_are_probed_again_where_they_were_asked_something_else(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "copy"))
    probes = {name: out / f"{name}-seed0" / "probe.json" for name in ("class", "class-queue-32", "none")}
    before = {name: read_json(file) for name, file in probes.items()}
    own = before["class"]["settings"]["similarity"]
    # With flags of the similarity, which only some objectives read, all are asked alike.
    assert all(probe["settings"]["similarity"] == own for probe in before.values())
    for name, change in {
        "class": {"settings": {**before["class"]["settings"], "similarity": {**own, "horizon": 3}}},
        "class-queue-32": {"policy": "that of before"},
    }.items():
        write_json(probes[name], {**before[name], **change, "mark": "kept"})
    write_json(probes["none"], {**before["none"], "mark": "kept"})
    monkeypatch.setattr(Pipeline, "evaluate", lambda _: pytest.fail("rolled out"))
    assert main(command(data, out)) == 0
    after = {name: read_json(file) for name, file in probes.items()}
    assert [after[name].get("mark") for name in probes] == [None, None, "kept"]
    assert all(after[name]["representations"] == before[name]["representations"] for name in probes)
    assert "settings.similarity.horizon = 3, now it is 16." in caplog.text
    assert "policy = 'that of before', now it is" in caplog.text


def test_all_runs_are_probed_under_the_similarity_of_those_that_learn_by_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[SimilarityConfig] = []

    def measured(name: str, _: Pipeline, similarity: SimilarityConfig, *__: Any) -> Outcomes:
        asked.append(similarity)
        return one(name, [1, 0, 1])

    monkeypatch.setattr(Pipeline, "pretrain", lambda _: None)
    monkeypatch.setattr(module, "_measured", measured)
    arguments = command(data, tmp_path, "--quantile", "0.1")
    at = arguments.index("--objectives")
    assert main([*arguments[:at], "--objectives", "none", "byol", "class", "--quantile", "0.1"]) == 0
    assert [similarity.quantile for similarity in asked] == [0.1] * 3


def test_without_a_simulator_representations_are_probed(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: Pipeline) -> None:
        raise ConfigError("these data are of a robot that no simulator is of.")

    monkeypatch.setattr(Pipeline, "check_rollouts", refuse)
    monkeypatch.setattr(Pipeline, "evaluate", lambda _: pytest.fail("rolled out"))
    assert main(command(data, tmp_path)) == 0
    found = read_json(tmp_path / "comparison.json")
    assert found["lines"] == []
    assert found["notes"][0].startswith("No rollouts, representations are probed only: these data are of a robot")
    assert all(run["probe"] for run in found["runs"])
    assert Page((tmp_path / "comparison.html").read_text(encoding="utf-8")).sections() == {"trainings"}
    assert "dtw_error@1" in capsys.readouterr().out
    # A simulator that was named must fit.
    assert main(command(data, tmp_path, "--simulator", "pusht")) == 1
    assert "no simulator is of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        (["class"], "expected at least two objectives, each named once"),
        (["class", "byol", "class"], "each named once, and at least one seed, got class, byol, class with 1 seeds"),
        (["class", "byol[]"], "such as class or"),
        (["class[queue=1 views=2]", "class[queue=1,views=2]"], "each named once"),
        (["class", "clas"], "unknown objective 'clas'"),
        (["class", "class[queue=1280"], r"such as class or 'class[queue=1280]', got 'class[queue=1280'"),
        (["class", "byol[queue=3]"], "unknown option of objective 'byol' 'queue'"),
    ],
)
def test_what_is_no_objective_is_refused_before_anything_is_made(
    tmp_path: Path, data: Path, objectives: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(data, tmp_path)
    assert main([*arguments[: arguments.index("--objectives") + 1], *objectives]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_options_stand_in_brackets_and_flags_are_for_those_that_read_them() -> None:
    asked = Compare(out=Path("x"), run={"pretrain.epochs": 3.0, "pretrain.similarity.quantile": 0.1})
    one = flags_of(asked, "class[queue=1280 weighting=hard]", 4)
    assert (one.objective, one.options) == ("class", ("queue=1280", "weighting=hard"))
    common = {"pretrain.seed": 4}
    assert one.run == common | asked.run
    assert flags_of(asked, "byol", 4).run == common | {"pretrain.epochs": 3.0}
    assert flags_of(asked, "none", 4).run == common
    assert flags_of(asked, "class+0.1*byol[byol.decay=0.9, class.queue=32]", 0).options == (
        "byol.decay=0.9",
        "class.queue=32",
    )


# Runs that exist


def test_runs_that_exist_are_compared_and_seeds_share_a_name(whole: Path, tmp_path: Path) -> None:
    runs = [str(whole / name) for name in ("none-seed0", "class-seed0", "none-seed1", "class-seed1")]
    assert main(["compare", "--out", str(tmp_path), "--quiet", *runs]) == 0
    found, made = (read_json(out / "comparison.json") for out in (tmp_path, whole))
    assert [run["name"] for run in found["runs"]] == ["Initial weights", "CLASS", "Initial weights", "CLASS"]
    own, others = (
        {line["criterion"]: line for line in f["lines"] if line["name"] == n}
        for f, n in ((found, "CLASS"), (made, "class"))
    )
    for criterion, line in own.items():
        assert line["success"] == others[criterion]["success"]


def test_an_evaluation_may_be_named(whole: Path) -> None:
    one = read_outcomes(whole / "class-seed0" / "evaluations" / "retrieval-class-fixed-color")
    assert one.name == "CLASS, retrieval-class-fixed-color"
    assert one.success == read_outcomes(whole / "class-seed0").success


def test_other_settings_have_other_names_and_one_training_is_one(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole / "class-seed1", tmp_path / "longer"))
    with pytest.raises(ConfigError, match="longer have the same settings and training seed 1: they are one"):
        read_runs([whole / "class-seed1", copy])
    card = read_json(copy / "config.json")
    card["settings"]["pretrain"]["epochs"] = 9.0
    write_json(copy / "config.json", card)
    assert [one.name for one in read_runs([whole / "class-seed1", copy])] == ["CLASS", "CLASS (longer)"]


def test_runs_without_an_evaluation_and_foreign_folders_are_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no evaluation 'x'; there are: retrieval-class-fixed-color\. Make it"):
        read_outcomes(whole / "class-seed0" / "evaluations" / "x")
    with pytest.raises(DataError, match=r"does not exist\. Expected a folder written by 'classact pretrain'"):
        read_outcomes(tmp_path)


def test_an_evaluation_has_its_own_time_limit(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole / "class-seed0", run)
    evaluate_run(run, episodes=1, max_steps=7, workers=1, quiet=True, name="short")
    assert read_outcomes(run / "evaluations/short").max_steps == 7
    assert read_outcomes(run).max_steps == Run(run).settings().evaluation.max_steps


def test_other_ways_to_act_are_no_seeds_of_one_training(whole: Path, tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in ("a", "b"))
    for folder, seed in ((first, 0), (second, 1)):
        shutil.copytree(whole / f"class-seed{seed}", folder)
    usual: dict[str, Any] = {"episodes": 1, "workers": 1, "quiet": True, "name": "x"}

    def names(*runs: Path) -> list[str]:
        return [one.name for one in read_runs([run / "evaluations/x" for run in runs])]

    evaluate_run(first, **usual, k=4)
    evaluate_run(second, **usual, k=4)
    assert names(first, second) == ["CLASS, x"] * 2
    evaluate_run(second, **usual)
    assert names(first, second) == ["CLASS, x", "CLASS, x (b)"]
    assert compare(read_runs([first / "evaluations/x", second / "evaluations/x"])).notes == ()
    # Evaluations of before they said it are told by their labels, and what is not known is said.
    for folder in (first, second):
        file = folder / "evaluations/x/settings.json"
        write_json(file, without(read_json(file), "acting", "head"))
    assert names(first, second) == ["CLASS, x", "CLASS, x (b)"]
    (first / "evaluations/x/settings.json").unlink()
    notes = compare(read_runs([first / "evaluations/x", second / "evaluations/x"])).notes
    assert "how the policy acted is taken from its label, class-episodes1-k4, its time limit from the" in notes[0]
    assert "how the policy acted is taken from its label, class-episodes1." in notes[1]


def test_folders_of_one_name_are_told_apart(whole: Path, tmp_path: Path) -> None:
    runs = [tmp_path / name / "run" for name in ("a", "b", "c")]
    for number, run in enumerate(runs):
        shutil.copytree(whole / "class-seed0", run)
        card = read_json(run / "config.json")
        card["settings"]["pretrain"]["epochs"] = 2.0 + number
        write_json(run / "config.json", card)
    assert [one.name for one in read_runs(runs)] == ["CLASS", "CLASS (run)", f"CLASS ({runs[2]})"]


def test_an_evaluation_is_known_however_its_path_is_written(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = whole / "class-seed0" / "evaluations" / "retrieval-class-fixed-color"
    monkeypatch.chdir(folder)
    assert read_outcomes(Path()) == read_outcomes(folder)


def test_an_evaluation_without_its_episodes_is_refused(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole / "class-seed0", tmp_path / "run"))
    (run / "evaluations/retrieval-class-fixed-color/episodes.jsonl").unlink()
    with pytest.raises(DataError, match=r"episodes\.jsonl holds 0 episodes, .*summary\.json says 3\. Evaluate again"):
        read_outcomes(run)


def test_probes_that_were_asked_something_else_are_left_out(whole: Path, tmp_path: Path) -> None:
    first, second = (Path(shutil.copytree(whole / f"{name}-seed0", tmp_path / name)) for name in ("class", "none"))
    assert all(one.probe for one in compare(read_runs([first, second])).runs)
    probe = read_json(second / "probe.json")
    other = {**probe["settings"], "ks": [1], "temperature": 0.5}  # that is how it retrieves
    write_json(second / "probe.json", {**without(probe, "policy"), "settings": other})
    found = compare(read_runs([first, second]))
    assert all(one.probe for one in found.runs)
    write_json(second / "probe.json", {**probe, "settings": {**other, "seed": 3}})
    found = compare(read_runs([first, second]))
    assert [bool(one.probe) for one in found.runs] == [True, False]
    assert found.notes == (
        f"The probe of {second} is left out, for that of {first} was asked something else: settings.seed = 0, now it "
        f"is 3. Probe both alike (classact probe).",
    )
    write_json(second / "probe.json", {**probe, "policy": "that of before"})
    found = compare(read_runs([first, second]))
    assert [bool(one.probe) for one in found.runs] == [True, False]
    assert "is of an earlier policy of the run and left out" in found.notes[0]


def test_only_what_retrieves_has_the_probe_of_the_runs_encoder(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole / "class-seed0", tmp_path / "run"))
    evaluations = run / "evaluations"
    rows = read_json(run / "summary.json")
    for encoder, policy in (("untrained", "retrieval"), ("class", "mlp")):
        name = f"{policy}-{encoder}-fixed-color"
        if not (evaluations / name).exists():
            shutil.copytree(evaluations / "retrieval-class-fixed-color", evaluations / name)
        own = {"evaluation": name, "encoder": encoder, "policy": policy}
        rows += [{**row, **own} for row in rows[: len(fakes.CRITERIA)]]
    write_json(run / "summary.json", rows)
    assert read_outcomes(evaluations / "retrieval-class-fixed-color").probe
    assert not read_outcomes(evaluations / "retrieval-untrained-fixed-color").probe
    assert not read_outcomes(evaluations / "mlp-class-fixed-color").probe
    shutil.copy(run / "probe.json", run / "probe-untrained.json")
    assert read_outcomes(evaluations / "retrieval-untrained-fixed-color").probe


def test_runs_of_other_data_are_no_seeds_of_one_training(whole: Path, tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in ("a", "b"))
    for folder, seed, mark in ((first, 0, ""), (second, 1, "other")):
        shutil.copytree(whole / f"class-seed{seed}", folder)
        card = read_json(folder / "config.json")
        card["data"]["fingerprint"] += mark
        write_json(folder / "config.json", card)
    assert len({one.name for one in read_runs([first, second])}) == 2
    assert len({one.name for one in read_runs([first, whole / "class-seed1"])}) == 1


def test_flags_of_trainings_are_refused_where_runs_are_compared(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(whole / f"{name}-seed0") for name in ("class", "none")]
    assert main(["compare", *runs, "--out", str(tmp_path), "--seeds", "2"]) == 1
    assert "runs that exist are compared as they are, --seeds changes nothing" in capsys.readouterr().err
    assert main(["compare", *runs, "--out", str(tmp_path), "--epochs", "2"]) == 1
    assert "changes nothing: leave it out" in capsys.readouterr().err


def one(name: str, reached: list[int], seed: int = 0, **changes: Any) -> Outcomes:
    usual: dict[str, Any] = {"simulator": "pusht", "shift": "fixed", "initial_states": tuple(range(len(reached)))}
    return Outcomes(name, f"runs/{name}-{seed}", seed, **(usual | {"success": {"c": tuple(reached)}} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"simulator": "square"}, "the simulator, 'pusht' and 'square'"),
        ({"shift": "rand-color"}, "the shift, 'fixed' and 'rand-color'"),
        ({"max_steps": 20}, "the time limit, None and 20"),
        ({"success": {"d": (1, 0, 1)}}, r"the criteria, \['c'\] and \['d'\]"),
        ({"initial_states": (0, 1), "success": {"c": (1, 0)}}, "how many initial states, 3 and 2"),
        ({"initial_states": (0, 1, 7)}, r"the seeds of the initial states, \(0, 1, 2\) and \(0, 1, 7\)"),
    ],
)
def test_evaluations_under_other_conditions_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"runs/a-0 and runs/b-0 were not evaluated alike: {message}"):
        compare([one("a", [1, 0, 1]), one("b", [1, 1, 1], **changes)])


def test_one_objective_is_no_comparison() -> None:
    with pytest.raises(ConfigError, match="expected at least two objectives or runs to compare, got a"):
        compare([one("a", [1, 0]), one("a", [1, 1], seed=1)])


# The numbers


def draw(seed: int, episodes: int = 60) -> Callable[[float], list[int]]:
    rng = np.random.default_rng(seed)
    return lambda rate: (rng.random(episodes) < rate).astype(int).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_one_seed_each_is_mcnemar_with_holm(seed: int) -> None:
    sample = draw(seed)
    runs = [one(name, sample(rate)) for name, rate in (("a", 0.5), ("b", 0.7), ("c", 0.2), ("d", 0.5))]
    first, *lines = compare(runs).lines
    assert (first.difference, first.won, first.lost, first.p, first.adjusted) == (None,) * 5
    base = np.array(runs[0].success["c"])
    expected = []
    for line, run in zip(lines, runs[1:], strict=True):
        mine = np.array(run.success["c"])
        won, lost = int((mine > base).sum()), int((mine < base).sum())
        assert (line.won, line.lost) == (won, lost)
        expected.append(stats.binomtest(won, won + lost, 0.5).pvalue)
        assert line.p == pytest.approx(expected[-1])
        assert line.difference is not None
        assert line.difference.value == pytest.approx(mine.mean() - base.mean())
        assert (line.success.low, line.success.high) == wilson_interval(int(mine.sum()), 60)
    # Holm: sorted, times what is left, never below the one before.
    worst, order = 0.0, np.argsort(expected)
    for rank, k in enumerate(order):
        worst = max(worst, min(1.0, expected[k] * (3 - rank)))
        assert lines[k].adjusted == pytest.approx(worst)


def test_several_seeds_are_exchanged_on_each_initial_state() -> None:
    sample = draw(7, 12)
    runs = [one(name, sample(rate), seed) for seed in range(2) for name, rate in (("a", 0.4), ("b", 0.9))]
    _, line = compare(runs).lines
    table = np.array([run.success["c"] for run in runs])  # a0, b0, a1, b1
    a, b = table[::2], table[1::2]
    rng = np.random.default_rng(0)
    observed, hits, draws = abs(b.sum() - a.sum()), 0, 40_000
    order = rng.random((draws, 4, 12)).argsort(axis=1)
    shuffled = np.take_along_axis(table[None], order, axis=1).sum(axis=2)
    hits = (abs(shuffled[:, :2].sum(axis=1) - shuffled[:, 2:].sum(axis=1)) >= observed).mean()
    assert line.p == pytest.approx(hits, abs=4 * (hits / draws) ** 0.5 + 1e-4)
    assert [e.value for e in line.by_seed] == b.mean(axis=1).tolist()
    assert [(e.low, e.high) for e in line.by_seed] == [wilson_interval(int(row.sum()), 12) for row in b]
    assert line.success.value == pytest.approx(b.mean())
    gain = b.mean(axis=0) - a.mean(axis=0)
    assert (line.won, line.lost) == ((gain > 0).sum(), (gain < 0).sum())


def test_the_data_have_demonstrations_to_hold_out(data: Path, whole: Path) -> None:
    held = read_json(probe_file(Run(whole / "class-seed0")))["queries"]
    assert len(read_demonstrations(str(data))) == len(fakes.LENGTHS)
    assert (held["kind"], held["episodes"], held["bank_episodes"]) == ("held-out", 2, 4)
    assert json.loads((whole / "comparison.json").read_text())["runs"]
