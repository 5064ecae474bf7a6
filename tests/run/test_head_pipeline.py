from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fakes
from classact.cli.flags import changed
from classact.cli.main import main
from classact.errors import CheckpointError, ConfigError, DataError
from classact.evaluation import rollout
from classact.models.encoders import ImageEncoder
from classact.models.heads import MLPConfig
from classact.policies import ControlConfig, DoubtAlarm, MonitoredPolicy, ParametricPolicy, RetrievalPolicy
from classact.run import data as rundata
from classact.run.config import HeadRunConfig
from classact.run.evaluate import evaluate_run
from classact.run.export import export_hub
from classact.run.finetune import HeadPipeline, as_before
from classact.run.folder import Run
from classact.run.load import load_head, load_policy
from classact.run.presets import HEAD_PRESETS, from_preset
from classact.run.pretrain import Pipeline
from classact.sims.specs import PUSHT
from classact.train import engine
from classact.train.checkpoints import list_checkpoints
from classact.train.config import AugmentConfig
from classact.train.engine import EngineConfig
from classact.train.head import FineTuner
from classact.utils.codec import to_json, without
from classact.utils.storage import read_arrays, read_json, read_jsonl, write_json, write_jsonl


@pytest.fixture(autouse=True)
def short_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "make_simulator", fakes.Short)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with encoder and calibrated retrieval policy, nothing evaluated."""
    source = fakes.write_zarr(tmp_path_factory.mktemp("data") / "tiny.zarr", fakes.demonstrations(0, 96, fakes.LENGTHS))
    small = {"pretrain.similarity.pairs": 5000, "evaluation.episodes": 2, "evaluation.workers": 1, "heldout": 2}
    root = tmp_path_factory.mktemp("run")
    Pipeline(Run(root), changed(from_preset("debug", data=str(source)), small), quiet=True).pretrain()
    return root


@pytest.fixture
def run(pretrained: Path, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(pretrained, tmp_path / "run")))


def config(head: str = "mlp", *, start: str = "run", **changes: Any) -> HeadRunConfig:
    encoder = "scratch" if start == "scratch" else "class"
    made = HEAD_PRESETS["head-debug"].config(head, encoder=encoder, frozen=changes.pop("frozen", False))
    settings = {"evaluations": 2, "batch_size": 16, "precision": "float32", "epochs": 1} | changes
    return HeadRunConfig(replace(made, **settings), start, intermediate_episodes=2)


def make(run: Run, made: HeadRunConfig, **options: Any) -> HeadPipeline:
    return HeadPipeline(run, made, quiet=True, device="cpu", **options)


@pytest.mark.parametrize(
    ("changes", "options", "error", "message"),
    [
        ({"keys": ("elbow",)}, {}, ConfigError, "unknown proprioception key 'elbow'"),
        ({"weights": "last"}, {}, CheckpointError, "is no folder of training checkpoints"),
        ({}, {"engine": EngineConfig(accumulate=99)}, ConfigError, "a batch of 16 cannot be cut into 1 ranks x 99"),
    ],
)
def test_what_does_not_fit_is_refused_before_images_are_made(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    def prepared(*_: Any) -> None:
        raise AssertionError("images were prepared")

    monkeypatch.setattr(rundata, "prepare_frames", prepared)
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    with pytest.raises(error, match=message):
        make(run, config(**changes), **options).train()


def test_more_actions_than_a_chunk_holds_are_refused_at_once(run: Run) -> None:
    with pytest.raises(ConfigError, match="execute 99 asked of policy 'mlp', whose chunks hold T_a = "):
        make(run, replace(config(), evaluation=replace(run.settings().evaluation, execute=99)))


def test_a_head_leaves_policy_intermediates_and_rows_beside_retrieval(run: Run) -> None:
    pipeline = make(run, config())
    pipeline.evaluate()
    folder = Run(run.head("mlp"))
    card = folder.read_config()
    assert run.head_settings("mlp").labels == {"training": "fine-tuned", "augmentation": "crop, noise"}
    assert {"training", "evaluate during training", "evaluation"} <= card["timings"].keys()
    steps = pipeline.finetune.steps(97 - 25 - 20 + 25)  # six episodes but the last two, which are held out
    assert [step for step, _ in list_checkpoints(folder.checkpoints)][-1] == steps
    intermediates = run.read_intermediate()
    assert [(m.stage, m.step, m.steps) for m in intermediates[::3]] == [
        ("heads/mlp", -(-steps // 2), steps),
        ("heads/mlp", steps, steps),
    ]
    rows = run.read_summary()
    assert {(r.policy, r.encoder, r.training, r.maximum_of) for r in rows} == {
        ("mlp", "class", "fine-tuned", None),
        ("mlp", "class", "fine-tuned", 2),
    }
    assert {r.criterion for r in rows} == set(fakes.CRITERIA)
    for r in rows:
        best = max(m.success for m in intermediates if m.criterion == r.criterion)
        assert r.success == (best if r.maximum_of else r.successes / r.episodes)
    episodes = read_jsonl(run.evaluation("mlp-class-fixed-color") / "episodes.jsonl")
    # The run's bank watches the head.
    assert all(0 <= episode["max_novelty"] <= 1 for episode in episodes)


def test_a_maximum_is_of_evaluations_that_were_made_as_the_last_one(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    asked = config(evaluations=3)
    pipeline = make(run, asked)
    pipeline.evaluate()
    made = run.read_intermediate()
    assert {row.settings["speed"] for row in made} == {1.0}
    assert all(row.maximum_of in (None, 3) for row in run.read_summary())
    assert "evaluations during" not in caplog.text
    # The head acts otherwise now, so what it reached during training says nothing about it.
    make(run, replace(asked, finetune=replace(asked.finetune, chunk_length=3))).evaluate()
    assert [row.maximum_of for row in run.read_summary()] == [None] * 3
    assert "3 of 3 evaluations during heads/mlp are no part of a maximum beside the last weights" in caplog.text
    assert "made otherwise: chunk_length = 12, now it is 3." in caplog.text
    # Evaluations differ from each other: one was made by an interrupted command with another time limit.
    caplog.clear()
    limit = replace(made[0], settings={**made[0].settings, "max_steps": 7}, success=1.0)
    run.add_intermediate([limit, *(replace(limit, criterion=row.criterion) for row in made[1:3])])
    make(run, asked).evaluate()
    rows = [row for row in run.read_summary() if row.maximum_of is not None]
    assert [row.maximum_of for row in rows] == [2] * 3
    assert all(row.success == max(m.success for m in made[3:] if m.criterion == row.criterion) for row in rows)
    assert "1 of 3 evaluations during heads/mlp are no part" in caplog.text
    assert "max_steps = 7, now it is None." in caplog.text


def test_evaluations_during_training_that_do_not_say_how_they_were_made_are_told(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    make(run, config()).evaluate()
    rows = [without(row, "settings") for row in read_jsonl(run.intermediates)]
    write_jsonl(run.intermediates, rows)  # as they were before there were settings
    assert {tuple(row.settings) for row in run.read_intermediate()} == {()}
    make(run, config()).evaluate()
    assert {row.maximum_of for row in run.read_summary()} == {None, 2}
    assert "2 of 2 evaluations during heads/mlp do not say how they were made" in caplog.text


def test_a_head_is_led_out_of_circles_during_training_as_after_it(run: Run) -> None:
    remembers = RetrievalPolicy.load(run.policy, revisit=0.999)
    shutil.rmtree(run.policy)
    remembers.save(run.policy)
    make(run, config()).evaluate()
    last = read_json(run.evaluation("mlp-class-fixed-color") / "settings.json")
    assert last["acting"]["monitor"]["revisit"] == 0.999
    assert all(row.settings["acting"] == last["acting"] for row in run.read_intermediate())
    assert {row.maximum_of for row in run.read_summary()} == {None, 2}


def test_the_second_call_trains_nothing_and_gives_the_same(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(run, config("diffusion")).evaluate()
    rows, intermediates = run.read_summary(), run.read_intermediate()

    def fail(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(FineTuner, "train_step", fail)
    monkeypatch.setattr(FineTuner, "_launch", fail)
    again = make(run, config("diffusion")).evaluate()
    for one, two in zip(first, again, strict=True):
        assert_array_equal(one.states, two.states)
    assert run.read_intermediate() == intermediates
    assert [replace(row, seconds=0) for row in run.read_summary()] == [replace(row, seconds=0) for row in rows]


def test_a_stopped_training_goes_on_to_the_same_policy(
    run: Run, tmp_path: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Run(Path(shutil.copytree(pretrained, tmp_path / "other")))
    made = config(checkpoint_every=2)
    make(other, made).train()
    launch = FineTuner._launch

    def dying(self: FineTuner, *arguments: Any) -> None:
        if self.step == 4:
            raise KeyboardInterrupt
        launch(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(FineTuner, "_launch", dying)
        with pytest.raises(KeyboardInterrupt):
            make(run, made).train()
    assert not Run(run.head("mlp")).policy.exists()
    make(run, made).train()
    straight, resumed = (ParametricPolicy.load(Run(r.head("mlp")).policy) for r in (other, run))
    assert fakes.equal(straight.head, resumed.head)
    assert fakes.equal(straight.encoder, resumed.encoder)


def test_frozen_and_from_scratch(run: Run) -> None:
    frozen = make(run, config(frozen=True, evaluations=0))
    scratch = make(run, config(start="scratch", evaluations=0))
    assert (frozen.name, scratch.name) == ("mlp-frozen", "mlp-scratch")
    for pipeline, training, encoder in ((frozen, "frozen", "class"), (scratch, "from scratch", "scratch")):
        pipeline.evaluate()
        row = next(r for r in run.read_summary() if r.evaluation.startswith(f"{pipeline.name}-"))
        assert (row.training, row.encoder, row.maximum_of) == (training, encoder, None)
    assert not [r for r in run.read_summary() if r.maximum_of]
    kept = ParametricPolicy.load(Run(run.head("mlp-frozen")).policy).encoder
    assert fakes.equal(ImageEncoder.from_pretrained(run.encoder), kept)


def test_other_settings_are_refused(run: Run) -> None:
    make(run, config(evaluations=0)).train()
    with pytest.raises(ConfigError, match=r"settings.finetune.epochs = 1.0, now it is 2. Give the head another --name"):
        make(run, config(evaluations=0, epochs=2))
    make(run, config(evaluations=5))  # how often it is evaluated decides nothing


def test_the_precision_that_auto_came_to_is_the_same_setting(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_cpu_flags", lambda: "avx512_bf16")
    make(run, config(evaluations=0, precision="auto")).train()
    monkeypatch.setattr(engine, "_cpu_flags", lambda: "sse2")
    for precision in ("bfloat16", "auto"):
        make(run, config(evaluations=0, precision=precision)).train()
    with pytest.raises(ConfigError, match=r"settings.finetune.precision = 'bfloat16', now it is 'float32'"):
        make(run, config(evaluations=0, precision="float32"))


def test_what_cannot_be_started(run: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json does not exist\. Expected a folder written by"):
        make(Run(tmp_path / "nothing"), config())
    shutil.rmtree(run.encoder)
    with pytest.raises(CheckpointError, match="has no encoder yet: run 'classact pretrain'"):
        make(run, config())
    assert make(run, config(start="scratch")).encoder_config.image_size == 32


def test_a_damaged_encoder_shows_before_anything_is_done(run: Run) -> None:
    weights = run.encoder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for start in ("run", "scratch"):
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            make(run, config(start=start))


def test_evaluations_of_a_head(run: Run) -> None:
    make(run, config("diffusion", evaluations=0)).train()
    rows = evaluate_run(run, head="diffusion", episodes=1, workers=1, quiet=True, inference_steps=4)
    assert {r.evaluation for r in rows} == {"diffusion-class-fixed-color-episodes1-inference_steps4"}
    assert {(r.policy, r.training) for r in rows} == {("diffusion", "fine-tuned")}
    evaluate_run(run, head="diffusion", execute=4, ensemble=0.1, workers=1, quiet=True)
    assert run.evaluation("diffusion-class-fixed-color-ensemble0.1-execute4").is_dir()
    with pytest.raises(CheckpointError, match=r"no trained head 'mlp'; there are \['diffusion'\]"):
        evaluate_run(run, head="mlp", quiet=True)
    with pytest.raises(ConfigError, match="unknown policy setting 'k'"):
        evaluate_run(run, head="diffusion", quiet=True, k=3)


def test_the_command(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["finetune", str(run.root), "--head", "mlp", "--preset", "head-debug", "--quiet", "--workers", "1"]
    command += ["--evaluations", "2", "--intermediate-episodes", "2", "--epochs", "0.5", "--trackers", "tensorboard"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "mlp" in out
    assert f"Report: {run.report}" in out
    assert run.report.exists()
    assert list((run.head("mlp") / "tensorboard").glob("events*"))
    assert main(["evaluate", str(run.root), "--head", "mlp", "--episodes", "1", "--quiet", "--workers", "1"]) == 0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--scratch", "--weights", "last"], "training from scratch starts from initial weights, but weights 'last'"),
        (["--scratch", "--encoder", "x"], "--scratch trains the encoder from its initial weights, but --encoder"),
        (["--preset", "huge"], "unknown preset of a head 'huge'"),
        (["--keys", "wrist_pose"], "unknown proprioception key 'wrist_pose': available are 'agent_pos'"),
        (["--accumulate", "0"], "expected accumulate >= 1, got 0"),
        (["--ensemble", "0.1"], "ensemble"),
    ],
)
def test_errors_are_one_line(run: Run, flags: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["finetune", str(run.root), "--preset", "head-debug", "--quiet", "--evaluations", "0", *flags]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_head_presets_are_the_papers() -> None:
    made = HEAD_PRESETS["paper-pusht"].config("diffusion")
    assert (made.epochs, made.optimizer.head_lr, made.optimizer.encoder_lr) == (250, 1e-4, 1e-5)
    assert made.head.unet.widths == (256, 512, 1024)
    assert HEAD_PRESETS["paper-three-stack"].config("mlp", encoder="other").epochs == 100
    assert HEAD_PRESETS["paper-pusht"].config("mlp", frozen=True).augment is None
    small = HEAD_PRESETS["head-cpu"].config("mlp", augment=AugmentConfig(color="rotate", feature_noise=0.1))
    assert (small.frozen, small.views, small.augment) == (True, 6, AugmentConfig(color="rotate"))
    assert small.head == MLPConfig(network="residual", loss="l1", unet=small.head.unet)
    for encoder, frozen in (("class", False), ("scratch", None)):
        tuned = HEAD_PRESETS["head-cpu"].config("mlp", encoder=encoder, frozen=frozen)
        assert (tuned.frozen, tuned.views, tuned.augment) == (False, 0, AugmentConfig())
        assert (tuned.noise, tuned.batch_size, tuned.epochs) == (0, 64, 20)  # what suits kept features does not suit it
    assert np.isclose(made.optimizer.ema_power, 0.75)


def torchrun(*command: str) -> str:
    """What a command of classact prints under torchrun with two ranks."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "classact"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *command], capture_output=True, text=True, timeout=240, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_ranks_make_a_run_with_a_head(tmp_path: Path) -> None:
    """The whole way under torchrun: training together, everything else by the first rank, nobody left waiting."""
    source = fakes.write_zarr(tmp_path / "tiny.zarr", fakes.demonstrations(0, 96, fakes.LENGTHS))
    common = ["--preset", "debug", "--data", str(source), "--intermediate-episodes", "1", "--quiet", "--workers", "1"]
    common += ["--precision", "float32", "--evaluations", "2"]
    two, one = tmp_path / "two", tmp_path / "one"
    assert torchrun("pretrain", "--out", str(two), *common).count("Encoder:") == 1
    assert main(["pretrain", "--out", str(one), *common]) == 0
    for name, value in ImageEncoder.from_pretrained(Run(one).encoder).state_dict().items():
        assert_allclose(ImageEncoder.from_pretrained(Run(two).encoder).state_dict()[name], value, atol=2e-3)
    head = ["finetune", str(two), "--head", "mlp", "--preset", "head-debug", "--evaluations", "2", "--quiet"]
    head += ["--intermediate-episodes", "1", "--test-episodes", "1", "--workers", "1"]
    assert torchrun(*head).count("Report:") == 1
    assert {m.stage for m in Run(two).read_intermediate()} == {"pretrain", "heads/mlp"}
    assert torchrun(*head).count("Report:") == 1  # nothing to train: nobody waits for a rank that has left
    assert Run(two).report.exists()


