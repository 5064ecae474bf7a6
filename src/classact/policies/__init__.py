"""Policies: observations in, action chunks out."""

from classact.policies.base import Decision, Moment, Policy, decide
from classact.policies.latents import ImageLatents, SceneLatents, StateLatents
from classact.policies.novelty import Novelty, NoveltyConfig
from classact.policies.parametric import ParametricConfig, ParametricPolicy
from classact.policies.retrieval import Neighbors, RetrievalConfig, RetrievalPolicy, retrievable
from classact.policies.search import make_search
from classact.policies.watched import WatchedPolicy, watched

__all__ = [
    "Decision",
    "ImageLatents",
    "Moment",
    "Neighbors",
    "Novelty",
    "NoveltyConfig",
    "ParametricConfig",
    "ParametricPolicy",
    "Policy",
    "RetrievalConfig",
    "RetrievalPolicy",
    "SceneLatents",
    "StateLatents",
    "WatchedPolicy",
    "decide",
    "make_search",
    "retrievable",
    "watched",
]
