"""Runs on data without a simulator: recorded cameras, held-out actions, and a page."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classact.cli.finetune import Finetune, head_config
from classact.cli.flags import UsageError, counted, parse
from classact.cli.main import main
from classact.cli.runs import ACTING_FLAGS, Evaluate, Pretrain, run_config
from classact.data.schema import Schema
from classact.data.statistics import Statistics
from classact.data.types import Demonstrations, Observation
from classact.data.video import read_video
from classact.errors import ConfigError
from classact.evaluation.rows import ActionError, Consistency, EpisodeError
from classact.pages import build_report
from classact.pages.demonstrations import without
from classact.policies import RetrievalPolicy, Runner
from classact.policies.monitored import MonitoredPolicy
from classact.run.config import RunConfig
from classact.run.data import RunData, run_rate
from classact.run.evaluate import evaluate_run
from classact.run.export import export_hub
from classact.run.finetune import HeadPipeline
from classact.run.folder import Run
from classact.run.load import load_policy
from classact.run.presets import as_recorded, configure, configure_head
from classact.run.pretrain import Pipeline
from classact.utils.codec import from_json, to_json
from classact.utils.codec import without as without_path
from classact.utils.storage import read_arrays, read_json, write_json

sys.path.insert(0, str(Path(__file__).parents[1] / "data/readers"))
from lerobot_files import episode, write_v3

VIEWS = {"observation.images.top": (32, 48), "observation.images.wrist": (24, 24)}
MOTORS = ["shoulder.pos", "elbow.pos", "gripper.pos"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    episodes = [episode(14 + i, i, actions=3, cameras=VIEWS) for i in range(6)]
    return write_v3(tmp_path_factory.mktemp("data") / "arm", episodes, names={"action": MOTORS})


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What the demo leaves."""
    out = tmp_path_factory.mktemp("run") / "demo"
    command = ["demo", "--data", str(data), "--preset", "debug", "--out", str(out), "--workers", "1", "--quiet"]
    assert main(command) == 0
    return Run(out)


def test_settings_are_of_what_was_recorded(data: Path) -> None:
    made = configure(data)
    assert (made.frames.simulator, made.frames.shift, made.heldout, made.baselines) == ("none", "fixed", 1, False)
    assert made.pretrain.encoder.cameras == ("top", "wrist")
    assert made == configure(data, preset="real-cpu")
    assert configure_head(made).finetune.evaluations == 0
    assert configure(data, simulator="pusht").frames.simulator == "pusht"
    with pytest.raises(ConfigError, match=r"shift 'rand-color' is drawn by a simulator, .* declares none\. Name it"):
        configure(data, shift="rand-color")


