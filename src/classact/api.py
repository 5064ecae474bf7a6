"""What classact does, as functions: the command line's main commands for use in Python.

Exported by :mod:`classact`, which imports them when they are first used.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from classact.data.readers import read_demonstrations
from classact.data.types import Demonstrations
from classact.errors import ConfigError
from classact.policies.base import Policy
from classact.run.config import HeadRunConfig, RunConfig
from classact.run.folder import Run
from classact.run.load import load_policy as _load
from classact.run.presets import configure as _configure
from classact.run.presets import configure_head


def read(source: str | Path, *, episodes: int | None = None, layout: str | Path | None = None) -> Demonstrations:
    """Demonstrations from a file or folder, whatever its format, or those that come with classact ("pusht-expert").

    Args:
        source: a path in a known format, or an embedded name.
        episodes: only the first so many.
        layout: JSON file that says which array is what, for formats that take one.

    Raises:
        DataError: no such path, no known format, or data that cannot be used.
        ConfigError: more episodes than there are, or a layout that cannot be read.
    """
    return read_demonstrations(source, episodes=episodes, layout=layout)


def configure(
    data: str | Path | Demonstrations = "pusht-expert",
    *,
    preset: str | None = None,
    objective: str | None = None,
    options: Sequence[str] = (),
    simulator: str | None = None,
    shift: str | None = None,
    **changes: Any,
) -> RunConfig:
    """The settings of a run, to be looked at or changed (:func:`dataclasses.replace`) before :func:`pretrain`.

    Args:
        data: a path, an embedded name, or what :func:`read` returned.
        preset: named settings, see ``classact presets``; None: what fits data, simulator and shift.
        objective: what is learned, such as "class" or "class+0.1*byol"; None: the preset's.
        options: settings of the objective, such as "queue=1280".
        simulator: task that renders and evaluates; None: what the data declare, else the preset's.
        shift: visual shift of demonstrations and evaluation; None: none.
        changes: fields of :class:`~classact.run.config.RunConfig`.

    Raises:
        ConfigError: an unknown name, or settings that do not fit each other.
    """
    source = data.source if isinstance(data, Demonstrations) else str(data)
    if isinstance(data, Demonstrations):
        changes = {"episodes": len(data)} | changes
    named = {"preset": preset, "objective": objective, "simulator": simulator, "shift": shift}
    return _configure(source, options=options, **named, **changes)


def pretrain(
    data: str | Path | Demonstrations | RunConfig = "pusht-expert",
    out: str | Path = "run",
    *,
    preset: str | None = None,
    device: str = "auto",
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Learn a representation and build the retrieval policy; the same call continues what lies in ``out``.

    Args:
        data: a path, an embedded name, what :func:`read` returned, or the settings that :func:`configure` returned.
        out: folder of the run.
        preset: see :func:`configure`.
        device: "auto", "cpu" or "cuda".
        quiet: no progress bars.
        settings: see :func:`configure`.

    Returns:
        The run's folder: ``run.root``, ``run.policy``, ``run.encoder``.

    Raises:
        ConfigError: settings that do not fit each other, the data, or those that ``out`` was started with.
        DataError: data that cannot be used.
        StorageError: the folder cannot be written.
    """
    from classact.run.pretrain import Pipeline

    if isinstance(data, RunConfig) and (settings or preset):
        raise ConfigError(
            f"these settings are complete, so {', '.join([*settings, *(['preset'] if preset else [])])} would be "
            f"ignored. Give them to classact.configure."
        )
    config = data if isinstance(data, RunConfig) else configure(data, preset=preset, **settings)
    if config.pretrain.evaluations:
        check_guard("pretrain")
    pipeline = Pipeline(Run(Path(out)), config, device=device, quiet=quiet)
    pipeline.pretrain()
    return pipeline.run


