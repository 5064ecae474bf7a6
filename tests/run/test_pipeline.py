from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fakes
from classact.cli.flags import changed, parse
from classact.cli.runs import Demo, Pretrain, RunFlags, run_config
from classact.data.actions import ActionSpace
from classact.data.readers import read_demonstrations
from classact.data.schema import Schema
from classact.errors import CheckpointError, ConfigError, DataError, StorageError
from classact.evaluation import rollout
from classact.evaluation.rows import EvaluationRow
from classact.models.encoders import ImageEncoder
from classact.objectives import objective_config
from classact.policies import RetrievalPolicy
from classact.run import analysis, stages
from classact.run import data as rundata
from classact.run import evaluate as evaluation
from classact.run import pretrain as pipeline
from classact.run.config import RunConfig
from classact.run.evaluate import evaluate_run
from classact.run.folder import Run
from classact.run.presets import from_preset, with_objective
from classact.run.pretrain import Pipeline, resumed, state_policy
from classact.run.recording import evaluation_name
from classact.similarity import ActionSimilarity, similarity_identity
from classact.similarity.distribution import write_distribution
from classact.sims import SimulatorSpec
from classact.sims.specs import PUSHT
from classact.train import engine
from classact.train.checkpoints import list_checkpoints
from classact.utils.locks import BusyError
from classact.utils.storage import write_folder, write_json
from lock_owners import another_owner


@pytest.fixture(autouse=True)
def short_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "make_simulator", fakes.Short)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.write_zarr(tmp_path_factory.mktemp("data") / "tiny.zarr", fakes.demonstrations(0, 96, fakes.LENGTHS))


def config(data: Path, **changes: Any) -> RunConfig:
    made = from_preset("debug", data=str(data))
    small = replace(made.pretrain, similarity=replace(made.pretrain.similarity, pairs=5000))
    return replace(made, pretrain=small, evaluation=replace(made.evaluation, episodes=2, workers=1), **changes)


def make(root: Path, data: Path, by_path: dict[str, Any] | None = None, **changes: Any) -> Pipeline:
    return Pipeline(Run(root), changed(config(data, **changes), by_path or {}), quiet=True)


def learning(data: Path, objective: str, *options: str, **changes: Any) -> RunConfig:
    """Settings for another objective."""
    made = config(data, **changes)
    return replace(made, pretrain=with_objective(made.pretrain, objective_config(objective, options)))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[EvaluationRow]]:
    root = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "make_simulator", fakes.Short)
        done = make(root, data)
        done.evaluate()
    return done.run, done.run.read_summary()


# What a run leaves


def test_a_run_leaves_encoder_policy_evaluations_and_summary(finished: tuple[Run, list[EvaluationRow]]) -> None:
    run, rows = finished
    assert [(row.encoder, row.criterion) for row in rows] == [
        (encoder, criterion) for encoder in ("class", "untrained", "state") for criterion in fakes.CRITERIA
    ]
    for row in rows:
        assert row.evaluation == f"retrieval-{row.encoder}-fixed-color"
        assert (row.episodes, row.simulator, row.shift) == (2, "pusht", "fixed-color")
        assert (run.evaluation(row.evaluation) / "episodes.jsonl").exists()
    assert [step for step, _ in list_checkpoints(run.checkpoints)] == [4]
    assert [row["step"] for row in run.read_train_log()] == [1, 2, 3, 4]
    card = run.read_config()
    assert (card["data"]["name"], card["data"]["episodes"], card["data"]["steps"]) == ("tiny", 6, sum(fakes.LENGTHS))
    assert card["settings"]["pretrain"]["encoder"]["width"] == 0.25
    assert {"images", "pre-training", "evaluate class", "evaluate state"} <= card["timings"].keys()
    assert {"python", "torch", "numpy"} <= card["versions"].keys()


