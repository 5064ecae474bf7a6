from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from numpy.testing import assert_array_equal

import fakes
from classact import __version__
from classact.cli import main as cli
from classact.cli.console import print_summary
from classact.cli.doctor import Check
from classact.cli.finetune import Finetune, head_config
from classact.cli.flags import parse
from classact.cli.runs import Pretrain, run_config
from classact.cli.similarity import histogram_lines
from classact.evaluation import rollout
from classact.evaluation.config import EvaluationConfig
from classact.models.encoders import EncoderConfig
from classact.models.heads import DiffusionConfig, MLPConfig
from classact.objectives import objective_config
from classact.policies import DoubtAlarm
from classact.run import analysis
from classact.run import pretrain as pipeline
from classact.run import similarity as similarity_analysis
from classact.run.config import HeadRunConfig, RunConfig
from classact.run.evaluate import ALARM
from classact.run.folder import Run
from classact.run.load import load_policy
from classact.run.presets import HEAD_PRESETS, PRESETS, from_preset, with_backbone
from classact.train.checkpoints import list_checkpoints
from classact.train.config import TABLE_9, AugmentConfig, PretrainConfig
from classact.utils.codec import to_json
from classact.utils.storage import read_arrays, read_json, write_json


@pytest.fixture(scope="module", autouse=True)
def short_episodes_on_one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the subprocess below
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "make_simulator", fakes.Short)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.write_zarr(tmp_path_factory.mktemp("data") / "tiny.zarr", fakes.demonstrations(0, 96, fakes.LENGTHS))


def arguments(command: str, out: Path, data: Path, *more: str) -> list[str]:
    return [command, "--out", str(out), "--data", str(data), "--preset", "debug", "--workers", "1", "--quiet", *more]


@pytest.fixture(scope="module")
def demo(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Run, str]:
    """A finished demo: its command, its folder and what it printed."""
    root = tmp_path_factory.mktemp("demo") / "run [1]"  # brackets are markup to rich
    command = arguments("demo", root, data, "--test-episodes", "2", "--head", "none")
    printed = captured(command)
    return command, Run(root), printed


def captured(command: list[str], code: int = 0) -> str:
    """What a command prints to standard output, at 80 columns."""
    import contextlib
    import io

    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setenv("COLUMNS", "80")
        assert cli.main(command) == code
    return out.getvalue()


