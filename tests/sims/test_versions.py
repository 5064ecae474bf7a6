from __future__ import annotations

from dataclasses import replace

import pytest

import fakes
from classact.errors import ConfigError
from classact.sims import versions
from classact.sims.versions import check_versions, installed_versions

INSTALLED = {"robosuite": "1.5.2", "mujoco": "3.8.1", "numpy": "2.3.5"}
DATA = fakes.demonstrations()
SPEC = replace(fakes.LadderSimulator().spec, name="square", packages=("robosuite", "mujoco", "gym-aloha"))


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        versions, "installed_versions", lambda names: {n: INSTALLED[n] for n in names if n in INSTALLED}
    )


@pytest.mark.parametrize("recorded", [{}, {"robosuite": "1.5.2", "mujoco": "3.8.1"}, {"numpy": "1.0"}])
def test_same_or_unknown_versions(recorded: dict[str, str]) -> None:
    assert check_versions(replace(DATA, versions=recorded), SPEC) == ""


def test_other_scenes_are_an_error() -> None:
    data = replace(DATA, versions={"robosuite": "1.4.1", "mujoco": "3.8.1"})
    with pytest.raises(ConfigError, match=r"walks .*with robosuite 1\.4\.1, but installed is 1\.5\.2") as error:
        check_versions(data, SPEC)
    assert "Install robosuite==1.4.1" in str(error.value)
    assert "classact data generate square" in str(error.value)
    assert '{"accept": ["robosuite"]}' in str(error.value)
    with pytest.raises(ConfigError, match=r"with gym-aloha 0\.1\.1, but installed is none"):
        check_versions(replace(DATA, versions={"gym-aloha": "0.1.1"}), SPEC)


def test_other_physics_are_a_warning() -> None:
    warning = check_versions(replace(DATA, versions={"robosuite": "1.5.0", "mujoco": "2.3.7"}), SPEC)
    assert "robosuite 1.5.0, installed is 1.5.2; mujoco 2.3.7, installed is 3.8.1" in warning


def test_installed_versions() -> None:
    found = installed_versions(("numpy", "no-such-package"))
    assert list(found) == ["numpy"]
    assert found["numpy"][0].isdigit()


def test_a_version_that_the_file_does_not_say_is_a_warning() -> None:
    warning = check_versions(replace(DATA, versions={"robosuite": "unknown"}), SPEC)
    assert "was recorded with robosuite unknown, installed is 1.5.2" in warning
