"""A training in a process of its own, to be killed; loaded once by a fork server, so that each start takes no time."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import fakes
from classact.errors import TrainingInterrupted
from classact.train import checkpoints
from classact.train.representation import Trainer

STEPS = 60
EPOCHS = STEPS * 16 / sum(fakes.STEPS)


def train(pipe: Connection, folder: str, pause: float, die_at_save: int | None = None, most: int | None = None) -> None:
    """Train to the end and save the encoder; report each step to ``pipe``, and wait ``pause`` seconds after it.

    Args:
        pipe: gets the number of each step done, or the message of an interruption.
        folder: of the run.
        pause: seconds.
        die_at_save: kill this process in the middle of writing its so manieth checkpoint.
        most: steps of this process, after which it waits to be killed, however late that comes; None: no such limit.
    """
    torch.set_num_threads(1)
    # What a killed process wrote stays; syncing is for power cuts, and takes long on a busy disk.
    os.fsync = lambda _: None  # type: ignore[assignment]
    if die_at_save is not None:
        _die_while_saving(die_at_save)

    first: list[int] = []

    def report(step: int, *_: Any) -> None:
        first[:] = first or [step]
        pipe.send(step)
        time.sleep(600 if step - first[0] + 1 == most else pause)

    trainer = Trainer(fakes.demonstrations(), fakes.pretrain_config(epochs=EPOCHS), Path(folder))
    assert trainer.steps == STEPS
    try:
        trainer.fit(report).save_pretrained(Path(folder) / "encoder")
    except TrainingInterrupted as stop:
        pipe.send(str(stop))


def _die_while_saving(number: int) -> None:
    count, save = 0, checkpoints.save_file

    def half(tensors: Any, path: Path) -> None:
        nonlocal count
        count += 1
        save(tensors, path)
        if count == number:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.save_file = half
