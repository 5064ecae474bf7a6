"""Policies that classact exported, as a LeRobot policy of type ``classact``."""

from lerobot_policy_classact.configuration_classact import ClassactConfig
from lerobot_policy_classact.modeling_classact import ClassactPolicy
from lerobot_policy_classact.processor_classact import make_classact_pre_post_processors

__all__ = ["ClassactConfig", "ClassactPolicy", "make_classact_pre_post_processors"]
