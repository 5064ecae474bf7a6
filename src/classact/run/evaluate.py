"""Rollouts of a run's saved policies: whether they are possible, and how tables name them."""

from __future__ import annotations

import ast
import sys
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

from classact.data.language import recorded_source
from classact.data.schema import Schema
from classact.errors import CheckpointError, ConfigError, choose
from classact.evaluation.rollout import ALARM
from classact.evaluation.rows import EvaluationRow
from classact.policies import DoubtAlarm
from classact.policies.doubt import ALPHA
from classact.policies.novelty import episodes_needed
from classact.run.config import RunConfig
from classact.run.data import own_simulator
from classact.run.folder import Run
from classact.run.load import load_policy, trained_head
from classact.run.recording import evaluation_name, roll_out
from classact.sims import NO_SIMULATOR, SIMULATORS, plain_shift, simulator_spec
from classact.sims.versions import check_language
from classact.utils.codec import from_json, to_json
from classact.utils.machine import choose_device
from classact.utils.storage import check_name, check_writable, slug, write_json

"""In an evaluation's folder: what an alarm said of its episodes, a :class:`classact.policies.doubt.Announced`."""


class Usual(Enum):
    """For settings that may be None: what run or head were started with."""

    USUAL = "usual"


USUAL = Usual.USUAL
MAY_BE_NONE = ("max_steps", "execute", "ensemble")


def evaluate_run(
    run: Run | str | Path,
    *,
    head: str | None = None,
    episodes: int | None = None,
    shift: str | None = None,
    simulator: str | None = None,
    first_seed: int | None = None,
    max_steps: int | Usual | None = USUAL,
    execute: int | Usual | None = USUAL,
    ensemble: float | Usual | None = USUAL,
    workers: int = 0,
    device: str = "auto",
    name: str | None = None,
    quiet: bool = False,
    calibrate_alarm: Path | None = None,
    alarm: Path | None = None,
    **overrides: Any,
) -> list[EvaluationRow]:
    """Roll out a saved policy of a run and add the result to its table. Rollouts start worker processes.

    Args:
        run: a folder with a policy.
        head: of the run's heads, by the name of its folder; None: retrieval.
        episodes: evaluation episodes; None, here and below: as in the settings of run or head.
        shift: visual shift; in another simulator than the run's, that of a run without shifts is none there, either.
        simulator: registry name.
        first_seed: of the initial states.
        max_steps: time limit; :data:`USUAL`, here and below: as in these settings. None: the simulator's own.
        execute, ensemble: see :class:`classact.policies.ControlConfig`.
        workers: simulator processes; 0: one per core. Changes no result.
        device: where the policy computes: "auto", "cpu" or "cuda".
        name: of the evaluation's folder; None: policy, encoder, shift and whatever differs from the settings, so that
            no evaluation replaces another one.
        quiet: no progress bar.
        calibrate_alarm: file for a :class:`classact.policies.DoubtAlarm` that these episodes calibrate. Use initial
            states that nothing else uses.
        alarm: such a file; what the alarm says of these episodes is in their rows, and in :data:`ALARM` of
            the evaluation's folder.
        overrides: settings of the policy to change, such as ``k=16``.

    Returns:
        One row per criterion: success with its interval.

    Raises:
        CheckpointError: no policy there, or a damaged one.
        DataError: not a run's folder.
        ConfigError: as :func:`check_rollouts`, a script without a ``__main__`` guard, or an invalid folder name.
        StorageError: the results could not be written.
    """
    check_guard("evaluate")
    run = run if isinstance(run, Run) else Run(Path(run))
    if name is not None:
        check_name(name, "an evaluation")
    settings = run.settings()
    standard = settings.frames.simulator
    # A head has its own settings, such as how much of a chunk is executed.
    own = settings if head is None else trained_head(run, head)
    usual = own.evaluation or settings.evaluation
    asked: dict[str, Any] = {"shift": shift, "episodes": episodes, "first_seed": first_seed, "max_steps": max_steps}
    asked |= {"execute": execute, "ensemble": ensemble}
    given = {key: value for key, value in asked.items() if value is not (USUAL if key in MAY_BE_NONE else None)}
    simulator = simulator or standard
    check_rollouts(run, simulator)
    if shift is None and simulator != standard and usual.shift == plain_shift(standard):
        given["shift"] = plain_shift(simulator)
    config = replace(usual, workers=workers, **given)
    run.check_writable()
    policy = load_policy(run.root if head is None else run.head(head), device=choose_device(device), **overrides)
    spec = replace(policy.spec, control=config.control)
    level = None if alarm is None else DoubtAlarm.load(alarm)
    if level is not None:
        level.check(spec)
        criteria = [one.name for one in simulator_spec(simulator).criteria]
        if level.criterion not in criteria:
            raise ConfigError(
                f"{alarm}: {choose('criterion', level.criterion, criteria)}. Calibrate it in {simulator!r}."
            )
    if calibrate_alarm is not None:
        check_writable(calibrate_alarm)
        if config.episodes < (needed := episodes_needed(ALPHA)):
            raise ConfigError(
                f"an alarm that at most {ALPHA:g} of successes raise is calibrated on {needed} of them at least, asked "
                f"for {config.episodes} episodes in all. Run more (--episodes)."
            )
    encoder = settings.label if isinstance(own, RunConfig) else own.label(settings.label)
    differing: dict[str, Any] = {} if simulator == standard else {"simulator": simulator}
    found = {key: getattr(config, key) for key in asked if key != "shift"}
    differing |= {key: value for key, value in found.items() if value != getattr(usual, key)}
    changed = "".join(f"-{key}{value}" for key, value in sorted((differing | overrides).items()))
    label = f"{encoder}{changed}"
    results, rows = roll_out(
        run,
        name or slug(evaluation_name(head or policy.spec.name, encoder, config.shift) + changed),
        policy,
        label,
        (simulator, config),
        own.labels,
        head=head,
        maximum=not changed and name is None,
        title=head or label,
        quiet=quiet,
    )
    if calibrate_alarm is not None:
        DoubtAlarm.calibrate(results, spec).save(calibrate_alarm)
    if level is not None:
        announced = level.announced(results)
        write_json(run.evaluation(rows[0].evaluation) / ALARM, to_json(announced))
        rows = [replace(row, announced=announced) for row in rows]
    return rows


def check_rollouts(run: Run, simulator: str) -> None:
    """Refuse to roll out what was learned from a run's data in a simulator of another task.

    Raises:
        ConfigError: proprioception, language or actions differ, or the simulator embeds instructions otherwise.
    """
    if simulator == NO_SIMULATOR:
        raise ConfigError(
            f"{run.root} has no simulator to roll out in: its demonstrations declare none. Name one (--simulator "
            f"NAME, one of {', '.join(SIMULATORS)}), or look at the held-out actions in its report."
        )
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
    check_language(recorded_source(data.get("versions", {})), spec, what)


def check_guard(function: str) -> None:
    """Refuse to start workers from a script without ``if __name__ == "__main__"``: each would run it again."""
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
