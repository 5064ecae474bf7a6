"""Where a training's numbers go: always ``train.jsonl``, and experiment trackers beside it. None needs an account.

The trackers' packages are used directly: Hugging Face Accelerate's log through its process state, which a single
process does not set up, and add a new record of the settings whenever a run is resumed.
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
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from classact.errors import ConfigError, MissingDependencyError
from classact.utils.codec import to_json
from classact.utils.storage import append_jsonl, read_json, write_json

ROWS = "train.jsonl"
IDENTITY = "tracking.json"  # holds wandb's id of a folder's run, so that a resumed run is the same one
logger = logging.getLogger(__name__)


class Trackers:
    """All places where the rows of one training go.

    A tracker that fails during the training is dropped with a warning: it must not cost a training. Failures of
    ``train.jsonl`` are errors.

    Args:
        names: "tensorboard" (files in ``folder/tensorboard``), "wandb" (Weights & Biases; files in ``folder/wandb``,
            sent with ``wandb sync``, those of a resumed run with ``wandb sync --append``; the variable WANDB_MODE may
            be "online", which needs an account).
        folder: of the training, whose name the run has there; None tracks nothing.
        config: settings to show beside the numbers.
        start: updates already done by a resumed training, whose run is continued.

    Raises:
        ConfigError: trackers without a folder, or a tracker that cannot start.
        MissingDependencyError: a tracker's package is not installed.
    """

    def __init__(
        self,
        names: Sequence[str] = (),
        folder: Path | None = None,
        config: Mapping[str, Any] | None = None,
        start: int = 0,
    ) -> None:
        self.path = None if folder is None else folder / ROWS
        self.trackers: list[Tracker] = []
        if folder is None:
            if names:
                raise ConfigError(f"the trackers {', '.join(names)} keep files beside the training: give it a folder.")
            return
        try:
            for name in dict.fromkeys(names):
                self.trackers.append(_open(name, folder, to_json(config or {}), start))
        except BaseException:
            self.close()
            raise

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Log a row of JSON values, of which trackers other than the JSONL file get the numbers only.

        A resumed run logs some steps again. A StorageError if ``train.jsonl`` cannot be written.
        """
        if self.path is not None:
            append_jsonl(self.path, {"step": step, **row})
        numbers = numbers_of(row)
        for tracker in list(self.trackers):
            with self._kept(tracker):
                tracker.log(step, numbers)

    def close(self) -> None:
        """Finish all trackers."""
        for tracker in list(self.trackers):
            with self._kept(tracker):
                tracker.close()
        self.trackers.clear()

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
            self.trackers.remove(tracker)


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a row, without its step and without truth values."""
    out: dict[str, float] = {}
    for name, value in row.items():
        if name == "step" or isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
            continue
        if math.isfinite(number := float(value)):
            out[name] = number
    return out


class _TensorBoard:
    name = "tensorboard"

    def __init__(self, folder: Path, config: dict[str, Any], start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Steps after an interrupted process's last checkpoint are logged again: the page shows the new rows.
        self.writer: Any = SummaryWriter(str(folder / self.name), purge_step=start + 1)
        if start == 0:
            self.writer.add_text("config", "    " + json.dumps(config, indent=2).replace("\n", "\n    "), 0)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, number in numbers.items():
            self.writer.add_scalar(name, number, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    name = "wandb"

    def __init__(self, folder: Path, config: dict[str, Any], start: int) -> None:  # noqa: ARG002 (rows have their steps)
        import wandb

        mode = os.environ.get("WANDB_MODE") or "offline"
        path = folder / IDENTITY
        if not path.exists():
            write_json(path, {"id": uuid.uuid4().hex[:12]})
        self.run = wandb.init(
            project="classact",
            name=folder.resolve().name,
            id=read_json(path, ConfigError)["id"],
            dir=str(folder),
            config=config,
            mode=mode,
            resume="allow" if mode == "online" else None,  # offline nobody knows what was logged before
            reinit="create_new",
            # It shall not record the terminal: progress bars rewrite it many times a second.
            settings=wandb.Settings(console="off", silent=True, save_code=False),
        )
        # Its own counter must not decrease; as a number of the row the step may.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log({"step": step, **numbers})

    def close(self) -> None:
        self.run.finish()


Tracker = _TensorBoard | _Wandb
TRACKERS: Mapping[str, Callable[[Path, dict[str, Any], int], Tracker]] = {"tensorboard": _TensorBoard, "wandb": _Wandb}
"""Name of a tracker, its package and its extra -> what opens it, given folder, settings and updates done."""


def require(names: Sequence[str]) -> None:
    """Check that the trackers' packages are installed, without importing them, before anything that takes long."""
    for name in names:
        if not (sys.modules[name] if name in sys.modules else find_spec(name)):
            raise _missing(name, f"no module named {name!r}")


def _open(name: str, folder: Path, config: dict[str, Any], start: int) -> Tracker:
    try:
        return TRACKERS[name](folder, config, start)
    except ImportError as error:
        raise _missing(name, str(error)) from error
    except Exception as error:
        raise ConfigError(
            f"the tracker {name!r} could not start ({type(error).__name__}: {error}). Repair that, or leave it out: "
            f"{folder / ROWS} has every row anyway."
        ) from error


def _missing(name: str, problem: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"the tracker {name!r} needs a package that is not here ({problem}): pip install 'classact[{name}]', or leave "
        f"it out."
    )
