"""Any saved policy from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from classact.errors import CheckpointError, choose
from classact.policies import monitored, parametric, retrieval
from classact.policies.folder import METADATA, read_format
from classact.policies.monitored import MonitoredPolicy
from classact.policies.parametric import ParametricPolicy
from classact.policies.retrieval import RetrievalPolicy
from classact.utils.hub import model_folder

Saved = RetrievalPolicy | ParametricPolicy | MonitoredPolicy

KINDS: dict[str, type[Saved]] = {
    retrieval.FORMAT: RetrievalPolicy,
    retrieval.PARTLY: RetrievalPolicy,
    parametric.FORMAT: ParametricPolicy,
    monitored.FORMAT: MonitoredPolicy,
}
"""Format of the metadata -> class."""


def load_policy(folder: str | Path, *, revision: str | None = None, device: str = "cpu", **overrides: Any) -> Saved:
    """The policy in a folder that a policy's ``save`` wrote, or on the hub: ``user/name``, ``user/name@revision``.

    ``overrides`` change settings, see :meth:`RetrievalPolicy.load` and :meth:`ParametricPolicy.load`; of a monitored
    policy they are the head's.

    Raises:
        CheckpointError: no policy's folder, a damaged one, one of another version, or a name on the hub that cannot be
            downloaded.
        ConfigError: unknown overrides, values out of range, or a missing device.
    """
    path = model_folder(folder, revision)
    if not (path / METADATA).is_file():
        what = "does not exist" if not path.exists() else f"has no {METADATA}"
        raise CheckpointError(f"{path} is no policy: it {what}. Expected a folder that a policy was saved to.")
    found = read_format(path)
    if found not in KINDS:
        raise CheckpointError(f"{path / METADATA}: {choose('format', found, KINDS)}. Another version wrote it.")
    return KINDS[found].load(path, device=device, **overrides)
