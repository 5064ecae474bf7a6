from __future__ import annotations

import errno
import logging
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from classact.errors import CheckpointError, StorageError
from classact.train import checkpoints
from classact.train.checkpoints import (
    META,
    STATE,
    TrainingState,
    list_checkpoints,
    load_checkpoint,
    load_latest,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)
from classact.train.config import OptimizerConfig
from classact.train.optim import make_optimizer
from classact.utils.locks import OWNER


def state(step: int, size: int = 8) -> TrainingState:
    tensors = {"model.w": torch.full((size,), float(step)), "optimizer.0.step": torch.tensor(float(step))}
    return TrainingState(step, tensors, {"identity": {"seed": 0}, "seconds": 0.5 * step})


def steps(folder: Path) -> list[int]:
    return [step for step, _ in list_checkpoints(folder)]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def test_round_trip(tmp_path: Path) -> None:
    written = state(12)
    path = save_checkpoint(tmp_path, written)
    assert path == tmp_path / "step-00000012"
    read = load_checkpoint(path)
    assert read.step == 12
    assert read.meta == written.meta
    assert read.tensors.keys() == written.tensors.keys()
    assert all(torch.equal(read.tensors[k], written.tensors[k]) for k in written.tensors)


def test_the_last_two_stay_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".step-00000001.77.0123abcd.tmp").mkdir()
    for step in (2, 4, 6):
        save_checkpoint(tmp_path, state(step))
    there = {path.name for path in tmp_path.iterdir()} - {OWNER}
    assert there == {"step-00000004", "step-00000006"}


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "absent") is None
    assert load_latest(tmp_path) is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: flip(p / STATE), r"state.safetensors has SHA-256 .*expected .*damaged"),
        (lambda p: truncate(p / STATE), r"state.safetensors has [\d,]+ bytes, expected [\d,]+: it was truncated"),
        (lambda p: (p / STATE).unlink(), r"state.safetensors is missing"),
        (lambda p: flip(p / META), r"state.json has SHA-256"),
        (lambda p: (p / "checksums.json").unlink(), r"checksums.json does not exist"),
        (lambda p: truncate(p / "checksums.json"), r"checksums.json is not valid JSON"),
    ],
)
def test_damage_falls_back_with_a_warning(
    tmp_path: Path, damage: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (2, 4):
        save_checkpoint(tmp_path, state(step))
    damage(tmp_path / "step-00000004")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "step-00000004")
    with caplog.at_level(logging.WARNING):
        found = load_latest(tmp_path)
    assert found is not None
    assert found.step == 2
    assert "Going back to the checkpoint before it" in caplog.text
    assert "step-00000004" in caplog.text


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    for step in (2, 4):
        save_checkpoint(tmp_path, state(step))
        truncate(tmp_path / f"step-{step:08d}" / STATE)
    with pytest.raises(CheckpointError, match=r"every checkpoint of 2 is damaged.*step-00000004.*Remove .* to train"):
        load_latest(tmp_path)


def test_a_damaged_checkpoint_is_written_again_and_never_kept_for_a_good_one(tmp_path: Path) -> None:
    for step in (2, 4):
        save_checkpoint(tmp_path, state(step))
    truncate(tmp_path / "step-00000004" / STATE)
    save_checkpoint(tmp_path, state(3))
    assert steps(tmp_path) == [2, 3]
    truncate(tmp_path / "step-00000003" / STATE)
    save_checkpoint(tmp_path, state(3))
    assert load_checkpoint(tmp_path / "step-00000003").step == 3
    assert steps(tmp_path) == [2, 3]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left (os error 28)")],
)
def test_disk_full_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    save_checkpoint(tmp_path, state(2))

    def full(_: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(
        StorageError, match=r"disk full while writing .*step-00000004 \([\d,]+ bytes free\).*same command"
    ):
        save_checkpoint(tmp_path, state(4))
    assert {path.name for path in tmp_path.iterdir()} - {OWNER} == {"step-00000002"}
    found = load_latest(tmp_path)
    assert found is not None
    assert found.step == 2


LIMITED = """
import resource, signal, sys
from pathlib import Path
import torch
from classact.train.checkpoints import TrainingState, save_checkpoint
from classact.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
save_checkpoint(folder, TrainingState(2, {"w": torch.ones(1000)}, {}))
resource.setrlimit(resource.RLIMIT_FSIZE, (8000, resource.RLIM_INFINITY))
try:
    save_checkpoint(folder, TrainingState(4, {"w": torch.ones(100_000)}, {}))
except StorageError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="this system has no limit on the size of files")
def test_a_write_that_the_system_refuses_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"cannot write {tmp_path / 'step-00000004'}: File too large"), run.stdout
    assert {path.name for path in tmp_path.iterdir()} - {OWNER} == {"step-00000002"}
    assert load_checkpoint(tmp_path / "step-00000002").step == 2


@pytest.mark.parametrize("name", ["lars", "adamw"])
def test_optimizer_goes_on_as_if_never_saved(name: str) -> None:
    def make() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, make_optimizer(layer.parameters(), OptimizerConfig(name=name, learning_rate=0.1))

    def update(layer: torch.nn.Linear, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        (layer(torch.tensor([[1.0, 2.0, 3.0]])) ** 2).sum().backward()
        optimizer.step()

    straight, optimizer = make()
    for _ in range(2):
        update(straight, optimizer)
    saved = {k: v.clone() for k, v in optimizer_tensors(optimizer).items()}
    weights = {k: v.clone() for k, v in straight.state_dict().items()}
    update(straight, optimizer)

    resumed, other = make()
    resumed.load_state_dict(weights)
    load_optimizer_tensors(other, saved)
    update(resumed, other)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
