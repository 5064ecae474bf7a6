"""Training state on disk: complete or absent, checksummed, no pickle."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from classact.errors import CheckpointError
from classact.utils.locks import own
from classact.utils.storage import read_json, verify_folder, write_folder, write_json

STATE = "state.safetensors"
META = "state.json"
KEEP = 2  # checkpoints that stay: the newest, and the one before it in case the disk damages the newest
_NAME = re.compile(r"step-(\d{8})")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingState:
    """All that a training needs to be resumed exactly; draws are functions of seed and step, so no generator state.

    Attributes:
        step: updates done.
        tensors: "model.NAME", "ema.NAME" and "optimizer.INDEX.NAME".
        meta: plain JSON: settings, data fingerprint, seconds spent.
    """

    step: int
    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with ``prefix``, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's per-parameter state by name."""
    tensors: dict[str, Tensor] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    return tensors


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of :func:`optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    found = ((match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)))
    return sorted((int(match[1]), path) for match, path in found)


def save_checkpoint(folder: Path, state: TrainingState) -> Path:
    """Write ``folder/step-XXXXXXXX`` atomically, then drop all but the newest :data:`KEEP` up to this step.

    A checkpoint of this or a later step can only be one that :func:`load_latest` skipped as damaged: it is replaced or
    dropped, so that it never counts as kept. From then on the folder is locked until this process ends or releases it
    (:func:`classact.utils.locks.own`).

    Raises:
        BusyError: another process saves into this folder.
        StorageError: the disk is full; earlier checkpoints are untouched.
    """
    own(folder, forever=True)
    path = folder / f"step-{state.step:08d}"

    def fill(temporary: Path) -> None:
        save_file({k: v.detach().cpu().contiguous() for k, v in state.tensors.items()}, temporary / STATE)
        write_json(temporary / META, {"step": state.step, **state.meta})

    write_folder(path, fill)
    found = list_checkpoints(folder)
    good = [old for step, old in found if step <= state.step][-KEEP:]
    for _, old in found:
        if old not in good:
            shutil.rmtree(old, ignore_errors=True)
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    return path


def load_checkpoint(path: Path) -> TrainingState:
    """Read and verify one checkpoint."""
    verify_folder(path)
    meta = read_json(path / META, CheckpointError)
    try:
        tensors = load_file(path / STATE)
    except SafetensorError as error:
        raise CheckpointError(f"{path / STATE} cannot be read ({error}): damaged. Use another checkpoint.") from None
    return TrainingState(int(meta.pop("step")), tensors, meta)


def load_latest(folder: Path) -> TrainingState | None:
    """The newest intact checkpoint; damaged ones are skipped with a warning. If all are damaged, a CheckpointError."""
    problems: list[CheckpointError] = []
    found = list_checkpoints(folder)
    for number, (_, path) in enumerate(reversed(found), 1):
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            problems.append(error)
            if number < len(found):
                logger.warning("%s Going back to the checkpoint before it.", error)
    if problems:
        raise CheckpointError(
            f"{folder}: every checkpoint of {len(found)} is damaged; the newest: {problems[0]} Remove {folder} to "
            f"train from the beginning."
        )
    return None
