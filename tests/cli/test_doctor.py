from __future__ import annotations

import importlib
import os
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from classact import sims
from classact.cli.doctor import hold_action, try_simulator, try_simulators
from classact.data.schema import Schema
from classact.errors import ConfigError, SimulatorError
from classact.sims import SIMULATORS, Entry, make_simulator

doctor = importlib.import_module("classact.cli.doctor")  # classact.cli.doctor is a command


def crash(name: str) -> str:
    """What broken GL may do."""
    if name == "square":
        os._exit(1)
    return f"{os.getpid()}"


def hang(name: str) -> str:
    if name == "square":
        time.sleep(600)
    return "well"


def fail(name: str) -> str:
    if name == "pusht":
        raise AttributeError("no attribute\n'eglQueryString'")
    if name == "square":
        raise SimulatorError("GL cannot start with MUJOCO_GL=egl: no device. On Debian install libegl1. Or else.")
    raise ConfigError(f"simulator {name!r} needs an extra, which is not installed. Install it: pip install")


def test_push_t_says_how_fast_it_is() -> None:
    said = try_simulator("pusht")
    step, frame = (float(part.split(" ms")[0]) for part in said.split(", "))
    assert step > 0
    assert frame > 0
    assert said.endswith("ms a frame of 96 x 96")


def test_a_crash_is_one_failed_check_and_the_others_are_tried() -> None:
    checks = try_simulators(["pusht", "square", "aloha-transfer", "libero-object"], crash)
    assert [check.works for check in checks] == [True, False, True, True]
    assert checks[1].detail == "its process died (exit code 1)"
    assert "MUJOCO_GL" in checks[1].remedy
    assert checks[2].detail == checks[3].detail != checks[0].detail  # one process until it is gone
    assert str(os.getpid()) not in [check.detail for check in checks]


def test_a_simulator_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    def names() -> Iterator[str]:
        monkeypatch.setattr(doctor, "PATIENCE", 1.0)
        yield "square"
        monkeypatch.setattr(doctor, "PATIENCE", 240.0)  # a process takes a while to start beside others
        yield "aloha-transfer"

    one, two = try_simulators(names(), hang)
    assert (one.works, one.detail, one.required) == (
        False,
        "its process gave no sign of life for 1 s and was ended",
        False,
    )
    assert (two.works, two.detail) == (True, "well")


def test_failures_say_what_to_do() -> None:
    checks = {check.name: check for check in try_simulators(SIMULATORS, fail)}
    assert set(checks) == {f"simulator {name}" for name in SIMULATORS}
    assert not any(check.required for check in checks.values())  # each is an extra
    push_t, square = checks["simulator pusht"], checks["simulator square"]
    assert push_t.detail == "AttributeError: no attribute 'eglQueryString'"
    assert push_t.remedy == "pip install --force-reinstall 'classact[pusht]'"
    assert square.detail == "GL cannot start with MUJOCO_GL=egl: no device"
    assert square.remedy == "On Debian install libegl1. Or else."
    assert checks["simulator aloha-transfer"].remedy == "Install it: pip install"
    assert checks["simulator libero-object"].remedy == "Install it: pip install"


def test_a_simulator_whose_extra_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sims, "SIMULATORS", {"far": Entry("not_installed_at_all:make", "Far", "robosuite")})
    with pytest.raises(ConfigError) as caught:
        try_simulator("far")
    detail, remedy = doctor._said(caught.value, "robosuite")
    assert "needs the extra 'robosuite', which is not installed (no module 'not_installed_at_all')" in detail
    assert remedy == (
        "Install it into an environment of its own: pip install 'classact[robosuite]', or put --extra robosuite after "
        "'uv run'. Extras 'robosuite' and 'libero' exclude each other: they share no version of robosuite."
    )


@pytest.mark.parametrize(
    ("extra", "advice"),
    [
        ("aloha", "Install it: pip install 'classact[aloha]', or put --extra aloha after 'uv run'."),
        # Else the robosuite of the other tasks would be replaced.
        ("libero", "or put UV_PROJECT_ENVIRONMENT=.venv-libero before and --extra libero after 'uv run'. Extras"),
    ],
)
def test_what_to_install_breaks_nothing_else(extra: str, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sims, "SIMULATORS", {"far": Entry("not_installed_at_all:make", "Far", extra)})
    with pytest.raises(ConfigError) as caught:
        make_simulator("far")
    assert advice in str(caught.value)
    assert ("environment of its own" in str(caught.value)) is (extra == "libero")


def test_a_blank_picture_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(name: str) -> object:
        sim = make_simulator(name)
        seen = replace(sim.observe(), images={"top": np.zeros((96, 96, 3), np.uint8)})
        return SimpleNamespace(spec=sim.spec, reset=sim.reset, step=sim.step, close=sim.close, observe=lambda **_: seen)

    monkeypatch.setattr(doctor, "make_simulator", blind)
    with pytest.raises(SimulatorError, match="the rendered image is blank"):
        try_simulator("pusht")


ARM = Schema(proprioception=(("joint_pos", 2), ("eef_pos", 3), ("eef_rot6d", 6)))


@pytest.mark.parametrize(
    ("schema", "actions", "expected"),
    [
        (ARM, 10, [2, 3, 4, 5, 6, 7, 8, 9, 10, -1]),
        (ARM, 11, list(range(11))),  # as many actions as joints
        (ARM, 9, "which of its 9-D actions holds still is not known; .* got .'eef_pos', 'eef_rot6d', 'joint_pos'"),
        (None, 10, r"10-D actions holds still is not known; .* got \[\]"),
    ],
)
def test_holding_still(schema: Schema | None, actions: int, expected: object) -> None:
    spec = SimpleNamespace(name="arm", schema=schema, action_dim=actions, proprioception_dim=11)
    seen: Callable[..., object] = lambda **_: SimpleNamespace(proprioception=np.arange(11, dtype=np.float32))  # noqa: E731
    sim = SimpleNamespace(spec=spec, observe=seen)
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            hold_action(sim)  # type: ignore[arg-type]
    else:
        action = hold_action(sim)  # type: ignore[arg-type]
        assert action.tolist() == expected
        assert action.dtype == np.float32


def test_every_package_of_an_extra_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert list(doctor.EXTRAS) == list(project["optional-dependencies"])
    with pytest.raises(ImportError, match="the installed classact does not know it"):
        doctor._extra("new")
    found = {"onnx": "1.19.0", "onnxruntime": "1.23.0"}

    def version(name: str) -> str:
        if name not in found:
            raise doctor.metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(doctor.metadata, "version", version)
    with pytest.raises(ImportError, match=r"^onnxscript is not installed$"):  # which the export needs
        doctor._extra("onnx")
    found["onnxscript"] = "0.1"
    with pytest.raises(ImportError, match=r"^onnxscript is 0\.1, expected >=0\.2$"):
        doctor._extra("onnx")
    found["onnxscript"] = "0.5"
    assert doctor._extra("onnx") == "onnx 1.19.0, onnxruntime 1.23.0, onnxscript 0.5"


def test_the_extra_of_another_robosuite(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"robosuite": "1.4.0", "mujoco": "3.8.1", "hf-libero": "0.1.4", "transformers": "5.0"}
    monkeypatch.setattr(doctor.metadata, "version", versions.__getitem__)
    assert doctor._extra("libero") == "hf-libero 0.1.4, mujoco 3.8.1, robosuite 1.4.0, transformers 5.0"
    with pytest.raises(ImportError, match=r"robosuite is 1\.4\.0, expected ==1\.5\.2"):
        doctor._extra("robosuite")
