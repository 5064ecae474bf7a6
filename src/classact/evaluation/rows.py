"""Rows of results in a run's tables, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from classact.errors import ConfigError
from classact.policies.doubt import Announced
from classact.utils.codec import ADDED, first_difference


@dataclass(frozen=True)
class Alarms:
    """Episodes in which the novelty alarm was raised before success, by outcome."""

    failures: int
    successes: int


@dataclass(frozen=True)
class EvaluationRow:
    """The result of one evaluation by one criterion.

    Attributes:
        policy: "retrieval", or the name of a head.
        encoder: by its objective ("class"), "random", "imagenet" or "r3m" where nothing was learned, "untrained",
            "state", "scratch" or "other: FOLDER"; followed by what differs from the run's settings, as "class-k5".
        simulator, shift: where.
        evaluation: name of its folder; of a maximum that of the evaluation with the last weights.
        criterion: of success.
        episodes, successes, success: how many, and the share.
        low, high: its 95 % Wilson interval.
        seconds: wall-clock time of the evaluation.
        metrics: mean over episodes of the largest value of each of the simulator's metrics.
        training: "representation only", "frozen", "fine-tuned", "from scratch"; "none" where nothing was trained.
        augmentation: random views of the training, as :func:`classact.train.config.describe` says them.
        maximum_of: number of evaluations during one training of which this is the largest success (the paper's Table
            1), which is biased upwards; None: of the last weights.
        alarms: where the policy has an alarm level.
        faults: how often worker processes were restarted; faults.jsonl says why.
        announced: what an alarm said of the episodes, where one was asked; a file of its own, not of the table.
    """

    policy: str
    encoder: str
    simulator: str
    shift: str
    evaluation: str
    criterion: str
    episodes: int
    successes: int
    success: float
    low: float
    high: float
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    training: str = "none"
    augmentation: str = "none"
    maximum_of: int | None = None
    alarms: Alarms | None = None
    faults: int = 0
    announced: Announced | None = field(default=None, metadata={"json": False})

    def __post_init__(self) -> None:
        if not (self.episodes >= 1 and 0 <= self.successes <= self.episodes):
            raise ConfigError(f"{self.successes} successes of {self.episodes} episodes. Evaluate again.")


@dataclass(frozen=True)
class IntermediateRow(EvaluationRow):
    """The result of an evaluation after ``step`` of ``steps`` updates of ``stage``, "pretrain" or "heads/NAME".

    ``settings`` are what decided its episodes (:func:`classact.evaluation.rollout.evaluation_settings`); empty in rows
    of before they said so.
    """

    stage: str = field(kw_only=True)
    step: int = field(kw_only=True)
    steps: int = field(kw_only=True)
    settings: Mapping[str, Any] = field(default_factory=dict, kw_only=True, metadata=ADDED)


def settings_difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """The first setting of two evaluations that differs; None where all that both say agree: those of before they said
    something do not differ by it.
    """
    both = found.keys() & expected.keys()
    return first_difference({key: found[key] for key in both}, {key: expected[key] for key in both}, "")


@dataclass(frozen=True)
class VideoRow:
    """A rollout shown in a run's analysis/videos: the "best", "median" or "worst" of an evaluation.

    ``coverage`` is the largest, of simulators that measure it; ``success`` is by the first criterion.
    """

    file: str
    label: str
    evaluation: str
    seed: int
    coverage: float | None
    success: bool


@dataclass(frozen=True)
class Value:
    """A mean over timesteps with its 95 % interval over episodes; None where a single episode gives none."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ActionError:
    """Of one policy on held-out demonstrations.

    Attributes:
        policy: name; or "nearest by pixels", "random", "mean", see :mod:`classact.evaluation.actions`.
        l2, dtw: of whole chunks, actions scaled to [-1, 1].
        by_episode: mean L2 of each held-out episode, in their order.
        steps: of the chunks; None in tables of before they said so.
    """

    policy: str
    l2: Value
    dtw: Value
    by_episode: tuple[float, ...]
    steps: int | None = field(default=None, metadata=ADDED)


REFERENCES = {
    "nearest by pixels": "the demonstrated timestep whose picture is nearest pixel by pixel",
    "mean": "the mean of all chunks",
    "random": "a demonstrated timestep at random",
}
"""Names of ways that learn nothing, which policies are compared with on held-out demonstrations; and what they are."""


def measured_over(errors: Sequence[ActionError]) -> str:
    """Over how many steps held-out errors were measured, in words."""
    if any(error.steps is None for error in errors):
        return "over steps that an earlier version did not note, perhaps not the same for all"
    return f"over {' or '.join(str(steps) for steps in sorted({error.steps or 0 for error in errors}))} steps"


@dataclass(frozen=True)
class EpisodeError:
    """How far a demonstration is from what the others would do (:mod:`classact.evaluation.consistency`).

    Attributes:
        episode: its number among those that are trained on.
        steps: how long it is.
        error: mean L2.
        worst: its step of the largest error.
        worst_error: that error.
    """

    episode: int
    steps: int
    error: float
    worst: int
    worst_error: float


FENCE = 1.5
"""Errors this many interquartile ranges above the upper quartile stand out (Tukey)."""

_FEW = 8  # of fewer demonstrations none stands out


@dataclass(frozen=True)
class Consistency:
    """How far demonstrations are from each other.

    Attributes:
        chunk_length: T_a, actions compared.
        queries: timesteps asked about, of ``timesteps``.
        episodes: of each demonstration that is trained on.
    """

    chunk_length: int
    queries: int
    timesteps: int
    episodes: tuple[EpisodeError, ...]

    @property
    def level(self) -> float | None:
        """The error above which a demonstration stands out; None of few."""
        if len(self.episodes) < _FEW:
            return None
        low, high = np.quantile([one.error for one in self.episodes], (0.25, 0.75))
        return float(high + FENCE * (high - low))

    @property
    def ranked(self) -> list[EpisodeError]:
        """The largest error first."""
        return sorted(self.episodes, key=lambda one: -one.error)

    @property
    def outliers(self) -> list[EpisodeError]:
        """Those that stand out, the largest error first."""
        level = self.level
        return [] if level is None else [one for one in self.ranked if one.error > level]


@dataclass(frozen=True)
class NoveltyVideo:
    """A held-out demonstration shown with its neighbours and its novelty, in a run's analysis/novelty.

    Attributes:
        file: name.
        label: "most novel", "most familiar", or "held out" where it is the only one.
        episode: its number in the data set.
        steps: how long it is.
        mean, largest: distance of its observations from what was demonstrated.
        alarm: its first step beyond the alarm level; None: none, or no level.
        cameras: views that are shown, of all that the encoder sees.
    """

    file: str
    label: str
    episode: int
    steps: int
    mean: float
    largest: float
    alarm: int | None
    cameras: tuple[int, int]
