"""The command line's main commands as Python functions, exported lazily by :mod:`classact`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from classact.data.readers import read_demonstrations as read
from classact.data.readers.selection import chosen_episodes
from classact.data.types import Demonstrations
from classact.errors import ConfigError
from classact.run.config import HeadRunConfig, RunConfig
from classact.run.evaluate import check_guard
from classact.run.evaluate import evaluate_run as evaluate
from classact.run.folder import Run
from classact.run.load import load_policy
from classact.run.presets import LATENT_ACTION_PRESETS, configure, configure_head
from classact.sims import NO_SIMULATOR
from classact.train.config import LatentActionTrainingConfig
from classact.utils.machine import choose_device

__all__ = ["configure", "evaluate", "finetune", "latent_actions", "load_policy", "pretrain", "read", "report"]


def pretrain(
    data: str | Path | Sequence[str | Path] | Demonstrations | RunConfig = "pusht-expert",
    out: str | Path = "run",
    *,
    preset: str | None = None,
    device: str = "auto",
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Learn a representation and build the retrieval policy; the same call resumes what is in ``out``.

    Args:
        data: a path, an embedded name, several of them, or the results of :func:`read` or :func:`configure`.
        out: folder of the run, which is returned: ``run.root``, ``run.policy``, ``run.encoder``.
        preset, settings: see :func:`configure`.
        device: "auto", "cpu" or "cuda".
        quiet: no progress bars.

    Raises:
        ConfigError: settings that contradict each other, the data, or those that ``out`` was started with; a script
            without ``if __name__ == "__main__"`` where a simulator runs in worker processes.
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
    if config.frames.simulator != NO_SIMULATOR:  # which draws images, and rolls out, in processes of its own
        check_guard("pretrain")
    pipeline = Pipeline(Run(Path(out)), config, device=device, quiet=quiet)
    if isinstance(data, Demonstrations) and not data.origins and config.frames.renderings == 1 and not config.labelled:
        again = pipeline.source.recorded
        if again.fingerprint() != data.fingerprint():
            raise ConfigError(
                f"{data.name} ({data.source}): a run reads its demonstrations from there again, and finds {len(again)} "
                f"of {again.num_steps} steps, other ones than the {len(data)} of {data.num_steps} steps that were "
                f"given. Choose from them when they are read (episodes, layout, fps, labelled), or write them out "
                f"(classact data convert)."
            )
    pipeline.pretrain()
    return pipeline.run


def latent_actions(
    data: str | Path | Sequence[str | Path] | Demonstrations,
    out: str | Path = "latent-actions",
    *,
    labelled: int | str | None = None,
    preset: str = "clam-cpu",
    config: LatentActionTrainingConfig | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> Path:
    """Learn latent actions (CLAM) from demonstrations of which few carry actions; the same call resumes ``out``.

    Args:
        data: a path, an embedded name, several of them, or the result of :func:`read`.
        out: folder of the results, with a page, ``latent_actions.html``.
        labelled: demonstrations whose actions are learned from: the first so many, or numbers as in "0:50,60"; None:
            all that carry actions.
        preset: named settings.
        config: all settings, instead of ``preset``.
        device: "auto", "cpu" or "cuda".
        quiet: no progress bars.

    Returns:
        The model's folder, for ``latent_actions`` of :func:`configure` and :func:`pretrain`.

    Raises:
        ConfigError: no labelled demonstration, settings that do not fit the data, or those of another ``out``.
        DataError: data that cannot be used.
    """
    from classact.pages import build_latent_actions_page
    from classact.run.latent_actions import MODEL, learn_latent_actions

    seen = data if isinstance(data, Demonstrations) else read(data)
    learn_latent_actions(
        seen,
        config or LATENT_ACTION_PRESETS[preset],
        Path(out),
        labelled=None if labelled is None else chosen_episodes(labelled, len(seen), seen.source),
        device=choose_device(device),
        quiet=quiet,
    )
    build_latent_actions_page(Path(out))
    return Path(out) / MODEL


def finetune(
    run: Run | str | Path,
    head: str = "mlp",
    *,
    preset: str | None = None,
    frozen: bool | None = None,
    name: str | None = None,
    config: HeadRunConfig | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> Run:
    """Train a policy head on a run's encoder; the same call resumes an interrupted training.

    Args:
        run: a run's folder.
        head: a key of :data:`classact.models.heads.HEADS`: "mlp", "flow", "diffusion".
        preset: named settings of heads; None: small for a small encoder, else the paper's for the task.
        frozen: train the head only; None: as the preset has it.
        name: of the head's folder; None: made of the settings.
        config: all settings, instead of ``head``, ``preset`` and ``frozen``.
        device: "auto", "cpu" or "cuda".
        quiet: no progress bars.

    Returns:
        The head's folder, laid out like a run's, for :func:`load_policy`.

    Raises:
        ConfigError, CheckpointError, DataError: settings or a run that do not match.
    """
    from classact.run.finetune import HeadPipeline, as_before, head_settings, usual_evaluation

    run = _run(run)
    known = run.settings()
    if known.frames.simulator != NO_SIMULATOR:
        check_guard("finetune")
    if config is None:
        made = configure_head(known, head, preset=preset, frozen=frozen)
        own = name or made.name
        config = replace(as_before(made, head_settings(run, own)), evaluation=usual_evaluation(run, own))
    pipeline = HeadPipeline(run, config, name=name, device=device, quiet=quiet)
    pipeline.train()
    return pipeline.folder


def report(run: Run | str | Path) -> Path:
    """Draw a run's page from its files; returns its path.

    Raises:
        DataError: no run, or damaged files.
    """
    from classact.pages import build_report

    return build_report(_run(run).root)


def _run(run: Run | str | Path) -> Run:
    return run if isinstance(run, Run) else Run(Path(run))
