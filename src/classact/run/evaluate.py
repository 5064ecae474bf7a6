"""Policies that a run has saved, rolled out: whether they can be, and how tables name them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from classact.data.schema import Schema
from classact.errors import CheckpointError, ConfigError
from classact.evaluation.rows import EvaluationRow
from classact.run.config import RunConfig
from classact.run.data import own_simulator
from classact.run.folder import Run
from classact.run.load import load_policy, trained_head
from classact.run.recording import evaluation_name, roll_out
from classact.sims import simulator_spec
from classact.sims.versions import check_language
from classact.utils.codec import from_json
from classact.utils.machine import choose_device
from classact.utils.storage import check_name, slug


def evaluate_run(
    run: Run,
    *,
    simulator: str | None = None,
    shift: str | None = None,
    episodes: int | None = None,
    first_seed: int | None = None,
    max_steps: int | None = None,
    workers: int = 0,
    execute: int | None = None,
    ensemble: float | None = None,
    head: str | None = None,
    device: str = "auto",
    name: str | None = None,
    overrides: dict[str, Any] | None = None,
    quiet: bool = False,
) -> list[EvaluationRow]:
    """Roll out a saved policy of a run and add the result to its table.

    Args:
        run: a folder with a policy.
        simulator: registry name; None, here and below: as in the run's settings.
        shift: visual shift.
        episodes, first_seed, max_steps, workers: see :class:`classact.evaluation.config.EvaluationConfig`.
        execute, ensemble: see :class:`classact.policies.ControlConfig`.
        head: of the run's heads, by the name of its folder; None: retrieval.
        device: where the policy computes.
        name: of the evaluation's folder. By default made of policy, encoder, shift and whatever differs from the run's
            settings, so that no evaluation replaces another one.
        overrides: fields of :class:`classact.policies.RetrievalConfig` to change, or of a head what
            :meth:`classact.policies.ParametricPolicy.load` takes.
        quiet: no progress bar.

    Returns:
        The new rows of the summary.

    Raises:
        CheckpointError: no policy there, or a damaged one.
        DataError: the folder is none of a run.
        ConfigError: as :func:`check_rollouts`, or a name that is no name of a folder.
        StorageError: the results could not be written.
    """
    if name is not None:
        check_name(name, "an evaluation")
    settings = run.settings()
    standard = settings.frames.simulator
    # A head has settings of its own: how much of a chunk is executed, for instance.
    own = settings if head is None else trained_head(run, head)
    usual = own.evaluation or settings.evaluation
    asked: dict[str, Any] = {"shift": shift, "episodes": episodes, "first_seed": first_seed, "max_steps": max_steps}
    asked |= {"execute": execute, "ensemble": ensemble}
    config = replace(usual, workers=workers, **{key: value for key, value in asked.items() if value is not None})
    simulator = simulator or standard
    check_rollouts(run, simulator)
    run.check_writable()
    policy = load_policy(run.root if head is None else run.head(head), device=choose_device(device), **overrides or {})
    encoder = settings.label if isinstance(own, RunConfig) else own.label(settings.label)
    differing: dict[str, Any] = {} if simulator == standard else {"simulator": simulator}
    for key in ("episodes", "first_seed", "max_steps", "execute", "ensemble"):
        if getattr(config, key) != getattr(usual, key):
            differing[key] = getattr(config, key)
    changed = "".join(f"-{key}{value}" for key, value in sorted((differing | (overrides or {})).items()))
    label = f"{encoder}{changed}"
    _, rows = roll_out(
        run,
        name or slug(evaluation_name(head or policy.spec.name, encoder, config.shift) + changed),
        policy,
        label,
        (simulator, config),
        own.labels,
        stage=None if changed or name is not None else "pretrain" if head is None else f"heads/{head}",
        title=head or label,
        quiet=quiet,
    )
    return rows


def check_rollouts(run: Run, simulator: str) -> None:
    """Refuse to roll out what was learned from a run's data in a simulator of another task.

    Args:
        run: its card says what the data are; nothing is compared where it does not.
        simulator: registry name.

    Raises:
        ConfigError: proprioception, language or actions differ, or the simulator embeds instructions otherwise.
    """
    data = run.read_config().get("data") or {}
    if "schema" not in data:
        return
    spec = simulator_spec(simulator)
    what = f"{data['name']} ({data['source']})"
    if spec.schema is not None:
        schema = from_json(Schema, data["schema"], f"{run.config}: data.schema", error=CheckpointError)
        if difference := schema.difference(spec.schema):
            raise ConfigError(
                f"{what} is of another task than simulator {simulator!r}: {difference}. "
                f"{own_simulator(data.get('simulator', ''), simulator)}"
            )
    check_language(data.get("versions", {}), spec, what)
