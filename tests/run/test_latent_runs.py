"""Latent actions from the command line, runs that learn from them, and policies that act by what is decoded."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from classact.cli.main import main
from classact.data.readers import first_episodes, read_demonstrations
from classact.data.types import Observation
from classact.errors import ConfigError, DataError
from classact.evaluation.actions import HeldOut
from classact.models.latent_actions import LatentActionModel
from classact.pages.latent_actions import warnings as page_warnings
from classact.pages.reasons import reasons
from classact.policies import ParametricPolicy, RetrievalPolicy, load_policy
from classact.policies.monitored import MonitoredPolicy
from classact.run.analysis import write_recorded_neighbors
from classact.run.data import RunData, lie_beside
from classact.run.folder import Run
from classact.run.latent_actions import MODEL, NUMBERS, learn_latent_actions, linear_probe, ranges
from classact.run.load import load_policy as load_run_policy
from classact.run.presets import LATENT_ACTION_PRESETS, configure
from classact.run.stand_ins import COMPONENTS, STAND_INS
from classact.similarity import ActionSimilarity, SimilarityConfig
from classact.similarity.reference import dtw
from classact.utils.codec import to_json
from classact.utils.storage import read_arrays, read_json, read_jsonl, write_json

sys.path.insert(0, str(Path(__file__).parents[1] / "data/readers"))
from lerobot_files import episode, write_v3

VIEWS = {"observation.images.top": (32, 48)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    episodes = [episode(14 + i, i, actions=3, cameras=VIEWS) for i in range(6)]
    return write_v3(tmp_path_factory.mktemp("data") / "arm", episodes)


@pytest.fixture(scope="module")
def learned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("latent") / "actions"
    words = ["latent-actions", "--data", str(data), "--labelled", "0:2", "--preset", "clam-debug", "--out", str(out)]
    assert main([*words, "--quiet"]) == 0
    return out


@pytest.fixture(scope="module")
def run(data: Path, learned: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("run") / "latent"
    words = ["--data", str(data), "--preset", "debug", "--out", str(out), "--latent-actions", str(learned / "model")]
    assert main(["pretrain", *words, "--workers", "1", "--quiet"]) == 0
    assert main(["finetune", str(out), "--head", "mlp", "--preset", "head-debug", "--quiet"]) == 0
    return Run(out)


def test_measures_are_of_both_pools(data: Path, learned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = read_json(learned / NUMBERS)
    model, read = LatentActionModel.load(learned / "model"), read_demonstrations(data)
    z, found = model.infer(read), numbers["measures"]
    decoded, done = (model.decoder.actions.apply(one) for one in (model.decoder.decode(z), read.actions))
    rows = np.setdiff1d(np.arange(read.num_steps), read.episode_ends - 1)
    for name, some in (("action_error", rows[rows < 29]), ("action_error_others", rows[rows >= 29])):
        assert found[name] == pytest.approx(((decoded[some] - done[some]) ** 2).mean(), rel=1e-5)
    assert numbers["data"]["labelled"] == 2
    words = ["latent-actions", "--data", str(data), "--preset", "clam-debug", "--out", str(learned)]
    assert main([*words, "--labelled", "0:2"]) == 0  # nothing is done again
    assert "2 of 6 demonstrations" in capsys.readouterr().out
    assert main([*words, "--labelled", "0:3"]) == 1
    message = "was made with labelled = '0:2', now it is '0:3'"
    assert message in capsys.readouterr().err


def test_recorded_actions_are_learned_from_where_they_are_asked(data: Path, learned: Path) -> None:
    """Also where decoded latent ones are executed."""
    made = configure(data, preset="debug", latent_actions=learned / "model", learn_from="actions", heldout=1)
    source = RunData(made, quiet=True)
    assert_array_equal(source.learned(source.states()).actions, source.recorded.actions[: source.states().num_steps])
    assert not np.array_equal(source.states().actions, source.recorded.actions[: source.states().num_steps])


def test_labels_are_counted_through_the_data_sets_whatever_is_held_out(data: Path, tmp_path: Path) -> None:
    other = write_v3(tmp_path / "other", [episode(20 + i, i, actions=3, cameras=VIEWS) for i in range(6)])
    both = (str(data), str(other))
    made = configure(both, preset="debug", labelled="0:6", heldout=2, learn_from="next-proprioception")
    found = RunData(made, quiet=True).recorded
    assert found.labelled is not None
    assert found.origin is not None
    assert_array_equal(found.labelled, found.origin == 0)
    read = read_demonstrations(both, heldout=2).only_labelled(np.flatnonzero(found.origin == 1).tolist())
    assert configure(read, preset="debug").labelled == "6:12"


def test_an_episode_of_one_step_is_refused_before_anything_is_learned(data: Path, tmp_path: Path) -> None:
    read = read_demonstrations(data)
    ends = np.insert(read.episode_ends, -1, read.episode_ends[-1] - 1)
    one = replace(read, episode_ends=ends, instructions=())
    with pytest.raises(DataError, match=r"episode 6 has one step.*leave it out \(--episodes\)"):
        learn_latent_actions(one, LATENT_ACTION_PRESETS["clam-debug"], tmp_path / "out", labelled=[0])
    assert not (tmp_path / "out").exists()


def test_a_finished_model_is_of_its_images(data: Path, tmp_path: Path) -> None:
    read = read_demonstrations(data)
    preset = LATENT_ACTION_PRESETS["clam-debug"]
    config = replace(preset, model=replace(preset.model, network="cnn", camera="top"), updates=1, batch_size=2)
    seen = {"top": np.asarray(read.images["top"])}
    learn_latent_actions(read.with_images(seen), config, tmp_path / "out", labelled=[0], quiet=True)
    learn_latent_actions(read.with_images(seen), config, tmp_path / "out", labelled=[0], quiet=True)
    with pytest.raises(ConfigError, match="out was made with images"):
        learn_latent_actions(read.with_images({"top": 255 - seen["top"]}), config, tmp_path / "out", labelled=[0])
    with pytest.raises(DataError, match=r"sees camera 'top', which is not among those at hand \(none\)"):
        LatentActionModel.load(tmp_path / "out" / "model").infer(read.with_images({}))


def test_a_head_is_monitored_however_its_path_is_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.heads)
    assert type(load_run_policy("mlp")) is type(load_run_policy(run.heads / "mlp")) is MonitoredPolicy


def test_the_page_of_latent_actions(learned: Path) -> None:
    numbers, log = read_json(learned / NUMBERS), read_jsonl(learned / "train.jsonl")
    assert all(row["action"] > 0 for row in log)  # updates without labels are logged, too
    text = (learned / "latent_actions.html").read_text(encoding="utf-8")
    for one in numbers["dimensions"]:
        assert f'<data value="{one["error"]}">' in text
    mean = np.mean([one["error"] for one in numbers["dimensions"]])
    assert mean == pytest.approx(numbers["measures"]["action_error_others"], rel=1e-4)
    assert "plot-map-decoded-0" in text
    assert "plot-loss-reconstruction" in text
    good = log[-1] | {"reconstruction": 0.1, "reconstruction_by_others": 0.2}
    assert page_warnings(numbers, [good], 0.1, 0.2) == []
    bad = numbers | {"measures": numbers["measures"] | {"reconstruction": 2.0, "copy": 1.0}}
    said = page_warnings(bad, [good | {"reconstruction_by_others": 0.1}], 0.3, 0.2)
    for words in ("have collapsed", "no better than the mean action", "no better than by the last one"):
        assert any(words in one for one in said), words


def test_a_run_learns_from_latent_actions_and_executes_decoded_ones(data: Path, learned: Path, run: Run) -> None:
    model, source = LatentActionModel.load(learned / "model"), RunData(run.settings(), quiet=True)
    z = model.infer(read_demonstrations(data))
    frames = source.frames()
    assert_array_equal(source.learned(frames).actions, z[: frames.num_steps])
    retrieval, head = load_policy(run.policy), load_policy(run.head("mlp") / "policy")
    assert isinstance(retrieval, RetrievalPolicy)
    assert isinstance(head, ParametricPolicy)
    assert_array_equal(retrieval.actions, model.decoder.decode(z)[: frames.num_steps])
    image = np.zeros((32, 48, 3), np.uint8)
    seen = [Observation({"top": image}, np.zeros(frames.proprioception.shape[1], np.float32))]
    raw = replace(head, decoder=None, actions=head.actions).decide(seen).chunk
    assert raw.shape[2] == 4
    assert_array_equal(head.decide(seen).chunk, model.decoder.decode(raw))
    assert head.decide([]).chunk.shape[2] == 3
    # Compared with what was done in held-out demonstrations, not with what their latent actions are decoded to.
    held = source.held_out(4)
    assert_array_equal(held.data.actions, source.recorded.actions[frames.num_steps :])
    assert len(held.rows)
    done = first_episodes(source.recorded, len(frames))
    assert_array_equal(held.range.low, done.action_range().low)
    # The head is compared with what a user needs to judge it by, though nothing was evaluated before.
    assert {error.policy for error in run.read_actions()} >= {"mlp", "retrieval", "mean", "random"}


def test_other_latent_actions_are_refused(
    data: Path, learned: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["latent-actions", "--data", str(data), "--preset", "clam-debug", "--out", str(tmp_path / "other")]
    assert main([*words, "--quiet"]) == 0
    words = ["pretrain", "--data", str(data), "--preset", "debug", "--out", str(run.root), "--quiet"]
    assert main([*words, "--latent-actions", str(tmp_path / "other/model")]) == 1
    assert "was started with settings.latent_actions = " in capsys.readouterr().err
    assert main(words) == 0  # as it was started
    assert main([*words, "--latent-actions", str(learned / "model")]) == 0


def test_a_run_that_moved_with_its_model_finds_it(run: Run, learned: Path, tmp_path: Path) -> None:
    settings = replace(run.settings(), latent_actions=str(tmp_path / "before" / "latent/model"))
    card = run.read_config() | {"settings": to_json(settings), "beside": {"latent_actions": "../latent/model"}}
    assert lie_beside(Run(tmp_path / "before" / "run"), settings)["latent_actions"] == "../latent/model"
    shutil.copytree(learned, tmp_path / "now" / "latent")
    moved = Run(tmp_path / "now" / "run")
    write_json(moved.config, card)
    assert moved.settings().latent_actions == str(tmp_path / "now" / "latent/model")


def test_a_model_that_moved_alone_is_the_same_at_its_new_place(
    run: Run, learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run.root, tmp_path / "run")
    here = Run(tmp_path / "run")
    settings = replace(here.settings(), latent_actions=str(tmp_path / "before" / "model"))
    write_json(here.config, here.read_config() | {"settings": to_json(settings), "beside": {}})
    words = ["pretrain", "--data", settings.data, "--preset", "debug", "--out", str(here.root), "--quiet"]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "the latent action model" in said
    assert "before/model does not exist" in said
    assert "--latent-actions FOLDER" in said
    assert main([*words, "--latent-actions", str(learned / "model")]) == 0


def test_latent_actions_of_images_are_inferred_from_what_they_were_learned_from(
    data: Path, run: Run, tmp_path: Path
) -> None:
    recorded, config = read_demonstrations(data), LATENT_ACTION_PRESETS["clam-debug"]
    config = replace(config, updates=1, batch_size=2, model=replace(config.model, network="cnn", camera="top"))
    learn_latent_actions(recorded, config, tmp_path, quiet=True)
    settings = replace(run.settings(), latent_actions=str(tmp_path / MODEL))
    assert settings.pretrain.encoder.image_size < 64
    z = LatentActionModel.load(tmp_path / MODEL).infer(recorded)
    assert_array_equal(RunData(settings, quiet=True).latent_actions, z)


def test_a_latent_action_model_is_of_the_same_robot_and_rate(data: Path, learned: Path) -> None:
    model, schema = LatentActionModel.load(learned / "model"), read_demonstrations(data).schema
    with pytest.raises(
        DataError, match=r"arm has 5 steps per second, the latent action model was trained on 10.*--fps"
    ):
        model.check(replace(schema, fps=5.0), "arm")
    model.check(replace(schema, fps=None), "arm")
    with pytest.raises(DataError, match=r"'state' of size none, the latent action model was trained on 3 numbers"):
        model.check(replace(schema, proprioception=()), "arm")


def test_several_data_sets_keep_what_a_latent_action_model_observes(data: Path, run: Run, tmp_path: Path) -> None:
    other = write_v3(tmp_path / "other", [episode(12 + i, 9 + i, actions=3, cameras=VIEWS) for i in range(2)])
    settings = replace(run.settings(), data=(str(data), str(other)), keys=(), heldout=2)
    source = RunData(settings, quiet=True)
    z, model = source.latent_actions, source.latent
    assert model is not None
    assert_array_equal(z, model.infer(source.recorded))


def test_reasons_show_what_was_done_where_it_is_known(run: Run, tmp_path: Path) -> None:
    frames, policy = RunData(run.settings(), quiet=True).frames(), RetrievalPolicy.load(run.policy)
    some = first_episodes(frames, 3)
    for labelled, shown in (([1], {1}), ([], {0, 1, 2})):
        out = Run(tmp_path / str(len(labelled)))
        held = HeldOut.of(some.only_labelled(labelled), frames, 4)
        write_recorded_neighbors(out, policy, frames, held)
        arrays = read_arrays(out.neighbors)
        assert set(arrays["query_seed"] - len(frames)) == shown
        assert arrays["done"].shape[1] == (4 if labelled else 0)
        known = {(reason["away"] is not None, bool(reason["done"])) for reason in reasons(arrays)}
        assert known == {(bool(labelled), bool(labelled))}


def test_demonstrations_without_actions_are_refused(data: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(run.settings(), latent_actions=None)
    some = read_demonstrations(data).only_labelled([0, 3])
    monkeypatch.setattr("classact.run.data.read_demonstrations", lambda *_, **__: some)
    with pytest.raises(ConfigError, match=r"4 of 6 demonstrations carry no actions.*classact latent-actions"):
        RunData(settings).states()
    assert RunData(run.settings()).states().labelled is None


def substituted(name: str, source: RunData, z: np.ndarray) -> np.ndarray:
    """What each stand-in is, step by step."""
    data = source.recorded
    place = data.proprioception
    ends = set((data.episode_ends - 1).tolist())
    rows = [t - 1 if t in ends else t for t in range(data.num_steps)]
    if name == "next-proprioception":
        return np.array([place[t + 1] for t in rows])
    if name == "proprioception-change":
        return np.array([place[t + 1] - place[t] for t in rows])
    if name == "latent-actions":
        return np.array([z[t] for t in rows])
    if name == "decoded-actions":
        assert source.latent is not None
        return np.array([source.latent.decoder.decode(z[t]) for t in rows])
    features = source.features().astype(np.float64)
    change = np.array([features[t + 1] - features[t] for t in rows])
    change -= change.mean(axis=0)
    return change @ np.linalg.svd(change, full_matrices=False)[2][:COMPONENTS].T


@pytest.mark.parametrize("name", STAND_INS)
def test_what_stands_for_actions_is_compared_in_their_place(name: str, data: Path, learned: Path, run: Run) -> None:
    features = str(run.encoder) if name == "feature-change" else None
    settings = replace(run.settings(), learn_from=name, features=features, labelled="1,3", act_from="labelled")
    source = RunData(settings, quiet=True)
    frames = source.frames()
    learned_from = source.learned(frames)
    z = LatentActionModel.load(learned / "model").infer(source.recorded)
    values = substituted(name, source, z)[: frames.num_steps]
    assert learned_from.labelled is None  # every demonstration has it
    assert learned_from.schema.actions is None
    # Distances are those of the substituted sequences, each dimension over its range.
    scaled = 2 * (values - values.min(0)) / (values.max(0) - values.min(0)) - 1
    similarity = ActionSimilarity(learned_from, SimilarityConfig(horizon=5, quantile=0.05, pairs=2000))
    ends = frames.episode_ends
    chosen = np.array([0, int(ends[0]) - 2, 20, frames.num_steps - 1])
    last = ends[np.searchsorted(ends, chosen, side="right")] - 1
    windows = [scaled[np.minimum(np.arange(t, t + 5), end)] for t, end in zip(chosen, last, strict=True)]
    expected = [[dtw(a, b) for b in windows] for a in windows]
    assert_allclose(similarity.distances(chosen), expected, rtol=2e-3, atol=1e-4)
    # The bank is of the two demonstrations with actions, and so is what heads learn.
    known = [*range(14, 29), *range(45, 62)]
    cloned, decoder = source.cloned(frames)
    assert decoder is None
    assert_array_equal(cloned.actions, read_demonstrations(data).actions[known])
    assert_array_equal(np.flatnonzero(np.repeat(frames.carries_actions(), frames.lengths)), known)


def test_a_run_acts_from_the_demonstrations_with_actions(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others teach the representation all the same, and no page says otherwise."""
    out = tmp_path / "few"
    words = ["--data", str(data), "--preset", "debug", "--out", str(out), "--workers", "1", "--quiet"]
    assert main(["pretrain", *words, "--labelled", "1,3", "--epochs", "0.1"]) == 1
    message = "4 of 6 demonstrations carry no actions, which this learns from. Learn latent ones"
    assert message in capsys.readouterr().err
    words += ["--labelled", "1,3", "--learn-from", "proprioception-change"]
    assert main(["demo", *words, "--head", "mlp", "--epochs", "0.5"]) == 0
    policy, actions = load_policy(out / "policy"), read_demonstrations(data).actions
    assert isinstance(policy, RetrievalPolicy)
    image = np.zeros((32, 48, 3), np.uint8)
    seen = [Observation({"top": image}, np.zeros(3, np.float32))]
    found = policy.decide(seen).neighbors
    assert found is not None
    assert set(np.searchsorted(policy.episode_ends, found.rows[0], side="right").tolist()) <= {1, 3}
    head = load_policy(out / "heads/mlp/policy")
    assert isinstance(head, ParametricPolicy)
    assert_allclose(head.actions.low, actions[[*range(14, 29), *range(45, 62)]].min(0), rtol=1e-6)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "sequences of what stands for actions (proprioception-change)" in page
    assert "of 2 of them" in page
    assert main(["probe", str(out)]) == 1
    assert (
        "a probe compares what was done in all demonstrations, and 4 of 6 carry no actions" in capsys.readouterr().err
    )