@pytest.mark.parametrize(
    ("objective", "options", "label", "title"),
    [
        ("byol", [], "byol", "VINN"),
        ("class", ["weighting=hard"], "class", "CLASS (weighting=hard)"),
        ("class+0.1*inverse-dynamics", [], "class+0.1*inverse-dynamics", "CLASS + Inverse dynamics"),
        ("none", [], "random", "Initial weights"),
    ],
)
def test_another_objective_is_trained_evaluated_and_named(
    objective: str, options: list[str], label: str, title: str, data: Path, tmp_path: Path
) -> None:
    made = learning(data, objective, *options, baselines=False)
    done = Pipeline(Run(tmp_path), made, quiet=True)
    assert list(done.evaluate()) == [label]
    rows = done.run.read_summary()
    assert {row.encoder for row in rows} == {label}
    assert {row.evaluation for row in rows} == {evaluation_name("retrieval", label, "fixed-color")}
    trained = ("representation only", "crop, noise")
    assert {(row.training, row.augmentation) for row in rows} == {("none", "none") if objective == "none" else trained}
    card = done.run.read_config()
    assert card["title"] == title
    assert ("pre-training" in card["timings"]) == (objective != "none")
    assert done.run.train_log.exists() == (objective != "none")
    # Action similarity is measured where it is learned from, and nowhere else.
    assert ("action similarity" in card["timings"]) == objective.startswith("class")
    assert (done.run.analysis / "similarity.json").exists() == objective.startswith("class")
    # What is there is used again, and another objective is refused.
    again = Pipeline(Run(tmp_path), made, quiet=True)
    assert again.policy.bank.shape == done.policy.bank.shape
    message = rf"was started with objective '{re.escape(objective)}', now it is 'tcn'\. Choose another --out"
    with pytest.raises(ConfigError, match=message):
        Pipeline(Run(tmp_path), learning(data, "tcn", baselines=False), quiet=True)
    # Evaluations of a saved run find its label, too.
    row = evaluate_run(done.run, episodes=1, workers=1, quiet=True)[0]
    assert row.encoder == f"{label}-episodes1"
    assert (row.training, row.augmentation) == (("none", "none") if objective == "none" else trained)


def test_beside_random_weights_no_untrained_encoder_is_evaluated(data: Path, tmp_path: Path) -> None:
    done = Pipeline(Run(tmp_path), learning(data, "none"), quiet=True)
    assert list(done.evaluate()) == ["random", "state"]
    assert {(row.encoder, row.training) for row in done.run.read_summary()} == {("random", "none"), ("state", "none")}


def test_initial_weights_are_those_that_training_begins_with(data: Path, tmp_path: Path) -> None:
    made = learning(data, "none", baselines=False)
    Pipeline(Run(tmp_path), made, quiet=True).pretrain()
    encoder = ImageEncoder.from_pretrained(Run(tmp_path).encoder)
    assert fakes.equal(encoder, ImageEncoder(encoder.config, seed=made.pretrain.seed))


def test_the_second_call_trains_nothing_and_gives_the_same(
    finished: tuple[Run, list[EvaluationRow]], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, rows = finished
    before = run.read_config()

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(pipeline, "Trainer", never)
    make(run.root, data).evaluate()
    assert [replace(row, seconds=0) for row in run.read_summary()] == [replace(row, seconds=0) for row in rows]
    after = run.read_config()
    assert after["timings"]["pre-training"] == before["timings"]["pre-training"]
    assert after["timings"]["evaluate class"] < 2 * before["timings"]["evaluate class"] + 2
    assert after["settings"] == before["settings"]
    assert after["created"] == before["created"]


def test_how_it_is_evaluated_and_on_how_many_processes_may_change(
    finished: tuple[Run, list[EvaluationRow]], data: Path
) -> None:
    run, _ = finished
    other = {"evaluation.workers": 2, "evaluation.episodes": 3, "frames.workers": 2, "pretrain.checkpoint_every": 7}
    make(run.root, data, other, baselines=False)
    assert run.read_config()["settings"]["evaluation"]["episodes"] == 3
    assert run.read_config()["data"]["name"] == "tiny"
    make(run.root, data)  # and back


OBJECTIVE = "pretrain.objective"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"episodes": 3}, r"settings.episodes = None, now it is 3"),
        ({"retrieval.k": 4}, r"settings.retrieval.k = 8, now it is 4"),
        ({"pretrain.seed": 1}, r"settings.pretrain.seed = 0, now it is 1"),
        ({"frames.source": "rendered"}, r"settings.frames.source = 'auto', now it is 'rendered'"),
        ({OBJECTIVE: objective_config("byol")}, "objective 'class', now it is 'byol'"),
        ({OBJECTIVE: objective_config("class+0.1*byol")}, r"objective 'class', now it is 'class\+0\.1\*byol'"),
        ({OBJECTIVE: objective_config("none")}, "objective 'class', now it is 'none'"),
        (
            {OBJECTIVE: objective_config("class", ["weighting=hard"])},
            r"settings\.pretrain\.objective\.weighting = 'soft', now it is 'hard'",
        ),
    ],
)
def test_other_settings_are_refused(
    finished: tuple[Run, list[EvaluationRow]], data: Path, change: dict[str, Any], message: str
) -> None:
    run, _ = finished
    before = run.config.read_bytes()
    with pytest.raises(ConfigError, match=rf"was started with {message}\. Choose another --out, or remove that folder"):
        make(run.root, data, change)
    assert run.config.read_bytes() == before


