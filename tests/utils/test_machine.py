from __future__ import annotations

import pytest
import torch

from classact.errors import ConfigError
from classact.utils.machine import check_device, choose_device, versions


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_devices_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    assert (choose_device("auto"), choose_device("cuda"), choose_device("cpu")) == ("cuda", "cuda", "cpu")
    assert check_device("cuda:1") == torch.device("cuda", 1)
    assert check_device(torch.device("cpu")) == torch.device("cpu")
    gpus(monkeypatch, 0)
    assert choose_device("auto") == "cpu"


@pytest.mark.parametrize(
    ("count", "name", "message"),
    [
        (0, "cuda", "device 'cuda' was asked for, but torch sees no GPU. Use another device, such as 'cpu'"),
        (0, "cuda:0", "device 'cuda:0' was asked for, but torch sees no GPU"),
        (2, "cuda:2", "device 'cuda:2' was asked for, but torch sees 2 of them, numbered from 0"),
        (2, "gpu", "unknown device 'gpu': available are 'cpu', 'cuda', 'cuda:N'"),
        (2, "auto", "unknown device 'auto'"),
    ],
)
def test_devices_that_are_not(monkeypatch: pytest.MonkeyPatch, count: int, name: str, message: str) -> None:
    gpus(monkeypatch, count)
    with pytest.raises(ConfigError, match=message):
        check_device(name)


def test_settings_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0)
    with pytest.raises(ConfigError, match="device 'cuda' was asked for, but torch sees no GPU"):
        choose_device("cuda")
    with pytest.raises(ConfigError, match="unknown device 'cuda:0': available are 'auto', 'cpu', 'cuda'"):
        choose_device("cuda:0")


def test_versions_say_what_is_installed() -> None:
    found = versions()
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert {"python", "classact", "numpy"} <= found.keys()
