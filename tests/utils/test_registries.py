from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from classact.errors import ConfigError, UnknownNameError
from classact.utils import registry as module
from classact.utils.registry import Registry


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(module, "_loaded", set())
    monkeypatch.setattr(module, "entry_points", lambda group: [])  # noqa: ARG005
    return tmp_path


def test_names_are_looked_up_and_listed_in_order(plugins: Path) -> None:  # noqa: ARG001
    fruits = Registry("fruit", {"pear": 1, "apple": 2})
    fruits.register("fig", 3)
    assert (list(fruits), len(fruits), fruits["fig"], "plum" in fruits) == (["pear", "apple", "fig"], 3, 3, False)


def test_unknown_names_list_the_known_ones(plugins: Path) -> None:  # noqa: ARG001
    message = r"^unknown fruit 'appel': available are 'apple' \(did you mean 'apple'\?\)$"
    with pytest.raises(UnknownNameError, match=message):
        Registry("fruit", {"apple": 1})["appel"]
    assert issubclass(UnknownNameError, KeyError)
    assert issubclass(UnknownNameError, ValueError)


def test_names_are_taken_once(plugins: Path) -> None:  # noqa: ARG001
    fruits = Registry("fruit", {"pear": 1})
    fruits.register("pear", 1)  # the same again, as when a plugin is loaded twice
    with pytest.raises(ConfigError, match="fruit 'pear' is registered already"):
        fruits.register("pear", 2)


FRUITS = Registry("fruit", {"pear": 1})


def test_plugins_named_in_the_environment_are_loaded_when_they_are_needed(
    plugins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plugins / "tropical_fruit.py").write_text(f"from {__name__} import FRUITS\nFRUITS.register('mango', 7)\n")
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    monkeypatch.setenv("CLASSACT_PLUGINS", " tropical_fruit, ")
    assert FRUITS["pear"] == 1
    assert "tropical_fruit" not in sys.modules
    assert FRUITS["mango"] == 7
    assert list(FRUITS) == ["pear", "mango"]


def test_plugins_of_distributions_are_loaded(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (plugins / "other_fruit.py").write_text(f"from {__name__} import FRUITS\nFRUITS.register('lychee', 8)\n")
    found = [EntryPoint("fruit", "other_fruit", "classact.plugins")]
    monkeypatch.setattr(module, "entry_points", lambda group: found if group == "classact.plugins" else [])
    assert FRUITS["lychee"] == 8


def test_plugins_that_cannot_be_imported_are_named(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (plugins / "bad_fruit.py").write_text("1 / 0\n")
    monkeypatch.setenv("CLASSACT_PLUGINS", "bad_fruit")
    with pytest.raises(ConfigError, match=r"plugin 'bad_fruit', named by the environment variable CLASSACT_PLUGINS, "):
        Registry("fruit", {})["kiwi"]