def test_windows_are_given_in_seconds(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the 10 steps per second of these data, and at the 5 of every second one."""

    def made(*flags: str) -> RunConfig:
        command = ["--data", str(data), "--preset", "debug", "--out", "/nowhere", *flags]
        return run_config(parse(Pretrain, command, "classact pretrain"))

    windows = ["--horizon", "0.8s", "--chunk-length", "1.8s", "--min-actions", "3"]
    config = made(*windows)
    assert config.pretrain.similarity.horizon == 8
    retrieval = config.retrieval
    assert (retrieval.chunk_length, retrieval.min_actions, retrieval.horizon) == (18, 3, 18)  # which has room for them
    assert "--horizon 0.8 s = 8 steps at 10 steps per second" in capsys.readouterr().err
    config = made(*windows, "--fps", "5", "--intermediate-retrieval.chunk-length", "1.1s")
    assert (config.pretrain.similarity.horizon, config.retrieval.chunk_length, config.retrieval.horizon) == (4, 9, 16)
    assert config.intermediate_retrieval is not None
    assert config.intermediate_retrieval.chunk_length == 6
    assert "chunk-length 1.1 s = 6 steps, 1.2 s, at 5 steps per second" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"--horizon: expected steps, or seconds as in 1\.6s, got '0\.8'"):
        made("--horizon", "0.8")
    asked = configure(data, preset="debug", horizon="0.8s", chunk_length="1.8s")
    assert (asked.pretrain.similarity.horizon, asked.retrieval.horizon) == (8, 18)


@given(fps=st.floats(0.5, 1000), lengths=st.lists(st.integers(1, 4000), min_size=4, max_size=4))
@settings(max_examples=30, deadline=None)
def test_the_preset_for_robots_spans_the_same_time_at_any_rate(fps: float, lengths: list[int]) -> None:
    ends = np.cumsum(lengths)
    actions = np.zeros((ends[-1], 3), np.float32)
    schema = Schema(proprioception=(("arm", 3),), fps=fps)
    known = Demonstrations("robot", ends, actions, actions, schema=schema)
    made = as_recorded(configure("none", preset="real-cpu"), known, rate=10.0)
    horizon, retrieval = made.pretrain.similarity.horizon, made.retrieval
    longest = np.median(lengths) // 2
    if 4 <= 1.6 * fps <= min(160, longest):
        assert horizon == retrieval.horizon == pytest.approx(1.6 * fps, abs=0.51)
        assert retrieval.chunk_length == retrieval.min_actions == pytest.approx(0.8 * fps, abs=1.1)
    assert 2 <= horizon <= max(2, min(160, longest))
    similarity = made.pretrain.similarity  # compared at about ten steps per second
    assert similarity.stride == min(horizon, max(1, round(fps / 10)))
    head = configure_head(made).finetune
    assert head.horizon >= head.chunk_length == retrieval.chunk_length


def test_data_that_do_not_say_their_rate_take_steps_only() -> None:
    actions = np.zeros((60, 3), np.float32)
    known = Demonstrations("robot", np.array([30, 60]), actions, actions)
    with pytest.raises(ConfigError, match=r"horizon 0\.8 s: at how many steps per second robot .* is not known"):
        configure(known, horizon="0.8s")
    assert configure(known, horizon=24).pretrain.similarity.horizon == 24


def test_a_layout_says_which_cameras_there_are(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    rng = np.random.default_rng(0)
    for name, array in {
        "data/command": rng.normal(size=(60, 3)),
        "data/front": rng.integers(0, 255, (60, 16, 16, 3), np.uint8),
        "meta/episode_ends": np.array([20, 40, 60]),
    }.items():
        root.create_array(name, shape=array.shape, dtype=array.dtype, chunks=array.shape)[:] = array
    layout = tmp_path / "layout.json"
    layout.write_text('{"action": "command", "cameras": {"eye": "front"}}')
    command = ["--data", str(tmp_path / "a.zarr"), "--layout", str(layout), "--out", str(tmp_path / "out")]
    made = run_config(parse(Pretrain, [*command, "--preset", "debug"], "classact pretrain"))
    assert (made.pretrain.encoder.cameras, made.frames.simulator, made.heldout) == (("eye",), "none", 1)
    made = run_config(parse(Pretrain, [*command, "--preset", "debug", "--episodes", "0:2"], "classact pretrain"))
    assert (made.heldout, made.episodes) == (0, "0:2")
    held = [configure(command[1], preset="debug", layout=str(layout), heldout=count).heldout for count in (0, 2)]
    assert held == [0, 2]


def test_the_demo_ends_with_errors_on_held_out_demonstrations(finished: Run) -> None:
    found = {one.policy: one for one in finished.read_actions()}
    assert set(found) == {"retrieval", "mlp", "nearest by pixels", "random", "mean"}
    assert all(isinstance(one, ActionError) and np.isfinite(one.l2.value) for one in found.values())
    assert all(len(one.by_episode) == 1 for one in found.values())
    assert not finished.summary.exists()
    assert not (finished.root / "evaluations").exists()
    encoder = finished.settings().pretrain.encoder
    assert encoder.cameras == ("top", "wrist")


def test_reasons_are_of_held_out_demonstrations(finished: Run) -> None:
    arrays = read_arrays(finished.neighbors)
    assert set(arrays["query_seed"].tolist()) == {5}  # the last of six
    assert arrays["done"].shape == arrays["query_chunk"].shape
    assert (arrays["episode"] < 5).all()
    assert "world" not in arrays


def test_the_page_says_what_there_is(finished: Run) -> None:
    page = build_report(finished.root).read_text(encoding="utf-8")
    assert "On demonstrations that it has not seen, the policy's actions are" in page
    assert "No simulator is there to roll out in" in page
    assert 'id="actions"' in page
    assert 'class="curves"' in page
    assert "This run has not been evaluated yet" not in page
    assert "there is no simulator to roll out in; held-out actions are compared instead" in page


def test_the_page_shows_a_held_out_demonstration_as_a_video(finished: Run) -> None:
    (row,) = read_json(finished.novelty / "videos.json")
    assert (row["label"], row["episode"], row["steps"], row["cameras"]) == ("held out", 5, 19, [2, 2])
    film = read_video(finished.novelty / row["file"])
    assert len(film) == 19  # at 10 steps per second each is shown
    assert (film[0] != film[-1]).any()
    page = build_report(finished.root).read_text(encoding="utf-8")
    assert page.count('src="data:video/mp4;base64,') == 1


def test_the_page_says_what_data_hold_and_which_demonstrations_differ(finished: Run) -> None:
    page = build_report(finished.root).read_text(encoding="utf-8")
    assert "6, of which the last 1 are held out" in page
    assert "There are too few demonstrations to say which one stands out." in page
    found = from_json(Consistency, read_json(finished.consistency), "consistency.json")
    assert [one.steps for one in found.episodes] == [14, 15, 16, 17, 18]
    assert read_arrays(finished.inconsistent)["episode"].tolist() == [one.episode for one in found.ranked]


def test_demonstrations_have_their_numbers_in_the_data_set(finished: Run) -> None:
    assert RunConfig(episodes="0:2,5,7:9").numbers(5) == [0, 1, 5, 7, 8]
    found = from_json(Statistics, read_json(finished.statistics), "data.json")
    errors = [EpisodeError(e, 10, 9.0 if e == 3 else 1.0, 0, 1.0) for e in range(9)]
    flags = without(Consistency(4, 90, 90, tuple(errors)), found, [0, 1, 2, *range(10, 17)])
    assert flags == "--episodes 0:3,11:17 --heldout 1"


def test_rollouts_are_refused_by_name(finished: Run, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no simulator to roll out in: .*--simulator NAME"):
        evaluate_run(finished, quiet=True)
    made = configure(data, preset="debug")
    asked = replace(made, pretrain=replace(made.pretrain, evaluations=2))
    with pytest.raises(ConfigError, match="2 evaluations during training need a simulator"):
        Pipeline(Run(tmp_path), asked, quiet=True)


def test_a_head_is_compared_over_as_many_steps_as_retrieval(finished: Run) -> None:
    assert (
        main(["finetune", str(finished.root), "--head", "flow", "--preset", "head-debug", "--name", "f", "--quiet"])
        == 0
    )
    found = {one.policy for one in finished.read_actions()}
    assert "f" in found


def test_all_held_out_errors_are_over_the_same_steps(
    finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(shutil.copytree(finished.root, tmp_path / "run"))
    usual = {error.policy: error for error in run.read_actions()}
    length = run.settings().retrieval.chunk_length
    assert {error.steps for error in usual.values()} == {length}
    write_json(run.actions, {name: without_path(to_json(error), "steps") for name, error in usual.items()})
    assert {error.steps for error in run.read_actions()} == {None}
    page = build_report(run.root).read_text(encoding="utf-8")
    assert "of chunks over steps that an earlier version did not note, perhaps not the same for all" in page
    command = ["finetune", str(run.root), "--head", "mlp", "--preset", "head-debug", "--quiet"]
    assert main([*command, "--name", "short", "--horizon", "4", "--chunk-length", "2"]) == 0
    found = {error.policy: error for error in run.read_actions()}
    assert found.keys() == {*usual, "short"}
    assert {error.steps for error in found.values()} == {4} != {length}
    assert "held-out actions over 4 steps, scaled" in capsys.readouterr().out
    # Whoever is measured next keeps to that, and all are measured anew once no such head is there.
    Pipeline(run, run.settings(), quiet=True).evaluate()
    assert {error.steps for error in run.read_actions()} == {4}
    shutil.rmtree(run.head("short"))
    write_json(run.actions, {name: to_json(error) for name, error in found.items() if name != "short"})
    assert main([*command, "--name", "long"]) == 0
    again = {error.policy: error for error in run.read_actions()}
    assert {error.steps for error in again.values()} == {length}
    assert all(again[name] == error for name, error in usual.items())


@pytest.mark.parametrize("name", ["retrieval", "mean", "random"])
def test_heads_have_no_names_of_what_they_are_compared_with(finished: Run, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name!r} cannot be the name of a head: in the run's tables it stands for"):
        HeadPipeline(finished, configure_head(finished.settings()), name=name, quiet=True)


def test_heads_and_saved_policies_take_seconds_of_the_run(finished: Run) -> None:
    command = [str(finished.root), "--head", "mlp", "--preset", "head-debug", "--horizon", "1.6s", "--chunk-length"]
    made = head_config(parse(Finetune, [*command, "0.62s", "--name", "other"], "classact finetune"))
    assert (made.finetune.horizon, made.finetune.chunk_length) == (16, 6)
    given = parse(Evaluate, [str(finished.root), "--chunk-length", "0.4s", "--k", "3"], "classact evaluate").acting
    assert counted(ACTING_FLAGS, given, lambda: run_rate(finished)) == {"chunk_length": 4, "k": 3}


def test_an_exported_head_acts_as_it_was_evaluated(finished: Run, tmp_path: Path) -> None:
    run = Run(shutil.copytree(finished.root, tmp_path / "run"))
    head = "mlp"  # of the demo
    remembers = RetrievalPolicy.load(run.policy, revisit=0.999)
    shutil.rmtree(run.policy)
    remembers.save(run.policy)
    own = load_policy(run.head(head))
    assert isinstance(own, MonitoredPolicy)
    read = load_policy(export_hub(run, tmp_path / "out", head=head))
    assert isinstance(read, MonitoredPolicy)
    schema = own.spec.schema
    assert schema is not None
    rng = np.random.default_rng(0)
    images = {"top": rng.integers(0, 255, (32, 48, 3), np.uint8), "wrist": rng.integers(0, 255, (24, 24, 3), np.uint8)}
    seen = [Observation(images, rng.normal(size=schema.proprioception_dim).astype(np.float32))]
    one, two = Runner(own), Runner(read)
    for _ in range(20):
        assert np.array_equal(one.step(seen[0]), two.step(seen[0]))
    assert one.decision is not None
    assert one.decision.visits is not None
    assert one.decision.visits[0] > 0  # it stands still, which the monitor remembers


def test_an_encoder_of_other_cameras_sees_the_same_data(finished: Run) -> None:
    settings = finished.settings()
    encoder = replace(settings.pretrain.encoder, cameras=("wrist",))
    RunData(settings, encoder, quiet=True).check_unchanged(finished)


def test_too_few_demonstrations_hold_none_out(tmp_path: Path) -> None:
    data = write_v3(tmp_path / "two", [episode(18, i, cameras={"observation.image": (24, 24)}) for i in range(2)])
    assert configure(data).heldout == 0
    out = tmp_path / "out"
    assert main(["demo", "--data", str(data), "--preset", "debug", "--out", str(out), "--head", "none", "--quiet"]) == 0
    assert Run(out).read_actions() == []
    assert "This run has not been evaluated yet" in (out / "report.html").read_text(encoding="utf-8")


def test_several_data_sets_train_together_and_none_may_change(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    episodes = [episode(11 + i, 6 + i, actions=3, cameras=VIEWS) for i in range(4)]
    other = write_v3(tmp_path / "other", episodes, names={"action": MOTORS})
    out = tmp_path / "run"
    words = ["pretrain", "--data", str(data), str(other), "--data-weights", "1", "0.5", "--preset", "debug"]
    words += ["--out", str(out), "--quiet", "--heldout", "3"]
    assert main(words) == 0
    run = Run(out)
    known = run.read_config()["data"]
    assert [(one["source"], one["episodes"], one["weight"]) for one in known["sets"]] == [
        (str(data), 6, 1.0),
        (str(other), 4, 0.5),
    ]
    assert run.settings().data == (str(data), str(other))
    assert main(words) == 0  # the same command continues: nothing is left to do
    assert main(["finetune", str(out), "--head", "mlp", "--preset", "head-debug", "--quiet"]) == 0
    capsys.readouterr()
    assert main([*words, "--data-weights", "1", "1"]) == 1
    assert "settings.data_weights" in capsys.readouterr().err
    moved = tmp_path / "moved"
    other.rename(moved)
    write_v3(tmp_path / "other", [episode(11 + i, 5 + i, actions=3, cameras=VIEWS) for i in range(4)])
    assert main(["finetune", str(out), "--head", "mlp", "--preset", "head-debug", "--name", "b", "--quiet"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"data.sets[1] ({other}): fingerprint" in said
