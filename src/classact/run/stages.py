"""A training as a list of stages: each says what it needs and what it leaves, and missing results are made in order."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from classact.data.types import RolloutResult
from classact.errors import CheckpointError, ConfigError
from classact.evaluation.config import EvaluationConfig
from classact.evaluation.rollout import evaluation_settings, run_evaluation
from classact.evaluation.rows import IntermediateRow, settings_difference
from classact.policies import Policy
from classact.run.config import UNTRAINED
from classact.run.evaluate import check_rollouts
from classact.run.folder import Run, stage_of
from classact.run.recording import add_time, evaluation_name, new_metadata, roll_out
from classact.sims import NO_SIMULATOR
from classact.train.checkpoints import list_checkpoints
from classact.train.config import EngineConfig
from classact.utils.locks import Hold, own
from classact.utils.machine import choose_device
from classact.utils.progress import Callback, progress_bar
from classact.utils.ranks import Ranks


@dataclass(frozen=True)
class Stage:
    """One stage of a training.

    Attributes:
        name: of its time in the folder's settings.
        needs: results that must exist before.
        leaves: name of its result.
        do: makes it; returns None, and no time is noted, where there is nothing to do.
        kept: folder of the run that holds its result; None: in memory only.
        load: reads it from there.
        time: "added" to that of earlier calls, or replacing it where the stage is "repeated" on request; "own": the
            stage notes it itself.
        together: by all ranks; else by the first alone, after which the others have nothing to do.
    """

    name: str
    needs: tuple[str, ...]
    leaves: str
    do: Callable[[Any], Any]
    kept: Callable[[Run], Path] | None = None
    load: Callable[[Any], Any] | None = None
    time: Literal["added", "repeated", "own"] = "added"
    together: bool = True


def due(stages: Sequence[Stage], wanted: Sequence[str], there: Callable[[str], bool]) -> list[Stage]:
    """The stages, in order, for what is wanted and missing, including what they need."""
    missing = {name for name in wanted if not there(name)}
    found = []
    for stage in reversed(stages):
        if stage.leaves in missing:
            found.append(stage)
            missing |= {name for name in stage.needs if not there(name)}
    return found[::-1]


class Work(ABC):
    """A training in progress: its folder, its ranks, and the results of its stages.

    Args:
        run: the run's folder, whose tables evaluations join.
        folder: for settings, checkpoints and policy: the run's, or that of a head.
        ranks: this process among those that share the training; all but the first only train.
        device: "cpu", "cuda" or "auto": a GPU if there is one.
    """

    stages: tuple[Stage, ...]
    head: str | None = None  # name of its folder; None: a run's own training
    advice: str  # what to do about a folder that was started with other settings

    def __init__(
        self, run: Run, folder: Run, ranks: Ranks, *, quiet: bool, device: str, engine: EngineConfig | None
    ) -> None:
        self.run, self.folder, self.ranks = run, folder, ranks
        self.quiet = quiet or not ranks.first
        self.device, self.engine = choose_device(device), engine or EngineConfig()
        self.left: dict[str, Any] = {}
        self.hold: Hold | None = None

    @property
    def stage(self) -> str:
        """Its name in ``intermediate.jsonl``."""
        return stage_of(self.head)

    # -- stages ------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Any:
        """A stage's result, read from its folder if not in memory."""
        if name not in self.left:
            load = self._kept(name)
            if load is None:
                raise CheckpointError(f"{self.folder.root} has no {name} yet: it has not been made.")
            self.left[name] = load(self)
        return self.left[name]

    def _kept(self, name: str) -> Callable[[Any], Any] | None:
        """What reads a result from its folder; None where it is missing."""
        for stage in self.stages:
            if stage.leaves == name and stage.kept is not None and stage.kept(self.folder).is_dir():
                return stage.load
        return None

    def make(self, *names: str) -> None:
        """Do the stages that are due; on ranks other than the first, only the shared ones."""
        if self.ranks.world == 1 and not self.ranks.first:
            return

        def there(name: str) -> bool:
            return name in self.left or self._kept(name) is not None

        chosen = self.ranks.on_first(lambda: [stage.leaves for stage in due(self.stages, names, there)])
        for stage in self.stages:
            if stage.leaves not in chosen:
                continue
            if not stage.together:
                self.part()
                if not self.ranks.first:
                    return
            begin = time.perf_counter()
            self.left[stage.leaves] = value = stage.do(self)
            if value is not None and stage.time != "own" and self.ranks.first:
                add_time(self.folder, stage.name, time.perf_counter() - begin, again=stage.time == "repeated")

    def part(self) -> None:
        """End the ranks' common work."""
        self.ranks = self.ranks.alone()

    # -- the folder --------------------------------------------------------------------------------

    @abstractmethod
    def difference(self) -> str | None:
        """The first setting that differs from those the folder was started with; None where all agree."""

    def check_same(self) -> None:
        """Refuse settings that the folder was not started with; the ConfigError names the first difference."""
        if started(self.folder) and (difference := self.difference()):
            raise ConfigError(f"{self.folder.root} was started with {difference}. {self.advice}")

    def claim(self, title: str, made: dict[str, Any]) -> None:
        """Lock the folder for this training and write its settings, once they are known to match.

        ``title`` is for people; ``made`` is written, and all else in the file stays.
        """
        if not self.folder.policy.is_dir():
            # Until training is complete, or this object is gone: another training would write into the same files.
            self.hold = own(self.folder.root)
        self.check_same()
        metadata: dict[str, Any] = {}
        if not started(self.folder):
            # Left by an attempt that ended before its first checkpoint, or by a training whose files were removed.
            metadata = new_metadata(title)
            self.folder.train_log.unlink(missing_ok=True)
            self.run.drop_intermediate(self.stage)
        self.folder.update_config(lambda now: (metadata or now) | made)

    # -- training and rollouts ---------------------------------------------------------------------

    label: str  # how tables name the encoder
    labels: dict[str, str]  # how tables say what was trained
    simulator: str
    evaluation: EvaluationConfig
    intermediate_episodes: int

    @property
    def simulates(self) -> bool:
        """Whether there is a simulator to roll out in."""
        return self.simulator != NO_SIMULATOR

    def fit(
        self,
        name: str,
        title: str,
        fit: Callable[[Callback, Callable[[Any], None] | None], Any],
        policy: Callable[[Any], Policy] | None,
    ) -> Any:
        """Train, with evaluations on the way; notes under ``name`` how long both took.

        ``fit`` trains, given a progress callback and what to call with itself at its intermediate evaluations, of which
        ``policy`` makes a policy (None: no evaluations).
        """
        evaluating: list[float] = []

        def evaluate(at: Any) -> None:
            assert policy is not None
            begin = time.perf_counter()
            self._evaluate_intermediate(policy(at), at.step, at.steps)
            evaluating.append(time.perf_counter() - begin)

        begin = time.perf_counter()
        with progress_bar(title, quiet=self.quiet) as bar:
            trained = fit(bar, None if policy is None else evaluate)
        if self.ranks.first:
            add_time(self.folder, name, time.perf_counter() - begin - sum(evaluating))
            if evaluating:
                add_time(self.folder, f"evaluate during {name}", sum(evaluating))
        return trained

    def _evaluate_intermediate(self, policy: Policy, step: int, steps: int) -> None:
        """Roll out during training, unless the rows are in intermediate.jsonl already."""
        config = replace(self.evaluation, episodes=self.intermediate_episodes)
        settings = evaluation_settings(self.simulator, config, policy.spec)
        mark = (self.stage, step, steps, config.episodes, config.shift)
        for row in self.run.read_intermediate():
            alike = (row.stage, row.step, row.steps, row.episodes, row.shift) == mark
            if alike and settings_difference(row.settings, settings) is None:
                return
        folder = self.run.intermediate(self.stage, step)
        _, rows = run_evaluation(policy, self.simulator, config, folder, encoder=self.label, labels=self.labels)
        at: dict[str, Any] = {"stage": self.stage, "step": step, "steps": steps, "settings": settings}
        self.run.add_intermediate([IntermediateRow(**vars(row), **at) for row in rows])

    def roll_out(self, policy: Policy, name: str, encoder: str = "") -> list[RolloutResult]:
        """Roll out a policy with its last weights; write episodes, and rows of the run's table.

        ``name`` is the policy's in the evaluation's name; ``encoder`` that of a baseline, empty for the trained one.
        """
        results, _ = roll_out(
            self.run,
            evaluation_name(name, encoder or self.label, self.evaluation.shift),
            policy,
            encoder or self.label,
            (self.simulator, self.evaluation),
            UNTRAINED if encoder else self.labels,
            head=self.head,
            maximum=not encoder,
            title=encoder or name,
            quiet=self.quiet,
        )
        return results

    def check_rollouts(self) -> None:
        """Refuse early what could not be rolled out: :func:`classact.run.evaluate.check_rollouts`."""
        if self.simulates:
            check_rollouts(self.run, self.simulator)

    def check_evaluations(self, count: int) -> None:
        """Refuse evaluations during a training where there is no simulator."""
        if count and not self.simulates:
            raise ConfigError(
                f"{count} evaluations during training need a simulator, and the data of {self.run.root} declare none. "
                f"Set evaluations to 0 (--evaluations 0), or name the simulator of pre-training (--simulator NAME)."
            )


def started(folder: Run) -> bool:
    """Whether a folder holds anything that was learned."""
    made = (folder.encoder, folder.policy, folder.summary)
    return folder.config.exists() and (
        any(path.exists() for path in made) or bool(list_checkpoints(folder.checkpoints))
    )
