"""How far an observation is from what was demonstrated, and when that is too far to act on.

The distance of an observation is one minus the mean cosine of its m nearest demonstrated timesteps. Split conformal
prediction, with the episode as the exchangeable unit, learns which distances are usual: M_1, ..., M_n are the largest
distances, over all steps, of n demonstrations outside the bank. An observation at distance s scores

    score(s) = #{i : M_i < s} / (n + 1),

the share of these demonstrations that never were as far out; 1 - score is the conformal p-value of s as the largest
distance of an episode. The alarm is raised where s exceeds the j-th smallest M, j = ceil((n + 1)(1 - alpha)). At least
j of them are smaller there, so the score exceeds (j - 1/2) / (n + 1), which lies between two values that scores take:
no rounding decides. If an episode and the n others are exchangeable (say, drawn independently and alike), the chance of
an alarm at any of its steps is at most alpha.

A rollout of a policy is no demonstration: more frequent alarms than alpha there are information, not an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from classact.data.types import FloatArray, IntArray, StateArray
from classact.errors import ConfigError, DataError
from classact.policies.config import NoveltyConfig
from classact.utils.codec import fields_from_json, fields_to_json

if TYPE_CHECKING:
    from classact.policies.search import ExactSearch

Progress = Callable[[int, int], None]

HELD_OUT = "held-out"
LEFT_OUT = "leave-one-out"
_QUERIES = 1024


def episodes_needed(alpha: float) -> int:
    """The smallest number of calibration episodes with which an alarm of level alpha can be raised: (1 - alpha) /
    alpha.
    """
    return math.ceil(1 / _exact(alpha) - 1)


def conformal_rank(count: int, alpha: float) -> int:
    """j = ceil((n + 1)(1 - alpha)): beyond the j-th smallest of n values alpha bounds the chance of another; n + 1
    where there are too few.
    """
    return math.ceil((count + 1) * (1 - _exact(alpha)))


def distance(cosine: FloatArray) -> StateArray:
    """(B, m) cosines of the m nearest timesteps -> (B,) float64 distances, one minus their mean."""
    return np.asarray(1 - cosine.mean(axis=1, dtype=np.float64))


@dataclass(frozen=True, eq=False)
class Novelty:
    """A calibrated score.

    Args:
        maxima: (n,) largest distance of each calibration episode, in any order; kept sorted.
        timesteps: rows of the bank that distances were measured to.
        config: settings.
        kind: "held-out": of demonstrations outside the bank and the encoder's training; the bound alpha holds exactly.
            "leave-one-out": each episode of the bank against the bank without it; the bound holds approximately, and
            the worse, the better the encoder remembers its training data.
    """

    maxima: StateArray
    timesteps: int
    config: NoveltyConfig
    kind: str

    def __post_init__(self) -> None:
        if self.maxima.ndim != 1 or len(self.maxima) == 0 or not np.isfinite(self.maxima).all():
            raise ConfigError(
                f"expected the largest distances of n >= 1 episodes, all finite, got shape {self.maxima.shape}: "
                f"{self.maxima[:8].tolist()}."
            )
        if self.kind not in (HELD_OUT, LEFT_OUT):
            raise ConfigError(f"expected kind {HELD_OUT!r} or {LEFT_OUT!r}, got {self.kind!r}.")
        object.__setattr__(self, "maxima", np.sort(self.maxima.astype(np.float64)))

    @property
    def episodes(self) -> int:
        """n, how many episodes the score was calibrated on."""
        return len(self.maxima)

    @property
    def rank(self) -> int:
        """j: the alarm is raised beyond the j-th smallest maximum; n + 1 where there are too few."""
        return conformal_rank(self.episodes, self.config.alpha)

    @property
    def threshold(self) -> float:
        """The distance beyond which the alarm is raised; infinite where there are too few episodes."""
        return math.inf if self.rank > self.episodes else float(self.maxima[self.rank - 1])

    @property
    def alarm(self) -> float:
        """The score beyond which the alarm is raised; infinite where there are too few episodes."""
        return math.inf if self.rank > self.episodes else (self.rank - 0.5) / (self.episodes + 1)

    @property
    def exact(self) -> bool:
        """Whether the bound alpha holds exactly."""
        return self.kind == HELD_OUT

    def score(self, distances: StateArray | FloatArray) -> FloatArray:
        """(B,) distances -> (B,) float32 scores in [0, n / (n + 1)], never falling with the distance."""
        below = np.searchsorted(self.maxima, distances, side="left")
        return np.asarray(below / (self.episodes + 1), np.float32)

    def describe(self) -> str:
        """One sentence: what the alarm promises, and from how many episodes."""
        n, alpha = self.episodes, self.config.alpha
        source = f"{n} held-out demonstrations" if self.exact else f"{n} demonstrations, each left out of the bank once"
        if self.rank > n:
            return (
                f"No alarm: calibrated on {source}, but a chance of a false alarm of at most {alpha:g} per episode "
                f"needs {episodes_needed(alpha)}."
            )
        bound = "at most" if self.exact else "about"
        return f"The alarm is raised in {bound} {alpha:g} of episodes like those demonstrated (calibrated on {source})."

    def to_json(self) -> dict[str, Any]:
        """As a :class:`NoveltyRecord`."""
        alarm = None if math.isinf(self.alarm) else self.alarm
        how = (self.exact, self.kind, self.config.m, self.config.alpha, self.timesteps)
        return fields_to_json(NoveltyRecord(alarm, self.episodes, *how, tuple(self.maxima.tolist())))

    @staticmethod
    def from_json(value: Any, where: str) -> Novelty:
        """Inverse of :meth:`to_json`."""
        record = fields_from_json(NoveltyRecord, value, where)
        try:
            config = NoveltyConfig(record.m, record.alpha)
            return Novelty(np.array(record.maxima, np.float64), record.timesteps, config, record.kind)
        except ConfigError as problem:
            raise DataError(f"{where}: {problem} Calibrate again.") from None


@dataclass(frozen=True)
class NoveltyRecord:
    """A calibrated score as it is saved; alarm, episodes and heldout follow from the rest, for other readers."""

    alarm: float | None
    episodes: int
    heldout: bool
    kind: str
    m: int
    alpha: float
    timesteps: int
    maxima: tuple[float, ...]


def episode_maxima(distances: StateArray, episode_ends: IntArray) -> StateArray:
    """(N,) distances of all steps -> (E,) the largest of each episode."""
    if len(distances) != episode_ends[-1]:
        raise DataError(f"expected one distance per step, got {len(distances)} for {int(episode_ends[-1])} steps.")
    return np.asarray(np.maximum.reduceat(distances, np.concatenate([[0], episode_ends[:-1]])))


def left_out_distances(
    search: ExactSearch,
    rows: IntArray,
    latents: FloatArray,
    episode_ends: IntArray,
    m: int,
    progress: Progress | None = None,
) -> StateArray:
    """Distance of every step to the m nearest timesteps of all other episodes, from N x N cosines in blocks.

    ``latents`` (N, d) are of all steps; ``search`` is over those of ``rows`` (R,), ascending. An episode without which
    fewer than m are left is a ConfigError; ``progress`` is called with (steps done, N).
    """
    starts = np.concatenate([[0], episode_ends[:-1]])
    bounds = np.searchsorted(rows, np.stack([starts, episode_ends], axis=1))
    without = np.repeat(bounds, np.diff(episode_ends, prepend=0), axis=0)
    parts = []
    for start in range(0, len(latents), _QUERIES):
        stop = min(start + _QUERIES, len(latents))
        parts.append(distance(search.search(latents[start:stop], m, without[start:stop])[1]))
        if progress is not None:
            progress(stop, len(latents))
    return np.concatenate(parts)


def _exact(alpha: float) -> Fraction:
    # alpha as written: in binary, (n + 1) * (1 - 0.1) may come out above a whole number.
    return Fraction(str(float(alpha)))