def test_the_precision_that_auto_came_to_is_the_same_setting(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def precision(name: str) -> Pipeline:
        return make(tmp_path, data, {"pretrain.precision": name})

    monkeypatch.setattr(engine, "_cpu_flags", lambda: "avx512_bf16")
    precision("auto").pretrain()
    monkeypatch.setattr(engine, "_cpu_flags", lambda: "sse2")
    precision("bfloat16").pretrain()
    precision("auto").pretrain()
    with pytest.raises(ConfigError, match=r"settings.pretrain.precision = '(auto|bfloat16)', now it is 'float32'"):
        precision("float32")


def test_other_data_under_the_same_path_are_refused(tmp_path: Path) -> None:
    path, root = tmp_path / "tiny.zarr", tmp_path / "run"
    fakes.write_zarr(path, fakes.demonstrations(0, 96, fakes.LENGTHS))
    make(root, path).make("demonstrations")
    Run(root).policy.mkdir()  # as if it had been built
    make(root, path).make("demonstrations")
    shutil.rmtree(path)
    fakes.write_zarr(path, fakes.demonstrations(1, 96, fakes.LENGTHS))
    with pytest.raises(ConfigError, match=r"was started with data.fingerprint = '\w+', now it is '\w+'"):
        make(root, path).make("demonstrations")


def test_other_images_of_the_same_data_are_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a layout makes them that exchanges red and blue, or gives a camera another key: nothing else tells."""
    make(tmp_path, data).make("demonstrations")
    Run(tmp_path).policy.mkdir()  # as if it had been built
    before = read_demonstrations(data)
    exchanged = before.with_images({"top": np.asarray(before.images["top"])[..., ::-1]})
    assert exchanged.fingerprint() == before.fingerprint()
    monkeypatch.setattr(rundata, "read_demonstrations", lambda *_, **__: exchanged)
    with pytest.raises(ConfigError, match=r"was started with data.images.top = '\w+', now it is '\w+'"):
        make(tmp_path, data).make("demonstrations")


def test_the_same_data_under_another_spelling_go_on(
    finished: tuple[Run, list[EvaluationRow]], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = finished
    copy = Path(shutil.copytree(data, tmp_path / "elsewhere" / data.name))
    (tmp_path / "link.zarr").symlink_to(data)
    monkeypatch.chdir(data.parent)
    for spelling in (data.name, f"./{data.name}/", str(tmp_path / "link.zarr"), str(copy), str(data)):
        Pipeline(run, replace(config(data), data=spelling), quiet=True)
        recorded = Path(run.read_config()["settings"]["data"])
        assert recorded.is_absolute()
        assert recorded.resolve() == Path(spelling).resolve()
    other = fakes.write_zarr(tmp_path / "other.zarr", fakes.demonstrations(1, 96, fakes.LENGTHS))
    before = run.config.read_bytes()
    with pytest.raises(ConfigError, match=r"was started with data.fingerprint = '\w+', now it is '\w+'"):
        Pipeline(run, replace(config(data), data=str(other)), quiet=True)
    assert run.config.read_bytes() == before


def test_a_run_that_is_moved_with_its_data_finds_them(data: Path, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    moving = Path(shutil.copytree(data, before / "data" / data.name))
    make(before / "runs" / "one", moving).make("demonstrations")
    before.rename(after)
    run = Run(after / "runs" / "one")
    assert run.settings().data == str(after / "data" / data.name)


def test_what_a_later_call_does_not_name_stays(data: Path, tmp_path: Path) -> None:
    run, layout = Run(tmp_path / "run"), tmp_path / "layout.json"
    layout.write_text("{}")
    first = config(data, intermediate_retrieval=replace(config(data).retrieval, k=3))
    Pipeline(run, first, quiet=True).make("demonstrations")
    run.policy.mkdir()  # as if it had been built
    card = run.read_config()
    card["settings"] |= {"layout": str(layout), "similarity": "gone"}
    write_json(run.config, card | {"timings": {"images": 5.0}, "note": "mine"})
    again = Pipeline(run, config(data), quiet=True)
    assert again.config.layout == str(layout)
    assert resumed(run, config(data, layout="umi")).layout == "umi"  # a name is no path
    assert again.config.similarity is None  # it is not there any more, and was not asked for
    assert again.config.intermediate_retrieval == first.intermediate_retrieval
    after = run.read_config()
    assert after["settings"] == card["settings"]
    assert {key: after[key] for key in ("created", "hardware", "timings", "note")} == {
        **{key: card[key] for key in ("created", "hardware")},
        "timings": {"images": 5.0},
        "note": "mine",
    }


def test_how_a_run_is_evaluated_stays_where_no_flag_says_it(data: Path, tmp_path: Path) -> None:
    def settings(command: type[RunFlags], *flags: str) -> RunConfig:
        common = ["--out", str(tmp_path / "run"), "--data", str(data), "--preset", "debug"]
        return run_config(parse(command, [*common, *flags], "classact"))

    first = settings(Demo, "--test-episodes", "7", "--intermediate-episodes", "9", "--evaluations", "2")
    assert first.baselines
    Pipeline(Run(tmp_path / "run"), first, quiet=True).make("demonstrations")
    fresh = settings(Pretrain)
    assert (fresh.evaluation.episodes, fresh.baselines, fresh.intermediate_episodes) == (50, False, 50)
    Run(tmp_path / "run").policy.mkdir()  # as if it had been built
    assert settings(Pretrain) == first
    assert settings(Demo, "--test-episodes", "8").evaluation.episodes == 8


def test_a_run_that_another_process_makes_is_left_alone(data: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("theirs")
    with another_owner(tmp_path) as other:
        with pytest.raises(BusyError, match=rf"is in use by process {other.pid} on"):
            make(tmp_path, data).pretrain()
        assert (tmp_path / "train.jsonl").read_text() == "theirs"
        assert not Run(tmp_path).config.exists()


def test_evaluations_of_a_run(finished: tuple[Run, list[EvaluationRow]], data: Path) -> None:
    run, _ = finished
    make(run.root, data)
    same = evaluate_run(run, workers=1, quiet=True)
    assert {row.evaluation for row in same} == {"retrieval-class-fixed-color"}
    count = len(run.read_summary())
    rows = evaluate_run(run, workers=1, episodes=1, first_seed=7, k=2, temperature=0.01, quiet=True)
    name = "retrieval-class-fixed-color-episodes1-first_seed7-k2-temperature0.01"
    assert {(row.evaluation, row.encoder, row.episodes) for row in rows} == {
        (name, "class-episodes1-first_seed7-k2-temperature0.01", 1)
    }
    assert (run.evaluation(name) / "rollouts.safetensors").exists()
    assert len(run.read_summary()) == count + 3
    evaluate_run(run, workers=1, episodes=1, max_steps=5, name=name, quiet=True)
    assert len(run.read_summary()) == count + 3
    shifted = evaluate_run(run, workers=1, episodes=1, shift="rand-color", quiet=True)
    assert shifted[0].evaluation == "retrieval-class-rand-color-episodes1"


def test_an_evaluation_is_one_folder_whatever_the_labels_hold() -> None:
    assert evaluation_name("retrieval", "class", "fixed-color") == "retrieval-class-fixed-color"
    assert evaluation_name("mlp", "other: a/b", "plain") == "mlp-other-a-b-plain"


def test_rows_of_an_evaluation_are_replaced_together(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.add_summary([fakes.row(evaluation=name, criterion=c) for name in ("a", "b") for c in ("one", "two")])
    run.add_summary([fakes.row(evaluation="a", criterion="three", success=1.0)])
    assert [(r.evaluation, r.criterion) for r in run.read_summary()] == [
        *(("b", "one"), ("b", "two"), ("a", "three")),
    ]


# What is wrong shows before anything is trained


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"retrieval.k": 999}, ConfigError, r"tiny.*k = 999 .* of 122 timesteps"),
        ({"episodes": 7}, ConfigError, r"asked for the first 7 episodes, but tiny .* has 6"),
        ({"data": "nowhere.zarr"}, DataError, r"nowhere.zarr does not exist"),
        ({"frames.shift": "dark"}, ConfigError, r"unknown shift 'dark'"),
        ({"evaluation.image_size": 32}, ConfigError, r"96..256 pixels, got 32"),
        (
            {"pretrain.encoder.cameras": ("wrist",)},
            DataError,
            r"no usable images of camera 'wrist' and simulator 'pusht' cannot render it: .*\['top'\]",
        ),
    ],
)
def test_bad_settings_leave_no_folder_that_looks_started(
    data: Path, tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    run = Run(tmp_path / "run")
    with pytest.raises(error, match=message):
        make(run.root, data, change).pretrain()
    assert not run.encoder.exists()
    assert not run.checkpoints.exists()
    # And the right settings may use the folder.
    make(run.root, data).make("demonstrations")


def test_an_approximate_search_needs_held_out_demonstrations(data: Path) -> None:
    made = config(data)
    approximate = replace(made.retrieval, search="faiss:IVF8,Flat")
    with pytest.raises(ConfigError, match=r"search 'faiss:IVF8,Flat' is approximate.*Hold demonstrations out"):
        replace(made, retrieval=approximate)
    assert replace(made, retrieval=approximate, heldout=2).heldout == 2
    with pytest.raises(ConfigError, match="expected heldout >= 0"):
        replace(made, heldout=-1)


def test_held_out_demonstrations_calibrate_and_are_not_learned(data: Path, tmp_path: Path) -> None:
    pipeline = make(tmp_path, data, heldout=2)
    pipeline.pretrain()
    policy = pipeline.policy
    assert list(np.diff(policy.episode_ends, prepend=0)) == list(fakes.LENGTHS[:-2])
    assert policy.calibration is not None
    assert (policy.calibration.episodes, policy.calibration.kind) == (2, "held-out")
    with pytest.raises(ConfigError, match="6 of 6 demonstrations are to be held out; hold out at most 5"):
        make(tmp_path / "none", data, heldout=6).make("demonstrations")


def unprepared(patch: pytest.MonkeyPatch) -> None:
    def prepared(*_: Any) -> None:
        raise AssertionError("images were prepared")

    patch.setattr(rundata, "prepare_frames", prepared)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"retrieval.search": "faiss:IVF5000,Flat", "heldout": 2},
            ConfigError,
            r"faiss cannot make the index 'IVF5000,Flat' of 77 rows of \d+ \(5000 lists\)",
        ),
        (
            {"retrieval.search": "faiss:Odd9", "retrieval.k": 2, "heldout": 2},
            ConfigError,
            "cannot make the index 'Odd9' of",
        ),
        ({"evaluation.execute": 99}, ConfigError, "execute 99 asked of policy 'retrieval', whose chunks hold T_a"),
        (
            {"intermediate_retrieval.k": 999, "pretrain.evaluations": 1},
            ConfigError,
            r"k = 999 neighbours asked of a bank of 122 timesteps",
        ),
        ({"similarity": "nowhere"}, CheckpointError, "nowhere/distribution does not exist"),
        ({"pretrain.similarity.horizon": 26}, ConfigError, "horizon of 26 steps is longer than every episode"),
    ],
)
def test_what_does_not_fit_is_refused_before_images_are_made(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    if "faiss" in str(change):
        pytest.importorskip("faiss")
    unprepared(monkeypatch)
    with pytest.raises(error, match=message):
        make(tmp_path, data, change).pretrain()


def test_the_similarity_of_other_data_is_refused_before_images_are_made(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(data)
    settings = made.pretrain.similarity
    other = ActionSimilarity(fakes.demonstrations(7), settings)
    write_distribution(tmp_path / "s" / "distribution", other.distribution, similarity_identity(other.stream, settings))
    unprepared(monkeypatch)
    with pytest.raises(ConfigError, match="was made with windows"):
        Pipeline(Run(tmp_path / "run"), replace(made, similarity=str(tmp_path / "s")), quiet=True).pretrain()


def test_a_copy_of_what_is_learned_cannot_be_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = fakes.demonstrations(0, 96, fakes.LENGTHS).subset([0, 1, 2, 3, 4, 1])
    path = fakes.write_zarr(tmp_path / "twice.zarr", twice)
    unprepared(monkeypatch)
    with pytest.raises(DataError, match="episode 5 has the same 20 actions as episode 1 of the bank"):
        make(tmp_path / "run", path, heldout=1).pretrain()


@pytest.mark.parametrize(
    ("episodes", "reason"),
    [
        ([0], "needs at least 2 episodes, the bank has 1. Add demonstrations"),
        ([0, 0], "needs at least 2 episodes, the bank has 1, not counting 1 of the same actions"),
        (
            [0, 2],
            "leaving episode 0 out of the bank leaves 7 timesteps of others to compare with, expected at least m = 8",
        ),
    ],
)
def test_what_is_too_little_for_an_alarm_is_said_first_and_the_policy_saved_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, episodes: list[int], reason: str
) -> None:
    few = fakes.demonstrations(0, 96, fakes.LENGTHS).subset(episodes)
    path = fakes.write_zarr(tmp_path / "few.zarr", few)
    settings = {"retrieval.k": 2, "retrieval.min_actions": 1, "frames.source": "recorded", "novelty.m": 8}
    pipeline = make(tmp_path / "run", path, settings | {OBJECTIVE: objective_config("none")})
    pipeline.make("demonstrations")
    assert "the policy will have no novelty alarm: leaving " in caplog.text
    assert reason in caplog.text
    pipeline.pretrain()
    assert pipeline.policy.calibration is None
    assert RetrievalPolicy.load(tmp_path / "run" / "policy").spec.alarm is None


def test_settings_that_learned_nothing_may_be_changed(data: Path, tmp_path: Path) -> None:
    wrong = {"pretrain.similarity.pairs": 2, "pretrain.similarity.estimate": "sampled"}
    with pytest.raises(ConfigError, match=r"tiny \(.*tiny.zarr\): K = 0.05 of 2 pairs selects no pair"):
        make(tmp_path, data, wrong).pretrain()
    make(tmp_path, data).make("demonstrations")
    assert Run(tmp_path).read_config()["settings"]["pretrain"]["similarity"]["pairs"] == 5000


def test_a_camera_that_the_simulator_lacks_shows_before_training(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown camera 'wrist': available are 'top' in simulator 'pusht'"):
        make(tmp_path, data, {"pretrain.encoder.cameras": ("wrist",)}).evaluate()


def elsewhere(_: str) -> SimulatorSpec:
    """Another task under the name."""
    arm = Schema(("top",), (("qpos", 14),), actions=ActionSpace.joints(6, "left", "right"))
    return replace(PUSHT, name="aloha-transfer", schema=arm)


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("trained")


def test_another_task_shows_before_training(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "simulator_spec", elsewhere)
    monkeypatch.setattr(pipeline, "Trainer", never)
    wanted = r"tiny \(.*tiny.zarr\) is of another task than simulator 'pusht': proprioception .* --simulator NAME, one"
    with pytest.raises(ConfigError, match=wanted):
        make(tmp_path, data).evaluate()
    with pytest.raises(ConfigError, match=wanted):
        make(tmp_path, data, {"pretrain.evaluations": 2}).pretrain()
    monkeypatch.undo()
    monkeypatch.setattr(evaluation, "simulator_spec", elsewhere)
    make(tmp_path, data).pretrain()  # what has no simulator can be learned from
    with pytest.raises(ConfigError, match=wanted):
        evaluate_run(Run(tmp_path), quiet=True)


def test_evaluations_during_training_may_retrieve_in_their_own_way(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[RetrievalPolicy] = []
    monkeypatch.setattr(stages.Work, "_evaluate_intermediate", lambda _, policy, *__: seen.append(policy))
    made = config(data)
    assert made.retrieval.k > 1
    made = replace(made, pretrain=replace(made.pretrain, evaluations=2))
    Pipeline(Run(tmp_path), made, quiet=True).pretrain()
    alone = replace(made, intermediate_retrieval=replace(made.retrieval, k=1))
    Pipeline(Run(tmp_path / "alone"), alone, quiet=True).pretrain()
    assert [policy.config for policy in seen] == [made.retrieval] * 2 + [replace(made.retrieval, k=1)] * 2
    # It decides nothing about the run: the same folder goes on without it, and acts in the usual way.
    assert Pipeline(Run(tmp_path / "alone"), made, quiet=True).policy.config == made.retrieval


def test_states_of_another_simulator_are_not_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = fakes.demonstrations(0, 96, fakes.LENGTHS).with_images({})
    assert foreign.states is not None
    foreign = replace(foreign, states=np.zeros((foreign.num_steps, 46)), simulator="aloha-transfer")
    monkeypatch.setattr(rundata, "read_demonstrations", lambda *_, **__: foreign)
    wanted = (
        r"holds states of 46 dimensions of simulator 'aloha-transfer', but simulator 'pusht', which is to render them, "
        r"has states of 5\. Leave --simulator out, or name that one: --simulator aloha-transfer"
    )
    with pytest.raises(ConfigError, match=wanted):
        make(tmp_path, tmp_path).make("demonstrations")


def test_embeddings_of_instructions_are_not_mixed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = replace(fakes.demonstrations(0, 96, fakes.LENGTHS), versions={"language": "bert-base-uncased"})
    monkeypatch.setattr(rundata, "read_demonstrations", lambda *_, **__: spoken)
    make(tmp_path, data).make("demonstrations")
    Run(tmp_path).policy.mkdir()  # as if it had been built
    wanted = "embedded by 'bert-base-uncased', but simulator 'pusht' now embeds them by 'stand-in'"
    for module in (rundata, evaluation):
        monkeypatch.setattr(module, "simulator_spec", lambda _: replace(PUSHT, language_source="stand-in"))
    with pytest.raises(ConfigError, match=rf"walks \(memory\): instructions were {wanted}"):
        evaluate_run(Run(tmp_path), quiet=True)
    with pytest.raises(ConfigError, match=wanted):
        make(tmp_path, data).evaluate()
    with pytest.raises(ConfigError, match=wanted):
        make(tmp_path / "new", data).make("demonstrations")


def test_other_scenes_are_refused_where_states_are_rendered(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = replace(fakes.demonstrations(0, 96, fakes.LENGTHS), versions={"robosuite": "0.1"})
    monkeypatch.setattr(rundata, "read_demonstrations", lambda *_, **__: old)
    monkeypatch.setattr(rundata, "simulator_spec", lambda _: replace(PUSHT, packages=("robosuite",)))
    make(tmp_path, data).make("demonstrations")
    assert "recorded with robosuite 0.1" in caplog.text
    with pytest.raises(ConfigError, match=r"its states cannot be rendered.*or use the images that were recorded"):
        make(tmp_path / "new", data, {"frames.source": "rendered"}).make("demonstrations")


def test_retrieval_by_state_needs_an_extent_of_the_world(
    finished: tuple[Run, list[EvaluationRow]], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "simulator_spec", lambda _: replace(PUSHT, world=None))
    made = make(Path(shutil.copytree(finished[0].root, tmp_path / "run")), data)
    made.make("demonstrations")
    with pytest.raises(ConfigError, match=r"simulator 'pusht' names neither objects nor an extent of its world"):
        state_policy(made["demonstrations"], "pusht")
    assert list(made.evaluate()) == ["class", "untrained"]


def test_shift_needs_states(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stateless = replace(fakes.demonstrations(0, 96, fakes.LENGTHS), states=None)
    monkeypatch.setattr(rundata, "read_demonstrations", lambda *_, **__: stateless)
    with pytest.raises(DataError, match=r"walks \(memory\) holds no simulator states, so shift 'rand-color'"):
        make(tmp_path, data, {"frames.shift": "rand-color"}).pretrain()


def test_the_folder_cannot_be_a_file(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"cannot write .*file.summary.json"):
        make(tmp_path / "file", data).make("demonstrations")


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".notes.tmp").write_text("mine")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".a.json.123.0123abcd.tmp").write_text("half")
    half = tmp_path / ".encoder.123.0123abcd.tmp"
    half.mkdir()
    (half / "model.safetensors").write_text("half")
    write_folder(tmp_path / "encoder", lambda path: (path / "a").write_text("whole") and None)
    young = tmp_path / ".b.json.123.0123abcd.tmp"
    young.write_text("of an evaluation that another process writes")
    for path in tmp_path.rglob("*.tmp"):
        if path != young:
            os.utime(path, (0, 0))
    analysis.remove_leftovers(Run(tmp_path))
    young.unlink()
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".notes.tmp", "a", "checksums.json", "encoder", "sub"]


def test_a_shift_of_a_preset_is_that_of_its_frames_and_evaluations() -> None:
    from classact.run.presets import PRESETS

    for name, preset in PRESETS.items():
        made = from_preset(name, shift="rand-color")
        assert made.retrieval.temperature == preset.tau_shifted
        assert (made.frames.shift, made.evaluation.shift) == ("rand-color", "rand-color")
    assert np.isfinite([preset.tau_shifted for preset in PRESETS.values()]).all()