def test_a_head_that_is_trained_anew_is_evaluated_anew(run: Run) -> None:
    def executed() -> list[np.ndarray[Any, Any]]:
        steps = sorted({m.step for m in run.read_intermediate()})
        return [read_arrays(run.intermediate("heads/mlp", s) / "rollouts.safetensors")["actions"] for s in steps]

    make(run, config()).evaluate()
    before = executed()
    shutil.rmtree(run.head("mlp"))
    make(run, config(seed=5)).evaluate()
    after = executed()
    assert len(after) == len(before) == 2
    assert all((a != b).any() for a, b in zip(after, before, strict=True))
    assert {r.maximum_of for r in run.read_summary()} == {None, 2}


def test_other_data_than_the_encoders_are_refused(run: Run) -> None:
    card = run.read_config()
    write_json(run.config, card | {"data": card["data"] | {"fingerprint": "0" * 64}})
    with pytest.raises(ConfigError, match=r"data of .* have changed since its encoder was learned: .* = '000000000000"):
        make(run, config()).train()


def test_what_cannot_be_rolled_out_shows_before_training(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("trained")

    card = run.read_config()
    write_json(run.config, card | {"data": card["data"] | {"versions": {"language": "bert-base-uncased"}}})
    monkeypatch.setattr("classact.run.evaluate.simulator_spec", lambda _: replace(PUSHT, language_source="stand-in"))
    monkeypatch.setattr(FineTuner, "train_step", fail)
    expected = r"tiny \(.*\): instructions were embedded by 'bert-base-uncased', but simulator 'pusht' .* 'stand-in'"
    with pytest.raises(ConfigError, match=expected):
        make(run, config()).train()
    with pytest.raises(ConfigError, match=expected):
        make(run, config(evaluations=0)).evaluate()


def test_how_a_head_acts_may_be_changed_later(run: Run) -> None:
    made = config("diffusion", evaluations=0)
    make(run, made).train()
    head = replace(made.finetune.head, scheduler="ddpm", inference_steps=5)
    evaluation = replace(run.settings().evaluation, execute=2)
    other = replace(made, finetune=replace(made.finetune, head=head, chunk_length=4), evaluation=evaluation)
    policy = make(run, other).policy
    assert policy.config.chunk_length == 4
    assert (policy.head.config.scheduler, policy.head.config.inference_steps) == ("ddpm", 5)
    # Whoever loads, evaluates or exports it later gets what acts now.
    again = load_head(run, "diffusion")
    assert (again.config.chunk_length, again.head.config.inference_steps) == (4, 5)
    assert load_policy(run.head("diffusion")).spec.chunk_length == 4
    assert load_policy(run.head("diffusion"), chunk_length=3).spec.chunk_length == 3
    spec = load_policy(export_hub(run, run.root / "hub", head="diffusion")).spec
    assert (spec.chunk_length, spec.control) == (4, ControlConfig(execute=2))
    fresh = config("diffusion", evaluations=3)
    kept = as_before(fresh, run.head_settings("diffusion"))
    assert (kept.finetune.chunk_length, kept.finetune.head.inference_steps, kept.finetune.evaluations) == (4, 5, 0)
    assert as_before(fresh, None) == fresh


def test_more_of_a_chunk_than_retrieval_has_is_refused_at_once(run: Run) -> None:
    settings = run.settings()
    settings = replace(settings, retrieval=replace(settings.retrieval, revisit=0.99, horizon=4, chunk_length=4))
    write_json(run.config, run.read_config() | {"settings": to_json(settings)})
    with pytest.raises(
        ConfigError, match=r"head 'mlp', whose run leaves circles by retrieval \(revisit\): chunk_length"
    ):
        make(run, config())


def test_an_encoder_of_the_hub_keeps_its_name() -> None:
    assert config(start="someone/encoder").start == "someone/encoder"
    assert Path(config(start="./someone/encoder").start).is_absolute()


def test_evaluations_say_how_they_were_made(run: Run, tmp_path: Path) -> None:
    write_json(
        run.config, run.read_config() | {"settings": to_json(changed(run.settings(), {"evaluation.execute": 2}))}
    )
    evaluate_run(run, episodes=1, workers=1, quiet=True, name="usual")
    evaluate_run(run, episodes=1, workers=1, quiet=True, name="all", execute=None, max_steps=9)
    said = {name: read_json(run.evaluation(name) / "settings.json") for name in ("usual", "all")}
    assert [said[name]["execute"] for name in said] == [2, None]
    assert [said[name]["max_steps"] for name in said] == [None, 9]
    assert "workers" not in said["all"]
    with pytest.raises(ConfigError, match=r"calibrated on 19 of them at least, asked for 3 episodes"):
        evaluate_run(run, episodes=3, quiet=True, calibrate_alarm=tmp_path / "alarm.json")
    spec = load_policy(run).spec
    alarm = DoubtAlarm(1.0, 0.05, 19, "lifted", spec.name, spec.chunk_length, spec.speed, spec.control)
    alarm.save(tmp_path / "alarm.json")
    with pytest.raises(ConfigError, match=r"executing 2 of a chunk, this is .* executing 1 of a chunk"):
        evaluate_run(run, episodes=1, quiet=True, alarm=tmp_path / "alarm.json", execute=1)
    with pytest.raises(ConfigError, match=r"alarm.json: unknown criterion 'lifted'.*Calibrate it in 'pusht'"):
        evaluate_run(run, episodes=1, quiet=True, alarm=tmp_path / "alarm.json")
    replace(alarm, criterion="iou>0.90").save(tmp_path / "alarm.json")
    evaluate_run(run, episodes=1, workers=1, quiet=True, name="all", alarm=tmp_path / "alarm.json")
    assert read_json(run.evaluation("all") / "alarm.json").keys() == {"announced", "failures", "false", "successes"}
    evaluate_run(run, episodes=1, workers=1, quiet=True, name="all")
    assert not (run.evaluation("all") / "alarm.json").exists()  # it said nothing of these episodes


@pytest.mark.parametrize("name", ["retrieval", "a/b", "x y"])
def test_names_that_would_clash(run: Run, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a head"):
        make(run, config(), name=name)


def test_a_head_on_another_runs_encoder(run: Run) -> None:
    other = Path(shutil.copytree(run.encoder, run.root.parent / "elsewhere" / "encoder"))
    pipeline = make(run, config(start=str(other), evaluations=0))
    assert pipeline.name == "mlp-other-elsewhere-encoder"
    pipeline.evaluate()
    rows = run.read_summary()
    assert {r.encoder for r in rows} == {"other: elsewhere/encoder"}
    # Evaluated again, it is in the place of the first time: a label with a slash is one folder.
    again = evaluate_run(run, head=pipeline.name, workers=1, quiet=True)
    name = "mlp-other-elsewhere-encoder-other-elsewhere-encoder-fixed-color"
    assert {r.evaluation for r in again} == {r.evaluation for r in rows} == {name}
    assert [path.name for path in run.evaluation(name).parent.iterdir()] == [name]
    assert len(run.read_summary()) == len(rows)


# Heads of other packages


def test_a_head_of_another_package_goes_all_the_way(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The toy of CONTRIBUTING: one file outside of classact, named by an environment variable."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "toys"))
    monkeypatch.setenv("CLASSACT_PLUGINS", "toy_head")
    flags = ["--preset", "head-debug", "--batch-size", "16", "--epochs", "1", "--evaluations", "2"]
    flags += ["--intermediate-episodes", "1", "--workers", "1", "--device", "cpu", "--quiet"]
    assert main(["finetune", str(run.root), "--head", "plain", *flags]) == 0, capsys.readouterr().err
    assert {row.policy for row in run.read_summary()} == {"plain"}
    policy = load_policy(run.head("plain"), scale=0.0)
    assert isinstance(policy, MonitoredPolicy)
    assert isinstance(policy.policy, ParametricPolicy)
    assert to_json(policy.policy.head.config) == {"name": "plain", "hidden": 256, "scale": 0.0}
    page = run.report.read_text(encoding="utf-8")
    assert "plain" in page
    assert main(["evaluate", str(run.root), "--head", "plain", "--episodes", "1", "--workers", "1", "--quiet"]) == 0
    assert main(["finetune", str(run.root), "--head", "plain", *flags, "--scheduler", "ddim"]) == 2
    assert "unknown flag --scheduler" in capsys.readouterr().err
    assert main(["presets"]) == 0
    assert main(["finetune", str(run.root), "--head", "plian", *flags]) == 1
    message = capsys.readouterr().err
    assert "unknown head 'plian': available are 'diffusion', 'flow', 'mlp', 'plain' (did you mean 'plain'?)" in message


def test_any_folder_of_a_run_gives_its_policy(run: Run) -> None:
    make(run, config(evaluations=0)).train()
    retrieval = load_policy(run.root, k=3)
    assert isinstance(retrieval, RetrievalPolicy)
    assert retrieval.config.k == 3
    head = load_policy(run.head("mlp"), seed=5)
    assert isinstance(head, MonitoredPolicy)
    assert (head.spec.name, head.spec.alarm) == ("mlp", retrieval.spec.alarm)
    assert isinstance(load_policy(Run(run.head("mlp")).policy), ParametricPolicy)
    with pytest.raises(CheckpointError, match=r"has no trained head 'dp'; there are \['mlp'\]"):
        load_policy(run.head("dp"))
    with pytest.raises(CheckpointError, match=r"encoder is no policy: it has no policy.json"):
        load_policy(run.encoder)
