from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import classact
from classact.errors import ConfigError, DataError, UnknownNameError

FUNCTIONS = ("configure", "evaluate", "finetune", "latent_actions", "load_policy", "pretrain", "read", "report")


def test_functions_are_documented_and_typed() -> None:
    for name in FUNCTIONS:
        function = getattr(classact, name)
        signature = inspect.signature(function)
        assert "Raises:" in str(function.__doc__), name
        for parameter in signature.parameters.values():
            assert parameter.annotation is not parameter.empty, (name, parameter)
            said = parameter.name in str(function.__doc__)
            assert said, (name, parameter)
        assert name in dir(classact)


def test_names_that_are_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'classact' has no attribute 'train_all'"):
        classact.train_all  # type: ignore[attr-defined]  # noqa: B018


def test_errors_are_those_that_python_users_expect(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        classact.read(tmp_path / "nothing.zarr")
    for expected in (DataError, FileNotFoundError):
        with pytest.raises(expected, match="does not exist"):
            classact.read(tmp_path / "nothing.zarr")
    with pytest.raises(KeyError, match="unknown preset 'pusht-pluss'"):
        classact.configure(preset="pusht-pluss")
    assert issubclass(UnknownNameError, ConfigError)


def test_settings_can_be_looked_at_before_anything_is_trained() -> None:
    data = classact.read("pusht-expert", episodes=7)
    config = classact.configure(data, preset="pusht-plus", options=["temperature=0.1"], heldout=2)
    assert (config.data, config.episodes, config.heldout) == (data.source, 7, 2)
    assert config.pretrain.objective.describe() == "CLASS (temperature=0.1, queue=1280)"
    assert classact.configure(objective="byol").pretrain.objective.written == "byol"
    with pytest.raises(ConfigError, match="these settings are complete, so shift, preset would be ignored"):
        classact.pretrain(config, "run", preset="debug", shift="rand-color")


def test_latent_actions_stand_for_actions(tmp_path: Path) -> None:
    data = classact.read("pusht-expert", episodes=4)
    model = classact.latent_actions(data, tmp_path / "latent", labelled="0:2", preset="clam-debug", quiet=True)
    assert (tmp_path / "latent" / "latent_actions.html").is_file()
    found = classact.configure(data, preset="debug", labelled="0:2", latent_actions=model)
    assert (found.latent_actions, found.labelled, found.learns_from) == (str(model), "0:2", "latent-actions")
    with pytest.raises(ConfigError, match=r"asked for the first 9 episodes, but .* has 4"):
        classact.latent_actions(data, tmp_path / "other", labelled=9)
    with pytest.raises(KeyError, match="unknown preset of latent actions 'clam'"):
        classact.latent_actions(data, tmp_path / "other", preset="clam")


EXAMPLES = Path(__file__).parents[1] / "examples"


def run_script(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    file = folder / "script.py"
    file.write_text(text)
    return subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=280, cwd=folder)


def test_an_example_goes_all_the_way(tmp_path: Path) -> None:
    """The one that calls nearly everything, with the least of everything."""
    text = (EXAMPLES / "few_labels.py").read_text()
    for usual, least in (
        ('"pusht-expert")', '"pusht-expert", episodes=4)'),
        ('"0:30"', '"0:2"'),
        ("clam-cpu", "clam-debug"),
        ("pusht-demo", "debug"),
        ("head-demo", "head-debug"),
        ("episodes=50", "episodes=2"),
    ):
        assert usual in text
        text = text.replace(usual, least)
    done = run_script(tmp_path, text)
    assert done.returncode == 0, done.stderr
    retrieval, head, page = done.stdout.splitlines()[-3:]
    assert "policy='retrieval'" in retrieval
    assert "policy='mlp'" in head
    assert page == "see runs/few-labels/report.html"
    assert (tmp_path / "runs" / "few-labels" / "report.html").is_file()


@pytest.mark.parametrize("call", ["pretrain('pusht-expert', 'run', preset='debug')", "evaluate('run')"])
def test_a_script_without_a_guard_is_told_so(call: str, tmp_path: Path) -> None:
    done = run_script(tmp_path, f"import classact\nclassact.{call}\n")
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert f"classact.{call[: call.index('(')]}() starts worker processes, each of which imports" in message
    assert "put what it does under 'if __name__ == \"__main__\":'" in message


def test_a_run_learns_from_what_was_read(tmp_path: Path) -> None:
    data = classact.read("pusht-expert", episodes="3:6")
    config = classact.configure(data, preset="debug")
    assert classact.read(config.data, episodes=config.episodes).fingerprint() == data.fingerprint()
    assert classact.configure(classact.read("pusht-expert"), preset="debug").episodes is None
    with pytest.raises(ConfigError, match=r"finds 2 of .* other ones than the 2 of .* Choose from them when they are"):
        classact.pretrain(classact.read("pusht-expert", episodes=5).subset([2, 4]), tmp_path / "run", preset="debug")
    assert not (tmp_path / "run").exists()