def error(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error that was raised on purpose."""
    assert cli.main(command) == 1
    message = capsys.readouterr().err
    assert message.startswith("classact: error: ")
    assert "Traceback" not in message
    return message


# demo


def test_demo_leaves_everything(demo: tuple[list[str], Run, str]) -> None:
    _, run, printed = demo
    for path in (run.summary, run.report, run.train_log, run.encoder, run.policy, run.config):
        assert path.exists(), path
    assert [step for step, _ in list_checkpoints(run.checkpoints)] == [4]
    assert len(run.read_summary()) == 9
    names = {path.name for path in run.analysis.iterdir()}
    made = {"data.json", "similarity.json", "latent_map.safetensors", "neighbors.safetensors", "videos"}
    assert names == made | {"consistency.json", "consistency.safetensors"}
    assert f"Report: {run.report}" in printed
    assert "<html" in run.report.read_text(encoding="utf-8")
    assert not list(run.root.rglob("*.tmp"))


def test_table_fits_a_terminal(demo: tuple[list[str], Run, str]) -> None:
    table = demo[2].split("Time:")[0]
    assert max(len(line) for line in table.splitlines()) <= 80
    assert table.startswith("retrieval on pusht, fixed-color")
    for words in ("encoder", "criterion", "success", "95 % interval", "mean max.", "coverage>0.90", "0 % (0 of 2)"):
        assert words in table
    assert "0 to 66 %" in table


def test_table_says_what_differs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    reached: dict[str, Any] = {"success": 0.96, "successes": 48, "episodes": 50, "low": 0.865, "high": 0.989}
    print_summary([fakes.row(shift=shift, evaluation=shift, **reached) for shift in ("fixed-color", "rand-color")])
    printed = capsys.readouterr().out
    assert printed.startswith("retrieval on pusht")
    for words in ("CLASS", "fixed-color", "rand-color", "96 % (48 of 50)", "86 to 99 %"):
        assert words in printed
    assert max(len(line) for line in printed.splitlines()) <= 80


def test_the_same_demo_again_trains_nothing(demo: tuple[list[str], Run, str], monkeypatch: pytest.MonkeyPatch) -> None:
    command, run, _ = demo
    before = [replace(row, seconds=0) for row in run.read_summary()]
    monkeypatch.setattr(pipeline, "Trainer", None)
    monkeypatch.setattr(analysis, "write_latent_map", lambda *_: None)  # takes longest, and is deterministic
    captured(command)
    assert [replace(row, seconds=0) for row in run.read_summary()] == before


def test_demo_trains_a_head_unless_told_not_to(
    demo: tuple[list[str], Run, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, run, _ = demo
    copied = Run(Path(shutil.copytree(run.root, tmp_path / "run")))
    monkeypatch.setattr(analysis, "write_latent_map", lambda *_: None)
    monkeypatch.setattr(pipeline, "Trainer", None)
    printed = captured([str(copied.root) if word == str(run.root) else word for word in command[:-2]])
    assert {row.policy for row in copied.read_summary()} == {"retrieval", "mlp"}
    head = Run(copied.head("mlp"))
    assert head.policy.is_dir()
    queries = read_arrays(copied.neighbors)
    assert_array_equal(read_arrays(head.chunks)["query_step"], queries["query_step"])
    assert "MLP" in printed
    assert "from the retrieved actions" in copied.report.read_text(encoding="utf-8")


def test_demo_with_other_settings(demo: tuple[list[str], Run, str], capsys: pytest.CaptureFixture[str]) -> None:
    command, run, _ = demo
    message = error([*command, "--epochs", "3"], capsys)
    assert f"{run.root} was started with settings.pretrain.epochs = 1.0, now it is 3.0" in message
    assert "Choose another --out, or remove that folder." in message


def test_pretrain_then_demo_is_one_run(demo: tuple[list[str], Run, str]) -> None:
    command, run, _ = demo
    printed = captured(["pretrain", *command[1:-4]])
    assert f"Encoder: {run.encoder}" in printed
    assert f"Policy:  {run.policy}" in printed


# The other commands


def test_evaluate(demo: tuple[list[str], Run, str], capsys: pytest.CaptureFixture[str]) -> None:
    _, run, _ = demo
    rows = len(run.read_summary())
    printed = captured(["evaluate", str(run.root), "--episodes", "1", "--k", "3", "--workers", "1", "--quiet"])
    assert "class-" in printed
    assert "(0 of 1)" in printed
    assert len(run.read_summary()) == rows + 3
    message = error(["evaluate", str(run.root), "--k", "9999", "--quiet"], capsys)
    assert "k = 9999 neighbours asked of a bank of 122 timesteps" in message
    message = error(["evaluate", str(run.root / "none")], capsys)
    assert "config.json does not exist" in message
    (bank := run.policy / "bank.safetensors").write_bytes((whole := bank.read_bytes())[:-3])
    message = error(["evaluate", str(run.root), "--quiet"], capsys)
    bank.write_bytes(whole)
    assert "bank.safetensors has" in message


def test_evaluate_with_an_alarm(
    demo: tuple[list[str], Run, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run, _ = demo
    command = ["evaluate", str(run.root), "--episodes", "2", "--workers", "1", "--name", "alarmed", "--quiet"]
    spec, file = load_policy(run.root).spec, tmp_path / "alarm.json"
    DoubtAlarm(0.0, 0.05, 19, "coverage>0.90", spec.name, spec.chunk_length, spec.speed).save(file)
    printed = captured([*command, "--alarm", str(file)])
    assert "The alarm announced 2 of 2 failures; 0 of 0" in printed
    assert read_json(run.evaluation("alarmed") / ALARM) == {
        "announced": 2,
        "failures": 2,
        "false": 0,
        "successes": 0,
    }
    message = error([*command, "--alarm", str(file), "--chunk-length", "2"], capsys)
    assert f"calibrated for policy 'retrieval' with T_a = {spec.chunk_length} at speed" in message
    message = error([*command, "--calibrate-alarm", str(tmp_path / "new.json")], capsys)
    assert "is calibrated on 19 of them at least, asked for 2 episodes in all" in message
    assert not (tmp_path / "new.json").exists()


def test_report(demo: tuple[list[str], Run, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, run, _ = demo
    run.report.unlink()
    assert captured(["report", str(run.root)]) == f"Report: {run.report}\n"
    assert run.report.exists()
    assert "nowhere does not exist" in error(["report", str(tmp_path / "nowhere")], capsys)


def test_data_info(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = captured(["data", "info", str(data)])
    for words in ("tiny", "episodes", "122 (7 to 25 each, median 22)", "camera top", "96 x 96 pixels", "5 dimensions"):
        assert words in printed
    assert "does not exist. Formats that can be read" in error(["data", "info", str(tmp_path / "no.zarr")], capsys)


def test_presets() -> None:
    printed = captured(["presets"])
    assert "debug" in printed
    assert "pusht-cpu" in printed.replace("\n", "")
    assert "CLASS: small from scratch" in printed
    assert "CLASS (queue=1280): small from scratch" in printed


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    import classact.cli.doctor

    checks = [
        Check("torch", True, "2.9"),
        Check("GPU", False, "none [/dev/null]", "none is needed", required=False),
    ]
    monkeypatch.setattr(classact.cli.doctor, "examine", lambda: checks)
    printed = captured(["doctor"])
    assert "ok" in printed
    assert "[/dev/null]" in printed
    checks.append(Check("DTW kernel", False, "ImportError: numba", "uv sync"))
    assert "FAIL" in captured(["doctor"], code=1)


def test_doctor_finds_this_machine_fit() -> None:
    import classact.cli.doctor

    checks = classact.cli.doctor.examine()
    assert [check for check in checks if check.required and not check.works] == []
    assert {"torch", "DTW kernel", "image cache", "Zarr reader", "simulator pusht"} <= {check.name for check in checks}
    assert all(check.remedy for check in checks if not check.works)


def test_doctor_knows_every_extra() -> None:
    import tomllib

    import classact.cli.doctor

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    declared = project["optional-dependencies"]
    assert set(classact.cli.doctor.EXTRAS) == set(declared)
    checks = {check.name: check for check in classact.cli.doctor.examine()}
    assert checks["extra faiss"].works
    wandb = checks["extra wandb"]
    assert wandb.works or "pip install 'classact[wandb]'" in wandb.remedy


def test_version_and_help() -> None:
    assert captured(["--version"]) == f"{__version__}\n"
    printed = captured(["--help"])
    for name in cli.COMMANDS:
        assert f"  {name} " in printed
    assert "data info" in captured(["data", "--help"])
    assert "usage" in captured([], code=2)


def test_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for words, near in ((["dmeo"], "demo"), (["data", "inof"], "data info")):
        assert cli.main(words) == 2
        message = capsys.readouterr().err
        assert f"classact: unknown command {' '.join(words)!r} (did you mean {near!r}?)" in message
        assert "commands:" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain", "--epocs", "3"], "unknown flag --epocs (did you mean --epochs?)."),
        (["demo", "--out", "x", "--epochs", "few"], "--epochs: expected a number, got 'few'."),
        (["finetune"], "RUN is missing: Folder of a run, made by demo or pretrain."),
        (["finetune", "run", "--head"], "--head needs a value: TEXT."),
        (["data", "generate", "pusht", "square"], "'square' is neither a flag nor the value of one."),
    ],
)
def test_wrong_usage_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    command = "data generate" if words[0] == "data" else words[0]
    printed = capsys.readouterr().err
    assert printed == f"classact {command}: error: {message} See classact {command} --help.\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--test-episodes", "0"), "episodes >= 1"),
        (("--preset", "fast"), "unknown preset 'fast': available are 'aloha-transfer-cpu'"),
        (("--preset", "pusht-demos"), "(did you mean 'pusht-demo'?)"),
        (("--objective", "byl"), "(did you mean 'byol'?)"),
        (("--simulator", "pusth"), "(did you mean 'pusht'?)"),
        (("--shift", "dark"), "unknown shift 'dark': available are 'fixed-color', 'rand-color'"),
        (("--quantile", "1.5"), "expected a quantile K between 0 and 1 (1.5 % is 0.015), got 1.5"),
        (("--k", "200"), "k = 200 neighbours asked of a bank of 122 timesteps"),
        (("--episodes", "9"), "asked for the first 9 episodes, but tiny"),
        (("--init", "clip"), "unknown init 'clip'"),
        (("--data", "nowhere.zarr"), "nowhere.zarr does not exist"),
        (("--backbone", "resnet50"), "unknown encoder backbone 'resnet50'"),
        (("--objective", "byol", "--options", "pairs=all"), "unknown option of objective 'byol' 'pairs'"),
        (("--options", "pairs=all", "pairs=all"), "option 'pairs' of objective 'class' is given twice"),
        (("--objective", "0.5*class"), "a factor needs a sum"),
        (("--objective", "none", "--options", "views=2"), "objective 'none' has no options, got 'views=2'"),
        *(
            (("--objective", name, *flag), f"objective '{name}' learns from no action similarity, so {flag[0]} would")
            for name, flag in (
                ("byol", ("--quantile", "0.02")),
                ("tcn", ("--horizon", "8")),
                ("dynamo", ("--cost", "euclidean")),
                ("byol", ("--metric", "l2")),
                ("byol", ("--band", "4")),
                ("none", ("--estimate", "exact")),
                ("tcn+0.1*byol", ("--similarity", "folder")),
            )
        ),
        *(
            (("--objective", "none", *flag), f"objective 'none' trains nothing, so {flag[0]} would change nothing")
            for flag in (
                ("--epochs", "2"),
                ("--batch-size", "8"),
                ("--learning-rate", "0.1"),
                ("--crop", "batch"),
                ("--color-augmentation", "hsv"),
                ("--evaluations", "2"),
            )
        ),
    ],
)
def test_errors_are_one_line(
    data: Path, tmp_path: Path, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error([*arguments("demo", tmp_path / "run", data), *flags], capsys)


def settings_of(*flags: str) -> RunConfig:
    return run_config(parse(Pretrain, ["--out", "run", *flags], "classact pretrain"))


def test_flags_of_the_objective() -> None:
    def pretrain(*flags: str) -> PretrainConfig:
        return settings_of("--preset", "pusht-cpu", *flags).pretrain

    plain = PRESETS["pusht-cpu"].pretrain
    assert pretrain().objective == plain.objective
    crossed = objective_config("class", ["pairs=cross-episode"])
    assert pretrain("--options", "pairs=cross-episode") == replace(plain, objective=crossed)
    options = ["class.pairs=cross-episode", "class.queue=8", "byol.decay=0.9"]
    both = pretrain("--objective", "byol+0.1 * class", "--options", *options)
    assert both.objective == objective_config("byol+0.1*class", options)
    # What an objective reads stays a flag of it.
    flags = ("--quantile", "0.03", "--horizon", "9", "--epochs", "3", "--batch-size", "40", "--learning-rate", "0.1")
    found = pretrain("--objective", "tcn+class", *flags)
    assert (found.similarity.quantile, found.similarity.horizon, found.epochs, found.batch_size) == (0.03, 9, 3.0, 40)
    assert found.optimizer.learning_rate == 0.1
    assert pretrain("--objective", "byol", "--epochs", "3", "--crop", "batch").augment.crop == "batch"


def test_the_backbone_is_a_flag() -> None:
    def encoder(*flags: str) -> EncoderConfig:
        return settings_of("--preset", "paper-pusht", *flags).pretrain.encoder

    plain = PRESETS["paper-pusht"].pretrain.encoder
    assert encoder() == encoder("--backbone", "resnet18") == plain
    assert encoder("--backbone", "small") == with_backbone(plain, "small")
    assert encoder("--backbone", "equivariant", "--objective", "none").mean == (127.5,) * 3
    # Other flags change what the backbone brings along.
    other = encoder("--backbone", "small", "--cameras", "wrist", "--encoder.mean", "1", "2", "3")
    assert other == replace(with_backbone(plain, "small"), cameras=("wrist",), mean=(1.0, 2.0, 3.0))


def test_every_setting_is_a_flag_and_the_shift_is_one_for_all() -> None:
    plain = from_preset("debug", shift="rand-color")
    assert settings_of("--preset", "debug", "--shift", "rand-color") == replace(plain, baselines=False)
    flags = "--shift rand-color --evaluation.shift fixed-color --novelty.m 3 --heldout 2 --intermediate-retrieval.k 5"
    flags += " --augment.noise-std 2 --optimizer.momentum 0.5"
    found = settings_of("--preset", "debug", *flags.split())
    shown = (found.frames.shift, found.evaluation.shift, found.novelty.m, found.heldout)
    assert shown == ("rand-color", "fixed-color", 3, 2)
    assert (found.pretrain.augment.noise_std, found.pretrain.optimizer.momentum) == (2.0, 0.5)
    # Evaluations during training act as the run does, but for what is said of them.
    assert found.intermediate_retrieval == replace(plain.retrieval, k=5)


def test_a_run_starts_from_the_settings_of_another(
    demo: tuple[list[str], Run, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = demo[1]
    card, alone = run.read_config(), tmp_path / "alone.json"
    write_json(alone, card["settings"])
    before = run.settings()
    for file in (run.config, alone):
        assert settings_of("--config", str(file), "--workers", "1") == before
    found = settings_of("--config", str(alone), "--epochs", "2", "--shift", "rand-color", "--objective", "byol")
    assert found.pretrain.objective == objective_config("byol")
    assert (found.pretrain.epochs, found.frames.shift, found.evaluation.shift) == (2.0, "rand-color", "rand-color")
    message = error(["pretrain", "--out", str(tmp_path / "x"), "--config", str(alone), "--preset", "debug"], capsys)
    assert "--preset and --config both say what to start from. Give one of the two." in message
    card["settings"]["pretrain"]["encoder"]["width_"] = card["settings"]["pretrain"]["encoder"].pop("width")
    write_json(alone, card)
    message = error(["pretrain", "--out", str(tmp_path / "x"), "--config", str(alone)], capsys)
    assert f"{alone}: settings.pretrain.encoder: unknown field 'width_'" in message
    assert "did you mean 'width'" in message
    assert "does not exist" in error(["pretrain", "--out", str(tmp_path / "x"), "--config", "no.json"], capsys)


@pytest.mark.parametrize(
    ("objective", "flags", "others"),
    [
        ("class", (), False),
        ("byol+0.1*class", (), False),
        ("byol", (), True),
        ("time-contrastive+byol", (), True),
        ("none", (), True),
        ("class", ("--scratch",), True),
        ("byol", ("--encoder", "./other/encoder"), False),
    ],
)
@pytest.mark.parametrize("backbone", ["small", "resnet18"])
def test_heads_on_class_are_trained_for_fewer_epochs(
    objective: str, flags: tuple[str, ...], others: bool, backbone: str, tmp_path: Path
) -> None:
    """Table 9."""

    def head(*flags: str) -> HeadRunConfig:
        return head_config(parse(Finetune, [str(tmp_path), *flags], "classact finetune"))

    pretrain = PretrainConfig(encoder=EncoderConfig(backbone=backbone), objective=objective_config(objective))
    write_json(Run(tmp_path).config, {"title": "a run", "settings": to_json(RunConfig(pretrain=pretrain))})
    found = head(*flags)
    if backbone == "small":  # every encoder alike, but for one that has nothing to start from
        assert found.finetune.frozen == ("--scratch" not in flags)
        assert found.finetune.epochs == (20 if "--scratch" in flags else 40)
        longer = head("--head", "diffusion", *flags).finetune.epochs  # three times as long
        assert longer == (20 if "--scratch" in flags else 120)
    else:
        assert found.finetune.epochs == TABLE_9["pusht"][0 if others else 1]
    start = "scratch" if "--scratch" in flags else str(Path("other/encoder").absolute()) if flags else "run"
    assert found.start == start
    assert head("--epochs", "3", *flags).finetune.epochs == 3.0


def test_the_flags_of_a_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def head(*flags: str) -> HeadRunConfig:
        return head_config(parse(Finetune, [str(tmp_path), "--preset", "head-debug", *flags], "classact finetune"))

    evaluation = EvaluationConfig(episodes=7)
    write_json(Run(tmp_path).config, {"settings": to_json(RunConfig(evaluation=evaluation))})
    plain = HeadRunConfig(HEAD_PRESETS["head-debug"].config("mlp"), evaluation=evaluation)
    assert head() == head("--head", "mlp") == plain
    found = head("--head", "mlp", "--head.unet.widths", "8", "16", "--test-episodes", "3", "--execute", "4")
    assert found.finetune.head == replace(
        MLPConfig.preset("debug"), unet=replace(MLPConfig.preset("debug").unet, widths=(8, 16))
    )
    assert found.evaluation == replace(evaluation, episodes=3, execute=4)
    ddpm = replace(DiffusionConfig.preset("debug"), scheduler="ddpm")
    assert head("--head", "diffusion", "--scheduler", "ddpm", "--frozen").finetune.head == ddpm
    # A frozen encoder sees no random views, unless they are asked for.
    assert head("--frozen", "--color-augmentation", "none").finetune.augment is None
    assert head("--frozen", "--color-augmentation", "hsv").finetune.augment == AugmentConfig(color="hsv")
    assert head("--frozen", "--augment", "yes").finetune.augment == AugmentConfig()
    file = tmp_path / "head.json"
    write_json(file, {"settings": to_json(found)})
    again = head_config(parse(Finetune, [str(tmp_path), "--config", str(file), "--seed", "4"], "classact finetune"))
    assert again == replace(found, finetune=replace(found.finetune, seed=4))
    for flags, message in (
        (("--scratch", "--frozen"), "--frozen trains no encoder. Give one of the two."),
        (("--augment", "no", "--color-augmentation", "hsv"), "but --color-augmentation asks for 'hsv' ones"),
        (("--augment", "no", "--augment.hue", "0.1"), "--augment no takes no random views, but --augment.hue"),
        (("--head", "mpl"), "unknown head 'mpl': available are 'diffusion', 'flow', 'mlp' (did you mean 'mlp'?)"),
        (("--config", str(file), "--head", "diffusion"), "--config is of a head 'mlp', but --head is 'diffusion'"),
    ):
        assert message in error(["finetune", str(tmp_path), *flags], capsys)
    assert cli.main(["finetune", str(tmp_path), "--head", "mlp", "--scheduler", "ddim"]) == 2
    assert "unknown flag --scheduler" in capsys.readouterr().err


# similarity


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path, str]:
    """A finished measurement of the embedded demonstrations: its command, its folder and what it printed."""
    out = tmp_path_factory.mktemp("similarity") / "out [1]"
    command = ["similarity", "pusht-expert", "--out", str(out), "--episodes", "4", "--device", "cpu", "--quiet"]
    return command, out, captured(command)


def test_similarity(measured: tuple[list[str], Path, str]) -> None:
    _, out, printed = measured
    names = {path.name for path in out.iterdir()}
    files = {"similarity.json", "similarity.html", "examples.safetensors", "positives.safetensors"}
    assert names - {".lock"} == files | {"distribution"}
    numbers = json.loads((out / "similarity.json").read_text(encoding="utf-8"))
    n = numbers["data"]["steps"]
    assert numbers["pairs"] == numbers["all_pairs"] == n * (n - 1) // 2
    assert numbers["positives"]["mean"] == pytest.approx(2 * numbers["kept"] / n)
    for words in (
        f"{numbers['threshold']:.6g} (exact: all {numbers['pairs']:,} pairs)",
        f"{numbers['kept']:,} of {numbers['pairs']:,} (1.5 %)",
        f"median {numbers['positives']['median']:,.0f}",
        "anchors with none",
        "in a batch of 160",
        "▲",
        f"Page: {out / 'similarity.html'}",
    ):
        assert words in printed
    table = printed.split("Page:")[0].split("Note:")[0]
    assert max(len(line) for line in table.splitlines()) <= 80


def test_similarity_again_measures_nothing(
    measured: tuple[list[str], Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, out, printed = measured
    monkeypatch.setattr(similarity_analysis, "fit_distribution", None)
    before = (out / "similarity.json").read_bytes()
    assert captured(command) == printed
    assert (out / "similarity.json").read_bytes() == before
    assert "in a batch of 32 " in captured([*command, "--batch-size", "32", "--no-html"])
    message = error([*command, "--quantile", "0.02"], capsys)
    assert f"{out} was made with settings.quantile = 0.015, now it is 0.02. Choose another --out" in message
    message = error([*command, "--episodes", "3"], capsys)
    assert "was made with other data, pusht-expert of 439 steps" in message


def test_similarity_continues_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["similarity", "pusht-expert", "--episodes", "4", "--device", "cpu", "--quiet", "--no-html"]
    captured([*command, "--out", str(tmp_path / "whole")])

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(similarity_analysis, "count_positives", stop)
        assert cli.main([*command, "--out", str(tmp_path / "a")]) == 130
    assert not (tmp_path / "a" / "similarity.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(similarity_analysis, "fit_distribution", None)  # what was counted is not counted again
        captured([*command, "--out", str(tmp_path / "a")])
    whole, again = (json.loads((tmp_path / name / "similarity.json").read_text()) for name in ("whole", "a"))
    timed = {"seconds": {}}
    assert whole | timed == again | timed
    assert not (tmp_path / "a" / "work").exists()


@pytest.mark.slow
def test_similarity_on_two_ranks_leaves_the_same_and_prints_once(tmp_path: Path) -> None:
    flags = ["--episodes", "3", "--device", "cpu"]
    captured(["similarity", "pusht-expert", "--out", str(tmp_path / "one"), "--quiet", "--no-html", *flags])
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "classact"]
    command = [sys.executable, *launcher, "similarity", "pusht-expert", "--out", str(tmp_path / "two"), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("positives per anchor") == 1
    assert "on cpu x 2 ranks" in done.stdout
    assert done.stderr.count("compare settings") == 1
    for file in ("positives.safetensors", "examples.safetensors", "distribution/distribution.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert (tmp_path / "two" / "similarity.html").exists()
    assert not (tmp_path / "two" / "work").exists()


def test_training_with_the_measured_similarity(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "similarity", tmp_path / "run"
    measure = ["similarity", str(data), "--out", str(folder), "--quiet", "--no-html", "--device", "cpu"]
    captured([*measure, "--quantile", "0.1", "--horizon", "7"])
    captured([*arguments("pretrain", out, data, "--similarity", str(folder)), "--device", "cpu"])
    settings = Run(out).read_config()["settings"]
    assert settings["pretrain"]["similarity"]["quantile"] == 0.1
    other = arguments("pretrain", tmp_path / "other", data, "--similarity", str(folder))
    assert "was made with settings.quantile = 0.1, now it is 0.2" in error([*other, "--quantile", "0.2"], capsys)
    nowhere = arguments("pretrain", out, data, "--similarity", str(tmp_path))
    assert "similarity.json does not exist" in error(nowhere, capsys)


def test_similarity_warns_of_a_large_k(tmp_path: Path) -> None:
    command = ["similarity", "pusht-expert", "--out", str(tmp_path), "--episodes", "2", "--quiet", "--no-html"]
    printed = " ".join(captured([*command, "--quantile", "0.6", "--device", "cpu"]).split())
    assert "K = 60 % calls 60 % of all pairs positive: little is left to contrast with." in printed


def test_similarity_of_a_sample(tmp_path: Path) -> None:
    command = ["similarity", "pusht-expert", "--out", str(tmp_path), "--episodes", "3", "--quiet", "--no-html"]
    printed = captured([*command, "--estimate", "sampled", "--pairs", "20000", "--device", "cpu"])
    assert "K right to within" in printed
    assert "20,000 of" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--quantile", "1.5"), "expected a quantile K between 0 and 1 (1.5 % is 0.015), got 1.5"),
        (("--quantile", "0"), "expected a quantile K between 0 and 1"),
        (("--quantile", "1e-9"), "selects no pair at all; expected K of at least"),
        (("--metric", "cosine"), "unknown metric 'cosine': available are 'dtw', 'l2'"),
        (("--cost", "manhattan"), "unknown step cost 'manhattan'"),
        (("--metric", "l2", "--band", "3"), "metric 'l2' compares equal steps"),
        (("--estimate", "guess"), "unknown estimate 'guess'"),
        (("--band", "-1"), "band of at least 0 whole steps"),
        (("--horizon", "0"), "horizon of at least 1 step, got 0"),
        (("--horizon", "9999"), "a horizon of 9999 steps is longer than every episode"),
        (("--batch-size", "1"), "batch size of at least 2, got 1"),
        (("--device", "tpu"), "unknown device 'tpu'"),
        (("--episodes", "0"), "asked for the first 0 episodes"),
    ],
)
def test_similarity_errors_are_one_line(
    tmp_path: Path, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["similarity", "pusht-expert", "--out", str(tmp_path / "out"), "--episodes", "2", "--quiet"]
    assert message in error([*command, *flags], capsys)
    assert not (tmp_path / "out" / "similarity.json").exists()


def test_similarity_of_bad_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = fakes.demonstrations(0, 8, fakes.LENGTHS)
    path = fakes.write_zarr(tmp_path / "bad.zarr", data)
    zarr.open_group(str(path), mode="r+")["data/action"][7, 1] = np.nan
    command = ["similarity", str(path), "--out", str(tmp_path / "out"), "--quiet"]
    assert "actions[7, 1] is nan" in error(command, capsys)
    assert "does not exist" in error(["similarity", "nowhere", "--out", str(tmp_path / "out"), "--quiet"], capsys)


def test_histogram_in_a_line() -> None:
    edges = [0.0, *np.geomspace(0.01, 100, 9)]
    counts = [0, 0, 1, 2, 8, 4, 0, 2, 0]
    bars, mark, scale, _ = histogram_lines({"edges": edges, "counts": counts}, 0.5)
    assert bars == "▂▃█▅ ▃"
    assert mark == "  ▲ 0.5"  # in the bin from 0.32 to 1
    assert scale.split() == ["0.0316", "31.6"]
    assert len(histogram_lines({"edges": edges, "counts": counts}, 0.5, width=3)[0]) == 3
    assert histogram_lines({"edges": edges, "counts": [0] * 9}, 0.5)[0].strip() == ""


# Ctrl-C


def test_ctrl_c_saves_says_how_to_go_on_and_the_same_command_ends_with_the_same_bits(
    data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a folder"
    command = arguments("pretrain", out, data, "--epochs", "40")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "classact", *command], stderr=subprocess.PIPE, text=True, env=environment
    )
    run = Run(out)
    deadline = time.monotonic() + 200
    while not list_checkpoints(run.checkpoints):
        assert process.poll() is None, process.stderr
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=240)[1]
    assert process.returncode == 130
    assert "classact: stopped at step " in message
    assert f"of 153; the state is saved in {out}" in message
    assert f"Continue with: classact pretrain --out '{out}' --data" in message
    assert "Traceback" not in message
    assert not run.encoder.exists()
    # In processes like the first: the bits are the same for one number of threads only.
    for again in (command, arguments("pretrain", tmp_path / "b", data, "--epochs", "40")):
        subprocess.run([sys.executable, "-m", "classact", *again], env=environment, check=True, capture_output=True)
    weights = [Run(path).encoder / "model.safetensors" for path in (out, tmp_path / "b")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert run.read_config()["timings"]["pre-training"] > 0
    json.dumps(run.read_config(), allow_nan=False)
