"""Settings of an exported policy: which features it reads, and which files are in its weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import NormalizationMode, PreTrainedConfig


@PreTrainedConfig.register_subclass("classact")
@dataclass
class ClassactConfig(PreTrainedConfig):  # type: ignore[misc]
    """Written by ``classact export lerobot``.

    Attributes:
        files: name of each file of classact's policy -> its bytes; their order is that of the buffers.
        cameras: camera of the policy -> feature of the observation.
        proprioception: key of the policy's schema -> feature of the observation.
        n_action_steps: T_a, actions of a decision, all of which are executed.
    """

    files: dict[str, int] = field(default_factory=dict)
    cameras: dict[str, str] = field(default_factory=dict)
    proprioception: dict[str, str] = field(default_factory=dict)
    n_action_steps: int = 1
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ACTION", "ENV"), NormalizationMode.IDENTITY)
    )

    @property
    def observation_delta_indices(self) -> None:
        """One observation: classact's policies keep earlier ones themselves."""
        return

    @property
    def action_delta_indices(self) -> list[int]:
        """The actions of a decision."""
        return list(range(self.n_action_steps))

    @property
    def reward_delta_indices(self) -> None:
        """Rewards are not read."""
        return

    def get_optimizer_preset(self) -> Any:
        """There is nothing to optimise here."""
        raise NotImplementedError("train with classact: 'classact pretrain', 'classact finetune'; then export again.")

    def get_scheduler_preset(self) -> None:
        """There is nothing to optimise here."""
        return

    def validate_features(self) -> None:
        """What is missing is said when an observation lacks it, with what it holds."""
