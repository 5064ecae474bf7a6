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
    with pytest.raises(ConfigError, match="asked for the first 9 episodes, but .* has 4"):
        classact.latent_actions(data, tmp_path / "other", labelled=9)
    with pytest.raises(KeyError, match="unknown preset of latent actions 'clam'"):
        classact.latent_actions(data, tmp_path / "other", preset="clam")


SCRIPT = """
import sys
import classact
{guard}
{indent}run = classact.pretrain(classact.read("pusht-expert", episodes=4), sys.argv[1], preset="debug", quiet=True)
{indent}rows = classact.evaluate(run, episodes=2, workers=2, quiet=True)
{indent}head = classact.finetune(run, "mlp", preset="head-debug", quiet=True) if {head} else run
{indent}print(len(rows) > 0, classact.load_policy(run).spec.name, classact.load_policy(head).spec.name)
{indent}print(classact.report(run))
"""


def run_script(tmp_path: Path, guard: str, *, head: bool = False) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "script.py"
    file.write_text(SCRIPT.format(guard=guard, indent="    " if guard else "", head=head))
    return subprocess.run([sys.executable, file, tmp_path / "run"], capture_output=True, text=True, timeout=280)


def test_a_script_goes_all_the_way(tmp_path: Path) -> None:
    done = run_script(tmp_path, 'if __name__ == "__main__":', head=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True retrieval mlp", str(tmp_path / "run" / "report.html")]


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    done = run_script(tmp_path, "")
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert "classact.evaluate() starts worker processes, each of which imports" in message
    assert "put what it does under 'if __name__ == \"__main__\":'" in message