def finetune(
    run: Run | str | Path,
    head: str = "diffusion",
    *,
    preset: str | None = None,
    frozen: bool = False,
    name: str | None = None,
    config: HeadRunConfig | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> Run:
    """Train a policy head on a run's encoder; the same call continues a training that was stopped.

    Args:
        run: a run's folder.
        head: a key of :data:`classact.models.heads.HEADS`: "mlp", "diffusion".
        preset: named settings of heads; None: small for a small encoder, else the paper's for the task.
        frozen: train the head only.
        name: of the head's folder; None: made of the settings.
        config: all settings, in the place of ``head``, ``preset`` and ``frozen``.
        device: "auto", "cpu" or "cuda".
        quiet: no progress bars.

    Returns:
        The head's folder, laid out like a run's, for :func:`load_policy`.

    Raises:
        ConfigError, CheckpointError, DataError: settings or a run that do not fit.
    """
    from classact.run.finetune import HeadPipeline

    check_guard("finetune")
    run = _run(run)
    if config is None:
        known = run.settings()
        made = configure_head(known, head, preset=preset, frozen=frozen)
        config = replace(made, evaluation=known.evaluation)
    pipeline = HeadPipeline(run, config, name=name, device=device, quiet=quiet)
    pipeline.train()
    return pipeline.folder


def load_policy(folder: Run | str | Path, *, device: str = "cpu", **overrides: Any) -> Policy:
    """The policy that a folder holds: of a run, of a head, or one that was saved by itself.

    Args:
        folder: the folder.
        device: where to compute.
        overrides: settings of the policy to change, such as ``k=16``.

    Raises:
        CheckpointError: no policy, or a damaged one.
        ConfigError: unknown overrides.
    """
    return _load(folder.root if isinstance(folder, Run) else folder, device=device, **overrides)


def evaluate(
    run: Run | str | Path,
    *,
    head: str | None = None,
    episodes: int | None = None,
    shift: str | None = None,
    simulator: str | None = None,
    first_seed: int | None = None,
    workers: int = 0,
    device: str = "auto",
    quiet: bool = False,
    **overrides: Any,
) -> list[Any]:
    """Roll out a saved policy of a run and add the result to its table. Rollouts start worker processes.

    Args:
        run: a folder with a policy.
        head: of the run's heads, by the name of its folder; None: retrieval.
        episodes: evaluation episodes; None, here and below: as in the run's settings.
        shift: visual shift.
        simulator: registry name.
        first_seed: of the initial states.
        workers: simulator processes; 0: one per core. Changes no result.
        device: where the policy computes.
        quiet: no progress bar.
        overrides: settings of the policy to change, such as ``k=16``.

    Returns:
        One row per criterion: success with its interval.

    Raises:
        ConfigError: a script without a ``__main__`` guard, or settings that do not fit.
        CheckpointError, DataError: no policy there, or no run.
    """
    from classact.run.evaluate import evaluate_run

    check_guard("evaluate")
    return evaluate_run(
        _run(run),
        head=head,
        episodes=episodes,
        shift=shift,
        simulator=simulator,
        first_seed=first_seed,
        workers=workers,
        device=device,
        overrides=overrides,
        quiet=quiet,
    )


def report(run: Run | str | Path) -> Path:
    """Draw a run's page from its files; returns where it is.

    Raises:
        DataError: no run, or damaged files.
    """
    from classact.pages import build_report

    return build_report(_run(run).root)


def check_guard(function: str) -> None:
    """Refuse to start worker processes from a script that they would run again.

    Raises:
        ConfigError: the main script does nothing under ``if __name__ == "__main__"``.
    """
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file is None or Path(file).suffix != ".py":
        return
    try:
        tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return  # no script that a worker could run again
    guarded = any(
        isinstance(node, ast.If) and any(isinstance(n, ast.Name) and n.id == "__name__" for n in ast.walk(node.test))
        for node in tree.body
    )
    if not guarded:
        raise ConfigError(
            f"classact.{function}() starts worker processes, each of which imports {file} and would run all of it "
            f"again: put what it does under 'if __name__ == \"__main__\":'."
        )


def _run(run: Run | str | Path) -> Run:
    return run if isinstance(run, Run) else Run(Path(run))
