"""Policies: observations in, action chunks out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from classact.policies.base import Decision, FunctionPolicy, Neighbors, Policy, PolicySpec, Timestep, decide
from classact.policies.config import ControlConfig, NoveltyConfig, ParametricConfig, RetrievalConfig
from classact.utils.lazy import attach

if TYPE_CHECKING:
    from classact.policies.control import Controller as Controller
    from classact.policies.control import Runner as Runner
    from classact.policies.doubt import DoubtAlarm as DoubtAlarm
    from classact.policies.latents import ImageLatents as ImageLatents
    from classact.policies.latents import SceneLatents as SceneLatents
    from classact.policies.latents import StateLatents as StateLatents
    from classact.policies.load import load_policy as load_policy
    from classact.policies.monitored import MonitoredPolicy as MonitoredPolicy
    from classact.policies.novelty import Novelty as Novelty
    from classact.policies.parametric import ParametricPolicy as ParametricPolicy
    from classact.policies.retrieval import RetrievalPolicy as RetrievalPolicy
    from classact.policies.retrieval import retrievable as retrievable
    from classact.policies.search import make_search as make_search

__getattr__, __dir__ = attach(__name__, __file__)

__all__ = [
    "ControlConfig",
    "Decision",
    "FunctionPolicy",
    "Neighbors",
    "NoveltyConfig",
    "ParametricConfig",
    "Policy",
    "PolicySpec",
    "RetrievalConfig",
    "Timestep",
    "decide",
]
