"""The policies of a run: retrieval, and heads that are monitored by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from classact.errors import CheckpointError
from classact.policies.base import Policy
from classact.policies.load import load_policy as load_saved
from classact.policies.monitored import monitored
from classact.policies.retrieval import RetrievalPolicy
from classact.run.config import HeadRunConfig
from classact.run.folder import Run
from classact.utils.hub import model_folder


def load_policy(
    folder: Run | str | Path, *, revision: str | None = None, device: str = "cpu", **overrides: Any
) -> Policy:
    """The policy that a folder holds: of a run, of a head, or one that was saved by itself.

    Args:
        folder: of a run: its retrieval policy. Of a head in a run: as in evaluations, monitored by the run's retrieval
            policy if it started from the run's encoder. Or a policy on the hub: ``user/name``, ``user/name@revision``.
            Those of a run are executed as they are evaluated (``policy.spec.control``).
        revision: of the hub: branch, tag or commit.
        device: where to compute.
        overrides: settings of the policy to change, such as ``k=16`` or ``seed=1``.

    Raises:
        CheckpointError: none of these, a damaged policy, one of another version, or one that cannot be downloaded.
        DataError: the run's settings are damaged or of another version.
        ConfigError: unknown overrides, values out of range, or a missing device.
    """
    # Resolved: whether it is a head's folder does not depend on how its path is written.
    path = (folder.root if isinstance(folder, Run) else model_folder(folder, revision)).resolve()
    if path.parent.name != "heads" or not Run(path.parents[1]).config.is_file():
        run = Run(path)
        policy = load_saved(run.policy if run.policy.is_dir() else path, device=device, **overrides)
        if run.policy.is_dir() and run.config.is_file() and isinstance(policy, RetrievalPolicy):
            policy.control = run.settings().evaluation.control
        return policy
    run = Run(path.parents[1])
    monitor = run_monitor(run, trained_head(run, path.name).start, device)
    return monitored(load_head(run, path.name, device=device, **overrides), monitor)


def load_head(run: Run, name: str, *, device: str = "cpu", **overrides: Any) -> Any:
    """The policy of a head by itself, acting as its settings say now, not as when it was trained."""
    settings = trained_head(run, name)
    acting = settings.finetune.acting_settings()
    policy: Any = load_saved(Run(run.head(name)).policy, device=device, **acting | overrides)
    policy.control = (settings.evaluation or run.settings().evaluation).control
    return policy


def trained_head(run: Run, name: str) -> HeadRunConfig:
    """The settings of a trained head; a CheckpointError where the run has none of this name."""
    head = Run(run.head(name))
    if not head.policy.is_dir():
        there = sorted(path.parent.name for path in run.heads.glob("*/policy")) or "none"
        raise CheckpointError(f"{run.root} has no trained head {name!r}; there are {there}.")
    return run.head_settings(name)


def run_monitor(run: Run, start: str, device: str) -> RetrievalPolicy | None:
    """The retrieval policy that monitors a head of the run; None where there is none.

    Only heads that started from the run's encoder are monitored: its latents are what they began with.
    """
    return RetrievalPolicy.load(run.policy, device=device) if start == "run" and run.policy.is_dir() else None
