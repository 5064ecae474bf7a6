"""The command compare: objectives on one's own data, or runs that exist."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from classact.cli.console import console, print_notes, say
from classact.cli.engine import training_ranks
from classact.cli.flags import Given, flag, given_flags, name_of
from classact.cli.runs import RUN, RunFlags, idle, pipeline, run_config
from classact.errors import ConfigError
from classact.objectives import objective_config

SHOWN = ("dtw_error@1", "ndcg", "rank_correlation")  # metrics without rollouts that are printed


@dataclass(frozen=True, kw_only=True)
class Compare(RunFlags):
    """Compare objectives on your data, one run for each and each seed, or runs that exist: OUT/comparison.html.

    Where they are not given, nor in --config, --test-episodes is 50 and --heldout 10: representations are probed on
    what is held out. Runs that are there keep how they are evaluated, and further ones are evaluated alike.

    Attributes:
        runs: Compare these and train nothing: folders of runs, or RUN/evaluations/NAME.
        objectives: What is learned; others are compared with the first. Names of 'classact presets', options in
            brackets as in 'class[queue=1280]', sums such as class+0.1*byol.
        seeds: Trainings of each objective, with seeds from --seed on.
    """

    runs: tuple[Path, ...] = flag((), positional=True)
    objectives: tuple[str, ...] = ("class", "none")
    seeds: int = 1
    objective: str | None = flag(None, hidden=True)
    options: tuple[str, ...] = flag((), hidden=True)

    def main(self) -> None:
        from classact.pages.compare import build_comparison_page
        from classact.run.compare import compare, read_runs, train_and_evaluate
        from classact.utils.codec import to_json
        from classact.utils.storage import write_json

        notes: list[str] = []
        if self.runs:
            self._check_alone()
            found = read_runs(self.runs)
        else:
            with training_ranks(self.device) as ranks:
                runs = objective_runs(self, ranks)
                rollouts = _rollouts(self, next(iter(runs.values())), notes)
                found = train_and_evaluate(runs, first=ranks.first, rollouts=rollouts, quiet=self.quiet)
            if not found:
                return
            notes.append("Learning rates are the preset's and the objectives' own: none was tuned on these data.")
        comparison = compare(found, notes)
        write_json(self.out / "comparison.json", to_json(comparison))
        print_comparison(comparison)
        page = build_comparison_page(comparison, self.out / "comparison.html")
        say(f"Page: {page}")

    def _check_alone(self) -> None:
        """Refuse flags of trainings and evaluations where runs are compared that exist."""
        if other := given_flags(self, "runs", "out", "workers", "device", "quiet"):
            name = other[0].replace("_", "-")
            raise ConfigError(f"runs that exist are compared as they are, --{name} changes nothing: leave it out.")


def objective_runs(flags: Compare, ranks: Any) -> dict[tuple[str, int], Callable[[], Any]]:
    """(objective as written, training seed) -> what makes the run's pipeline."""
    from classact.utils.storage import slug

    folders = {written: slug(written).strip("-") for written in flags.objectives}
    if len(set(folders.values())) < max(2, len(flags.objectives)) or flags.seeds < 1:
        asked = f"{', '.join(flags.objectives) or 'none'} with {flags.seeds} seeds"
        raise ConfigError(f"expected at least two objectives, each named once, and at least one seed, got {asked}.")
    unread = [set(flags.run) - set(flags_of(flags, written, 0).run) for written in flags.objectives]
    if found := sorted(set.intersection(*unread)):
        names = ", ".join(flags.objectives)
        raise ConfigError(f"no objective reads {name_of(RUN, found[0])}, of {names}: leave it out.")
    runs: dict[tuple[str, int], Callable[[], Any]] = {}
    first = flags.run.get("pretrain.seed", 0)
    made = {
        (written, seed): flags.out / f"{folders[written]}-seed{seed}"
        for seed in range(first, first + flags.seeds)
        for written in flags.objectives
    }
    flags = replace(flags, run={**_usual(flags, made.values()), **flags.run})
    for (written, seed), folder in made.items():
        one = replace(flags_of(flags, written, seed), out=folder)
        runs[written, seed] = partial(pipeline, one, run_config(one), ranks)
    return runs


def _usual(flags: Compare, folders: Iterable[Path]) -> Given:
    """How runs are evaluated, and what is held out, where no flag says it: as in those of the comparison that were
    started before, else new ones could not be compared with them; else as --config or the command has it.
    """
    from classact.run.folder import Run
    from classact.run.stages import started

    known = next((run.settings() for run in map(Run, folders) if started(run)), None)
    if known is not None:
        names = [entry.name for entry in fields(known.evaluation) if entry.name != "workers"]
        evaluation = {f"evaluation.{name}": getattr(known.evaluation, name) for name in names}
        return {"heldout": known.heldout, **evaluation}
    return {} if flags.config is not None else {"heldout": 10, "evaluation.episodes": 50}


def flags_of(flags: Compare, written: str, seed: int) -> Compare:
    """The flags of one run, without those that only other objectives read."""
    found = re.fullmatch(r"([^\[\]]+)(?:\[([^\[\]]+)\])?", written)
    if found is None:
        raise ConfigError(f"expected an objective such as class or 'class[queue=1280]', got {written!r}.")
    options = tuple(re.split(r"[\s,]+", found[2].strip())) if found[2] else ()
    name = found[1].strip()
    given = {**flags.run, "pretrain.seed": seed}
    unread = idle(given, objective_config(name, options))
    run = {path: value for path, value in given.items() if path not in unread}
    return replace(flags, objective=name, options=options, run=run)


def _rollouts(flags: Compare, make: Callable[[], Any], notes: list[str]) -> bool:
    """Whether the learned policies can be rolled out. A simulator named by a flag must suit the data."""
    try:
        made = make()
        if not made.simulates:
            notes.append("No rollouts, representations are probed only: the data declare no simulator.")
            return False
        made.check_rollouts()
    except ConfigError as error:
        if "frames.simulator" in flags.run:
            raise
        notes.append(f"No rollouts, representations are probed only: {error}")
        return False
    return True


def print_comparison(comparison: Any) -> None:
    """Success with intervals and tests, then metrics without rollouts."""
    from rich.table import Table

    out, runs = console(), comparison.runs
    for criterion in dict.fromkeys(line.criterion for line in comparison.lines):
        title = f"{criterion}, {len(runs[0].initial_states)} episodes each in {runs[0].simulator}, {runs[0].shift}"
        table = Table("", "success", "by seed", "difference", "won : lost", "p (Holm)", title=title)
        for line in (line for line in comparison.lines if line.criterion == criterion):
            tested = ["", "", ""]
            if line.difference is not None:
                tested = [_interval(line.difference), f"{line.won} : {line.lost}", f"{line.adjusted:.2g}"]
            by_seed = ", ".join(f"{100 * e.value:.0f} %" for e in line.by_seed)
            table.add_row(line.name, _interval(line.success), by_seed, *tested)
        out.print(table)
    shown = [metric for metric in comparison.metrics if metric.startswith(SHOWN)]
    table = Table("", "seed", *shown, title="without rollouts (all metrics are on the page)")
    for run in runs:
        values = [run.probe.get(metric, {}).get("value") for metric in shown]
        table.add_row(run.name, str(run.seed), *("" if value is None else f"{value:.3g}" for value in values))
    if shown:
        out.print(table)
    print_notes(comparison.notes)


def _interval(e: Any) -> str:
    return f"{100 * e.value:.0f} %\n{100 * e.low:.0f} to {100 * e.high:.0f}"
