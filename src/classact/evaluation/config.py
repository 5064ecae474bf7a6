"""Settings of evaluations, without torch."""

from __future__ import annotations

from dataclasses import dataclass

from classact.policies.config import ControlConfig
from classact.utils.limits import check_range

FIRST_SEED = 100_000
"""First seed of evaluation episodes (as in Diffusion Policy and the released code); training data are below."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Which episodes are run, and how the policy is called in them.

    Attributes:
        episodes: how many, with seeds first_seed, first_seed + 1, ...
        first_seed: of the first episode; training data have seeds below :data:`FIRST_SEED`.
        shift: the simulator's visual shift.
        image_size: side of rendered images in pixels; the policy resizes to what it was trained on.
        max_steps: time limit in control steps; None: the simulator's own.
        workers: simulator processes; 0: one per core. Changes the speed, not the result.
        execute: receding horizon: actions of a chunk that are executed before the next decision; None: all T_a.
        ensemble: temporal ensembling, with ``execute``: m of the weights exp(-m i) of overlapping chunks; None: none.
    """

    episodes: int = 50
    first_seed: int = FIRST_SEED
    shift: str = "fixed-color"
    image_size: int = 96
    max_steps: int | None = None
    workers: int = 0
    execute: int | None = None
    ensemble: float | None = None

    def __post_init__(self) -> None:
        check_range(self, "episodes", "max_steps", least=1)
        check_range(self, "workers", least=0)
        _ = self.control

    @property
    def control(self) -> ControlConfig:
        """How the policy is called."""
        return ControlConfig(self.execute, self.ensemble)
