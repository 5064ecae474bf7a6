from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fakes
from classact.data.language import BERT, STAND_IN, recorded_source
from classact.errors import ConfigError
from classact.sims import versions
from classact.sims.versions import check_language, check_versions, installed_versions

INSTALLED = {"robosuite": "1.5.2", "mujoco": "3.8.1", "numpy": "2.3.5"}
DATA = fakes.demonstrations().with_images({})
SPEC = replace(fakes.LadderSimulator().spec, name="square", packages=("robosuite", "mujoco", "gym-aloha"))
OTHER = {"robosuite": "1.4.1", "mujoco": "3.8.1"}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        versions, "installed_versions", lambda names: {n: INSTALLED[n] for n in names if n in INSTALLED}
    )


def message(**changes: Any) -> str:
    with pytest.raises(ConfigError) as error:
        check_versions(replace(DATA, **changes), SPEC, rendered=True)
    return str(error.value)


@pytest.mark.parametrize("recorded", [{}, {"robosuite": "1.5.2", "mujoco": "3.8.1"}, {"numpy": "1.0"}])
def test_same_or_unknown_versions(recorded: dict[str, str]) -> None:
    assert check_versions(replace(DATA, versions=recorded), SPEC, rendered=True) == ""


def test_other_scenes_are_an_error_where_they_are_rendered() -> None:
    found = message(versions=OTHER)
    assert "walks (memory) was recorded with robosuite 1.4.1, but installed is 1.5.2" in found
    assert "with gym-aloha 0.1.1, but installed is none" in message(versions={"gym-aloha": "0.1.1"})
    warning = check_versions(replace(DATA, versions=OTHER), SPEC, rendered=False)
    assert "with robosuite 1.4.1, installed is 1.5.2. Its images are used as recorded, but the same actions" in warning


def test_advice_that_can_be_followed(tmp_path: Path) -> None:
    """Square itself refuses the recorded robosuite; a layout can accept it in HDF5 files, and no other package."""
    generate, accept = "classact data generate square", '{"accept": ["robosuite"]}'
    found = message(versions=OTHER, source=str(tmp_path / "square.npz"))
    assert found.endswith(f"Generate demonstrations with what is installed: {generate}.")
    file = tmp_path / "square.hdf5"
    file.touch()
    for source in (file, tmp_path):
        found = message(versions=OTHER, source=str(source))
        assert generate in found
        assert accept in found
        assert "accept" not in message(versions={"gym-aloha": "0.2"}, source=str(source))
    assert "--frames recorded" not in found
    assert "--frames recorded" in message(versions=OTHER, images=fakes.demonstrations().images)


def test_other_physics_are_a_warning() -> None:
    data = replace(DATA, versions={"robosuite": "1.5.0", "mujoco": "2.3.7"})
    warning = check_versions(data, SPEC, rendered=True)
    assert "robosuite 1.5.0, installed is 1.5.2; mujoco 2.3.7, installed is 3.8.1. States are rendered" in warning


def test_installed_versions() -> None:
    found = installed_versions(("numpy", "no-such-package"))
    assert list(found) == ["numpy"]
    assert found["numpy"][0].isdigit()


def test_a_version_that_the_file_does_not_say_is_a_warning() -> None:
    warning = check_versions(replace(DATA, versions={"robosuite": "unknown"}), SPEC, rendered=True)
    assert "was recorded with robosuite unknown, installed is 1.5.2" in warning


@pytest.mark.parametrize(
    ("recorded", "now"), [(BERT, BERT), (None, BERT), ("unknown", STAND_IN), (BERT, None), (STAND_IN, STAND_IN)]
)
def test_one_embedding_of_instructions(recorded: str | None, now: str | None) -> None:
    spec = replace(SPEC, language_source=now or "")
    check_language(recorded_source({} if recorded is None else {"language": recorded}), spec, "data")


def test_embeddings_are_never_mixed() -> None:
    spec = replace(SPEC, language_source=STAND_IN)
    expected = r"data: instructions were embedded by 'bert-base-uncased', .* by 'stand-in', .*hf download bert"
    with pytest.raises(ConfigError, match=expected):
        check_language(BERT, spec, "data")
    spec = replace(SPEC, language_source=BERT)
    with pytest.raises(ConfigError, match=r"by 'stand-in', .* policy trained with the former. Generate the demonstr"):
        check_language(STAND_IN, spec, "data")
