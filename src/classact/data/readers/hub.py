"""LeRobot data sets by their name on the hub, ``user/name`` or ``user/name@revision``: local copies, else downloads."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from classact.errors import MissingDataError
from classact.utils.hub import hub_name, reason

logger = logging.getLogger(__name__)

_FILES = (".zarr", ".zip", ".hdf5", ".h5", ".npz", ".json")


def is_hub_name(source: str | os.PathLike[str]) -> bool:
    """Whether a source is of the form ``user/name`` or ``user/name@revision``, and neither it nor "user" is a path."""
    return not os.fspath(source).endswith(_FILES) and hub_name(source) is not None


def lerobot_home() -> Path:
    """Where LeRobot keeps data sets: ``HF_LEROBOT_HOME``, else ``lerobot`` in the hub's cache folder."""
    if chosen := os.environ.get("HF_LEROBOT_HOME"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser() / "lerobot"


def hub_folder(source: str) -> Path:
    """The folder of a data set on the hub: LeRobot's own copy, the hub's cache, or a download into it.

    What a download takes is said first.

    Raises:
        MissingDataError: it is neither here nor can it be downloaded.
    """
    found = hub_name(source)
    assert found is not None
    name, revision = found
    if revision is None and (lerobot_home() / name / "meta/info.json").is_file():
        return lerobot_home() / name
    from huggingface_hub import HfApi, snapshot_download

    try:
        files = HfApi().dataset_info(name, revision=revision, files_metadata=True, timeout=10).siblings or []
        size = sum(file.size or 0 for file in files)
        logger.warning("%s: %d files, %.1f MiB, where the hub's cache lacks them", source, len(files), size / 2**20)
        return Path(snapshot_download(name, repo_type="dataset", revision=revision))
    except Exception as problem:  # what carries the connection raises errors of its own
        why = reason(problem)
    try:
        folder = Path(snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True))
    except Exception:
        raise MissingDataError(
            f"{source} is no path here, and cannot be downloaded as a data set of the hub ({why}). Check the "
            f"name and the connection, copy it to {lerobot_home() / name}, or name its folder."
        ) from None
    logger.warning("%s: taken from the hub's cache, which may be older (%s)", source, why)
    return folder