def test_a_folder_of_latent_actions_is_no_folder_of_a_run(
    data: Path, learned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "--data", str(data), "--preset", "debug", "--out", str(learned), "--quiet"]) == 1
    assert "is of another kind of training: it does not say bfloat16. Give another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learn-from", "next"], "unknown stand-in for actions 'next'"),
        (["--learn-from", "feature-change"], r"needs what it is made with: name its folder \(--features\)"),
        (["--learn-from", "latent-actions"], r"name its folder \(--latent-actions\)"),
        (["--features", "x"], "features are named, but actions is learned from"),
        (["--act-from", "decoded"], r"needs a model of them: name it \(--latent-actions\)"),
        (
            ["--objective", "byol", "--learn-from", "next-proprioception"],
            "'byol' learns from no actions, so --learn-from",
        ),
        (
            ["--objective", "byol", "--labelled", "5:6"],
            r"5 of 6 .* carry no actions \(1 are held out\), so nothing says",
        ),
    ],
)
def test_what_cannot_stand_for_actions(
    words: list[str], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["pretrain", "--data", str(data), "--preset", "debug", "--out", str(tmp_path / "run"), "--quiet", *words]
    assert main(given) == 1
    assert re.search(message, capsys.readouterr().err)


def test_ranges_in_words() -> None:
    assert ranges(np.array([True, True, False, True])) == "0:2,3:4"
    assert ranges(np.zeros(3, bool)) == ""


def test_a_linear_probe_explains_what_is_linear() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(400, 3)).astype(np.float32)
    actions = (z @ rng.normal(size=(3, 2)) + 1).astype(np.float32)
    assert linear_probe(z[:200], actions[:200], z[200:], actions[200:]) > 0.99
    noise = rng.normal(size=(400, 2)).astype(np.float32)
    assert abs(linear_probe(z[:200], noise[:200], z[200:], noise[200:])) < 0.1
