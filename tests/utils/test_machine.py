from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from classact.errors import ConfigError
from classact.train.loader import free_memory
from classact.utils import machine
from classact.utils.machine import check_device, choose_device, cores, memory_limits, prepare_threads, versions


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


# What a container, a job and the scheduler leave


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(machine, "_scheduled", lambda: 8)
    monkeypatch.delenv("PYTHON_CPU_COUNT", raising=False)
    return tmp_path


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 8), ("200000 100000", 2), ("250000 100000", 3), ("5000 100000", 1)]
)
def test_cores_of_a_container(groups: Path, quota: str, expected: int) -> None:
    write(groups / "cgroup", cpu__max=quota)
    assert cores() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("300000", 3)])
def test_cores_of_an_older_container(groups: Path, quota: str, expected: int) -> None:
    write(groups / "cgroup/cpu", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    assert cores() == expected


def test_cores_of_a_job_are_those_of_the_narrowest_group_around_it(groups: Path) -> None:
    write(groups / "cgroup/jobs/mine/step", cpu__max="max 100000")
    write(groups / "cgroup/jobs/mine", cpu__max="400000 100000")
    write(groups / "cgroup/jobs", cpu__max="600000 100000")
    write(groups / "cgroup/jobs/other", cpu__max="100000 100000")
    (groups / "own").write_text("0::/jobs/mine/step\n")
    assert cores() == 4
    write(groups / "cgroup/cpu/slurm/job", cpu__cfs_quota_us="200000", cpu__cfs_period_us="100000")
    (groups / "own").write_text("5:cpu,cpuacct:/slurm/job\n3:memory:/elsewhere\n0::/../outside\n")
    assert cores() == 2


def test_cores_that_python_was_told_of(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(groups / "cgroup", cpu__max="200000 100000")
    for said, expected in (("5", 5), ("default", 2), ("0", 2)):
        monkeypatch.setenv("PYTHON_CPU_COUNT", said)
        assert cores() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="there are no affinity masks here")
def test_cores_of_an_affinity_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHON_CPU_COUNT", raising=False)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("1000000", [(700_000, 1_000_000)]), ("200000", [(0, 200_000)]), ("max", []), (None, [])],
)
def test_memory_of_a_container(groups: Path, limit: str | None, expected: list[tuple[int, int]]) -> None:
    write(
        groups / "cgroup",
        memory__current="400000",
        memory__stat="anon 250000\nactive_file 60000\ninactive_file 40000",
        **({} if limit is None else {"memory__max": limit}),
    )
    assert memory_limits() == expected
    free, total = free_memory(torch.device("cpu"))
    assert (free, total) == expected[0] if expected else total > 1_000_000


def test_memory_of_an_older_container(groups: Path) -> None:
    write(
        groups / "cgroup/memory",
        memory__limit_in_bytes="1000000",
        memory__usage_in_bytes="500000",
        memory__stat="active_file 1\ninactive_file 2\ntotal_active_file 60000\ntotal_inactive_file 40000",
    )
    assert memory_limits() == [(600_000, 1_000_000)]


SETTINGS = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS")


@pytest.mark.parametrize(
    ("quota", "chosen", "expected"),
    [
        ("max 100000", {}, ["passive", None, None]),
        ("200000 100000", {}, ["passive", "2", "2"]),
        ("200000 100000", {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "6"}, ["active", "6", "2"]),
    ],
)
def test_threads_where_the_user_chose_nothing(
    groups: Path, monkeypatch: pytest.MonkeyPatch, quota: str, chosen: dict[str, str], expected: list[str | None]
) -> None:
    monkeypatch.setattr(os, "environ", dict(chosen))
    write(groups / "cgroup", cpu__max=quota)
    prepare_threads()
    assert [os.environ.get(name) for name in SETTINGS] == expected


def test_threads_are_prepared_before_libraries_load() -> None:
    script = "import classact, os, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "passive False\n"
