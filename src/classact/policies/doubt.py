"""When an episode will fail: doubt that adds up over it, and the level beyond which successes hardly go.

One observation far from everything demonstrated says little, for most failures look familiar at every step. But they
go on: doubt is the sum, over all decisions of an episode so far, of the distance from what was demonstrated
(:mod:`classact.policies.novelty`) and of :data:`RETURN` wherever the episode had been at such an observation before.

Split conformal prediction over episodes gives the level: among n successful episodes the ceil((n + 1)(1 - alpha))-th
smallest doubt before success. If another successful episode and these are exchangeable, the chance that it raises the
alarm is at most alpha. Demonstrations cannot calibrate it: a policy's episodes are longer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from classact.data.types import RolloutResult
from classact.errors import ConfigError, DataError, choose
from classact.policies.base import PolicySpec
from classact.policies.config import ControlConfig
from classact.policies.novelty import conformal_rank, episodes_needed
from classact.utils.codec import ADDED, first_difference, from_json, to_json
from classact.utils.storage import read_json, write_json

RETURN = 0.1
"""Doubt of coming back, in units of distance: as much as an observation of cosine 0.9 with the nearest ones."""


ALPHA = 0.05
"""Largest share of successes that raise an alarm, where none is asked for."""


@dataclass(frozen=True)
class Announced:
    """What an alarm said of episodes.

    Attributes:
        announced, failures: failures that raised it, of so many.
        false, successes: successes that raised it before they succeeded, of so many.
    """

    announced: int
    failures: int
    false: int
    successes: int


@dataclass(frozen=True)
class DoubtAlarm:
    """A level of doubt, calibrated for one policy on episodes of it.

    Attributes:
        level: the alarm is raised above it.
        alpha: largest share of successful episodes that raise it.
        successes: n, how many it was calibrated on.
        criterion: of success.
        policy, chunk_length, speed, control: how the policy acts: doubt adds up with the number of decisions.
        acting: its other settings (:class:`classact.policies.base.PolicySpec`); empty: they are not known.
    """

    level: float
    alpha: float
    successes: int
    criterion: str
    policy: str
    chunk_length: int
    speed: float
    control: ControlConfig = field(default_factory=ControlConfig, metadata=ADDED)
    acting: Mapping[str, Any] = field(default_factory=dict, metadata=ADDED)

    @staticmethod
    def calibrate(
        results: Sequence[RolloutResult], spec: PolicySpec, criterion: str | None = None, alpha: float = ALPHA
    ) -> DoubtAlarm:
        """The level that at most a share ``alpha`` of successful episodes like these pass.

        Args:
            results: episodes of the policy, from initial states that are used for nothing else.
            spec: the policy's, with the control of these episodes.
            criterion: of success; None: the simulator's first.
            alpha: see above.

        Raises:
            ConfigError: too few of them succeeded, or an unknown criterion.
            DataError: episodes without doubt, of a policy without calibrated novelty.
        """
        if not 0 < alpha < 1:
            raise ConfigError(f"expected 0 < alpha < 1, got {alpha}.")
        criterion = criterion or next(iter(results[0].success), "")
        if criterion not in results[0].success:
            raise ConfigError(f"{choose('criterion', criterion, results[0].success)}.")
        reached = np.sort([_before_success(one, criterion).max() for one in results if one.success[criterion]])
        rank = conformal_rank(len(reached), alpha)
        if rank > len(reached):
            raise ConfigError(
                f"{len(reached)} of {len(results)} episodes succeeded by {criterion}, but an alarm that at most "
                f"{alpha:g} of successes raise needs {episodes_needed(alpha)}. Run more episodes, or raise alpha."
            )
        level = float(reached[rank - 1])
        return DoubtAlarm(
            level=level,
            alpha=alpha,
            successes=len(reached),
            criterion=criterion,
            policy=spec.name,
            chunk_length=spec.chunk_length,
            speed=spec.speed,
            control=spec.control,
            acting=spec.acting,
        )

    def check(self, spec: PolicySpec) -> None:
        """Refuse a policy that acts otherwise than the one it was calibrated for, or whose doubt nobody knows.

        Raises:
            ConfigError: either.
        """
        if spec.alarm is None:
            raise ConfigError(
                f"policy {spec.name!r} has no calibrated novelty score, so its doubt is unknown, and no alarm can tell "
                f"when it fails. Calibrate novelty first; a head needs a monitor."
            )
        mine = (self.policy, self.chunk_length, self.speed, self.control)
        theirs = (spec.name, spec.chunk_length, spec.speed, spec.control)
        if mine != theirs:
            said = "policy {!r} with T_a = {} at speed {:g}, executing {}"
            words = [said.format(*one, control.describe()) for *one, control in (mine, theirs)]
            raise ConfigError(f"the alarm was calibrated for {words[0]}, this is {words[1]}. Calibrate it again.")
        if self.acting and (difference := first_difference(dict(self.acting), dict(spec.acting), "")):
            raise ConfigError(f"the alarm was calibrated with {difference}. Calibrate it again.")

    def raised(self, result: RolloutResult) -> int | None:
        """The control step, counted from 0, before which an episode raised the alarm; None: not before its success."""
        doubt = _before_success(result, self.criterion)
        above = doubt > self.level
        assert result.decisions is not None
        return int(result.decisions[np.argmax(above)]) if above.any() else None

    def announced(self, results: Sequence[RolloutResult], lead: int = 0) -> Announced:
        """How many failures among episodes it announced, more than ``lead`` steps before they ended."""
        raised = [(self.raised(one), one) for one in results]
        failed = [(at, one.steps) for at, one in raised if not one.success[self.criterion]]
        false = [at for at, one in raised if one.success[self.criterion]]
        return Announced(
            sum(at is not None and at < steps - lead for at, steps in failed),
            len(failed),
            sum(at is not None for at in false),
            len(false),
        )

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(path, to_json(self))

    @staticmethod
    def load(path: Path) -> DoubtAlarm:
        """Inverse of :meth:`save`; anything else is a DataError."""
        return from_json(DoubtAlarm, read_json(path), str(path))


def _before_success(result: RolloutResult, criterion: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """(n,) doubt of an episode's decisions before it succeeded, of all where it failed."""
    if result.doubt is None or result.decisions is None:
        raise DataError(
            f"episode {result.seed} has no doubt: it adds up distances of a retrieval policy, or of a head beside one, "
            f"with a calibrated novelty score. Calibrate novelty first."
        )
    reached = result.first_success[criterion]
    counted = result.doubt if reached is None else result.doubt[result.decisions < reached]
    return np.asarray(counted, np.float64)
