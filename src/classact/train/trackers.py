"""Where the numbers of a training go: always ``train.jsonl``, and experiment trackers beside it. None needs an account.

The trackers' packages are used directly. Those of Hugging Face Accelerate log through its process state, which a single
process does not set up, and add a new record of the settings whenever a run is continued.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from classact.errors import ClassactError, ConfigError, MissingDependencyError, UnknownNameError, choose
from classact.utils.storage import append_jsonl, read_json, write_json

ROWS = "train.jsonl"
IDENTITY = "tracking.json"
"""Remembers under which id a folder's run is known, so that a continued run is the same one."""
TENSORBOARD = "tensorboard"
WANDB_MODES = ("disabled", "offline", "online")

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """One experiment tracker."""

    name: str

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take the numbers of a step; one that was logged before, too."""

    def close(self) -> None:
        """Write what is still in memory."""


class Trackers:
    """All places where the rows of one training go.

    A tracker that fails during the training is left out from then on, with a warning: it must not cost a training. What
    goes wrong with ``train.jsonl`` is an error.

    Args:
        path: of the JSONL file; None writes none.
        trackers: the others.
    """

    def __init__(self, path: Path | None, trackers: Sequence[Tracker] = ()) -> None:
        self.path, self._trackers = path, list(trackers)

    @property
    def names(self) -> tuple[str, ...]:
        """The trackers in use beside the JSONL file."""
        return tuple(tracker.name for tracker in self._trackers)

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Log a row; trackers other than the JSONL file get its numbers only.

        Args:
            step: updates done so far. May have been logged before: a run that is continued repeats some.
            row: JSON values.

        Raises:
            StorageError: ``train.jsonl`` cannot be written.
        """
        if self.path is not None:
            append_jsonl(self.path, {"step": step, **row})
        numbers = numbers_of(row)
        for tracker in list(self._trackers):
            with self._kept(tracker):
                tracker.log(step, numbers)

    def close(self) -> None:
        """Finish all trackers."""
        while self._trackers:
            tracker = self._trackers[0]
            with self._kept(tracker):
                tracker.close()
            self._trackers = [other for other in self._trackers if other is not tracker]

    @contextmanager
    def _kept(self, tracker: Tracker) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            logger.warning(
                "the tracker %s failed and is left out from here on (%s: %s); %s has every row.",
                tracker.name,
                type(error).__name__,
                error,
                self.path or "the caller",
            )
            self._trackers = [other for other in self._trackers if other is not tracker]

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a row, without its step and without truth values."""
    out: dict[str, float] = {}
    for name, value in row.items():
        if name == "step" or isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
            continue
        if math.isfinite(number := float(value)):
            out[name] = number
    return out


@dataclass(frozen=True)
class _Run:
    folder: Path
    project: str
    name: str
    id: str
    config: dict[str, Any]
    start: int
    wandb_mode: str | None


class _TensorBoard:
    name = "tensorboard"

    def __init__(self, run: _Run) -> None:
        writer = _package("torch.utils.tensorboard", self.name).SummaryWriter
        folder = run.folder / TENSORBOARD
        new = not any(folder.glob("events.*"))
        # What an interrupted process logged after its last checkpoint is logged again: the page shows the new rows.
        self.writer = writer(str(folder), purge_step=run.start + 1)
        if new:
            self.writer.add_text("config", "    " + json.dumps(run.config, indent=2).replace("\n", "\n    "), 0)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, number in numbers.items():
            self.writer.add_scalar(name, number, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    name = "wandb"

    def __init__(self, run: _Run) -> None:
        wandb = _package("wandb", self.name)
        mode = run.wandb_mode or os.environ.get("WANDB_MODE") or "offline"
        run.folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=run.project,
            name=run.name,
            id=run.id,
            dir=str(run.folder),
            config=run.config,
            mode=mode,
            resume="allow" if mode == "online" else None,  # offline there is nobody to ask what was logged before
            reinit="create_new",
            # The terminal is not for it to record: progress bars rewrite it many times a second.
            settings=wandb.Settings(console="off", silent=True, save_code=False),
        )
        # Its own counter must not decrease; as a number of the row the step may.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log({"step": step, **numbers})

    def close(self) -> None:
        self.run.finish()


TRACKERS: Mapping[str, Callable[[_Run], Tracker]] = {_TensorBoard.name: _TensorBoard, _Wandb.name: _Wandb}
"""Name of a tracker, of its package and of its extra -> what opens it."""


def require(names: Sequence[str]) -> None:
    """Look for the trackers' packages without importing them: before anything that takes long.

    Raises:
        ConfigError: an unknown tracker.
        MissingDependencyError: a tracker's package is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise UnknownNameError(choose("tracker", name, TRACKERS))
        if not (sys.modules[name] if name in sys.modules else find_spec(name)):
            raise _missing(name, f"no module named {name!r}")


def make_trackers(
    names: Sequence[str],
    folder: Path | None,
    *,
    project: str = "classact",
    run_name: str | None = None,
    config: Mapping[str, Any] | None = None,
    start: int = 0,
    first: bool = True,
    wandb_mode: str | None = None,
) -> Trackers:
    """Open the trackers of a training.

    Args:
        names: "tensorboard" (files in ``folder/tensorboard``), "wandb" (Weights & Biases; files in
            ``folder/wandb``, sent with ``wandb sync``; those of a run that was continued with ``wandb sync --append``).
            Rows go to ``folder/train.jsonl`` in any case.
        folder: of the training; None tracks nothing.
        project: under which trackers file the run.
        run_name: what they call it; None is the folder's name.
        config: settings to show beside the numbers, as JSON values.
        start: updates done already, where a training is continued. Such a folder continues the same run.
        first: whether this is rank 0; the others log nothing.
        wandb_mode: "offline", "online" (needs an account) or "disabled"; None is the variable WANDB_MODE, else offline.

    Raises:
        ConfigError: an unknown tracker or mode, trackers without a folder, or a tracker that cannot start.
        MissingDependencyError: a tracker's package is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise UnknownNameError(choose("tracker", name, TRACKERS))
    if wandb_mode is not None and wandb_mode not in WANDB_MODES:
        raise UnknownNameError(choose("mode of wandb", wandb_mode, WANDB_MODES))
    if folder is None and names:
        raise ConfigError(f"the trackers {', '.join(names)} keep files beside the training: give it a folder.")
    if folder is None or not first:
        return Trackers(None)
    folder = Path(folder)
    trackers = Trackers(folder / ROWS)
    if not names:
        return trackers
    plain = json.loads(json.dumps(dict(config or {}), default=str))
    run = _Run(folder, project, run_name or folder.resolve().name, _identity(folder), plain, start, wandb_mode)
    try:
        for name in dict.fromkeys(names):
            trackers._trackers.append(_open(name, run))
    except BaseException:
        trackers.close()
        raise
    return trackers


def _open(name: str, run: _Run) -> Tracker:
    try:
        return TRACKERS[name](run)
    except ClassactError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the tracker {name!r} could not start ({type(error).__name__}: {error}). Repair that, or leave it out: "
            f"{run.folder / ROWS} has every row anyway."
        ) from error


def _identity(folder: Path) -> str:
    path = folder / IDENTITY
    if path.exists():
        return str(read_json(path, ConfigError)["id"])
    identity = uuid.uuid4().hex[:12]
    write_json(path, {"id": identity})
    return identity


def _package(module: str, extra: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        raise _missing(extra, str(error)) from error


def _missing(extra: str, problem: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"the tracker {extra!r} needs a package that is not here ({problem}): pip install 'classact[{extra}]', or "
        f"leave it out."
    )
