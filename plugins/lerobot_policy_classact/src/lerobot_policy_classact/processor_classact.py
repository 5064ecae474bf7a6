"""Observations and actions are passed on as they are: the policy normalises for itself."""

from __future__ import annotations

from typing import Any

from lerobot.processor import make_default_pre_post_processors

from lerobot_policy_classact.configuration_classact import ClassactConfig


def make_classact_pre_post_processors(config: ClassactConfig, dataset_stats: Any = None) -> Any:
    """LeRobot's standard pipelines, whose normalisation is the identity."""
    return make_default_pre_post_processors(config, dataset_stats)
